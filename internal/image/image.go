// Package image keeps images: their documents, names and layers, and moves
// them between registries, archives and the snapshot store.
//
// # Model
//
// An image is its configuration; its ID is the configuration's digest. The
// configuration lists the layers' DiffIDs, from which each stack of layers has
// its chain ID, and the committed snapshot of that name holds the files.
//
// Names (repository:tag) and digests (repository@sha256:…) mean a target: an
// index, or one image. Of an index there are as many images here as platforms
// of it were pulled, loaded or built; each says in its record which indexes it
// belongs to, and as which manifest. Where nobody asks for a platform, a target
// stands for the host's image, else for the one that came first, and only that
// one is listed.
//
//	name ─▶ target ─▶ image (config, manifest) ─▶ chain ID ─▶ snapshot
//	         index └▶ image of another platform      └─▶ layer record: tar-split,
//	                                                     blobs known to be the same
//
// A layer's compressed blob is not kept. Its exact tar can be made again from
// the snapshot and the tar-split record; its blob is mounted or fetched from a
// repository that has it, or compressed anew.
//
// # On disk
//
//	metadb image        ID → record
//	metadb image.doc    digest → manifest, index or configuration, as it came
//	metadb image.name   canonical name → ID, index
//	metadb image.layer  chain ID → layer record
//	<dir>/split/<hex of chain ID>      tar-split of the layer
//	<dir>/partial/<hex of digest>      the beginning of a blob that was being
//	                                   pulled; dropped after a week
//
// # Guarantees
//
// Nothing of a pull, load or import is visible before every digest is
// verified; one that fails leaves at most partial blobs. When Pull, Load,
// Import, Register or Commit return nil the image survives a power cut. What
// strangers wrote is read with ocispec's limits. Layers from URLs in manifests
// are not fetched.
//
// # Concurrency
//
// Every method may be called from many goroutines. Service.mu guards the
// indexes and is a leaf lock; work on one chain ID is exclusive (flights.go).
// Images that are returned share memory and must not be changed.
//
// # Not here
//
// The protocol (registry), tar and compression (layer), overlay (snapshot).
package image

import (
	"log/slog"
	"time"

	"github.com/onggi/onggi/internal/content"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
	"github.com/onggi/onggi/internal/registry"
)

// Options of a Service.
type Options struct {
	Dir       string // <data-root>/image
	DB        *metadb.DB
	Content   *content.Store // documents too large for a record
	Snapshots Snapshots
	Registry  *registry.Client
	Events    *events.Bus // may be nil
	Logger    *slog.Logger

	// Downloads and Uploads are how many layers one pull or push moves at the
	// same time (3 and 5).
	Downloads, Uploads int
	// MaxLayer bounds the uncompressed size of one layer (256 GiB).
	MaxLayer int64
}

// Image is one image.
type Image struct {
	ID          string             // "sha256:…", the digest of the configuration
	Manifest    ocispec.Descriptor // zero where there is none (commit, import)
	Index       ocispec.Descriptor // the index that Manifest came from, zero for none
	Config      ocispec.Image
	RepoTags    []string // familiar, sorted
	RepoDigests []string
	Size        int64     // of its layers; in a list, also of Others'
	Others      []string  // IDs of the same target's images for other platforms
	Created     time.Time // by the configuration
	Added       time.Time // to this store
	LastTagged  time.Time
	Parent      string             // the image it was committed from, "" for none
	Snapshot    string             // committed snapshot of all its layers, "" for none
	Chain       []string           // snapshots of each layer, the lowest first
	Target      ocispec.Descriptor // what a registry calls the image: Index or Manifest
}

// Progress is a step of a pull, push or load, in Docker's words.
type Progress struct {
	ID, Status     string
	Current, Total int64
}

// PullRequest says what to pull.
type PullRequest struct {
	Ref      reference.Ref
	Platform *ocispec.Platform // nil: the host's
	Auth     registry.Auth
	AllTags  bool
}

// PushRequest says what to push.
type PushRequest struct {
	Ref      reference.Ref
	Auth     registry.Auth
	AllTags  bool
	Platform *ocispec.Platform // nil: all that are here
}

// PushResult tells what was pushed.
type PushResult struct{ Pushed []Pushed }

// Pushed is one tag of a push.
type Pushed struct {
	Tag    string
	Digest string
	Size   int64
	// Changed says why the digest is not that of the manifest the image came
	// with; "" where it is.
	Changed string
}

// SaveRequest says what to put into an archive.
type SaveRequest struct {
	Names     []string           // names or IDs
	Platforms []ocispec.Platform // none: all that are here
}

// LoadRequest says what to take out of an archive.
type LoadRequest struct {
	Platforms []ocispec.Platform // none: all that are in it, and of the host's operating system
}

// Loaded is one image of an archive.
type Loaded struct {
	ID    string
	Names []string // familiar
}

// ImportRequest says how to make an image of a tar of a root file system.
type ImportRequest struct {
	Ref      reference.Ref // zero: no name
	Changes  []string      // Dockerfile instructions
	Message  string
	Platform ocispec.Platform // zero: the host's
}

// CommitRequest says how to make an image of a container's file system.
type CommitRequest struct {
	ContainerSnapshot string // active snapshot; it stays as it is
	ContainerID       string
	Parent            string // image ID
	Config            ocispec.ImageConfig
	Author, Message   string
	Ref               reference.Ref // zero: no name
	Changes           []string
}

// Built is an image that the builder made on layers in the snapshot store. An
// index of several is given in as many calls, each with all names.
type Built struct {
	Config   []byte
	Manifest []byte // as the client was told its digest; may be empty
	Index    []byte // around Manifest; may be empty
	// Docs are further small documents that Index refers to, such as
	// attestations and their layers.
	Docs   [][]byte
	Layers []BuiltLayer
	Names  []reference.Ref
}

// BuiltLayer is a layer of a Built.
type BuiltLayer struct {
	Snapshot string // committed
	DiffID   ocispec.Digest
	Size     int64               // of the tar; 0 if unknown
	Blob     *ocispec.Descriptor // a compressed form of it that somebody has, if known
	Source   reference.Ref       // who
}

// RemoveOptions say how to remove an image.
type RemoveOptions struct {
	Force   bool
	NoPrune bool
	// Platforms are the only ones to remove; the name goes with the last.
	Platforms []ocispec.Platform
	// InUse lists the containers of an image; one that runs has " (running)"
	// behind its ID.
	InUse func(imageID string) []string
}

// Removed is one thing that is gone.
type Removed struct{ Untagged, Deleted string }

// ListOptions select images.
type ListOptions struct {
	All     bool // also those without a name that are parents of others
	Filters map[string][]string
}

// HistoryItem is one step that made an image.
type HistoryItem struct {
	ID        string // "" where only the last image's is known
	Created   time.Time
	CreatedBy string
	Comment   string
	Size      int64
	Tags      []string
}

// PruneOptions select images to remove.
type PruneOptions struct {
	Filters map[string][]string
	InUse   func(imageID string) []string
	// UsedAs tells by which names, or IDs, containers were made from an image.
	UsedAs func(imageID string) []string
}

// PruneReport tells what a prune removed.
type PruneReport struct {
	Removed []Removed
	Freed   int64
}

// Usage is what images take on disk.
type Usage struct {
	Layers int64            // all layers, each once
	Unused int64            // of these, what no image in use needs
	Shared map[string]int64 // ID of a listed image → size of layers that others have too
	Unique map[string]int64 // ID of a listed image → size of its own layers, on all platforms
}
