package monitor

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// A server is the worker: it serves engines and owns the processes.
type server struct {
	dir    records
	launch launcher
	keeper *conn // nil: nobody keeps duplicates
	loops  []*loop
	log    *log.Logger
	id     string // of the keeper: a client that knows another one has things to hand over

	serial atomic.Uint64
	turn   atomic.Uint32
	// pidInodes: pidfds have inodes of their own here (Linux 6.9).
	pidInodes bool

	mu       sync.Mutex
	changed  sync.Cond        // of mu: a start came to its end
	procs    map[Key]*process // guarded by mu
	conns    map[*conn]bool   // guarded by mu
	closing  bool             // guarded by mu; no more starts
	lost     map[Key]*record  // guarded by mu; found on disk, descriptors not yet
	resumed  []*process       // guarded by mu; taken over, output not flowing yet
	idle     time.Time        // guarded by mu; since when nobody is there
	recovery sync.Once        // the first subscriber ends the wait for descriptors
}

func newServer(dir records, launch launcher, stages []*stage, lg *log.Logger) (*server, error) {
	s := &server{
		dir: dir, launch: launch, log: lg, procs: map[Key]*process{}, conns: map[*conn]bool{},
		lost: map[Key]*record{}, idle: time.Now(), pidInodes: pidfdInodes(),
	}
	s.changed.L = &s.mu
	s.serial.Store(uint64(time.Now().UnixNano()))
	for _, st := range stages {
		l, err := newLoop(st)
		if err != nil {
			return nil, err
		}
		s.loops = append(s.loops, l)
		go l.run()
	}
	return s, nil
}

// pidfdInodes reports whether different processes' pidfds differ in their inode.
func pidfdInodes() bool {
	a, err := linux.OpenPidFD(os.Getpid())
	if err != nil {
		return false
	}
	defer linux.CloseFD(a)
	b, err := linux.OpenPidFD(1)
	if err != nil {
		return false
	}
	defer linux.CloseFD(b)
	_, i, _ := linux.Inode(a)
	_, j, _ := linux.Inode(b)
	return i != j
}

func (s *server) logf(format string, args ...any) { s.log.Printf(format, args...) }

// start runs one StartRequest.
func (s *server) start(c *conn, r *StartRequest, files []*os.File, conns []int) (*process, error) {
	if err := s.checkStart(r, conns); err != nil {
		linux.CloseFDs(conns)
		return nil, err
	}
	p := &process{
		srv: s, loop: s.loops[int(s.turn.Add(1))%len(s.loops)], fds: noFDs(), owner: c,
		rec: record{
			key: r.Key, serial: s.serial.Add(1), terminal: r.Terminal,
			openStdin: r.OpenStdin, stdinOnce: r.StdinOnce, log: r.Log,
		},
	}
	p.in.fd = -1
	if err := s.reserve(p); err != nil {
		linux.CloseFDs(conns)
		return nil, err
	}
	err := s.launchProcess(p, r, files, conns)
	if err == nil && !r.Hold {
		err = s.release(p)
	}
	if err != nil {
		s.abandon(p)
		return nil, err
	}
	if r.Hold && !s.hold(p) {
		s.abandon(p)
		return nil, errLost
	}
	return p, nil
}

// hold has p wait for its engine, unless that has gone meanwhile.
func (s *server) hold(p *process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.state = held
	s.changed.Broadcast()
	return s.conns[p.owner]
}

func (s *server) checkStart(r *StartRequest, conns []int) error {
	if err := r.Key.check(); err != nil {
		return err
	}
	if len(r.Attach) != len(conns) {
		return errdefs.Newf(errdefs.Invalid, "start", r.Key.String(), "%d connections for %d clients", len(conns), len(r.Attach))
	}
	return r.Log.Check()
}

// reserve makes the key p's.
func (s *server) reserve(p *process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errLost
	}
	if old := s.procs[p.rec.key]; old != nil {
		if old.state != exited {
			return errdefs.Newf(errdefs.Conflict, "start", p.rec.key.String(), "it is running as process %d", old.rec.pid)
		}
		// Whoever starts it again knows that it has exited.
		s.dir.remove(p.rec.key)
		old.loop.post(old.acknowledged)
	}
	s.procs[p.rec.key] = p
	return nil
}

// launchProcess does everything up to the point where the program could run.
func (s *server) launchProcess(p *process, r *StartRequest, files []*os.File, conns []int) (err error) {
	attached := false
	defer func() {
		if !attached {
			linux.CloseFDs(conns)
		}
	}()
	if r.Log.Driver != logs.None {
		if p.log, err = logs.OpenWriter(r.Log); err != nil {
			return err
		}
	}
	stdio, err := p.makeStdio(r)
	if err != nil {
		return err
	}
	init, err := s.launch(r.Program, files, stdio)
	closeStdio(stdio)
	if err != nil {
		return err
	}
	if err := init.WaitReady(); err != nil {
		return err
	}
	p.init = init
	pid, pidfd := init.ids()
	p.rec.pid, p.rec.startedAt = pid, time.Now()
	if p.fds[keptPidFD], err = linux.DupFD(int(linux.RawFD(pidfd))); err != nil {
		return err
	}
	if r.Terminal {
		if err := p.takeConsole(init.Console(), r); err != nil {
			return err
		}
	}
	if err := s.putRecord(p); err != nil {
		return err
	}
	s.keep(p)
	attached = true
	specs := r.Attach
	p.loop.post(func() {
		for i, fd := range conns {
			p.attach(specs[i], fd)
		}
		p.begin()
	})
	return nil
}

