package linux

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An FD is a descriptor of a file or directory that its holder closes, for
// code that handles many files and cannot afford an os.File for each. Its
// methods return a bare errno; the caller knows which path it was.
//
// Methods with a name act on that entry of the directory, and never follow a
// link there.
type FD int

// NoFD is no descriptor.
const NoFD FD = -1

// Root takes a descriptor of its own for a directory that is open elsewhere.
func Root(f *os.File) (FD, error) {
	fd, err := unix.Openat(int(RawFD(f)), ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	runtime.KeepAlive(f)
	return FD(fd), err
}

// DirInRoot opens a directory, to use it as a place only, as a process whose
// root directory is r would see the path.
func (r FD) DirInRoot(path string) (FD, error) {
	return r.openInRoot(path, unix.O_PATH|unix.O_DIRECTORY)
}

// HandleInRoot opens whatever is at path, not following a link at its end.
func (r FD) HandleInRoot(path string) (FD, error) {
	return r.openInRoot(path, unix.O_PATH|unix.O_NOFOLLOW)
}

func (r FD) openInRoot(path string, flags int) (FD, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: inRoot}
	for range 64 {
		fd, err := unix.Openat2(int(r), path, &how)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		return FD(fd), err
	}
	return NoFD, unix.EAGAIN
}

// Open opens an entry with flags of open(2).
func (d FD) Open(name string, flags int, mode uint32) (FD, error) {
	for {
		fd, err := unix.Openat(int(d), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
		if err != unix.EINTR {
			return FD(fd), err
		}
	}
}

// Dir opens the directory name as a place.
func (d FD) Dir(name string) (FD, error) {
	return d.Open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// CreateNew makes a regular file for writing. It is an error if there is one.
func (d FD) CreateNew(name string, mode uint32) (FD, error) {
	return d.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, mode)
}

// File hands the descriptor over to an os.File.
func (d FD) File(name string) *os.File { return os.NewFile(uintptr(d), name) }

// Close closes the descriptor; NoFD is fine.
func (d FD) Close() {
	if d >= 0 {
		unix.Close(int(d))
	}
}

func (d FD) Mkdir(name string, mode uint32) error { return unix.Mkdirat(int(d), name, mode) }
func (d FD) Symlink(target, name string) error    { return unix.Symlinkat(target, int(d), name) }
func (d FD) Rmdir(name string) error              { return unix.Unlinkat(int(d), name, unix.AT_REMOVEDIR) }
func (d FD) Unlink(name string) error             { return unix.Unlinkat(int(d), name, 0) }

// Link makes name a hard link to an entry of another directory.
func (d FD) Link(from FD, old, name string) error {
	return unix.Linkat(int(from), old, int(d), name, 0)
}

// Rename moves an entry to another directory, replacing what is there.
func (d FD) Rename(name string, to FD, newName string) error {
	return unix.Renameat(int(d), name, int(to), newName)
}

// Mknod makes a device or FIFO; mode has the type.
func (d FD) Mknod(name string, mode, major, minor uint32) error {
	return unix.Mknodat(int(d), name, mode, int(unix.Mkdev(major, minor)))
}

// CreateBoth is CreateNew for writing and reading.
func (d FD) CreateBoth(name string, mode uint32) (FD, error) {
	return d.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, mode)
}

