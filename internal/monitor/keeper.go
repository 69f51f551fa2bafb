package monitor

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/onggi/onggi/internal/linux"
)

// Exec-root's files.
const (
	socketName = "monitor.sock"
	stateDir   = "monitor"
	lockName   = "lock"
	logName    = "log"
	stageFile  = "stage"
)

// maxLoops bounds how many loops a worker has; a stage's words have room for them.
const maxLoops = 8

// A keeper is the worker's parent. It holds what the worker must not lose, sees
// the exits of processes whose worker died, and starts the next worker.
//
// It does nothing else, so that it has no reason to fail. One goroutine owns all.
type keeper struct {
	execRoot string
	dir      records
	id       string
	lock     *os.File
	listener *os.File
	log      *log.Logger
	program  string // what the next worker runs

	kept    map[string]keptProcess
	worker  int // its pid
	link    *linux.PacketConn
	inbox   chan letter // from the worker in charge
	reaped  chan orphan
	early   map[int]orphan // reaped before we knew whose they are
	quits   bool
	started time.Time // the worker
}

type keptProcess struct {
	pid int
	fds keptFDs
}

// A letter is a packet of the worker; err ends them.
type letter struct {
	packet []byte
	fds    []int
	err    error
}

// An orphan is a child that ended: the worker, or a process it left.
type orphan struct {
	pid int
	st  linux.ExitStatus
	at  time.Time
}

// RunKeeper is the first process of a monitor: it listens in execRoot and keeps a
// worker running until that says that nothing is left to do. ready is called when
// engines can connect. It returns nil at once if another monitor serves execRoot.
func RunKeeper(execRoot string, ready func()) error {
	linux.SetProcessName("onggi-keeper")
	dir := filepath.Join(execRoot, stateDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if got, err := linux.LockFile(lock, false); err != nil || !got {
		ready()
		return err
	}
	sock := filepath.Join(execRoot, socketName)
	if err := os.Remove(sock); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := linux.ListenPacket(sock, 0o600)
	if err != nil {
		return err
	}
	var id [16]byte
	rand.Read(id[:])
	k := newKeeper(execRoot)
	k.id, k.lock, k.listener = hex.EncodeToString(id[:]), lock, l.File()
	ready()
	return k.run()
}

func newKeeper(execRoot string) *keeper {
	return &keeper{
		execRoot: execRoot, dir: records(filepath.Join(execRoot, stateDir)), program: "/proc/self/exe",
		log:  log.New(os.Stderr, "keeper: ", log.LstdFlags|log.Lmicroseconds),
		kept: map[string]keptProcess{}, reaped: make(chan orphan, 64), early: map[int]orphan{},
	}
}

func (k *keeper) run() error {
	if err := linux.BecomeSubreaper(); err != nil {
		return err
	}
	if k.worker == 0 {
		if err := k.startWorker(); err != nil {
			return err
		}
	}
	go k.reap()
	for {
		select {
		case m := <-k.inbox:
			k.receive(m)
		case o := <-k.reaped:
			if o.pid != k.worker {
				k.orphaned(o)
				continue
			}
			// What the worker sent last is still in the socket.
			for k.inbox != nil {
				k.receive(<-k.inbox)
			}
			if k.quits {
				return k.cleanUp()
			}
			k.log.Printf("worker %d ended with %d, starting another", o.pid, o.st.Code)
			if err := k.restart(); err != nil {
				return err
			}
		}
	}
}

// restart starts a worker, slowly if they keep dying.
func (k *keeper) restart() error {
	if time.Since(k.started) < time.Second {
		time.Sleep(50 * time.Millisecond)
	}
	for try := 0; ; try++ {
		err := k.startWorker()
		if err == nil || try == 100 {
			return err
		}
		k.log.Print(err)
		k.program = "/proc/self/exe" // the one that was to be upgraded to may be broken
		time.Sleep(100 * time.Millisecond)
	}
}

// reap tells of every child that ends. There is always one: the worker.
func (k *keeper) reap() {
	for {
		pid, st, err := linux.ReapAny()
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		k.reaped <- orphan{pid, st, time.Now()}
	}
}

// startWorker runs a worker and gives it all that is kept.
func (k *keeper) startWorker() error {
	ours, theirs, err := linux.PacketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	ours.SetSendBuffer(1 << 20)
	theirs.SetSendBuffer(1 << 20)
	cmd := exec.Command(k.program, "worker", k.execRoot)
	cmd.Args[0] = "onggi-monitor"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs.File(), k.listener, k.lock}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return err
	}
	k.worker, k.link, k.started = cmd.Process.Pid, ours, time.Now()
	cmd.Process.Release() // reap waits for all
	k.listen()
	for name, p := range k.kept {
		mask, fds := p.fds.list()
		if err := ours.Send(keptMessage(name, p.pid, mask), fds...); err != nil {
			return nil // it died; that will be noticed
		}
	}
	e := newMessage(opReady, 0)
	e.str(k.id)
	ours.Send(e.b)
	clear(k.early)
	return nil
}

// listen has letters of the worker come to the inbox.
func (k *keeper) listen() {
	inbox, link := make(chan letter), k.link
	k.inbox = inbox
	go func() {
		for {
			buf := make([]byte, 4096)
			n, fds, err := link.Recv(buf)
			if errors.Is(err, linux.ErrTruncated) {
				continue
			}
			inbox <- letter{buf[:n], fds, err}
			if err != nil {
				return
			}
		}
	}()
}

