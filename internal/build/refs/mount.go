package refs

import (
	"context"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/sys/user"
)

// view is a node that can be mounted.
type view struct {
	n        *node
	readOnly bool
}

var (
	_ snapshot.Mountable = (*view)(nil)
	_ Opener             = (*view)(nil)
)

// Opener is a mountable of ours. A container takes it by descriptor, so that
// nothing is attached in the host's mount namespace.
type Opener interface {
	// Open returns a detached mount. For a writable one there must be only one
	// at a time.
	Open(ctx context.Context) (*os.File, error)
	// Path returns a directory that shows the files, valid while the ref is
	// held. It may be called any number of times.
	Path(ctx context.Context) (string, error)
}

func (v *view) IdentityMapping() *user.IdentityMapping { return nil }

// withKey gives f the snapshot that holds the node's files, while it has that key:
// another of a build's outputs may commit it at any moment.
func (n *node) withKey(f func(key string, mutable bool) error) error {
	n.keyed.RLock()
	defer n.keyed.RUnlock()
	n.s.mu.Lock()
	key, mutable := n.rec.Snapshot, n.rec.Mutable
	if !mutable && n.twin != nil {
		key = n.twin.rec.Snapshot
	}
	n.s.mu.Unlock()
	return f(key, mutable)
}

func (v *view) Open(ctx context.Context) (fd *os.File, err error) {
	n := v.n
	if err := n.whole(ctx); err != nil {
		return nil, err
	}
	err = n.withKey(func(key string, mutable bool) error {
		if mutable && !v.readOnly {
			n.s.mu.Lock()
			n.ran = true
			n.s.mu.Unlock()
		}
		fd, err = n.s.o.Snapshots.Open(ctx, key, v.readOnly || !mutable)
		return err
	})
	return fd, err
}

// Path mounts the node once for all of BuildKit's own steps: two mounts over
// one writable directory would not see each other's changes.
func (v *view) Path(ctx context.Context) (string, error) {
	n := v.n
	if err := n.whole(ctx); err != nil {
		return "", err
	}
	var own string
	var lowers []string
	err := n.withKey(func(key string, _ bool) (err error) {
		own, lowers, err = n.s.o.Snapshots.Dirs(key)
		return err
	})
	if err != nil {
		return "", err
	}
	if len(lowers) == 0 {
		return own, nil
	}
	n.work.Lock()
	defer n.work.Unlock()
	n.s.mu.Lock()
	p := n.attached
	n.s.mu.Unlock()
	if p != "" {
		return p, nil
	}
	var fd *os.File
	err = n.withKey(func(key string, mutable bool) (err error) {
		fd, err = n.s.o.Snapshots.Open(ctx, key, !mutable)
		return err
	})
	if err != nil {
		return "", err
	}
	defer fd.Close()
	p = filepath.Join(n.s.mounts, n.rec.ID)
	if err := os.Mkdir(p, 0o700); err != nil && !os.IsExist(err) {
		return "", err
	}
	if err := n.s.o.Mounter.Attach(fd, p); err != nil {
		os.Remove(p)
		return "", err
	}
	n.s.mu.Lock()
	n.attached = p
	n.s.mu.Unlock()
	return p, nil
}

// Mount implements snapshot.Mountable for BuildKit's own steps, which take a
// writable bind as the directory itself. A committed node is either an overlay
// without a writable directory or only read, so none says "ro".
func (v *view) Mount() ([]mount.Mount, func() error, error) {
	p, err := v.Path(context.Background())
	if err != nil {
		return nil, nil, err
	}
	return []mount.Mount{{Type: "bind", Source: p, Options: []string{"rbind"}}}, func() error { return nil }, nil
}

// detach takes a mount down.
func (s *Store) detach(path string) {
	if err := s.o.Mounter.Detach(path); err != nil {
		s.o.Logger.Warn("detaching a build mount", "path", path, "err", err)
		return
	}
	os.Remove(path)
}

// detachLeftovers takes down what a killed engine left mounted.
func (s *Store) detachLeftovers() {
	entries, _ := os.ReadDir(s.mounts)
	for _, e := range entries {
		s.detach(filepath.Join(s.mounts, e.Name()))
	}
}
