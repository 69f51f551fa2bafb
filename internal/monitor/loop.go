package monitor

import (
	"sync"

	"github.com/onggi/onggi/internal/linux"
)

// A loop does the input and output of some processes on one goroutine, so that
// hundreds of idle pipes cost neither a stack nor a buffer each.
type loop struct {
	poller *linux.Poller
	stage  *stage
	buf    []byte // what is being looked at; valid within one handler

	mu    sync.Mutex
	queue []func() // guarded by mu

	// Only the loop's goroutine uses these.
	handlers map[uint64]func(ready uint32)
	next     uint64
	ending   []func() // for the end of this round
	stopped  bool
	done     chan struct{} // closed when run returns
}

func newLoop(st *stage) (*loop, error) {
	p, err := linux.NewPoller()
	if err != nil {
		return nil, err
	}
	return &loop{
		poller: p, stage: st, buf: make([]byte, peekBytes),
		handlers: map[uint64]func(uint32){}, done: make(chan struct{}),
	}, nil
}

// post has f run on the loop, after what was posted before.
func (l *loop) post(f func()) {
	l.mu.Lock()
	l.queue = append(l.queue, f)
	wake := len(l.queue) == 1
	l.mu.Unlock()
	if wake {
		l.poller.Wake()
	}
}

// late has f run at the end of this round. Only handlers and what is posted may
// call it.
func (l *loop) late(f func()) { l.ending = append(l.ending, f) }

// call is post, and waits. Nothing runs after stop.
func (l *loop) call(f func()) {
	ran := make(chan struct{})
	l.post(func() { defer close(ran); f() })
	select {
	case <-ran:
	case <-l.done:
	}
}

// stop ends run between two handlers: no batch is under way then.
func (l *loop) stop() {
	l.post(func() { l.stopped = true })
	<-l.done
}

// watch calls f when fd becomes ready. It returns the token that unwatch wants.
func (l *loop) watch(fd int, events uint32, f func(ready uint32)) (token uint64, err error) {
	l.next++
	if err := l.poller.Add(fd, events, l.next); err != nil {
		return 0, err
	}
	l.handlers[l.next] = f
	return l.next, nil
}

// unwatch must come before fd is closed: a duplicate would keep the watch.
func (l *loop) unwatch(fd int, token uint64) {
	if token != 0 {
		l.poller.Del(fd)
		delete(l.handlers, token)
	}
}

func (l *loop) run() {
	defer close(l.done)
	var evs []linux.PollEvent
	var work []func()
	for !l.stopped {
		var err error
		if evs, err = l.poller.Wait(evs); err != nil {
			panic("monitor: " + err.Error()) // the descriptor is ours and valid
		}
		l.mu.Lock()
		work, l.queue = l.queue, work[:0]
		l.mu.Unlock()
		for i, f := range work {
			work[i] = nil
			f()
			if l.stopped {
				return
			}
		}
		for _, e := range evs {
			// A handler may have unwatched a later one.
			if f := l.handlers[e.Token]; f != nil {
				f(e.Ready)
			}
		}
		for i := 0; i < len(l.ending); i++ {
			l.ending[i]()
			l.ending[i] = nil
		}
		l.ending = l.ending[:0]
	}
}
