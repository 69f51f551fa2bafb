package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// inRoot is how a path that an image or a container can influence is resolved:
// as if root were the root directory, never through a magic link of /proc.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// OpenInRoot opens path as a process whose root directory is root would see it
// (openat2, Linux 5.6). flags are those of open(2); O_CLOEXEC is added.
func OpenInRoot(root *os.File, name string, flags int, perm os.FileMode) (*os.File, error) {
	return openAt2(root, name, flags, perm, inRoot)
}

// OpenPathBeneath is OpenPathInRoot for a path that must not lead out: a link
// to above the root is not bent back into it, but an error (ErrLeadsOut).
func OpenPathBeneath(root *os.File, name string) (*os.File, error) {
	f, err := openAt2(root, name, unix.O_PATH, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	if errors.Is(err, unix.EXDEV) {
		err = ErrLeadsOut
	}
	return f, err
}

// ErrLeadsOut is said of a path that leaves the directory it belongs to.
var ErrLeadsOut = errors.New("path concatenation escapes the base directory")

func openAt2(root *os.File, name string, flags int, perm os.FileMode, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
		how.Mode = uint64(perm.Perm())
	}
	if name == "" {
		name = "."
	}
	for range 64 { // a rename elsewhere in the tree makes the kernel unsure
		fd, err := unix.Openat2(int(RawFD(root)), name, &how)
		runtime.KeepAlive(root)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), name), nil
		case unix.EAGAIN, unix.EINTR:
			continue
		}
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return nil, &os.PathError{Op: "open", Path: name, Err: unix.EAGAIN}
}

// OpenPathInRoot opens path as a handle (O_PATH); a symbolic link at the end is
// followed inside the root.
func OpenPathInRoot(root *os.File, name string) (*os.File, error) {
	return OpenInRoot(root, name, unix.O_PATH, 0)
}

