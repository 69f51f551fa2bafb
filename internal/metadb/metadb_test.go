package metadb

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/vfs"
)

type rec struct{ N int }

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func openMem(t testing.TB, f vfs.FS, o Options) *DB {
	t.Helper()
	o.FS = f
	if o.SyncEvery == 0 {
		o.SyncEvery = -1
	}
	db, err := Open("/meta", o)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

func put(db *DB, key string, n int) error {
	return db.Update(func(tx *Tx) error { return tx.Put("b", key, rec{n}) })
}

func del(db *DB, keys ...string) error {
	return db.Update(func(tx *Tx) error {
		for _, k := range keys {
			if err := tx.Delete("b", k); err != nil {
				return err
			}
		}
		return nil
	})
}

// dump reads everything.
func dump(t testing.TB, db *DB) map[string]int {
	t.Helper()
	out := map[string]int{}
	must(t, db.View(func(tx *Tx) error {
		return tx.Each("b", func(k string, raw json.RawMessage) error {
			var r rec
			out[k] = r.N
			err := json.Unmarshal(raw, &r)
			out[k] = r.N
			return err
		})
	}))
	return out
}

func TestTransactions(t *testing.T) {
	db := openMem(t, vfs.NewMem(), Options{})
	must(t, put(db, "x", 1), put(db, "y", 2))
	boom := errors.New("boom")
	if err := db.Update(func(tx *Tx) error {
		must(t, tx.Put("b", "z", rec{3}), tx.Delete("b", "x"))
		var r rec
		if ok, err := tx.Get("b", "z", &r); !ok || err != nil || r.N != 3 {
			t.Errorf("own write: %v %v %v", r, ok, err)
		}
		if ok, _ := tx.Get("b", "x", &r); ok {
			t.Error("own delete is not seen")
		}
		var keys []string
		must(t, tx.Each("b", func(k string, _ json.RawMessage) error { keys = append(keys, k); return nil }))
		if strings.Join(keys, "") != "yz" {
			t.Errorf("keys %v", keys)
		}
		return boom
	}); err != boom {
		t.Errorf("got %v", err)
	}
	if got := dump(t, db); !reflect.DeepEqual(got, map[string]int{"x": 1, "y": 2}) {
		t.Errorf("after a failed update: %v", got)
	}
	if err := db.View(func(tx *Tx) error { return tx.Put("b", "k", 1) }); err == nil {
		t.Error("a view could write")
	}
	must(t, db.Update(func(tx *Tx) error { // Each sees the records as they were
		return tx.Each("b", func(k string, _ json.RawMessage) error { return tx.Delete("b", k) })
	}))
	if got := dump(t, db); len(got) != 0 {
		t.Errorf("after deleting all: %v", got)
	}
	must(t, db.View(func(tx *Tx) error {
		if b := tx.Buckets(); len(b) != 0 {
			t.Errorf("buckets %v", b)
		}
		return nil
	}))
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	db, err := Open(dir, Options{})
	must(t, err)
	if _, err := Open(dir, Options{}); !errdefs.Is(err, errdefs.Conflict) || errdefs.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
	must(t, put(db, "k", 1), db.Close(), db.Close())
	if err := put(db, "k", 2); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("update of a closed database: %v", err)
	}
	db, err = Open(dir, Options{})
	must(t, err)
	if got := dump(t, db); got["k"] != 1 {
		t.Errorf("got %v", got)
	}
	must(t, db.Close())
}

// history makes random changes and returns the state after each that returned
// nil, until something fails.
func history(db *DB, rng *rand.Rand, n int, each func(i int) error) (states []map[string]int, err error) {
	state := map[string]int{}
	states = append(states, map[string]int{})
	for i := range n {
		k := fmt.Sprint("k", rng.IntN(8))
		if rng.IntN(3) == 0 {
			err = del(db, k)
			delete(state, k)
		} else {
			err = put(db, k, i)
			state[k] = i
		}
		if err != nil {
			// It may have happened or not.
			c := map[string]int{}
			for k, v := range state {
				c[k] = v
			}
			return append(states, c), err
		}
		c := map[string]int{}
		for k, v := range state {
			c[k] = v
		}
		states = append(states, c)
		if each != nil {
			if err := each(i); err != nil {
				return states, err
			}
		}
	}
	return states, nil
}

