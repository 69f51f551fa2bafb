package image

import (
	"context"
	"sync"
)

// flights makes work on one key exclusive. The zero value is ready for use.
type flights struct {
	mu   sync.Mutex
	open map[string]chan struct{} // closed when the work ends; guarded by mu
}

// enter waits until nobody works on key, and returns the function that ends
// the caller's work.
func (f *flights) enter(ctx context.Context, key string, waiting func()) (leave func(), err error) {
	for {
		f.mu.Lock()
		c, busy := f.open[key]
		if !busy {
			if f.open == nil {
				f.open = map[string]chan struct{}{}
			}
			c = make(chan struct{})
			f.open[key] = c
			f.mu.Unlock()
			return func() {
				f.mu.Lock()
				delete(f.open, key)
				f.mu.Unlock()
				close(c)
			}, nil
		}
		f.mu.Unlock()
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-c:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (f *flights) busy(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.open[key]
	return ok
}
