package monitor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/logs"
)

// stageName is what loop i's staging pipe is kept as; no process is called so.
func stageName(i int) string { return "#" + strconv.Itoa(i) }

func stageOfName(name string) (int, bool) {
	n, ok := strings.CutPrefix(name, "#")
	if !ok {
		return 0, false
	}
	i, err := strconv.Atoi(n)
	return i, err == nil && i >= 0 && i < maxLoops
}

// load reads the records of a predecessor. Those whose descriptors are kept go on
// at once; for the others an engine may have duplicates, so they wait for the
// first subscriber.
func (s *server) load(kept map[string]keptFDs) error {
	keys, err := s.dir.all()
	if err != nil {
		return err
	}
	for _, k := range keys {
		rec, err := s.dir.run(k)
		if err != nil || rec.key != k {
			// Cut off by a kill before the program ran: its set-up has ended itself.
			s.logf("a record that was not finished is dropped: %v", k)
			s.dir.remove(k)
			continue
		}
		fds, ok := kept[k.file()]
		delete(kept, k.file())
		if !s.hasRun(rec, fds, ok) {
			s.discard(rec, fds, ok)
			continue
		}
		if !ok {
			s.mu.Lock()
			s.lost[k] = rec
			s.mu.Unlock()
			continue
		}
		s.resume(rec, fds)
	}
	for name, fds := range kept {
		if _, isStage := stageOfName(name); !isStage {
			fds.close()
		}
	}
	s.mu.Lock()
	nothingLost := len(s.lost) == 0
	s.mu.Unlock()
	if nothingLost {
		s.recoverLost()
	}
	return nil
}

const (
	// setUpEnds is how long a set-up may take to notice that nobody will release it.
	setUpEnds = time.Second
	// setUpGaveUp is what onggi-init exits with then.
	setUpGaveUp = 125
)

