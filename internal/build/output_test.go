package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/metadata"
)

var outputFiles = map[string]string{
	"Dockerfile": "FROM scratch AS a\nCOPY one /dir/one\nFROM a\nCOPY two /two\n",
	"one":        "1", "two": "2",
}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }

func TestOutputDirectory(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	dest := t.TempDir()
	_, err := b.build(t.Context(), buildOptions{dir: contextDir(t, outputFiles), output: client.ExportEntry{Type: "local", OutputDir: dest}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dest, "dir/one")); err != nil || string(got) != "1" {
		t.Errorf("%q, %v", got, err)
	}
}

func names(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(b)
	}
}

func TestOutputArchives(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	dir := contextDir(t, outputFiles)
	for _, c := range []struct {
		kind  string
		attrs map[string]string
		want  []string
	}{
		{"tar", nil, []string{"dir/one", "two"}},
		{"oci", nil, []string{"oci-layout", "index.json"}},
		{"oci", map[string]string{"compression": "zstd", "force-compression": "true"}, []string{"index.json"}},
		{"oci", map[string]string{"compression": "uncompressed"}, []string{"index.json"}},
		{"docker", map[string]string{"name": "docker.io/library/out:1"}, []string{"manifest.json"}},
	} {
		var out bytes.Buffer
		_, err := b.build(t.Context(), buildOptions{dir: dir, output: client.ExportEntry{Type: c.kind, Attrs: c.attrs,
			Output: func(map[string]string) (io.WriteCloser, error) { return closer{&out}, nil }}})
		if err != nil {
			t.Errorf("%s: %v", c.kind, err)
			continue
		}
		got := names(t, &out)
		for _, w := range c.want {
			if _, ok := got[w]; !ok {
				t.Errorf("%s %v: no %s", c.kind, c.attrs, w)
			}
		}
	}
}

func TestUnknownOutput(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	_, err := b.classic(ClassicRequest{Version: "1", Tar: tarOf(t, outputFiles), Outputs: []Output{{Type: "floppy"}}})
	if err == nil || !strings.Contains(err.Error(), `no output type "floppy"`) {
		t.Errorf("%v", err)
	}
}

// What one builder exported, another need not build.
func TestCacheOfAnotherBuilder(t *testing.T) {
	cacheDir := t.TempDir()
	dir := contextDir(t, map[string]string{
		"Dockerfile": "FROM scratch\nCOPY one /one\nRUN something\nCOPY two /two\n", "one": "1", "two": "2",
	})
	first := newBuilder(t, &nopExecutor{})
	_, err := first.build(t.Context(), buildOptions{dir: dir, edit: func(o *client.SolveOpt) {
		o.CacheExports = []client.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"dest": cacheDir, "mode": "max"}}}
	}})
	if err != nil {
		t.Fatal(err)
	}
	exec := &nopExecutor{}
	second := newBuilder(t, exec)
	var out bytes.Buffer
	_, err = second.build(t.Context(), buildOptions{dir: dir,
		output: client.ExportEntry{Type: "tar", Output: func(map[string]string) (io.WriteCloser, error) { return closer{&out}, nil }},
		edit: func(o *client.SolveOpt) {
			o.CacheImports = []client.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"src": cacheDir}}}
		}})
	if err != nil {
		t.Fatal(err)
	}
	if exec.runs != 0 {
		t.Errorf("%d steps were run", exec.runs)
	}
	got := names(t, &out)
	if got["one"] != "1" || got["two"] != "2" {
		t.Errorf("result: %v", got)
	}
}

// The image's config carries the cache, if the build asks for it.
func TestInlineCache(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	_, err := b.build(t.Context(), buildOptions{dir: contextDir(t, outputFiles),
		output: client.ExportEntry{Type: "image", Attrs: map[string]string{"name": "docker.io/library/inline:1"}},
		edit:   func(o *client.SolveOpt) { o.CacheExports = []client.CacheOptionsEntry{{Type: "inline"}} }})
	if err != nil {
		t.Fatal(err)
	}
	if cfg := b.images.byName["docker.io/library/inline:1"].Config; !bytes.Contains(cfg, []byte("moby.buildkit.cache.v0")) {
		t.Errorf("no cache in %s", cfg)
	}
}

