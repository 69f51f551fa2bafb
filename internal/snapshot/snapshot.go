package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/metadb"
)

// Kind is what a name stands for.
type Kind string

const (
	Active    Kind = "active"
	View      Kind = "view"
	Committed Kind = "committed"
)

// Info describes a snapshot.
type Info struct {
	Name    string
	Parent  string // the name it was made on, which may be gone
	Kind    Kind
	Created time.Time
	Size    int64 // bytes of its own directory; -1: not counted yet (Usage does)
	Inodes  int64
	Durable bool // survives a power cut
	Lost    bool // what it lies on was lost in a power cut
}

// Dirs are a snapshot's directories.
type Dirs struct {
	Upper  string   // its own; "" for a view
	Work   string   // of an active snapshot
	Lowers []string // those below, top first
}

// Options of a Store. The zero value is good.
type Options struct {
	Logger    *slog.Logger
	BootID    string        // default: the kernel's
	SyncDelay time.Duration // from Commit to the sync in the background; default 2 s, negative: only Sync and Close
}

const (
	nameBucket  = "snapshot"
	layerBucket = "snapshot-layer"
	bootBucket  = "snapshot-boot"
)

// nameRecord is a name on disk.
type nameRecord struct {
	Kind    Kind      `json:"k"`
	Layer   uint64    `json:"l,omitempty"` // of a view: what it shows; 0: nothing
	Parent  string    `json:"p,omitempty"`
	Created time.Time `json:"c"`
}

// layerRecord is a layer on disk; an active snapshot has one, too.
type layerRecord struct {
	Dir       uint64 `json:"d"`
	Parent    uint64 `json:"p,omitempty"`
	Committed bool   `json:"c,omitempty"`
	Durable   bool   `json:"s,omitempty"`
	Size      int64  `json:"n"` // -1: not counted
	Inodes    int64  `json:"i,omitempty"`
}

// bootRecord tells the next Open whether this one ended well.
type bootRecord struct {
	ID    string
	Clean bool
}

type layer struct {
	id     uint64
	rec    layerRecord
	parent *layer
	lost   bool // rec.Parent is gone
	refs   int  // names, and layers and views on it
	names  int  // names alone
}

type name struct {
	rec nameRecord
	l   *layer // nil: a view of nothing
}

// Store keeps snapshots in a directory.
type Store struct {
	dir   string
	db    *metadb.DB
	o     Options
	log   *slog.Logger
	d     linux.FD // <dir>/d
	trash linux.FD
	file  *os.File // <dir>, for syncfs

	mu     sync.Mutex
	names  map[string]*name  // guarded by mu
	layers map[uint64]*layer // guarded by mu
	dirs   map[uint64]int    // guarded by mu; how many layers use a directory
	nextID uint64            // guarded by mu
	closed bool              // guarded by mu

	// discarded are directories of active snapshots that are gone, as long as they
	// are there; guarded by mu.
	discarded []uint64

	spares  chan uint64 // directories made ahead of Prepare
	used    chan struct{}
	syncMu  sync.Mutex // one syncfs at a time; order: syncMu → mu
	kick    chan struct{}
	dirty   chan struct{}
	stop    chan struct{}
	workers sync.WaitGroup
}

// Open opens the store in dir, and makes it where there is none. Records that
// do not fit what is on disk are put right.
func Open(dir string, db *metadb.DB, o Options) (_ *Store, err error) {
	s := &Store{dir: dir, db: db, o: o, log: o.Logger, d: linux.NoFD, trash: linux.NoFD,
		names: map[string]*name{}, layers: map[uint64]*layer{}, dirs: map[uint64]int{},
		spares: make(chan uint64, spareDirs), used: make(chan struct{}, 1),
		kick: make(chan struct{}, 1), dirty: make(chan struct{}, 1), stop: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.o.SyncDelay == 0 {
		s.o.SyncDelay = 2 * time.Second
	}
	if s.o.BootID == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, s.fail("open", dir, err)
		}
		s.o.BootID = strings.TrimSpace(string(b))
	}
	defer func() {
		if err != nil {
			s.release()
			err = s.fail("open", dir, err)
		}
	}()
	for _, sub := range []string{"d", "trash"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	if s.file, err = os.Open(dir); err != nil {
		return nil, err
	}
	if s.d, err = linux.OpenRoot(filepath.Join(dir, "d")); err != nil {
		return nil, err
	}
	if s.trash, err = linux.OpenRoot(filepath.Join(dir, "trash")); err != nil {
		return nil, err
	}
	if err := s.reconcile(); err != nil {
		return nil, err
	}
	s.workers.Go(s.emptyTrash)
	s.workers.Go(s.syncLater)
	s.workers.Go(s.makeAhead)
	return s, nil
}

