package history

import (
	"fmt"
	"slices"
	"testing"

	"github.com/flarekv/flare/proto/topology"
	"pgregory.net/rapid"
)

// world is a partition's nodes with their whole logs, and the rules by which logs
// grow: an epoch is begun once and written by who began it, and a copy takes the
// batches of another log in order.
type world struct {
	logs [][]batch
	ends []end // of epochs, by number
	next int   // identity of the next batch
}

// end is the last batch of an epoch, and whose the epoch is.
type end struct{ node, id int }

type batch struct {
	lsn   topology.LSN
	id    int
	first bool // begins its epoch
}

func newWorld(nodes int) *world {
	w := &world{logs: make([][]batch, nodes), ends: make([]end, 1)}
	w.begin(0)
	for i := range w.logs {
		w.logs[i] = slices.Clone(w.logs[0])
	}
	return w
}

func (w *world) clone() *world {
	c := *w
	c.ends = slices.Clone(w.ends)
	c.logs = make([][]batch, len(w.logs))
	for i := range w.logs {
		c.logs[i] = slices.Clip(w.logs[i])
	}
	return &c
}

func (w *world) add(n int, epoch uint64, first bool) {
	w.next++
	w.logs[n] = append(w.logs[n], batch{topology.LSN{Epoch: epoch, Index: uint64(len(w.logs[n]) + 1)}, w.next, first})
	w.ends[epoch] = end{n, w.next}
}

func (w *world) begin(n int) {
	w.ends = append(w.ends, end{})
	w.add(n, uint64(len(w.ends)-1), true)
}

// write adds a batch if the node is at the end of an epoch of its own.
func (w *world) write(n int) bool {
	last := w.logs[n][len(w.logs[n])-1]
	if w.ends[last.lsn.Epoch] != (end{n, last.id}) {
		return false
	}
	w.add(n, last.lsn.Epoch, false)
	return true
}

// take copies the next batch of another log, if it continues the node's.
func (w *world) take(n, from int) bool {
	mine, theirs := w.logs[n], w.logs[from]
	if len(theirs) <= len(mine) || common(mine, theirs) != len(mine) {
		return false
	}
	w.logs[n] = append(mine, theirs[len(mine)])
	return true
}

func (w *world) rewind(n, from int) bool {
	c := common(w.logs[n], w.logs[from])
	if c == len(w.logs[n]) {
		return false
	}
	w.logs[n] = slices.Clip(w.logs[n][:c])
	return true
}

// common is how many batches two logs share: what Fork must find without them.
func common(a, b []batch) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

func position(log []batch) Position {
	p := Position{LSN: log[len(log)-1].lsn, History: "h"}
	for _, b := range log {
		if b.first {
			p.Lineage = append(p.Lineage, EpochStart{b.lsn.Epoch, b.lsn.Index})
		}
	}
	return p
}

func (w *world) check(t interface {
	Helper()
	Fatalf(string, ...any)
}) {
	t.Helper()
	for _, mine := range w.logs {
		for _, theirs := range w.logs {
			p, peer := position(mine), position(theirs)
			n := common(mine, theirs)
			fork, ok := p.Fork(peer)
			if !ok || fork != mine[n-1].lsn {
				t.Fatalf("fork of %v and %v: %v %v, want %v", mine, theirs, fork, ok, mine[n-1].lsn)
			}
			if r := p.Relate(peer); (r == Same) != (n == len(theirs)) {
				t.Fatalf("%v is %v to %v", theirs, r, mine)
			}
			if got, want := peer.Rewound(fork, topology.LSN{}), position(theirs[:n]); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("%v goes back to %v, want %v", theirs, got, want)
			}
		}
	}
}

// TestForkExhaustively looks at every pair of logs that few steps can lead to.
func TestForkExhaustively(t *testing.T) {
	seen := map[string]bool{}
	var walk func(w *world, steps int)
	walk = func(w *world, steps int) {
		key := fmt.Sprint(w.logs, steps)
		if seen[key] {
			return
		}
		seen[key] = true
		w.check(t)
		if steps == 0 {
			return
		}
		for n := range w.logs {
			next := w.clone()
			next.begin(n)
			walk(next, steps-1)
			if next := w.clone(); next.write(n) {
				walk(next, steps-1)
			}
			for from := range w.logs {
				if next := w.clone(); next.take(n, from) {
					walk(next, steps-1)
				}
			}
		}
	}
	walk(newWorld(2), 6)
	walk(newWorld(3), 4)
	t.Logf("%d states", len(seen))
}

func TestForkOfRandomHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.IntRange(2, 5).Draw(t, "nodes"))
		node := rapid.IntRange(0, len(w.logs)-1)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			n := node.Draw(t, "node")
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				w.begin(n)
			case 1, 2:
				w.write(n)
			case 3:
				w.rewind(n, node.Draw(t, "from"))
			default:
				from := node.Draw(t, "from")
				for w.take(n, from) && rapid.Bool().Draw(t, "more") {
				}
			}
			w.check(t)
		}
	})
}

func TestNoFork(t *testing.T) {
	line := []EpochStart{{1, 3}, {2, 11}, {4, 21}}
	p := at(4, 30, line...)
	other := at(3, 25, EpochStart{1, 3}, EpochStart{3, 12})
	other.History = "other"
	plain := Position{LSN: lsn(0, 9)}
	for name, peer := range map[string]Position{
		"other history":                       other,
		"no history":                          plain,
		"lineage not told":                    at(3, 22),
		"nothing in common":                   at(3, 22, EpochStart{3, 3}),
		"position off its own lineage":        at(3, 22, EpochStart{1, 3}),
		"an epoch that began elsewhere":       at(4, 25, EpochStart{1, 3}, EpochStart{2, 12}, EpochStart{4, 21}),
		"an epoch of both behind another one": at(4, 25, EpochStart{1, 3}, EpochStart{4, 21}),
		"position before the common part":     at(0, 2, EpochStart{1, 3}),
		"lineage that goes back":              at(3, 22, EpochStart{1, 3}, EpochStart{3, 2}),
	} {
		if fork, ok := p.Fork(peer); ok {
			t.Errorf("%s: fork at %v", name, fork)
		}
	}
	if _, ok := plain.Fork(plain); ok {
		t.Error("logs without a history have a fork")
	}
}

func TestSettled(t *testing.T) {
	p := at(2, 15, EpochStart{1, 1}, EpochStart{2, 11})
	for restored, want := range map[topology.LSN]topology.LSN{
		lsn(0, 0):  lsn(0, 0),
		lsn(2, 15): lsn(0, 0),
		lsn(1, 10): lsn(0, 0),
		lsn(2, 16): lsn(2, 16),
		lsn(3, 16): lsn(3, 16),
		lsn(1, 12): lsn(1, 12), // of a history that is not this one
	} {
		p.Restored = restored
		if got := p.Settled().Restored; got != want {
			t.Errorf("restored at %v, log at %v: %v, want %v", restored, p.LSN, got, want)
		}
	}
}
