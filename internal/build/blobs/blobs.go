// Package blobs keeps the builder's own blobs: manifests and provenance being
// made, layers compressed for a push or a remote cache, logs of past builds.
// It implements containerd's content store and lease manager, because that is
// what BuildKit's exporters, cache and history speak.
//
// # Model
//
// A blob lives while a lease names it, or while a blob that lives refers to it
// by a label containerd.io/gc.ref.content.*. A blob written under a lease (in
// the context) belongs to it. Sweep removes the rest. Leases belong to
// containerd namespaces; blobs are shared by all.
//
// # On disk
//
// blobs/<hex of the sha256>, ingest/<n> while being written, and a record per
// blob and per lease in the database.
//
// # Guarantees
//
// The digest of a blob is verified before it is visible. Nothing is synced:
// the engine drops the whole store after an unclean boot.
//
// # Concurrency
//
// One lock, held for lookups in memory and for renames and removals of a file.
package blobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// grace is how long a blob without a lease is left alone: its writer may be
// about to name it.
const grace = 10 * time.Minute

// Records is the durable memory of a Store.
type Records interface {
	Put(key string, v any) error
	Delete(key string) error
	Each(f func(key string, raw json.RawMessage) error) error
}

// Store implements content.Store, and leases.Manager by Leases.
type Store struct {
	dir    string
	blobs  Records
	leased Records

	mu      sync.Mutex
	infos   map[digest.Digest]*content.Info // guarded by mu
	ingests map[string]*writer              // guarded by mu
	leases  map[string]*lease               // guarded by mu: by namespace/id
	serial  int                             // guarded by mu
}

var _ content.Store = (*Store)(nil)

// Open loads the store in dir.
func Open(dir string, blobs, leases Records) (*Store, error) {
	s := &Store{dir: dir, blobs: blobs, leased: leases, infos: map[digest.Digest]*content.Info{},
		ingests: map[string]*writer{}, leases: map[string]*lease{}}
	if err := os.RemoveAll(filepath.Join(dir, "ingest")); err != nil {
		return nil, err
	}
	for _, d := range []string{"ingest", "blobs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	err := blobs.Each(func(key string, raw json.RawMessage) error {
		info := &content.Info{}
		if err := json.Unmarshal(raw, info); err != nil {
			return blobs.Delete(key)
		}
		fi, err := os.Stat(s.path(info.Digest))
		if err != nil || fi.Size() != info.Size {
			os.Remove(s.path(info.Digest))
			return blobs.Delete(key)
		}
		s.infos[info.Digest] = info
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = leases.Each(func(key string, raw json.RawMessage) error {
		l := &lease{}
		if err := json.Unmarshal(raw, l); err != nil || l.temporary() {
			return leases.Delete(key)
		}
		s.leases[key] = l
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.sweep(0)
	return s, nil
}

func (s *Store) path(d digest.Digest) string {
	return filepath.Join(s.dir, "blobs", d.Algorithm().String()+"-"+d.Encoded())
}

func notFound(d digest.Digest) error { return fmt.Errorf("blob %s: %w", d, cerrdefs.ErrNotFound) }

// Info implements content.InfoProvider.
func (s *Store) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info := s.infos[d]
	if info == nil {
		return content.Info{}, notFound(d)
	}
	return clone(info), nil
}

func clone(i *content.Info) content.Info {
	out := *i
	out.Labels = make(map[string]string, len(i.Labels))
	for k, v := range i.Labels {
		out.Labels[k] = v
	}
	return out
}

// Update changes labels.
func (s *Store) Update(_ context.Context, in content.Info, fields ...string) (content.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info := s.infos[in.Digest]
	if info == nil {
		return content.Info{}, notFound(in.Digest)
	}
	next := clone(info)
	if len(fields) == 0 {
		next.Labels = in.Labels
	}
	for _, f := range fields {
		switch key, ok := strings.CutPrefix(f, "labels."); {
		case f == "labels":
			next.Labels = in.Labels
		case ok && in.Labels[key] == "":
			delete(next.Labels, key)
		case ok:
			next.Labels[key] = in.Labels[key]
		default:
			return content.Info{}, fmt.Errorf("field %q of blob %s: %w", f, in.Digest, cerrdefs.ErrInvalidArgument)
		}
	}
	next.UpdatedAt = time.Now()
	if err := s.blobs.Put(next.Digest.String(), &next); err != nil {
		return content.Info{}, err
	}
	s.infos[in.Digest] = &next
	return clone(&next), nil
}

// Walk implements content.Manager.
func (s *Store) Walk(ctx context.Context, fn content.WalkFunc, fs ...string) error {
	f, err := filters.ParseAll(fs...)
	if err != nil {
		return err
	}
	s.mu.Lock()
	var all []content.Info
	for _, i := range s.infos {
		if f.Match(content.AdaptInfo(*i)) {
			all = append(all, clone(i))
		}
	}
	s.mu.Unlock()
	for _, i := range all {
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements content.Manager.
func (s *Store) Delete(_ context.Context, d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.infos[d] == nil {
		return notFound(d)
	}
	return s.dropLocked(d)
}

func (s *Store) dropLocked(d digest.Digest) error {
	delete(s.infos, d)
	err := s.blobs.Delete(d.String())
	if rerr := os.Remove(s.path(d)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// ReaderAt implements content.Provider.
func (s *Store) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	s.mu.Lock()
	info := s.infos[desc.Digest]
	s.mu.Unlock()
	if info == nil {
		return nil, notFound(desc.Digest)
	}
	f, err := os.Open(s.path(desc.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(desc.Digest)
	}
	if err != nil {
		return nil, err
	}
	return &file{f, info.Size}, nil
}

type file struct {
	*os.File
	size int64
}

func (f *file) Size() int64 { return f.size }

// Sweep removes the blobs that nothing needs.
func (s *Store) Sweep() { s.sweep(grace) }

func (s *Store) sweep(grace time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	live := map[digest.Digest]bool{}
	var mark func(d digest.Digest)
	mark = func(d digest.Digest) {
		info := s.infos[d]
		if info == nil || live[d] {
			return
		}
		live[d] = true
		for k, v := range info.Labels {
			if strings.HasPrefix(k, "containerd.io/gc.ref.content") {
				mark(digest.Digest(v))
			}
		}
	}
	now := time.Now()
	for key, l := range s.leases {
		if l.expired(now) {
			delete(s.leases, key)
			s.leased.Delete(key)
			continue
		}
		for d := range l.Blobs {
			mark(digest.Digest(d))
		}
	}
	for d, info := range s.infos {
		if info.Labels["containerd.io/gc.root"] != "" || now.Sub(info.CreatedAt) < grace {
			mark(d)
		}
	}
	for d := range s.infos {
		if !live[d] {
			s.dropLocked(d)
		}
	}
}
