package core

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flarekv/flare/proto/topology"
)

func equalLabels(a, b []NodeLabel) bool { return slices.Equal(a, b) }

// equal compares two statuses.
func (s Status) equal(o Status) bool {
	return s.Generation == o.Generation && s.Phase == o.Phase && s.Reason == o.Reason && s.Message == o.Message &&
		s.NodesReady == o.NodesReady && s.NodesWanted == o.NodesWanted && s.MastersUp == o.MastersUp &&
		s.MapVersion == o.MapVersion && s.ConfigNodes == o.ConfigNodes && s.ConfigReason == o.ConfigReason &&
		slices.Equal(s.Conditions, o.Conditions) && s.Replication.equal(o.Replication) &&
		slices.EqualFunc(s.Partitions, o.Partitions, func(a, b PartitionStatus) bool {
			return a.Number == b.Number && a.Epoch == b.Epoch && a.Master == b.Master && a.State == b.State &&
				slices.Equal(a.InSync, b.InSync) && slices.Equal(a.Preparing, b.Preparing)
		})
}

// writeStatus publishes the summary when it differs from what is published.
func (w *work) writeStatus() {
	s := &w.s
	if !s.Spec.Known {
		return
	}
	status := StatusOf(*s)
	if status.equal(s.StatusDone) || !w.open(&s.Status) {
		return
	}
	s.StatusSent = status
	w.emit(WriteStatus{Seq: s.Status.Seq, Status: status})
}

// PartitionsOf returns the durable view of every partition.
func PartitionsOf(s State) []PartitionStatus {
	list := make([]PartitionStatus, max(len(s.Saved.Partitions), s.partitionsWanted()))
	nodes := s.Saved.byPartition()
	added, growing := GrowthOf(s)
	if growing {
		list = append(list, PartitionStatus{})
	}
	for p := range list {
		ps := &list[p]
		ps.Number = p
		ps.Epoch = s.Saved.epoch(p)
		for _, i := range nodes.of(p) {
			n := &s.Saved.Nodes[i]
			switch {
			case n.Role == topology.Master && n.State == topology.Active:
				ps.Master = n.Key()
			case n.Role == topology.Slave && n.State == topology.Active:
				ps.InSync = append(ps.InSync, n.Key())
			case n.up():
				ps.Preparing = append(ps.Preparing, n.Key())
			}
		}
		switch {
		case growing && p == added.Partition:
			ps.State = PartitionPreparing
		case p >= len(s.Saved.Partitions):
			ps.State = PartitionForming
		case ps.Master == "":
			ps.State = PartitionDown
		case len(ps.InSync) < s.Spec.Replicas-1:
			ps.State = PartitionDegraded
		default:
			ps.State = PartitionHealthy
		}
	}
	return list
}

// partitionsWanted is the number of partitions a status speaks of.
func (s *State) partitionsWanted() int {
	if len(s.Saved.Partitions) > 0 || !s.Spec.Known {
		return len(s.Saved.Partitions)
	}
	return s.Spec.Partitions
}

