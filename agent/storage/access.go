package storage

import (
	"sync/atomic"
	"time"
)

// accessSlots is how many accesses under way are known at a time. Further ones
// are only noticed when they end.
const accessSlots = 256

// An accessWatch knows how long the accesses to the database take that are under
// way, and how long the longest took that ended since it was asked.
type accessWatch struct {
	origin  time.Time
	next    atomic.Uint32
	longest atomic.Int64
	began   [accessSlots]atomic.Int64 // nanoseconds since origin, 0 for none
}

// begin notes the start of an access; the result goes to end.
func (w *accessWatch) begin(now time.Time) (slot int, began int64) {
	began = int64(now.Sub(w.origin))
	for range 8 {
		slot = int(w.next.Add(1) % accessSlots)
		if w.began[slot].CompareAndSwap(0, began) {
			return slot, began
		}
	}
	return -1, began
}

func (w *accessWatch) end(slot int, began int64, now time.Time) {
	if slot >= 0 {
		w.began[slot].Store(0)
	}
	took := int64(now.Sub(w.origin)) - began
	for {
		if most := w.longest.Load(); took <= most || w.longest.CompareAndSwap(most, took) {
			return
		}
	}
}

// take returns the longest access since the last call, of those that have ended
// and those under way.
func (w *accessWatch) take(now time.Time) time.Duration {
	longest := w.longest.Swap(0)
	for i := range w.began {
		if began := w.began[i].Load(); began != 0 {
			longest = max(longest, int64(now.Sub(w.origin))-began)
		}
	}
	return time.Duration(longest)
}

// access is use for what a client waits for; it is watched if that is asked for.
func (db *DB) access(fn func(*engine) error) error {
	if w := db.watch.Load(); w != nil {
		slot, began := w.begin(time.Now())
		defer func() { w.end(slot, began, time.Now()) }()
	}
	return db.use(fn)
}

// WatchAccess switches the measuring of accesses on or off.
func (db *DB) WatchAccess(on bool) {
	switch watched := db.watch.Load() != nil; {
	case on && !watched:
		// An origin in the past makes every start greater than 0.
		db.watch.Store(&accessWatch{origin: time.Now().Add(-time.Second)})
	case !on:
		db.watch.Store(nil)
	}
}

// LongestAccess returns how long the longest read or write of the database took
// that ended since the last call or is under way; 0 while nothing is measured.
func (db *DB) LongestAccess() time.Duration {
	if w := db.watch.Load(); w != nil {
		return w.take(time.Now())
	}
	return 0
}
