package hostdir

import (
	"context"
	"errors"
	"fmt"
	gofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source/local"
	digest "github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/build/refs/refstest"
	"github.com/onggi/onggi/internal/linux"
)

// old is a time that a file system cannot confuse with now.
var old = time.Now().Add(-time.Hour)

func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func openDir(t testing.TB, dir string) linux.FD {
	t.Helper()
	fd, err := linux.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fd.Close)
	return fd
}

// The same files as the client's side of a session would send, described the same.
func TestListChoosesWhatASessionSends(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"Dockerfile": "x", "a/b/c": "c", "a/b/d.log": "d", "a.txt": "a", "node_modules/m/x": "m", "keep/node_modules/y": "y", "z": "z"})
	for name, target := range map[string]string{"link": "a/b", "out": "/etc", "up": "../..", "a/file": "b/c", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	os.Link(filepath.Join(dir, "a.txt"), filepath.Join(dir, "a/second"))
	os.Link(filepath.Join(dir, "a.txt"), filepath.Join(dir, "third"))
	os.Chmod(filepath.Join(dir, "z"), 0o4711)
	syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600)
	for _, f := range []fsutil.FilterOpt{
		{},
		{ExcludePatterns: []string{"**/node_modules", "*.log"}},
		{ExcludePatterns: []string{"*", "!a/b", "a/b/d.log"}},
		{ExcludePatterns: []string{"a.txt"}},
		{ExcludePatterns: []string{"**/*.log", "!a/b/*.log"}},
		{IncludePatterns: []string{"a/b"}},
		{FollowPaths: []string{"Dockerfile", "Dockerfile.dockerignore"}},
		{FollowPaths: []string{"link/c", "a/fi*"}},
		{FollowPaths: []string{"out/passwd", "up/x", "loop"}},
		{FollowPaths: []string{"z", "a.txt"}, ExcludePatterns: []string{"z"}},
	} {
		got, err := list(t.Context(), openDir(t, dir), &f, nil)
		if err != nil {
			t.Fatal(err)
		}
		fs, err := fsutil.NewFS(dir)
		if err != nil {
			t.Fatal(err)
		}
		f.Map = func(_ string, st *fstypes.Stat) fsutil.MapResult {
			st.Uid, st.Gid = 0, 0
			return fsutil.MapResultKeep
		}
		if fs, err = fsutil.NewFilterFS(fs, &f); err != nil {
			t.Fatal(err)
		}
		var want []string
		fsutil.WithHardlinkReset(fs).Walk(t.Context(), "", func(p string, d gofs.DirEntry, err error) error {
			fi, err := d.Info()
			if err != nil {
				return err
			}
			st := fi.Sys().(*fstypes.Stat)
			want = append(want, st.String())
			return nil
		})
		var have []string
		for _, x := range got {
			have = append(have, x.stat.String())
		}
		if len(have) == 0 || !reflect.DeepEqual(blind(have), blind(want)) {
			t.Errorf("%v:\n%s\nwant\n%s", f, strings.Join(have, "\n"), strings.Join(want, "\n"))
		}
	}
}

// blind forgets sizes, which fsutil loses for some names of a file.
func blind(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		var keep []string
		for f := range strings.FieldsSeq(s) {
			if !strings.HasPrefix(f, "size:") {
				keep = append(keep, f)
			}
		}
		out[i] = strings.Join(keep, " ")
	}
	return out
}

// rig is a Source on a store of refs.
type rig struct {
	t     *testing.T
	root  string
	store *refs.Store
	src   *Source
	ahead func(*walk) // called between hand-over and build with the walk that has begun, or nil
}

func newRig(t *testing.T) *rig {
	root, err := os.MkdirTemp("", "hostdir-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for os.RemoveAll(root) != nil { // BuildKit saves its hashes behind our back
		}
	})
	snaps := &refstest.Snapshots{Dir: t.TempDir()}
	store, err := refs.Open(t.Context(), refs.Options{Root: root, Records: &refstest.Records{}, Snapshots: snaps, Layers: refstest.Layers{}, Mounter: snaps})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	src, err := NewSource(store, &Dirs{})
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t: t, root: root, store: store, src: src}
}

