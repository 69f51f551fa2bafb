package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
)

// A directory handed over as a descriptor gives the build that the session's
// file sync gives: each finds the other's cache.
func TestDirectoryByDescriptorIsTheSameBuild(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	dir := contextDir(t, map[string]string{
		"Dockerfile": "FROM scratch\nCOPY a /\nCOPY . /all\nCOPY --exclude=*.go d /d\n",
		"a":          "a", "d/x.go": "x", "d/y": "y", "d/z.log": "z", ".dockerignore": "**/*.log\n",
	})
	os.Symlink("/etc/passwd", filepath.Join(dir, "link"))
	os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "same"))
	image := client.ExportEntry{Type: "image", Attrs: map[string]string{"name": "docker.io/library/t:latest"}}
	byDescriptor := func() *result {
		t.Helper()
		r, err := b.build(t.Context(), buildOptions{dir: dir, output: image, handOver: true})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	bySession := func() *result {
		t.Helper()
		r, err := b.build(t.Context(), buildOptions{dir: dir, output: image})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	cached := func(r *result, want bool) {
		t.Helper()
		for name, c := range r.cached {
			if strings.HasPrefix(name, "[") && !strings.Contains(name, "[internal]") && c != want {
				t.Errorf("%s: cached %v, want %v", name, c, want)
			}
		}
	}
	first := byDescriptor()
	cached(first, false)
	second := bySession()
	cached(second, true)
	if a, z := first.resp["containerimage.digest"], second.resp["containerimage.digest"]; a != z {
		t.Errorf("digests %s and %s", a, z)
	}
	os.WriteFile(filepath.Join(dir, "a"), []byte("other"), 0o644)
	bySession()
	third := byDescriptor()
	cached(third, true)
	if first.resp["containerimage.digest"] == third.resp["containerimage.digest"] {
		t.Error("the change was not seen")
	}
}
