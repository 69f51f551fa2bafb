package refs

import (
	"context"

	"github.com/moby/buildkit/cache"
)

// A Lender keeps the files of a mutable ref that has no parent, and gives them
// away where that spares a copy.
type Lender interface {
	// Whole brings back what was given away, and gives nothing away any more:
	// somebody is about to see the files.
	Whole(ctx context.Context) error
}

// Lend makes l the lender of the ref's files, until the ref is taken up again.
func (s *Store) Lend(ref cache.MutableRef, l Lender) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[ref.ID()]; n != nil {
		n.lender = l
	}
}

// LenderOf is the lender of what was committed, nil if it has none.
func (s *Store) LenderOf(ref cache.ImmutableRef) Lender {
	r, err := s.own(ref)
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.n.lenderLocked()
}

// lenderLocked is whoever has the node's files. Preconditions: s.mu is held.
func (n *node) lenderLocked() Lender {
	if n.lender == nil && n.twin != nil {
		return n.twin.lender
	}
	return n.lender
}

// whole makes sure that all files are there.
func (n *node) whole(ctx context.Context) error {
	n.s.mu.Lock()
	l := n.lenderLocked()
	n.s.mu.Unlock()
	if l == nil {
		return nil
	}
	return l.Whole(ctx)
}

// Directories gives the own directory of a mutable ref, and those below it, top
// first. Only who has made the ref and not mounted it may write there.
func (s *Store) Directories(ref cache.MutableRef) (own string, lowers []string, err error) {
	s.mu.Lock()
	n := s.nodes[ref.ID()]
	if n == nil {
		s.mu.Unlock()
		return "", nil, errNotFound(ref.ID())
	}
	key := n.rec.Snapshot
	s.mu.Unlock()
	return s.o.Snapshots.Dirs(key)
}
