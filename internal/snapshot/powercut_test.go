package snapshot_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/content"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/testenv"
)

// inNamespace runs the calling test again in a mount namespace of its own, and
// reports whether this is the run inside.
func inNamespace(t *testing.T, programs ...string) bool {
	t.Helper()
	testenv.NeedRoot(t)
	if os.Getenv("ONGGI_TEST_INSIDE") == t.Name() {
		return true
	}
	for _, p := range append(programs, "unshare", "mount") {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s", p)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-m", exe, "-test.run", "^" + t.Name() + "$", "-test.v", "-test.timeout", "5m"}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), "ONGGI_TEST_INSIDE="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "_test.go:") {
			t.Log(strings.TrimSpace(line))
		}
	}
	return false
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// promises are what the stores said would survive.
type promises struct {
	mu sync.Mutex
	// The cut takes a moment, in which the kernel may still say yes to what does
	// not reach the disk: what returns then is no promise.
	cut     atomic.Bool
	records map[string]int          // durable records
	later   map[string]int          // changed since, or maybe: either value is right
	blobs   map[ocispec.Digest]bool // committed
	layers  map[string]string       // synced layers, and their content
	removed map[string]bool         // removed layers, or maybe
	written map[string]map[int]bool // all values a record ever had
}

func blobOf(rng *rand.Rand) []byte {
	return bytes.Repeat([]byte(strconv.Itoa(rng.Int())), 1+rng.IntN(3000))
}

// The power goes at a random moment, many times over one disk. What was
// acknowledged is there and whole, what is there is whole, and the stores open
// and work without help.
func TestPowerCutsOfADisk(t *testing.T) {
	if !inNamespace(t, "mkfs.ext4") {
		return
	}
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o700), os.WriteFile(img, nil, 0o600), os.Truncate(img, 256<<20))
	run(t, "mkfs.ext4", "-q", "-F", img)
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	p := &promises{records: map[string]int{}, later: map[string]int{}, blobs: map[ocispec.Digest]bool{}, layers: map[string]string{}, removed: map[string]bool{}, written: map[string]map[int]bool{}}
	for round := range rounds {
		run(t, "mount", "-o", "loop", img, mnt)
		powerRound(t, mnt, round, p)
		run(t, "umount", mnt)
	}
	t.Logf("%d cuts: %d records, %d blobs, %d layers were promised and kept", rounds, len(p.records), len(p.blobs), len(p.layers))
}

func powerRound(t *testing.T, mnt string, round int, p *promises) {
	db, err := metadb.Open(filepath.Join(mnt, "meta"), metadb.Options{SyncEvery: 20 * time.Millisecond, CompactAt: 64 << 10, Reserve: 64 << 10})
	if err != nil {
		t.Fatalf("after %d cuts: %v", round, err)
	}
	cs, err := content.Open(filepath.Join(mnt, "content"))
	if err != nil {
		t.Fatal(err)
	}
	ss, err := snapshot.Open(filepath.Join(mnt, "snapshots"), db, snapshot.Options{BootID: fmt.Sprint("boot", round), SyncDelay: 30 * time.Millisecond})
	if err != nil {
		t.Fatalf("after %d cuts: %v", round, err)
	}
	verify(t, round, db, cs, ss, p)
	p.cut.Store(false)
	disk, err := os.Open(mnt)
	must(t, err)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for g, work := range []func(*rand.Rand) bool{
		func(rng *rand.Rand) bool { return workRecords(db, rng, p) },
		func(rng *rand.Rand) bool { return workBlobs(cs, rng, p) },
		func(rng *rand.Rand) bool { return workLayers(ss, rng, round, p) },
	} {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(round), uint64(g)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				if !work(rng) {
					return
				}
			}
		})
	}
	time.Sleep(time.Duration(20+rand.IntN(250)) * time.Millisecond) // the moment of the cut is the test's input
	p.cut.Store(true)
	must(t, linux.CutPower(disk))
	close(stop)
	wg.Wait()
	ss.Close()
	db.Close()
	disk.Close()
}

func workRecords(db *metadb.DB, rng *rand.Rand, p *promises) bool {
	k, v := fmt.Sprint("k", rng.IntN(30)), rng.Int()
	p.mu.Lock()
	if p.written[k] == nil {
		p.written[k] = map[int]bool{}
	}
	p.written[k][v] = true
	p.later[k] = v
	p.mu.Unlock()
	if db.Update(func(tx *metadb.Tx) error { return tx.Put("test", k, v) }) != nil {
		return false
	}
	if rng.IntN(4) == 0 {
		p.mu.Lock()
		now := map[string]int{}
		for k, v := range p.later {
			now[k] = v
		}
		p.mu.Unlock()
		if db.Sync() != nil || p.cut.Load() {
			return false
		}
		p.mu.Lock()
		for k, v := range now {
			p.records[k] = v
			if p.later[k] == v {
				delete(p.later, k)
			}
		}
		p.mu.Unlock()
	}
	return true
}

