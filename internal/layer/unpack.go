package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

const (
	whiteout   = ".wh."
	opaque     = ".wh..wh..opq"
	reserved   = ".wh..wh."
	opaqueAttr = "trusted.overlay.opaque"
	paxXattr   = "SCHILY.xattr."
)

func quote(name string) string {
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	return fmt.Sprintf("%q", name)
}

// An unpacker makes the entries of one tar below one root.
type unpacker struct {
	root    linux.FD
	base    string     // where the archive's names start, a clean path in the root
	overlay bool       // whiteouts become nodes
	lowers  []linux.FD // what the root will lie on, top first
	owner   *Owner
	keep    bool // a directory and a non-directory do not replace each other
	live    bool // others may change the tree meanwhile
	limits  Limits
	umask   uint32

	dirs       map[string]linux.FD // open places
	times      map[string]int64    // of directories, set at the end
	opaques    map[string]bool     // directories that hide what is below
	whiteouts  []string            // made so far
	opaqueRoot bool
	bytes      int64 // of files
	entries    int64
	buf        []byte
}

// maxOpenDirs bounds the places held open.
const maxOpenDirs = 256

func (u *unpacker) close() {
	u.forget()
	u.root.Close()
	for _, l := range u.lowers {
		l.Close()
	}
}

// forget closes the open places: what they are the places of may have changed.
func (u *unpacker) forget() {
	for _, fd := range u.dirs {
		fd.Close()
	}
	clear(u.dirs)
}

// run makes every entry of the tar.
func (u *unpacker) run(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return tarError(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if u.entries++; u.entries > u.limits.Entries {
			return errdefs.Newf(errdefs.Invalid, "unpack", "archive", "it has more than %d entries", u.limits.Entries)
		}
		name, err := u.limits.cleanName(h.Name)
		if err == nil {
			err = u.entry(ctx, name, h, tr)
		}
		if err != nil {
			return wordEntry(h.Name, err)
		}
	}
	if err := u.finishWhiteouts(); err != nil {
		return wordEntry(".", err)
	}
	if err := u.finishOpaqueRoot(); err != nil {
		return wordEntry(".", err)
	}
	return u.finishTimes()
}

func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) ||
		strings.HasPrefix(err.Error(), "archive/tar:") {
		return errdefs.New(errdefs.Invalid, "unpack", "archive", err)
	}
	return err
}

// wordEntry names the entry in errors of the kernel.
func wordEntry(name string, err error) error {
	if _, ok := errors.AsType[*errdefs.Error](err); ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	kind := errdefs.Internal
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errdefs.WithHint(errdefs.New(errdefs.Exhausted, "unpack", "entry "+quote(name), err),
			"the disk is full: remove images, containers or volumes (onggi system prune)")
	case errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENOTDIR),
		errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EMLINK), errors.Is(err, fs.ErrNotExist),
		errors.Is(err, fs.ErrExist), errors.Is(err, io.ErrUnexpectedEOF):
		kind = errdefs.Invalid
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		kind = errdefs.Forbidden
	}
	return errdefs.New(kind, "unpack", "entry "+quote(name), err)
}

// entry makes one entry.
func (u *unpacker) entry(ctx context.Context, name string, h *tar.Header, r io.Reader) error {
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return invalid(h.Name, "only a directory can be the root")
		}
		if u.base != "" { // the directory that the archive goes to stays as it is
			return nil
		}
		return u.rootAttributes(h)
	}
	full := path.Join(u.base, name)
	dir, last := path.Split(full)
	dir = strings.TrimSuffix(dir, "/")
	if u.overlay {
		if skip, err := belowMarker(dir); skip || err != nil {
			return err
		}
		if strings.HasPrefix(last, whiteout) {
			return u.whiteout(dir, last, mtimeOf(h.ModTime))
		}
	}
	parent, err := u.place(dir)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.regular(ctx, parent, full, last, h, r)
	case tar.TypeDir:
		return u.directory(parent, full, last, h)
	case tar.TypeSymlink:
		return u.node(parent, full, last, h, func(parent linux.FD) error { return parent.Symlink(h.Linkname, last) })
	case tar.TypeLink:
		return u.hardLink(parent, full, last, h)
	case tar.TypeChar:
		if h.Devmajor == 0 && h.Devminor == 0 { // to overlayfs that is a whiteout; an archive has others
			return nil
		}
		return u.node(parent, full, last, h, mknod(last, linux.TypeChar, h))
	case tar.TypeBlock:
		return u.node(parent, full, last, h, mknod(last, linux.TypeBlock, h))
	case tar.TypeFifo:
		return u.node(parent, full, last, h, mknod(last, linux.TypeFIFO, h))
	}
	return invalid(h.Name, "entries of type %q are not known", string(h.Typeflag))
}

