package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/registry"
)

// fake serves an image, whose answers a test may spoil.
type fake struct {
	m     *made
	spoil func(path string, h http.Header, b []byte) []byte // nil for none
	gets  atomic.Int64                                      // bytes of blobs that were sent
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var b []byte
	h := w.Header()
	switch part := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]; {
	case strings.Contains(r.URL.Path, "/manifests/"):
		h.Set("Content-Type", ocispec.TypeManifest)
		b = f.m.manifest
	case strings.Contains(r.URL.Path, "/blobs/"):
		var ok bool
		if b, ok = f.m.blobs[ocispec.Digest(part)]; !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
	default:
		return
	}
	if f.spoil != nil {
		b = f.spoil(r.URL.Path, h, bytes.Clone(b))
	}
	if h.Get("X-Abort") != "" {
		panic(http.ErrAbortHandler)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	if strings.Contains(r.URL.Path, "/blobs/") {
		f.gets.Add(int64(len(b)))
	}
}

func onBlob(m *made, i int, change func([]byte) []byte) func(string, http.Header, []byte) []byte {
	return func(path string, _ http.Header, b []byte) []byte {
		if strings.HasSuffix(path, m.layers[i].Digest.String()) {
			return change(b)
		}
		return b
	}
}

// Nothing that a registry sends may become visible, or stay, unless it is what
// its digest says.
func TestHostilePulls(t *testing.T) {
	good := sample()
	remake := func(f func(m *ocispec.Manifest)) []byte {
		var m ocispec.Manifest
		json.Unmarshal(good.manifest, &m)
		f(&m)
		b, _ := json.Marshal(m)
		return b
	}
	onManifest := func(b []byte) func(string, http.Header, []byte) []byte {
		return func(path string, _ http.Header, old []byte) []byte {
			if strings.Contains(path, "/manifests/") {
				return b
			}
			return old
		}
	}
	lying := &made{blobs: map[ocispec.Digest][]byte{}}
	lying.addLayer(ocispec.TypeLayerGz, gz(tarOf(file{name: "a", body: "a"})), digest.FromString("something else"))
	lying.seal(ocispec.Image{})
	bomb := &made{blobs: map[ocispec.Digest][]byte{}}
	zeros := make([]byte, 200<<20)
	bomb.addLayer(ocispec.TypeLayerGz, gz(gz(zeros)), digest.FromString("x"))
	bomb.seal(ocispec.Image{})
	escape := makeImage(ocispec.Image{}, tarOf(file{name: "../../../../../../../../tmp/onggi-escaped", body: "x"}))
	trailing := &made{blobs: map[ocispec.Digest][]byte{}}
	body := tarOf(file{name: "a"})
	trailing.addLayer(ocispec.TypeLayerGz, append(gz(body), []byte("garbage behind the end")...), digest.FromBytes(body))
	trailing.seal(ocispec.Image{})
	foreign := sample()
	foreign.layers[0].MediaType, foreign.layers[0].URLs = ocispec.TypeDockerForeign, []string{"http://127.0.0.1:1/layer"}
	foreign.blobs = sample().blobs
	foreign.manifest = remake(func(m *ocispec.Manifest) { m.Layers = foreign.layers })
	foreign.md = ocispec.DescriptorOf(ocispec.TypeManifest, foreign.manifest)
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at%len(b)] ^= 0x10; return b }
	}
	tests := map[string]struct {
		f    *fake
		kind errdefs.Kind
		want string
	}{
		"flipped start":  {&fake{m: good, spoil: onBlob(good, 0, flip(3))}, errdefs.Invalid, "digest"},
		"flipped middle": {&fake{m: good, spoil: onBlob(good, 1, flip(100))}, errdefs.Invalid, "digest"},
		"flipped raw":    {&fake{m: good, spoil: onBlob(good, 2, flip(520))}, errdefs.Invalid, "digest"},
		"flipped end":    {&fake{m: good, spoil: onBlob(good, 0, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })}, errdefs.Invalid, "digest"},
		"truncated":      {&fake{m: good, spoil: onBlob(good, 0, func(b []byte) []byte { return b[:len(b)/2] })}, errdefs.Invalid, "bytes of it"},
		"longer":         {&fake{m: good, spoil: onBlob(good, 0, func(b []byte) []byte { return append(b, 'x') })}, errdefs.Invalid, "bytes of it"},
		"empty":          {&fake{m: good, spoil: onBlob(good, 0, func(b []byte) []byte { return nil })}, errdefs.Invalid, ""},
		"config": {&fake{m: good, spoil: func(p string, _ http.Header, b []byte) []byte {
			return bytes.Replace(b, []byte("step 0"), []byte("step 9"), 1)
		}}, errdefs.Invalid, "digest"},
		"diff id":        {&fake{m: lying}, errdefs.Invalid, "configuration says"},
		"not a tar":      {&fake{m: bomb}, errdefs.Invalid, ""},
		"escape":         {&fake{m: escape}, errdefs.Invalid, "leads out"},
		"after the end":  {&fake{m: trailing}, errdefs.Invalid, ""},
		"foreign layer":  {&fake{m: foreign}, errdefs.Unsupported, "not fetched"},
		"layer size":     {&fake{m: good, spoil: onManifest(remake(func(m *ocispec.Manifest) { m.Layers[0].Size++ }))}, errdefs.Invalid, "bytes of it"},
		"layers missing": {&fake{m: good, spoil: onManifest(remake(func(m *ocispec.Manifest) { m.Layers = m.Layers[:1] }))}, errdefs.Invalid, "layers"},
		"layers swapped": {&fake{m: good, spoil: onManifest(remake(func(m *ocispec.Manifest) { m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0] }))}, errdefs.Invalid, "configuration says"},
		"unknown layer":  {&fake{m: good, spoil: onManifest(remake(func(m *ocispec.Manifest) { m.Layers[0].MediaType = "text/x" }))}, errdefs.Unsupported, "unknown type"},
		"artifact":       {&fake{m: good, spoil: onManifest(remake(func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.x" }))}, errdefs.Unsupported, "artifact"},
		"header type": {&fake{m: good, spoil: func(p string, h http.Header, b []byte) []byte {
			h.Set("Content-Type", ocispec.TypeDockerManifest)
			return b
		}}, errdefs.Invalid, "its sender says"},
		"digest header": {&fake{m: good, spoil: func(p string, h http.Header, b []byte) []byte {
			h.Set("Docker-Content-Digest", digest.FromString("x").String())
			return b
		}}, errdefs.Invalid, "digest"},
		"huge manifest":     {&fake{m: good, spoil: onManifest(bytes.Repeat([]byte(" "), ocispec.MaxManifest+1))}, errdefs.Invalid, "more than"},
		"deep manifest":     {&fake{m: good, spoil: onManifest([]byte(strings.Repeat("[", 100000)))}, errdefs.Invalid, "nested"},
		"blob disappears":   {&fake{m: good, spoil: func(p string, h http.Header, b []byte) []byte { delete(good.blobs, "x"); return b }, gets: atomic.Int64{}}, 0, ""},
		"connection broken": {&fake{m: good, spoil: onBlobAbort(good, 1)}, errdefs.Unavailable, ""},
	}
	delete(tests, "blob disappears")
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			host := serve(t, tt.f)
			e := newEngine(t)
			start := time.Now()
			img, _, err := e.pull(host + "/evil:v1")
			if err == nil {
				t.Fatalf("pulled %+v", img)
			}
			if !errdefs.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("kind %v: %v", errdefs.KindOf(err), err)
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %v", d)
			}
			if list, _ := e.List(ListOptions{All: true}); len(list) != 0 {
				t.Errorf("visible: %+v", list)
			}
			for _, r := range e.residue() {
				if !strings.HasPrefix(r, "partial ") || tt.kind == errdefs.Invalid {
					t.Errorf("left: %s", r)
				}
			}
		})
	}
	if _, err := os.Stat("/tmp/onggi-escaped"); err == nil {
		t.Error("a layer wrote outside its directory")
	}
}

