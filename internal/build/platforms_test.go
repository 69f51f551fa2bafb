package build

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/buildkit/client"

	"github.com/onggi/onggi/internal/ocispec"
)

// A build for several platforms is one image with all of them, each with its
// own files, and a build on it finds the one it asks for.
func TestBuildOfSeveralPlatforms(t *testing.T) {
	b := newRealBuilder(t)
	build := func(dockerfile, name string) string {
		t.Helper()
		dir := contextDir(t, map[string]string{"Dockerfile": dockerfile, "amd64": "amd64", "arm64": "arm64"})
		r, err := b.build(t.Context(), buildOptions{dir: dir, attrs: map[string]string{"platform": "linux/arm64,linux/amd64"},
			output: client.ExportEntry{Type: "moby", Attrs: map[string]string{"name": "docker.io/library/" + name}}})
		if err != nil {
			t.Fatal(err)
		}
		return r.resp["containerimage.digest"]
	}
	check := func(id, name string) {
		t.Helper()
		img, err := b.store.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		if id != img.ID || len(img.Others) != 1 || ocispec.MatchRank(ocispec.Host(), img.Config.Platform) != 0 {
			t.Errorf("the client was told %s; %+v", id, img)
		}
		for _, arch := range []string{"amd64", "arm64"} {
			img, err := b.store.GetFor(name, &ocispec.Platform{OS: "linux", Architecture: arch})
			if err != nil {
				t.Fatal(err)
			}
			dirs, err := b.snaps.Dirs(img.Snapshot)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, d := range append([]string{dirs.Upper}, dirs.Lowers...) {
				if f, err := os.ReadFile(filepath.Join(d, "arch")); err == nil {
					got = string(f)
				}
			}
			if img.Config.Architecture != arch || got != arch {
				t.Errorf("%s of %s is of %s with the files of %q", arch, name, img.Config.Architecture, got)
			}
		}
	}
	check(build("FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch\n", "multi:1"), "multi:1")
	check(build("FROM multi:1\nCOPY amd64 /other\n", "multi:2"), "multi:2")
	// A build of which every step is cached.
	check(build("FROM multi:1\nCOPY amd64 /other\n", "multi:2"), "multi:2")
}
