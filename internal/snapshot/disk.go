package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/metadb"
)

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// likeParentLocked gives a new root directory the owner and mode of the one
// below it: overlay shows those of the top.
func (s *Store) likeParentLocked(dir, parent string) error {
	if parent == "" {
		return nil
	}
	fi, err := os.Stat(filepath.Join(s.path(s.records[parent].Dir), "fs"))
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && (st.Uid != 0 || st.Gid != 0) {
		if err := os.Chown(dir, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if fi.Mode().Perm() != 0o755 || fi.Mode()&(fs.ModeSticky|fs.ModeSetgid|fs.ModeSetuid) != 0 {
		return os.Chmod(dir, fi.Mode())
	}
	return nil
}

// discard moves a directory to the trash.
func (s *Store) discard(n uint64) {
	to := filepath.Join(s.dir, "trash", strconv.FormatUint(n, 10)+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := os.Rename(s.path(n), to); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Error("snapshot directory not moved to the trash", "dir", s.path(n), "error", err)
		}
		return
	}
	s.throw(to)
}

// throw hands a path to the deleter; when it is too busy the next Open does it.
func (s *Store) throw(path string) {
	select {
	case s.trash <- path:
	default:
	}
}

func (s *Store) deleter() {
	for {
		select {
		case <-s.done:
			return
		case p := <-s.trash:
			if err := os.RemoveAll(p); err != nil {
				s.log.Warn("trash not deleted", "path", p, "error", err)
			}
		}
	}
}

func (s *Store) wakeSyncerLocked() {
	s.pending = true
	select {
	case s.sync <- struct{}{}:
	default:
	}
}

// syncer makes committed snapshots durable some seconds after they came, many
// at a time.
func (s *Store) syncer() {
	for {
		select {
		case <-s.done:
			return
		case <-s.sync:
		}
		select {
		case <-s.done:
			return
		case <-time.After(3 * time.Second):
		}
		if err := s.Sync(context.Background()); err != nil {
			s.log.Error("snapshots could not be made durable", "error", err)
		}
	}
}

// Sync returns when every snapshot that is committed now survives a power cut.
func (s *Store) Sync(ctx context.Context) error {
	s.mu.Lock()
	var names []string
	var recs []*record
	for n, r := range s.records {
		if r.Kind == Committed && r.Boot != "" {
			names, recs = append(names, n), append(recs, r)
		}
	}
	s.pending = false
	s.mu.Unlock()
	if len(names) == 0 {
		return nil
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := linux.SyncFS(dir); err != nil {
		return errdefs.New(errdefs.Internal, "sync", "snapshots in "+s.dir, err)
	}
	s.mu.Lock()
	err = s.db.Update(func(tx *metadb.Tx) error {
		for i, n := range names {
			if s.records[n] != recs[i] {
				continue // removed meanwhile
			}
			durable := *recs[i]
			durable.Boot = ""
			if err := tx.Put(bucket, n, &durable); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		for i, n := range names {
			if s.records[n] == recs[i] {
				durable := *recs[i]
				durable.Boot = ""
				s.records[n] = &durable
			}
		}
	}
	s.mu.Unlock()
	if err != nil {
		return errdefs.New(kindOf(err), "sync", "snapshots in "+s.dir, err)
	}
	return s.db.Sync()
}

// Usage is what a snapshot's own directory takes on the disk.
func (s *Store) Usage(ctx context.Context, key string) (bytes, inodes int64, err error) {
	s.mu.Lock()
	r := s.records[key]
	s.mu.Unlock()
	if r == nil {
		return 0, 0, fail(errdefs.NotFound, "measure", key, "there is none of that name")
	}
	if r.Sized {
		return r.Size, r.Inodes, nil
	}
	bytes, inodes, err = usage(ctx, filepath.Join(s.path(r.Dir), "fs"))
	if err != nil {
		return 0, 0, errdefs.New(errdefs.Internal, "measure", fmt.Sprintf("snapshot %q", key), err)
	}
	if r.Kind == Committed {
		s.mu.Lock()
		defer s.mu.Unlock()
		if now := s.records[key]; now != nil && now.Dir == r.Dir {
			sized := *now
			sized.Size, sized.Inodes, sized.Sized = bytes, inodes, true
			if s.db.Update(func(tx *metadb.Tx) error { return tx.Put(bucket, key, &sized) }) == nil {
				s.records[key] = &sized
			}
		}
	}
	return bytes, inodes, nil
}

func usage(ctx context.Context, dir string) (bytes, inodes int64, err error) {
	seen := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && inodes%1000 == 0 {
			err = ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a running container removes files
		}
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok || st.Nlink > 1 && !fi.IsDir() && seen[st.Ino] {
			return nil
		}
		if st.Nlink > 1 {
			seen[st.Ino] = true
		}
		inodes++
		if !fi.IsDir() {
			bytes += fi.Size()
			if alloc := st.Blocks * 512; alloc < fi.Size() { // sparse
				bytes -= fi.Size() - alloc
			}
		}
		return nil
	})
	return bytes, inodes, err
}

// MountOptions change a mount.
type MountOptions struct {
	ReadOnly bool
	Volatile bool // nothing is synced: the content is worthless after a crash of the machine
}

// MountFD makes a detached mount of a snapshot's tree. Committed snapshots and
// views are read-only.
func (s *Store) MountFD(ctx context.Context, key string, o MountOptions) (*os.File, error) {
	d, err := s.Dirs(key)
	if err != nil {
		return nil, err
	}
	readOnly := o.ReadOnly || d.Work == ""
	f, err := s.mount(d, readOnly, o.Volatile)
	if err != nil {
		return nil, errdefs.New(kindOf(err), "mount", fmt.Sprintf("snapshot %q", key), err)
	}
	return f, nil
}

func (s *Store) mount(d Dirs, readOnly, volatile bool) (*os.File, error) {
	if len(d.Lowers) == 0 {
		f, err := linux.CloneTree(nil, d.Upper, false)
		if err == nil && readOnly {
			if err = linux.SetMountReadOnly(f, false); err != nil {
				f.Close()
				return nil, err
			}
		}
		return f, err
	}
	o := linux.Overlay{Dir: s.dir, Lowers: d.Lowers, Volatile: volatile}
	if readOnly {
		o.Lowers = append([]string{d.Upper}, d.Lowers...)
	} else {
		o.Upper, o.Work = d.Upper, d.Work
		// A volatile mount leaves a mark that forbids the next one.
		os.RemoveAll(filepath.Join(d.Work, "work", "incompat", "volatile"))
	}
	return linux.MountOverlay(o)
}
