// Package snapshot keeps the root file systems of images, builds and
// containers as stacks of directories that overlayfs puts together.
//
// # Model
//
//	Prepare ─▶ active ──Commit──▶ committed ◀── parent of others
//	View    ─▶ view                 ▲
//	                              Alias, Stack: more names of one directory
//
// A snapshot has a name, at most one parent (a committed snapshot), and one
// directory of its own, which holds what differs from the parent. Committed
// snapshots never change. Alias gives a committed snapshot a second name; Stack
// a second place: the same directory on another parent.
//
// # On disk
//
//	N/fs      what the snapshot has over its parent, in overlay's form
//	N/work    overlay's work directory, of active snapshots
//	trash/    directories on their way out
//
// N is a number, so that long stacks fit into a mount's options. Records are in
// the bucket "snapshots" of the database.
//
// # Guarantees
//
// A name appears when its directory is whole. Remove returns at once; the
// directory is deleted in the background, and what a crash left of it at the
// next Open. A committed snapshot is durable after Sync, or some seconds later;
// after an unclean end of the machine those that were not are dropped, with all
// that stands on them. A mount from MountFD is attached nowhere: it lasts as
// long as its descriptor, or whatever it is attached to.
//
// # Concurrency
//
// Every method may be called from many goroutines. mu is held while a record is
// written, never while a tree is walked, mounted or deleted.
//
// # Not here
//
// Tar archives (layer), names of images (image).
package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/metadb"
)

const bucket = "snapshots"

// Kind says what can be done with a snapshot.
type Kind string

const (
	Active    Kind = "active"    // is written
	View      Kind = "view"      // is read
	Committed Kind = "committed" // can be a parent
)

// record is a snapshot in the database.
type record struct {
	Dir     uint64    `json:"dir"`
	Parent  string    `json:"parent,omitempty"`
	Kind    Kind      `json:"kind"`
	Created time.Time `json:"created"`
	Boot    string    `json:"boot,omitempty"` // not durable yet, made in this boot
	Size    int64     `json:"size,omitempty"` // of the directory; committed only
	Inodes  int64     `json:"inodes,omitempty"`
	Sized   bool      `json:"sized,omitempty"`
}

// Info describes a snapshot.
type Info struct {
	Name    string
	Parent  string
	Kind    Kind
	Created time.Time
	Durable bool
}

// Dirs are the directories of a snapshot's stack.
type Dirs struct {
	Upper  string   // its own
	Work   string   // of an active snapshot
	Lowers []string // those below, top first
}

// Options of a store. The zero value is usable.
type Options struct {
	Logger *slog.Logger
	BootID string // default: the kernel's
}

// A Store is the snapshots in one directory.
type Store struct {
	dir    string
	db     *metadb.DB
	log    *slog.Logger
	boot   string
	legacy bool // overlay is mounted by mount(2)

	mu       sync.Mutex
	records  map[string]*record // guarded by mu
	children map[string]int     // name → snapshots whose parent it is; guarded by mu
	dirs     map[uint64]int     // directory → names; guarded by mu
	next     uint64             // number of the next directory; guarded by mu
	pending  bool               // something is not durable; guarded by mu
	closed   bool               // guarded by mu
	trash    chan string        // paths to delete
	sync     chan struct{}      // wakes the syncer
	done     chan struct{}
	wg       sync.WaitGroup
}

// Open opens or makes the store in dir.
func Open(dir string, db *metadb.DB, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.BootID == "" {
		data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, errdefs.New(errdefs.Internal, "open", "snapshots in "+dir, err)
		}
		o.BootID = strings.TrimSpace(string(data))
	}
	s := &Store{dir: dir, db: db, log: o.Logger, boot: o.BootID, records: map[string]*record{}, children: map[string]int{}, dirs: map[uint64]int{}, next: 1,
		trash: make(chan string, 1024), sync: make(chan struct{}, 1), done: make(chan struct{})}
	if err := os.MkdirAll(filepath.Join(dir, "trash"), 0o700); err != nil {
		return nil, errdefs.New(errdefs.Internal, "open", "snapshots in "+dir, err)
	}
	if err := s.load(); err != nil {
		return nil, errdefs.New(errdefs.Internal, "open", "snapshots in "+dir, err)
	}
	s.wg.Go(s.deleter)
	s.wg.Go(s.syncer)
	return s, nil
}

