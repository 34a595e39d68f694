package core

import (
	"fmt"
	"slices"

	"github.com/flarekv/flare/proto/topology"
)

// rebalanceAfter is for how long nothing must have been missing or under way before
// masters are moved only to be spread better, in milliseconds.
const rebalanceAfter = 60_000

// leaving returns why a node shall have no duty, or shall at least be no master, any
// more; empty when it may stay.
func (s *State) leaving(n Node) string {
	m, ok := s.member(n.Key())
	if !ok {
		return ""
	}
	want := s.wantedNodes()
	switch {
	case want > 0 && m.Ordinal >= want:
		return CauseScaleIn
	case m.Terminating:
		return CauseTerminating
	case m.Draining:
		return CauseDraining
	}
	return ""
}

// goes reports whether a node is to be scaled away.
func (s *State) goes(n Node) bool { return s.leaving(n) == CauseScaleIn }

// heir returns the replica that shall take over from a master which is told to hand
// over: in sync, not about to leave or die; of those the one whose zone has fewest
// masters, then the one with the highest position, then the first by key. Empty when
// there is none.
func (w *work) heir(master Node) string {
	s := &w.s
	best := ""
	var bestLSN topology.LSN
	bestMasters := 0
	for _, n := range s.Durable.Nodes {
		if n.Role != topology.Slave || n.State != topology.Active || n.Partition != master.Partition || !n.Extended ||
			s.leaving(n) != "" || w.dead(n) != "" {
			continue
		}
		_, lsn := w.holds(n)
		masters := w.mastersIn(s.zone(n.Key()), master.Key())
		if best == "" || masters < bestMasters || masters == bestMasters && bestLSN.Less(lsn) {
			best, bestLSN, bestMasters = n.Key(), lsn, masters
		}
	}
	return best
}

// mastersIn counts the masters of a zone, without one.
func (w *work) mastersIn(zone, without string) int {
	count := 0
	for _, n := range w.s.Durable.Nodes {
		if n.Role == topology.Master && n.up() && n.Key() != without && w.s.zone(n.Key()) == zone {
			count++
		}
	}
	return count
}

// canOrder reports whether a master can be told to hand over.
func (w *work) canOrder(n Node) bool {
	return n.Role == topology.Master && n.State == topology.Active && n.Extended && w.confirmed(n) &&
		w.s.Saved.Seq == w.s.Durable.Seq
}

// evacuate tells masters whose nodes shall go, or are being drained, to hand over.
// The node decides how: nothing is taken from a master that does not give it.
func (w *work) evacuate() {
	s := &w.s
	for _, n := range s.Durable.Nodes {
		cause := s.leaving(n)
		if cause == "" || n.Role != topology.Master || n.State != topology.Active {
			continue
		}
		target := w.heir(n)
		if target == "" {
			if cause == CauseScaleIn && s.Blocked.Reason == "" {
				s.Blocked = Refusal{ReasonScaleInWaits, fmt.Sprintf(
					"%s is to be removed and is master of partition %d; it stays until a replica that stays is in sync", n.Key(), n.Partition)}
			}
			continue
		}
		if w.canOrder(n) {
			w.order(OrderNode{Key: n.Key(), Kind: OrderHandover, Target: target}, cause)
		}
	}
}

// rebalance moves one master at a time from a zone that has at least two more than
// another one, where a replica in sync allows it: after a zone was lost and came
// back all masters are in the others. It waits until nothing has been missing for a
// while, because every move makes writes pause.
func (w *work) rebalance() {
	s := &w.s
	if !w.settled() {
		s.SettledSince = 0
		return
	}
	if s.SettledSince == 0 {
		s.SettledSince = max(s.Now, 1)
	}
	if s.Now < s.SettledSince+rebalanceAfter {
		return
	}
	plan := make([][]candidate, len(s.Durable.Partitions))
	for p := range plan {
		m := w.master(p)
		plan[p] = append(plan[p], candidate{key: m.Key(), zone: s.zone(m.Key()), ordinal: -1})
		for _, n := range s.Durable.Nodes {
			if n.Role == topology.Slave && n.Partition == p {
				plan[p] = append(plan[p], candidate{key: n.Key(), zone: s.zone(n.Key()), ordinal: -1})
			}
		}
	}
	for p, i := range evenMasters(plan) {
		m := w.master(p)
		if i != 0 && w.canOrder(*m) {
			w.order(OrderNode{Key: m.Key(), Kind: OrderHandover, Target: plan[p][i].key}, CauseRebalance)
			return
		}
	}
}

// settled reports whether nothing is missing, nothing under way and nobody suspect.
func (w *work) settled() bool {
	s := &w.s
	if s.Refusal.Reason != "" || s.Blocked.Reason != "" || s.Durable.Growth.Node != "" || len(s.Orders) > 0 {
		return false
	}
	for p := range s.Durable.Partitions {
		m, slaves := w.master(p), 0
		for _, n := range s.Durable.Nodes {
			if n.Partition != p {
				continue
			}
			if n.State != topology.Active || !n.Extended || !w.confirmed(n) || s.leaving(n) != "" || s.zone(n.Key()) == "" || w.suspect(n) {
				return false
			}
			if n.Role == topology.Slave {
				slaves++
			}
		}
		if m == nil || slaves < s.Spec.Replicas-1 {
			return false
		}
	}
	return true
}

// evenMasters returns for each partition which of its nodes should be the master,
// of which the first is: as few others as make the zones even.
func evenMasters(plan [][]candidate) []int {
	masters := make([]int, len(plan))
	var zones []string
	for _, nodes := range plan {
		for _, c := range nodes {
			if !slices.Contains(zones, c.zone) {
				zones = append(zones, c.zone)
			}
		}
	}
	spread(plan, make([]bool, len(plan)), masters, zones)
	return masters
}
