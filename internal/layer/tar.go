package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// TarOptions say how Tar and Archive work.
type TarOptions struct {
	// Latest, if not zero, is the newest time an entry gets (SOURCE_DATE_EPOCH).
	Latest time.Time
	// Skip, if not nil, leaves an entry, by its path in the archive without a
	// slash at its end, and all below it out.
	Skip func(name string) bool
	// Owner, if not nil, is whom all entries belong to.
	Owner *Owner
}

// Tar writes the upper directory of an overlay as the tar of a layer, as the
// OCI defines it: whiteouts as entries ".wh.name", directories that hide what
// is below with an entry ".wh..wh..opq". Times are cut to seconds, as in all
// other builders' layers. Sockets are left out.
func Tar(ctx context.Context, w io.Writer, dir *os.File, o TarOptions) error {
	root, err := linux.Root(dir)
	if err != nil {
		return errdefs.New(errdefs.Internal, "pack", "layer "+dir.Name(), err)
	}
	defer root.Close()
	p := newPacker(w, o)
	p.overlay = true
	if err := p.tree(ctx, root, "", 0); err != nil {
		return err
	}
	return p.finish()
}

// ArchiveOptions say how Archive works.
type ArchiveOptions struct {
	TarOptions
	// Name is what the first entry, and all below it, are called; default is
	// the last name of the path. "." leaves the directory itself out.
	Name string
	// Follow a link at the end of the path.
	Follow bool
}

// Archive writes what is at the path of the tree below root, which others may
// be changing. Links on the way are followed inside the root; one at the end is
// packed itself, unless the path ends in a slash or Follow is set.
func Archive(ctx context.Context, w io.Writer, root *os.File, p string, o ArchiveOptions) error {
	base, err := cleanBase(p)
	if err != nil {
		return err
	}
	r, err := linux.Root(root)
	if err != nil {
		return errdefs.New(errdefs.Internal, "pack", p, err)
	}
	defer r.Close()
	dir, last := path.Split(base)
	name := o.Name
	if name == "" {
		if name = last; name == "" {
			name = "."
		}
	}
	pk := newPacker(w, o.TarOptions)
	if last == "" || o.Follow || strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") {
		err = pk.followed(ctx, r, base, name)
	} else {
		var parent linux.FD
		if parent, err = r.DirInRoot(strings.TrimSuffix(dir, "/")); err == nil {
			err = pk.entry(ctx, parent, last, name, 0)
			parent.Close()
		}
	}
	if err != nil {
		return pathError("pack", p, err)
	}
	return pk.finish()
}

func pathError(op, p string, err error) error {
	if _, ok := errors.AsType[*errdefs.Error](err); ok {
		return err
	}
	kind := errdefs.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = errdefs.NotFound
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG):
		kind = errdefs.Invalid
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = errdefs.Forbidden
	}
	return errdefs.New(kind, op, quote(p), err)
}

// followed packs what the path means after links.
func (p *packer) followed(ctx context.Context, root linux.FD, base, name string) error {
	fd, err := root.DirInRoot(base)
	if err == nil {
		defer fd.Close()
		if name != "." {
			var st linux.Stat
			if err := fd.Stat(&st); err != nil {
				return err
			}
			if err := p.header(fd, ".", name, &st); err != nil {
				return err
			}
			return p.tree(ctx, fd, name, 1)
		}
		return p.tree(ctx, fd, "", 0)
	}
	if !errors.Is(err, syscall.ENOTDIR) {
		return err
	}
	// A file, maybe behind links: its real place is found by following them.
	for range maxLinks {
		dir, last := path.Split(base)
		dir = strings.TrimSuffix(dir, "/")
		parent, err := root.DirInRoot(dir)
		if err != nil {
			return err
		}
		to, lerr := parent.Readlink(last)
		if lerr != nil {
			err := p.entry(ctx, parent, last, name, 0)
			parent.Close()
			return err
		}
		parent.Close()
		if !strings.HasPrefix(to, "/") {
			to = path.Join("/", dir, to)
		}
		base = path.Clean(to)[1:]
	}
	return syscall.ELOOP
}

// A packer writes trees as a tar.
type packer struct {
	w       *tar.Writer
	o       TarOptions
	overlay bool
	links   map[inode]string // first name of files with several
	buf     []byte
}

type inode struct{ dev, ino uint64 }

func newPacker(w io.Writer, o TarOptions) *packer {
	return &packer{w: tar.NewWriter(w), o: o, links: map[inode]string{}, buf: make([]byte, 256<<10)}
}

func (p *packer) finish() error { return p.w.Close() }

// below is path.Join without its cleaning: "./" and "/" stay in front.
func below(dir, name string) string {
	if dir == "" || strings.HasSuffix(dir, "/") {
		return dir + name
	}
	return dir + "/" + name
}

// maxNesting bounds how deep a tree is followed: each level holds a descriptor.
const maxNesting = 1000

// tree packs the entries of a directory, which is called name in the archive.
func (p *packer) tree(ctx context.Context, dir linux.FD, name string, depth int) error {
	if depth > maxNesting {
		return errdefs.Newf(errdefs.Unsupported, "pack", quote(name), "it is more than %d directories deep", maxNesting)
	}
	entries, err := dir.Entries()
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b linux.Entry) int { return strings.Compare(a.Name, b.Name) })
	for _, e := range entries {
		if err := p.entry(ctx, dir, e.Name, below(name, e.Name), depth); err != nil {
			return err
		}
	}
	return nil
}

