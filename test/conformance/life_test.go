package conformance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLife(t *testing.T) {
	b := open(t, "touch /data/started; sleep 100")
	b.spec.Annotations = map[string]string{"org.example.key": "value"}
	b.bad("create")
	b.bad("state")
	b.bad("state", b.id)
	b.bad("start", b.id)
	b.bad("kill", b.id, "KILL")
	b.bad("delete", b.id)

	b.create()
	s := b.state()
	if s.ID != b.id || s.Status != specs.StateCreated || s.Pid <= 0 || s.Bundle != b.bundle || s.Annotations["org.example.key"] != "value" {
		t.Errorf("after create: %+v", s)
	}
	if _, err := os.Stat(filepath.Join(b.rootfs, "data/started")); err == nil {
		t.Error("the process ran before start")
	}
	b.bad("create", "--bundle", b.bundle, b.id)

	// What the bundle says now is too late.
	b.spec.Process.Args = []string{"false"}
	b.save()
	b.good("start", b.id)
	b.exists("data/started")
	if s := b.state(); s.Status != specs.StateRunning || s.Pid <= 0 {
		t.Errorf("after start: %+v", s)
	}
	b.bad("start", b.id)
	b.bad("delete", b.id)
	if s := b.state(); s.Status != specs.StateRunning {
		t.Errorf("after a refused delete: %+v", s)
	}
	b.good("kill", b.id, "KILL")
	b.becomes(specs.StateStopped)
	b.bad("start", b.id)
	b.bad("kill", b.id, "TERM")
	b.good("delete", b.id)
	b.bad("state", b.id)
	b.bad("delete", b.id)
}

func TestSignals(t *testing.T) {
	for _, sig := range []string{"TERM", "SIGTERM", "15", "USR1"} {
		b := open(t, "trap 'echo got TERM >/data/got; exit 0' TERM; trap 'echo got USR1 >/data/got; exit 0' USR1; touch /data/ready; while :; do sleep 0.02; done")
		b.up()
		b.exists("data/ready")
		b.bad("kill", b.id, "NOSUCH")
		b.good("kill", b.id, sig)
		b.becomes(specs.StateStopped)
		got, _ := os.ReadFile(filepath.Join(b.rootfs, "data/got"))
		if want := "got TERM"; sig != "USR1" && strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: the process says %q", sig, got)
		}
	}
}

func TestForcedDelete(t *testing.T) {
	b := open(t, "sleep 100")
	b.up()
	pid := b.state().Pid
	b.good("delete", "--force", b.id)
	// Who reaps it is another question.
	if text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil && !strings.Contains(string(text), ") Z ") && !strings.Contains(string(text), ") X ") {
		t.Errorf("the process is alive: %s", text)
	}
	b.good("delete", "--force", b.id) // what is gone is gone
}

func TestExitStatus(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -9 $$": 137, "exec nosuchprogram": 127} {
		b := open(t, script)
		if script == "kill -9 $$" {
			b.spec.Process.Args = []string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}
		}
		b.save()
		if r := b.call("run", b.id); r.code != want {
			t.Errorf("%s: %v, want %d", script, r, want)
		}
		b.bad("state", b.id)
	}
	b := open(t, "")
	b.spec.Process.Args = []string{"/nosuch"}
	b.save()
	if r := b.call("run", b.id); r.code == 0 || !strings.Contains(r.err, "/nosuch") {
		t.Errorf("a missing program: %v", r)
	}
}

func TestPidFile(t *testing.T) {
	b := open(t, "sleep 100")
	b.save()
	p := filepath.Join(t.TempDir(), "pid")
	b.good("create", "--bundle", b.bundle, "--pid-file", p, b.id)
	text, err := os.ReadFile(p)
	b.check(err)
	if got := strings.TrimSpace(string(text)); got != strconv.Itoa(b.state().Pid) {
		t.Errorf("the file says %q, the state %d", got, b.state().Pid)
	}
}

