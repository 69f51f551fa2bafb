package e2e

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// crash kills the engine, the monitor and all containers at one time, as a
// power cut does, and starts an engine again.
func (e *engine) crash(containers ...string) {
	e.t.Helper()
	var pids []int
	for _, c := range containers {
		pid, err := strconv.Atoi(e.do("inspect", "-f", "{{.State.Pid}}", c))
		if err != nil || pid == 0 {
			e.t.Fatalf("%s has no process", c)
		}
		pids = append(pids, parent(e.t, pid), pid)
	}
	e.signal(syscall.SIGKILL)
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	e.start()
}

func parent(t testing.TB, pid int) int {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "PPid:"); ok {
			ppid, _ := strconv.Atoi(strings.TrimSpace(v))
			return ppid
		}
	}
	return 0
}

// onggi logs -f goes on over the restarts of the policy, and ends with the last
// run; for other clients it ends with each, as in Docker.
func TestFollowedLogs(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	e.do("create", "--name", "again", "--restart", "on-failure:3", "-v", e.dir+":/d", "busybox", "sh", "-c", "until [ -e /d/go ]; do sleep 0.01; done; echo run; exit 1")
	e.do("start", "again")
	cmd := exec.Command(e.cli, "-H", "unix://"+e.sock, "logs", "-f", "again")
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		t.Fatal(err)
	}
	docker := make(chan string)
	go func() {
		_, body := e.request("GET", "/containers/again/logs?stdout=1&follow=1", "")
		docker <- body
	}()
	write(t, e.dir, map[string]string{"go": ""})
	got, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil || string(got) != strings.Repeat("run\n", 4) {
		t.Errorf("%q, %v", got, err)
	}
	if body := <-docker; strings.Count(body, "run\n") < 1 {
		t.Errorf("another client: %q", body)
	}
}

func TestRestartPolicies(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	run := func(name, policy, script string) {
		e.do("run", "-d", "--name", name, "--restart", policy, "busybox", "sh", "-c", script)
	}
	const wait = "exec sleep 1000"
	run("always-stopped", "always", "trap 'exit 5' TERM; while :; do sleep 0.01; done")
	run("unless-stopped", "unless-stopped", wait)
	run("unless-running", "unless-stopped", wait)
	run("none-running", "no", wait)
	run("failing", "on-failure:2", "exit 3")
	run("succeeding", "on-failure", "exit 0")
	run("looping", "always", "exit 4")
	e.do("stop", "-t", "0", "always-stopped", "unless-stopped")
	e.until("exited 3 2", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", "failing")
	e.until("exited 0 0", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", "succeeding")
	restarts := func() int {
		n, _ := strconv.Atoi(e.do("inspect", "-f", "{{.RestartCount}}", "looping"))
		return n
	}
	for restarts() < 3 {
		e.do("inspect", "looping") // polling another process
	}
	before := restarts()
	e.crash("unless-running", "none-running")
	for _, want := range []string{"always-stopped running", "unless-stopped exited", "unless-running running", "none-running exited", "failing exited", "succeeding exited"} {
		name, state, _ := strings.Cut(want, " ")
		e.until(state, "inspect", "-f", "{{.State.Status}}", name)
	}
	// The pauses go on getting longer: the count is the same container's.
	if after := restarts(); after < before {
		t.Errorf("%d restarts before the crash, %d after", before, after)
	}
	for restarts() <= before {
		e.do("inspect", "looping")
	}
	// What "always" ran again is restarted as ever when it ends of itself.
	e.do("exec", "always-stopped", "sh", "-c", "until grep -q 'SigCgt:.*4...$' /proc/1/status; do sleep 0.01; done; kill 1")
	e.until("running 1", "inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "always-stopped")
	// A stop ends a loop, also in the pause between two runs.
	e.do("stop", "looping")
	equal(t, e.do("inspect", "-f", "{{.State.Status}}", "looping"), "exited")
}

// Compose asks again for the log of each run, as our own client need not.
func TestFollowedLogEndsWithTheRun(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	e.do("run", "-d", "-t", "--name", "loop", "--restart", "always", "busybox", "sh", "-c", "echo ready; until rm /go; do sleep 0.01; done 2>/dev/null; echo once")
	log := e.send("GET", "/containers/loop/logs?stdout=1&follow=1", "").Body
	defer log.Close()
	r := bufio.NewReader(log)
	if line, err := r.ReadString('\n'); line != "ready\r\n" {
		t.Fatalf("the log begins with %q, %v", line, err)
	}
	e.do("exec", "loop", "touch", "/go")
	e.until("running 1", "inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "loop")
	if rest, err := io.ReadAll(r); string(rest) != "once\r\n" || err != nil {
		t.Errorf("the log goes on with %q, %v", rest, err)
	}
}

func TestHealth(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	status := func(want, name string) { e.until(want, "inspect", "-f", "{{.State.Health.Status}}", name) }
	// Only the start interval is short: the first check comes by it.
	e.do("run", "-d", "--name", "early", "--health-cmd", "true", "--health-interval", "1h", "--health-start-period", "1h", "--health-start-interval", "10ms", "busybox", "sleep", "1000")
	status("healthy", "early")
	// In the start period failures do not count.
	e.do("run", "-d", "--name", "starting", "--health-cmd", "echo failing; exit 2", "--health-interval", "10ms", "--health-start-period", "1h", "--health-retries", "1", "busybox", "sleep", "1000")
	e.until("5 2 failing", "inspect", "-f", "{{len .State.Health.Log}} {{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}", "starting")
	status("starting", "starting")
	e.do("run", "-d", "--name", "failing", "--health-cmd", "test -e /tmp/well", "--health-interval", "10ms", "--health-retries", "3", "busybox", "sleep", "1000")
	status("unhealthy", "failing")
	// A check that hangs, forks and shouts.
	e.do("run", "-d", "--name", "hanging", "--health-cmd", "setsid sleep 777 & yes", "--health-interval", "10ms", "--health-timeout", "200ms", "--health-retries", "2", "busybox", "sleep", "1000")
	e.until("unhealthy 5", "inspect", "-f", "{{.State.Health.Status}} {{len .State.Health.Log}}", "hanging")
	out := e.do("inspect", "-f", "{{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}", "hanging")
	if !strings.HasPrefix(out, "-1 Health check exceeded timeout (200ms): y\n") || len(out) > 5000 {
		t.Errorf("%d bytes: %.100q", len(out), out)
	}
	// One may be running at this moment, with its shells; none is left of the five before.
	if n, _ := strconv.Atoi(e.do("exec", "hanging", "sh", "-c", "ps | grep -c '[s]leep 777' || true")); n > 3 {
		t.Errorf("%d processes are left of checks", n)
	}
	// What is known of a container's health survives the engine.
	e.signal(syscall.SIGKILL)
	e.start()
	equal(t, e.do("inspect", "-f", "{{.State.Health.Status}}", "early"), "healthy")
	e.do("exec", "failing", "touch", "/tmp/well")
	status("healthy", "failing")
}
