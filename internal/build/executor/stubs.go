package executor

import (
	"os"
	"path"
	"slices"
	"time"

	"github.com/onggi/onggi/internal/linux"
)

// stubs are the places where the runtime will make mount points in the root
// file system. They are no part of the step's result.
type stubs struct{ places []place }

// place is a path that does not exist yet.
type place struct {
	dir, base    string    // dir has no links in it
	before, made time.Time // when dir was changed last: before our entry was there, and with it
}

// findStubs notes which of the mount points are missing; with deep also which
// of the directories above them.
func findStubs(root *os.File, dests []string, deep bool) stubs {
	var s stubs
	for _, d := range dests {
		for p := path.Clean("/" + d); p != "/"; p = path.Dir(p) {
			if f, err := linux.OpenPathInRoot(root, p); err == nil {
				f.Close()
				break
			}
			if dir, ok := realDir(root, path.Dir(p)); ok {
				if pl := (place{dir: dir, base: path.Base(p)}); !slices.ContainsFunc(s.places, pl.same) {
					pl.before = changed(root, dir)
					s.places = append(s.places, pl)
				}
			}
			if !deep {
				break
			}
		}
	}
	// What lies deeper goes first.
	slices.SortStableFunc(s.places, func(a, b place) int { return len(b.dir) - len(a.dir) })
	return s
}

func (pl place) same(other place) bool { return pl.dir == other.dir && pl.base == other.base }

// changed is when a directory was changed last, or zero.
func changed(root *os.File, p string) time.Time {
	dir, err := linux.OpenDirInRoot(root, p)
	if err != nil {
		return time.Time{}
	}
	defer dir.Close()
	st, err := linux.StatAt(dir, ".")
	if err != nil {
		return time.Time{}
	}
	return st.Mtime
}

// made is called when the mount points are there and the step has not begun.
func (s stubs) made(root *os.File) {
	for i := range s.places {
		s.places[i].made = changed(root, s.places[i].dir)
	}
}

// realDir is the directory p without links, as far as it exists.
func realDir(root *os.File, p string) (string, bool) {
	rest := ""
	for {
		f, err := linux.OpenPathInRoot(root, p)
		if err != nil {
			if p == "/" {
				return "", false
			}
			rest = path.Join(path.Base(p), rest)
			p = path.Dir(p)
			continue
		}
		real, err := linux.PathBelow(root, f)
		f.Close()
		return path.Join(real, rest), err == nil
	}
}

// clean removes the mount points that are still there and empty. The step may
// have put a link in the way; then there is nothing of ours behind it.
func (s stubs) clean(root *os.File) {
	for _, pl := range s.places {
		dir, err := linux.OpenDirInRoot(root, pl.dir)
		if err != nil {
			continue
		}
		pl.remove(root, dir)
		dir.Close()
	}
}

func (pl place) remove(root, dir *os.File) {
	if real, err := linux.PathBelow(root, dir); err != nil || path.Clean(real) != path.Clean(pl.dir) {
		return
	}
	st, err := linux.StatAt(dir, pl.base)
	if err != nil {
		return
	}
	isDir := st.Mode&linux.TypeMask == linux.TypeDir
	if !isDir && (st.Mode&linux.TypeMask != linux.TypeReg || st.Size != 0) {
		return
	}
	before, err := linux.StatAt(dir, ".")
	if err != nil {
		return
	}
	if linux.UnlinkAt(dir, pl.base, isDir) != nil { // a directory in use stays
		return
	}
	// The directory's time must not tell that we were there. What the step
	// did after us counts.
	at := before.Mtime
	if at.Equal(pl.made) && !pl.before.IsZero() {
		at = pl.before
	}
	linux.TimesAt(dir, ".", time.Now(), at)
}
