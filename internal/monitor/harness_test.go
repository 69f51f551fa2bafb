package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// The test program is the monitor too, with programs that are plain commands in
// place of onggi-init's.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		var err error
		switch os.Args[1] {
		case "keeper":
			err = RunKeeper(os.Args[2], func() { os.NewFile(3, "ready").Close() })
		case "worker":
			err = runWorker(os.Args[2], startFake)
		case "resume":
			n, _ := strconv.Atoi(os.Args[3])
			err = ResumeKeeper(n)
		case "engine":
			err = runEngine(os.Args[2])
		default:
			os.Exit(m.Run())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, os.Args[1], err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// program makes one of a command.
func program(argv ...string) *initproc.Program {
	return &initproc.Program{Code: []byte(strings.Join(argv, "\x00")), Steps: []string{"exec"}}
}

func shell(script string) *initproc.Program { return program("/bin/sh", "-c", script) }

// fakeProcess stands for initproc.Process: a shell that waits for a byte before
// it becomes the command, and ends if that never comes.
type fakeProcess struct {
	pid     int
	pidfd   *os.File
	release *os.File
	master  *os.File
	missing bool
}

func startFake(p *initproc.Program, files []*os.File, s initproc.Stdio) (launched, error) {
	argv := strings.Split(string(p.Code), "\x00")
	if argv[0] == "broken" {
		return nil, &initproc.StepError{Step: 0, Name: "clone", Errno: syscall.EPERM}
	}
	f := &fakeProcess{}
	_, err := exec.LookPath(argv[0])
	f.missing = err != nil
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f.release = w
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attr := &syscall.SysProcAttr{Setsid: true}
	std := [3]*os.File{s.Stdin, s.Stdout, s.Stderr}
	if p.Terminal {
		master, slave, err := linux.OpenPTY()
		if err != nil {
			return nil, err
		}
		defer slave.Close()
		std = [3]*os.File{slave, slave, slave}
		f.master, attr.Setctty = master, true
	}
	fds := make([]uintptr, 4)
	for i, x := range std {
		if x == nil {
			x = null
		}
		fds[i] = linux.RawFD(x)
	}
	fds[3] = r.Fd() // which makes it blocking, as a shell wants it
	pidfd := -1
	attr.PidFD = &pidfd
	args := append([]string{"sh", "-c", `read x <&3 || exit 125; exec 3<&-; exec "$@"`, "sh"}, argv...)
	f.pid, err = syscall.ForkExec("/bin/sh", args, &syscall.ProcAttr{Files: fds, Env: os.Environ(), Sys: attr})
	if err != nil {
		return nil, err
	}
	f.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	return f, nil
}

func (f *fakeProcess) ids() (int, *os.File) { return f.pid, f.pidfd }
func (f *fakeProcess) WaitReady() error     { return nil }
func (f *fakeProcess) Console() *os.File    { return f.master }
func (f *fakeProcess) Release() error {
	if f.missing {
		return nil
	}
	defer f.release.Close()
	_, err := f.release.Write([]byte("\n"))
	return err
}
func (f *fakeProcess) Kill() {
	f.release.Close()
	linux.SignalPidFD(int(linux.RawFD(f.pidfd)), 9)
	linux.Reap(int(linux.RawFD(f.pidfd)), true)
	f.pidfd.Close()
}
func (f *fakeProcess) WaitExec() error {
	if f.missing {
		f.Kill()
		return &initproc.StepError{Step: 0, Name: "exec", Errno: syscall.ENOENT}
	}
	return nil
}

// A fixture is a monitor of its own, and an engine's client of it.
type fixture struct {
	*testing.T
	binary string
	root   string
	c      *Client
	ctx    context.Context

	mu    sync.Mutex
	exits map[Key]Exited
	seen  chan struct{}
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return newFixtureOf(t, self)
}

func newFixtureOf(t *testing.T, binary string) *fixture {
	t.Helper()
	f := &fixture{T: t, binary: binary, root: t.TempDir(), exits: map[Key]Exited{}, seen: make(chan struct{}, 1)}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	f.ctx = ctx
	f.connect()
	t.Cleanup(f.cleanUp)
	return f
}

// cleanUp ends everything the test left, and checks that nothing stays behind.
func (f *fixture) cleanUp() {
	if f.Failed() {
		b, _ := os.ReadFile(filepath.Join(f.root, stateDir, logName))
		f.Logf("the monitor says:\n%s", b)
	}
	if f.c == nil {
		f.connect()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		all, err := f.c.List(ctx)
		if err != nil {
			f.Error(err)
			return
		}
		if len(all) == 0 {
			break
		}
		for _, p := range all {
			if p.Exit != nil {
				f.c.Ack(ctx, p.Key)
			} else {
				f.c.Signal(ctx, p.Key, 9)
			}
			if p.PidFD != nil {
				p.PidFD.Close()
			}
		}
		time.Sleep(time.Millisecond)
	}
	if err := f.c.Shutdown(ctx); err != nil {
		f.Error(err)
	}
	var left []string
	defer func() {
		if len(left) > 0 {
			f.Logf("left: %v", left)
		}
	}()
	f.within(5*time.Second, "the monitor's files to go", func() bool {
		left, _ = filepath.Glob(filepath.Join(f.root, "*"))
		more, _ := filepath.Glob(filepath.Join(f.root, "*/*"))
		left = append(left, more...)
		return len(left) == 0
	})
}

func (f *fixture) connect() {
	f.Helper()
	c, err := Connect(f.ctx, Options{ExecRoot: f.root, Binary: f.binary, Logger: slog.New(slog.NewTextHandler(testWriter{f.T}, nil))})
	if err != nil {
		f.Fatal(err)
	}
	f.c = c
	go func() {
		for x := range c.Events() {
			f.mu.Lock()
			f.exits[x.Key] = x
			f.mu.Unlock()
			select {
			case f.seen <- struct{}{}:
			default:
			}
		}
	}()
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) { return len(p), nil }

// within waits for a condition that will come true without our doing.
func (f *fixture) within(d time.Duration, what string, ok func() bool) {
	f.Helper()
	for deadline := time.Now().Add(d); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			f.Fatalf("waited %v for %s", d, what)
		}
	}
}

