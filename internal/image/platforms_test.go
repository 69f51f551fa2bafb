package image

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/registry"
)

var (
	host  = ocispec.Host()
	arm   = ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	s390x = ocispec.Platform{OS: "linux", Architecture: "s390x"}
	risc  = ocispec.Platform{OS: "linux", Architecture: "riscv64"}
)

// forPlatform makes an image whose file "id" says what it is.
func forPlatform(p ocispec.Platform, version string) *made {
	return makeImage(ocispec.Image{Platform: p}, tarOf(file{name: "id", body: ocispec.FormatPlatform(p) + version}))
}

// uploadIndex puts an index of images at a registry.
func uploadIndex(t *testing.T, name string, list ...*made) ocispec.Descriptor {
	t.Helper()
	ref := parse(t, name)
	x := ocispec.Index{Versioned: ocispec.Versioned, MediaType: ocispec.TypeIndex}
	for _, m := range list {
		m.upload(t, ref.Repository().String()+":part")
		var cfg ocispec.Image
		json.Unmarshal(m.config, &cfg)
		d := m.md
		d.Platform = &cfg.Platform
		x.Manifests = append(x.Manifests, d)
	}
	b, _ := json.Marshal(x)
	if _, err := registry.New(registry.Options{}).Repository(ref, registry.Auth{}).PutManifest(t.Context(), ref.Tag, ocispec.TypeIndex, b); err != nil {
		t.Fatal(err)
	}
	return ocispec.DescriptorOf(ocispec.TypeIndex, b)
}

func (e *engine) pullFor(name string, list ...ocispec.Platform) {
	e.t.Helper()
	for _, p := range list {
		if _, _, err := e.pullQ(e.t.Context(), PullRequest{Ref: parse(e.t, name), Platform: &p}); err != nil {
			e.t.Fatal(err)
		}
	}
}

// has tells which platforms of a name are here, the one that it means first.
func (e *engine) has(name string) string {
	e.t.Helper()
	img, err := e.Get(name)
	if errdefs.Is(err, errdefs.NotFound) {
		return "(none)"
	}
	if err != nil {
		e.t.Fatal(err)
	}
	var out []string
	for _, id := range append([]string{img.ID}, img.Others...) {
		m, err := e.Get(id)
		if err != nil {
			e.t.Fatal(err)
		}
		p := ocispec.FormatPlatform(m.Config.Platform)
		if got := e.read(m, "id"); !strings.HasPrefix(got, p) {
			e.t.Errorf("%s of %s has the files of %s", p, name, got)
		}
		out = append(out, p)
	}
	return strings.Join(out, " ")
}

func (e *engine) wantHas(name string, list ...ocispec.Platform) {
	e.t.Helper()
	want := "(none)"
	if len(list) > 0 {
		want = strings.ReplaceAll(formatAll(list), ",", "")
	}
	if got := e.has(name); got != want {
		e.t.Errorf("%s has %s, want %s", name, got, want)
	}
}

func (e *engine) list() []Image {
	e.t.Helper()
	list, err := e.List(ListOptions{All: true})
	if err != nil {
		e.t.Fatal(err)
	}
	return list
}

func (e *engine) remove(name string, o RemoveOptions) []Removed {
	e.t.Helper()
	list, err := e.Remove(e.t.Context(), name, o)
	if err != nil {
		e.t.Fatal(err)
	}
	return list
}

