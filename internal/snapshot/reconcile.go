package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/metadb"
)

// reconcile reads the records, drops what a power cut may have damaged, and
// compares the rest with the directories. Only Open calls it.
func (s *Store) reconcile() error {
	var boot bootRecord
	if err := s.db.View(func(tx *metadb.Tx) error {
		if _, err := tx.Get(bootBucket, "boot", &boot); err != nil {
			return err
		}
		if err := tx.Each(layerBucket, s.readLayer); err != nil {
			return err
		}
		return tx.Each(nameBucket, s.readName)
	}); err != nil {
		return err
	}
	unclean := boot.ID != "" && boot.ID != s.o.BootID && !boot.Clean
	have, err := s.list()
	if err != nil {
		return err
	}
	var drop []*layer
	for _, l := range s.layers {
		switch {
		case l.rec.Parent != 0 && s.layers[l.rec.Parent] == nil:
			l.lost = true
		case l.rec.Parent != 0:
			l.parent = s.layers[l.rec.Parent]
		}
		bad := l.rec.Committed && (unclean && !l.rec.Durable || !have[layerKey(l.rec.Dir)] || l.lost)
		if bad {
			drop = append(drop, l)
		}
	}
	if err := s.forget(drop); err != nil {
		return err
	}
	s.countRefs()
	if err := s.tidy(have); err != nil {
		return err
	}
	return s.putBoot(bootRecord{ID: s.o.BootID})
}

// putBoot must succeed on a full disk, too: what replaces a record may use the
// database's reserve.
func (s *Store) putBoot(r bootRecord) error {
	return s.db.Update(func(tx *metadb.Tx) error {
		if err := tx.Delete(bootBucket, "boot"); err != nil {
			return err
		}
		return tx.Put(bootBucket, "boot", r)
	})
}

func (s *Store) readLayer(key string, raw json.RawMessage) error {
	id, err := strconv.ParseUint(key, 10, 64)
	if err != nil {
		return err
	}
	l := &layer{id: id}
	if err := json.Unmarshal(raw, &l.rec); err != nil {
		return err
	}
	s.layers[id] = l
	s.nextID = max(s.nextID, id, l.rec.Dir)
	return nil
}

func (s *Store) readName(key string, raw json.RawMessage) error {
	n := &name{}
	if err := json.Unmarshal(raw, &n.rec); err != nil {
		return err
	}
	n.l = s.layers[n.rec.Layer]
	s.names[key] = n
	return nil
}

// list gives the names in d, and makes nextID larger than all, there and in
// the trash.
func (s *Store) list() (map[string]bool, error) {
	have := map[string]bool{}
	for _, d := range []linux.FD{s.d, s.trash} {
		entries, err := d.Entries()
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if id, err := strconv.ParseUint(strings.TrimPrefix(e.Name, "w"), 10, 64); err == nil {
				s.nextID = max(s.nextID, id)
			}
			if d == s.d {
				have[e.Name] = true
			}
		}
	}
	return have, nil
}

