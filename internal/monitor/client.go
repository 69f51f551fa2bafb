package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// Options say where the monitor is, and how to start it.
type Options struct {
	ExecRoot string
	Binary   string // of onggi-monitor; empty: beside this program
	Logger   *slog.Logger
}

// errLost is what a request gets whose answer will not come.
var errLost = errors.New("the monitor was lost while it was asked")

// A Client is an engine's side. It reconnects by itself, starts the monitor again
// when it is gone, and hands over the duplicates that it keeps.
type Client struct {
	o      Options
	log    *slog.Logger
	events *eventQueue

	leaving sync.Mutex // held while the monitor is asked to end; before mu

	mu      sync.Mutex
	link    *link                  // guarded by mu; nil while there is none
	changed chan struct{}          // guarded by mu; closed when link changes
	kept    map[string]keptProcess // guarded by mu
	id      string                 // guarded by mu; the keeper that has all of kept
	closed  bool                   // guarded by mu
}

// A link is one connection to a worker.
type link struct {
	c   *conn
	pid int
	id  string

	mu      sync.Mutex
	next    uint64                   // guarded by mu
	waiting map[uint64]chan<- answer // guarded by mu; nil once the link is lost
}

type answer struct {
	d   *dec
	fds []int
	err error
}

// Connect finds the monitor of an exec-root, or starts it.
func Connect(ctx context.Context, o Options) (*Client, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		o: o, log: o.Logger, events: newEventQueue(),
		kept: map[string]keptProcess{}, changed: make(chan struct{}),
	}
	if err := c.connect(ctx); err != nil {
		c.events.close()
		return nil, errdefs.WithHint(
			errdefs.Newf(errdefs.Unavailable, "connect to", "monitor", "%w", err),
			"see "+filepath.Join(o.ExecRoot, stateDir, logName))
	}
	return c, nil
}

// Close leaves the monitor, which goes on.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	l := c.link
	for name, k := range c.kept {
		k.fds.close()
		delete(c.kept, name)
	}
	c.mu.Unlock()
	if l != nil {
		l.c.close()
	}
	c.events.close()
	return nil
}

// connect makes a link, and tells the monitor what it may have lost.
func (c *Client) connect(ctx context.Context) error {
	sock := filepath.Join(c.o.ExecRoot, socketName)
	var last error
	for try := 0; try < 50; try++ {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, last)
		}
		pc, err := linux.DialPacket(sock)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			if err := spawn(c.o); err != nil {
				return err
			}
			pc, err = linux.DialPacket(sock)
		}
		if err == nil {
			if err = c.greet(ctx, pc); err == nil {
				return nil
			}
		}
		// It may be on its way out, or another one on its way in.
		last = err
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return last
}

// greet makes pc the link.
func (c *Client) greet(ctx context.Context, pc *linux.PacketConn) error {
	pc.SetSendBuffer(1 << 20)
	l := &link{c: newConn(pc), waiting: map[uint64]chan<- answer{}}
	hello := make(chan struct{})
	go c.receive(l, hello)
	select {
	case <-hello:
	case <-ctx.Done():
		l.c.close()
		return ctx.Err()
	}
	if l.id == "" {
		return errLost
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		l.c.close()
		return os.ErrClosed
	}
	hand := map[string]keptProcess{}
	if l.id != c.id {
		hand, c.kept = c.kept, map[string]keptProcess{}
	}
	c.mu.Unlock()
	err := c.introduce(ctx, l, hand)
	c.mu.Lock()
	defer c.mu.Unlock()
	// A link that breaks later finds itself in use, and is replaced.
	if err == nil && l.dead() {
		err = errLost
	}
	if err != nil {
		for name, k := range hand {
			c.keep(name, k)
		}
		l.c.close()
		return err
	}
	for _, k := range hand {
		k.fds.close() // those that live came anew
	}
	c.id, c.link = l.id, l
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

// dead reports whether the link has broken.
func (l *link) dead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting == nil
}