// entry packs one entry of a directory, and what is below it.
func (p *packer) entry(ctx context.Context, dir linux.FD, last, name string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.o.Skip != nil && p.o.Skip(name) {
		return nil
	}
	if p.overlay && strings.HasPrefix(last, whiteout) {
		return nil // a layer cannot have it: there it would remove something
	}
	var st linux.Stat
	if err := dir.Lstat(last, &st); err != nil {
		if depth > 0 && errors.Is(err, syscall.ENOENT) {
			return nil // gone meanwhile
		}
		return err
	}
	if p.overlay && p.isWhiteout(dir, last, &st) {
		return p.marker(path.Join(path.Dir(name), whiteout+last), &st)
	}
	switch st.Mode & linux.TypeMask {
	case linux.TypeSock:
		return nil
	case linux.TypeDir:
		sub, err := dir.Dir(last)
		if err != nil {
			return err
		}
		defer sub.Close()
		if err := p.header(dir, last, name, &st); err != nil {
			return err
		}
		if p.overlay && isOpaque(sub, ".") {
			if err := p.marker(path.Join(name, opaque), &st); err != nil {
				return err
			}
		}
		return p.tree(ctx, sub, name, depth+1)
	case linux.TypeReg:
		if first, ok := p.links[inode{st.Dev, st.Ino}]; !ok || st.Nlink < 2 {
			return p.file(ctx, dir, last, name)
		} else {
			return p.hardLink(name, first, &st)
		}
	}
	if first, ok := p.links[inode{st.Dev, st.Ino}]; ok && st.Nlink > 1 {
		return p.hardLink(name, first, &st)
	}
	return p.header(dir, last, name, &st)
}

// isWhiteout knows both forms that overlayfs has.
func (p *packer) isWhiteout(dir linux.FD, last string, st *linux.Stat) bool {
	if isWhiteout(st) {
		return true
	}
	if st.Mode&linux.TypeMask != linux.TypeReg || st.Size != 0 {
		return false
	}
	v, err := dir.XattrOf(last, "trusted.overlay.whiteout")
	return err == nil && v != nil
}

// marker writes an empty file that stands for a whiteout.
func (p *packer) marker(name string, st *linux.Stat) error {
	return p.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, ModTime: p.time(st)})
}

func (p *packer) time(st *linux.Stat) time.Time {
	t := st.Mtime.Truncate(time.Second)
	if !p.o.Latest.IsZero() && t.After(p.o.Latest) {
		t = p.o.Latest.Truncate(time.Second)
	}
	return t
}

func (p *packer) hardLink(name, first string, st *linux.Stat) error {
	h := p.basic(name, st)
	h.Typeflag, h.Linkname = tar.TypeLink, first
	return p.w.WriteHeader(h)
}

func (p *packer) basic(name string, st *linux.Stat) *tar.Header {
	h := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.UID), Gid: int(st.GID), ModTime: p.time(st)}
	if o := p.o.Owner; o != nil {
		h.Uid, h.Gid = o.UID, o.GID
	}
	return h
}

// header writes the header of an entry without content.
func (p *packer) header(dir linux.FD, last, name string, st *linux.Stat) error {
	h := p.basic(name, st)
	switch st.Mode & linux.TypeMask {
	case linux.TypeDir:
		h.Typeflag = tar.TypeDir
		if !strings.HasSuffix(h.Name, "/") {
			h.Name += "/"
		}
	case linux.TypeLink:
		to, err := dir.Readlink(last)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, to
	case linux.TypeChar, linux.TypeBlock:
		h.Typeflag = tar.TypeChar
		if st.Mode&linux.TypeMask == linux.TypeBlock {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(st.Major), int64(st.Minor)
	case linux.TypeFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return errdefs.Newf(errdefs.Unsupported, "pack", quote(name), "files of type %o are not known", st.Mode&linux.TypeMask)
	}
	if st.Nlink > 1 && h.Typeflag != tar.TypeDir {
		p.links[inode{st.Dev, st.Ino}] = name
	}
	if st.Mode&linux.TypeMask != linux.TypeLink {
		p.addXattrs(h, dir, last)
	}
	return p.w.WriteHeader(h)
}

func (p *packer) addXattrs(h *tar.Header, dir linux.FD, last string) {
	for k, v := range readXattrs(dir, last) {
		// A value that a PAX record cannot hold is left out, as tar does.
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+k] = string(v)
	}
}

// file packs a regular file.
func (p *packer) file(ctx context.Context, dir linux.FD, last, name string) error {
	fd, err := dir.Open(last, linux.ReadOnly, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	var st linux.Stat
	if err := fd.Stat(&st); err != nil {
		return err
	}
	if st.Mode&linux.TypeMask != linux.TypeReg { // replaced meanwhile
		return fmt.Errorf("%s changed while it was read", quote(name))
	}
	h := p.basic(name, &st)
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if st.Nlink > 1 {
		p.links[inode{st.Dev, st.Ino}] = name
	}
	p.addXattrs(h, dir, last)
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	return p.content(ctx, fd, st.Size)
}

// content writes exactly size bytes: what a file that grows has more is left
// out, and what one that shrinks lacks is zeros.
func (p *packer) content(ctx context.Context, fd linux.FD, size int64) error {
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := p.buf[:min(int64(len(p.buf)), size)]
		n, err := fd.Read(b)
		if err != nil {
			return err
		}
		if n == 0 {
			clear(b)
			n = len(b)
		}
		if _, err := p.w.Write(b[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}
