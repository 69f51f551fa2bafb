package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
	"github.com/onggi/onggi/internal/testenv"
)

// These run the monitor itself, with onggi-init.

// realProgram makes a program that does nothing but exec argv.
func realProgram(t testing.TB, argv ...string) *initproc.Program {
	t.Helper()
	b := initproc.NewBuilder()
	b.Step("make a session")
	b.Call("setsid", syscall.SYS_SETSID)
	b.Ready()
	b.Step("exec %q", argv[0])
	b.Call("close_range", 436, 3, 0xffffffff, 4) // CLOSE_RANGE_CLOEXEC
	b.Call("execve", syscall.SYS_EXECVE, b.Str(argv[0]), b.Strs(argv), b.Strs(nil))
	p, err := b.Program()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func realFixture(t *testing.T) *fixture {
	t.Helper()
	return newFixtureOf(t, testenv.Binary(t, "onggi-monitor"))
}

func TestRealStart(t *testing.T) {
	f := realFixture(t)
	bb := testenv.Busybox(t)
	s := f.start(StartRequest{Key: web, Program: realProgram(t, bb, "sh", "-c", "echo hello; exit 7")})
	if x := f.exit(web); x.Code != 7 || x.PID != s.PID {
		t.Errorf("exit %+v", x)
	}
	if got := text(f.logged(web)); got != "hello\n" {
		t.Errorf("log %q", got)
	}
	f.ack(web)
	_, err := f.c.Start(f.ctx, StartRequest{Key: web, Program: realProgram(t, "/no/such/program"), Log: f.spec(web)})
	step, ok := errors.AsType[*initproc.StepError](err)
	if !ok || !step.IsExec() || step.ExitCode() != 127 {
		t.Errorf("missing program: %v", err)
	}
}

// A worker that dies between clone and release takes the set-up with it.
func TestRealDeathWhileHeld(t *testing.T) {
	f := realFixture(t)
	bb := testenv.Busybox(t)
	s := f.start(StartRequest{Key: web, Program: realProgram(t, bb, "sleep", "1000"), Hold: true})
	_, worker := f.pids()
	f.kill(worker)
	f.within(5*time.Second, "the set-up to end", func() bool { return !alive(s.PID) })
	if err := f.c.Release(f.ctx, web); err == nil {
		t.Error("released what is gone")
	}
}

// rss is what a process has in memory, in KiB.
func rss(t testing.TB, pid int, field string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), field+":")
	kb, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.Atoi(kb)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMemoryWithManyProcesses(t *testing.T) {
	const n, limit = 200, 15 << 10
	f := realFixture(t)
	bb := testenv.Busybox(t)
	for i := range n {
		k := Key{Container: fmt.Sprintf("%064d", i)}
		f.start(StartRequest{Key: k, Program: realProgram(t, bb, "sh", "-c", "echo up; echo err >&2; exec sleep 1000"), OpenStdin: true})
	}
	for i := range n {
		k := Key{Container: fmt.Sprintf("%064d", i)}
		f.within(10*time.Second, "output", func() bool {
			b, _ := os.ReadFile(f.spec(k).Path)
			return strings.Count(string(b), "\n") == 2
		})
	}
	keeper, worker := f.pids()
	kr, wr := rss(t, keeper, "VmRSS"), rss(t, worker, "VmRSS")
	t.Logf("RSS: worker %d KiB (anonymous %d), keeper %d KiB (anonymous %d)", wr, rss(t, worker, "RssAnon"), kr, rss(t, keeper, "RssAnon"))
	if wr > limit || kr > limit {
		t.Errorf("worker %d KiB, keeper %d KiB, of at most %d", wr, kr, limit)
	}
}

// BenchmarkRealStart is a start of a program that ends at once, to its exit.
func BenchmarkRealStart(b *testing.B) {
	root := b.TempDir()
	ctx := context.Background()
	c, err := Connect(ctx, Options{ExecRoot: root, Binary: testenv.Binary(b, "onggi-monitor")})
	if err != nil {
		b.Fatal(err)
	}
	bb := testenv.Busybox(b)
	p := realProgram(b, bb, "true")
	var spent time.Duration
	n := 0
	for i := 0; b.Loop(); i++ {
		k := Key{Container: fmt.Sprint("c", i)}
		begin := time.Now()
		s, err := c.Start(ctx, StartRequest{Key: k, Program: p, Log: logs.Spec{Path: filepath.Join(root, "log")}})
		if err != nil {
			b.Fatal(err)
		}
		spent += time.Since(begin)
		n++
		s.PidFD.Close()
		<-c.Events()
		if err := c.Ack(ctx, k); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(spent.Microseconds())/float64(n), "µs/start")
	if err := c.Shutdown(ctx); err != nil {
		b.Error(err)
	}
}
