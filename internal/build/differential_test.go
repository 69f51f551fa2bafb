package build

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/testenv"
)

// epoch is the SOURCE_DATE_EPOCH of the corpus: no file of a result is younger.
const epoch = 1700000000

// TestDifferential builds the corpus with BuildKit as it comes and with our own
// parts, and wants the same images: files, modes, owners, times, extended
// attributes, layers, configs. What was built is built again: without a change
// everything is in the cache, with a change of a file that matters it is not.
// And another engine, which has never seen it, gets the same digest.
func TestDifferential(t *testing.T) {
	testenv.NeedRoot(t)
	ours, stock, other := openReal(t, t.TempDir()), newStockBuilder(t, memoryDir(t)), openReal(t, t.TempDir())
	if n := len(corpus); n < 150 {
		t.Errorf("the corpus has %d Dockerfiles only", n)
	}
	// The shared base comes first, so that the cases can be built side by side.
	base := corpusCase{name: "base", dockerfile: "FROM base"}
	for _, b := range []*builder{ours, stock, other} {
		if _, err := b.digest(base.context(t)); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	var same atomic.Int32
	t.Run("case", func(t *testing.T) {
		for _, c := range corpus {
			if seen[c.name] {
				t.Errorf("two cases are called %q", c.name)
			}
			seen[c.name] = true
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.compare(t, ours, stock, other, &same)
			})
		}
	})
	t.Logf("%d Dockerfiles, of which %d make the very same bytes", len(corpus), same.Load())
}

// memoryDir is a directory of the oracle's: where syncing costs nothing.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "onggi-oracle-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (c corpusCase) compare(t *testing.T, ours, stock, other *builder, same *atomic.Int32) {
	dir := c.context(t)
	want, werr := stock.digest(dir)
	got, gerr := ours.digest(dir)
	if c.fails != "" {
		if werr == nil || gerr == nil || !strings.Contains(gerr.Error(), c.fails) || !strings.Contains(werr.Error(), c.fails) {
			t.Errorf("both should fail with %q:\nours  %v\nstock %v", c.fails, gerr, werr)
		}
		return
	}
	if werr != nil || gerr != nil {
		t.Fatalf("ours: %v\nstock: %v", gerr, werr)
	}
	if want != got {
		// Layers may say the same in more than one way.
		if d := compareImages(t, dir, stock, ours); (len(d) > 0) != (c.differs != "") {
			t.Errorf("BuildKit's image and ours differ: %s", strings.Join(d, "\n"))
		}
	} else {
		same.Add(1)
	}
	// The other one takes the files itself, and moves them into layers.
	attrs := corpusOutput()
	attrs["store"] = "false"
	r, err := other.build(t.Context(), buildOptions{dir: dir, attrs: corpusAttrs, output: client.ExportEntry{Type: "image", Attrs: attrs}, handOver: true})
	if err != nil {
		t.Fatal(err)
	}
	again := r.resp["containerimage.digest"]
	if again != got {
		t.Errorf("another engine made another image: %s", strings.Join(compareImages(t, dir, ours, other), "\n"))
	}
	if ran := ours.ran(t, dir); len(ran) > 0 {
		// BuildKit runs again what makes a directory in an empty file system.
		if stock := stock.ran(t, dir); !slices.Equal(ran, stock) {
			t.Errorf("built again without a change, this was not in the cache: %q; of BuildKit's: %q", ran, stock)
		}
	}
	if c.matters != "" {
		change(t, filepath.Join(dir, c.matters))
		if ran := ours.ran(t, dir); len(ran) == 0 {
			t.Errorf("%s was changed, and all came from the cache", c.matters)
		}
	}
	if c.unused != "" {
		dir := c.context(t)
		change(t, filepath.Join(dir, c.unused))
		if ran := ours.ran(t, dir); len(ran) > 0 {
			t.Errorf("%s, which nothing uses, was changed, and this was not in the cache: %q", c.unused, ran)
		}
	}
}

// change writes a letter to the end of a file.
func change(t *testing.T, p string) {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
}

// ran builds, and names the steps that did not come from the cache.
func (b *builder) ran(t *testing.T, dir string) (out []string) {
	r, err := b.build(t.Context(), buildOptions{dir: dir, attrs: corpusAttrs})
	if err != nil {
		t.Fatal(err)
	}
	for name, cached := range r.cached {
		if strings.HasPrefix(name, "[") && !strings.HasPrefix(name, "[internal]") && !cached {
			out = append(out, name)
		}
	}
	return out
}

