package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/testenv"
)

// The tests of this file run against the kernel's control groups in whichever
// mode the machine is. They make groups below one name of their own.

func ptr[T any](v T) *T { return &v }

var parent = fmt.Sprintf("/onggi-test-%d", os.Getpid())

// name returns a path for a group that is gone after the test.
func name(t *testing.T) string {
	t.Helper()
	testenv.NeedRoot(t)
	l, err := current()
	if err != nil {
		t.Skipf("no control groups here: %v", err)
	}
	t.Cleanup(func() {
		for _, h := range l.hiers {
			if err := removeTree(h.dir+parent, time.Now().Add(removeWait)); err != nil {
				t.Errorf("left behind in %s: %v", h.dir, err)
			}
		}
	})
	return parent + "/" + strings.ReplaceAll(t.Name(), "/", "_")
}

func create(t *testing.T, r *specs.LinuxResources) *Group {
	t.Helper()
	g, err := Create(name(t), r, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// need skips where the machine cannot limit something.
func need(t *testing.T, controller string) {
	t.Helper()
	l, err := current()
	if err != nil {
		t.Skip(err)
	}
	if l.find(controller) == nil && l.find(v1Name(controller)) == nil {
		t.Skipf("no %s controller here", controller)
	}
}

// asleep starts a process in the group; it is dead after the test.
func asleep(t *testing.T, g *Group, script string) *exec.Cmd {
	t.Helper()
	// The shell reads a line before it goes on, so that it is in the group by then.
	cmd := exec.Command(testenv.Busybox(t), "sh", "-c", "read x; "+script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "go")
	return cmd
}

func value(t *testing.T, g *Group, controller, file string) string {
	t.Helper()
	s, err := readWord(g.Dir(controller) + "/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (g *Group) isV2(controller string) bool { d := g.find(controller); return d != nil && d.v2 }

func TestCreateLimitsAndDelete(t *testing.T) {
	need(t, "memory")
	need(t, "pids")
	need(t, "cpu")
	g := create(t, &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(20000)), Period: ptr(uint64(50000))},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20)), Reservation: ptr(int64(32 << 20))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(100))},
	})
	want := map[string]string{"pids pids.max": "100"}
	if g.isV2("cpu") {
		want["cpu cpu.weight"] = "59"
		want["cpu cpu.max"] = "20000 50000"
		want["memory memory.max"] = "67108864"
		want["memory memory.low"] = "33554432"
	} else {
		want["cpu cpu.shares"] = "512"
		want["cpu cpu.cfs_quota_us"] = "20000"
		want["cpu cpu.cfs_period_us"] = "50000"
		want["memory memory.limit_in_bytes"] = "67108864"
		want["memory memory.memsw.limit_in_bytes"] = "67108864"
		want["memory memory.soft_limit_in_bytes"] = "33554432"
	}
	for k, v := range want {
		c, f, _ := strings.Cut(k, " ")
		if f == "memory.memsw.limit_in_bytes" && !exists(g.Dir(c)+"/"+f) {
			continue
		}
		if got := value(t, g, c, f); got != v {
			t.Errorf("%s is %q, want %q", f, got, v)
		}
	}
	if err := g.Delete(); err != nil {
		t.Fatal(err)
	}
	for c, d := range g.Paths() {
		if exists(d) {
			t.Errorf("%q: %s is still there", c, d)
		}
	}
	if err := g.Delete(); err != nil {
		t.Errorf("the second removal: %v", err)
	}
	if _, err := Open(g.Path(), Options{}); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("opening a removed group: %v", err)
	}
}

func TestUpdateInEitherDirection(t *testing.T) {
	need(t, "memory")
	g := create(t, nil)
	for _, mb := range []int64{64, 256, 32, 128} {
		r := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(mb << 20), Swap: ptr(mb << 21)},
			CPU: &specs.LinuxCPU{Quota: ptr(mb * 100), Period: ptr(uint64(mb * 200))}}
		if err := g.Update(r); err != nil {
			t.Fatalf("to %d MiB: %v", mb, err)
		}
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if s.Memory.Limit != uint64(mb<<20) {
			t.Errorf("limit is %d, want %d MiB", s.Memory.Limit, mb)
		}
	}
	// Back to none.
	if err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}); err != nil {
		t.Fatal(err)
	}
	if s, _ := g.Stats(); s.Memory.Limit < 1<<60 {
		t.Errorf("limit is %d after its removal", s.Memory.Limit)
	}
}

func TestProcessesAreFoundFrozenAndKilled(t *testing.T) {
	g := create(t, nil)
	cmd := asleep(t, g, "sleep 60 & sleep 60 & wait")
	ctx := context.Background()
	waitFor(t, "three processes", func() bool {
		p, err := g.Procs()
		return err == nil && len(p) == 3 && slices.Contains(p, cmd.Process.Pid)
	})
	if err := g.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if is, err := g.Frozen(); err != nil || !is {
		t.Fatalf("frozen: %v %v", is, err)
	}
	if err := g.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Delete(); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("removal with processes in it: %v", err)
	}
	// A frozen group can be killed.
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	waitFor(t, "no process", func() bool { p, err := g.Procs(); return err == nil && len(p) == 0 })
	if err := g.Delete(); err != nil {
		t.Fatal(err)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting for %s", what)
		}
	}
}