func (s *Store) release() {
	s.d.Close()
	s.trash.Close()
	if s.file != nil {
		s.file.Close()
	}
}

// Close makes every layer durable, and says so for the next boot.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	s.workers.Wait()
	close(s.spares)
	for id := range s.spares {
		s.dropDirs(id)
	}
	err := s.Sync(context.Background())
	if err == nil {
		err = s.putBoot(bootRecord{s.o.BootID, true})
	}
	if err == nil {
		err = s.db.Sync()
	}
	s.release()
	return err
}

func (s *Store) fail(op, key string, err error) error {
	on := fmt.Sprintf("snapshot %.100q", key)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errdefs.WithHint(errdefs.New(errdefs.Exhausted, op, on, err), "the disk is full: remove images, containers or volumes (onggi system prune)")
	case errdefs.KindOf(err) != errdefs.Internal:
		return err
	}
	return errdefs.New(errdefs.Internal, op, on, err)
}

func refuse(kind errdefs.Kind, op, key, format string, args ...any) error {
	return errdefs.Newf(kind, op, fmt.Sprintf("snapshot %.100q", key), format, args...)
}

// findLocked looks a name up. Preconditions: s.mu is held.
func (s *Store) findLocked(op, key string) (*name, error) {
	n := s.names[key]
	if n == nil {
		return nil, refuse(errdefs.NotFound, op, key, "there is none")
	}
	return n, nil
}

// parentLocked finds what something new is to lie on; "" is nothing.
// Preconditions: s.mu is held.
func (s *Store) parentLocked(op, parent string) (*layer, error) {
	if parent == "" {
		return nil, nil
	}
	n, err := s.findLocked(op, parent)
	if err != nil {
		return nil, err
	}
	if n.rec.Kind != Committed {
		return nil, refuse(errdefs.Conflict, op, parent, "nothing can lie on it: it is %s, not committed", n.rec.Kind)
	}
	return n.l, nil
}

func (s *Store) freeLocked(op, key string) error {
	switch {
	case s.closed:
		return refuse(errdefs.Unavailable, op, key, "the store is closed")
	case key == "" || len(key) > 1024:
		return refuse(errdefs.Invalid, op, key, "a name has 1 to 1024 bytes")
	case s.names[key] != nil:
		return refuse(errdefs.Conflict, op, key, "it exists already")
	}
	return nil
}

func layerKey(id uint64) string { return strconv.FormatUint(id, 10) }
func workName(id uint64) string { return "w" + layerKey(id) }

