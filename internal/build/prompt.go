package build

import (
	"context"
	"log/slog"
	"sync"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/metadata"
)

type solveFunc func(context.Context, *controlapi.SolveRequest) (*controlapi.SolveResponse, error)

// promptKey is what a client sends that wants its answer when the image is
// there, and not only when the history of builds has its record too. Others read
// that record with the next request.
const promptKey = "onggi-prompt"

// prompt answers builds as early as they may be. The zero value is ready.
type prompt struct {
	ending sync.WaitGroup // builds that were answered and are being recorded

	mu   sync.Mutex
	open map[string]chan map[string]string // guarded by mu: by ref of a build
}

// solve solves. Where the client has asked for it, and nothing but the record
// is left to do once the image is exported, it returns then.
func (p *prompt) solve(ctx context.Context, req *controlapi.SolveRequest, solve solveFunc, log *slog.Logger) (*controlapi.SolveResponse, error) {
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get(promptKey)) == 0 || len(req.Exporters) != 1 || req.EnableSessionExporter ||
		len(req.GetCache().GetExports()) > 0 || req.GetCache().GetExportRefDeprecated() != "" {
		return solve(ctx, req)
	}
	exported := make(chan map[string]string, 1)
	p.mu.Lock()
	if p.open == nil {
		p.open = map[string]chan map[string]string{}
	}
	_, taken := p.open[req.Ref]
	if !taken {
		p.open[req.Ref] = exported
	}
	p.mu.Unlock()
	if taken {
		return solve(ctx, req) // it will be refused
	}

	type answer struct {
		resp *controlapi.SolveResponse
		err  error
	}
	sctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	gone := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	done := make(chan answer, 1)
	early := make(chan struct{})
	p.ending.Go(func() {
		defer cancel(nil)
		resp, err := solve(sctx, req)
		p.mu.Lock()
		delete(p.open, req.Ref)
		p.mu.Unlock()
		done <- answer{resp, err}
		select {
		case <-early:
			if err != nil {
				log.Warn("recording a build", "ref", req.Ref, "err", err)
			}
		default:
		}
	})
	select {
	case resp := <-exported:
		gone()
		close(early)
		return &controlapi.SolveResponse{ExporterResponse: resp}, nil
	case a := <-done:
		return a.resp, a.err
	}
}

// exported tells that a build's image is there.
func (p *prompt) exported(ref string, resp map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.open[ref]; c != nil {
		select {
		case c <- resp:
		default:
		}
	}
}
