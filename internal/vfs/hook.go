package vfs

import (
	"fmt"
	"io"
	"sync/atomic"
)

// Hook calls Before with each operation that changes the disk, in words; its
// error is returned in place of the operation.
type Hook struct {
	FS
	Before func(op string) error
}

func (h Hook) do(f func() error, format string, a ...any) error {
	if err := h.Before(fmt.Sprintf(format, a...)); err != nil {
		return err
	}
	return f()
}

func (h Hook) Open(name string) (File, error) {
	f, err := h.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return hookFile{f, h, name}, nil
}

func (h Hook) Create(name string) (f File, err error) {
	err = h.do(func() error { f, err = h.FS.Create(name); return err }, "create %s", name)
	if err != nil {
		return nil, err
	}
	return hookFile{f, h, name}, nil
}

func (h Hook) Rename(a, b string) error {
	return h.do(func() error { return h.FS.Rename(a, b) }, "rename %s %s", a, b)
}

func (h Hook) Remove(name string) error {
	return h.do(func() error { return h.FS.Remove(name) }, "remove %s", name)
}

func (h Hook) Mkdir(name string) error {
	return h.do(func() error { return h.FS.Mkdir(name) }, "mkdir %s", name)
}

func (h Hook) SyncDir(name string) error {
	return h.do(func() error { return h.FS.SyncDir(name) }, "sync %s", name)
}

func (h Hook) Lock(name string) (c io.Closer, err error) { return h.FS.Lock(name) }

type hookFile struct {
	File
	h    Hook
	name string
}

func (f hookFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.h.do(func() error { n, err = f.File.WriteAt(p, off); return err }, "write %s", f.name)
	return n, err
}

func (f hookFile) Truncate(size int64) error {
	return f.h.do(func() error { return f.File.Truncate(size) }, "truncate %s", f.name)
}

func (f hookFile) Allocate(size int64) error {
	return f.h.do(func() error { return f.File.Allocate(size) }, "allocate %s", f.name)
}

func (f hookFile) Sync() error {
	return f.h.do(func() error { return f.File.Sync() }, "sync %s", f.name)
}

// FailAt is a Before that lets n operations through, and fails the next and all
// after it.
func FailAt(n int, err error) func(string) error {
	var done atomic.Int64
	return func(string) error {
		if done.Add(1) > int64(n) {
			return err
		}
		return nil
	}
}