func (f *fixture) start(r StartRequest) *Started {
	f.Helper()
	if r.Log.Driver == "" && r.Log.Path == "" {
		r.Log = f.spec(r.Key)
	}
	s, err := f.c.Start(f.ctx, r)
	if err != nil {
		f.Fatal(err)
	}
	if s.PidFD == nil {
		s.PidFD, _ = os.Open(os.DevNull) // it has exited during a death
	}
	f.Cleanup(func() { s.PidFD.Close() })
	return s
}

func (f *fixture) spec(k Key) logs.Spec {
	return logSpec(f.root, k)
}

func logSpec(root string, k Key) logs.Spec {
	os.MkdirAll(root+".logs", 0o700)
	return logs.Spec{Path: filepath.Join(root+".logs", k.file()+".log"), MaxSize: -1}
}

func (f *fixture) logDir() string {
	d := f.root + ".logs"
	os.MkdirAll(d, 0o700)
	return d
}

// exit waits for a process's exit.
func (f *fixture) exit(k Key) Exited {
	f.Helper()
	for {
		f.mu.Lock()
		x, ok := f.exits[k]
		f.mu.Unlock()
		if ok {
			return x
		}
		select {
		case <-f.seen:
		case <-time.After(5 * time.Millisecond):
		case <-f.ctx.Done():
			f.Fatalf("no exit of %v came", k)
		}
	}
}

func (f *fixture) ack(k Key) {
	f.Helper()
	if err := f.c.Ack(f.ctx, k); err != nil {
		f.Fatal(err)
	}
	f.mu.Lock()
	delete(f.exits, k)
	f.mu.Unlock()
}

// logged is what a process's log holds, all of a stream together.
func (f *fixture) logged(k Key) string {
	f.Helper()
	b, err := os.ReadFile(f.spec(k).Path)
	if err != nil {
		f.Fatal(err)
	}
	return string(b)
}

// text undoes the json-file format, for text without escapes but newlines.
func text(log string) string {
	var out strings.Builder
	for line := range strings.Lines(log) {
		_, rest, _ := strings.Cut(line, `{"log":"`)
		t, _, _ := strings.Cut(rest, `","stream"`)
		out.WriteString(strings.ReplaceAll(t, `\n`, "\n"))
	}
	return out.String()
}

// pids are the keeper and the worker, once both are what they shall be.
func (f *fixture) pids() (keeper, worker int) {
	f.Helper()
	f.within(10*time.Second, "a keeper with a worker", func() bool {
		l, err := f.c.current(f.ctx)
		if err != nil {
			f.Fatal(err)
		}
		worker = l.pid
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", worker))
		if err != nil {
			return false
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		keeper, _ = strconv.Atoi(fields[1])
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", keeper))
		return err == nil && string(comm) == "onggi-keeper\n"
	})
	return keeper, worker
}

// kill kills with no chance to clean up, and waits until it is done.
func (f *fixture) kill(pid int) {
	f.Helper()
	if pid <= 1 {
		f.Fatalf("process %d is not ours", pid)
	}
	fd, err := linux.OpenPidFD(pid)
	if err != nil {
		return // it has ended by itself
	}
	defer linux.CloseFD(fd)
	if err := linux.SignalPidFD(fd, 9); err != nil && !errors.Is(err, os.ErrProcessDone) {
		f.Fatal(err)
	}
	if !linux.WaitReadable(fd, 5*time.Second) {
		f.Fatalf("process %d survives", pid)
	}
}

func alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }
