package core

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/flarekv/flare/proto/topology"
)

// master returns the master of a partition that is not down, nil when there is
// none.
func (w *work) master(partition int) *Node {
	for _, i := range w.of(partition) {
		if n := &w.s.Durable.Nodes[i]; n.Role == topology.Master && n.up() {
			return n
		}
	}
	return nil
}

// becomeSlave gives a proxy the duty of a replica, to be filled first.
func becomeSlave(n *Node, partition, balance int) {
	n.Role, n.State, n.Partition, n.Balance = topology.Slave, topology.Prepare, partition, balance
	n.Granted = Grant{}
	n.goHome(partition)
}

// goHome notes the partition a node has a duty in. Epochs of different
// partitions do not compare, so a floor counts for its own only.
func (n *Node) goHome(partition int) {
	if n.Home != partition {
		n.Home, n.Floor = partition, Grant{}
	}
}

// makeActiveMaster makes a node the master of a partition, in a new epoch.
func (w *work) makeActiveMaster(key string, partition, balance int, reason string) {
	d := &w.s.Durable
	for len(d.Partitions) <= partition {
		d.Partitions = append(d.Partitions, Partition{})
	}
	d.Partitions[partition].Epoch++
	d.Partitions[partition].Owed = false
	w.mastersChanged()
	if held, lsn := w.holds(*d.node(key)); held == partition {
		// The state was lost, and an operator makes up the next one.
		d.Partitions[partition].Epoch = max(d.Partitions[partition].Epoch, lsn.Epoch+1)
	}
	w.dirty, w.visible = true, true
	w.set(key, reason, func(n *Node) {
		n.Role, n.State, n.Partition, n.Balance = topology.Master, topology.Active, partition, balance
		n.Held, n.Granted, n.DownReason, n.Gone = partition, Grant{}, "", false
		n.goHome(partition)
	})
}

// releaseSlaves makes the replicas of a partition proxies.
func (w *work) releaseSlaves(partition int, reason string) {
	for _, o := range w.s.Durable.Nodes {
		if o.Role == topology.Slave && o.Partition == partition {
			w.set(o.Key(), reason, func(n *Node) { clearDuty(n); n.State = topology.Active })
		}
	}
}

// down takes a node down. A master's place goes to the replica that is in sync
// and has the highest position; without one the dead master keeps its entry,
// and with it the partition its number. gone: its process is known to have
// ended, so that only a new registration brings it back.
func (w *work) down(key, reason string, gone bool) {
	n := *w.s.Durable.node(key)
	if !n.up() {
		return
	}
	dead := func(n *Node) {
		n.State, n.DownReason, n.Gone = topology.Down, reason, gone
		n.Granted = Grant{}
	}
	if o := w.s.seen(key); o != nil {
		o.PingOK = false
	}
	switch {
	case n.Role != topology.Master:
		w.set(key, reason, func(n *Node) { clearDuty(n); dead(n) })
		w.event(true, ReasonNodeDown, "%s is down (%s); it was %s", key, reason, n.duty())
	case n.State != topology.Active:
		w.releaseSlaves(n.Partition, reason)
		w.set(key, reason, func(n *Node) { clearDuty(n); dead(n) })
		w.event(true, ReasonNodeDown, "%s is down (%s); partition %d is not being prepared any more", key, reason, n.Partition)
	default:
		next := w.successor(n)
		if next == "" {
			w.set(key, reason, dead)
			w.event(true, ReasonMasterDown, "%s, master of partition %d, is down (%s), and no replica is in sync: the partition takes no writes until it returns", key, n.Partition, reason)
			return
		}
		if r := w.frozen(); r.Reason != "" && reason != ReasonOperator {
			w.set(key, reason, dead)
			w.s.Durable.Partitions[n.Partition].Owed = true
			text := fmt.Sprintf("%s, master of partition %d, is down (%s), and %s does not take its place: %s", key, n.Partition, reason, next, r.Message)
			w.event(true, r.Reason, "%s", text)
			w.emit(Refused{Action: "failover", Reason: r.Reason, Message: text})
			return
		}
		w.set(key, reason, func(n *Node) { clearDuty(n); dead(n) })
		w.succeed(key, n.Partition, reason, next)
	}
}

