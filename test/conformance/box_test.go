package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/testenv"
)

// box is one container of one test.
type box struct {
	*testing.T
	program string // the runtime
	root    string // where it keeps its state
	bundle  string
	rootfs  string
	id      string
	spec    *specs.Spec
}

var (
	count   atomic.Int32
	applets = []string{"sh", "cat", "id", "true", "false", "sleep", "echo", "ls", "mount", "hostname", "kill", "stat",
		"touch", "tty", "env", "pwd", "head", "grep", "mkdir", "test", "readlink", "mknod", "dd", "chown", "ps", "printf", "wc", "umask"}
)

func oracle() string { return os.Getenv("ONGGI_ORACLE") }

// open makes a bundle whose process is a shell script.
func open(t *testing.T, script string) *box {
	t.Helper()
	testenv.NeedRoot(t)
	program := oracle()
	if program == "" {
		program = testenv.Binary(t, "onggi-runtime")
	}
	bb := testenv.Busybox(t)
	dir := t.TempDir()
	b := &box{T: t, program: program, root: filepath.Join(dir, "state"), bundle: filepath.Join(dir, "bundle"),
		id: fmt.Sprintf("onggi-test-%d-%d", os.Getpid(), count.Add(1))}
	b.rootfs = filepath.Join(b.bundle, "rootfs")
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "run", "data"} {
		b.check(os.MkdirAll(filepath.Join(b.rootfs, d), 0o755))
	}
	text, err := os.ReadFile(bb)
	b.check(err)
	b.check(os.WriteFile(filepath.Join(b.rootfs, "bin/busybox"), text, 0o755))
	for _, a := range applets {
		b.check(os.Symlink("busybox", filepath.Join(b.rootfs, "bin", a)))
	}
	b.check(os.WriteFile(filepath.Join(b.rootfs, "etc/passwd"), []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644))
	b.check(os.WriteFile(filepath.Join(b.rootfs, "etc/group"), []byte("root:x:0:\n"), 0o644))
	b.spec = usual(script)
	b.spec.Linux.CgroupsPath = "/onggi-test-" + strconv.Itoa(os.Getpid()) + "/" + b.id
	t.Cleanup(func() {
		b.call("delete", "--force", b.id)
		parents := []string{"/sys/fs/cgroup/onggi-test-" + strconv.Itoa(os.Getpid())}
		v1, _ := filepath.Glob("/sys/fs/cgroup/*/onggi-test-" + strconv.Itoa(os.Getpid()))
		for _, p := range append(parents, v1...) {
			os.Remove(p)
		}
	})
	return b
}

// usual is the configuration that every test starts from.
func usual(script string) *specs.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"}
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: "box",
		Root:     &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Resources:  &specs.LinuxResources{},
			Namespaces: []specs.LinuxNamespace{{Type: "pid"}, {Type: "network"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}},
		},
	}
}

func (b *box) check(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *box) save() {
	b.Helper()
	text, err := json.MarshalIndent(b.spec, "", " ")
	b.check(err)
	b.check(os.WriteFile(filepath.Join(b.bundle, "config.json"), text, 0o644))
}

// result is what a call of the runtime gave.
type result struct {
	out, err string
	code     int
}

func (r result) String() string { return fmt.Sprintf("exit %d, %q, %q", r.code, r.out, r.err) }

// call calls the runtime. Its output goes through files: a container that
// outlives the call keeps them open.
func (b *box) call(args ...string) result {
	b.Helper()
	out, err := os.CreateTemp(filepath.Dir(b.bundle), "out")
	b.check(err)
	defer out.Close()
	errs, err := os.CreateTemp(filepath.Dir(b.bundle), "err")
	b.check(err)
	defer errs.Close()
	cmd := exec.Command(b.program, append([]string{"--root", b.root}, args...)...)
	cmd.Dir = b.bundle
	cmd.Stdout, cmd.Stderr = out, errs
	err = cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		b.Fatal(err)
	}
	read := func(f *os.File) string {
		text, _ := os.ReadFile(f.Name())
		return string(text)
	}
	return result{read(out), read(errs), cmd.ProcessState.ExitCode()}
}

// good is call for what must work; it returns the output.
func (b *box) good(args ...string) string {
	b.Helper()
	r := b.call(args...)
	if r.code != 0 {
		b.Fatalf("%s: %v", strings.Join(args, " "), r)
	}
	return r.out
}

// bad is call for what must be refused, with a reason.
func (b *box) bad(args ...string) string {
	b.Helper()
	r := b.call(args...)
	if r.code == 0 || r.err == "" {
		b.Errorf("%s: %v, want an error", strings.Join(args, " "), r)
	}
	return r.err
}

// run runs the container to its end and returns what it printed.
func (b *box) run() string {
	b.Helper()
	b.save()
	return strings.TrimSpace(b.good("run", "--bundle", b.bundle, b.id))
}

// refused runs a container that must not start, and leaves nothing.
func (b *box) refused() string {
	b.Helper()
	b.save()
	msg := b.bad("run", "--bundle", b.bundle, b.id)
	if r := b.call("state", b.id); r.code == 0 {
		b.Errorf("the refused container is there: %v", r)
	}
	return msg
}

func (b *box) create() {
	b.Helper()
	b.save()
	b.good("create", "--bundle", b.bundle, b.id)
}

func (b *box) up() {
	b.Helper()
	b.create()
	b.good("start", b.id)
}

func (b *box) state() specs.State {
	b.Helper()
	var s specs.State
	b.check(json.Unmarshal([]byte(b.good("state", b.id)), &s))
	return s
}

// becomes waits for a status.
func (b *box) becomes(want specs.ContainerState) {
	b.Helper()
	b.eventually("status "+string(want), func() bool { return b.state().Status == want })
}

func (b *box) eventually(what string, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("waiting for %s", what)
		}
	}
}

// exists waits for a file that the container makes.
func (b *box) exists(p string) {
	b.Helper()
	b.eventually(p, func() bool { _, err := os.Stat(filepath.Join(b.rootfs, p)); return err == nil })
}

// group reads a file of the control group of a process, in the words of the
// machine's version: "memory.max" is of v2, and v1 names the file and the
// controller that v1 has.
func (b *box) group(pid int, v1, v2 string) string {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	b.check(err)
	controller, _, _ := strings.Cut(v1, ".")
	for line := range strings.SplitSeq(string(text), "\n") {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			if c == controller {
				got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", f[1], f[2], v1))
				b.check(err)
				return strings.TrimSpace(string(got))
			}
		}
	}
	if _, p, ok := strings.Cut(string(text), "0::"); ok && v2 != "" {
		if got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", strings.TrimSpace(p), v2)); err == nil {
			return strings.TrimSpace(string(got))
		}
	}
	b.Skipf("this machine has neither %s nor %s", v1, v2)
	return ""
}

// better skips the test with the oracle, which does it worse.
func better(t *testing.T, how string) {
	t.Helper()
	if oracle() != "" {
		t.Skipf("the oracle: %s", how)
	}
}

func isV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

func ptr[T any](v T) *T { return &v }

// lines splits what a container printed.
func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }

func has(text, line string) bool {
	for l := range bytes.Lines([]byte(text)) {
		if strings.TrimSpace(string(l)) == line {
			return true
		}
	}
	return false
}
