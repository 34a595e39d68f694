package core

import (
	"cmp"
	"slices"
	"strings"
)

// OrderKind is what a node is told to do.
type OrderKind string

// The kinds.
const (
	// OrderHandover: give the mastership to the target.
	OrderHandover OrderKind = "handover"
	// OrderPurge: remove the keys that belong to other partitions.
	OrderPurge OrderKind = "purge"
)

// OrderNode asks to tell a node, by its agent, to do something. What becomes of it
// is in the agent's reports. An order that is lost is given again, so each must be
// harmless when it is carried out twice, or by a process that came later.
type OrderNode struct {
	ID     uint64
	Key    string
	Kind   OrderKind
	Target string // handover: the replica that takes over
}

func (OrderNode) effect() {}

// OrderReport is what an agent says of the last order of a kind that it was given.
type OrderReport struct {
	ID      uint64 // 0 for none
	Running bool
	Reason  string // why it failed; empty while it runs and when it was done
	Count   uint64 // purge: keys removed
}

// Order is an order under way, or the pause after one that failed.
type Order struct {
	Key   string
	Kind  OrderKind
	ID    uint64 // 0 in the pause
	Cause string // why it was given
	Until int64  // when it counts as lost, or the pause is over
	Fails int    // in a row
	// Command is the ID of the operator's command that is answered when the order ends;
	// 0 for none. Such an order is not given again.
	Command uint64
}

// Times of orders, in milliseconds.
const (
	orderLost     = 8_000  // without a word of the agent; longer than a handover's approach takes
	orderRetry    = 1_000  // after a failure, times the number of failures
	orderRetryMax = 30_000 // at most
)

// findOrder returns the index of a node's order of a kind, or where it belongs.
func (s *State) findOrder(key string, kind OrderKind) (int, bool) {
	return slices.BinarySearchFunc(s.Orders, Order{Key: key, Kind: kind}, func(a, b Order) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(string(a.Kind), string(b.Kind)))
	})
}

// ordered reports whether a node has an order of a kind, or is not to be given one
// again yet.
func (s *State) ordered(key string, kind OrderKind) bool {
	_, ok := s.findOrder(key, kind)
	return ok
}

// order gives an order, unless there is one of that kind already.
func (w *work) order(o OrderNode, cause string) {
	s := &w.s
	i, ok := s.findOrder(o.Key, o.Kind)
	fails := 0
	if ok {
		if s.Orders[i].ID != 0 || s.Now < s.Orders[i].Until {
			return
		}
		fails = s.Orders[i].Fails
		s.Orders = slices.Delete(s.Orders, i, i+1)
	}
	// Agents outlive controllers: no two orders have the same number.
	s.OrderID = max(s.OrderID+1, uint64(s.Now))
	o.ID = s.OrderID
	s.Orders = slices.Insert(s.Orders, i, Order{Key: o.Key, Kind: o.Kind, ID: o.ID, Cause: cause, Until: s.Now + orderLost, Fails: fails})
	w.emit(o)
}

// heedOrders takes from a report what became of orders.
func (w *work) heedOrders(r AgentReport) {
	for _, x := range []struct {
		kind OrderKind
		said OrderReport
	}{{OrderHandover, r.Handover}, {OrderPurge, r.Purge}} {
		i, ok := w.s.findOrder(r.Key, x.kind)
		if !ok || x.said.ID == 0 || w.s.Orders[i].ID != x.said.ID {
			continue
		}
		if x.said.Running {
			w.s.Orders[i].Until = w.s.Now + orderLost
			continue
		}
		w.endOrder(i, x.said.Reason)
		if x.kind == OrderPurge && x.said.Reason == "" {
			w.purged(r, x.said.Count)
		}
	}
}

// expireOrders ends orders of which nothing was heard, and pauses that are over
// and of use to nobody.
func (w *work) expireOrders() {
	s := &w.s
	for i := len(s.Orders) - 1; i >= 0; i-- {
		o := s.Orders[i]
		switch {
		case s.Now < o.Until:
		case o.ID != 0:
			w.endOrder(i, ReasonOrderLost)
		case s.Now >= o.Until+orderRetryMax:
			s.Orders = slices.Delete(s.Orders, i, i+1)
		}
	}
}

// endOrder ends an order: done, or failed and to be given again after a while if it
// is still needed then.
func (w *work) endOrder(i int, reason string) {
	s := &w.s
	o := s.Orders[i]
	if o.Command != 0 {
		s.Orders = slices.Delete(s.Orders, i, i+1)
		w.reply(Reply{ID: o.Command, Err: reason, Reason: reason})
		return
	}
	if reason == "" {
		s.Orders = slices.Delete(s.Orders, i, i+1)
		return
	}
	if o.Fails == 0 {
		w.event(true, ReasonOrderFailed, "%s was told to do a %s (%s) and did not: %s; it will be told again", o.Key, o.Kind, o.Cause, reason)
	}
	o.ID, o.Fails = 0, o.Fails+1
	o.Until = s.Now + min(orderRetry*int64(o.Fails), orderRetryMax)
	s.Orders[i] = o
}
