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
		b, err := loadBundle(*o.bundle)
		if err != nil {
			return err
		}
		if err := checkConsole(b.spec.Process, *o.console, *detach); err != nil {
			return err
		}
		var f *foreground
		if !*detach {
			f = listen()
			defer f.close()
		}
		c, proc, err := g.create(args[0], b, o, false)
		if err != nil {
			return err
		}
		if err := g.afterCreate(c, o); err != nil {
			return err
		}
		if f != nil {
			f.attach(proc)
		}
		if err := proc.Release(); err != nil {
			proc.Kill()
			return err
		}
		err = proc.WaitExec()
		if err == nil {
			if err = c.started(); err != nil {
				linux.Reap(int(linux.RawFD(proc.PidFD)), true)
			}
		}
		if err != nil {
			g.destroy(c)
			return err
		}
		if err := g.forwardListener(c, proc); err != nil {
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

// forwarded are the signals that people and supervisors send. Asking for all of
// them would take a millisecond.
var forwarded = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
	syscall.SIGCONT, syscall.SIGWINCH}

// listen keeps signals for the process to come.
func listen() *foreground {
	f := &foreground{signals: make(chan os.Signal, 64), restore: func() {}}
	signal.Notify(f.signals, forwarded...)
	return f
}

// attach hands signals on, and the terminal if there is one.
func (f *foreground) attach(proc *initproc.Process) {
	f.proc = proc
	if m := proc.Console(); m != nil {
		f.terminal(m)
	}
	go func() {
		for s := range f.signals {
			f.forward(s)
		}
	}()
}

func (f *foreground) forward(s os.Signal) {
	if s == syscall.SIGWINCH && f.proc.Console() != nil {
		f.resize()
		return
	}
	if n, ok := s.(syscall.Signal); ok {
		linux.SignalPidFD(int(linux.RawFD(f.proc.PidFD)), int(n))
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

// close gives the terminal back. The signals stay caught: the program ends now, and
// giving them back would take longer than removing the container.
func (f *foreground) close() { f.restore() }
