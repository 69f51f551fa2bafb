package logs

import (
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
)

// rotate begins a new file, so that path is always the newest. The oldest one
// goes first, which frees its space even on a full disk.
//
// Killed in between it leaves a gap in the numbers, which Read steps over and
// the next rotation closes.
func (w *Writer) rotate() error {
	s := w.spec
	if s.MaxFiles == 1 {
		// One file: its content is given up. Followers see it shrink.
		if err := w.f.Truncate(0); err != nil {
			return err
		}
		w.size = 0
		return nil
	}
	last := s.MaxFiles - 1
	for _, ext := range []string{"", ".gz"} {
		if err := remove(s.file(last) + ext); err != nil {
			return err
		}
	}
	for n := last - 1; n >= 0; n-- {
		for _, ext := range []string{"", ".gz"} {
			if n == 0 && ext != "" {
				continue
			}
			err := os.Rename(s.file(n)+ext, s.file(n+1)+ext)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	w.f.Close()
	w.f = nil
	if err := w.open(); err != nil {
		return err
	}
	if s.Compress {
		go compressFile(s.file(1))
	}
	return nil
}

// compressFile replaces path by path.gz. It works on what it opened: if path is
// rotated meanwhile the result is thrown away, and the file stays as it is.
func compressFile(path string) {
	in, err := os.Open(path)
	if err != nil {
		return
	}
	defer in.Close()
	tmp := path + ".tmp"
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return
	}
	z, _ := gzip.NewWriterLevel(out, gzip.BestSpeed)
	_, err = io.Copy(z, in)
	err = errors.Join(err, z.Close(), out.Close())
	if err == nil && samePath(in, path) {
		if err = os.Rename(tmp, path+".gz"); err == nil {
			os.Remove(path)
			return
		}
	}
	os.Remove(tmp)
}

// samePath reports whether path still names f.
func samePath(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
