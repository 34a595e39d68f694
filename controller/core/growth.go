package core

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/flarekv/flare/proto/topology"
)

// Growth is the partition that is being added. Its number is that of the established
// ones: it is not one of them before it is switched to, and clients do not see it.
//
//	waiting ---> filling ---------------> switching ---> established
//	             master/prepare  <------  master/ready
//	   ^            |             too slow, or a
//	   '------------'             master changed
//	  the node died, the spec was
//	  taken back, too many failures
//
// filling: the node copies its keys from the masters of all partitions; what these
// write meanwhile for such keys they send on. switching: they let writes of those
// keys wait, until everything is sent on, and say so. When all have, nobody writes
// such a key: the node becomes a master, in a new epoch, and with the map that says
// so the waiting writes go to it. No write is lost that was acknowledged, and none
// is executed twice.
type Growth struct {
	Node string `json:"node,omitempty"` // being prepared; empty for none
	// Epoch grows with every attempt, so that none is taken for another. The
	// partition's first master begins in the next one.
	Epoch uint64 `json:"epoch,omitempty"`
	// Since is the map version that the node must have filled itself by: the one that
	// began it, or the last in which a partition got another master.
	Since uint64 `json:"since,omitempty"`
	// Switch is the map version that told the masters to let writes wait; 0 before.
	Switch uint64 `json:"switch,omitempty"`
	// Failures counts switches that were taken back.
	Failures int `json:"failures,omitempty"`
}

// Times of the growth, in milliseconds, and a number of attempts.
const (
	switchLimit   = 2_000 // writes wait at the masters for 3 s before they are refused
	switchPause   = 3_000 // between a switch that was taken back and the next
	switchesTried = 5     // with one filling
)

// targetPartitions is the number of partitions that nodes are needed for: those
// there are, and one more while more are asked for.
func (s *State) targetPartitions() int {
	established := len(s.Durable.Partitions)
	if established > 0 && s.Spec.Partitions > established && s.Refusal.Reason == "" {
		return established + 1
	}
	return s.partitions()
}

// grow adds a partition when more are asked for, one at a time.
func (w *work) grow() {
	s := &w.s
	g := &s.Durable.Growth
	established := len(s.Durable.Partitions)
	wanted := s.Spec.Partitions > established && s.Refusal.Reason == ""
	if g.Node == "" {
		if wanted {
			w.beginGrowth(established)
		}
		return
	}
	n := s.Durable.node(g.Node)
	switch {
	case !wanted:
		w.stopFilling("the spec does not ask for it any more")
	case n.State == topology.Prepare:
		w.fillGrowth(*n)
	default:
		w.switchGrowth(*n)
	}
}

// tidyGrowth takes notice when the node that is filled has died, or has got another
// duty by an operator.
func (w *work) tidyGrowth() {
	d := &w.s.Durable
	if d.Growth.Node == "" {
		return
	}
	n := d.node(d.Growth.Node)
	if n == nil || n.Role != topology.Master || n.Partition != len(d.Partitions) || n.State != topology.Prepare && n.State != topology.Ready {
		w.endGrowth(fmt.Sprintf("%s, which was filled with partition %d, has been given up", d.Growth.Node, len(d.Partitions)))
	}
}

// beginGrowth chooses the node that becomes the next partition's master.
func (w *work) beginGrowth(established int) {
	s := &w.s
	wait := func(reason, format string, args ...any) {
		if s.Blocked.Reason == "" {
			s.Blocked = Refusal{reason, fmt.Sprintf("partition %d is to be added: ", established) + fmt.Sprintf(format, args...)}
		}
	}
	if m := w.master(established); m != nil {
		wait(ReasonManualMap, "%s is its master by an operator's command, who has to finish it or to make the node a proxy", m.Key())
		return
	}
	for p := range s.Durable.Partitions {
		if m := w.master(p); m == nil || m.State != topology.Active {
			wait(ReasonMasterDown, "partition %d has no master to copy its keys from", p)
			return
		}
	}
	best := -1
	free := w.free()
	rank := func(c candidate) [2]int { return [2]int{w.mastersIn(c.zone, ""), boolInt(c.held >= 0)} }
	for i, c := range free {
		n := s.Durable.node(c.key)
		if s.leaving(*n) != "" || !w.confirmed(*n) || c.held >= 0 && c.held < established && w.master(c.held) == nil {
			continue
		}
		if best < 0 || slices.Compare(ranked(rank(c)), ranked(rank(free[best]))) < 0 {
			best = i
		}
	}
	if best < 0 {
		wait(ReasonWaitingForNodes, "no free node with an agent is there to become its master")
		return
	}
	key := free[best].key
	g := &s.Durable.Growth
	*g = Growth{Node: key, Epoch: g.Epoch + 1, Since: s.Durable.Version + 1}
	w.set(key, ReasonPartitionFilling, func(n *Node) {
		n.Role, n.State, n.Partition, n.Balance = topology.Master, topology.Prepare, established, 1
		n.goHome(established)
	})
	w.event(false, ReasonPartitionFilling, "%s is filled with the keys of partition %d, which is added", key, established)
}

