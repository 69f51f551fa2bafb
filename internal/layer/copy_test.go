package layer

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/testenv"
)

// copyTree is what people copy from.
func copyTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "srv/data/sub"), 0o755), os.WriteFile(filepath.Join(dir, "srv/data/f"), []byte("f"), 0o644),
		os.WriteFile(filepath.Join(dir, "srv/data/sub/g"), []byte("g"), 0o600), os.Symlink("/srv/data", filepath.Join(dir, "abs")),
		os.Symlink("data/f", filepath.Join(dir, "srv/file")), os.Symlink("loop", filepath.Join(dir, "loop")))
	return dir
}

func TestArchive(t *testing.T) {
	root := opened(t, copyTree(t))
	for _, tt := range []struct {
		path string
		o    ArchiveOptions
		want string
		kind errdefs.Kind
	}{
		{path: "/srv/data", want: "data/ data/f data/sub/ data/sub/g"},
		{path: "srv/data/", want: "data/ data/f data/sub/ data/sub/g"},
		{path: "/srv/data/.", o: ArchiveOptions{Name: "."}, want: "f sub/ sub/g"},
		{path: "/srv/data", o: ArchiveOptions{Name: "copy"}, want: "copy/ copy/f copy/sub/ copy/sub/g"},
		{path: "/srv/data/f", want: "f"},
		{path: "/abs", want: "abs->/srv/data"},
		{path: "/abs/", want: "abs/ abs/f abs/sub/ abs/sub/g"},
		{path: "/abs/sub/g", want: "g"},
		{path: "/srv/file", want: "file->data/f"},
		{path: "/srv/file", o: ArchiveOptions{Follow: true}, want: "file"},
		{path: "/../../srv/data/f", want: "f"},
		{path: "/srv/../srv/data/f", want: "f"},
		{path: "/", o: ArchiveOptions{TarOptions: TarOptions{Skip: func(n string) bool { return n == "srv/data" }}}, want: "abs->/srv/data loop->loop srv/ srv/file->data/f"},
		{path: "/none", kind: errdefs.NotFound},
		{path: "/srv/none/x", kind: errdefs.NotFound},
		{path: "/srv/data/f/x", kind: errdefs.Invalid},
		{path: "/loop/", kind: errdefs.Invalid},
		{path: "a\x00b", kind: errdefs.Invalid},
	} {
		var b bytes.Buffer
		err := Archive(t.Context(), &b, root, tt.path, tt.o)
		if err != nil {
			if tt.want != "" || !errdefs.Is(err, tt.kind) {
				t.Errorf("%q: %v", tt.path, err)
			}
			continue
		}
		var names []string
		tr := tar.NewReader(&b)
		for {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			must(t, err)
			n := h.Name
			if h.Linkname != "" {
				n += "->" + h.Linkname
			}
			names = append(names, n)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.path, got, tt.want)
		}
	}
}

func TestExtract(t *testing.T) {
	testenv.NeedRoot(t)
	for _, tt := range []struct {
		name, path string
		o          ExtractOptions
		items      []item
		want       string // lines of the tree
		kind       errdefs.Kind
		says       string // in the error
	}{
		{name: "plain", path: "/srv", items: []item{file("new", "n")}, want: `srv/new -rw-r--r-- 0:0 "n"`},
		{name: "by a link", path: "/abs", items: []item{file("new", "n")}, want: `srv/data/new -rw-r--r-- 0:0 "n"`},
		{name: "links on the way", path: "/", items: []item{file("abs/new", "n")}, want: `srv/data/new -rw-r--r-- 0:0 "n"`},
		{name: "owner", path: "/srv", o: ExtractOptions{Owner: &Owner{7, 8}}, items: []item{file("x/new", "n"), ent("l -> y")}, want: "srv/x drwxr-xr-x 7:8\nsrv/x/new -rw-r--r-- 7:8 \"n\"\nsrv/l Lrwxrwxrwx 7:8 -> y"},
		{name: "whiteouts are files", path: "/srv", items: []item{file(".wh.data", "w")}, want: "srv/.wh.data -rw-r--r-- 0:0 \"w\"\nsrv/data drwxr-xr-x 0:0"},
		{name: "file over directory", path: "/srv", items: []item{file("data", "d")}, want: `srv/data -rw-r--r-- 0:0 "d"`},
		{name: "kept kind", path: "/srv", o: ExtractOptions{KeepKind: true}, items: []item{file("data", "d")}, kind: errdefs.Invalid},
		{name: "kept kind, directory", path: "/srv/data", o: ExtractOptions{KeepKind: true}, items: []item{ent("f/")}, kind: errdefs.Invalid, says: `cannot overwrite non-directory "/srv/data/f" with a directory`},
		{name: "kept kind, same", path: "/srv", o: ExtractOptions{KeepKind: true}, items: []item{ent("data/"), file("data/f", "2")}, want: `srv/data/f -rw-r--r-- 0:0 "2"`},
		{name: "link over file", path: "/srv", items: []item{ent("data/f -> sub/g")}, want: `srv/data/f Lrwxrwxrwx 0:0 -> sub/g`},
		{name: "file over link", path: "/srv", items: []item{file("file", "2")}, want: "srv/file -rw-r--r-- 0:0 \"2\"\nsrv/data/f -rw-r--r-- 0:0 \"f\""},
		{name: "hard link", path: "/srv/data", items: []item{ent("h => sub/g")}, want: `srv/data/sub/g -rw------- 0:0 "g" = srv/data/h`},
		{name: "no directory", path: "/srv/data/f", items: []item{file("x", "")}, kind: errdefs.Invalid},
		{name: "missing", path: "/none", items: []item{file("x", "")}, kind: errdefs.NotFound},
	} {
		dir := copyTree(t)
		err := Extract(t.Context(), bytes.NewReader(makeTar(t, tt.items...)), opened(t, dir), tt.path, tt.o)
		if err != nil {
			if tt.want != "" || !errdefs.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if tt.want == "" {
			t.Errorf("%s: no error", tt.name)
		}
		got := implied(normal(list(t, dir)))
		got = strings.ReplaceAll(got, " @", "")
		for _, w := range strings.Split(tt.want, "\n") {
			if w != "" && !strings.Contains(got+"\n", w+"\n") {
				t.Errorf("%s: no %q in:\n%s", tt.name, w, got)
			}
		}
	}
}
