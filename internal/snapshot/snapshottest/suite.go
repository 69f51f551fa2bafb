// Package snapshottest checks that a snapshotter keeps the contract of package
// snapshot.
package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/snapshot"
)

// Snapshotter is what the suite checks.
type Snapshotter interface {
	Prepare(ctx context.Context, key, parent string) error
	View(ctx context.Context, key, parent string) error
	Commit(ctx context.Context, name, key string) error
	Alias(ctx context.Context, name, existing string) error
	Stack(ctx context.Context, name, existing, parent string) error
	Remove(ctx context.Context, key string) error
	Stat(key string) (snapshot.Info, error)
	Walk(f func(snapshot.Info) error) error
	Usage(ctx context.Context, key string) (bytes, inodes int64, err error)
	Dirs(key string) (snapshot.Dirs, error)
}

// Run runs the whole suite against fresh instances made by open.
func Run(t *testing.T, open func(t *testing.T) Snapshotter) {
	for _, tt := range []struct {
		name string
		f    func(*testing.T, Snapshotter)
	}{
		{"life", life},
		{"names", names},
		{"remove-parent-in-use", removeParentInUse},
		{"alias", alias},
		{"stack", stack},
		{"view", view},
		{"only-active-is-committed", onlyActive},
		{"usage", usage},
		{"root-looks-as-below", rootAttributes},
		{"many-at-once", many},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.f(t, open(t)) })
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func kind(t *testing.T, err error, want errdefs.Kind) {
	t.Helper()
	if !errdefs.Is(err, want) {
		t.Errorf("got %v, want an error of kind %v", err, want)
	}
}

// layer commits a snapshot with one file of its name.
func layer(t *testing.T, s Snapshotter, name, parent string) {
	t.Helper()
	must(t, s.Prepare(t.Context(), name+"-active", parent))
	d, err := s.Dirs(name + "-active")
	must(t, err, os.WriteFile(filepath.Join(d.Upper, name), []byte(name), 0o644))
	must(t, s.Commit(t.Context(), name, name+"-active"))
}