func indexOf(states []map[string]int, got map[string]int) int {
	for i := len(states) - 1; i >= 0; i-- {
		if reflect.DeepEqual(states[i], got) {
			return i
		}
	}
	return -1
}

// Cut the power before every disk operation, with every luck: what is found is
// a state that was, and none older than the last Sync that returned.
func TestPowerCuts(t *testing.T) {
	for n := 0; ; n++ {
		finished := false
		for seed := range uint64(8) {
			mem := vfs.NewMem()
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			synced := 0
			db, err := Open("/meta", Options{FS: vfs.Hook{FS: mem, Before: vfs.FailAt(n, vfs.ErrPowerCut)}, SyncEvery: -1, Reserve: 4096})
			var states []map[string]int
			if err == nil {
				updates := 0
				states, err = history(db, rng, 40, func(i int) error {
					updates++
					switch {
					case i%7 == 3:
						if err := db.Sync(); err != nil {
							return err
						}
						synced = updates
					case i%13 == 12:
						return db.Compact()
					}
					return nil
				})
			} else {
				states = []map[string]int{{}}
			}
			finished = finished || err == nil
			left := mem.Crash(seed)
			again, oerr := Open("/meta", Options{FS: left, SyncEvery: -1, Reserve: 4096})
			if oerr != nil {
				t.Fatalf("cut before operation %d, seed %d: %v", n, seed, oerr)
			}
			got := dump(t, again)
			if at := indexOf(states, got); at < synced {
				t.Fatalf("cut before operation %d, seed %d: state %d (%v) after %d were synced", n, seed, at, got, synced)
			}
			// And it works.
			must(t, put(again, "new", 1), again.Sync())
			got["new"] = 1
			must(t, again.Close())
			last := openMem(t, left.Crash(0), Options{})
			if d := dump(t, last); !reflect.DeepEqual(d, got) {
				t.Fatalf("after repair: %v, want %v", d, got)
			}
			must(t, last.Close())
			if db != nil {
				db.Close()
			}
		}
		if finished {
			t.Logf("%d operations", n)
			return
		}
	}
}

// Kill the process before every disk operation: nothing that returned is lost.
func TestKills(t *testing.T) {
	for n := 0; ; n++ {
		mem := vfs.NewMem()
		dead := errors.New("killed")
		var states []map[string]int
		db, err := Open("/meta", Options{FS: vfs.Hook{FS: mem, Before: vfs.FailAt(n, dead)}, SyncEvery: -1, Reserve: 4096})
		returned := 0
		if err == nil {
			states, err = history(db, rand.New(rand.NewPCG(1, uint64(n))), 40, func(i int) error {
				returned++
				if i%13 == 12 {
					if err := db.Compact(); errors.Is(err, dead) {
						return err
					}
				}
				return nil
			})
		} else {
			states = []map[string]int{{}}
		}
		again := openMem(t, mem.Kill(), Options{})
		if at := indexOf(states, dump(t, again)); at < returned {
			t.Fatalf("killed before operation %d: state %d after %d updates", n, at, returned)
		}
		must(t, again.Close())
		if err == nil {
			return
		}
	}
}

