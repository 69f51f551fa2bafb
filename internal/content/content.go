// Package content keeps immutable blobs by digest: manifests, configs, and
// whatever else an image is described by.
//
// # Model
//
// A blob comes in through a Writer, which has a name of the caller's (ref).
// What a Writer has received stays when it is closed, so that a later Writer
// with the same ref goes on where it stopped. Commit checks the blob against
// its digest, and only then can it be seen.
//
// # On disk
//
//	<dir>/<algorithm>/<hex>    blobs
//	<dir>/partial/<hex>        what came so far, by the SHA-256 of the ref
//
// # Guarantees
//
// Durability: after Commit returns nil the blob survives a power cut. A blob
// that can be seen is whole and has been verified; a mismatch of size or digest
// is errdefs.Invalid, and leaves neither blob nor partial.
// Errors: a missing blob is errdefs.NotFound; a full disk is errdefs.Exhausted,
// and keeps what had come.
//
// # Concurrency
//
// Every method may be called from many goroutines; two Commits of one digest
// both succeed. There is one Writer per ref at a time; another is
// errdefs.Conflict.
//
// # Not here
//
// Who needs which blob: the services' records say that, and delete what nobody
// needs. Unpacked layers: package snapshot.
package content

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/vfs"
)

const partialDir = "partial"

var algorithms = []string{"sha256", "sha384", "sha512"}

// Store is a directory of blobs.
type Store struct {
	fs vfs.FS

	mu      sync.Mutex
	writers map[string]bool // guarded by mu; the refs being written
}

// Open opens the store in dir, and makes it where there is none.
func Open(dir string) (*Store, error) { return OpenFS(vfs.Dir(dir)) }

// OpenFS is Open on any file system.
func OpenFS(f vfs.FS) (*Store, error) {
	s := &Store{fs: f, writers: map[string]bool{}}
	for _, d := range append([]string{partialDir}, algorithms...) {
		if err := f.Mkdir(d); err != nil {
			return nil, fail("open", "content store", err)
		}
	}
	if err := f.SyncDir("."); err != nil {
		return nil, fail("open", "content store", err)
	}
	return s, nil
}

func fail(op, on string, err error) error {
	var kind errdefs.Kind
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = errdefs.NotFound
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errdefs.WithHint(errdefs.New(errdefs.Exhausted, op, on, err), "the disk is full: remove images, containers or volumes (onggi system prune)")
	case errors.Is(err, fs.ErrPermission):
		kind = errdefs.Forbidden
	}
	return errdefs.New(kind, op, on, err)
}

// blobPath is the only place where a digest becomes a path.
func blobPath(d ocispec.Digest) (string, error) {
	if err := ocispec.CheckDigest(d); err != nil {
		return "", errdefs.New(errdefs.Invalid, "open", "blob", err)
	}
	return path.Join(string(d.Algorithm()), d.Encoded()), nil
}

// A Blob is an open blob.
type Blob struct {
	f      vfs.File
	size   int64
	Digest ocispec.Digest
}

func (b *Blob) ReadAt(p []byte, off int64) (int, error) { return b.f.ReadAt(p, off) }
func (b *Blob) Size() int64                             { return b.size }
func (b *Blob) Close() error                            { return b.f.Close() }

// Reader reads the blob from its start. It needs no closing of its own.
func (b *Blob) Reader() io.Reader { return io.NewSectionReader(b.f, 0, b.size) }

// Open opens a blob.
func (s *Store) Open(d ocispec.Digest) (*Blob, error) {
	p, err := blobPath(d)
	if err != nil {
		return nil, err
	}
	f, err := s.fs.Open(p)
	if err != nil {
		return nil, fail("open", "blob "+string(d), err)
	}
	size, err := f.Size()
	if err != nil {
		f.Close()
		return nil, fail("open", "blob "+string(d), err)
	}
	return &Blob{f, size, d}, nil
}

// Read reads a small blob, and checks it again: disks rot, too.
func (s *Store) Read(d ocispec.Descriptor) ([]byte, error) {
	p, err := blobPath(d.Digest)
	if err != nil {
		return nil, err
	}
	b, err := vfs.ReadFile(s.fs, p, max(d.Size, 1))
	if err != nil {
		return nil, fail("read", "blob "+string(d.Digest), err)
	}
	h := newHash(d.Digest)
	h.Write(b)
	if int64(len(b)) != d.Size || hex.EncodeToString(h.Sum(nil)) != d.Digest.Encoded() {
		return nil, errdefs.Newf(errdefs.Internal, "read", "blob "+string(d.Digest), "it is damaged on disk")
	}
	return b, nil
}

