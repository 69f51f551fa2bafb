package build

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"

	"github.com/onggi/onggi/internal/content"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/registry"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/testenv"
)

// newRealBuilder is a builder on the real stores and the real runtime.
func newRealBuilder(t *testing.T) *builder {
	t.Helper()
	testenv.NeedRoot(t)
	return openReal(t, t.TempDir())
}

// openReal starts an engine's worth of stores and a builder in a directory.
func openReal(t testing.TB, root string) *builder {
	t.Helper()
	db, err := metadb.Open(filepath.Join(root, "meta"), metadb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	snaps, err := snapshot.Open(filepath.Join(root, "snapshots"), db, snapshot.Options{})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := content.Open(filepath.Join(root, "content"))
	if err != nil {
		t.Fatal(err)
	}
	imgs, err := image.New(image.Options{Dir: filepath.Join(root, "image"), DB: db, Content: blobs, Snapshots: snaps, Registry: registry.New(registry.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Root: filepath.Join(root, "build"), DB: db, Snapshots: snaps, Images: imgs, CgroupParent: testGroup, MaxProcesses: 300})
	c, err := s.core(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := serve(t, c)
	b.store, b.snaps, b.service = imgs, snaps, s
	// Clean-up runs backwards: the client, the core (serve), then the stores.
	b.after(func() {
		if err := errors.Join(snaps.Close(), db.Close()); err != nil {
			t.Error(err)
		}
		left, _ := os.ReadFile("/proc/self/mountinfo")
		for _, l := range strings.Split(string(left), "\n") {
			if strings.Contains(l, root) {
				t.Errorf("left mounted: %s", l)
			}
		}
		groups, _ := filepath.Glob("/sys/fs/cgroup/*" + testGroup + "/*")
		more, _ := filepath.Glob("/sys/fs/cgroup" + testGroup + "/*")
		for _, g := range append(groups, more...) {
			if fi, err := os.Stat(g); err == nil && fi.IsDir() {
				t.Errorf("left: %s", g)
			}
		}
	})
	return b
}

// withBusybox adds a static busybox to a build context, and begins its
// Dockerfile with a stage "base" that has it installed.
func withBusybox(t *testing.T, files map[string]string) map[string]string {
	t.Helper()
	bb, err := os.ReadFile(testenv.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	out := maps.Clone(files)
	out["busybox"] = string(bb)
	df := out["Dockerfile"]
	head := ""
	for strings.HasPrefix(df, "ARG ") || strings.HasPrefix(df, "#") { // what must stay in front
		line, rest, _ := strings.Cut(df, "\n")
		head, df = head+line+"\n", rest
	}
	out["Dockerfile"] = head + "FROM scratch AS base\nCOPY --chmod=755 busybox /bin/busybox\n" +
		"RUN --network=none [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox mkdir -p /etc /tmp /root && /bin/busybox --install -s /bin && echo root:x:0:0::/root:/bin/sh > /etc/passwd\"]\n" + df
	return out
}

// tree builds to a directory and returns it.
func (b *builder) tree(files map[string]string, edit func(*buildOptions)) (string, *result, error) {
	b.t.Helper()
	dest := b.t.TempDir()
	o := buildOptions{dir: contextDir(b.t, files), attrs: map[string]string{"force-network-mode": "none"},
		output: client.ExportEntry{Type: "local", OutputDir: dest}}
	if edit != nil {
		edit(&o)
	}
	r, err := b.build(b.t.Context(), o)
	return dest, r, err
}

func TestRunForReal(t *testing.T) {
	b := newRealBuilder(t)
	dest, r, err := b.tree(withBusybox(t, map[string]string{
		"Dockerfile": "FROM base\nWORKDIR /w\nENV A=1\nRUN echo hello from $A && id -u > uid && pwd > pwd && hostname > host && ls /proc/self/fd | wc -l > fds\nRUN rm /tmp -rf && mkdir d && echo x > d/f\n",
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]string{"w/uid": "0\n", "w/pwd": "/w\n", "w/host": "buildkitsandbox\n", "w/d/f": "x\n", "w/fds": "4\n"} {
		if got, err := os.ReadFile(filepath.Join(dest, f)); string(got) != want {
			t.Errorf("%s: %q, %v", f, got, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dest, "tmp")); err == nil {
		t.Error("/tmp was not removed")
	}
	if !strings.Contains(r.logs, "hello from 1") {
		t.Errorf("output: %q", r.logs)
	}
}

var (
	mountReadOnly = snapshot.MountOptions{ReadOnly: true}
	removeForce   = image.RemoveOptions{Force: true}
)
