package ocispec

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/errdefs"
)

const d1 = `"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"`

const (
	goodConfig = `{"mediaType":"application/vnd.oci.image.config.v1+json","digest":` + d1 + `,"size":3}`
	goodLayer  = `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":` + d1 + `,"size":3}`
	good       = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` + goodConfig + `,"layers":[` + goodLayer + `]}`
	goodIndex  = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":` + d1 + `,"size":3,"platform":{"os":"linux","architecture":"amd64"}}]}`
)

func TestManifestsThatAreRefused(t *testing.T) {
	deep := strings.Repeat(`[`, 10000) + strings.Repeat(`]`, 10000)
	for name, tt := range map[string]struct{ doc, said, want string }{
		"both":           {strings.Replace(good, `"layers"`, `"manifests":[],"layers"`, 1), "", "at once"},
		"index":          {goodIndex, "", "is an index"},
		"header":         {good, TypeDockerManifest, "its sender says"},
		"header index":   {good, TypeIndex, "its sender says"},
		"type only":      {strings.Replace(good, "image.manifest", "image.index", 1), "", "do not fit"},
		"twice":          {strings.Replace(good, `"layers"`, `"layers":[],"layers"`, 1), "", "twice"},
		"case":           {strings.Replace(good, `"layers"`, `"Layers"`, 1), "", "spelled unlike"},
		"case too":       {strings.Replace(good, `"layers"`, `"Layers":[],"layers"`, 1), "", "spelled unlike"},
		"long s":         {strings.Replace(good, `"layers"`, `"layerſ":[],"layers"`, 1), "", "spelled unlike"},
		"inner case":     {strings.Replace(good, `"size":3}]`, `"Size":3}]`, 1), "", "spelled unlike"},
		"deep":           {strings.Replace(good, `"layers"`, `"x":`+deep+`,"layers"`, 1), "", "nested deeper"},
		"trailing":       {good + `{}`, "", "after the end"},
		"truncated":      {good[:len(good)-1], "", "not valid JSON"},
		"not an object":  {`"x"`, "", "not an object"},
		"array":          {`[]`, "", ""},
		"empty":          {``, "", "not valid JSON"},
		"null":           {`null`, "", "not an object"},
		"v1":             {`{"schemaVersion":1,"fsLayers":[]}`, "", "schema version 1"},
		"v3":             {strings.Replace(good, `:2`, `:3`, 1), "", "schema version 3"},
		"digest path":    {strings.Replace(good, `sha256:01`, `sha256:../`, 1), "", "not a digest"},
		"digest case":    {strings.Replace(good, `abcdef`, `ABCDEF`, 1), "", "not a digest"},
		"negative":       {strings.Replace(good, `"size":3`, `"size":-3`, 1), "", "size of -3"},
		"huge number":    {strings.Replace(good, `"size":3`, `"size":1e99`, 1), "", ""},
		"huge config":    {strings.Replace(good, `"size":3`, `"size":999999999`, 1), "", "more than"},
		"many layers":    {strings.Replace(good, `[`+goodLayer+`]`, `[`+strings.TrimSuffix(strings.Repeat(goodLayer+",", 129), ",")+`]`, 1), "", "129 layers"},
		"too big":        {good + strings.Repeat(" ", MaxManifest), "", "more than"},
		"no config":      {strings.Replace(good, `"config":`+goodConfig+`,`, ``, 1), "", "config"},
		"embedded other": {strings.Replace(good, `"size":3}`, `"size":3,"data":"YWJj"}`, 1), "", "other data"},
	} {
		_, err := ParseManifest([]byte(tt.doc), tt.said)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want …%s…", name, err, tt.want)
			continue
		}
		if k := errdefs.KindOf(err); k != errdefs.Invalid && k != errdefs.Unsupported {
			t.Errorf("%s: kind %v", name, k)
		}
	}
}

func TestGoodDocuments(t *testing.T) {
	m, err := ParseManifest([]byte(good), TypeManifest)
	if err != nil || len(m.Layers) != 1 {
		t.Errorf("%v, %v", m, err)
	}
	bare := strings.Replace(good, `"mediaType":"application/vnd.oci.image.manifest.v1+json",`, "", 1)
	if m, err := ParseManifest([]byte(bare), ""); err != nil || m.MediaType != TypeManifest {
		t.Errorf("without a type: %v", err)
	}
	if x, err := ParseIndex([]byte(goodIndex), TypeIndex); err != nil || len(x.Manifests) != 1 {
		t.Errorf("%v, %v", x, err)
	}
	if _, err := ParseIndex([]byte(good), ""); err == nil {
		t.Error("a manifest passed for an index")
	}
	labels := strings.Replace(good, `"layers"`, `"annotations":{"a":"1","A":"2"},"layers"`, 1)
	if _, err := ParseManifest([]byte(labels), ""); err != nil {
		t.Errorf("annotations may differ by case: %v", err)
	}
}

