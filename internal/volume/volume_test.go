package volume

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/testenv"
)

var ctx = context.Background()

func open(t *testing.T, dir string) *Service {
	t.Helper()
	db, err := metadb.Open(filepath.Join(dir, "meta"), metadb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s, err := Open(filepath.Join(dir, "volumes"), db, events.New())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLife(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	v, err := s.Create(ctx, CreateRequest{Name: "data", Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, CreateRequest{Name: "data"}); err != nil {
		t.Errorf("creating it again: %v", err)
	}
	if _, err := s.Create(ctx, CreateRequest{Name: "data", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("other options: %v", err)
	}
	for _, name := range []string{"../x", "a/b", "x", "-a", "a b"} {
		if _, err := s.Create(ctx, CreateRequest{Name: name}); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	p, err := s.Mount(ctx, "data", "c1")
	if err != nil || p != v.Mountpoint {
		t.Fatal(p, err)
	}
	if err := s.Remove(ctx, "data", true); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("removing one in use: %v", err)
	}
	if l, _ := s.List(map[string][]string{"dangling": {"true"}}); len(l) != 0 {
		t.Errorf("dangling: %v", l)
	}
	s.Unmount(ctx, "data", "c1")
	if l, _ := open2(t, s).List(map[string][]string{"label": {"a=b"}}); len(l) != 1 {
		t.Errorf("by label: %v", l)
	}
	if err := s.Remove(ctx, "data", false); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p); !os.IsNotExist(err) {
		t.Error("the directory is left")
	}
	if err := s.Remove(ctx, "data", false); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("removing it again: %v", err)
	}
}

func open2(t *testing.T, s *Service) *Service {
	t.Helper()
	again, err := Open(s.dir, s.db, events.New())
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func TestPruneTakesAnonymousOnes(t *testing.T) {
	s := open(t, t.TempDir())
	s.Create(ctx, CreateRequest{Name: "named"})
	anon, err := s.Create(ctx, CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(anon.Mountpoint, "f"), make([]byte, 1000), 0o644)
	names, freed, err := s.Prune(ctx, PruneOptions{})
	if err != nil || len(names) != 1 || names[0] != anon.Name || freed != 1000 {
		t.Errorf("%v %d %v", names, freed, err)
	}
	if names, _, _ = s.Prune(ctx, PruneOptions{Filters: map[string][]string{"all": {"true"}}}); len(names) != 1 {
		t.Errorf("all: %v", names)
	}
}

func TestCopyUp(t *testing.T) {
	testenv.NeedRoot(t)
	s := open(t, t.TempDir())
	root := t.TempDir()
	os.MkdirAll(filepath.Join(root, "var/lib/app/sub"), 0o750)
	os.WriteFile(filepath.Join(root, "var/lib/app/sub/f"), []byte("content"), 0o640)
	os.Chown(filepath.Join(root, "var/lib/app"), 1000, 1001)
	os.Symlink("/var/lib/app", filepath.Join(root, "link"))
	r, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	v, _ := s.Create(ctx, CreateRequest{Name: "data"})
	if err := s.CopyUp(ctx, "data", r, "/link", ""); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(v.Mountpoint, "sub/f")); string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
	fi, _ := os.Stat(v.Mountpoint)
	if fi.Mode().Perm() != 0o750 {
		t.Errorf("mode of the volume: %v", fi.Mode())
	}
	os.WriteFile(filepath.Join(root, "var/lib/app/later"), nil, 0o644)
	if err := s.CopyUp(ctx, "data", r, "/var/lib/app", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(v.Mountpoint, "later")); err == nil {
		t.Error("a volume with content was filled again")
	}
	if err := s.CopyUp(ctx, "data", r, "/nothing", ""); err != nil {
		t.Errorf("nothing to copy: %v", err)
	}
}

func TestOptionsAreMounted(t *testing.T) {
	testenv.NeedRoot(t)
	s := open(t, t.TempDir())
	v, err := s.Create(ctx, CreateRequest{Name: "ram", Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nosuid"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mount(ctx, "ram", "c"); err != nil {
		t.Fatal(err)
	}
	if !isMount(v.Mountpoint) {
		t.Error("it is not mounted")
	}
	s.Unmount(ctx, "ram", "c")
	if isMount(v.Mountpoint) {
		t.Error("it is still mounted")
	}
	if _, err := s.Create(ctx, CreateRequest{Name: "odd", Options: map[string]string{"speed": "high"}}); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("unknown option: %v", err)
	}
}