func onBlobAbort(m *made, i int) func(string, http.Header, []byte) []byte {
	return func(path string, h http.Header, b []byte) []byte {
		if strings.HasSuffix(path, m.layers[i].Digest.String()) {
			h.Set("X-Abort", "1")
		}
		return b
	}
}

// Every flipped bit is found: one in each 4 KiB of a layer.
func TestEveryFlippedBitIsFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 100_000)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	m := makeImage(ocispec.Image{}, tarOf(file{name: "noise", body: string(noise)}))
	var at atomic.Int64
	host := serve(t, &fake{m: m, spoil: onBlob(m, 0, func(b []byte) []byte { b[at.Load()] ^= 1 << (at.Load() % 8); return b })})
	e := newEngine(t)
	for pos := int64(0); pos < m.layers[0].Size; pos += 4096 {
		at.Store(pos)
		if _, _, err := e.pull(host + "/x:v1"); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("byte %d: %v", pos, err)
		}
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}

// cutter breaks connections after some bytes.
type cutter struct {
	h     http.Handler
	rate  float64 // of answers that are cut
	mu    sync.Mutex
	rng   *rand.Rand
	sent  atomic.Int64
	limit int
}

func (c *cutter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
		c.h.ServeHTTP(w, r)
		return
	}
	c.mu.Lock()
	left := int64(1) << 60
	if c.rng.Float64() < c.rate {
		left = int64(c.rng.IntN(c.limit) + 1)
	}
	c.mu.Unlock()
	c.h.ServeHTTP(&cutWriter{ResponseWriter: w, left: left, sent: &c.sent}, r)
}

