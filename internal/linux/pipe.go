package linux

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Pipe makes a pipe whose ends are raw, non-blocking descriptors.
func Pipe() (r, w int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return -1, -1, os.NewSyscallError("pipe2", err)
	}
	return p[0], p[1], nil
}

// InputPipe makes a pipe for a program's input: w writes without blocking, r is
// for the program.
func InputPipe() (r *os.File, w int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, os.NewSyscallError("pipe2", err)
	}
	if err := SetNonblockFD(p[1]); err != nil {
		CloseFDs(p[:])
		return nil, -1, err
	}
	return os.NewFile(uintptr(p[0]), "|0"), p[1], nil
}

// OutputPipe makes a pipe for a program's output: r reads without blocking, w is
// for the program.
//
// If it is to be unbreakable, w is open for reading too. Whoever holds it then
// never gets EPIPE or SIGPIPE when every r is gone: its writes wait in the pipe,
// and a new reader finds them there. End of file still reaches r when the last w
// is closed, because r counts as no writer.
func OutputPipe(unbreakable bool) (r int, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, nil, os.NewSyscallError("pipe2", err)
	}
	if err := SetNonblockFD(p[0]); err != nil {
		CloseFDs(p[:])
		return -1, nil, err
	}
	if unbreakable {
		// Without /proc it stays a pipe like any other.
		if fd, err := openPipe(p[1]); err == nil {
			unix.Close(p[1])
			p[1] = fd
		}
	}
	return p[0], os.NewFile(uintptr(p[1]), "|1"), nil
}

// SelfPipe makes a pipe of which one descriptor is both ends, non-blocking.
func SelfPipe() (int, error) {
	r, w, err := Pipe()
	if err != nil {
		return -1, err
	}
	defer CloseFDs([]int{r, w})
	fd, err := openPipe(r)
	if err != nil {
		return -1, err
	}
	return fd, SetNonblockFD(fd)
}

// openPipe opens a pipe again, for reading and writing.
func openPipe(fd int) (int, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	n, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return n, nil
}

// ReopenPipe opens the pipe that is descriptor fd of another process, for
// reading without blocking, or else for writing. ino is what Inode told of it.
func ReopenPipe(pid, fd int, ino uint64, write bool) (int, error) {
	path := fmt.Sprintf("/proc/%d/fd/%d", pid, fd)
	how := unix.O_RDONLY
	if write {
		how = unix.O_WRONLY
	}
	n, err := unix.Open(path, how|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if _, got, err := Inode(n); err != nil || got != ino {
		unix.Close(n)
		return -1, &os.PathError{Op: "open", Path: path, Err: unix.ESTALE}
	}
	return n, nil
}

// OpenNull opens the descriptor that swallows everything.
func OpenNull() (int, error) {
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	return fd, os.NewSyscallError("open /dev/null", err)
}

// Tee copies up to n bytes at the head of pipe from into pipe to, without
// taking them out. It returns 0 at end of file and EAGAIN when from is empty or
// to is full.
func Tee(from, to, n int) (int, error) {
	for {
		m, err := unix.Tee(from, to, n, unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return int(m), err
		}
	}
}

// Splice moves up to n bytes between two descriptors of which one is a pipe.
func Splice(from, to, n int) (int, error) {
	for {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err != unix.EINTR {
			return int(m), err
		}
	}
}

// Queued is how many bytes wait in a pipe.
func Queued(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.TIOCINQ) }

// SetPipeSize asks for room for n bytes in a pipe.
func SetPipeSize(fd, n int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, n)
	return os.NewSyscallError("fcntl", err)
}

