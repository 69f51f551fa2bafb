package seccomp

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// verify gives the program to a socket, whose filters the kernel checks by the
// same rules as far as both know an instruction; nothing is filtered by it.
func verify(f *Filter) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	prog := unix.SockFprog{Len: uint16(f.Len()), Filter: (*unix.SockFilter)(unsafe.Pointer(&f.Prog[0]))}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
	runtime.KeepAlive(f)
	return err
}
