package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/testenv"
)

var ctx = context.Background()

func open(t testing.TB, dir, boot string) *Store {
	t.Helper()
	db, err := metadb.Open(filepath.Join(dir, "meta"), metadb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(filepath.Join(dir, "snapshots"), db, Options{BootID: boot})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); db.Close() })
	return s
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// layered commits snapshots base, l1 … l(n-1), each with a file of its own name.
func layered(t testing.TB, s *Store, n int) string {
	t.Helper()
	parent := ""
	for i := range n {
		name := fmt.Sprintf("l%d", i)
		must(t, s.Prepare(ctx, name+"-active", parent))
		d, err := s.Dirs(name + "-active")
		must(t, err, os.WriteFile(filepath.Join(d.Upper, name), []byte(name), 0o644), s.Commit(ctx, name, name+"-active"))
		parent = name
	}
	return parent
}

func kind(t *testing.T, err error, want errdefs.Kind) {
	t.Helper()
	if !errdefs.Is(err, want) {
		t.Errorf("got %v, want an error of kind %v", err, want)
	}
}

func TestLifeOfSnapshots(t *testing.T) {
	s := open(t, t.TempDir(), "")
	layered(t, s, 2)
	kind(t, s.Prepare(ctx, "l1", ""), errdefs.Conflict)
	kind(t, s.Prepare(ctx, "x", "nothing"), errdefs.NotFound)
	kind(t, s.Remove(ctx, "l0"), errdefs.Conflict)
	kind(t, s.Remove(ctx, "nothing"), errdefs.NotFound)
	must(t, s.Prepare(ctx, "a", "l1"))
	kind(t, s.Prepare(ctx, "b", "a"), errdefs.Conflict)
	kind(t, s.Commit(ctx, "c", "l1"), errdefs.Conflict)
	d, err := s.Dirs("a")
	must(t, err)
	if len(d.Lowers) != 2 || d.Work == "" {
		t.Errorf("dirs %+v", d)
	}
	must(t, s.Remove(ctx, "a"), s.Remove(ctx, "l1"), s.Remove(ctx, "l0"))
	if names, _ := s.Names(""); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

func TestADirectoryGoesWithItsLastName(t *testing.T) {
	s := open(t, t.TempDir(), "")
	layered(t, s, 1)
	d, _ := s.Dirs("l0")
	must(t, s.Alias(ctx, "again", "l0"), s.Remove(ctx, "l0"))
	if _, err := os.Stat(d.Upper); err != nil {
		t.Errorf("the directory went with one of two names: %v", err)
	}
	must(t, s.Prepare(ctx, "other-active", ""), s.Commit(ctx, "other", "other-active"), s.Stack(ctx, "stacked", "again", "other"))
	sd, err := s.Dirs("stacked")
	must(t, err)
	if sd.Upper != d.Upper || len(sd.Lowers) != 1 {
		t.Errorf("stacked: %+v", sd)
	}
	kind(t, s.Remove(ctx, "other"), errdefs.Conflict)
	must(t, s.Remove(ctx, "again"), s.Remove(ctx, "stacked"))
	if _, err := os.Stat(d.Upper); !os.IsNotExist(err) {
		t.Errorf("the directory is still at its place: %v", err)
	}
}

func TestReopening(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "boot1")
	layered(t, s, 2)
	must(t, s.Sync(ctx))
	must(t, s.Prepare(ctx, "l2-active", "l1"), s.Commit(ctx, "l2", "l2-active"), s.Prepare(ctx, "top", "l2"), s.Prepare(ctx, "kept", "l1"))
	// An unclean end: nothing is closed.
	os.Mkdir(filepath.Join(dir, "snapshots", "d", "77"), 0o700)
	must(t, s.db.Close())
	again := open(t, dir, "boot1")
	if names, _ := again.Names(""); strings.Join(names, " ") != "kept l0 l1 l2 top" {
		t.Errorf("after the process died: %v", names)
	}
	if _, err := os.Stat(filepath.Join(dir, "snapshots", "d", "77")); err == nil {
		t.Error("a directory without a record was left")
	}
	must(t, again.db.Close())
	again = open(t, dir, "boot2")
	if names, _ := again.Names(""); strings.Join(names, " ") != "kept l0 l1 top" {
		t.Errorf("after the machine died: %v", names)
	}
	// What lay on a layer that is gone waits for one of its name.
	if i, err := again.Stat("top"); err != nil || !i.Lost {
		t.Errorf("top: %+v, %v", i, err)
	}
	_, err := again.Dirs("top")
	kind(t, err, errdefs.Conflict)
	must(t, again.Prepare(ctx, "l2-again", "l1"), again.Commit(ctx, "l2", "l2-again"))
	if d, err := again.Dirs("top"); err != nil || len(d.Lowers) != 3 {
		t.Errorf("top after its parent came back: %+v, %v", d, err)
	}
}

