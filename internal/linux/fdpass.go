package linux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// MaxPassedFiles is how many descriptors one Send may carry (SCM_MAX_FD).
const MaxPassedFiles = 253

// ErrTruncated reports a packet that was larger than the receiver's buffer, or
// carried more descriptors than it may. What arrived of it has been closed.
var ErrTruncated = errors.New("packet truncated")

// A PacketConn is a unix socket that keeps the borders of messages and carries
// descriptors with them. Send and Recv may be called from different goroutines;
// each of them by one at a time.
type PacketConn struct {
	f  *os.File
	rc syscall.RawConn
}

// NewPacketConn takes f, a SEQPACKET socket, over.
func NewPacketConn(f *os.File) (*PacketConn, error) {
	if err := setNonblock(f); err != nil {
		return nil, err
	}
	// A File made before its descriptor became non-blocking would not use the
	// poller, so it is made anew.
	fd, err := unix.FcntlInt(RawFD(f), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f.Close()
	return packetConn(fd)
}

func packetConn(fd int) (*PacketConn, error) {
	f := os.NewFile(uintptr(fd), "packet socket")
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &PacketConn{f, rc}, nil
}

// PacketPair makes two connected sockets.
func PacketPair() (a, b *PacketConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if a, err = packetConn(fds[0]); err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	if b, err = packetConn(fds[1]); err != nil {
		a.Close()
		return nil, nil, err
	}
	return a, b, nil
}

// DialPacket connects to the listener at path.
func DialPacket(path string) (*PacketConn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// Blocking: connecting waits only while the backlog is full.
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "connect", Path: path, Err: err}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return packetConn(fd)
}

// Send writes one packet with descriptors beside it, which stay the caller's.
// It waits while the peer's queue is full.
func (c *PacketConn) Send(p []byte, fds ...int) error {
	if len(fds) > MaxPassedFiles {
		return fmt.Errorf("%d descriptors in one packet, of at most %d", len(fds), MaxPassedFiles)
	}
	var serr error
	err := c.rc.Write(func(fd uintptr) bool {
		serr = sendNow(int(fd), p, fds)
		return serr != unix.EAGAIN
	})
	if err == nil {
		err = os.NewSyscallError("sendmsg", serr)
	}
	return err
}

// TrySend is Send without waiting; false tells that the peer's queue is full.
func (c *PacketConn) TrySend(p []byte, fds ...int) (sent bool, err error) {
	var serr error
	err = c.rc.Control(func(fd uintptr) { serr = sendNow(int(fd), p, fds) })
	if err == nil && serr == unix.EAGAIN {
		return false, nil
	}
	if err == nil {
		err = os.NewSyscallError("sendmsg", serr)
	}
	return err == nil, err
}

func sendNow(sock int, p []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(sock, p, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return err
		}
	}
}

// Recv reads one packet into p. The descriptors with it are the caller's to
// close; they are raw, since a File of a non-blocking one would make the Go
// runtime watch it. The end of the connection is io.EOF; a packet that does not
// fit is ErrTruncated, and the connection stays usable.
func (c *PacketConn) Recv(p []byte) (n int, fds []int, err error) {
	var oobBuf [unix.SizeofCmsghdr + 4*(MaxPassedFiles+1)]byte
	var oobn, flags int
	var serr error
	err = c.rc.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, serr = unix.Recvmsg(int(fd), p, oobBuf[:], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			if serr != unix.EINTR {
				return serr != unix.EAGAIN
			}
		}
	})
	if err == nil {
		err = os.NewSyscallError("recvmsg", serr)
	}
	if err != nil {
		return 0, nil, err
	}
	if oobn > 0 {
		if fds, err = rights(oobBuf[:oobn]); err != nil {
			return 0, nil, err
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		CloseFDs(fds)
		return 0, nil, ErrTruncated
	}
	if n == 0 && len(fds) == 0 {
		return 0, nil, io.EOF
	}
	return n, fds, nil
}

// rights are the descriptors in a control message.
func rights(oob []byte) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var all []int
	for i := range msgs {
		// Anything else would be credentials, which nobody asked for.
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			all = append(all, fds...)
		}
	}
	return all, nil
}