func TestAttestations(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	attrs := map[string]string{"attest:provenance": "mode=max"}
	_, err := b.build(t.Context(), buildOptions{dir: contextDir(t, outputFiles), attrs: attrs,
		output: client.ExportEntry{Type: "image", Attrs: map[string]string{"name": "docker.io/library/prov:1"}}})
	if err != nil {
		t.Fatal(err)
	}
	built := b.images.byName["docker.io/library/prov:1"]
	if built.Index == nil || !bytes.Contains(built.Index, []byte("attestation-manifest")) || len(built.Layers) != 2 {
		t.Errorf("index %s, %d layers", built.Index, len(built.Layers))
	}
}

func TestHistory(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	dir := contextDir(t, outputFiles)
	if _, err := b.build(t.Context(), buildOptions{dir: dir, attrs: map[string]string{"filename": "Dockerfile"}}); err != nil {
		t.Fatal(err)
	}
	b.build(t.Context(), buildOptions{dir: contextDir(t, map[string]string{"Dockerfile": "FROM scratch\nRUN exit 3\n"})})
	got := b.history()
	if len(got) != 2 {
		t.Fatalf("%d records", len(got))
	}
	var failed int
	for _, r := range got {
		if r.Error != nil {
			failed++
		}
		if r.Logs == nil {
			t.Errorf("build %s has no logs", r.Ref)
		}
	}
	if failed != 1 {
		t.Errorf("%d of 2 builds failed", failed)
	}
}

// The record of a build has the trace of what its steps did, as part of the trace
// that the client began.
func TestTrace(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	const parent = "0af7651916cd43dd8448eb211c80319c"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+parent+"-b7ad6b7169203331-01")
	if _, err := b.build(ctx, buildOptions{dir: contextDir(t, map[string]string{"Dockerfile": "FROM scratch\nRUN x\n"})}); err != nil {
		t.Fatal(err)
	}
	ref := b.history()[0].Ref
	c := b.client.ControlClient()
	if _, err := c.UpdateBuildHistory(t.Context(), &controlapi.UpdateBuildHistoryRequest{Ref: ref, Finalize: true}); err != nil {
		t.Fatal(err)
	}
	rec := b.history()[0]
	if rec.Trace == nil {
		t.Fatal("no trace")
	}
	dt, err := content.ReadBlob(t.Context(), proxy.NewContentStore(b.client.ContentClient()), ocispecs.Descriptor{Digest: digest.Digest(rec.Trace.Digest), Size: rec.Trace.Size})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{parent, "[1/1] RUN x"} {
		if !strings.Contains(string(dt), want) {
			t.Errorf("no %q in %.500s", want, dt)
		}
	}
}

// An output directory that is to hold the result only has a directory for each
// platform, and loses the rest.
func TestOutputReplacesADirectory(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	dest := t.TempDir()
	os.MkdirAll(filepath.Join(dest, "linux_amd64"), 0o755)
	for _, stale := range []string{"stale", "linux_amd64/stale"} {
		if err := os.WriteFile(filepath.Join(dest, stale), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.build(t.Context(), buildOptions{dir: contextDir(t, outputFiles), attrs: map[string]string{"platform": "linux/amd64,linux/arm64"},
		output: client.ExportEntry{Type: "local", OutputDir: dest, Attrs: map[string]string{"mode": "delete"}}})
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]bool{"linux_amd64/dir/one": true, "linux_arm64/two": true, "stale": false, "linux_amd64/stale": false} {
		if _, err := os.Stat(filepath.Join(dest, p)); (err == nil) != want {
			t.Errorf("%s: %v", p, err)
		}
	}
}
