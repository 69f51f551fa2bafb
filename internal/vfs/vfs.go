// Package vfs is the one door to the disk for state: what the stores of
// records and blobs do to a file system goes through an FS, so that a test can
// refuse any single operation, fill the disk, or cut the power.
//
// # Model
//
//	FS ── Dir    a directory of the real file system
//	   ├─ Mem    in memory; remembers what was synced, and Crash() gives what a
//	   │         power cut would leave
//	   └─ Hook   calls a function before each operation of another FS
//
// # Guarantees
//
// A write is durable after Sync of its file; a name is durable after SyncDir
// of its directory. Until then a power cut may keep any part of the writes,
// and any prefix of the changes of names. WriteFile replaces a file so that a
// reader, before and after any crash, sees the old content or the new.
//
// # Concurrency
//
// Every FS and File may be used from many goroutines.
//
// # Not here
//
// Paths that an image or a container can influence: those are opened by
// linux.OpenInRoot. Unpacked layers, which are made durable by one syncfs.
package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"
)

// FS is what a store may do to a disk. Names are slash-separated and relative
// to the store's root; "." is the root. Errors wrap those of package io/fs and
// syscall.ENOSPC.
type FS interface {
	// Open opens a file for reading.
	Open(name string) (File, error)
	// Create opens a file for reading and writing, and makes it where it is
	// missing. It is not emptied.
	Create(name string) (File, error)
	// Rename replaces to in one step.
	Rename(from, to string) error
	Remove(name string) error
	// Mkdir makes a directory and those above it; one that exists is fine.
	Mkdir(name string) error
	// ReadDir lists the names in a directory, sorted.
	ReadDir(name string) ([]string, error)
	Stat(name string) (Info, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// Lock takes a file that only one process can hold until it ends.
	Lock(name string) (io.Closer, error)
}

// Info describes a file.
type Info struct {
	Size     int64
	Modified time.Time // zero where the FS has no clock
}

// A File is an open file. Writes beyond its end extend it with zeros.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Allocate reserves disk space up to size without changing the file's
	// size, so that writes below it do not run out of space.
	Allocate(size int64) error
	// Sync makes the file's bytes and size durable.
	Sync() error
}

// ErrLocked says that another process holds a lock.
var ErrLocked = errors.New("in use by another process")

// WriteFile replaces a file in one durable step.
func WriteFile(f FS, name string, data []byte) (err error) {
	tmp := name + ".tmp"
	w, err := f.Create(tmp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Remove(tmp)
		}
	}()
	err = w.Truncate(0)
	if err == nil {
		_, err = w.WriteAt(data, 0)
	}
	if err == nil {
		err = w.Sync()
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = f.Rename(tmp, name)
	}
	if err == nil {
		err = f.SyncDir(path.Dir(name))
	}
	return err
}

// ReadFile reads a whole file of at most limit bytes.
func ReadFile(f FS, name string, limit int64) ([]byte, error) {
	r, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	size, err := r.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: syscall.EFBIG}
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), b); err != nil {
		return nil, err
	}
	return b, nil
}

// Dir is the directory of the real file system with this path.
type Dir string

var _ FS = Dir("")

func (d Dir) path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }

func (d Dir) Open(name string) (File, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d Dir) Create(name string) (File, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d Dir) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }
func (d Dir) Remove(name string) error     { return os.Remove(d.path(name)) }
func (d Dir) Mkdir(name string) error      { return os.MkdirAll(d.path(name), 0o700) }

func (d Dir) ReadDir(name string) ([]string, error) {
	ents, err := os.ReadDir(d.path(name))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(ents))
	for i, e := range ents {
		names[i] = e.Name()
	}
	return names, nil
}

func (d Dir) Stat(name string) (Info, error) {
	st, err := os.Lstat(d.path(name))
	if err != nil {
		return Info{}, err
	}
	return Info{st.Size(), st.ModTime()}, nil
}

func (d Dir) SyncDir(name string) error {
	f, err := os.Open(d.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (d Dir) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	return f, nil
}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

const fallocKeepSize = 1 // FALLOC_FL_KEEP_SIZE

func (f osFile) Allocate(size int64) error {
	for {
		err := syscall.Fallocate(int(f.Fd()), fallocKeepSize, 0, size)
		switch err {
		case syscall.EINTR:
			continue
		case nil, syscall.EOPNOTSUPP: // without it the writes themselves can meet a full disk
			return nil
		}
		return &fs.PathError{Op: "allocate", Path: f.Name(), Err: err}
	}
}

// Sync is fdatasync: times of files mean nothing to the stores.
func (f osFile) Sync() error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		switch err {
		case syscall.EINTR:
			continue
		case nil:
			return nil
		}
		return &fs.PathError{Op: "sync", Path: f.Name(), Err: err}
	}
}