// A name keeps every platform that was pulled of its index, over a restart,
// and gives each back.
func TestPlatformsOfAName(t *testing.T) {
	reg := serve(t, memoryRegistry())
	name := reg + "/app:1"
	index := uploadIndex(t, name, forPlatform(arm, "1"), forPlatform(host, "1"), forPlatform(s390x, "1"))
	e := newEngine(t)
	e.pullFor(name, s390x)
	e.wantHas(name, s390x) // for lack of another
	e.pullFor(name, arm)
	e.wantHas(name, s390x, arm)
	e.pullFor(name, host)
	e.wantHas(name, host, s390x, arm)
	e.restart()
	e.wantHas(name, host, s390x, arm)

	list := e.list()
	if len(list) != 1 || len(list[0].Others) != 2 || len(list[0].RepoTags) != 1 || !slices.Equal(list[0].RepoDigests, []string{reg + "/app@" + index.Digest.String()}) {
		t.Fatalf("%+v", list)
	}
	var sum int64
	for _, n := range []string{name, reg + "/app@" + index.Digest.String(), list[0].ID} {
		sum = 0
		for _, p := range []ocispec.Platform{host, arm, s390x} {
			img, err := e.GetFor(n, &p)
			if err != nil || ocispec.FormatPlatform(img.Config.Platform) != ocispec.FormatPlatform(p) || len(img.RepoTags) != 1 || img.Index.Digest != index.Digest {
				t.Errorf("%s for %s: %+v, %v", n, ocispec.FormatPlatform(p), img, err)
			}
			sum += img.Size
		}
		if _, err := e.GetFor(n, &risc); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), "but its platform") {
			t.Errorf("%v", err)
		}
	}
	if u := e.Usage(nil); list[0].Size != sum || u.Layers != sum || u.Unique[list[0].ID] != sum {
		t.Errorf("listed with %d bytes, %d on disk, %d its own, want %d", list[0].Size, u.Layers, u.Unique[list[0].ID], sum)
	}
	// A layer of all platforms is on disk once, and shared with nobody else.
	common := tarOf(file{name: "common", body: "of all"})
	uploadIndex(t, reg+"/app:2", makeImage(ocispec.Image{Platform: host}, common), makeImage(ocispec.Image{Platform: arm}, common))
	before := e.Usage(nil).Layers
	e.pullFor(reg+"/app:2", host, arm)
	two, err := e.Get(reg + "/app:2")
	if err != nil {
		t.Fatal(err)
	}
	if u := e.Usage(nil); u.Layers-before != two.Size || u.Shared[two.ID] != 0 || u.Unique[two.ID] != two.Size {
		t.Errorf("%+v; the layer has %d bytes", u, two.Size)
	}
	e.remove(two.ID, RemoveOptions{})
	// Each row of a tree.
	parts, err := e.Parts(list[0])
	if err != nil || len(parts) != 3 {
		t.Fatalf("%+v, %v", parts, err)
	}
	e.remove(name, RemoveOptions{Platforms: []ocispec.Platform{arm}})
	if parts, err = e.Parts(list[0]); err != nil || parts[0].Image != nil || parts[1].Image == nil || parts[2].Image == nil || parts[2].Size <= parts[2].Desc.Size {
		t.Errorf("%+v, %v", parts, err)
	}
	if h, err := e.History(name, &s390x); err != nil || len(h) != 1 {
		t.Errorf("%v, %v", h, err)
	}
}

// When the tag means another index at the registry, the name moves, and what
// was pulled before is left under its digest.
func TestTagMovesToAnotherIndex(t *testing.T) {
	reg := serve(t, memoryRegistry())
	name := reg + "/app:1"
	same := forPlatform(s390x, "1")
	old := uploadIndex(t, name, forPlatform(host, "1"), forPlatform(arm, "1"), same)
	e := newEngine(t)
	e.pullFor(name, host, arm, s390x)
	uploadIndex(t, name, forPlatform(host, "2"), forPlatform(arm, "2"), same)
	e.pullFor(name, host)
	e.wantHas(name, host)
	e.wantHas(reg+"/app@"+old.Digest.String(), host, arm, s390x)
	// One image may be in both.
	e.pullFor(name, s390x)
	e.wantHas(name, host, s390x)
	e.wantHas(reg+"/app@"+old.Digest.String(), host, arm, s390x)
	if list := e.list(); len(list) != 2 {
		t.Errorf("%+v", list)
	}
	e.restart()
	e.wantHas(name, host, s390x)
	// Removing the old leaves what the new needs.
	e.remove(reg+"/app@"+old.Digest.String(), RemoveOptions{})
	e.wantHas(name, host, s390x)
	if len(e.list()) != 1 || len(e.images) != 2 {
		t.Errorf("%d images left", len(e.images))
	}
	e.remove(name, RemoveOptions{})
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}

