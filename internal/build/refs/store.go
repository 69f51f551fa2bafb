package refs

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/progress"
	"github.com/moby/sys/user"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/onggi/onggi/internal/errdefs"
)

// Prefix starts the name of every snapshot of this package.
const Prefix = "build-"

// Snapshots is what a Store needs of the snapshot store.
type Snapshots interface {
	Prepare(ctx context.Context, key, parent string) error
	Commit(ctx context.Context, name, key string) error
	// Stack commits a snapshot that shares existing's own directory and lies
	// on parent.
	Stack(ctx context.Context, name, existing, parent string) error
	// Remove forgets a name; it succeeds when there is none.
	Remove(ctx context.Context, key string) error
	Exists(key string) bool
	// Names lists the snapshots whose name starts with the prefix.
	Names(prefix string) ([]string, error)
	// Usage is the size of the snapshot's own directory.
	Usage(ctx context.Context, key string) (int64, error)
	// Dirs gives the snapshot's own directory and those below it, top first.
	Dirs(key string) (own string, lowers []string, err error)
	// Open mounts the snapshot, attached nowhere.
	Open(ctx context.Context, key string, readOnly bool) (*os.File, error)
}

// Layers turns a layer's directory into a tar and back.
type Layers interface {
	Tar(ctx context.Context, w io.Writer, dir string) error
	// Apply unpacks a blob, compressed or not, as the own directory of an
	// active snapshot, and returns the digest and size of the uncompressed tar.
	Apply(ctx context.Context, r io.Reader, dir string, lowers []string) (digest.Digest, int64, error)
	// Tidy removes directories that only repeat what is below them.
	Tidy(dir string, lowers []string) error
}

// Mounter attaches mounts where BuildKit's own steps can reach them.
type Mounter interface {
	Attach(mnt *os.File, path string) error
	Detach(path string) error
}

// Records is the durable memory of a Store.
type Records interface {
	Put(key string, v any) error
	Delete(key string) error
	Each(f func(key string, raw json.RawMessage) error) error
}

// Options of a Store.
type Options struct {
	Root      string // directory for mount points and larger metadata
	Records   Records
	Snapshots Snapshots
	Layers    Layers
	Mounter   Mounter
	Content   content.Store                                         // blobs made for remote caches and pushes
	Lease     func(ctx context.Context, id string, d digest.Digest) // keeps a blob while the id lives
	Unlease   func(ctx context.Context, id string)
	Free      func() (int64, error) // free bytes of the disk, for the policy of clean-up
	Shared    func(chainID string) bool
	// Fetch reads a blob from where a layer came from; nil: from nowhere.
	Fetch  func(ctx context.Context, origin string, desc ocispecs.Descriptor, g session.Group) (content.ReaderAt, error)
	Logger *slog.Logger
}

// Store implements BuildKit's cache.Manager.
type Store struct {
	o      Options
	mounts string
	ext    string

	mu      sync.Mutex
	nodes   map[string]*node           // guarded by mu
	index   map[string]map[string]bool // guarded by mu: index value → ids
	unsaved map[*node]bool             // guarded by mu: what saveLater has put off; nil: nothing

	pruning sync.Mutex // one clean-up at a time

	bg      sync.WaitGroup // the goroutine that works off the queue
	bgMu    sync.Mutex
	queue   []func() // guarded by bgMu: in order, since a child goes before its parent
	working bool     // guarded by bgMu
}

var _ cache.Manager = (*Store)(nil)

// Open loads the nodes of an earlier run, and drops those that cannot be used
// any more.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{
		o:      o,
		mounts: filepath.Join(o.Root, "mounts"),
		ext:    filepath.Join(o.Root, "ext"),
		nodes:  map[string]*node{},
		index:  map[string]map[string]bool{},
	}
	if s.o.Logger == nil {
		s.o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []string{s.mounts, s.ext} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	return s, s.load(ctx)
}

