package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/onggi/onggi/internal/testenv"
)

// A container of another runtime has its life, its streams, its execs and its
// exit as one of ours, also across the engine's end.
func TestOtherRuntimes(t *testing.T) {
	runc := testenv.NeedProgram(t, "runc")
	dir := t.TempDir()
	write(t, dir, map[string]string{"in": "given\n", "cdi/hook.yaml": "cdiVersion: 0.6.0\nkind: example.org/hook\ndevices:\n- name: one\n  containerEdits: {env: [HOOK=1], hooks: [{hookName: createRuntime, path: /usr/bin/touch, args: [touch, " + dir + "/ran]}]}\n"})
	e := newEngine(t, "--add-runtime", "other="+runc, "--cdi-spec-dir", filepath.Join(dir, "cdi"))
	e.busybox()
	if info := e.do("info", "-f", "{{json .Runtimes}}"); !strings.Contains(info, `"onggi"`) || !strings.Contains(info, `"other"`) || !strings.Contains(info, `"runc"`) {
		t.Errorf("info names not all runtimes:\n%s", info)
	}
	for _, name := range []string{"runc", "crun", "other"} {
		t.Run(name, func(t *testing.T) {
			if name == "crun" {
				if _, err := exec.LookPath("crun"); err != nil {
					t.Skip("crun is not installed")
				}
			}
			run := func(more ...string) []string { return append([]string{"run", "--rm", "--runtime", name}, more...) }
			r := e.tryIn(strings.NewReader("typed"), run("-i", "-v", filepath.Join(dir, "in")+":/in:ro", "--memory", "64m", "--mount", "type=image,src=busybox,dst=/img,image-subpath=bin", "busybox",
				"sh", "-c", "cat; cat /in; test -x /img/busybox && echo image; ip -o -4 addr show eth0 | grep -c inet; (cat /sys/fs/cgroup/memory.max || cat /sys/fs/cgroup/memory/memory.limit_in_bytes) 2>/dev/null; echo err >&2; exit 5")...)
			if r.code != 5 || r.out != "typedgiven\nimage\n1\n67108864\n" || r.err != "err\n" {
				t.Errorf("run: %+v", r)
			}
			e.refuse(127, []string{"nothing"}, run("busybox", "nothing")...)
			e.refuse(126, []string{"ermission denied"}, run("busybox", "/etc/passwd")...)
			tty := strings.TrimSpace(e.do(run("-t", "busybox", "sh", "-c", "test -t 1 && echo tty")...))
			if name != "crun" || tty != "" { // crun 1.8 may drop what a terminal says last
				equal(t, tty, "tty")
			}
			// Process 1 is our init, which reaps, hands signals on and cannot be written to.
			equal(t, e.do(run("--init", "busybox", "sh", "-c", "cat /proc/1/comm; (sh -c 'echo $$ >/orphan' &); until [ -s /orphan ]; do :; done; while [ -e /proc/$(cat /orphan) ]; do sleep 0.01; done; echo >>/sbin/docker-init || echo 'read only'")...), "docker-init\nread only")
			e.refuse(7, nil, run("--init", "busybox", "sh", "-c", "exit 7")...)
			e.refuse(127, []string{"nothing", "not found in $PATH"}, run("--init", "busybox", "nothing")...)

			e.do("run", "-d", "--name", name, "--runtime", name, "--health-cmd", "true", "--health-interval", "10ms", "busybox", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
			e.until("ready", "logs", name)
			e.until("healthy", "inspect", "-f", "{{.State.Health.Status}}", name)
			e.refuse(3, []string{"inside"}, "exec", name, "sh", "-c", "echo inside $HOSTNAME; exit 3")
			if top := e.do("top", name, "-o", "pid,args"); strings.Contains(top, "--bundle") || !strings.Contains(top, "trap") {
				t.Errorf("top:\n%s", top)
			}
			e.do("pause", name)
			equal(t, e.do("inspect", "-f", "{{.State.Status}}", name), "paused")
			e.do("unpause", name)
			e.signal(syscall.SIGKILL)
			e.start()
			equal(t, e.do("exec", name, "echo", "after"), "after")
			e.do("stop", name)
			equal(t, e.do("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.HostConfig.Runtime}}", name), "exited 9 "+name)
			e.do("start", name)
			e.do("kill", name)
			e.until("exited 137", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name)
			e.do("rm", name)
			if left, _ := os.ReadDir(filepath.Join(e.dir, "run/bundles")); len(left) > 0 {
				t.Errorf("bundles are left: %v", left)
			}
		})
	}
	// Devices whose specification has hooks need a runtime that runs them.
	equal(t, e.do("run", "--rm", "--runtime", "runc", "--device", "example.org/hook=one", "busybox", "sh", "-c", "echo $HOOK"), "1")
	if _, err := os.Stat(filepath.Join(dir, "ran")); err != nil {
		t.Errorf("the hook did not run: %v", err)
	}
	e.refuse(125, []string{"unknown or invalid runtime name: kata", "add-runtime"}, "run", "--rm", "--runtime", "kata", "busybox", "true")
}
