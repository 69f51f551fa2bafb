package image

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/registry"
)

// A download brings one blob into a partial file, once for all pulls that
// want it, and lets them read it while it comes. What came stays for a later
// download unless it turned out to be wrong or everybody is done with it.
type download struct {
	s    *Service
	d    ocispec.Descriptor
	name string

	slots  chan struct{} // of the pull that started it
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when the file does not grow any more
	closed chan struct{} // closed when the file is dropped or left alone

	mu       sync.Mutex
	refs     int           // guarded by downloads.mu
	used     bool          // somebody has what it wanted; guarded by mu
	file     *os.File      // nil until opened; guarded by mu
	n        int64         // bytes there; guarded by mu
	resumed  int64         // of which were there before; guarded by mu
	err      error         // guarded by mu
	done     bool          // guarded by mu
	changed  chan struct{} // closed and replaced when the above changes; guarded by mu
	watchers []func(state string, n int64)
}

// downloads are those under way, by digest.
type downloads struct {
	mu   sync.Mutex
	open map[ocispec.Digest]*download
}

// errCorrupt is the cause where a blob is not what its digest says.
var errCorrupt = errors.New("the content does not have its digest")

// fetch joins or starts the download of a blob. watch is told how it goes.
func (s *Service) fetch(ctx context.Context, repo *registry.Repository, d ocispec.Descriptor, slots chan struct{}, watch func(state string, n int64)) (*download, error) {
	for {
		s.loads.mu.Lock()
		dl := s.loads.open[d.Digest]
		if dl == nil {
			dl = s.startLocked(ctx, repo, d, slots, watch)
			s.loads.mu.Unlock()
			return dl, nil
		}
		if dl.refs > 0 {
			dl.refs++
			s.loads.mu.Unlock()
			dl.mu.Lock()
			dl.watchers = append(dl.watchers, watch)
			dl.mu.Unlock()
			return dl, nil
		}
		s.loads.mu.Unlock()
		select {
		case <-dl.closed: // its file is free then
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// startLocked starts a download. Preconditions: s.loads.mu is held.
func (s *Service) startLocked(ctx context.Context, repo *registry.Repository, d ocispec.Descriptor, slots chan struct{}, watch func(string, int64)) *download {
	// It lives as long as anybody wants it.
	dctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	dl := &download{s: s, d: d, name: s.partialPath(d.Digest), slots: slots, cancel: cancel, refs: 1, ended: make(chan struct{}),
		closed: make(chan struct{}), changed: make(chan struct{}), watchers: []func(string, int64){watch}}
	s.loads.open[d.Digest] = dl
	go func() {
		err := dl.run(dctx, repo)
		dl.mu.Lock()
		dl.done, dl.err = true, err
		dl.notifyLocked()
		dl.mu.Unlock()
		close(dl.ended)
	}()
	return dl
}

// release ends a pull's interest. used: the blob need not be kept, since it
// has done its duty or nobody will ever want it.
func (dl *download) release(used bool) {
	dl.mu.Lock()
	dl.used = dl.used || used
	dl.mu.Unlock()
	dl.s.loads.mu.Lock()
	dl.refs--
	last := dl.refs == 0
	dl.s.loads.mu.Unlock()
	if !last {
		return
	}
	dl.cancel(context.Canceled)
	<-dl.ended
	dl.close()
	dl.s.loads.mu.Lock()
	delete(dl.s.loads.open, dl.d.Digest)
	dl.s.loads.mu.Unlock()
	close(dl.closed)
}

func (dl *download) close() {
	dl.mu.Lock()
	defer dl.mu.Unlock()
	if dl.file != nil {
		dl.file.Close()
	}
	if dl.used || errors.Is(dl.err, errCorrupt) {
		os.Remove(dl.name)
	}
}

func (dl *download) notifyLocked() {
	close(dl.changed)
	dl.changed = make(chan struct{})
}

func (dl *download) tell(state string, n int64) {
	dl.mu.Lock()
	list := dl.watchers
	dl.mu.Unlock()
	for _, w := range list {
		w(state, n)
	}
}

func (dl *download) run(ctx context.Context, repo *registry.Repository) error {
	select {
	case dl.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-dl.slots }()
	f, err := os.OpenFile(dl.name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return diskError("pull", dl.d.Digest, err)
	}
	h := newHash(dl.d.Digest)
	if h == nil {
		f.Close()
		return errdefs.Newf(errdefs.Unsupported, "pull", dl.d.Digest.String(), "no implementation of its algorithm")
	}
	at, err := dl.resume(f, h)
	if err != nil {
		f.Close()
		return diskError("pull", dl.d.Digest, err)
	}
	dl.mu.Lock()
	dl.file, dl.n, dl.resumed = f, at, at
	dl.notifyLocked()
	dl.mu.Unlock()
	if err := dl.receive(ctx, repo, f, h, at); err != nil {
		return err
	}
	dl.tell("Verifying Checksum", dl.d.Size)
	if got := hex.EncodeToString(h.Sum(nil)); got != dl.d.Digest.Encoded() {
		f.Truncate(0)
		return errdefs.New(errdefs.Invalid, "pull", dl.d.Digest.String(), fmt.Errorf("%w: it has %s:%s", errCorrupt, dl.d.Digest.Algorithm(), got))
	}
	dl.tell("Download complete", dl.d.Size)
	return nil
}

// resume hashes what an earlier download left.
func (dl *download) resume(f *os.File, h hash.Hash) (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if fi.Size() > dl.d.Size {
		return 0, f.Truncate(0)
	}
	n, err := io.CopyBuffer(h, io.NewSectionReader(f, 0, fi.Size()), make([]byte, 256<<10))
	return n, err
}

func (dl *download) receive(ctx context.Context, repo *registry.Repository, f *os.File, h hash.Hash, at int64) error {
	dl.tell("Downloading", at)
	body, err := repo.Blob(ctx, dl.d, at)
	if err != nil {
		return err
	}
	defer body.Close()
	buf := make([]byte, 128<<10)
	for at < dl.d.Size {
		n, err := body.Read(buf)
		if n > 0 {
			h.Write(buf[:n])
			if _, werr := f.WriteAt(buf[:n], at); werr != nil {
				return diskError("pull", dl.d.Digest, werr)
			}
			at += int64(n)
			dl.mu.Lock()
			dl.n = at
			dl.notifyLocked()
			dl.mu.Unlock()
			dl.tell("Downloading", at)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if at != dl.d.Size {
		return errdefs.Newf(errdefs.Unavailable, "pull", dl.d.Digest.String(), "%d bytes came, want %d", at, dl.d.Size)
	}
	return nil
}

// wait returns when the download has ended, verified or not.
func (dl *download) wait(ctx context.Context) error {
	select {
	case <-dl.ended:
		dl.mu.Lock()
		defer dl.mu.Unlock()
		return dl.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// reader follows the download from the blob's start.
func (dl *download) reader(ctx context.Context) io.Reader {
	return readerFunc(func() func([]byte) (int, error) {
		var at int64
		return func(p []byte) (int, error) {
			for {
				dl.mu.Lock()
				f, n, done, err, changed := dl.file, dl.n, dl.done, dl.err, dl.changed
				dl.mu.Unlock()
				if at < n {
					if int64(len(p)) > n-at {
						p = p[:n-at]
					}
					m, err := f.ReadAt(p, at)
					at += int64(m)
					if m > 0 {
						err = nil
					}
					return m, err
				}
				if done {
					if err == nil {
						err = io.EOF
					}
					return 0, err
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return 0, context.Cause(ctx)
				}
			}
		}
	}())
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func newHash(d ocispec.Digest) hash.Hash {
	if alg := d.Algorithm(); alg.Available() {
		return alg.Hash()
	}
	return nil
}

// diskError words an error of a file of ours.
func diskError(op string, d ocispec.Digest, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errdefs.WithHint(errdefs.New(errdefs.Exhausted, op, d.String(), err), "onggi system df shows what takes the space, onggi system prune frees some")
	}
	return errdefs.New(errdefs.Internal, op, d.String(), err)
}

// start is how much had been there when the download began.
func (dl *download) start() int64 {
	dl.mu.Lock()
	defer dl.mu.Unlock()
	return dl.resumed
}

// complete reports whether the whole blob is there.
func (dl *download) complete() bool {
	dl.mu.Lock()
	defer dl.mu.Unlock()
	return dl.done && dl.err == nil
}

// failed is what was wrong with a blob of which all bytes came. It waits for
// the verdict only then.
func (dl *download) failed() error {
	dl.mu.Lock()
	all := dl.n == dl.d.Size
	dl.mu.Unlock()
	if all {
		<-dl.ended
	}
	dl.mu.Lock()
	defer dl.mu.Unlock()
	return dl.err
}
