package hostdir

import (
	"context"
	"errors"
	"fmt"
	"hash"
	gofs "io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/buildkit/cache/contenthash"
	digest "github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"golang.org/x/sync/errgroup"

	"github.com/onggi/onggi/internal/linux"
)

// found is a file of the context.
type found struct {
	stat *fstypes.Stat
	raw  *linux.Stat
	old  *item // what the index has at its path
	lost bool  // of that, the file is nowhere
}

// list walks the directory, and chooses what the patterns choose.
func list(ctx context.Context, root linux.FD, filter *fsutil.FilterOpt, old index) ([]found, error) {
	t := &tree{root: root, old: old}
	out := make([]found, 0, len(old))
	first := map[[2]uint64]string{} // of the names of one file
	take := func(e *entry) error {
		if _, err := e.Info(); err != nil {
			return err
		}
		f := found{stat: e.stat, raw: &e.raw, old: e.old}
		if f.raw.Nlink > 1 && !e.IsDir() && f.raw.Mode&linux.TypeMask != linux.TypeLink {
			id := [2]uint64{f.raw.Dev, f.raw.Ino}
			link := first[id]
			if link == "" {
				first[id] = e.path
			}
			if f.stat.Linkname != link {
				f.stat = f.stat.Clone()
				f.stat.Linkname = link
				if f.stat.Size = 0; link == "" {
					f.stat.Size = f.raw.Size
				}
			}
		}
		out = append(out, f)
		return nil
	}
	if len(filter.IncludePatterns)+len(filter.ExcludePatterns)+len(filter.FollowPaths) == 0 {
		t.all = true
		err := t.Walk(ctx, "", func(_ string, d gofs.DirEntry, _ error) error { return take(d.(*entry)) })
		return out, err
	}
	t.taken = make(map[*fstypes.Stat]*entry, len(old))
	fs, err := fsutil.NewFilterFS(t, filter) // follows links of FollowPaths inside the directory
	if err != nil {
		return nil, err
	}
	err = fs.Walk(ctx, "", func(_ string, d gofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return take(t.taken[d.(*fsutil.DirEntryInfo).Stat])
	})
	return out, err
}

// unchanged reports that the kept ref has the file already.
func (f *found) unchanged() bool {
	return f.old != nil && f.stat == f.old.stat && !f.lost
}

// syncer brings a kept ref up to what the client's directory holds.
type syncer struct {
	from  linux.FD
	to    linux.FD
	old   index
	hash  contenthash.CacheContext
	bytes atomic.Int64 // copied so far

	mu    sync.Mutex
	fresh index // guarded by mu
}

// run removes what is gone and copies what has changed.
func (s *syncer) run(ctx context.Context, files []found) (index, error) {
	s.fresh = make(index, len(files))
	changed := map[string]bool{}
	for i := range files {
		f := &files[i]
		if f.unchanged() && !(f.stat.Linkname != "" && changed[f.stat.Linkname]) {
			s.fresh[f.stat.Path] = f.old
		} else {
			changed[f.stat.Path] = true
		}
	}
	present := make(map[string]bool, len(files)) // and whether it is a directory
	for _, f := range files {
		present[f.stat.Path] = f.stat.IsDir()
	}
	for p := range s.old {
		// What was below something that is no directory now goes with that.
		if _, ok := present[p]; !ok && (path.Dir(p) == "." || present[path.Dir(p)]) {
			if err := s.remove(p); err != nil {
				return nil, err
			}
		}
	}
	var dirs, links, batch []*found
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	flush := func() {
		if b := batch; len(b) > 0 {
			batch = nil
			eg.Go(func() error { return s.copyAll(ctx, b) })
		}
	}
	for i := range files {
		f := &files[i]
		mode := gofs.FileMode(f.stat.Mode)
		if mode.IsDir() {
			dirs = append(dirs, f) // any may get another time by what is done below it
		}
		switch {
		case !changed[f.stat.Path]:
		case f.stat.Linkname != "" && mode&gofs.ModeSymlink == 0:
			links = append(links, f)
		case mode.IsRegular():
			if len(batch) == maxBatch || len(batch) > 0 && path.Dir(batch[0].stat.Path) != path.Dir(f.stat.Path) {
				flush()
			}
			batch = append(batch, f)
		default:
			if err := s.special(f); err != nil {
				return nil, errors.Join(err, eg.Wait())
			}
		}
	}
	flush()
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	for _, f := range links {
		if err := s.link(f); err != nil {
			return nil, err
		}
	}
	for i := len(dirs) - 1; i >= 0 && len(changed) > 0; i-- {
		if err := s.settime(dirs[i].stat); err != nil {
			return nil, err
		}
	}
	return s.fresh, nil
}

