package refs_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"

	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/build/refs/refstest"
)

var ctx = context.Background()

type world struct {
	t     *testing.T
	root  string
	recs  *refstest.Records
	snaps *refstest.Snapshots
	s     *refs.Store
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, root: t.TempDir(), recs: &refstest.Records{}, snaps: &refstest.Snapshots{Dir: t.TempDir()}}
	w.open()
	return w
}

// open starts the store over what an earlier one left.
func (w *world) open() {
	w.t.Helper()
	s, err := refs.Open(ctx, refs.Options{Root: w.root, Records: w.recs, Snapshots: w.snaps, Layers: refstest.Layers{}, Mounter: w.snaps,
		Free: func() (int64, error) { return 1 << 40, nil }})
	if err != nil {
		w.t.Fatal(err)
	}
	w.s = s
	w.t.Cleanup(func() { s.Close() })
}

func (w *world) names() []string {
	w.t.Helper()
	w.s.Close() // waits for removals
	n, err := w.snaps.Names(refs.Prefix)
	must(w.t, err)
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// step makes a ref on parent with one file.
func (w *world) step(parent cache.ImmutableRef, file, content string, opts ...cache.RefOption) cache.ImmutableRef {
	w.t.Helper()
	m, err := w.s.New(ctx, parent, nil, opts...)
	must(w.t, err)
	w.write(m, file, content)
	r, err := m.Commit(ctx)
	must(w.t, err)
	return r
}

// write puts a file into a mutable node's own directory.
func (w *world) write(m cache.MutableRef, file, content string) {
	w.t.Helper()
	own, _, err := w.snaps.Dirs(refs.Prefix + m.ID())
	must(w.t, err)
	must(w.t, os.WriteFile(filepath.Join(own, file), []byte(content), 0o644))
}

func TestMutableIsTakenUpAgain(t *testing.T) {
	w := newWorld(t)
	m, err := w.s.New(ctx, nil, nil, cache.CachePolicyRetain)
	must(t, err)
	w.write(m, "a", "1")
	must(t, m.SetString("local.sharedKey", "k", "local.sharedKey:context:k"))
	r, err := m.Commit(ctx)
	must(t, err)
	if _, err := w.s.GetMutable(ctx, m.ID()); !errors.Is(err, cache.ErrLocked) {
		t.Fatalf("a mutable whose result is held was given out: %v", err)
	}
	must(t, r.Release(ctx))

	found, err := w.s.Search(ctx, "local.sharedKey:context:k", false)
	must(t, err)
	if len(found) != 1 || found[0].ID() != m.ID() {
		t.Fatalf("search found %v", found)
	}
	if got := found[0].GetRecordType(); got != client.UsageRecordTypeLocalSource {
		t.Errorf("record type %q", got)
	}
	again, err := w.s.GetMutable(ctx, m.ID())
	must(t, err)
	if _, err := w.s.Get(ctx, r.ID(), nil); err == nil {
		t.Error("the old result is still there though its files are being changed")
	}
	if _, err := w.s.Get(ctx, m.ID(), nil); !errors.Is(err, cache.ErrLocked) {
		t.Errorf("Get of an open mutable: %v", err)
	}
	r2, err := again.Commit(ctx)
	must(t, err)
	must(t, r2.Finalize(ctx))
	if _, err := w.s.GetMutable(ctx, m.ID()); err == nil {
		t.Error("a finalized ref can be written")
	}
	must(t, r2.Release(ctx))
}

func TestUnfinishedWorkGoes(t *testing.T) {
	w := newWorld(t)
	base := w.step(nil, "base", "x")
	must(t, base.SetCachePolicyRetain())

	m, err := w.s.New(ctx, base, nil)
	must(t, err)
	must(t, m.Release(ctx)) // a step that failed

	r := w.step(base, "f", "x") // a step whose result nobody keeps
	must(t, r.Release(ctx))
	must(t, base.Release(ctx))
	if n := w.names(); len(n) != 1 || n[0] != refs.Prefix+base.ID() {
		t.Errorf("left: %v", n)
	}
}

func TestRestart(t *testing.T) {
	w := newWorld(t)
	a := w.step(nil, "a", "1")
	must(t, a.SetDescription("first"))
	must(t, a.SetCachePolicyRetain())
	b := w.step(a, "b", "2") // finalizes a
	must(t, b.SetCachePolicyRetain())
	must(t, b.SetExternal("hashes", []byte("h")))
	open, err := w.s.New(ctx, b, nil) // finalizes b
	must(t, err)
	_ = open // the engine is killed while this is written

	lazyTwin := w.step(nil, "c", "3")
	must(t, lazyTwin.SetCachePolicyRetain())

	w.open()
	got, err := w.s.Get(ctx, b.ID(), nil)
	must(t, err)
	if v, err := got.GetExternal("hashes"); err != nil || string(v) != "h" {
		t.Errorf("external metadata: %q, %v", v, err)
	}
	chain := got.LayerChain()
	if len(chain) != 2 || chain[0].ID() != a.ID() || chain[0].GetDescription() != "first" {
		t.Errorf("layers: %v", chain)
	}
	if _, err := w.s.Get(ctx, lazyTwin.ID(), nil); err != nil {
		t.Errorf("a committed, not finalized ref: %v", err)
	}
	if _, err := w.s.GetMutable(ctx, open.ID()); err == nil {
		t.Error("what was being written survived")
	}
	n := w.names()
	if len(n) != 3 {
		t.Errorf("snapshots: %v", n)
	}

	// A snapshot that is gone takes its node and those on it along.
	must(t, chain.Release(ctx))
	must(t, got.Release(ctx))
	must(t, w.snaps.Remove(ctx, refs.Prefix+b.ID()))
	must(t, w.snaps.Remove(ctx, refs.Prefix+a.ID()))
	w.open()
	if _, err := w.s.Get(ctx, b.ID(), nil); err == nil {
		t.Error("a node without its snapshot survived")
	}
}

func TestMergeAndDiffShareLayers(t *testing.T) {
	w := newWorld(t)
	a := w.step(nil, "a", "1")
	b := w.step(a, "b", "2")
	c := w.step(b, "c", "3")
	other := w.step(nil, "o", "4")

	m, err := w.s.Merge(ctx, []cache.ImmutableRef{b, nil, other}, nil)
	must(t, err)
	files := func(r cache.ImmutableRef) []string {
		l, err := w.s.Layers(ctx, r, nil)
		must(t, err)
		var out []string
		for _, x := range l {
			own, _, err := w.snaps.Dirs(x.Snapshot)
			must(t, err)
			e, err := os.ReadDir(own)
			must(t, err)
			for _, f := range e {
				out = append(out, f.Name())
			}
		}
		return out
	}
	if got := files(m); !equal(got, []string{"a", "b", "o"}) {
		t.Errorf("merge: %v", got)
	}
	d, err := w.s.Diff(ctx, a, c, nil)
	must(t, err)
	if got := files(d); !equal(got, []string{"b", "c"}) {
		t.Errorf("diff: %v", got)
	}
	if r, err := w.s.Diff(ctx, c, c, nil); err != nil || r != nil {
		t.Errorf("diff of equals: %v, %v", r, err)
	}
	if _, err := w.s.Diff(ctx, other, c, nil); err == nil {
		t.Error("a diff of unrelated trees was made up")
	}
	la, _ := w.s.Layers(ctx, c, nil)
	ld, _ := w.s.Layers(ctx, d, nil)
	if la[1].DiffID != ld[0].DiffID || la[1].ChainID == ld[0].ChainID {
		t.Errorf("a shared layer has another digest: %v %v", la, ld)
	}
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	a := w.step(nil, "a", "1111")
	must(t, a.SetCachePolicyRetain())
	b := w.step(a, "b", "22222222")
	must(t, b.SetCachePolicyRetain())
	must(t, b.Finalize(ctx))
	held := w.step(a, "h", "3")

	du, err := w.s.DiskUsage(ctx, client.DiskUsageInfo{})
	must(t, err)
	if len(du) != 3 {
		t.Fatalf("usage: %d records", len(du))
	}
	must(t, b.Release(ctx))
	must(t, a.Release(ctx))

	var gone []string
	prune := func(p client.PruneInfo) []string {
		gone = nil
		ch := make(chan client.UsageInfo, 10)
		must(t, w.s.Prune(ctx, ch, p))
		close(ch)
		for u := range ch {
			gone = append(gone, u.ID)
		}
		return gone
	}
	if got := prune(client.PruneInfo{Filter: []string{"description==nothing"}}); len(got) != 0 {
		t.Errorf("the filter was ignored: %v", got)
	}
	if got := prune(client.PruneInfo{KeepDuration: time.Hour}); len(got) != 0 {
		t.Errorf("recent ones went: %v", got)
	}
	if got := prune(client.PruneInfo{MaxUsedSpace: 1 << 30}); len(got) != 0 {
		t.Errorf("pruned below the limit: %v", got)
	}
	if got := prune(client.PruneInfo{All: true}); !equal(got, []string{b.ID()}) {
		t.Errorf("pruned %v, want only %s", got, b.ID())
	}
	must(t, held.SetCachePolicyRetain())
	must(t, held.Release(ctx))
	if got := prune(client.PruneInfo{All: true}); len(got) != 2 {
		t.Errorf("pruned %v", got)
	}
	if n := w.names(); len(n) != 0 || w.recs.Len() != 0 {
		t.Errorf("left: %v, %d records", n, w.recs.Len())
	}
}

func TestCacheMountIsExclusive(t *testing.T) {
	w := newWorld(t)
	m, err := w.s.New(ctx, nil, nil, cache.CachePolicyRetain)
	must(t, err)
	must(t, m.SetString("cache-dir", "id", "cache-dir:id"))
	if _, err := w.s.GetMutable(ctx, m.ID()); !errors.Is(err, cache.ErrLocked) {
		t.Errorf("two holders: %v", err)
	}
	must(t, m.Release(ctx))
	w.open() // also over a restart
	m2, err := w.s.GetMutable(ctx, m.ID())
	must(t, err)
	if m2.GetRecordType() != client.UsageRecordTypeCacheMount {
		t.Errorf("type %q", m2.GetRecordType())
	}
	must(t, m2.ClearValueAndIndex("cache-dir", "cache-dir:"))
	if f, _ := w.s.Search(ctx, "cache-dir:", true); len(f) != 0 {
		t.Errorf("still found: %v", f)
	}
	must(t, m2.SetCachePolicyDefault())
	must(t, m2.Release(ctx))
	if n := w.names(); len(n) != 0 {
		t.Errorf("left: %v", n)
	}
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// midway is a store in which something goes on while a snapshot has its new key,
// and the commit is not over yet.
type midway struct {
	*refstest.Snapshots
	then func()
}

func (m *midway) Commit(ctx context.Context, name, key string) error {
	err := m.Snapshots.Commit(ctx, name, key)
	m.then()
	return err
}

// One of a build's outputs commits a step while another reads it.
func TestReadWhileCommitted(t *testing.T) {
	w := newWorld(t)
	done := make(chan error, 1)
	var read func() error
	snaps := &midway{w.snaps, func() {
		go func() { done <- read() }()
		select {
		case err := <-done: // it did not wait
			done <- err
		case <-time.After(50 * time.Millisecond): // it waits for us
		}
	}}
	s, err := refs.Open(ctx, refs.Options{Root: t.TempDir(), Records: &refstest.Records{}, Snapshots: snaps, Layers: refstest.Layers{}, Mounter: w.snaps,
		Free: func() (int64, error) { return 1 << 40, nil }})
	must(t, err)
	defer s.Close()
	w.s = s
	ref := w.step(nil, "file", "content")
	m, err := ref.Mount(ctx, true, nil)
	must(t, err)
	read = func() error { _, err := m.(refs.Opener).Path(ctx); return err }
	must(t, ref.Finalize(ctx))
	must(t, <-done)
}