// Has returns a blob's size, or errdefs.NotFound.
func (s *Store) Has(d ocispec.Digest) (size int64, err error) {
	p, err := blobPath(d)
	if err != nil {
		return 0, err
	}
	st, err := s.fs.Stat(p)
	if err != nil {
		return 0, fail("open", "blob "+string(d), err)
	}
	return st.Size, nil
}

// Delete removes a blob; one that is not there is fine. Who has it open can
// read on.
func (s *Store) Delete(d ocispec.Digest) error {
	p, err := blobPath(d)
	if err != nil {
		return err
	}
	if err := s.fs.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail("remove", "blob "+string(d), err)
	}
	return nil
}

// Info describes a blob.
type Info struct {
	Digest   ocispec.Digest
	Size     int64
	Modified time.Time
}

// Walk calls f with every blob. f may delete blobs.
func (s *Store) Walk(f func(Info) error) error {
	for _, alg := range algorithms {
		names, err := s.fs.ReadDir(alg)
		if err != nil {
			return fail("list", "blobs", err)
		}
		for _, name := range names {
			d := ocispec.Digest(alg + ":" + name)
			p, err := blobPath(d)
			if err != nil {
				continue
			}
			st, err := s.fs.Stat(p)
			if err != nil {
				continue // deleted meanwhile
			}
			if err := f(Info{d, st.Size, st.Modified}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Verify reads a whole blob, and reports errdefs.Internal if it is not what
// its digest says.
func (s *Store) Verify(ctx context.Context, d ocispec.Digest) error {
	b, err := s.Open(d)
	if err != nil {
		return err
	}
	defer b.Close()
	h := newHash(d)
	if _, err := io.Copy(h, &ctxReader{ctx, b.Reader()}); err != nil {
		return fail("verify", "blob "+string(d), err)
	}
	if hex.EncodeToString(h.Sum(nil)) != d.Encoded() {
		return errdefs.Newf(errdefs.Internal, "verify", "blob "+string(d), "it is damaged on disk")
	}
	return nil
}

type ctxReader struct {
	ctx interface{ Err() error } // of the call that made it
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func newHash(d ocispec.Digest) hash.Hash {
	switch d.Algorithm() {
	case "sha384":
		return sha512.New384()
	case "sha512":
		return sha512.New()
	}
	return sha256.New()
}

func partialPath(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return path.Join(partialDir, hex.EncodeToString(sum[:]))
}

// A Writer is one blob on its way in. It is for one goroutine.
type Writer struct {
	s        *Store
	ref      string
	name     string
	f        vfs.File
	h        hash.Hash
	off      int64
	expected ocispec.Descriptor
	done     bool
}

// Writer starts, or goes on with, the blob that has the name ref until it is
// committed. What of expected is known is checked: a Digest, a Size if not 0.
func (s *Store) Writer(ctx context.Context, ref string, expected ocispec.Descriptor) (_ *Writer, err error) {
	w := &Writer{s: s, ref: ref, name: partialPath(ref), expected: expected, h: sha256.New()}
	if expected.Digest != "" {
		if _, err := blobPath(expected.Digest); err != nil {
			return nil, err
		}
		w.h = newHash(expected.Digest)
	}
	s.mu.Lock()
	taken := s.writers[ref]
	s.writers[ref] = true
	s.mu.Unlock()
	if taken {
		return nil, errdefs.Newf(errdefs.Conflict, "write", "blob "+ref, "it is being written already")
	}
	defer func() {
		if err != nil {
			w.release()
		}
	}()
	if w.f, err = s.fs.Create(w.name); err != nil {
		return nil, fail("write", "blob "+ref, err)
	}
	if err = w.resume(ctx); err != nil {
		w.f.Close()
		return nil, fail("write", "blob "+ref, err)
	}
	return w, nil
}

// resume takes up what is there, and hashes it.
func (w *Writer) resume(ctx context.Context) error {
	size, err := w.f.Size()
	if err != nil {
		return err
	}
	if w.expected.Size > 0 && size > w.expected.Size {
		return w.Reset()
	}
	n, err := io.CopyBuffer(w.h, &ctxReader{ctx, io.NewSectionReader(w.f, 0, size)}, make([]byte, 128<<10))
	w.off = n
	return err
}

func (w *Writer) release() {
	w.s.mu.Lock()
	delete(w.s.writers, w.ref)
	w.s.mu.Unlock()
	w.done = true
}

// Offset is how many bytes of the blob are there.
func (w *Writer) Offset() int64 { return w.off }

// Reset forgets what came so far.
func (w *Writer) Reset() error {
	if err := w.f.Truncate(0); err != nil {
		return fail("write", "blob "+w.ref, err)
	}
	w.off = 0
	w.h.Reset()
	return nil
}

func (w *Writer) Write(p []byte) (int, error) {
	if w.done {
		return 0, errdefs.New(errdefs.Internal, "write", "blob "+w.ref, fs.ErrClosed)
	}
	if w.expected.Size > 0 && w.off+int64(len(p)) > w.expected.Size {
		return 0, errdefs.Newf(errdefs.Invalid, "write", "blob "+w.ref, "more than the %d bytes it should have", w.expected.Size)
	}
	n, err := w.f.WriteAt(p, w.off)
	w.h.Write(p[:n])
	w.off += int64(n)
	if err != nil {
		return n, fail("write", "blob "+w.ref, err)
	}
	return n, nil
}

// Digest is the digest of what came so far.
func (w *Writer) Digest() ocispec.Digest {
	alg := ocispec.Digest("sha256:").Algorithm()
	if w.expected.Digest != "" {
		alg = w.expected.Digest.Algorithm()
	}
	return ocispec.Digest(string(alg) + ":" + hex.EncodeToString(w.h.Sum(nil)))
}

// Commit makes the blob visible if it has the size and digest, where they are
// not 0 and "", and those expected when the Writer was made. A blob that does
// not is discarded. The Writer is closed in every case but a full disk.
func (w *Writer) Commit(size int64, d ocispec.Digest) (err error) {
	if w.done {
		return errdefs.New(errdefs.Internal, "commit", "blob "+w.ref, fs.ErrClosed)
	}
	got := w.Digest()
	on := "blob " + string(got)
	for _, want := range []ocispec.Descriptor{w.expected, {Digest: d, Size: size}} {
		switch {
		case want.Size > 0 && want.Size != w.off:
			err = errdefs.Newf(errdefs.Invalid, "commit", on, "%d bytes came, not %d", w.off, want.Size)
		case want.Digest != "" && want.Digest != got:
			err = errdefs.Newf(errdefs.Invalid, "commit", on, "this should be %.100q", string(want.Digest))
		default:
			continue
		}
		w.Discard()
		return err
	}
	p, err := blobPath(got)
	if err == nil {
		err = w.f.Sync()
	}
	if err == nil {
		err = w.s.fs.Rename(w.name, p)
	}
	if err == nil {
		// Also when another made it visible first: it may not be durable yet.
		err = w.s.fs.SyncDir(string(got.Algorithm()))
	}
	if err != nil {
		w.Close()
		return fail("commit", on, err)
	}
	w.f.Close()
	w.release()
	return nil
}

// Close keeps what came for the next Writer of the ref. After Commit it does
// nothing.
func (w *Writer) Close() error {
	if w.done {
		return nil
	}
	err := w.f.Close()
	w.release()
	return err
}

// Discard closes the Writer and forgets what came.
func (w *Writer) Discard() error {
	if w.done {
		return nil
	}
	w.f.Close()
	err := w.s.fs.Remove(w.name)
	w.release()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail("discard", "blob "+w.ref, err)
	}
	return nil
}

// Abort forgets what came of a blob that nobody writes now.
func (s *Store) Abort(ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writers[ref] {
		return errdefs.Newf(errdefs.Conflict, "abort", "blob "+ref, "it is being written")
	}
	if err := s.fs.Remove(partialPath(ref)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail("abort", "blob "+ref, err)
	}
	return nil
}

// DropPartials forgets what came of blobs that nobody has written to since
// before, and returns the bytes freed. A zero time means all.
func (s *Store) DropPartials(before time.Time) (freed int64, err error) {
	names, err := s.fs.ReadDir(partialDir)
	if err != nil {
		return 0, fail("list", "partial blobs", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	held := map[string]bool{}
	for ref := range s.writers {
		held[partialPath(ref)] = true
	}
	for _, name := range names {
		p := path.Join(partialDir, name)
		st, serr := s.fs.Stat(p)
		if serr != nil || held[p] || !before.IsZero() && st.Modified.After(before) {
			continue
		}
		if rerr := s.fs.Remove(p); rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		freed += st.Size
	}
	return freed, err
}