// snapshot is what a build is given of dir.
func (r *rig) snapshot(dir string, build solver.JobContext, ignore ...string) cache.ImmutableRef {
	r.t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	forget, err := r.src.dirs.Give("s", map[string]*os.File{"context": f})
	if err != nil {
		r.t.Fatal(err)
	}
	defer forget()
	if r.ahead != nil {
		ctx, cancel := context.WithCancel(r.t.Context())
		defer cancel()
		r.src.Ahead(ctx, "s")
		r.ahead(r.src.walks["s:context"])
	}
	in, err := r.src.Resolve(r.t.Context(), &local.LocalIdentifier{Name: "context", SessionID: "s", ExcludePatterns: ignore}, nil, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	ref, err := in.Snapshot(r.t.Context(), build)
	if err != nil {
		r.t.Fatal(err)
	}
	return ref
}

// take is one build's use of dir: where the copy lies, and its content hash.
func (r *rig) take(dir string, ignore ...string) (copy string, sum digest.Digest, id string) {
	r.t.Helper()
	ref := r.snapshot(dir, job{}, ignore...)
	defer ref.Release(context.Background())
	sum, err := contenthash.Checksum(r.t.Context(), ref, "/", contenthash.ChecksumOpts{}, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := ref.Mount(r.t.Context(), true, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	list, _, err := m.Mount()
	if err != nil {
		r.t.Fatal(err)
	}
	md, _ := ref.GetEqualMutable()
	return list[0].Source, sum, md.ID()
}

type job struct{ solver.JobContext }

func (job) Session() session.Group       { return nil }
func (job) Cleanup(f func() error) error { return f() }

func describe(t *testing.T, dir string) string {
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d gofs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprintf(&b, "%s %s %d", rel, fi.Mode(), fi.ModTime().UnixNano())
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", data)
		case fi.Mode()&gofs.ModeSymlink != 0:
			l, _ := os.Readlink(p)
			fmt.Fprintf(&b, " -> %s", l)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// After any change, the kept copy is what the directory holds, and hashes like
// a copy made from nothing.
func TestChangesAreFollowed(t *testing.T) {
	dir := t.TempDir()
	r, rnd := newRig(t), rand.New(rand.NewPCG(1, 2))
	name := func() string {
		return filepath.Join(dir, fmt.Sprintf("d%d", rnd.IntN(3)), fmt.Sprintf("e%d", rnd.IntN(3)), fmt.Sprintf("f%d", rnd.IntN(4)))
	}
	write(t, dir, map[string]string{"d0/e0/f0": "first"})
	_, _, id := r.take(dir)
	for step := range 80 {
		p := name()
		os.MkdirAll(filepath.Dir(p), 0o755)
		what := rnd.IntN(9)
		switch what {
		case 0:
			os.RemoveAll(p)
		case 1:
			os.RemoveAll(filepath.Dir(p))
		case 2:
			os.RemoveAll(filepath.Dir(p))
			os.WriteFile(filepath.Dir(p), []byte("was a directory"), 0o600)
		case 3:
			os.Remove(p)
			os.Symlink(fmt.Sprintf("f%d", rnd.IntN(4)), p)
		case 4:
			os.Remove(p)
			os.Link(name(), p)
		case 5:
			os.Chmod(p, gofs.FileMode(0o600+rnd.IntN(0o100)))
		case 6:
			os.Chmod(filepath.Dir(p), 0o700)
		case 7:
			os.Chtimes(p, old, old.Add(time.Duration(step)*time.Second))
		default:
			os.RemoveAll(p)
			os.WriteFile(p, fmt.Appendf(nil, "content %d", step), 0o644)
		}
		got, sum, again := r.take(dir)
		if again != id {
			t.Fatalf("step %d: another ref", step)
		}
		if g, w := describe(t, got), describe(t, dir); g != w {
			t.Fatalf("step %d (%d):\n%s\nwant\n%s", step, what, g, w)
		}
		if _, want, _ := newRig(t).take(dir); sum != want {
			t.Fatalf("step %d (%d): the content hash is %s, a new one is %s", step, what, sum, want)
		}
	}
}

// The same size, written within the grain of the file's times.
func TestChangeWithinTheGrainOfTime(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"f": "one"})
	r := newRig(t)
	_, first, _ := r.take(dir)
	for _, i := range r.src.indexes {
		if !i["f"].racy {
			t.Fatal("a file that was just written is trusted")
		}
	}
	if _, again, _ := r.take(dir); again != first {
		t.Error("reading it again gives another hash")
	}
}

// What is unchanged is neither read nor copied.
func TestUnchangedFilesAreNotRead(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": "a", "d/b": "b"})
	r := newRig(t)
	copied, first, id := r.take(dir)
	for _, it := range r.src.indexes[id] {
		it.racy = false // as if the files were older
	}
	ino := func() uint64 {
		fi, err := os.Stat(filepath.Join(copied, "a"))
		if err != nil {
			t.Fatal(err)
		}
		return fi.Sys().(*syscall.Stat_t).Ino
	}
	was := ino()
	if _, again, same := r.take(dir); again != first || same != id || ino() != was {
		t.Errorf("copied again: ref %s %s, inode %d %d", id, same, was, ino())
	}
	// And after a restart, by the index on disk.
	data, err := r.src.indexes[id].marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.root, "ext", id, keyIndex), data, 0o600); err != nil {
		t.Fatal(err)
	}
	clear(r.src.indexes)
	if _, again, same := r.take(dir); again != first || same != id || ino() != was {
		t.Error("the index on disk was not used")
	}
	// What is not known is not trusted.
	os.WriteFile(filepath.Join(r.root, "ext", id, keyIndex), data[:len(data)-3], 0o600)
	clear(r.src.indexes)
	if _, again, other := r.take(dir); again != first || other == id {
		t.Error("a copy without an index was taken up again")
	}
}