// load reads the records, drops what a crash of the machine may have damaged,
// and throws away directories without a record.
func (s *Store) load() error {
	err := s.db.View(func(tx *metadb.Tx) error {
		return tx.Each(bucket, func(name string, raw json.RawMessage) error {
			r := &record{}
			if err := json.Unmarshal(raw, r); err != nil {
				return fmt.Errorf("record of snapshot %q: %w", name, err)
			}
			s.records[name] = r
			return nil
		})
	})
	if err != nil {
		return err
	}
	var lost []string
	for name, r := range s.records {
		if r.Boot != "" && r.Boot != s.boot || !exists(filepath.Join(s.path(r.Dir), "fs")) {
			lost = append(lost, name)
		}
	}
	lost = s.withDescendants(lost)
	if len(lost) > 0 {
		s.log.Warn("snapshots that were not durable when the machine stopped are dropped", "count", len(lost))
		if err := s.db.Update(func(tx *metadb.Tx) error {
			for _, n := range lost {
				if err := tx.Delete(bucket, n); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		for _, n := range lost {
			delete(s.records, n)
		}
	}
	for _, r := range s.records {
		if r.Parent != "" {
			s.children[r.Parent]++
		}
		s.dirs[r.Dir]++
		s.next = max(s.next, r.Dir+1)
		s.pending = s.pending || r.Boot != ""
	}
	return s.sweep()
}

// withDescendants adds everything that stands on the names.
func (s *Store) withDescendants(names []string) []string {
	gone := map[string]bool{}
	for _, n := range names {
		gone[n] = true
	}
	for again := true; again; {
		again = false
		for name, r := range s.records {
			if !gone[name] && r.Parent != "" && (gone[r.Parent] || s.records[r.Parent] == nil) {
				gone[name], again = true, true
			}
		}
	}
	var out []string
	for n := range gone {
		out = append(out, n)
	}
	return out
}

// sweep moves directories without a record to the trash.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 64)
		if err != nil {
			continue
		}
		s.next = max(s.next, n+1)
		if s.dirs[n] == 0 {
			s.discard(n)
		}
	}
	left, err := os.ReadDir(filepath.Join(s.dir, "trash"))
	if err != nil {
		return err
	}
	for _, e := range left {
		s.throw(filepath.Join(s.dir, "trash", e.Name()))
	}
	return nil
}

func exists(p string) bool { _, err := os.Lstat(p); return err == nil }

func (s *Store) path(dir uint64) string { return filepath.Join(s.dir, strconv.FormatUint(dir, 10)) }

func fail(kind errdefs.Kind, op, name, format string, a ...any) error {
	return errdefs.Newf(kind, op, fmt.Sprintf("snapshot %q", name), format, a...)
}

// Prepare makes an active snapshot on a committed parent, or on nothing.
func (s *Store) Prepare(ctx context.Context, key, parent string) error {
	return s.create(key, parent, Active)
}

// View makes a snapshot that shows its parent and cannot be written.
func (s *Store) View(ctx context.Context, key, parent string) error {
	return s.create(key, parent, View)
}

func (s *Store) create(key, parent string, kind Kind) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.newNameLocked("prepare", key, parent); err != nil {
		return err
	}
	n := s.next
	s.next++
	p := s.path(n)
	err := os.Mkdir(p, 0o700)
	if err == nil {
		err = os.Mkdir(filepath.Join(p, "fs"), 0o755)
	}
	if err == nil {
		// The directory is the root of a file system whose owner and mode are
		// those of the parent's root.
		err = s.likeParentLocked(filepath.Join(p, "fs"), parent)
	}
	if err == nil && kind == Active {
		err = os.Mkdir(filepath.Join(p, "work"), 0o700)
	}
	if err == nil {
		err = s.putLocked(key, &record{Dir: n, Parent: parent, Kind: kind, Created: time.Now().UTC()})
	}
	if err != nil {
		s.discard(n)
		return errdefs.New(kindOf(err), "prepare", fmt.Sprintf("snapshot %q", key), err)
	}
	return nil
}

func (s *Store) newNameLocked(op, key, parent string) error {
	switch {
	case s.closed:
		return fail(errdefs.Unavailable, op, key, "the store is closed")
	case key == "":
		return fail(errdefs.Invalid, op, key, "the name is empty")
	case s.records[key] != nil:
		return fail(errdefs.Conflict, op, key, "the name is taken")
	case parent == "":
		return nil
	case s.records[parent] == nil:
		return fail(errdefs.NotFound, op, key, "there is no parent %q", parent)
	case s.records[parent].Kind != Committed:
		return fail(errdefs.Conflict, op, key, "the parent %q is not committed", parent)
	}
	return nil
}

// putLocked writes a new record and counts it.
func (s *Store) putLocked(key string, r *record) error {
	if err := s.db.Update(func(tx *metadb.Tx) error { return tx.Put(bucket, key, r) }); err != nil {
		return err
	}
	s.records[key] = r
	s.dirs[r.Dir]++
	if r.Parent != "" {
		s.children[r.Parent]++
	}
	return nil
}

// Commit ends an active snapshot; its directory goes on as the committed
// snapshot name. Mounts of it stay, and must not be written any more.
func (s *Store) Commit(ctx context.Context, name, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.records[key]
	switch {
	case old == nil:
		return fail(errdefs.NotFound, "commit", key, "there is none of that name")
	case old.Kind != Active:
		return fail(errdefs.Conflict, "commit", key, "it is not active")
	}
	if name != key {
		if err := s.newNameLocked("commit", name, ""); err != nil {
			return err
		}
	}
	r := &record{Dir: old.Dir, Parent: old.Parent, Kind: Committed, Created: time.Now().UTC(), Boot: s.boot}
	err := s.db.Update(func(tx *metadb.Tx) error {
		if err := tx.Delete(bucket, key); err != nil {
			return err
		}
		return tx.Put(bucket, name, r)
	})
	if err != nil {
		return errdefs.New(kindOf(err), "commit", fmt.Sprintf("snapshot %q", key), err)
	}
	delete(s.records, key)
	s.records[name] = r
	s.wakeSyncerLocked()
	return nil
}

