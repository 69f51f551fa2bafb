package monitor

import (
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/logs"
)

const (
	// strayGrace is how long output counts that others write after the process
	// has exited.
	strayGrace = 2 * time.Second
	// tellAfter is how long clients that do not read may hold back the exit.
	tellAfter = 2 * time.Second
	// inputChunk is how much input is taken from a client at once.
	inputChunk = 32 << 10
)

// A process is one that the worker serves. What is not marked otherwise belongs
// to the loop.
type process struct {
	rec  record // immutable once the record is written
	srv  *server
	loop *loop

	file *os.File // the record; belongs to the start

	state state    // guarded by srv.mu
	init  launched // guarded by srv.mu; nil unless held
	owner *conn    // guarded by srv.mu; who may release it
	exit  *Exited  // guarded by srv.mu once set

	fds     keptFDs
	log     *logs.Writer
	streams []*stream
	console uint64 // token of the terminal's master; 0: not watched
	pidfd   uint64 // token of the pidfd; 0: not watched
	in      input

	dropped  uint64 // kinds in fds that were closed in this round
	attached []*attacher
	blocked  int // attachers that have not taken what was sent

	exited    *Exited // the loop's copy of exit
	grace     *time.Timer
	strays    bool // the grace is over; what comes is dropped
	finished  bool // the output has ended
	told      bool
	acked     bool // the engine has the exit
	announced bool // the answer to the start request is on its way
	gone      bool // torn down; nothing may touch fds
}

type state uint8

const (
	starting state = iota
	held
	running
	exited
)

// A stream is one pipe of output.
type stream struct {
	p     *process
	which logs.Stream
	kind  int // in keptFDs
	fd    int
	token uint64
	seen  int  // bytes at the pipe's head that clients already have
	hup   bool // no writer is left
	force bool // take lines that are not whole, too
	eof   bool

	again time.Duration // until the next look at the head of a line; 0: nobody looks
}

// begin watches the output. Clients that shall get all of it are attached before.
func (p *process) begin() {
	if p.rec.terminal {
		p.addStream(logs.Stdout, keptBuffer)
		p.console, _ = p.loop.watch(p.fds[keptConsole], linux.PollIn|linux.PollOut|linux.PollEdge, func(uint32) {
			p.feedInput()
			p.pump()
		})
		p.in.fd = p.fds[keptConsole]
	} else {
		p.addStream(logs.Stdout, keptStdout)
		p.addStream(logs.Stderr, keptStderr)
		if p.in.fd = p.fds[keptStdin]; p.in.fd >= 0 {
			p.in.token, _ = p.loop.watch(p.in.fd, linux.PollOut|linux.PollEdge, func(ready uint32) {
				if ready&linux.PollErr != 0 {
					p.closeInput() // nobody will read it any more
					return
				}
				p.feedInput()
			})
		}
	}
}

func (p *process) addStream(which logs.Stream, kind int) {
	fd := p.fds[kind]
	if fd < 0 {
		return
	}
	st := &stream{p: p, which: which, kind: kind, fd: fd}
	p.streams = append(p.streams, st)
	if kind == keptBuffer {
		return // filled by ourselves
	}
	token, err := p.loop.watch(fd, linux.PollIn|linux.PollEdge, func(ready uint32) {
		if ready&(linux.PollHup|linux.PollErr) != 0 {
			st.hup = true
		}
		st.read()
		p.settle()
	})
	if err != nil {
		st.eof = true
	}
	st.token = token
}

// watchExit waits for the process to end.
func (p *process) watchExit() {
	if p.pidfd != 0 || p.exited != nil || p.gone {
		return
	}
	p.pidfd, _ = p.loop.watch(p.fds[keptPidFD], linux.PollIn, func(uint32) { p.ended(0) })
}

// pump moves on everything that can be moved.
func (p *process) pump() {
	if p.gone || p.finished && !p.strays {
		return
	}
	if p.rec.terminal {
		p.pumpConsole()
	} else {
		for _, st := range p.streams {
			st.read()
		}
	}
	p.settle()
}

// pumpConsole moves output from the terminal to the buffer pipe, from where it
// goes the way of all streams: a terminal's output cannot be looked at without
// taking it.
func (p *process) pumpConsole() {
	for p.blocked == 0 && len(p.streams) > 0 {
		st, console := p.streams[0], p.fds[keptConsole]
		n, err := linux.Splice(console, st.fd, peekBytes)
		if errors.Is(err, syscall.EINVAL) {
			n, err = copyNow(console, st.fd, p.loop.buf[:4096])
		}
		full := false
		if errors.Is(err, syscall.EAGAIN) && linux.WaitReadable(console, 0) {
			// There is output but no room: the pipe is full of small pieces of a
			// line that does not end.
			full = true
			if q, _ := linux.Queued(st.fd); q == 0 {
				return
			}
		}
		st.force = full
		st.read()
		st.force = false
		// EIO: no process has the terminal open now. One may open it again.
		if !full && (err != nil || n <= 0) {
			return
		}
	}
}

