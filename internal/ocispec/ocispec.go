// Package ocispec has the documents that images are made of: descriptors,
// manifests, indexes, configurations, and the platforms they are for.
//
// # Model
//
// Types of the OCI image specification are used as they are. Image adds what
// Docker's configuration has beyond them (health check, shell, ONBUILD).
// Docker's media types mean the same documents as the OCI's.
//
// # Guarantees
//
// ParseManifest, ParseIndex and ParseImage read what strangers wrote: they
// bound size, depth and counts, and refuse what two readers could understand
// differently: repeated keys, keys in another case, a manifest that is also
// an index, a media type that differs from what the sender said.
//
// # Not here
//
// Fetching (registry), keeping (image).
package ocispec

import (
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The specification's own types.
type (
	Descriptor = v1.Descriptor
	Manifest   = v1.Manifest
	Index      = v1.Index
	Platform   = v1.Platform
	RootFS     = v1.RootFS
	History    = v1.History
	Digest     = digest.Digest
)

// Versioned is schema version 2, the only one.
var Versioned = specs.Versioned{SchemaVersion: 2}

// Image is an image configuration: the OCI's fields and Docker's.
type Image struct {
	Created *time.Time `json:"created,omitempty"`
	Author  string     `json:"author,omitempty"`
	Platform
	Config  ImageConfig `json:"config,omitzero"`
	RootFS  RootFS      `json:"rootfs"`
	History []History   `json:"history,omitempty"`
}

// ImageConfig says how to run a container of the image.
type ImageConfig struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Healthcheck  *Healthcheck        `json:"Healthcheck,omitempty"`
	ArgsEscaped  bool                `json:"ArgsEscaped,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	OnBuild      []string            `json:"OnBuild,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	StopTimeout  *int                `json:"StopTimeout,omitempty"`
	Shell        []string            `json:"Shell,omitempty"`
}

// Healthcheck is a command that tells whether a container works.
type Healthcheck struct {
	Test          []string      `json:",omitempty"`
	Interval      time.Duration `json:",omitempty"`
	Timeout       time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
	Retries       int           `json:",omitempty"`
}

// Media types.
const (
	TypeManifest = v1.MediaTypeImageManifest
	TypeIndex    = v1.MediaTypeImageIndex
	TypeConfig   = v1.MediaTypeImageConfig
	TypeLayer    = v1.MediaTypeImageLayer
	TypeLayerGz  = v1.MediaTypeImageLayerGzip
	TypeLayerZst = v1.MediaTypeImageLayerZstd

	TypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	TypeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	TypeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	TypeDockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	TypeDockerLayerGz  = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	TypeDockerLayerZst = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	TypeDockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

	// TypeDockerV1 is the form before content had digests; it is refused.
	TypeDockerV1       = "application/vnd.docker.distribution.manifest.v1+json"
	TypeDockerV1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// ManifestTypes are the media types of manifests and indexes, the preferred
// first.
func ManifestTypes() []string {
	return []string{TypeIndex, TypeDockerIndex, TypeManifest, TypeDockerManifest}
}

// IsManifest reports whether t is the type of a single image's manifest.
func IsManifest(t string) bool { return t == TypeManifest || t == TypeDockerManifest }

// IsIndex reports whether t is the type of an index.
func IsIndex(t string) bool { return t == TypeIndex || t == TypeDockerIndex }

// IsConfig reports whether t is the type of an image configuration.
func IsConfig(t string) bool { return t == TypeConfig || t == TypeDockerConfig }

// IsLayer reports whether t is the type of a file system layer.
func IsLayer(t string) bool {
	return slices.Contains([]string{TypeLayer, TypeLayerGz, TypeLayerZst, TypeDockerLayer, TypeDockerLayerGz, TypeDockerLayerZst}, t) || IsForeign(t)
}

// IsForeign reports whether t is the type of a layer that its maker does not
// allow others to serve.
func IsForeign(t string) bool {
	return t == TypeDockerForeign || strings.HasPrefix(t, "application/vnd.oci.image.layer.nondistributable.v1.tar")
}

// IsAttestation reports whether an index's entry describes another entry's
// image rather than being one.
func IsAttestation(d Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// DescriptorOf describes b.
func DescriptorOf(mediaType string, b []byte) Descriptor {
	return Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// ChainIDs names, for each layer, the stack of layers up to it.
func ChainIDs(diffIDs []Digest) []Digest {
	out := make([]Digest, len(diffIDs))
	for i, d := range diffIDs {
		out[i] = d
		if i > 0 {
			out[i] = digest.FromString(out[i-1].String() + " " + d.String())
		}
	}
	return out
}

// ChainID names the whole stack; "" for no layers.
func ChainID(diffIDs []Digest) Digest {
	if len(diffIDs) == 0 {
		return ""
	}
	return ChainIDs(diffIDs)[len(diffIDs)-1]
}
