package container

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// Every (state, event) pair ends in a decision or in an error, an error never
// changes the state, and the whole table is the golden text.
func TestNextTotal(t *testing.T) {
	var got strings.Builder
	for s := Created; s < states; s++ {
		for e := Start; e < containerEvents; e++ {
			n, acts, err := Next(s, e)
			if err != nil {
				if n != s || acts != nil {
					t.Errorf("Next(%v, %v) failed but moved to %v %v", s, e, n, acts)
				}
				continue
			}
			fmt.Fprintf(&got, "%-10s %-22s %-10s %v\n", s, e, n, acts)
		}
		if parseState(s.String()) != s {
			t.Errorf("%v is not read back", s)
		}
	}
	checkGolden(t, "testdata/lifecycle.txt", got.String())
}

// From every state there is a way to be removed: nothing can be stuck for ever.
func TestEveryStateCanEnd(t *testing.T) {
	for s := Created; s < Gone; s++ {
		seen := []State{s}
		for i := 0; i < len(seen); i++ {
			for e := Start; e < containerEvents; e++ {
				if n, _, err := Next(seen[i], e); err == nil && !slices.Contains(seen, n) {
					seen = append(seen, n)
				}
			}
		}
		if !slices.Contains(seen, Gone) {
			t.Errorf("no way from %v to gone", s)
		}
	}
}

// What holds resources releases them on every way out.
func TestResourcesAreReleased(t *testing.T) {
	for _, s := range []State{Starting, Running, Paused} {
		for e := Start; e < containerEvents; e++ {
			n, acts, err := Next(s, e)
			if err != nil || n == Running || n == Paused {
				continue
			}
			if !slices.Contains(acts, ReleaseResources) {
				t.Errorf("%v by %v to %v keeps its resources", s, e, n)
			}
		}
	}
}

func checkGolden(t *testing.T, file, got string) {
	t.Helper()
	if os.Getenv("ONGGI_REWRITE") == "1" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != got {
		t.Errorf("%s differs (ONGGI_REWRITE=1 rewrites it; %v)\n%s", file, err, got)
	}
}
