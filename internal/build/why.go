package build

import (
	"context"
	"slices"
	"strings"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc"

	"github.com/onggi/onggi/internal/api"
)

// Why explains a build: by its ref, a name of its image, or the last one.
func (s *Service) Why(ctx context.Context, ref string) (*api.BuildWhy, error) {
	c, err := s.core(ctx)
	if err != nil {
		return nil, err
	}
	return c.explain.Why(ref, statusGrace)
}

// intercept watches the builds that come over gRPC.
func (c *core) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	q, ok := req.(*controlapi.SolveRequest)
	if !ok || q.Internal || c.explain == nil {
		return handler(ctx, req)
	}
	resp, err := c.watched(ctx, q, func(ctx context.Context, q *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
		r, err := handler(ctx, q)
		x, _ := r.(*controlapi.SolveResponse)
		return x, err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// watched solves, and has the build explained when its last report has come,
// which is after the answer.
func (c *core) watched(ctx context.Context, req *controlapi.SolveRequest, solve solveFunc) (*controlapi.SolveResponse, error) {
	w := c.explain.Begin(req.Ref, c.buildKey(req), noCacheOf(req))
	sctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	told := make(chan struct{})
	go func() {
		defer close(told)
		c.control.Status(&controlapi.StatusRequest{Ref: req.Ref}, &statusStream{
			ctx: func() context.Context { return sctx }, send: w.Status,
		})
	}()
	if c.p.building != nil {
		defer c.p.building()()
	}
	ctx, span := traced(ctx)
	defer span.End()
	began := time.Now()
	resp, err := c.prompt.solve(ctx, req, solve, c.p.logger)
	took := time.Since(began)
	names := strings.Split(resp.GetExporterResponse()["image.name"], ",")
	names = slices.DeleteFunc(names, func(n string) bool { return n == "" })
	go func() {
		if err != nil && !w.Any() {
			stop() // a request that was refused has no status to wait for
		}
		t := time.AfterFunc(statusGrace, stop)
		<-told
		t.Stop()
		stop()
		w.End(names, took, err)
	}()
	return resp, err
}

// buildKey names what a build is a build of: what it has in common with the
// next one after a change.
func (c *core) buildKey(req *controlapi.SolveRequest) []string {
	a := req.FrontendAttrs
	key := []string{req.Frontend, a["filename"], a["target"], a["platform"], a["context"]}
	if id := c.dirs.Identity(req.Session, "context"); id != "" {
		return append(key, id, c.dirs.Identity(req.Session, "dockerfile"))
	}
	// Of a directory that is sent the name is unknown; that of the image says
	// as much.
	for _, x := range req.Exporters {
		key = append(key, x.Attrs["name"])
	}
	return append(key, req.ExporterAttrsDeprecated["name"])
}

// noCacheOf lists the stages that are to run; an empty name is all of them.
func noCacheOf(req *controlapi.SolveRequest) []string {
	if v, ok := req.FrontendAttrs["no-cache"]; ok {
		return strings.Split(v, ",")
	}
	return nil
}
