package monitor

import (
	"encoding/binary"
	"errors"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/logs"
)

// An attacher is a client's connection to a process. It belongs to the process's
// loop.
type attacher struct {
	p     *process
	spec  AttachSpec // without Conn
	fd    int
	token uint64

	head    []byte // of what is pending: the rest of a frame's head
	pending []byte // shared by all who wait for the same output
	since   time.Time
	timer   *time.Timer

	inputEnded bool
	hup        bool // the client is gone; what it sent before may wait unread
	closed     bool
}

// attach connects fd, which it takes over.
func (p *process) attach(spec AttachSpec, fd int) {
	a := &attacher{p: p, spec: spec, fd: fd}
	if p.finished || p.gone {
		linux.CloseFD(fd)
		return
	}
	var err error
	a.token, err = p.loop.watch(fd, linux.PollIn|linux.PollOut|linux.PollEdge, a.ready)
	if err != nil {
		linux.CloseFD(fd)
		return
	}
	p.attached = append(p.attached, a)
}

func (a *attacher) ready(events uint32) {
	if len(a.pending) > 0 || len(a.head) > 0 {
		a.flush()
	}
	// Input on a connection that is for output only is not ours: the engine, which
	// has a descriptor of the same socket, reads it to look for detach keys.
	a.hup = a.hup || events&(linux.PollHup|linux.PollErr) != 0
	if !a.closed && a.spec.Stdin {
		a.receive()
	}
	if a.hup && (a.inputEnded || !a.spec.Stdin) {
		a.drop()
	}
}

// fanout sends output to those who want it. data is only read.
func (p *process) fanout(which logs.Stream, data []byte) {
	if len(p.attached) == 0 {
		return
	}
	var held []byte
	// drop changes the list, so walk a copy.
	for _, a := range append([]*attacher(nil), p.attached...) {
		if which == logs.Stdout && !a.spec.Stdout || which == logs.Stderr && !a.spec.Stderr || a.closed {
			continue
		}
		a.send(which, data, &held)
	}
}

// send writes what there is room for, and keeps the rest: in held, one copy for
// all.
func (a *attacher) send(which logs.Stream, data []byte, held *[]byte) {
	var head [8]byte
	h := head[:0]
	if a.spec.Mux {
		head[0] = byte(which)
		binary.BigEndian.PutUint32(head[4:], uint32(len(data)))
		h = head[:]
	}
	n, err := linux.SendNow(a.fd, h, data)
	if err != nil && !errors.Is(err, syscall.EAGAIN) {
		a.deafen()
		return
	}
	n = max(n, 0)
	if n == len(h)+len(data) {
		return
	}
	if *held == nil {
		*held = append([]byte(nil), data...)
	}
	if n < len(h) {
		a.head = append([]byte(nil), h[n:]...)
		n = len(h)
	}
	a.pending = (*held)[n-len(h):]
	a.p.blocked++
	a.since = time.Now()
	a.watchPatience()
}

// flush continues what was pending, and lets the process go on after that.
func (a *attacher) flush() {
	n, err := linux.SendNow(a.fd, a.head, a.pending)
	if err != nil {
		if !errors.Is(err, syscall.EAGAIN) {
			a.deafen()
		}
		return
	}
	if n > 0 {
		a.since = time.Now()
	}
	h := min(n, len(a.head))
	a.head, a.pending = a.head[h:], a.pending[n-h:]
	if len(a.head) == 0 && len(a.pending) == 0 {
		a.unblock()
	}
}

func (a *attacher) unblock() {
	a.head, a.pending = nil, nil
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	p := a.p
	if p.blocked--; p.blocked == 0 {
		// Not from here: this may be in the middle of a fanout.
		p.loop.post(p.pump)
	}
}

func (a *attacher) watchPatience() {
	patience := a.spec.Patience
	if patience == 0 {
		patience = DefaultPatience
	}
	if patience < 0 {
		return
	}
	a.timer = time.AfterFunc(patience-time.Since(a.since), func() {
		a.p.loop.post(func() {
			if a.closed || len(a.head)+len(a.pending) == 0 {
				return
			}
			if time.Since(a.since) < patience {
				a.watchPatience()
				return
			}
			a.p.srv.logf("%v: a client that read nothing for %v was dropped", a.p.rec.key, patience)
			a.drop()
		})
	})
}