// What was found ahead is the build's if it is what the build asks for.
func TestWalkAhead(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 * worthAhead {
		write(t, dir, map[string]string{fmt.Sprintf("d%d/f%d", i%7, i): "x"})
	}
	r := newRig(t)
	build := func(ignore ...string) map[string]string {
		t.Helper()
		ref := r.snapshot(dir, job{}, ignore...)
		md, _ := ref.GetEqualMutable()
		files := r.src.digests(md.ID())
		ref.Release(t.Context())
		return files
	}
	has := func(files map[string]string, name string, want bool) {
		t.Helper()
		if _, ok := files[name]; ok != want {
			t.Errorf("%s: %v, want %v", name, ok, want)
		}
	}
	r.ahead = func(w *walk) {
		if w != nil {
			t.Error("something was walked that nobody has ever asked for")
		}
	}
	build()
	late := func(name string) func(*walk) {
		return func(w *walk) {
			if w == nil {
				t.Fatal("nothing was walked ahead")
			}
			<-w.done
			write(t, dir, map[string]string{name: "x"})
		}
	}
	r.ahead = late("late")
	has(build(), "late", false)
	r.ahead = func(*walk) {}
	has(build(), "late", true)
	r.ahead = late("later.go")
	files := build("d1") // something else is asked for
	has(files, "later.go", true)
	has(files, "d1/f1", false)
	r.ahead = func(w *walk) {
		late("latest")(w)
		r.src.mu.Lock()
		defer r.src.mu.Unlock()
		r.src.changes++ // as another build does
	}
	has(build("d1"), "latest", true)
}

