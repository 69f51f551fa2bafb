package layer

import (
	"archive/tar"
	"errors"
	"path"
	"strings"
	"syscall"

	"github.com/onggi/onggi/internal/linux"
)

// whiteout makes what overlayfs understands of an OCI whiteout. Whiteouts are
// about lower layers: what this archive has put there itself stays. One of
// something that is not there would be seen as an entry that cannot be opened,
// so it is left out.
func (u *unpacker) whiteout(dir, last string, mtime int64) error {
	if strings.HasPrefix(last, reserved) && last != opaque { // of AUFS, without meaning here
		return nil
	}
	if last == opaque {
		if dir == "" {
			u.opaqueRoot = true // overlayfs merges roots in any case
			return nil
		}
		parent, err := u.place(dir)
		if err != nil {
			return err
		}
		return u.setOpaque(parent, dir, ".")
	}
	name := strings.TrimPrefix(last, whiteout)
	if name == "" || name == "." || name == ".." {
		return invalid(path.Join(dir, last), "a whiteout of %s", quote(name))
	}
	full := path.Join(dir, name)
	lower, _, ok := u.lower(full)
	if !ok {
		return nil
	}
	lower.Close()
	parent, err := u.place(dir)
	if err != nil {
		return err
	}
	err = parent.Mknod(name, linux.TypeChar, 0, 0)
	if err == nil {
		u.whiteouts = append(u.whiteouts, full)
		return parent.Chtime(name, mtime)
	}
	if !errors.Is(err, syscall.EEXIST) {
		return err
	}
	var st linux.Stat
	if err := parent.Lstat(name, &st); err != nil {
		return err
	}
	if st.Mode&linux.TypeMask == linux.TypeDir {
		return u.setOpaque(parent, full, name)
	}
	return nil
}

// setOpaque makes a directory, an entry of parent or "." for that itself, hide
// what lower layers have in it.
func (u *unpacker) setOpaque(parent linux.FD, full, name string) error {
	u.opaques[full] = true
	return parent.SetXattrOf(name, opaqueAttr, []byte("y"))
}

// finishWhiteouts removes those below a directory that hides everything
// anyway: overlayfs would show them.
func (u *unpacker) finishWhiteouts() error {
	if len(u.opaques) == 0 {
		return nil
	}
	for _, full := range u.whiteouts {
		hidden := false
		for d := path.Dir(full); d != "." && !hidden; d = path.Dir(d) {
			hidden = u.opaques[d]
		}
		if !hidden {
			continue
		}
		parent, err := u.root.DirInRoot(path.Dir(full))
		if err != nil {
			continue // replaced by something else meanwhile
		}
		var st linux.Stat
		if parent.Lstat(path.Base(full), &st) == nil && isWhiteout(&st) {
			err = parent.Unlink(path.Base(full))
		}
		parent.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// belowMarker reports whether an entry is in a directory that AUFS kept things
// in, which have no meaning here. In a directory with the name of a whiteout
// nothing can be.
func belowMarker(dir string) (skip bool, err error) {
	if !strings.HasPrefix(dir, whiteout) && !strings.Contains(dir, "/"+whiteout) {
		return false, nil
	}
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, reserved) {
			return true, nil
		}
		if strings.HasPrefix(part, whiteout) {
			return false, invalid(dir, "%s is a whiteout, not a directory", quote(part))
		}
	}
	return false, nil
}

