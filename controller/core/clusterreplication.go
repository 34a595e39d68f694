package core

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flarekv/flare/proto/topology"
)

// The replication to another cluster, blue to green, goes through phases. Each is
// durable before a node hears of it, so whoever leads next goes on where this
// controller was.
//
//	None --------> Dumping <------> Forwarding --> CuttingOver --> CutOver
//	  ^  target      |   all dumped   |    ^           |              |
//	  |  checked     |                |    '-----------'              |
//	  |              |                |      given up                 |
//	  '--------------'----------------'-------------------------------'
//	     rolled back, or switched off
//
// Nodes are told by the options that are rendered for the phase; what they report
// about it, and not that it was written, makes the next one.

// ReplicationPhase is how far the replication to another cluster is.
type ReplicationPhase string

// The phases.
const (
	// ReplicationNone: there is none.
	ReplicationNone ReplicationPhase = ""
	// ReplicationDumping: masters send all their records and every write, and not all
	// of them have come to the end of the records.
	ReplicationDumping ReplicationPhase = "Dumping"
	// ReplicationForwarding: the target has all records, and gets every write.
	ReplicationForwarding ReplicationPhase = "Forwarding"
	// ReplicationCuttingOver: writes of clients wait, until the target has everything.
	ReplicationCuttingOver ReplicationPhase = "CuttingOver"
	// ReplicationCutOver: the target answers clients, whichever cluster they ask.
	ReplicationCutOver ReplicationPhase = "CutOver"
)

// ReplicationMode is what is asked for, and what nodes are told.
type ReplicationMode string

// The modes. Hold is told only, never asked for.
const (
	ModeDuplicate ReplicationMode = "duplicate"
	ModeForward   ReplicationMode = "forward"
	ModeHold      ReplicationMode = "hold"
)

// Times, in milliseconds.
const (
	cutOverLimit     = 15_000    // for which writes may wait at a cut-over
	comparedLimit    = 3_600_000 // for which a comparison counts
	lagLimit         = 5_000     // of the target, at which a cut-over may begin
	targetRetry      = 5_000     // between looks at a target that cannot be used
	adoptionPatience = 10_000    // for all nodes to tell what they do, after the state was lost
)

// SpecReplication is what is asked for.
type SpecReplication struct {
	Enabled bool
	Target  string // host:port of a node there
	Mode    ReplicationMode
}

// Replication is the durable part.
type Replication struct {
	Phase  ReplicationPhase `json:"phase,omitempty"`
	Target string           `json:"target,omitempty"` // of the last run
	Mode   ReplicationMode  `json:"mode,omitempty"`
	Since  int64            `json:"since,omitempty"` // of the phase, unix milliseconds
	Runs   uint64           `json:"runs,omitempty"`  // how often it was begun
	// Forced: CuttingOver ends in CutOver whatever nodes report by then.
	Forced bool `json:"forced,omitempty"`
	// RolledBack: an operator ended the last run; another one has to be asked for.
	RolledBack bool `json:"rolledBack,omitempty"`
	// Compared is the last comparison of both clusters in this run.
	Compared Comparison `json:"compared,omitzero"`
}

// Comparison is what a comparison of both clusters found.
type Comparison struct {
	At        int64  `json:"at"`    // unix milliseconds; 0 for none
	Equal     bool   `json:"equal"` // in every partition
	Exact     bool   `json:"exact"` // records were compared, and not only counted
	Records   uint64 `json:"records"`
	Target    uint64 `json:"target"`    // records there
	Differing int    `json:"differing"` // partitions
}

// ClusterReport is what a node says about its replication to another cluster; the zero
// value from one that has none.
type ClusterReport struct {
	Destination string
	Mode        ReplicationMode // in force on the node
	Active      bool            // a master that sends its log
	Connected   bool
	Reason      string // why nothing gets through
	Dumped      bool   // all records were sent since it became master
	Percent     int    // of a dump
	Records     uint64 // sent by the last dump
	Total       uint64 // records it has to send
	Queued      uint64 // write batches that the destination lacks
	Lag         int64  // age of the oldest one, milliseconds
	Dropped     uint64 // batches given up
	Failed      uint64 // operations that the destination refused for good
	Held        bool   // writes of clients wait, and none is under way
}

// CheckTarget asks to look at the target of cluster replication. Answered by
// TargetChecked.
type CheckTarget struct {
	Seq    uint64
	Target string
}

