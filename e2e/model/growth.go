package model

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// Filling is what a node has of the partition that is being added while it is its
// preparing master; the zero value while it is none.
type Filling struct {
	Epoch  uint64  // of the attempt
	Owners []Owner // whose keys are all here; nil while some are missing
}

// Owner is the master of a partition in one epoch.
type Owner struct {
	Master string
	Epoch  uint64
}

// Yielding is a partition whose keys a master lets nobody write any more.
type Yielding struct {
	Partition int
	Epoch     uint64 // of the preparation; 0 for no yielding
	Since     uint64 // version of the first map in a row that asked for it
}

// layoutOf tells how many partitions a map has in force, and what it asks a node to
// yield, by the map that the node had before.
func layoutOf(self string, next, former topology.Map, was Yielding) (partitions int, y Yielding) {
	view, err := topology.BuildView(next.Nodes)
	if err != nil {
		return 0, Yielding{}
	}
	q := view.Preparing
	if q == nil || q.MasterState != topology.Ready || q.Epoch == 0 || dutyOf(self, next, false).kind != dutyMaster {
		return len(view.Partitions), Yielding{}
	}
	y = Yielding{q.Number, q.Epoch, next.Version}
	before, _ := former.Find(self)
	now, _ := next.Find(self)
	if was.Partition == y.Partition && was.Epoch == y.Epoch && before.Partition == now.Partition && before.Epoch == now.Epoch {
		y.Since = was.Since
	}
	return len(view.Partitions), y
}

// preparing returns the node that a map shows as the preparing master of the next
// partition, -1 for none.
func (w *World) preparing(m topology.Map) int {
	for _, n := range m.Nodes {
		if n.Role == topology.Master && (n.State == topology.Prepare || n.State == topology.Ready) {
			return w.index(n.Key())
		}
	}
	return -1
}

// owners lists the masters of the partitions in force by a node's map.
func (w *World) owners(i int) []Owner {
	view, err := topology.BuildView(w.Nodes[i].Map.Nodes)
	if err != nil {
		return nil
	}
	list := make([]Owner, 0, len(view.Partitions))
	for _, p := range view.Partitions {
		list = append(list, Owner{p.Master, p.Epoch})
	}
	return list
}

// fill takes up the duty of the master of a partition that is being added, in a
// history of its own.
func (w *World) fill(i int, d duty) {
	n := &w.Nodes[i]
	w.unfollow(i)
	w.resign(i)
	if n.Fill.Epoch == d.epoch {
		return
	}
	n.Fill = Filling{Epoch: d.epoch}
	first := topology.LSN{Epoch: d.epoch, Index: n.Pos.LSN.Index + 1}
	n.Pos = history.Position{Partition: d.partition, LSN: first,
		History: "c" + strconv.Itoa(d.partition) + "." + strconv.FormatUint(d.epoch, 10) + n.instance(i),
		Lineage: []history.EpochStart{{Epoch: first.Epoch, Index: first.Index}}}
	w.log("    node   %s is to be filled with partition %d, attempt %d", w.m.keys[i], d.partition, d.epoch)
}

// canCollect tells whether a node that is filled lacks a dump, and can get those of
// all masters.
func (w *World) canCollect(i int) bool {
	n := &w.Nodes[i]
	if n.Fill.Epoch == 0 || !n.Up || n.Frozen {
		return false
	}
	owners := w.owners(i)
	if len(owners) == 0 || n.Fill.Owners != nil && slices.Equal(n.Fill.Owners, owners) {
		return false
	}
	for p, o := range owners {
		m := w.index(o.Master)
		if m < 0 || !w.linked(i, m) || !w.Nodes[m].Held || w.Nodes[m].Tenure.Partition != p {
			return false
		}
	}
	return true
}

// collect gives a node all keys that the masters in its map have: the dump, whose
// records take the place of what was there.
func (w *World) collect(i int) {
	n := &w.Nodes[i]
	n.Fill.Owners, n.Have = w.owners(i), nil
	for _, o := range n.Fill.Owners {
		w.sendOn(w.index(o.Master), i)
	}
}

// sendOn gives a node all that a master has written of keys that move.
func (w *World) sendOn(m, f int) {
	master, n := &w.Nodes[m], &w.Nodes[f]
	var have []topology.LSN
	for _, lsn := range w.Parts[0].Moving {
		if slices.Contains(n.Have, lsn) || master.partition() == 0 && master.has(lsn) {
			have = append(have, lsn)
		}
	}
	n.Have = have
}

// relayed returns the node that a master sends writes of moving keys to, -1 for none.
func (w *World) relayed(m int) int {
	n := &w.Nodes[m]
	if !n.Held || n.Tenure.Partition != 0 || !n.Up || n.Frozen || n.Width != 1 {
		return -1
	}
	f := w.preparing(n.Map)
	if f < 0 || f == m || !w.linked(m, f) || w.Nodes[f].Fill.Epoch == 0 {
		return -1
	}
	return f
}

// lacks reports whether a node lacks a write of a moving key that a master has.
func (w *World) lacks(m, f int) bool {
	return slices.ContainsFunc(w.Parts[0].Moving, func(lsn topology.LSN) bool {
		return w.Nodes[m].has(lsn) && !slices.Contains(w.Nodes[f].Have, lsn)
	})
}

// canYield tells whether a master has still to say that it has yielded.
func (w *World) canYield(m int) bool {
	n := &w.Nodes[m]
	return n.Yield.Epoch > 0 && n.Yielded != n.Yield && w.relayed(m) >= 0
}

// yield lets a master, which takes no writes of the new partition's keys any more,
// send on what is left.
func (w *World) yield(m int) {
	w.sendOn(m, w.relayed(m))
	w.Nodes[m].Yielded = w.Nodes[m].Yield
}

// writesMoving reports whether a node would execute a client's write of a key that
// moves to the partition that is added: as the master of the partition that has it.
func (n *Node) writesMoving(now int64) bool {
	if !n.writable(now) {
		return false
	}
	return n.Tenure.Partition == 1 || n.Tenure.Partition == 0 && n.Width == 1 && n.Yield.Epoch == 0
}

// grown puts what a node says about the adding of a partition into its report.
func (w *World) grown(i int, r *core.AgentReport) {
	n := &w.Nodes[i]
	if n.Fill.Owners != nil && slices.Equal(n.Fill.Owners, w.owners(i)) {
		r.Filled = n.Map.Version
	}
	if n.Yield.Epoch > 0 && n.Yielded == n.Yield {
		r.Yielded = n.Yield.Epoch
	}
}

func oneOwnerOfKey(w *World) error {
	for i := range w.Nodes {
		for j := range i {
			if a, b := &w.Nodes[i], &w.Nodes[j]; a.writesMoving(w.Now) && b.writesMoving(w.Now) {
				return fmt.Errorf("%s (partition %d) and %s (partition %d) take writes of one key",
					w.m.keys[i], a.Tenure.Partition, w.m.keys[j], b.Tenure.Partition)
			}
		}
	}
	return nil
}

func movedKeysAreThere(w *World) error {
	for i := range w.Nodes {
		n := &w.Nodes[i]
		if !n.Held || n.Tenure.Partition != 1 {
			continue
		}
		for _, lsn := range w.Parts[0].Acked {
			if slices.Contains(w.Parts[0].Moving, lsn) && !slices.Contains(n.Have, lsn) {
				return fmt.Errorf("%s leads partition 1 without the write %v of a key that moved", w.m.keys[i], lsn)
			}
		}
	}
	return nil
}
