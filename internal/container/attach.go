package container

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/monitor"
)

// Stream is a client's end of a container's stdio.
type Stream struct {
	Conn  net.Conn
	Input io.Reader // what the client sends; nil = read it from Conn
	Mux   bool      // of an exec: Docker's frames, whether or not it has a terminal
	// End is called once, instead of closing Conn, when the process has ended
	// and that is recorded, or when the client detached or went away.
	End func(Ending)
}

// Ending is why a client's stream ended.
type Ending uint8

const (
	Ended    Ending = iota // the process ended
	Detached               // the client sent its detach keys
	Lost                   // the client went away
)

// AttachOptions choose what a client sees.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	Logs                  bool // first what was written before
	Follow                bool // then what is written from now on
	Mux                   bool // Docker's frames instead of the bare output
	DetachKeys            []byte
}

// attachment connects a client with a process. The monitor writes output
// straight into the client's socket; only input passes through the engine,
// which looks for the detach keys.
//
// The engine keeps its own descriptor of the connection until the exit is
// recorded: a client that sees the end of the stream may ask for the exit
// status and must get it.
type attachment struct {
	s       Stream
	o       AttachOptions
	out     *os.File // the monitor's end for output
	relay   *os.File // our end of out where the client has no socket of its own
	in      *os.File // the monitor's end for input
	feed    *os.File // our end of in
	once    sync.Once
	done    chan struct{}
	relayed chan struct{}
	onQuit  func() // the client detached or left
}

func newAttachment(st Stream, o AttachOptions) (*attachment, error) {
	a := &attachment{s: st, o: o, done: make(chan struct{}), relayed: make(chan struct{})}
	if a.s.Input == nil {
		a.s.Input = st.Conn
	}
	var err error
	switch c := st.Conn.(type) {
	case *net.UnixConn:
		a.out, err = c.File()
	case *net.TCPConn:
		a.out, err = c.File()
	default:
		a.relay, a.out, err = linux.StreamPair()
	}
	if err == nil && o.Stdin {
		a.feed, a.in, err = linux.StreamPair()
	}
	if err != nil {
		closeAll(a.out, a.relay)
		return nil, err
	}
	return a, nil
}

// specs are the connections that the monitor is to make.
func (a *attachment) specs() []monitor.AttachSpec {
	out := []monitor.AttachSpec{{Conn: a.out, Stdout: a.o.Stdout, Stderr: a.o.Stderr, Mux: a.o.Mux}}
	if a.in != nil {
		out = append(out, monitor.AttachSpec{Conn: a.in, Stdin: true})
	}
	return out
}

// begin starts to pass bytes on.
func (a *attachment) begin() {
	if a.relay != nil {
		go func() {
			defer close(a.relayed)
			io.Copy(a.s.Conn, a.relay)
		}()
	}
	go a.input()
}

// handed is called when the monitor has its own descriptors.
func (a *attachment) handed() {
	closeAll(a.in)
	if a.relay != nil {
		closeAll(a.out)
	}
}

func (a *attachment) input() {
	var err error
	detached := false
	if a.feed != nil {
		detached, err = copyUntilKeys(a.feed, a.s.Input, a.o.DetachKeys)
		a.feed.Close() // the end of input
	} else {
		_, err = io.Copy(io.Discard, a.s.Input)
	}
	if detached || err != nil && !errors.Is(err, os.ErrClosed) && !isPipe(err) {
		if detached {
			a.quit(Detached)
		} else {
			a.quit(Lost)
		}
		return
	}
	// The client finished sending, which is no reason to stop sending to it. When
	// it is gone altogether nobody tells us: look now and then.
	if a.relay != nil {
		return
	}
	t := time.NewTicker(hangupInterval)
	defer t.Stop()
	for {
		if linux.HungUp(a.out) {
			a.quit(Lost)
			return
		}
		select {
		case <-a.done:
			return
		case <-t.C:
		}
	}
}

const hangupInterval = 2 * time.Second

// isPipe: the process does not read its input any more; the client may still
// want the output.
func isPipe(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "broken pipe") || strings.Contains(err.Error(), "use of closed"))
}

func (a *attachment) quit(why Ending) {
	a.end(why)
	if a.onQuit != nil {
		a.onQuit()
	}
}

// close ends the client's stream after the process.
func (a *attachment) close() { a.end(Ended) }

