package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/testenv"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

var when = time.Unix(1700000000, 123456789)

// An item is an entry of a test's tar: "name", "name/" for a directory,
// "name -> target" for a link, "name => target" for a hard link.
type item struct {
	what string
	h    tar.Header
	body string
}

func file(name, body string) item { return item{what: name, body: body} }
func ent(what string) item        { return item{what: what} }

func makeTar(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := i.h
		if h.ModTime.IsZero() {
			h.ModTime = when
			h.Format = tar.FormatPAX
		}
		switch {
		case h.Typeflag != 0:
			h.Name = i.what
		case strings.Contains(i.what, " -> "):
			h.Typeflag = tar.TypeSymlink
			h.Name, h.Linkname, _ = strings.Cut(i.what, " -> ")
		case strings.Contains(i.what, " => "):
			h.Typeflag = tar.TypeLink
			h.Name, h.Linkname, _ = strings.Cut(i.what, " => ")
		case strings.HasSuffix(i.what, "/"):
			h.Typeflag, h.Name = tar.TypeDir, i.what
		default:
			h.Typeflag, h.Name, h.Size = tar.TypeReg, i.what, int64(len(i.body))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, i.body)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func opened(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func apply(t testing.TB, dir string, o ApplyOptions, items ...item) (Applied, error) {
	t.Helper()
	return Apply(t.Context(), bytes.NewReader(makeTar(t, items...)), opened(t, dir), o)
}

// list describes a tree, a line per entry.
func list(t testing.TB, dir string) string {
	t.Helper()
	var out []string
	inodes := map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %v %d:%d", rel, fi.Mode(), st.Uid, st.Gid)
		switch {
		case fi.Mode().IsRegular():
			b, _ := os.ReadFile(p)
			if len(b) > 40 {
				b = []byte(fmt.Sprintf("%d bytes %x", len(b), sha256.Sum256(b)))
			}
			line += fmt.Sprintf(" %q", b)
		case fi.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			line += " -> " + to
		case fi.Mode()&fs.ModeDevice != 0:
			line += fmt.Sprintf(" %d,%d", st.Rdev>>8, st.Rdev&0xff)
		}
		if !fi.IsDir() && st.Nlink > 1 {
			if first := inodes[st.Ino]; first != "" {
				line += " = " + first
			} else {
				inodes[st.Ino] = rel
			}
		}
		if !fi.ModTime().Equal(when) {
			line += " @" + fi.ModTime().UTC().Format("060102T150405.999999999")
		}
		r, err := linux.OpenRoot(filepath.Dir(p))
		must(t, err)
		defer r.Close()
		names, _ := r.XattrNamesOf(filepath.Base(p))
		slices.Sort(names)
		for _, k := range names {
			v, _ := r.XattrOf(filepath.Base(p), k)
			line += fmt.Sprintf(" [%s=%q]", k, v)
		}
		out = append(out, line)
		return nil
	}))
	return strings.Join(out, "\n") + "\n"
}

