package build

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
)

// uploadPrefix marks the request whose body is the context of another build:
// older clients send a context that they read from a pipe like this, since the
// body of the build's own request is not theirs to stream.
const uploadPrefix = "upload-request:"

// uploadWait bounds how long one half waits for the other.
const uploadWait = 5 * time.Second

// uploads bring the two requests together. The zero value is ready.
type uploads struct {
	mu sync.Mutex
	m  map[string]chan upload // guarded by mu; by build id
}

type upload struct {
	body io.Reader
	done chan struct{}
}

func (u *uploads) channel(id string) chan upload {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.m == nil {
		u.m = map[string]chan upload{}
	}
	if u.m[id] == nil {
		u.m[id] = make(chan upload)
	}
	return u.m[id]
}

func (u *uploads) forget(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.m, id)
}

// give hands the body to the build, and returns when it was read.
func (u *uploads) give(ctx context.Context, id string, body io.Reader) error {
	up := upload{body, make(chan struct{})}
	wctx, cancel := context.WithTimeout(ctx, uploadWait)
	defer cancel()
	select {
	case u.channel(id) <- up:
	case <-wctx.Done():
		return errdefs.Newf(errdefs.NotFound, "upload", "context", "no build %s waits for one", id)
	}
	select {
	case <-up.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take waits for the body; done says that it was read.
func (u *uploads) take(ctx context.Context, id string) (body io.Reader, done func(), err error) {
	defer u.forget(id)
	ctx, cancel := context.WithTimeout(ctx, uploadWait)
	defer cancel()
	select {
	case up := <-u.channel(id):
		return up.body, func() { close(up.done) }, nil
	case <-ctx.Done():
		return nil, nil, errdefs.Newf(errdefs.Invalid, "build", "context", "it was announced, and did not come")
	}
}
