package engineapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"

	containertypes "github.com/moby/moby/api/types/container"

	"github.com/onggi/onggi/internal/api"
	"github.com/onggi/onggi/internal/container"
	"github.com/onggi/onggi/internal/errdefs"
)

// run is create, attach, start and wait in one request. Every failure after
// the upgrade is an event, so that the client has one place to look.
func (s *Server) run(c *call) error {
	var q api.RunRequest
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxBody)
	if err := c.decode(&q); err != nil {
		return err
	}
	var b createBody
	if err := decodeBody(newBytes(q.Create), &b); err != nil {
		return err
	}
	create, err := b.request(q.Name, q.Platform)
	if err != nil {
		return err
	}
	keys, err := container.ReadDetachKeys(q.DetachKeys)
	if err != nil {
		return err
	}
	conn, in, err := c.hijack("application/vnd.onggi.run-stream")
	if err != nil {
		return err
	}
	r := &running{s: s, conn: conn, in: in, q: q, create: create, keys: keys}
	// The request's context ends with this handler; the run may not.
	go r.serve(context.WithoutCancel(c.ctx()))
	return nil
}

// running is one run.
type running struct {
	s      *Server
	conn   net.Conn
	in     io.Reader
	q      api.RunRequest
	create container.CreateRequest
	keys   []byte
	id     string

	mu   sync.Mutex // makes frames whole
	once sync.Once
}

func (r *running) send(ev api.RunEvent) {
	b, err := json.Marshal(ev)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	api.WriteFrame(r.conn, api.FrameEvent, b)
}

func (r *running) fail(err error) {
	e := &api.RunError{Message: err.Error(), Hint: errdefs.HintOf(err), Status: statusOf(err), ExitCode: 125}
	if se, ok := errors.AsType[*container.StartError](err); ok && (se.Code == 126 || se.Code == 127) {
		e.ExitCode = se.Code
	}
	if m, ok := errors.AsType[*container.MissingImageError](err); ok {
		e.MissingImage = m.Ref
	}
	r.finish(api.RunEvent{Error: e})
}

// finish sends the last event and ends the connection.
func (r *running) finish(ev api.RunEvent) {
	r.once.Do(func() {
		r.send(ev)
		if w, ok := r.conn.(interface{ CloseWrite() error }); ok {
			w.CloseWrite()
		}
		r.conn.Close()
	})
}

func (r *running) serve(ctx context.Context) {
	cs := r.s.o.Containers
	id, warnings, err := cs.Create(ctx, r.create)
	if err != nil {
		r.fail(err)
		return
	}
	r.id = id
	r.send(api.RunEvent{ID: id})
	for _, w := range warnings {
		r.send(api.RunEvent{Warning: w})
	}
	if r.q.TTYSize[0] > 0 && r.q.TTYSize[1] > 0 && r.create.Config.Tty {
		r.create.HostConfig.ConsoleSize = [2]uint{uint(r.q.TTYSize[1]), uint(r.q.TTYSize[0])}
	}
	start := container.StartOptions{ConsoleSize: r.create.HostConfig.ConsoleSize}
	a := r.q.Attach
	if r.q.Detach || !a.Stdin && !a.Stdout && !a.Stderr {
		if err := cs.Start(ctx, id, start); err != nil {
			r.fail(err)
			return
		}
		r.finish(api.RunEvent{Detached: true})
		return
	}
	wait, err := cs.Wait(id, containertypes.WaitConditionNextExit)
	if err != nil {
		r.fail(err)
		return
	}
	ended := make(chan container.Ending, 1)
	stdin, feed := io.Pipe()
	o := container.AttachOptions{Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr, Logs: a.Logs, Follow: true, Mux: true, DetachKeys: r.keys}
	err = cs.Attach(ctx, id, o, func() (container.Stream, error) {
		return container.Stream{Conn: r.conn, Input: stdin, End: func(why container.Ending) { ended <- why }}, nil
	})
	if err != nil {
		r.fail(err)
		return
	}
	go r.controls(ctx, feed)
	if err := cs.Start(ctx, id, start); err != nil {
		<-ended
		r.fail(err)
		return
	}
	switch <-ended {
	case container.Detached:
		r.finish(api.RunEvent{Detached: true})
		return
	case container.Lost: // the container goes on, its stream does not
		r.once.Do(func() { r.conn.Close() })
		return
	}
	res, err := wait(ctx)
	if err != nil {
		r.fail(err)
		return
	}
	r.finish(api.RunEvent{Exit: &res.ExitCode})
}

// controls reads the client's frames until the connection ends.
func (r *running) controls(ctx context.Context, stdin *io.PipeWriter) {
	buf := make([]byte, 32<<10)
	var err error
	for {
		var stream byte
		var p []byte
		if stream, p, err = api.ReadFrame(r.in, buf); err != nil {
			break
		}
		switch stream {
		case api.FrameStdin:
			stdin.Write(p) // fails when nobody reads any more; then it is for nobody
		case api.FrameControl:
			var ctl api.RunControl
			if json.Unmarshal(p, &ctl) != nil {
				continue
			}
			switch {
			case ctl.Resize != nil:
				r.s.o.Containers.Resize(ctx, r.id, ctl.Resize[1], ctl.Resize[0])
			case ctl.Signal != "":
				r.s.o.Containers.Kill(ctx, r.id, ctl.Signal)
			case ctl.CloseStdin:
				stdin.Close()
			}
		}
	}
	stdin.CloseWithError(err) // the end of input, or what broke it
}
