package image

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/registry"
)

func (e *engine) push(name string) (Pushed, []Progress, error) {
	e.t.Helper()
	var list []Progress
	res, err := e.Push(context.Background(), PushRequest{Ref: parse(e.t, name)}, func(p Progress) { list = append(list, p) })
	if err != nil {
		return Pushed{}, list, err
	}
	return res.Pushed[0], list, nil
}

func (e *engine) tag(src, name string) {
	e.t.Helper()
	if err := e.Tag(e.t.Context(), src, parse(e.t, name)); err != nil {
		e.t.Fatal(err)
	}
}

func sample() *made {
	return makeImage(ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"sh"}}},
		tarOf(file{name: "etc/"}, file{name: "etc/a", body: "one"}),
		tarOf(file{name: "b", body: strings.Repeat("hello ", 50000)}),
		tarOf(file{name: "c", body: "sea"}))
}

func TestPushGivesTheDigestsItWasPulledWith(t *testing.T) {
	uploads := atomic.Int32{}
	reg := memoryRegistry()
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/") {
			uploads.Add(1)
		}
		reg.ServeHTTP(w, r)
	}))
	other := serve(t, memoryRegistry())
	m := sample()
	m.upload(t, host+"/a/app:v1")
	e := newEngine(t)
	if _, _, err := e.pull(host + "/a/app:v1"); err != nil {
		t.Fatal(err)
	}
	uploads.Store(0)
	for _, name := range []string{host + "/a/app:v2", host + "/b/copy:v1", other + "/c/app:v1"} {
		e.tag(host+"/a/app:v1", name)
		p, steps, err := e.push(name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if p.Digest != m.md.Digest.String() || p.Changed != "" {
			t.Errorf("%s: %+v, want %s\n%v", name, p, m.md.Digest, steps)
		}
		// What is there can be pulled by another engine.
		img, _, err := newEngine(t).pull(name)
		if err != nil || img.ID != ocispec.DescriptorOf("", m.config).Digest.String() {
			t.Errorf("%s: %v, %v", name, img.ID, err)
		}
	}
	if img, err := e.Get(other + "/c/app@" + m.md.Digest.String()); err != nil || len(img.RepoDigests) != 3 {
		t.Errorf("digests after push: %v, %v", img.RepoDigests, err)
	}
	// Where the source is gone, it says so.
	gone := serve(t, memoryRegistry())
	m2 := makeImage(ocispec.Image{Author: "two"}, tarOf(file{name: "z", body: "z"}))
	vanishing := atomic.Bool{}
	r2 := memoryRegistry()
	host2 := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if vanishing.Load() {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		r2.ServeHTTP(w, r)
	}))
	m2.upload(t, host2+"/x:1")
	if _, _, err := e.pull(host2 + "/x:1"); err != nil {
		t.Fatal(err)
	}
	vanishing.Store(true)
	e.tag(host2+"/x:1", gone+"/x:1")
	p, steps, err := e.push(gone + "/x:1")
	if err != nil || p.Changed == "" || p.Digest == m2.md.Digest.String() {
		t.Errorf("%+v, %v\n%v", p, err, steps)
	}
	if img, _, err := newEngine(t).pull(gone + "/x:1"); err != nil || img.ID != ocispec.DescriptorOf("", m2.config).Digest.String() {
		t.Errorf("%v, %v", img.ID, err)
	}
}

