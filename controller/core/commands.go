package core

import (
	"fmt"
	"slices"

	"github.com/flarekv/flare/proto/topology"
)

// The refusals of the index protocol; C++ nodes and tools know these texts.
const (
	failAdd      = "failed to add node"
	failRole     = "failed to set role (and balance)"
	failState    = "failed to set state"
	failRemove   = "failed to remove node"
	failShutdown = "failed to shutdown"
)

func (w *work) command(c Command) {
	// Whether silence counts is judged before the command as it will be after it: who
	// takes over now must not be taken for dead in the same step.
	w.judgeGrace()
	r := Reply{ID: c.ID}
	key := nodeKey(c.Name, c.Port)
	switch c.Verb {
	case VerbAdd:
		if r.Reason = w.add(c, key); r.Reason != "" {
			r.Err = failAdd
			break
		}
		w.commit()
		r.Nodes = w.s.Durable.Map().Nodes
	case VerbHello:
		r.Err = w.hello(c, key)
	case VerbRole:
		if r.Reason = w.role(c, key); r.Reason != "" {
			r.Err = failRole
		}
	case VerbState:
		if c.HasSession {
			r.Err = w.inSync(c, key)
			break
		}
		if r.Reason = w.state(c, key); r.Reason != "" {
			r.Err = failState
		}
	case VerbBehind:
		r.Err = w.behind(c, key)
	case VerbHandover:
		r.Err = w.handover(c, key)
	case VerbStartReplication:
		w.startReplication().reply(&r)
	case VerbCutOver:
		w.cutOver(c.Force).reply(&r)
	case VerbRollBack:
		w.rollBack(c.Force).reply(&r)
	case VerbRemove:
		if r.Reason = w.remove(key); r.Reason != "" {
			r.Err = failRemove
		}
	case VerbMove:
		if r.Err = w.move(c, key); r.Err == "" {
			return // the reply comes when the order ends
		}
	case VerbForce:
		r.Err = w.force(c, key)
	case VerbImport:
		r.Err = w.takeOver(c.Import)
	case VerbPause:
		r.Err = w.pause(c)
	case VerbResume:
		r.Err = w.resume()
	case VerbOverride:
		r.Err = w.override(c)
	case VerbShutdown:
		if !w.shutdown(key) {
			r.Err, r.Reason = failShutdown, RefuseNoSuchNode
		}
	default:
		r.Err, r.Reason = fmt.Sprintf("unknown verb %q", c.Verb), RefuseUnknownVerb
	}
	switch {
	case r.Reason == "":
		r.Reason = r.Err // the commands that flarei does not know answer with the reason
	case saysWhy(r.Reason):
		r.Err += ": " + r.Reason
	}
	w.reply(r)
}

// saysWhy reports whether a refusal whose text flarei's tools know is told with its
// reason all the same: flarei never refuses for one of these.
func saysWhy(reason string) bool {
	switch reason {
	case RefuseGrantRequired, RefuseDataLoss, RefuseLease, RefuseBeingAdded,
		RefuseBadName, RefuseMapFull, RefuseUnproven, RefuseOtherPod, RefuseNameInUse:
		return true
	}
	return false
}

// add registers a node. An unknown one becomes a proxy; one that is down is
// listed as it is and comes up with the next answered ping; any other is
// refused, and when it is a node of ours, the attempt itself is evidence that
// the process that was registered has ended. It returns why it is refused.
func (w *work) add(c Command, key string) string {
	d := &w.s.Durable
	if !w.s.Spec.Known && len(d.Partitions) == 0 {
		return RefuseNotNow // which hash and how many partitions is not known yet
	}
	if w.otherPod(key, c.Peer) {
		return RefuseOtherPod
	}
	n := d.node(key)
	if n == nil {
		if reason := w.full(c, key); reason != "" {
			return reason
		}
		w.insert(Node{Name: c.Name, Port: c.Port, Unproven: true}, ReasonAdded)
		w.s.see(key).AddedFrom = c.Peer
		return ""
	}
	if n.up() {
		o := w.s.see(key)
		o.AddTries++
		switch {
		case w.stranger(key, c.Peer):
			// The agent is where the node is, and will tell if its process ends.
			return RefuseNameInUse
		case n.Extended && !w.confirmed(*n) && w.writable(*n, ReasonReregistered):
			// Whoever tries is not the one who may still be writing, and tries again.
		case n.Extended && !w.confirmed(*n):
			w.down(key, ReasonReregistered, true)
		case !n.Extended && (n.Role == topology.Proxy || n.Instance != "") && o.AddTries >= addTries && !w.writable(*n, ReasonReregistered):
			// A plain proxy; or one that was registered by somebody else after it had said
			// hello: its own process would try for ever.
			w.down(key, ReasonReregistered, true)
		}
		return RefuseNodeUp
	}
	w.set(key, ReasonAdded, func(n *Node) { n.Extended, n.Gone = false, false })
	w.dirty, w.visible = true, true
	o := w.s.see(key)
	o.registered(w.s.Now)
	return ""
}