func mknod(last string, kind uint32, h *tar.Header) func(linux.FD) error {
	return func(parent linux.FD) error {
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor > math.MaxUint32 {
			return invalid(h.Name, "that is no device number")
		}
		return parent.Mknod(last, kind|0o600, uint32(h.Devmajor), uint32(h.Devminor))
	}
}

// place opens the directory dir, a clean path in the root, and makes it where
// it is missing.
func (u *unpacker) place(dir string) (linux.FD, error) {
	if dir == "" {
		return u.root, nil
	}
	if fd, ok := u.dirs[dir]; ok {
		return fd, nil
	}
	fd, err := u.root.DirInRoot(dir)
	if err != nil {
		if fd, err = u.makeDirs(dir, 0); err != nil {
			return linux.NoFD, err
		}
	}
	u.remember(dir, fd)
	return fd, nil
}

func (u *unpacker) remember(dir string, fd linux.FD) {
	if old, ok := u.dirs[dir]; ok {
		old.Close()
		delete(u.dirs, dir)
	}
	if len(u.dirs) >= maxOpenDirs {
		u.forget()
	}
	u.dirs[dir] = fd
}

// maxLinks is how many links makeDirs follows, as the kernel.
const maxLinks = 40

// makeDirs makes the directories of a path that an archive implies without
// having entries for them. Links on the way are followed in the root, also
// where what they point to has still to be made: it may be in a lower layer.
func (u *unpacker) makeDirs(dir string, links int) (linux.FD, error) {
	done := ""
	parts := strings.Split(dir, "/")
	for i, part := range parts {
		next := path.Join(done, part)
		fd, err := u.root.DirInRoot(next)
		if err == nil {
			if i == len(parts)-1 {
				return fd, nil
			}
			fd.Close()
			done = next
			continue
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR) {
			return linux.NoFD, err
		}
		fd, target, err := u.makeDir(done, next, part)
		if err != nil {
			return linux.NoFD, err
		}
		if target != "" {
			if links++; links > maxLinks {
				return linux.NoFD, syscall.ELOOP
			}
			rest := path.Join(append([]string{target}, parts[i+1:]...)...)
			return u.makeDirs(strings.TrimPrefix(path.Clean("/"+rest), "/"), links)
		}
		if i == len(parts)-1 {
			return fd, nil
		}
		fd.Close()
		done = next
	}
	return u.root.DirInRoot(dir)
}

// makeDir makes one implied directory. Where there is a link to nowhere, it
// returns the path that the link means.
func (u *unpacker) makeDir(parentPath, full, name string) (fd linux.FD, target string, err error) {
	parent, err := u.root.DirInRoot(parentPath)
	if err != nil {
		return linux.NoFD, "", err
	}
	defer parent.Close()
	a := u.lowerDir(full)
	err = parent.Mkdir(name, a.mode&0o777)
	hidden := false
	if errors.Is(err, syscall.EEXIST) {
		var st linux.Stat
		if err := parent.Lstat(name, &st); err != nil {
			return linux.NoFD, "", err
		}
		switch {
		case st.Mode&linux.TypeMask == linux.TypeLink:
			to, err := parent.Readlink(name)
			if err != nil {
				return linux.NoFD, "", err
			}
			if !strings.HasPrefix(to, "/") {
				to = path.Join("/", parentPath, to)
			}
			if to = strings.TrimPrefix(path.Clean(to), "/"); to == "" {
				return linux.NoFD, "", syscall.ELOOP
			}
			return linux.NoFD, to, nil
		case u.overlay && isWhiteout(&st):
			if err := parent.Unlink(name); err != nil {
				return linux.NoFD, "", err
			}
			a, hidden = dirAttributes{mode: 0o755}, true
			err = parent.Mkdir(name, 0o755)
			if err != nil {
				return linux.NoFD, "", err
			}
		default:
			return linux.NoFD, "", syscall.ENOTDIR
		}
	} else if err != nil {
		return linux.NoFD, "", err
	}
	if fd, err = parent.Dir(name); err != nil {
		return fd, "", err
	}
	if err = u.setDir(parent, fd, full, name, a); err == nil && hidden {
		err = u.setOpaque(parent, full, name)
	}
	if err != nil {
		fd.Close()
		return linux.NoFD, "", err
	}
	return fd, "", nil
}