func TestPushOfAnIndex(t *testing.T) {
	host := serve(t, memoryRegistry())
	e := newEngine(t)
	mine, foreign := sample(), makeImage(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}}, tarOf(file{name: "other"}))
	mine.upload(t, host+"/multi/src:mine")
	foreign.upload(t, host+"/multi/src:other")
	hp := ocispec.Host()
	x := ocispec.Index{Versioned: ocispec.Versioned, MediaType: ocispec.TypeIndex, Manifests: []ocispec.Descriptor{foreign.md, mine.md}}
	x.Manifests[0].Platform, x.Manifests[1].Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}, &hp
	b, _ := json.Marshal(x)
	repo := registry.New(registry.Options{}).Repository(parse(t, host+"/multi/src"), registry.Auth{})
	if _, err := repo.PutManifest(t.Context(), "v1", ocispec.TypeIndex, b); err != nil {
		t.Fatal(err)
	}
	img, _, err := e.pull(host + "/multi/src:v1")
	if err != nil {
		t.Fatal(err)
	}
	if img.Manifest.Digest != mine.md.Digest || img.Index.Digest != ocispec.DescriptorOf("", b).Digest || !strings.HasSuffix(img.RepoDigests[0], img.Index.Digest.String()) {
		t.Errorf("%+v", img)
	}
	// In the same registry the whole index goes along.
	e.tag(img.ID, host+"/multi/copy:v1")
	p, steps, err := e.push(host + "/multi/copy:v1")
	if err != nil || p.Digest != img.Index.Digest.String() {
		t.Errorf("%+v, %v\n%v", p, err, steps)
	}
	// Elsewhere only what is here, and it says so.
	other := serve(t, memoryRegistry())
	e.tag(img.ID, other+"/copy:v1")
	p, _, err = e.push(other + "/copy:v1")
	if err != nil || p.Digest != mine.md.Digest.String() || !strings.Contains(p.Changed, "linux/s390x") {
		t.Errorf("%+v, %v", p, err)
	}
	// An image with an attestation is the same everywhere.
	att := makeImage(ocispec.Image{Platform: ocispec.Platform{OS: "unknown", Architecture: "unknown"}}, []byte(`{"predicate":"made here"}`))
	att.upload(t, host+"/att:a")
	mine.upload(t, host+"/att:m")
	x.Manifests = []ocispec.Descriptor{mine.md, att.md}
	x.Manifests[0].Platform, x.Manifests[1].Platform = &hp, &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	b, _ = json.Marshal(x)
	if _, err := registry.New(registry.Options{}).Repository(parse(t, host+"/att"), registry.Auth{}).PutManifest(t.Context(), "v1", ocispec.TypeIndex, b); err != nil {
		t.Fatal(err)
	}
	f := newEngine(t)
	if img, _, err = f.pull(host + "/att:v1"); err != nil {
		t.Fatal(err)
	}
	f.tag(img.ID, other+"/att:v1")
	p, steps, err = f.push(other + "/att:v1")
	if err != nil || p.Digest != ocispec.DescriptorOf("", b).Digest.String() || p.Changed != "" {
		t.Errorf("%+v, %v\n%v", p, err, steps)
	}
	// No such platform.
	want := ocispec.Platform{OS: "linux", Architecture: "riscv64"}
	_, _, err = e.pullQ(t.Context(), PullRequest{Ref: parse(t, host+"/multi/src:v1"), Platform: &want})
	if !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(errdefs.HintOf(err), "linux/s390x") {
		t.Errorf("%v, hint %q", err, errdefs.HintOf(err))
	}
}

