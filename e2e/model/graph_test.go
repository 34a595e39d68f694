package model

import (
	"slices"
	"testing"
)

var (
	step  = Action{Kind: Save}
	other = Action{Kind: Push}
	heal  = Action{Kind: Heal}
)

// TestGraphUnreachable finds the state from which no good one is reached.
func TestGraphUnreachable(t *testing.T) {
	g := newGraph(4, [][]edge{{{1, 2, step}, {2, 3, step}}, {{1, 4, other}, {4, 4, step}}})
	good := []bool{false, false, false, true, false}
	if id := g.cannotReach(good); id != 4 {
		t.Errorf("got state %d, want 4, which only leads to itself", id)
	}
	good[4] = true
	if id := g.cannotReach(good); id != 0 {
		t.Errorf("got state %d, want none", id)
	}
}

// TestGraphComponents finds the parts that one can go round in.
func TestGraphComponents(t *testing.T) {
	g := newGraph(6, [][]edge{{{1, 2, step}, {2, 3, step}, {3, 2, other}, {3, 4, step}, {4, 5, step}, {5, 6, step}, {6, 4, step}, {1, 1, heal}}})
	var round [][]uint32
	for _, part := range g.components() {
		if slices.Sort(part); g.circular(part) {
			round = append(round, part)
		}
	}
	slices.SortFunc(round, slices.Compare[[]uint32])
	want := [][]uint32{{1}, {2, 3}, {4, 5, 6}}
	if !slices.EqualFunc(round, want, slices.Equal[[]uint32]) {
		t.Errorf("got %v, want %v", round, want)
	}
	if got := g.round(4, []uint32{4, 5, 6}); !slices.Equal(got, []Action{step, step, step}) {
		t.Errorf("the way round through 4 is %v", got)
	}
}

// TestGraphFair tells a circle in which an action stays possible for ever, and is never
// taken, from one in which none does.
func TestGraphFair(t *testing.T) {
	part := []uint32{1, 2}
	for _, c := range []struct {
		name  string
		edges []edge
		fair  bool
	}{
		{"nothing else is possible", nil, true},
		{"another action is possible all the time", []edge{{1, 3, heal}, {2, 3, heal}}, false},
		{"it is possible now and then", []edge{{1, 3, heal}}, true},
		{"it is taken within", []edge{{1, 3, heal}, {2, 3, heal}, {2, 1, heal}}, true},
		{"two actions, each possible at one end", []edge{{1, 3, heal}, {2, 3, other}}, true},
	} {
		g := newGraph(3, [][]edge{append([]edge{{1, 2, step}, {2, 1, step}}, c.edges...)})
		if got := g.fair(part); got != c.fair {
			t.Errorf("%s: fair is %t, want %t", c.name, got, c.fair)
		}
	}
}
