package core

import "github.com/flarekv/flare/proto/topology"

// handover moves a master's role to a replica that has everything. Its master asks
// for it after it has stopped to write and the replica has acknowledged all, and
// takes no more writes until it hears of the outcome; so nobody has to be waited
// for, and the old master is a replica at once: it did not die.
//
// Asking again after a lost answer is harmless: what was done is confirmed. And once
// it was refused, what may still be under way of an earlier attempt is refused too.
// All refusals but that of a target that is not in sync last for the epoch; such a
// target comes in sync again by a later grant only, and the attempt names the one
// that it relied on.
func (w *work) handover(c Command, key string) string {
	d := &w.s.Durable
	target := nodeKey(c.Target, c.TargetPort)
	from, to := d.node(key), d.node(target)
	switch {
	case from == nil || to == nil || from == to:
		return RefuseNoSuchNode
	case to.Role == topology.Master && to.State == topology.Active && from.Role != topology.Master &&
		from.Home == to.Partition && d.epoch(to.Partition) == c.Epoch+1:
		return ""
	case from.Role != topology.Master || from.State != topology.Active:
		return RefuseNotMaster
	case c.Epoch != d.epoch(from.Partition):
		return RefuseStaleEpoch
	case to.Role != topology.Slave || to.State != topology.Active || to.Partition != from.Partition || !to.Extended:
		return RefuseNotInSync
	case to.Granted.After(Grant{Epoch: c.Epoch, Session: c.Session}):
		return RefuseStaleGrant
	case w.wroteSince(*from, c.Paused):
		return RefuseStalePause
	case w.dead(*to) != "":
		// It is about to be taken down, and the old master is not in sync at first.
		return RefuseNotInSync
	}
	w.released(*from)
	partition := from.Partition
	// Both keep their shares of the reads, as far as that leaves the partition readable:
	// the old master answers none before it is in sync again.
	old, balance := from.Balance, to.Balance
	if balance == 0 && w.slaveBalance(partition) == 0 {
		balance = max(1, old)
	}
	w.set(key, ReasonHandover, func(n *Node) { becomeSlave(n, partition, old) })
	w.makeActiveMaster(target, partition, balance, ReasonHandover)
	w.s.Prior = append(w.s.Prior, target)
	w.event(false, ReasonHandover, "%s handed partition %d over to %s, in epoch %d", key, partition, target, d.epoch(partition))
	return ""
}

// wroteSince reports whether the process that is registered under a node may have
// written after a time of its clock: it asked for a lease later. It had given up to
// wait then, and what it had asked for comes too late.
func (w *work) wroteSince(n Node, paused uint64) bool {
	l := w.s.lease(n)
	return l != nil && l.Token > paused
}