// A directory that becomes a link after it was listed leads nowhere.
func TestSwappedLinkLeadsNowhere(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	write(t, outside, map[string]string{"f": "secret"})
	write(t, dir, map[string]string{"d/f": "mine", "g": "mine"})
	r := newRig(t)
	fd := openDir(t, dir)
	files, err := list(t.Context(), fd, &fsutil.FilterOpt{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(filepath.Join(dir, "d"))
	os.Remove(filepath.Join(dir, "g"))
	os.Symlink(outside, filepath.Join(dir, "d"))
	os.Symlink(filepath.Join(outside, "f"), filepath.Join(dir, "g"))
	ref, err := r.store.New(t.Context(), nil, nil, cache.CachePolicyRetain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.update(t.Context(), fd, ref, nil, files); err != nil {
		t.Fatal(err)
	}
	m, _ := ref.Mount(t.Context(), true, nil)
	where, _, _ := m.Mount()
	if got := describe(t, where[0].Source); strings.Contains(got, "secret") {
		t.Errorf("read outside of the directory:\n%s", got)
	}
}

func TestGiveRefusesWhatProvesNothing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"f": ""})
	file, _ := os.Open(filepath.Join(dir, "f"))
	defer file.Close()
	place := openDir(t, dir)
	handle, err := place.Dir(".")
	if err != nil {
		t.Fatal(err)
	}
	h := handle.File("handle")
	defer h.Close()
	var d Dirs
	for name, f := range map[string]*os.File{"a file": file, "a handle": h} {
		if _, err := d.Give("s", map[string]*os.File{"context": f}); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	f, _ := os.Open(dir)
	forget, err := d.Give("s", map[string]*os.File{"context": f})
	if err != nil {
		t.Fatal(err)
	}
	if fd, err := d.open("other", "context"); fd != linux.NoFD || err != nil {
		t.Error("another session has it")
	}
	forget()
	if fd, err := d.open("s", "context"); fd != linux.NoFD || err != nil {
		t.Error("it was not forgotten")
	}
}

func FuzzIndex(f *testing.F) {
	x := index{"a": {stat: &fstypes.Stat{Path: "a", Size: 3}, ino: 7, ctime: -1, size: 3, digest: digest.FromString("a")}}
	b, err := x.marshal()
	if err != nil {
		f.Fatal(err)
	}
	if back, err := parseIndex(b); err != nil || back["a"].ctime != -1 || back["a"].digest != x["a"].digest || back["a"].stat.Size != 3 {
		f.Fatalf("%v %v", back, err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { parseIndex(b) })
}

// buildOf is a build's job: it cleans up when the build is over.
type buildOf struct {
	job
	t *testing.T
}

func (b buildOf) Cleanup(f func() error) error {
	b.t.Cleanup(func() { f() })
	return nil
}

// keep is one build's use of dir, whose files can be moved.
func (r *rig) keep(dir string) (*Kept, cache.ImmutableRef) {
	r.t.Helper()
	ref := r.snapshot(dir, buildOf{t: r.t})
	kept := r.store.LenderOf(ref).(*Kept)
	for _, it := range kept.files {
		it.racy = false // nothing changes here within a tick of the clock
	}
	return kept, ref
}

func copyAction(src, dest string) *pb.FileAction {
	return &pb.FileAction{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Src: src, Dest: dest, Mode: -1, Timestamp: -1, CreateDestPath: true, DirCopyContents: true, FollowSymlink: true, AllowWildcard: true}}}
}

func inode(t *testing.T, p string) uint64 {
	t.Helper()
	fi, err := os.Lstat(p)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Ino
}