// insert puts a new node into the map, as a proxy without duty.
func (w *work) insert(n Node, reason string) {
	d := &w.s.Durable
	n.Role, n.State, n.Partition = topology.Proxy, topology.Active, topology.NoPartition
	n.Home = topology.NoPartition
	if !n.Extended {
		n.Held = topology.NoPartition
	}
	if i := slices.IndexFunc(d.Removed, func(r RemovedNode) bool { return r.Key == n.Key() }); i >= 0 {
		n.Home, n.Floor = d.Removed[i].Home, d.Removed[i].Floor
		d.Removed = slices.Delete(d.Removed, i, i+1)
	}
	n.Zone = w.s.zone(n.Key())
	n.ThreadType = d.NextThread
	d.NextThread++
	i, _ := d.find(n.Key())
	d.Nodes = slices.Insert(d.Nodes, i, n)
	w.indexed = false
	w.dirty, w.visible = true, true
	o := w.s.see(n.Key())
	o.registered(w.s.Now)
	w.emit(Decision{Reason: reason, Node: n.Key(), Old: "-", New: n.duty(), Version: d.Version + 1})
}

// registered forgets the pings of a node's former process.
func (o *Seen) registered(now int64) {
	o.PingFails, o.Refused, o.PingOK, o.AddTries, o.AddedAt = 0, 0, false, 0, now
}

// confirmed reports whether the node's agent says that the very process that is
// registered is alive.
func (w *work) confirmed(n Node) bool {
	o := w.s.seen(n.Key())
	return o != nil && o.Agent && w.s.Now-o.AgentAt <= agentSilence &&
		o.Report.Alive && n.Instance != "" && o.Report.Instance == n.Instance
}

// hello makes a registered node an extended one, and tells what data it holds.
func (w *work) hello(c Command, key string) string {
	n := w.s.Durable.node(key)
	if n == nil {
		return RefuseNotRegistered
	}
	h := c.Hello
	if n.Gone || n.up() && n.Extended && h.Instance != n.Instance {
		return RefuseNotRegistered // of another process; this one has to register first
	}
	if h.Instance == "" || h.Partition < topology.NoPartition {
		return RefuseBadHello
	}
	if w.otherPod(key, c.Peer) {
		return RefuseOtherPod
	}
	if r := w.s.see(key).Report; r.Alive && r.Instance != h.Instance && w.stranger(key, c.Peer) {
		return RefuseNameInUse
	}
	w.set(key, ReasonAdded, func(n *Node) {
		if n.Instance != h.Instance {
			n.Former = n.Instance
		}
		n.Extended, n.Gone = true, false
		n.Instance, n.Held, n.HeldLSN, n.History = h.Instance, h.Partition, h.LSN, h.History
	})
	return ""
}

// role changes a node's role as an operator asks. It returns why it does not.
func (w *work) role(c Command, key string) string {
	d := &w.s.Durable
	n := d.node(key)
	switch {
	case n == nil:
		return RefuseNoSuchNode
	case n.State == topology.Down:
		return RefuseNodeDown
	}
	rebalance := func() string {
		if !w.balanceStays(*n, c.Balance) {
			return RefuseBalance
		}
		w.set(key, ReasonOperator, func(n *Node) { n.Balance = c.Balance })
		w.dirty, w.visible = true, true
		return ""
	}
	toProxy := func() {
		w.set(key, ReasonOperator, clearDuty)
		w.set(key, ReasonOperator, func(n *Node) { n.State = topology.Active })
		w.dirty, w.visible = true, true
	}
	filling := n.State == topology.Prepare || n.State == topology.Ready
	switch n.Role {
	case topology.Master:
		switch {
		case c.Role == topology.Master:
			return rebalance()
		case c.Role == topology.Proxy && filling:
			w.releaseSlaves(n.Partition, ReasonOperator)
			toProxy()
			return ""
		}
		return RefuseIsMaster
	case topology.Slave:
		switch c.Role {
		case topology.Slave:
			if filling {
				if m := w.master(n.Partition); m == nil || m.State == topology.Active {
					return RefuseNotActive
				}
			}
			return rebalance()
		case topology.Proxy:
			if !filling && !w.balanceStays(*n, 0) {
				return RefuseBalance
			}
			toProxy()
			return ""
		}
		if c.AllowDataLoss {
			return w.force(c, key)
		}
		return RefuseIsReplica
	}
	// A proxy.
	switch c.Role {
	case topology.Master:
		return w.makeMaster(key, c)
	case topology.Slave:
		m := w.master(c.Partition)
		switch {
		case c.Partition < 0:
			return RefusePartition
		case m == nil:
			return RefuseMasterDown
		}
		balance := 0
		if m.State != topology.Active {
			balance = max(0, c.Balance)
		}
		w.set(key, ReasonOperator, func(n *Node) { becomeSlave(n, c.Partition, balance) })
		return ""
	}
	toProxy()
	return ""
}