// Prepare makes an active snapshot on a committed one, or on nothing.
func (s *Store) Prepare(ctx context.Context, key, parent string) error {
	s.mu.Lock()
	err := s.freeLocked("prepare", key)
	var p *layer
	if err == nil {
		p, err = s.parentLocked("prepare", parent)
	}
	var below uint64
	if p != nil {
		below = p.rec.Dir
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	id, err := s.takeDirs(below)
	if err != nil {
		return s.fail("prepare", key, err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.freeLocked("prepare", key)
	if err == nil {
		p, err = s.parentLocked("prepare", parent) // it may have gone meanwhile
	}
	l := &layer{id: id, parent: p, refs: 1, names: 1, rec: layerRecord{Dir: id, Size: -1}}
	if p != nil {
		l.rec.Parent = p.id
	}
	n := &name{l: l, rec: nameRecord{Kind: Active, Layer: id, Parent: parent, Created: time.Now().UTC()}}
	if err == nil {
		err = s.db.Update(func(tx *metadb.Tx) error {
			if err := tx.Put(layerBucket, layerKey(id), l.rec); err != nil {
				return err
			}
			return tx.Put(nameBucket, key, n.rec)
		})
	}
	if err != nil {
		s.dropDirs(id)
		return err
	}
	s.names[key] = n
	s.addLocked(l)
	return nil
}

// addLocked puts a layer with its one name into the maps. Preconditions: s.mu
// is held.
func (s *Store) addLocked(l *layer) {
	s.layers[l.id] = l
	s.dirs[l.rec.Dir]++
	if l.parent != nil {
		l.parent.refs++
	}
}

// spareDirs is how many pairs of directories are made ahead: making one costs a
// file system with a journal more than all else that Prepare does.
const spareDirs = 8

// takeDirs gives the two directories of an active snapshot. The root of the
// file system looks as that of the directory below.
func (s *Store) takeDirs(below uint64) (id uint64, err error) {
	select {
	case spare, ok := <-s.spares:
		if id = spare; !ok {
			return 0, errdefs.Newf(errdefs.Unavailable, "", "", "the store is closed")
		}
		wake(s.used)
	default:
		wake(s.used)
		if id, err = s.makeDirs(); err != nil {
			return 0, err
		}
	}
	if below != 0 {
		if err := s.copyRoot(layerKey(id), layerKey(below)); err != nil {
			s.dropDirs(id)
			return 0, err
		}
	}
	return id, nil
}

func (s *Store) makeDirs() (id uint64, err error) {
	s.mu.Lock()
	s.nextID++
	id = s.nextID
	s.mu.Unlock()
	err = s.d.Mkdir(layerKey(id), 0o755)
	if err == nil {
		err = s.d.Mkdir(workName(id), 0o700)
	}
	if err != nil {
		s.dropDirs(id)
	}
	return id, err
}

// makeAhead keeps spare directories until Close. It starts with the first use.
func (s *Store) makeAhead() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.used:
		}
		for len(s.spares) < spareDirs {
			id, err := s.makeDirs()
			if err != nil {
				break // Prepare will meet it, too
			}
			s.spares <- id // never waits: nobody else sends
		}
	}
}

// copyRoot copies owner, mode, time and attributes of one directory to another.
func (s *Store) copyRoot(to, from string) error {
	var st, have linux.Stat
	if err := s.d.Lstat(from, &st); err != nil {
		return err
	}
	if err := s.d.Lstat(to, &have); err != nil {
		return err
	}
	if st.UID != have.UID || st.GID != have.GID {
		if err := s.d.Lchown(to, int(st.UID), int(st.GID)); err != nil {
			return err
		}
	}
	if st.Mode != have.Mode {
		fd, err := s.d.Dir(to)
		if err != nil {
			return err
		}
		err = fd.ChmodHandle(st.Mode & 0o7777)
		fd.Close()
		if err != nil {
			return err
		}
	}
	keys, err := s.d.XattrNamesOf(from)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if strings.HasPrefix(k, "trusted.overlay.") {
			continue
		}
		v, err := s.d.XattrOf(from, k)
		if err == nil && v != nil {
			err = s.d.SetXattrOf(to, k, v)
		}
		if err != nil && !errors.Is(err, syscall.ENOTSUP) && !errors.Is(err, syscall.EPERM) {
			return err
		}
	}
	return s.d.Chtime(to, st.Mtime.UnixNano())
}

// View makes a snapshot that cannot be written to.
func (s *Store) View(ctx context.Context, key, parent string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.freeLocked("view", key); err != nil {
		return err
	}
	p, err := s.parentLocked("view", parent)
	if err != nil {
		return err
	}
	n := &name{l: p, rec: nameRecord{Kind: View, Parent: parent, Created: time.Now().UTC()}}
	if p != nil {
		n.rec.Layer = p.id
	}
	return s.addNameLocked(key, n)
}

func (s *Store) addNameLocked(key string, n *name) error {
	if err := s.db.Update(func(tx *metadb.Tx) error { return tx.Put(nameBucket, key, n.rec) }); err != nil {
		return err
	}
	s.names[key] = n
	if n.l != nil {
		n.l.refs++
		if n.rec.Kind != View {
			n.l.names++
		}
	}
	return nil
}