// receive takes input while there is room for it where it goes.
func (a *attacher) receive() {
	p := a.p
	for !a.inputEnded {
		if len(p.in.pending) > 0 {
			return // feedInput comes back
		}
		// The loop's buffer may hold output that is being sent, but not here:
		// nothing of that survives into a handler.
		buf := p.loop.buf[:inputChunk]
		n, err := linux.RecvNow(a.fd, buf)
		if errors.Is(err, syscall.EAGAIN) {
			return
		}
		if err != nil {
			a.drop()
			return
		}
		if n == 0 {
			a.inputEnd()
			if a.hup {
				a.drop()
			}
			return
		}
		p.input(buf[:n])
	}
}

// inputEnd: the client sends no more. It may go on reading.
func (a *attacher) inputEnd() {
	if a.inputEnded {
		return
	}
	a.inputEnded = true
	if a.spec.Stdin && a.p.rec.stdinOnce && !a.p.rec.terminal {
		a.p.closeInputAfter()
	}
}

// deafen sends nothing more to a client that is gone. What it sent before is
// still input.
func (a *attacher) deafen() {
	if !a.spec.Stdin || a.inputEnded {
		a.drop()
		return
	}
	a.hup, a.spec.Stdout, a.spec.Stderr = true, false, false
	if len(a.head)+len(a.pending) > 0 {
		a.unblock()
	}
}

// drop ends the connection from our side, or finds it ended.
func (a *attacher) drop() {
	if a.closed {
		return
	}
	waiting := len(a.head)+len(a.pending) > 0
	a.inputEnd()
	a.close()
	p := a.p
	for i, x := range p.attached {
		if x == a {
			p.attached = append(p.attached[:i:i], p.attached[i+1:]...)
			break
		}
	}
	if waiting {
		a.unblock()
	}
}

func (a *attacher) close() {
	if a.closed {
		return
	}
	a.closed = true
	if a.timer != nil {
		a.timer.Stop()
	}
	a.p.loop.unwatch(a.fd, a.token)
	linux.CloseFD(a.fd)
}

// input is where clients' input goes.
type input struct {
	fd      int
	token   uint64
	pending []byte // what did not fit; nobody's input is read meanwhile
	ending  bool   // close it once pending is written
}

// input writes p to the process, or keeps it until there is room.
func (p *process) input(data []byte) {
	if p.in.fd < 0 || p.in.ending || p.gone {
		return // it has ended: what is sent goes nowhere
	}
	p.writeInput(data)
}

func (p *process) writeInput(data []byte) {
	n, err := linux.WriteFD(p.in.fd, data)
	if err != nil && !errors.Is(err, syscall.EAGAIN) {
		if !p.rec.terminal {
			p.closeInput()
		}
		return
	}
	if n = max(n, 0); n < len(data) {
		p.in.pending = append([]byte(nil), data[n:]...)
	}
}

// feedInput goes on with input when there is room.
func (p *process) feedInput() {
	if p.gone || p.in.fd < 0 || len(p.in.pending) == 0 {
		return
	}
	data := p.in.pending
	p.in.pending = nil
	p.writeInput(data)
	if len(p.in.pending) > 0 {
		return
	}
	if p.in.ending {
		p.closeInput()
		return
	}
	for _, a := range append([]*attacher(nil), p.attached...) {
		if !a.closed && a.spec.Stdin {
			a.receive()
		}
	}
}

// closeInputAfter ends the input once what was sent is written.
func (p *process) closeInputAfter() {
	if len(p.in.pending) > 0 {
		p.in.ending = true
		return
	}
	p.closeInput()
}

// closeInput ends the process's standard input. A terminal's cannot end.
func (p *process) closeInput() {
	p.in.pending = nil
	if p.rec.terminal || p.in.fd < 0 {
		return
	}
	p.loop.unwatch(p.in.fd, p.in.token)
	p.in.fd, p.in.token = -1, 0
	p.dropFDs(1 << keptStdin)
}
