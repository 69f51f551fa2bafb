package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/testenv"
	"github.com/onggi/onggi/internal/testenv/registrytest"
)

// The clients that people have already, each in front of an engine of its own:
// what they do is in the scripts of test/clients.
func TestClients(t *testing.T) {
	testenv.NeedRoot(t)
	for _, p := range []string{"bash", "git", "ssh-agent", "script", "wget"} {
		testenv.NeedProgram(t, p)
	}
	plugins := filepath.Join(t.TempDir(), "cli-plugins")
	if err := os.Mkdir(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	docker := installClient(t, "docker")
	for _, p := range []string{"buildx", "compose"} {
		if err := os.Symlink(installClient(t, p), filepath.Join(plugins, "docker-"+p)); err != nil {
			t.Fatal(err)
		}
	}
	// What `make build` puts beside onggi.
	testenv.Binary(t, "onggi-build")
	beside := filepath.Join(filepath.Dir(testenv.Binary(t, "onggi")), "onggi-compose")
	os.Remove(beside)
	if err := os.Link(installClient(t, "onggi-compose"), beside); err != nil { // a file: it looks for its siblings
		t.Fatal(err)
	}
	for _, script := range []string{"docker", "buildx", "compose"} {
		t.Run(script, func(t *testing.T) { runClient(t, script, docker, plugins) })
	}
	t.Run("moby", func(t *testing.T) {
		e := newEngine(t)
		e.busybox()
		mobyClient(t, e)
	})
	t.Run("testcontainers-go", func(t *testing.T) { runClient(t, installClient(t, "testcontainers-go"), docker, plugins) })
	t.Setenv("NODE_PATH", installClient(t, "node"))
	for _, script := range []string{"dockerode", "testcontainers-node"} {
		t.Run(script, func(t *testing.T) { runClient(t, script, docker, plugins) })
	}
	// Other versions, where the machine has them.
	for _, other := range []string{"/usr/bin/docker", "/usr/local/bin/docker"} {
		if _, err := os.Stat(other); err == nil {
			t.Run(strings.ReplaceAll(strings.Trim(other, "/"), "/", "-"), func(t *testing.T) { runClient(t, "docker", other, plugins) })
		}
	}
}

// installClient builds a client, and returns its path.
func installClient(t *testing.T, name string) string {
	t.Helper()
	cmd := exec.Command("../clients/install", name)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		if !testenv.Strict() {
			t.Skipf("needs %s from the Go module proxy: %v\n%s", name, err, errs.String())
		}
		t.Fatalf("install %s: %v\n%s", name, err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// runClient runs one script with an engine and a registry of its own.
func runClient(t *testing.T, script, docker, plugins string) {
	reg := registrytest.Start(t, registrytest.Options{Auth: registrytest.Basic})
	e := newEngine(t)
	e.busybox()
	config, work := filepath.Join(e.dir, "docker-config"), filepath.Join(e.dir, "work")
	for _, d := range []string{config, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(plugins, filepath.Join(config, "cli-plugins")); err != nil {
		t.Fatal(err)
	}
	path, err := filepath.Abs(filepath.Join("../clients", script))
	if err != nil {
		t.Fatal(err)
	}
	if filepath.IsAbs(script) {
		path = script
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.WaitDelay = 5 * time.Second // what a script leaves running may hold its output
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "DOCKER="+docker, "ONGGI="+e.cli, "ONGGI_HOST=unix://"+e.sock, "DOCKER_HOST=unix://"+e.sock, "DOCKER_CONFIG="+config, "BUILDX_CONFIG="+filepath.Join(e.dir, "buildx"),
		"REGISTRY="+reg.Host, "REGISTRY_USER="+registrytest.User, "REGISTRY_PASSWORD="+registrytest.Password, fmt.Sprintf("HTTP_PORT=%d", freePort(t)))
	if out, err := cmd.CombinedOutput(); err != nil {
		if len(out) > 4000 {
			out = out[len(out)-4000:]
		}
		t.Errorf("%s: %v\n%s", script, err, out)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
