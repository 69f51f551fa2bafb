package hostdir

import (
	"context"
	"errors"
	"io"
	gofs "io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/onggi/onggi/internal/linux"
)

// tree is a directory as an fsutil.FS, so that fsutil's filters choose the same
// files here as in a client. A walk goes down by descriptor and follows no link.
type tree struct {
	root linux.FD
	// known returns what BuildKit is to see of an entry that has not changed,
	// to save reading its link or attributes; nil: look.
	known func(path string, st *linux.Stat) *fstypes.Stat
	stats map[string]linux.Stat // what Info found, by path
}

var _ fsutil.FS = (*tree)(nil)

// Open is not how files are read here.
func (t *tree) Open(p string) (io.ReadCloser, error) {
	return nil, &os.PathError{Op: "open", Path: p, Err: errors.ErrUnsupported}
}

// Walk visits target, or all but the root itself, in lexical order.
func (t *tree) Walk(ctx context.Context, target string, fn gofs.WalkDirFunc) error {
	target = strings.Trim(path.Clean("/"+target), "/")
	var err error
	if target == "" {
		err = t.children(ctx, t.root, "", fn)
	} else {
		err = t.one(ctx, target, fn)
	}
	if err == gofs.SkipDir || err == gofs.SkipAll {
		return nil
	}
	return err
}

func (t *tree) one(ctx context.Context, target string, fn gofs.WalkDirFunc) error {
	dir, name := path.Split(target)
	fd, err := descend(t.root, strings.TrimSuffix(dir, "/"))
	if err != nil {
		return &os.PathError{Op: "open", Path: target, Err: err}
	}
	defer fd.Close()
	var st linux.Stat
	if err := fd.Lstat(name, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: target, Err: err}
	}
	e := &entry{t: t, dir: fd, name: name, path: target, kind: st.Mode & linux.TypeMask}
	if _, err := e.Info(); err != nil { // fsutil asks when the walk is over
		return err
	}
	return t.visit(ctx, e, fn)
}

// descend opens a directory as a place, component by component.
func descend(root linux.FD, dir string) (linux.FD, error) {
	fd, err := root.Dir(".")
	for name := range strings.SplitSeq(dir, "/") {
		if err != nil || dir == "" {
			break
		}
		var next linux.FD
		next, err = fd.Dir(name)
		fd.Close()
		fd = next
	}
	return fd, err
}

func (t *tree) visit(ctx context.Context, e *entry, fn gofs.WalkDirFunc) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	err := fn(e.path, e, nil)
	switch {
	case vanished(err):
		return nil
	case err == gofs.SkipDir && e.IsDir():
		return nil
	case err != nil || !e.IsDir():
		return err
	}
	fd, err := e.dir.Dir(e.name)
	if err == nil {
		defer fd.Close()
		err = t.children(ctx, fd, e.path, fn)
	}
	if vanished(err) {
		return nil
	}
	return err
}

func (t *tree) children(ctx context.Context, fd linux.FD, dir string, fn gofs.WalkDirFunc) error {
	list, err := fd.Entries()
	if err != nil {
		return &os.PathError{Op: "readdir", Path: dir, Err: err}
	}
	slices.SortFunc(list, func(a, b linux.Entry) int { return strings.Compare(a.Name, b.Name) })
	for _, l := range list {
		e := &entry{t: t, dir: fd, name: l.Name, path: path.Join(dir, l.Name), kind: l.Type}
		if l.Type == 0 {
			var st linux.Stat
			if err := fd.Lstat(l.Name, &st); err != nil {
				continue
			}
			e.kind = st.Mode & linux.TypeMask
		}
		if e.kind == linux.TypeSock {
			continue // it has no content that an image could have
		}
		switch err := t.visit(ctx, e, fn); err {
		case nil:
		case gofs.SkipDir:
			return nil
		default:
			return err
		}
	}
	return nil
}

// vanished reports that an entry went, or became something else, under way.
func vanished(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

// entry is one entry while its directory is open.
type entry struct {
	t          *tree
	dir        linux.FD
	name, path string
	kind       uint32
	stat       *fstypes.Stat
}

func (e *entry) Name() string        { return e.name }
func (e *entry) IsDir() bool         { return e.kind == linux.TypeDir }
func (e *entry) Type() gofs.FileMode { return fileMode(e.kind) }

// Info describes the entry as BuildKit's clients do: owned by root.
func (e *entry) Info() (gofs.FileInfo, error) {
	if e.stat != nil {
		return &fsutil.StatInfo{Stat: e.stat}, nil
	}
	var st linux.Stat
	if err := e.dir.Lstat(e.name, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: e.path, Err: err}
	}
	if e.t.stats != nil {
		e.t.stats[e.path] = st
	}
	if e.t.known != nil {
		e.stat = e.t.known(e.path, &st)
	}
	if e.stat == nil {
		var err error
		if e.stat, err = e.look(&st); err != nil {
			return nil, err
		}
	}
	return &fsutil.StatInfo{Stat: e.stat}, nil
}

func (e *entry) look(st *linux.Stat) (*fstypes.Stat, error) {
	out := &fstypes.Stat{Path: e.path, Mode: uint32(fileMode(st.Mode)), ModTime: st.Mtime.UnixNano()}
	switch st.Mode & linux.TypeMask {
	case linux.TypeReg:
		out.Size = st.Size
	case linux.TypeLink:
		link, err := e.dir.Readlink(e.name)
		if err != nil {
			return nil, &os.PathError{Op: "readlink", Path: e.path, Err: err}
		}
		out.Size, out.Linkname = int64(len(link)), link
	case linux.TypeChar, linux.TypeBlock:
		out.Devmajor, out.Devminor = int64(st.Major), int64(st.Minor)
	}
	names, err := e.dir.XattrNamesOf(e.name)
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: e.path, Err: err}
	}
	for _, key := range names {
		if v, err := e.dir.XattrOf(e.name, key); err == nil && v != nil && !strings.HasPrefix(key, "com.apple.") {
			if out.Xattrs == nil {
				out.Xattrs = map[string][]byte{}
			}
			out.Xattrs[key] = v
		}
	}
	return out, nil
}

var specialBits = [...]struct {
	bit uint32
	to  gofs.FileMode
}{{syscall.S_ISUID, gofs.ModeSetuid}, {syscall.S_ISGID, gofs.ModeSetgid}, {syscall.S_ISVTX, gofs.ModeSticky}}

// fileMode translates the mode of stat(2).
func fileMode(mode uint32) gofs.FileMode {
	m := gofs.FileMode(mode & 0o777)
	for _, b := range specialBits {
		if mode&b.bit != 0 {
			m |= b.to
		}
	}
	switch mode & linux.TypeMask {
	case linux.TypeDir:
		m |= gofs.ModeDir
	case linux.TypeLink:
		m |= gofs.ModeSymlink
	case linux.TypeChar:
		m |= gofs.ModeDevice | gofs.ModeCharDevice
	case linux.TypeBlock:
		m |= gofs.ModeDevice
	case linux.TypeFIFO:
		m |= gofs.ModeNamedPipe
	case linux.TypeSock:
		m |= gofs.ModeSocket
	}
	return m
}
