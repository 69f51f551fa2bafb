package layer

import (
	"bytes"
	"maps"
	"os"
	"path"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// Tidy takes out of the upper directory of an overlay, which must not be
// mounted, the directories that say nothing: they are empty, and the lower
// directories have them just so. Such are left where something was made and
// removed again.
func Tidy(dir *os.File, lowers []string) error {
	u := &unpacker{}
	defer func() {
		for _, l := range u.lowers {
			l.Close()
		}
	}()
	err := u.openLowers(lowers)
	if err == nil {
		var root linux.FD
		if root, err = linux.Root(dir); err == nil {
			defer root.Close()
			_, err = u.tidy(root, "", 0)
		}
	}
	if err != nil {
		return errdefs.New(errdefs.Internal, "tidy", "layer "+dir.Name(), err)
	}
	return nil
}

// tidy reports whether the directory is empty in the end.
func (u *unpacker) tidy(dir linux.FD, name string, depth int) (empty bool, err error) {
	entries, err := dir.Entries()
	if err != nil || depth > maxNesting {
		return false, err
	}
	left := len(entries)
	for _, e := range entries {
		if e.Type != linux.TypeDir {
			continue
		}
		full := path.Join(name, e.Name)
		sub, err := dir.Dir(e.Name)
		if err != nil {
			return false, err
		}
		empty, err := u.tidy(sub, full, depth+1)
		sub.Close()
		if err != nil {
			return false, err
		}
		if !empty || !u.asBelow(dir, e.Name, full) {
			continue
		}
		var before linux.Stat
		if err := dir.Stat(&before); err != nil {
			return false, err
		}
		if err := dir.Rmdir(e.Name); err != nil {
			return false, err
		}
		if err := dir.Chtime(".", before.Mtime.UnixNano()); err != nil {
			return false, err
		}
		left--
	}
	return left == 0, nil
}

// asBelow reports whether a directory only repeats what is below it.
func (u *unpacker) asBelow(dir linux.FD, last, full string) bool {
	for _, k := range []string{opaqueAttr, "trusted.overlay.redirect"} {
		if v, err := dir.XattrOf(last, k); err == nil && v != nil {
			return false
		}
	}
	var st linux.Stat
	if dir.Lstat(last, &st) != nil {
		return false
	}
	parent, below, ok := u.lower(full)
	if !ok {
		return false
	}
	defer parent.Close()
	return st.Mode == below.Mode && st.UID == below.UID && st.GID == below.GID && st.Mtime.Equal(below.Mtime) &&
		maps.EqualFunc(readXattrs(dir, last), readXattrs(parent, last), bytes.Equal)
}