func TestMounts(t *testing.T) {
	testenv.NeedRoot(t)
	for _, legacy := range []bool{false, true} {
		t.Run(fmt.Sprintf("legacy=%v", legacy), func(t *testing.T) {
			if legacy {
				defer linux.ForceLegacyOverlay()()
			}
			s := open(t, t.TempDir(), "")
			top := layered(t, s, 130)
			must(t, s.Prepare(ctx, "a", top))
			under := t.TempDir()
			must(t, os.WriteFile(filepath.Join(under, "under"), nil, 0o644))
			f, err := s.MountFD(ctx, "a", MountOptions{Volatile: true, Under: []string{under}})
			must(t, err)
			for _, name := range []string{"l0", "l64", "l129", "under"} {
				g, err := linux.OpenRegularInRoot(f, name)
				if err != nil {
					t.Errorf("layer %s: %v", name, err)
					continue
				}
				g.Close()
			}
			w, err := linux.OpenInRoot(f, "new", os.O_CREATE|os.O_WRONLY, 0o644)
			must(t, err)
			w.Close()
			must(t, linux.UnlinkAt(f, "l64", false))
			f.Close()
			f, err = s.MountFD(ctx, "a", MountOptions{})
			must(t, err)
			f.Close()
			must(t, s.Commit(ctx, "done", "a"))
			f, err = s.MountFD(ctx, "done", MountOptions{})
			must(t, err)
			if _, err := linux.OpenRegularInRoot(f, "l64"); !os.IsNotExist(err) {
				t.Errorf("a deleted file: %v", err)
			}
			if _, err := linux.OpenInRoot(f, "x", os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
				t.Error("a committed snapshot could be written")
			}
			f.Close()
			f, err = s.MountFD(ctx, "l0", MountOptions{})
			must(t, err)
			if _, err := linux.OpenInRoot(f, "x", os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
				t.Error("a single layer could be written")
			}
			f.Close()
			if n, _, err := s.Usage(ctx, "l5"); n != 2 || err != nil {
				t.Errorf("usage %d, %v", n, err)
			}
		})
	}
}

func BenchmarkPrepareMountRemove(b *testing.B) {
	testenv.NeedRoot(b)
	for _, volatile := range []bool{false, true} {
		b.Run(fmt.Sprintf("volatile=%v", volatile), func(b *testing.B) {
			s := open(b, b.TempDir(), "")
			top := layered(b, s, 5)
			var took [4]time.Duration
			n := 0
			for ; b.Loop(); n++ {
				key := fmt.Sprint("c", n)
				at := time.Now()
				lap := func(i int) { took[i] += time.Since(at); at = time.Now() }
				must(b, s.Prepare(ctx, key, top))
				lap(0)
				f, err := s.MountFD(ctx, key, MountOptions{Volatile: volatile})
				must(b, err)
				lap(1)
				f.Close()
				lap(2)
				must(b, s.Remove(ctx, key))
				lap(3)
			}
			for i, what := range []string{"prepare", "mount", "umount", "remove"} {
				b.ReportMetric(float64(took[i].Microseconds())/float64(n), "µs/"+what)
			}
		})
	}
}

// A snapshot leaves nothing, whether something was written to it, it was mounted,
// or neither.
func TestRemovedActiveLeavesNothing(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	s := open(t, dir, "boot")
	must(t, s.Prepare(ctx, "base-active", ""))
	must(t, s.Commit(t.Context(), "base", "base-active"))
	must(t, s.WaitTrash(t.Context()))
	for _, c := range []struct {
		name  string
		mount bool
		write bool
	}{{"untouched", false, false}, {"mounted", true, false}, {"written", true, true}} {
		must(t, s.Prepare(t.Context(), c.name, "base"))
		d, err := s.Dirs(c.name)
		must(t, err)
		if c.mount {
			f, err := s.MountFD(t.Context(), c.name, MountOptions{Volatile: true})
			must(t, err)
			f.Close()
		}
		if c.write {
			must(t, os.MkdirAll(filepath.Join(d.Upper, "a", "b"), 0o755))
		}
		must(t, s.Remove(t.Context(), c.name))
		must(t, s.WaitTrash(t.Context()))
		for _, p := range []string{d.Upper, d.Work} {
			if _, err := os.Stat(p); !os.IsNotExist(err) {
				t.Errorf("%s: %s is still there: %v", c.name, p, err)
			}
		}
	}
}

// Few large files are synced one by one, all else with the file system.
func TestSyncFew(t *testing.T) {
	for name, c := range map[string]struct {
		size  int64
		files int
		odd   bool
		want  bool
	}{
		"few and large": {largeFiles, 3, false, true},
		"small":         {1000, 3, false, false},
		"many":          {largeFiles, fewFiles, false, false},
		"something odd": {largeFiles, 3, true, false},
	} {
		s := open(t, t.TempDir(), "")
		must(t, s.Prepare(ctx, "a", ""))
		d, err := s.Dirs("a")
		must(t, err)
		must(t, os.Mkdir(d.Upper+"/d", 0o755), os.Symlink("nowhere", d.Upper+"/l"), os.WriteFile(d.Upper+"/d/large", make([]byte, c.size), 0o600))
		for i := range c.files {
			must(t, os.WriteFile(fmt.Sprintf("%s/d/f%d", d.Upper, i), nil, 0o600))
		}
		if c.odd {
			must(t, syscall.Mkfifo(d.Upper+"/fifo", 0o600))
		}
		must(t, s.Commit(ctx, "b", "a"))
		s.mu.Lock()
		var dirs []uint64
		for _, l := range s.layers {
			dirs = append(dirs, l.rec.Dir)
		}
		s.mu.Unlock()
		if done, err := s.syncFew(dirs); err != nil || done != c.want {
			t.Errorf("%s: %v %v, want %v", name, done, err, c.want)
		}
		if done, err := s.syncFew(append(dirs, 12345)); err != nil || done {
			t.Errorf("%s: a layer that is gone: %v %v", name, done, err)
		}
		must(t, s.Sync(ctx), s.Close())
	}
}
