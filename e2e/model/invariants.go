package model

import (
	"fmt"
	"slices"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// Invariant is something that holds in every world, whatever happened before.
//
// Those of the core alone are in controller/core/invariants.go and are checked at every
// step of it. These are about what the nodes do with what the core decides.
type Invariant struct {
	Name      string
	Statement string
	Check     func(*World) error // nil: checked when it happens, by the function named below
}

// Invariants lists them all.
func Invariants() []Invariant {
	return []Invariant{
		{"OneWritableMaster", "At no time two nodes would execute a client's write to the same partition.", oneWritableMaster},
		{"MasterHasAcknowledged", "A node that executes writes has every write of its partition that was acknowledged.", masterHasAcknowledged},
		{"InSyncHasAcknowledged", "Every node that may be promoted by what is durable has every acknowledged write.", inSyncHasAcknowledged},
		{"InSyncIsWaitedFor", "A master that executes writes waits for every replica that is in sync by what is durable.", inSyncIsWaitedFor},
		{"OneOwnerOfKey", "At no time two nodes would execute a client's write of one key, of whichever partition they are the masters.", oneOwnerOfKey},
		{"MovedKeysAreThere", "The master of an added partition has every acknowledged write of the keys that moved to it.", movedKeysAreThere},
		{"OneMapPerVersion", "Two nodes never have different maps of one version.", oneMapPerVersion},
		{"DurableBeforeSeen", "No node has a map that is later than what is durable.", durableBeforeSeen},
		{"SameLogBehindPosition", "Two nodes at one position of one history have the same epochs behind it.", sameLogBehindPosition},
		{"MastersDataIsItsPartitions", "A master has the data of its own partition only.", mastersData},
		{"PromotedHasAcknowledged", "A node that begins an epoch has every write of the partition that was acknowledged.", nil},             // checkBegin
		{"EpochBeginsOnce", "No two nodes begin the same epoch of a partition.", nil},                                                       // checkBegin
		{"TerminatingIsNotPromoted", "No node becomes master whose pod the controller knows to be terminating.", nil},                       // promoted
		{"RestartKeepsDecisions", "A controller that begins to lead changes nothing of what was decided before it hears of anything.", nil}, // lead
	}
}

// Check returns the first invariant that a world breaks.
func (m *Model) Check(w *World) error {
	if w.broken != nil {
		return w.broken
	}
	for i := range m.inv {
		if inv := &m.inv[i]; inv.Check != nil {
			if err := inv.Check(w); err != nil {
				return fmt.Errorf("%s: %s\n  %w", inv.Name, inv.Statement, err)
			}
		}
	}
	return nil
}

func oneWritableMaster(w *World) error {
	for i := range w.Nodes {
		for j := range i {
			a, b := &w.Nodes[i], &w.Nodes[j]
			if a.writable(w.Now) && b.writable(w.Now) && a.Tenure.Partition == b.Tenure.Partition {
				return fmt.Errorf("%s (epoch %d) and %s (epoch %d) take writes of partition %d",
					w.m.keys[i], a.Tenure.Epoch, w.m.keys[j], b.Tenure.Epoch, a.Tenure.Partition)
			}
		}
	}
	return nil
}

// has reports whether a node has a write.
func (n *Node) has(lsn topology.LSN) bool { return n.Pos.Locate(lsn) == history.Same }

func masterHasAcknowledged(w *World) error {
	for i := range w.Nodes {
		n := &w.Nodes[i]
		if !n.writable(w.Now) {
			continue
		}
		for _, lsn := range w.Parts[n.Tenure.Partition].Acked {
			if !n.has(lsn) {
				return fmt.Errorf("%s at %v takes writes of partition %d without %v", w.m.keys[i], n.Pos.LSN, n.Tenure.Partition, lsn)
			}
		}
	}
	return nil
}

func inSyncHasAcknowledged(w *World) error {
	d := &w.API.Durable
	for k := range d.Nodes {
		n := &d.Nodes[k]
		if n.Role != topology.Slave || n.State != topology.Active || !n.Extended {
			continue
		}
		i := w.index(n.Key())
		if node := &w.Nodes[i]; node.Up && n.Instance == node.instance(i) && node.Stage == Said {
			for _, lsn := range w.Parts[n.Partition].Acked {
				if !node.has(lsn) {
					return fmt.Errorf("%s at %v is in sync, without %v", w.m.keys[i], node.Pos.LSN, lsn)
				}
			}
		}
	}
	return nil
}

func inSyncIsWaitedFor(w *World) error {
	d := &w.API.Durable
	for i := range w.Nodes {
		m := &w.Nodes[i]
		if !m.writable(w.Now) {
			continue
		}
		p := m.Tenure.Partition
		if p >= len(d.Partitions) || d.Partitions[p].Epoch != m.Tenure.Epoch {
			continue
		}
		waited := m.Lead.InSync()
		for k := range d.Nodes {
			n := &d.Nodes[k]
			if n.Role == topology.Slave && n.State == topology.Active && n.Partition == p && !slices.Contains(waited, n.Key()) {
				return fmt.Errorf("%s does not wait for %s", w.m.keys[i], n.Key())
			}
		}
	}
	return nil
}

func oneMapPerVersion(w *World) error {
	for i := range w.Nodes {
		for j := range i {
			a, b := &w.Nodes[i].Map, &w.Nodes[j].Map
			if a.Version == b.Version && !slices.Equal(a.Nodes, b.Nodes) {
				return fmt.Errorf("%s and %s have version %d\n  %s\n  %s", w.m.keys[i], w.m.keys[j], a.Version, describeMap(*a), describeMap(*b))
			}
		}
	}
	return nil
}

func durableBeforeSeen(w *World) error {
	for i := range w.Nodes {
		if v := w.Nodes[i].Map.Version; v > w.API.Durable.Version {
			return fmt.Errorf("%s has version %d, version %d is durable", w.m.keys[i], v, w.API.Durable.Version)
		}
	}
	return nil
}

func sameLogBehindPosition(w *World) error {
	for i := range w.Nodes {
		for j := range i {
			a, b := &w.Nodes[i].Pos, &w.Nodes[j].Pos
			if a.LSN.Index > 0 && a.LSN == b.LSN && a.History == b.History && !slices.Equal(a.Lineage, b.Lineage) {
				return fmt.Errorf("%s and %s at %v: %v and %v", w.m.keys[i], w.m.keys[j], a.LSN, a.Lineage, b.Lineage)
			}
		}
	}
	return nil
}

func mastersData(w *World) error {
	for i := range w.Nodes {
		if n := &w.Nodes[i]; n.Held && n.partition() != n.Tenure.Partition {
			return fmt.Errorf("%s leads partition %d and has data of %d", w.m.keys[i], n.Tenure.Partition, n.partition())
		}
	}
	return nil
}

// checkMap is called when a node takes a map over.
func (w *World) checkMap(i int) {
	n := &w.Nodes[i]
	if n.Map.Version == w.API.Durable.Version && !slices.Equal(n.Map.Nodes, w.API.Durable.Map().Nodes) {
		w.fail("OneMapPerVersion", "%s hears %s\n  durable is %s", w.m.keys[i], describeMap(n.Map), describeMap(w.API.Durable.Map()))
	}
}

// checkBegin is called before a node begins an epoch.
func (w *World) checkBegin(i, partition int, epoch uint64) {
	n := &w.Nodes[i]
	for _, lsn := range w.Parts[partition].Acked {
		if !n.has(lsn) {
			w.fail("PromotedHasAcknowledged", "%s at %v begins epoch %d of partition %d without %v, which was acknowledged",
				w.m.keys[i], n.Pos.LSN, epoch, partition, lsn)
		}
	}
	for j := range w.Nodes {
		o := &w.Nodes[j]
		if j == i || o.Pos.Partition != partition || o.Pos.History != n.Pos.History || n.Pos.History == "" {
			continue
		}
		for _, s := range o.Pos.Lineage {
			if s.Epoch == epoch {
				w.fail("EpochBeginsOnce", "%s begins epoch %d of partition %d, %s has it already", w.m.keys[i], epoch, partition, w.m.keys[j])
			}
		}
	}
}

// promoted is called after each step of the controller.
func (w *World) promoted(before, after *core.Durable) {
	for k := range after.Nodes {
		n := &after.Nodes[k]
		if n.Role != topology.Master || n.State != topology.Active {
			continue
		}
		was := false
		for j := range before.Nodes {
			b := &before.Nodes[j]
			was = was || b.Name == n.Name && b.Role == topology.Master && b.State == topology.Active
		}
		if was {
			continue
		}
		for _, m := range w.Ctl.State.Members.List {
			if m.Key == n.Key() && m.Terminating {
				w.fail("TerminatingIsNotPromoted", "%s became master of partition %d", n.Key(), n.Partition)
			}
		}
	}
}

// forgetLost forgets acknowledged writes that no node has any more: their last copy
// was destroyed, and nobody could have done anything about it.
func (w *World) forgetLost() {
	for p := range w.Parts {
		w.Parts[p].Acked = slices.DeleteFunc(slices.Clone(w.Parts[p].Acked), func(lsn topology.LSN) bool {
			for i := range w.Nodes {
				if n := &w.Nodes[i]; n.Pos.Partition == p && n.has(lsn) {
					return false
				}
			}
			return true
		})
		if len(w.Parts[p].Acked) == 0 {
			w.Parts[p].Acked = nil
		}
	}
}

var emptyPosition = history.Position{Partition: topology.NoPartition}

func (a Ask) behind() replication.Behind {
	return replication.Behind{Key: a.Key, Epoch: a.Epoch, Session: a.Session}
}