var corpusAttrs = map[string]string{
	"force-network-mode":          "none",
	"build-arg:SOURCE_DATE_EPOCH": strconv.Itoa(epoch),
	"build-arg:GREETING":          "hello",
}

// built is an image as an archive has it.
type built struct {
	digest string
	layers []map[string]string // the files after each
	config map[string]any
}

// corpusOutput are the attributes of an image whose bytes depend on nothing but
// the build.
func corpusOutput() map[string]string {
	return map[string]string{"compression": "uncompressed", "force-compression": "true", "rewrite-timestamp": "true", "oci-mediatypes": "true"}
}

// digest builds a context, and returns the digest of the image's manifest.
func (b *builder) digest(dir string) (string, error) {
	attrs := corpusOutput()
	attrs["store"] = "false"
	r, err := b.build(b.t.Context(), buildOptions{dir: dir, attrs: corpusAttrs, output: client.ExportEntry{Type: "image", Attrs: attrs}})
	return r.resp["containerimage.digest"], err
}

// compareImages says in what the images of two builders differ.
func compareImages(t *testing.T, dir string, want, got *builder) []string {
	w, err := want.image(dir)
	if err != nil {
		t.Fatal(err)
	}
	g, err := got.image(dir)
	if err != nil {
		t.Fatal(err)
	}
	return differences(w, g)
}

// image builds a context to an OCI archive, and reads it.
func (b *builder) image(dir string) (*built, error) { return b.imageWith(dir, corpusOutput()) }

func (b *builder) imageWith(dir string, attrs map[string]string) (*built, error) {
	var out bytes.Buffer
	r, err := b.build(b.t.Context(), buildOptions{dir: dir, attrs: corpusAttrs, output: client.ExportEntry{
		Type: "oci", Attrs: attrs,
		Output: func(map[string]string) (io.WriteCloser, error) { return closer{&out}, nil },
	}})
	if err != nil {
		return nil, err
	}
	blobs := map[string][]byte{}
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if blobs[path.Base(h.Name)], err = io.ReadAll(tr); err != nil {
			return nil, err
		}
	}
	i := &built{digest: r.resp["containerimage.digest"]}
	blob := func(d string) []byte { return blobs[strings.TrimPrefix(d, "sha256:")] }
	var m ocispecs.Manifest
	if err := json.Unmarshal(blob(i.digest), &m); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(blob(m.Config.Digest.String()), &i.config); err != nil {
		return nil, err
	}
	tree := tree{}
	for _, l := range m.Layers {
		if err := tree.apply(blob(l.Digest.String())); err != nil {
			return nil, err
		}
		i.layers = append(i.layers, tree.lines())
	}
	return i, nil
}

// tree is a file tree: paths to files; hard links share one.
type tree map[string]*treeFile

type treeFile struct{ line string }

// apply adds a layer.
func (t tree) apply(layer []byte) error {
	below := maps.Clone(t)
	for tr := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p := path.Clean("/" + h.Name)
		dir, base := path.Split(p)
		switch {
		case base == ".wh..wh..opq":
			t.remove(below, path.Clean(dir), false)
			continue
		case strings.HasPrefix(base, ".wh."):
			t.remove(below, dir+strings.TrimPrefix(base, ".wh."), true)
			continue
		case h.Typeflag == tar.TypeLink:
			t[p] = t[path.Clean("/"+h.Linkname)]
			continue
		case h.Typeflag != tar.TypeDir:
			t.remove(t, p, true)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, tr); err != nil {
			return err
		}
		line := fmt.Sprintf("%c %04o %d:%d %d %s %d,%d %x %s", h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid, h.Size, h.Linkname, h.Devmajor, h.Devminor, sum.Sum(nil)[:4], h.ModTime.UTC().Format(time.RFC3339Nano))
		for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				line += fmt.Sprintf(" %s=%q", k, h.PAXRecords[k])
			}
		}
		t[p] = &treeFile{line: line}
	}
}

// remove takes away what lies below a path, and with self the path, as far as
// it was there before.
func (t tree) remove(before tree, p string, self bool) {
	for q := range before {
		if q == p && self || strings.HasPrefix(q, strings.TrimSuffix(p, "/")+"/") {
			if t[q] == before[q] {
				delete(t, q)
			}
		}
	}
}

func (t tree) lines() map[string]string {
	names := map[*treeFile][]string{}
	for _, p := range slices.Sorted(maps.Keys(t)) {
		names[t[p]] = append(names[t[p]], p)
	}
	out := map[string]string{}
	for p, f := range t {
		out[p] = f.line
		if len(names[f]) > 1 {
			out[p] += " with " + strings.Join(names[f], " ")
		}
	}
	return out
}

