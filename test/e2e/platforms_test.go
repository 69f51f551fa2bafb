package e2e

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/testenv/registrytest"
)

// An image of two platforms is built, pushed, pulled one platform after the
// other, run, saved, loaded and pushed on; then one platform of it is removed.
func TestImageOfSeveralPlatforms(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{})
	one, two := newEngine(t), newEngine(t)
	host, other := "linux/"+runtime.GOARCH, "linux/arm64"
	if host == other {
		other = "linux/amd64"
	}
	name, copied := reg.Host+"/team/app:v1", reg.Host+"/other/app:v1"
	ctx := filepath.Join(one.dir, "ctx")
	write(t, ctx, map[string]string{
		"Dockerfile": "FROM scratch\nADD root.tar /\nARG TARGETPLATFORM\nCOPY $TARGETPLATFORM /platform\n",
		"root.tar":   string(busyboxTar(t)), host: host, other: other,
	})
	one.do("build", "-q", "--provenance=true", "--platform", host+","+other, "-t", name, ctx)
	if code, body := one.request("GET", "/v1.55/images/"+name+"/attestations?statement=1&type=https://slsa.dev/provenance/v1&platform="+other, ""); code != 200 || !strings.Contains(body, `"predicate"`) {
		t.Errorf("attestations: %d %.300s", code, body)
	}
	if out := one.do("run", "--rm", name, "cat", "/platform"); out != host {
		t.Errorf("it says %q", out)
	}
	digest := digestPattern.FindString(one.do("push", name))

	two.do("pull", "-q", "--platform", other, name)
	two.do("pull", "-q", name)
	whole := func(e *engine, name string) {
		t.Helper()
		if out := e.do("images", "-q", name); strings.Contains(out, "\n") {
			t.Errorf("listed more than once: %s", out)
		}
		tree := e.do("images", "--tree", name)
		for _, p := range []string{"─ " + host, "─ " + other} {
			if !strings.Contains(tree, p) {
				t.Errorf("no %s in\n%s", p, tree)
			}
		}
		for _, p := range []string{host, other} {
			if out := e.do("image", "inspect", "--platform", p, "-f", "{{.Os}}/{{.Architecture}}", name); out != p {
				t.Errorf("inspect for %s: %s", p, out)
			}
		}
		if out := e.do("run", "--rm", name, "cat", "/platform"); out != host {
			t.Errorf("it says %q", out)
		}
	}
	whole(two, name)
	if out := two.do("image", "inspect", "-f", "{{index .RepoDigests 0}}", name); !strings.HasSuffix(out, "@"+digest) {
		t.Errorf("pulled %s, want %s", out, digest)
	}
	// Pushed on, it is the same index; saved and loaded, the same images.
	two.do("tag", name, copied)
	if got := digestPattern.FindString(two.do("push", copied)); got != digest {
		t.Errorf("pushed on as %s, want %s", got, digest)
	}
	file, part := filepath.Join(t.TempDir(), "all.tar"), filepath.Join(t.TempDir(), "part.tar")
	two.do("save", "-o", file, name)
	two.do("save", "-o", part, "--platform", other, name)
	id := one.do("images", "-q", name)
	one.do("rmi", name)
	one.do("load", "-i", part)
	one.refuse(1, []string{"but its platform (" + other + ")"}, "image", "inspect", "--platform", host, name)
	one.do("load", "-i", file)
	whole(one, name)
	if got := one.do("images", "-q", name); got != id {
		t.Errorf("loaded %s, want %s", got, id)
	}

	// A container of one platform keeps that, and is shown under the name.
	two.do("rmi", copied)
	two.do("create", "--name", "other", "--platform", other, name, "true")
	if out := two.do("ps", "-a", "--format", "{{.Image}}"); out != name {
		t.Errorf("the container's image is %q", out)
	}
	two.refuse(1, []string{"is being used by stopped container"}, "rmi", "--platform", other, name)
	two.do("rm", "other")
	if out := two.do("rmi", "--platform", other, name); strings.Contains(out, "Untagged") || !strings.Contains(out, "Deleted") {
		t.Errorf("rmi: %s", out)
	}
	if tree := two.do("images", "--tree", name); !strings.Contains(tree, "("+other+")") {
		t.Errorf("the platform is not shown as missing:\n%s", tree)
	}
	two.refuse(125, []string{"does not provide the specified platform"}, "run", "--rm", "--pull", "never", "--platform", other, name)
	if out := two.do("run", "--rm", name, "cat", "/platform"); out != host {
		t.Errorf("it says %q", out)
	}
	two.do("rmi", name)
	if left, err := os.ReadDir(filepath.Join(two.dir, "data", "image", "split")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
