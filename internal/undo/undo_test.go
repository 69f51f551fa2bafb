package undo

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestRunsInReverseAfterCancellation(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var got []string
	var s Stack
	for _, n := range []string{"a", "b", "c"} {
		s.Push(func(ctx context.Context) error { got = append(got, n); return ctx.Err() })
	}
	var err error
	s.Run(ctx, &err)
	if strings.Join(got, "") != "cba" || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	s.Run(ctx, &err)
	if len(got) != 3 {
		t.Error("a step ran twice")
	}
}

func TestDisarmForgetsAndErrorsAreJoined(t *testing.T) {
	boom := errors.New("boom")
	var s Stack
	s.Push(func(context.Context) error { return boom })
	first := errors.New("first")
	err := first
	s.Run(context.Background(), &err)
	if !errors.Is(err, boom) || !errors.Is(err, first) {
		t.Errorf("got %v", err)
	}
	s.Push(func(context.Context) error { t.Error("ran after Disarm"); return nil })
	s.Disarm()
	s.Run(context.Background(), &err)
}