func TestApplyEverything(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	long := strings.Repeat("n", 200) + "/" + strings.Repeat("m", 200)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	items := []item{
		{what: "./", h: tar.Header{Typeflag: tar.TypeDir, Mode: 0o751}},
		{what: "bin/", h: tar.Header{Typeflag: tar.TypeDir, Mode: 0o1777}},
		{what: "bin/su", h: tar.Header{Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 7, Gid: 8, Size: 2}, body: "su"},
		{what: "bin/ping", h: tar.Header{Typeflag: tar.TypeReg, Mode: 0o755, Uid: 0, Gid: 0, PAXRecords: map[string]string{
			paxXattr + "security.capability": capability, paxXattr + "trusted.overlay.opaque": "y", paxXattr + "user.overlay.opaque": "y",
			paxXattr + "trusted.x": "1", paxXattr + "system.posix_acl_access": "bad", paxXattr + "security.selinux": "x"}}},
		ent("bin/sh -> /bin/busybox"),
		ent("bin/again => bin/su"),
		ent("abs => /bin/su"),
		ent("linked => bin/sh"),
		{what: "dev/null", h: tar.Header{Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{what: "dev/sda", h: tar.Header{Typeflag: tar.TypeBlock, Mode: 0o660, Gid: 6, Devmajor: 8, Devminor: 0}},
		{what: "dev/fifo", h: tar.Header{Typeflag: tar.TypeFifo, Mode: 0o622}},
		{what: "dev/whiteout", h: tar.Header{Typeflag: tar.TypeChar, Mode: 0o600}},
		file(long, "deep"),
		{what: "group", h: tar.Header{Typeflag: tar.TypeReg, Mode: 0o664, Size: 1}, body: "g"},
		{what: "none", h: tar.Header{Typeflag: tar.TypeReg, Mode: 0o1}},
		file("big", strings.Repeat("0123456789", 100000)),
	}
	raw := makeTar(t, items...)
	got, err := Apply(t.Context(), io.MultiReader(bytes.NewReader(raw), bytes.NewReader(make([]byte, 5000))), opened(t, dir), ApplyOptions{})
	must(t, err)
	sum := sha256.Sum256(append(raw, make([]byte, 5000)...))
	if string(got.DiffID) != "sha256:"+hex.EncodeToString(sum[:]) || got.TarSize != int64(len(raw)+5000) || got.Entries != len(items) || got.Size != 1000007 {
		t.Errorf("applied %+v", got)
	}
	want := `. drwxr-x--x 0:0
abs urwxr-xr-x 7:8 "su"
big -rw-r--r-- 0:0 "1000000 bytes f52b8fe3c2c31bd1a8ff7f1d1b4b8aa9ff1d6fd4b1b2c8b7d7e8ad5d6e4c7f7a"
bin dtrwxrwxrwx 0:0
bin/again urwxr-xr-x 7:8 "su" = abs
bin/ping -rwxr-xr-x 0:0 "" [security.capability="\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"]
bin/sh Lrwxrwxrwx 0:0 -> /bin/busybox
bin/su urwxr-xr-x 7:8 "su" = abs
dev drwxr-xr-x 0:0 @
dev/fifo prw--w--w- 0:0
dev/null Dcrw-rw-rw- 0:0 1,3
dev/sda Drw-rw---- 0:6 8,0
group -rw-rw-r-- 0:0 "g"
linked Lrwxrwxrwx 0:0 -> /bin/busybox = bin/sh
` + strings.Repeat("n", 200) + ` drwxr-xr-x 0:0 @
` + long + ` -rw-r--r-- 0:0 "deep"
none ---------x 0:0 ""
`
	if g := normal(list(t, dir)); g != normal(want) {
		t.Errorf("got:\n%s\nwant:\n%s", g, normal(want))
	}
}

// normal leaves out times that are not set by the archive, and long digests.
func normal(s string) string {
	var out []string
	for _, l := range strings.Split(s, "\n") {
		if i := strings.Index(l, " @"); i >= 0 {
			l = l[:i] + " @"
		}
		if i := strings.Index(l, " bytes "); i >= 0 {
			l = l[:i]
		}
		out = append(out, l)
	}
	return strings.Join(out, "\n")
}

func TestWhiteouts(t *testing.T) {
	testenv.NeedRoot(t)
	dir, lower := t.TempDir(), t.TempDir()
	for _, d := range []string{"root1", "etc", "dir", "opaque", "sub", "sub2"} {
		must(t, os.Mkdir(filepath.Join(lower, d), 0o755))
	}
	for _, f := range []string{"etc/passwd", "mine", "again", "opaque/old"} {
		must(t, os.WriteFile(filepath.Join(lower, f), nil, 0o644))
	}
	_, err := apply(t, dir, ApplyOptions{Lowers: []string{lower}},
		ent("etc/"), ent("etc/.wh.passwd"), // hides a file
		ent("etc/.wh.none"), ent("no/where/.wh.x"), // nothing is there
		ent("opaque/.wh.old"),                                               // nothing will be there
		ent("opaque/"), file("opaque/new", "n"), ent("opaque/.wh..wh..opq"), // hides what is below
		file("mine", "m"), ent(".wh.mine"), // is about lower layers only
		ent("dir/"), file("dir/f", "f"), ent(".wh.dir"), // so the directory hides the lower one
		ent(".wh.again"), file("again", "a"), // replaced
		ent(".wh.sub"), file("sub/f", "s"), // replaced by an implied directory
		ent(".wh.sub2"), ent("sub2/"), // and by one with an entry
		ent(".wh..wh.plnk/"), ent(".wh..wh.aufs"), file(".wh..wh.plnk/x", ""),
	)
	must(t, err)
	g := normal(list(t, dir))
	for _, want := range []string{
		"etc/passwd Dc--------- 0:0 0,0\n", `opaque drwxr-xr-x 0:0 [trusted.overlay.opaque="y"]`, `opaque/new -rw-r--r-- 0:0 "n"`,
		`mine -rw-r--r-- 0:0 "m"`, `dir drwxr-xr-x 0:0 [trusted.overlay.opaque="y"]`, `again -rw-r--r-- 0:0 "a"`,
		`sub2 drwxr-xr-x 0:0 [trusted.overlay.opaque="y"]`,
	} {
		if !strings.Contains(g, want) {
			t.Errorf("no %q in:\n%s", want, g)
		}
	}
	if v, _ := xattr(t, filepath.Join(dir, "sub"), opaqueAttr); v != "y" {
		t.Errorf("sub is not opaque:\n%s", list(t, dir))
	}
	for _, bad := range []string{".wh.", "none", "no ", "old"} {
		if strings.Contains(g, bad) {
			t.Errorf("%q in:\n%s", bad, g)
		}
	}
	for _, bad := range []string{".wh.", "a/.wh..", "a/.wh...", "a/.wh.."} {
		if _, err := apply(t, t.TempDir(), ApplyOptions{}, ent(bad)); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	// At the root overlayfs knows no opaque: every name is hidden.
	dir = t.TempDir()
	must(t, os.WriteFile(filepath.Join(lower, "f"), nil, 0o644))
	_, err = apply(t, dir, ApplyOptions{Lowers: []string{lower}}, ent(".wh..wh..opq"), ent("root1/"), file("new", ""))
	must(t, err)
	g = normal(list(t, dir))
	if !strings.Contains(g, "f Dc") || !strings.Contains(g, `root1 drwxr-xr-x 0:0 [trusted.overlay.opaque="y"]`) {
		t.Errorf("opaque root:\n%s", g)
	}
}

func xattr(t testing.TB, p, key string) (string, error) {
	t.Helper()
	r, err := linux.OpenRoot(filepath.Dir(p))
	must(t, err)
	defer r.Close()
	v, err := r.XattrOf(filepath.Base(p), key)
	return string(v), err
}

// What a layer only implies looks as in the layers below.
func TestImpliedDirectories(t *testing.T) {
	testenv.NeedRoot(t)
	bottom, top, dir := t.TempDir(), t.TempDir(), t.TempDir()
	_, err := apply(t, bottom, ApplyOptions{},
		item{what: "a/", h: tar.Header{Typeflag: tar.TypeDir, Mode: 0o1777, Uid: 5, Gid: 6}},
		item{what: "a/b/", h: tar.Header{Typeflag: tar.TypeDir, Mode: 0o700, Uid: 7}}, file("f", "bottom"), item{what: "h", h: tar.Header{Typeflag: tar.TypeReg, Mode: 0o600, Uid: 3, Size: 6}, body: "bottom"},
		ent("gone/"), file("gone/x", "x"), ent("lib -> usr/lib"))
	must(t, err)
	_, err = apply(t, top, ApplyOptions{Lowers: []string{bottom}}, ent(".wh.gone"))
	must(t, err)
	_, err = apply(t, dir, ApplyOptions{Lowers: []string{top, bottom}},
		file("a/b/c", "c"), ent("a/link => h"), file("gone/y", "y"), file("lib/so", "so"), ent("new -> /a/b"), file("new/d", "d"), ent("far -> nowhere/at/all"), file("far/e", "e"))
	must(t, err)
	g := normal(list(t, dir))
	for _, want := range []string{"a dtrwxrwxrwx 5:6", "a/b drwx------ 7:0", `a/link -rw------- 3:0 "bottom"`, `h -rw------- 3:0 "bottom" = a/link`,
		"gone drwxr-xr-x 0:0 @", "lib drwxr-xr-x 0:0 @", `a/b/d -rw-r--r-- 0:0 "d"`, `nowhere/at/all/e -rw-r--r-- 0:0 "e"`} {
		if !strings.Contains(g, want+"\n") {
			t.Errorf("no %q in:\n%s", want, g)
		}
	}
	if _, err := apply(t, t.TempDir(), ApplyOptions{Lowers: []string{top, bottom}}, ent("l => gone/x")); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("a link to a removed file: %v", err)
	}
}

// Later entries replace earlier ones, whatever both are.
func TestReplacing(t *testing.T) {
	testenv.NeedRoot(t)
	kinds := map[string][]item{
		"file": {file("x", "file")}, "dir": {ent("x/"), file("x/sub/f", "f")}, "link": {ent("x -> y")}, "hard": {file("y", "y"), ent("x => y")},
		"fifo": {{what: "x", h: tar.Header{Typeflag: tar.TypeFifo}}}, "self": {file("x", "self"), ent("x => x")},
	}
	alone := map[string]string{}
	for k, items := range kinds {
		dir := t.TempDir()
		_, err := apply(t, dir, ApplyOptions{}, items...)
		must(t, err)
		alone[k] = grep(list(t, dir), "x ")
	}
	for a := range kinds {
		for b := range kinds {
			dir := t.TempDir()
			_, err := apply(t, dir, ApplyOptions{}, slices.Concat(kinds[a], kinds[b])...)
			if err != nil {
				t.Errorf("%s, then %s: %v", a, b, err)
				continue
			}
			if got := grep(list(t, dir), "x "); got != alone[b] {
				t.Errorf("%s, then %s: %q, want %q", a, b, got, alone[b])
			}
		}
	}
}

func grep(s, prefix string) string {
	for l := range strings.Lines(normal(s)) {
		if strings.HasPrefix(l, prefix) {
			return l
		}
	}
	return ""
}

func TestLimits(t *testing.T) {
	for name, tt := range map[string]struct {
		l     Limits
		items []item
	}{
		"bytes":   {Limits{Bytes: 4000}, []item{file("a", strings.Repeat("x", 5000))}},
		"sum":     {Limits{Bytes: 4000}, []item{file("a", strings.Repeat("x", 2500)), file("b", strings.Repeat("x", 2500))}},
		"tar":     {Limits{Bytes: 4000}, []item{ent("a/"), ent("b/"), ent("c/"), ent("d/"), ent("e/"), ent("f/"), ent("g/"), ent("h/")}},
		"entries": {Limits{Entries: 2}, []item{ent("a/"), ent("b/"), ent("c/")}},
		"depth":   {Limits{Depth: 3}, []item{ent("a/b/c/d/")}},
		"name":    {Limits{}, []item{ent(strings.Repeat("a/", 2100))}},
		"part":    {Limits{}, []item{file(strings.Repeat("a", 256), "")}},
	} {
		dir := t.TempDir()
		if _, err := apply(t, dir, ApplyOptions{Limits: tt.l}, tt.items...); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if l := LimitsFor(1000); l.Bytes != 64*mega+1100*1000 {
		t.Errorf("limits for 1000: %+v", l)
	}
}

// A bomb of zeros takes no disk, and is cut off.
func TestZerosAreHoles(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	_, err := apply(t, dir, ApplyOptions{}, file("zeros", strings.Repeat("\x00", 8<<20)), file("tail", strings.Repeat("\x00", 1<<20)+"end"))
	must(t, err)
	for name, size := range map[string]int64{"zeros": 8 << 20, "tail": 1<<20 + 3} {
		fi, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if fi.Size() != size || fi.Sys().(*syscall.Stat_t).Blocks*512 > size/4 {
			t.Errorf("%s: %d bytes in %d blocks", name, fi.Size(), fi.Sys().(*syscall.Stat_t).Blocks)
		}
	}
	b, _ := os.ReadFile(filepath.Join(dir, "tail"))
	if !bytes.HasSuffix(b, []byte("\x00end")) {
		t.Error("the end is lost")
	}
}

func TestCompression(t *testing.T) {
	plain := []byte(strings.Repeat("compress me ", 200000))
	for _, k := range []Kind{None, Gzip, Zstd} {
		var first []byte
		for range 2 {
			var b bytes.Buffer
			w, err := Compress(&b, k, 0)
			must(t, err)
			_, err = w.Write(plain)
			must(t, err, w.Close())
			if first != nil && !bytes.Equal(first, b.Bytes()) {
				t.Errorf("%q: not the same bytes again", k)
			}
			first = b.Bytes()
		}
		r, kind, err := Decompress(bytes.NewReader(first))
		must(t, err)
		got, err := io.ReadAll(r)
		if err != nil || kind != k || !bytes.Equal(got, plain) {
			t.Errorf("%q: back as %q, %v", k, kind, err)
		}
		must(t, r.Close())
		if k == None {
			continue
		}
		for name, bad := range map[string][]byte{"cut": first[:len(first)-5], "more": append(slices.Clone(first), "garbage garbage"...), "flipped": flip(first)} {
			r, _, err := Decompress(bytes.NewReader(bad))
			if err == nil {
				_, err = io.ReadAll(r)
				r.Close()
			}
			if !errdefs.Is(err, errdefs.Invalid) {
				t.Errorf("%q %s: %v", k, name, err)
			}
		}
	}
	boom := fmt.Errorf("boom")
	var b bytes.Buffer
	w, _ := Compress(&b, Gzip, 0)
	w.Write(plain)
	w.Close()
	r, _, err := Decompress(io.MultiReader(bytes.NewReader(b.Bytes()[:b.Len()/2]), errReader{boom}))
	must(t, err)
	if _, err := io.ReadAll(r); err != boom {
		t.Errorf("an error below came as %v", err)
	}
	if _, _, err := Decompress(strings.NewReader("\xfd7zXZ\x00more")); !errdefs.Is(err, errdefs.Unsupported) {
		t.Errorf("xz: %v", err)
	}
	// A window of 2 GiB.
	if r, _, err := Decompress(bytes.NewReader([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00})); err == nil {
		if _, err := io.ReadAll(r); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("a large window: %v", err)
		}
	}
}

func flip(b []byte) []byte {
	b = slices.Clone(b)
	b[len(b)/2] ^= 0x55
	return b
}

// A tree, as a tar, as a tree.
func TestRoundTrip(t *testing.T) {
	testenv.NeedRoot(t)
	dir, lower := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(lower, "d"), 0o755), os.WriteFile(filepath.Join(lower, "d/gone"), nil, 0o644))
	whole := time.Unix(1700000000, 0)
	var items []item
	for _, i := range []item{
		{what: "./", h: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}}, ent("d/"), ent("d/.wh.gone"), ent("o/"), ent("o/.wh..wh..opq"), file("o/f", "f"),
		{what: "d/suid", h: tar.Header{Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 1, Gid: 2, Size: 1}, body: "s"}, ent("z => d/suid"), ent("l -> ../x"), ent("l2 => l"),
		{what: "n", h: tar.Header{Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 5}}, {what: "p", h: tar.Header{Typeflag: tar.TypeFifo, Mode: 0o644}},
		file("d/"+strings.Repeat("long", 60), "x"), file("d/\xff\xfe", "not utf-8"), file("ü", "utf-8"),
	} {
		i.h.ModTime = whole
		items = append(items, i)
	}
	_, err := apply(t, dir, ApplyOptions{Lowers: []string{lower}}, items...)
	must(t, err)
	var one, two bytes.Buffer
	must(t, Tar(t.Context(), &one, opened(t, dir), TarOptions{}))
	must(t, Tar(t.Context(), &two, opened(t, dir), TarOptions{}))
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("the same tree gave two tars")
	}
	again := t.TempDir()
	_, err = Apply(t.Context(), bytes.NewReader(one.Bytes()), opened(t, again), ApplyOptions{Lowers: []string{lower}})
	must(t, err)
	os.Chtimes(dir, whole, whole) // Tar has no entry for the root
	os.Chtimes(again, whole, whole)
	if a, b := list(t, dir), list(t, again); a != b {
		t.Errorf("before:\n%s\nafter:\n%s", a, b)
	}
	for _, l := range tarNames(t, one.Bytes()) {
		if strings.Contains(l, "wh") && !strings.HasSuffix(l, "/.wh.gone") && !strings.HasSuffix(l, "/.wh..wh..opq") {
			t.Errorf("entry %q", l)
		}
	}
	var clamped bytes.Buffer
	must(t, Tar(t.Context(), &clamped, opened(t, dir), TarOptions{Latest: time.Unix(1600000000, 0), Skip: func(n string) bool { return n == "d" }}))
	tr := tar.NewReader(&clamped)
	for h, err := tr.Next(); err == nil; h, err = tr.Next() {
		if h.ModTime.Unix() != 1600000000 || strings.HasPrefix(h.Name, "d/") {
			t.Errorf("%s %v", h.Name, h.ModTime)
		}
	}
}

