package logs

import (
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"
)

// rotate begins a new file, so that path is always the newest. The oldest one
// goes first, which frees its space even on a full disk.
//
// Killed in between it leaves a gap in the numbers, which Read steps over and
// the next rotation closes.
func (w *Writer) rotate() error {
	if w.packing != nil {
		<-w.packing // it works on names that are about to move
		w.packing = nil
	}
	s := w.spec
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
	if err := w.open(os.O_CREATE); err != nil {
		return err
	}
	if s.Compress && last > 0 {
		w.packing = make(chan struct{})
		go func() {
			defer close(w.packing)
			pack(s.file(1))
		}()
	}
	return nil
}

// pack replaces path by path.gz. The comment in its head is the inode it was, by
// which a reader who follows finds where it is.
func pack(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	z, _ := gzip.NewWriterLevel(out, gzip.BestSpeed)
	z.Comment = strconv.FormatUint(inode(fi), 10)
	_, err = io.Copy(z, in)
	if err = errors.Join(err, z.Close(), out.Close()); err == nil {
		os.Chtimes(tmp, fi.ModTime(), fi.ModTime())
		if err = os.Rename(tmp, path+".gz"); err == nil {
			return os.Remove(path)
		}
	}
	os.Remove(tmp)
	return err
}

func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
