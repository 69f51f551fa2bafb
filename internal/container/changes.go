package container

import (
	"context"
	"errors"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/moby/api/types/container"

	"github.com/onggi/onggi/internal/linux"
)

const opaqueAttr = "trusted.overlay.opaque"

// Changes lists what a container changed of its image: the upper directory of
// its overlay, told against the lower ones. The container may be changing it
// meanwhile, so every step is by descriptor and follows no link.
func (s *Service) Changes(ctx context.Context, ref string) ([]container.FilesystemChange, error) {
	c, err := s.find("diff", ref)
	if err != nil {
		return nil, err
	}
	d, err := s.o.Snapshots.Dirs(c.id)
	if err != nil {
		return nil, err
	}
	upper, err := linux.OpenRoot(d.Upper)
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	var lowers []linux.FD
	for _, l := range d.Lowers {
		fd, err := linux.OpenRoot(l)
		if err != nil {
			return nil, err
		}
		defer fd.Close()
		lowers = append(lowers, fd)
	}
	ch := differ{ctx: ctx.Err, out: []container.FilesystemChange{}, ours: slices.Concat(stubDirs, stubFiles)}
	if err := ch.dir("", upper, lowers); err != nil {
		return nil, err
	}
	slices.SortFunc(ch.out, func(a, b container.FilesystemChange) int { return strings.Compare(a.Path, b.Path) })
	return ch.out, nil
}

type differ struct {
	ctx  func() error
	out  []container.FilesystemChange
	ours []string // places where a runtime mounts
}

func (d *differ) add(p string, kind container.ChangeType) {
	d.out = append(d.out, container.FilesystemChange{Path: p, Kind: kind})
}

// dir compares one directory of the upper tree with those at the same place
// below it.
func (d *differ) dir(p string, upper linux.FD, lowers []linux.FD) error {
	if err := d.ctx(); err != nil {
		return err
	}
	if v, err := upper.XattrOf("", opaqueAttr); err == nil && string(v) == "y" {
		lowers = nil
	}
	entries, err := upper.Entries()
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		if err := d.entry(path.Join("/", p, e.Name), e.Name, upper, lowers); err != nil {
			return err
		}
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil
	}
	return err
}

func (d *differ) entry(p, name string, upper linux.FD, lowers []linux.FD) error {
	var st linux.Stat
	if err := upper.Lstat(name, &st); err != nil {
		return ignoreGone(err)
	}
	isDir := st.Mode&syscall.S_IFMT == syscall.S_IFDIR
	if st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Major == 0 && st.Minor == 0 {
		d.add(p, container.ChangeDelete)
		return nil
	}
	below, existed := lowerDirs(name, lowers)
	defer func() {
		for _, fd := range below {
			fd.Close()
		}
	}()
	before := len(d.out)
	d.add(p, container.ChangeAdd)
	if existed {
		d.out[before].Kind = container.ChangeModify
	}
	if !isDir {
		if slices.Contains(d.ours, p) && st.Size == 0 {
			d.out = d.out[:before]
		}
		return nil
	}
	fd, err := upper.Dir(name)
	if err != nil {
		return ignoreGone(err)
	}
	defer fd.Close()
	if err := d.dir(p, fd, below); err != nil {
		return err
	}
	// A directory that is there only to hold our own mount points is no change.
	if len(d.out) == before+1 && slices.Contains(d.ours, p) {
		d.out = d.out[:before]
	}
	return nil
}

// lowerDirs opens the directories called name below, as far as they are merged:
// down to the first that is opaque, a whiteout or no directory.
func lowerDirs(name string, lowers []linux.FD) (dirs []linux.FD, existed bool) {
	for _, l := range lowers {
		var st linux.Stat
		if err := l.Lstat(name, &st); err != nil {
			continue
		}
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFDIR:
			existed = true
			fd, err := l.Dir(name)
			if err != nil {
				return dirs, existed
			}
			dirs = append(dirs, fd)
			if v, err := fd.XattrOf("", opaqueAttr); err == nil && string(v) == "y" {
				return dirs, existed
			}
		case syscall.S_IFCHR:
			if st.Major == 0 && st.Minor == 0 {
				return dirs, existed
			}
			return dirs, true
		default:
			return dirs, true
		}
	}
	return dirs, existed
}