func tarNames(t testing.TB, b []byte) (out []string) {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		must(t, err)
		out = append(out, h.Name)
	}
}

// The exact bytes of a tar come back from its tree, however strange it was.
func TestRecordAndAssemble(t *testing.T) {
	testenv.NeedRoot(t)
	whole := makeTar(t, ent("./"), ent("d/"), file("d/a", strings.Repeat("a", 3000)), file("./d//b", "b"), file("/abs", "abs"), ent("d/.wh.x"), ent("l -> d/a"), ent("h => d/a"),
		ent("ld -> d"), file("ld/through", "through"))
	padded := append(slices.Clone(whole), make([]byte, 10240)...)
	junk := append(slices.Clone(whole), []byte("some junk at the end")...)
	for name, raw := range map[string][]byte{"plain": whole, "padded": padded, "junk": junk} {
		dir := t.TempDir()
		var meta bytes.Buffer
		r := Record(bytes.NewReader(raw), &meta)
		got, err := Apply(t.Context(), r, opened(t, dir), ApplyOptions{})
		must(t, err, r.Close())
		if sum := sha256.Sum256(raw); string(got.DiffID) != "sha256:"+hex.EncodeToString(sum[:]) {
			t.Errorf("%s: diff id %s", name, got.DiffID)
		}
		var out bytes.Buffer
		must(t, Assemble(bytes.NewReader(meta.Bytes()), opened(t, dir), &out))
		if !bytes.Equal(out.Bytes(), raw) {
			t.Errorf("%s: other bytes came back", name)
		}
		os.WriteFile(filepath.Join(dir, "d/b"), []byte("c"), 0o644)
		if err := Assemble(bytes.NewReader(meta.Bytes()), opened(t, dir), io.Discard); !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("%s: a changed file: %v", name, err)
		}
	}
	// Two entries of one name cannot be made again, but must not stop a pull.
	var meta bytes.Buffer
	dir := t.TempDir()
	r := Record(bytes.NewReader(makeTar(t, file("x", "1"), file("x", "2"))), &meta)
	_, err := Apply(t.Context(), r, opened(t, dir), ApplyOptions{})
	must(t, err, r.Close())
	if err := Assemble(&meta, opened(t, dir), io.Discard); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("twice the same name: %v", err)
	}
}

// A tar that is cut, or no tar, is told as that, and ends every goroutine.
func TestBadTars(t *testing.T) {
	good := makeTar(t, file("a", strings.Repeat("x", 2000)), file("b", "y"))
	for name, b := range map[string][]byte{"cut in a file": good[:1500], "cut in a header": good[:3000], "noise": bytes.Repeat([]byte("noise"), 300), "sum": append([]byte{'b'}, good[1:]...)} {
		var meta bytes.Buffer
		r := Record(bytes.NewReader(b), &meta)
		if _, err := Apply(t.Context(), r, opened(t, t.TempDir()), ApplyOptions{}); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		r.Close()
	}
	if a, err := Apply(t.Context(), strings.NewReader(""), opened(t, t.TempDir()), ApplyOptions{}); err != nil || a.Entries != 0 {
		t.Errorf("an empty layer: %+v, %v", a, err)
	}
}
