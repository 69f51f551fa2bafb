package refs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/progress"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// unknown is the size of what has not been measured.
const unknown = -1

// record is what a node is on disk. Version it by adding fields only.
type record struct {
	ID       string
	Mutable  bool   `json:",omitempty"`
	Twin     string `json:",omitempty"` // of an immutable: the mutable whose snapshot it still uses
	Parent   string `json:",omitempty"`
	Snapshot string

	Lazy     bool                  `json:",omitempty"` // Blob is not unpacked yet
	Blob     *ocispecs.Descriptor  `json:",omitempty"` // the blob it was made from
	Variants []ocispecs.Descriptor `json:",omitempty"` // blobs made of it, by compression
	DiffID   digest.Digest         `json:",omitempty"`
	TarSize  int64                 `json:",omitempty"`
	Chain    digest.Digest         `json:",omitempty"` // chain id, where every DiffID up to here is known
	Origin   string                `json:",omitempty"` // repository that has Blob
	Source   string                `json:",omitempty"` // the node whose directory Stack shares

	Size        int64
	Created     time.Time
	LastUsed    time.Time                  `json:",omitzero"`
	Uses        int                        `json:",omitempty"`
	Description string                     `json:",omitempty"`
	Type        client.UsageRecordType     `json:",omitempty"`
	LayerType   string                     `json:",omitempty"`
	Retain      bool                       `json:",omitempty"`
	Values      map[string]*metadata.Value `json:",omitempty"`
}

// node is one file system, mutable or not.
type node struct {
	s      *Store
	parent *node // immutable after construction

	work  sync.Mutex   // serialises finalize, unpack and digest; taken before s.mu
	keyed sync.RWMutex // held while the snapshot gets another key; taken after work, before s.mu

	// guarded by s.mu:
	rec      record
	twin     *node // the other side, while the two share a snapshot
	handles  int
	children int // nodes on top of this one, and others that need it to stay
	dead     bool
	attached string // where the node is mounted for BuildKit's own steps
	ran      bool   // a container had it as its root, or wrote to it
	lender   Lender // of a mutable; nil: all files are there
}

// save writes the record. Preconditions: s.mu is held.
func (n *node) save() error {
	if n.dead {
		return nil
	}
	return n.s.o.Records.Put(n.rec.ID, &n.rec)
}

// saveAfter is how long a use may stay unwritten.
const saveAfter = time.Second

// saveLater writes the record of a use, some time: every step of a build is
// released at its end, and a lost use is no loss. Preconditions: s.mu is held.
func (n *node) saveLater() {
	s := n.s
	if s.unsaved == nil {
		s.unsaved = map[*node]bool{}
		time.AfterFunc(saveAfter, func() { s.later(s.saveUses) })
	}
	s.unsaved[n] = true
}

// saveUses writes what saveLater has put off.
func (s *Store) saveUses() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.unsaved {
		if err := n.save(); err != nil {
			s.o.Logger.Warn("recording the use of build cache", "id", n.rec.ID, "err", err)
		}
	}
	s.unsaved = nil
}

// update changes the record and writes it.
func (n *node) update(f func(*record)) error {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	f(&n.rec)
	return n.save()
}

// locked reports whether a mutable node is in use. Preconditions: s.mu is held.
func (n *node) locked() bool {
	return n.handles > 0 || n.twin != nil && n.twin.handles > 0
}

// shared reports that an immutable node still shares its snapshot with the
// mutable one that it was made from.
func (n *node) shared() bool {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	return !n.rec.Mutable && n.twin != nil
}

// hold keeps the node from being removed.
func (n *node) hold() error {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	if n.dead {
		return errNotFound(n.rec.ID)
	}
	n.children++
	return nil
}

func (n *node) unhold() {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	n.children--
}

// handle returns a new ref. Preconditions: s.mu is held, n is immutable.
func (n *node) handle(o refOptions, pg progress.Controller) *immutableRef {
	n.handles++
	return &immutableRef{metadataOf: metadataOf{n}, handlers: o.handlers, progress: pg, counts: !o.quiet}
}

// drop forgets the node, and with data its snapshot too.
// Preconditions: s.mu is held; nothing lies on n.
func (n *node) drop(data bool) {
	if n.dead {
		return
	}
	s := n.s
	n.dead = true
	delete(s.nodes, n.rec.ID)
	for _, v := range n.rec.Values {
		s.dropIndex(v.Index, n.rec.ID)
	}
	s.unindexBlob(n)
	if err := s.o.Records.Delete(n.rec.ID); err != nil {
		s.o.Logger.Warn("forgetting a build record", "id", n.rec.ID, "err", err)
	}
	if n.parent != nil {
		n.parent.children--
	}
	path, id := n.attached, n.rec.ID
	n.attached = ""
	snap := ""
	if data && !n.rec.Lazy && (n.rec.Mutable || n.twin == nil) {
		snap = n.rec.Snapshot
	}
	s.later(func() {
		if path != "" {
			s.detach(path)
		}
		os.RemoveAll(filepath.Join(s.ext, id))
		if s.o.Unlease != nil {
			s.o.Unlease(context.Background(), id)
		}
		if snap != "" {
			if err := s.o.Snapshots.Remove(context.Background(), snap); err != nil {
				s.o.Logger.Warn("removing a build snapshot", "name", snap, "err", err)
			}
		}
	})
}

