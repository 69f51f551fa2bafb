package logs

import (
	"context"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
)

// ReadOptions choose entries. The zero value is everything up to now.
type ReadOptions struct {
	Since, Until   time.Time // zero: no limit; both inclusive
	Tail           int       // the last so many lines only; 0: all, negative: none
	Follow         bool      // go on with what is written later
	Ended          <-chan struct{}
	Stdout, Stderr bool // neither: both
}

// Read calls f with each entry that o chooses, oldest first, and stops with f's
// error. With Follow it returns once Ended is closed and all has been read, or
// with the context's error.
func Read(ctx context.Context, spec Spec, o ReadOptions, f func(Entry) error) error {
	return errdefs.New(errdefs.Unsupported, "read", "log", nil)
}
