package executor

import (
	"io"
	"os"
	"sync"

	"github.com/moby/buildkit/executor"
)

// plumbing is what lies between a process and BuildKit's readers and writers.
type plumbing struct {
	theirs []*os.File // the process's ends; closed when it has started
	ours   []*os.File
	copies []func()
	feed   func() // copies stdin; nothing waits for it
	stdin  io.Closer
	wg     sync.WaitGroup
}

// make opens pipes and gives their far ends to the request.
func (l *plumbing) make(p executor.ProcessInfo, req *StartRequest) error {
	for _, o := range []struct {
		w   io.WriteCloser
		end **os.File
	}{{p.Stdout, &req.Stdout}, {p.Stderr, &req.Stderr}} {
		if o.w == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		l.ours, l.theirs = append(l.ours, r), append(l.theirs, w)
		*o.end = w
		l.copies = append(l.copies, func() { io.Copy(o.w, r) })
	}
	if p.Stdin == nil {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	l.theirs = append(l.theirs, r)
	req.Stdin, l.stdin = r, p.Stdin
	l.feed = func() {
		io.Copy(w, p.Stdin)
		w.Close()
	}
	return nil
}

// console connects a terminal.
func (l *plumbing) console(p executor.ProcessInfo, c *os.File) {
	if p.Stdout != nil {
		l.copies = append(l.copies, func() { io.Copy(p.Stdout, c) })
	}
	if p.Stdin != nil {
		l.stdin = p.Stdin
		l.feed = func() { io.Copy(c, p.Stdin) }
	}
}

func (l *plumbing) run() {
	for _, f := range l.copies {
		l.wg.Go(f)
	}
	if l.feed != nil {
		go l.feed() // ends when the client closes stdin, or close does
	}
}

// wait returns when all output has been passed on.
func (l *plumbing) wait() { l.wg.Wait() }

func (l *plumbing) closeTheirs() {
	for _, f := range l.theirs {
		f.Close()
	}
	l.theirs = nil
}

func (l *plumbing) close() {
	l.closeTheirs()
	for _, f := range l.ours {
		f.Close()
	}
	if l.stdin != nil {
		l.stdin.Close()
	}
}