func TestBadConfigurations(t *testing.T) {
	for name, change := range map[string]func(*specs.Spec){
		"version":            func(s *specs.Spec) { s.Version = "invalid" },
		"no process":         func(s *specs.Spec) { s.Process = nil },
		"no arguments":       func(s *specs.Spec) { s.Process.Args = nil },
		"relative directory": func(s *specs.Spec) { s.Process.Cwd = "tmp" },
		"unknown namespace":  func(s *specs.Spec) { s.Linux.Namespaces[0].Type = "nosuch" },
		"namespace twice": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "pid"})
		},
		"no root":              func(s *specs.Spec) { s.Root.Path = "nosuch" },
		"unknown rlimit":       func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOSUCH"}} },
		"host's sysctl":        func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "x"} },
		"unknown propagation":  func(s *specs.Spec) { s.Linux.RootfsPropagation = "nosuch" },
		"unknown seccomp":      func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "nosuch"} },
		"hostname without uts": func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces[:3], s.Linux.Namespaces[4]) },
		"unknown filesystem": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "nosuch", Source: "x"})
		},
		"unknown intel": func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(5000) },
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, "true")
			change(b.spec)
			if name == "version" {
				better(t, "runc does not look at it")
			}
			t.Log(b.refused())
		})
	}
	b := open(t, "true")
	b.check(os.WriteFile(filepath.Join(b.bundle, "config.json"), []byte(`{"ociVersion":`), 0o644))
	b.bad("run", b.id)
}

func TestUnknownPropertiesAreIgnored(t *testing.T) {
	b := open(t, "echo fine")
	b.save()
	p := filepath.Join(b.bundle, "config.json")
	text, _ := os.ReadFile(p)
	var m map[string]any
	b.check(json.Unmarshal(text, &m))
	m["unknown"] = "value"
	m["annotations"] = map[string]string{"com.example.unknown": "x"}
	text, _ = json.Marshal(m)
	b.check(os.WriteFile(p, text, 0o644))
	if got := b.good("run", b.id); got != "fine\n" {
		t.Errorf("got %q", got)
	}
}

func TestListAndPs(t *testing.T) {
	b := open(t, "touch /data/ready; sleep 100; true")
	b.up()
	b.exists("data/ready")
	if got := b.good("list", "-q"); got != b.id+"\n" {
		t.Errorf("list -q: %q", got)
	}
	var list []struct {
		ID     string `json:"id"`
		Pid    int    `json:"pid"`
		Status string `json:"status"`
		Bundle string `json:"bundle"`
	}
	b.check(json.Unmarshal([]byte(b.good("list", "--format", "json")), &list))
	if len(list) != 1 || list[0].ID != b.id || list[0].Pid != b.state().Pid || list[0].Status != "running" || list[0].Bundle != b.bundle {
		t.Errorf("list: %+v", list)
	}
	if got := b.good("list"); !strings.HasPrefix(got, "ID ") || !strings.Contains(got, b.id) {
		t.Errorf("list: %q", got)
	}
	var pids []int
	b.check(json.Unmarshal([]byte(b.good("ps", "--format", "json", b.id)), &pids))
	if len(pids) != 2 {
		t.Errorf("ps: %v", pids)
	}
	if b.call("ps", b.id).code != 0 {
		t.Skip("no ps on this machine")
	}
}

func TestPauseAndResume(t *testing.T) {
	b := open(t, "while :; do echo x >>/data/ticks; sleep 0.01; done")
	b.up()
	b.exists("data/ticks")
	b.bad("resume", b.id)
	b.good("pause", b.id)
	if s := b.state(); s.Status != "paused" {
		t.Errorf("status is %s", s.Status)
	}
	b.bad("pause", b.id)
	size := func() int64 {
		fi, err := os.Stat(filepath.Join(b.rootfs, "data/ticks"))
		b.check(err)
		return fi.Size()
	}
	before := size()
	b.good("resume", b.id)
	b.eventually("another tick", func() bool { return size() > before })
	b.good("pause", b.id)
	b.good("delete", "--force", b.id)
}

