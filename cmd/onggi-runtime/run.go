package main

import (
	"flag"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

func runFlags(fs *flag.FlagSet) func(*global, []string) error {
	o := creationFlags(fs)
	detach := both(fs.BoolVar, "detach", "d")
	keep := fs.Bool("keep", false, "")
	fs.Bool("no-subreaper", false, "")
	return func(g *global, args []string) error {
		spec, bundle, err := loadBundle(*o.bundle)
		if err != nil {
			return err
		}
		if err := checkConsole(spec.Process, *o.console, *detach); err != nil {
			return err
		}
		c, proc, err := g.create(args[0], bundle, spec, o, *detach)
		if err != nil {
			return err
		}
		proc.Leave()
		if err := g.afterCreate(c, o); err != nil {
			return err
		}
		var f *foreground
		if !*detach {
			f = attach(proc)
			defer f.close()
		}
		if err := g.start(c); err != nil {
			c.wait(proc)
			g.destroy(c)
			return err
		}
		if *detach {
			return nil
		}
		code := f.wait(c.PID)
		if !*keep {
			if err := g.destroy(c); err != nil {
				return err
			}
		}
		return exitStatus(code)
	}
}

// foreground is the caller's terminal and signals, lent to a process.
type foreground struct {
	proc    *initproc.Process
	signals chan os.Signal
	restore func()
	copied  chan struct{} // closed when all output was copied; nil without a terminal
}

// attach hands signals on, and the terminal if there is one.
func attach(proc *initproc.Process) *foreground {
	f := &foreground{proc: proc, signals: make(chan os.Signal, 64), restore: func() {}}
	signal.Notify(f.signals)
	if m := proc.Console(); m != nil {
		f.terminal(m)
	}
	go func() {
		for s := range f.signals {
			f.forward(s)
		}
	}()
	return f
}

func (f *foreground) forward(s os.Signal) {
	switch s {
	case syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE:
	case syscall.SIGWINCH:
		f.resize()
	default:
		if n, ok := s.(syscall.Signal); ok {
			linux.SignalPidFD(int(linux.RawFD(f.proc.PidFD)), int(n))
		}
	}
}

func (f *foreground) resize() {
	m := f.proc.Console()
	if m == nil {
		return
	}
	if w, h, err := linux.Winsize(0); err == nil {
		linux.SetWinsize(int(linux.RawFD(m)), w, h)
	}
}

func (f *foreground) terminal(m *os.File) {
	f.resize()
	if linux.IsTerminal(0) {
		if old, err := term.MakeRaw(0); err == nil {
			f.restore = func() { term.Restore(0, old) }
		}
	}
	f.copied = make(chan struct{})
	go io.Copy(m, os.Stdin)
	go func() {
		io.Copy(os.Stdout, m) // ends with EIO when the last slave is closed
		close(f.copied)
	}()
}

// wait returns the exit status as a shell gives it.
func (f *foreground) wait(pid int) int {
	st, _, err := linux.Reap(int(linux.RawFD(f.proc.PidFD)), true)
	if f.copied != nil {
		<-f.copied
	}
	switch {
	case err != nil:
		return 255
	case st.Signal != 0:
		return 128 + st.Signal
	}
	return st.Code
}

func (f *foreground) close() {
	f.restore()
	signal.Stop(f.signals)
}

// wait reaps the process after a start that did not work.
func (c *container) wait(proc *initproc.Process) {
	linux.Reap(int(linux.RawFD(proc.PidFD)), true)
}