// copyNow is Splice for kernels that cannot splice from a terminal.
func copyNow(from, to int, buf []byte) (int, error) {
	n, err := linux.ReadFD(from, buf)
	if err != nil || n == 0 {
		return 0, err
	}
	return linux.WriteFD(to, buf[:n])
}

// read takes what is in the pipe, until it is empty or a client cannot follow.
func (st *stream) read() { st.drain(st.hup) }

// drain is read; final: the last line is whole as it is. When the pipe is empty
// after that, a later write raises an edge.
func (st *stream) drain(final bool) {
	for !st.eof && st.p.blocked == 0 && !st.p.gone {
		if !st.take(final) {
			st.lookAgain(firstLook)
			return
		}
	}
}

// How long the head of a line waits in the pipe until it is looked at again.
const (
	firstLook = 2 * time.Millisecond
	lastLook  = 256 * time.Millisecond
)

// lookAgain looks after a line whose end is not there yet. The kernel raises no
// edge when a writer fills a pipe that was not empty and sleeps: it does so at
// the end of a write only.
func (st *stream) lookAgain(after time.Duration) {
	p := st.p
	if st.seen == 0 || st.again != 0 || st.eof || p.gone || p.finished || p.rec.terminal {
		return
	}
	st.again = after
	time.AfterFunc(after, func() {
		p.loop.post(func() {
			st.again = 0
			if st.eof || p.gone || p.finished || p.blocked > 0 {
				return
			}
			if queued, err := linux.Queued(st.fd); err == nil && queued <= st.seen {
				st.lookAgain(min(2*after, lastLook))
				return
			}
			st.read()
			p.settle()
		})
	})
}

// take handles one look at the pipe, and reports whether another may find more.
func (st *stream) take(final bool) (more bool) {
	p, l := st.p, st.p.loop
	if p.strays || p.log == nil {
		n, err := linux.ReadFD(st.fd, l.buf)
		if n == 0 && err == nil {
			st.hup = true
			st.close()
		}
		if n <= 0 {
			return false
		}
		if !p.strays {
			p.fanout(st.which, l.buf[:n])
		}
		return true
	}
	n, err := l.stage.peek(st.fd, l.buf)
	if err != nil || n == 0 {
		if n == 0 && err == nil {
			st.hup = true
			st.close()
		}
		return false
	}
	if n > st.seen {
		p.fanout(st.which, l.buf[st.seen:n])
		st.seen = n
	}
	queued, _ := linux.Queued(st.fd)
	all := queued <= n
	took := 0
	for took < n {
		rest := l.buf[took:n]
		c := logs.Cut(rest, final && all)
		if c == 0 && took == 0 && (!all || st.force) {
			// The pipe's head is in more pieces than one look can see.
			c = len(rest)
		}
		if c == 0 {
			break
		}
		l.stage.commit(p.log, p.rec.serial, st.which, st.fd, rest[:c])
		took += c
		st.seen -= c
	}
	return took > 0
}

func (st *stream) close() {
	if st.eof {
		return
	}
	st.eof = true
	p := st.p
	p.loop.unwatch(st.fd, st.token)
	p.dropFDs(1 << st.kind)
}

// dropFDs closes descriptors here and wherever duplicates are. Those who have
// them are told at the end of the loop's round: a process that ends drops most of
// its own in one.
func (p *process) dropFDs(mask uint64) {
	p.fds.trim(mask)
	if p.dropped == 0 {
		p.loop.late(func() {
			mask := p.dropped
			p.dropped = 0
			p.srv.trim(p, mask)
		})
	}
	p.dropped |= mask
}

// ended is called when the pidfd says so; try counts the attempts.
func (p *process) ended(try int) {
	if p.exited != nil || p.gone {
		return
	}
	x := p.exitStatus(try)
	if x == nil {
		// Somebody else's child: its reaper will tell, or the kernel.
		p.loop.unwatch(p.fds[keptPidFD], p.pidfd)
		time.AfterFunc(5*time.Millisecond<<min(try, 6), func() {
			p.loop.post(func() { p.ended(try + 1) })
		})
		return
	}
	p.setExit(x)
}

// orphanTries is how often an unknown exit is asked for: about two seconds.
const orphanTries = 10

