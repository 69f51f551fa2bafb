package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/testenv"
)

// The test binary is the runtime when it is asked to be.
func TestMain(m *testing.M) {
	if os.Getenv("ONGGI_RUNTIME_TEST") == "1" {
		os.Unsetenv("ONGGI_RUNTIME_TEST")
		main()
	}
	os.Exit(m.Run())
}

type rt struct {
	*testing.T
	root, bundle string
	id           string
}

// newRT makes a bundle with busybox; change adapts its configuration.
func newRT(t *testing.T, change func(*specs.Spec)) *rt {
	t.Helper()
	testenv.NeedRoot(t)
	bb := testenv.Busybox(t)
	r := &rt{T: t, root: filepath.Join(t.TempDir(), "state"), bundle: t.TempDir(), id: "t" + strconv.FormatInt(time.Now().UnixNano(), 36)}
	rootfs := filepath.Join(r.bundle, "rootfs")
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		must(t, os.MkdirAll(filepath.Join(rootfs, d), 0o755))
	}
	data, err := os.ReadFile(bb)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(rootfs, "bin/busybox"), data, 0o755))
	for _, a := range []string{"sh", "sleep", "echo", "cat", "true", "id", "tty", "ls", "trap", "kill", "ps", "stty", "touch", "mkdir", "readlink"} {
		must(t, os.Symlink("busybox", filepath.Join(rootfs, "bin", a)))
	}
	s := exampleSpec()
	s.Process.Terminal, s.Process.Args = false, []string{"sleep", "1000"}
	s.Process.Rlimits = nil
	if change != nil {
		change(s)
	}
	b, err := json.Marshal(s)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(r.bundle, "config.json"), b, 0o644))
	t.Cleanup(func() { r.command("delete", "--force", r.id).Run() })
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rt) command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	must(r.T, err)
	cmd := exec.Command(self, append([]string{"--root", r.root}, args...)...)
	cmd.Dir = r.bundle
	cmd.Env = append(os.Environ(), "ONGGI_RUNTIME_TEST=1")
	return cmd
}

// try runs the runtime; output goes to files, so that a container that holds
// them open does not hold the test up.
func (r *rt) try(args ...string) (stdout, stderr string, code int) {
	r.Helper()
	cmd := r.command(args...)
	out, errs := r.temp(), r.temp()
	cmd.Stdout, cmd.Stderr = out, errs
	err := cmd.Run()
	if x, ok := errors.AsType[*exec.ExitError](err); ok {
		code = x.ExitCode()
	} else {
		must(r.T, err)
	}
	return r.read(out), r.read(errs), code
}

func (r *rt) temp() *os.File {
	f, err := os.CreateTemp(r.TempDir(), "")
	must(r.T, err)
	return f
}

func (r *rt) read(f *os.File) string {
	b, err := os.ReadFile(f.Name())
	must(r.T, err)
	return string(b)
}

func (r *rt) ok(args ...string) string {
	r.Helper()
	out, errs, code := r.try(args...)
	if code != 0 {
		r.Fatalf("%v: exit %d: %s", args, code, errs)
	}
	return out
}

func (r *rt) fails(want string, args ...string) {
	r.Helper()
	out, errs, code := r.try(args...)
	if code == 0 || !strings.Contains(errs, want) {
		r.Errorf("%v: exit %d, %q, %q; want %q", args, code, out, errs, want)
	}
}

func (r *rt) status() string {
	r.Helper()
	var v view
	must(r.T, json.Unmarshal([]byte(r.ok("state", r.id)), &v))
	return v.Status
}

func (r *rt) wants(status string) {
	r.Helper()
	if got := r.status(); got != status {
		r.Errorf("status %q, want %q", got, status)
	}
}

// until waits for a condition that another process brings about.
func (r *rt) until(what string, f func() bool) {
	r.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("no %s", what)
		}
	}
}