// TargetChecked is what was found. Reason is empty for a flare node that answers.
type TargetChecked struct {
	Seq     uint64
	Target  string
	Reason  string
	Message string
	Nodes   []string // node keys in its map
	// Destination is where it replicates to itself, host:port; empty for nowhere.
	Destination string
}

// ClustersCompared is the outcome of a comparison of both clusters.
type ClustersCompared struct {
	Target     string
	Run        uint64 // Replication.Runs when it began
	Comparison Comparison
}

func (CheckTarget) effect()     {}
func (TargetChecked) input()    {}
func (ClustersCompared) input() {}

// The verbs.
const (
	VerbStartReplication Verb = "start-replication"
	VerbCutOver          Verb = "cut-over"
	VerbRollBack         Verb = "roll-back"
)

// Why a part of it is refused, or what state it is in.
const (
	ReasonReplicationOff       = "replication_off"
	ReasonReplicationChecking  = "checking_target"
	ReasonReplicationDumping   = "dumping"
	ReasonReplicationForwards  = "forwarding"
	ReasonReplicationCutting   = "cutting_over"
	ReasonReplicationCutOver   = "cut_over"
	ReasonReplicationStopped   = "replication_stopped"
	ReasonRolledBack           = "rolled_back"
	ReasonDumpAgain            = "dump_again"
	ReasonCutOverGivenUp       = "cut_over_given_up"
	ReasonReplicationChange    = "replication_running" // target or mode cannot be changed now
	ReasonTargetIsSelf         = "target_is_self"
	ReasonTargetReplicatesHere = "target_replicates_here"

	RefuseNotReplicating    = "not_replicating"
	RefuseNotForwarding     = "not_forwarding"
	RefuseLagging           = "lagging"
	RefuseDigestMissing     = "digest_missing"
	RefuseDigestMismatch    = "digest_mismatch"
	RefuseDigestUnavailable = "digest_unavailable"
	RefuseCutOver           = "cut_over"
	RefuseWritesAtTarget    = "writes_at_target"
)

// ReplicationProgress is how far one partition is.
type ReplicationProgress struct {
	Partition int           `json:"partition"`
	Node      string        `json:"node"`   // its master; empty when none is up
	Reason    string        `json:"reason"` // why it is not known, or nothing gets through; empty otherwise
	Report    ClusterReport `json:"-"`      // zero when it is not known
}

// dumped reports whether the target has all records, and gets every write.
func (p ReplicationProgress) dumped() bool {
	return p.Reason == "" && p.Report.Dumped && p.Report.Connected
}

// ReplicationProgressOf returns how far each partition is.
func ReplicationProgressOf(s State) []ReplicationProgress {
	r := s.Durable.Replication
	list := make([]ReplicationProgress, len(s.Durable.Partitions))
	for i := range list {
		p := &list[i]
		p.Partition, p.Reason = i, ReasonMasterDown
		for _, n := range s.Saved.Nodes {
			if n.Partition != i || n.Role != topology.Master || n.State != topology.Active {
				continue
			}
			p.Node, p.Reason = n.Key(), ReasonNoReport
			report, ok := s.freshReport(n)
			if !ok {
				continue
			}
			switch c := report.Cluster; {
			case c.Destination != r.Target || !c.Active || report.Role != topology.Master || report.Partition != i:
				p.Reason = ReasonApplying
			default:
				p.Report, p.Reason = c, c.Reason
			}
		}
	}
	return list
}

// ReasonNoReport: nothing was heard of a node's present process for a while, or it has
// no agent to tell.
const ReasonNoReport = "no_report"

// freshReport returns what the agent of a node says about the process that is
// registered, unless that is too old to be relied upon.
func (s *State) freshReport(n Node) (AgentReport, bool) {
	o := s.seen(n.Key())
	if o == nil || !o.Agent || s.Now-o.AgentAt > agentSilence || !o.Report.Alive || n.Instance == "" || o.Report.Instance != n.Instance {
		return AgentReport{}, false
	}
	return o.Report, true
}

// everyNode reports whether all nodes that are up say something that holds.
func (s *State) everyNode(holds func(ClusterReport) bool) (node string, ok bool) {
	for _, n := range s.Saved.Nodes {
		if !n.up() {
			continue
		}
		if r, ok := s.freshReport(n); !ok || !holds(r.Cluster) {
			return n.Key(), false
		}
	}
	return "", true
}

