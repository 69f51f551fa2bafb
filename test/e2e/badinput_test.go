package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Bad input gets a clear error that names the object, and leaves nothing.
func TestBadInput(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	before := state(e)

	e.refuse(125, []string{"no-such-image.invalid"}, "run", "--rm", "no-such-image.invalid/x:1", "true")
	e.refuse(125, []string{"network", "no-such"}, "run", "--rm", "--network", "no-such", "busybox", "true")
	e.refuse(125, []string{"--memory"}, "run", "--rm", "--memory", "lots", "busybox", "true")
	e.refuse(125, []string{"unknown flag", "--name"}, "run", "--nmae", "x", "busybox")
	e.refuse(125, []string{"not a command", "onggi run"}, "rnu")
	e.refuse(125, []string{"/no/such"}, "run", "--rm", "--mount", "type=bind,source=/no/such/path,target=/x", "busybox", "true")
	e.refuse(1, []string{"nobody"}, "rm", "nobody")
	e.refuse(1, []string{"nobody"}, "exec", "nobody", "true")

	e.refuse(125, []string{"--pull", "always, missing or never"}, "run", "--pull", "maybe", "busybox")
	e.refuse(125, []string{"--dns", "not an IP address"}, "run", "--dns", "x", "busybox")
	e.refuse(125, []string{"--tail", "number of lines"}, "logs", "--tail", "x", "nobody")
	e.refuse(125, []string{"one or more flags"}, "update", "nobody")
	e.refuse(125, []string{"no swarm mode"}, "service", "ls")
	e.refuse(1, []string{"try:", "exited"}, "ps", "--filter", "status=nonsense")

	e.do("create", "--name", "taken", "busybox", "true")
	// Names of fields as Docker's types have them, and the engine's order.
	equal(t, e.do("inspect", "-f", "{{.ID}}", "taken"), e.do("inspect", "-f", "{{range .Args}}{{end}}{{.ID}}", "taken"))
	equal(t, e.do("inspect", "-f", "{{json .HostConfig.RestartPolicy}}", "taken"), `{"Name":"no","MaximumRetryCount":0}`)
	e.refuse(125, []string{"taken", "in use"}, "run", "--name", "taken", "busybox", "true")
	e.do("rm", "taken")

	t.Run("API bodies", func(t *testing.T) {
		for _, c := range []struct {
			method, path, body string
			status             int
		}{
			{"POST", "/v1.51/containers/create", "{", 400},
			{"POST", "/v1.51/containers/create", `{"Image": 7}`, 400},
			{"POST", "/v1.51/containers/create", `{}`, 400},
			{"POST", "/v1.51/containers/create?name=bad/name", `{"Image":"busybox"}`, 400},
			{"POST", "/v1.51/networks/create", `[]`, 400},
			{"GET", "/v1.51/containers/json?filters=nonsense", "", 400},
			{"GET", "/v1.51/containers/nobody/json", "", 404},
			{"GET", "/v1.99/containers/json", "", 400},
			{"GET", "/v1.51/no/such/route", "", 404},
			{"POST", "/onggi/v1/run", "{", 400},
			{"POST", "/onggi/v1/exec", "{", 400},
			{"POST", "/onggi/v1/exec", `{"container":"nobody","create":{"Cmd":["true"]}}`, 404},
			{"POST", "/onggi/v1/exec", `{"container":"nobody"}`, 400},
		} {
			status, body := e.request(c.method, c.path, c.body)
			if status != c.status || !strings.Contains(body, `"message"`) {
				t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, status, body)
			}
		}
	})
	t.Run("socket without permission", func(t *testing.T) {
		c := exec.Command(e.cli, "-H", "unix://"+e.sock, "ps")
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		c.Env = []string{"HOME=/"}
		os.Chmod(e.dir, 0o755)
		os.Chmod(filepath.Dir(e.cli), 0o755)
		out, err := c.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "permission") || !strings.Contains(string(out), "try:") {
			t.Errorf("%v: %s", err, out)
		}
	})
	equal(t, state(e), before)
}

