package build

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/errdefs"
	"google.golang.org/grpc/metadata"
)

// statusGrace bounds how long a failed build's last messages are waited for.
const statusGrace = 5 * time.Second

// solve runs one build, and reports its status as it goes.
func (c *core) solve(ctx context.Context, req *controlapi.SolveRequest, report func(*controlapi.StatusResponse)) (map[string]string, error) {
	// The status is read to its end also when the build was cancelled; it ends
	// with the job.
	sctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g := &gate{report: report}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.control.Status(&controlapi.StatusRequest{Ref: req.Ref}, &statusStream{
			ctx: func() context.Context { return sctx }, send: g.pass,
		})
	}()
	resp, err := c.watched(ctx, req, c.control.Solve)
	if err != nil && !g.used() {
		// A request that was refused has no job, and its status is looked for
		// in vain for a long time.
		g.close()
		return nil, err
	}
	t := time.AfterFunc(statusGrace, stop)
	<-done
	t.Stop()
	if err != nil {
		return nil, err
	}
	return resp.ExporterResponse, nil
}

// gate passes reports on until it is closed.
type gate struct {
	mu     sync.Mutex
	report func(*controlapi.StatusResponse) // guarded by mu; nil when closed
	n      int                              // guarded by mu
}

func (g *gate) pass(r *controlapi.StatusResponse) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
	if g.report != nil {
		g.report(r)
	}
}

func (g *gate) used() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n > 0
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.report = nil
}

// statusStream is the server's side of a status call that never leaves the
// process.
type statusStream struct {
	ctx  func() context.Context
	send func(*controlapi.StatusResponse)
}

var _ controlapi.Control_StatusServer = (*statusStream)(nil)

func (s *statusStream) Context() context.Context                { return s.ctx() }
func (s *statusStream) SetHeader(metadata.MD) error             { return nil }
func (s *statusStream) SendHeader(metadata.MD) error            { return nil }
func (s *statusStream) SetTrailer(metadata.MD)                  {}
func (s *statusStream) RecvMsg(any) error                       { return errors.New("a status stream only sends") }
func (s *statusStream) Send(r *controlapi.StatusResponse) error { s.send(r); return nil }
func (s *statusStream) SendMsg(m any) error {
	r, ok := m.(*controlapi.StatusResponse)
	if !ok {
		return fmt.Errorf("a status stream cannot send %T", m)
	}
	s.send(r)
	return nil
}

// classicWriter words a build's progress for POST /build.
type classicWriter struct {
	emit  func(Message) error
	plain bool
	quiet bool            // hold back what is plain until the build fails
	held  []Message       // what quiet holds back
	shown map[string]bool // vertices that were announced
}

// maxHeld bounds what a quiet build holds back; the end of it tells most.
const maxHeld = 1000

// say emits a line of plain progress.
func (w *classicWriter) say(line string) {
	m := Message{Stream: line}
	if !w.quiet {
		w.emit(m)
		return
	}
	if len(w.held) == maxHeld {
		w.held = append(w.held[:0], w.held[maxHeld/2:]...)
	}
	w.held = append(w.held, m)
}

// status passes a status on: as BuildKit's bytes for clients that know them,
// else as the lines of the old builder.
func (w *classicWriter) status(r *controlapi.StatusResponse) {
	if !w.plain {
		if b, err := r.MarshalVT(); err == nil {
			w.emit(Message{ID: "moby.buildkit.trace", Aux: b})
		}
		return
	}
	if w.shown == nil {
		w.shown = map[string]bool{}
	}
	logs := r.Logs
	for _, v := range r.Vertexes {
		line, from := stepLine(v.Name)
		if line == "" {
			continue
		}
		id := short(v.Digest)
		run := strings.Contains(line, " : RUN ")
		if v.Started != nil && !w.shown[v.Digest] {
			w.shown[v.Digest] = true
			w.say(line)
			if run && !v.Cached {
				w.say(" ---> Running in " + id + "\n")
			}
		}
		if v.Completed == nil || v.Error != "" || !strings.HasPrefix(line, "Step ") || w.shown[v.Digest+"/done"] {
			continue
		}
		w.shown[v.Digest+"/done"] = true
		logs = w.logs(logs, v.Digest)
		switch {
		case v.Cached && !from:
			w.say(" ---> Using cache\n")
		case run && !v.Cached:
			w.say(" ---> Removed intermediate container " + id + "\n")
		}
		w.say(" ---> " + id + "\n")
	}
	w.logs(logs, "")
	for _, m := range r.Warnings {
		w.say("warning: " + string(m.Short) + "\n")
	}
}

