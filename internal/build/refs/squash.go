package refs

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
)

// Squash makes one layer of those above the lowest keep. It returns the ref
// itself, once more, where there is nothing to join.
func (s *Store) Squash(ctx context.Context, ref cache.ImmutableRef, keep int, sess session.Group) (_ cache.ImmutableRef, err error) {
	r, err := s.own(ref)
	if err != nil {
		return nil, err
	}
	if err := r.n.complete(ctx, r.handlers, sess); err != nil {
		return nil, err
	}
	nodes := r.n.layers()
	if len(nodes)-keep < 2 {
		return ref.Clone(), nil
	}
	var base cache.ImmutableRef
	if keep > 0 {
		s.mu.Lock()
		base = nodes[keep-1].handle(refOptions{quiet: true}, nil)
		s.mu.Unlock()
		defer base.Release(context.WithoutCancel(ctx))
	}
	m, err := s.New(ctx, base, sess)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Release(context.WithoutCancel(ctx)))
		}
	}()
	if err := m.SetDescription("squashed layers"); err != nil {
		return nil, err
	}
	n := m.(*mutableRef).n
	dir, err := (&view{n: n}).Path(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range nodes[keep:] {
		if err := s.replay(ctx, l, dir); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	n.ran = true // directories may be left that only repeat the base's
	s.mu.Unlock()
	return m.Commit(ctx)
}

// replay does to a mounted tree what a layer says.
func (s *Store) replay(ctx context.Context, l *node, dir string) error {
	own, _, err := s.o.Snapshots.Dirs(l.rec.Snapshot)
	if err != nil {
		return err
	}
	pr, pw := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		pw.CloseWithError(s.o.Layers.Tar(ctx, pw, own))
	}()
	_, err = archive.Apply(ctx, dir, pr)
	pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	<-packed
	return err
}
