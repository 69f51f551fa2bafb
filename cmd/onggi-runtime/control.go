package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/ociruntime"
)

func stateFlags(*flag.FlagSet) func(*global, []string) error {
	return func(g *global, args []string) error {
		c, err := g.load(args[0])
		if err != nil {
			return err
		}
		return printJSON(c.view())
	}
}

func printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(b, '\n'))
	return err
}

func killFlags(fs *flag.FlagSet) func(*global, []string) error {
	all := both(fs.BoolVar, "all", "a")
	return func(g *global, args []string) error {
		c, err := g.load(args[0])
		if err != nil {
			return err
		}
		name := "TERM"
		if len(args) > 1 {
			name = args[1]
		}
		sig, err := parseSignal(name)
		if err != nil {
			return err
		}
		if *all {
			return c.killAll(sig)
		}
		return c.kill(sig)
	}
}

// signals are the names that Linux has on every architecture of ours.
var signals = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "IOT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12,
	"PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23,
	"XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "POLL": 29, "PWR": 30, "SYS": 31,
}

func parseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n >= 0 && n <= 64 {
			return n, nil
		}
	} else {
		name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
		if n, ok := signals[name]; ok {
			return n, nil
		}
		if k, err := strconv.Atoi(strings.TrimPrefix(name, "RTMIN+")); err == nil && k >= 0 && k <= 30 && strings.HasPrefix(name, "RTMIN+") {
			return 34 + k, nil
		}
		if k, err := strconv.Atoi(strings.TrimPrefix(name, "RTMAX-")); err == nil && k >= 0 && k <= 30 && strings.HasPrefix(name, "RTMAX-") {
			return 64 - k, nil
		}
	}
	return 0, errdefs.Newf(errdefs.Invalid, "", "", "unknown signal %q", s)
}

// kill signals the first process.
func (c *container) kill(sig int) error {
	fd, err := c.pidfd()
	if err != nil {
		return err
	}
	defer fd.Close()
	err = linux.SignalPidFD(int(linux.RawFD(fd)), sig)
	if errors.Is(err, os.ErrProcessDone) {
		return errdefs.Newf(errdefs.Conflict, "", "", "container %q: container not running", c.ID)
	}
	return err
}

// killAll signals every process of the container; they may outlive the first
// where the container shares a PID namespace.
func (c *container) killAll(sig int) error {
	group, err := c.group()
	if err != nil {
		return c.kill(sig)
	}
	if sig == int(syscall.SIGKILL) {
		return group.Kill()
	}
	pids, err := group.Procs()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.Signal(sig)); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	return nil
}

func deleteFlags(fs *flag.FlagSet) func(*global, []string) error {
	force := both(fs.BoolVar, "force", "f")
	return func(g *global, args []string) error {
		c, err := g.load(args[0])
		if errdefs.Is(err, errdefs.NotFound) {
			// A creation that was killed leaves a directory without a state.
			if rmErr := os.RemoveAll(filepath.Join(g.root, args[0])); *force || rmErr != nil {
				return rmErr
			}
			return err
		}
		if err != nil {
			return err
		}
		switch st := c.status(); {
		case st == specs.StateStopped:
		case st == specs.StateCreated || *force:
			if err := c.end(); err != nil {
				return err
			}
		default:
			return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "cannot delete container %s that is not stopped: %s", c.ID, st), "kill it first, or delete --force")
		}
		return g.destroy(c)
	}
}

// end kills the first process and waits until it is gone, or a zombie whose
// parent is somebody else.
func (c *container) end() error {
	if err := c.killAll(9); err != nil {
		c.kill(9)
	}
	fd, err := c.pidfd()
	if err != nil {
		return nil // gone
	}
	defer fd.Close()
	linux.SignalPidFD(int(linux.RawFD(fd)), 9)
	if !linux.WaitReadable(int(linux.RawFD(fd)), 10*time.Second) {
		return errdefs.Newf(errdefs.Unavailable, "", "", "container %s does not end after SIGKILL", c.ID)
	}
	return nil
}

