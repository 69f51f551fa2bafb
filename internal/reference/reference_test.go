package reference

import (
	"crypto"
	_ "crypto/sha512"
	"strings"
	"testing"

	oracle "github.com/distribution/reference"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

var names = []string{
	"debian", "debian:12", "debian@sha256:" + hex64, "debian:12@sha256:" + hex64, "library/debian", "docker.io/debian",
	"index.docker.io/debian", "docker.io/library/debian:x", "user/app", "a/b/c", "docker.io/a/b/c", "localhost/x", "localhost:5000/x:y",
	"localhost:5000", "LOCALHOST/x", "Foo/bar", "foo/Bar", "foo:Bar", "example.com/x", "example.com:80/x/y:z", "example.com:/x", "example.com:x/y",
	"[::1]:5000/x", "[::1]/x", "[fe80::1%eth0]:5000/x", "::1/x", "[]/x", "[::1/x", "[::1]x/y", "127.0.0.1:5000/a/b", "", "/", "a/", "/a", "a//b", "a..b", "a.b", "a__b", "a___b", "a_b", "a-_b",
	"a---b", "-a", "a-", "_a", "a_", "a:", "a:-x", "a:.x", "a:_x", "a:" + strings.Repeat("t", 128), "a:" + strings.Repeat("t", 129), hex64, hex64 + ":x", "x/" + hex64,
	"a@sha256:abc", "a@sha256:" + strings.ToUpper(hex64), "a@SHA256:" + hex64, "a@md5:0123456789abcdef0123456789abcdef", "a@sha512:" + hex64 + hex64, "a@sha384:" + hex64 + hex64[:32],
	"a@" + hex64, "@sha256:" + hex64, "sha256:" + hex64, "a:b:c", "a:b/c", "a b", "a\n", "é", "é.com/x", "-x.com/a", "x-.com/a", "x..com/a", strings.Repeat("a/", 127) + "a", strings.Repeat("a/", 128) + "a",
	"x.y/" + strings.Repeat("a", 255), "x.y/" + strings.Repeat("a", 256), "a@sha256:" + hex64 + "@sha256:" + hex64, "foo_bar.baz/x", "foo_bar.baz/x:y", "a:b@", "docker.io/", "index.docker.io/a/b", "xn--n3h.com/x",
}

func TestVerdictsOfTheDistributionProject(t *testing.T) {
	for _, s := range names {
		compare(t, s)
	}
}

func compare(t *testing.T, s string) {
	t.Helper()
	want, werr := oracle.ParseNormalizedNamed(s)
	got, gerr := Parse(s)
	if werr == nil && oracle.Domain(want) == "" {
		if gerr == nil { // the exception in the package comment
			t.Errorf("%q: a name without a host was taken as %v", s, got)
		}
		return
	}
	if (werr == nil) != (gerr == nil) {
		t.Errorf("%q: got %v, the oracle says %v", s, gerr, werr)
		return
	}
	if werr != nil {
		return
	}
	if got.String() != want.String() || got.Familiar() != oracle.FamiliarString(want) || got.Domain != oracle.Domain(want) || got.Path != oracle.Path(want) {
		t.Errorf("%q: got %+v %q, want %q %q", s, got, got.Familiar(), want.String(), oracle.FamiliarString(want))
	}
	if got.OrLatest().String() != oracle.TagNameOnly(want).String() {
		t.Errorf("%q: with the default tag: %q", s, got.OrLatest())
	}
	for _, form := range []string{got.String(), got.Familiar()} {
		if again, err := Parse(form); err != nil || again != got {
			t.Errorf("%q → %q → %+v, %v", s, form, again, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range names {
		f.Add(s)
	}
	if !crypto.SHA512.Available() {
		f.Fatal("the oracle needs sha512")
	}
	f.Fuzz(func(t *testing.T, s string) { compare(t, s) })
}

func TestErrorsSayWhat(t *testing.T) {
	_, err := Parse("Foo:bar")
	if err == nil || !strings.Contains(err.Error(), "repository name must be lowercase") || !strings.Contains(err.Error(), "invalid reference format") {
		t.Errorf("got %v", err)
	}
}

func TestWithTagAndDigest(t *testing.T) {
	r, _ := Parse("debian:12")
	if x, err := r.WithTag("13"); err != nil || x.Familiar() != "debian:13" {
		t.Errorf("%v, %v", x, err)
	}
	if x, err := r.WithDigest("sha256:" + hex64); err != nil || x.Familiar() != "debian@sha256:"+hex64 {
		t.Errorf("%v, %v", x, err)
	}
	if _, err := r.WithTag("a/b"); err == nil {
		t.Error("a bad tag was taken")
	}
	if _, err := r.WithDigest("sha256:../../x"); err == nil {
		t.Error("a bad digest was taken")
	}
}