func TestImportCommitAndPushOfWhatHasNoManifest(t *testing.T) {
	host := serve(t, memoryRegistry())
	e := newEngine(t)
	img, err := e.Import(t.Context(), bytes.NewReader(gz(tarOf(file{name: "bin/"}, file{name: "bin/sh", body: "#!", mode: 0o755}))),
		ImportRequest{Ref: parse(t, host+"/imp"), Changes: []string{`CMD ["sh"]`, "ENV A=b C='d e'", "LABEL x=y", "EXPOSE 80", "HEALTHCHECK --interval=5s CMD true"}, Message: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	if c := img.Config.Config; len(c.Cmd) != 1 || len(c.Env) != 2 || c.Env[1] != "C=d e" || c.Labels["x"] != "y" || c.Healthcheck.Interval != 5e9 || img.RepoTags[0] != host+"/imp:latest" {
		t.Errorf("%+v", img)
	}
	// A container on it.
	if err := e.snaps.Prepare(t.Context(), "container", img.Snapshot); err != nil {
		t.Fatal(err)
	}
	dirs, _ := e.snaps.Dirs("container")
	os.WriteFile(filepath.Join(dirs.Upper, "new"), []byte("new"), 0o644)
	kid, err := e.Commit(t.Context(), CommitRequest{ContainerSnapshot: "container", ContainerID: "c1", Parent: img.ID, Config: img.Config.Config, Ref: parse(t, host+"/kid:1"), Message: "m"})
	if err != nil {
		t.Fatal(err)
	}
	if len(kid.Chain) != 2 || kid.Chain[0] != img.Snapshot || e.read(kid, "new") != "new" || kid.Parent != img.ID {
		t.Errorf("%+v", kid)
	}
	h, err := e.History(kid.ID, nil)
	if err != nil || len(h) != 2 || h[0].Comment != "m" || h[0].ID != kid.ID || h[1].ID != img.ID {
		t.Errorf("%+v, %v", h, err)
	}
	p, _, err := e.push(host + "/kid:1")
	if err != nil || p.Changed != "" {
		t.Fatalf("%+v, %v", p, err)
	}
	again, steps, err := e.push(host + "/kid:1")
	if err != nil || again.Digest != p.Digest || !contains(steps, "Layer already exists") {
		t.Errorf("%+v, %v\n%v", again, err, steps)
	}
	got, _, err := newEngine(t).pull(host + "/kid:1")
	if err != nil || got.ID != kid.ID {
		t.Errorf("%v, %v", got.ID, err)
	}
	// Parents stay while children are there.
	if _, err := e.Remove(t.Context(), img.ID, RemoveOptions{Force: true}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("removed a parent: %v", err)
	}
	e.snaps.Remove(t.Context(), "container")
	if _, err := e.Remove(t.Context(), host+"/imp", RemoveOptions{}); err != nil {
		t.Errorf("untag: %v", err)
	}
	if _, err := e.Remove(t.Context(), host+"/kid:1", RemoveOptions{}); err != nil {
		t.Error(err)
	}
	if list, _ := e.List(ListOptions{All: true}); len(list) != 0 {
		t.Errorf("left: %+v", list)
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}

func TestSaveAndLoad(t *testing.T) {
	host := serve(t, memoryRegistry())
	e := newEngine(t)
	m := sample()
	m.upload(t, host+"/s:v1")
	img, _, err := e.pull(host + "/s:v1")
	if err != nil {
		t.Fatal(err)
	}
	e.tag(img.ID, "local:a")
	e.tag(img.ID, "local:b")
	var one, two bytes.Buffer
	if err := e.Save(t.Context(), SaveRequest{Names: []string{"local", host + "/s:v1"}}, &one); err != nil {
		t.Fatal(err)
	}
	if err := e.Save(t.Context(), SaveRequest{Names: []string{"local", host + "/s:v1"}}, &two); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("two archives of one image differ (%v)", err)
	}
	for name, b := range map[string][]byte{"plain": one.Bytes(), "gzip": gz(one.Bytes()), "zstd": zst(one.Bytes())} {
		f := newEngine(t)
		list, err := f.Load(t.Context(), LoadRequest{}, bytes.NewReader(b), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(list) != 1 || list[0].ID != img.ID || strings.Join(list[0].Names, " ") != "local:a local:b "+host+"/s:v1" {
			t.Errorf("%s: %+v", name, list)
		}
		got, err := f.Get("local:b")
		if err != nil || f.read(got, "c") != "sea" || got.Size != img.Size {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if r := f.residue(); len(r) > 0 {
			t.Errorf("left: %v", r)
		}
		if left, _ := filepath.Glob(filepath.Join(f.o.Dir, "load-*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	for name, b := range map[string][]byte{"empty": nil, "not a tar": []byte("hello, this is no archive"), "root file system": tarOf(file{name: "bin/"}), "truncated": one.Bytes()[:one.Len()/2]} {
		f := newEngine(t)
		if list, err := f.Load(t.Context(), LoadRequest{}, bytes.NewReader(b), nil); err == nil || !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%s: %v, %v", name, list, err)
		}
		if r := f.residue(); len(r) > 0 {
			t.Errorf("%s: left: %v", name, r)
		}
	}
}
