package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"

	"github.com/onggi/onggi/internal/errdefs"
)

// A Kind is how a stream is compressed.
type Kind string

const (
	None  Kind = ""
	Gzip  Kind = "gzip"
	Zstd  Kind = "zstd"
	Bzip2 Kind = "bzip2" // reading only
	Xz    Kind = "xz"    // recognised only
)

// maxWindow bounds what a zstd stream can make us hold in memory.
const maxWindow = 128 << 20

var magics = []struct {
	kind  Kind
	magic string
}{
	{Gzip, "\x1f\x8b\x08"},
	{Zstd, "\x28\xb5\x2f\xfd"},
	{Bzip2, "BZh"},
	{Xz, "\xfd7zXZ\x00"},
}

// DetectKind tells from the first bytes of a stream (10 are enough).
func DetectKind(head []byte) Kind {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.kind
		}
	}
	// A frame of zstd may be preceded by skippable ones.
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18 {
		return Zstd
	}
	return None
}

// Decompress reads a stream of any kind, told by its first bytes. What follows
// the compressed data must be another such stream, or the end.
func Decompress(r io.Reader) (io.ReadCloser, Kind, error) {
	src := &source{r: r}
	br := bufio.NewReaderSize(src, 128<<10)
	head, err := br.Peek(10)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, None, err
	}
	kind := DetectKind(head)
	switch kind {
	case Gzip:
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, kind, badStream(kind, err)
		}
		return &decoder{zr, kind, src, zr.Close}, kind, nil
	case Zstd:
		zr, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, kind, badStream(kind, err)
		}
		return &decoder{zr, kind, src, func() error { zr.Close(); return nil }}, kind, nil
	case Bzip2:
		return &decoder{bzip2.NewReader(br), kind, src, func() error { return nil }}, kind, nil
	case Xz:
		return nil, kind, errdefs.WithHint(errdefs.New(errdefs.Unsupported, "decompress", "xz stream", errors.New("xz is not supported")),
			"compress it with zstd or gzip")
	}
	return io.NopCloser(br), None, nil
}

// source remembers that reading went wrong below the decoder.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// decoder tells damage of the stream, which is errdefs.Invalid, from errors of
// the reader below.
type decoder struct {
	io.Reader
	kind  Kind
	src   *source
	close func() error
}

func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	switch {
	case err == nil || err == io.EOF:
	case d.src.err != nil:
		err = d.src.err
	default:
		err = badStream(d.kind, err)
	}
	return n, err
}

func (d *decoder) Close() error { return d.close() }

func badStream(k Kind, err error) error {
	return errdefs.New(errdefs.Invalid, "decompress", string(k)+" stream", err)
}

// Compress writes a stream of the kind. Level 0 is the default of the kind;
// others are gzip's 1 to 9, and zstd's 1 to 22. The output for the same input
// and level is always the same. Closing it does not close w.
func Compress(w io.Writer, k Kind, level int) (io.WriteCloser, error) {
	switch k {
	case None:
		return nopCloser{w}, nil
	case Gzip:
		if level == 0 {
			level = gzip.DefaultCompression
		}
		zw, err := pgzip.NewWriterLevel(w, level)
		if err == nil {
			// Blocks of fixed size: the output does not depend on the machine.
			err = zw.SetConcurrency(1<<20, 4)
		}
		if err != nil {
			return nil, errdefs.New(errdefs.Invalid, "compress", "gzip stream", err)
		}
		return zw, nil
	case Zstd:
		l := zstd.SpeedDefault
		if level != 0 {
			l = zstd.EncoderLevelFromZstd(level)
		}
		return zstd.NewWriter(w, zstd.WithEncoderLevel(l), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(4<<20))
	}
	return nil, errdefs.Newf(errdefs.Unsupported, "compress", "layer", "cannot write %.20q", string(k))
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// ParseKind reads the name of a compression, as in a request.
func ParseKind(s string) (Kind, error) {
	switch s {
	case "", "uncompressed", "none", "identity":
		return None, nil
	case "gzip", "gz":
		return Gzip, nil
	case "zstd":
		return Zstd, nil
	}
	return None, errdefs.New(errdefs.Unsupported, "compress", "layer", fmt.Errorf("compression %.20q is not known", s))
}