// settled reports whether the target has all that this cluster was ever told to
// write, and nobody writes here: then it may take the clients over.
func (s *State) settled() bool {
	r := s.Durable.Replication
	if _, ok := s.everyNode(func(c ClusterReport) bool {
		return c.Held && c.Mode == ModeHold && c.Destination == r.Target
	}); !ok {
		return false
	}
	return !slices.ContainsFunc(ReplicationProgressOf(*s), func(p ReplicationProgress) bool {
		return !p.dumped() || p.Report.Queued > 0
	})
}

// configText is what the nodes shall have as options: those of the spec, and those of
// the phase that is saved.
func (s *State) configText() string { return s.Spec.Config + replicationConfig(s.Saved.Replication) }

// replicationConfig renders the options of a phase.
func replicationConfig(r Replication) string {
	mode := ModeDuplicate
	switch r.Phase {
	case ReplicationNone:
		return ""
	case ReplicationCuttingOver:
		mode = ModeHold
	case ReplicationCutOver:
		mode = ModeForward
	}
	host, port, err := topology.SplitKey(r.Target)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("cluster-replication = true\ncluster-replication-server-name = %s\ncluster-replication-server-port = %d\ncluster-replication-mode = %s\n", host, port, mode)
}

// replicationUnknown reports whether the nodes may be in a phase that nobody
// remembers: what they have is left as it is until they have told.
func (s *State) replicationUnknown() bool {
	if !s.Spec.Replication.Enabled || s.Durable.Replication.Runs > 0 {
		return false
	}
	if slices.ContainsFunc(s.Seen, func(o Seen) bool { return o.Agent && o.Report.Alive && s.passesOn(o.Report.Cluster) }) {
		return true // and taken over once the partitions are known again
	}
	if s.Now >= s.Started+adoptionPatience {
		return false
	}
	_, all := s.everyNode(func(ClusterReport) bool { return true })
	return !all || len(s.Saved.Nodes) < s.wantedNodes()
}

// passesOn reports whether a node has been told that the target answers the clients.
func (s *State) passesOn(c ClusterReport) bool {
	return c.Mode == ModeForward && c.Destination == s.Spec.Replication.Target
}

// clusterReplication moves the phase on.
func (w *work) clusterReplication() {
	s := &w.s
	s.ReplicationRefusal = Refusal{}
	if !s.Spec.Known || len(s.Durable.Partitions) == 0 {
		return
	}
	r, spec := s.Durable.Replication, s.Spec.Replication
	switch {
	case r.Phase == ReplicationNone && !spec.Enabled:
		if r.RolledBack {
			w.setReplication(func(r *Replication) { r.RolledBack = false })
		}
		return
	case r.Phase == ReplicationNone:
		w.beginReplication()
		return
	case !spec.Enabled && (r.Phase == ReplicationCuttingOver || r.Phase == ReplicationCutOver):
		s.ReplicationRefusal = Refusal{RefuseCutOver, fmt.Sprintf(
			"clusterReplication is switched off while %s answers the clients: this cluster lacks what was written there; roll back first (RollBack)", r.Target)}
	case !spec.Enabled:
		w.toPhase(ReplicationNone, ReasonReplicationStopped, "the replication to %s was switched off", r.Target)
		return
	case spec.Target != r.Target || spec.Mode != r.Mode:
		s.ReplicationRefusal = Refusal{ReasonReplicationChange, fmt.Sprintf(
			"%s in mode %s is asked for while the replication to %s in mode %s is under way; roll back, or switch it off, first", spec.Target, spec.Mode, r.Target, r.Mode)}
	}
	switch r.Phase {
	case ReplicationDumping:
		if !slices.ContainsFunc(ReplicationProgressOf(*s), func(p ReplicationProgress) bool { return !p.dumped() }) {
			w.toPhase(ReplicationForwarding, ReasonReplicationForwards, "%s has all records and gets every write", r.Target)
		}
	case ReplicationForwarding:
		for _, p := range ReplicationProgressOf(*s) {
			if p.Report.Active && !p.Report.Dumped {
				w.toPhase(ReplicationDumping, ReasonDumpAgain, "%s sends all records of partition %d to %s again", p.Node, p.Partition, r.Target)
				return
			}
		}
	case ReplicationCuttingOver:
		w.cutOverGoesOn(r)
	}
}