// A COPY takes the files themselves: they are on disk once. Another COPY finds
// them in the layer, the next build knows that they are there, and who looks
// at the context sees all of it.
func TestFilesAreMovedIntoLayers(t *testing.T) {
	r, dir := newRig(t), t.TempDir()
	write(t, dir, map[string]string{"a": "a", "d/x": "x", "d/e/y": "y"})
	os.Symlink("x", filepath.Join(dir, "d/link"))
	for _, p := range []string{"a", "d/x", "d/e/y", "d/e", "d"} {
		os.Chtimes(filepath.Join(dir, p), old, old)
	}
	kept, ref := r.keep(dir)
	before, layer := inode(t, filepath.Join(kept.dir, "d/x")), t.TempDir()
	if err := kept.Copy(t.Context(), layer, nil, copyAction("/d", "/to")); err != nil {
		t.Fatal(err)
	}
	if inode(t, filepath.Join(layer, "to/x")) != before {
		t.Error("the file in the layer is a copy")
	}
	if _, err := os.Lstat(filepath.Join(kept.dir, "d/x")); !os.IsNotExist(err) {
		t.Errorf("the file is still in the context: %v", err)
	}
	second := t.TempDir()
	if err := kept.Copy(t.Context(), second, nil, copyAction("/", "/")); err != nil {
		t.Fatal(err)
	}
	want := describe(t, dir)
	if got := describe(t, second); got != want {
		t.Errorf("the second layer has\n%s\nwant\n%s", got, want)
	}
	ref.Release(context.Background())

	// The next build finds all unchanged; then a layer goes.
	kept, ref = r.keep(dir)
	if kept.files["d/x"].place.dir != second || kept.files["d/x"].racy {
		t.Errorf("d/x is thought to be at %+v", kept.files["d/x"].place)
	}
	os.RemoveAll(second)
	if err := kept.Whole(t.Context()); err != nil { // from the client's directory
		t.Fatal(err)
	}
	if got := describe(t, kept.dir); got != want {
		t.Errorf("brought back:\n%s\nwant\n%s", got, want)
	}
	if err := kept.Copy(t.Context(), t.TempDir(), nil, copyAction("/a", "/")); !errors.Is(err, ErrNotPlain) {
		t.Errorf("files that somebody sees were moved: %v", err)
	}
	ref.Release(context.Background())

	// What is in no layer any more is read again by the next build.
	kept, ref = r.keep(dir)
	third := t.TempDir()
	if err := kept.Copy(t.Context(), third, nil, copyAction("/", "/")); err != nil {
		t.Fatal(err)
	}
	ref.Release(context.Background())
	os.RemoveAll(third)
	kept, _ = r.keep(dir)
	if got := describe(t, kept.dir); got != want {
		t.Errorf("read again:\n%s\nwant\n%s", got, want)
	}
}

// A file that has changed since the build began, and is nowhere else, fails the
// build: it must not pass for what it was.
func TestChangedFileIsNotTakenForTheOldOne(t *testing.T) {
	r, dir, layer := newRig(t), t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{"a": "old", "b": "b"})
	kept, _ := r.keep(dir)
	if err := kept.Copy(t.Context(), layer, nil, copyAction("/a", "/")); err != nil {
		t.Fatal(err)
	}
	write(t, layer, map[string]string{"a": "bad"}) // as another action of the same step could
	write(t, dir, map[string]string{"a": "new"})
	if err := kept.Copy(t.Context(), t.TempDir(), nil, copyAction("/a", "/")); err == nil || !strings.Contains(err.Error(), "has changed since the build began") {
		t.Errorf("copied all the same: %v", err)
	}
}

// Over lower layers, a directory is copied up as overlayfs does it, and what is
// there decides where a copy goes.
func TestMoveOverLowerLayers(t *testing.T) {
	r, dir, low := newRig(t), t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{"a": "a", "d/x": "x"})
	write(t, low, map[string]string{"usr/keep": "k", "usr/a": "below", "opt/file": "f"})
	os.Chmod(filepath.Join(low, "usr"), 0o711)
	os.Symlink("usr", filepath.Join(low, "link"))
	kept, _ := r.keep(dir)
	up := t.TempDir()
	if err := kept.Copy(t.Context(), up, []string{low}, copyAction("/a", "/usr")); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(up, "usr")); err != nil || fi.Mode().Perm() != 0o711 {
		t.Errorf("/usr: %v, %v", fi, err)
	}
	if b, err := os.ReadFile(filepath.Join(up, "usr/a")); err != nil || string(b) != "a" {
		t.Errorf("/usr/a: %q, %v", b, err)
	}
	for dest, src := range map[string]string{"/link/": "/a", "/opt/file/": "/a", "/opt/file": "/d"} {
		if err := kept.Copy(t.Context(), up, []string{low}, copyAction(src, dest)); !errors.Is(err, ErrNotPlain) {
			t.Errorf("COPY %s %s: %v", src, dest, err)
		}
	}
}

