package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// MountOptions say how a snapshot is mounted.
type MountOptions struct {
	ReadOnly bool
	// Volatile leaves out every sync of the file system that is written to: for
	// what nobody needs after a crash.
	Volatile bool
	// Extra are directories that lie on the snapshot's lower ones, top first,
	// and below the one it is written to.
	Extra []string
	// Under are directories that lie under all of the snapshot's.
	Under []string
}

// maxLayers is overlayfs's own limit.
const maxLayers = 500

// MountFD mounts a snapshot, attached nowhere: the mount lives as long as the
// descriptor, or what is made of it. A committed snapshot and a view are
// read-only. There must be only one mount of an active snapshot that is
// written to.
func (s *Store) MountFD(ctx context.Context, key string, o MountOptions) (*os.File, error) {
	s.mu.Lock()
	n, own, ids, err := s.chainLocked("mount", key)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	m := linux.Overlay{Dir: s.path("."), Lowers: append([]string(nil), o.Extra...), Volatile: o.Volatile}
	if n.rec.Kind == Active && !o.ReadOnly {
		m.Upper, m.Work = s.path(layerKey(own)), s.path(workName(own))
	} else if own != 0 {
		m.Lowers = append([]string{s.path(layerKey(own))}, m.Lowers...)
	}
	for _, id := range ids {
		m.Lowers = append(m.Lowers, s.path(layerKey(id)))
	}
	m.Lowers = append(m.Lowers, o.Under...)
	if len(m.Lowers) > maxLayers {
		return nil, refuse(errdefs.Unsupported, "mount", key, "%d layers are more than overlayfs's %d", len(m.Lowers), maxLayers)
	}
	f, err := s.mount(m, own)
	if err == nil {
		return f, nil
	}
	if errors.Is(err, syscall.EINVAL) && m.Upper != "" {
		err = errdefs.WithHint(fmt.Errorf("%w (overlayfs cannot write to every file system)", err), "put the data-root on ext4, xfs, btrfs or tmpfs")
	}
	return nil, s.fail("mount", key, err)
}

func (s *Store) mount(m linux.Overlay, own uint64) (*os.File, error) {
	switch {
	case m.Upper == "" && len(m.Lowers) == 0:
		return readOnly(linux.Filesystem("tmpfs", []string{"mode=0755", "size=4k"}, 0))
	case m.Upper == "" && len(m.Lowers) == 1:
		return readOnly(linux.CloneTree(nil, m.Lowers[0], false))
	case len(m.Lowers) == 0:
		return linux.CloneTree(nil, m.Upper, false)
	}
	if m.Upper != "" {
		s.forgetVolatile(own)
	}
	return linux.MountOverlay(m)
}

func readOnly(f *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	if err := linux.SetMountReadOnly(f, false); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// forgetVolatile removes the mark that an earlier volatile mount left, and that
// overlayfs takes for a crash.
func (s *Store) forgetVolatile(own uint64) {
	sub, err := s.d.DirInRoot(workName(own) + "/work/incompat")
	if err != nil {
		return
	}
	defer sub.Close()
	if err := sub.RemoveAll("volatile"); err != nil {
		s.log.Warn("removing the mark of a volatile mount", "dir", s.path(workName(own)), "err", err)
	}
}