// introduce hands over what a new keeper does not have, and asks for events.
func (c *Client) introduce(ctx context.Context, l *link, hand map[string]keptProcess) error {
	for _, name := range handOrder(hand) {
		k := hand[name]
		mask, fds := k.fds.list()
		_, err := l.ask(ctx, opAdopt, func(e *enc) { e.str(name); e.u(mask) }, fds...)
		if err != nil {
			return err
		}
	}
	_, err := l.ask(ctx, opSubscribe, nil)
	return err
}

// handOrder gives the names in the order they are to be adopted in: staging pipes
// first, since whoever takes a process over finishes its batch at once.
func handOrder(hand map[string]keptProcess) []string {
	return slices.SortedFunc(maps.Keys(hand), func(a, b string) int {
		_, aStage := stageOfName(a)
		_, bStage := stageOfName(b)
		switch {
		case aStage && !bStage:
			return -1
		case bStage && !aStage:
			return 1
		}
		return strings.Compare(a, b)
	})
}

// keep remembers duplicates, unless there are newer ones.   Preconditions: c.mu is held.
func (c *Client) keep(name string, k keptProcess) {
	if _, newer := c.kept[name]; newer || c.closed {
		k.fds.close()
		return
	}
	c.kept[name] = k
}

// receive handles what comes over a link until it is lost.
func (c *Client) receive(l *link, hello chan struct{}) {
	buf := make([]byte, maxPacket)
	greeted := false
	for {
		n, fds, err := l.c.pc.Recv(buf)
		if err != nil {
			break
		}
		op, id, d, err := openMessage(buf[:n])
		if err == nil && op&inFile != 0 {
			op, d, fds, err = bodyFromFile(op, d, fds)
		}
		if err != nil {
			linux.CloseFDs(fds)
			c.log.Error("the monitor sent a malformed message", "error", err)
			break
		}
		if op == opHello && !greeted {
			l.id, l.pid = d.str(), int(d.u())
			greeted = true
			close(hello)
			continue
		}
		c.dispatch(l, op, id, d, fds)
	}
	if !greeted {
		close(hello)
	}
	l.c.close()
	l.fail()
	c.lost(l)
}

func (c *Client) dispatch(l *link, op byte, id uint64, d *dec, fds []int) {
	switch op {
	case opReply:
		l.mu.Lock()
		ch := l.waiting[id]
		delete(l.waiting, id)
		l.mu.Unlock()
		if ch == nil {
			linux.CloseFDs(fds)
			return
		}
		// The buffer is used again before the receiver reads.
		ch <- answer{d: &dec{b: append([]byte(nil), d.b...)}, fds: fds}
	case opExited:
		if x := d.exited(); d.end() == nil {
			c.events.put(*x)
		}
		linux.CloseFDs(fds)
	case opKept:
		name, pid, mask := d.str(), int(d.u()), d.u()
		k := keptProcess{pid, keptOf(mask, fds)}
		c.mu.Lock()
		if old, ok := c.kept[name]; ok {
			old.fds.close()
			delete(c.kept, name)
		}
		c.keep(name, k)
		c.mu.Unlock()
	case opTrim:
		c.trim(d.key(), d.u())
	case opDrop:
		c.trim(d.key(), ^uint64(0))
	default:
		linux.CloseFDs(fds)
	}
}

func (c *Client) trim(k Key, mask uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.kept[k.file()]
	if !ok {
		return
	}
	p.fds.trim(mask)
	if left, _ := p.fds.list(); left == 0 {
		delete(c.kept, k.file())
	} else {
		c.kept[k.file()] = p
	}
}

// lost connects again when the link in use breaks.
func (c *Client) lost(l *link) {
	c.mu.Lock()
	again := c.link == l && !c.closed
	if again {
		c.link = nil
	}
	c.mu.Unlock()
	if !again {
		return
	}
	c.leaving.Lock()
	c.mu.Lock()
	again = !c.closed
	c.mu.Unlock()
	c.leaving.Unlock()
	if !again {
		return
	}
	c.log.Warn("the monitor is gone, connecting again")
	for {
		err := c.connect(context.Background())
		if err == nil || errors.Is(err, os.ErrClosed) {
			return
		}
		c.log.Error("connect to the monitor", "error", err)
		time.Sleep(time.Second)
	}
}