func (k *keeper) receive(m letter) {
	if m.err != nil {
		if !errors.Is(m.err, io.EOF) {
			k.log.Print(m.err)
		}
		k.link.Close()
		k.inbox = nil
		return
	}
	op, _, d, err := openMessage(m.packet)
	if err != nil {
		linux.CloseFDs(m.fds)
		return
	}
	switch op {
	case opKept:
		name, pid, mask := d.str(), int(d.u()), d.u()
		old, had := k.kept[name]
		if had {
			old.fds.close()
		}
		k.kept[name] = keptProcess{pid, keptOf(mask, m.fds)}
		if o, ok := k.early[pid]; ok {
			delete(k.early, pid)
			k.orphaned(o)
		}
	case opTrim:
		name, mask := d.key().file(), d.u()
		if p, ok := k.kept[name]; ok {
			p.fds.trim(mask)
			k.kept[name] = p
		}
	case opDrop:
		name := d.key().file()
		if p, ok := k.kept[name]; ok {
			p.fds.close()
			delete(k.kept, name)
		}
	case opQuit:
		k.quits = true
		os.Remove(filepath.Join(k.execRoot, socketName))
		k.link.Send(newMessage(opQuit, 0).b)
	case opUpgrade:
		k.upgrade(d.str())
	}
}

// orphaned records the exit of a process that lost its worker.
func (k *keeper) orphaned(o orphan) {
	for name, p := range k.kept {
		if p.pid != o.pid || p.pid == 0 {
			continue
		}
		key := keyOfFile(name)
		rec, err := k.dir.run(key)
		if err == nil && rec.pid == o.pid && k.dir.exit(key, o.pid) == nil {
			x := &Exited{Key: key, PID: o.pid, Code: o.st.Code, Signal: o.st.Signal, Core: o.st.Core, At: o.at}
			if err := k.dir.putExit(x); err != nil {
				k.log.Printf("record the exit of %v: %v", key, err)
			}
		}
		return
	}
	// Either nobody's, or the worker's last letters are still to be read.
	if len(k.early) < 4096 {
		k.early[o.pid] = o
	}
}

// cleanUp leaves nothing behind, but exits that no engine has acknowledged.
func (k *keeper) cleanUp() error {
	_, err := k.dir.all() // removes leftovers
	errs := []error{err}
	for _, name := range []string{stageFile, logName, lockName} {
		if err := os.Remove(filepath.Join(string(k.dir), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	os.Remove(string(k.dir)) // stays if anything is in it
	return errors.Join(errs...)
}

// hand describes what a process of this program must know to become the keeper,
// in the file that it gets as an argument.
func (k *keeper) hand() (keep []int, e *enc) {
	e = &enc{[]byte{wireVersion}}
	e.str(k.execRoot)
	e.str(k.id)
	fd := func(n int) { keep = append(keep, n); e.u(uint64(n)) }
	fd(int(linux.RawFD(k.lock)))
	fd(int(linux.RawFD(k.listener)))
	e.u(uint64(k.worker))
	if k.worker != 0 {
		fd(int(linux.RawFD(k.link.File())))
	}
	e.u(uint64(len(k.kept)))
	for name, p := range k.kept {
		e.str(name)
		e.u(uint64(p.pid))
		mask, fds := p.fds.list()
		e.u(mask)
		for _, n := range fds {
			fd(n)
		}
	}
	return keep, e
}

// become replaces this process by a keeper with what is kept. It returns only
// with an error.
func (k *keeper) become(program string) error {
	keep, e := k.hand()
	f, err := linux.MemoryFile("onggi keeper", e.b)
	if err != nil {
		return err
	}
	defer f.Close()
	n := int(linux.RawFD(f))
	return linux.ExecInPlace(program, []string{"onggi-monitor", "resume", k.execRoot, strconv.Itoa(n)}, os.Environ(), append(keep, n))
}

// upgrade continues with another program: first the keeper itself, in place, then
// the worker.
func (k *keeper) upgrade(program string) {
	if program == "" {
		program = "/proc/self/exe"
	}
	err := k.become(program)
	k.log.Printf("upgrade to %s: %v", program, err)
}

// ResumeKeeper goes on as the keeper, with what become has put into the file that
// is descriptor n.
func ResumeKeeper(n int) error {
	linux.SetProcessName("onggi-keeper")
	f := os.NewFile(uintptr(n), "state")
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxBody))
	f.Close()
	if err != nil {
		return err
	}
	if len(b) == 0 || b[0] != wireVersion {
		return errMalformed
	}
	d := &dec{b: b[1:]}
	k := newKeeper(d.str())
	k.id = d.str()
	file := func(name string) *os.File {
		fd := int(d.u())
		linux.SetCloexec(fd)
		return os.NewFile(uintptr(fd), name)
	}
	k.lock, k.listener = file("lock"), file("listener")
	if k.worker = int(d.u()); k.worker != 0 {
		if k.link, err = linux.NewPacketConn(file("worker")); err != nil {
			return err
		}
	}
	for range d.count() {
		name, pid, mask := d.str(), int(d.u()), d.u()
		fds := noFDs()
		for i := range fds {
			if mask&(1<<i) != 0 {
				fds[i] = int(d.u())
				linux.SetCloexec(fds[i])
			}
		}
		k.kept[name] = keptProcess{pid, fds}
	}
	if err := d.end(); err != nil {
		return err
	}
	if k.worker != 0 {
		k.started = time.Now()
		k.listen()
		// It ends between two batches, and the next one is of the new program.
		k.link.Send(newMessage(opQuit, 0).b)
	}
	return k.run()
}
