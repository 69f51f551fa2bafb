package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
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
// once for the test process.
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
	dir, err := os.MkdirTemp("", "onggi-bin-")
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, name)
	cmd := exec.Command(gotool, "build", "-tags", "grpcnotrace", "-o", p, module+"/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	built[name] = p
	return p
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