// OpenDirInRoot opens a directory for reading.
func OpenDirInRoot(root *os.File, name string) (*os.File, error) {
	return OpenInRoot(root, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// OpenRegularInRoot opens a regular file for reading; anything else (a FIFO
// would block, a device would act) is an error.
func OpenRegularInRoot(root *os.File, name string) (*os.File, error) {
	f, err := OpenInRoot(root, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// StatInRoot describes path inside the root, and gives the target of a link
// that was not followed.
func StatInRoot(root *os.File, name string, follow bool) (fs.FileInfo, string, error) {
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	f, err := OpenInRoot(root, name, flags, 0)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, "", err
	}
	target := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		if target, err = ReadlinkFD(f); err != nil {
			return nil, "", err
		}
	}
	return renamed{fi, path.Base(path.Clean("/" + name))}, target, nil
}

type renamed struct {
	fs.FileInfo
	name string
}

func (r renamed) Name() string { return r.name }

// ReadlinkFD reads the link that f, opened with O_PATH|O_NOFOLLOW, is.
func ReadlinkFD(f *os.File) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(int(RawFD(f)), "", buf)
	runtime.KeepAlive(f)
	if err != nil {
		return "", os.NewSyscallError("readlinkat", err)
	}
	return string(buf[:n]), nil
}

// PathBelow is the path of f as seen from root, for messages and records only:
// it may have changed when it is used.
func PathBelow(root, f *os.File) (string, error) {
	r, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", RawFD(root)))
	if err != nil {
		return "", err
	}
	p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", RawFD(f)))
	if err != nil {
		return "", err
	}
	if r == "/" {
		return p, nil
	}
	rest, ok := strings.CutPrefix(p, r)
	if !ok || rest != "" && rest[0] != '/' {
		return "", fmt.Errorf("%s is not below %s", p, r)
	}
	return "/" + strings.TrimPrefix(rest, "/"), nil
}

// MkdirAllInRoot makes the directories of path that are missing, and opens the
// last one. Those it makes get perm and the owner.
func MkdirAllInRoot(root *os.File, name string, perm os.FileMode, uid, gid int) (*os.File, error) {
	if d, err := OpenDirInRoot(root, name); err == nil {
		return d, nil
	}
	done := "."
	for _, part := range strings.Split(path.Clean("/" + name)[1:], "/") {
		if part == "" {
			continue
		}
		next := path.Join(done, part)
		d, err := OpenDirInRoot(root, next)
		if err == nil {
			d.Close()
			done = next
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		parent, err := OpenDirInRoot(root, done)
		if err != nil {
			return nil, err
		}
		err = MkdirAt(parent, part, perm)
		if err == nil {
			err = ChownAt(parent, part, uid, gid)
		} else if errors.Is(err, fs.ErrExist) {
			err = nil // made meanwhile, or a dangling link, which the next turn tells
		}
		parent.Close()
		if err != nil {
			return nil, err
		}
		d, err = OpenDirInRoot(root, next)
		if err != nil {
			return nil, err
		}
		d.Close()
		done = next
	}
	return OpenDirInRoot(root, done)
}

// MkdirAt makes a directory; perm is not cut by the umask.
func MkdirAt(dir *os.File, name string, perm os.FileMode) error {
	fd := int(RawFD(dir))
	defer runtime.KeepAlive(dir)
	if err := unix.Mkdirat(fd, name, unixMode(perm)); err != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	if err := unix.Fchmodat(fd, name, unixMode(perm), 0); err != nil {
		return &os.PathError{Op: "chmod", Path: name, Err: err}
	}
	return nil
}

// unixMode is the permission bits with set-id and sticky bits.
func unixMode(m os.FileMode) uint32 {
	out := uint32(m.Perm())
	if m&os.ModeSetuid != 0 {
		out |= unix.S_ISUID
	}
	if m&os.ModeSetgid != 0 {
		out |= unix.S_ISGID
	}
	if m&os.ModeSticky != 0 {
		out |= unix.S_ISVTX
	}
	return out
}

// ChownAt changes the owner of name in dir; a link itself, not its target.
func ChownAt(dir *os.File, name string, uid, gid int) error {
	err := unix.Fchownat(int(RawFD(dir)), name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	runtime.KeepAlive(dir)
	if err != nil {
		return &os.PathError{Op: "chown", Path: name, Err: err}
	}
	return nil
}

// ChmodAt sets permission, set-id and sticky bits of name, which must not be a
// link, in dir.
func ChmodAt(dir *os.File, name string, perm os.FileMode) error {
	err := unix.Fchmodat(int(RawFD(dir)), name, unixMode(perm), 0)
	runtime.KeepAlive(dir)
	if err != nil {
		return &os.PathError{Op: "chmod", Path: name, Err: err}
	}
	return nil
}

// OpenAt opens one name in dir; a link at the end is never followed.
func OpenAt(dir *os.File, name string, flags int, perm os.FileMode) (*os.File, error) {
	fd, err := unix.Openat(int(RawFD(dir)), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, unixMode(perm))
	runtime.KeepAlive(dir)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// SymlinkAt makes a symbolic link.
func SymlinkAt(target string, dir *os.File, name string) error {
	err := unix.Symlinkat(target, int(RawFD(dir)), name)
	runtime.KeepAlive(dir)
	if err != nil {
		return &os.PathError{Op: "symlink", Path: name, Err: err}
	}
	return nil
}

// LinkAt makes a hard link; a symbolic link is linked itself.
func LinkAt(olddir *os.File, old string, dir *os.File, name string) error {
	err := unix.Linkat(int(RawFD(olddir)), old, int(RawFD(dir)), name, 0)
	runtime.KeepAlive(olddir)
	runtime.KeepAlive(dir)
	if err != nil {
		return &os.PathError{Op: "link", Path: name, Err: err}
	}
	return nil
}

// MknodAt makes a device, FIFO or socket; kind is S_IFCHR, S_IFBLK or S_IFIFO.
func MknodAt(dir *os.File, name string, kind uint32, perm os.FileMode, major, minor uint32) error {
	err := unix.Mknodat(int(RawFD(dir)), name, kind|unixMode(perm), int(unix.Mkdev(major, minor)))
	runtime.KeepAlive(dir)
	if err != nil {
		return &os.PathError{Op: "mknod", Path: name, Err: err}
	}
	return nil
}

// UnlinkAt removes a file, or an empty directory where dirs is set.
func UnlinkAt(dir *os.File, name string, isDir bool) error {
	flags := 0
	if isDir {
		flags = unix.AT_REMOVEDIR
	}
	err := unix.Unlinkat(int(RawFD(dir)), name, flags)
	runtime.KeepAlive(dir)
	if err != nil {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	return nil
}

// TimesAt sets access and modification time of name itself, link or not.
func TimesAt(dir *os.File, name string, atime, mtime time.Time) error {
	ts := []unix.Timespec{unix.NsecToTimespec(atime.UnixNano()), unix.NsecToTimespec(mtime.UnixNano())}
	err := unix.UtimesNanoAt(int(RawFD(dir)), name, ts, unix.AT_SYMLINK_NOFOLLOW)
	runtime.KeepAlive(dir)
	if err != nil {
		return &os.PathError{Op: "utimes", Path: name, Err: err}
	}
	return nil
}

// StatAt describes name itself, link or not.
func StatAt(dir *os.File, name string) (*Stat, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(RawFD(dir)), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	runtime.KeepAlive(dir)
	if err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return statOf(&st), nil
}

// A Stat is what the kernel keeps of a file.
type Stat struct {
	Dev, Ino, Nlink uint64
	Mode            uint32 // type and permission, as in stat(2)
	UID, GID        uint32
	Major, Minor    uint32 // of the device that the file is
	Size, Blocks    int64  // Blocks of 512 bytes
	Mtime, Ctime    time.Time
}

func statOf(st *unix.Stat_t) *Stat {
	return &Stat{Dev: uint64(st.Dev), Ino: st.Ino, Nlink: uint64(st.Nlink), Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Major: unix.Major(uint64(st.Rdev)), Minor: unix.Minor(uint64(st.Rdev)), Size: st.Size, Blocks: st.Blocks,
		Mtime: time.Unix(st.Mtim.Unix()), Ctime: time.Unix(st.Ctim.Unix())}
}

// Types of a Stat's Mode.
const (
	TypeMask  = unix.S_IFMT
	TypeDir   = unix.S_IFDIR
	TypeReg   = unix.S_IFREG
	TypeLink  = unix.S_IFLNK
	TypeChar  = unix.S_IFCHR
	TypeBlock = unix.S_IFBLK
	TypeFIFO  = unix.S_IFIFO
	TypeSock  = unix.S_IFSOCK
)

// FileMode translates the bits of stat(2).
func FileMode(mode uint32) os.FileMode {
	m := os.FileMode(mode & 0o777)
	for bit, to := range map[uint32]os.FileMode{unix.S_ISUID: os.ModeSetuid, unix.S_ISGID: os.ModeSetgid, unix.S_ISVTX: os.ModeSticky} {
		if mode&bit != 0 {
			m |= to
		}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= os.ModeDir
	case unix.S_IFLNK:
		m |= os.ModeSymlink
	case unix.S_IFCHR:
		m |= os.ModeDevice | os.ModeCharDevice
	case unix.S_IFBLK:
		m |= os.ModeDevice
	case unix.S_IFIFO:
		m |= os.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= os.ModeSocket
	}
	return m
}

// ReadlinkAt reads a symbolic link.
func ReadlinkAt(dir *os.File, name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(int(RawFD(dir)), name, buf)
	runtime.KeepAlive(dir)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}
