package monitor

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// A handler answers one request. It owns fds. An error says that the message was
// malformed, and ends the connection.
type handler func(s *server, c *conn, id uint64, d *dec, fds []int) error

var handlers = map[byte]handler{
	opStart:      (*server).onStart,
	opRelease:    (*server).onRelease,
	opAttach:     (*server).onAttach,
	opResize:     (*server).onResize,
	opCloseStdin: (*server).onCloseStdin,
	opSignal:     (*server).onSignal,
	opList:       (*server).onList,
	opAck:        (*server).onAck,
	opUpgrade:    (*server).onUpgrade,
	opShutdown:   (*server).onShutdown,
	opAdopt:      (*server).onAdopt,
	opSubscribe:  (*server).onSubscribe,
}

// reply answers request id: with err, or with what body writes.
func (c *conn) reply(id uint64, err error, body func(*enc), fds ...int) {
	e := newMessage(opReply, id)
	e.error(err)
	if err == nil && body != nil {
		body(e)
	}
	packet, file, fd, perr := e.packet()
	if perr != nil {
		e = newMessage(opReply, id)
		e.error(perr)
		c.send(e.b)
		return
	}
	if file != nil {
		defer file.Close()
		fds = append([]int{fd}, fds...)
	}
	if serr := c.send(packet, fds...); serr != nil {
		e = newMessage(opReply, id)
		e.error(serr)
		c.send(e.b)
	}
}

// malformed closes what came with a message that cannot be read.
func malformed(err error, fds []int) error {
	linux.CloseFDs(fds)
	return err
}

func (s *server) onStart(c *conn, id uint64, d *dec, fds []int) error {
	r, n := d.start()
	if err := d.end(); err != nil {
		return malformed(err, fds)
	}
	if n > len(fds) {
		return malformed(fmt.Errorf("%w: %d descriptors, of which %d are files", errMalformed, len(fds), n), fds)
	}
	s.recoverLost()
	go func() {
		files := linux.Files(fds[:n])
		p, err := s.start(c, &r, files, fds[n:])
		for _, f := range files {
			f.Close()
		}
		if errors.Is(err, errLost) {
			return // the next worker will be asked again
		}
		if err != nil {
			c.reply(id, err, nil)
			return
		}
		// On the loop, since the descriptors are its own. The exit is watched only
		// then, so that it comes after the answer and the pidfd is still there.
		p.loop.post(func() {
			c.reply(id, nil, func(e *enc) {
				e.u(uint64(p.rec.pid))
				e.time(p.rec.startedAt)
			}, p.fds[keptPidFD])
			p.announced = true
			if !r.Hold {
				p.watchExit()
			}
		})
	}()
	return nil
}

func (s *server) onRelease(c *conn, id uint64, d *dec, fds []int) error {
	k := d.key()
	if err := d.end(); err != nil || len(fds) > 0 {
		return malformed(errors.Join(err, unexpected(fds)), fds)
	}
	p, err := s.findRunning("start", k)
	if err != nil {
		c.reply(id, err, nil)
		return nil
	}
	go func() {
		err := s.release(p)
		if err != nil && !errdefs.Is(err, errdefs.Conflict) {
			s.abandon(p)
		}
		p.loop.post(func() {
			c.reply(id, err, nil)
			if err == nil {
				p.watchExit()
			}
		})
	}()
	return nil
}

func unexpected(fds []int) error {
	if len(fds) > 0 {
		return fmt.Errorf("%w: %d descriptors too many", errMalformed, len(fds))
	}
	return nil
}

func (s *server) onAttach(c *conn, id uint64, d *dec, fds []int) error {
	k, spec := d.key(), d.attach()
	if err := d.end(); err != nil || len(fds) != 1 {
		return malformed(errors.Join(err, errMalformed), fds)
	}
	p, err := s.findRunning("attach", k)
	if err != nil {
		linux.CloseFDs(fds)
		c.reply(id, err, nil)
		return nil
	}
	p.loop.post(func() {
		p.attach(spec, fds[0])
		c.reply(id, nil, nil)
	})
	return nil
}