// Lchown sets the owner of an entry.
func (d FD) Lchown(name string, uid, gid int) error {
	return unix.Fchownat(int(d), name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

// Chtime sets the modification time of an entry, and its access time to the
// same.
func (d FD) Chtime(name string, ns int64) error {
	ts := timespecs(ns)
	return unix.UtimesNanoAt(int(d), name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

func timespecs(ns int64) [2]unix.Timespec {
	t := unix.NsecToTimespec(ns)
	return [2]unix.Timespec{t, t}
}

// Lstat describes an entry.
func (d FD) Lstat(name string, st *Stat) error {
	var u unix.Stat_t
	if err := unix.Fstatat(int(d), name, &u, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	*st = *statOf(&u)
	return nil
}

// Stat describes the open file itself.
func (d FD) Stat(st *Stat) error {
	var u unix.Stat_t
	if err := unix.Fstatat(int(d), "", &u, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	*st = *statOf(&u)
	return nil
}

// Readlink reads an entry that is a symbolic link.
func (d FD) Readlink(name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(int(d), name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// Write writes all of p to the open file.
func (d FD) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Write(int(d), p[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Read reads from the open file.
func (d FD) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(d), p)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// ReadAt reads from the open file without moving its place; 0 is the end.
func (d FD) ReadAt(p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(int(d), p, off)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// Clone makes the open file share all blocks of another, where the file system
// can do that.
func (d FD) Clone(from FD) error { return unix.IoctlFileClone(int(d), int(from)) }

// Skip moves the place of the next write ahead by n bytes, which leaves a hole.
func (d FD) Skip(n int64) error {
	_, err := unix.Seek(int(d), n, unix.SEEK_CUR)
	return err
}

func (d FD) Truncate(size int64) error { return unix.Ftruncate(int(d), size) }

// Reserve asks for the file's space in one piece, so that it is not written in
// bits all over the disk.
func (d FD) Reserve(size int64) error {
	return unix.Fallocate(int(d), unix.FALLOC_FL_KEEP_SIZE, 0, size)
}

// Sync makes the open file or directory survive a power cut.
func (d FD) Sync() error { return unix.Fsync(int(d)) }

// StartWriting has the kernel begin to write out a part of the file, without
// waiting for it.
func (d FD) StartWriting(off, n int64) error {
	return unix.SyncFileRange(int(d), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// Chown sets the owner of the open file, which may be a handle (O_PATH).
func (d FD) Chown(uid, gid int) error {
	return unix.Fchownat(int(d), "", uid, gid, unix.AT_EMPTY_PATH)
}

// Chmod sets permission, set-id and sticky bits of the open file, which is not
// a mere handle.
func (d FD) Chmod(mode uint32) error { return unix.Fchmod(int(d), mode) }

// ChmodHandle is Chmod for a handle, which must not be of a symbolic link.
func (d FD) ChmodHandle(mode uint32) error { return unix.Chmod(d.procPath(""), mode) }

// Settime is Chtime for the open file, which is not a mere handle.
func (d FD) Settime(ns int64) error {
	ts := timespecs(ns)
	return futimens(int(d), &ts)
}

func (d FD) procPath(name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(int(d))
	if name != "" {
		p += "/" + name
	}
	return p
}

// SetXattr sets an extended attribute of the open file, which is not a mere
// handle.
func (d FD) SetXattr(key string, value []byte) error { return unix.Fsetxattr(int(d), key, value, 0) }

// SetXattrOf sets an extended attribute of an entry.
func (d FD) SetXattrOf(name, key string, value []byte) error {
	return unix.Lsetxattr(d.procPath(name), key, value, 0)
}

// XattrOf reads an extended attribute of an entry; "" is the directory itself.
// A missing one, and a file system without any, is nil.
func (d FD) XattrOf(name, key string) ([]byte, error) {
	get := unix.Lgetxattr
	if name == "" {
		get = unix.Getxattr
	}
	p := d.procPath(name)
	buf := make([]byte, 256)
	for {
		n, err := get(p, key, buf)
		switch err {
		case nil:
			return buf[:n], nil
		case unix.ERANGE:
			if len(buf) < 64<<10 {
				buf = make([]byte, 64<<10)
				continue
			}
			return nil, err
		case unix.ENODATA, unix.ENOTSUP:
			return nil, nil
		}
		return nil, err
	}
}

// XattrNamesOf lists the extended attributes of an entry; "" is the directory
// itself.
func (d FD) XattrNamesOf(name string) ([]string, error) {
	list := unix.Llistxattr
	if name == "" {
		list = unix.Listxattr
	}
	p := d.procPath(name)
	var small [512]byte
	buf := small[:]
	n, err := list(p, buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10)
		n, err = list(p, buf)
	}
	if err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil || n == 0 {
		return nil, err
	}
	var out []string
	for start, i := 0, 0; i < n; i++ {
		if buf[i] == 0 {
			out = append(out, string(buf[start:i]))
			start = i + 1
		}
	}
	return out, nil
}

// An Entry of a directory.
type Entry struct {
	Name string
	Type uint32 // as in Stat.Mode, or 0 where the file system does not say
}

// Entries lists the directory that d is a place for, in no order, without "."
// and "..".
func (d FD) Entries() ([]Entry, error) {
	fd, err := d.Open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	var out []Entry
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Getdents(int(fd), buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return out, nil
		}
		out = appendEntries(out, buf[:n])
	}
}

// RemoveAll removes an entry and everything below it. It goes by descriptor and
// never follows a link, and works for trees of any depth. An entry that is not
// there is fine.
func (d FD) RemoveAll(name string) error {
	err := d.removeTree(name, d, 0)
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// deepest is how many levels RemoveAll holds open at once.
const deepest = 100

func (d FD) removeTree(name string, top FD, depth int) error {
	err := d.Unlink(name)
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	if d.Rmdir(name) == nil {
		return nil
	}
	sub, err := d.Dir(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		entries, err := sub.Entries()
		if err != nil {
			return err
		}
		for _, e := range entries {
			if depth >= deepest && e.Type == TypeDir {
				err = sub.removeDeep(e.Name, top)
			} else {
				err = sub.removeTree(e.Name, top, depth+1)
			}
			if err != nil && err != unix.ENOENT {
				return err
			}
		}
		// Someone may add entries meanwhile; then once more.
		if err := d.Rmdir(name); err != unix.ENOTEMPTY || len(entries) == 0 {
			return err
		}
	}
}

// removeDeep moves a directory to the top, where there is depth again.
func (d FD) removeDeep(name string, top FD) error {
	tmp := ".deep-" + strconv.FormatUint(uint64(time.Now().UnixNano()), 36)
	if err := d.Rename(name, top, tmp); err != nil {
		return err
	}
	return top.removeTree(tmp, top, 0)
}

// Umask is the process's mask of permission bits for new files.
func Umask() (uint32, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			return uint32(n), err
		}
	}
	return 0o777, nil // as if every bit were masked: the caller sets modes itself
}

// OpenRoot is Root for a path that is ours.
func OpenRoot(path string) (FD, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return NoFD, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return FD(fd), nil
}

// Flags for FD.Open.
const (
	Handle   = unix.O_PATH
	ReadOnly = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
)

// CutPower makes the ext4 or xfs that f is on behave from now on as if the power
// had gone: nothing more reaches the disk, the journal's tail included. For
// tests; what is seen after the next mount is what a power cut leaves.
func CutPower(f *os.File) error {
	const shutdown, noLogFlush = 0x8004587d, 2
	flags := uint32(noLogFlush)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, RawFD(f), shutdown, uintptr(unsafe.Pointer(&flags)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return os.NewSyscallError("shutdown", errno)
	}
	return nil
}