// balanceStays reports whether a partition can still be read when n has that
// balance: the sum over all its nodes must not become 0.
func (w *work) balanceStays(n Node, balance int) bool {
	if balance < 0 {
		return false
	}
	sum := balance
	for _, o := range w.s.Durable.Nodes {
		if o.Partition == n.Partition && o.Key() != n.Key() {
			sum += o.Balance
		}
	}
	return sum > 0
}

// makeMaster makes a proxy the master of a partition, as an operator asks: of
// the next one, which is then prepared (but for the first, which has no data to
// fetch), or of one whose master is dead without a successor. It returns why it
// does not.
func (w *work) makeMaster(key string, c Command) string {
	d := &w.s.Durable
	established := len(d.Partitions)
	switch {
	case c.Partition < 0 || c.Partition > established:
		return RefusePartition
	case c.Balance <= 0:
		return RefuseBalance
	case w.master(c.Partition) != nil:
		return RefuseHasMaster // it is up, or being prepared
	}
	if c.Partition < established {
		if r := w.mayLose(c, key); r != "" {
			return r
		}
	}
	if c.Partition < established || c.Partition == 0 {
		w.makeActiveMaster(key, c.Partition, c.Balance, ReasonOperator)
		return ""
	}
	w.set(key, ReasonOperator, func(n *Node) {
		n.Role, n.State, n.Partition, n.Balance = topology.Master, topology.Prepare, c.Partition, c.Balance
		n.goHome(c.Partition)
	})
	return ""
}

// state changes a node's state as an operator or a plain node asks. It returns why
// it does not.
func (w *work) state(c Command, key string) string {
	n := w.s.Durable.node(key)
	if n == nil {
		return RefuseNoSuchNode
	}
	if key == w.s.Durable.Growth.Node && (c.State == topology.Ready || c.State == topology.Active) {
		return RefuseBeingAdded // its masters have to yield first
	}
	switch c.State {
	case topology.Ready:
		if n.State != topology.Prepare {
			return RefuseNotPreparing
		}
		w.set(key, ReasonOperator, func(n *Node) { n.State = topology.Ready })
		return ""
	case topology.Down:
		if n.up() {
			w.down(key, ReasonOperator, false)
		}
		return ""
	case topology.Active:
	default:
		return RefuseState
	}
	switch n.State {
	case topology.Active:
		return ""
	case topology.Down:
		if w.lostData(*n) || w.behindReplica(*n) {
			if !c.AllowDataLoss {
				return RefuseDataLoss
			}
			w.accepted(c, key, n.Partition)
		}
		w.up(key, ReasonOperator)
		return ""
	}
	if m := w.master(n.Partition); n.Role == topology.Slave && n.Extended && m != nil && m.Extended {
		// Only its master knows whether it is in sync.
		return RefuseGrantRequired
	}
	if n.State == topology.Prepare {
		if n.Role != topology.Slave {
			return RefuseNotReady
		}
		w.set(key, ReasonInSync, func(n *Node) { n.State, n.Held = topology.Active, n.Partition })
		return ""
	}
	// Ready: a filled node takes up its duty.
	if n.Role == topology.Master {
		if n.Partition != len(w.s.Durable.Partitions) {
			return RefusePartition
		}
		for _, o := range w.s.Durable.Nodes {
			if o.Partition == n.Partition {
				w.s.Prior = append(w.s.Prior, o.Key())
			}
		}
		w.makeActiveMaster(key, n.Partition, n.Balance, ReasonOperator)
		return ""
	}
	w.set(key, ReasonOperator, func(n *Node) { n.State = topology.Active })
	return ""
}

// inSync makes a replica active by a grant of its master: from before the grant
// on the master waits for it with every write.
func (w *work) inSync(c Command, key string) string {
	n := w.s.Durable.node(key)
	g := Grant{Epoch: c.Epoch, Session: c.Session}
	switch {
	case n == nil:
		return RefuseNotRegistered
	case c.State != topology.Active || n.Role != topology.Slave || !n.up():
		return RefuseNotReplica
	case c.Partition >= 0 && c.Partition != n.Partition:
		return RefuseStaleGrant // of the master of a partition that it has left
	case g.Epoch != w.s.Durable.epoch(n.Partition):
		return RefuseStaleEpoch
	case !g.After(n.Floor):
		return RefuseStaleGrant
	}
	if m := w.master(n.Partition); m == nil || m.State != topology.Active && m.Key() != w.s.Durable.Growth.Node {
		return RefuseMasterDown
	}
	w.set(key, ReasonInSync, func(n *Node) {
		n.State, n.Held = topology.Active, n.Partition
		if g.After(n.Granted) {
			n.Granted = g
		}
	})
	return ""
}

