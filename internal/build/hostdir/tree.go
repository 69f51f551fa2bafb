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
	old  index // what the last build took
	all  bool  // nothing is filtered
	// taken are the entries that were asked for, by what was answered: fsutil's
	// filters hand on no more than that.
	taken map[*fstypes.Stat]*entry
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
		err = t.children(ctx, t.list(t.root, ".", ""), fn)
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
	e := &entry{t: t, dir: fd, name: name, path: target, old: t.old[target]}
	if e.lstat(); e.err != nil {
		return e.err
	}
	if _, err := e.Info(); err != nil { // fsutil asks when the walk is over
		return err
	}
	return t.visit(ctx, e, nil, fn)
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

// listing is a directory with its entries, sorted.
type listing struct {
	fd      linux.FD
	entries []entry
	err     error
}

// list reads a directory, and describes what is in it as far as that is known
// to be wanted: a build that changed little is then a matter of comparing.
func (t *tree) list(parent linux.FD, name, dir string) (l listing) {
	if l.fd, l.err = parent.Dir(name); l.err != nil {
		l.fd = linux.NoFD
		return l
	}
	names, err := l.fd.Entries()
	if err != nil {
		l.err = &os.PathError{Op: "readdir", Path: dir, Err: err}
		return l
	}
	slices.SortFunc(names, func(a, b linux.Entry) int { return strings.Compare(a.Name, b.Name) })
	l.entries = make([]entry, len(names))
	var full []byte
	if dir != "" {
		full = append([]byte(dir), '/')
	}
	for i, n := range names {
		e := &l.entries[i]
		*e = entry{t: t, dir: l.fd, name: n.Name, kind: n.Type}
		p := append(full, n.Name...)
		if e.old = t.old[string(p)]; e.old != nil {
			e.path = e.old.stat.Path
		} else {
			e.path = string(p)
		}
		if e.old != nil || t.all || e.kind == 0 {
			e.lstat()
		}
	}
	return l
}

// ahead is how many directories are read while those before them are visited.
const ahead = 4

func (t *tree) children(ctx context.Context, l listing, fn gofs.WalkDirFunc) error {
	defer l.fd.Close()
	if l.err != nil {
		return l.err
	}
	var coming []chan listing // of the directories that come next
	next := 0
	read := func() {
		for ; len(coming) < ahead && next < len(l.entries); next++ {
			if e := &l.entries[next]; e.IsDir() && (t.all || e.old != nil) {
				c := make(chan listing, 1)
				coming = append(coming, c)
				go func() { c <- t.list(l.fd, e.name, e.path) }()
			}
		}
	}
	defer func() {
		for _, c := range coming {
			got := <-c
			got.fd.Close()
		}
	}()
	for i := range l.entries {
		e := &l.entries[i]
		if e.kind == linux.TypeSock || e.kind == 0 {
			continue // it has no content that an image could have, or it went
		}
		read()
		var sub chan listing
		if i < next && e.IsDir() && (t.all || e.old != nil) {
			sub, coming = coming[0], coming[1:]
		}
		switch err := t.visit(ctx, e, sub, fn); err {
		case nil:
		case gofs.SkipDir:
			return nil
		default:
			return err
		}
	}
	return nil
}

// visit calls fn for an entry, and for all below it. sub is where its listing
// comes from, nil: nobody has begun to read it.
func (t *tree) visit(ctx context.Context, e *entry, sub <-chan listing, fn gofs.WalkDirFunc) error {
	err := context.Cause(ctx)
	if err == nil {
		err = fn(e.path, e, nil)
	}
	var l listing
	switch {
	case !e.IsDir():
	case sub != nil:
		l = <-sub
	case err == nil:
		l = t.list(e.dir, e.name, e.path)
	}
	switch {
	case err == nil && e.IsDir():
		err = t.children(ctx, l, fn)
	case sub != nil:
		l.fd.Close()
	}
	if vanished(err) || err == gofs.SkipDir && e.IsDir() {
		return nil
	}
	return err
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
	known      bool // raw is
	raw        linux.Stat
	err        error
	old        *item // what the last build had at its path
	stat       *fstypes.Stat
}

func (e *entry) Name() string        { return e.name }
func (e *entry) IsDir() bool         { return e.kind == linux.TypeDir }
func (e *entry) Type() gofs.FileMode { return fileMode(e.kind) }

func (e *entry) lstat() {
	e.known = true
	if err := e.dir.Lstat(e.name, &e.raw); err != nil {
		e.err = &os.PathError{Op: "lstat", Path: e.path, Err: err}
	} else if e.kind == 0 {
		e.kind = e.raw.Mode & linux.TypeMask
	}
	if e.err == nil && e.old != nil && e.old.unchanged(&e.raw) {
		e.stat = e.old.stat
	}
}

// Info describes the entry as BuildKit's clients do: owned by root.
func (e *entry) Info() (gofs.FileInfo, error) {
	if !e.known {
		e.lstat()
	}
	if e.err == nil && e.stat == nil {
		e.stat, e.err = e.look(&e.raw)
	}
	if e.err != nil {
		return nil, e.err
	}
	if !e.t.all {
		e.t.taken[e.stat] = e
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