// differences says in what two images differ. Layers may say the same in more
// than one way; what counts is what is there after each. Their digests in the
// config differ where they do.
func differences(want, got *built) (out []string) {
	say := func(what string, w, g any) { out = append(out, fmt.Sprintf("%s:\nwant %v\ngot  %v", what, w, g)) }
	if len(want.layers) != len(got.layers) {
		say("layers", len(want.layers), len(got.layers))
		return out
	}
	for i := range want.layers {
		names := maps.Clone(want.layers[i])
		maps.Copy(names, got.layers[i])
		for _, p := range slices.Sorted(maps.Keys(names)) {
			if w, g := want.layers[i][p], got.layers[i][p]; w != g {
				say(fmt.Sprintf("%s after layer %d", p, i), w, g)
			}
		}
	}
	for _, i := range []*built{want, got} {
		delete(i.config["rootfs"].(map[string]any), "diff_ids")
	}
	w, _ := json.Marshal(want.config)
	g, _ := json.Marshal(got.config)
	if !bytes.Equal(w, g) {
		say("config", string(w), string(g))
	}
	return out
}

// corpusCase is one Dockerfile of the corpus.
type corpusCase struct {
	name       string
	dockerfile string
	files      string // the context, see context
	fails      string // words of the error, where it is one
	matters    string // a file whose change must be seen
	unused     string // a file whose change must not
	differs    string // why the image is not BuildKit's
}

var busyboxBytes = sync.OnceValues(func() ([]byte, error) { return os.ReadFile("/bin/busybox") })

// context makes the build context: busybox, the Dockerfile, and files from a
// list of words: name=content, name/ (a directory), name->target (a link),
// name=>other (a hard link), name~size (a sparse file), name|fifo; any with a
// suffix :mode, and @key=value for an extended attribute of the one before.
func (c corpusCase) context(t *testing.T) string {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	last := ""
	for _, w := range strings.Fields(c.files) {
		mode := os.FileMode(0)
		if i := strings.LastIndexByte(w, ':'); i > 0 && w[0] != '@' {
			if m, err := strconv.ParseUint(w[i+1:], 8, 12); err == nil {
				w, mode = w[:i], os.FileMode(m&0o777)
				if m&0o4000 != 0 {
					mode |= os.ModeSetuid
				}
				if m&0o2000 != 0 {
					mode |= os.ModeSetgid
				}
				if m&0o1000 != 0 {
					mode |= os.ModeSticky
				}
			}
		}
		w = strings.ReplaceAll(w, "_SP_", " ")
		i := strings.IndexAny(w, "=~|>")
		if w[0] == '@' {
			k, v, _ := strings.Cut(w[1:], "=")
			d, err := os.Open(filepath.Dir(last))
			must(err)
			must(linux.SetXattrAt(d, filepath.Base(last), k, v))
			must(d.Close())
			continue
		}
		name := w
		if i > 0 {
			name = strings.TrimSuffix(w[:i], "-")
		}
		last = filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(last), 0o755))
		switch {
		case strings.HasSuffix(w, "/"):
			must(os.MkdirAll(last, 0o755))
		case strings.HasPrefix(w[i:], "=>"):
			must(os.Link(filepath.Join(dir, w[i+2:]), last))
		case w[i] == '>':
			must(os.Symlink(w[i+1:], last))
			continue
		case w[i] == '~':
			n, err := strconv.ParseInt(w[i+1:], 10, 64)
			must(err)
			must(os.WriteFile(last, []byte("begin"), 0o644))
			must(os.Truncate(last, n))
		case w[i] == '|':
			d, err := os.Open(filepath.Dir(last))
			must(err)
			must(linux.MknodAt(d, filepath.Base(last), 0o010000, 0o644, 0, 0))
			must(d.Close())
		case w[i+1:] == tinyTar:
			must(os.WriteFile(last, tinyArchive(t), 0o644))
		default:
			must(os.WriteFile(last, []byte(strings.ReplaceAll(w[i+1:], "\\n", "\n")), 0o644))
		}
		if mode != 0 {
			must(os.Chmod(last, mode))
		}
	}
	bb, err := busyboxBytes()
	must(err)
	must(os.WriteFile(filepath.Join(dir, "busybox"), bb, 0o755))
	if _, err := os.Lstat(filepath.Join(dir, "Dockerfile")); err != nil {
		must(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(withBase(c.dockerfile)), 0o644))
	}
	// Old files, each with a time of its own.
	n := 0
	must(filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.Type()&os.ModeSymlink != 0 {
			return err
		}
		n++
		at := time.Unix(1000000000+int64(n), 0)
		return os.Chtimes(p, at, at)
	}))
	return dir
}