// Commit makes the active snapshot key the committed snapshot newName; key is
// free again. Mounts of it stay, but nothing must be written any more.
func (s *Store) Commit(ctx context.Context, newName, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.findLocked("commit", key)
	if err != nil {
		return err
	}
	if n.rec.Kind != Active {
		return refuse(errdefs.Conflict, "commit", key, "it is %s, not active", n.rec.Kind)
	}
	if n.l.lost {
		return s.lostError("commit", key, n)
	}
	if newName != key {
		if err := s.freeLocked("commit", newName); err != nil {
			return err
		}
	}
	rec := n.l.rec
	rec.Committed = true
	nn := &name{l: n.l, rec: nameRecord{Kind: Committed, Layer: n.l.id, Parent: n.rec.Parent, Created: time.Now().UTC()}}
	err = s.db.Update(func(tx *metadb.Tx) error {
		if err := tx.Delete(nameBucket, key); err != nil {
			return err
		}
		if err := tx.Put(layerBucket, layerKey(n.l.id), rec); err != nil {
			return err
		}
		return tx.Put(nameBucket, newName, nn.rec)
	})
	if err != nil {
		return err
	}
	n.l.rec = rec
	delete(s.names, key)
	s.names[newName] = nn
	s.throw(workName(n.l.id))
	s.adoptLocked(newName, nn.l)
	wake(s.dirty)
	return nil
}

// Alias gives a committed snapshot a second name. One that it has already is
// fine.
func (s *Store) Alias(ctx context.Context, newName, existing string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, err := s.parentLocked("alias", existing)
	if err != nil {
		return err
	}
	if l == nil {
		return refuse(errdefs.Invalid, "alias", existing, "it has no name")
	}
	if n := s.names[newName]; n != nil && n.l == l && n.rec.Kind == Committed {
		return nil
	}
	if err := s.freeLocked("alias", newName); err != nil {
		return err
	}
	rec := nameRecord{Kind: Committed, Layer: l.id, Parent: s.names[existing].rec.Parent, Created: time.Now().UTC()}
	if err := s.addNameLocked(newName, &name{l: l, rec: rec}); err != nil {
		return err
	}
	s.adoptLocked(newName, l)
	return nil
}

// Stack makes a committed snapshot of the directory of another one, existing,
// that lies on parent, or on nothing. Nothing is copied.
func (s *Store) Stack(ctx context.Context, newName, existing, parent string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, err := s.parentLocked("stack", existing)
	if err != nil {
		return err
	}
	if from == nil {
		return refuse(errdefs.Invalid, "stack", existing, "it has no name")
	}
	p, err := s.parentLocked("stack", parent)
	if err != nil {
		return err
	}
	if err := s.freeLocked("stack", newName); err != nil {
		return err
	}
	s.nextID++
	l := &layer{id: s.nextID, parent: p, refs: 1, names: 1, rec: from.rec}
	l.rec.Parent = 0
	if p != nil {
		l.rec.Parent = p.id
		l.rec.Durable = from.rec.Durable && p.rec.Durable
	}
	n := &name{l: l, rec: nameRecord{Kind: Committed, Layer: l.id, Parent: parent, Created: time.Now().UTC()}}
	err = s.db.Update(func(tx *metadb.Tx) error {
		if err := tx.Put(layerBucket, layerKey(l.id), l.rec); err != nil {
			return err
		}
		return tx.Put(nameBucket, newName, n.rec)
	})
	if err != nil {
		return err
	}
	s.names[newName] = n
	s.addLocked(l)
	s.adoptLocked(newName, l)
	wake(s.dirty)
	return nil
}

// adoptLocked puts active snapshots that lost what they lie on onto a snapshot
// that has its name. Preconditions: s.mu is held.
func (s *Store) adoptLocked(key string, l *layer) {
	for other, n := range s.names {
		if n.rec.Kind != Active || !n.l.lost || n.rec.Parent != key {
			continue
		}
		rec := n.l.rec
		rec.Parent = l.id
		if err := s.db.Update(func(tx *metadb.Tx) error { return tx.Put(layerBucket, layerKey(n.l.id), rec) }); err != nil {
			s.log.Warn("putting a snapshot on its parent again", "snapshot", other, "err", err)
			continue
		}
		n.l.rec, n.l.parent, n.l.lost = rec, l, false
		l.refs++
	}
}

// Remove takes a name away, and the layer with its last name: that is
// errdefs.Conflict while something lies on it. Its directory is deleted in the
// background; on a full disk it is waited for, since whoever makes room goes on
// to use it.
func (s *Store) Remove(ctx context.Context, key string) error {
	if err := s.remove(key); err != nil {
		return err
	}
	if free, inodes, err := linux.FreeSpace(s.dir); err == nil && (free < fullBytes || inodes >= 0 && inodes < fullInodes) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := s.WaitTrash(ctx); err != nil {
			s.log.Warn("the disk is full, and what was removed is not deleted yet", "error", err)
		}
	}
	return nil
}