// at gives the directory of p in the kept ref, which nobody else writes to.
func (s *syncer) at(p string) (linux.FD, string, error) {
	fd, err := descend(s.to, strings.TrimPrefix(path.Dir(p), "."))
	if err != nil {
		return fd, "", &os.PathError{Op: "open", Path: path.Dir(p), Err: err}
	}
	return fd, path.Base(p), nil
}

func (s *syncer) remove(p string) error {
	dir, name, err := s.at(p)
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.RemoveAll(name); err != nil {
		return &os.PathError{Op: "remove", Path: p, Err: err}
	}
	return s.hash.HandleChange(fsutil.ChangeKindDelete, p, nil, nil)
}

// attempts bounds how often a file is read that is being written meanwhile.
const attempts = 3

// maxBatch bounds how many files of a directory one goroutine copies at once.
const maxBatch = 64

// copyAll stores regular files of one directory and hashes what it stores.
func (s *syncer) copyAll(ctx context.Context, files []*found) error {
	parent := path.Dir(files[0].stat.Path)
	to, _, err := s.at(files[0].stat.Path)
	if err != nil {
		return err
	}
	defer to.Close()
	from, err := descend(s.from, strings.TrimPrefix(parent, "."))
	if err != nil {
		if vanished(err) {
			return nil
		}
		return &os.PathError{Op: "open", Path: parent, Err: err}
	}
	defer from.Close()
	for _, f := range files {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.copy(from, to, f); err != nil {
			return fmt.Errorf("copying %s into the build context: %w", f.stat.Path, err)
		}
	}
	return nil
}

func (s *syncer) copy(from, to linux.FD, f *found) error {
	name := path.Base(f.stat.Path)
	for try := 1; ; try++ {
		src, err := from.Open(name, linux.ReadOnly, 0)
		if err != nil {
			if vanished(err) {
				return nil // it went since it was listed
			}
			return err
		}
		again, err := s.copyFrom(src, to, name, f, try == attempts)
		src.Close()
		if err != nil || !again {
			return err
		}
	}
}

// copyFrom is one attempt; again reports that the file changed under it.
func (s *syncer) copyFrom(src, dir linux.FD, name string, f *found, last bool) (again bool, err error) {
	var st, after linux.Stat
	if err := src.Stat(&st); err != nil {
		return false, err
	}
	if st.Mode&linux.TypeMask != linux.TypeReg {
		return false, nil // it became something else, which nobody asked for
	}
	began := time.Now()
	stat := f.stat.Clone()
	stat.Mode, stat.ModTime, stat.Size = uint32(fileMode(st.Mode)), st.Mtime.UnixNano(), st.Size
	h, err := contenthash.NewFromStat(stat.Clone())
	if err != nil {
		return false, err
	}
	dst, err := dir.CreateBoth(name, 0o600)
	if errors.Is(err, syscall.EEXIST) { // the last one, or the last attempt
		if err := dir.RemoveAll(name); err != nil {
			return false, err
		}
		dst, err = dir.CreateBoth(name, 0o600)
	}
	if err != nil {
		return false, err
	}
	defer dst.Close()
	n, err := s.pour(dst, src, h, st.Size)
	if err != nil {
		return false, err
	}
	if err := src.Stat(&after); err != nil {
		return false, err
	}
	if moved := n != st.Size || after.Size != st.Size || !after.Mtime.Equal(st.Mtime) || !after.Ctime.Equal(st.Ctime); moved && !last {
		return true, nil
	} else if moved && n != st.Size {
		// The hash begins with the size.
		return false, errors.New("it does not hold still: its size changes while it is read")
	}
	if err := writeMeta(dst, stat); err != nil {
		return false, err
	}
	return false, s.stored(stat, &st, sum(h), !st.Ctime.Before(began.Add(-settled)) || after.Ctime.After(st.Ctime))
}

// buffers are as large as a read that the kernel does at once.
var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// writeAhead is how much of a file is written before the disk is told to begin.
// The image is durable when a build ends, which then has less to wait for.
const writeAhead = 8 << 20

// pour copies and hashes. Where the file system shares blocks between files,
// the copy is a clone, and only read.
func (s *syncer) pour(dst, src linux.FD, h hash.Hash, size int64) (int64, error) {
	from, write := src, true
	if size > 0 && dst.Clone(src) == nil {
		from, write = dst, false // what is hashed is what was stored
	}
	b := *buffers.Get().(*[]byte)
	defer buffers.Put(&b)
	var done, begun int64
	for {
		n, err := from.ReadAt(b, done)
		if n > 0 {
			h.Write(b[:n])
			if write {
				if _, err := dst.Write(b[:n]); err != nil {
					return done, err
				}
			}
			done += int64(n)
			s.bytes.Add(int64(n))
			if write && done-begun >= writeAhead {
				dst.StartWriting(begun, done-begun) // where it cannot, the end of the build waits
				begun = done
			}
		}
		if err != nil || n == 0 || done > size {
			return done, err
		}
	}
}

