package layer

import (
	"archive/tar"
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/testenv"
)

// outside makes the place that must not change, with a root inside it, and
// returns the root and a check.
func outside(t testing.TB) (root string, check func(name string)) {
	t.Helper()
	top := t.TempDir()
	root = filepath.Join(top, "root")
	must(t, os.MkdirAll(filepath.Join(top, "victim/dir"), 0o700), os.Mkdir(root, 0o755),
		os.WriteFile(filepath.Join(top, "victim/canary"), []byte("alive"), 0o600),
		os.WriteFile(filepath.Join(top, "canary"), []byte("alive"), 0o600),
		os.Symlink("canary", filepath.Join(top, "link")))
	look := func() string {
		var out strings.Builder
		for _, l := range strings.SplitAfter(list(t, top), "\n") {
			if !strings.HasPrefix(l, "root") && !strings.HasPrefix(l, ". ") {
				out.WriteString(l)
			}
		}
		return out.String()
	}
	before := look()
	return root, func(name string) {
		t.Helper()
		if after := look(); after != before {
			t.Errorf("%s changed what is outside:\n%s\nto:\n%s", name, before, after)
		}
	}
}

// Each archive tries to get out. It may fail, or do something inside.
func TestEvilTars(t *testing.T) {
	testenv.NeedRoot(t)
	root, check := outside(t)
	up := filepath.Dir(root)
	x := func(i item, mode int64) item { i.h.Mode = mode; return i }
	cases := map[string][]item{
		"dot dot":                        {file("../canary", "dead")},
		"dot dot deep":                   {file("a/../../canary", "dead")},
		"dot dot late":                   {ent("a/"), file("a/./../../canary", "dead")},
		"absolute":                       {file(up+"/canary", "dead")},
		"absolute dot dot":               {file("/../../canary", "dead")},
		"slashes":                        {file("////..//canary", "dead")},
		"link to parent":                 {ent("l -> .."), file("l/canary", "dead")},
		"link to root":                   {ent("l -> /"), file("l"+up+"/canary", "dead")},
		"link absolute":                  {ent("l -> " + up), file("l/canary", "dead")},
		"link to link":                   {ent("a -> .."), ent("b -> a/.."), file("b/canary", "dead"), file("b/victim/canary", "dead")},
		"link in the middle":             {ent("d/"), ent("d/l -> ../.."), file("d/l/canary", "dead")},
		"link then file":                 {ent("l -> ../canary"), file("l", "dead")},
		"link then mode":                 {ent("l -> ../canary"), x(file("l", ""), 0o4777)},
		"link then owner":                {ent("l -> ../canary"), {what: "l", h: tar.Header{Typeflag: tar.TypeReg, Uid: 1000, Gid: 1000, Mode: 0o777}}},
		"link then directory":            {ent("l -> ../victim"), x(ent("l/"), 0o777), file("l/canary", "dead")},
		"link then device":               {ent("l -> ../canary"), {what: "l", h: tar.Header{Typeflag: tar.TypeFifo, Mode: 0o777}}},
		"link then link":                 {ent("l -> ../canary"), ent("l -> ../victim"), file("l/x", "dead")},
		"link then whiteout":             {ent("l -> .."), ent("l/.wh.canary")},
		"link then opaque":               {ent("l -> ../victim"), ent("l/.wh..wh..opq")},
		"link then whiteout of it":       {ent("l -> ../victim"), ent(".wh.l"), file("l/canary", "dead")},
		"link then hard link":            {ent("l -> .."), ent("h => l/canary"), file("h", "dead")},
		"hard link dot dot":              {ent("h => ../canary"), file("h", "dead")},
		"hard link absolute":             {ent("h => " + up + "/canary"), x(file("h", "dead"), 0o777)},
		"hard link to a link":            {ent("l -> ../canary"), ent("h => l"), x(file("h", "dead"), 0o777)},
		"hard link to a link, mode":      {ent("l -> ../canary"), {what: "h", h: tar.Header{Typeflag: tar.TypeLink, Linkname: "l", Mode: 0o4777, Uid: 5}}},
		"hard link over dot dot":         {ent("a/"), ent("a/h => ../../canary")},
		"hard link to /proc":             {ent("h => /proc/self/cwd/canary")},
		"hard link to a directory":       {ent("d/"), ent("h => d")},
		"magic link":                     {ent("p -> /proc/self/root"), file("p"+up+"/canary", "dead")},
		"cwd link":                       {ent("p -> /proc/self/cwd"), file("p/canary", "dead")},
		"fd link":                        {ent("p -> /proc/self/fd/3"), file("p/canary", "dead"), file("p/../canary", "dead")},
		"directory replaced by link":     {ent("d/"), file("d/x", "x"), ent("d -> ../victim"), file("d/canary", "dead")},
		"directory replaced, cached":     {ent("d/e/"), file("d/e/x", "x"), ent("d -> ../victim"), file("d/e/x", "dead"), file("d/dir/x", "dead"), file("d/canary", "dead")},
		"parent replaced by link":        {ent("a/b/"), file("a/b/x", "x"), ent("a -> .."), file("a/b/x", "y"), file("a/victim/canary", "dead")},
		"link replaced by directory":     {ent("l -> ../victim"), ent("l/"), file("l/canary", "inside")},
		"link to a link that is removed": {ent("a -> b"), ent("b -> .."), ent(".wh.b"), file("a/canary", "dead")},
		"loop":                           {ent("a -> b"), ent("b -> a"), file("a/x", "dead")},
		"self":                           {ent("a -> a"), file("a/x", "dead")},
		"root as file":                   {file(".", "dead")},
		"root as link":                   {ent(". -> ../victim"), file("canary", "dead")},
		"root as directory":              {x(ent("./"), 0o777), x(ent("/"), 0o755), x(ent("a/../"), 0o755)},
		"dot dot as directory":           {x(ent("../"), 0o777)},
		"whiteout of dot dot":            {ent("a/.wh...")},
		"whiteout with slash":            {ent(".wh.../canary")},
		"whiteout dot dot path":          {ent("../.wh.canary")},
		"empty link":                     {ent("l -> ")},
		"long link":                      {ent("l -> " + strings.Repeat("x", 5000))},
		"deep":                           {file(strings.Repeat("d/", 1000)+"x", "x")},
		"file then below":                {file("f", "x"), file("f/canary", "dead")},
		"fifo then below":                {{what: "f", h: tar.Header{Typeflag: tar.TypeFifo}}, file("f/x", "dead")},
		"negative owner":                 {{what: "f", h: tar.Header{Typeflag: tar.TypeReg, Uid: -1, Format: tar.FormatGNU, ModTime: time.Unix(1, 0)}}},
		"pax linkpath":                   {{what: "l", h: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "../" + strings.Repeat("x/", 100) + "../canary"}}, file("l", "dead")},
		"far times":                      {{what: "f", h: tar.Header{Typeflag: tar.TypeReg, ModTime: time.Unix(1<<40, 0), Format: tar.FormatPAX}}, {what: "g/", h: tar.Header{Typeflag: tar.TypeDir, ModTime: time.Unix(-1<<40, 0), Format: tar.FormatPAX}}},
		"twins":                          {file("é", "1"), file("e\u0301", "2"), file("FILE", "1"), file("file", "2")},
	}
	names := make([]string, 0, len(cases))
	for n := range cases {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, name := range names {
		raw := makeTar(t, cases[name]...)
		for how, f := range map[string]func(*os.File) error{
			"apply": func(r *os.File) error {
				_, err := Apply(t.Context(), bytes.NewReader(raw), r, ApplyOptions{})
				return err
			},
			"apply on lowers": func(r *os.File) error {
				_, err := Apply(t.Context(), bytes.NewReader(raw), r, ApplyOptions{Lowers: []string{filepath.Join(up, "root")}})
				return err
			},
			"extract": func(r *os.File) error { return Extract(t.Context(), bytes.NewReader(raw), r, "/", ExtractOptions{}) },
			"extract below": func(r *os.File) error {
				return Extract(t.Context(), bytes.NewReader(raw), r, "/in/side", ExtractOptions{})
			},
		} {
			must(t, os.RemoveAll(root), os.MkdirAll(filepath.Join(root, "in/side"), 0o755))
			r, err := os.Open(root)
			must(t, err)
			err = f(r)
			r.Close()
			check(name + ": " + how)
			if k := errdefs.KindOf(err); err != nil && k == errdefs.Internal {
				t.Errorf("%s: %s: the archive's fault is told as ours: %v", name, how, err)
			}
		}
	}
	t.Logf("%d archives", len(cases))
}

