package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	memory "github.com/google/go-containerregistry/pkg/registry"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
)

func memoryRegistry() http.Handler { return memory.New(memory.Logger(log.New(io.Discard, "", 0))) }

func testClient(o Options) *Client {
	if o.Backoff == 0 {
		o.Backoff = time.Millisecond
	}
	return New(o)
}

func ref(t *testing.T, s string) reference.Ref {
	t.Helper()
	r, err := reference.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func hostOfServer(s *httptest.Server) string {
	_, h, _ := strings.Cut(s.URL, "://")
	return h
}

// put writes an image of one layer, and returns its manifest and layer.
func put(t *testing.T, r *Repository, tag string, layer []byte) (ocispec.Descriptor, ocispec.Descriptor) {
	t.Helper()
	ctx := t.Context()
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	cd, ld := ocispec.DescriptorOf(ocispec.TypeConfig, config), ocispec.DescriptorOf(ocispec.TypeLayerGz, layer)
	for d, b := range map[*ocispec.Descriptor][]byte{&cd: config, &ld: layer} {
		if err := r.PutSmall(ctx, *d, b); err != nil {
			t.Fatal(err)
		}
	}
	m, _ := json.Marshal(ocispec.Manifest{Versioned: ocispec.Versioned, MediaType: ocispec.TypeManifest, Config: cd, Layers: []ocispec.Descriptor{ld}})
	d, err := r.PutManifest(ctx, tag, ocispec.TypeManifest, m)
	if err != nil {
		t.Fatal(err)
	}
	return d, ld
}

func readBlob(ctx context.Context, r *Repository, d ocispec.Descriptor, offset int64) ([]byte, error) {
	rc, err := r.Blob(ctx, d, offset)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func TestPushAndPull(t *testing.T) {
	for name, start := range map[string]func(http.Handler) *httptest.Server{"plain": httptest.NewServer, "tls": httptest.NewTLSServer} {
		t.Run(name, func(t *testing.T) {
			srv := start(memoryRegistry())
			defer srv.Close()
			c := testClient(Options{})
			defer c.CloseIdle()
			r := c.Repository(ref(t, hostOfServer(srv)+"/a/b"), Auth{})
			layer := bytes.Repeat([]byte("0123456789"), 10000)
			md, ld := put(t, r, "v1", layer)

			d, err := r.Resolve(t.Context(), "v1")
			if err != nil || d.Digest != md.Digest || d.MediaType != ocispec.TypeManifest {
				t.Errorf("resolve: %v, %v", d, err)
			}
			for _, what := range []string{"v1", md.Digest.String()} {
				d, b, err := r.Manifest(t.Context(), what)
				if err != nil || d.Digest != md.Digest {
					t.Fatalf("%s: %v, %v", what, d, err)
				}
				if m, err := ocispec.ParseManifest(b, d.MediaType); err != nil || m.Layers[0].Digest != ld.Digest {
					t.Errorf("%s: %v, %v", what, m, err)
				}
			}
			for _, off := range []int64{0, 1, 99999, 100000} {
				if b, err := readBlob(t.Context(), r, ld, off); err != nil || !bytes.Equal(b, layer[off:]) {
					t.Errorf("blob from %d: %d bytes, %v", off, len(b), err)
				}
			}
			if tags, err := r.Tags(t.Context()); err != nil || len(tags) != 1 || tags[0] != "v1" {
				t.Errorf("tags: %v, %v", tags, err)
			}
			// A second time nothing is sent.
			up, err := r.PutBlob(t.Context(), Upload{Desc: ld})
			if err != nil || up.How != Exists {
				t.Errorf("again: %+v, %v", up, err)
			}
			// Content whose digest is found on the way.
			up, err = r.PutBlob(t.Context(), Upload{Desc: ocispec.Descriptor{MediaType: ocispec.TypeLayer}, Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("streamed")), nil }})
			if err != nil || up.How != Pushed || up.Desc.Size != 8 {
				t.Errorf("streamed: %+v, %v", up, err)
			}
			if b, err := readBlob(t.Context(), r, up.Desc, 0); err != nil || string(b) != "streamed" {
				t.Errorf("streamed: %q, %v", b, err)
			}
			_, _, err = r.Manifest(t.Context(), "none")
			if !errdefs.Is(err, errdefs.NotFound) {
				t.Errorf("an unknown tag: %v", err)
			}
			if _, err := r.PutBlob(t.Context(), Upload{Desc: ocispec.DescriptorOf(ocispec.TypeLayer, []byte("absent"))}); !errdefs.Is(err, errdefs.NotFound) {
				t.Errorf("a blob without content: %v", err)
			}
		})
	}
}

func TestUnresolvedHints(t *testing.T) {
	ref, err := reference.Parse("registry.example.invalid/app:1")
	if err != nil {
		t.Fatal(err)
	}
	r := New(Options{}).Repository(ref, Auth{})
	for _, c := range []struct {
		err  net.DNSError
		want string
	}{
		{net.DNSError{Err: "no such host", Name: "registry-1.docker.io", IsNotFound: true}, "onggi image bootstrap"},
		{net.DNSError{Err: "no such host", Name: "registry.example.invalid", IsNotFound: true}, "spelling of registry.example.invalid"},
		{net.DNSError{Err: "i/o timeout", Name: "registry.example.invalid", IsTimeout: true}, "name server"},
	} {
		err := r.wrap("pull", "1", &url.Error{Op: "Get", URL: "https://registry.example.invalid/v2/", Err: &net.OpError{Op: "dial", Net: "tcp", Err: &c.err}})
		if hint := errdefs.HintOf(err); !strings.Contains(hint, c.want) || errdefs.KindOf(err) != errdefs.Unavailable {
			t.Errorf("%v: kind %v, hint %q, want %q in it", err, errdefs.KindOf(err), hint, c.want)
		}
	}
}