// relayPatience bounds how long the rest of the output may take to reach a
// client that has no socket of its own.
const relayPatience = 10 * time.Second

func (a *attachment) end(why Ending) {
	a.once.Do(func() {
		close(a.done)
		closeAll(a.feed, a.in)
		if a.relay == nil {
			a.finish(why)
			return
		}
		closeAll(a.out)
		go func() {
			if why == Ended {
				select {
				case <-a.relayed:
				case <-time.After(relayPatience):
				}
			}
			a.relay.Close()
			a.finish(why)
		}()
	})
}

func (a *attachment) finish(why Ending) {
	defer closeAll(a.out)
	if a.s.End != nil {
		a.s.End(why)
		return
	}
	// The monitor may hold the socket too; the client is to see the end now.
	if c, ok := a.s.Conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
	a.s.Conn.Close()
}

// ReadDetachKeys parses "ctrl-p,ctrl-q" or "a,ctrl-@"; "" is Docker's default.
func ReadDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return []byte{16, 17}, nil
	}
	var out []byte
	for part := range strings.SplitSeq(s, ",") {
		switch {
		case len(part) == 1:
			out = append(out, part[0])
		case len(part) == 6 && strings.HasPrefix(part, "ctrl-"):
			c := part[5]
			switch {
			case c >= 'a' && c <= 'z':
				out = append(out, c-'a'+1)
			case c == '@' || c >= '[' && c <= '_':
				out = append(out, c-'@')
			default:
				return nil, invalid("Invalid detach keys (%s) provided", clip(s))
			}
		default:
			return nil, invalid("Invalid detach keys (%s) provided", clip(s))
		}
		if len(out) > 32 {
			return nil, invalid("Invalid detach keys (%s) provided", clip(s))
		}
	}
	return out, nil
}

// copyUntilKeys copies until the end or until keys come in a row. A key that
// may begin the sequence is held back until the next one decides.
func copyUntilKeys(w io.Writer, r io.Reader, keys []byte) (detached bool, err error) {
	buf := make([]byte, 32<<10)
	matched := 0
	for {
		n, rerr := r.Read(buf)
		if n > 0 {
			out := buf[:n]
			if len(keys) > 0 {
				out, matched = scanKeys(buf[:n], keys, matched)
			}
			if len(out) > 0 {
				if _, err := w.Write(out); err != nil {
					return false, err
				}
			}
			if len(keys) > 0 && matched == len(keys) {
				return true, nil
			}
		}
		if rerr == io.EOF {
			return false, nil
		}
		if rerr != nil {
			return false, rerr
		}
	}
}

// scanKeys returns what of in may be passed on, and how many keys have matched
// at its end. It stops at a full match.
func scanKeys(in, keys []byte, matched int) ([]byte, int) {
	if matched == 0 && indexAny(in, keys[0]) < 0 {
		return in, 0
	}
	out := make([]byte, 0, len(in)+matched)
	for _, b := range in {
		if b == keys[matched] {
			if matched++; matched == len(keys) {
				return out, matched
			}
			continue
		}
		out = append(out, keys[:matched]...)
		matched = 0
		if b == keys[0] {
			matched = 1
			if len(keys) == 1 {
				return out, 1
			}
			continue
		}
		out = append(out, b)
	}
	return out, matched
}

func indexAny(p []byte, b byte) int {
	for i, c := range p {
		if c == b {
			return i
		}
	}
	return -1
}

// Attach connects a client to a container's stdio: of the current run, or of
// the next one when it is not running. ready is called when the client may be
// told that it worked, before any output. Attach returns at once; the stream
// ends as Stream says.
func (s *Service) Attach(ctx context.Context, ref string, o AttachOptions, ready func() (Stream, error)) error {
	c, err := s.find("attach", ref)
	if err != nil {
		return err
	}
	rec, st := c.view()
	switch st.State {
	case Paused:
		return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "container %s is paused, unpause the container before attach", c.id), "onggi unpause "+rec.Name)
	case Removing, Dead, Gone:
		return errdefs.Newf(errdefs.Conflict, "", "", "container %s is being removed", c.id)
	}
	if !rec.Config.OpenStdin {
		o.Stdin = false
	}
	if rec.Config.Tty {
		if o.DetachKeys == nil {
			o.DetachKeys, _ = ReadDetachKeys("")
		}
	} else {
		o.DetachKeys = nil
	}
	// Who was told that the stream is there starts the container at once, and is to
	// see what it says first.
	c.mu.Lock()
	c.greeted++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.greeted--
		c.wakeLocked()
		c.mu.Unlock()
	}()
	stream, err := ready()
	if err != nil {
		return err
	}
	if o.Logs {
		s.replay(ctx, c, rec, stream.Conn, o)
	}
	if !o.Follow {
		finish(stream)
		return nil
	}
	a, err := newAttachment(stream, o)
	if err != nil {
		finish(stream)
		return nil
	}
	s.emit(c, "attach", nil)
	a.onQuit = func() {
		s.detach(c, a)
	}
	a.begin()
	if err := s.connect(ctx, c, a); err != nil {
		s.log.Debug("attach", "container", c.id, "error", err)
		a.close()
	}
	return nil
}