// An absolute hard link target is one in the root.
func TestAbsoluteHardLinks(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	_, err := apply(t, dir, ApplyOptions{}, file("usr/bin/perl", "perl"), ent("usr/bin/perl5 => /usr/bin/perl"), ent("dir -> /usr"), ent("p => dir/bin/perl"))
	must(t, err)
	for _, n := range []string{"usr/bin/perl5", "p"} {
		if b, err := os.ReadFile(filepath.Join(dir, n)); string(b) != "perl" {
			t.Errorf("%s: %q, %v", n, b, err)
		}
	}
}

// A container swaps a directory for a link all the time, while files are
// copied in and out.
func TestRaces(t *testing.T) {
	testenv.NeedRoot(t)
	root, check := outside(t)
	must(t, os.MkdirAll(filepath.Join(root, "a/b"), 0o755), os.MkdirAll(filepath.Join(root, "spare/b"), 0o755), os.WriteFile(filepath.Join(root, "a/b/f"), []byte("in"), 0o644))
	must(t, os.Symlink(filepath.Join(filepath.Dir(root), "victim"), filepath.Join(root, "evil")))
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, _ := linux.OpenRoot(root)
		defer r.Close()
		for {
			select {
			case <-stop:
				return
			default:
			}
			r.Rename("a", r, "tmp")
			r.Rename("evil", r, "a")
			r.Rename("a", r, "evil")
			r.Rename("tmp", r, "a")
		}
	}()
	raw := makeTar(t, file("canary", "dead"), ent("dir/"), file("dir/x", "dead"), ent("h => canary"), item{what: "canary", h: tar.Header{Typeflag: tar.TypeFifo, Mode: 0o4777}})
	f, err := os.Open(root)
	must(t, err)
	defer f.Close()
	for range 300 {
		Extract(t.Context(), bytes.NewReader(raw), f, "a", ExtractOptions{})
		Extract(t.Context(), bytes.NewReader(raw), f, "a/b", ExtractOptions{})
		var out bytes.Buffer
		if Archive(t.Context(), &out, f, "a/canary", ArchiveOptions{}) == nil && bytes.Contains(out.Bytes(), []byte("alive")) {
			t.Fatal("a file from outside was read")
		}
		out.Reset()
		Archive(t.Context(), &out, f, "a", ArchiveOptions{})
		if bytes.Contains(out.Bytes(), []byte("alive")) {
			t.Fatal("a file from outside was read")
		}
	}
	close(stop)
	<-done
	check("racing")
}

