package monitor

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/linux"
)

// counting prints the numbers up to n on both streams, and ends with status 5.
func counting(n int) string {
	return fmt.Sprintf(`i=0; while [ $i -lt %d ]; do i=$((i+1)); echo o$i; echo e$i >&2; done; exit 5`, n)
}

// checkCounted finds each number once and in order.
func (f *fixture) checkCounted(k Key, n int) {
	f.Helper()
	f.checkStream(k, "stdout", "o", n)
	f.checkStream(k, "stderr", "e", n)
}

func (f *fixture) checkStream(k Key, stream, prefix string, n int) {
	f.Helper()
	next := 1
	for line := range strings.Lines(f.logged(k)) {
		if !strings.HasSuffix(line, "\"}\n") {
			f.Fatalf("%v: torn line %q", k, line)
		}
		if !strings.Contains(line, `","stream":"`+stream) {
			continue
		}
		if want := fmt.Sprintf(`{"log":"%s%d\n"`, prefix, next); !strings.HasPrefix(line, want) {
			f.Fatalf("%v: %s: got %q, want %s", k, stream, line, want)
		}
		next++
	}
	if next != n+1 {
		f.Errorf("%v: %s: %d lines of %d", k, stream, next-1, n)
	}
}

// The deaths that leave somebody who knows.
var deaths = []struct {
	name string
	kill func(f *fixture)
}{
	{"worker", func(f *fixture) {
		_, w := f.pids()
		f.kill(w)
	}},
	{"keeper", func(f *fixture) {
		k, _ := f.pids()
		f.kill(k)
	}},
	{"monitor", func(f *fixture) {
		k, w := f.pids()
		f.kill(k) // first, or it starts another worker
		f.kill(w)
	}},
	{"engine", func(f *fixture) {
		f.c.Close()
		f.connect()
	}},
	{"engine and worker", func(f *fixture) {
		_, w := f.pids()
		f.c.Close()
		f.kill(w)
		f.connect()
	}},
	{"upgrade", func(f *fixture) {
		if err := f.c.Upgrade(f.ctx); err != nil {
			f.Error(err)
		}
	}},
}

func TestDeathWhileOutputFlows(t *testing.T) {
	const lines, times = 30000, 12
	for _, d := range deaths {
		t.Run(d.name, func(t *testing.T) {
			f := newFixture(t)
			s := f.start(StartRequest{Key: web, Program: shell(counting(lines))})
			for range times {
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				d.kill(f)
			}
			x := f.exit(web)
			if x.Code != 5 || x.Unknown || x.PID != s.PID {
				t.Errorf("exit %+v", x)
			}
			f.checkCounted(web, lines)
		})
	}
}

// The process exits while nobody looks.
func TestExitDuringDeath(t *testing.T) {
	for _, d := range deaths {
		t.Run(d.name, func(t *testing.T) {
			f := newFixture(t)
			for i := range 10 {
				k := Key{Container: fmt.Sprint("c", i)}
				s := f.start(StartRequest{Key: k, Program: shell("echo on; read x; echo last; exit 9"), OpenStdin: true})
				var killed time.Time
				var wg sync.WaitGroup
				wg.Go(func() {
					time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
					syscall.Kill(s.PID, syscall.SIGTERM)
					killed = time.Now()
				})
				d.kill(f)
				wg.Wait()
				x := f.exit(k)
				if x.Code != 143 || x.Signal != 15 || x.Unknown {
					t.Errorf("exit %+v", x)
				}
				if late := x.At.Sub(killed); late > 2*time.Second || late < -time.Second {
					t.Errorf("the exit is %v off", late)
				}
				f.ack(k)
			}
		})
	}
}

// The keeper sees exits while there is no worker.
func TestExitWithoutWorker(t *testing.T) {
	f := newFixture(t)
	s := f.start(StartRequest{Key: web, Program: shell("read x; exit 9"), OpenStdin: true})
	keeper, worker := f.pids()
	syscall.Kill(keeper, syscall.SIGSTOP)
	f.kill(worker)
	syscall.Kill(s.PID, syscall.SIGTERM)
	if !linux.WaitReadable(int(linux.RawFD(s.PidFD)), 5*time.Second) {
		t.Fatal("the process does not end")
	}
	syscall.Kill(keeper, syscall.SIGCONT)
	if x := f.exit(web); x.Code != 143 || x.Unknown {
		t.Errorf("exit %+v", x)
	}
}

