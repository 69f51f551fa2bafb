package monitor

import (
	"errors"
	"io"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/onggi/onggi/internal/linux"
)

const (
	// loopCount is how many processors the monitor may use for output.
	loopCount = 2
	// linger is how long a monitor without work waits for an engine.
	linger = time.Minute
	// quiesce is how long one waits for starts that are under way.
	quiesce = 5 * time.Second
)

// RunWorker is the second process of a monitor: it serves engines and processes.
// Descriptor 3 is the link to the keeper, 4 the listening socket, 5 the lock.
func RunWorker(execRoot string) error { return runWorker(execRoot, startInit) }

func runWorker(execRoot string, launch launcher) error {
	runtime.GOMAXPROCS(loopCount)
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(10 << 20)
	linux.SetProcessName("onggi-monitor")
	lg := log.New(os.Stderr, "worker: ", log.LstdFlags|log.Lmicroseconds)
	for fd := 3; fd <= 5; fd++ {
		linux.SetCloexec(fd)
	}
	link, err := linux.NewPacketConn(os.NewFile(3, "keeper"))
	if err != nil {
		return err
	}
	listener, err := linux.NewPacketListener(os.NewFile(4, "listener"))
	if err != nil {
		return err
	}
	lock := os.NewFile(5, "lock")
	id, kept, pids, err := receiveKept(link)
	if err != nil {
		return err
	}
	dir := records(filepath.Join(execRoot, stateDir))
	stages, err := openStages(dir, kept)
	if err != nil {
		return err
	}
	s, err := newServer(dir, launch, stages, lg)
	if err != nil {
		return err
	}
	s.id, s.keeper = id, newConn(link)
	for i := range s.loops {
		s.keepStage(i)
	}
	if err := s.load(kept); err != nil {
		return err
	}
	go func() {
		if err := s.accept(listener); err != nil {
			lg.Printf("accept: %v", err)
		}
	}()
	go s.quitWhenIdle(linger)
	return s.heedKeeper(link, &keeper{execRoot: execRoot, id: id, lock: lock, listener: listener.File()}, pids)
}

// receiveKept reads what the keeper has, up to its word that this is all.
func receiveKept(link *linux.PacketConn) (id string, kept map[string]keptFDs, pids map[string]int, err error) {
	kept, pids = map[string]keptFDs{}, map[string]int{}
	buf := make([]byte, 4096)
	for {
		n, fds, err := link.Recv(buf)
		if err != nil {
			return "", nil, nil, err
		}
		op, _, d, err := openMessage(buf[:n])
		if err != nil {
			return "", nil, nil, err
		}
		switch op {
		case opKept:
			name, pid, mask := d.str(), int(d.u()), d.u()
			kept[name], pids[name] = keptOf(mask, fds), pid
		case opReady:
			id = d.str()
			return id, kept, pids, d.end()
		}
	}
}

// openStages maps the words that outlive workers and makes a stage for each loop.
func openStages(dir records, kept map[string]keptFDs) ([]*stage, error) {
	f, err := os.OpenFile(filepath.Join(string(dir), stageFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(8 * stageWords * maxLoops); err != nil {
		return nil, err
	}
	words, err := linux.MapWords(f, stageWords*maxLoops)
	if err != nil {
		return nil, err
	}
	var stages []*stage
	for i := range loopCount {
		var old *keptFDs
		if k, ok := kept[stageName(i)]; ok && k[keptStdin] >= 0 && k[keptStdout] >= 0 {
			old = &k
		}
		st, err := newStage(words[i*stageWords:(i+1)*stageWords], old)
		if err != nil {
			return nil, err
		}
		stages = append(stages, st)
	}
	return stages, nil
}

// keepStage gives the keeper the staging pipe of loop i.
func (s *server) keepStage(i int) {
	if s.keeper == nil {
		return
	}
	k := s.loops[i].stage.kept()
	mask, fds := k.list()
	s.keeper.send(keptMessage(stageName(i), 0, mask), fds...)
}

func (s *stage) kept() keptFDs {
	k := noFDs()
	k[keptStdin], k[keptStdout] = s.w, s.r
	return k
}

// heedKeeper does what the keeper says, and takes its place when it is gone.
func (s *server) heedKeeper(link *linux.PacketConn, k *keeper, pids map[string]int) error {
	buf := make([]byte, 4096)
	for {
		n, fds, err := link.Recv(buf)
		linux.CloseFDs(fds)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.logf("receive from the keeper: %v", err)
			}
			s.mu.Lock()
			quits := s.closing
			s.closing = true // who asks for the end from now on asks the next one
			s.mu.Unlock()
			if quits { // it was about to end anyway, but has not removed what it made
				os.Remove(filepath.Join(k.execRoot, socketName))
				k.dir = s.dir
				return k.cleanUp()
			}
			s.logf("the keeper is gone, taking its place")
			s.rest()
			k.kept = s.keptNow()
			return k.become("/proc/self/exe")
		}
		if op, _, _, err := openMessage(buf[:n]); err == nil && op == opQuit {
			s.rest()
			return nil
		}
	}
}

// rest stops everything between two batches.
func (s *server) rest() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	if !s.settled(quiesce, func(p *process) bool { return p.state < running }) {
		s.logf("starts under way are given up")
	}
	for _, l := range s.loops {
		l.stop()
	}
}

// keptNow is what a keeper would have. The loops rest.
func (s *server) keptNow() map[string]keptProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := map[string]keptProcess{}
	for k, p := range s.procs {
		if p.state != starting {
			kept[k.file()] = keptProcess{p.rec.pid, p.fds}
		}
	}
	for i, l := range s.loops {
		kept[stageName(i)] = keptProcess{0, l.stage.kept()}
	}
	return kept
}