// hasRun reports whether the process came to its program. One that was just being
// released shows it by itself, soon: it runs that, or has ended as a set-up ends.
func (s *server) hasRun(rec *record, fds keptFDs, kept bool) bool {
	if rec.phase != phaseReleasing || !kept || fds[keptPidFD] < 0 {
		return rec.phase != phaseSetUp
	}
	fd := fds[keptPidFD]
	for deadline := time.Now().Add(setUpEnds); time.Now().Before(deadline); {
		if linux.WaitReadable(fd, time.Millisecond) {
			st, ok := linux.ExitOf(fd)
			if !ok {
				st, ok = linux.ZombieExit(rec.pid, fd)
			}
			if x := s.dir.exit(rec.key, rec.pid); x != nil {
				st.Code, ok = x.Code, true
			}
			if ok {
				return st.Code != setUpGaveUp
			}
			time.Sleep(time.Millisecond) // its reaper is about to tell
			continue
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", rec.pid))
		if err == nil && !strings.Contains(exe, "onggi-init") {
			return true
		}
	}
	return true
}

// discard ends what a predecessor did not release. It ends by itself too, since
// nobody can release it any more.
func (s *server) discard(rec *record, fds keptFDs, kept bool) {
	if !kept {
		fds = noFDs()
		if fd, err := linux.OpenPidFD(rec.pid); err == nil {
			fds[keptPidFD] = fd
		}
	}
	if fd := fds[keptPidFD]; fd >= 0 && (kept || s.same(rec, fd)) {
		linux.SignalPidFD(fd, 9)
	}
	fds.close()
	s.dir.remove(rec.key)
	if s.keeper != nil {
		e := newMessage(opDrop, 0)
		e.key(rec.key)
		s.keeper.send(e.b)
	}
}

// onAdopt takes an engine's duplicates for a process whose own were lost.
func (s *server) onAdopt(c *conn, id uint64, d *dec, fds []int) error {
	name, mask := d.str(), d.u()
	if err := d.end(); err != nil {
		return malformed(err, fds)
	}
	kept := keptOf(mask, fds)
	if i, ok := stageOfName(name); ok {
		s.adoptStage(i, kept)
		c.reply(id, nil, nil)
		return nil
	}
	k := keyOfFile(name)
	s.mu.Lock()
	rec := s.lost[k]
	delete(s.lost, k)
	s.mu.Unlock()
	if rec == nil {
		kept.close() // it was recovered without, or has its own
	} else {
		s.resume(rec, kept)
	}
	c.reply(id, nil, nil)
	return nil
}

// adoptStage continues with a predecessor's staging pipe, if it holds a batch
// that is not logged yet.
func (s *server) adoptStage(i int, kept keptFDs) {
	if i >= len(s.loops) || kept[keptStdin] < 0 || kept[keptStdout] < 0 {
		kept.close()
		return
	}
	l := s.loops[i]
	l.call(func() {
		s.mu.Lock()
		late := len(s.lost) == 0
		s.mu.Unlock()
		if late {
			kept.close()
			return
		}
		l.stage.inherit(kept)
		s.keepStage(i) // or the next worker would count what is in another pipe
	})
}

// recoverLost goes on with processes of which nobody has descriptors: their pipes
// can be opened again, while they live. After it all batches of the predecessor
// are finished, and output flows.
func (s *server) recoverLost() {
	s.recovery.Do(func() {
		s.mu.Lock()
		lost := s.lost
		s.lost = map[Key]*record{}
		s.mu.Unlock()
		for _, rec := range lost {
			s.resume(rec, noFDs())
		}
		for _, l := range s.loops {
			l.call(func() {
				// What is left is of processes that nobody knows any more.
				if err := l.stage.reset(); err != nil {
					s.logf("empty a staging pipe: %v", err)
				}
			})
		}
		s.mu.Lock()
		resumed := s.resumed
		s.resumed = nil
		s.mu.Unlock()
		for _, p := range resumed {
			p.loop.post(p.goOn)
		}
	})
}

// resume takes a process of a predecessor over, up to the point where its output
// flows again: no stage may be used before all are finished.
func (s *server) resume(rec *record, fds keptFDs) {
	p := &process{
		srv: s, rec: *rec, loop: s.loops[int(s.turn.Add(1))%len(s.loops)], fds: fds,
		state: running, announced: true,
	}
	p.in.fd = -1
	var err error
	if p.log, err = logs.OpenWriter(rec.log); err != nil {
		s.logf("%v: its output is not logged any more: %v", rec.key, err)
	} else if rec.log.Driver == logs.None {
		p.log = nil
	}
	s.reopen(p)
	s.keep(p)
	for _, l := range s.loops {
		l.call(func() { s.finishStage(l.stage, p) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.procs[rec.key] = p
	s.resumed = append(s.resumed, p)
}

// goOn lets a resumed process's output flow.
func (p *process) goOn() {
	x := p.srv.dir.exit(p.rec.key, p.rec.pid)
	if x == nil && p.fds[keptPidFD] < 0 {
		x = &Exited{Key: p.rec.key, PID: p.rec.pid, Code: 255, At: time.Now(), Unknown: true}
		if err := p.srv.dir.putExit(x); err != nil {
			p.srv.logf("record the exit of %v: %v", p.rec.key, err)
		}
	}
	p.begin()
	if x != nil {
		p.setExit(x)
	} else {
		p.watchExit()
	}
	p.pump()
}

// finishStage logs the batch of p that a predecessor left in a stage.
func (s *server) finishStage(st *stage, p *process) {
	serial, which, ok := st.pending()
	if !ok || serial != p.rec.serial {
		return
	}
	pipe := p.fds[keptStdout]
	switch {
	case p.rec.terminal:
		pipe = p.fds[keptBuffer]
	case which == logs.Stderr:
		pipe = p.fds[keptStderr]
	}
	if p.log == nil || pipe < 0 {
		return
	}
	if err := st.finish(p.log, pipe); err != nil {
		s.logf("finish a batch of %v: %v", p.rec.key, err)
	}
}

// reopen opens what nobody kept, as far as that can be: the process by its
// number, if it is still the same, and its pipes through it.
func (s *server) reopen(p *process) {
	rec := &p.rec
	if p.fds[keptPidFD] < 0 {
		fd, err := linux.OpenPidFD(rec.pid)
		if err != nil {
			return // gone
		}
		if !s.same(rec, fd) {
			linux.CloseFD(fd)
			return
		}
		p.fds[keptPidFD] = fd
	}
	if rec.terminal {
		if p.fds[keptConsole] < 0 {
			s.logf("%v: its terminal is lost", rec.key)
		}
		return
	}
	for _, pipe := range []struct {
		kind, fd int
		ino      uint64
	}{{keptStdin, 0, rec.inIno}, {keptStdout, 1, rec.outIno}, {keptStderr, 2, rec.errIno}} {
		if pipe.ino == 0 || p.fds[pipe.kind] >= 0 {
			continue
		}
		fd, err := linux.ReopenPipe(rec.pid, pipe.fd, pipe.ino, pipe.kind == keptStdin)
		if err != nil {
			s.logf("%v: descriptor %d is lost: %v", rec.key, pipe.fd, err)
			continue
		}
		p.fds[pipe.kind] = fd
	}
}

// same reports whether the process behind pidfd is the recorded one and not a
// later one with its number.
func (s *server) same(rec *record, pidfd int) bool {
	if rec.pidIno != 0 {
		_, ino, err := linux.Inode(pidfd)
		return err == nil && ino == rec.pidIno
	}
	ticks, state, err := linux.StartTicks(rec.pid)
	return err == nil && ticks == rec.ticks && state != 'Z' && state != 'X'
}