// cutOverGoesOn ends the time in which writes wait.
func (w *work) cutOverGoesOn(r Replication) {
	late := w.s.Now >= r.Since+cutOverLimit
	switch {
	case w.s.settled():
		w.toPhase(ReplicationCutOver, ReasonReplicationCutOver, "%s answers the clients from now on", r.Target)
	case late && r.Forced:
		w.toPhase(ReplicationCutOver, ReasonReplicationCutOver, "%s answers the clients from now on, by force: not every node has said that it has everything", r.Target)
	case late:
		w.toPhase(ReplicationForwarding, ReasonCutOverGivenUp, "%s did not have everything after %d s (%s), so this cluster goes on by itself", r.Target, cutOverLimit/1000, w.s.unsettled())
	}
}

// unsettled names one thing that a cut-over waits for.
func (s *State) unsettled() string {
	if node, ok := s.everyNode(func(c ClusterReport) bool { return c.Held }); !ok {
		return node + " has not said that its writes wait"
	}
	for _, p := range ReplicationProgressOf(*s) {
		switch {
		case p.Reason != "":
			return fmt.Sprintf("partition %d: %s", p.Partition, p.Reason)
		case !p.dumped():
			return fmt.Sprintf("partition %d: all records are being sent again", p.Partition)
		case p.Report.Queued > 0:
			return fmt.Sprintf("partition %d: %d batches behind", p.Partition, p.Report.Queued)
		}
	}
	return "settled"
}

// beginReplication begins it, once the target was looked at.
func (w *work) beginReplication() {
	s := &w.s
	spec, r := s.Spec.Replication, s.Durable.Replication
	if r.RolledBack && r.Target == spec.Target {
		s.ReplicationRefusal = Refusal{ReasonRolledBack, fmt.Sprintf("the replication to %s was rolled back; StartClusterReplication begins it again", r.Target)}
		return
	}
	if r.Runs == 0 {
		// After the state was lost the nodes are the only ones to know.
		for _, n := range s.Saved.Nodes {
			if c, ok := s.freshReport(n); ok && s.passesOn(c.Cluster) {
				w.startRun(ReplicationCutOver, ReasonAdopted, "%s passes requests on to %s: the cut-over is taken for what it is", n.Key(), spec.Target)
				return
			}
		}
	}
	if node, ok := s.everyNode(func(ClusterReport) bool { return true }); !ok && s.Now < s.Started+adoptionPatience {
		s.ReplicationRefusal = Refusal{ReasonWaitingForNodes, node + " has not told yet what it does"}
		return
	}
	switch {
	case s.Target.Target != spec.Target:
		s.ReplicationRefusal = Refusal{ReasonReplicationChecking, spec.Target + " is being looked at"}
	case s.Target.Reason != "":
		s.ReplicationRefusal = Refusal{s.Target.Reason, s.Target.Message}
	case spec.Mode == ModeForward:
		w.startRun(ReplicationCutOver, ReasonReplicationCutOver, "%s answers the clients from now on", spec.Target)
		return
	default:
		w.startRun(ReplicationDumping, ReasonReplicationDumping, "all records, and every write, are sent to %s", spec.Target)
		return
	}
	if w.open(&s.TargetCheck) {
		w.emit(CheckTarget{Seq: s.TargetCheck.Seq, Target: spec.Target})
	}
}

func (w *work) startRun(phase ReplicationPhase, reason, format string, args ...any) {
	spec := w.s.Spec.Replication
	w.setReplication(func(r *Replication) {
		*r = Replication{Target: spec.Target, Mode: spec.Mode, Runs: r.Runs + 1}
	})
	w.toPhase(phase, reason, format, args...)
	w.s.Target = TargetState{} // another run looks again
}

// toPhase is the one way from one phase to another.
func (w *work) toPhase(phase ReplicationPhase, reason, format string, args ...any) {
	w.setReplication(func(r *Replication) {
		r.Phase, r.Since = phase, w.s.Now
		if phase != ReplicationCuttingOver {
			r.Forced = false
		}
	})
	w.event(reason == ReasonDumpAgain || reason == ReasonCutOverGivenUp, reason, format, args...)
}

func (w *work) setReplication(change func(*Replication)) {
	r := &w.s.Durable.Replication
	old := *r
	change(r)
	if *r != old {
		w.dirty = true
	}
}

// TargetState is what was last found out about a target.
type TargetState struct {
	Target  string // empty before the first look
	Reason  string // empty when it can be used
	Message string
}