func TestLifeCycle(t *testing.T) {
	r := newRT(t, func(s *specs.Spec) { s.Annotations = map[string]string{"a": "b"} })
	pidFile := filepath.Join(t.TempDir(), "pid")
	r.ok("create", "--bundle", r.bundle, "--pid-file", pidFile, r.id)
	r.wants("created")
	r.fails("container with id exists", "create", r.id)
	var v view
	must(t, json.Unmarshal([]byte(r.ok("state", r.id)), &v))
	pid, err := os.ReadFile(pidFile)
	must(t, err)
	if string(pid) != strconv.Itoa(v.PID) || v.Bundle != r.bundle || v.ID != r.id || v.Owner != "root" || v.Annotations["a"] != "b" || v.Rootfs != r.bundle+"/rootfs" {
		t.Errorf("state %+v, pid file %q", v, pid)
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", v.PID)); err != nil || !strings.HasPrefix(exe, "/memfd:onggi-init") {
		t.Errorf("before start it runs %q, %v", exe, err)
	}
	r.ok("start", r.id)
	r.wants("running")
	r.fails("cannot start an already running container", "start", r.id)
	r.fails("that is not stopped: running", "delete", r.id)
	r.ok("pause", r.id)
	r.wants("paused")
	r.fails("cannot exec in a paused container", "exec", r.id, "true")
	r.fails("container not running", "pause", r.id)
	r.ok("resume", r.id)
	r.wants("running")
	r.fails("container not paused", "resume", r.id)
	if pids := strings.TrimSpace(r.ok("ps", "--format", "json", r.id)); pids != fmt.Sprintf("[%d]", v.PID) {
		t.Errorf("ps says %s", pids)
	}
	if out := r.ok("ps", r.id); !strings.Contains(out, "PID") || strings.Count(out, "\n") != 2 {
		t.Errorf("ps says %s", out)
	}
	if out := r.ok("list", "-q"); out != r.id+"\n" {
		t.Errorf("list -q says %q", out)
	}
	if out := r.ok("list"); !strings.Contains(out, "running") || !strings.HasPrefix(out, "ID ") {
		t.Errorf("list says %q", out)
	}
	r.fails("unknown signal", "kill", r.id, "SIGFUN")
	r.ok("kill", r.id, "SIGKILL")
	r.until("end", func() bool { return r.status() == "stopped" })
	r.fails("container not running", "kill", r.id, "TERM")
	r.fails("cannot exec in a stopped container", "exec", r.id, "true")
	r.ok("delete", r.id)
	r.fails("does not exist", "state", r.id)
	r.fails("does not exist", "delete", r.id)
	r.ok("delete", "--force", r.id)
	r.leftNothing()
}

// leftNothing looks for what a deleted container may leave.
func (r *rt) leftNothing() {
	r.Helper()
	if e, _ := os.ReadDir(r.root); len(e) != 0 {
		r.Errorf("%s holds %v", r.root, e)
	}
	filepath.WalkDir("/sys/fs/cgroup", func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == r.id {
			r.Errorf("%s is left", p)
		}
		return nil
	})
}

func TestRunEndsAsTheCommand(t *testing.T) {
	r := newRT(t, func(s *specs.Spec) { s.Process.Args = []string{"sh", "-c", "echo out; echo err >&2; exit 42"} })
	out, errs, code := r.try("run", r.id)
	if out != "out\n" || errs != "err\n" || code != 42 {
		t.Errorf("%q %q %d", out, errs, code)
	}
	r.leftNothing()
	r.ok("--debug", "spec", "--bundle", t.TempDir())
	r = newRT(t, func(s *specs.Spec) { s.Process.Args = []string{"sh", "-c", "kill -9 $$"} })
	if _, _, code := r.try("run", "--keep", r.id); code != 137 && code != 0 {
		t.Errorf("exit %d", code) // process 1 cannot kill itself
	}
	r.wants("stopped")
	r.ok("delete", r.id)
}