// releaseMutable ends the use of a mutable node: it stays only when it, or
// what was committed from it, is to be kept. Preconditions: s.mu is held.
func (n *node) releaseMutable() {
	n.used()
	if n.rec.Retain || n.twin != nil && n.twin.rec.Retain {
		n.save()
		n.idle()
		return
	}
	if n.twin != nil {
		n.twin.drop(false)
	}
	n.drop(true)
}

// used counts a use. Preconditions: s.mu is held.
func (n *node) used() {
	n.rec.LastUsed = time.Now()
	n.rec.Uses++
}

// idle takes down the mount that was made for BuildKit's steps.
// Preconditions: s.mu is held.
func (n *node) idle() {
	if p := n.attached; p != "" {
		n.attached = ""
		n.s.later(func() { n.s.detach(p) })
	}
}

// finalize commits the snapshot that the node shares with its mutable twin.
func (n *node) finalize(ctx context.Context) error {
	if err := n.whole(ctx); err != nil {
		return err
	}
	n.work.Lock()
	defer n.work.Unlock()
	s := n.s
	s.mu.Lock()
	m := n.twin
	if n.rec.Mutable || m == nil {
		s.mu.Unlock()
		return nil
	}
	name, key := n.rec.Snapshot, m.rec.Snapshot
	path, ran := m.attached, m.ran
	m.attached = ""
	s.mu.Unlock()

	if path != "" {
		// The directory must not be the writable one of a mount when it
		// becomes part of others.
		s.detach(path)
	}
	if ran && n.parent != nil {
		// A step's mount points, which are gone again, left the directories
		// that they were in.
		own, lowers, err := s.o.Snapshots.Dirs(key)
		if err == nil {
			err = s.o.Layers.Tidy(own, lowers)
		}
		if err != nil {
			return fmt.Errorf("committing a build step: %w", err)
		}
	}
	n.keyed.Lock()
	defer n.keyed.Unlock()
	// The commit must not be torn by a cancelled build.
	if err := s.o.Snapshots.Commit(context.WithoutCancel(ctx), name, key); err != nil {
		return fmt.Errorf("committing a build step: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n.twin, n.rec.Twin = nil, ""
	m.twin = nil
	err := n.save()
	m.drop(false)
	return err
}

// missingProviders lists the blobs that are needed and that nobody can fetch.
// Preconditions: s.mu is held.
func (n *node) missingProviders(h cache.DescHandlers) cache.NeedsRemoteProviderError {
	var missing cache.NeedsRemoteProviderError
	for ; n != nil; n = n.parent {
		if n.rec.Lazy && h[n.rec.Blob.Digest] == nil && !n.s.hasBlob(n.rec.Blob.Digest) {
			missing = append(missing, n.rec.Blob.Digest)
		}
	}
	return missing
}

// layers lists the nodes from the lowest to n. Their parents never change.
func (n *node) layers() []*node {
	var out []*node
	for ; n != nil; n = n.parent {
		out = append(out, n)
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

// size is the space of the node's own directory.
func (n *node) size(ctx context.Context) int64 {
	s := n.s
	s.mu.Lock()
	size, key := n.rec.Size, n.rec.Snapshot
	switch {
	case n.rec.Lazy, n.rec.Source != "":
		size = 0
	case n.rec.Mutable && n.handles > 0:
		size = 0 // it is changing
	case n.twin != nil && !n.rec.Mutable:
		key = n.twin.rec.Snapshot
	}
	s.mu.Unlock()
	if size != unknown {
		return size
	}
	size, err := s.o.Snapshots.Usage(ctx, key)
	if err != nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n.rec.Size = size
	n.save()
	return size
}

// chainID is the chain id of the layers up to the node, "" when some DiffID is
// not known yet. Preconditions: s.mu is held.
func (n *node) chainID() digest.Digest {
	if n.rec.Chain != "" || n.rec.DiffID == "" {
		return n.rec.Chain
	}
	if n.parent == nil {
		n.rec.Chain = n.rec.DiffID
	} else if p := n.parent.chainID(); p != "" {
		n.rec.Chain = identity.ChainID([]digest.Digest{p, n.rec.DiffID})
	}
	if n.rec.Chain != "" {
		n.s.addIndex(chainIndex+n.rec.Chain.String(), n.rec.ID)
	}
	return n.rec.Chain
}

// ready makes sure that the node's files are on the disk.
func (n *node) ready(ctx context.Context, h cache.DescHandlers, sess session.Group) error {
	if err := n.finalizeIfStacked(ctx); err != nil {
		return err
	}
	return n.unpack(ctx, h, sess)
}

// complete makes the node one that does not change, with its files on the disk.
func (n *node) complete(ctx context.Context, h cache.DescHandlers, sess session.Group) error {
	if err := n.finalize(ctx); err != nil {
		return err
	}
	return n.unpack(ctx, h, sess)
}

// finalizeIfStacked finalizes unless the node may be taken up again as a
// mutable one, which only nodes without a parent are.
func (n *node) finalizeIfStacked(ctx context.Context) error {
	if n.parent == nil {
		return nil
	}
	return n.finalize(ctx)
}