// succeed puts a replica in sync in the place of a master that is down and has no
// duty any more.
func (w *work) succeed(dead string, partition int, reason, next string) {
	balance := w.s.Durable.node(next).Balance
	if w.slaveBalance(partition) == 0 {
		balance = 1
	}
	w.makeActiveMaster(next, partition, balance, ReasonFailover)
	w.s.Prior = append(w.s.Prior, next)
	w.event(true, ReasonFailover, "%s, master of partition %d, is down (%s); %s took its place in epoch %d",
		dead, partition, reason, next, w.s.Durable.epoch(partition))
}

// payOwed makes the failovers that were held back, when roles may change again.
func (w *work) payOwed() {
	d := &w.s.Durable
	for p := range d.Partitions {
		if !d.Partitions[p].Owed || w.frozen().Reason != "" {
			continue
		}
		i := slices.IndexFunc(d.Nodes, func(n Node) bool { return n.Role == topology.Master && n.Partition == p && !n.up() })
		if i < 0 {
			continue
		}
		dead := d.Nodes[i]
		if next := w.successor(dead); next != "" {
			w.set(dead.Key(), ReasonFailover, clearDuty)
			w.succeed(dead.Key(), p, dead.DownReason, next)
		}
	}
}

// slaveBalance sums the balances of a partition's replicas.
func (w *work) slaveBalance(partition int) int {
	sum := 0
	for _, i := range w.of(partition) {
		if o := &w.s.Durable.Nodes[i]; o.Role == topology.Slave {
			sum += o.Balance
		}
	}
	return sum
}

// successor returns the replica that takes a dead master's place: in sync, and
// of those the one with the highest known position, then the largest balance,
// then the first by key. A plain one is sent every write, but nobody waits for it
// and it has no position to tell: it is taken only if there is no other. Empty when
// no replica is in sync.
func (w *work) successor(master Node) string {
	var best *Node
	var bestLSN topology.LSN
	for _, i := range w.of(master.Partition) {
		n := &w.s.Durable.Nodes[i]
		if n.Role != topology.Slave || n.State != topology.Active {
			continue
		}
		_, lsn := w.holds(*n)
		if best == nil || cmp.Or(cmp.Compare(boolInt(n.Extended), boolInt(best.Extended)), lsn.Compare(bestLSN), cmp.Compare(n.Balance, best.Balance)) > 0 {
			best, bestLSN = n, lsn
		}
	}
	if best == nil {
		return ""
	}
	return best.Key()
}

// holds returns the partition whose data a node holds, and its position there,
// as last heard from the process that is registered.
func (w *work) holds(n Node) (partition int, lsn topology.LSN) {
	if o := w.s.seen(n.Key()); o != nil && n.Instance != "" && o.Report.Instance == n.Instance {
		if r := o.Report; r.Alive || !r.LSN.Less(n.HeldLSN) {
			return r.DataPartition, r.LSN
		}
	}
	return n.Held, n.HeldLSN
}

// up brings a node back that was down: a dead master that kept its entry takes
// its partition up again, in a new epoch, unless another master has it; all
// others come back as proxies.
func (w *work) up(key, reason string) {
	n := *w.s.Durable.node(key)
	if n.up() {
		return
	}
	alive := func(n *Node) { n.State, n.DownReason, n.Gone = topology.Active, "", false }
	if n.Role == topology.Master && w.master(n.Partition) == nil {
		w.makeActiveMaster(key, n.Partition, n.Balance, reason)
		w.s.Prior = append(w.s.Prior, key)
		w.event(false, ReasonUp, "%s is back as master of partition %d in epoch %d", key, n.Partition, w.s.Durable.epoch(n.Partition))
	} else {
		w.set(key, reason, func(n *Node) { clearDuty(n); alive(n) })
		w.event(false, ReasonUp, "%s is back", key)
	}
	o := w.s.see(key)
	o.PingFails, o.Refused, o.AddTries = 0, 0, 0
}
