package ocispec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/errdefs"
)

// Limits of what is read from strangers.
const (
	MaxManifest = 4 << 20
	MaxConfig   = 8 << 20
	MaxLayers   = 128
	MaxEntries  = 1024 // of an index
	MaxHistory  = 4096
	maxDepth    = 32
	maxString   = 1 << 20
)

// shape names the keys of an object that readers look at. A nil shape is a
// free-form value: there only repeated keys are refused.
type shape map[string]shape

var (
	platformShape   = shape{"architecture": nil, "os": nil, "os.version": nil, "os.features": nil, "variant": nil}
	descriptorShape = shape{"mediaType": nil, "digest": nil, "size": nil, "urls": nil, "annotations": nil, "data": nil, "platform": platformShape, "artifactType": nil}
	manifestShape   = shape{
		"schemaVersion": nil, "mediaType": nil, "artifactType": nil, "config": descriptorShape, "layers": descriptorShape,
		"manifests": descriptorShape, "fsLayers": nil, "signatures": nil, "subject": descriptorShape, "annotations": nil,
	}
	configShape = shape{
		"created": nil, "author": nil, "architecture": nil, "os": nil, "os.version": nil, "os.features": nil, "variant": nil,
		"config": {
			"User": nil, "ExposedPorts": nil, "Env": nil, "Entrypoint": nil, "Cmd": nil, "Volumes": nil, "WorkingDir": nil, "Labels": nil,
			"StopSignal": nil, "StopTimeout": nil, "ArgsEscaped": nil, "OnBuild": nil, "Shell": nil,
			"Healthcheck": {"Test": nil, "Interval": nil, "Timeout": nil, "StartPeriod": nil, "StartInterval": nil, "Retries": nil},
		},
		"rootfs":  {"type": nil, "diff_ids": nil},
		"history": {"created": nil, "created_by": nil, "author": nil, "comment": nil, "empty_layer": nil},
	}
)

func invalid(what, format string, args ...any) error {
	return errdefs.Newf(errdefs.Invalid, "read", what, format, args...)
}

// checkKeys walks a JSON document and refuses what readers could take in two
// ways. Values of arrays have the shape of the array.
func checkKeys(what string, b []byte, s shape) error {
	type level struct {
		s      shape
		seen   map[string]bool // nil in an array
		folded map[string]string
		key    string
		wants  bool // a key comes next
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var stack []level
	done := func() bool { // a value was read; reports whether it was the last
		if len(stack) == 0 {
			return true
		}
		if top := &stack[len(stack)-1]; top.seen != nil {
			top.wants = true
		}
		return false
	}
	for {
		tok, err := d.Token()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return invalid(what, "not valid JSON: %w", err)
		}
		var inner shape
		if len(stack) > 0 {
			top := &stack[len(stack)-1]
			inner = top.s
			if top.seen != nil {
				if k, ok := tok.(string); ok && top.wants {
					if len(k) > maxString {
						return invalid(what, "a key of %d bytes", len(k))
					}
					if top.seen[k] {
						return invalid(what, "the key %q is there twice", k)
					}
					if top.s != nil {
						if _, known := top.s[k]; !known {
							if as, ok := top.folded[foldKey(k)]; ok {
								return invalid(what, "the key %q is spelled unlike %q", k, as)
							}
						}
					}
					top.seen[k], top.key, top.wants = true, k, false
					continue
				}
				inner = top.s[top.key]
			}
		} else {
			inner = s
		}
		switch t := tok.(type) {
		case json.Delim:
			if t == '}' || t == ']' {
				stack = stack[:len(stack)-1]
				if done() {
					return trailing(what, b, d)
				}
				continue
			}
			if len(stack) == maxDepth {
				return invalid(what, "nested deeper than %d levels", maxDepth)
			}
			l := level{s: inner}
			if t == '{' {
				l.seen, l.wants = map[string]bool{}, true
				l.folded = fold(inner)
			}
			stack = append(stack, l)
		case string:
			if len(t) > maxString {
				return invalid(what, "a string of %d bytes", len(t))
			}
			if done() {
				return invalid(what, "not an object")
			}
		default:
			if done() {
				return invalid(what, "not an object")
			}
		}
	}
}

