package build

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/buildkit/client"

	"github.com/onggi/onggi/internal/build/refs"
)

// gatedLayers lets the second layer be packed only when the gate opens.
type gatedLayers struct {
	refs.Layers
	packed atomic.Int32
	gate   chan struct{}
}

func (l *gatedLayers) Tar(ctx context.Context, w io.Writer, dir string) error {
	if l.packed.Add(1) == 2 {
		select {
		case <-l.gate:
		case <-time.After(time.Minute):
			return errors.New("no layer was uploaded while the second one was not packed")
		}
	}
	return l.Layers.Tar(ctx, w, dir)
}

// A push uploads the first layer while the second one is still compressed, and
// the next push compresses nothing.
func TestPushBeginsBeforeTheLastLayer(t *testing.T) {
	var open sync.Once
	var uploads atomic.Int32
	gate := make(chan struct{})
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.ServeHTTP(w, r)
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/") {
			uploads.Add(1)
			open.Do(func() { close(gate) })
		}
	}))
	defer srv.Close()
	var layers *gatedLayers
	b := newBuilderWith(t, &nopExecutor{}, func(p *parts) {
		layers = &gatedLayers{Layers: p.layers, gate: gate}
		p.layers = layers
	})
	name := strings.TrimPrefix(srv.URL, "http://") + "/early:1"
	dir := contextDir(t, outputFiles)
	push := func() {
		t.Helper()
		_, err := b.build(t.Context(), buildOptions{dir: dir, output: client.ExportEntry{Type: "image", Attrs: map[string]string{"name": name, "push": "true", "store": "false"}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	push()
	if n := uploads.Load(); n != 3 {
		t.Errorf("%d uploads, of two layers and a config", n)
	}
	packed := layers.packed.Load()
	push()
	if n := layers.packed.Load(); n != packed {
		t.Errorf("an unchanged push packed %d layers", n-packed)
	}
	if r, err := http.Get(srv.URL + "/v2/early/manifests/1"); err != nil || r.StatusCode != http.StatusOK {
		t.Errorf("the manifest: %v, %v", r, err)
	}
}
