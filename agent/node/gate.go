package node

import "sync"

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
}

func newGate(changed *broadcast) *gate {
	return &gate{changed: changed, partition: -1, reason: "starting"}
}

// enter passes the gate for a write to a partition. When it returns gateOpen
// leave must be called as soon as the write is committed locally, and not by who
// may want to enter again before: a closing gate lets nobody in and waits for
// everybody to leave.
func (g *gate) enter(partition int) (gateState, string) {
	g.mu.RLock()
	if g.state == gateOpen && g.partition == partition {
		return gateOpen, ""
	}
	defer g.mu.RUnlock()
	switch g.state {
	case gateOpen:
		return gateWait, "other_partition"
	case gateCopy:
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

// open lets writes to the partition in.
func (g *gate) open(partition int, epoch uint64) {
	g.set(gateOpen, partition, epoch, "")
}

// openCopy lets in what the partition's master sends.
func (g *gate) openCopy(partition int, epoch uint64) {
	g.set(gateCopy, partition, epoch, "")
}

// close lets writes wait, or refuses them.
func (g *gate) close(state gateState, reason string) {
	g.set(state, -1, 0, reason)
}

func (g *gate) set(state gateState, partition int, epoch uint64, reason string) {
	g.mu.Lock()
	same := g.state == state && g.partition == partition && g.epoch == epoch && g.reason == reason
	g.state, g.partition, g.epoch, g.reason = state, partition, epoch, reason
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
