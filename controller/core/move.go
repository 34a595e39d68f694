package core

import "github.com/flarekv/flare/proto/topology"

// move tells a master to hand over, as an operator asks: to the replica that is named,
// or to the one that suits best. The reply comes when the node has done it, or says why
// not. It returns why it is not told.
func (w *work) move(c Command, key string) string {
	s := &w.s
	from := s.Durable.node(key)
	switch {
	case from == nil:
		return RefuseNoSuchNode
	case from.Role != topology.Master || from.State != topology.Active:
		return RefuseNotMaster
	case !from.Extended || !w.confirmed(*from):
		return RefuseNoAgent
	}
	target := ""
	if c.Target == "" {
		if target = w.heir(*from); target == "" {
			return RefuseNoInSync
		}
	} else {
		target = nodeKey(c.Target, c.TargetPort)
		to := s.Durable.node(target)
		switch {
		case to == nil:
			return RefuseNoSuchNode
		case to.Role != topology.Slave || to.State != topology.Active || to.Partition != from.Partition || !to.Extended || w.dead(*to) != "":
			return RefuseNotInSync
		case s.leaving(*to) != "":
			return RefuseLeaving // it would have to hand over again at once
		}
	}
	// What is not saved yet nobody acts upon, least of all a master.
	if m, to := s.Saved.node(key), s.Saved.node(target); m == nil || m.Role != topology.Master || m.State != topology.Active {
		return RefuseNotMaster
	} else if to == nil || to.Role != topology.Slave || to.State != topology.Active || to.Partition != m.Partition {
		return RefuseNotInSync
	}
	if i, ok := s.findOrder(key, OrderHandover); ok {
		if s.Orders[i].ID != 0 {
			return RefuseRunning
		}
		s.Orders = append(s.Orders[:i], s.Orders[i+1:]...) // an operator does not wait for the pause
	}
	w.order(OrderNode{Key: key, Kind: OrderHandover, Target: target}, CauseOperator)
	i, _ := s.findOrder(key, OrderHandover)
	s.Orders[i].Command = c.ID
	return ""
}