// current waits for a link.
func (c *Client) current(ctx context.Context) (*link, error) {
	for {
		c.mu.Lock()
		l, changed, closed := c.link, c.changed, c.closed
		c.mu.Unlock()
		if closed {
			return nil, errdefs.New(errdefs.Unavailable, "ask", "monitor", os.ErrClosed)
		}
		if l != nil {
			return l, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errdefs.New(errdefs.Unavailable, "connect to", "monitor", ctx.Err())
		}
	}
}

// ask sends a request and waits for the answer.
func (l *link) ask(ctx context.Context, op byte, body func(*enc), fds ...int) (answer, error) {
	ch := make(chan answer, 1)
	l.mu.Lock()
	if l.waiting == nil {
		l.mu.Unlock()
		return answer{}, errLost
	}
	l.next++
	id := l.next
	l.waiting[id] = ch
	l.mu.Unlock()
	forget := func() {
		l.mu.Lock()
		delete(l.waiting, id)
		l.mu.Unlock()
	}
	e := newMessage(op, id)
	if body != nil {
		body(e)
	}
	packet, file, fd, err := e.packet()
	if err != nil {
		forget()
		return answer{}, err
	}
	if file != nil {
		defer file.Close()
		fds = append([]int{fd}, fds...)
	}
	if len(fds) > linux.MaxPassedFiles {
		forget()
		return answer{}, errdefs.Newf(errdefs.Exhausted, "ask", "monitor", "%d descriptors in one request, of at most %d", len(fds), linux.MaxPassedFiles)
	}
	if err := l.c.send(packet, fds...); err != nil {
		forget()
		return answer{}, errdefs.New(errdefs.Internal, "ask", "monitor", err)
	}
	select {
	case a := <-ch:
		if a.err != nil {
			return a, a.err
		}
		if err := a.d.error(); err != nil {
			linux.CloseFDs(a.fds)
			return answer{}, err
		}
		if a.d.err != nil {
			linux.CloseFDs(a.fds)
			return answer{}, a.d.err
		}
		return a, nil
	case <-ctx.Done():
		forget()
		return answer{}, ctx.Err()
	}
}

// fail answers all that wait.
func (l *link) fail() {
	l.mu.Lock()
	waiting := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	for _, ch := range waiting {
		ch <- answer{err: errLost}
	}
}

// ask is for requests that may be repeated when the monitor is replaced.
func (c *Client) ask(ctx context.Context, op byte, body func(*enc), fds ...int) (answer, error) {
	for {
		l, err := c.current(ctx)
		if err != nil {
			return answer{}, err
		}
		a, err := l.ask(ctx, op, body, fds...)
		if !errors.Is(err, errLost) {
			return a, err
		}
		if err := c.leave(ctx, l); err != nil {
			return answer{}, err
		}
	}
}