// targetChecked takes the result of CheckTarget.
func (w *work) targetChecked(in TargetChecked) {
	s := &w.s
	if !s.TargetCheck.InFlight || s.TargetCheck.Seq != in.Seq {
		return
	}
	s.TargetCheck.InFlight, s.TargetCheck.Error, s.TargetCheck.Retry = false, in.Message, 0
	t := TargetState{Target: in.Target, Reason: in.Reason, Message: in.Message}
	if t.Reason == "" {
		for _, key := range in.Nodes {
			if s.Durable.node(key) != nil {
				t.Reason, t.Message = ReasonTargetIsSelf, fmt.Sprintf("%s is a node of this cluster: its map lists %s", in.Target, key)
				break
			}
		}
	}
	if t.Reason == "" && in.Destination != "" && s.Durable.node(in.Destination) != nil {
		t.Reason, t.Message = ReasonTargetReplicatesHere, fmt.Sprintf("%s itself replicates to %s, a node of this cluster: a write would go to and fro; roll that back first", in.Target, in.Destination)
	}
	if t.Reason != "" {
		s.TargetCheck.Retry = s.Now + targetRetry
		if t != s.Target {
			w.event(true, t.Reason, "no cluster replication: %s", t.Message)
		}
	}
	s.Target = t
}

// compared takes over what a comparison found, if it is about the present run.
func (w *work) compared(in ClustersCompared) {
	r := w.s.Durable.Replication
	if r.Phase == ReplicationNone || r.Target != in.Target || r.Runs != in.Run {
		return
	}
	w.setReplication(func(r *Replication) {
		r.Compared = in.Comparison
		r.Compared.At = w.s.Now
	})
}

// startReplication begins the replication anew after a roll-back.
func (w *work) startReplication() Refusal {
	r, spec := w.s.Durable.Replication, w.s.Spec.Replication
	switch {
	case !spec.Enabled:
		return refusal(ReasonReplicationOff, "spec.clusterReplication.enabled is false; switch it on, with a target")
	case r.Phase == ReplicationCuttingOver || r.Phase == ReplicationCutOver:
		return refusal(RefuseCutOver, "%s answers the clients; roll back first", r.Target)
	case r.Phase == ReplicationNone:
		w.setReplication(func(r *Replication) { r.RolledBack = false })
		w.s.Target = TargetState{}
	}
	return Refusal{}
}

// cutOver lets the target take the clients over.
func (w *work) cutOver(force bool) Refusal {
	s := &w.s
	r := s.Durable.Replication
	switch r.Phase {
	case ReplicationNone:
		return refusal(RefuseNotReplicating, "there is no cluster replication under way")
	case ReplicationCuttingOver:
		if force {
			w.setReplication(func(r *Replication) { r.Forced = true })
		}
		return Refusal{}
	case ReplicationCutOver:
		return Refusal{}
	}
	if refused := s.mayCutOver(); refused.Reason != "" && !force {
		return refused
	}
	w.setReplication(func(r *Replication) { r.Forced = force })
	w.toPhase(ReplicationCuttingOver, ReasonReplicationCutting, "writes wait until %s has everything", r.Target)
	return Refusal{}
}

// mayCutOver tells why a cut-over should not begin; the zero Refusal if it may.
func (s *State) mayCutOver() Refusal {
	r, c := s.Durable.Replication, s.Durable.Replication.Compared
	if r.Phase != ReplicationForwarding {
		return Refusal{RefuseNotForwarding, fmt.Sprintf("not every partition has sent all its records to %s", r.Target)}
	}
	for _, p := range ReplicationProgressOf(*s) {
		switch {
		case !p.dumped():
			return Refusal{RefuseNotForwarding, fmt.Sprintf("partition %d does not reach %s: %s", p.Partition, r.Target, cmp.Or(p.Reason, "its records are being sent"))}
		case p.Report.Lag > lagLimit:
			return Refusal{RefuseLagging, fmt.Sprintf("partition %d is %d batches and %d ms ahead of %s", p.Partition, p.Report.Queued, p.Report.Lag, r.Target)}
		}
	}
	if node, ok := s.everyNode(func(c ClusterReport) bool { return c.Mode == ModeDuplicate && c.Destination == r.Target }); !ok {
		return Refusal{RefuseNotForwarding, fmt.Sprintf("%s has not the options of this phase in force, or no agent that tells", node)}
	}
	switch {
	case c.At == 0 || s.Now-c.At > comparedLimit:
		return Refusal{RefuseDigestMissing, "both clusters were not compared within the last hour (CompareClusters)"}
	case !c.Equal:
		return Refusal{RefuseDigestMismatch, fmt.Sprintf("both clusters differ in %d partitions: %d records here, %d at %s", c.Differing, c.Records, c.Target, r.Target)}
	case !c.Exact:
		return Refusal{RefuseDigestUnavailable, fmt.Sprintf("%s cannot tell digests, only counts were compared", r.Target)}
	}
	return Refusal{}
}

