package image

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/registry"
	"github.com/onggi/onggi/internal/testenv"
	"github.com/onggi/onggi/internal/testenv/registrytest"
)

// skopeo runs the program with its files in the test's directory.
func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	program := testenv.NeedProgram(t, "skopeo")
	cmd := exec.Command(program, append([]string{"--tmpdir", t.TempDir(), "--insecure-policy"}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.String())
	}
	return string(out)
}

// inspected is what `skopeo inspect` tells.
type inspected struct {
	Digest string
	Layers []string
}

func inspect(t *testing.T, name string, args ...string) inspected {
	t.Helper()
	var v inspected
	if err := json.Unmarshal([]byte(skopeo(t, append([]string{"inspect", name}, args...)...)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// layout writes an image as an OCI layout.
func (m *made) layout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, b []byte) {
		p := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if err == nil {
			err = os.WriteFile(p, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for d, b := range m.blobs {
		put(blobName(d), b)
	}
	put(blobName(m.md.Digest), m.manifest)
	x, _ := json.Marshal(ocispec.Index{Versioned: ocispec.Versioned, Manifests: []ocispec.Descriptor{m.md}})
	put("index.json", x)
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return dir
}

// What skopeo puts into docker-registry we pull, and what we push it reads,
// with equal digests; the same for archives.
func TestWithSkopeoAndDockerRegistry(t *testing.T) {
	testenv.NeedProgram(t, "skopeo")
	reg := registrytest.Start(t, registrytest.Options{TLS: true, Auth: registrytest.Basic})
	account := registry.Auth{Username: registrytest.User, Password: registrytest.Password, ServerAddress: "https://" + reg.Host + "/v1/"}
	login := registrytest.User + ":" + registrytest.Password
	certs := filepath.Join(reg.CertDir, reg.Host)
	m := sample()
	dir := m.layout(t)
	src := "docker://" + reg.Host + "/team/app"
	skopeo(t, "copy", "--dest-creds", login, "--dest-cert-dir", certs, "oci:"+dir, src+":oci")
	// Docker's media types have no zstd.
	old := &made{blobs: map[ocispec.Digest][]byte{}}
	for _, b := range [][]byte{tarOf(file{name: "etc/"}, file{name: "etc/a", body: "one"}), tarOf(file{name: "d", body: "d"})} {
		old.addLayer(ocispec.TypeLayerGz, gz(b), ocispec.DescriptorOf("", b).Digest)
	}
	old.seal(ocispec.Image{})
	oldDir := old.layout(t)
	skopeo(t, "copy", "--format", "v2s2", "--dest-creds", login, "--dest-cert-dir", certs, "oci:"+oldDir, src+":docker")

	e := newEngine(t)
	e.o.Registry = registry.New(registry.Options{CertDirs: []string{reg.CertDir}, Backoff: time.Millisecond})
	for _, tag := range []string{"oci", "docker"} {
		ref := parse(t, reg.Host+"/team/app:"+tag)
		img, _, err := e.pullQ(t.Context(), PullRequest{Ref: ref, Auth: account})
		if err != nil {
			t.Fatalf("%s: %v", tag, err)
		}
		want := inspect(t, src+":"+tag, "--creds", login, "--cert-dir", certs)
		if img.Manifest.Digest.String() != want.Digest {
			t.Errorf("%s: pulled %s, skopeo sees %s", tag, img.Manifest.Digest, want.Digest)
		}
		if e.read(img, "etc/a") != "one" {
			t.Errorf("%s: files differ", tag)
		}
		copied := parse(t, reg.Host+"/other/place:"+tag)
		e.tag(img.ID, copied.String())
		// The tag may have been moved to this image; the digest is what counts.
		res, err := e.Push(t.Context(), PushRequest{Ref: copied, Auth: account}, nil)
		if err != nil {
			t.Fatalf("%s: %v", tag, err)
		}
		got := inspect(t, "docker://"+reg.Host+"/other/place:"+tag, "--creds", login, "--cert-dir", certs)
		if got.Digest != want.Digest || res.Pushed[0].Digest != want.Digest || res.Pushed[0].Changed != "" || strings.Join(got.Layers, " ") != strings.Join(want.Layers, " ") {
			t.Errorf("%s: pushed %+v, skopeo sees %+v, want %+v", tag, res, got, want)
		}
	}

	// Our archive, read by skopeo in both its formats.
	img, err := e.Get(reg.Host + "/team/app:oci")
	if err != nil {
		t.Fatal(err)
	}
	e.tag(img.ID, "local/name:v1")
	archive := filepath.Join(t.TempDir(), "saved.tar")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Save(t.Context(), SaveRequest{Names: []string{"local/name:v1"}}, f); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, kind := range []string{"docker-archive:" + archive + ":local/name:v1", "docker-archive:" + archive, "oci-archive:" + archive} {
		to := t.TempDir()
		skopeo(t, "copy", kind, "dir:"+to)
		b, err := os.ReadFile(filepath.Join(to, "manifest.json"))
		if err != nil {
			t.Fatal(err)
		}
		var got ocispec.Manifest
		if err := json.Unmarshal(b, &got); err != nil || got.Config.Digest.String() != img.ID {
			t.Errorf("%s: %s, %v", kind, b, err)
		}
	}
	// skopeo's archives, loaded by us.
	work := t.TempDir()
	for kind, name := range map[string]string{"docker-archive": "fromdocker:v2", "oci-archive": "fromoci:v2"} {
		p := filepath.Join(work, kind+".tar")
		skopeo(t, "copy", "oci:"+oldDir, kind+":"+p+":"+name)
		b, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		f := newEngine(t)
		list, err := f.Load(t.Context(), LoadRequest{}, b, nil)
		b.Close()
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if len(list) != 1 || len(list[0].Names) != 1 || list[0].Names[0] != name {
			t.Errorf("%s: %+v", kind, list)
		}
		if got, err := f.Get(name); err != nil || f.read(got, "etc/a") != "one" {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