func TestExitsWhileEngineIsAway(t *testing.T) {
	f := newFixture(t)
	f.start(StartRequest{Key: web, Program: shell("sleep 0.05; exit 4")})
	db := Key{Container: "db"}
	s := f.start(StartRequest{Key: db, Program: shell("exec sleep 100")})
	f.c.Close()
	time.Sleep(100 * time.Millisecond)
	f.connect()
	if x := f.exit(web); x.Code != 4 {
		t.Errorf("exit %+v", x)
	}
	all, err := f.c.List(f.ctx)
	if err != nil || len(all) != 2 {
		t.Fatalf("list %+v, %v", all, err)
	}
	for _, r := range all {
		switch {
		case r.Key == db && r.Exit == nil && r.PID == s.PID && r.PidFD != nil && r.StartedAt.Equal(s.StartedAt):
			r.PidFD.Close()
		case r.Key == web && r.Exit != nil && r.Exit.Code == 4:
		default:
			t.Errorf("listed %+v", r)
		}
	}
}

// Not acknowledged exits survive everything.
func TestExitIsToldUntilAcknowledged(t *testing.T) {
	f := newFixture(t)
	f.start(StartRequest{Key: web, Program: shell("exit 4")})
	for _, d := range deaths {
		if x := f.exit(web); x.Code != 4 {
			t.Fatalf("%s: exit %+v", d.name, x)
		}
		f.mu.Lock()
		delete(f.exits, web)
		f.mu.Unlock()
		if d.name == "upgrade" {
			break
		}
		d.kill(f)
	}
	f.ack(web)
}

// All three are killed: the process lives on, and what it prints is found.
func TestEverybodyDies(t *testing.T) {
	f := newFixture(t)
	s := f.start(StartRequest{Key: web, Program: shell(`trap 'echo caught; exit 6' TERM; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); echo o$i; done; while :; do sleep 0.01; done`)})
	k, w := f.pids()
	f.c.Close()
	f.kill(k)
	f.kill(w)
	time.Sleep(30 * time.Millisecond)
	if !alive(s.PID) {
		t.Fatal("the process died with the monitor")
	}
	f.connect()
	f.within(20*time.Second, "the last number", func() bool { return strings.Contains(f.logged(web), `"o50000\n"`) })
	f.checkStream(web, "stdout", "o", 50000)
	if err := f.c.Signal(f.ctx, web, 15); err != nil {
		t.Fatal(err)
	}
	x := f.exit(web)
	if x.PID != s.PID || !x.Unknown && x.Code != 6 {
		t.Errorf("exit %+v", x)
	}
	if !strings.Contains(f.logged(web), "caught") {
		t.Error("the last line is missing")
	}
}

// Nobody was there to see the exit, and that is what we say.
func TestExitNobodySaw(t *testing.T) {
	f := newFixture(t)
	s := f.start(StartRequest{Key: web, Program: shell("exec sleep 100")})
	k, w := f.pids()
	f.c.Close()
	f.kill(k)
	f.kill(w)
	syscall.Kill(s.PID, syscall.SIGKILL)
	linux.WaitReadable(int(linux.RawFD(s.PidFD)), 5*time.Second)
	s.PidFD.Close()
	f.connect()
	// If whoever inherited it has not reaped it yet, its status can still be seen.
	if x := f.exit(web); x.Unknown && x.Code != 255 || !x.Unknown && x.Code != 137 {
		t.Errorf("exit %+v", x)
	}
}