func ranked(r [2]int) []int { return r[:] }

// fillGrowth waits until the node has its keys, and begins the switch.
func (w *work) fillGrowth(n Node) {
	s := &w.s
	g := &s.Durable.Growth
	if g.Failures >= switchesTried {
		w.stopFilling(fmt.Sprintf("%d attempts to switch to it failed", g.Failures))
		return
	}
	for p := range s.Durable.Partitions {
		switch m := w.master(p); {
		case m == nil || m.State != topology.Active:
			if s.Blocked.Reason == "" {
				s.Blocked = Refusal{ReasonMasterDown, fmt.Sprintf("partition %d is to be added: partition %d has no master to copy its keys from", n.Partition, p)}
			}
			return
		case w.suspect(*m) || s.leaving(*m) != "":
			return // it would be taken back
		}
	}
	if !w.filled(n) || s.Now < s.SwitchAfter || !w.confirmed(n) || w.suspect(n) {
		return
	}
	for _, o := range s.Durable.Nodes {
		if o.Role == topology.Slave && o.Partition == n.Partition && o.State != topology.Active {
			return // it would begin with fewer copies than it can have
		}
	}
	g.Switch = s.Durable.Version + 1
	s.SwitchSince = s.Now
	w.set(n.Key(), ReasonPartitionSwitching, func(n *Node) { n.State = topology.Ready })
}

// filled reports whether the node says that it has everything that the present
// masters had, and is sent what they write.
func (w *work) filled(n Node) bool {
	o := w.s.seen(n.Key())
	return o != nil && o.Report.Alive && o.Report.Instance == n.Instance && o.Report.Filled >= w.s.Durable.Growth.Since
}

// switchGrowth makes the node a master once all others let its writes wait.
func (w *work) switchGrowth(n Node) {
	s := &w.s
	g := &s.Durable.Growth
	if s.SwitchSince == 0 {
		s.SwitchSince = max(s.Now, 1) // of a former controller
	}
	if s.Saved.Version < g.Switch {
		return // nobody has heard of it
	}
	waiting := ""
	for p := range s.Durable.Partitions {
		if m := w.master(p); m == nil || m.State != topology.Active {
			w.takeBackSwitch("partition %d has no master", p)
			return
		} else if m.Extended && !w.yielded(*m) {
			waiting = m.Key()
		}
	}
	switch {
	case !w.filled(n):
		w.takeBackSwitch("%s says that it lacks keys", n.Key())
	case waiting == "" && w.confirmed(n):
		w.establish(n)
	case s.Now >= s.SwitchSince+switchLimit:
		w.takeBackSwitch("%s has not said within %d ms that it has sent everything on", cmp.Or(waiting, n.Key()), switchLimit)
	}
}

// yielded reports whether a master says that it lets the writes of the new
// partition's keys wait and has sent everything on.
func (w *work) yielded(m Node) bool {
	g := w.s.Durable.Growth
	o := w.s.seen(m.Key())
	return o != nil && o.Report.yielded(m, g)
}

func (r AgentReport) yielded(m Node, g Growth) bool {
	return r.Alive && r.Instance == m.Instance && r.MapVersion >= g.Switch && r.Yielded == g.Epoch && g.Epoch > 0
}

// suspendGrowth lets the masters write again while no roles are to change.
func (w *work) suspendGrowth(r Refusal) {
	if w.s.Durable.Growth.Switch != 0 {
		w.takeBackSwitch("%s", r.Message)
	}
}