func TestRemovePlatforms(t *testing.T) {
	reg := serve(t, memoryRegistry())
	name := reg + "/app:1"
	index := uploadIndex(t, name, forPlatform(host, "1"), forPlatform(arm, "1"), forPlatform(s390x, "1"))
	e := newEngine(t)
	fill := func() map[string]string { // platform → ID
		e.pullFor(name, host, arm, s390x)
		ids := map[string]string{}
		for _, p := range []ocispec.Platform{host, arm, s390x} {
			img, err := e.GetFor(name, &p)
			if err != nil {
				t.Fatal(err)
			}
			ids[p.Architecture] = img.ID
		}
		return ids
	}
	ids := fill()
	uses := func(p ocispec.Platform, c string) func(string) []string {
		return func(id string) []string {
			if id == ids[p.Architecture] {
				return []string{c}
			}
			return nil
		}
	}
	one := []ocispec.Platform{arm}
	// What a container of that platform needs stays.
	if _, err := e.Remove(t.Context(), name, RemoveOptions{Platforms: one, InUse: uses(arm, "c1")}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("%v", err)
	}
	if _, err := e.Remove(t.Context(), name, RemoveOptions{InUse: uses(arm, "c1")}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("the whole: %v", err)
	}
	if _, err := e.Remove(t.Context(), ids[host.Architecture], RemoveOptions{InUse: uses(arm, "c1")}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("the whole by ID: %v", err)
	}
	if _, err := e.Remove(t.Context(), name, RemoveOptions{Platforms: []ocispec.Platform{arm, risc}}); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("%v", err)
	}
	e.wantHas(name, host, arm, s390x)
	if got := text(e.remove(name, RemoveOptions{Platforms: one, InUse: uses(host, "c1 (running)")})); got != "x x" {
		t.Errorf("removed %s", got)
	}
	e.wantHas(name, host, s390x)
	// The host's may go, too; then the name means another.
	e.remove(name, RemoveOptions{Platforms: []ocispec.Platform{host}})
	e.wantHas(name, s390x)
	e.restart()
	e.wantHas(name, s390x)
	// With the last platform the name goes.
	if got := text(e.remove(name, RemoveOptions{Platforms: []ocispec.Platform{s390x}})); !strings.HasPrefix(got, "-") {
		t.Errorf("removed %s", got)
	}
	e.wantHas(name)
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
	// By ID: of the image that the name means, all; of another, that one.
	ids = fill()
	e.remove(ids["arm"], RemoveOptions{})
	e.wantHas(name, host, s390x)
	e.remove(ids[host.Architecture], RemoveOptions{})
	e.wantHas(name)
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
	// By the digests that a tree shows: of a manifest, that platform; of the
	// index, all.
	ids = fill()
	digests := map[string]string{}
	for a, id := range ids {
		digests[a] = e.images[id].rec.Manifest.Digest.String()
	}
	for _, d := range []string{digests["arm"], digests["arm"][7:], digests["arm"][7:19]} {
		if img, err := e.Get(d); err != nil || img.ID != ids["arm"] {
			t.Errorf("%s: %v", d, err)
		}
	}
	if _, err := e.Get(digests["arm"][7:18]); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("%v", err)
	}
	e.remove(digests["arm"], RemoveOptions{})
	e.wantHas(name, host, s390x)
	e.remove(digests[host.Architecture], RemoveOptions{})
	e.wantHas(name, s390x)
	e.pullFor(name, host)
	e.wantHas(index.Digest.String(), host, s390x)
	if got := text(e.remove(index.Digest.String(), RemoveOptions{})); !strings.HasPrefix(got, "-") {
		t.Errorf("removed %s", got)
	}
	e.wantHas(name)
	// A second name keeps every platform, and a forced removal what runs.
	ids = fill()
	e.tag(name, "also:1")
	e.remove(name, RemoveOptions{})
	e.wantHas("also:1", host, arm, s390x)
	e.remove("also:1", RemoveOptions{Force: true, InUse: uses(s390x, "c1 (running)")})
	if len(e.images) != 1 || e.images[ids["s390x"]] == nil {
		t.Errorf("%d images left", len(e.images))
	}
	if list := e.list(); len(list) != 1 || len(list[0].RepoTags) != 0 {
		t.Errorf("%+v", list)
	}
}