// StatusOf returns the summary of a state.
func StatusOf(s State) Status {
	st := Status{
		Generation: s.Spec.Generation, MapVersion: s.Saved.Version,
		NodesWanted: s.wantedNodes(), Partitions: PartitionsOf(s),
	}
	for _, n := range s.Saved.Nodes {
		if n.up() && n.Partition >= 0 && n.State == topology.Active {
			st.NodesReady++
		}
	}
	var down, forming, starved, missing, filling []string
	for _, p := range st.Partitions {
		name := fmt.Sprint(p.Number)
		switch {
		case p.State == PartitionForming:
			forming = append(forming, name)
		case p.State == PartitionDown:
			down = append(down, name)
		case 1+len(p.InSync) < s.Spec.MinInSync:
			starved = append(starved, name)
		case p.State == PartitionDegraded && len(p.InSync)+len(p.Preparing) < s.Spec.Replicas-1:
			missing = append(missing, name)
		case p.State == PartitionDegraded:
			filling = append(filling, name)
		}
		if p.Master != "" {
			st.MastersUp++
		}
	}
	of := func(list []string) string {
		if len(list) == 1 {
			return "partition " + list[0]
		}
		return "partitions " + strings.Join(list, ", ")
	}
	ready := Condition{Type: ConditionReady, True: true, Reason: ReasonHealthy, Message: "every partition has a master"}
	degraded := Condition{Type: ConditionDegraded, Reason: ReasonHealthy, Message: "every partition has all its replicas in sync"}
	switch {
	case len(forming) > 0:
		ready.True, ready.Reason, ready.Message = false, ReasonForming, of(forming)+": no master yet"
		if s.Blocked.Reason != "" {
			ready.Message += "; " + s.Blocked.Message
		}
		degraded.Reason, degraded.Message = ReasonForming, ready.Message
	case len(down) > 0:
		ready.True, ready.Reason, ready.Message = false, ReasonMasterDown, of(down)+": the master is down and no replica is in sync"
		if r := s.frozen(&s.Saved); r.Reason != "" {
			ready.Message = of(down) + ": the master is down, and no roles change by themselves: " + r.Message
		}
		degraded.True, degraded.Reason, degraded.Message = true, ReasonMasterDown, ready.Message
	case len(starved) > 0:
		degraded.True, degraded.Reason, degraded.Message = true, ReasonNotEnoughInSync,
			fmt.Sprintf("%s: fewer than %d nodes are in sync (replication.minInSync), so writes are refused", of(starved), s.Spec.MinInSync)
	case len(missing) > 0:
		degraded.True, degraded.Reason, degraded.Message = true, ReasonReplicaMissing, of(missing)+": fewer replicas than asked for"
	case len(filling) > 0:
		degraded.True, degraded.Reason, degraded.Message = true, ReasonReplicaCatchUp, of(filling)+": a replica is catching up"
	}
	growth, growing := GrowthOf(s)
	progressing := Condition{Type: ConditionProgressing, Reason: ReasonAsWanted, Message: "nothing is left to do"}
	switch {
	case s.PersistError != "":
		progressing.Reason, progressing.Message = ReasonPersistFailed, "the node map cannot be saved, so no role changes: "+s.PersistError
	case s.Refusal.Reason != "":
		progressing.Reason, progressing.Message = s.Refusal.Reason, s.Refusal.Message
	case s.Blocked.Reason != "":
		progressing.Reason, progressing.Message = s.Blocked.Reason, s.Blocked.Message
		progressing.True = s.Blocked.Reason == ReasonWaitingForNodes || s.Blocked.Reason == ReasonWaitingForData || s.Blocked.Reason == ReasonScaleInWaits
	case growing:
		progressing.True, progressing.Reason, progressing.Message = true, ReasonPartitionFilling, growth.message()
		if growth.Stage == "switching" {
			progressing.Reason = ReasonPartitionSwitching
		}
	case s.Members.Known && s.Members.Count != st.NodesWanted:
		progressing.True, progressing.Reason = true, ReasonScaling
		progressing.Message = fmt.Sprintf("scaling from %d to %d nodes", s.Members.Count, st.NodesWanted)
	case len(forming) > 0:
		progressing.True, progressing.Reason, progressing.Message = true, ReasonForming, of(forming)+": no master yet"
	case degraded.True && degraded.Reason != ReasonMasterDown:
		progressing.True, progressing.Reason, progressing.Message = true, degraded.Reason, degraded.Message
	}
	config := configCondition(s, &st)
	st.Conditions = []Condition{ready, progressing, degraded, config, breakerCondition(&s), pausedCondition(&s), reductionCondition(&s)}
	replication, conditions := replicationStatus(s)
	st.Replication = replication
	st.Conditions = append(st.Conditions, conditions...)

	worst := ready
	switch {
	case len(forming) > 0:
		st.Phase = PhaseForming
	case !ready.True:
		st.Phase = PhaseUnavailable
	case len(starved) > 0:
		st.Phase, worst = PhaseUnavailable, degraded
	case degraded.True:
		st.Phase, worst = PhaseDegraded, degraded
		if degraded.Reason == ReasonReplicaCatchUp {
			st.Phase = PhaseProgressing
		}
	case progressing.True:
		st.Phase, worst = PhaseProgressing, progressing
	default:
		st.Phase = PhaseRunning
	}
	if ready.True && !progressing.True && progressing.Reason != ReasonAsWanted {
		worst = progressing // something that is asked for is refused
	} else if ready.True && worst == ready && config.Reason == ReasonRejected {
		worst = config
	}
	if worst == ready && ready.True && s.Saved.Replication.Phase == ReplicationCutOver {
		worst = conditions[0] // that another cluster answers is what matters here
	}
	if s.Refusal.Reason == ReasonSpecInvalid || s.PersistError != "" {
		worst = progressing
	}
	st.Reason, st.Message = worst.Reason, worst.Message
	return st
}

// configCondition tells what became of the configuration on the nodes.
func configCondition(s State, st *Status) Condition {
	c := Condition{Type: ConditionConfigApplied, Reason: ReasonApplying}
	total := 0
	var rejected, pending []string
	for _, n := range s.Saved.Nodes {
		if !n.Extended || !n.up() {
			continue
		}
		total++
		i, ok := s.findSeen(n.Key())
		if !ok || s.Seen[i].Report.ConfigGeneration < s.Spec.Generation {
			continue
		}
		switch r := s.Seen[i].Report; {
		case r.ConfigRejected:
			rejected = append(rejected, n.Key()+": "+r.ConfigMessage)
		case r.ConfigPending:
			pending = append(pending, n.Key())
			st.ConfigNodes++
		default:
			st.ConfigNodes++
		}
	}
	switch {
	case len(rejected) > 0:
		c.Reason, c.Message = ReasonRejected, fmt.Sprintf("%d of %d nodes refuse the configuration and keep the former one; %s", len(rejected), total, rejected[0])
	case s.ConfigWritten.Generation != s.Spec.Generation || s.ConfigWritten.Text != s.configText():
		c.Message = "the configuration is being published"
		if s.Config.Error != "" {
			c.Message = "the configuration cannot be published: " + s.Config.Error
		}
	case total == 0 || st.ConfigNodes < total:
		c.Message = fmt.Sprintf("%d of %d nodes have the configuration of generation %d", st.ConfigNodes, total, s.Spec.Generation)
	case len(pending) > 0:
		c.Reason, c.Message = ReasonPendingRestart, "an option takes effect with the next restart of "+strings.Join(pending, ", ")
	default:
		c.True, c.Reason, c.Message = true, ReasonApplied, fmt.Sprintf("all %d nodes have every option in force", total)
	}
	st.ConfigReason = c.Reason
	return c
}
