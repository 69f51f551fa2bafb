package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/onggi/onggi"

var (
	buildMu sync.Mutex
	built   = map[string]string{} // program → path; guarded by buildMu
)

// Binary returns the path of one of Onggi's programs ("onggi-monitor"): from
// the directory ONGGI_BIN where that is set, as in the VM lane, else built
// once.
func Binary(t testing.TB, name string) string {
	t.Helper()
	if dir := os.Getenv("ONGGI_BIN"); dir != "" {
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	buildMu.Lock()
	defer buildMu.Unlock()
	if p, ok := built[name]; ok {
		return p
	}
	gotool := NeedProgram(t, "go")
	p, err := buildOnce(gotool, name)
	if err != nil {
		t.Fatal(err)
	}
	built[name] = p
	return p
}

// buildOnce builds into .cache/bin of the source tree, so that nothing is left
// elsewhere. A program is renamed into place, since another test may run it.
func buildOnce(gotool, name string) (string, error) {
	mod, err := exec.Command(gotool, "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the source tree: %w", err)
	}
	dir := filepath.Join(filepath.Dir(strings.TrimSpace(string(mod))), ".cache", "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	fresh := filepath.Join(dir, fmt.Sprintf(".%s-%d", name, os.Getpid()))
	cmd := exec.Command(gotool, "build", "-tags", "grpcnotrace", "-o", fresh, module+"/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	p := filepath.Join(dir, name)
	return p, os.Rename(fresh, p)
}

// Busybox returns the path of a statically linked busybox.
func Busybox(t testing.TB) string {
	t.Helper()
	for _, p := range []string{os.Getenv("ONGGI_BUSYBOX"), "/bin/busybox", "/usr/bin/busybox"} {
		if p == "" {
			continue
		}
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	missing(t, "a static busybox (Debian: busybox-static)")
	return ""
}