// exitStatus finds out how the process ended, and puts that on disk before the
// kernel forgets it. It returns nil if it may be known later.
func (p *process) exitStatus(try int) *Exited {
	fd := p.fds[keptPidFD]
	x := &Exited{Key: p.rec.key, PID: p.rec.pid, At: time.Now()}
	st, done, err := linux.PeekExit(fd)
	if err != nil {
		if on := p.srv.dir.exit(p.rec.key, p.rec.pid); on != nil {
			return on // the keeper saw it
		}
		if st, done = linux.ExitOf(fd); !done {
			st, done = linux.ZombieExit(p.rec.pid, fd)
		}
		if !done && try < orphanTries {
			return nil
		}
		if !done {
			x.Unknown, st.Code = true, 255
		}
	} else if !done {
		return nil
	}
	x.Code, x.Signal, x.Core = st.Code, st.Signal, st.Core
	if err := p.srv.dir.putExit(x); err != nil {
		p.srv.logf("record the exit of %v: %v", p.rec.key, err)
	}
	linux.Reap(fd, false)
	return x
}

// setExit makes an exit known that is on disk.
func (p *process) setExit(x *Exited) {
	if p.exited != nil || p.gone {
		return
	}
	p.exited = x
	if p.fds[keptPidFD] >= 0 {
		p.loop.unwatch(p.fds[keptPidFD], p.pidfd)
	}
	p.srv.setExit(p, x)
	time.AfterFunc(tellAfter, func() { p.loop.post(p.tell) })
	p.pump()
}

// settle ends the output when there can be no more of it.
func (p *process) settle() {
	if p.exited == nil || p.finished || p.blocked > 0 || p.gone {
		return
	}
	for _, st := range p.streams {
		if st.kind == keptBuffer {
			// The terminal is drained; with the process gone its last line is whole.
			if st.drain(true); p.blocked > 0 {
				return
			}
		} else if !st.eof {
			if p.grace == nil {
				p.grace = time.AfterFunc(strayGrace, func() { p.loop.post(p.graceOver) })
			}
			return
		}
	}
	p.finish()
}

func (p *process) graceOver() {
	if p.finished || p.gone {
		return
	}
	if p.blocked > 0 {
		// Clients still take what came before the exit.
		p.grace = time.AfterFunc(strayGrace, func() { p.loop.post(p.graceOver) })
		return
	}
	for _, st := range p.streams {
		st.drain(true) // the last line will not be finished any more
	}
	if p.blocked > 0 {
		p.grace = time.AfterFunc(strayGrace, func() { p.loop.post(p.graceOver) })
		return
	}
	p.strays = true
	p.finish()
}

// finish closes the log and lets the clients go. Pipes that others hold open stay
// and are read, so that those do not block.
func (p *process) finish() {
	p.finished = true
	if p.log != nil {
		p.log.Close()
		p.log = nil
	}
	p.closeInput()
	for _, a := range p.attached {
		a.close()
	}
	p.attached, p.blocked = nil, 0
	if p.rec.terminal {
		p.loop.unwatch(p.fds[keptConsole], p.console)
		p.console = 0
	}
	p.dropFDs(1<<keptPidFD | 1<<keptStdin | 1<<keptConsole | 1<<keptBuffer)
	p.tell()
	if p.acked {
		p.forget()
	}
}

// acknowledged: the engine has the exit, so nothing need be remembered of the
// process once its output has ended.
func (p *process) acknowledged() {
	p.acked = true
	if p.finished {
		p.forget()
	}
}

// forget is teardown, but for pipes that others write to: those would hang or
// break.
func (p *process) forget() {
	if !p.strays {
		p.teardown()
	}
}

// tell sends the exit to the engine, once it knows of the process.
func (p *process) tell() {
	if p.told || p.exited == nil || !p.announced || p.gone {
		return
	}
	p.told = true
	p.srv.tell(p)
}

// teardown forgets the process: after its exit was acknowledged, or when its
// start came to nothing.
func (p *process) teardown() {
	if p.gone {
		return
	}
	p.gone = true
	if p.grace != nil {
		p.grace.Stop()
	}
	for _, st := range p.streams {
		if !st.eof {
			p.loop.unwatch(st.fd, st.token)
		}
	}
	if p.pidfd != 0 && p.fds[keptPidFD] >= 0 {
		p.loop.unwatch(p.fds[keptPidFD], p.pidfd)
	}
	if p.console != 0 {
		p.loop.unwatch(p.fds[keptConsole], p.console)
	}
	if p.in.token != 0 {
		p.loop.unwatch(p.in.fd, p.in.token)
	}
	for _, a := range p.attached {
		a.close()
	}
	p.attached = nil
	if p.log != nil {
		p.log.Close()
		p.log = nil
	}
	p.fds.close()
}
