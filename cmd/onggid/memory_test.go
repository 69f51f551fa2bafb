package main

import "testing"

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		live  uint64
		floor float64
		want  int
	}{
		{0, heapFloor, 1600},
		{1 << 20, heapFloor, 1600},
		{4 << 20, heapFloor, 700},  // to the floor
		{16 << 20, heapFloor, 100}, // to the floor
		{16 << 20, buildFloor, 500},
		{32 << 20, heapFloor, 50}, // by half
		{512 << 20, heapFloor, 50},
		{512 << 20, buildFloor, 50},
	} {
		if got := gcPercent(c.live, c.floor); got != c.want {
			t.Errorf("gcPercent(%d MB, %v): %d, want %d", c.live>>20, c.floor, got, c.want)
		}
	}
}
