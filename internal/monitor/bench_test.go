package monitor

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// idleProcess costs nothing to start: it is the test itself.
type idleProcess struct{ pidfd *os.File }

func (p *idleProcess) WaitReady() error     { return nil }
func (p *idleProcess) ids() (int, *os.File) { return os.Getpid(), p.pidfd }
func (p *idleProcess) Console() *os.File    { return nil }
func (p *idleProcess) Release() error       { return nil }
func (p *idleProcess) WaitExec() error      { return nil }
func (p *idleProcess) Kill()                {}

// inProcess gives a server in this process and a client of it.
func inProcess(tb testing.TB, launch launcher) (*server, *Client) {
	tb.Helper()
	root := tb.TempDir()
	dir := records(filepath.Join(root, stateDir))
	if err := os.MkdirAll(string(dir), 0o700); err != nil {
		tb.Fatal(err)
	}
	stages, err := openStages(dir, nil)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := newServer(dir, launch, stages, log.New(io.Discard, "", 0))
	if err != nil {
		tb.Fatal(err)
	}
	s.id = "test"
	if err := s.load(nil); err != nil {
		tb.Fatal(err)
	}
	l, err := linux.ListenPacket(filepath.Join(root, socketName), 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	go s.accept(l)
	c, err := Connect(context.Background(), Options{ExecRoot: root, Binary: "/nonexistent"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close(); l.Close() })
	return s, c
}

func launchIdle(*initproc.Program, []*os.File, initproc.Stdio) (launched, error) {
	fd, err := linux.OpenPidFD(os.Getpid())
	if err != nil {
		return nil, err
	}
	return &idleProcess{os.NewFile(uintptr(fd), "pidfd")}, nil
}

// A start costs this much beside the clone and the set-up.
func BenchmarkStartRoundTrip(b *testing.B) {
	s, c := inProcess(b, launchIdle)
	logDir := b.TempDir()
	code := make([]byte, 20<<10)
	steps := strings.Split(strings.Repeat(`mount "proc" on "/proc" `, 60), "  ")
	ctx := context.Background()
	var spent time.Duration
	n := 0
	for i := 0; b.Loop(); i++ {
		k := Key{Container: fmt.Sprintf("%064d", i)}
		begin := time.Now()
		st, err := c.Start(ctx, StartRequest{
			Key: k, Program: &initproc.Program{Code: code, Steps: steps},
			Log: logs.Spec{Path: filepath.Join(logDir, "log")},
		})
		if err != nil {
			b.Fatal(err)
		}
		spent += time.Since(begin)
		n++
		st.PidFD.Close()
		s.mu.Lock()
		p := s.procs[k]
		s.mu.Unlock()
		p.loop.call(p.teardown)
		s.forget(p)
	}
	b.ReportMetric(float64(spent.Microseconds())/float64(n), "µs/start")
}

// BenchmarkLogThroughput measures lines from a pipe into a log, by one loop.
func BenchmarkLogThroughput(b *testing.B) {
	for _, size := range []int{10, 40, 200} {
		b.Run(fmt.Sprint("line=", size), func(b *testing.B) {
			s, c := inProcess(b, nil)
			var w *os.File
			s.launch = func(p *initproc.Program, f []*os.File, io initproc.Stdio) (launched, error) {
				fd, err := linux.DupFD(int(linux.RawFD(io.Stdout)))
				w = os.NewFile(uintptr(fd), "stdout")
				if err != nil {
					return nil, err
				}
				return launchIdle(p, f, io)
			}
			st, err := c.Start(context.Background(), StartRequest{
				Key: web, Program: &initproc.Program{}, Log: logs.Spec{Path: filepath.Join(b.TempDir(), "log"), MaxFiles: 2},
			})
			if err != nil {
				b.Fatal(err)
			}
			defer st.PidFD.Close()
			line := strings.Repeat("x", size-1) + "\n"
			chunk := []byte(strings.Repeat(line, 32<<10/size))
			per := len(chunk) / size
			b.SetBytes(int64(size))
			b.ResetTimer()
			for i := 0; i < b.N; i += per {
				if _, err := w.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
			p := s.procs[web]
			for {
				left := 0
				p.loop.call(func() { left, _ = linux.Queued(p.fds[keptStdout]) })
				if left == 0 {
					break
				}
				time.Sleep(time.Millisecond)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
			w.Close()
		})
	}
}