type cutWriter struct {
	http.ResponseWriter
	left int64
	sent *atomic.Int64
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if int64(len(p)) >= w.left {
		n, _ := w.ResponseWriter.Write(p[:w.left])
		w.sent.Add(int64(n))
		http.NewResponseController(w.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	w.left -= int64(len(p))
	n, err := w.ResponseWriter.Write(p)
	w.sent.Add(int64(n))
	return n, err
}

func (w *cutWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// R20: with nine of ten connections broken at random places a pull completes,
// and little is fetched twice.
func TestPullOverABadLine(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, 8<<20)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	m := makeImage(ocispec.Image{}, tarOf(file{name: "one", body: string(noise[:4<<20])}), tarOf(file{name: "two", body: string(noise[4<<20:])}))
	c := &cutter{h: &fake{m: m}, rate: 0.9, rng: rng, limit: 1 << 20}
	host := serve(t, c)
	e := newEngine(t)
	if _, _, err := e.pull(host + "/x:v1"); err != nil {
		t.Fatal(err)
	}
	total := m.layers[0].Size + m.layers[1].Size
	if extra := c.sent.Load() - total - int64(len(m.config)); extra > total/2 {
		t.Errorf("%d bytes for %d", c.sent.Load(), total)
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}

// A pull that is cancelled ends at once, keeps what came, and goes on from
// there after a restart of the engine.
func TestCancelAndResumeAcrossARestart(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	noise := make([]byte, 4<<20)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	m := makeImage(ocispec.Image{}, tarOf(file{name: "one", body: string(noise)}))
	var hang atomic.Bool
	hang.Store(true)
	var ranges sync.Map
	arrived := make(chan struct{}, 10)
	f := &fake{m: m}
	release := make(chan struct{})
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, m.layers[0].Digest.String()) {
			f.ServeHTTP(w, r)
			return
		}
		ranges.Store(r.Header.Get("Range"), true)
		if !hang.Load() {
			f.ServeHTTP(w, r)
			return
		}
		b := m.blobs[m.layers[0].Digest]
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		w.Write(b[:3<<20])
		http.NewResponseController(w).Flush()
		arrived <- struct{}{}
		select {
		case <-r.Context().Done():
		case <-release:
		}
	}))
	defer close(release)
	e := newEngine(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := e.Pull(ctx, PullRequest{Ref: parse(t, host+"/x:v1")}, nil)
		done <- err
	}()
	<-arrived
	partial := e.partialPath(m.layers[0].Digest)
	for size := int64(0); size < 3<<20; {
		if fi, err := os.Stat(partial); err == nil {
			size = fi.Size()
		}
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled pull: %v", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %v to end", d)
	}
	if r := e.residue(); len(r) != 1 || !strings.HasPrefix(r[0], "partial ") {
		t.Errorf("left: %v", r)
	}
	e.restart()
	hang.Store(false)
	if _, _, err := e.pull(host + "/x:v1"); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("bytes=%d-%d", 3<<20, m.layers[0].Size-1)
	if _, ok := ranges.Load(want); !ok {
		var got []any
		ranges.Range(func(k, _ any) bool { got = append(got, k); return true })
		t.Errorf("asked for %q, want %s", got, want)
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}