// Names of owners are those of the stage, as it is when the copy begins.
func TestMoveWithOwnersByName(t *testing.T) {
	r, dir := newRig(t), t.TempDir()
	write(t, dir, map[string]string{"passwd": "u:x:50:60::/:\n"})
	name := func(s string) *pb.UserOpt {
		return &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: s}}}
	}
	id := func(n uint32) *pb.UserOpt { return &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: n}} }
	base := map[string]string{"etc/passwd": "root:x:0:0::/:\nu:x:5:6::/:\n", "etc/group": "g:x:9:\n"}
	for what, c := range map[string]struct {
		owner    *pb.ChownOpt
		low      map[string]string
		prepare  func(low, up string)
		uid, gid uint32
		err      error
	}{
		"user":             {owner: &pb.ChownOpt{User: name("u")}, low: base, uid: 5, gid: 6},
		"user and group":   {owner: &pb.ChownOpt{User: name("u"), Group: name("g")}, low: base, uid: 5, gid: 9},
		"group":            {owner: &pb.ChownOpt{Group: name("g")}, low: base, gid: 9},
		"user and number":  {owner: &pb.ChownOpt{User: name("u"), Group: id(3)}, low: base, uid: 5, gid: 3},
		"number":           {owner: &pb.ChownOpt{User: id(7)}, low: base, uid: 7, gid: 7},
		"number and group": {owner: &pb.ChownOpt{User: id(7), Group: name("g")}, low: base, uid: 7, gid: 9},
		"unknown":          {owner: &pb.ChownOpt{User: name("ghost"), Group: name("ghost")}, low: base},
		"no files":         {owner: &pb.ChownOpt{User: name("u")}},
		"copied before": {owner: &pb.ChownOpt{User: name("u")}, low: base, uid: 55, gid: 66, prepare: func(_, up string) {
			write(t, up, map[string]string{"etc/passwd": "u:x:55:66::/:\n"})
		}},
		"taken away": {owner: &pb.ChownOpt{User: name("u")}, low: base, prepare: func(_, up string) {
			os.Mkdir(up+"/etc", 0o755)
			syscall.Mknod(up+"/etc/passwd", syscall.S_IFCHR, 0)
		}},
		"link": {owner: &pb.ChownOpt{User: name("u")}, err: ErrNotPlain, prepare: func(low, _ string) {
			os.Mkdir(low+"/etc", 0o755)
			os.Symlink("/etc/passwd", low+"/etc/passwd")
		}},
		"directory is a link": {owner: &pb.ChownOpt{User: name("u")}, err: ErrNotPlain, prepare: func(low, _ string) { os.Symlink("/etc", low+"/etc") }},
		"no list at all":      {owner: &pb.ChownOpt{User: name("u")}, low: map[string]string{"etc/passwd": strings.Repeat("x", 1<<20)}, err: ErrNotPlain},
	} {
		low, up := t.TempDir(), t.TempDir()
		write(t, low, c.low)
		if c.prepare != nil {
			c.prepare(low, up)
		}
		kept, ref := r.keep(dir)
		a := copyAction("/passwd", "/new")
		a.GetCopy().Owner = c.owner
		err := kept.Copy(t.Context(), up, []string{low}, a)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", what, err, c.err)
		}
		if err == nil {
			fi, err := os.Lstat(up + "/new")
			if err != nil {
				t.Fatal(err)
			}
			if st := fi.Sys().(*syscall.Stat_t); st.Uid != c.uid || st.Gid != c.gid {
				t.Errorf("%s: %d:%d, want %d:%d", what, st.Uid, st.Gid, c.uid, c.gid)
			}
		}
		kept.Whole(t.Context())
		ref.Release(t.Context())
	}
	a := copyAction("/passwd", "/")
	a.GetCopy().Owner = &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "u", Input: 1}}}}
	if Plain(a) {
		t.Error("a name is looked up in another stage")
	}
}
