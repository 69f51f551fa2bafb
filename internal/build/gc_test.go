package build

import (
	"testing"
	"time"

	"github.com/moby/buildkit/client"
)

// What a client asks to be cleaned goes by age and by free space, from the
// request to the records.
func TestPruneByAgeAndFreeSpace(t *testing.T) {
	free := int64(1 << 39)
	b := newBuilderWith(t, &nopExecutor{}, func(p *parts) {
		p.disk = func() (int64, int64, error) { return 1 << 40, free, nil }
	})
	if _, err := b.build(t.Context(), buildOptions{dir: contextDir(t, outputFiles)}); err != nil {
		t.Fatal(err)
	}
	held := func() int {
		t.Helper()
		// The build's refs are let go of in the background.
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			list, err := b.client.DiskUsage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			busy := 0
			for _, u := range list {
				if u.InUse {
					busy++
				}
			}
			if busy == 0 || time.Now().After(deadline) {
				return len(list)
			}
		}
	}
	all := held()
	prune := func(o client.PruneOption) {
		t.Helper()
		if err := b.client.Prune(t.Context(), nil, o); err != nil {
			t.Fatal(err)
		}
	}
	if all == 0 {
		t.Fatal("the build left no cache")
	}
	prune(client.WithKeepOpt(time.Hour, 0, 0, 0))
	if n := held(); n != all {
		t.Errorf("of %d records, all used within the hour, %d are left", all, n)
	}
	prune(client.WithKeepOpt(0, 0, 0, free))
	if n := held(); n != all {
		t.Errorf("the disk has the free space that is asked for, and of %d records %d are left", all, n)
	}
	prune(client.WithKeepOpt(0, 0, 0, free+1))
	some := held()
	if some >= all {
		t.Errorf("the disk lacks a byte, and all %d records are left", some)
	}
	prune(client.WithKeepOpt(time.Nanosecond, 0, 0, 0))
	if n := held(); n != 0 {
		t.Errorf("%d records are younger than a nanosecond", n)
	}
}