// makeStdio makes the pipes and gives the program's ends.
func (p *process) makeStdio(r *StartRequest) (s initproc.Stdio, err error) {
	if r.Terminal {
		return s, nil
	}
	defer func() {
		if err != nil {
			closeStdio(s)
		}
	}()
	if r.OpenStdin {
		if s.Stdin, p.fds[keptStdin], err = linux.InputPipe(); err != nil {
			return s, err
		}
		_, p.rec.inIno, _ = linux.Inode(p.fds[keptStdin])
	}
	main := r.Key.Exec == ""
	if !main && r.Log.Driver == logs.None && len(r.Attach) == 0 {
		return s, nil // nobody can ever see its output
	}
	if p.fds[keptStdout], s.Stdout, err = linux.OutputPipe(main); err != nil {
		return s, err
	}
	if p.fds[keptStderr], s.Stderr, err = linux.OutputPipe(main); err != nil {
		return s, err
	}
	_, p.rec.outIno, _ = linux.Inode(p.fds[keptStdout])
	_, p.rec.errIno, _ = linux.Inode(p.fds[keptStderr])
	return s, nil
}

func closeStdio(s initproc.Stdio) {
	for _, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		if f != nil {
			f.Close()
		}
	}
}

func (p *process) takeConsole(master *os.File, r *StartRequest) error {
	if master == nil {
		return errdefs.Newf(errdefs.Internal, "start", r.Key.String(), "the program made no terminal")
	}
	fd, err := linux.TakeFD(master)
	if err != nil {
		return err
	}
	p.fds[keptConsole] = fd
	if err := linux.SetNonblockFD(fd); err != nil {
		return err
	}
	if r.Width > 0 && r.Height > 0 {
		if err := linux.SetWinsize(fd, r.Width, r.Height); err != nil {
			return err
		}
	}
	if p.fds[keptBuffer], err = linux.SelfPipe(); err != nil {
		return err
	}
	linux.SetPipeSize(p.fds[keptBuffer], stagePipe)
	return nil
}

func (s *server) putRecord(p *process) error {
	if s.pidInodes {
		_, p.rec.pidIno, _ = linux.Inode(p.fds[keptPidFD])
	} else {
		p.rec.ticks, _, _ = linux.StartTicks(p.rec.pid)
	}
	var err error
	if p.file, err = s.dir.putRun(&p.rec); err != nil {
		return errdefs.Newf(errdefs.Internal, "start", p.rec.key.String(), "%w", err)
	}
	return nil
}

// release lets the program run. If that goes wrong the caller abandons p, else it
// answers the engine and has the exit watched.
func (s *server) release(p *process) error {
	init := s.takeInit(p)
	if init == nil {
		return errdefs.Newf(errdefs.Conflict, "start", p.rec.key.String(), "it is not waiting to be released")
	}
	err := setPhase(p.file, phaseReleasing)
	if err == nil {
		err = init.Release()
	}
	if err == nil {
		err = setPhase(p.file, phaseReleased)
	}
	if err != nil {
		init.Kill()
		return err
	}
	p.file.Close()
	if err := init.WaitExec(); err != nil {
		return err
	}
	_, pidfd := init.ids()
	pidfd.Close() // p.fds has a duplicate
	s.setState(p, running)
	return nil
}

// takeInit gives p's set-up to one who will end it, one way or the other.
func (s *server) takeInit(p *process) launched {
	s.mu.Lock()
	defer s.mu.Unlock()
	init := p.init
	p.init = nil
	return init
}

// abandon undoes a start: no process, record or descriptor is left.
//
// Preconditions: the caller has p's set-up, or it has ended.
func (s *server) abandon(p *process) {
	if init := s.takeInit(p); init != nil {
		init.Kill()
	}
	if p.file != nil {
		p.file.Close()
	}
	p.loop.call(p.teardown)
	s.forget(p)
}

// forget removes what is known of p, unless its key is another's by now.
func (s *server) forget(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.procs[p.rec.key] != p {
		return
	}
	delete(s.procs, p.rec.key)
	s.changed.Broadcast()
	// Under the lock, or it could remove the record of a new start.
	if err := s.dir.remove(p.rec.key); err != nil {
		s.logf("forget %v: %v", p.rec.key, err)
	}
	s.broadcastLocked(opDrop, func(e *enc) { e.key(p.rec.key) })
}

func (s *server) setState(p *process, st state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.state != exited {
		p.state = st
	}
	s.changed.Broadcast()
}