// One failing operation, then the disk is well again: errors are told, and
// nothing is lost.
func TestEveryOperationFailsOnce(t *testing.T) {
	for n := 0; ; n++ {
		mem := vfs.NewMem()
		count := 0
		hurt := errors.New("i/o error")
		failed := false
		db, err := Open("/meta", Options{SyncEvery: -1, Reserve: 4096, FS: vfs.Hook{FS: mem, Before: func(string) error {
			if count++; count == n+1 {
				failed = true
				return hurt
			}
			return nil
		}}})
		if err != nil {
			if !failed {
				t.Fatal(err)
			}
			continue
		}
		want := map[string]int{}
		for i := range 30 {
			k := fmt.Sprint("k", i%9)
			if err := put(db, k, i); err == nil {
				want[k] = i
			} else if !errors.Is(err, hurt) {
				t.Fatal(err)
			}
			if i%5 == 4 {
				db.Sync()
			}
			if i%11 == 10 {
				db.Compact()
			}
		}
		if got := dump(t, db); !reflect.DeepEqual(got, want) {
			t.Fatalf("operation %d failed: %v, want %v", n, got, want)
		}
		if err := db.Sync(); err != nil {
			must(t, db.Compact())
			must(t, db.Sync())
		}
		again := openMem(t, mem.Crash(uint64(n)), Options{})
		if got := dump(t, again); !reflect.DeepEqual(got, want) {
			t.Fatalf("operation %d failed, then the power: %v, want %v", n, got, want)
		}
		must(t, again.Close())
		if !failed {
			return
		}
	}
}

// At no free bytes records are read, deleted, and for a while changed.
func TestFullDisk(t *testing.T) {
	mem := vfs.NewMem()
	mem.Capacity = 1 << 20
	db := openMem(t, mem, Options{Reserve: 64 << 10})
	for i := range 400 {
		must(t, put(db, fmt.Sprint("k", i), i))
	}
	hog, err := mem.Create("hog")
	must(t, err)
	hog.WriteAt(make([]byte, 2<<20), 0)
	changed := 0
	for ; changed < 100000; changed++ {
		if err := put(db, "k0", changed); err != nil {
			if !errdefs.Is(err, errdefs.Exhausted) || errdefs.HintOf(err) == "" {
				t.Fatalf("got %v", err)
			}
			break
		}
	}
	if changed < 100 {
		t.Errorf("only %d changes at a full disk", changed)
	}
	for i := range 400 {
		must(t, del(db, fmt.Sprint("k", i)))
	}
	left := mem.Kill()
	again := openMem(t, left, Options{Reserve: 64 << 10})
	if got := dump(t, again); len(got) != 0 {
		t.Errorf("%d records came back", len(got))
	}
	must(t, left.Remove("hog"))
	must(t, put(again, "k", 1), again.Compact(), again.Sync())
	must(t, again.Close())
}

// Damage in the middle is told with its place; with Salvage the rest is read.
func TestDamageInTheMiddle(t *testing.T) {
	mem := vfs.NewMem()
	db := openMem(t, mem, Options{})
	for i := range 20 {
		must(t, put(db, fmt.Sprint("k", i), i))
	}
	must(t, db.Sync(), put(db, "after", 1), db.Sync(), db.Close())
	f, err := mem.Create("log.1")
	must(t, err)
	size, _ := f.Size()
	one := make([]byte, 1)
	for off := int64(0); off < size-frameHead; off++ { // the last mark says nothing new
		f.ReadAt(one, off)
		f.WriteAt([]byte{one[0] ^ 0x10}, off)
		again, err := Open("/meta", Options{FS: mem, SyncEvery: -1})
		f.WriteAt(one, off)
		switch {
		case err == nil:
			again.Close()
			t.Fatalf("damage at byte %d of %d was not seen", off, size)
		case errdefs.HintOf(err) == "" || !strings.Contains(err.Error(), "log.1"):
			t.Fatalf("byte %d: %v", off, err)
		}
	}
	// The middle of the log, by hand.
	f.ReadAt(one, size/2)
	f.WriteAt([]byte{one[0] ^ 1}, size/2)
	again := openMem(t, mem, Options{Salvage: true})
	if got := dump(t, again); len(got) < 19 || got["after"] != 1 {
		t.Errorf("salvaged %v", got)
	}
	if _, err := mem.Stat("log.1.damaged"); err != nil {
		t.Errorf("the damaged log: %v", err)
	}
}

