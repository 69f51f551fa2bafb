package e2e

import (
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

	e.do("create", "--name", "taken", "busybox", "true")
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

// state is what a failed command must not change.
func state(e *engine) string {
	return e.do("ps", "-aq") + "|" + e.do("volume", "ls", "-q") + "|" + e.do("network", "ls", "--format", "{{.Name}}") + "|" + e.do("images", "-q")
}