func TestImageConfiguration(t *testing.T) {
	doc := `{"architecture":"amd64","os":"linux","container":"x","container_config":{"Cmd":["a"]},"config":{"Hostname":"","Cmd":["sh"],"Healthcheck":{"Test":["CMD","x"],"Interval":5000000000},
		"Shell":["/bin/bash","-c"],"OnBuild":null,"Labels":{"a":"1","A":"2"}},"rootfs":{"type":"layers","diff_ids":[` + d1 + `]},"history":[{"created_by":"x"}]}`
	img, err := ParseImage([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	if img.Config.Healthcheck.Interval != 5e9 || img.Config.Shell[0] != "/bin/bash" || len(img.RootFS.DiffIDs) != 1 || img.OS != "linux" {
		t.Errorf("%+v", img)
	}
	for name, tt := range map[string]struct{ old, new, want string }{
		"rootfs case": {`"rootfs"`, `"rootFS":{},"rootfs"`, "spelled unlike"},
		"cmd twice":   {`"Cmd":["sh"]`, `"Cmd":["sh"],"Cmd":["x"]`, "twice"},
		"cmd case":    {`"Cmd":["sh"]`, `"cmd":["sh"]`, "spelled unlike"},
		"type":        {`"layers"`, `"tars"`, "of type"},
		"diff id":     {`sha256:01`, `sha256:/../`, "not a digest"},
		"many":        {`[{"created_by":"x"}]`, `[` + strings.TrimSuffix(strings.Repeat(`{},`, MaxHistory+1), ",") + `]`, "history"},
	} {
		if _, err := ParseImage([]byte(strings.Replace(doc, tt.old, tt.new, 1))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestChainIDs(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	ids := ChainIDs([]Digest{a, b})
	if ids[0] != a || ids[1] != digest.FromString(a.String()+" "+b.String()) || ChainID([]Digest{a, b}) != ids[1] || ChainID(nil) != "" {
		t.Errorf("got %v", ids)
	}
}

func TestPlatforms(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/x86_64": "linux/amd64", "linux/arm64/v8": "linux/arm64", "linux/aarch64": "linux/arm64", "linux/arm": "linux/arm/v7",
		"linux/armhf": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6", "Linux/AMD64": "linux/amd64", "windows/amd64": "windows/amd64", "linux/amd64/v3": "linux/amd64/v3", "linux/i686": "linux/386",
	} {
		p, err := ParsePlatform(in)
		if err != nil || FormatPlatform(p) != want {
			t.Errorf("%s: got %s, %v", in, FormatPlatform(p), err)
		}
	}
	for _, in := range []string{"", "/", "linux/", "linux/amd64/v1/x", "bogus", "linux/am d64", "linux/../x"} {
		if p, err := ParsePlatform(in); err == nil {
			t.Errorf("%q was taken as %v", in, p)
		}
	}
	var list []Descriptor
	for _, s := range []string{"linux/arm/v5", "linux/arm/v7", "linux/386", "linux/amd64", "linux/arm64/v8", "windows/amd64"} {
		f := strings.Split(s+"/", "/")
		list = append(list, Descriptor{MediaType: TypeManifest, Digest: digest.FromString(s), Platform: &Platform{OS: f[0], Architecture: f[1], Variant: f[2]}})
	}
	list = append(list, Descriptor{MediaType: TypeManifest, Platform: &Platform{OS: "unknown", Architecture: "unknown"}})
	for want, pick := range map[string]string{"linux/amd64": "linux/amd64", "linux/amd64/v3": "linux/amd64", "linux/arm64": "linux/arm64/v8", "linux/arm/v6": "linux/arm/v5", "linux/arm/v7": "linux/arm/v7", "linux/s390x": "", "linux/386": "linux/386"} {
		p, _ := ParsePlatform(want)
		d, ok := Choose(list, p)
		if ok != (pick != "") || ok && d.Digest != digest.FromString(pick) {
			t.Errorf("%s: chose %+v, want %s", want, d.Platform, pick)
		}
	}
	if p, _ := ParsePlatform("linux/arm64"); MatchRank(p, Platform{OS: "linux", Architecture: "arm", Variant: "v7"}) < 0 {
		t.Error("arm64 runs arm/v7")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{good, goodIndex, `{"rootfs":{"type":"layers","diff_ids":[` + d1 + `]}}`, `{"a":[{"a":1}],"b":null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := ParseManifest(b, ""); err == nil {
			// What we write, we read as the same.
			again, _ := json.Marshal(m)
			if _, err := ParseManifest(again, m.MediaType); err != nil {
				t.Errorf("%s\n→ %s: %v", b, again, err)
			}
			if _, err := ParseIndex(b, ""); err == nil {
				t.Errorf("both a manifest and an index: %s", b)
			}
		}
		ParseIndex(b, "")
		ParseImage(b)
	})
}