func isWhiteout(st *linux.Stat) bool {
	return st.Mode&linux.TypeMask == linux.TypeChar && st.Major == 0 && st.Minor == 0
}

// dirAttributes are those of a directory.
type dirAttributes struct {
	mode     uint32
	uid, gid int
	mtime    int64
	hasTime  bool
	xattrs   map[string][]byte
}

// setDir gives a directory that was just made its attributes.
func (u *unpacker) setDir(parent, fd linux.FD, full, name string, a dirAttributes) error {
	if err := fd.Chown(a.uid, a.gid); err != nil {
		return err
	}
	if err := fd.ChmodHandle(a.mode); err != nil {
		return err
	}
	for k, v := range a.xattrs {
		if err := ignoreUnsupported(parent.SetXattrOf(name, k, v)); err != nil {
			return err
		}
	}
	if a.hasTime {
		u.times[full] = a.mtime
	}
	return nil
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EPERM) {
		return nil // a file system without them, a link, or a user namespace
	}
	return err
}

// mtimeOf is a time that every file system can keep.
func mtimeOf(t time.Time) int64 {
	const limit = math.MaxInt64 / int64(time.Second)
	if s := t.Unix(); s >= limit {
		return (limit - 1) * int64(time.Second)
	} else if s <= -limit {
		return -(limit - 1) * int64(time.Second)
	}
	return t.UnixNano()
}

// ids are the owner an entry gets.
func (u *unpacker) ids(h *tar.Header) (uid, gid int, err error) {
	if u.owner != nil {
		return u.owner.UID, u.owner.GID, nil
	}
	const max = math.MaxUint32 - 1
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > max || int64(h.Gid) > max {
		return 0, 0, invalid(h.Name, "%d:%d is no owner", h.Uid, h.Gid)
	}
	return h.Uid, h.Gid, nil
}

