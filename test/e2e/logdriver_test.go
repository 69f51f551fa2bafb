package e2e

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A collector is a syslog server that can be away for a while.
type collector struct {
	t     *testing.T
	addr  string
	l     net.Listener
	lines chan string
}

func (c *collector) start() {
	l, err := net.Listen("tcp", c.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.l, c.addr = l, l.Addr().String()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for sc := bufio.NewScanner(conn); sc.Scan(); {
					c.lines <- sc.Text()
				}
			}()
		}
	}()
}

// upTo reads until a number has arrived, and checks that none before is missing.
// Some may come twice after a crash, as many as were not recorded yet.
func (c *collector) upTo(last int, have map[int]bool) {
	c.t.Helper()
	number := regexp.MustCompile(`tag-logger\[\d+\]: line (\d+)$`)
	deadline := time.After(time.Minute)
	for !have[last] {
		select {
		case s := <-c.lines:
			m := number.FindStringSubmatch(s)
			if m == nil {
				c.t.Fatalf("got %q", s)
			}
			n, _ := strconv.Atoi(m[1])
			if n > 1 && !have[n-1] {
				c.t.Fatalf("line %d came before line %d", n, n-1)
			}
			have[n] = true
		case <-deadline:
			c.t.Fatalf("line %d never came; %d lines have", last, len(have))
		}
	}
}

// A log reaches its receiver whole and in order while the receiver and the
// engine come and go, and can be read here meanwhile.
func TestLogDriverLosesNothing(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	c := &collector{t: t, addr: "127.0.0.1:0", lines: make(chan string, 1<<16)}
	c.start()
	t.Cleanup(func() { c.l.Close() })
	opts := []string{"--log-driver", "syslog", "--log-opt", "syslog-address=tcp://" + c.addr, "--log-opt", "tag=tag-{{.Name}}"}
	c.l.Close()
	e.refuse(125, []string{"initialize logging driver", "refused"}, append(append([]string{"run", "--rm"}, opts...), "busybox", "true")...)
	c.start()
	e.do(append(append([]string{"run", "-d", "--name", "logger"}, opts...), "busybox", "sh", "-c", "mkfifo /f; n=0; while read go </f; do for i in $(seq 100); do n=$((n+1)); echo line $n; done; done")...)
	say := func() {
		e.do("exec", "logger", "sh", "-c", "until [ -p /f ]; do sleep 0.01; done; echo go >/f")
	}
	have := map[int]bool{}
	say()
	c.upTo(100, have)
	e.signal(syscall.SIGKILL)
	e.start()
	say()
	c.upTo(200, have)
	e.signal(syscall.SIGTERM)
	e.start()
	say()
	c.upTo(300, have)
	if lines := strings.Split(e.do("logs", "logger"), "\n"); len(lines) != 300 || lines[299] != "line 300" {
		t.Errorf("logs has %d lines, the last %q", len(lines), lines[len(lines)-1])
	}
	equal(t, e.do("logs", "--tail", "1", "logger"), "line 300")
	// What is printed while the engine is away is sent, also where the container
	// has ended before there is one again.
	e.do("exec", "-d", "logger", "sh", "-c", "sleep 0.3; echo go >/f; sleep 0.3; kill -9 $(pidof sh | tr ' ' '\n' | grep -v $$)")
	pid, _ := strconv.Atoi(e.do("inspect", "-f", "{{.State.Pid}}", "logger"))
	e.signal(syscall.SIGKILL)
	for range 400 {
		if data, _ := os.ReadFile(filepath.Join(e.dir, "data/containers", e.ids(t), "container.log")); strings.Contains(string(data), "line 400\\n") {
			break
		}
		time.Sleep(5 * time.Millisecond) // polling another process
	}
	syscall.Kill(pid, syscall.SIGKILL)
	e.start()
	c.upTo(400, have)
	e.do("rm", "-f", "logger")
}

// ids is the name of the only directory of a container.
func (e *engine) ids(t *testing.T) string {
	t.Helper()
	found, err := os.ReadDir(filepath.Join(e.dir, "data/containers"))
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	return found[0].Name()
}

// The journal gets Docker's fields. A socket of ours stands for journald.
func TestJournald(t *testing.T) {
	e := prepareEngine(t)
	dir := filepath.Join(e.dir, "journal")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	e.wrap = []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", `mount -t tmpfs run /run && mkdir -p /run/systemd/journal && mount --bind "$1" /run/systemd/journal && shift && exec "$@"`, "sh", dir}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	e.start()
	e.busybox()
	e.do("run", "--rm", "--name", "writer", "--log-driver", "journald", "--log-opt", "labels-regex=^t", "--log-opt", "env=COLOUR", "--label", "team=red", "-e", "COLOUR=blue", "busybox",
		"sh", "-c", "echo out; sleep 0.05; echo err >&2")
	for _, want := range []string{"MESSAGE=out PRIORITY=6", "MESSAGE=err PRIORITY=3"} {
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		buf := make([]byte, 1<<16)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Split(string(buf[:n]), "\n")
		for _, field := range append(strings.Fields(want), "CONTAINER_NAME=writer", "IMAGE_NAME=busybox", "TEAM=red", "COLOUR=blue") {
			if !strings.Contains("\n"+strings.Join(got, "\n"), "\n"+field+"\n") {
				t.Errorf("no %s in %q", field, got)
			}
		}
	}
}

// Rotation is on by default, and templates and regular expressions choose what
// goes with each line.
func TestLogOptions(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	e.do("run", "--name", "small", "--log-opt", "max-size=10k", "--log-opt", "max-file=2", "--log-opt", "compress=true", "--log-opt", "tag={{upper .Name}}", "--log-opt", "env-regex=^A", "-e", "ABC=1", "busybox",
		"sh", "-c", "seq 10000")
	found, _ := filepath.Glob(filepath.Join(e.dir, "data/containers", e.ids(t), "*-json.log*"))
	if len(found) != 2 || !strings.HasSuffix(found[1], ".gz") {
		t.Errorf("files %v", found)
	}
	equal(t, e.do("logs", "--tail", "1", "--details", "small"), "ABC=1,tag=SMALL 10000")
	e.do("rm", "small")
	e.refuse(1, []string{"does not support reading"}, "logs", e.do("run", "-d", "--log-driver", "none", "busybox", "echo", "x"))
	e.do("run", "--name", "local", "--log-driver", "local", "busybox", "echo", "kept")
	equal(t, e.do("logs", "local"), "kept")
	for opt, words := range map[string]string{"tag={{.Nope}}": "tag", "max-size=lots": "max-size", "mode=sideways": "mode not supported", "max-buffer-size=1m": "non-blocking", "env-regex=(": "env-regex", "fluentd-address=x": "unknown log opt"} {
		e.refuse(125, []string{words}, "run", "--rm", "--log-opt", opt, "busybox", "true")
	}
	e.do("run", "--rm", "--log-opt", "mode=non-blocking", "--log-opt", "max-buffer-size=1m", "busybox", "true")
}