// A log of another format is not touched.
func TestNewerFormat(t *testing.T) {
	dir := t.TempDir()
	h := header{1, 1}.encode()
	h[14] = 9
	must(t, os.WriteFile(filepath.Join(dir, "log.1"), h, 0o600))
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "format 9") {
		t.Errorf("got %v", err)
	}
}

func TestConcurrency(t *testing.T) {
	db, err := Open(t.TempDir(), Options{SyncEvery: 1, CompactAt: 1 << 10})
	must(t, err)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				if err := put(db, fmt.Sprint(g, "-", i%20), i); err != nil {
					t.Error(err)
				}
				if i%50 == 0 {
					if err := errors.Join(db.Sync(), db.Compact()); err != nil {
						t.Error(err)
					}
				}
				dump(t, db)
			}
		})
	}
	wg.Wait()
	want := dump(t, db)
	must(t, db.Close())
	db, err = Open(db.dir, Options{})
	must(t, err)
	if got := dump(t, db); !reflect.DeepEqual(got, want) {
		t.Error("what was read again is not what was written")
	}
	must(t, db.Close())
}

// Whatever is in a log, Open ends, with an error or with records that can be
// written again.
func FuzzLog(f *testing.F) {
	mem := vfs.NewMem()
	db, err := Open("/meta", Options{FS: mem, SyncEvery: -1})
	must(f, err)
	for i := range 5 {
		must(f, put(db, fmt.Sprint("k", i), i), db.Sync(), del(db, "k1"))
	}
	must(f, db.Close())
	r, _ := mem.Open("log.1")
	size, _ := r.Size()
	good := make([]byte, size)
	r.ReadAt(good, 0)
	f.Add(good, 0, byte(0))
	f.Add(good[:len(good)-9], 3, byte(1))
	f.Add([]byte{}, 0, byte(0))
	f.Fuzz(func(t *testing.T, log []byte, at int, flip byte) {
		if at >= 0 && at < len(log) {
			log[at] ^= flip
		}
		// Give the frames sums that are right, so that what is inside is tried.
		if h, err := decodeHeader(log); err == nil && flip > 128 {
			if len(log) > headerSize+frameHead {
				h.seal(log, headerSize, 1, 0)
			}
		}
		for _, salvage := range []bool{false, true} {
			m := vfs.NewMem()
			w, _ := m.Create("log.1")
			w.WriteAt(log, 0)
			db, err := Open("/meta", Options{FS: m, SyncEvery: -1, Salvage: salvage})
			if err != nil {
				continue
			}
			if err := errors.Join(put(db, "x", 1), db.Compact(), db.Close()); err != nil {
				t.Fatal(err)
			}
			if db, err = Open("/meta", Options{FS: m, SyncEvery: -1}); err != nil {
				t.Fatal(err)
			}
			db.Close()
		}
	})
}

func BenchmarkUpdate(b *testing.B) {
	db, err := Open(b.TempDir(), Options{})
	must(b, err)
	defer db.Close()
	v := strings.Repeat("x", 2000)
	for i := 0; b.Loop(); i++ {
		must(b, db.Update(func(tx *Tx) error { return tx.Put("b", fmt.Sprint("k", i%1000), v) }))
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	db, err := Open(dir, Options{})
	must(b, err)
	v := strings.Repeat("x", 2000)
	for i := range 5000 {
		must(b, db.Update(func(tx *Tx) error { return tx.Put("b", fmt.Sprint("k", i), v) }))
	}
	must(b, db.Close())
	for b.Loop() {
		db, err := Open(dir, Options{})
		must(b, err)
		must(b, db.Close())
	}
}
