package core

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flarekv/flare/proto/topology"
)

// scaleShows is how long the list of members may take to show a scale that was answered.
const scaleShows = 3_000

// scale makes the workload have as many nodes as wanted: more at once, fewer
// only when those that would go carry no duty.
func (w *work) scale() {
	s := &w.s
	want := s.wantedNodes()
	if !s.Members.Known || want == 0 {
		return
	}
	if s.Members.Count == s.ScaleWanted && s.Scale.Error == "" {
		s.Scale.Retry = 0
	}
	if s.Members.Count == want && !s.scaling() {
		s.ScaleWanted = want
		return
	}
	if want < s.Members.Count && s.dutyBeyond(want) != "" {
		return // AssignRoles frees it, or says why not
	}
	if !w.open(&s.Scale) {
		return
	}
	w.emit(ScaleTo{Seq: s.Scale.Seq, Nodes: want, From: s.Members.Count, Generation: s.Spec.Generation})
	if s.ScaleWanted != want {
		s.ScaleWanted = want
		w.event(false, ReasonScaling, "scaling from %d to %d nodes", s.Members.Count, want)
	}
}

// scaling reports whether a scale is under way, or was answered and is not seen yet.
func (s *State) scaling() bool {
	return s.Scale.InFlight || s.Scale.Error == "" && s.Now < s.Scale.Retry && s.Members.Count != s.ScaleWanted
}

// stayingNodes is how many nodes are there to be relied upon: as many as wanted, or
// fewer while the workload may be scaled to fewer, which nobody can call back though more
// may be wanted since. 0 while not known.
func (s *State) stayingNodes() int {
	want := s.wantedNodes()
	if s.scaling() {
		return min(want, s.ScaleWanted)
	}
	return want
}

// dutyBeyond returns a node that would go with a workload of so many nodes, and has
// a duty by what is decided or by what others know; empty for none.
func (s *State) dutyBeyond(nodes int) string {
	for _, m := range s.Members.List {
		if m.Ordinal < nodes {
			continue
		}
		for _, d := range []*Durable{&s.Saved, &s.Durable} {
			if n := d.node(m.Key); n != nil && n.Partition >= 0 {
				return m.Key
			}
		}
	}
	return ""
}

// shrink takes replicas away that are more than wanted, and those on nodes that are
// to be scaled away. Those are kept until the nodes that stay have everything: as
// many in sync as wanted, the master among them. A master on a node that goes hands
// over first, see evacuate; what it is then goes with it.
func (w *work) shrink() {
	s := &w.s
	for p := range s.Durable.Partitions {
		m := w.master(p)
		keep := s.Spec.Replicas
		if m == nil || !s.goes(*m) {
			keep--
		}
		var stay, going []Node
		for _, n := range s.Durable.Nodes {
			if n.Role != topology.Slave || n.Partition != p || !n.Extended {
				continue
			}
			if s.goes(n) {
				going = append(going, n)
			} else {
				stay = append(stay, n)
			}
		}
		slices.SortStableFunc(stay, func(a, b Node) int {
			return cmp.Or(
				cmp.Compare(boolInt(a.State != topology.Active), boolInt(b.State != topology.Active)),
				cmp.Compare(s.ordinal(a), s.ordinal(b)), strings.Compare(a.Key(), b.Key()))
		})
		free := func(n Node) {
			w.set(n.Key(), ReasonSurplus, func(n *Node) { clearDuty(n); n.State = topology.Active })
		}
		for i := len(stay) - 1; i >= keep; i-- {
			free(stay[i])
		}
		stay = stay[:min(keep, len(stay))]
		complete := m != nil && m.State == topology.Active && len(stay) == keep &&
			!slices.ContainsFunc(stay, func(n Node) bool { return n.State != topology.Active })
		for _, n := range slices.Backward(going) {
			if complete || n.State != topology.Active {
				free(n)
				continue
			}
			s.Blocked = Refusal{ReasonScaleInWaits, fmt.Sprintf(
				"%s is to be removed and is a replica in sync of partition %d; it stays until the nodes that stay have a copy each", n.Key(), p)}
		}
	}
}

// ordinal returns the ordinal of a node, -1 when not known.
func (s *State) ordinal(n Node) int {
	if m, ok := s.member(n.Key()); ok {
		return m.Ordinal
	}
	return -1
}
