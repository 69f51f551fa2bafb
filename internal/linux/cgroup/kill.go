package cgroup

import (
	"context"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// Freeze stops all processes of the group, and returns when they have stopped.
// A group that does not stop before ctx ends is let run again.
func (g *Group) Freeze(ctx context.Context) error { return g.freeze(ctx, true) }

// Thaw lets them run again.
func (g *Group) Thaw(ctx context.Context) error { return g.freeze(ctx, false) }

func (g *Group) freeze(ctx context.Context, stop bool) error {
	op := pick(stop, "freeze", "thaw")
	d := g.find("freezer")
	if d == nil {
		d = g.unified()
	}
	if d == nil {
		return errdefs.Newf(errdefs.Unsupported, op, g.String(), "this machine has no freezer controller")
	}
	set := func(stop bool) error {
		if d.v2 {
			return writeFile(d.path+"/cgroup.freeze", pick(stop, "1", "0"))
		}
		return writeFile(d.path+"/freezer.state", pick(stop, "FROZEN", "THAWED"))
	}
	if err := set(stop); err != nil {
		return errdefs.New(gone(err), op, g.String(), err)
	}
	// The kernel stops them one by one; a process in an uninterruptible call
	// of the kernel stops when it returns from it.
	for wait, n := 50*time.Microsecond, 0; ; n++ {
		frozen, err := d.frozen()
		if err != nil {
			return errdefs.New(gone(err), op, g.String(), err)
		}
		if frozen == stop {
			return nil
		}
		if err := ctx.Err(); err != nil {
			if stop {
				set(false)
			}
			return errdefs.WithHint(errdefs.Newf(errdefs.Unavailable, op, g.String(), "a process does not stop: %w", err),
				"a process of it may wait for a disk or a network file system")
		}
		// A process that forks while v1 freezes slips through; asking again
		// takes its child as well, and a short thaw lets a vfork end.
		if stop && !d.v2 && n%20 == 19 {
			set(false)
			time.Sleep(time.Millisecond)
			set(true)
		}
		time.Sleep(wait)
		if wait < 10*time.Millisecond {
			wait *= 2
		}
	}
}

// Frozen reports whether the group is stopped.
func (g *Group) Frozen() (bool, error) {
	d := g.find("freezer")
	if d == nil {
		d = g.unified()
	}
	if d == nil {
		return false, nil
	}
	is, err := d.frozen()
	if err != nil {
		return false, errdefs.New(gone(err), "read", "state of "+g.String(), err)
	}
	return is, nil
}

func (d *dir) frozen() (bool, error) {
	if d.v2 {
		n, err := keyed(d.path+"/cgroup.events", "frozen")
		return n == 1, err
	}
	s, err := readWord(d.path + "/freezer.state")
	return s == "FROZEN", err
}

// keyed reads one number of a file of "name number" lines.
func keyed(file, key string) (uint64, error) {
	s, err := readFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(s, "\n") {
		if k, v, ok := strings.Cut(line, " "); ok && k == key {
			return parseUint(v)
		}
	}
	return 0, unix.ENOENT
}

// Kill sends SIGKILL to every process of the group and of the groups below
// it, so that none escapes by forking. It does not wait until they are dead.
func (g *Group) Kill() error {
	d := g.tracking()
	if d == nil {
		return nil
	}
	if d.v2 && g.unified() != nil {
		switch err := writeFile(d.path+"/cgroup.kill", "1"); {
		case err == nil:
			return g.release()
		case err != unix.ENOENT:
			return errdefs.New(gone(err), "kill", g.String(), err)
		case !exists(d.path):
			return nil
		}
	}
	return g.killEach()
}

// release thaws a v1 group: a frozen process dies only when it is let go.
func (g *Group) release() error {
	if d := g.find("freezer"); d != nil && d.own && !d.v2 {
		if s, err := readWord(d.path + "/freezer.state"); err == nil && s != "THAWED" {
			writeFile(d.path+"/freezer.state", "THAWED")
		}
	}
	return nil
}

// killEach is Kill for kernels without cgroup.kill (before 5.14): stop them,
// so that none forks, signal each, and let them go to die.
func (g *Group) killEach() error {
	for range 100 {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		stopped := g.tracking().own && g.Freeze(ctx) == nil
		cancel()
		procs, err := g.Procs()
		for _, p := range procs {
			unix.Kill(p, unix.SIGKILL)
		}
		if stopped {
			g.freeze(context.Background(), false)
		}
		if err != nil {
			return err
		}
		if len(procs) == 0 || stopped {
			return nil
		}
		// Not stopped: one may have forked between the list and the signal.
		time.Sleep(2 * time.Millisecond)
		if alive, _ := g.Procs(); len(alive) == 0 {
			return nil
		}
	}
	return errdefs.Newf(errdefs.Unavailable, "kill", g.String(), "its processes fork faster than they can be killed")
}
