package linux

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers and structures of linux/fs.h and linux/quota.h.
const (
	projectQuota       = 2
	quotaGet, quotaSet = 0x800007, 0x800008
	limitBlocks        = 1   // QIF_BLIMITS
	projectInherited   = 512 // FS_XFLAG_PROJINHERIT
	quotaBlock         = 1024
	fsGetXattr         = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr         = 0x401c5820 // FS_IOC_FSSETXATTR
)

type fsxattr struct {
	flags, extent, extents, project, cowExtent uint32
	_                                          [8]byte
}

type diskQuota struct {
	hardBlocks, softBlocks, space, hardFiles, softFiles, files, blockTime, fileTime uint64
	valid                                                                           uint32
	_                                                                               uint32
}

// LimitDirectory keeps what is below a directory under so many bytes, as a project
// of its own. It is empty as yet. Without quotas for projects on its file system
// the error wraps ErrUnsupported.
func LimitDirectory(dir *os.File, project uint32, bytes int64) error {
	q := diskQuota{hardBlocks: uint64(bytes+quotaBlock-1) / quotaBlock, valid: limitBlocks}
	q.softBlocks = q.hardBlocks
	if err := quotactl(dir, quotaSet, project, &q); err != nil {
		return err
	}
	var x fsxattr
	if err := ioctl(dir, fsGetXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("read the project of %s: %w", dir.Name(), err)
	}
	x.project, x.flags = project, x.flags|projectInherited
	if err := ioctl(dir, fsSetXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("set the project of %s: %w", dir.Name(), err)
	}
	return nil
}

// ForgetProject takes the limit of a project back.
func ForgetProject(dir *os.File, project uint32) error {
	return quotactl(dir, quotaSet, project, &diskQuota{valid: limitBlocks})
}

// ProjectUsed reports whether a project has files or limits on a file system.
func ProjectUsed(dir *os.File, project uint32) (bool, error) {
	var q diskQuota
	err := quotactl(dir, quotaGet, project, &q)
	if errors.Is(err, unix.ENOENT) { // nothing is known of it
		return false, nil
	}
	return q.hardBlocks != 0 || q.space != 0 || q.files != 0, err
}

func quotactl(dir *os.File, command uintptr, project uint32, q *diskQuota) error {
	_, _, e := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(RawFD(dir)), command<<8|projectQuota, uintptr(project), uintptr(unsafe.Pointer(q)), 0, 0)
	switch e {
	case 0:
		return nil
	case unix.ENOSYS, unix.ESRCH, unix.EOPNOTSUPP, unix.EINVAL: // old kernel; quotas are off
		return fmt.Errorf("the file system of %s has no quotas for projects (%w): %w", dir.Name(), e, errors.ErrUnsupported)
	}
	return fmt.Errorf("quota of the project %d on %s: %w", project, dir.Name(), e)
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(RawFD(f)), request, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}