// tinyArchive is a tar with a file, two links to it, a directory and a fifo.
func tinyArchive(t *testing.T) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	at := time.Unix(1100000000, 5)
	for _, h := range []*tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o711},
		{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o4750, Uid: 7, Gid: 8, Size: 3, PAXRecords: map[string]string{"SCHILY.xattr.user.colour": "red"}},
		{Name: "d/s", Typeflag: tar.TypeSymlink, Linkname: "../d/f", Mode: 0o777},
		{Name: "h", Typeflag: tar.TypeLink, Linkname: "d/f", Mode: 0o4750},
		{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o600},
		{Name: "deep/er/still", Typeflag: tar.TypeReg, Mode: 0o600},
	} {
		h.ModTime, h.Format = at, tar.FormatPAX
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			io.WriteString(w, "abc")
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// withBase puts a stage "base" with busybox in front of a Dockerfile, behind
// what has to stay in front.
func withBase(df string) string {
	head := ""
	for strings.HasPrefix(df, "ARG ") || strings.HasPrefix(df, "#") {
		line, rest, _ := strings.Cut(df, "\n")
		head, df = head+line+"\n", rest
	}
	return head + "FROM scratch AS base\nCOPY --chmod=755 busybox /bin/\n" +
		`RUN ["/bin/busybox", "sh", "-c", "/bin/busybox mkdir -p /etc /tmp /root && for a in sh cat ls mkdir rm ln touch chmod chown mknod mkfifo stat cp mv id env sort tar truncate find seq test dd pwd sleep true false grep echo printf rmdir wc; do /bin/busybox ln -s busybox /bin/$a; done; echo root:x:0:0::/root:/bin/sh > /etc/passwd"]` + "\n" + df
}

// A squashed image has the same files, in one layer above its base.
func TestSquash(t *testing.T) {
	b := openReal(t, t.TempDir())
	base := corpusCase{dockerfile: "FROM base\nRUN mkdir /d /e && echo 1 > /d/1 && echo 2 > /d/2 && echo 3 > /e/3\n"}.context(t)
	if _, err := b.build(t.Context(), buildOptions{dir: base, attrs: corpusAttrs, output: client.ExportEntry{Type: "image", Attrs: map[string]string{"name": "docker.io/library/squashbase:latest"}}}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dockerfile string
		layers     int
	}{
		"over a base":  {"FROM squashbase\nRUN rm /d/1 && echo new > /d/4 && ln /d/4 /d/5\nENV A=1\nRUN rm -r /e && mkdir /e && echo 6 > /e/6 && chmod 700 /d\nRUN rm /d/5 && echo again > /d/1 && chown 3:4 /d/1\nCOPY a /f\n", 4},
		"from nothing": {"FROM scratch\nCOPY a /d/a\nCOPY a /d/b\nCOPY --chmod=600 a /d/a\n", 1},
		"one layer":    {"FROM scratch\nCOPY a /d/a\nLABEL a=b\n", 1},
	} {
		dir := contextDir(t, map[string]string{"a": "A", "Dockerfile": c.dockerfile})
		want, err := b.image(dir)
		if err != nil {
			t.Fatal(err)
		}
		attrs := corpusOutput()
		attrs["squash"] = "true"
		got, err := b.imageWith(dir, attrs)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(got.layers) != c.layers {
			t.Errorf("%s: %d layers, want %d", name, len(got.layers), c.layers)
		}
		// Only what is there in the end counts.
		want.layers, got.layers = want.layers[len(want.layers)-1:], got.layers[len(got.layers)-1:]
		delete(want.config, "history")
		delete(got.config, "history")
		for _, d := range differences(want, got) {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// What a label says is not inherited.
func TestUnsetInherited(t *testing.T) {
	b := openReal(t, t.TempDir())
	i, err := b.image(contextDir(t, map[string]string{"Dockerfile": "FROM scratch AS base\nVOLUME /a /b\nEXPOSE 80\nENV A=1 B=2\nFROM base\nLABEL org.onggi.unset=\"VOLUME=/a EXPOSE ENV=B\"\n"}))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := json.Marshal(i.config["config"])
	if want := `{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","A=1"],"Volumes":{"/b":{}},"WorkingDir":"/"}`; string(raw) != want {
		t.Errorf("%s, want %s", raw, want)
	}
}