// A disk is full with less than this.
const fullBytes, fullInodes = 16 << 20, 1000

func (s *Store) remove(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.findLocked("remove", key)
	if err != nil {
		return err
	}
	l := n.l
	named := l != nil && n.rec.Kind != View
	last := named && l.names == 1
	if last && l.refs > 1 {
		return refuse(errdefs.Conflict, "remove", key, "%d others lie on it", l.refs-1)
	}
	err = s.db.Update(func(tx *metadb.Tx) error {
		if last {
			if err := tx.Delete(layerBucket, layerKey(l.id)); err != nil {
				return err
			}
		}
		return tx.Delete(nameBucket, key)
	})
	if err != nil {
		return err
	}
	delete(s.names, key)
	if named {
		l.names--
	}
	if l != nil {
		l.refs--
	}
	if last {
		s.dropLocked(l)
	}
	return nil
}

// dropLocked forgets a layer that has no name. Preconditions: s.mu is held, and
// its record is gone.
func (s *Store) dropLocked(l *layer) {
	delete(s.layers, l.id)
	if l.parent != nil {
		l.parent.refs--
	}
	if s.dirs[l.rec.Dir]--; s.dirs[l.rec.Dir] > 0 {
		return
	}
	delete(s.dirs, l.rec.Dir)
	if !l.rec.Committed {
		s.discarded = append(s.discarded, l.rec.Dir)
		wake(s.kick)
		return
	}
	s.throw(layerKey(l.rec.Dir))
}

// Stat describes a snapshot.
func (s *Store) Stat(key string) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.findLocked("inspect", key)
	if err != nil {
		return Info{}, err
	}
	return n.info(key), nil
}

func (n *name) info(key string) Info {
	i := Info{Name: key, Parent: n.rec.Parent, Kind: n.rec.Kind, Created: n.rec.Created}
	switch {
	case n.rec.Kind == View:
		i.Durable = true
	case n.l != nil:
		i.Size, i.Inodes, i.Lost = n.l.rec.Size, n.l.rec.Inodes, n.l.lost
		i.Durable = n.l.rec.Durable
	}
	return i
}

// Exists reports whether there is a snapshot of that name.
func (s *Store) Exists(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[key] != nil
}

// Walk calls f with every snapshot, in the order of names, as they were when
// it was called.
func (s *Store) Walk(f func(Info) error) error {
	s.mu.Lock()
	all := make([]Info, 0, len(s.names))
	for key, n := range s.names {
		all = append(all, n.info(key))
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	for _, i := range all {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}

// Names lists the snapshots whose name starts with a prefix.
func (s *Store) Names(prefix string) ([]string, error) {
	var out []string
	s.mu.Lock()
	for key := range s.names {
		if strings.HasPrefix(key, prefix) {
			out = append(out, key)
		}
	}
	s.mu.Unlock()
	slices.Sort(out)
	return out, nil
}

// chainLocked lists the directories of a snapshot: its own, or 0, and those
// below, top first. Preconditions: s.mu is held.
func (s *Store) chainLocked(op, key string) (n *name, own uint64, lowers []uint64, err error) {
	n, err = s.findLocked(op, key)
	if err != nil {
		return nil, 0, nil, err
	}
	l := n.l
	if n.rec.Kind != View {
		if l.lost {
			return nil, 0, nil, s.lostError(op, key, n)
		}
		own, l = l.rec.Dir, l.parent
	}
	for ; l != nil; l = l.parent {
		lowers = append(lowers, l.rec.Dir)
	}
	return n, own, lowers, nil
}

func (s *Store) lostError(op, key string, n *name) error {
	return errdefs.WithHint(refuse(errdefs.Conflict, op, key, "the snapshot %.100q it lies on was lost in a power cut", n.rec.Parent),
		"pull or build its image again")
}

// Dirs lists the directories of a snapshot. They stay as long as it does.
func (s *Store) Dirs(key string) (Dirs, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, own, lowers, err := s.chainLocked("inspect", key)
	if err != nil {
		return Dirs{}, err
	}
	var d Dirs
	if own != 0 {
		d.Upper = s.path(layerKey(own))
	}
	if n.rec.Kind == Active {
		d.Work = s.path(workName(own))
	}
	for _, id := range lowers {
		d.Lowers = append(d.Lowers, s.path(layerKey(id)))
	}
	return d, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, "d", name) }