// settled waits until no process is one to wait for, at most d. waits is called
// with s.mu held.
func (s *server) settled(d time.Duration, waits func(*process) bool) bool {
	deadline := time.Now().Add(d)
	wake := time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})
	defer wake.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for time.Now().Before(deadline) {
		some := false
		for _, p := range s.procs {
			some = some || waits(p)
		}
		if !some {
			return true
		}
		s.changed.Wait()
	}
	return false
}

// awaitOrphans waits for starts whose engine has gone: its successor must learn of
// them. A set-up that hangs is waited for only so long.
func (s *server) awaitOrphans() {
	s.settled(quiesce, func(p *process) bool { return p.state == starting && !s.conns[p.owner] })
}

// setExit marks p exited. The exit is on disk.
func (s *server) setExit(p *process, x *Exited) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.state, p.exit = exited, x
}

// tell sends an exit to all engines.
func (s *server) tell(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.subscribed {
			e := newMessage(opExited, 0)
			e.exited(p.exit)
			c.send(e.b)
		}
	}
}

// keep gives the keeper duplicates of what p needs, and the engine that starts it:
// they must be on their way to both before its program runs.
func (s *server) keep(p *process) {
	mask, fds := p.fds.list()
	msg := keptMessage(p.rec.key.file(), p.rec.pid, mask)
	if s.keeper != nil {
		s.keeper.send(msg, fds...)
	}
	if p.owner != nil {
		p.owner.send(msg, fds...)
	}
}

func keptMessage(name string, pid int, mask uint64) []byte {
	e := newMessage(opKept, 0)
	e.str(name)
	e.u(uint64(pid))
	e.u(mask)
	return e.b
}

// trim tells everybody to close some duplicates of p's, unless its key is
// another's by now: those are the other's.
func (s *server) trim(p *process, mask uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.procs[p.rec.key] != p {
		return
	}
	s.broadcastLocked(opTrim, func(e *enc) { e.key(p.rec.key); e.u(mask) })
}

func (s *server) broadcastLocked(op byte, body func(*enc)) {
	e := newMessage(op, 0)
	body(e)
	if s.keeper != nil {
		s.keeper.send(e.b)
	}
	for c := range s.conns {
		if c.subscribed {
			c.send(e.b)
		}
	}
}

// find returns a process that is not starting any more.
func (s *server) find(op string, k Key) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.procs[k]
	if p == nil || p.state == starting {
		return nil, errdefs.New(errdefs.NotFound, op, k.String(), errors.New("no such process"))
	}
	return p, nil
}

func (s *server) findRunning(op string, k Key) (*process, error) {
	p, err := s.find(op, k)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.state == exited {
		return nil, errdefs.New(errdefs.Conflict, op, k.String(), errors.New("it has exited"))
	}
	return p, nil
}

// serve answers one engine until it goes.
func (s *server) serve(pc *linux.PacketConn) {
	c := newConn(pc)
	s.mu.Lock()
	s.conns[c] = true
	s.mu.Unlock()
	hello := newMessage(opHello, 0)
	hello.str(s.id)
	hello.u(uint64(os.Getpid()))
	c.send(hello.b)
	buf := make([]byte, maxPacket)
	for {
		n, fds, err := pc.Recv(buf)
		if errors.Is(err, linux.ErrTruncated) {
			continue
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				s.logf("receive from an engine: %v", err)
			}
			break
		}
		if err := s.receive(c, buf[:n], fds); err != nil {
			s.logf("refused a message: %v", err)
			break
		}
	}
	c.close()
	s.left(c)
}

// left cleans up after an engine: what it held back will never be released.
func (s *server) left(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	abandoned := map[*process]launched{}
	for _, p := range s.procs {
		if p.owner == c && p.state == held && p.init != nil {
			abandoned[p], p.init = p.init, nil
		}
	}
	s.mu.Unlock()
	for p, init := range abandoned {
		init.Kill()
		s.abandon(p)
	}
}

// receive handles one packet. An error means that the peer does not speak our
// language; what it asked for in that language is answered, failures included.
func (s *server) receive(c *conn, packet []byte, fds []int) error {
	op, id, d, err := openMessage(packet)
	if err == nil && op&inFile != 0 {
		if op, d, fds, err = bodyFromFile(op, d, fds); err != nil {
			linux.CloseFDs(fds)
			return err
		}
	}
	if err != nil {
		linux.CloseFDs(fds)
		return err
	}
	h, ok := handlers[op]
	if !ok || id == 0 {
		linux.CloseFDs(fds)
		return fmt.Errorf("%w: operation %d is not a request", errMalformed, op)
	}
	return h(s, c, id, d, fds)
}

// accept serves every connection of who may connect.
func (s *server) accept(l *linux.PacketListener) error {
	for {
		pc, err := l.Accept()
		if err != nil {
			if errors.Is(err, os.ErrClosed) {
				return nil
			}
			return err
		}
		_, uid, err := pc.PeerCred()
		if err != nil || uid != 0 && int(uid) != os.Geteuid() {
			s.logf("refused a connection of user %d: %v", uid, err)
			pc.Close()
			continue
		}
		pc.SetSendBuffer(1 << 20)
		go s.serve(pc)
	}
}