func workBlobs(cs *content.Store, rng *rand.Rand, p *promises) bool {
	b := blobOf(rng)
	d := digest.FromBytes(b)
	w, err := cs.Writer(context.Background(), fmt.Sprint("ref", rng.IntN(3)), ocispec.Descriptor{Digest: d, Size: int64(len(b))})
	if err != nil {
		return false
	}
	defer w.Close()
	w.Reset()
	if _, err := w.Write(b); err != nil || w.Commit(0, "") != nil || p.cut.Load() {
		return false
	}
	p.mu.Lock()
	p.blobs[d] = true
	p.mu.Unlock()
	return true
}

func workLayers(ss *snapshot.Store, rng *rand.Rand, round int, p *promises) bool {
	ctx := context.Background()
	name := fmt.Sprintf("r%d-%d", round, rng.Int())
	parent := ""
	p.mu.Lock()
	for n := range p.layers {
		if rng.IntN(3) == 0 {
			parent = n
			break
		}
	}
	p.mu.Unlock()
	if ss.Prepare(ctx, name+"-a", parent) != nil {
		return false
	}
	d, err := ss.Dirs(name + "-a")
	if err != nil {
		return false
	}
	body := string(blobOf(rng))
	for i := range 5 {
		if os.WriteFile(filepath.Join(d.Upper, fmt.Sprint("f", i)), []byte(body), 0o644) != nil {
			return false
		}
	}
	if ss.Commit(ctx, name, name+"-a") != nil {
		return false
	}
	if rng.IntN(3) > 0 {
		if ss.Sync(ctx) != nil || p.cut.Load() {
			return false
		}
		p.mu.Lock()
		p.layers[name] = body
		p.mu.Unlock()
	}
	if rng.IntN(4) == 0 {
		p.mu.Lock()
		p.removed[name] = true
		delete(p.layers, name)
		p.mu.Unlock()
		ss.Remove(ctx, name)
	}
	return true
}

func verify(t *testing.T, round int, db *metadb.DB, cs *content.Store, ss *snapshot.Store, p *promises) {
	t.Helper()
	got := map[string]int{}
	must(t, db.View(func(tx *metadb.Tx) error {
		return tx.Each("test", func(k string, raw json.RawMessage) error {
			v, err := strconv.Atoi(string(raw))
			got[k] = v
			return err
		})
	}))
	for k, v := range p.records {
		_, maybe := p.later[k]
		if have, ok := got[k]; !ok || have != v && !(maybe && p.written[k][have]) {
			t.Errorf("after cut %d: record %s is %d (%v), and %d was synced", round, k, have, ok, v)
		}
	}
	for k, v := range got {
		if !p.written[k][v] {
			t.Errorf("after cut %d: record %s is %d, which nobody wrote", round, k, v)
		}
		p.records[k] = v
	}
	p.later = map[string]int{}
	for d := range p.blobs {
		if err := cs.Verify(t.Context(), d); err != nil {
			t.Errorf("after cut %d: %v", round, err)
		}
	}
	must(t, cs.Walk(func(i content.Info) error { return cs.Verify(t.Context(), i.Digest) }))
	for name, body := range p.layers {
		checkLayer(t, round, ss, name, body)
	}
	must(t, ss.Walk(func(i snapshot.Info) error {
		if i.Kind == snapshot.Committed && p.layers[i.Name] == "" {
			checkLayer(t, round, ss, i.Name, "") // it may be there, but then it is whole
		}
		if i.Kind == snapshot.Active && !i.Lost {
			if _, err := ss.Dirs(i.Name); err != nil {
				t.Errorf("after cut %d: %v", round, err)
			}
			if f, err := ss.MountFD(t.Context(), i.Name, snapshot.MountOptions{ReadOnly: true}); err != nil {
				t.Errorf("after cut %d: %v", round, err)
			} else {
				f.Close()
			}
		}
		return nil
	}))
}

func checkLayer(t *testing.T, round int, ss *snapshot.Store, name, body string) {
	t.Helper()
	d, err := ss.Dirs(name)
	if err != nil {
		t.Errorf("after cut %d: %v", round, err)
		return
	}
	for i := range 5 {
		b, err := os.ReadFile(filepath.Join(d.Upper, fmt.Sprint("f", i)))
		if body == "" {
			body = string(b)
		}
		if err != nil || string(b) != body || body == "" {
			t.Errorf("after cut %d: layer %s has %d bytes in f%d where %d were, %v", round, name, len(b), i, len(body), err)
			return
		}
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