func TestRunHandsSignalsOn(t *testing.T) {
	r := newRT(t, func(s *specs.Spec) {
		s.Process.Args = []string{"sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"}
	})
	cmd := r.command("run", r.id)
	out := r.temp()
	cmd.Stdout = out
	must(t, cmd.Start())
	r.until("ready", func() bool { return r.read(out) == "ready\n" })
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("exit %d", code)
	}
	r.leftNothing()
}

func TestExec(t *testing.T) {
	r := newRT(t, nil)
	r.ok("run", "-d", r.id)
	out, errs, code := r.try("exec", "-e", "A=b", "--cwd", "/tmp", "--user", "7:8", "-g", "9", r.id, "sh", "-c", "echo $A; readlink /proc/self/cwd; id -u; id -G; exit 9")
	if out != "b\n/tmp\n7\n8 9\n" || code != 9 {
		t.Errorf("%q %q %d", out, errs, code)
	}
	_, errs, code = r.try("exec", r.id, "/nothing")
	if code != 255 || !strings.Contains(errs, "no such file") {
		t.Errorf("missing command: %q %d", errs, code)
	}
	_, _, code = r.try("exec", r.id, "sh", "-c", "kill -TERM $$")
	if code != 128+15 {
		t.Errorf("exit %d", code)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	process := filepath.Join(t.TempDir(), "p.json")
	b, _ := json.Marshal(specs.Process{Args: []string{"sleep", "500"}, Cwd: "/", Env: []string{"PATH=/bin"}})
	must(t, os.WriteFile(process, b, 0o644))
	r.ok("exec", "--process", process, "--pid-file", pidFile, "--detach", r.id)
	p, err := os.ReadFile(pidFile)
	must(t, err)
	cmdline, err := os.ReadFile("/proc/" + string(p) + "/cmdline")
	if err != nil || string(cmdline) != "sleep\x00500\x00" {
		t.Errorf("%q, %v", cmdline, err)
	}
	if pids := r.ok("ps", "-f", "json", r.id); !strings.Contains(pids, string(p)) {
		t.Errorf("%s is not among %s", p, pids)
	}
	out, _, _ = r.try("exec", "--cap", "CAP_SYS_ADMIN", r.id, "sh", "-c", "cat /proc/self/status")
	if !strings.Contains(out, "CapEff:\t0000000020200420") {
		t.Errorf("got %s", out)
	}
	r.ok("kill", "--all", r.id, "KILL")
	r.until("end", func() bool { return r.status() == "stopped" })
}

// receiver waits on a console socket and returns the terminal.
func receiver(t *testing.T) (string, func() *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "console.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	return path, func() *os.File {
		defer l.Close()
		l.SetDeadline(time.Now().Add(20 * time.Second))
		c, err := l.AcceptUnix()
		must(t, err)
		defer c.Close()
		buf, oob := make([]byte, 100), make([]byte, 100)
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		must(t, err)
		msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
		must(t, err)
		fds, err := syscall.ParseUnixRights(&msgs[0])
		must(t, err)
		if string(buf[:n]) != "/dev/ptmx" {
			t.Errorf("the terminal is called %q", buf[:n])
		}
		return os.NewFile(uintptr(fds[0]), "terminal")
	}
}

func TestConsoleSocket(t *testing.T) {
	r := newRT(t, func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Process.Args = []string{"sh", "-c", "tty; read x; echo got $x; sleep 1000"}
	})
	r.fails("--console-socket", "create", r.id)
	path, get := receiver(t)
	r.ok("create", "--console-socket", path, r.id)
	tty := get()
	defer tty.Close()
	r.ok("start", r.id)
	expectOutput(t, tty, "/dev/pts/0\r\n")
	fmt.Fprintln(tty, "hello")
	expectOutput(t, tty, "hello\r\ngot hello\r\n")
	path, get = receiver(t)
	r.ok("exec", "-t", "-d", "--console-socket", path, r.id, "sh", "-c", "tty; echo end")
	x := get()
	defer x.Close()
	expectOutput(t, x, "/dev/pts/1\r\nend\r\n")
}