// A partial blob that is wrong is found and fetched anew.
func TestDamagedPartial(t *testing.T) {
	m := sample()
	host := serve(t, &fake{m: m})
	e := newEngine(t)
	os.WriteFile(e.partialPath(m.layers[1].Digest), []byte("this is not it"), 0o600)
	if _, _, err := e.pull(host + "/x:v1"); err != nil {
		t.Error(err)
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}

// One blob from a mirror that lies and from the registry.
func TestMirrorThatLies(t *testing.T) {
	m := sample()
	bad := serve(t, &fake{m: m, spoil: onBlob(m, 1, func(b []byte) []byte { b[50] ^= 1; return b })})
	good := serve(t, &fake{m: m})
	e := newEngine(t)
	e.o.Registry = registry.New(registry.Options{Backoff: time.Millisecond, Mirrors: map[string][]string{good: {"http://" + bad}}})
	img, _, err := e.pull(good + "/x:v1")
	if err != nil || e.read(img, "etc/a") != "one" {
		t.Errorf("%v", err)
	}
}

func TestConcurrentPullsFetchOnce(t *testing.T) {
	m := sample()
	f := &fake{m: m}
	host := serve(t, f)
	e := newEngine(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, _, err := e.pull(fmt.Sprintf("%s/x:v%d", host, i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var total int64
	for _, l := range m.layers {
		total += l.Size
	}
	if got := f.gets.Load() - 8*int64(len(m.config)); got > total {
		t.Errorf("%d bytes of layers for %d", got, total)
	}
	if list, _ := e.List(ListOptions{}); len(list) != 1 || len(list[0].RepoTags) != 8 {
		t.Errorf("%+v", list)
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}

// Images come and go at the same time.
func TestPullAndRemoveTogether(t *testing.T) {
	base := tarOf(file{name: "base", body: "b"})
	var all []*made
	var hosts []string
	for i := range 4 {
		m := makeImage(ocispec.Image{Author: fmt.Sprint(i)}, base, tarOf(file{name: fmt.Sprint("f", i), body: "x"}))
		all, hosts = append(all, m), append(hosts, serve(t, &fake{m: m}))
	}
	e := newEngine(t)
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			for range 15 {
				img, err := e.Pull(t.Context(), PullRequest{Ref: parse(t, hosts[i]+"/x:v1")}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if got := e.read(img, "base"); got != "b" {
					t.Errorf("base: %q", got)
				}
				if _, err := e.Remove(t.Context(), hosts[i]+"/x:v1", RemoveOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	e.Collect(t.Context())
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}