// behind takes a grant back: the replica is not in sync any more, and the grants
// up to this one do not make it so again.
func (w *work) behind(c Command, key string) string {
	n := w.s.Durable.node(key)
	if n == nil {
		return "" // not in the map, so not in sync
	}
	g := Grant{Epoch: c.Epoch, Session: c.Session}
	home := n.Partition
	if home < 0 {
		home = n.Home
	}
	if p := c.Partition; p >= 0 && p != home {
		// It left the partition and is not in sync there. Its epoch is another
		// partition's now, so it cannot be the grant's.
		if g.Epoch != w.s.Durable.epoch(p) {
			return RefuseStaleEpoch
		}
		w.keepFloor(key, p, g)
		return ""
	}
	switch {
	case home >= 0 && g.Epoch != w.s.Durable.epoch(home):
		return RefuseStaleEpoch // who asks is not the master any more
	case n.Role == topology.Master:
		return RefuseIsMaster
	case n.Granted.After(g):
		return RefuseStaleGrant // an old request; a later grant is in force
	}
	w.set(key, ReasonBehind, func(n *Node) {
		if g.After(n.Floor) {
			n.Floor = g
		}
		if n.Role == topology.Slave && n.State == topology.Active {
			n.State, n.Granted = topology.Prepare, Grant{}
		}
	})
	return ""
}

// remove deletes a node that is down. A partition keeps the entry of its dead
// master until another one is up: the entry is what holds its number. It returns why
// it does not.
func (w *work) remove(key string) string {
	d := &w.s.Durable
	i, ok := d.find(key)
	switch {
	case !ok:
		return RefuseNoSuchNode
	case d.Nodes[i].up():
		return RefuseNodeUp
	}
	n := d.Nodes[i]
	if n.Role == topology.Master {
		if m := w.master(n.Partition); m == nil || m.State != topology.Active {
			return RefuseKeepsPartition
		}
	}
	w.delete(key)
	return ""
}

func (w *work) delete(key string) {
	d := &w.s.Durable
	i, _ := d.find(key)
	old := d.Nodes[i]
	d.Nodes = slices.Delete(d.Nodes, i, i+1)
	w.indexed = false
	w.keepFloor(key, old.Home, old.Floor)
	w.dirty, w.visible = true, true
	if o := w.s.seen(key); o != nil {
		*o = Seen{Key: key, Agent: o.Agent, AgentAt: o.AgentAt, Report: o.Report}
	}
	w.emit(Decision{Reason: ReasonRemoved, Node: key, Old: old.duty(), New: "-", Version: d.Version + 1})
}

// keepFloor remembers the floor that a node has in a partition which is not its home.
func (w *work) keepFloor(key string, home int, floor Grant) {
	d := &w.s.Durable
	d.Removed = slices.DeleteFunc(d.Removed, func(r RemovedNode) bool { return r.Floor.Epoch < d.epoch(r.Home) })
	if floor == (Grant{}) || floor.Epoch < d.epoch(home) {
		return
	}
	w.dirty = true
	if i := d.removed(key, home); i < 0 {
		d.Removed = append(d.Removed, RemovedNode{Key: key, Home: home, Floor: floor})
	} else if floor.After(d.Removed[i].Floor) {
		d.Removed[i].Floor = floor
	}
}

// removed returns the index of what is remembered of a node in a partition, -1 for
// nothing.
func (d *Durable) removed(key string, home int) int {
	return slices.IndexFunc(d.Removed, func(r RemovedNode) bool { return r.Key == key && r.Home == home })
}

// moved keeps the floor of a node that gets a duty in another partition, and brings
// back the one that it had there.
func (w *work) moved(n *Node, home int, floor Grant) {
	w.keepFloor(n.Key(), home, floor)
	d := &w.s.Durable
	if i := d.removed(n.Key(), n.Home); i >= 0 {
		n.Floor = d.Removed[i].Floor
		d.Removed = slices.Delete(d.Removed, i, i+1)
	}
}

// shutdown takes a node down that says it leaves.
func (w *work) shutdown(key string) bool {
	n := w.s.Durable.node(key)
	if n == nil {
		return false
	}
	w.released(*n)
	if !n.up() {
		w.set(key, ReasonShutdown, func(n *Node) { n.Gone = true })
		return true
	}
	if n.Role != topology.Master || n.State != topology.Active {
		w.s.Except = append(w.s.Except, key)
	}
	w.down(key, ReasonShutdown, true)
	return true
}
