package node

import (
	"sync"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// gateState tells what happens to a write that this node should execute.
type gateState uint8

const (
	gateWait   gateState = iota // not now; something is under way that will tell
	gateOpen                    // execute
	gateRefuse                  // no, for a reason that waiting does not cure
	gateCopy                    // execute what the node that is copied from sends, nothing else
)

// A gate stands between a write and the database. A write passes it for the
// time of its local commit, and closing waits for the commits under way: after
// close has returned nothing is written any more under the former role.
type gate struct {
	changed *broadcast

	mu        sync.RWMutex
	state     gateState
	partition int
	epoch     uint64
	reason    string // machine-readable, with gateRefuse and gateWait
	leased    bool   // what is let in needs a lease, too

	lease lease
}

// newGate returns a gate that is closed. now is a clock that never goes back, and
// whose times are all greater than 0.
func newGate(changed *broadcast, now func() time.Duration) *gate {
	return &gate{changed: changed, partition: -1, reason: "starting", lease: lease{now: now}}
}

// enter passes the gate for a write to a partition. When it returns gateOpen
// leave must be called as soon as the write is committed locally, and not by who
// may want to enter again before: a closing gate lets nobody in and waits for
// everybody to leave.
func (g *gate) enter(partition int) (gateState, string) {
	g.mu.RLock()
	if g.state == gateOpen && g.partition == partition && (!g.leased || g.lease.valid()) {
		return gateOpen, ""
	}
	defer g.mu.RUnlock()
	switch {
	case g.state == gateOpen && g.partition == partition:
		return g.lease.refusal()
	case g.state == gateOpen:
		return gateWait, "other_partition"
	case g.state == gateCopy:
		return gateWait, "copying"
	}
	return g.state, g.reason
}

// enterCopy passes the gate for a write that the partition's master has executed
// and that is to be executed here as well. Where this node follows a log there are
// none: what looks like one comes from a node that takes this one for the master.
// Until a copy begins nothing is missed either, it will contain the write.
func (g *gate) enterCopy(partition int) (gateState, string) {
	g.mu.RLock()
	if g.state == gateCopy && g.partition == partition {
		return gateOpen, ""
	}
	g.mu.RUnlock()
	return gateRefuse, reasonRoutingLoop
}

// copying tells whether the gate lets the writes of a master pass.
func (g *gate) copying() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.state == gateCopy
}

func (g *gate) leave() { g.mu.RUnlock() }

// drain waits until everybody has left who has entered so far.
func (g *gate) drain() {
	g.mu.Lock()
	defer g.mu.Unlock()
}

// open lets writes to the partition in; with leased only while there is a lease.
func (g *gate) open(partition int, epoch uint64, leased bool) {
	g.set(gateOpen, partition, epoch, "", leased)
}

// openCopy lets in what the partition's master sends.
func (g *gate) openCopy(partition int, epoch uint64) {
	g.set(gateCopy, partition, epoch, "", false)
}

// close lets writes wait, or refuses them.
func (g *gate) close(state gateState, reason string) {
	g.set(state, -1, 0, reason, false)
}

func (g *gate) set(state gateState, partition int, epoch uint64, reason string, leased bool) {
	g.mu.Lock()
	same := g.state == state && g.partition == partition && g.epoch == epoch && g.reason == reason && g.leased == leased
	g.state, g.partition, g.epoch, g.reason, g.leased = state, partition, epoch, reason, leased
	if !same {
		// A gate that was closed meanwhile needs another lease than before.
		g.lease.reset()
	}
	g.mu.Unlock()
	if !same {
		g.changed.fire()
	}
}

// status returns the present state, for reports.
func (g *gate) status() (gateState, string) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.state, g.reason
}

// renew takes a lease for writes to a partition in an epoch: from token, a time of
// the gate's clock, for ttl. It returns why the lease does not count, if it does not.
func (g *gate) renew(partition int, epoch uint64, token, ttl time.Duration, source leaseSource) (reason string) {
	// A lock for reading keeps the gate as it is and commits going.
	g.mu.RLock()
	defer g.mu.RUnlock()
	switch {
	case g.state != gateOpen || !g.leased:
		return "not_writing"
	case g.partition != partition:
		return "other_partition"
	case g.epoch != epoch:
		return "stale_epoch"
	}
	reason, regained := g.lease.renew(token, min(ttl, topology.LeaseTTL), source)
	if regained {
		g.changed.fire()
	}
	return reason
}

// unleased reports whether a write that has passed the gate must not be answered as
// done any more, unless all replicas in sync have it: time has gone by, and another
// master may have begun.
func (g *gate) unleased() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.state == gateOpen && g.leased && !g.lease.valid()
}

// leaseStatus returns the lease, for reports and for who renews it.
func (g *gate) leaseStatus() leaseStatus {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.state != gateOpen {
		return g.lease.status(leaseNone, -1, 0)
	}
	if !g.leased {
		return g.lease.status(leaseNotRequired, g.partition, g.epoch)
	}
	return g.lease.status(leaseHeld, g.partition, g.epoch)
}
