package hostdir

import (
	"context"
	"fmt"
	gofs "io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/solver"

	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// Kept are a directory's files while a build has them. A COPY moves them into
// its layer, so that they are on disk once; who needs one of them again finds
// it there, or in the client's directory if it still is what it was.
type Kept struct {
	ref    cache.MutableRef
	dir    string
	mtime  int64 // of dir
	client linux.FD

	mu    sync.Mutex
	files index               // guarded by mu: the places in it
	below map[string][]string // guarded by mu: names in a directory, sorted; made when first needed
	shown bool                // guarded by mu: somebody may look at the files where they are
}

var _ refs.Lender = (*Kept)(nil)

// lend lets the build take files out of the ref.
func (s *Source) lend(job solver.JobContext, ref cache.MutableRef, client linux.FD) error {
	own, lowers, err := s.cache.Directories(ref)
	if err != nil || len(lowers) > 0 || job == nil {
		return err
	}
	s.mu.Lock()
	files := s.indexes[ref.ID()]
	s.mu.Unlock()
	if files.hasLinks() {
		return nil // a file with two names cannot be in two places
	}
	root, err := linux.OpenRoot(own)
	if err != nil {
		return err
	}
	defer root.Close()
	var st linux.Stat
	if err := root.Stat(&st); err != nil {
		return err
	}
	fd, err := client.Dir(".")
	if err != nil {
		return err
	}
	if err := job.Cleanup(func() error { fd.Close(); return nil }); err != nil {
		fd.Close()
		return err
	}
	s.cache.Lend(ref, &Kept{ref: ref, dir: own, mtime: st.Mtime.UnixNano(), client: fd, files: files})
	return nil
}

func isLink(mode uint32, linkname string) bool {
	return linkname != "" && gofs.FileMode(mode)&gofs.ModeSymlink == 0
}

func (x index) hasLinks() bool {
	for _, it := range x {
		if isLink(it.stat.Mode, it.stat.Linkname) {
			return true
		}
	}
	return false
}

// checkPlaces marks what is neither in the ref nor in a layer any more, so that
// it is read again.
func checkPlaces(files []found) {
	links := slices.ContainsFunc(files, func(f found) bool { return isLink(f.stat.Mode, f.stat.Linkname) })
	there := map[string]bool{}
	var last string // most are where the one before is
	var ok bool
	for i := range files {
		f := &files[i]
		if f.old == nil || f.old.place.dir == "" {
			continue
		}
		if dir := f.old.place.dir; dir != last {
			var known bool
			if ok, known = there[dir]; !known {
				_, err := os.Lstat(dir)
				ok = err == nil
				there[dir] = ok
			}
			last = dir
		}
		f.lost = !ok || links
	}
}

// Whole implements refs.Lender.
func (k *Kept) Whole(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.shown {
		return nil
	}
	away := slices.DeleteFunc(slices.Sorted(maps.Keys(k.files)), func(p string) bool { return k.files[p].place.dir == "" })
	if len(away) > 0 {
		root, err := linux.OpenRoot(k.dir)
		if err != nil {
			return err
		}
		defer root.Close()
		err = k.noted(func() error {
			for _, p := range away {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := k.fetchInto(root, p); err != nil {
					return err
				}
			}
			return k.restoreTimes(root)
		})
		if err != nil {
			return err
		}
	}
	k.shown = true
	return nil
}

// noted writes down where the files are after f. Until then nobody may trust
// what was written before.
func (k *Kept) noted(f func() error) error {
	if err := k.ref.SetExternal(keyIndex, nil); err != nil {
		return err
	}
	err := f()
	b, merr := k.files.marshal()
	if merr == nil {
		merr = k.ref.SetExternal(keyIndex, b)
	}
	if err != nil {
		return err
	}
	return merr
}

// timeOf is a directory's, however often its files came and went.
func (k *Kept) timeOf(dir string) int64 {
	if dir == "" {
		return k.mtime
	}
	return k.files[dir].stat.ModTime
}

// restoreTimes gives all directories theirs. Preconditions: k.mu is held.
func (k *Kept) restoreTimes(root linux.FD) error {
	for p := range k.files {
		if !k.isDir(p) {
			continue
		}
		dir, err := descend(root, p)
		if err != nil {
			return err
		}
		err = dir.Chtime(".", k.timeOf(p))
		dir.Close()
		if err != nil {
			return err
		}
	}
	return root.Chtime(".", k.mtime)
}

// fetchInto brings a file back. Preconditions: k.mu is held.
func (k *Kept) fetchInto(root linux.FD, p string) error {
	dir, err := descend(root, strings.TrimPrefix(path.Dir(p), "."))
	if err != nil {
		return &os.PathError{Op: "open", Path: path.Dir(p), Err: err}
	}
	defer dir.Close()
	if err := k.fetch(dir, path.Base(p), p); err != nil {
		return err
	}
	k.files[p].place = place{}
	return nil
}

// fetch makes a copy of a file that was given away; it is checked against the
// digest. Preconditions: k.mu is held.
func (k *Kept) fetch(dir linux.FD, name, p string) error {
	it := k.files[p]
	from := func(root linux.FD, p string) (bool, error) {
		parent, err := descend(root, strings.TrimPrefix(path.Dir(p), "."))
		if err != nil {
			return false, nil
		}
		defer parent.Close()
		src, err := parent.Open(path.Base(p), linux.ReadOnly, 0)
		if err != nil {
			return false, nil
		}
		defer src.Close()
		return copyVerified(dir, name, src, it)
	}
	if it.place.dir != "" {
		layer, err := linux.OpenRoot(it.place.dir)
		if err == nil {
			ok, err := from(layer, it.place.path)
			layer.Close()
			if ok || err != nil {
				return err
			}
		}
	}
	ok, err := from(k.client, p)
	if err == nil && !ok {
		err = errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "copy", "build context file "+p, "its layer was removed while the build ran, and the file has changed since the build began"), "build again")
	}
	return err
}

// copyVerified stores src, if it is what the index says.
func copyVerified(dir linux.FD, name string, src linux.FD, it *item) (ok bool, err error) {
	var st linux.Stat
	if err := src.Stat(&st); err != nil || st.Mode&linux.TypeMask != linux.TypeReg || st.Size != it.stat.Size {
		return false, err
	}
	h, err := contenthash.NewFromStat(it.stat.Clone())
	if err != nil {
		return false, err
	}
	if err := dir.RemoveAll(name); err != nil {
		return false, err
	}
	dst, err := dir.CreateBoth(name, 0o600)
	if err != nil {
		return false, fmt.Errorf("storing %s: %w", it.stat.Path, err)
	}
	defer dst.Close()
	n, err := (&syncer{}).pour(dst, src, h, st.Size)
	if err != nil || n != st.Size || sum(h) != it.digest {
		return false, err
	}
	return true, writeMeta(dst, it.stat)
}
