package linux

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ListenAt makes a socket for packets in a directory. It is blocking, for a
// process that waits in accept(2). The path of a directory may be longer than
// what a socket's address holds, so it is named by the descriptor.
func ListenAt(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, addrAt(dir, name)); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "bind", Path: name, Err: err}
	}
	runtime.KeepAlive(dir)
	if err := unix.Listen(fd, 1); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "listen", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// DialAt connects to such a socket.
func DialAt(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, addrAt(dir, name)); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "connect", Path: name, Err: err}
	}
	runtime.KeepAlive(dir)
	return os.NewFile(uintptr(fd), name), nil
}

func addrAt(dir *os.File, name string) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", RawFD(dir), name)}
}

// SendFile connects to a stream socket and sends it a message with a
// descriptor, as the callers of OCI runtimes expect terminals and listeners.
func SendFile(socket string, message []byte, f *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return &os.PathError{Op: "connect", Path: socket, Err: err}
	}
	err = unix.Sendmsg(fd, message, unix.UnixRights(int(RawFD(f))), nil, 0)
	runtime.KeepAlive(f)
	return os.NewSyscallError("sendmsg", err)
}