// leave waits until l is not the link in use any more; after Close, none will be.
func (c *Client) leave(ctx context.Context, l *link) error {
	for {
		c.mu.Lock()
		now, changed, closed := c.link, c.changed, c.closed
		c.mu.Unlock()
		if now != l || closed {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Start runs a process, or holds it right before its program. The program's own
// set-up errors are *initproc.StepError. If the monitor dies meanwhile, the next
// one is asked; the program never runs twice. PidFD is nil for a process that ran
// and exited before its start could be told; its exit comes as an event.
func (c *Client) Start(ctx context.Context, r StartRequest) (*Started, error) {
	fds := linux.RawFDs(r.Files)
	for _, a := range r.Attach {
		if a.Conn == nil {
			return nil, errdefs.Newf(errdefs.Invalid, "start", r.Key.String(), "a client without a connection")
		}
		fd, err := connection(a.Conn)
		if err != nil {
			return nil, errdefs.New(errdefs.Internal, "start", r.Key.String(), err)
		}
		defer linux.CloseFDs([]int{fd})
		fds = append(fds, fd)
	}
	a, s, err := c.askStart(ctx, &r, fds)
	if err != nil || s != nil {
		return s, err
	}
	s = &Started{PID: int(a.d.u()), StartedAt: a.d.time()}
	if err := a.d.end(); err != nil || len(a.fds) != 1 {
		linux.CloseFDs(a.fds)
		return nil, errors.Join(err, errMalformed)
	}
	s.PidFD = linux.Files(a.fds)[0]
	return s, nil
}

// connection duplicates that of a client, which may go away at any moment: then
// it is one whose other end is closed.
func connection(f *os.File) (int, error) {
	fd, err := linux.DupOf(f)
	if !errors.Is(err, os.ErrClosed) {
		return fd, err
	}
	ours, theirs, err := linux.StreamPair()
	if err != nil {
		return -1, err
	}
	theirs.Close()
	return linux.TakeFD(ours)
}

func dupFile(fd int) (*os.File, error) {
	n, err := linux.DupFD(fd)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "pidfd"), nil
}

// startTries is how many monitors may die under one start.
const startTries = 10

// askStart asks until there is an answer, or until the process turns out to run
// although the answer was lost.
func (c *Client) askStart(ctx context.Context, r *StartRequest, fds []int) (answer, *Started, error) {
	for range startTries {
		l, err := c.current(ctx)
		if err != nil {
			return answer{}, nil, err
		}
		a, err := l.ask(ctx, opStart, func(e *enc) { e.start(r) }, fds...)
		if !errors.Is(err, errLost) {
			return a, nil, err
		}
		if err := c.leave(ctx, l); err != nil {
			return answer{}, nil, err
		}
		// What was not released is gone. What was, is known.
		if s, err := c.find(ctx, r.Key); err != nil || s != nil {
			return answer{}, s, err
		}
	}
	return answer{}, nil, errdefs.WithHint(errdefs.New(errdefs.Unavailable, "start", r.Key.String(), errLost), "see the monitor's log")
}

// find gives a process that the monitor knows, nil if it does not.
func (c *Client) find(ctx context.Context, k Key) (*Started, error) {
	all, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	var found *Started
	for _, p := range all {
		if p.Key == k {
			found = &Started{PID: p.PID, PidFD: p.PidFD, StartedAt: p.StartedAt}
		} else if p.PidFD != nil {
			p.PidFD.Close()
		}
	}
	return found, nil
}

// Release lets a process go on that Start holds.
func (c *Client) Release(ctx context.Context, k Key) error {
	l, err := c.current(ctx)
	if err != nil {
		return err
	}
	_, err = l.ask(ctx, opRelease, func(e *enc) { e.key(k) })
	if errors.Is(err, errLost) {
		return errdefs.New(errdefs.Unavailable, "start", k.String(), errLost)
	}
	return err
}

// Attach connects a client to a process that runs. What was printed before is not
// sent: it is in the log.
func (c *Client) Attach(ctx context.Context, k Key, a AttachSpec) error {
	fd, err := connection(a.Conn)
	if err != nil {
		return errdefs.New(errdefs.Internal, "attach", k.String(), err)
	}
	defer linux.CloseFDs([]int{fd})
	_, err = c.ask(ctx, opAttach, func(e *enc) { e.key(k); e.attach(a) }, fd)
	return err
}

// Resize tells the process's terminal how large its window is.
func (c *Client) Resize(ctx context.Context, k Key, w, h uint16) error {
	_, err := c.ask(ctx, opResize, func(e *enc) { e.key(k); e.u(uint64(w)); e.u(uint64(h)) })
	return err
}

// CloseStdin ends the process's input, after what was sent to it.
func (c *Client) CloseStdin(ctx context.Context, k Key) error {
	_, err := c.ask(ctx, opCloseStdin, func(e *enc) { e.key(k) })
	return err
}

// Signal sends a signal to the process. SIGKILL for one that is held undoes its
// start; no exit is told then.
func (c *Client) Signal(ctx context.Context, k Key, sig int) error {
	if sig < 0 || sig > 64 {
		return errdefs.Newf(errdefs.Invalid, "signal", k.String(), "no signal has the number %d", sig)
	}
	_, err := c.ask(ctx, opSignal, func(e *enc) { e.key(k); e.u(uint64(sig)) })
	return err
}

// List tells of all processes: those that run, and those whose exit was not
// acknowledged.
func (c *Client) List(ctx context.Context) ([]Running, error) {
	a, err := c.ask(ctx, opList, nil)
	if err != nil {
		return nil, err
	}
	defer linux.CloseFDs(a.fds)
	d := a.d
	all := make([]Running, 0, 16)
	for range d.count() {
		r := Running{Key: d.key(), PID: int(d.u()), StartedAt: d.time(), Terminal: d.bool(), Held: d.bool()}
		if d.bool() {
			r.Exit = d.exited()
		}
		all = append(all, r)
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("list the monitor's processes: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range all {
		k, ok := c.kept[all[i].Key.file()]
		if ok && all[i].Exit == nil && k.fds[keptPidFD] >= 0 {
			all[i].PidFD, _ = dupFile(k.fds[keptPidFD])
		}
	}
	return all, nil
}

// Events gives the exits that were not acknowledged, after a reconnection once
// more. The channel is closed by Close.
func (c *Client) Events() <-chan Event { return c.events.out }

// Ack tells that the engine has recorded the exit. The monitor forgets the
// process; that it has done so already is no error.
func (c *Client) Ack(ctx context.Context, k Key) error {
	_, err := c.ask(ctx, opAck, func(e *enc) { e.key(k) })
	if errdefs.Is(err, errdefs.NotFound) {
		return nil
	}
	return err
}

// Upgrade makes the monitor go on with the program that is at Options.Binary now.
// It returns when that serves us.
func (c *Client) Upgrade(ctx context.Context) error {
	program, err := c.o.program()
	if err != nil {
		return err
	}
	l, err := c.current(ctx)
	if err != nil {
		return err
	}
	if _, err := l.ask(ctx, opUpgrade, func(e *enc) { e.str(program) }); err != nil {
		return err
	}
	if err := c.leave(ctx, l); err != nil {
		return err
	}
	_, err = c.current(ctx)
	return err
}

// Shutdown ends the monitor if it has no processes, and the client with it.
func (c *Client) Shutdown(ctx context.Context) error {
	for {
		l, err := c.current(ctx)
		if err != nil {
			return err
		}
		c.leaving.Lock() // or the loss of the link would start another one
		_, err = l.ask(ctx, opShutdown, nil)
		if err == nil {
			err = c.Close()
			c.leaving.Unlock()
			return err
		}
		c.leaving.Unlock()
		if !errors.Is(err, errLost) {
			return err
		}
		if err := c.leave(ctx, l); err != nil {
			return err
		}
	}
}

// An eventQueue holds any number of events for a reader who takes his time.
type eventQueue struct {
	out  chan Event
	quit chan struct{}
	once sync.Once

	mu    sync.Mutex
	queue []Event // guarded by mu
	wake  chan struct{}
}

func newEventQueue() *eventQueue {
	q := &eventQueue{out: make(chan Event), quit: make(chan struct{}), wake: make(chan struct{}, 1)}
	go q.run()
	return q
}

func (q *eventQueue) put(x Event) {
	q.mu.Lock()
	q.queue = append(q.queue, x)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *eventQueue) close() { q.once.Do(func() { close(q.quit) }) }

func (q *eventQueue) run() {
	defer close(q.out)
	for {
		q.mu.Lock()
		batch := q.queue
		q.queue = nil
		q.mu.Unlock()
		for _, x := range batch {
			select {
			case q.out <- x:
			case <-q.quit:
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-q.quit:
			return
		}
	}
}