func TestPruneOfPlatforms(t *testing.T) {
	reg := serve(t, memoryRegistry())
	name := reg + "/app:1"
	uploadIndex(t, name, forPlatform(host, "1"), forPlatform(arm, "1"))
	e := newEngine(t)
	e.pullFor(name, host, arm)
	other, err := e.GetFor(name, &arm)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{"dangling": {"false"}}
	uses := func(id string) []string {
		if id == other.ID {
			return []string{"c1"}
		}
		return nil
	}
	for i, o := range []PruneOptions{{}, {Filters: all, InUse: uses}} {
		if rep, err := e.Prune(t.Context(), o); err != nil || len(rep.Removed) > 0 {
			t.Errorf("%d: %+v, %v", i, rep, err)
		}
	}
	e.wantHas(name, host, arm)
	if u := e.Usage(func(id string) bool { return id == other.ID }); u.Unused != 0 {
		t.Errorf("%d bytes are said to be unused", u.Unused)
	}
	disk := e.Usage(nil).Layers
	if rep, err := e.Prune(t.Context(), PruneOptions{Filters: all}); err != nil || rep.Freed != disk || disk == 0 {
		t.Errorf("%+v, %v; %d bytes were there", rep, err, disk)
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}

// All platforms go into an archive and to a registry, or those asked for.
func TestPlatformsTravel(t *testing.T) {
	reg := serve(t, memoryRegistry())
	name := reg + "/app:1"
	index := uploadIndex(t, name, forPlatform(host, "1"), forPlatform(arm, "1"), forPlatform(s390x, "1"))
	e := newEngine(t)
	e.pullFor(name, host, arm)
	e.tag(name, "app:1")
	save := func(list ...ocispec.Platform) []byte {
		t.Helper()
		var b bytes.Buffer
		if err := e.Save(t.Context(), SaveRequest{Names: []string{"app:1"}, Platforms: list}, &b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	load := func(b []byte, list ...ocispec.Platform) *engine {
		t.Helper()
		f := newEngine(t)
		got, err := f.Load(t.Context(), LoadRequest{Platforms: list}, bytes.NewReader(b), nil)
		if err != nil || len(got) != 1 || !slices.Equal(got[0].Names, []string{"app:1"}) {
			t.Fatalf("%+v, %v", got, err)
		}
		return f
	}
	both := save()
	// A load of what is here is no new tag.
	one := save(host)
	for i := range 2 {
		before, _ := e.Get("app:1")
		if _, err := e.Load(t.Context(), LoadRequest{}, bytes.NewReader(one), nil); err != nil {
			t.Fatal(err)
		}
		if after, err := e.Get("app:1"); err != nil || after.LastTagged.Equal(before.LastTagged) != (i == 1) {
			t.Errorf("load %d: tagged %v, then %v; %v", i, before.LastTagged, after.LastTagged, err)
		}
	}
	e.tag(name, "app:1")
	// An archive that has begun is finished, also when the images are removed.
	pr, pw := io.Pipe()
	saved := make(chan error, 1)
	go func() {
		err := e.Save(t.Context(), SaveRequest{Names: []string{name}}, pw)
		pw.CloseWithError(err)
		saved <- err
	}()
	head := make([]byte, 512)
	if _, err := io.ReadFull(pr, head); err != nil {
		t.Fatal(err)
	}
	e.remove(name, RemoveOptions{})
	e.remove("app:1", RemoveOptions{})
	rest, err := io.ReadAll(pr)
	if serr := <-saved; err != nil || serr != nil || len(rest)+len(head) < len(both)/2 {
		t.Errorf("%d bytes, %v, %v", len(rest), err, serr)
	}
	e.pullFor(name, host, arm)
	e.tag(name, "app:1")
	load(both).wantHas("app:1", host, arm)
	load(both, arm).wantHas("app:1", arm)
	load(save(arm)).wantHas("app:1", arm)
	if _, err := newEngine(t).Load(t.Context(), LoadRequest{Platforms: []ocispec.Platform{s390x}}, bytes.NewReader(both), nil); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("%v", err)
	}
	if err := e.Save(t.Context(), SaveRequest{Names: []string{"app:1"}, Platforms: []ocispec.Platform{s390x}}, &bytes.Buffer{}); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("%v", err)
	}

	// Elsewhere an index of what is here, since the third platform is not.
	elsewhere := serve(t, memoryRegistry())
	copied := elsewhere + "/app:1"
	e.tag(name, copied)
	p, _, err := e.push(copied)
	if err != nil || p.Digest == index.Digest.String() || !strings.Contains(p.Changed, "linux/s390x") {
		t.Fatalf("%+v, %v", p, err)
	}
	e.wantHas(copied, host, arm)
	if again, _, err := e.push(copied); err != nil || again.Digest != p.Digest {
		t.Errorf("%+v, %v", again, err)
	}
	f := newEngine(t)
	f.pullFor(copied, host, arm)
	f.wantHas(copied, host, arm)
	f.wantHas(elsewhere+"/app@"+p.Digest, host, arm)
	// With all three it is the index that it came with.
	e.pullFor(name, s390x)
	e.tag(name, elsewhere+"/app:2")
	if p, _, err := e.push(elsewhere + "/app:2"); err != nil || p.Digest != index.Digest.String() || p.Changed != "" {
		t.Errorf("%+v, %v", p, err)
	}
	// One alone is its manifest.
	e.tag(name, elsewhere+"/app:3")
	res, err := e.Push(t.Context(), PushRequest{Ref: parse(t, elsewhere+"/app:3"), Platform: &arm}, nil)
	if err != nil || res.Pushed[0].Digest != forPlatform(arm, "1").md.Digest.String() {
		t.Errorf("%+v, %v", res, err)
	}
	e.wantHas(elsewhere+"/app:3", host, arm, s390x)
	e.remove(elsewhere+"/app:3", RemoveOptions{})
	e.remove(elsewhere+"/app:2", RemoveOptions{})
	e.wantHas(elsewhere + "/app@" + index.Digest.String())
	e.wantHas(elsewhere+"/app@"+res.Pushed[0].Digest, arm) // app:1 has it, too
	e.remove(elsewhere+"/app:1", RemoveOptions{})
	e.wantHas(elsewhere + "/app@" + res.Pushed[0].Digest)
	// An index that was loaded, of images without a compressed form.
	g := load(both)
	g.tag("app:1", elsewhere+"/loaded:1")
	if p, _, err = g.push(elsewhere + "/loaded:1"); err != nil {
		t.Fatal(err)
	}
	f.pullFor(elsewhere+"/loaded:1", host, arm)
	f.wantHas(elsewhere+"/loaded@"+p.Digest, host, arm)
}

// Records of the versions before are read: a name meant one image, and the
// index that it came with.
func TestRecordsOfOneImageByName(t *testing.T) {
	reg := serve(t, memoryRegistry())
	name := reg + "/app:1"
	index := uploadIndex(t, name, forPlatform(host, "1"), forPlatform(arm, "1"))
	e := newEngine(t)
	e.pullFor(name, host)
	e.tag(name, "also:1")
	img, err := e.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	byManifest := reg + "/app@" + img.Manifest.Digest.String()
	err = e.db.Update(func(tx *metadb.Tx) error {
		for _, n := range []string{name, "docker.io/library/also:1", reg + "/app@" + index.Digest.String(), byManifest} {
			if err := tx.Put(bucketName, n, struct{ ID string }{img.ID}); err != nil {
				return err
			}
		}
		return tx.Put(bucketImage, img.ID, struct {
			V               int
			Manifest, Index ocispec.Descriptor
			Docs            []ocispec.Digest
		}{1, img.Manifest, img.Index, e.images[img.ID].rec.Docs})
	})
	if err != nil {
		t.Fatal(err)
	}
	e.restart()
	e.pullFor(name, arm)
	for _, n := range []string{name, "also:1", reg + "/app@" + index.Digest.String()} {
		e.wantHas(n, host, arm)
	}
	e.wantHas(byManifest, host)
}

// What is attested of an image comes with its archive, and goes with the image.
func TestStatements(t *testing.T) {
	blobs := map[ocispec.Digest][]byte{}
	put := func(mediaType string, v any) ocispec.Descriptor {
		raw, _ := json.Marshal(v)
		d := ocispec.DescriptorOf(mediaType, raw)
		blobs[d.Digest] = raw
		return d
	}
	x := ocispec.Index{Versioned: ocispec.Versioned, MediaType: ocispec.TypeIndex}
	for _, p := range []ocispec.Platform{host, arm} {
		m := forPlatform(p, "1")
		maps.Copy(blobs, m.blobs)
		blobs[m.md.Digest] = m.manifest
		d := m.md
		d.Platform = &p
		said := put("application/vnd.in-toto+json", map[string]string{"of": p.Architecture})
		said.Annotations = map[string]string{"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}
		att := put(ocispec.TypeManifest, ocispec.Manifest{Versioned: ocispec.Versioned, MediaType: ocispec.TypeManifest,
			Config: put(ocispec.TypeConfig, struct{}{}), Layers: []ocispec.Descriptor{said}})
		att.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
		att.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": d.Digest.String()}
		x.Manifests = append(x.Manifests, d, att)
	}
	top := put(ocispec.TypeIndex, x)
	top.Annotations = map[string]string{annotationImageName: "docker.io/library/app:1"}
	index, _ := json.Marshal(ocispec.Index{Versioned: ocispec.Versioned, Manifests: []ocispec.Descriptor{top}})
	files := []file{{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, {name: "index.json", body: string(index)}}
	for d, b := range blobs {
		files = append(files, file{name: blobName(d), body: string(b)})
	}
	e := newEngine(t)
	if _, err := e.Load(t.Context(), LoadRequest{}, bytes.NewReader(tarOf(files...)), nil); err != nil {
		t.Fatal(err)
	}
	e.restart()
	e.wantHas("app:1", host, arm)
	for _, p := range []ocispec.Platform{host, arm} {
		list, err := e.Statements("app:1", &p)
		if err != nil || len(list) != 1 || list[0].Type != "https://slsa.dev/provenance/v1" || string(list[0].Body) != `{"of":"`+p.Architecture+`"}` {
			t.Errorf("%+v, %v", list, err)
		}
	}
	if _, err := e.Statements("app:1", &risc); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("%v", err)
	}
	img, err := e.Get("app:1")
	if err != nil {
		t.Fatal(err)
	}
	parts, err := e.Parts(img)
	if err != nil || len(parts) != 4 || parts[1].For != parts[0].Desc.Digest || parts[1].Size == 0 {
		t.Errorf("%+v, %v", parts, err)
	}
	e.remove("app:1", RemoveOptions{})
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}