// The way for kernels without cgroup.kill.
func TestKillEach(t *testing.T) {
	// A bound, should the test be killed before it kills.
	need(t, "pids")
	g := create(t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(200))}})
	cmd := asleep(t, g, "i=0; while [ $i -lt 300 ]; do i=$((i+1)); sleep 60 & sleep 0.001; done; sleep 60")
	waitFor(t, "some processes", func() bool { p, _ := g.Procs(); return len(p) > 5 })
	if err := g.killEach(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	waitFor(t, "no process", func() bool { p, err := g.Procs(); return err == nil && len(p) == 0 })
}

func TestSubgroupIsKilledAlone(t *testing.T) {
	g := create(t, nil)
	main := asleep(t, g, "sleep 60")
	sub, err := g.Subgroup("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	other := asleep(t, sub, "sleep 60 & wait")
	waitFor(t, "two in the subgroup", func() bool { p, _ := sub.Procs(); return len(p) == 2 })
	if p, _ := g.Procs(); !slices.Contains(p, main.Process.Pid) || !slices.Contains(p, other.Process.Pid) {
		t.Errorf("processes of the group are %v", p)
	}
	if err := sub.Kill(); err != nil {
		t.Fatal(err)
	}
	other.Wait()
	waitFor(t, "none in the subgroup", func() bool { p, _ := sub.Procs(); return len(p) == 0 })
	if err := sub.Delete(); err != nil {
		t.Fatal(err)
	}
	if p, err := g.Procs(); err != nil || !slices.Equal(p, []int{main.Process.Pid}) {
		t.Errorf("the group has %v %v, want %d", p, err, main.Process.Pid)
	}
}

func TestProcsFilesJoin(t *testing.T) {
	g := create(t, nil)
	files, err := g.ProcsFiles()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	cmd := exec.Command(testenv.Busybox(t), "sh", "-c",
		`for fd in `+fds(len(files))+`; do echo 0 >&$fd || exit 3; done; cat /proc/self/cgroup`)
	cmd.ExtraFiles = files
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, d := range g.dirs {
		p, ok := parseProcCgroup(string(out), d.hierarchy)
		if !ok || path.Base(p) != path.Base(g.Path()) {
			t.Errorf("in %s the process is in %q", d.dir, p)
		}
	}
}

func fds(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strconv.Itoa(3+i) + " ")
	}
	return b.String()
}

func TestOccupiedGroupIsRefused(t *testing.T) {
	g := create(t, nil)
	asleep(t, g, "sleep 60")
	if _, err := Create(g.Path(), nil, Options{}); !errdefs.Is(err, errdefs.Conflict) || errdefs.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
	if p, _ := g.Procs(); len(p) == 0 {
		t.Error("the refused group lost its process")
	}
}

func TestCreateLeavesNothingBehind(t *testing.T) {
	p := name(t)
	_, err := Create(p, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 30)), Swap: ptr(int64(1 << 20))}}, Options{})
	if !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("got %v", err)
	}
	l, _ := current()
	for _, h := range l.hiers {
		if exists(h.dir + parent) {
			t.Errorf("%s%s was left", h.dir, parent)
		}
	}
}

func TestMissingControllerIsNamed(t *testing.T) {
	l, err := current()
	if err != nil {
		t.Skip(err)
	}
	if l.find("net_cls") != nil {
		t.Skip("net_cls is here")
	}
	_, err = Create(name(t), &specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: ptr(uint32(1))}}, Options{})
	if !errdefs.Is(err, errdefs.Unsupported) || !strings.Contains(err.Error(), "net_cls") {
		t.Errorf("got %v", err)
	}
}

