package core

import (
	"cmp"
	"strings"
)

// replicationLine takes the lines about cluster replication; false for another one.
//
//	replicate t:1 [forward] | off      spec.clusterReplication
//	target ok|REASON [node key] [its destination]  what was found out about the target
//	relay a:1 key=value ...            what a node reports: to, mode, dumped, why, queued, lag,
//	                                   held, idle (no master that sends)
//	compared equal|different|counted   the outcome of a comparison
//	start-replication, cut-over [force], roll-back [force]
//	replication                        where it is
func (w *scenario) replicationLine(f []string) bool {
	switch f[0] {
	case "replicate":
		spec := w.state.Spec
		spec.Generation++
		spec.Replication = SpecReplication{Mode: ModeDuplicate}
		if f[1] != "off" {
			spec.Replication.Enabled, spec.Replication.Target = true, f[1]
		}
		if len(f) > 2 {
			spec.Replication.Mode = ReplicationMode(f[2])
		}
		w.input(SpecChanged{Spec: spec})
	case "target":
		in := TargetChecked{Seq: w.state.TargetCheck.Seq, Target: w.state.Spec.Replication.Target}
		if f[1] != "ok" {
			in.Reason, in.Message = f[1], "words"
		}
		if len(f) > 2 {
			in.Nodes = []string{f[2]}
		}
		if len(f) > 3 {
			in.Destination = f[3]
		}
		w.input(in)
	case "relay":
		for _, key := range strings.Split(f[1], ",") {
			w.relay(key, f[2:])
		}
	case "compared":
		r := w.state.Durable.Replication
		c := Comparison{Equal: true, Exact: f[1] != "counted", Records: 10, Target: 10}
		if f[1] == "different" {
			c.Equal, c.Differing, c.Target = false, 1, 9
		}
		w.input(ClustersCompared{Target: r.Target, Run: r.Runs, Comparison: c})
	case "start-replication", "cut-over", "roll-back":
		w.nextID++
		w.input(Command{ID: w.nextID, Verb: Verb(f[0]), Force: len(f) > 1 && f[1] == "force"})
	case "replication":
		r := w.state.Saved.Replication
		w.printf("  %s run %d rolled back %t", cmp.Or(string(r.Phase), "None"), r.Runs, r.RolledBack)
		for _, p := range ReplicationProgressOf(w.state) {
			w.printf("  partition %d: %s %s dumped=%t queued=%d", p.Partition, cmp.Or(p.Node, "-"), p.Reason, p.Report.Dumped, p.Report.Queued)
		}
		_, conditions := replicationStatus(w.state)
		for _, c := range conditions {
			w.printf("  %s=%t %s: %s", c.Type, c.True, c.Reason, c.Message)
		}
	default:
		return false
	}
	return true
}

// relay sends a node's report with what its map entry and the line say.
func (w *scenario) relay(key string, f []string) {
	o, _ := w.state.SeenOf(key)
	r := o.Report
	n := w.state.Saved.node(key)
	if r.Key == "" {
		r = AgentReport{Key: key, DataPartition: -1}
	}
	r.Alive, r.Serving, r.Instance, r.Role, r.State, r.Partition = true, true, n.Instance, n.Role, n.State, n.Partition
	c := &r.Cluster
	if c.Destination == "" {
		*c = ClusterReport{Destination: w.state.Durable.Replication.Target, Mode: ModeDuplicate}
	}
	c.Active, c.Connected = n.Role == 0, n.Role == 0
	for _, kv := range f {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "to":
			c.Destination = v
		case "mode":
			c.Mode = ReplicationMode(v)
		case "dumped":
			c.Dumped = v == "true"
		case "why":
			c.Reason, c.Connected = v, v == ""
		case "queued":
			c.Queued = uint64(w.number(v))
		case "lag":
			c.Lag = int64(w.number(v))
		case "held":
			c.Held = v == "true"
		case "off":
			*c = ClusterReport{}
		default:
			w.t.Fatalf("relay: %q", kv)
		}
	}
	w.input(r)
}