// Whatever the bytes, nothing outside changes.
func FuzzApply(f *testing.F) {
	f.Add(makeTar(f, ent("d/"), file("d/f", "x"), ent("l -> ../x"), ent("h => d/f"), ent("d/.wh.x"), ent(".wh..wh..opq")))
	f.Add(makeTar(f, ent("l -> .."), file("l/x", "x"), ent("l/"), ent("l/.wh.y")))
	f.Add(makeTar(f, item{what: "p", h: tar.Header{Typeflag: tar.TypeReg, PAXRecords: map[string]string{paxXattr + "user.x": "y"}}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		root, check := outside(t)
		r, err := os.Open(root)
		must(t, err)
		defer r.Close()
		var meta bytes.Buffer
		rec := Record(bytes.NewReader(raw), &meta)
		_, err = Apply(t.Context(), rec, r, ApplyOptions{Limits: Limits{Bytes: 1 << 20, Entries: 100}})
		if cerr := rec.Close(); err == nil && cerr == nil {
			var out bytes.Buffer
			if err := Assemble(&meta, r, &out); err == nil && !bytes.Equal(out.Bytes(), raw) && len(out.Bytes()) >= len(raw) {
				t.Error("assembled other bytes")
			}
		}
		check("fuzz")
		Extract(t.Context(), bytes.NewReader(raw), r, "/", ExtractOptions{Limits: Limits{Bytes: 1 << 20, Entries: 100}})
		check("fuzz")
	})
}

func FuzzDecompress(f *testing.F) {
	for _, k := range []Kind{Gzip, Zstd, None} {
		var b bytes.Buffer
		w, _ := Compress(&b, k, 0)
		w.Write([]byte(strings.Repeat("data", 1000)))
		w.Close()
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, err := Decompress(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer r.Close()
		buf := make([]byte, 64<<10)
		for range 100 {
			if _, err := r.Read(buf); err != nil {
				return
			}
		}
	})
}

// randomTar makes an archive that GNU tar and we must understand alike.
func randomTar(t testing.TB, rng *rand.Rand) []byte {
	var items []item
	name := func() string {
		parts := make([]string, 1+rng.IntN(3))
		for i := range parts {
			parts[i] = string(rune('a' + rng.IntN(4)))
		}
		return strings.Join(parts, "/")
	}
	var files []string
	used := map[string]bool{}
	isDir := map[string]bool{}
	for range 1 + rng.IntN(12) {
		n := name()
		ok := !used[n]
		for p := filepath.Dir(n); p != "."; p = filepath.Dir(p) {
			ok = ok && (!used[p] || isDir[p])
		}
		for u := range used {
			ok = ok && (!strings.HasPrefix(u, n+"/"))
		}
		if !ok {
			continue
		}
		used[n] = true
		i := item{what: n, h: tar.Header{Mode: int64(rng.IntN(0o10000)) &^ 0o2000, Uid: rng.IntN(3), Gid: rng.IntN(3), ModTime: time.Unix(rng.Int64N(2e9), 0)}}
		switch rng.IntN(5) {
		case 0:
			i.what += "/"
			isDir[n] = true
		case 1:
			i.what = n + " -> " + name()
		case 2:
			if len(files) > 0 {
				i.what = n + " => " + files[rng.IntN(len(files))]
				break
			}
			fallthrough
		default:
			i.body = strings.Repeat("z", rng.IntN(2000))
			files = append(files, n)
		}
		items = append(items, i)
	}
	return makeTar(t, items...)
}

// GNU tar is the oracle for what an archive means.
func TestAgainstGNUTar(t *testing.T) {
	testenv.NeedRoot(t)
	gnu := gnuTar(t)
	rng := rand.New(rand.NewPCG(2, 3))
	for i := range 150 {
		raw := randomTar(t, rng)
		ours, theirs := t.TempDir(), t.TempDir()
		err := Extract(t.Context(), bytes.NewReader(raw), opened(t, ours), "/", ExtractOptions{})
		gerr := gnu(raw, theirs)
		if (err == nil) != (gerr == nil) {
			t.Errorf("archive %d: %v, GNU tar: %v", i, err, gerr)
			continue
		}
		if a, b := implied(list(t, ours)), implied(list(t, theirs)); err == nil && a != b {
			t.Errorf("archive %d %v:\nours:\n%s\nGNU tar:\n%s", i, tarNames(t, raw), a, b)
		}
	}
}

// implied leaves out the times of directories: those without an entry have the
// time of the test.
func implied(s string) string {
	var out []string
	for l := range strings.Lines(s) {
		if f := strings.Fields(l); len(f) > 1 && strings.HasPrefix(f[1], "d") {
			l, _, _ = strings.Cut(l, " @")
		}
		out = append(out, strings.TrimSpace(l))
	}
	return strings.Join(out, "\n")
}
