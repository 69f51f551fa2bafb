package layer

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// Record returns a reader of the same bytes as r, and writes to meta what
// Assemble needs, beside the unpacked tree, to make exactly them again. The
// reader must be read to its end; its Close waits until meta is complete, and
// says what went wrong. Meta is tar-split's JSON, a line per entry, in zstd.
func Record(r io.Reader, meta io.Writer) io.ReadCloser {
	zw, err := zstd.NewWriter(meta, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return &recorder{Reader: errReader{err}}
	}
	rc, done, err := asm.NewInputTarStreamWithDone(r, &linePacker{enc: json.NewEncoder(zw)}, nil)
	if err != nil {
		return &recorder{Reader: errReader{err}}
	}
	return &recorder{Reader: rc, rc: rc, done: done, zw: zw}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

type recorder struct {
	io.Reader
	rc   io.Closer
	done <-chan error
	zw   *zstd.Encoder
}

func (r *recorder) Close() error {
	if r.rc == nil {
		return nil
	}
	r.rc.Close()
	err := <-r.done
	r.rc = nil
	return errors.Join(err, r.zw.Close())
}

// linePacker is storage.NewJSONPacker without its refusal of two entries with
// one name: that must not stop a pull. Assemble finds out.
type linePacker struct {
	enc *json.Encoder
	n   int
}

func (l *linePacker) AddEntry(e storage.Entry) (int, error) {
	e.SetName(e.GetName())
	e.Position = l.n
	l.n++
	return e.Position, l.enc.Encode(e)
}

type lineUnpacker struct{ dec *json.Decoder }

func (l lineUnpacker) Next() (*storage.Entry, error) {
	var e storage.Entry
	if err := l.dec.Decode(&e); err != nil {
		return nil, err
	}
	return &e, nil
}

// Assemble writes the tar that Record saw, with the files' content from the
// directory that Apply made of it. A file that is not as it was is
// errdefs.Conflict: then the tar cannot be made again (as when it had two
// entries of one name). The caller checks the digest of what was written.
func Assemble(meta io.Reader, dir *os.File, w io.Writer) error {
	zr, err := zstd.NewReader(meta, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return errdefs.New(errdefs.Internal, "assemble", "layer", err)
	}
	defer zr.Close()
	out := &sink{w: w}
	err = asm.WriteOutputTarStream(tree{dir}, lineUnpacker{json.NewDecoder(zr)}, out)
	if err != nil && out.err == nil {
		return errdefs.New(errdefs.Conflict, "assemble", "layer", err)
	}
	return err
}

// sink tells errors of the writer from others.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		s.err = err
	}
	return n, err
}

// tree gives the files below a directory by their name in the tar.
type tree struct{ dir *os.File }

func (t tree) Get(name string) (io.ReadCloser, error) {
	p := strings.TrimPrefix(path.Clean("/"+name), "/")
	dir, last := path.Split(p)
	if last == "" {
		return nil, errors.New("the root is no file")
	}
	d, err := linux.OpenInRoot(t.dir, dir, linux.Handle, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	f, err := linux.OpenAt(d, last, linux.ReadOnly, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, errors.New(quote(name)+" is not a regular file"))
	}
	return f, nil
}