func expectOutput(t *testing.T, f *os.File, want string) {
	t.Helper()
	var got []byte
	buf := make([]byte, 1)
	for string(got) != want && len(got) < 200 {
		n, err := f.Read(buf)
		if err != nil {
			t.Fatalf("got %q, then %v", got, err)
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestUpdateAndEvents(t *testing.T) {
	r := newRT(t, nil)
	r.ok("run", "-d", r.id)
	r.ok("update", "--memory", "64M", "--pids-limit", "77", r.id)
	cmd := r.command("update", "-r", "-", r.id)
	cmd.Stdin = strings.NewReader(`{"cpu":{"shares":300}}`)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	var e struct {
		Type, ID string
		Data     stats
	}
	must(t, json.Unmarshal([]byte(r.ok("events", "--stats", r.id)), &e))
	if e.Type != "stats" || e.ID != r.id || e.Data.Memory.Usage.Limit != 64<<20 || e.Data.Pids.Limit != 77 || e.Data.Pids.Current != 1 {
		t.Errorf("%+v", e)
	}
	r.fails("--memory", "update", "--memory", "lots", r.id)
	follow := r.command("events", "--interval", "20ms", r.id)
	out, err := follow.StdoutPipe()
	must(t, err)
	must(t, follow.Start())
	line := make([]byte, 20)
	_, err = io.ReadFull(out, line)
	must(t, err)
	r.ok("kill", r.id, "9")
	io.Copy(io.Discard, out)
	must(t, follow.Wait())
}

func TestHooks(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	hook := func(name string) []specs.Hook {
		script := filepath.Join(dir, name)
		os.WriteFile(script, fmt.Appendf(nil, "#!/bin/sh\nset -e\nstate=$(cat)\nst=$(echo \"$state\" | grep -o '\"status\":\"[a-z]*\"')\necho %s $st $1 \"$X\" >> %s\n", name, log), 0o755)
		return []specs.Hook{{Path: script, Args: []string{name, "arg"}, Env: []string{"X=y"}}}
	}
	r := newRT(t, func(s *specs.Spec) {
		s.Process.Args = []string{"cat", "/in"}
		s.Hooks = &specs.Hooks{
			Prestart: hook("prestart"), CreateRuntime: hook("createRuntime"), CreateContainer: hook("createContainer"),
			Poststart: hook("poststart"), Poststop: hook("poststop"),
			StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "/bin/busybox cat > /tmp/state; /bin/busybox id -u > /tmp/id"}}},
		}
		s.Root.Readonly = false
		s.Process.Args = []string{"sh", "-c", "cat /tmp/id /tmp/state"}
		s.Process.User.UID = 1000
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1777"}})
	})
	out, errs, code := r.try("run", r.id)
	if code != 0 || !strings.HasPrefix(out, "1000\n") || !strings.Contains(out, `"status":"created"`) {
		t.Errorf("%q %q %d", out, errs, code)
	}
	b, err := os.ReadFile(log)
	must(t, err)
	want := "prestart \"status\":\"created\" arg y\ncreateRuntime \"status\":\"creating\" arg y\ncreateContainer \"status\":\"creating\" arg y\n" +
		"poststart \"status\":\"running\" arg y\npoststop \"status\":\"stopped\" arg y\n"
	if string(b) != want {
		t.Errorf("got\n%swant\n%s", b, want)
	}
	r.leftNothing()
}

