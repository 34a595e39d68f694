package runtime

import (
	"reflect"

	"github.com/flarekv/flare/controller/core"
)

// topologyOf returns what may be shown of a state: the durable map, and what has
// been observed of its nodes.
func topologyOf(s core.State) Topology {
	t := Topology{
		Map: s.Saved.Map(), Meta: s.Saved.Meta, Spec: s.Spec, Members: s.Members,
		Partitions: core.PartitionsOf(s), Status: core.StatusOf(s),
	}
	t.Replication = s.Saved.Replication
	if t.Replication.Phase != core.ReplicationNone {
		t.ReplicationProgress = core.ReplicationProgressOf(s)
	}
	t.Growth, _ = core.GrowthOf(s)
	for i, n := range t.Map.Nodes {
		nt := NodeTopology{Node: n, Zone: s.Zone(n.Key()), DownReason: s.Saved.Nodes[i].DownReason}
		if o, ok := s.SeenOf(n.Key()); ok {
			nt.AgentConnected, nt.LSN = o.Agent, o.Report.LSN
		}
		t.Nodes = append(t.Nodes, nt)
	}
	return t
}

// publish shows the state to those who ask and watch, when it differs.
func (r *Runtime) publish(state core.State) {
	t := topologyOf(state)
	r.mu.Lock()
	defer r.mu.Unlock()
	if reflect.DeepEqual(t, r.topo) {
		return
	}
	r.topo = t
	close(r.changed)
	r.changed = make(chan struct{})
}