// takeBackSwitch lets the masters write again.
func (w *work) takeBackSwitch(format string, args ...any) {
	s := &w.s
	g := &s.Durable.Growth
	g.Switch = 0
	g.Failures++
	s.SwitchAfter, s.SwitchSince = s.Now+switchPause, 0
	w.set(g.Node, ReasonSwitchTakenBack, func(n *Node) { n.State = topology.Prepare })
	w.event(true, ReasonSwitchTakenBack, "the switch to partition %d is taken back and tried again: "+format, append([]any{len(s.Durable.Partitions)}, args...)...)
}

// establish switches to the new partition.
func (w *work) establish(n Node) {
	s := &w.s
	d := &s.Durable
	p := len(d.Partitions)
	epoch := d.Growth.Epoch
	d.Partitions = append(d.Partitions, Partition{Epoch: epoch}) // that it was filled in
	d.Growth = Growth{}
	s.SwitchSince, s.SwitchAfter = 0, 0
	for _, o := range d.Nodes {
		if o.Partition == p {
			s.Prior = append(s.Prior, o.Key())
		}
	}
	w.makeActiveMaster(n.Key(), p, max(n.Balance, 1), ReasonPartitionAdded)
	w.leaveOrphans(p)
	w.event(false, ReasonPartitionAdded, "partition %d is in force, with %s as its master in epoch %d", p, n.Key(), d.epoch(p))
}

// stopFilling makes the node a proxy again.
func (w *work) stopFilling(why string) {
	d := &w.s.Durable
	p := len(d.Partitions)
	key := d.Growth.Node
	w.releaseSlaves(p, ReasonGrowthStopped)
	w.set(key, ReasonGrowthStopped, func(n *Node) { clearDuty(n); n.State = topology.Active })
	w.endGrowth(fmt.Sprintf("%s is not filled with partition %d any more: %s", key, p, why))
}

func (w *work) endGrowth(message string) {
	s := &w.s
	s.Durable.Growth = Growth{Epoch: s.Durable.Growth.Epoch}
	s.SwitchSince, s.SwitchAfter = 0, s.Now+switchPause
	w.dirty = true
	w.event(true, ReasonGrowthStopped, "%s", message)
}

// mastersChanged notes that an established partition has another master, or the
// same in another epoch. What the new partition has been sent by the former one
// may not be all that it wrote.
func (w *work) mastersChanged() {
	s := &w.s
	g := &s.Durable.Growth
	if g.Node == "" {
		return
	}
	w.dirty = true
	g.Since = s.Durable.Version + 1
	if n := s.Durable.node(g.Node); n != nil && n.State == topology.Ready {
		g.Switch = 0
		s.SwitchAfter, s.SwitchSince = s.Now+switchPause, 0
		w.set(g.Node, ReasonSwitchTakenBack, func(n *Node) { n.State = topology.Prepare })
	}
}

// GrowthStatus is how far the adding of a partition is.
type GrowthStatus struct {
	Partition int
	Node      string
	Stage     string // filling, filled or switching
	Records   uint64 // that the node has got
}

// GrowthOf returns how far the adding of a partition is; false when none is added.
func GrowthOf(s State) (GrowthStatus, bool) {
	g := s.Saved.Growth
	n := s.Saved.node(g.Node)
	if g.Node == "" || n == nil {
		return GrowthStatus{}, false
	}
	st := GrowthStatus{Partition: len(s.Saved.Partitions), Node: g.Node, Stage: "filling"}
	if o := s.seen(g.Node); o != nil {
		st.Records = o.Report.FillRecords
		if o.Report.Instance == n.Instance && o.Report.Filled >= g.Since {
			st.Stage = "filled"
		}
	}
	if n.State == topology.Ready {
		st.Stage = "switching"
	}
	return st, true
}

// message tells people about it. How many records it is changes all the time and is
// told to who asks.
func (g GrowthStatus) message() string {
	switch g.Stage {
	case "switching":
		return fmt.Sprintf("partition %d is added: %s has its keys, and their writes wait until every master has sent on what it wrote", g.Partition, g.Node)
	case "filled":
		return fmt.Sprintf("partition %d is added: %s has its keys", g.Partition, g.Node)
	}
	return fmt.Sprintf("partition %d is added: %s collects its keys", g.Partition, g.Node)
}
