package worker

import (
	"context"
	"errors"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	bkworker "github.com/moby/buildkit/worker"

	"github.com/onggi/onggi/internal/build/hostdir"
)

// copyOp is BuildKit's file operation, but that a plain COPY of a client's
// files moves them into the layer.
type copyOp struct {
	solver.Op
	w    *Worker
	v    solver.Vertex
	file *pb.FileOp
}

// onlyCopies reports that the actions are copies, one after the other into one
// result.
func (o *copyOp) onlyCopies() bool {
	inputs := len(o.v.Inputs())
	for i, a := range o.file.Actions {
		last := i == len(o.file.Actions)-1
		if !hostdir.Plain(a) || a.SecondaryInput < 0 || int(a.SecondaryInput) >= inputs ||
			i == 0 && int(a.Input) >= inputs || i > 0 && int(a.Input) != inputs+i-1 ||
			last != (a.Output == 0) {
			return false
		}
	}
	return true
}

// Exec implements solver.Op.
func (o *copyOp) Exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	if ref, err := o.move(ctx, job, inputs); !errors.Is(err, hostdir.ErrNotPlain) {
		if err != nil {
			return nil, err
		}
		return []solver.Result{bkworker.NewWorkerRefResult(ref, o.w)}, nil
	}
	return o.Op.Exec(ctx, job, inputs)
}

func (o *copyOp) move(ctx context.Context, job solver.JobContext, inputs []solver.Result) (_ cache.ImmutableRef, err error) {
	input := func(i int64) cache.ImmutableRef {
		if i < 0 || int(i) >= len(inputs) {
			return nil
		}
		if r, ok := inputs[i].Sys().(*bkworker.WorkerRef); ok {
			return r.ImmutableRef
		}
		return nil
	}
	if !o.onlyCopies() {
		return nil, hostdir.ErrNotPlain
	}
	var from []*hostdir.Kept
	for _, a := range o.file.Actions {
		var k *hostdir.Kept
		if src := input(a.SecondaryInput); src != nil {
			k, _ = o.w.o.Refs.LenderOf(src).(*hostdir.Kept)
		}
		if k == nil {
			return nil, hostdir.ErrNotPlain
		}
		from = append(from, k)
	}
	name := o.v.Name()
	if name == "" {
		name = "fileop target"
	}
	to, err := o.w.o.Refs.New(ctx, input(o.file.Actions[0].Input), job.Session(), cache.WithDescription(name), cache.CachePolicyRetain)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		// What was moved must not go with the layer.
		ctx := context.WithoutCancel(ctx)
		for _, k := range from {
			err = errors.Join(err, k.Whole(ctx))
		}
		to.SetCachePolicyDefault()
		to.Release(ctx)
	}()
	own, lowers, err := o.w.o.Refs.Directories(to)
	if err != nil {
		return nil, err
	}
	for i, a := range o.file.Actions {
		if err := from[i].Copy(ctx, own, lowers, a); err != nil {
			return nil, err
		}
	}
	return to.Commit(ctx)
}