// Alias gives a committed snapshot a further name.
func (s *Store) Alias(ctx context.Context, name, existing string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.committedLocked("name", existing)
	if err != nil {
		return err
	}
	return s.againLocked(name, r, r.Parent)
}

// Stack makes a committed snapshot that has the directory of another one, on
// another parent.
func (s *Store) Stack(ctx context.Context, name, existing, parent string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.committedLocked("stack", existing)
	if err != nil {
		return err
	}
	return s.againLocked(name, r, parent)
}

func (s *Store) committedLocked(op, name string) (*record, error) {
	r := s.records[name]
	switch {
	case r == nil:
		return nil, fail(errdefs.NotFound, op, name, "there is none of that name")
	case r.Kind != Committed:
		return nil, fail(errdefs.Conflict, op, name, "it is not committed")
	}
	return r, nil
}

func (s *Store) againLocked(name string, r *record, parent string) error {
	if err := s.newNameLocked("name", name, parent); err != nil {
		return err
	}
	again := *r
	again.Parent, again.Created = parent, time.Now().UTC()
	if err := s.putLocked(name, &again); err != nil {
		return errdefs.New(kindOf(err), "name", fmt.Sprintf("snapshot %q", name), err)
	}
	return nil
}

// Remove forgets a name. The directory goes with its last name. A snapshot that
// others stand on is a Conflict.
func (s *Store) Remove(ctx context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[key]
	switch {
	case r == nil:
		return fail(errdefs.NotFound, "remove", key, "there is none of that name")
	case s.children[key] > 0:
		return fail(errdefs.Conflict, "remove", key, "%d others stand on it", s.children[key])
	}
	if err := s.db.Update(func(tx *metadb.Tx) error { return tx.Delete(bucket, key) }); err != nil {
		return errdefs.New(kindOf(err), "remove", fmt.Sprintf("snapshot %q", key), err)
	}
	delete(s.records, key)
	if r.Parent != "" {
		if s.children[r.Parent]--; s.children[r.Parent] == 0 {
			delete(s.children, r.Parent)
		}
	}
	if s.dirs[r.Dir]--; s.dirs[r.Dir] == 0 {
		delete(s.dirs, r.Dir)
		s.discard(r.Dir)
	}
	return nil
}

// Exists reports whether there is a snapshot of the name.
func (s *Store) Exists(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[key] != nil
}

// Stat describes a snapshot.
func (s *Store) Stat(key string) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[key]
	if r == nil {
		return Info{}, fail(errdefs.NotFound, "find", key, "there is none of that name")
	}
	return info(key, r), nil
}

func info(name string, r *record) Info {
	return Info{Name: name, Parent: r.Parent, Kind: r.Kind, Created: r.Created, Durable: r.Kind == Committed && r.Boot == ""}
}

// Names lists the snapshots whose names have a prefix.
func (s *Store) Names(prefix string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for n := range s.records {
		if strings.HasPrefix(n, prefix) {
			out = append(out, n)
		}
	}
	sort.Strings(out)
	return out, nil
}

// Walk calls f for every snapshot, by name.
func (s *Store) Walk(f func(Info) error) error {
	names, _ := s.Names("")
	for _, n := range names {
		i, err := s.Stat(n)
		if errdefs.Is(err, errdefs.NotFound) {
			continue // removed meanwhile
		}
		if err == nil {
			err = f(i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Dirs are the directories of a snapshot's stack. They stay as long as the
// snapshot does.
func (s *Store) Dirs(key string) (Dirs, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[key]
	if r == nil {
		return Dirs{}, fail(errdefs.NotFound, "find", key, "there is none of that name")
	}
	d := Dirs{Upper: filepath.Join(s.path(r.Dir), "fs")}
	if r.Kind == Active {
		d.Work = filepath.Join(s.path(r.Dir), "work")
	}
	for p := r.Parent; p != ""; {
		pr := s.records[p]
		if pr == nil {
			return Dirs{}, fail(errdefs.Internal, "find", key, "its ancestor %q is missing", p)
		}
		d.Lowers = append(d.Lowers, filepath.Join(s.path(pr.Dir), "fs"))
		p = pr.Parent
	}
	return d, nil
}

// Close stops the background work, after making everything durable.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	err := s.Sync(context.Background())
	close(s.done)
	s.wg.Wait()
	return err
}

func kindOf(err error) errdefs.Kind {
	if isFull(err) {
		return errdefs.Exhausted
	}
	if k := errdefs.KindOf(err); k != errdefs.Internal {
		return k
	}
	return errdefs.Internal
}
