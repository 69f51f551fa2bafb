package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/onggi/onggi/internal/build/executor"
	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/linux/seccomp"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/testenv"
	"github.com/onggi/onggi/internal/undo"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var _ undo.Stack
var _ specs.Spec

// newRealBuilder is a builder on the real stores and the real runtime.
func newRealBuilder(t *testing.T) *builder {
	t.Helper()
	testenv.NeedRoot(t)
	root := t.TempDir()
	db, err := metadb.Open(filepath.Join(root, "meta"), metadb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	snaps, err := snapshot.Open(filepath.Join(root, "snapshots"), db, snapshot.Options{})
	if err != nil {
		t.Fatal(err)
	}
	exec, err := executor.New(executor.Options{
		Root: filepath.Join(root, "run"), CgroupParent: "/onggi-test/build", Runtime: executor.OCI{},
		Seccomp: func(caps []string) *specs.LinuxSeccomp { return seccomp.Default(caps, "") },
	})
	if err != nil {
		t.Fatal(err)
	}
	s := snapshots{snaps}
	images := &memImages{snaps: s}
	c, err := newCore(t.Context(), parts{
		root:      filepath.Join(root, "build"),
		records:   func(b string) refs.Records { return bucket{db, b} },
		snapshots: s, layers: layers{}, mounter: mounter{}, executor: exec, images: images,
		disk: diskOf(root), unpack: unpackContext,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(snaps.Close(), db.Close()); err != nil {
			t.Error(err)
		}
		left, _ := os.ReadFile("/proc/self/mountinfo")
		for _, l := range strings.Split(string(left), "\n") {
			if strings.Contains(l, root) {
				t.Errorf("left mounted: %s", l)
			}
		}
	})
	b := serve(t, c)
	b.images = images
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

var _ = context.Background
var _ = fmt.Sprint
var _ = io.EOF
var _ = time.Second
