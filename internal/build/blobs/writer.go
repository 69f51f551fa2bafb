package blobs

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// writer is a blob being written. It may be closed and taken up again by its
// ref.
type writer struct {
	s   *Store
	ref string
	key string // namespace and id of the lease it was opened under

	mu       sync.Mutex
	f        *os.File // nil when closed
	path     string
	hash     hash.Hash
	offset   int64
	total    int64
	expected digest.Digest
	started  time.Time
	updated  time.Time
	open     bool
}

// Writer implements content.Ingester.
func (s *Store) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, f := range opts {
		if err := f(&o); err != nil {
			return nil, err
		}
	}
	if o.Ref == "" {
		return nil, fmt.Errorf("a blob writer needs a ref: %w", cerrdefs.ErrInvalidArgument)
	}
	ns, _ := namespaces.Namespace(ctx)
	id, leased := leases.FromContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := o.Desc.Digest; d != "" && s.infos[d] != nil {
		if leased {
			s.addLocked(leaseKey(ns, id), d)
		}
		return nil, fmt.Errorf("blob %s: %w", d, cerrdefs.ErrAlreadyExists)
	}
	w := s.ingests[o.Ref]
	if w == nil {
		s.serial++
		w = &writer{s: s, ref: o.Ref, hash: sha256.New(), started: time.Now(),
			path: filepath.Join(s.dir, "ingest", strconv.Itoa(s.serial))}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open {
		return nil, fmt.Errorf("blob %s is being written: %w", o.Ref, cerrdefs.ErrUnavailable)
	}
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	w.f, w.open, w.updated = f, true, time.Now()
	if o.Desc.Digest != "" {
		w.expected = o.Desc.Digest
	}
	if o.Desc.Size > 0 {
		w.total = o.Desc.Size
	}
	w.key = ""
	if leased {
		w.key = leaseKey(ns, id)
	}
	s.ingests[o.Ref] = w
	return w, nil
}

func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open {
		return 0, os.ErrClosed
	}
	n, err := w.f.WriteAt(p, w.offset)
	w.hash.Write(p[:n])
	w.offset += int64(n)
	w.updated = time.Now()
	return n, err
}

func (w *writer) Digest() digest.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	return digest.NewDigest(digest.SHA256, w.hash)
}

func (w *writer) Status() (content.Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return content.Status{Ref: w.ref, Offset: w.offset, Total: w.total, Expected: w.expected,
		StartedAt: w.started, UpdatedAt: w.updated}, nil
}

func (w *writer) Truncate(size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open {
		return os.ErrClosed
	}
	w.hash.Reset()
	if size > 0 {
		if size > w.offset {
			return fmt.Errorf("truncating blob %s beyond its end: %w", w.ref, cerrdefs.ErrInvalidArgument)
		}
		if _, err := io.Copy(w.hash, io.NewSectionReader(w.f, 0, size)); err != nil {
			return err
		}
	}
	w.offset = size
	return w.f.Truncate(size)
}

// Close leaves what was written for a later Writer of the same ref.
func (w *writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open {
		return nil
	}
	w.open = false
	return w.f.Close()
}

func (w *writer) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open {
		return os.ErrClosed
	}
	w.open = false
	w.f.Close()
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ingests, w.ref)
	got := digest.NewDigest(digest.SHA256, w.hash)
	if size > 0 && size != w.offset || expected != "" && expected != got {
		os.Remove(w.path)
		return fmt.Errorf("blob %s has %d bytes of digest %s, expected %d of %s: %w",
			w.ref, w.offset, got, size, expected, cerrdefs.ErrFailedPrecondition)
	}
	now := time.Now()
	info := &content.Info{Digest: got, Size: w.offset, CreatedAt: now, UpdatedAt: now}
	for _, f := range opts {
		if err := f(info); err != nil {
			os.Remove(w.path)
			return err
		}
	}
	if w.key != "" {
		defer s.addLocked(w.key, got)
	}
	if s.infos[got] != nil {
		os.Remove(w.path)
		return fmt.Errorf("blob %s: %w", got, cerrdefs.ErrAlreadyExists)
	}
	if err := os.Rename(w.path, s.path(got)); err != nil {
		os.Remove(w.path)
		return err
	}
	s.infos[got] = info
	return s.blobs.Put(got.String(), info)
}

// Status implements content.IngestManager.
func (s *Store) Status(_ context.Context, ref string) (content.Status, error) {
	s.mu.Lock()
	w := s.ingests[ref]
	s.mu.Unlock()
	if w == nil {
		return content.Status{}, fmt.Errorf("ingest %s: %w", ref, cerrdefs.ErrNotFound)
	}
	return w.Status()
}

// ListStatuses implements content.IngestManager.
func (s *Store) ListStatuses(_ context.Context, patterns ...string) ([]content.Status, error) {
	s.mu.Lock()
	var all []*writer
	for _, w := range s.ingests {
		all = append(all, w)
	}
	s.mu.Unlock()
	var out []content.Status
	for _, w := range all {
		ok := len(patterns) == 0
		for _, p := range patterns {
			if re, err := regexp.Compile(p); err == nil && re.MatchString(w.ref) {
				ok = true
			}
		}
		if ok {
			st, _ := w.Status()
			out = append(out, st)
		}
	}
	return out, nil
}

// Abort implements content.IngestManager.
func (s *Store) Abort(_ context.Context, ref string) error {
	s.mu.Lock()
	w := s.ingests[ref]
	delete(s.ingests, ref)
	s.mu.Unlock()
	if w == nil {
		return fmt.Errorf("ingest %s: %w", ref, cerrdefs.ErrNotFound)
	}
	w.Close()
	return os.Remove(w.path)
}