// What the machine or the kernel does not have, and what others have taken.
func TestRefusals(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	before := state(e)

	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	e.refuse(125, []string{taken, fmt.Sprintf("process %d", os.Getpid()), "try:"}, "run", "--rm", "-p", taken+":80", "busybox", "true")
	l.Close()
	e.do("run", "-d", "--name", "holder", "-p", taken+":80", "busybox", "sleep", "1000")
	e.refuse(125, []string{taken, "holder"}, "run", "--rm", "-p", taken+":80", "busybox", "true")
	e.do("rm", "-f", "holder")

	for _, c := range []struct {
		flag, value string
		says        []string
	}{
		{"--runtime", "nope", []string{"nope", "try:"}},
		{"--gpus", "all", []string{"gpu"}},
		{"--device", "/dev/nope", []string{"/dev/nope"}},
		{"--cpuset-cpus", "4095", []string{"4095", "available: 0"}},
		{"--cpus", "9999", []string{"CPUs"}},
		{"--memory", "1k", []string{"6MB"}},
		{"--cap-add", "NOPE", []string{"NOPE"}},
		{"--security-opt", "seccomp=/no/such/profile", []string{"/no/such/profile"}},
		{"--user", "nobody7", []string{"nobody7", "try:"}},
		{"--workdir", "relative", []string{"relative", "absolute"}},
		{"--log-driver", "nope", []string{"nope", "try:"}},
		{"--log-driver", "splunk", []string{"failed to initialize logging driver", "try:"}},
		{"--sysctl", "kernel.nope=1", []string{"kernel.nope", "try:"}},
		{"--volume", "/etc/hostname:/etc", []string{"/etc/hostname", "a file on a file"}},
		{"--network", "container:nobody", []string{"nobody"}},
		{"--ip", "10.1.1.1", []string{"user-defined networks only"}},
		{"--stop-signal", "SIGNOPE", []string{"SIGNOPE"}},
		{"--restart", "sometimes", []string{"sometimes"}},
		{"--ulimit", "files=1", []string{"files"}},
	} {
		e.refuse(125, c.says, "run", "--rm", c.flag, c.value, "busybox", "true")
	}
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		e.refuse(125, []string{"AppArmor", "kernel"}, "run", "--rm", "--security-opt", "apparmor=x", "busybox", "true")
	}
	e.refuse(127, []string{"/nope", "try:"}, "run", "--rm", "--entrypoint", "/nope", "busybox", "true")
	e.refuse(126, []string{"permission denied"}, "run", "--rm", "--entrypoint", "/etc/passwd", "busybox", "true")
	e.refuse(125, []string{"subnet", "10.0.0.0/33"}, "network", "create", "--subnet", "10.0.0.0/33", "other")
	e.refuse(1, []string{"overlay"}, "network", "create", "-d", "overlay", "other")
	e.refuse(1, []string{"1.2.3.4", "not in the subnet"}, "network", "create", "--subnet", "172.29.0.0/16", "--gateway", "1.2.3.4", "other")
	if r := e.try("rm", "-f", "nobody"); r.code != 0 || r.out != "" || !strings.Contains(r.err, "nobody") {
		t.Errorf("rm -f of what is not there: %d %q %q", r.code, r.out, r.err)
	}
	equal(t, state(e), before)
	if left, _ := filepath.Glob(filepath.Join(e.dir, "data/containers/*")); len(left) > 0 {
		t.Errorf("refused containers leave %v", left)
	}
}

// state is what a failed command must not change.
func state(e *engine) string {
	return e.do("ps", "-aq") + "|" + e.do("volume", "ls", "-q") + "|" + e.do("network", "ls", "--format", "{{.Name}}") + "|" + e.do("images", "-q")
}