// forget drops layers and the committed ones on them, with their names, and the
// names of layers that are not there.
func (s *Store) forget(drop []*layer) error {
	gone := map[*layer]bool{}
	for len(drop) > 0 {
		l := drop[0]
		drop = drop[1:]
		if gone[l] {
			continue
		}
		gone[l] = true
		for _, on := range s.layers {
			if on.parent != l {
				continue
			}
			if on.rec.Committed {
				drop = append(drop, on)
			} else {
				on.lost, on.parent = true, nil
			}
		}
	}
	var names []string
	for key, n := range s.names {
		if n.l == nil && n.rec.Layer != 0 || n.l != nil && gone[n.l] {
			names = append(names, key)
		}
	}
	if len(gone) == 0 && len(names) == 0 {
		return nil
	}
	for _, key := range names {
		s.log.Warn("a snapshot was not yet safe on disk when the power went, and is dropped", "snapshot", key)
		delete(s.names, key)
	}
	for l := range gone {
		delete(s.layers, l.id)
	}
	return s.db.Update(func(tx *metadb.Tx) error {
		for _, key := range names {
			if err := tx.Delete(nameBucket, key); err != nil {
				return err
			}
		}
		for l := range gone {
			if err := tx.Delete(layerBucket, layerKey(l.id)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Store) countRefs() {
	for _, n := range s.names {
		if n.l != nil {
			n.l.refs++
			if n.rec.Kind != View {
				n.l.names++
			}
		}
	}
	for _, l := range s.layers {
		s.dirs[l.rec.Dir]++
		if l.parent != nil {
			l.parent.refs++
		}
	}
}

// tidy throws away directories that no record knows, and makes those of active
// snapshots that a power cut took.
func (s *Store) tidy(have map[string]bool) error {
	want := map[string]bool{}
	for _, l := range s.layers {
		want[layerKey(l.rec.Dir)] = true
		if l.rec.Committed {
			continue
		}
		want[workName(l.rec.Dir)] = true
		if have[layerKey(l.rec.Dir)] && have[workName(l.rec.Dir)] {
			continue
		}
		for _, d := range []string{layerKey(l.rec.Dir), workName(l.rec.Dir)} {
			if err := s.d.Mkdir(d, 0o755); err != nil && !errors.Is(err, syscall.EEXIST) {
				return err
			}
		}
		if l.parent != nil && !have[layerKey(l.rec.Dir)] {
			if err := s.copyRoot(layerKey(l.rec.Dir), layerKey(l.parent.rec.Dir)); err != nil {
				return err
			}
		}
	}
	for d := range have {
		if !want[d] {
			s.throw(d)
		}
	}
	wake(s.kick)
	return nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// throw moves a directory to the trash. Where that fails, the next Open does
// it.
func (s *Store) throw(dir string) {
	if err := s.d.Rename(dir, s.trash, dir); err != nil && !errors.Is(err, syscall.ENOENT) {
		s.log.Warn("moving a directory to the trash", "dir", s.path(dir), "err", err)
	}
	wake(s.kick)
}

// dropDirs undoes makeDirs.
func (s *Store) dropDirs(id uint64) {
	s.d.Rmdir(layerKey(id))
	s.d.Rmdir(workName(id))
}

// emptyTrash deletes, one tree at a time, until Close.
func (s *Store) emptyTrash() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.kick:
		}
		s.deleteDiscarded()
		entries, err := s.trash.Entries()
		if err != nil {
			s.log.Warn("reading the trash", "err", err)
			continue
		}
		for _, e := range entries {
			if !s.deleteTree(e.Name) {
				return
			}
		}
	}
}

// deleteDiscarded deletes what active snapshots leave. Many a container has
// written nothing: then there is just what overlayfs makes, and no need to look.
func (s *Store) deleteDiscarded() {
	for {
		s.mu.Lock()
		if len(s.discarded) == 0 {
			s.mu.Unlock()
			return
		}
		id := s.discarded[0]
		s.mu.Unlock()
		if s.d.Rmdir(layerKey(id)) != nil {
			s.throw(layerKey(id))
		}
		work := workName(id)
		s.d.Unlink(work + "/work/incompat/volatile/dirty")
		for _, sub := range []string{"/work/incompat/volatile", "/work/incompat", "/work"} {
			s.d.Rmdir(work + sub)
		}
		if s.d.Rmdir(work) != nil {
			s.throw(work)
		}
		s.mu.Lock()
		s.discarded = s.discarded[1:]
		s.mu.Unlock()
	}
}

// deleteTree deletes one entry of the trash, and reports whether to go on.
func (s *Store) deleteTree(name string) bool {
	d, err := s.trash.Dir(name)
	if err == nil {
		entries, _ := d.Entries()
		for _, e := range entries {
			select {
			case <-s.stop:
				d.Close()
				return false
			default:
			}
			if err := d.RemoveAll(e.Name); err != nil {
				s.log.Warn("deleting from the trash", "dir", name+"/"+e.Name, "err", err)
			}
		}
		d.Close()
	}
	if err := s.trash.RemoveAll(name); err != nil {
		s.log.Warn("deleting from the trash", "dir", name, "err", err)
	}
	return true
}

// WaitTrash returns when the trash is empty: for tests, and for prune to tell
// the space that is free.
func (s *Store) WaitTrash(ctx context.Context) error {
	for {
		s.mu.Lock()
		pending := len(s.discarded) > 0
		s.mu.Unlock()
		if !pending { // in this order: what is discarded may go on to the trash
			entries, err := s.trash.Entries()
			if err != nil || len(entries) == 0 {
				return err
			}
		}
		wake(s.kick)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Sync returns when every layer committed before survives a power cut.
func (s *Store) Sync(ctx context.Context) error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	var pending []*layer
	var dirs []uint64
	for _, l := range s.layers {
		if l.rec.Committed && !l.rec.Durable {
			pending, dirs = append(pending, l), append(dirs, l.rec.Dir)
		}
	}
	s.mu.Unlock()
	if len(pending) > 0 {
		done, err := s.syncFew(dirs)
		if err == nil && !done {
			err = linux.SyncFS(s.file)
		}
		if err != nil {
			return s.fail("sync", s.dir, err)
		}
		if err := s.markDurable(pending); err != nil {
			return err
		}
	}
	return s.db.Sync()
}

// What is few and large is synced by itself: a syncfs also waits for all that
// others have written to the disk.
const (
	fewFiles   = 64
	largeFiles = 32 << 20 // bytes
)

// syncFew writes out layers file by file, if that is worth it.
func (s *Store) syncFew(dirs []uint64) (done bool, err error) {
	var open []linux.FD // each after the directory that it is in
	defer func() {
		for _, fd := range open {
			fd.Close()
		}
	}()
	var bytes int64
	// gather opens an entry, and what is below it; false where that is too much
	// or not to be had.
	var gather func(dir linux.FD, name string, kind uint32) bool
	gather = func(dir linux.FD, name string, kind uint32) bool {
		if kind == linux.TypeLink || kind == linux.TypeChar {
			return true // no more than an entry of its directory
		}
		if kind != linux.TypeDir && kind != linux.TypeReg || len(open) > fewFiles {
			return false
		}
		fd, err := dir.Open(name, linux.ReadOnly, 0)
		if err != nil {
			return false
		}
		open = append(open, fd)
		if kind == linux.TypeReg {
			var st linux.Stat
			err := fd.Stat(&st)
			bytes += 512 * st.Blocks
			return err == nil
		}
		entries, err := fd.Entries()
		return err == nil && !slices.ContainsFunc(entries, func(e linux.Entry) bool { return !gather(fd, e.Name, e.Type) })
	}
	top, err := s.d.Open(".", linux.ReadOnly, 0)
	if err != nil {
		return false, err
	}
	open = append(open, top)
	for _, d := range dirs {
		if !gather(s.d, layerKey(d), linux.TypeDir) {
			return false, nil
		}
	}
	if bytes < largeFiles {
		return false, nil
	}
	for _, fd := range slices.Backward(open) {
		if err := fd.Sync(); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (s *Store) markDurable(pending []*layer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.db.Update(func(tx *metadb.Tx) error {
		for _, l := range pending {
			if s.layers[l.id] != l {
				continue
			}
			rec := l.rec
			rec.Durable = true
			if err := tx.Put(layerBucket, layerKey(l.id), rec); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, l := range pending {
		l.rec.Durable = true
	}
	return nil
}

// syncLater makes committed layers durable, many at once, until Close.
func (s *Store) syncLater() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.dirty:
		}
		if s.o.SyncDelay < 0 {
			continue
		}
		select {
		case <-s.stop:
			return
		case <-time.After(s.o.SyncDelay):
		}
		if err := s.Sync(context.Background()); err != nil {
			s.log.Error("layers are not safe from a power cut", "err", err)
		}
	}
}