func TestFailingHooks(t *testing.T) {
	one := 1
	for name, h := range map[string]specs.Hooks{
		"create":    {CreateRuntime: []specs.Hook{{Path: "/bin/false"}}},
		"container": {CreateContainer: []specs.Hook{{Path: "/bin/false"}}},
		"timeout":   {CreateRuntime: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "100"}, Timeout: &one}}},
		"missing":   {CreateRuntime: []specs.Hook{{Path: "/no/such"}}},
	} {
		r := newRT(t, func(s *specs.Spec) { s.Hooks = &h })
		r.fails("hook", "create", r.id)
		t.Log(name)
		r.leftNothing()
	}
	r := newRT(t, func(s *specs.Spec) { s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/nothing"}}} })
	r.ok("create", r.id)
	r.fails("startContainer hook /bin/nothing", "start", r.id)
	r.until("end", func() bool { return r.status() == "stopped" })
	r = newRT(t, func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "/bin/false"}}} })
	r.ok("create", r.id)
	r.fails("poststart hook", "start", r.id)
	r.until("end", func() bool { return r.status() == "stopped" })
}

func TestErrors(t *testing.T) {
	r := newRT(t, func(s *specs.Spec) { s.Process.Args = []string{"/no/such"} })
	r.fails(`exec "/no/such": no such file or directory`, "create", r.id)
	r.leftNothing()
	r.fails("no name for a container", "create", "a/b")
	r.fails("no name for a container", "create", "..")
	r.fails("wrong number of arguments", "create")
	r.fails("there is no command", "fly")
	r.fails("flag provided but not defined", "create", "--fly", r.id)
	r.fails("not found", "create", "--bundle", t.TempDir(), r.id)
	logFile := filepath.Join(t.TempDir(), "log")
	r.try("--log", logFile, "--log-format", "json", "create", r.id)
	b, err := os.ReadFile(logFile)
	must(t, err)
	var line struct{ Level, Msg, Time string }
	if err := json.Unmarshal(bytes.TrimSpace(b), &line); err != nil || line.Level != "error" || !strings.Contains(line.Msg, "/no/such") || line.Time == "" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestVersionFeaturesAndSpec(t *testing.T) {
	r := &rt{T: t, root: t.TempDir(), bundle: t.TempDir()}
	lines := strings.Split(r.ok("--version"), "\n")
	if len(lines) < 4 || !strings.HasPrefix(lines[0], "onggi-runtime version ") || !strings.HasPrefix(lines[1], "commit: ") || lines[2] != "spec: "+specVersion {
		t.Errorf("%q", lines)
	}
	var f map[string]any
	must(t, json.Unmarshal([]byte(r.ok("features")), &f))
	if f["ociVersionMax"] != specVersion {
		t.Errorf("%v", f)
	}
	r.ok("spec")
	r.fails("exists", "spec")
	var s specs.Spec
	b, err := os.ReadFile(filepath.Join(r.bundle, "config.json"))
	must(t, err)
	must(t, json.Unmarshal(b, &s))
	r.ok("spec", "--rootless", "--bundle", t.TempDir())
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "-1": -1, "4096": 4096, "1k": 1024, "64M": 64 << 20, "2GiB": 2 << 30, "2gb": 2 << 30, "1t": 1 << 40} {
		var p *int64
		if err := setSize(&p, in); err != nil || *p != want {
			t.Errorf("%q: %v, %v", in, p, err)
		}
	}
	for _, in := range []string{"", "k", "1x", "9999999999999g", "1.5g"} {
		var p *int64
		if err := setSize(&p, in); err == nil {
			t.Errorf("%q: %d", in, *p)
		}
	}
}

func TestSignalNames(t *testing.T) {
	for in, want := range map[string]int{"TERM": 15, "SIGKILL": 9, "sigusr1": 10, "0": 0, "64": 64, "RTMIN+1": 35, "SIGRTMAX-1": 63, "KILL": 9} {
		if got, err := parseSignal(in); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "65", "-1", "SIG", "RTMIN+99", "x"} {
		if got, err := parseSignal(in); err == nil {
			t.Errorf("%q: %d", in, got)
		}
	}
}
