package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

// isTerminal reports whether f is one.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// width of the terminal behind w, or 0.
func width(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil {
			return n
		}
	}
	return 0
}

// rawMode hands every key on to the container; undo with the function.
func (e *env) rawMode() func() {
	fd := int(e.in.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return func() {}
	}
	return func() { term.Restore(fd, old) }
}

// size of our terminal.
func (e *env) size() (w, h uint16) {
	f, ok := e.out.(*os.File)
	if !ok {
		f = e.in
	}
	x, y, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return uint16(x), uint16(y)
}

// onResize calls f whenever the terminal changes its size, until ctx ends.
func onResize(ctx context.Context, f func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	go func() {
		defer signal.Stop(c)
		for {
			select {
			case <-c:
				f()
			case <-ctx.Done():
				return
			}
		}
	}()
}

// forwarded are the signals that a client hands on to the container.
var forwarded = map[os.Signal]string{
	syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGQUIT: "QUIT",
	syscall.SIGUSR1: "USR1", syscall.SIGUSR2: "USR2",
}

// onSignal hands signals on until ctx ends.
func onSignal(ctx context.Context, f func(name string)) {
	c := make(chan os.Signal, 16)
	for s := range forwarded {
		signal.Notify(c, s)
	}
	go func() {
		defer signal.Stop(c)
		for {
			select {
			case s := <-c:
				f(forwarded[s])
			case <-ctx.Done():
				return
			}
		}
	}()
}
