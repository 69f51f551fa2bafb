// Package e2e drives Onggi's programs as a person does: an engine in a
// directory of its own, the command line in front of it.
package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/testenv"
)

// An engine is one onggid with everything of its own.
type engine struct {
	t     testing.TB
	dir   string
	sock  string
	flags []string
	wrap  []string // a command that runs the engine, for engines in other surroundings
	cmd   *exec.Cmd
	cli   string
}

var engines atomic.Int32

// newEngine starts one; it and all it made are gone when the test ends.
func newEngine(t testing.TB, flags ...string) *engine {
	t.Helper()
	e := prepareEngine(t, flags...)
	e.start()
	return e
}

// prepareEngine does all but start it.
func prepareEngine(t testing.TB, flags ...string) *engine {
	t.Helper()
	testenv.NeedRoot(t)
	dir, err := os.MkdirTemp("", "onggi-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	n := int(engines.Add(1)) + os.Getpid()%60*4
	e := &engine{t: t, dir: dir, sock: filepath.Join(dir, "run/onggi.sock"), cli: testenv.Binary(t, "onggi")}
	for _, p := range []string{"onggi-monitor", "onggi-build", "onggi-format", "onggi-tls"} {
		link(t, e, p)
	}
	e.flags = append([]string{"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"), "--pidfile", filepath.Join(dir, "pid"),
		"-H", "unix://" + e.sock, "--bip", fmt.Sprintf("172.28.%d.1/24", n%250), "--bridge-name", fmt.Sprintf("e2e%d-%d", os.Getpid()%1e6, n%1000)}, flags...)
	t.Cleanup(e.end)
	return e
}

// command is onggid with this engine's flags.
func (e *engine) command(more ...string) *exec.Cmd {
	argv := append(append(append([]string{}, e.wrap...), testenv.Binary(e.t, "onggid")), e.flags...)
	argv = append(argv, more...)
	return exec.Command(argv[0], argv[1:]...)
}

// link puts a sibling program beside the ones that look for it there.
func link(t testing.TB, e *engine, name string) {
	p := testenv.Binary(t, name)
	for _, other := range []string{e.cli, testenv.Binary(t, "onggid")} {
		at := filepath.Join(filepath.Dir(other), name)
		if at != p {
			os.Symlink(p, at)
		}
	}
}

func (e *engine) start() {
	e.t.Helper()
	log, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	e.cmd = e.command()
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	ended := make(chan struct{})
	cmd := e.cmd
	go func() { cmd.Wait(); close(ended) }()
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		if conn, err := net.Dial("unix", e.sock); err == nil {
			conn.Close()
			return
		}
		select {
		case <-ended:
			e.t.Fatalf("the engine stopped while starting:\n%s", e.log())
		case <-time.After(5 * time.Millisecond): // polling another process
		}
	}
	e.t.Fatalf("the engine did not come up:\n%s", e.log())
}

func (e *engine) log() string {
	data, _ := os.ReadFile(filepath.Join(e.dir, "log"))
	if len(data) > 4000 {
		data = data[len(data)-4000:]
	}
	return string(data)
}

// signal ends the engine with a signal and waits until it is gone.
func (e *engine) signal(s syscall.Signal) {
	e.cmd.Process.Signal(s)
	for i := 0; i < 4000 && e.cmd.Process.Signal(syscall.Signal(0)) == nil; i++ {
		time.Sleep(5 * time.Millisecond) // polling another process
	}
}

func (e *engine) end() {
	if e.t.Failed() {
		e.t.Logf("the engine's log:\n%s", e.log())
	}
	if ids := strings.Fields(e.try("ps", "-aq").out); len(ids) > 0 {
		e.try(append([]string{"rm", "-f"}, ids...)...)
	}
	e.signal(syscall.SIGTERM)
	if out, err := e.command("--cleanup").CombinedOutput(); err != nil {
		e.t.Errorf("cleanup: %v\n%s", err, out)
	}
	if mounts := mountsBelow(e.dir); len(mounts) > 0 {
		e.t.Errorf("mounts are left: %v", mounts)
		return
	}
	exec.Command("rm", "-rf", "--one-file-system", e.dir).Run()
}

func mountsBelow(dir string) (found []string) {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			found = append(found, f[4])
		}
	}
	return found
}

type result struct {
	out, err string
	code     int
}

// try runs a command of the command line.
func (e *engine) try(args ...string) result { return e.tryIn(nil, args...) }

func (e *engine) tryIn(stdin io.Reader, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, e.cli, append([]string{"-H", "unix://" + e.sock, "--config", filepath.Join(e.dir, "config")}, args...)...)
	var out, errb bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errb
	err := cmd.Run()
	r := result{out: out.String(), err: errb.String()}
	if x, ok := errors.AsType[*exec.ExitError](err); ok {
		r.code = x.ExitCode()
	} else if err != nil {
		r.code, r.err = -1, err.Error()
	}
	return r
}

// do runs a command that must work, and returns what it printed.
func (e *engine) do(args ...string) string {
	e.t.Helper()
	r := e.try(args...)
	if r.code != 0 {
		e.t.Fatalf("onggi %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

// refuse runs a command that must not work, and checks what it says.
func (e *engine) refuse(code int, want []string, args ...string) {
	e.t.Helper()
	r := e.try(args...)
	if r.code != code {
		e.t.Errorf("onggi %s: exit %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.out, r.err)
	}
	for _, w := range want {
		if !strings.Contains(r.err+r.out, w) {
			e.t.Errorf("onggi %s: the message does not say %q:\n%s%s", strings.Join(args, " "), w, r.out, r.err)
		}
	}
}

// request is a request of the API without a client's help.
func (e *engine) request(method, path, body string) (int, string) {
	e.t.Helper()
	resp := e.send(method, path, body)
	defer resp.Body.Close()
	data, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data)
}

// send is request, whose answer is still to be read and closed.
func (e *engine) send(method, path, body string) *http.Response {
	e.t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.sock)
	}}, Timeout: time.Minute}
	req, err := http.NewRequest(method, "http://engine"+path, strings.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	return resp
}

// busybox imports a root file system of busybox as "busybox".
func (e *engine) busybox() {
	e.t.Helper()
	r := e.tryIn(bytes.NewReader(busyboxTar(e.t)), "import", "--change", `CMD ["sh"]`, "-", "busybox")
	if r.code != 0 {
		e.t.Fatalf("import busybox: %s%s", r.out, r.err)
	}
}

func busyboxTar(t testing.TB) []byte {
	bb := testenv.Busybox(t)
	data, err := os.ReadFile(bb)
	if err != nil {
		t.Fatal(err)
	}
	list, err := exec.Command(bb, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range []string{"bin", "etc", "tmp", "root", "proc", "sys", "dev", "var", "home"} {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755})
	}
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(data))})
	w.Write(data)
	for _, a := range strings.Fields(string(list)) {
		if a != "busybox" {
			w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777})
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000::/home:/bin/sh\n"
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644, Size: int64(len(passwd))})
	io.WriteString(w, passwd)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// write makes files of a build context.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