// load reads the records, and reconciles them with the snapshots.
func (s *Store) load(ctx context.Context) error {
	s.detachLeftovers()
	recs := map[string]*record{}
	err := s.o.Records.Each(func(key string, raw json.RawMessage) error {
		r := &record{}
		if err := json.Unmarshal(raw, r); err != nil || r.ID != key {
			return s.o.Records.Delete(key)
		}
		recs[key] = r
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the build cache's records: %w", err)
	}
	good := map[string]bool{}
	for id := range recs {
		s.usable(recs, id, good)
	}
	for id, r := range recs {
		if !good[id] {
			s.o.Records.Delete(id)
			os.RemoveAll(filepath.Join(s.ext, id))
			delete(recs, id)
			continue
		}
		s.nodes[id] = &node{s: s, rec: *r}
	}
	used := map[string]bool{}
	for id, r := range recs {
		n := s.nodes[id]
		used[r.Snapshot] = true
		if r.Parent != "" {
			n.parent = s.nodes[r.Parent]
			n.parent.children++
		}
		if r.Twin != "" {
			n.twin = s.nodes[r.Twin]
			n.twin.twin = n
		}
		for _, v := range r.Values {
			s.addIndex(v.Index, id)
		}
		s.indexBlob(n)
	}
	// BuildKit saves content hashes later, also of what has been dropped since.
	if left, err := os.ReadDir(s.ext); err == nil {
		for _, d := range left {
			if s.nodes[d.Name()] == nil {
				os.RemoveAll(filepath.Join(s.ext, d.Name()))
			}
		}
	}
	names, err := s.o.Snapshots.Names(Prefix)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !used[name] {
			if err := s.o.Snapshots.Remove(ctx, name); err != nil {
				s.o.Logger.Warn("removing a leftover build snapshot", "name", name, "err", err)
			}
		}
	}
	return nil
}

// usable decides whether a record survives: its snapshot and its parents are
// there, and it is not something that was being written when the engine died.
func (s *Store) usable(recs map[string]*record, id string, memo map[string]bool) bool {
	if ok, seen := memo[id]; seen {
		return ok
	}
	memo[id] = false // a loop in the records is not usable
	r := recs[id]
	if r == nil {
		return false
	}
	ok := r.Parent == "" || s.usable(recs, r.Parent, memo)
	switch {
	case !ok:
	case r.Mutable:
		// Only a mutable that is kept for reuse, or whose twin is, may stay;
		// the twin's own check asks for this one.
		ok = s.o.Snapshots.Exists(r.Snapshot) && (r.Retain || s.retainedTwin(recs, id))
	case r.Twin != "":
		if m := recs[r.Twin]; m != nil && s.o.Snapshots.Exists(m.Snapshot) {
			ok = s.usable(recs, r.Twin, memo)
		} else {
			// Died between the snapshot's commit and the record's.
			r.Twin = ""
			ok = s.o.Snapshots.Exists(r.Snapshot)
		}
	case r.Lazy:
		ok = r.Blob != nil
	default:
		ok = s.o.Snapshots.Exists(r.Snapshot)
	}
	memo[id] = ok
	return ok
}

func (s *Store) retainedTwin(recs map[string]*record, mutable string) bool {
	for _, r := range recs {
		if r.Twin == mutable && r.Retain {
			return true
		}
	}
	return false
}

// Close waits for what is under way. The snapshots stay.
func (s *Store) Close() error {
	s.mu.Lock()
	var paths []string
	for _, n := range s.nodes {
		if n.attached != "" {
			paths = append(paths, n.attached)
			n.attached = ""
		}
	}
	s.mu.Unlock()
	for _, p := range paths {
		s.detach(p)
	}
	s.bg.Wait()
	s.saveUses()
	return nil
}

// IdentityMapping is nil: builds run without a user namespace of their own.
func (s *Store) IdentityMapping() *user.IdentityMapping { return nil }