// destroy removes what a stopped container leaves, and runs its last hooks.
func (g *global) destroy(c *container) error {
	if group, err := c.group(); err == nil {
		// Without a PID namespace of its own it may have left processes.
		group.Kill()
		if err := group.Delete(); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	if h := c.Spec.Hooks; h != nil {
		for _, one := range h.Poststop {
			if err := ociruntime.RunHooks(context.Background(), "poststop", []specs.Hook{one}, c.hookState(specs.StateStopped)); err != nil {
				g.warn("%v", err)
			}
		}
	}
	return nil
}

func psFlags(fs *flag.FlagSet) func(*global, []string) error {
	format := text(fs, "format", "f")
	return func(g *global, args []string) error {
		c, err := g.load(args[0])
		if err != nil {
			return err
		}
		group, err := c.group()
		if err != nil {
			return err
		}
		pids, err := group.Procs()
		if err != nil {
			return err
		}
		switch *format {
		case "json":
			b, err := json.Marshal(append([]int{}, pids...))
			fmt.Println(string(b))
			return err
		case "", "table":
			return psTable(pids, args[1:])
		}
		return errdefs.Newf(errdefs.Invalid, "", "", "invalid format option %q: want table or json", *format)
	}
}

// psTable lets ps print, and keeps the lines of the container.
func psTable(pids []int, options []string) error {
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	out, err := exec.Command("ps", options...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ps: %w: %s", err, out)
	}
	lines := strings.Split(string(out), "\n")
	column := -1
	for i, name := range strings.Fields(lines[0]) {
		if name == "PID" {
			column = i
		}
	}
	if column < 0 {
		return errdefs.Newf(errdefs.Invalid, "", "", "couldn't find PID field in ps output")
	}
	fmt.Println(lines[0])
	ours := map[string]bool{}
	for _, p := range pids {
		ours[strconv.Itoa(p)] = true
	}
	for _, l := range lines[1:] {
		if f := strings.Fields(l); len(f) > column && ours[f[column]] {
			fmt.Println(l)
		}
	}
	return nil
}

func listFlags(fs *flag.FlagSet) func(*global, []string) error {
	format, quiet := text(fs, "format", "f"), both(fs.BoolVar, "quiet", "q")
	return func(g *global, _ []string) error {
		entries, err := os.ReadDir(g.root)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		var views []view
		for _, e := range entries {
			if c, err := g.load(e.Name()); err == nil {
				views = append(views, c.view())
			}
		}
		switch {
		case *quiet:
			for _, v := range views {
				fmt.Println(v.ID)
			}
			return nil
		case *format == "json":
			b, err := json.Marshal(views)
			fmt.Println(string(b))
			return err
		case *format == "" || *format == "table":
			w := tabwriter.NewWriter(os.Stdout, 12, 1, 3, ' ', 0)
			fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
			for _, v := range views {
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", v.ID, v.PID, v.Status, v.Bundle, v.Created.Format(time.RFC3339Nano), v.Owner)
			}
			return w.Flush()
		}
		return errdefs.Newf(errdefs.Invalid, "", "", "invalid format option %q: want table or json", *format)
	}
}

func pauseFlags(*flag.FlagSet) func(*global, []string) error {
	return func(g *global, args []string) error { return g.freeze(args[0], true) }
}

func resumeFlags(*flag.FlagSet) func(*global, []string) error {
	return func(g *global, args []string) error { return g.freeze(args[0], false) }
}

func (g *global) freeze(id string, stop bool) error {
	c, err := g.load(id)
	if err != nil {
		return err
	}
	st := c.status()
	switch {
	case stop && st != specs.StateRunning && st != specs.StateCreated:
		return errdefs.Newf(errdefs.Conflict, "", "", "container not running or created: %s", st)
	case !stop && st != "paused":
		return errdefs.Newf(errdefs.Conflict, "", "", "container not paused")
	}
	group, err := c.group()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if stop {
		return group.Freeze(ctx)
	}
	return group.Thaw(ctx)
}