// Starts are under way when the monitor dies: each either runs, and is known, or
// is refused and leaves no process.
func TestDeathInTheMiddleOfStart(t *testing.T) {
	for _, d := range deaths {
		t.Run(d.name, func(t *testing.T) {
			if strings.HasPrefix(d.name, "engine") {
				t.Skip("see TestEngineDiesInTheMiddleOfStart")
			}
			f := newFixture(t)
			const n = 40
			var wg sync.WaitGroup
			started := make([]*Started, n)
			for i := range n {
				wg.Go(func() {
					k := Key{Container: fmt.Sprint("c", i)}
					var err error
					started[i], err = f.c.Start(f.ctx, StartRequest{Key: k, Log: f.spec(k), Program: shell(fmt.Sprintf("exec sleep 1%03d%s", i, ours()))})
					if err != nil {
						t.Error(err)
					}
				})
				if i%10 == 5 {
					d.kill(f)
				}
			}
			wg.Wait()
			all, err := f.c.List(f.ctx)
			if err != nil {
				t.Fatal(err)
			}
			known := map[int]bool{}
			for _, r := range all {
				if r.PidFD != nil {
					r.PidFD.Close()
				}
				if r.Exit == nil {
					known[r.PID] = true
				}
			}
			for i, s := range started {
				if s == nil {
					continue
				}
				if !known[s.PID] {
					t.Errorf("start %d gave process %d, which is not known", i, s.PID)
				}
				if s.PidFD != nil {
					s.PidFD.Close()
				}
			}
			f.within(5*time.Second, "unknown processes to end", func() bool {
				for _, pid := range sleepers() {
					if !known[pid] {
						return false
					}
				}
				return true
			})
		})
	}
}

// ours is a fraction of a second that tells this test's processes from all others.
func ours() string { return fmt.Sprintf(".%07d", os.Getpid()) }

// sleepers are the processes of TestDeathInTheMiddleOfStart, before and after
// they run their program.
func sleepers() (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(b), "sleep") && strings.Contains(string(b), ours()) {
			var pid int
			fmt.Sscanf(file, "/proc/%d/", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// runEngine is an engine that a test can kill. It starts processes until then.
func runEngine(root string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx := context.Background()
	c, err := Connect(ctx, Options{ExecRoot: root, Binary: self})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for i := 0; ; i++ {
		k := Key{Container: fmt.Sprint("c", i)}
		spec := logSpec(root, k)
		if _, err := c.Start(ctx, StartRequest{Key: k, Program: shell("exec sleep 1000"), Log: spec, Hold: i%3 == 0}); err != nil {
			return err
		}
		if i%3 == 0 {
			if err := c.Release(ctx, k); err != nil {
				return err
			}
		}
	}
}

func TestEngineDiesInTheMiddleOfStart(t *testing.T) {
	f := newFixture(t)
	self, _ := os.Executable()
	for range 5 {
		f.c.Close()
		cmd := exec.Command(self, "engine", f.root)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.Read(make([]byte, 6))
		time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		f.connect()
		f.within(5*time.Second, "held processes to be given up", func() bool {
			all, err := f.c.List(f.ctx)
			if err != nil {
				t.Fatal(err)
			}
			heldOne := false
			for _, r := range all {
				heldOne = heldOne || r.Held
				if r.PidFD != nil {
					r.PidFD.Close()
				}
			}
			return !heldOne
		})
		all, err := f.c.List(f.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if r.Exit != nil {
				t.Errorf("exited: %+v", r.Exit)
				continue
			}
			f.c.Signal(f.ctx, r.Key, 9)
			r.PidFD.Close()
			f.exit(r.Key)
			f.ack(r.Key)
		}
	}
}

// A monitor that is told to end as its keeper has died, and before it has noticed,
// leaves nothing either.
func TestShutdownWithoutKeeper(t *testing.T) {
	for i := range 10 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			f := newFixture(t)
			k, w := f.pids()
			syscall.Kill(w, syscall.SIGSTOP)
			f.kill(k)
			done := make(chan error)
			go func() { done <- f.c.Shutdown(f.ctx) }()
			syscall.Kill(w, syscall.SIGCONT)
			if err := <-done; err != nil {
				t.Error(err)
			}
			f.within(5*time.Second, "the monitor's files to go", func() bool {
				left, _ := filepath.Glob(filepath.Join(f.root, "*"))
				return len(left) == 0
			})
			f.c = nil
		})
	}
}