func fold(s shape) map[string]string {
	if s == nil {
		return nil
	}
	m := make(map[string]string, len(s))
	for k := range s {
		m[strings.ToLower(k)] = k
	}
	return m
}

// foldKey folds as encoding/json does: the long s is the one letter that
// ToLower leaves alone.
func foldKey(k string) string { return strings.ReplaceAll(strings.ToLower(k), "ſ", "s") }

func trailing(what string, b []byte, d *json.Decoder) error {
	if rest := bytes.TrimSpace(b[d.InputOffset():]); len(rest) > 0 {
		return invalid(what, "%d bytes after the end of the JSON document", len(rest))
	}
	return nil
}

// kindOf looks only at which members are there.
type kindOf struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        json.RawMessage `json:"config"`
	Layers        json.RawMessage `json:"layers"`
	Manifests     json.RawMessage `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
}

// DetectType finds what kind of manifest b is. said is what the sender called
// it (a header or a descriptor), "" for nothing.
func DetectType(b []byte, said string) (string, error) {
	const what = "manifest"
	if len(b) > MaxManifest {
		return "", invalid(what, "%d bytes, more than the %d allowed", len(b), MaxManifest)
	}
	if err := checkKeys(what, b, manifestShape); err != nil {
		return "", err
	}
	var k kindOf
	if err := json.Unmarshal(b, &k); err != nil {
		return "", invalid(what, "%w", err)
	}
	if k.SchemaVersion == 1 || k.FSLayers != nil || said == TypeDockerV1 || said == TypeDockerV1Signed {
		return "", errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "read", what, "it is of Docker's schema version 1, which has no digests of its layers"), "push the image again with a client of this decade")
	}
	if k.SchemaVersion != 2 && k.SchemaVersion != 0 { // many leave it out, and everybody reads them
		return "", invalid(what, "schema version %d, want 2", k.SchemaVersion)
	}
	isIndex, isManifest := k.Manifests != nil, k.Layers != nil || k.Config != nil
	if isIndex && isManifest {
		return "", invalid(what, "it is a manifest and an index at once")
	}
	if k.MediaType != "" && said != "" && k.MediaType != said {
		return "", invalid(what, "it says that it is %s, its sender says %s", k.MediaType, said)
	}
	t := k.MediaType
	if t == "" {
		t = said
	}
	switch {
	case t == "" && isIndex:
		t = TypeIndex
	case t == "" && isManifest:
		t = TypeManifest
	case IsIndex(t) && isIndex, IsManifest(t) && isManifest:
	default:
		return "", invalid(what, "its members do not fit its type %q", t)
	}
	return t, nil
}

// ParseManifest reads the manifest of one image. said is as in DetectType.
func ParseManifest(b []byte, said string) (Manifest, error) {
	const what = "manifest"
	t, err := DetectType(b, said)
	if err != nil {
		return Manifest{}, err
	}
	if !IsManifest(t) {
		return Manifest{}, invalid(what, "it is an index (%s)", t)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return Manifest{}, invalid(what, "%w", err)
	}
	m.MediaType = t
	if len(m.Layers) > MaxLayers {
		return Manifest{}, invalid(what, "%d layers, more than the %d allowed", len(m.Layers), MaxLayers)
	}
	if err := CheckDescriptor(m.Config); err != nil {
		return Manifest{}, invalid(what, "config: %w", err)
	}
	if m.Config.Size > MaxConfig {
		return Manifest{}, invalid(what, "a configuration of %d bytes, more than the %d allowed", m.Config.Size, MaxConfig)
	}
	for i, l := range m.Layers {
		if err := CheckDescriptor(l); err != nil {
			return Manifest{}, invalid(what, "layer %d: %w", i, err)
		}
	}
	return m, nil
}

// ParseIndex reads an index. said is as in DetectType.
func ParseIndex(b []byte, said string) (Index, error) {
	const what = "index"
	t, err := DetectType(b, said)
	if err != nil {
		return Index{}, err
	}
	if !IsIndex(t) {
		return Index{}, invalid(what, "it is a single manifest (%s)", t)
	}
	var x Index
	if err := json.Unmarshal(b, &x); err != nil {
		return Index{}, invalid(what, "%w", err)
	}
	x.MediaType = t
	if len(x.Manifests) > MaxEntries {
		return Index{}, invalid(what, "%d entries, more than the %d allowed", len(x.Manifests), MaxEntries)
	}
	for i, d := range x.Manifests {
		if err := CheckDescriptor(d); err != nil {
			return Index{}, invalid(what, "entry %d: %w", i, err)
		}
		if (IsIndex(d.MediaType) || IsManifest(d.MediaType)) && d.Size > MaxManifest {
			return Index{}, invalid(what, "entry %d: %d bytes, more than the %d allowed", i, d.Size, MaxManifest)
		}
	}
	return x, nil
}

// ParseImage reads an image configuration.
func ParseImage(b []byte) (Image, error) {
	const what = "image configuration"
	if len(b) > MaxConfig {
		return Image{}, invalid(what, "%d bytes, more than the %d allowed", len(b), MaxConfig)
	}
	if err := checkKeys(what, b, configShape); err != nil {
		return Image{}, err
	}
	var img Image
	if err := json.Unmarshal(b, &img); err != nil {
		return Image{}, invalid(what, "%w", err)
	}
	if t := img.RootFS.Type; t != "layers" && (t != "" || len(img.RootFS.DiffIDs) > 0) {
		return Image{}, invalid(what, "a root file system of type %q, want \"layers\"", t)
	}
	if len(img.RootFS.DiffIDs) > MaxLayers {
		return Image{}, invalid(what, "%d layers, more than the %d allowed", len(img.RootFS.DiffIDs), MaxLayers)
	}
	if len(img.History) > MaxHistory {
		return Image{}, invalid(what, "%d entries of history, more than the %d allowed", len(img.History), MaxHistory)
	}
	for i, d := range img.RootFS.DiffIDs {
		if err := CheckDigest(d); err != nil {
			return Image{}, invalid(what, "layer %d: %w", i, err)
		}
	}
	return img, nil
}

// CheckDigest accepts digests by sha256, sha384 and sha512 in their one
// spelling.
func CheckDigest(d Digest) error {
	alg, enc, ok := strings.Cut(string(d), ":")
	n := map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}[alg]
	if !ok || n == 0 || len(enc) != n || strings.Trim(enc, "0123456789abcdef") != "" {
		return fmt.Errorf("%.80q is not a digest", string(d))
	}
	return nil
}

// CheckDescriptor checks what every descriptor must have.
func CheckDescriptor(d Descriptor) error {
	if err := CheckDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return fmt.Errorf("%s: a size of %d", d.Digest, d.Size)
	}
	if d.MediaType == "" {
		return fmt.Errorf("%s: no media type", d.Digest)
	}
	if len(d.Data) > 0 && (int64(len(d.Data)) != d.Size || digest.FromBytes(d.Data) != d.Digest && d.Digest.Algorithm() == digest.SHA256) {
		return fmt.Errorf("%s: the embedded data is other data", d.Digest)
	}
	return nil
}

// Verify checks that b is what d describes.
func Verify(d Descriptor, b []byte) error {
	if int64(len(b)) != d.Size {
		return invalid(d.Digest.String(), "%d bytes, want %d", len(b), d.Size)
	}
	if err := CheckDigest(d.Digest); err != nil {
		return invalid("descriptor", "%w", err)
	}
	if alg := d.Digest.Algorithm(); !alg.Available() {
		return invalid(d.Digest.String(), "no implementation of %s", alg)
	}
	if got := d.Digest.Algorithm().FromBytes(b); got != d.Digest {
		return invalid(d.Digest.String(), "the content has the digest %s", got)
	}
	return nil
}
