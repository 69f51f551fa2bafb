package refs

import (
	"context"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/util/progress"

	"github.com/onggi/onggi/internal/errdefs"
)

// Merge stacks the layers of the parents, the first parent lowest.
func (s *Store) Merge(ctx context.Context, parents []cache.ImmutableRef, _ progress.Controller, opts ...cache.RefOption) (cache.ImmutableRef, error) {
	var refs []*immutableRef
	h := cache.DescHandlers{}
	for _, p := range parents {
		if p == nil {
			continue
		}
		r, err := s.own(p)
		if err != nil {
			return nil, err
		}
		refs = append(refs, r)
		for d, v := range r.handlers {
			h[d] = v
		}
	}
	if len(refs) == 0 {
		return nil, nil
	}
	var add []*node
	for _, r := range refs[1:] {
		add = append(add, r.n.layers()...)
	}
	return s.stack(ctx, refs[0].n, add, h)
}

// Diff returns what upper adds to lower: the layers between them where lower
// is an ancestor of upper.
func (s *Store) Diff(ctx context.Context, lower, upper cache.ImmutableRef, _ progress.Controller, opts ...cache.RefOption) (cache.ImmutableRef, error) {
	if upper == nil {
		return nil, errdefs.Newf(errdefs.Unsupported, "diff", "build refs", "the upper one is empty")
	}
	u, err := s.own(upper)
	if err != nil {
		return nil, err
	}
	if lower == nil {
		return u.clone(), nil
	}
	l, err := s.own(lower)
	if err != nil {
		return nil, err
	}
	ul, ll := u.n.layers(), l.n.layers()
	common := 0
	for common < len(ul) && common < len(ll) && ul[common] == ll[common] {
		common++
	}
	if common == len(ll) {
		if common == len(ul) {
			return nil, nil
		}
		return s.stack(ctx, nil, ul[common:], u.handlers)
	}
	return s.diffTrees(ctx, l, u)
}

// stack puts the layers add on base, which may be nil. The new nodes share the
// layers' directories.
func (s *Store) stack(ctx context.Context, base *node, add []*node, h cache.DescHandlers) (_ cache.ImmutableRef, err error) {
	top := base
	if base != nil {
		if err := base.complete(ctx, h, nil); err != nil {
			return nil, err
		}
	}
	var cur *immutableRef
	if base != nil {
		s.mu.Lock()
		if base.dead {
			s.mu.Unlock()
			return nil, errNotFound(base.rec.ID)
		}
		cur = base.handle(refOptions{handlers: h}, nil)
		s.mu.Unlock()
	}
	for _, src := range add {
		next, err := s.stackOne(ctx, top, src, h)
		if cur != nil {
			cur.Release(ctx)
		}
		if err != nil {
			return nil, err
		}
		cur, top = next, next.n
	}
	if cur == nil {
		return nil, nil
	}
	return cur, nil
}

func (s *Store) stackOne(ctx context.Context, below, src *node, h cache.DescHandlers) (*immutableRef, error) {
	if err := src.complete(ctx, h, nil); err != nil {
		return nil, err
	}
	id := identity.NewID()
	parent := ""
	s.mu.Lock()
	root := src
	if src.rec.Source != "" {
		if n := s.nodes[src.rec.Source]; n != nil {
			root = n
		}
	}
	n := &node{s: s, parent: below, rec: record{
		ID: id, Snapshot: Prefix + id, Source: root.rec.ID, DiffID: src.rec.DiffID, TarSize: src.rec.TarSize,
		Blob: src.rec.Blob, Variants: src.rec.Variants,
		Size: 0, Created: time.Now(), Description: src.rec.Description,
	}}
	if below != nil {
		below.children++
		n.rec.Parent, parent = below.rec.ID, below.rec.Snapshot
	}
	s.mu.Unlock()

	err := s.o.Snapshots.Stack(context.WithoutCancel(ctx), n.rec.Snapshot, src.rec.Snapshot, parent)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if below != nil {
			below.children--
		}
		return nil, err
	}
	s.nodes[id] = n
	n.chainID()
	if err := n.save(); err != nil {
		n.drop(true)
		return nil, err
	}
	return n.handle(refOptions{handlers: h}, nil), nil
}

// diffTrees would compare two unrelated trees.
func (s *Store) diffTrees(context.Context, *immutableRef, *immutableRef) (cache.ImmutableRef, error) {
	return nil, errdefs.WithHint(
		errdefs.Newf(errdefs.Unsupported, "diff", "build refs", "the lower one is not an ancestor of the upper one"),
		"copy the wanted files with COPY --from instead")
}
