package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	memory "github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/content"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
	"github.com/onggi/onggi/internal/registry"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/testenv"
)

// engine is a Service with all that is below it.
type engine struct {
	*Service
	t     *testing.T
	root  string
	snaps *snapshot.Store
	db    *metadb.DB
}

// open makes an engine in root. Unpacking needs root's rights.
func open(t *testing.T, root string) *engine {
	t.Helper()
	testenv.NeedRoot(t)
	e := &engine{t: t, root: root}
	e.start()
	t.Cleanup(e.stop)
	return e
}

func newEngine(t *testing.T) *engine { t.Helper(); return open(t, t.TempDir()) }

func (e *engine) start() {
	e.t.Helper()
	fatal := func(err error) {
		if err != nil {
			e.t.Helper()
			e.t.Fatal(err)
		}
	}
	logger := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	var err error
	e.db, err = metadb.Open(filepath.Join(e.root, "meta"), metadb.Options{})
	fatal(err)
	e.snaps, err = snapshot.Open(filepath.Join(e.root, "snapshots"), e.db, snapshot.Options{Logger: logger})
	fatal(err)
	c, err := content.Open(filepath.Join(e.root, "content"))
	fatal(err)
	e.Service, err = New(Options{Dir: filepath.Join(e.root, "image"), DB: e.db, Content: c, Snapshots: e.snaps, Logger: logger,
		Registry: registry.New(registry.Options{Backoff: time.Millisecond, Logger: logger, Stall: 5 * time.Second})})
	fatal(err)
}

func (e *engine) stop() {
	if e.db == nil {
		return
	}
	e.o.Registry.CloseIdle()
	e.snaps.Close()
	e.db.Close()
	e.db = nil
}

func (e *engine) restart() { e.t.Helper(); e.stop(); e.start() }

// file is an entry of a layer.
type file struct {
	name, body string
	mode       int64
}

func tarOf(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.body)), ModTime: time.Unix(1700000000, 0), Format: tar.FormatPAX, Typeflag: tar.TypeReg}
		if f.mode != 0 {
			h.Mode = f.mode
		}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o755, 0
		}
		w.WriteHeader(h)
		if h.Size > 0 {
			io.WriteString(w, f.body)
		}
	}
	w.Close()
	return b.Bytes()
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zst(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(b, nil)
}

// made is an image in memory.
type made struct {
	manifest []byte
	config   []byte
	blobs    map[ocispec.Digest][]byte
	md       ocispec.Descriptor
	layers   []ocispec.Descriptor
	diffIDs  []ocispec.Digest
}

// makeImage builds an image of tars, compressed in turn by gzip, zstd, nothing.
func makeImage(cfg ocispec.Image, tars ...[]byte) *made {
	m := &made{blobs: map[ocispec.Digest][]byte{}}
	for i, b := range tars {
		t, blob := ocispec.TypeLayerGz, gz(b)
		switch i % 3 {
		case 1:
			t, blob = ocispec.TypeLayerZst, zst(b)
		case 2:
			t, blob = ocispec.TypeLayer, b
		}
		m.addLayer(t, blob, digest.FromBytes(b))
	}
	m.seal(cfg)
	return m
}

func (m *made) addLayer(t string, blob []byte, diffID ocispec.Digest) {
	d := ocispec.DescriptorOf(t, blob)
	m.blobs[d.Digest] = blob
	m.layers = append(m.layers, d)
	m.diffIDs = append(m.diffIDs, diffID)
}

func (m *made) seal(cfg ocispec.Image) {
	if cfg.OS == "" {
		cfg.Platform = ocispec.Host()
	}
	cfg.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: m.diffIDs}
	for i := range m.diffIDs {
		cfg.History = append(cfg.History, ocispec.History{CreatedBy: fmt.Sprint("step ", i)})
	}
	m.config, _ = json.Marshal(cfg)
	cd := ocispec.DescriptorOf(ocispec.TypeConfig, m.config)
	m.blobs[cd.Digest] = m.config
	m.manifest, _ = json.Marshal(ocispec.Manifest{Versioned: ocispec.Versioned, MediaType: ocispec.TypeManifest, Config: cd, Layers: m.layers})
	m.md = ocispec.DescriptorOf(ocispec.TypeManifest, m.manifest)
}

func memoryRegistry() http.Handler { return memory.New(memory.Logger(log.New(io.Discard, "", 0))) }

func serve(t *testing.T, h http.Handler) string {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func parse(t *testing.T, s string) reference.Ref {
	t.Helper()
	r, err := reference.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// upload puts an image at a registry, and returns what tag means there.
func (m *made) upload(t *testing.T, name string) {
	t.Helper()
	ref := parse(t, name)
	r := registry.New(registry.Options{}).Repository(ref, registry.Auth{})
	for d, b := range m.blobs {
		if err := r.PutSmall(t.Context(), ocispec.Descriptor{MediaType: "x", Digest: d, Size: int64(len(b))}, b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.PutManifest(t.Context(), ref.Tag, ocispec.TypeManifest, m.manifest); err != nil {
		t.Fatal(err)
	}
}

func (e *engine) pull(name string) (Image, []Progress, error) {
	e.t.Helper()
	return e.pullQ(context.Background(), PullRequest{Ref: parse(e.t, name)})
}

func (e *engine) pullQ(ctx context.Context, q PullRequest) (Image, []Progress, error) {
	var list []Progress
	img, err := e.Pull(ctx, q, func(p Progress) { list = append(list, p) })
	return img, list, err
}

// read reads a file of an image, without mounting it.
func (e *engine) read(img Image, name string) string {
	e.t.Helper()
	dirs, err := e.snaps.Dirs(img.Snapshot)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, d := range append([]string{dirs.Upper}, dirs.Lowers...) {
		if b, err := os.ReadFile(filepath.Join(d, name)); err == nil {
			return string(b)
		}
	}
	return "(none)"
}

// residue lists what is on disk beyond the images' own.
func (e *engine) residue() []string {
	e.t.Helper()
	var out []string
	var names []string
	if err := e.snaps.Walk(func(i snapshot.Info) error { names = append(names, i.Name); return nil }); err != nil {
		e.t.Fatal(err)
	}
	e.mu.RLock()
	used := e.usedLocked()
	docs := map[string]bool{}
	for _, i := range e.images {
		for _, d := range i.rec.Docs {
			docs[d.String()] = true
		}
	}
	err := e.db.View(func(tx *metadb.Tx) error {
		return tx.Each(bucketDoc, func(d string, _ json.RawMessage) error {
			if !docs[d] {
				out = append(out, "document "+d)
			}
			return nil
		})
	})
	if err != nil {
		e.t.Fatal(err)
	}
	for c := range e.layers {
		if used[c] == 0 {
			out = append(out, "layer "+c)
		}
	}
	e.mu.RUnlock()
	for _, n := range names {
		if used[n] == 0 {
			out = append(out, "snapshot "+n)
		}
	}
	for _, d := range []string{"split", "partial"} {
		list, err := os.ReadDir(filepath.Join(e.o.Dir, d))
		if err != nil {
			e.t.Fatal(err)
		}
		for _, f := range list {
			if d == "split" && used["sha256:"+f.Name()] > 0 {
				continue
			}
			out = append(out, d+" "+f.Name())
		}
	}
	return out
}

func TestPullSharesLayersAndSurvivesARestart(t *testing.T) {
	host := serve(t, memoryRegistry())
	base := tarOf(file{name: "etc/"}, file{name: "etc/a", body: "one"}, file{name: "etc/b", body: "two"})
	second := tarOf(file{name: "etc/"}, file{name: "etc/a", body: "three"}, file{name: "etc/.wh.b"})
	third := tarOf(file{name: "x", body: strings.Repeat("x", 100000)})
	one := makeImage(ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"sh"}, Labels: map[string]string{"k": "v"}}}, base, second, third)
	two := makeImage(ocispec.Image{}, base)
	one.upload(t, host+"/team/one:v1")
	two.upload(t, host+"/team/two:v1")

	e := newEngine(t)
	img, steps, err := e.pull(host + "/team/one:v1")
	if err != nil {
		t.Fatal(err)
	}
	if img.ID != digest.FromBytes(one.config).String() || img.Manifest.Digest != one.md.Digest || len(img.Chain) != 3 {
		t.Errorf("%+v", img)
	}
	if fmt.Sprint(img.RepoTags, img.RepoDigests) != fmt.Sprintf("[%s/team/one:v1] [%s/team/one@%s]", host, host, one.md.Digest) {
		t.Errorf("names %v %v", img.RepoTags, img.RepoDigests)
	}
	if a, x := e.read(img, "etc/a"), e.read(img, "x"); a != "three" || len(x) != 100000 {
		t.Errorf("etc/a %q, x of %d bytes", a, len(x))
	}
	if img.Size < 100000 {
		t.Errorf("size %d", img.Size)
	}
	last := steps[len(steps)-1].Status
	if last != "Status: Downloaded newer image for "+host+"/team/one:v1" {
		t.Errorf("last step %q", last)
	}
	img2, steps, err := e.pull(host + "/team/two:v1")
	if err != nil {
		t.Fatal(err)
	}
	if img2.Snapshot != img.Chain[0] || !contains(steps, "Already exists") {
		t.Errorf("the layer was not shared: %v", steps)
	}
	one.upload(t, host+"/team/one:again")
	if _, steps, err = e.pull(host + "/team/one:again"); err != nil || contains(steps, "Already exists") {
		t.Errorf("another tag of an image that is here: %v %v", steps, err)
	}
	if _, err := e.Remove(t.Context(), host+"/team/one:again", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	_, steps, err = e.pull(host + "/team/one:v1")
	if err != nil || !contains(steps, "Status: Image is up to date for "+host+"/team/one:v1") {
		t.Errorf("%v %v", steps, err)
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
	e.restart()
	again, err := e.Get(host + "/team/one:v1")
	if err != nil || again.ID != img.ID || again.Size != img.Size || e.read(again, "etc/a") != "three" {
		t.Errorf("after a restart: %+v, %v", again, err)
	}
	// The exact tars can be made again.
	for i, c := range img.Chain {
		var b bytes.Buffer
		if err := e.exactTar(t.Context(), c, &b); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	removed, err := e.Remove(t.Context(), host+"/team/one:v1", RemoveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(removed) != 2+1+2 { // tag, digest, image, two layers of its own
		t.Errorf("removed %v", removed)
	}
	if _, err := e.Get(img2.ID); err != nil || e.read(img2, "etc/b") != "two" {
		t.Errorf("the shared layer went, too: %v", err)
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}

func contains(steps []Progress, status string) bool {
	for _, p := range steps {
		if p.Status == status {
			return true
		}
	}
	return false
}

func TestUnknownImages(t *testing.T) {
	e := newEngine(t)
	_, err := e.Get("nothing")
	if !errdefs.Is(err, errdefs.NotFound) || err.Error() != "No such image: nothing:latest" || errdefs.HintOf(err) != "onggi pull nothing:latest" {
		t.Errorf("%v, hint %q", err, errdefs.HintOf(err))
	}
	host := serve(t, memoryRegistry())
	if _, _, err := e.pull(host + "/none"); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), host+"/none:latest") {
		t.Errorf("pull of nothing: %v", err)
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}
