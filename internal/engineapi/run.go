package engineapi

import (
	"bytes"
	"context"
	"io"
	"net/http"

	containertypes "github.com/moby/moby/api/types/container"

	"github.com/onggi/onggi/internal/api"
	"github.com/onggi/onggi/internal/container"
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
	r := &running{framed: framed{conn: conn, in: in}, s: s, q: q, create: create, keys: keys}
	// The request's context ends with this handler; the run may not.
	go r.serve(context.WithoutCancel(c.ctx()))
	return nil
}

// running is one run.
type running struct {
	framed
	s      *Server
	q      api.RunRequest
	create container.CreateRequest
	keys   []byte
	id     string
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
	if len(r.q.Files) > 0 {
		if err := cs.ExtractPath(ctx, id, "/", container.ExtractOptions{}, bytes.NewReader(r.q.Files)); err != nil {
			r.fail(err)
			return
		}
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
	go r.controls(feed, func(ctl api.RunControl) {
		switch {
		case ctl.Resize != nil:
			cs.Resize(ctx, id, ctl.Resize[1], ctl.Resize[0])
		case ctl.Signal != "":
			cs.Kill(ctx, id, ctl.Signal)
		}
	})
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
		r.drop()
		return
	}
	res, err := wait(ctx)
	if err != nil {
		r.fail(err)
		return
	}
	r.finish(api.RunEvent{Exit: &res.ExitCode})
}

// exec is the same for a further process of a container. What can be refused
// is refused before the upgrade, as a plain answer.
func (s *Server) exec(c *call) error {
	var q api.ExecRequest
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxBody)
	if err := c.decode(&q); err != nil {
		return err
	}
	var create containertypes.ExecCreateRequest
	if err := decodeBody(newBytes(q.Create), &create); err != nil {
		return err
	}
	cs := s.o.Containers
	ctx := context.WithoutCancel(c.ctx())
	id, err := cs.ExecCreate(ctx, q.Container, create)
	if err != nil {
		return err
	}
	const contentType = "application/vnd.onggi.exec-stream"
	start := containertypes.ExecStartRequest{Detach: q.Detach, Tty: create.Tty, ConsoleSize: create.ConsoleSize}
	if q.Detach {
		if err := cs.ExecStart(ctx, id, start, nil); err != nil {
			return err
		}
		conn, in, err := c.hijack(contentType)
		if err != nil {
			return err
		}
		f := framed{conn: conn, in: in}
		f.finish(api.RunEvent{Detached: true})
		return nil
	}
	var f framed
	ended := make(chan container.Ending, 1)
	err = cs.ExecStart(ctx, id, start, func() (container.Stream, error) {
		conn, in, err := c.hijack(contentType)
		if err != nil {
			return container.Stream{}, err
		}
		f.conn, f.in = conn, in
		stdin, feed := io.Pipe()
		go f.controls(feed, func(ctl api.RunControl) {
			if ctl.Resize != nil {
				cs.ExecResize(ctx, id, ctl.Resize[1], ctl.Resize[0])
			}
		})
		return container.Stream{Conn: conn, Input: stdin, Mux: true, End: func(why container.Ending) { ended <- why }}, nil
	})
	if err != nil {
		return err
	}
	go func() {
		switch <-ended {
		case container.Detached:
			f.finish(api.RunEvent{Detached: true})
		case container.Lost:
			f.drop()
		default:
			v, err := cs.ExecInspect(id)
			if err != nil {
				f.fail(err)
				return
			}
			f.finish(api.RunEvent{Exit: v.ExitCode})
		}
	}()
	return nil
}
