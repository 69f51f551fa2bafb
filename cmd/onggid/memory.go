package main

import (
	"math"
	"net/http"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapFloor is what the heap, in bytes, may reach before a collection is
	// worth its time: with a few MB alive, starting containers would otherwise
	// mean collecting several times a second.
	heapFloor = 32 << 20
	// heapGrowth is by what part of what is alive a larger heap may grow.
	heapGrowth = 0.5
	// quietAfter is how long no request has come when the engine gives the
	// memory back that work has left.
	quietAfter = 10 * time.Second
)

// gcPercent is the collector's setting for a heap with so many bytes alive.
func gcPercent(live uint64) int {
	growth := heapFloor/math.Max(float64(live), 1) - 1
	return int(100 * math.Min(math.Max(growth, heapGrowth), 16))
}

// tuneCollector follows the heap with gcPercent, once a collection.
func tuneCollector() {
	set := 0
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	var arm func()
	arm = func() {
		runtime.SetFinalizer(&struct{ _ [16]byte }{}, func(any) {
			metrics.Read(sample)
			if p := gcPercent(sample[0].Value.Uint64()); p != set {
				debug.SetGCPercent(p)
				set = p
			}
			arm()
		})
	}
	arm()
	debug.SetGCPercent(gcPercent(4 << 20))
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