// Search returns the nodes that carry the index value.
func (s *Store) Search(_ context.Context, idx string, prefix bool) ([]cache.RefMetadata, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[string]bool{}
	var out []cache.RefMetadata
	add := func(ids map[string]bool) {
		for id := range ids {
			if n := s.nodes[id]; n != nil && !seen[id] {
				seen[id] = true
				out = append(out, metadataOf{n})
			}
		}
	}
	if !prefix {
		add(s.index[idx])
		return out, nil
	}
	for k, ids := range s.index {
		if strings.HasPrefix(k, idx) {
			add(ids)
		}
	}
	return out, nil
}

// Get returns a handle on an immutable node. A mutable one that nobody holds
// is committed first.
func (s *Store) Get(_ context.Context, id string, pg progress.Controller, opts ...cache.RefOption) (cache.ImmutableRef, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := readOptions(opts)
	n := s.nodes[id]
	if n == nil {
		return nil, errNotFound(id)
	}
	if missing := n.missingProviders(o.handlers); len(missing) > 0 {
		return nil, missing
	}
	if n.rec.Mutable {
		if n.locked() {
			return nil, fmt.Errorf("%s: %w", id, cache.ErrLocked)
		}
		if n.twin == nil {
			s.commitLocked(n)
		}
		n = n.twin
	}
	return n.handle(o, pg), nil
}

// New prepares a node to write into.
func (s *Store) New(ctx context.Context, parent cache.ImmutableRef, sess session.Group, opts ...cache.RefOption) (_ cache.MutableRef, err error) {
	o := readOptions(opts)
	id := identity.NewID()
	n := &node{s: s, rec: record{
		ID: id, Mutable: true, Snapshot: Prefix + id, Size: unknown,
		Created: time.Now(), Retain: o.retain,
	}}
	below := ""
	if parent != nil {
		p, err := s.own(parent)
		if err != nil {
			return nil, err
		}
		if err := p.n.hold(); err != nil {
			return nil, err
		}
		n.parent = p.n
		o.handlers = p.handlers
		defer func() {
			if err != nil {
				p.n.unhold()
			}
		}()
		if err := p.n.finalize(ctx); err != nil {
			return nil, err
		}
		if err := p.n.unpack(ctx, p.handlers, sess); err != nil {
			return nil, err
		}
		n.rec.Parent, below = p.n.rec.ID, p.n.rec.Snapshot
	}
	if err := s.o.Snapshots.Prepare(ctx, n.rec.Snapshot, below); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[id] = n
	if err := n.save(); err != nil {
		delete(s.nodes, id)
		s.removeSnapshot(n.rec.Snapshot)
		return nil, err
	}
	n.handles = 1
	return &mutableRef{metadataOf: metadataOf{n}, handlers: o.handlers}, nil
}

// GetMutable takes up a mutable node again, if nobody holds it or its twin.
func (s *Store) GetMutable(_ context.Context, id string, opts ...cache.RefOption) (cache.MutableRef, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[id]
	switch {
	case n == nil:
		return nil, errNotFound(id)
	case !n.rec.Mutable:
		return nil, errdefs.Newf(errdefs.Invalid, "open", "build ref "+id, "it is not mutable")
	case n.locked():
		return nil, fmt.Errorf("%s: %w", id, cache.ErrLocked)
	}
	if n.twin != nil {
		n.twin.drop(false)
		n.twin = nil
	}
	n.handles, n.lender = 1, nil
	n.rec.Size = unknown
	return &mutableRef{metadataOf: metadataOf{n}, handlers: readOptions(opts).handlers}, nil
}