func TestExec(t *testing.T) {
	b := open(t, "touch /data/ready; sleep 100")
	b.up()
	b.exists("data/ready")
	if got := b.good("exec", b.id, "sh", "-c", "hostname; cat /proc/1/comm; id -u"); got != "box\nsleep\n0\n" && got != "box\nsh\n0\n" {
		t.Errorf("got %q", got)
	}
	if r := b.call("exec", b.id, "sh", "-c", "exit 9"); r.code != 9 {
		t.Errorf("got %v", r)
	}
	if got := b.good("exec", "--user", "5:6", "--cwd", "/tmp", "--env", "A=b", b.id, "sh", "-c", "id -u; id -g; pwd; echo $A"); got != "5\n6\n/tmp\nb\n" {
		t.Errorf("got %q", got)
	}
	if r := b.call("exec", b.id, "/nosuch"); r.code == 0 || !strings.Contains(r.err, "nosuch") {
		t.Errorf("got %v", r)
	}
	process, _ := json.Marshal(&specs.Process{Args: []string{"sh", "-c", "echo $X"}, Env: []string{"PATH=/bin", "X=y"}, Cwd: "/"})
	p := filepath.Join(t.TempDir(), "process.json")
	b.check(os.WriteFile(p, process, 0o600))
	if got := b.good("exec", "--process", p, b.id); got != "y\n" {
		t.Errorf("got %q", got)
	}
	// It is in the container's control group, and dies with it.
	pid := b.state().Pid
	main, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if got := b.good("exec", b.id, "cat", "/proc/self/cgroup"); got != string(main) {
		t.Errorf("the process is in\n%swhere the container is in\n%s", got, main)
	}
	b.good("exec", "--detach", b.id, "sh", "-c", "touch /data/second; sleep 100")
	b.exists("data/second")
	b.good("kill", b.id, "KILL")
	b.becomes(specs.StateStopped)
	b.bad("exec", b.id, "true")
}

func TestUpdate(t *testing.T) {
	b := open(t, "sleep 100")
	b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr(int64(32 << 20))}
	b.up()
	pid := b.state().Pid
	b.good("update", "--memory", "67108864", "--pids-limit", "20", "--cpu-quota", "20000", "--cpu-period", "50000", b.id)
	if got := b.group(pid, "memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("memory is %s", got)
	}
	if got := b.group(pid, "pids.max", "pids.max"); got != "20" {
		t.Errorf("pids is %s", got)
	}
	want := "20000"
	if isV2() {
		want = "20000 50000"
	}
	if got := b.group(pid, "cpu.cfs_quota_us", "cpu.max"); got != want {
		t.Errorf("quota is %s", got)
	}
	b.bad("update", "--memory", "nosuch", b.id)
}

func TestEvents(t *testing.T) {
	b := open(t, "sleep 100")
	b.up()
	var e struct {
		Type string `json:"type"`
		ID   string `json:"id"`
		Data struct {
			Pids struct {
				Current uint64 `json:"current"`
			} `json:"pids"`
			Memory struct {
				Usage struct {
					Limit uint64 `json:"limit"`
				} `json:"usage"`
			} `json:"memory"`
		} `json:"data"`
	}
	b.check(json.Unmarshal([]byte(b.good("events", "--stats", b.id)), &e))
	if e.Type != "stats" || e.ID != b.id || e.Data.Pids.Current == 0 {
		t.Errorf("got %+v", e)
	}
}

func TestSpecAndFeatures(t *testing.T) {
	b := open(t, "")
	dir := t.TempDir()
	b.good("spec", "--bundle", dir)
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	b.check(err)
	var s specs.Spec
	b.check(json.Unmarshal(text, &s))
	if s.Process == nil || len(s.Process.Args) != 1 || s.Process.Args[0] != "sh" || s.Linux == nil {
		t.Errorf("got %s", text)
	}
	b.bad("spec", "--bundle", dir) // it is there
	var f struct {
		OCIVersionMin string   `json:"ociVersionMin"`
		Hooks         []string `json:"hooks"`
	}
	b.check(json.Unmarshal([]byte(b.good("features")), &f))
	if f.OCIVersionMin == "" || len(f.Hooks) == 0 {
		t.Errorf("features: %+v", f)
	}
}
