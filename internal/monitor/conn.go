package monitor

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/onggi/onggi/internal/linux"
)

// maxQueue is how many packets may wait for a peer that does not read; then it
// is cut off.
const maxQueue = 16384

// A conn sends packets in order and never blocks its callers.
type conn struct {
	pc *linux.PacketConn

	subscribed bool // guarded by server.mu

	mu     sync.Mutex
	queue  []queued // guarded by mu
	closed bool     // guarded by mu
}

type queued struct {
	packet []byte
	fds    []int // duplicates, closed once sent
}

func newConn(pc *linux.PacketConn) *conn { return &conn{pc: pc} }

// send sends a packet, at once if the peer has room. The descriptors stay the
// caller's. If the peer has gone nothing happens: its reader will notice. An error
// is a packet that cannot be sent: nobody will answer it.
func (c *conn) send(packet []byte, fds ...int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	if len(c.queue) == 0 {
		sent, err := c.pc.TrySend(packet, fds...)
		if errors.Is(err, syscall.EBADF) || errors.Is(err, syscall.ETOOMANYREFS) { // of what is passed
			return err
		}
		if sent || err != nil {
			return nil
		}
	}
	if len(c.queue) >= maxQueue {
		c.closed = true
		c.pc.Close()
		return nil
	}
	q := queued{packet: append([]byte(nil), packet...)}
	for _, fd := range fds {
		n, err := linux.DupFD(fd)
		if err != nil {
			linux.CloseFDs(q.fds)
			return err
		}
		q.fds = append(q.fds, n)
	}
	c.queue = append(c.queue, q)
	if len(c.queue) == 1 {
		go c.drain()
	}
	return nil
}

// drain sends what is queued, and ends when that is done.
func (c *conn) drain() {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 || c.closed {
			for _, q := range c.queue {
				linux.CloseFDs(q.fds)
			}
			c.queue = nil
			c.mu.Unlock()
			return
		}
		q := c.queue[0]
		c.mu.Unlock()
		err := c.pc.Send(q.packet, q.fds...)
		linux.CloseFDs(q.fds)
		c.mu.Lock()
		if len(c.queue) > 0 {
			c.queue = c.queue[1:]
		}
		if err != nil {
			c.closed = true
		}
		c.mu.Unlock()
	}
}

func (c *conn) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.pc.Close()
}

// packet makes e ready to be sent: a body that is too large goes to a file, which
// the caller closes after sending, if it is not nil.
func (e *enc) packet() (packet []byte, file io.Closer, fd int, err error) {
	if len(e.b) <= maxInline {
		return e.b, nil, -1, nil
	}
	d := &dec{b: e.b[2:]}
	d.u()
	head := len(e.b) - len(d.b)
	f, err := linux.MemoryFile("onggi message", d.b)
	if err != nil {
		return nil, nil, -1, err
	}
	packet = append([]byte(nil), e.b[:head]...)
	packet[1] |= inFile
	packet = (&enc{packet}).withSize(len(d.b))
	return packet, f, int(linux.RawFD(f)), nil
}

func (e *enc) withSize(n int) []byte { e.u(uint64(n)); return e.b }

// bodyFromFile reads a body that packet put into a file. It takes the first
// descriptor, and gives the others.
func bodyFromFile(op byte, d *dec, fds []int) (byte, *dec, []int, error) {
	size := d.u()
	if err := d.end(); err != nil {
		return 0, nil, fds, err
	}
	if size > maxBody || len(fds) == 0 {
		return 0, nil, fds, fmt.Errorf("%w: a body of %d bytes in %d files", errMalformed, size, len(fds))
	}
	f := linux.Files(fds[:1])[0]
	defer f.Close()
	body := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, int64(size)), body); err != nil {
		return 0, nil, fds[1:], fmt.Errorf("%w: %w", errMalformed, err)
	}
	return op &^ inFile, &dec{b: body}, fds[1:], nil
}
