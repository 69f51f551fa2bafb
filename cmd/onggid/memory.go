package main

import (
	"math"
	"net/http"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// heapFloor is what the heap, in bytes, may reach before a collection is
	// worth its time: with a few MB alive, starting containers would otherwise
	// mean collecting several times a second.
	heapFloor = 32 << 20
	// buildFloor is the same while an image is built: a build leaves much behind
	// in little time, and is over soon.
	buildFloor = 96 << 20
	// heapGrowth is by what part of what is alive a larger heap may grow.
	heapGrowth = 0.5
	// quietAfter is how long no request has come when the engine gives the
	// memory back that work has left.
	quietAfter = 10 * time.Second
)

// gcPercent is the collector's setting for a heap with so many bytes alive.
func gcPercent(live uint64, floor float64) int {
	growth := floor/math.Max(float64(live), 1) - 1
	return int(100 * math.Min(math.Max(growth, heapGrowth), 16))
}

// heap is the process's collector, which there is one of.
var heap = collector{live: 4 << 20}

// collector follows the heap with gcPercent: once a collection, and when the
// first build begins.
type collector struct {
	mu     sync.Mutex
	live   uint64 // guarded by mu
	set    int    // guarded by mu
	builds int    // guarded by mu: under way
}

func (c *collector) start() {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	var arm func()
	arm = func() {
		runtime.SetFinalizer(&struct{ _ [16]byte }{}, func(any) {
			metrics.Read(sample)
			c.mu.Lock()
			c.live = sample[0].Value.Uint64()
			c.tuneLocked()
			c.mu.Unlock()
			arm()
		})
	}
	arm()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tuneLocked()
}

func (c *collector) tuneLocked() {
	floor := float64(heapFloor)
	if c.builds > 0 {
		floor = buildFloor
	}
	if p := gcPercent(c.live, floor); p != c.set {
		debug.SetGCPercent(p)
		c.set = p
	}
}

// building lets the heap grow until the returned function is called. What the
// heap holds by then is left to the next collection.
func (c *collector) building() (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.builds++; c.builds == 1 {
		c.tuneLocked()
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.builds--
	}
}

// givingBack serves with h, and returns memory to the system when no request
// has come for a while.
func givingBack(h http.Handler) http.Handler {
	quiet := time.AfterFunc(quietAfter, debug.FreeOSMemory)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		quiet.Reset(quietAfter)
		defer quiet.Reset(quietAfter)
		h.ServeHTTP(w, r)
	})
}