func (s *server) onResize(c *conn, id uint64, d *dec, fds []int) error {
	k, w, h := d.key(), uint16(d.u()), uint16(d.u())
	if err := d.end(); err != nil || len(fds) > 0 {
		return malformed(errors.Join(err, unexpected(fds)), fds)
	}
	s.onLoop(c, id, "resize", k, func(p *process) error {
		if !p.rec.terminal {
			return errdefs.New(errdefs.Conflict, "resize", k.String(), errors.New("it has no terminal"))
		}
		return linux.SetWinsize(p.fds[keptConsole], w, h)
	})
	return nil
}

// onLoop answers with what f says of a process that runs.
func (s *server) onLoop(c *conn, id uint64, op string, k Key, f func(*process) error) {
	p, err := s.findRunning(op, k)
	if err != nil {
		c.reply(id, err, nil)
		return
	}
	p.loop.post(func() {
		if p.gone || p.finished {
			c.reply(id, errdefs.New(errdefs.Conflict, op, k.String(), errors.New("it has exited")), nil)
			return
		}
		c.reply(id, f(p), nil)
	})
}

func (s *server) onCloseStdin(c *conn, id uint64, d *dec, fds []int) error {
	k := d.key()
	if err := d.end(); err != nil || len(fds) > 0 {
		return malformed(errors.Join(err, unexpected(fds)), fds)
	}
	s.onLoop(c, id, "close input of", k, func(p *process) error {
		p.closeInputAfter()
		return nil
	})
	return nil
}

func (s *server) onSignal(c *conn, id uint64, d *dec, fds []int) error {
	k, sig := d.key(), int(d.u())
	if err := d.end(); err != nil || len(fds) > 0 {
		return malformed(errors.Join(err, unexpected(fds)), fds)
	}
	if p, err := s.find("signal", k); err == nil && sig == 9 {
		if init := s.takeInit(p); init != nil {
			go func() {
				init.Kill()
				s.abandon(p)
				c.reply(id, nil, nil)
			}()
			return nil
		}
	}
	s.onLoop(c, id, "signal", k, func(p *process) error {
		err := linux.SignalPidFD(p.fds[keptPidFD], sig)
		if errors.Is(err, os.ErrProcessDone) {
			return errdefs.New(errdefs.Conflict, "signal", k.String(), errors.New("it has exited"))
		}
		return err
	})
	return nil
}

