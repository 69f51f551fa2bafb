package linux

import (
	"os"

	"golang.org/x/sys/unix"
)

// A DirWatch tells when files in a directory are written, made, moved or removed.
type DirWatch struct{ f *os.File }

// WatchDir begins to watch a directory. The number of watches is limited on most
// machines, so be ready to do without.
func WatchDir(dir string) (*DirWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	const what = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, dir, what); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "watch", Path: dir, Err: err}
	}
	return &DirWatch{os.NewFile(uintptr(fd), "watch of "+dir)}, nil
}

// Wait waits until something has happened since the last Wait. It returns an
// error after Close.
func (w *DirWatch) Wait() error {
	var buf [4096]byte
	_, err := w.f.Read(buf[:])
	return err
}

// Close ends the watch, and a Wait in progress.
func (w *DirWatch) Close() error { return w.f.Close() }
