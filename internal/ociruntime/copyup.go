package ociruntime

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// copyUp makes a tmpfs that begins with what the root has at its destination.
// It is nil where the root has nothing there.
func (c *compiler) copyUp(m specs.Mount, o mountOptions) (_ *os.File, err error) {
	root := c.o.RootFS
	if root == nil {
		if root, err = os.Open(c.spec.Root.Path); err != nil {
			return nil, err
		}
		defer root.Close()
	}
	from, err := linux.OpenDirInRoot(root, m.Destination)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errdefs.New(errdefs.Invalid, "copy up", fmt.Sprintf("%q", m.Destination), err)
	}
	defer from.Close()
	options := append([]string{"source=" + describeMount(m)}, append(o.data, o.super...)...)
	mnt, err := linux.Filesystem("tmpfs", options, int(o.set&^unix.MOUNT_ATTR_RDONLY))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			mnt.Close()
		}
	}()
	if err := copyDir(from, mnt, !hasKey(o.data, "mode"), 0); err != nil {
		return nil, errdefs.New(errdefs.Internal, "copy up", fmt.Sprintf("%q", m.Destination), err)
	}
	if o.set&unix.MOUNT_ATTR_RDONLY != 0 {
		return mnt, linux.SetMountReadOnly(mnt, false)
	}
	return mnt, nil
}

// maxDepth bounds what a hostile image can make us recurse.
const maxDepth = 256

func copyDir(from, to *os.File, meta bool, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d directories in each other", maxDepth)
	}
	entries, err := from.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := copyEntry(from, to, e.Name(), depth); err != nil {
			return err
		}
	}
	if !meta {
		return nil
	}
	fi, err := from.Stat()
	if err != nil {
		return err
	}
	return copyMeta(from, ".", to, ".", fi.Mode())
}

func copyEntry(from, to *os.File, name string, depth int) error {
	st, err := linux.StatAt(from, name)
	if err != nil {
		return err
	}
	switch mode := linux.FileMode(st.Mode); mode.Type() {
	case fs.ModeDir:
		if err := linux.MkdirAt(to, name, 0o700); err != nil {
			return err
		}
		src, err := linux.OpenAt(from, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer src.Close()
		dst, err := linux.OpenAt(to, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer dst.Close()
		return copyDir(src, dst, true, depth+1)
	case fs.ModeSymlink:
		target, err := linux.ReadlinkAt(from, name)
		if err != nil {
			return err
		}
		if err := linux.SymlinkAt(target, to, name); err != nil {
			return err
		}
		return linux.ChownAt(to, name, int(st.UID), int(st.GID))
	case 0:
		if err := copyFile(from, to, name); err != nil {
			return err
		}
		return copyMeta(from, name, to, name, mode)
	}
	return nil // sockets, pipes and devices stay behind
}

func copyFile(from, to *os.File, name string) error {
	src, err := linux.OpenAt(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := linux.OpenAt(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}

// copyMeta copies owner, mode, attributes and times.
func copyMeta(from *os.File, src string, to *os.File, dst string, mode fs.FileMode) error {
	st, err := linux.StatAt(from, src)
	if err != nil {
		return err
	}
	if err := linux.ChownAt(to, dst, int(st.UID), int(st.GID)); err != nil {
		return err
	}
	if err := linux.ChmodAt(to, dst, mode); err != nil {
		return err
	}
	attrs, err := linux.XattrsAt(from, src)
	if err != nil && !linux.IsNotSupported(err) {
		return err
	}
	for k, v := range attrs {
		if strings.HasPrefix(k, "trusted.overlay.") {
			continue
		}
		if err := linux.SetXattrAt(to, dst, k, v); err != nil && !linux.IsNotSupported(err) {
			return err
		}
	}
	return linux.TimesAt(to, dst, st.Mtime, st.Mtime)
}
