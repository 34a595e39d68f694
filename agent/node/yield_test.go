package node

import (
	"slices"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

// TestYieldingOf: a master yields the keys of a partition that is ready, of an index
// that gives epochs, and nobody else does.
func TestYieldingOf(t *testing.T) {
	grown := func(state topology.State, epoch uint64) []topology.Node {
		return []topology.Node{
			entry(1, topology.Master, topology.Active, 0, 1, 4),
			entry(2, topology.Slave, topology.Active, 0, 1, 4),
			entry(3, topology.Master, state, 1, 1, epoch),
		}
	}
	asked := yielding{partition: 1, epoch: 7, since: 1}
	for _, tt := range []struct {
		name  string
		self  string
		nodes []topology.Node
		want  yielding
	}{
		{"a master", "h:1", grown(topology.Ready, 7), asked},
		{"a replica", "h:2", grown(topology.Ready, 7), yielding{}},
		{"the new one itself", "h:3", grown(topology.Ready, 7), yielding{}},
		{"a stranger", "h:9", grown(topology.Ready, 7), yielding{}},
		{"while it is filled", "h:1", grown(topology.Prepare, 7), yielding{}},
		{"in force", "h:1", grown(topology.Active, 7), yielding{}},
		{"an index without epochs", "h:1", grown(topology.Ready, 0), yielding{}},
		{"nothing is added", "h:1", grown(topology.Ready, 7)[:2], yielding{}},
	} {
		if got := yieldingOf(testTable(t, tt.self, tt.nodes...), nil); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
	outdated := testTable(t, "h:1", grown(topology.Ready, 7)...)
	outdated.outdated = true
	if got := yieldingOf(outdated, nil); got != (yielding{}) {
		t.Errorf("by a map that contradicts itself: %+v", got)
	}

	// It is one yielding for as long as the maps ask for the same of the same master.
	first := testTable(t, "h:1", grown(topology.Ready, 7)...)
	first.yield = yieldingOf(first, nil)
	later := func(version uint64, nodes []topology.Node) *table {
		n := testTable(t, "h:1", nodes...)
		n.nodes.Version = version
		return n
	}
	if got := yieldingOf(later(2, grown(topology.Ready, 7)), first); got.since != 1 {
		t.Errorf("with the next map: %+v", got)
	}
	if got := yieldingOf(later(2, grown(topology.Ready, 8)), first); got.since != 2 || got.epoch != 8 {
		t.Errorf("another attempt: %+v", got)
	}
	promoted := slices.Clone(grown(topology.Ready, 7))
	promoted[0].Epoch, promoted[1].Epoch = 5, 5
	if got := yieldingOf(later(2, promoted), first); got.since != 2 {
		t.Errorf("in another epoch of this master's: %+v", got)
	}
	back := later(2, grown(topology.Prepare, 7))
	back.yield = yieldingOf(back, first)
	if got := yieldingOf(later(3, grown(topology.Ready, 7)), back); got.since != 3 {
		t.Errorf("after it was taken back: %+v", got)
	}
}

// TestYields: only keys that go to the new partition wait.
func TestYields(t *testing.T) {
	n := testTable(t, "h:1", entry(1, topology.Master, topology.Active, 0, 1, 4), entry(3, topology.Master, topology.Ready, 1, 1, 7))
	// Of two partitions, odd slots belong to 0: simple("key2") = 379, simple("key1") = 378.
	stays, goes := []byte("key2"), []byte("key1")
	if n.yield = yieldingOf(n, nil); n.yields(stays) || !n.yields(goes) {
		t.Errorf("of partition 0 %v, of the new one %v", n.yields(stays), n.yields(goes))
	}
	if n.yield = (yielding{}); n.yields(goes) {
		t.Error("nothing is yielded")
	}

	// What was yielded counts for the map that asks for it, and no other.
	n.yield = yieldingOf(n, nil)
	y := &yields{}
	if got := y.epoch(n); got != 0 {
		t.Errorf("before: epoch %d", got)
	}
	y.done = n.yield
	if got := y.epoch(n); got != 7 {
		t.Errorf("epoch %d, want 7", got)
	}
	if got := y.epoch(nil); got != 0 {
		t.Errorf("without a map: epoch %d", got)
	}
	n.yield.since++
	if got := y.epoch(n); got != 0 {
		t.Errorf("when it is asked for anew: epoch %d", got)
	}
}
