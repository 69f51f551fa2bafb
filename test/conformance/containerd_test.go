package conformance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// containerd runs containers with our runtime: its shim speaks runc's command line.
func TestContainerd(t *testing.T) {
	if oracle() != "" {
		t.Skip("the oracle is what containerd is used to")
	}
	b := open(t, "")
	var programs [2]string
	for i, name := range []string{"containerd", "ctr"} {
		p, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("needs %s", name) // not in the virtual machine
		}
		programs[i] = p
	}
	// Its socket's name must be short.
	dir, err := os.MkdirTemp("", "onggi-ctd-")
	b.check(err)
	socket, config := filepath.Join(dir, "s"), filepath.Join(dir, "config.toml")
	b.check(os.WriteFile(config, fmt.Appendf(nil, "version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket), 0o600))
	var log strings.Builder
	daemon := exec.Command(programs[0], "-c", config)
	daemon.Stdout, daemon.Stderr = &log, &log
	daemon.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS} // what it mounts goes with it
	b.check(daemon.Start())
	ended := make(chan struct{})
	go func() { daemon.Wait(); close(ended) }()
	name := b.id
	try := func(args ...string) (string, error) {
		out, err := exec.Command(programs[1], append([]string{"-a", socket}, args...)...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	ctr := func(args ...string) string {
		t.Helper()
		out, err := try(args...)
		if err != nil {
			t.Errorf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	until := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) { // polling other processes
			if time.Now().After(deadline) {
				t.Fatalf("%s\n%s", what, log.String())
			}
		}
	}
	t.Cleanup(func() {
		try("task", "rm", "-f", name)
		daemon.Process.Signal(syscall.SIGTERM)
		<-ended
		b.check(os.RemoveAll(dir))
	})
	until("containerd does not answer", func() bool { _, err := try("version"); return err == nil })

	run := func(args ...string) []string {
		return append([]string{"run", "--rootfs", "--runc-binary", b.program}, args...)
	}
	if out := ctr(run("--rm", b.rootfs, name+"-once", "echo", "hello")...); out != "hello" {
		t.Errorf("it says %q", out)
	}
	if out, err := try(run("--rm", b.rootfs, name+"-three", "sh", "-c", "exit 3")...); err == nil || err.Error() != "exit status 3" {
		t.Errorf("it ends with %v: %s", err, out)
	}
	ctr(run("-d", b.rootfs, name, "sh", "-c", "while :; do sleep 0.1; done")...)
	if out := ctr("task", "exec", "--exec-id", "second", name, "id", "-u"); out != "0" {
		t.Errorf("exec says %q", out)
	}
	state := func() string {
		for l := range strings.Lines(ctr("task", "ls")) {
			if f := strings.Fields(l); len(f) == 3 && f[0] == name {
				return f[2]
			}
		}
		return ""
	}
	ctr("task", "pause", name)
	if got := state(); got != "PAUSED" {
		t.Errorf("it is %s, not paused", got)
	}
	ctr("task", "resume", name)
	ctr("task", "kill", "-s", "KILL", name)
	until("it does not stop", func() bool { return state() == "STOPPED" })
	if out, _ := try("task", "rm", name); !strings.Contains(out, "137") {
		t.Errorf("removed with %q, not with its status 137", out)
	}
	ctr("container", "rm", name)
}
