// Package undo collects the steps that take back a half-finished operation.
//
// # Guarantees
//
// Steps run in reverse, each once, also when the operation was cancelled.
//
// # Not here
//
// Retries: a step must succeed when the thing it undoes is already gone.
package undo

import (
	"context"
	"errors"
	"time"
)

// grace bounds how long all steps together may take.
const grace = 10 * time.Second

// A Stack runs its steps in reverse unless it is disarmed. The zero value is
// ready for use; it is not safe for concurrent use.
type Stack struct{ steps []func(context.Context) error }

// Push adds a step.
func (s *Stack) Push(f func(context.Context) error) { s.steps = append(s.steps, f) }

// Disarm forgets every step: the operation succeeded.
func (s *Stack) Disarm() { s.steps = nil }

// Run undoes in reverse and joins what went wrong onto *errp. The caller's
// cancellation is dropped, so that a timed-out request still cleans up.
//
//	defer func() { u.Run(ctx, &err) }()
func (s *Stack) Run(ctx context.Context, errp *error) {
	if len(s.steps) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	for i := len(s.steps) - 1; i >= 0; i-- {
		*errp = errors.Join(*errp, s.steps[i](ctx))
	}
	s.steps = nil
}