// writeMeta gives an open file its owner, mode, attributes and time.
func writeMeta(fd linux.FD, stat *fstypes.Stat) error {
	for key, value := range stat.Xattrs {
		if key == "security.capability" {
			continue // BuildKit loses it when it sets the owner
		}
		fd.SetXattr(key, value) // as far as the file system has it, as BuildKit does
	}
	if err := fd.Chmod(unixMode(stat.Mode)); err != nil {
		return err
	}
	return fd.Settime(stat.ModTime)
}

func unixMode(mode uint32) uint32 {
	m := gofs.FileMode(mode)
	out := uint32(m.Perm())
	for _, b := range specialBits {
		if m&b.to != 0 {
			out |= b.bit
		}
	}
	return out
}

// special stores what is not a regular file.
func (s *syncer) special(f *found) error {
	fail := func(err error) error { return fmt.Errorf("storing %s of the build context: %w", f.stat.Path, err) }
	dir, name, err := s.at(f.stat.Path)
	if err != nil {
		return fail(err)
	}
	defer dir.Close()
	mode := gofs.FileMode(f.stat.Mode)
	if old := f.old; !mode.IsDir() || old == nil || !gofs.FileMode(old.stat.Mode).IsDir() {
		if err := dir.RemoveAll(name); err != nil {
			return fail(err)
		}
		switch {
		case mode.IsDir():
			err = dir.Mkdir(name, 0o700)
		case mode&gofs.ModeSymlink != 0:
			err = dir.Symlink(f.stat.Linkname, name)
		default:
			err = dir.Mknod(name, f.raw.Mode, uint32(f.stat.Devmajor), uint32(f.stat.Devminor))
		}
		if err != nil {
			return fail(err)
		}
	}
	for key, value := range f.stat.Xattrs {
		dir.SetXattrOf(name, key, value)
	}
	if mode&gofs.ModeSymlink == 0 {
		fd, err := dir.Open(name, linux.Handle, 0)
		if err != nil {
			return fail(err)
		}
		err = fd.ChmodHandle(unixMode(f.stat.Mode))
		fd.Close()
		if err != nil {
			return fail(err)
		}
	}
	if err := dir.Chtime(name, f.stat.ModTime); err != nil {
		return fail(err)
	}
	d, err := headerSum(f.stat)
	if err != nil {
		return fail(err)
	}
	return s.stored(f.stat, f.raw, d, false)
}

// link gives a stored file another name.
func (s *syncer) link(f *found) error {
	first, firstName, err := s.at(f.stat.Linkname)
	if err != nil {
		return err
	}
	defer first.Close()
	dir, name, err := s.at(f.stat.Path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err = dir.RemoveAll(name); err == nil {
		err = dir.Link(first, firstName, name)
	}
	if vanished(err) {
		return nil // the file itself went under way
	}
	if err != nil {
		return fmt.Errorf("linking %s in the build context: %w", f.stat.Path, err)
	}
	d, err := headerSum(f.stat)
	if err != nil {
		return err
	}
	return s.stored(f.stat, f.raw, d, false)
}

func (s *syncer) settime(stat *fstypes.Stat) error {
	dir, name, err := s.at(stat.Path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Chtime(name, stat.ModTime)
}

// stored notes a file in the index and in BuildKit's hashes.
func (s *syncer) stored(stat *fstypes.Stat, raw *linux.Stat, d digest.Digest, racy bool) error {
	s.mu.Lock()
	s.fresh[stat.Path] = &item{stat: stat, dev: raw.Dev, ino: raw.Ino, ctime: raw.Ctime.UnixNano(), size: raw.Size, digest: d, racy: racy}
	s.mu.Unlock()
	return s.hash.HandleChange(fsutil.ChangeKindModify, stat.Path, &hashed{&fsutil.StatInfo{Stat: stat}, d}, nil)
}

// hashed is a file with its digest, as contenthash takes it.
type hashed struct {
	gofs.FileInfo
	d digest.Digest
}

func (h *hashed) Digest() digest.Digest { return h.d }

func sum(h hash.Hash) digest.Digest { return digest.NewDigest(digest.SHA256, h) }

// headerSum is the digest of what has no content.
func headerSum(stat *fstypes.Stat) (digest.Digest, error) {
	h, err := contenthash.NewFromStat(stat.Clone())
	if err != nil {
		return "", err
	}
	return sum(h), nil
}
