package linux

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// StreamPair is a pair of connected stream sockets.
func StreamPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "stream"), os.NewFile(uintptr(fds[1]), "stream"), nil
}

// HungUp reports whether the other end of a connection is closed in both
// directions; an end that only finished sending is not hung up.
func HungUp(f *os.File) bool {
	p := []unix.PollFd{{Fd: int32(RawFD(f)), Events: 0}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}

// PeerCred tells who is at the other end of a unix stream connection.
func PeerCred(c *net.UnixConn) (pid int, uid, gid uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, 0, 0, err
	}
	if cerr != nil {
		return 0, 0, 0, os.NewSyscallError("getsockopt", cerr)
	}
	return int(cred.Pid), cred.Uid, cred.Gid, nil
}