func finish(st Stream) {
	if st.End != nil {
		st.End(Ended)
		return
	}
	st.Conn.Close()
}

// greetPatience bounds how long a start waits for clients that are being
// attached: one may not read what it is sent first.
const greetPatience = 5 * time.Second

// awaitGreeted waits until clients that know of their stream are in pending.
func (c *Container) awaitGreeted(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, greetPatience)
	defer cancel()
	c.until(ctx, func() bool { return c.greeted == 0 })
}

// connect gives a to the monitor now, or to the next start.
func (s *Service) connect(ctx context.Context, c *Container, a *attachment) error {
	for {
		c.mu.Lock()
		st, r, changed := c.st.State, c.run, c.changed
		switch {
		case st == Starting:
			c.mu.Unlock()
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		case !st.HasProcess():
			if st == Gone || st == Removing {
				c.mu.Unlock()
				return errdefs.Newf(errdefs.Conflict, "", "", "container %s is being removed", c.id)
			}
			c.pending = append(c.pending, a)
			c.mu.Unlock()
			return nil
		}
		r.attached = append(r.attached, a)
		c.mu.Unlock()
		for _, spec := range a.specs() {
			if err := s.o.Monitor.Attach(ctx, s.key(c), spec); err != nil {
				return err
			}
		}
		a.handed()
		return nil
	}
}

func (s *Service) detach(c *Container, a *attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	drop := func(list []*attachment) []*attachment {
		out := list[:0:0]
		for _, x := range list {
			if x != a {
				out = append(out, x)
			}
		}
		return out
	}
	c.pending = drop(c.pending)
	if c.run != nil {
		c.run.attached = drop(c.run.attached)
	}
}

// replay writes the log so far to a client.
func (s *Service) replay(ctx context.Context, c *Container, rec *Record, w io.Writer, o AttachOptions) {
	sp := s.logSpec(rec)
	if sp.Driver == logs.None {
		return
	}
	err := logs.Read(ctx, sp, logs.ReadOptions{Stdout: o.Stdout, Stderr: o.Stderr}, func(e logs.Entry) error {
		return writeEntry(w, e, o.Mux)
	})
	if err != nil {
		s.log.Debug("log not replayed", "container", c.id, "error", err)
	}
}

// writeEntry writes an entry as it is or in one of Docker's frames.
func writeEntry(w io.Writer, e logs.Entry, mux bool) error {
	if !mux {
		_, err := w.Write(e.Line)
		return err
	}
	_, err := w.Write(frame(e.Stream, e.Line))
	return err
}

// frame puts Docker's eight bytes before p.
func frame(stream string, p []byte) []byte {
	b := make([]byte, 8+len(p))
	b[0] = 1
	if stream == "stderr" {
		b[0] = 2
	}
	binary.BigEndian.PutUint32(b[4:], uint32(len(p)))
	copy(b[8:], p)
	return b
}

// Resize sets the size of a container's terminal.
func (s *Service) Resize(ctx context.Context, ref string, height, width uint16) error {
	c, err := s.find("resize", ref)
	if err != nil {
		return err
	}
	if _, st := c.view(); !st.State.HasProcess() {
		return errdefs.Newf(errdefs.Conflict, "", "", "container %s is not running", c.id)
	}
	if err := s.o.Monitor.Resize(ctx, s.key(c), width, height); err != nil {
		return err
	}
	s.emit(c, "resize", map[string]string{"height": strconv.Itoa(int(height)), "width": strconv.Itoa(int(width))})
	return nil
}
