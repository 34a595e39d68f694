package core

import (
	"cmp"

	"github.com/flarekv/flare/proto/topology"
)

// force makes a node the master of a partition that has none, as an operator asks: a
// replica in sync, which has everything, or with AllowDataLoss any node when none is
// left that has. It is for this once; nothing stays allowed. Who wrote before must
// not do so any more: an operator cannot know that, the lease can.
func (w *work) force(c Command, key string) string {
	d := &w.s.Durable
	n := d.node(key)
	switch {
	case len(c.Note) > MaxNote:
		return RefuseNote
	case n == nil:
		return RefuseNoSuchNode
	case !n.up():
		return RefuseNodeDown
	}
	partition := c.Partition
	if partition < 0 {
		partition = n.Partition
	}
	switch {
	case partition < 0 || partition >= len(d.Partitions):
		return RefusePartition
	case w.master(partition) != nil:
		return RefuseHasMaster
	case n.Partition >= 0 && n.Partition != partition:
		return RefuseIsReplica // of another partition; it would leave that one
	case n.Role == topology.Slave && n.State == topology.Active:
		if w.leased(partition) {
			return RefuseLease
		}
	default:
		c.Partition = partition
		if r := w.mayLose(c, key); r != "" {
			return r
		}
	}
	for _, o := range d.Nodes {
		if o.Role == topology.Master && o.Partition == partition {
			w.set(o.Key(), ReasonOperator, clearDuty)
		}
	}
	w.makeActiveMaster(key, partition, cmp.Or(max(c.Balance, 0), n.Balance, 1), ReasonOperator)
	w.s.Prior = append(w.s.Prior, key)
	return ""
}

// mayLose returns why a node without everything that was acknowledged is not to be
// made the master of a partition, and notes that an operator has accepted it when it
// is. Of plain nodes nobody knows what they have.
func (w *work) mayLose(c Command, key string) string {
	var dead Node
	for _, n := range w.s.Durable.Nodes {
		if n.Role == topology.Master && n.Partition == c.Partition {
			dead = n
		}
	}
	next := w.successor(Node{Partition: c.Partition})
	switch {
	case dead.Instance == "" && next == "":
		return ""
	case w.leased(c.Partition):
		return RefuseLease
	case next != "":
		return RefuseInSyncLeft
	case !c.AllowDataLoss:
		return RefuseDataLoss
	}
	w.accepted(c, key, c.Partition)
	return ""
}

// leased reports whether somebody may take writes of a partition still.
func (w *work) leased(partition int) bool {
	for _, l := range w.s.Leases {
		if l.Partition == partition {
			return true
		}
	}
	return false
}

// accepted tells that an operator has accepted the loss of data.
func (w *work) accepted(c Command, key string, partition int) {
	held, lsn := w.holds(*w.s.Durable.node(key))
	w.event(true, ReasonDataLossAllowed, "an operator makes %s the master of partition %d although it may lack what was acknowledged: it holds partition %d at %v; %s",
		key, partition, held, lsn, cmp.Or(c.Note, "no reason given"))
}