// xattrs are the extended attributes of an entry that are kept.
func (u *unpacker) xattrs(h *tar.Header, f func(key string, value []byte) error) error {
	for k, v := range h.PAXRecords {
		if key, ok := strings.CutPrefix(k, paxXattr); ok && keepXattr(key) {
			if err := ignoreUnsupported(f(key, []byte(v))); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepXattr: what overlayfs and security modules keep in attributes is theirs,
// and an image has no say in it.
func keepXattr(key string) bool {
	return key == "security.capability" || strings.HasPrefix(key, "user.") && !strings.HasPrefix(key, "user.overlay.")
}

func (u *unpacker) rootAttributes(h *tar.Header) error {
	uid, gid, err := u.ids(h)
	if err != nil {
		return err
	}
	if err := u.root.Chown(uid, gid); err != nil {
		return err
	}
	if err := u.root.ChmodHandle(uint32(h.Mode) & 0o7777); err != nil {
		return err
	}
	u.times["."] = mtimeOf(h.ModTime)
	return u.xattrs(h, func(k string, v []byte) error { return u.root.SetXattrOf(".", k, v) })
}

// clear makes room for an entry. It may close the place parent.
func (u *unpacker) clear(parent linux.FD, full, last string, st *linux.Stat, toDir bool) error {
	isDir := st.Mode&linux.TypeMask == linux.TypeDir
	if u.keep && isDir != toDir {
		format := "cannot overwrite directory %s with a file"
		if toDir {
			format = "cannot overwrite non-directory %s with a directory" // the words Compose looks for
		}
		return errdefs.Newf(errdefs.Invalid, "unpack", "", format, quote("/"+full))
	}
	if !isDir {
		err := parent.Unlink(last)
		if st.Mode&linux.TypeMask == linux.TypeLink {
			u.forget() // paths may go through it
		}
		return ignoreMissing(err)
	}
	err := parent.RemoveAll(last)
	u.forget()
	for p := range u.times {
		if p == full || strings.HasPrefix(p, full+"/") {
			delete(u.times, p)
		}
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// make calls create, and makes room where something is in the way. parent may
// be invalid afterwards.
func (u *unpacker) make(parent *linux.FD, full, last string, create func() error) error {
	for range 16 { // others may put something there again
		err := create()
		if !errors.Is(err, syscall.EEXIST) {
			return err
		}
		var st linux.Stat
		if err := parent.Lstat(last, &st); err != nil {
			if errors.Is(err, syscall.ENOENT) {
				continue
			}
			return err
		}
		if err := u.clear(*parent, full, last, &st, false); err != nil {
			return err
		}
		// clear may have closed our place.
		dir := path.Dir(full)
		if dir == "." {
			dir = ""
		}
		if *parent, err = u.place(dir); err != nil {
			return err
		}
	}
	return syscall.EEXIST
}

func (u *unpacker) regular(ctx context.Context, parent linux.FD, full, last string, h *tar.Header, r io.Reader) error {
	if h.Size < 0 || h.Size > u.limits.Bytes-u.bytes {
		return errdefs.Newf(errdefs.Invalid, "unpack", "entry "+quote(h.Name), "the archive has more than %d bytes", u.limits.Bytes)
	}
	u.bytes += h.Size
	uid, gid, err := u.ids(h)
	if err != nil {
		return err
	}
	mode := uint32(h.Mode) & 0o7777
	var fd linux.FD
	err = u.make(&parent, full, last, func() (err error) {
		fd, err = parent.CreateNew(last, mode&0o777&^0o022|0o200)
		return err
	})
	if err != nil {
		return err
	}
	defer fd.Close()
	if err := u.copy(ctx, fd, h.Size, r); err != nil {
		return err
	}
	if err := fd.Chown(uid, gid); err != nil {
		return err
	}
	// Owner first: chown takes set-id bits and capabilities away.
	if u.live || mode != (mode&0o777&^0o022|0o200)&^u.umask {
		if err := fd.Chmod(mode); err != nil {
			return err
		}
	}
	if len(h.PAXRecords) > 0 {
		if err := u.xattrs(h, fd.SetXattr); err != nil {
			return err
		}
	}
	return fd.Settime(mtimeOf(h.ModTime))
}

// hole is the least run of zeros that is left out.
const hole = 64 << 10

var zeros [hole]byte

// copy writes size bytes. Long runs of zeros become holes: a bomb of zeros
// takes no disk.
func (u *unpacker) copy(ctx context.Context, fd linux.FD, size int64, r io.Reader) error {
	left := size
	skipped := false
	for left > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := u.buf[:min(left, int64(len(u.buf)))]
		if _, err := io.ReadFull(r, b); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return tarError(err)
		}
		left -= int64(len(b))
		if skipped = len(b) >= hole && allZero(b); skipped {
			if err := fd.Skip(int64(len(b))); err != nil {
				return err
			}
			continue
		}
		if _, err := fd.Write(b); err != nil {
			return err
		}
	}
	if skipped {
		return fd.Truncate(size)
	}
	return nil
}

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), hole)
		if string(b[:n]) != string(zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

func (u *unpacker) directory(parent linux.FD, full, last string, h *tar.Header) error {
	uid, gid, err := u.ids(h)
	if err != nil {
		return err
	}
	hidden := false
	for range 16 {
		err = parent.Mkdir(last, 0o700)
		if !errors.Is(err, syscall.EEXIST) {
			break
		}
		var st linux.Stat
		if err = parent.Lstat(last, &st); err != nil {
			if errors.Is(err, syscall.ENOENT) {
				continue
			}
			return err
		}
		if st.Mode&linux.TypeMask == linux.TypeDir {
			err = nil
			break
		}
		hidden = u.overlay && isWhiteout(&st)
		if err = u.clear(parent, full, last, &st, true); err != nil {
			return err
		}
		if parent, err = u.place(strings.TrimSuffix(path.Dir("/" + full)[1:], "/")); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	fd, err := parent.Dir(last)
	if err != nil {
		return err
	}
	if hidden {
		if err := u.setOpaque(parent, full, last); err != nil {
			fd.Close()
			return err
		}
	}
	a := dirAttributes{mode: uint32(h.Mode) & 0o7777, uid: uid, gid: gid, mtime: mtimeOf(h.ModTime), hasTime: true}
	err = u.setDir(parent, fd, full, last, a)
	if err == nil && len(h.PAXRecords) > 0 {
		err = u.xattrs(h, func(k string, v []byte) error { return parent.SetXattrOf(last, k, v) })
	}
	if err != nil {
		fd.Close()
		return err
	}
	u.remember(full, fd)
	return nil
}

// node makes a link, device or FIFO and gives it its attributes.
func (u *unpacker) node(parent linux.FD, full, last string, h *tar.Header, create func(linux.FD) error) error {
	uid, gid, err := u.ids(h)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink && (h.Linkname == "" || len(h.Linkname) >= maxPath) {
		return invalid(h.Name, "a link to %s", quote(h.Linkname))
	}
	if err := u.make(&parent, full, last, func() error { return create(parent) }); err != nil {
		return err
	}
	// By handle: the name may be another's by now.
	fd, err := parent.Open(last, linux.Handle, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	if err := fd.Chown(uid, gid); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := fd.ChmodHandle(uint32(h.Mode) & 0o7777); err != nil {
			return err
		}
	}
	if err := u.xattrs(h, func(k string, v []byte) error { return parent.SetXattrOf(last, k, v) }); err != nil {
		return err
	}
	return parent.Chtime(last, mtimeOf(h.ModTime))
}

func (u *unpacker) hardLink(parent linux.FD, full, last string, h *tar.Header) error {
	target, err := u.limits.cleanName(h.Linkname)
	if err != nil {
		return invalid(h.Name, "a link to %s: %w", quote(h.Linkname), errors.Unwrap(err))
	}
	if target == "." {
		return invalid(h.Name, "a hard link to a directory")
	}
	target = path.Join(u.base, target)
	dir, old := path.Split(target)
	dir = strings.TrimSuffix(dir, "/")
	from, err := u.root.DirInRoot(dir)
	if err == nil {
		defer from.Close()
		var st linux.Stat
		err = from.Lstat(old, &st)
		if err == nil {
			if st.Mode&linux.TypeMask == linux.TypeDir {
				return invalid(h.Name, "a hard link to a directory")
			}
			if same, err := sameEntry(from, old, parent, last); err != nil || same {
				return err
			}
			if !(u.overlay && isWhiteout(&st)) {
				return u.make(&parent, full, last, func() error { return parent.Link(from, old, last) })
			}
		}
	}
	if !u.overlay || !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR) {
		return invalid(h.Name, "a hard link to %s, which is not there", quote(h.Linkname))
	}
	return u.linkToLower(full, last, dir, old, h)
}

// sameEntry reports whether two names are one.
func sameEntry(d1 linux.FD, n1 string, d2 linux.FD, n2 string) (bool, error) {
	if n1 != n2 {
		return false, nil
	}
	var a, b linux.Stat
	if err := d1.Stat(&a); err != nil {
		return false, err
	}
	err := d2.Stat(&b)
	return a.Ino == b.Ino && a.Dev == b.Dev, err
}

// finishTimes sets the times of directories, which making their entries has
// changed.
func (u *unpacker) finishTimes() error {
	for p, ns := range u.times {
		if p == "." {
			if err := u.root.Chtime(".", ns); err != nil {
				return wordEntry(p, err)
			}
			continue
		}
		dir, last := path.Split(p)
		parent, err := u.root.DirInRoot(strings.TrimSuffix(dir, "/"))
		if err == nil {
			err = parent.Chtime(last, ns)
			parent.Close()
		}
		if err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR) {
			return wordEntry(p, err)
		}
	}
	return nil
}
