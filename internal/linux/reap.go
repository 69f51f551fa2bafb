package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An ExitStatus is how a process ended.
type ExitStatus struct {
	Code   int // as a shell has it: 128 + Signal for a signal
	Signal int
	Core   bool
}

// exitStatus decodes what wait(2) gives.
func exitStatus(ws unix.WaitStatus) ExitStatus {
	if ws.Signaled() {
		return ExitStatus{128 + int(ws.Signal()), int(ws.Signal()), ws.CoreDump()}
	}
	return ExitStatus{Code: ws.ExitStatus()}
}

// ErrNotChild reports that a process is not, or no longer, this one's to wait for.
var ErrNotChild = errors.New("not a child of this process")

// Reap takes the exit status of a child, by its pidfd, and lets go of it. Without
// wait it reports done false for one that still runs.
func Reap(pidfd int, wait bool) (st ExitStatus, done bool, err error) {
	if !wait {
		return waitid(pidfd, unix.WEXITED|unix.WNOHANG)
	}
	return waitid(pidfd, unix.WEXITED)
}

// PeekExit is Reap without waiting and without letting go.
func PeekExit(pidfd int) (st ExitStatus, done bool, err error) {
	return waitid(pidfd, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
}

func waitid(pidfd, options int) (st ExitStatus, done bool, err error) {
	// siginfo_t is 128 bytes; for SIGCHLD the code is at 8 and the status at 24.
	var info [128]byte
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_PIDFD, uintptr(pidfd),
			uintptr(unsafe.Pointer(&info)), uintptr(options), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno == unix.ECHILD {
			return st, false, ErrNotChild
		}
		if errno != 0 {
			return st, false, os.NewSyscallError("waitid", errno)
		}
		break
	}
	if binary.NativeEndian.Uint32(info[16:]) == 0 { // no pid: nothing to wait for yet
		return st, false, nil
	}
	status := int(int32(binary.NativeEndian.Uint32(info[24:])))
	const exited, dumped = 1, 3 // CLD_EXITED, CLD_DUMPED
	switch code := binary.NativeEndian.Uint32(info[8:]); code {
	case exited:
		return ExitStatus{Code: status}, true, nil
	default:
		return ExitStatus{128 + status, status, code == dumped}, true, nil
	}
}

// ReapAny waits for any child, and takes its status.
func ReapAny() (pid int, st ExitStatus, err error) {
	var ws unix.WaitStatus
	for {
		pid, err = unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD:
			return 0, st, ErrNotChild
		case err != nil:
			return 0, st, os.NewSyscallError("wait4", err)
		}
		return pid, exitStatus(ws), nil
	}
}

// ExitOf asks the kernel how a process ended that need not be a child (Linux
// 6.15). ok is false while its parent has not reaped it, and on older kernels.
func ExitOf(pidfd int) (st ExitStatus, ok bool) {
	const getInfo, infoExit = 0xc040ff0b, 1 << 3 // PIDFD_GET_INFO, PIDFD_INFO_EXIT
	var info [8]uint64                           // struct pidfd_info, first version
	info[0] = infoExit
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), getInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info[0]&infoExit == 0 {
		return st, false
	}
	b := (*[64]byte)(unsafe.Pointer(&info))
	return exitStatus(unix.WaitStatus(binary.NativeEndian.Uint32(b[60:]))), true
}

// OpenPidFD opens the process that has the number now.
func OpenPidFD(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	return fd, os.NewSyscallError("pidfd_open", err)
}

// SignalPidFD sends a signal; os.ErrProcessDone if there is nobody to get it.
func SignalPidFD(pidfd, sig int) error {
	err := unix.PidfdSendSignal(pidfd, unix.Signal(sig), nil, 0)
	if err == unix.ESRCH {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// BecomeSubreaper makes orphans among this process's descendants its children.
func BecomeSubreaper() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// SetProcessName is what ps shows for this process, up to 15 bytes.
func SetProcessName(name string) {
	// /proc/self is the main thread, whatever thread this runs on.
	os.WriteFile("/proc/self/comm", []byte(name), 0)
}

// ZombieExit reads how a process ended that its parent has not reaped yet, and
// that need not be a child. ok is false if it runs or is gone.
func ZombieExit(pid, pidfd int) (st ExitStatus, ok bool) {
	f, err := statFields(pid)
	// The pidfd answers as long as nobody else can have the number.
	if err != nil || f[0][0] != 'Z' || len(f) < 50 || SignalPidFD(pidfd, 0) != nil {
		return st, false
	}
	ws, err := strconv.ParseUint(string(f[49]), 10, 32)
	return exitStatus(unix.WaitStatus(ws)), err == nil
}

// StartTicks is when a process started, in the kernel's unit; with the number it
// names a process for the time of one boot. state is its letter in ps.
func StartTicks(pid int) (ticks uint64, state byte, err error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, 0, err
	}
	ticks, err = strconv.ParseUint(string(f[19]), 10, 64)
	return ticks, f[0][0], err
}

// statFields are the fields of /proc/PID/stat from the state on.
func statFields(pid int) ([][]byte, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil, err
	}
	// The name in parentheses may hold anything, so count from its end.
	_, rest, ok := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(") "))
	f := bytes.Fields(rest)
	if !ok || len(f) < 20 {
		return nil, fmt.Errorf("read the state of process %d: %q", pid, b)
	}
	return f, nil
}

// MapWords maps the first n words of f, which must have them, for sharing with
// whoever maps the file later: a store is there even if this process is killed
// right after it.
func MapWords(f *os.File, n int) ([]uint64, error) {
	m, err := unix.Mmap(int(RawFD(f)), 0, 8*n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(&m[0])), n), nil
}

// LockFile takes an exclusive lock that ends with the last descriptor of f. It
// reports false if another has it and wait is not set.
func LockFile(f *os.File, wait bool) (bool, error) {
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err := unix.Flock(int(RawFD(f)), how)
		switch err {
		case nil:
			return true, nil
		case unix.EINTR:
			continue
		case unix.EWOULDBLOCK:
			return false, nil
		}
		return false, os.NewSyscallError("flock", err)
	}
}

// MemoryFile makes an anonymous file with the content.
func MemoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(content, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ExecInPlace replaces the program of this process, which keeps its children.
// Of the descriptors only those in keep stay open, under their numbers.
func ExecInPlace(path string, args, env []string, keep []int) error {
	for _, fd := range keep {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	return &os.PathError{Op: "exec", Path: path, Err: unix.Exec(path, args, env)}
}

// Setsid begins a session of its own.
func Setsid() { unix.Setsid() }

// SetCloexec closes a descriptor that was inherited at the next exec.
func SetCloexec(fd int) { unix.CloseOnExec(fd) }