// PeerCred is who was at the other end when the connection was made.
func (c *PacketConn) PeerCred() (pid int, uid uint32, err error) {
	var cred *unix.Ucred
	cerr := c.rc.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(cerr, err); err != nil {
		return 0, 0, err
	}
	return int(cred.Pid), cred.Uid, nil
}

// SetSendBuffer asks for room for n bytes of packets in flight; with the right
// to do so, beyond the machine's limit.
func (c *PacketConn) SetSendBuffer(n int) error {
	var err error
	cerr := c.rc.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, n); err != nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, n)
		}
	})
	return errors.Join(cerr, err)
}

// File is the socket itself, still owned by c.
func (c *PacketConn) File() *os.File { return c.f }

// Close ends the connection; a Recv in progress returns.
func (c *PacketConn) Close() error { return c.f.Close() }

// A PacketListener accepts PacketConns.
type PacketListener struct {
	f  *os.File
	rc syscall.RawConn
}

// ListenPacket binds path, which must not exist, with the permission.
func ListenPacket(path string, perm os.FileMode) (*PacketListener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		// Nobody can connect before listen, so the mode has no gap.
		err = unix.Chmod(path, uint32(perm.Perm()))
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "listen", Path: path, Err: err}
	}
	return packetListener(os.NewFile(uintptr(fd), path))
}

// NewPacketListener takes f, a listening socket that was inherited, over.
func NewPacketListener(f *os.File) (*PacketListener, error) {
	if err := setNonblock(f); err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(RawFD(f), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f.Close()
	return packetListener(os.NewFile(uintptr(fd), "packet listener"))
}

func packetListener(f *os.File) (*PacketListener, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &PacketListener{f, rc}, nil
}

// Accept waits for a connection.
func (l *PacketListener) Accept() (*PacketConn, error) {
	var nfd int
	var serr error
	err := l.rc.Read(func(fd uintptr) bool {
		for {
			nfd, _, serr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if serr != unix.EINTR && serr != unix.ECONNABORTED {
				return serr != unix.EAGAIN
			}
		}
	})
	if err == nil {
		err = os.NewSyscallError("accept", serr)
	}
	if err != nil {
		return nil, err
	}
	return packetConn(nfd)
}

// File is the socket itself, still owned by l.
func (l *PacketListener) File() *os.File { return l.f }

// Close stops listening; it leaves the path alone.
func (l *PacketListener) Close() error { return l.f.Close() }

// ReceiveFiles reads what one SendFile sent over a stream socket: at most
// len(p) bytes, and files that are the caller's to close.
func ReceiveFiles(conn *net.UnixConn, p []byte) (n int, files []*os.File, err error) {
	var oob [unix.SizeofCmsghdr + 4*(MaxPassedFiles+1)]byte
	n, oobn, flags, _, err := conn.ReadMsgUnix(p, oob[:]) // net sets close-on-exec
	if err != nil {
		return 0, nil, err
	}
	fds, err := rights(oob[:oobn])
	if err != nil {
		return 0, nil, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		CloseFDs(fds)
		return 0, nil, ErrTruncated
	}
	return n, Files(fds), nil
}

// IsHandle reports that f was opened as a place only (O_PATH), which needs no
// right to read it.
func IsHandle(f *os.File) bool {
	flags, err := unix.FcntlInt(RawFD(f), unix.F_GETFL, 0)
	return err != nil || flags&unix.O_PATH != 0
}

// RawFD is f's number, without the change to blocking mode that File.Fd makes.
// It is valid while f is open and reachable.
func RawFD(f *os.File) uintptr {
	n := ^uintptr(0)
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { n = fd })
	}
	return n
}

// RawFDs are the numbers of files, which the caller keeps open meanwhile.
func RawFDs(files []*os.File) []int {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(RawFD(f))
	}
	return fds
}

// Files makes a File of each descriptor and owns it.
func Files(fds []int) []*os.File {
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "passed")
	}
	return files
}

// CloseFDs closes the descriptors that are not negative.
func CloseFDs(fds []int) {
	for _, fd := range fds {
		CloseFD(fd)
	}
}

func setNonblock(f *os.File) error {
	return os.NewSyscallError("fcntl", unix.SetNonblock(int(RawFD(f)), true))
}
