package hostdir

import (
	"context"
	"errors"
	"fmt"
	gofs "io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/buildkit/solver/pb"

	"github.com/onggi/onggi/internal/linux"
)

// ErrNotPlain says that a copy is left to BuildKit's own code, which does all
// of them. What was done before stays right.
var ErrNotPlain = errors.New("no plain copy")

// Plain reports that Copy may do what is asked for.
func Plain(f *pb.FileAction) bool {
	a := f.GetCopy()
	if a == nil || a.ModeStr != "" || a.Mode < -1 || a.Mode > 0o777 || a.Timestamp != -1 || len(a.IncludePatterns)+len(a.ExcludePatterns)+len(a.RequiredPaths) > 0 ||
		!a.CreateDestPath || strings.Contains(a.Src, `\`) {
		return false
	}
	// Names are looked up in what is copied to.
	for _, u := range []*pb.UserOpt{a.Owner.GetUser(), a.Owner.GetGroup()} {
		if n := u.GetByName(); n != nil && n.Input != f.Input {
			return false
		}
	}
	return true
}

// options of a plain copy.
type options struct {
	uid, gid int
	mode     int // -1: the file's own
}

// Copy carries a COPY out: own is the directory of a new layer that nobody has
// mounted, over lowers. Files that are still here are moved.
func (k *Kept) Copy(ctx context.Context, own string, lowers []string, f *pb.FileAction) error {
	a := f.GetCopy()
	k.mu.Lock()
	defer k.mu.Unlock()
	if !Plain(f) || k.shown {
		return ErrNotPlain
	}
	sources, ok := k.match(a)
	if !ok {
		return ErrNotPlain
	}
	m := mover{k: k, o: options{mode: int(a.Mode)}, own: own, fresh: map[string]bool{}}
	defer m.close()
	if err := m.open(lowers); err != nil {
		return err
	}
	var err error
	if m.o.uid, m.o.gid, err = m.ownerOf(a.Owner); err != nil {
		return err
	}
	return k.noted(func() error {
		for _, src := range sources {
			if err := m.source(ctx, src, a.Dest); err != nil {
				return fmt.Errorf("copying %s to %s: %w", a.Src, a.Dest, err)
			}
		}
		return nil
	})
}

// list makes the lists of names. Preconditions: k.mu is held.
func (k *Kept) list() {
	if k.below != nil {
		return
	}
	k.below = map[string][]string{}
	for p := range k.files {
		dir, name := path.Split(p)
		dir = strings.TrimSuffix(dir, "/")
		k.below[dir] = append(k.below[dir], name)
	}
	for _, names := range k.below {
		slices.Sort(names)
	}
}

func (k *Kept) isDir(p string) bool {
	it := k.files[p]
	return p == "" || it != nil && gofs.FileMode(it.stat.Mode).IsDir()
}

// match finds what is to be copied, as BuildKit would where no link is on the
// way. Preconditions: k.mu is held.
func (k *Kept) match(a *pb.FileActionCopy) (out []string, ok bool) {
	k.list()
	ok = true
	add := func(p string) {
		it := k.files[p]
		switch {
		case k.isDir(p):
			ok = ok && a.DirCopyContents
		case it == nil, gofs.FileMode(it.stat.Mode)&gofs.ModeSymlink != 0 && a.FollowSymlink, a.AttemptUnpackDockerCompatibility:
			ok = false
		}
		out = append(out, p)
	}
	base := ""
	parts := strings.Split(strings.Trim(path.Clean("/"+a.Src), "/"), "/")
	for i, part := range parts {
		if a.AllowWildcard && strings.ContainsAny(part, "*?[") {
			k.glob(base, strings.Join(parts[i:], "/"), "", add)
			return out, ok && len(out) > 0
		}
		if !k.isDir(base) {
			return nil, false
		}
		base = path.Join(base, part)
	}
	add(base)
	if strings.HasSuffix(a.Src, "/") || strings.HasSuffix(a.Src, "/.") {
		ok = ok && k.isDir(base)
	}
	return out, ok
}

// glob calls add for all below base that matches, but not below a match.
func (k *Kept) glob(base, pattern, rel string, add func(string)) {
	dir := path.Join(base, rel)
	if !k.isDir(dir) {
		return
	}
	for _, name := range k.below[dir] {
		r := path.Join(rel, name)
		if ok, err := path.Match(pattern, r); ok && err == nil {
			add(path.Join(base, r))
		} else {
			k.glob(base, pattern, r, add)
		}
	}
}

// mover writes the upper directory of an overlay that is not mounted.
type mover struct {
	k     *Kept
	o     options
	own   string
	from  linux.FD // the kept files
	top   merged
	fresh map[string]bool // directories with nothing in them but what this copy has put there
}

func (m *mover) open(lowers []string) (err error) {
	m.from, m.top.up = linux.NoFD, linux.NoFD
	if m.from, err = linux.OpenRoot(m.k.dir); err != nil {
		return err
	}
	if m.top.up, err = linux.OpenRoot(m.own); err != nil {
		return err
	}
	for _, l := range lowers {
		fd, err := linux.OpenRoot(l)
		if err != nil {
			return err
		}
		m.top.low = append(m.top.low, fd)
	}
	return nil
}

func (m *mover) close() {
	m.from.Close()
	m.top.close()
}

// source copies one source to where the instruction says.
func (m *mover) source(ctx context.Context, src, dest string) error {
	intoDir := strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.")
	var rest []string
	if p := strings.Trim(path.Clean("/"+dest), "/"); p != "" {
		rest = strings.Split(p, "/")
	}
	at := &m.top
	for len(rest) > 0 {
		kind, sub, err := at.lookup(rest[0])
		if err != nil {
			return err
		}
		if kind != linux.TypeDir {
			if kind == linux.TypeLink || kind != 0 && (len(rest) > 1 || intoDir || m.k.isDir(src)) {
				return ErrNotPlain
			}
			break
		}
		defer sub.close()
		at, rest = sub, rest[1:]
	}
	name := ""
	if !m.k.isDir(src) {
		name = path.Base(src)
		if len(rest) > 0 && !intoDir {
			name, rest = rest[len(rest)-1], rest[:len(rest)-1]
		}
	}
	for _, r := range rest {
		mode := uint32(0o755)
		if m.o.mode >= 0 {
			mode = uint32(m.o.mode)
		}
		sub, err := m.mkdir(at, r, mode)
		if err != nil {
			return err
		}
		defer sub.close()
		at = sub
		if err := at.up.Lchown(".", m.o.uid, m.o.gid); err != nil {
			return err
		}
	}
	if err := at.ensure(); err != nil {
		return err
	}
	if name == "" {
		if err := m.tree(ctx, src, at); err != nil {
			return err
		}
		// The directory itself keeps owner and mode, and gets the time.
		return at.up.Chtime(".", m.k.timeOf(src))
	}
	from, err := descend(m.from, strings.TrimPrefix(path.Dir(src), "."))
	if err != nil {
		return err
	}
	defer from.Close()
	return m.entry(ctx, from, src, at, name)
}

func (m *mover) mkdir(at *merged, name string, mode uint32) (*merged, error) {
	if err := at.ensure(); err != nil {
		return nil, err
	}
	if err := at.up.Mkdir(name, mode&0o777); err != nil {
		return nil, err
	}
	up, err := at.up.Dir(name)
	if err != nil {
		return nil, err
	}
	sub := &merged{up: up, parent: at, name: name, path: path.Join(at.path, name)}
	m.fresh[sub.path] = true
	return sub, nil
}

// tree copies what is in a directory.
func (m *mover) tree(ctx context.Context, src string, at *merged) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	from, err := descend(m.from, src)
	if err != nil {
		return err
	}
	defer from.Close()
	for _, name := range m.k.below[src] {
		if err := m.entry(ctx, from, path.Join(src, name), at, name); err != nil {
			return err
		}
	}
	return nil
}

// entry copies the file or directory src of from, and calls it name.
func (m *mover) entry(ctx context.Context, from linux.FD, src string, at *merged, name string) error {
	it := m.k.files[src]
	mode := gofs.FileMode(it.stat.Mode)
	var kind uint32
	var sub *merged
	if !m.fresh[at.path] {
		var err error
		if kind, sub, err = at.lookup(name); err != nil {
			return err
		}
		if sub != nil {
			defer sub.close()
		}
		if kind != 0 && (kind == linux.TypeDir) != mode.IsDir() {
			return ErrNotPlain
		}
	}
	switch {
	case mode.IsDir():
		if sub == nil {
			var err error
			if sub, err = m.mkdir(at, name, 0o700); err != nil {
				return err
			}
			defer sub.close()
		}
		if err := sub.ensure(); err != nil {
			return err
		}
		if err := m.tree(ctx, src, sub); err != nil {
			return err
		}
	case mode.IsRegular(), mode&gofs.ModeSymlink != 0:
		if kind != 0 {
			if err := at.up.Unlink(name); err != nil && !errors.Is(err, syscall.ENOENT) {
				return err
			}
		}
		if mode.IsRegular() {
			return m.file(from, src, at, name)
		}
		if err := at.up.Symlink(it.stat.Linkname, name); err != nil {
			return err
		}
	default:
		return ErrNotPlain
	}
	for key, value := range it.stat.Xattrs {
		at.up.SetXattrOf(name, key, value)
	}
	if err := m.give(at.up, name, it.stat.Mode); err != nil {
		return err
	}
	return at.up.Chtime(name, it.stat.ModTime)
}

// file moves a file, or copies it where it was moved to before.
func (m *mover) file(from linux.FD, src string, at *merged, name string) error {
	it := m.k.files[src]
	if it.place.dir != "" {
		if err := m.k.fetch(at.up, name, src); err != nil {
			return err
		}
	} else if err := from.Rename(path.Base(src), at.up, name); err != nil {
		return err
	}
	it.place = place{m.own, path.Join(at.path, name)}
	if m.o.uid == 0 && m.o.gid == 0 && m.o.mode < 0 {
		return nil
	}
	return m.give(at.up, name, it.stat.Mode)
}

// give gives an entry its owner and mode.
func (m *mover) give(dir linux.FD, name string, mode uint32) error {
	if err := dir.Lchown(name, m.o.uid, m.o.gid); err != nil {
		return err
	}
	if gofs.FileMode(mode)&gofs.ModeSymlink != 0 {
		return nil
	}
	bits := unixMode(mode)
	if m.o.mode >= 0 {
		bits = uint32(m.o.mode)
	}
	fd, err := dir.Open(name, linux.Handle, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	return fd.ChmodHandle(bits)
}

// merged is a directory of the overlay.
type merged struct {
	up     linux.FD   // NoFD: it is only below
	low    []linux.FD // top first
	parent *merged
	name   string
	path   string
}

func (d *merged) close() {
	d.up.Close()
	for _, l := range d.low {
		l.Close()
	}
}

const opaque = "trusted.overlay.opaque"

// lookup tells what an entry is, 0 for nothing, and opens it if it is a
// directory.
func (d *merged) lookup(name string) (kind uint32, sub *merged, err error) {
	sub = &merged{up: linux.NoFD, parent: d, name: name, path: path.Join(d.path, name)}
	defer func() {
		if err != nil || kind != linux.TypeDir {
			sub.close()
			sub = nil
		}
	}()
	var st linux.Stat
	layers := d.low
	if d.up != linux.NoFD {
		layers = append([]linux.FD{d.up}, layers...)
	}
	for _, l := range layers {
		switch err := l.Lstat(name, &st); {
		case errors.Is(err, syscall.ENOENT):
			continue
		case err != nil:
			return 0, sub, err
		}
		if t := st.Mode & linux.TypeMask; t != linux.TypeDir {
			whiteout := t == linux.TypeChar && st.Major == 0 && st.Minor == 0
			switch {
			case kind == linux.TypeDir:
			case whiteout && l == d.up:
				return 0, sub, ErrNotPlain
			case !whiteout:
				kind = t
			}
			return kind, sub, nil
		}
		kind = linux.TypeDir
		fd, err := l.Dir(name)
		if err != nil {
			return 0, sub, err
		}
		if l == d.up {
			sub.up = fd
		} else {
			sub.low = append(sub.low, fd)
		}
		if v, err := l.XattrOf(name, opaque); err == nil && v != nil {
			break
		}
	}
	return kind, sub, nil
}

// ensure makes the directory in the upper one, as overlayfs does.
func (d *merged) ensure() error {
	if d.up != linux.NoFD {
		return nil
	}
	if err := d.parent.ensure(); err != nil {
		return err
	}
	up, below := d.parent.up, d.low[0]
	var st, parent linux.Stat
	if err := errors.Join(below.Stat(&st), up.Stat(&parent)); err != nil {
		return err
	}
	if err := up.Mkdir(d.name, 0o700); err != nil {
		return err
	}
	var err error
	if d.up, err = up.Dir(d.name); err != nil {
		return err
	}
	names, err := below.XattrNamesOf(".")
	if err != nil {
		return err
	}
	for _, key := range names {
		if strings.HasPrefix(key, "trusted.overlay.") {
			continue
		}
		v, err := below.XattrOf(".", key)
		if err != nil {
			return err
		}
		if err := up.SetXattrOf(d.name, key, v); err != nil {
			return err
		}
	}
	if err := up.Lchown(d.name, int(st.UID), int(st.GID)); err != nil {
		return err
	}
	if err := d.up.ChmodHandle(st.Mode & 0o7777); err != nil {
		return err
	}
	return errors.Join(up.Chtime(d.name, st.Mtime.UnixNano()), up.Chtime(".", parent.Mtime.UnixNano()))
}
