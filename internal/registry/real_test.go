package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
	"github.com/onggi/onggi/internal/testenv/registrytest"
)

// The registry that most people run, with every way to authorise.
func TestDockerRegistry(t *testing.T) {
	for _, o := range []registrytest.Options{
		{}, {TLS: true}, {Auth: registrytest.Basic}, {TLS: true, Auth: registrytest.Basic}, {Auth: registrytest.Token}, {TLS: true, Auth: registrytest.Token}, {TLS: true, ClientCert: true},
	} {
		t.Run(fmt.Sprintf("tls=%v auth=%s clientcert=%v", o.TLS, o.Auth, o.ClientCert), func(t *testing.T) {
			reg := registrytest.Start(t, o)
			account := Auth{}
			if o.Auth != "" {
				account = Auth{Username: registrytest.User, Password: registrytest.Password, ServerAddress: reg.Host}
			}
			c := testClient(Options{CertDirs: []string{reg.CertDir}})
			defer c.CloseIdle()
			checkRegistry(t, c, reg, account)
			if o.Auth == "" {
				return
			}
			wrong := account
			wrong.Password = "wrong"
			for name, a := range map[string]Auth{"wrong": wrong, "none": {}} {
				c := testClient(Options{CertDirs: []string{reg.CertDir}})
				_, _, err := c.Repository(ref(t, reg.Host+"/a/b"), a).Manifest(t.Context(), "v1")
				if k := errdefs.KindOf(err); k != errdefs.Unauthorized && k != errdefs.Forbidden {
					t.Errorf("%s account: %v", name, err)
				}
				c.CloseIdle()
			}
			checkLogin(t, reg, o, account, wrong)
			if reg.Tokens != nil {
				for _, s := range reg.Tokens.Asked() {
					for part := range strings.FieldsSeq(s) {
						if !strings.HasPrefix(part, "repository:a/b:") && !strings.HasPrefix(part, "repository:c/d:") {
							t.Errorf("a token was asked for with the scope %q", s)
						}
					}
				}
			}
		})
	}
}

func checkLogin(t *testing.T, reg *registrytest.Registry, o registrytest.Options, account, wrong Auth) {
	t.Helper()
	realms := filepath.Join(t.TempDir(), "realms")
	c := testClient(Options{CertDirs: []string{reg.CertDir}, RealmsFile: realms})
	defer c.CloseIdle()
	if _, err := c.Login(t.Context(), wrong); !errdefs.Is(err, errdefs.Unauthorized) {
		t.Errorf("login with a wrong password: %v", err)
	}
	id, err := c.Login(t.Context(), account)
	if err != nil {
		t.Fatalf("login: %v", err)
	}
	if o.Auth != registrytest.Token {
		return
	}
	if id != registrytest.RefreshToken {
		t.Errorf("identity token %q", id)
	}
	r := c.Repository(ref(t, reg.Host+"/a/b"), Auth{IdentityToken: id})
	if _, _, err := r.Manifest(t.Context(), "v1"); err != nil {
		t.Errorf("with an identity token: %v", err)
	}
	if b, err := os.ReadFile(realms); err != nil || !bytes.Contains(b, []byte("127.0.0.1")) || bytes.Contains(b, []byte("CANARY")) {
		t.Errorf("realms file: %q, %v", b, err)
	}
}

func checkRegistry(t *testing.T, c *Client, reg *registrytest.Registry, account Auth) {
	t.Helper()
	ctx := t.Context()
	r := c.Repository(ref(t, reg.Host+"/a/b"), account)
	layer := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	md, ld := put(t, r, "v1", layer)
	if d, err := r.Resolve(ctx, "v1"); err != nil || d.Digest != md.Digest {
		t.Errorf("resolve: %v, %v", d, err)
	}
	for _, off := range []int64{0, 500_000} {
		if b, err := readBlob(ctx, r, ld, off); err != nil || !bytes.Equal(b, layer[off:]) {
			t.Errorf("blob from %d: %d bytes, %v", off, len(b), err)
		}
	}
	if tags, err := r.Tags(ctx); err != nil || len(tags) != 1 {
		t.Errorf("tags: %v, %v", tags, err)
	}
	// From one repository to another nothing is sent.
	other := c.Repository(ref(t, reg.Host+"/c/d"), account)
	up, err := other.PutBlob(ctx, Upload{Desc: ld, From: []reference.Ref{r.Name()}})
	if err != nil || up.How != Mounted {
		t.Errorf("mount: %+v, %v", up, err)
	}
	up, err = other.PutBlob(ctx, Upload{Desc: ocispec.Descriptor{MediaType: ocispec.TypeLayer}, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.LimitReader(zeros{}, 3<<20)), nil
	}})
	if err != nil || up.How != Pushed || up.Desc.Size != 3<<20 {
		t.Errorf("streamed: %+v, %v", up, err)
	}
	if b, err := readBlob(ctx, other, up.Desc, 0); err != nil || ocispec.Verify(up.Desc, b) != nil {
		t.Errorf("streamed: %d bytes, %v", len(b), err)
	}
	if _, _, err := r.Manifest(ctx, "none"); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), "manifest unknown") {
		t.Errorf("an unknown tag: %v", err)
	}
	d, platforms, err := c.Distribution(ctx, ref(t, reg.Host+"/a/b:v1"), account)
	if err != nil || d.Digest != md.Digest || len(platforms) != 1 {
		t.Errorf("distribution: %v %v %v", d, platforms, err)
	}
	if _, err := r.Referrers(ctx, md.Digest); err != nil {
		t.Errorf("referrers: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
