package linux

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// NoSuidDevExec are the attributes of a mount for data.
const NoSuidDevExec = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// Filesystem makes a detached mount of a new file system: fsopen, fsconfig for
// every option ("key=value", or a flag alone), fsmount (Linux 5.2). attrs are
// MOUNT_ATTR_*. The mount lives as long as the descriptor, unless it is
// attached somewhere.
func Filesystem(kind string, options []string, attrs int) (*os.File, error) {
	fd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", kind, err)
	}
	defer unix.Close(fd)
	for _, o := range options {
		k, v, ok := strings.Cut(o, "=")
		if ok {
			err = unix.FsconfigSetString(fd, k, v)
		} else {
			err = unix.FsconfigSetFlag(fd, k)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: option %.80q: %w%s", kind, o, err, fsLog(fd))
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fmt.Errorf("mount %s: %w%s", kind, err, fsLog(fd))
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("fsmount %s: %w", kind, err)
	}
	return os.NewFile(uintptr(m), kind), nil
}

// fsLog is what the kernel wrote about a failed mount, for the error.
func fsLog(fd int) string {
	buf := make([]byte, 1024)
	var out []string
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			break
		}
		out = append(out, strings.TrimSpace(string(buf[:n])))
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, "; ") + ")"
}

// CloneTree makes a detached bind of what is at path below dir (nil: the
// working directory), with what is mounted below it where recursive is set.
func CloneTree(dir *os.File, path string, recursive bool) (*os.File, error) {
	at := unix.AT_FDCWD
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if dir != nil {
		at = int(RawFD(dir))
	}
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(at, path, flags)
	runtime.KeepAlive(dir)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// SubMount makes a detached mount of a part of another one. Links are followed
// inside the mount only. The calling thread must be locked, and end afterwards:
// before Linux 6.15 it gets a mount namespace of its own.
func SubMount(mnt *os.File, path string) (*os.File, error) {
	part, err := OpenPathBeneath(mnt, path)
	if err != nil {
		return nil, err
	}
	defer part.Close()
	sub, err := CloneTree(part, "", false)
	if err == nil || !errors.Is(err, unix.EINVAL) {
		return sub, err
	}
	// Only what is attached could be cloned: attach it where nobody sees it.
	if err := PrivateMounts(); err != nil {
		return nil, err
	}
	if err := AttachMount(mnt, "/"); err != nil {
		return nil, err
	}
	return CloneTree(part, "", false)
}

// RootMount makes a detached mount of the root of a process's mount namespace,
// without what is mounted below it, wherever the process itself has its root.
// The calling thread must be locked, and end afterwards.
func RootMount(pid int) (*os.File, error) {
	if err := JoinNamespaces(pid, "mnt"); err != nil {
		return nil, err
	}
	return CloneTree(nil, "/", false)
}

// AttachMount puts a detached mount on the target path.
func AttachMount(mnt *os.File, target string) error {
	err := unix.MoveMount(int(RawFD(mnt)), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	runtime.KeepAlive(mnt)
	return os.NewSyscallError("move_mount", err)
}

// BindFile mounts what a descriptor is open on, such as a namespace, on a path.
func BindFile(f *os.File, target string) error {
	err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", RawFD(f)), target, "", unix.MS_BIND, "")
	runtime.KeepAlive(f)
	return os.NewSyscallError("mount", err)
}

// DetachMount takes a mount away as soon as nobody uses it. Nothing mounted is
// no error.
func DetachMount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return os.NewSyscallError("umount", err)
}

// SetMountReadOnly makes a mount read-only, all below it too where recursive.
func SetMountReadOnly(mnt *os.File, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	err := unix.MountSetattr(int(RawFD(mnt)), "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	runtime.KeepAlive(mnt)
	return os.NewSyscallError("mount_setattr", err)
}

// SetMountAttributes changes a mount: attributes (MOUNT_ATTR_*) to set and to
// clear, propagation (MS_PRIVATE and so on, 0 = as it is), and, where userns is
// not nil, whose maps its files are seen through.
func SetMountAttributes(mnt *os.File, recursive bool, set, clear, propagation uint64, userns *os.File) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	a := unix.MountAttr{Attr_set: set, Attr_clr: clear, Propagation: propagation}
	if userns != nil {
		a.Attr_set |= unix.MOUNT_ATTR_IDMAP
		a.Userns_fd = uint64(RawFD(userns))
	}
	err := unix.MountSetattr(int(RawFD(mnt)), "", flags, &a)
	runtime.KeepAlive(mnt)
	runtime.KeepAlive(userns)
	return os.NewSyscallError("mount_setattr", err)
}

// MountAt mounts a file system on a path: for what a driver of volumes is asked
// to mount (nfs, cifs), and for tests.
func MountAt(source, target, kind string, flags uintptr, data string) error {
	return os.NewSyscallError("mount", unix.Mount(source, target, kind, flags, data))
}

// PrivateMounts gives the calling thread, which must be locked, a mount
// namespace of its own in which nothing propagates.
func PrivateMounts() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// SyncFS writes out everything of the file system that f is on.
func SyncFS(f *os.File) error { return os.NewSyscallError("syncfs", unix.Syncfs(int(RawFD(f)))) }

// FilesystemOf is the magic number of the file system that path is on.
func FilesystemOf(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Type), nil
}

// FreeSpace is the number of bytes and inodes that an unprivileged writer has
// left on the file system of path; inodes is -1 where there is no limit.
func FreeSpace(path string) (bytes, inodes int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	inodes = int64(st.Ffree)
	if st.Files == 0 {
		inodes = -1
	}
	return int64(st.Bavail) * st.Bsize, inodes, nil
}
