package image

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/layer"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/snapshot"
)

// Snapshots is what this package needs of the snapshot store.
type Snapshots interface {
	Prepare(ctx context.Context, key, parent string) error
	Commit(ctx context.Context, name, key string) error
	Stack(ctx context.Context, name, existing, parent string) error
	Remove(ctx context.Context, key string) error
	Exists(key string) bool
	Walk(f func(snapshot.Info) error) error
	Usage(ctx context.Context, key string) (bytes, inodes int64, err error)
	Dirs(key string) (snapshot.Dirs, error)
	// Sync returns when every committed snapshot survives a power cut.
	Sync(ctx context.Context) error
}

// activePrefix begins the names of snapshots that are being unpacked into.
const activePrefix = "image-"

// unpacked is a layer in an active snapshot, not yet visible.
type unpacked struct {
	key     string
	split   string // temporary file of the tar-split
	applied layer.Applied
}

// source is where a layer comes from. The reader ends when the context does,
// if it can.
type source struct {
	open       func(context.Context) io.Reader
	compressed int64 // its size, 0 if unknown
	progress   func(int64)
}

// unpack reads a layer, compressed or not, into an active snapshot on parent.
// On error nothing is left.
func (s *Service) unpack(ctx context.Context, parent string, src source) (u *unpacked, err error) {
	u = &unpacked{key: activePrefix + randomName()}
	if err := s.o.Snapshots.Prepare(ctx, u.key, parent); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.drop(ctx, u)
			u, err = nil, unpackError(err)
		}
	}()
	dirs, err := s.o.Snapshots.Dirs(u.key)
	if err != nil {
		return u, err
	}
	root, err := os.Open(dirs.Upper)
	if err != nil {
		return u, err
	}
	defer root.Close()
	u.split = filepath.Join(s.o.Dir, "split", "."+u.key)
	split, err := os.OpenFile(u.split, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return u, err
	}
	defer split.Close()
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	plain, _, err := layer.Decompress(&meter{r: src.open(rctx), f: src.progress})
	if err != nil {
		return u, err
	}
	defer plain.Close()
	limits := layer.Limits{Bytes: s.o.MaxLayer}
	if src.compressed > 0 {
		limits = layer.LimitsFor(src.compressed)
		limits.Bytes = min(limits.Bytes, s.o.MaxLayer)
	}
	w := bufio.NewWriterSize(split, 64<<10)
	rec := layer.Record(plain, w)
	u.applied, err = layer.Apply(rctx, rec, root, layer.ApplyOptions{Limits: limits, Lowers: dirs.Lowers})
	if err != nil {
		cancel()
		rec.Close()
		return u, err
	}
	return u, errors.Join(rec.Close(), w.Flush(), split.Close())
}

func unpackError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errdefs.WithHint(errdefs.New(errdefs.Exhausted, "unpack", "layer", err), "onggi system df shows what takes the space, onggi system prune frees some")
	}
	if e, ok := errors.AsType[*errdefs.Error](err); ok && e.Op != "" {
		return err
	}
	kind := errdefs.KindOf(err)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		kind = errdefs.Invalid
	}
	return errdefs.New(kind, "unpack", "layer", err)
}

// drop removes what unpack made.
func (s *Service) drop(ctx context.Context, u *unpacked) {
	if u.split != "" {
		os.Remove(u.split)
	}
	if err := s.o.Snapshots.Remove(context.WithoutCancel(ctx), u.key); err != nil && !errdefs.Is(err, errdefs.NotFound) {
		s.log.Error("unpacked layer not removed", "snapshot", u.key, "error", err)
	}
}

// settle makes an unpacked layer the layer of a chain ID, unless there is one.
// Preconditions: the caller works on the chain (flights).
func (s *Service) settle(ctx context.Context, u *unpacked, chain string) (*layerRecord, error) {
	s.mu.RLock()
	have := s.layers[chain]
	s.mu.RUnlock()
	if have != nil && s.exists(chain) {
		s.drop(ctx, u)
		return have, nil
	}
	if err := os.Rename(u.split, s.splitPath(chain)); err != nil {
		s.drop(ctx, u)
		return nil, errdefs.New(errdefs.Internal, "keep", "layer "+chain, err)
	}
	if s.exists(chain) {
		// A crash came between snapshot and record; it holds the same files.
		u.split = ""
		s.drop(ctx, u)
	} else if err := s.o.Snapshots.Commit(ctx, chain, u.key); err != nil {
		s.drop(ctx, u)
		return nil, err
	}
	rec := &layerRecord{V: 1, DiffID: u.applied.DiffID, Size: u.applied.Size, Tar: u.applied.TarSize, Split: true}
	return rec, s.putLayer(chain, rec)
}

// pin keeps layers from being removed with an image until unpin.
func (s *Service) pin(chains []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range chains {
		s.pins[c]++
	}
}

// unpin ends pin, and removes layers that no image has come to use.
func (s *Service) unpin(ctx context.Context, chains []string) {
	s.mu.Lock()
	for _, c := range chains {
		if s.pins[c]--; s.pins[c] <= 0 {
			delete(s.pins, c)
		}
	}
	s.mu.Unlock()
	for i := len(chains) - 1; i >= 0; i-- {
		s.dropLayer(ctx, chains[i])
	}
}

func randomName() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// meter tells how much has been read.
type meter struct {
	r io.Reader
	f func(int64)
	n int64
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.f != nil && n > 0 {
		m.f(m.n)
	}
	return n, err
}

// exactTar writes the tar of a layer, byte for byte what its DiffID is of.
func (s *Service) exactTar(ctx context.Context, chain string, w io.Writer) error {
	s.mu.RLock()
	rec := s.layers[chain]
	s.mu.RUnlock()
	if rec == nil {
		return errdefs.New(errdefs.NotFound, "read", "layer "+chain, nil)
	}
	dirs, err := s.o.Snapshots.Dirs(chain)
	if err != nil {
		return err
	}
	dir, err := os.Open(ownDir(dirs))
	if err != nil {
		return errdefs.New(errdefs.Internal, "read", "layer "+chain, err)
	}
	defer dir.Close()
	h := sha256.New()
	out := io.MultiWriter(w, h)
	if rec.Split {
		f, err := os.Open(s.splitPath(chain))
		if err != nil {
			return errdefs.New(errdefs.Internal, "read", "layer "+chain, err)
		}
		defer f.Close()
		if err := layer.Assemble(bufio.NewReader(f), dir, out); err != nil {
			return errdefs.New(errdefs.KindOf(err), "read", "layer "+chain, err)
		}
	} else if err := layer.Tar(ctx, out, dir, layer.TarOptions{}); err != nil {
		return errdefs.New(errdefs.KindOf(err), "read", "layer "+chain, err)
	}
	if got := ocispec.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))); got != rec.DiffID {
		return errdefs.New(errdefs.Internal, "read", "layer "+chain, fmt.Errorf("%w: its files give %s, want %s", errCorrupt, got, rec.DiffID))
	}
	return nil
}

// ownDir is the directory with the snapshot's own files.
func ownDir(d snapshot.Dirs) string {
	if d.Upper != "" {
		return d.Upper
	}
	if len(d.Lowers) > 0 {
		return d.Lowers[0]
	}
	return ""
}