// own returns the handle of ours behind any cache.ImmutableRef.
func (s *Store) own(r cache.ImmutableRef) (*immutableRef, error) {
	if i, ok := r.(*immutableRef); ok && i.n.s == s {
		return i, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[r.ID()]
	if n == nil || n.rec.Mutable {
		return nil, errNotFound(r.ID())
	}
	return &immutableRef{metadataOf: metadataOf{n}}, nil
}

// commitLocked gives a mutable its immutable twin. Preconditions: s.mu is held.
func (s *Store) commitLocked(m *node) *node {
	id := identity.NewID()
	n := &node{s: s, parent: m.parent, twin: m, rec: record{
		ID: id, Twin: m.rec.ID, Parent: m.rec.Parent, Snapshot: Prefix + id,
		Size: unknown, Created: time.Now(), Description: m.rec.Description, Type: m.rec.Type,
	}}
	if m.parent != nil {
		m.parent.children++
	}
	m.twin = n
	s.nodes[id] = n
	if err := n.save(); err != nil {
		s.o.Logger.Warn("recording a build result", "id", id, "err", err)
	}
	return n
}

func (s *Store) addIndex(idx, id string) {
	if idx == "" {
		return
	}
	if s.index[idx] == nil {
		s.index[idx] = map[string]bool{}
	}
	s.index[idx][id] = true
}

func (s *Store) dropIndex(idx, id string) {
	if idx == "" {
		return
	}
	delete(s.index[idx], id)
	if len(s.index[idx]) == 0 {
		delete(s.index, idx)
	}
}

// later does file system work off the caller's path, in the order given.
func (s *Store) later(f func()) {
	s.bgMu.Lock()
	defer s.bgMu.Unlock()
	s.queue = append(s.queue, f)
	if s.working {
		return
	}
	s.working = true
	s.bg.Go(func() {
		for {
			s.bgMu.Lock()
			if len(s.queue) == 0 {
				s.working, s.queue = false, nil
				s.bgMu.Unlock()
				return
			}
			f := s.queue[0]
			s.queue = s.queue[1:]
			s.bgMu.Unlock()
			f()
		}
	})
}

func (s *Store) removeSnapshot(name string) {
	s.later(func() {
		if err := s.o.Snapshots.Remove(context.Background(), name); err != nil {
			s.o.Logger.Warn("removing a build snapshot", "name", name, "err", err)
		}
	})
}

func errNotFound(id string) error {
	return errdefs.Newf(errdefs.NotFound, "open", "build ref "+id, "there is no such ref")
}

// refOptions are the options that can be read. The others are closures over an
// unexported type of BuildKit; what they carry is derived elsewhere.
type refOptions struct {
	handlers cache.DescHandlers
	quiet    bool // does not count as a use
	retain   bool
	created  time.Time
}

func readOptions(opts []cache.RefOption) refOptions {
	var o refOptions
	for _, opt := range opts {
		switch v := opt.(type) {
		case cache.DescHandlers:
			o.handlers = v
		case []cache.RefOption:
			o2 := readOptions(v)
			o.quiet = o.quiet || o2.quiet
			o.retain = o.retain || o2.retain
		default:
			if opt == any(cache.NoUpdateLastUsed) {
				o.quiet = true
			} else if isRetain(opt) {
				o.retain = true
			}
		}
	}
	return o
}

// typeOf names the record type for an index that a source or mount sets.
func typeOf(index string) (client.UsageRecordType, string) {
	kind, rest, _ := strings.Cut(index, ":")
	switch {
	case kind == "local.sharedKey":
		name, _, _ := strings.Cut(rest, ":")
		return client.UsageRecordTypeLocalSource, "local source for " + name
	case kind == "cache-dir":
		return client.UsageRecordTypeCacheMount, "cache mount " + rest
	case strings.HasPrefix(kind, "git-snapshot"), strings.HasPrefix(kind, "git-bundle"):
		return client.UsageRecordTypeGitCheckout, "git checkout"
	case strings.HasPrefix(kind, "git-"):
		return client.UsageRecordTypeRegular, "shared git repository"
	case strings.HasPrefix(kind, "http"):
		return client.UsageRecordTypeRegular, "http download"
	}
	return "", ""
}
