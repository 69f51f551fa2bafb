package layer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"path"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/ocispec"
)

// ApplyOptions say how Apply works. The zero value is good for a layer without
// parent.
type ApplyOptions struct {
	Limits Limits
	// Lowers are the directories the layer will lie on, top first. Directories
	// that the tar only implies look as there, and hard links may go to files
	// there.
	Lowers []string
}

// Applied describes what Apply did.
type Applied struct {
	Size    int64          // of all files
	Entries int            // of the tar
	TarSize int64          // of the tar
	DiffID  ocispec.Digest // of the tar, to its very end
}

// Apply unpacks a tar, not compressed, as the upper directory of a layer. It
// reads r to its end; to be cancelled while it waits for r, r must be. After an error the directory holds some part of it, and
// is good for nothing but removal.
func Apply(ctx context.Context, r io.Reader, root *os.File, o ApplyOptions) (_ Applied, err error) {
	u := &unpacker{overlay: true, limits: o.Limits.withDefaults()}
	if err := u.open(root); err != nil {
		return Applied{}, err
	}
	defer u.close()
	if err := u.openLowers(o.Lowers); err != nil {
		return Applied{}, errdefs.New(errdefs.Internal, "unpack", "layer", err)
	}
	p := newPipeline(r, u.limits.Bytes, sha256.New())
	err = u.run(ctx, p)
	if err == nil {
		_, err = io.CopyBuffer(io.Discard, onlyReader{p}, u.buf) // up to the end of r: it counts for the digest
	}
	sum := p.close()
	if err != nil {
		return Applied{}, err
	}
	return Applied{u.bytes, int(u.entries), p.total, ocispec.Digest("sha256:" + hex.EncodeToString(sum))}, nil
}

func (u *unpacker) openLowers(dirs []string) error {
	for _, l := range dirs {
		fd, err := linux.OpenRoot(l)
		if err != nil {
			return err
		}
		u.lowers = append(u.lowers, fd)
	}
	return nil
}

type onlyReader struct{ io.Reader }

func (u *unpacker) open(root *os.File) (err error) {
	if u.root, err = linux.Root(root); err != nil {
		return errdefs.New(errdefs.Internal, "unpack", "archive into "+root.Name(), err)
	}
	if u.umask, err = linux.Umask(); err != nil {
		u.umask = 0o777
	}
	u.dirs = map[string]linux.FD{}
	u.times = map[string]int64{}
	u.opaques = map[string]bool{}
	u.buf = make([]byte, 256<<10)
	return nil
}

// Owner is who gets files whatever the archive says.
type Owner struct{ UID, GID int }

// ExtractOptions say how Extract works.
type ExtractOptions struct {
	Limits Limits
	Owner  *Owner // nil: as the archive says
	// KeepKind refuses to replace a directory by something else, or something
	// else by a directory.
	KeepKind bool
}

// Extract unpacks a tar, not compressed, into the directory dir of the
// tree below root, which others may be changing. Links on the way to it, and on
// the way to an entry, are followed inside the root.
func Extract(ctx context.Context, r io.Reader, root *os.File, dir string, o ExtractOptions) error {
	u := &unpacker{limits: o.Limits.withDefaults(), owner: o.Owner, keep: o.KeepKind, live: true}
	if err := u.open(root); err != nil {
		return err
	}
	defer u.close()
	base, err := u.resolveBase(dir)
	if err != nil {
		return err
	}
	u.base = base
	return u.run(ctx, &capped{r, u.limits.Bytes})
}

// resolveBase turns a path into one in the root without "..".
func (u *unpacker) resolveBase(dir string) (string, error) {
	base, err := cleanBase(dir)
	if err != nil {
		return "", err
	}
	fd, err := u.root.DirInRoot(base)
	if err != nil {
		return "", pathError("unpack into", dir, err)
	}
	fd.Close()
	return base, nil
}

func cleanBase(p string) (string, error) {
	if strings.IndexByte(p, 0) >= 0 || len(p) > maxPath {
		return "", errdefs.Newf(errdefs.Invalid, "open", quote(p), "that is no path")
	}
	return path.Clean("/" + p)[1:], nil
}

// A pipeline reads and hashes ahead in a goroutine of its own, so that
// decompression and hashing go on while files are made.
type pipeline struct {
	full  chan []byte
	free  chan []byte
	stop  chan struct{}
	done  chan struct{}
	sum   []byte
	total int64 // valid after the end was read
	err   error // valid after full is closed
	cur   []byte
	chunk []byte
}

const (
	chunkSize = 256 << 10
	chunks    = 8
)

func newPipeline(r io.Reader, limit int64, h hash.Hash) *pipeline {
	p := &pipeline{full: make(chan []byte, chunks), free: make(chan []byte, chunks), stop: make(chan struct{}), done: make(chan struct{})}
	for range chunks {
		p.free <- make([]byte, chunkSize)
	}
	go p.read(r, limit, h)
	return p
}

// read runs in a goroutine of its own, which close waits for.
func (p *pipeline) read(r io.Reader, limit int64, h hash.Hash) {
	defer close(p.done)
	defer close(p.full)
	for {
		var b []byte
		select {
		case b = <-p.free:
		case <-p.stop:
			return
		}
		n, err := 0, error(nil)
		for n < chunkSize && err == nil {
			var m int
			m, err = r.Read(b[n:chunkSize])
			n += m
		}
		h.Write(b[:n])
		if p.total += int64(n); p.total > limit {
			p.err = errdefs.Newf(errdefs.Invalid, "unpack", "archive", "it has more than %d bytes", limit)
			return
		}
		if n > 0 {
			select {
			case p.full <- b[:n]:
			case <-p.stop:
				return
			}
		}
		if err == io.EOF {
			p.sum = h.Sum(nil)
			return
		}
		if err != nil {
			p.err = err
			return
		}
	}
}

func (p *pipeline) Read(b []byte) (int, error) {
	for len(p.cur) == 0 {
		if p.chunk != nil {
			p.free <- p.chunk
			p.chunk = nil
		}
		c, ok := <-p.full
		if !ok {
			if p.err != nil {
				return 0, p.err
			}
			return 0, io.EOF
		}
		p.chunk, p.cur = c[:cap(c)], c
	}
	n := copy(b, p.cur)
	p.cur = p.cur[n:]
	return n, nil
}

// close ends the goroutine, which a Read of r must not keep for ever, and
// returns the digest, if all was read.
func (p *pipeline) close() []byte {
	close(p.stop)
	<-p.done
	return p.sum
}

// capped is an error after n bytes.
type capped struct {
	r io.Reader
	n int64
}

func (c *capped) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n -= int64(n); c.n < 0 {
		return n, errdefs.Newf(errdefs.Invalid, "unpack", "archive", "it is too large")
	}
	return n, err
}
