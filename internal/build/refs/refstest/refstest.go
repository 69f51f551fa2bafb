// Package refstest stands in for the stores below package refs in tests.
//
// # Model
//
// Snapshots are plain directories with a parent; records are a map. Mounts are
// real ones, so that tests which mount need root; the others need nothing.
//
// # Not here
//
// Durability, and sharing of directories' space between names.
package refstest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	digest "github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/build/refs"
)

// Records is a map, safe for concurrent use.
type Records struct {
	mu sync.Mutex
	m  map[string]json.RawMessage
}

var _ refs.Records = (*Records)(nil)

func (r *Records) Put(key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[string]json.RawMessage{}
	}
	r.m[key] = b
	return nil
}

func (r *Records) Delete(key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, key)
	return nil
}

func (r *Records) Each(f func(string, json.RawMessage) error) error {
	r.mu.Lock()
	var keys []string
	for k := range r.m {
		keys = append(keys, k)
	}
	r.mu.Unlock()
	sort.Strings(keys)
	for _, k := range keys {
		r.mu.Lock()
		raw := r.m[k]
		r.mu.Unlock()
		if err := f(k, raw); err != nil {
			return err
		}
	}
	return nil
}

// Len is the number of records.
func (r *Records) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.m)
}

type snap struct {
	dir       string
	parent    string
	committed bool
}

// Snapshots keeps snapshots as directories under Dir.
type Snapshots struct {
	Dir string
	mu  sync.Mutex
	m   map[string]*snap
	n   int
}

var (
	_ refs.Snapshots = (*Snapshots)(nil)
	_ refs.Mounter   = (*Snapshots)(nil)
)

func (s *Snapshots) add(key, parent string, committed bool, dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string]*snap{}
	}
	if s.m[key] != nil {
		return fmt.Errorf("snapshot %s: %w", key, fs.ErrExist)
	}
	if parent != "" && (s.m[parent] == nil || !s.m[parent].committed) {
		return fmt.Errorf("parent %s of snapshot %s is not committed", parent, key)
	}
	if dir == "" {
		s.n++
		dir = filepath.Join(s.Dir, fmt.Sprint(s.n))
		for _, d := range []string{"fs", "work"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				return err
			}
		}
	}
	s.m[key] = &snap{dir, parent, committed}
	return nil
}

func (s *Snapshots) Prepare(_ context.Context, key, parent string) error {
	return s.add(key, parent, false, "")
}

func (s *Snapshots) Commit(_ context.Context, name, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.m[key]
	if x == nil || x.committed || s.m[name] != nil {
		return fmt.Errorf("cannot commit %s as %s", key, name)
	}
	delete(s.m, key)
	x.committed = true
	s.m[name] = x
	return nil
}

func (s *Snapshots) get(key string) *snap {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[key]
}

func (s *Snapshots) Stack(_ context.Context, name, existing, parent string) error {
	x := s.get(existing)
	if x == nil || !x.committed {
		return fmt.Errorf("no snapshot %s", existing)
	}
	return s.add(name, parent, true, x.dir)
}

func (s *Snapshots) Remove(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.m[key]
	if x == nil {
		return nil
	}
	for k, o := range s.m {
		if o.parent == key {
			return fmt.Errorf("snapshot %s has a child %s", key, k)
		}
	}
	delete(s.m, key)
	for _, o := range s.m {
		if o.dir == x.dir {
			return nil
		}
	}
	return os.RemoveAll(x.dir)
}

func (s *Snapshots) Exists(key string) bool { return s.get(key) != nil }

func (s *Snapshots) Names(prefix string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for k := range s.m {
		if strings.HasPrefix(k, prefix) {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return out, nil
}

func (s *Snapshots) Usage(_ context.Context, key string) (int64, error) {
	x := s.get(key)
	if x == nil {
		return 0, fs.ErrNotExist
	}
	var n int64
	err := filepath.WalkDir(filepath.Join(x.dir, "fs"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			fi, err := d.Info()
			if err != nil {
				return err
			}
			n += fi.Size()
		}
		return err
	})
	return n, err
}

func (s *Snapshots) Dirs(key string) (string, []string, error) {
	x := s.get(key)
	if x == nil {
		return "", nil, fs.ErrNotExist
	}
	var lowers []string
	for p := s.get(x.parent); p != nil; p = s.get(p.parent) {
		lowers = append(lowers, filepath.Join(p.dir, "fs"))
	}
	return filepath.Join(x.dir, "fs"), lowers, nil
}

// Open mounts the snapshot under Dir, and returns its root.
func (s *Snapshots) Open(_ context.Context, key string, readOnly bool) (*os.File, error) {
	own, lowers, err := s.Dirs(key)
	if err != nil {
		return nil, err
	}
	if len(lowers) == 0 {
		return os.Open(own)
	}
	s.mu.Lock()
	s.n++
	p := filepath.Join(s.Dir, fmt.Sprintf("mnt%d", s.n))
	s.mu.Unlock()
	if err := os.Mkdir(p, 0o700); err != nil {
		return nil, err
	}
	opts := []string{"lowerdir=" + strings.Join(append([]string{own}, lowers...), ":")}
	if !readOnly {
		opts = []string{"lowerdir=" + strings.Join(lowers, ":"), "upperdir=" + own, "workdir=" + filepath.Join(filepath.Dir(own), "work")}
	}
	if err := mount.All([]mount.Mount{{Type: "overlay", Source: "overlay", Options: opts}}, p); err != nil {
		return nil, err
	}
	return os.Open(p)
}

// Attach implements refs.Mounter.
func (s *Snapshots) Attach(f *os.File, path string) error {
	return mount.All([]mount.Mount{{Type: "bind", Source: fmt.Sprintf("/proc/self/fd/%d", f.Fd()), Options: []string{"rbind"}}}, path)
}

// Detach implements refs.Mounter.
func (s *Snapshots) Detach(path string) error { return mount.UnmountAll(path, 2) }

// Close takes down what Open has mounted.
func (s *Snapshots) Close() {
	m, _ := filepath.Glob(filepath.Join(s.Dir, "mnt*"))
	for _, p := range m {
		mount.UnmountAll(p, 2)
	}
}

// Layers makes tars with containerd's archive package.
type Layers struct{}

// Tidy does nothing.
func (Layers) Tidy(string, []string) error { return nil }

func (Layers) Tar(ctx context.Context, w io.Writer, dir string) error {
	return archive.WriteDiff(ctx, w, "", dir)
}

func (Layers) Apply(ctx context.Context, r io.Reader, dir string, lowers []string) (digest.Digest, int64, error) {
	d, err := compression.DecompressStream(r)
	if err != nil {
		return "", 0, err
	}
	defer d.Close()
	dg := digest.Canonical.Digester()
	n := &count{}
	if _, err := archive.Apply(ctx, dir, io.TeeReader(d, io.MultiWriter(dg.Hash(), n)), archive.WithNoSameOwner()); err != nil {
		return "", 0, err
	}
	if _, err := io.Copy(io.MultiWriter(dg.Hash(), n), d); err != nil {
		return "", 0, err
	}
	return dg.Digest(), n.n, nil
}

type count struct{ n int64 }

func (c *count) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }
