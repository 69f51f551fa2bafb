package container

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/layer"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/snapshot"
)

// place is a path of a container, with the root in which it is resolved. Every
// use of it is by openat2 below that root: a container that swaps a directory
// for a link meanwhile stays inside.
type place struct {
	root     *os.File
	path     string // below root
	writable bool
}

func (p *place) close() { p.root.Close() }

// locate opens the root that a path of the container lies in: the process's
// own where it runs, so that mounts are seen; otherwise the snapshot, or the
// volume or bind mount that would be there.
func (s *Service) locate(ctx context.Context, c *Container, p string, write bool) (*place, error) {
	rec, st := c.view()
	clean := path.Clean("/" + p)
	if st.State.HasProcess() {
		f, err := os.Open("/proc/" + strconv.Itoa(st.PID) + "/root")
		if err == nil {
			return &place{root: f, path: clean, writable: s.writableAt(rec, clean)}, nil
		}
	}
	if st.State == Removing || st.State == Dead || st.State == Gone {
		return nil, errdefs.Newf(errdefs.Conflict, "", "", "container %s is being removed", c.id)
	}
	// Before the first start the working directory may not be there yet.
	w := rec.Config.WorkingDir
	makeDir := st.State == Created && w != ""
	root, err := s.mountRoot(ctx, rec.ID, snapshot.MountOptions{ReadOnly: !write && !makeDir})
	if err != nil {
		return nil, err
	}
	if makeDir {
		if f, err := linux.MkdirAllInRoot(root, w, 0o755, 0, 0); err == nil { // as its start will
			f.Close()
		}
	}
	follow := write || meansDir(p)
	for range maxLinks {
		pl, next, err := s.mounted(rec, root, clean, follow)
		if err != nil || pl != nil {
			root.Close()
			return pl, err
		}
		if next == "" {
			return &place{root: root, path: clean, writable: !rec.HostConfig.ReadonlyRootfs}, nil
		}
		clean = next
	}
	root.Close()
	return nil, invalid("%s in container %s: too many levels of symbolic links", clip(p), c.id)
}

// maxLinks is the kernel's own bound.
const maxLinks = 40

// mounted finds what of a container that does not run would be mounted at p:
// the place, or the path to look at next where a link in the mount leads out of
// it. Neither means that p is in the root.
func (s *Service) mounted(rec *Record, root *os.File, p string, follow bool) (pl *place, next string, err error) {
	// Links in the image may lead to a mount: resolve as far as exists first.
	real := resolveIn(root, p)
	if dir, name := path.Split(real); dir == "/etc/" && slices.Contains(etcFiles, name) {
		if f, err := os.Open(s.etcDir(rec.ID)); err == nil {
			if _, err := linux.OpenPathInRoot(f, name); err == nil {
				return &place{root: f, path: "/" + name, writable: true}, "", nil
			}
			f.Close()
		}
	}
	m, rest, ok := mountAt(rec.Mounts, real)
	if !ok {
		return nil, "", nil
	}
	src := m.Source
	if m.Type == mount.TypeVolume {
		v, err := s.o.Volumes.Get(m.Name)
		if err != nil {
			return nil, "", err
		}
		src = v.Mountpoint
	}
	if st, err := os.Stat(src); err != nil || !st.IsDir() {
		return nil, "", nil
	}
	f, err := os.Open(src)
	if err != nil {
		return nil, "", err
	}
	if next := linkIn(f, m.Destination, rest, follow); next != "" {
		f.Close()
		return nil, next, nil
	}
	return &place{root: f, path: rest, writable: !m.ReadOnly}, "", nil
}

// linkIn finds the first link on the way to p below dir, which is mounted at
// the container's path at, and returns the container's path that it leads to.
func linkIn(dir *os.File, at, p string, follow bool) string {
	done := "/"
	for rest := strings.TrimPrefix(p, "/"); rest != ""; {
		var name string
		if name, rest, _ = strings.Cut(rest, "/"); rest == "" && !follow {
			return ""
		}
		_, target, err := linux.StatInRoot(dir, path.Join(done, name), false)
		if err != nil {
			return ""
		}
		if target != "" {
			if !path.IsAbs(target) {
				target = path.Join(at, done, target)
			}
			return path.Join(target, rest)
		}
		done = path.Join(done, name)
	}
	return ""
}

// resolveIn follows the links of a path's existing part.
func resolveIn(root *os.File, p string) string {
	rest := ""
	for dir := p; dir != "/"; dir = path.Dir(dir) {
		if f, err := linux.OpenPathInRoot(root, dir); err == nil {
			defer f.Close()
			if real, err := linux.PathBelow(root, f); err == nil {
				return path.Join("/", real, rest)
			}
			return p
		}
		rest = path.Join(path.Base(dir), rest)
	}
	return p
}

func mountAt(mounts []Mount, p string) (m Mount, rest string, ok bool) {
	for _, x := range mounts {
		if x.Type != mount.TypeBind && x.Type != mount.TypeVolume {
			continue
		}
		if r, in := strings.CutPrefix(p, x.Destination); in && (r == "" || r[0] == '/') && len(x.Destination) >= len(m.Destination) {
			m, rest, ok = x, path.Join("/", r), true
		}
	}
	return m, rest, ok
}

func (s *Service) writableAt(rec *Record, p string) bool {
	if m, _, ok := mountAt(rec.Mounts, p); ok {
		return !m.ReadOnly
	}
	return !rec.HostConfig.ReadonlyRootfs
}

func noSuchPath(ref, p string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errdefs.Newf(errdefs.NotFound, "", "", "Could not find the file %s in container %s", p, ref)
	case errors.Is(err, syscall.ENOTDIR):
		return errdefs.Newf(errdefs.Invalid, "", "", "%s in container %s: not a directory", p, ref)
	}
	return err
}

// StatPath describes a path of a container.
func (s *Service) StatPath(ctx context.Context, ref, p string) (container.PathStat, error) {
	c, err := s.find("stat", ref)
	if err != nil {
		return container.PathStat{}, err
	}
	pl, err := s.locate(ctx, c, p, false)
	if err != nil {
		return container.PathStat{}, err
	}
	defer pl.close()
	return s.statPlace(ref, pl, p)
}

func (s *Service) statPlace(ref string, pl *place, p string) (container.PathStat, error) {
	follow := meansDir(p)
	st, target, err := linux.StatInRoot(pl.root, pl.path, follow)
	if err != nil {
		return container.PathStat{}, noSuchPath(ref, p, err)
	}
	if follow && !st.IsDir() {
		return container.PathStat{}, noSuchPath(ref, p, syscall.ENOTDIR)
	}
	if target != "" && !path.IsAbs(target) {
		target = path.Join(path.Dir(path.Clean("/"+p)), target)
	}
	return container.PathStat{Name: path.Base(p), Size: st.Size(), Mode: st.Mode(), Mtime: st.ModTime(), LinkTarget: target}, nil
}

// meansDir tells that p, as with a shell, means the directory that a link at its
// end points to.
func meansDir(p string) bool { return strings.HasSuffix(p, "/") || path.Base(p) == "." }

// archiveName is what the first entry of p's archive is called: clients tell by
// it whether they asked for a directory ("dir/") or for what is in it ("./").
func archiveName(p string) string {
	if name := path.Base(p); name != "." {
		return name
	}
	return "./"
}

// ArchivePath describes a path and returns a function that writes it as a tar
// archive; close frees what they hold.
func (s *Service) ArchivePath(ctx context.Context, ref, p string) (st container.PathStat, write func(io.Writer) error, closer func(), err error) {
	c, err := s.find("copy", ref)
	if err != nil {
		return st, nil, nil, err
	}
	pl, err := s.locate(ctx, c, p, false)
	if err != nil {
		return st, nil, nil, err
	}
	if st, err = s.statPlace(ref, pl, p); err != nil {
		pl.close()
		return st, nil, nil, err
	}
	s.emit(c, "archive-path", nil)
	o := layer.ArchiveOptions{Follow: meansDir(p), Name: archiveName(p)}
	return st, func(w io.Writer) error { return layer.Archive(ctx, w, pl.root, pl.path, o) }, pl.close, nil
}

// ExtractOptions say how an archive is unpacked into a container.
type ExtractOptions struct {
	NoOverwriteDirNonDir bool
	CopyUIDGID           bool
}

// ExtractPath unpacks a tar archive in a directory of a container.
func (s *Service) ExtractPath(ctx context.Context, ref, p string, o ExtractOptions, r io.Reader) error {
	c, err := s.find("copy", ref)
	if err != nil {
		return err
	}
	pl, err := s.locate(ctx, c, p, true)
	if err != nil {
		return err
	}
	defer pl.close()
	st, _, err := linux.StatInRoot(pl.root, pl.path, true)
	if err != nil {
		return noSuchPath(ref, p, err)
	}
	if !st.IsDir() {
		return errdefs.Newf(errdefs.Invalid, "", "", "extraction point is not a directory")
	}
	if !pl.writable {
		return errdefs.Newf(errdefs.Forbidden, "", "", "container rootfs is marked read-only")
	}
	lo := layer.ExtractOptions{KeepKind: o.NoOverwriteDirNonDir}
	if rec, _ := c.view(); o.CopyUIDGID && rec.Config.User != "" {
		id, err := userIn(pl.root, rec.Config.User, nil)
		if err != nil {
			return err
		}
		lo.Owner = &layer.Owner{UID: int(id.UID), GID: int(id.GID)}
	}
	plain, _, err := layer.Decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	if err := layer.Extract(ctx, plain, pl.root, pl.path, lo); err != nil {
		return err
	}
	s.emit(c, "extract-to-dir", nil)
	return nil
}

// Export writes a container's root file system, without its mounts, as a tar
// archive. The container must exist when Export returns; write may take long.
func (s *Service) Export(ctx context.Context, ref string) (write func(io.Writer) error, closer func(), err error) {
	c, err := s.find("export", ref)
	if err != nil {
		return nil, nil, err
	}
	_, st := c.view()
	if st.State == Removing || st.State == Dead {
		return nil, nil, errdefs.Newf(errdefs.Conflict, "", "", "You cannot export container %s which is being removed", c.id)
	}
	root, err := s.rootOf(ctx, c.id, st)
	if err != nil {
		return nil, nil, err
	}
	s.emit(c, "export", nil)
	return func(w io.Writer) error { return layer.Archive(ctx, w, root, "/", layer.ArchiveOptions{Name: "."}) }, func() { root.Close() }, nil
}

// rootOf gives a container's root without what is mounted in it: the process's
// own mount where there is one, as overlayfs does not define what a second one
// of the same directories shows.
func (s *Service) rootOf(ctx context.Context, id string, st Status) (root *os.File, err error) {
	if st.State.HasProcess() {
		onThrowawayThread(func() { root, err = linux.RootMount(st.PID) })
		if err == nil {
			return root, nil
		}
		s.log.Debug("the process's root is not to be had", "container", id, "error", err) // it may have ended
	}
	return s.mountRoot(ctx, id, snapshot.MountOptions{ReadOnly: true})
}