func TestNestedGroupsAreRemoved(t *testing.T) {
	g := create(t, nil)
	for _, d := range g.dirs {
		if err := os.MkdirAll(d.path+"/a/b/c", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Delete(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenPaths(t *testing.T) {
	g := create(t, nil)
	h, err := OpenPaths(g.Paths(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(h.dirs) != len(g.dirs) || h.Path() != g.Path() {
		t.Errorf("got %+v, want %+v", h.Paths(), g.Paths())
	}
	for _, bad := range []string{"/etc", g.dirs[0].dir, g.dirs[0].path + "/../.."} {
		if _, err := OpenPaths(map[string]string{g.dirs[0].key(): bad}, Options{}); err == nil {
			t.Errorf("%s was taken for a group", bad)
		}
	}
}

func TestOfProcess(t *testing.T) {
	g := create(t, nil)
	cmd := asleep(t, g, "sleep 60")
	h, err := OfProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range g.Paths() {
		if h.Paths()[k] != v {
			t.Errorf("%q: %s, want %s", k, h.Paths()[k], v)
		}
	}
}

func TestOOMIsCounted(t *testing.T) {
	need(t, "memory")
	g := create(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20)), Swap: ptr(int64(8 << 20))}})
	if n, err := g.OOMEvents(); err != nil || n != 0 {
		t.Fatalf("before: %d %v", n, err)
	}
	w, err := g.WatchOOM()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	told := make(chan uint64)
	go func() {
		var sum uint64
		for {
			n, err := w.Wait()
			if err != nil {
				told <- sum
				return
			}
			sum += n
		}
	}()
	const times = 4
	for range times {
		// tail keeps the last line whole, and this line does not end.
		asleep(t, g, "tail -n 1 /dev/zero").Wait()
	}
	n, err := g.OOMEvents()
	if err != nil || n < times {
		t.Errorf("after: %d %v", n, err)
	}
	// It may be closed before it tells of the last ones, but tells of none twice.
	w.Close()
	if sum := <-told; sum == 0 || sum > n {
		t.Errorf("told of %d kills, where there were %d", sum, n)
	}
}

func TestStats(t *testing.T) {
	g := create(t, nil)
	cmd := asleep(t, g, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 60")
	waitFor(t, "some processor time", func() bool { s, err := g.Stats(); return err == nil && s.CPU.Usage > 1e6 })
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if g.find("memory") != nil && (s.Memory.Limit == 0 || len(s.Memory.Stat) == 0) {
		t.Errorf("memory: %+v", s.Memory)
	}
	if g.find("pids") != nil && s.Pids.Current == 0 {
		t.Errorf("pids: %+v", s.Pids)
	}
	cmd.Process.Kill()
	cmd.Wait()
	g.Delete()
	if _, err := g.Stats(); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("counters of a removed group: %v", err)
	}
}

func TestDevices(t *testing.T) {
	l, err := current()
	if err != nil || l.find("devices") == nil && l.mode != V2 {
		t.Skip("no device control here")
	}
	allow := func(minor int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(minor), Access: access}
	}
	g := create(t, &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, allow(3, "rwm"), allow(5, "r")}})
	try := func(script string) string {
		cmd := exec.Command(testenv.Busybox(t), "sh", "-c", "read x; "+script+" && echo yes || echo no")
		in, _ := cmd.StdinPipe()
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if err := g.Add(cmd.Process.Pid); err != nil {
			t.Error(err)
		}
		fmt.Fprintln(in, "go")
		cmd.Wait()
		return strings.TrimSpace(out.String())
	}
	for script, want := range map[string]string{
		"echo x >/dev/null": "yes", "read x </dev/null || true": "yes",
		"head -c 1 /dev/zero": "yes", "true 2>/dev/null >/dev/zero": "no",
		"true </dev/urandom": "no",
	} {
		got := try("(" + script + ")")
		if !strings.HasSuffix(got, want) {
			t.Errorf("%s: %q, want %s", script, got, want)
		}
	}
	// The list of an update is the whole list.
	if err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, allow(9, "r"), allow(3, "rwm")}}); err != nil {
		t.Fatal(err)
	}
	if got := try("(true </dev/urandom)"); got != "yes" {
		t.Errorf("after the update: %q", got)
	}
	if got := try("(true </dev/zero)"); got != "no" {
		t.Errorf("after the update /dev/zero: %q", got)
	}
}

func TestMemoryCheckBeforeUpdate(t *testing.T) {
	need(t, "memory")
	g := create(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}})
	cmd := asleep(t, g, "x=$(head -c 4000000 /dev/zero | tr '\\0' x); sleep 60; true") // not exec: the shell has to stay
	waitFor(t, "some memory in use", func() bool { s, err := g.Stats(); return err == nil && s.Memory.Usage > 2<<20 })
	err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20)), CheckBeforeUpdate: ptr(true)}})
	if !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("got %v", err)
	}
	cmd.Process.Kill()
}

func TestFreezeGivesUp(t *testing.T) {
	g := create(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.Freeze(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := g.Thaw(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkCreateDelete(b *testing.B) {
	testenv.NeedRoot(b)
	r := &specs.LinuxResources{
		Devices: RuntimeDevices(nil),
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(512 << 20))}, Pids: &specs.LinuxPids{Limit: ptr(int64(1000))},
		CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024))},
	}
	l, err := current()
	if err != nil {
		b.Skip(err)
	}
	defer func() {
		for _, h := range l.hiers {
			removeTree(h.dir+parent, time.Now().Add(removeWait))
		}
	}()
	var removing time.Duration
	for b.Loop() {
		g, err := Create(parent+"/bench", r, Options{})
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := g.Delete(); err != nil {
			b.Fatal(err)
		}
		removing += time.Since(start)
	}
	b.ReportMetric(float64(removing.Nanoseconds())/float64(b.N), "ns-delete/op")
}