// finishOpaqueRoot hides all of the lower layers, name by name.
func (u *unpacker) finishOpaqueRoot() error {
	if !u.opaqueRoot {
		return nil
	}
	for _, l := range u.lowers {
		entries, err := l.Entries()
		if err != nil {
			return err
		}
		for _, e := range entries {
			var st linux.Stat
			switch err := u.root.Lstat(e.Name, &st); {
			case errors.Is(err, syscall.ENOENT):
				err = u.root.Mknod(e.Name, linux.TypeChar, 0, 0)
				if err != nil {
					return err
				}
			case err != nil:
				return err
			case st.Mode&linux.TypeMask == linux.TypeDir:
				if err := u.root.SetXattrOf(e.Name, opaqueAttr, []byte("y")); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// lower finds a path in what the lower layers show together. Links on the way
// are not followed. It returns the open parent, and the layer it is in.
func (u *unpacker) lower(full string) (parent linux.FD, st linux.Stat, ok bool) {
	dir, last := path.Split(full)
	for _, l := range u.lowers {
		fd, found, goOn := walkLower(l, strings.TrimSuffix(dir, "/"))
		if !found {
			if !goOn {
				return linux.NoFD, st, false
			}
			continue
		}
		err := fd.Lstat(last, &st)
		if err == nil {
			if isWhiteout(&st) {
				fd.Close()
				return linux.NoFD, st, false
			}
			return fd, st, true
		}
		hides := isOpaque(fd, ".")
		fd.Close()
		if hides || !goOn {
			return linux.NoFD, st, false
		}
	}
	return linux.NoFD, st, false
}

// walkLower opens a directory of one layer. goOn says that layers below may
// have, or add to, it.
func walkLower(l linux.FD, dir string) (fd linux.FD, found, goOn bool) {
	fd, err := l.Dir(".")
	if err != nil {
		return fd, false, false
	}
	goOn = true
	if dir == "" {
		return fd, true, goOn
	}
	for part := range strings.SplitSeq(dir, "/") {
		next, err := fd.Dir(part)
		fd.Close()
		if err != nil {
			// ENOTDIR: a file, link or whiteout hides what is below.
			return linux.NoFD, false, goOn && errors.Is(err, syscall.ENOENT)
		}
		fd = next
		goOn = goOn && !isOpaque(fd, ".")
	}
	return fd, true, goOn
}

func isOpaque(d linux.FD, name string) bool {
	v, err := d.XattrOf(name, opaqueAttr)
	return err == nil && string(v) == "y"
}

// lowerDir gives the attributes that an implied directory gets: those it has
// in the lower layers, so that it looks as before.
func (u *unpacker) lowerDir(full string) dirAttributes {
	a := dirAttributes{mode: 0o755}
	if u.owner != nil {
		a.uid, a.gid = u.owner.UID, u.owner.GID
	}
	if len(u.lowers) == 0 {
		return a
	}
	parent, st, ok := u.lower(full)
	if !ok {
		return a
	}
	defer parent.Close()
	if st.Mode&linux.TypeMask != linux.TypeDir {
		return a
	}
	a = dirAttributes{mode: st.Mode & 0o7777, uid: int(st.UID), gid: int(st.GID), mtime: st.Mtime.UnixNano(), hasTime: true}
	a.xattrs = readXattrs(parent, path.Base(full))
	return a
}

func readXattrs(d linux.FD, name string) map[string][]byte {
	keys, err := d.XattrNamesOf(name)
	if err != nil || len(keys) == 0 {
		return nil
	}
	out := map[string][]byte{}
	for _, k := range keys {
		if !keepXattr(k) {
			continue
		}
		if v, err := d.XattrOf(name, k); err == nil && v != nil {
			out[k] = v
		}
	}
	return out
}

// linkToLower makes a hard link to a file that only a lower layer has: the
// file is copied up first, as the kernel would.
func (u *unpacker) linkToLower(full, last, dir, old string, h *tar.Header) error {
	from, st, ok := u.lower(path.Join(dir, old))
	if !ok {
		return invalid(h.Name, "a hard link to %s, which is not there", quote(h.Linkname))
	}
	defer from.Close()
	place, err := u.place(dir)
	if err != nil {
		return err
	}
	if err := u.copyUp(from, place, old, &st); err != nil {
		return err
	}
	up, err := place.Dir(".") // place may be closed by what follows
	if err != nil {
		return err
	}
	defer up.Close()
	d := path.Dir("/" + full)[1:]
	parent, err := u.place(d)
	if err != nil {
		return err
	}
	if same, err := sameEntry(up, old, parent, last); err != nil || same {
		return err
	}
	return u.make(&parent, full, last, func() error { return parent.Link(up, old, last) })
}

func (u *unpacker) copyUp(from, to linux.FD, name string, st *linux.Stat) error {
	var err error
	switch st.Mode & linux.TypeMask {
	case linux.TypeReg:
		err = u.copyUpFile(from, to, name, st)
	case linux.TypeLink:
		var target string
		if target, err = from.Readlink(name); err == nil {
			err = to.Symlink(target, name)
		}
	case linux.TypeDir:
		return invalid(name, "a hard link to a directory")
	default:
		err = to.Mknod(name, st.Mode, st.Major, st.Minor)
	}
	if err != nil {
		return err
	}
	if err := to.Lchown(name, int(st.UID), int(st.GID)); err != nil {
		return err
	}
	if st.Mode&linux.TypeMask != linux.TypeLink {
		fd, err := to.Open(name, linux.Handle, 0)
		if err != nil {
			return err
		}
		err = fd.ChmodHandle(st.Mode & 0o7777)
		fd.Close()
		if err != nil {
			return err
		}
	}
	for k, v := range readXattrs(from, name) {
		if err := ignoreUnsupported(to.SetXattrOf(name, k, v)); err != nil {
			return err
		}
	}
	return to.Chtime(name, st.Mtime.UnixNano())
}

func (u *unpacker) copyUpFile(from, to linux.FD, name string, st *linux.Stat) error {
	if st.Size > u.limits.Bytes-u.bytes {
		return invalid(name, "the archive has more than %d bytes", u.limits.Bytes)
	}
	u.bytes += st.Size
	in, err := from.Open(name, linux.ReadOnly, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := to.CreateNew(name, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	for {
		n, err := in.Read(u.buf)
		if err != nil || n == 0 {
			return err
		}
		if _, err := out.Write(u.buf[:n]); err != nil {
			return err
		}
	}
}
