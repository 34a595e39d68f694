package core

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// Times of leases, in milliseconds, but leaseRenew, which is of the clock of a node.
var (
	leaseTTL  = topology.LeaseTTL.Milliseconds()
	leaseHold = topology.LeaseHold(topology.LeaseTTL).Milliseconds()
)

// leaseRenew is by how much a token must be newer than the last one to be granted.
const leaseRenew = uint64(500 * time.Millisecond)

// Lease is the right of one process to take writes as master of a partition. It is
// here from the moment it is granted until it has certainly ended: by the time, by
// the end of the process, or because the process gave it up.
type Lease struct {
	Key       string // node key
	Instance  string // of the process
	Partition int
	Epoch     uint64
	Token     uint64 // of the process's clock; 0 for one that a former controller may have granted
	Until     int64  // when it has ended, by the clock of this controller
	Agent     int64  // start of the agent that spoke for the process; 0 when not known
	Waiting   string // why a failover waits for its end; empty when none does
}

// findLease returns the index of a process's lease, or where it belongs.
func (s *State) findLease(key, instance string) (int, bool) {
	return slices.BinarySearchFunc(s.Leases, Lease{Key: key, Instance: instance}, func(a, b Lease) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.Instance, b.Instance))
	})
}

// lease returns the lease of the process that is registered under a node, nil when
// it has none. It is valid until the leases change.
func (s *State) lease(n Node) *Lease {
	if i, ok := s.findLease(n.Key(), n.Instance); ok {
		return &s.Leases[i]
	}
	return nil
}

func (s *State) setLease(l Lease) {
	if i, ok := s.findLease(l.Key, l.Instance); ok {
		s.Leases[i] = l
	} else {
		s.Leases = slices.Insert(s.Leases, i, l)
	}
}

// endLeases drops the leases that end tells of.
func (s *State) endLeases(end func(Lease) bool) { s.Leases = slices.DeleteFunc(s.Leases, end) }

// expireLeases drops the leases that have ended by the time.
func (w *work) expireLeases() {
	w.s.endLeases(func(l Lease) bool { return l.Until <= w.s.Now })
}

// inheritLeases assumes that the controller before this one has just granted every
// master a lease.
func (w *work) inheritLeases() {
	s := &w.s
	for _, n := range s.Saved.Nodes {
		if n.Role == topology.Master && n.State == topology.Active && n.Extended {
			s.setLease(Lease{Key: n.Key(), Instance: n.Instance, Partition: n.Partition,
				Epoch: s.Saved.epoch(n.Partition), Until: s.Now + leaseHold})
		}
	}
}

// heed takes from a report what it says about leases. That a process has ended is
// known from the agent that stood beside it: it said so of this process, or sees
// another one now. What another agent under the same name sees proves nothing: of a
// pod that was deleted without grace the processes may live on elsewhere.
func (w *work) heed(r AgentReport) {
	w.s.endLeases(func(l Lease) bool {
		switch {
		case l.Key != r.Key || r.Instance == "":
			return false
		case l.Instance != r.Instance:
			return r.Alive && r.AgentStarted != 0 && r.AgentStarted == l.Agent
		case !r.Alive:
			return true
		}
		return r.LeaseEpoch != l.Epoch && r.LeaseToken > l.Token // it gave it up
	})
	if i, ok := w.s.findLease(r.Key, r.Instance); ok && r.Alive {
		w.s.Leases[i].Agent = r.AgentStarted
	}
}

// released notes that the process registered under a node has given its duties up.
func (w *work) released(n Node) {
	w.s.endLeases(func(l Lease) bool { return l.Key == n.Key() && l.Instance == n.Instance })
}

// writable reports whether the process that is registered under a node may still
// take writes as a master although the node is to be taken down for a reason that
// proves nothing. Whose end is proven has no lease any more.
func (w *work) writable(n Node, reason string) bool {
	l := w.s.lease(n)
	if n.Role != topology.Master || n.State != topology.Active || l == nil {
		return false
	}
	if l.Waiting == "" {
		w.event(true, ReasonWaitingForLease, "%s, master of partition %d, may be dead (%s), and may take writes for at most %d ms more: its place stays its own until then",
			n.Key(), n.Partition, reason, l.Until-w.s.Now)
	}
	l.Waiting = reason
	return true
}

// suspect reports whether there is any evidence against a node. A master gets no
// lease then, so that its last one is over when the evidence suffices.
func (w *work) suspect(n Node) bool {
	o := w.s.seen(n.Key())
	return o == nil || o.PingFails > 0 || w.dead(n) != ""
}

// grantLeases answers the masters that want a lease. Only who is the master of the
// partition in the saved state and in what has been decided since gets one, and only
// while no other process may have one for the same partition.
func (w *work) grantLeases() {
	for i := range w.s.Seen {
		w.grantLease(w.s.Seen[i])
	}
}

// grantLease answers one.
func (w *work) grantLease(o Seen) {
	s, r := &w.s, o.Report
	if !o.Agent || !r.Alive || r.LeaseEpoch == 0 {
		return
	}
	n := s.Durable.node(o.Key)
	if n == nil || n.Instance == "" || n.Instance != r.Instance || !w.reigns(s.Durable, o.Key, r) || !w.reigns(s.Saved, o.Key, r) {
		return
	}
	had := s.lease(*n)
	if had != nil && had.Epoch == r.LeaseEpoch && had.Token != 0 && r.LeaseToken < had.Token+leaseRenew {
		return // a token is answered once, and not every one
	}
	if w.suspect(*n) || slices.ContainsFunc(s.Leases, func(l Lease) bool {
		return l.Partition == n.Partition && (l.Key != o.Key || l.Instance != n.Instance)
	}) {
		return
	}
	s.setLease(Lease{Key: o.Key, Instance: n.Instance, Partition: n.Partition, Epoch: r.LeaseEpoch,
		Token: r.LeaseToken, Until: s.Now + leaseHold, Agent: r.AgentStarted})
	w.emit(GrantLease{Key: o.Key, Instance: n.Instance, Partition: n.Partition, Epoch: r.LeaseEpoch, Token: r.LeaseToken, TTL: leaseTTL})
}

// reigns reports whether a node is the active master in the epoch that a report
// wants a lease for.
func (w *work) reigns(d Durable, key string, r AgentReport) bool {
	n := d.node(key)
	return n != nil && n.Role == topology.Master && n.State == topology.Active && n.Extended &&
		n.Partition == r.Partition && d.epoch(n.Partition) == r.LeaseEpoch
}
