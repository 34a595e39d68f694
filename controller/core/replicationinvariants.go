package core

import (
	"fmt"
	"slices"
)

// replicationNext lists the phases that may follow one.
func replicationNext(phase ReplicationPhase) []ReplicationPhase {
	switch phase {
	case ReplicationNone:
		return []ReplicationPhase{ReplicationDumping, ReplicationCutOver}
	case ReplicationDumping:
		return []ReplicationPhase{ReplicationForwarding, ReplicationCuttingOver, ReplicationNone}
	case ReplicationForwarding:
		return []ReplicationPhase{ReplicationDumping, ReplicationCuttingOver, ReplicationNone}
	case ReplicationCuttingOver:
		return []ReplicationPhase{ReplicationCutOver, ReplicationForwarding, ReplicationNone}
	case ReplicationCutOver:
		return []ReplicationPhase{ReplicationNone}
	}
	return nil
}

func replicationEdges(t Transition) error {
	a, b := t.Before.Durable.Replication, t.After.Durable.Replication
	if b.Runs < a.Runs {
		return fmt.Errorf("run %d after %d", b.Runs, a.Runs)
	}
	if a.Phase == b.Phase {
		if a.Phase != ReplicationNone && (a.Target != b.Target || a.Mode != b.Mode || a.Runs != b.Runs) {
			return fmt.Errorf("in phase %s from %s to %s", a.Phase, a.Target, b.Target)
		}
		return nil
	}
	if !replicationMoves(a.Phase, b.Phase) {
		return fmt.Errorf("from %q to %q", a.Phase, b.Phase)
	}
	c, _ := t.Input.(Command)
	switch {
	case b.Phase == ReplicationCuttingOver && c.Verb != VerbCutOver:
		return fmt.Errorf("nobody asked to cut over")
	case b.Phase == ReplicationNone && !b.RolledBack && t.After.Spec.Replication.Enabled:
		return fmt.Errorf("nobody asked to end it")
	case a.Phase == ReplicationCutOver && c.Verb != VerbRollBack:
		return fmt.Errorf("nobody asked to roll back from %s", a.Phase)
	case (a.Phase == ReplicationNone) != (b.Runs > a.Runs):
		return fmt.Errorf("from %q to %q in run %d", a.Phase, b.Phase, b.Runs)
	}
	return nil
}

// replicationMoves reports whether a step, which may take two edges, leads from one
// phase to another.
func replicationMoves(from, to ReplicationPhase) bool {
	next := replicationNext(from)
	return slices.Contains(next, to) || slices.ContainsFunc(next, func(via ReplicationPhase) bool {
		return via != ReplicationNone && via != ReplicationCutOver && slices.Contains(replicationNext(via), to)
	})
}

func cutOverLosesNothing(t Transition) error {
	a, b := t.Before.Durable.Replication, t.After.Durable.Replication
	if b.Phase != ReplicationCutOver || a.Phase == ReplicationCutOver || a.Phase == ReplicationNone || a.Forced || b.Forced {
		return nil
	}
	if a.Phase != ReplicationCuttingOver {
		return fmt.Errorf("from %s", a.Phase)
	}
	s := t.After
	for _, n := range s.Saved.Nodes {
		if r, ok := s.freshReport(n); n.up() && (!ok || !r.Cluster.Held || r.Cluster.Mode != ModeHold || r.Cluster.Destination != b.Target) {
			return fmt.Errorf("%s may execute writes of clients", n.Key())
		}
	}
	for _, p := range ReplicationProgressOf(s) {
		if c := p.Report; !c.Active || !c.Connected || !c.Dumped || c.Queued > 0 {
			return fmt.Errorf("partition %d is not at %s: %+v", p.Partition, b.Target, p)
		}
	}
	return nil
}

func configIsSaved(t Transition) error {
	for _, e := range t.Effects {
		if c, ok := e.(WriteConfig); ok && c.Text != t.After.Spec.Config+replicationConfig(t.After.Saved.Replication) {
			return fmt.Errorf("nodes are told %q in phase %q", c.Text, t.After.Saved.Replication.Phase)
		}
	}
	return nil
}
