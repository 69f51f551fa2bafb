package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/testenv"
)

// What we save, Docker's engine loads and runs, and the other way round; the image
// has one id in both.
func TestImageTravelsToDocker(t *testing.T) {
	e := newEngine(t)
	docker := newDocker(t)
	e.busybox()
	ctx := filepath.Join(e.dir, "ctx")
	write(t, ctx, map[string]string{
		"Dockerfile": "FROM busybox\nRUN echo built >/made && ln -s made /link && rm /bin/vi\nCOPY file /dir/\nUSER 1000:1000\nENV A=b\nCMD [\"cat\", \"/link\", \"/dir/file\"]\n",
		"file":       "copied\n",
	})
	e.do("build", "-q", "-t", "app:v1", ctx)
	id := e.do("images", "-q", "--no-trunc", "app:v1")
	saved := filepath.Join(t.TempDir(), "saved.tar")
	e.do("save", "-o", saved, "app:v1")

	docker("load", "-i", saved)
	if got := docker("images", "-q", "--no-trunc", "app:v1"); got != id {
		t.Errorf("in Docker it is %s, want %s", got, id)
	}
	if got := docker("run", "--rm", "--net", "none", "app:v1"); got != "built\ncopied" {
		t.Errorf("in Docker it says %q", got)
	}

	docker("run", "--name", "more", "--net", "none", "-u", "0", "app:v1", "sh", "-c", "echo more >/made; rm -r /dir")
	theirs := docker("commit", "--change", "CMD [\"cat\", \"/made\"]", "more", "app:v2")
	docker("save", "-o", saved, "app:v2")
	e.do("load", "-i", saved)
	if got := e.do("images", "-q", "--no-trunc", "app:v2"); got != theirs {
		t.Errorf("loaded %s, want %s", got, theirs)
	}
	if got := e.do("run", "--rm", "app:v2"); got != "more" {
		t.Errorf("it says %q", got)
	}
	e.refuse(1, []string{"/dir"}, "run", "--rm", "app:v2", "ls", "/dir")
	docker("rm", "more")
}

// newDocker starts Docker's engine, with everything of its own and without network.
// What it returns runs a command of its client, which must work.
func newDocker(t *testing.T) func(args ...string) string {
	t.Helper()
	dockerd, cli := testenv.NeedProgram(t, "dockerd"), testenv.NeedProgram(t, "docker")
	dir, err := os.MkdirTemp("", "onggi-docker-")
	if err != nil {
		t.Fatal(err)
	}
	sock, log := filepath.Join(dir, "docker.sock"), filepath.Join(dir, "log")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(dockerd, "-H", "unix://"+sock, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"), "-p", filepath.Join(dir, "pid"),
		"--bridge", "none", "--iptables=false", "--config-file", filepath.Join(dir, "none.json"))
	cmd.Stdout, cmd.Stderr = out, out
	// What it mounts is gone with its mount namespace.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if err := os.WriteFile(filepath.Join(dir, "none.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			if b, err := os.ReadFile(log); err == nil {
				t.Logf("dockerd's log:\n%s", b[max(0, len(b)-4000):])
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("Docker left something: %v", err)
		}
	})
	for {
		if conn, err := net.Dial("unix", sock); err == nil {
			conn.Close()
			break
		}
		select {
		case <-ended:
			b, _ := os.ReadFile(log)
			t.Fatalf("dockerd stopped while starting:\n%s", b)
		case <-time.After(20 * time.Millisecond): // polling another process
		}
	}
	return func(args ...string) string {
		t.Helper()
		c := exec.Command(cli, args...)
		c.Env = append(os.Environ(), "DOCKER_HOST=unix://"+sock, "DOCKER_CONFIG="+dir)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
}