// ReadFD is read(2) without a File: for descriptors that live in a Poller.
func ReadFD(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// WriteFD is write(2) without a File.
func WriteFD(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Write(fd, p)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// RecvNow reads from a stream socket, or whatever fd is, without waiting.
func RecvNow(fd int, p []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(fd, p, unix.MSG_DONTWAIT)
		if err == unix.ENOTSOCK {
			return ReadFD(fd, p)
		}
		if err != unix.EINTR {
			return n, err
		}
	}
}

// SendNow writes head and then p to a stream socket as far as there is room,
// without waiting and without a signal.
func SendNow(fd int, head, p []byte) (int, error) {
	bufs := make([][]byte, 0, 2)
	if len(head) > 0 {
		bufs = append(bufs, head)
	}
	if len(p) > 0 {
		bufs = append(bufs, p)
	}
	for {
		n, err := unix.SendmsgBuffers(fd, bufs, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == unix.ENOTSOCK {
			n, err = unix.Writev(fd, bufs)
		}
		if err != unix.EINTR {
			return n, err
		}
	}
}

// CloseFD closes a raw descriptor; negative ones are nobody's.
func CloseFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// DupFD duplicates a descriptor, close-on-exec.
func DupFD(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return n, os.NewSyscallError("fcntl", err)
}

// DupOf duplicates the descriptor of a file that others may close meanwhile: what
// is duplicated is this file, or the error is os.ErrClosed.
func DupOf(f *os.File) (fd int, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	var derr error
	if rc.Control(func(raw uintptr) { fd, derr = DupFD(int(raw)) }) != nil {
		return -1, os.ErrClosed
	}
	return fd, derr
}

// TakeFD takes the descriptor out of f, which is closed.
func TakeFD(f *os.File) (int, error) {
	defer f.Close()
	return DupFD(int(RawFD(f)))
}

// SetNonblockFD makes reads and writes of fd return EAGAIN instead of waiting.
func SetNonblockFD(fd int) error { return os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)) }

// Inode identifies an open file: a pipe reopened through /proc has the same.
func Inode(fd int) (dev, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, 0, os.NewSyscallError("fstat", err)
	}
	return st.Dev, st.Ino, nil
}

// Readiness that a Poller waits for and reports.
const (
	PollIn  = unix.EPOLLIN
	PollOut = unix.EPOLLOUT
	PollHup = unix.EPOLLHUP
	PollErr = unix.EPOLLERR
	// PollEdge reports changes only; whoever asks for it reads to EAGAIN.
	PollEdge = unix.EPOLLET & 0xffffffff
)

// A Poller waits for many descriptors with one system call and no goroutine or
// buffer for each. Add, Mod, Del and Wake may be called from any goroutine;
// Wait from one.
type Poller struct {
	ep, ev int
	raw    [64]unix.EpollEvent
}

// A PollEvent is one descriptor that became ready, by the token it was added with.
type PollEvent struct {
	Token uint64
	Ready uint32
}

// NewPoller makes an empty set.
func NewPoller() (*Poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(ep)
		return nil, os.NewSyscallError("eventfd", err)
	}
	p := &Poller{ep: ep, ev: ev}
	if err := p.Add(ev, PollIn, 0); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Add begins to watch fd. Token 0 is the Poller's own.
func (p *Poller) Add(fd int, events uint32, token uint64) error {
	return p.ctl(unix.EPOLL_CTL_ADD, fd, events, token)
}

// Mod changes what is waited for, and reports at once what is ready already.
func (p *Poller) Mod(fd int, events uint32, token uint64) error {
	return p.ctl(unix.EPOLL_CTL_MOD, fd, events, token)
}

// Del stops watching fd. Duplicates of fd elsewhere keep a watch alive, so
// closing is not enough.
func (p *Poller) Del(fd int) error { return p.ctl(unix.EPOLL_CTL_DEL, fd, 0, 0) }

func (p *Poller) ctl(op, fd int, events uint32, token uint64) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(token), Pad: int32(token >> 32)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.ep, op, fd, &ev))
}

// Wait returns what is ready, in evs; nothing after a Wake.
func (p *Poller) Wait(evs []PollEvent) ([]PollEvent, error) {
	n, err := unix.EpollWait(p.ep, p.raw[:], -1)
	if err == unix.EINTR {
		return evs[:0], nil
	}
	if err != nil {
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	evs = evs[:0]
	for _, e := range p.raw[:n] {
		token := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
		if token == 0 {
			var b [8]byte
			unix.Read(p.ev, b[:])
			continue
		}
		evs = append(evs, PollEvent{token, e.Events})
	}
	return evs, nil
}

// Wake makes Wait return.
func (p *Poller) Wake() {
	one := [8]byte{1, 0, 0, 0, 0, 0, 0, 0}
	unix.Write(p.ev, one[:])
}

// Close forgets the set, not the descriptors in it.
func (p *Poller) Close() error {
	return errors.Join(unix.Close(p.ep), unix.Close(p.ev))
}

// WaitReadable waits until fd can be read or has ended, at most d; it reports
// whether it can.
func WaitReadable(fd int, d time.Duration) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(d)
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll(p, int((left+time.Millisecond-1)/time.Millisecond))
		if err == unix.EINTR && left > 0 {
			continue
		}
		return err == nil && n > 0
	}
}
