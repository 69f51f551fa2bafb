package main

import "testing"

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, 1600},
		{1 << 20, 1600},
		{4 << 20, 700},  // to the floor
		{16 << 20, 100}, // to the floor
		{32 << 20, 50},  // by half
		{512 << 20, 50},
	} {
		if got := gcPercent(c.live); got != c.want {
			t.Errorf("gcPercent(%d MB): %d, want %d", c.live>>20, got, c.want)
		}
	}
}
