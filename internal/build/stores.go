package build

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"github.com/moby/buildkit/util/disk"
	digest "github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/layer"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/snapshot"
)

// snapshots is the snapshot store as package refs sees it.
type snapshots struct{ *snapshot.Store }

var (
	_ refs.Snapshots = snapshots{}
	_ refs.Layers    = layers{}
	_ refs.Mounter   = mounter{}
)

func (s snapshots) Remove(ctx context.Context, key string) error {
	if err := s.Store.Remove(ctx, key); !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	return nil
}

func (s snapshots) Usage(ctx context.Context, key string) (int64, error) {
	n, _, err := s.Store.Usage(ctx, key)
	return n, err
}

func (s snapshots) Dirs(key string) (string, []string, error) {
	d, err := s.Store.Dirs(key)
	return d.Upper, d.Lowers, err
}

// Open mounts without any syncing: what a build writes becomes durable with
// the snapshot that it is committed as.
func (s snapshots) Open(ctx context.Context, key string, readOnly bool) (*os.File, error) {
	return s.MountFD(ctx, key, snapshot.MountOptions{ReadOnly: readOnly, Volatile: !readOnly})
}

// layers packs and unpacks layers.
type layers struct{}

func (layers) Tar(ctx context.Context, w io.Writer, dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return layer.Tar(ctx, w, f, layer.TarOptions{})
}

func (layers) Apply(ctx context.Context, r io.Reader, dir string, lowers []string) (digest.Digest, int64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	d, _, err := layer.Decompress(r)
	if err != nil {
		return "", 0, err
	}
	defer d.Close()
	a, err := layer.Apply(ctx, d, f, layer.ApplyOptions{Lowers: lowers})
	return digest.Digest(a.DiffID), a.TarSize, err
}

func (layers) Tidy(dir string, lowers []string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return layer.Tidy(f, lowers)
}

// mounter attaches mounts.
type mounter struct{}

func (mounter) Attach(mnt *os.File, path string) error { return linux.AttachMount(mnt, path) }
func (mounter) Detach(path string) error               { return linux.DetachMount(path) }

// diskOf tells the size of the disk that a directory is on.
func diskOf(dir string) func() (total, free int64, err error) {
	return func() (int64, int64, error) {
		st, err := disk.GetDiskStat(dir)
		return st.Total, st.Available, err
	}
}

// unpackContext extracts the context of a classic build: a tar, compressed or
// not, or a lone Dockerfile.
func unpackContext(ctx context.Context, r io.Reader, dir string) error {
	d, _, err := layer.Decompress(r)
	if err != nil {
		return err
	}
	defer d.Close()
	br := bufio.NewReaderSize(d, 4096)
	head, err := br.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !isTar(head) {
		return loneDockerfile(br, dir)
	}
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return layer.Extract(ctx, br, root, "/", layer.ExtractOptions{Owner: &layer.Owner{}})
}

// isTar looks at the first block: of a tar, or the empty one that ends it.
func isTar(head []byte) bool {
	if len(head) < 512 {
		return false
	}
	return bytes.HasPrefix(head[257:], []byte("ustar")) || len(bytes.Trim(head, "\x00")) == 0 || oldTar(head)
}

// oldTar recognises the format before ustar by its checksum.
func oldTar(head []byte) bool {
	sum := 0
	for i, b := range head {
		if i >= 148 && i < 156 {
			b = ' '
		}
		sum += int(b)
	}
	want := 0
	for _, b := range bytes.Trim(head[148:156], " \x00") {
		if b < '0' || b > '7' {
			return false
		}
		want = want*8 + int(b-'0')
	}
	return want == sum
}

// maxDockerfile bounds a Dockerfile that comes alone.
const maxDockerfile = 1 << 20

func loneDockerfile(r io.Reader, dir string) error {
	b, err := io.ReadAll(io.LimitReader(r, maxDockerfile+1))
	if err != nil {
		return err
	}
	if len(b) > maxDockerfile {
		return errors.New("it is neither a tar nor a Dockerfile of less than 1 MiB")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.WriteFile("Dockerfile", b, 0o644)
}
