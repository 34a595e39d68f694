package core

import (
	"strings"

	"pgregory.net/rapid"
)

// relayed is what a node of the walk knows of the replication to another cluster.
type relayed struct {
	text   string // options that are in force
	dumped string // process and epoch in which all records were sent; empty for none
	queued uint64 // batches that the target lacks
}

// mode is how the options have the node replicate; empty for not at all.
func (r relayed) mode() ReplicationMode {
	_, mode, _ := strings.Cut(r.text, "cluster-replication-mode = ")
	return ReplicationMode(strings.TrimSpace(mode))
}

// clusterOf is what a node says about it.
func (w *world) clusterOf(n *worldNode) ClusterReport {
	mode := n.relayed.mode()
	if mode == "" {
		return ClusterReport{}
	}
	c := ClusterReport{Destination: "t:1", Mode: mode, Held: mode == ModeHold}
	if p := n.running; p != nil && p.writes >= 0 {
		c.Active, c.Connected, c.Queued = true, true, n.relayed.queued
		c.Dumped = n.relayed.dumped == w.reign(n)
	}
	return c
}

func (w *world) reign(n *worldNode) string {
	return n.running.instance + "/" + string(rune('0'+n.running.epoch%10))
}

// configure lets a node see the options that are published.
func (w *world) configure(t *rapid.T) { w.configureNode(w.pick(t)) }

func (w *world) configureNode(n *worldNode) {
	if n.frozen || w.published == n.relayed.text {
		return
	}
	former := n.relayed.mode()
	if n.relayed.text = w.published; former == "" {
		n.relayed.dumped, n.relayed.queued = "", 0
	}
}

// write lets a master take a write, if it takes any.
func (w *world) write(t *rapid.T) {
	n := w.pick(t)
	if p := n.running; p != nil && p.mayWrite(p.writes, w.now) && p.writes >= 0 && !n.frozen && n.relayed.mode() == ModeDuplicate {
		n.relayed.queued++
	}
}

// send lets a master send the target what that lacks.
func (w *world) send(t *rapid.T) { w.sendFrom(w.pick(t)) }

func (w *world) sendFrom(n *worldNode) {
	if p := n.running; p != nil && p.writes >= 0 && !n.frozen {
		n.relayed.queued, n.relayed.dumped = 0, w.reign(n)
	}
}

// replicate has an operator do something about the replication.
func (w *world) replicate(t *rapid.T) {
	switch rapid.IntRange(0, 5).Draw(t, "what") {
	case 0:
		spec := w.state.Spec
		spec.Generation++
		spec.Replication = SpecReplication{}
		if rapid.IntRange(0, 3).Draw(t, "on") > 0 {
			spec.Replication = SpecReplication{Enabled: true, Target: "t:1", Mode: ModeDuplicate}
		}
		w.input(SpecChanged{Spec: spec})
	case 1:
		r := w.state.Durable.Replication
		w.input(ClustersCompared{Target: r.Target, Run: r.Runs, Comparison: Comparison{Equal: true, Exact: true}})
	case 2:
		w.do(Command{Verb: VerbStartReplication}, nil)
	case 3:
		w.do(Command{Verb: VerbRollBack, Force: rapid.Bool().Draw(t, "force")}, nil)
	default:
		w.do(Command{Verb: VerbCutOver, Force: rapid.IntRange(0, 4).Draw(t, "force") == 0}, nil)
	}
}

// moveOver lets seconds pass in which nodes do what they are told, up to a cut-over.
func (w *world) moveOver(t *rapid.T) {
	spec := w.state.Spec
	spec.Generation++
	spec.Replication = SpecReplication{Enabled: true, Target: "t:1", Mode: ModeDuplicate}
	w.input(SpecChanged{Spec: spec})
	for _, n := range w.nodes {
		n.reach, n.frozen = true, false
	}
	for range rapid.IntRange(1, 16).Draw(t, "seconds") {
		w.second(true)
		w.write(t)
		r := w.state.Durable.Replication
		w.input(ClustersCompared{Target: r.Target, Run: r.Runs, Comparison: Comparison{Equal: true, Exact: true}})
		if rapid.Bool().Draw(t, "cut over") {
			w.do(Command{Verb: VerbCutOver}, nil)
		}
	}
}

// handsOver checks, when the target takes the clients over, that nobody here executes
// their writes, and that nothing of those that were executed is missing there.
func (w *world) handsOver(next State) {
	before, after := w.state.Durable.Replication, next.Durable.Replication
	if after.Phase != ReplicationCutOver || before.Phase != ReplicationCuttingOver || before.Forced || w.lost {
		return
	}
	w.cutOvers++
	for _, n := range w.nodes {
		p := n.running
		if p == nil || p.writes < 0 || !p.mayWrite(p.writes, w.now) {
			continue
		}
		if n.relayed.mode() != ModeHold || n.relayed.queued > 0 || n.relayed.dumped != w.reign(n) {
			w.t.Fatalf("the target takes over while %s is master of partition %d in mode %q, %d batches behind, dumped %q\n%s",
				n.key, p.writes, n.relayed.mode(), n.relayed.queued, n.relayed.dumped, w.show())
		}
	}
}
