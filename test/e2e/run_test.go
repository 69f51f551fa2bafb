package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func equal(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestContainers(t *testing.T) {
	e := newEngine(t)
	e.busybox()

	t.Run("run", func(t *testing.T) {
		equal(t, e.do("run", "--rm", "busybox", "echo", "hello"), "hello")
		r := e.try("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3")
		equal(t, fmt.Sprint(r), "{out\n err\n 3}")
		equal(t, e.do("run", "--rm", "-e", "A=b", "-w", "/tmp", "-u", "guest", "-h", "jar", "busybox", "sh", "-c", "echo $A $(pwd) $(id -un) $(hostname)"), "b /tmp guest jar")
		equal(t, strings.TrimSpace(e.tryIn(strings.NewReader("through\n"), "run", "--rm", "-i", "busybox", "cat").out), "through")
	})
	t.Run("exit codes", func(t *testing.T) {
		e.refuse(127, []string{"nothing"}, "run", "--rm", "busybox", "nothing")
		e.refuse(126, []string{"permission denied"}, "run", "--rm", "busybox", "/etc/passwd")
		e.refuse(143, nil, "run", "--rm", "--init", "busybox", "sh", "-c", "kill -TERM $$")
	})
	t.Run("life", func(t *testing.T) {
		id := e.do("run", "-d", "--name", "life", "busybox", "sh", "-c", "echo started; trap 'echo stopping; exit 4' TERM; while :; do sleep 0.1; done")
		if len(id) != 64 {
			t.Errorf("id %q", id)
		}
		if out := e.do("ps", "--format", "{{.Names}} {{.Image}} {{.State}}"); out != "life busybox running" {
			t.Errorf("ps: %s", out)
		}
		equal(t, e.do("exec", "life", "sh", "-c", "echo in $(hostname) | cut -c1-3"), "in")
		name, err := os.ReadFile(filepath.Join(e.dir, "data/containers", id, "hostname")) // where Docker has it
		if err != nil || string(name) != id[:12]+"\n" {
			t.Errorf("hostname file %q, %v", name, err)
		}
		e.refuse(5, nil, "exec", "life", "sh", "-c", "exit 5")
		e.refuse(127, []string{"nope", "not found"}, "exec", "life", "nope")
		if r := e.tryIn(strings.NewReader("given"), "exec", "-i", "life", "sh", "-c", "cat; echo aside >&2; exit 3"); r.code != 3 || r.out != "given" || r.err != "aside\n" {
			t.Errorf("exec -i: %+v", r)
		}
		equal(t, e.do("exec", "-d", "life", "sh", "-c", "mkfifo /tmp/f; echo background >/tmp/f"), "")
		equal(t, e.do("exec", "life", "sh", "-c", "until [ -p /tmp/f ]; do sleep 0.05; done; cat /tmp/f"), "background")
		e.do("pause", "life")
		equal(t, e.do("inspect", "-f", "{{.State.Status}}", "life"), "paused")
		e.do("unpause", "life")
		e.do("stop", "life")
		equal(t, e.do("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "life"), "exited 4")
		equal(t, e.do("logs", "life"), "started\nstopping")
		e.do("start", "life")
		e.do("kill", "life")
		e.do("wait", "life")
		e.do("rename", "life", "after")
		e.do("rm", "after")
		e.refuse(1, []string{"after"}, "inspect", "after")
	})
	t.Run("cp, diff, commit", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, map[string]string{"in/a": "A", "in/sub/b": "B"})
		fresh := e.do("run", "-d", "busybox", "sleep", "1000")
		defer e.do("rm", "-f", fresh)
		e.do("run", "-d", "--name", "box", "--tmpfs", "/mnt", "busybox", "sleep", "1000")
		e.do("exec", "box", "touch", "/mnt/mounted")
		e.do("cp", filepath.Join(dir, "in"), "box:/root/copied")
		equal(t, e.do("exec", "box", "cat", "/root/copied/a", "/root/copied/sub/b"), "AB")
		e.do("exec", "box", "sh", "-c", "echo made >/tmp/made; rm /etc/passwd")
		e.do("cp", "box:/tmp/made", dir+"/out")
		data, _ := os.ReadFile(dir + "/out")
		equal(t, string(data), "made\n")
		equal(t, e.do("exec", "box", "stat", "-c", "%s", "/.dockerenv"), "0")
		equal(t, e.do("diff", fresh), "") // the places of mounts are not of the container
		diff := e.do("diff", "box")
		for _, line := range []string{"A /tmp/made", "D /etc/passwd", "A /root/copied/sub/b", "C /etc"} {
			if !strings.Contains(diff, line) {
				t.Errorf("diff has no %q:\n%s", line, diff)
			}
		}
		e.do("export", "-o", dir+"/box.tar", "box") // while it runs: its root, without what is mounted there
		list, err := exec.Command("tar", "-tf", dir+"/box.tar").Output()
		if err != nil {
			t.Fatal(err)
		}
		names := strings.Fields(string(list))
		if !slices.Contains(names, "tmp/made") || slices.Contains(names, "etc/passwd") || slices.Contains(names, "mnt/mounted") {
			t.Errorf("export: %.2000q", names)
		}
		e.do("commit", "-m", "by test", "box", "boxed:1")
		equal(t, e.do("run", "--rm", "boxed:1", "sh", "-c", "cat /tmp/made; ls /etc/passwd 2>/dev/null || echo gone"), "made\ngone")
		e.do("rm", "-f", "box")
		// A link in a volume means a path of the container, also before the start.
		e.do("run", "--rm", "-v", "links:/v", "busybox", "sh", "-c", "mkdir /v/d; echo kept >/v/d/f; ln -s /root /v/out; ln -s d /v/in; ln -s /v/loop /v/loop")
		e.do("create", "--name", "still", "--read-only", "-v", "links:/v", "busybox", "true")
		e.do("cp", "still:/v/in/f", dir+"/linked")
		data, _ = os.ReadFile(dir + "/linked")
		equal(t, string(data), "kept\n")
		e.refuse(1, []string{"container rootfs is marked read-only"}, "cp", dir+"/linked", "still:/v/out/")
		e.do("cp", dir+"/linked", "still:/v/in/")
		equal(t, e.do("run", "--rm", "-v", "links:/v", "busybox", "cat", "/v/d/linked"), "kept")
		e.refuse(1, []string{"symbolic links"}, "cp", "still:/v/loop/f", dir)
		e.do("rm", "-v", "still")
		e.do("volume", "rm", "links")
	})
	t.Run("volumes", func(t *testing.T) {
		e.do("volume", "create", "kept")
		e.do("run", "--rm", "-v", "kept:/data", "busybox", "sh", "-c", "echo one >/data/f")
		equal(t, e.do("run", "--rm", "-v", "kept:/data:ro", "busybox", "cat", "/data/f"), "one")
		e.refuse(1, nil, "run", "--rm", "-v", "kept:/data:ro", "busybox", "touch", "/data/g")
		dir := t.TempDir()
		write(t, dir, map[string]string{"f": "bound"})
		equal(t, e.do("run", "--rm", "-v", dir+":/b", "--mount", "type=tmpfs,target=/t", "busybox", "sh", "-c", "cat /b/f; touch /t/x"), "bound")
		e.do("volume", "rm", "kept")
	})
	t.Run("names and limits", func(t *testing.T) {
		out := e.do("run", "--rm", "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5", "--ulimit", "nofile=100:100", "--read-only", "busybox",
			"sh", "-c", "ulimit -n; (touch /x) 2>&1 | grep -o Read-only; grep -c . /proc/self/cgroup >/dev/null && echo ok")
		equal(t, out, "100\nRead-only\nok")
	})
}

func TestNetworks(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	t.Run("published port", func(t *testing.T) {
		e.do("run", "-d", "--name", "web", "-p", "127.0.0.1::8000", "busybox", "sh", "-c", "mkdir /www; echo served >/www/index.html; httpd -f -p 8000 -h /www")
		addr := e.do("port", "web", "8000/tcp")
		var body string
		for range 200 {
			if resp, err := http.Get("http://" + addr + "/"); err == nil {
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				body = string(b)
				break
			}
			e.do("exec", "web", "sleep", "0.05")
		}
		equal(t, body, "served\n")
		_, port, _ := net.SplitHostPort(addr)
		e.refuse(125, []string{port, "web"}, "run", "--rm", "-p", "127.0.0.1:"+port+":1", "busybox", "true")
		e.do("rm", "-f", "web")
		if resp, err := http.Get("http://" + addr + "/"); err == nil {
			resp.Body.Close()
			t.Error("the port is served after the container is gone")
		}
	})
	t.Run("names", func(t *testing.T) {
		e.do("network", "create", "team")
		e.do("run", "-d", "--name", "one", "--network", "team", "--network-alias", "eins", "busybox", "sh", "-c", "echo hello >/index.html; httpd -f -p 80 -h /")
		equal(t, e.do("run", "--rm", "--network", "team", "busybox", "sh", "-c", "for n in one eins; do until wget -qO- http://$n/; do sleep 0.05; done; done"), "hello\nhello")
		e.refuse(1, []string{"team"}, "network", "rm", "team")
		e.do("rm", "-f", "one")
		e.do("network", "rm", "team")
	})
	t.Run("links and connections", func(t *testing.T) {
		e.do("run", "-d", "--name", "db", "-e", "KEY=value", "--expose", "5432", "busybox", "sleep", "1000")
		e.do("run", "-d", "--name", "app", "--link", "db:store", "busybox", "sleep", "1000")
		in := func(script string) string { return e.do("exec", "app", "sh", "-c", script) }
		addr := func() string { return e.do("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "db") }
		equal(t, in("echo $STORE_PORT $STORE_ENV_KEY $STORE_NAME"), "tcp://"+addr()+":5432 value /app/store")
		equal(t, in("grep store /etc/hosts | head -1"), addr()+"\tstore "+e.do("inspect", "-f", "{{.Config.Hostname}}", "db")+" db")
		// The linked one comes back with another address.
		e.do("stop", "-t", "0", "db")
		e.do("run", "-d", "--name", "other", "busybox", "sleep", "1000")
		e.do("start", "db")
		equal(t, in("grep store /etc/hosts | head -1 | cut -f1"), addr())

		e.do("network", "create", "side")
		e.do("network", "connect", "--alias", "here", "side", "app")
		equal(t, in("grep -c $HOSTNAME /etc/hosts; nslookup here | grep -c 'Name:.*here'"), "4\n2") // two families on each
		e.do("network", "disconnect", "bridge", "app")
		equal(t, in("grep nameserver /etc/resolv.conf | head -1"), "nameserver "+e.do("inspect", "-f", "{{.NetworkSettings.Networks.side.Gateway}}", "app"))
		e.do("rename", "app", "renamed")
		equal(t, e.do("run", "--rm", "--network", "side", "busybox", "nslookup", "renamed")[:7], "Server:")
		e.do("rm", "--link", "renamed/store")
		equal(t, e.do("inspect", "-f", "{{len .HostConfig.Links}}", "renamed"), "0")
		e.refuse(1, []string{"none"}, "network", "connect", "none", "renamed")

		// What an image exposes is no conflict with another container's network.
		e.do("commit", "-c", "EXPOSE 80", "db", "exposes")
		equal(t, e.do("run", "--rm", "--network", "container:db", "exposes", "hostname"), e.do("exec", "db", "hostname"))
		e.refuse(125, []string{"port exposing"}, "run", "--rm", "--network", "container:db", "--expose", "80", "busybox", "true")
		e.do("rm", "-f", "db", "renamed", "other")
		e.do("network", "rm", "side")
	})
	t.Run("none and host", func(t *testing.T) {
		equal(t, e.do("run", "--rm", "--network", "none", "busybox", "sh", "-c", "ip -o link | wc -l"), "1")
		equal(t, e.do("run", "--rm", "--network", "host", "busybox", "sh", "-c", "ip -o link | grep -q e2e && echo seen"), "seen")
	})
}

func TestEngineMayDie(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		name := "c" + sig.String()[:1]
		e.do("run", "-d", "--name", name, "busybox", "sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.02; done")
		e.signal(sig)
		e.start()
		equal(t, e.do("inspect", "-f", "{{.State.Running}}", name), "true")
		e.do("exec", name, "true")
		e.do("stop", "-t", "0", name)
		lines := strings.Split(e.do("logs", name), "\n")
		for i, l := range lines {
			if l != fmt.Sprintf("line %d", i) {
				t.Errorf("after %v: line %d is %q", sig, i, l)
				break
			}
		}
		equal(t, e.do("inspect", "-f", "{{.State.ExitCode}}", name), "137")
		e.do("rm", "-f", name)
	}
	// What ends while no engine is there has its status all the same.
	e.do("run", "-d", "--name", "quick", "busybox", "sh", "-c", "sleep 0.3; exit 6")
	e.signal(syscall.SIGKILL)
	e.start()
	equal(t, e.do("wait", "quick"), "6")
}