// rollBack makes this cluster answer its clients by itself, and ends the replication.
func (w *work) rollBack(force bool) Refusal {
	r := w.s.Durable.Replication
	switch {
	case r.Phase == ReplicationNone && r.RolledBack:
		return Refusal{}
	case r.Phase == ReplicationNone:
		return refusal(RefuseNotReplicating, "there is no cluster replication under way")
	case r.Phase == ReplicationCutOver && !force && !(r.Compared.Equal && r.Compared.Exact && r.Compared.At > r.Since):
		return refusal(RefuseWritesAtTarget, "what clients wrote since the cut-over is at %s only, and this cluster would answer without it; replicate from there to here first, or compare both clusters, or force it", r.Target)
	}
	w.setReplication(func(r *Replication) { r.RolledBack = true })
	w.toPhase(ReplicationNone, ReasonRolledBack, "rolled back from %s: this cluster answers by itself, and sends nothing to %s", r.Phase, r.Target)
	return Refusal{}
}

// refusal makes one.
func refusal(reason, format string, args ...any) Refusal {
	return Refusal{reason, fmt.Sprintf(format, args...)}
}

// reply makes r the answer of a command that is refused for this reason, if any.
func (f Refusal) reply(r *Reply) {
	if r.Reason = f.Reason; f.Reason != "" {
		r.Err = f.Reason + ": " + f.Message
	}
}

// ReplicationStatus is the summary of the replication to another cluster.
type ReplicationStatus struct {
	Phase      ReplicationPhase             `json:"phase,omitempty"`
	Target     string                       `json:"target,omitempty"`
	Partitions []PartitionReplicationStatus `json:"partitions,omitempty"`
	Compared   Comparison                   `json:"compared,omitzero"`
}

// PartitionReplicationStatus is one partition of it.
type PartitionReplicationStatus struct {
	Number  int    `json:"number"`
	Dumped  bool   `json:"dumped"`  // the target has all records
	Percent int    `json:"percent"` // of the records that were looked at
	Reason  string `json:"reason"`  // why nothing gets through; empty when it does
}

func (s ReplicationStatus) equal(o ReplicationStatus) bool {
	return s.Phase == o.Phase && s.Target == o.Target && s.Compared == o.Compared && slices.Equal(s.Partitions, o.Partitions)
}

// replicationStatus returns the summary, and the condition if there is something to
// say.
func replicationStatus(s State) (ReplicationStatus, []Condition) {
	r := s.Saved.Replication
	st := ReplicationStatus{Phase: r.Phase, Target: r.Target, Compared: r.Compared}
	c := Condition{Type: ConditionClusterReplication}
	refused := s.ReplicationRefusal
	switch r.Phase {
	case ReplicationNone:
		if !s.Spec.Replication.Enabled {
			return ReplicationStatus{}, nil
		}
		c.Reason, c.Message = ReasonReplicationChecking, "it has not begun yet"
	case ReplicationCutOver:
		c.True, c.Reason, c.Message = true, ReasonReplicationCutOver, r.Target+" answers the clients"
	case ReplicationCuttingOver:
		c.True, c.Reason, c.Message = true, ReasonReplicationCutting, "writes wait until "+r.Target+" has everything"
	case ReplicationForwarding:
		c.True, c.Reason, c.Message = true, ReasonReplicationForwards, r.Target+" has all records and gets every write"
	case ReplicationDumping:
		c.Reason, c.Message = ReasonReplicationDumping, "records are being sent to "+r.Target
	}
	if r.Phase == ReplicationDumping || r.Phase == ReplicationForwarding || r.Phase == ReplicationCuttingOver {
		var failing []string
		for _, p := range ReplicationProgressOf(s) {
			ps := PartitionReplicationStatus{Number: p.Partition, Dumped: p.Report.Dumped, Percent: p.Report.Percent, Reason: p.Reason}
			st.Partitions = append(st.Partitions, ps)
			if p.Reason != "" && p.Reason != ReasonApplying {
				failing = append(failing, fmt.Sprintf("partition %d: %s", p.Partition, p.Reason))
			}
		}
		if len(failing) > 0 {
			c.Message += "; " + strings.Join(failing, ", ")
		}
	}
	if refused.Reason != "" {
		c.Reason, c.Message = refused.Reason, refused.Message
	}
	return st, []Condition{c}
}
