package storage

import (
	"testing"
	"time"
)

func TestAccessWatch(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }
	w := &accessWatch{origin: at(-1)}
	a, began := w.begin(at(0))
	if got := w.take(at(5)); got != 5*time.Millisecond {
		t.Errorf("under way for 5 ms: %v", got)
	}
	w.end(a, began, at(7))
	b, began := w.begin(at(8))
	w.end(b, began, at(9))
	if got := w.take(at(100)); got != 7*time.Millisecond {
		t.Errorf("the longest took 7 ms: %v", got)
	}
	if got := w.take(at(200)); got != 0 {
		t.Errorf("nothing since: %v", got)
	}
	// More at a time than there is room for are still measured when they end.
	for range accessSlots {
		w.begin(at(300))
	}
	slot, began := w.begin(at(250))
	if slot >= 0 {
		t.Fatalf("slot %d of a full table", slot)
	}
	w.end(slot, began, at(400))
	if got := w.longest.Load(); got != int64(150*time.Millisecond) {
		t.Errorf("measured at its end: %v", time.Duration(got))
	}
}
