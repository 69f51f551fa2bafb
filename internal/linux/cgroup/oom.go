package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// OOMEvents counts the processes of the group that were killed because its
// memory limit was reached.
func (g *Group) OOMEvents() (uint64, error) {
	d := g.find("memory")
	if d == nil {
		return 0, nil
	}
	n, err := d.oomKills()
	if err != nil {
		return 0, errdefs.New(gone(err), "read", "OOM kills of "+g.String(), err)
	}
	return n, nil
}

func (d *dir) oomKills() (uint64, error) {
	file := d.path + "/memory.oom_control"
	if d.v2 {
		file = d.path + "/memory.events"
	}
	n, err := keyed(file, "oom_kill")
	if err == unix.ENOENT && exists(file) {
		return 0, nil // v1 counts since 4.13
	}
	return n, err
}

// OOMWatch tells when the group runs out of memory. It is waited on by one
// goroutine; Close ends the wait.
type OOMWatch struct {
	f     *os.File // an eventfd (v1) or inotify (v2) descriptor
	d     *dir
	v2    bool
	count uint64
}

// WatchOOM starts watching.
func (g *Group) WatchOOM() (*OOMWatch, error) {
	d := g.find("memory")
	if d == nil {
		return nil, errdefs.Newf(errdefs.Unsupported, "watch", "memory of "+g.String(),
			"this machine has no memory controller")
	}
	w := &OOMWatch{d: d, v2: d.v2}
	var err error
	if d.v2 {
		err = w.inotify()
	} else {
		err = w.eventfd()
	}
	if err == nil {
		w.count, err = d.oomKills()
	}
	if err != nil {
		w.Close()
		return nil, errdefs.New(gone(err), "watch", "memory of "+g.String(), err)
	}
	return w, nil
}

func (w *OOMWatch) inotify() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	w.f = os.NewFile(uintptr(fd), "inotify")
	if _, err = unix.InotifyAddWatch(fd, w.d.path+"/memory.events", unix.IN_MODIFY); err != nil {
		return err
	}
	// The group's end is seen as a change of its population.
	_, err = unix.InotifyAddWatch(fd, w.d.path+"/cgroup.events", unix.IN_MODIFY)
	return err
}

func (w *OOMWatch) eventfd() error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	w.f = os.NewFile(uintptr(fd), "eventfd")
	control, err := unix.Open(w.d.path+"/memory.oom_control", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(control)
	return writeFile(w.d.path+"/cgroup.event_control", strconv.Itoa(fd)+" "+strconv.Itoa(control))
}

// Wait blocks until memory ran out again, and returns how many times it did.
// The end of the group, and Close, are os.ErrClosed.
func (w *OOMWatch) Wait() (uint64, error) {
	buf := make([]byte, 4096)
	for {
		if _, err := w.f.Read(buf); err != nil {
			return 0, fmt.Errorf("wait for OOM: %w", err)
		}
		n, err := w.d.oomKills()
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
				return 0, os.ErrClosed
			}
			return 0, err
		}
		if w.v2 {
			if n > w.count {
				more := n - w.count
				w.count = n
				return more, nil
			}
			if p, err := keyed(w.d.path+"/cgroup.events", "populated"); err == nil && p == 0 {
				return 0, os.ErrClosed
			}
			continue
		}
		// v1 tells at the group's end too, and of an OOM before the kill is
		// counted, and may tell of one twice.
		if n, err = w.kills(); err != nil || n > 0 {
			return n, err
		}
	}
}

// killing bounds the wait for a kill that v1 has told of.
const killing = 100 * time.Millisecond

// kills are those of a group of v1 since it was asked last; 1 also where nobody
// is killed, since the processes are to wait, or where the kernel counts none.
func (w *OOMWatch) kills() (uint64, error) {
	file := w.d.path + "/memory.oom_control"
	for end := time.Now().Add(killing); ; time.Sleep(2 * time.Millisecond) {
		off, err := keyed(file, "oom_kill_disable")
		n, counted := keyed(file, "oom_kill")
		switch {
		case !exists(w.d.path):
			return 0, os.ErrClosed
		case err != nil:
			return 0, err
		case off == 1 || counted != nil:
			return 1, nil
		case n > w.count:
			more := n - w.count
			w.count = n
			return more, nil
		case time.Now().After(end):
			return 0, nil
		}
	}
}

// Close stops watching.
func (w *OOMWatch) Close() error {
	if w.f == nil {
		return nil
	}
	return w.f.Close()
}