// logs says what a vertex wrote, or all if none is named, and returns the rest.
func (w *classicWriter) logs(logs []*controlapi.VertexLog, vertex string) (rest []*controlapi.VertexLog) {
	for _, l := range logs {
		if vertex != "" && l.Vertex != vertex {
			rest = append(rest, l)
			continue
		}
		w.say(string(l.Msg))
	}
	return rest
}

// stepLine turns "[a 2/3] RUN x" into "Step a 2/3 : RUN x", and the solver's own
// work, which the old builder had no lines for, into nothing. from: it is a FROM,
// which is never cached.
func stepLine(name string) (line string, from bool) {
	head, rest, ok := strings.Cut(strings.TrimPrefix(name, "["), "] ")
	switch {
	case !ok || !strings.HasPrefix(name, "["):
		if strings.HasPrefix(name, "exporting ") {
			return "", false
		}
	case head == "internal":
		return "", false
	case strings.Contains(head, "/"):
		rest, from = fromLine(rest)
		return "Step " + head + " : " + rest + "\n", from
	}
	return name + "\n", false
}

// fromLine names the image of a FROM as people write it, without the digest that
// its tag stands for at the moment.
func fromLine(step string) (string, bool) {
	image, from := strings.CutPrefix(step, "FROM ")
	if !from {
		return step, false
	}
	if name, _, ok := strings.Cut(image, "@"); ok && strings.Contains(path.Base(name), ":") {
		image = shownName(name)
	}
	return "FROM " + image, true
}

// short is the beginning of a digest, as lists show it.
func short(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex[:min(12, len(hex))]
}

func (w *classicWriter) failed(err error) {
	d := &ErrorDetail{Message: err.Error()}
	var f *failedStep
	if errors.As(err, &f) {
		d.Code = f.code
		if w.plain && f.code != 0 {
			d.Message += returned(f)
		}
	}
	for _, m := range w.held {
		w.emit(m)
	}
	w.emit(Message{Error: d.Message, ErrorDetail: d})
}

// returned says how a RUN ended as the old builder did: scripts look for it.
func returned(f *failedStep) string {
	_, rest, _ := strings.Cut(f.err.Error(), "process ")
	quoted, _ := strconv.QuotedPrefix(rest)
	command, err := strconv.Unquote(quoted)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("\nThe command '%s' returned a non-zero code: %d", command, f.code)
}

func (w *classicWriter) built(id string, tags []string) error {
	if id == "" {
		return nil
	}
	if !w.plain {
		return w.emit(Message{ID: "moby.image.id", Aux: builtImage{id}})
	}
	if w.quiet {
		return w.emit(Message{Stream: id + "\n"})
	}
	if err := w.emit(Message{Aux: builtImage{id}}); err != nil {
		return err
	}
	if err := w.emit(Message{Stream: "Successfully built " + short(id) + "\n"}); err != nil {
		return err
	}
	for _, t := range tags {
		if err := w.emit(Message{Stream: "Successfully tagged " + shownName(t) + "\n"}); err != nil {
			return err
		}
	}
	return nil
}

// sourceOf shows the lines of the Dockerfile that an error is about.
func sourceOf(err error) string {
	var b strings.Builder
	for _, s := range errdefs.Sources(err) {
		if s.Info == nil || len(s.Ranges) == 0 {
			continue
		}
		lines := strings.Split(string(s.Info.Data), "\n")
		first, last := s.Ranges[0].Start.Line, s.Ranges[0].End.Line
		if last < first {
			last = first
		}
		fmt.Fprintf(&b, "%s:%d\n", s.Info.Filename, first)
		for n := max(1, first-2); n <= min(int32(len(lines)), last+2); n++ {
			mark := "   "
			if n >= first && n <= last {
				mark = ">>>"
			}
			fmt.Fprintf(&b, "%4d | %s %s\n", n, mark, lines[n-1])
		}
	}
	return b.String()
}