// gone waits until a directory is deleted, which may be in the background.
func gone(t *testing.T, dir string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := os.Stat(dir)
		if os.IsNotExist(err) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("the directory is still there: %v", err)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func life(t *testing.T, s Snapshotter) {
	layer(t, s, "a", "")
	layer(t, s, "b", "a")
	must(t, s.Prepare(t.Context(), "c", "b"))
	a, _ := s.Dirs("a")
	b, _ := s.Dirs("b")
	c, err := s.Dirs("c")
	must(t, err)
	if a.Work != "" || len(a.Lowers) != 0 || !slices.Equal(b.Lowers, []string{a.Upper}) || !slices.Equal(c.Lowers, []string{b.Upper, a.Upper}) || c.Work == "" || c.Upper == b.Upper {
		t.Errorf("directories: %+v, %+v, %+v", a, b, c)
	}
	i, err := s.Stat("c")
	if err != nil || i.Kind != snapshot.Active || i.Parent != "b" || i.Name != "c" || i.Created.IsZero() {
		t.Errorf("%+v, %v", i, err)
	}
	if i, err = s.Stat("a"); err != nil || i.Kind != snapshot.Committed || i.Parent != "" {
		t.Errorf("%+v, %v", i, err)
	}
	_, err = s.Stat("a-active")
	kind(t, err, errdefs.NotFound)
	must(t, s.Remove(t.Context(), "c"))
	_, err = s.Stat("c")
	kind(t, err, errdefs.NotFound)
	_, err = s.Dirs("c")
	kind(t, err, errdefs.NotFound)
	gone(t, c.Upper)
	gone(t, c.Work)
	var seen []string
	must(t, s.Walk(func(i snapshot.Info) error { seen = append(seen, i.Name); return nil }))
	if !slices.Equal(seen, []string{"a", "b"}) {
		t.Errorf("walked %v", seen)
	}
	stop := errors.New("stop")
	if err := s.Walk(func(snapshot.Info) error { return stop }); err != stop {
		t.Errorf("got %v", err)
	}
}

func names(t *testing.T, s Snapshotter) {
	odd := "sha256:../../x\x01 ü/" + strings.Repeat("n", 500)
	layer(t, s, "a", "")
	must(t, s.Prepare(t.Context(), odd, "a"), s.Commit(t.Context(), odd+"2", odd))
	if _, err := s.Stat(odd + "2"); err != nil {
		t.Error(err)
	}
	kind(t, s.Prepare(t.Context(), "a", ""), errdefs.Conflict)
	kind(t, s.View(t.Context(), "a", ""), errdefs.Conflict)
	kind(t, s.Prepare(t.Context(), "", ""), errdefs.Invalid)
	kind(t, s.Prepare(t.Context(), "x", "none"), errdefs.NotFound)
	kind(t, s.View(t.Context(), "x", "none"), errdefs.NotFound)
	kind(t, s.Alias(t.Context(), "x", "none"), errdefs.NotFound)
	kind(t, s.Stack(t.Context(), "x", "none", ""), errdefs.NotFound)
	kind(t, s.Stack(t.Context(), "x", "a", "none"), errdefs.NotFound)
	kind(t, s.Commit(t.Context(), "x", "none"), errdefs.NotFound)
	kind(t, s.Remove(t.Context(), "none"), errdefs.NotFound)
	_, _, err := s.Usage(t.Context(), "none")
	kind(t, err, errdefs.NotFound)
	must(t, s.Prepare(t.Context(), "same", "a"), s.Commit(t.Context(), "same", "same"))
	must(t, s.Prepare(t.Context(), "b", "a"))
	kind(t, s.Commit(t.Context(), "a", "b"), errdefs.Conflict)
	if i, err := s.Stat("b"); err != nil || i.Kind != snapshot.Active {
		t.Errorf("after a refused commit: %+v, %v", i, err)
	}
}

func removeParentInUse(t *testing.T, s Snapshotter) {
	layer(t, s, "a", "")
	must(t, s.Prepare(t.Context(), "b", "a"))
	kind(t, s.Remove(t.Context(), "a"), errdefs.Conflict)
	must(t, s.Remove(t.Context(), "b"), s.Remove(t.Context(), "a"))
}

func alias(t *testing.T, s Snapshotter) {
	layer(t, s, "a", "")
	d, _ := s.Dirs("a")
	must(t, s.Alias(t.Context(), "a2", "a"), s.Alias(t.Context(), "a2", "a"))
	must(t, s.Prepare(t.Context(), "b", "a"))
	must(t, s.Remove(t.Context(), "a")) // it has another name
	e, err := s.Dirs("b")
	must(t, err)
	if len(e.Lowers) != 1 || e.Lowers[0] != d.Upper {
		t.Errorf("directories %+v", e)
	}
	kind(t, s.Remove(t.Context(), "a2"), errdefs.Conflict)
	layer(t, s, "other", "")
	kind(t, s.Alias(t.Context(), "other", "a2"), errdefs.Conflict)
	kind(t, s.Alias(t.Context(), "x", "b"), errdefs.Conflict)
	must(t, s.Remove(t.Context(), "b"), s.Remove(t.Context(), "a2"))
	gone(t, d.Upper)
}

func stack(t *testing.T, s Snapshotter) {
	layer(t, s, "base", "")
	layer(t, s, "tool", "")
	must(t, s.Stack(t.Context(), "both", "tool", "base"), s.Stack(t.Context(), "alone", "both", ""))
	base, _ := s.Dirs("base")
	tool, _ := s.Dirs("tool")
	both, err := s.Dirs("both")
	must(t, err)
	if both.Upper != tool.Upper || !slices.Equal(both.Lowers, []string{base.Upper}) {
		t.Errorf("directories %+v", both)
	}
	if alone, _ := s.Dirs("alone"); alone.Upper != tool.Upper || len(alone.Lowers) != 0 {
		t.Errorf("directories %+v", alone)
	}
	kind(t, s.Remove(t.Context(), "base"), errdefs.Conflict)
	must(t, s.Remove(t.Context(), "tool"), s.Remove(t.Context(), "both"))
	if _, err := os.Stat(tool.Upper); err != nil {
		t.Errorf("the directory went with one of its users: %v", err)
	}
	must(t, s.Remove(t.Context(), "alone"), s.Remove(t.Context(), "base"))
	gone(t, tool.Upper)
}

func view(t *testing.T, s Snapshotter) {
	layer(t, s, "a", "")
	must(t, s.View(t.Context(), "v", "a"), s.View(t.Context(), "nothing", ""))
	kind(t, s.Remove(t.Context(), "a"), errdefs.Conflict)
	kind(t, s.Commit(t.Context(), "x", "v"), errdefs.Conflict)
	kind(t, s.Prepare(t.Context(), "x", "v"), errdefs.Conflict)
	a, _ := s.Dirs("a")
	if d, err := s.Dirs("v"); err != nil || d.Work != "" || !slices.Contains(append(d.Lowers, d.Upper), a.Upper) {
		t.Errorf("directories %+v, %v", d, err)
	}
	must(t, s.Remove(t.Context(), "v"), s.Remove(t.Context(), "a"), s.Remove(t.Context(), "nothing"))
}

func onlyActive(t *testing.T, s Snapshotter) {
	layer(t, s, "a", "")
	must(t, s.Prepare(t.Context(), "b", "a"))
	kind(t, s.Commit(t.Context(), "x", "a"), errdefs.Conflict)
	kind(t, s.Prepare(t.Context(), "x", "b"), errdefs.Conflict)
	kind(t, s.View(t.Context(), "x", "b"), errdefs.Conflict)
	kind(t, s.Stack(t.Context(), "x", "b", ""), errdefs.Conflict)
}

func usage(t *testing.T, s Snapshotter) {
	must(t, s.Prepare(t.Context(), "b", ""))
	d, _ := s.Dirs("b")
	before, inodes, err := s.Usage(t.Context(), "b")
	must(t, err)
	big := filepath.Join(d.Upper, "big")
	must(t, os.WriteFile(big, []byte(strings.Repeat("x", 100000)), 0o644), os.Link(big, filepath.Join(d.Upper, "again")), os.Mkdir(filepath.Join(d.Upper, "d"), 0o755))
	after, moreInodes, err := s.Usage(t.Context(), "b")
	must(t, err)
	if after-before != 100000 || moreInodes-inodes != 2 {
		t.Errorf("%d bytes and %d inodes", after-before, moreInodes-inodes)
	}
	must(t, s.Commit(t.Context(), "a", "b"))
	for range 2 {
		if n, m, err := s.Usage(t.Context(), "a"); n != after || m != moreInodes || err != nil {
			t.Errorf("after commit: %d bytes, %d inodes, %v", n, m, err)
		}
	}
	if i, _ := s.Stat("a"); i.Size != after {
		t.Errorf("%+v", i)
	}
}

func rootAttributes(t *testing.T, s Snapshotter) {
	must(t, s.Prepare(t.Context(), "a-active", ""))
	d, _ := s.Dirs("a-active")
	must(t, os.Chmod(d.Upper, 0o751|os.ModeSticky), s.Commit(t.Context(), "a", "a-active"), s.Prepare(t.Context(), "b", "a"))
	d, _ = s.Dirs("b")
	fi, err := os.Stat(d.Upper)
	must(t, err)
	if fi.Mode() != os.ModeDir|os.ModeSticky|0o751 {
		t.Errorf("mode %v", fi.Mode())
	}
}

func many(t *testing.T, s Snapshotter) {
	layer(t, s, "base", "")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 20 {
				key := fmt.Sprintf("%d-%d", g, i)
				err := s.Prepare(t.Context(), key, "base")
				if err == nil && i%2 == 0 {
					err = s.Commit(t.Context(), key+"c", key)
					key += "c"
				}
				if err == nil {
					_, err = s.Dirs(key)
				}
				if err == nil && i%3 == 0 {
					err = s.Remove(t.Context(), key)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() { // all want one name, and one gets it
			err := s.Prepare(t.Context(), "wanted", "base")
			if err != nil && !errdefs.Is(err, errdefs.Conflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	must(t, s.Walk(func(i snapshot.Info) error { n++; return nil }))
	if n != 1+1+4*13 {
		t.Errorf("%d snapshots", n)
	}
}