func (s *server) onList(c *conn, id uint64, d *dec, fds []int) error {
	if err := d.end(); err != nil || len(fds) > 0 {
		return malformed(errors.Join(err, unexpected(fds)), fds)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.reply(id, nil, func(e *enc) {
		n := 0
		for _, p := range s.procs {
			if p.state != starting {
				n++
			}
		}
		e.u(uint64(n))
		for k, p := range s.procs {
			if p.state == starting {
				continue
			}
			e.key(k)
			e.u(uint64(p.rec.pid))
			e.time(p.rec.startedAt)
			e.bool(p.rec.terminal)
			e.bool(p.state == held)
			e.bool(p.exit != nil)
			if p.exit != nil {
				e.exited(p.exit)
			}
		}
	})
	return nil
}

func (s *server) onAck(c *conn, id uint64, d *dec, fds []int) error {
	k := d.key()
	if err := d.end(); err != nil || len(fds) > 0 {
		return malformed(errors.Join(err, unexpected(fds)), fds)
	}
	p, err := s.find("acknowledge", k)
	if err == nil {
		s.mu.Lock()
		if p.state != exited {
			err = errdefs.New(errdefs.Conflict, "acknowledge", k.String(), errors.New("it has not exited"))
		}
		s.mu.Unlock()
	}
	if err == nil {
		s.forget(p)
		p.loop.post(p.acknowledged)
	}
	c.reply(id, err, nil)
	return nil
}

// onSubscribe sends what the engine should hold and the exits it may not know.
func (s *server) onSubscribe(c *conn, id uint64, d *dec, fds []int) error {
	if err := d.end(); err != nil || len(fds) > 0 {
		return malformed(errors.Join(err, unexpected(fds)), fds)
	}
	s.recoverLost()
	s.awaitOrphans()
	s.mu.Lock()
	c.subscribed = true
	for i, l := range s.loops {
		pipe := l.stage.kept()
		mask, fds := pipe.list()
		c.send(keptMessage(stageName(i), 0, mask), fds...)
	}
	for _, p := range s.procs {
		if p.state != starting {
			p.loop.post(func() { p.introduce(c) })
		}
	}
	s.mu.Unlock()
	for _, l := range s.loops {
		l.call(func() {}) // all of that is sent before the answer
	}
	c.reply(id, nil, nil)
	return nil
}

// introduce gives an engine what it should hold of p, and its exit.
func (p *process) introduce(c *conn) {
	if p.gone {
		return
	}
	if mask, fds := p.fds.list(); !p.finished && mask != 0 {
		c.send(keptMessage(p.rec.key.file(), p.rec.pid, mask), fds...)
	}
	if p.told || p.finished {
		e := newMessage(opExited, 0)
		e.exited(p.exited)
		c.send(e.b)
	}
}

func (s *server) onUpgrade(c *conn, id uint64, d *dec, fds []int) error {
	path := d.str()
	if err := d.end(); err != nil || len(fds) > 0 {
		return malformed(errors.Join(err, unexpected(fds)), fds)
	}
	if s.keeper == nil {
		c.reply(id, errdefs.New(errdefs.Unsupported, "upgrade", "monitor", nil), nil)
		return nil
	}
	e := newMessage(opUpgrade, 0)
	e.str(path)
	s.keeper.send(e.b)
	c.reply(id, nil, nil)
	return nil
}

// onShutdown ends the monitor if nothing runs.
func (s *server) onShutdown(c *conn, id uint64, d *dec, fds []int) error {
	if err := d.end(); err != nil || len(fds) > 0 {
		return malformed(errors.Join(err, unexpected(fds)), fds)
	}
	if !s.quit(true) {
		s.mu.Lock()
		replaced := s.closing
		s.mu.Unlock()
		if replaced {
			return nil // the next worker will be asked again
		}
		c.reply(id, errdefs.New(errdefs.Conflict, "shut down", "monitor", errors.New("processes are running")), nil)
		return nil
	}
	c.reply(id, nil, nil)
	return nil
}

// quit ends the monitor if there is nothing for it to do. If no engine has asked
// for it none may be connected; exits that were not acknowledged stay on disk then.
func (s *server) quit(asked bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || asked && len(s.procs) > 0 || !asked && s.busyLocked() || len(s.lost) > 0 {
		return false
	}
	s.closing = true
	if s.keeper != nil {
		s.keeper.send(newMessage(opQuit, 0).b)
	}
	return true
}

// busyLocked reports whether somebody needs the monitor.
func (s *server) busyLocked() bool {
	for _, p := range s.procs {
		if p.state != exited {
			return true
		}
	}
	return len(s.conns) > 0
}

// firstEngine is how long a worker that lacks descriptors waits for an engine that
// may have them.
const firstEngine = 5 * time.Second

// quitWhenIdle ends the monitor once nobody has been there for a while.
func (s *server) quitWhenIdle(linger time.Duration) {
	time.Sleep(min(firstEngine, linger))
	s.recoverLost()
	for {
		s.mu.Lock()
		wait := linger - time.Since(s.idle)
		if s.busyLocked() {
			wait, s.idle = linger, time.Now()
		}
		s.mu.Unlock()
		if wait <= 0 && s.quit(false) {
			return
		}
		time.Sleep(max(wait, linger/10))
	}
}
