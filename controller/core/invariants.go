package core

import (
	"fmt"
	"slices"

	"github.com/flarekv/flare/proto/topology"
)

// Transition is one Step: what there was, what came, and what it led to.
type Transition struct {
	Before  State
	Input   Input
	After   State
	Effects []Effect
	// Owed: what came was only noted, and what it calls for is decided later (Advance).
	Owed bool
}

// Invariant is something that holds after every step, whatever happens outside.
type Invariant struct {
	Name      string
	Statement string
	Check     func(Transition) error
}

// ofDuties are those about the entries of nodes and partitions: a step that leaves
// these as they were, and they were sound, cannot break one.
var ofDuties = []Invariant{
	{"OneMaster", "A partition has at most one master that is not down.", oneMaster},
	{"EstablishedHasMasterEntry", "Every established partition has a master entry, dead or alive, so that its number is kept.", establishedHasMaster},
	{"PartitionsNeverShrink", "The number of established partitions never decreases.", partitionsNeverShrink},
	{"FormedAtOnce", "Without an operator, the first masters of all partitions appear in one map, and later ones one at a time.", formedAtOnce},
	{"LayoutValid", "The active partitions are exactly 0 to n-1, and at most one is being prepared, with number n.", layoutValid},
	{"SwitchedWhenYielded", "Without an operator, a partition is added only when the node that was filled with it has all keys and every master lets nobody write them.", switchedWhenYielded},
	{"EpochNeverFalls", "The epoch of a partition never decreases.", epochNeverFalls},
	{"EpochPerReign", "A node becomes active master, or becomes it again, only in a new epoch.", epochPerReign},
	{"PromotionFromInSync", "Without an operator, a partition that had a master gets its next one only from its replicas in state active, or its own dead master back.", promotionFromInSync},
	{"PreparedOnlyByGrant", "An extended replica becomes active only by a grant of its present master's epoch that is later than the last one taken back.", preparedOnlyByGrant},
	{"ThreadTypeConstant", "A node keeps its thread type for as long as it is in the map.", threadTypeConstant},
	{"CodesValid", "Roles and states are those that the protocol has numbers for.", codesValid},
	{"PartitionsInOrder", "At most one partition is being prepared, and it is the next one; nobody has a duty beyond it.", partitionsInOrder},
	{"ReplicaHasMaster", "A replica's partition has a master entry, dead or alive.", replicaHasMaster},
	{"RefusedChangesNothing", "A command that is refused changes no duty, but that whoever registers again proves that the former process has ended.", refusedChangesNothing},
	{"LeavingIsNotPromoted", "Without an operator, no node becomes master whose pod is being deleted.", leavingIsNotPromoted},
	{"PreparingIsPatient", "An extended node that is being filled is not taken for dead because it is slow.", preparingIsPatient},
	{"DutyFits", "A proxy has no partition and no balance; a master or replica has a partition.", dutyFits},
	{"SortedUnique", "Nodes are sorted by key without duplicates, and thread types are unique.", sortedUnique},
	{"FrozenRolesStay", "While no roles are to change (breaker open or half-open, paused), nobody becomes master or replica, but a dead master whose place nobody took, unless a master hands over or an operator orders it.", frozenRolesStay},
	{"FrozenOwes", "A dead master that is not replaced because no roles are to change, though a replica is in sync, keeps its entry, and the partition is owed a failover.", frozenOwes},
	{"GraceNeedsProof", "In the grace period no node is taken down for silence or failed pings.", graceNeedsProof},
	{"DataLossIsAccepted", "A node that was neither in sync nor the master becomes master of an established partition of extended nodes only by an operator who accepts the loss.", dataLossIsAccepted},
}

// ofSteps are those about everything else.
var ofSteps = []Invariant{
	{"GrowthHasNode", "The node that is said to be filled with a new partition is its preparing master.", growthHasNode},
	{"ShrinksWithoutDuties", "The workload never shrinks under a node with a duty.", shrinksWithoutDuties},
	{"LeavingMasterIsTold", "A master whose node shall go, and that a replica could take over from, has been told to hand over, or is going to be told again.", leavingMasterIsTold},
	{"HandoverToWhoStays", "A master is told to hand over only to a replica in sync that stays.", handoverToWhoStays},
	{"HandoverToInSync", "A handover moves the role of an active master, on its own demand, only to an active replica of its partition, in the next epoch.", handoverToInSync},
	{"ScaleSaysWhy", "A scale names the number of nodes and the generation of the spec that it was decided on.", scaleSaysWhy},
	{"ConfigOnChange", "The options file is published only when it differs from the one that was published.", configOnChange},
	{"VersionGrows", "The map version never decreases, and two different maps never share one.", versionGrows},
	{"SeqOrder", "What is saved is not newer than what is being saved, and that not newer than what is decided.", seqOrder},
	{"PersistBeforeBroadcast", "Every map handed out is the saved one.", persistBeforeBroadcast},
	{"PersistBeforeReply", "No reply is given before the state it was decided on is saved.", persistBeforeReply},
	{"OneReply", "Every command gets exactly one reply, at once, after the next save, or when the order that it gives ends.", oneReply},
	{"OnePersist", "At most one Persist is under way.", onePersist},
	{"FloorNeverFalls", "Which grants of the present epoch were taken back is never forgotten.", floorNeverFalls},
	{"OneLease", "No two processes can hold a valid lease for one partition.", oneLease},
	{"LeaseIsSaved", "A lease is granted only to the saved master of the partition, for its epoch.", leaseIsSaved},
	{"LeaseOutlivesNobody", "Without an operator, a master whose lease may still be in force is not replaced, unless its end is proven.", leaseOutlivesNobody},
	{"BreakerNeedsCalm", "The breaker closes only after it was half-open for its time, and never while too much is lost.", breakerNeedsCalm},
	{"ReplicationEdges", "Cluster replication goes from phase to phase along the edges of its diagram, and cuts over only when it was told to.", replicationEdges},
	{"CutOverLosesNothing", "Unless forced, the target takes the clients over only when no node executes writes of clients, and it has every record.", cutOverLosesNothing},
	{"ConfigIsSaved", "Nodes are told of a phase of cluster replication only when it is saved.", configIsSaved},
	{"LabelsAreSaved", "Labels show saved duties only.", labelsAreSaved},
	{"MachineRests", "After a step the machine is Done, or waits for a Persist that is under way, or has not begun.", machineRests},
	{"InputUnchanged", "A step does not change the state it was given.", nil}, // checked by Check itself
}

// Invariants lists them all.
func Invariants() []Invariant { return slices.Concat(ofDuties, ofSteps) }

// Check returns the first invariant that a step of s with in breaks, and the
// step's outcome. That the entries of s are sound is taken for granted.
func Check(s State, in Input) (State, []Effect, error) {
	before := s.clone()
	after, effects := Step(s, in)
	if !slices.Equal(before.Durable.Nodes, s.Durable.Nodes) || !slices.Equal(before.Durable.Partitions, s.Durable.Partitions) ||
		!slices.Equal(before.Seen, s.Seen) || !slices.Equal(before.Leases, s.Leases) || !slices.Equal(before.pending(), s.pending()) {
		return after, effects, fmt.Errorf("InputUnchanged: the state given to Step was changed by %s", Describe(in))
	}
	t := Transition{Before: s, Input: in, After: after, Effects: effects}
	if d, b := &after.Durable, &before.Durable; slices.Equal(d.Nodes, b.Nodes) && slices.Equal(d.Partitions, b.Partitions) {
		return after, effects, t.check(ofSteps)
	}
	return after, effects, t.Check()
}

// Check returns the first invariant that the step breaks.
func (t Transition) Check() error { return t.check(ofDuties, ofSteps) }

func (t Transition) check(lists ...[]Invariant) error {
	for _, list := range lists {
		for i := range list {
			inv := &list[i]
			if inv.Check == nil {
				continue
			}
			if err := inv.Check(t); err != nil {
				return fmt.Errorf("%s: %s\n  after %s: %w", inv.Name, inv.Statement, Describe(t.Input), err)
			}
		}
	}
	return nil
}

// pending lists what the pending replies wait for, in order.
func (s State) pending() []uint64 {
	list := make([]uint64, 0, 2*len(s.Replies))
	for _, p := range s.Replies {
		list = append(list, p.After, p.Reply.ID)
	}
	return list
}

// byOperator reports whether the input is an operator's change of a role or
// state, which may do what the controller by itself would not.
func byOperator(in Input) bool {
	c, ok := in.(Command)
	return ok && !c.HasSession && (c.Verb == VerbRole || c.Verb == VerbState || c.Verb == VerbForce || c.Verb == VerbImport)
}

func oneMaster(t Transition) error {
	seen := map[int]string{}
	for _, n := range t.After.Durable.Nodes {
		if n.Role != topology.Master || !n.up() {
			continue
		}
		if other := seen[n.Partition]; other != "" {
			return fmt.Errorf("partition %d: %s and %s", n.Partition, other, n.Key())
		}
		seen[n.Partition] = n.Key()
	}
	return nil
}

func establishedHasMaster(t Transition) error {
	for p := range t.After.Durable.Partitions {
		if !slices.ContainsFunc(t.After.Durable.Nodes, func(n Node) bool {
			return n.Role == topology.Master && n.Partition == p && (n.State == topology.Active || n.State == topology.Down)
		}) {
			return fmt.Errorf("partition %d", p)
		}
	}
	return nil
}

func partitionsNeverShrink(t Transition) error {
	if a, b := len(t.Before.Durable.Partitions), len(t.After.Durable.Partitions); b < a {
		return fmt.Errorf("from %d to %d", a, b)
	}
	return nil
}

func formedAtOnce(t Transition) error {
	a, b := len(t.Before.Durable.Partitions), len(t.After.Durable.Partitions)
	if a == b || byOperator(t.Input) || a == 0 && b == t.After.Spec.Partitions || a > 0 && b == a+1 {
		return nil
	}
	return fmt.Errorf("from %d to %d, wanted %d", a, b, t.After.Spec.Partitions)
}

func layoutValid(t Transition) error {
	view, err := topology.BuildView(t.After.Durable.Map().Nodes)
	if err != nil {
		return err
	}
	if a, b := len(view.Partitions), len(t.After.Durable.Partitions); a != b {
		return fmt.Errorf("the map shows %d, %d are established", a, b)
	}
	return nil
}

func switchedWhenYielded(t Transition) error {
	n := len(t.Before.Durable.Partitions)
	if n == 0 || len(t.After.Durable.Partitions) == n || byOperator(t.Input) {
		return nil
	}
	g := t.Before.Durable.Growth
	switch {
	case g.Node == "" || activeMaster(t.After.Durable, n) != g.Node:
		return fmt.Errorf("partition %d got master %q, %q was filled", n, activeMaster(t.After.Durable, n), g.Node)
	case g.Switch == 0 || t.After.Saved.Version < g.Switch:
		return fmt.Errorf("no master had been told to let nobody write the keys of partition %d", n)
	}
	if o, _ := t.After.SeenOf(g.Node); o.Report.Filled < g.Since {
		return fmt.Errorf("%s has the keys by map %d, want %d", g.Node, o.Report.Filled, g.Since)
	}
	for p := range n {
		m := t.After.Durable.node(activeMaster(t.After.Durable, p))
		if m == nil {
			return fmt.Errorf("partition %d has no master", p)
		}
		if o, _ := t.After.SeenOf(m.Key()); m.Extended && !o.Report.yielded(*m, g) {
			return fmt.Errorf("%s, master of partition %d, may still write keys of partition %d", m.Key(), p, n)
		}
	}
	return nil
}

func growthHasNode(t Transition) error {
	if t.After.Machine.Step == StepInit {
		return nil // nothing was decided yet
	}
	d := t.After.Durable
	g := d.Growth
	if g.Node == "" || !t.After.Spec.Known {
		return nil
	}
	n := d.node(g.Node)
	if n == nil || n.Role != topology.Master || n.Partition != len(d.Partitions) || n.State != topology.Prepare && n.State != topology.Ready {
		return fmt.Errorf("%s", g.Node)
	}
	if (n.State == topology.Ready) != (g.Switch > 0) {
		return fmt.Errorf("%s is %v, and the switch is of map %d", g.Node, n.State, g.Switch)
	}
	return nil
}

func shrinksWithoutDuties(t Transition) error {
	for _, e := range t.Effects {
		if x, ok := e.(ScaleTo); ok && x.Nodes < t.After.Members.Count {
			if key := t.After.dutyBeyond(x.Nodes); key != "" {
				return fmt.Errorf("to %d, while %s has one", x.Nodes, key)
			}
		}
	}
	return nil
}

func leavingMasterIsTold(t Transition) error {
	s := t.After
	if t.Owed || s.Machine.Step != StepDone || !s.Spec.Known || s.Refusal.Reason == ReasonSpecInvalid || s.frozen(&s.Durable).Reason != "" {
		return nil
	}
	w := &work{s: s}
	for _, n := range s.Durable.Nodes {
		if s.leaving(n) != "" && w.canOrder(n) && w.heir(n) != "" && !s.ordered(n.Key(), OrderHandover) {
			return fmt.Errorf("%s, master of partition %d: %s", n.Key(), n.Partition, s.leaving(n))
		}
	}
	return nil
}

func handoverToWhoStays(t Transition) error {
	for _, e := range t.Effects {
		o, ok := e.(OrderNode)
		if !ok || o.Kind != OrderHandover {
			continue
		}
		from, to := t.After.Saved.node(o.Key), t.After.Saved.node(o.Target)
		if from == nil || to == nil || from.Role != topology.Master || to.Role != topology.Slave || to.State != topology.Active ||
			from.Partition != to.Partition || t.After.leaving(*to) != "" {
			return fmt.Errorf("%s to %s", o.Key, o.Target)
		}
	}
	return nil
}

func epochNeverFalls(t Transition) error {
	for p, before := range t.Before.Durable.Partitions {
		if after := t.After.Durable.epoch(p); after < before.Epoch {
			return fmt.Errorf("partition %d: from %d to %d", p, before.Epoch, after)
		}
	}
	return nil
}

// activeMaster returns the key of a partition's active master.
func activeMaster(d Durable, p int) string {
	for _, n := range d.Nodes {
		if n.Role == topology.Master && n.State == topology.Active && n.Partition == p {
			return n.Key()
		}
	}
	return ""
}

func epochPerReign(t Transition) error {
	for p := range t.After.Durable.Partitions {
		before, after := activeMaster(t.Before.Durable, p), activeMaster(t.After.Durable, p)
		if after != "" && after != before && t.After.Durable.epoch(p) <= t.Before.Durable.epoch(p) {
			return fmt.Errorf("partition %d: %q took over from %q in epoch %d", p, after, before, t.After.Durable.epoch(p))
		}
	}
	return nil
}

func promotionFromInSync(t Transition) error {
	if byOperator(t.Input) {
		return nil
	}
	for p := range t.Before.Durable.Partitions {
		after := activeMaster(t.After.Durable, p)
		if after == "" || after == activeMaster(t.Before.Durable, p) {
			continue
		}
		n := t.Before.Durable.node(after)
		ok := n != nil && n.Partition == p &&
			(n.Role == topology.Slave && (n.State == topology.Active || toldInSync(t.Input, after)) || n.Role == topology.Master && n.State == topology.Down)
		if !ok {
			return fmt.Errorf("partition %d: %s became master", p, after)
		}
	}
	return nil
}

// toldInSync reports whether an input makes a replica one in sync, which can then take
// the place of a master whose death was noted before (Advance) and is judged now.
func toldInSync(in Input, key string) bool {
	c, ok := in.(Command)
	return ok && c.Verb == VerbState && c.State == topology.Active && nodeKey(c.Name, c.Port) == key
}

func handoverToInSync(t Transition) error {
	for _, e := range t.Effects {
		d, ok := e.(Decision)
		if !ok || d.Reason != ReasonHandover {
			continue
		}
		c, ok := t.Input.(Command)
		if !ok || c.Verb != VerbHandover {
			return fmt.Errorf("%s: %s -> %s", d.Node, d.Old, d.New)
		}
		from, to := t.Before.Durable.node(nodeKey(c.Name, c.Port)), t.Before.Durable.node(nodeKey(c.Target, c.TargetPort))
		switch {
		case from == nil || from.Role != topology.Master || from.State != topology.Active || c.Epoch != t.Before.Durable.epoch(from.Partition):
			return fmt.Errorf("%s handed over what it had not", nodeKey(c.Name, c.Port))
		case t.Before.lease(*from) != nil && t.Before.lease(*from).Token > c.Paused:
			return fmt.Errorf("%s handed over and has got a lease since it stopped to write", from.Key())
		case to == nil || to.Role != topology.Slave || to.State != topology.Active || to.Partition != from.Partition:
			return fmt.Errorf("%s got partition %d, and was no replica in sync", nodeKey(c.Target, c.TargetPort), from.Partition)
		case d.Node != from.Key() && d.Node != to.Key():
			return fmt.Errorf("%s: %s -> %s", d.Node, d.Old, d.New)
		case t.After.Durable.epoch(from.Partition) <= c.Epoch:
			return fmt.Errorf("partition %d stays in epoch %d", from.Partition, c.Epoch)
		}
	}
	return nil
}

func preparedOnlyByGrant(t Transition) error {
	for _, after := range t.After.Durable.Nodes {
		if after.Role != topology.Slave || after.State != topology.Active || !after.Extended {
			continue
		}
		before := t.Before.Durable.node(after.Key())
		if before != nil && before.Role == topology.Slave && before.State == topology.Active && before.Partition == after.Partition {
			continue
		}
		c, ok := t.Input.(Command)
		if ok && c.Verb == VerbState && !c.HasSession && !byExtendedMaster(t.Before.Durable, after.Partition) {
			continue // a plain master gives no grants
		}
		g := Grant{c.Epoch, c.Session}
		if !ok || !c.HasSession || c.Verb != VerbState || nodeKey(c.Name, c.Port) != after.Key() ||
			g.Epoch != t.Before.Durable.epoch(after.Partition) || before == nil || !g.After(before.Floor) {
			return fmt.Errorf("%s became an active replica of partition %d", after.Key(), after.Partition)
		}
	}
	return nil
}

func byExtendedMaster(d Durable, p int) bool {
	key := activeMaster(d, p)
	return key != "" && d.node(key).Extended
}

func floorNeverFalls(t Transition) error {
	fell := func(key string, home int, floor Grant) error {
		if after := t.After.Durable.floor(key, home); floor.After(after) && floor.Epoch >= t.After.Durable.epoch(home) {
			return fmt.Errorf("%s in partition %d: from %v to %v", key, home, floor, after)
		}
		return nil
	}
	for _, n := range t.Before.Durable.Nodes {
		if err := fell(n.Key(), n.Home, n.Floor); err != nil {
			return err
		}
	}
	for _, r := range t.Before.Durable.Removed {
		if err := fell(r.Key, r.Home, r.Floor); err != nil {
			return err
		}
	}
	return nil
}

// floor returns the last grant that was taken back from a node in a partition.
func (d *Durable) floor(key string, home int) Grant {
	if n := d.node(key); n != nil && n.Home == home {
		return n.Floor
	}
	if i := d.removed(key, home); i >= 0 {
		return d.Removed[i].Floor
	}
	return Grant{}
}

func threadTypeConstant(t Transition) error {
	for _, before := range t.Before.Durable.Nodes {
		if after := t.After.Durable.node(before.Key()); after != nil && after.ThreadType != before.ThreadType &&
			!slices.ContainsFunc(t.Effects, func(e Effect) bool {
				d, ok := e.(Decision)
				return ok && d.Reason == ReasonRemoved && d.Node == after.Key()
			}) {
			return fmt.Errorf("%s: from %d to %d", after.Key(), before.ThreadType, after.ThreadType)
		}
	}
	return nil
}

func codesValid(t Transition) error {
	for _, n := range t.After.Durable.Nodes {
		if n.Role > topology.Proxy || n.State > topology.Ready {
			return fmt.Errorf("%s is %s", n.Key(), n.duty())
		}
	}
	return nil
}

func partitionsInOrder(t Transition) error {
	d, preparing := t.After.Durable, ""
	for _, n := range d.Nodes {
		filling := n.State == topology.Prepare || n.State == topology.Ready
		switch {
		case n.Partition > len(d.Partitions):
			return fmt.Errorf("%s is %s of %d partitions", n.Key(), n.duty(), len(d.Partitions))
		case n.Role != topology.Master || !filling:
		case n.Partition != len(d.Partitions):
			return fmt.Errorf("%s is %s of %d partitions", n.Key(), n.duty(), len(d.Partitions))
		case preparing != "":
			return fmt.Errorf("%s and %s prepare partition %d", preparing, n.Key(), n.Partition)
		default:
			preparing = n.Key()
		}
	}
	return nil
}

func replicaHasMaster(t Transition) error {
	for _, n := range t.After.Durable.Nodes {
		if n.Role == topology.Slave && !slices.ContainsFunc(t.After.Durable.Nodes, func(m Node) bool {
			return m.Role == topology.Master && m.Partition == n.Partition
		}) {
			return fmt.Errorf("%s is %s", n.Key(), n.duty())
		}
	}
	return nil
}

func refusedChangesNothing(t Transition) error {
	c, ok := t.Input.(Command)
	if !ok || c.Verb == VerbAdd || slices.Equal(t.Before.Durable.Nodes, t.After.Durable.Nodes) {
		return nil
	}
	refused := func(r Reply) bool { return r.ID == c.ID && r.Err != "" }
	if !slices.ContainsFunc(t.Effects, func(e Effect) bool { r, ok := e.(Reply); return ok && refused(r) }) &&
		!slices.ContainsFunc(t.After.Replies, func(p PendingReply) bool { return refused(p.Reply) }) {
		return nil
	}
	// What else has become due with the step is not the command's doing.
	if still, _ := Step(t.Before, nil); slices.Equal(still.Durable.Nodes, t.After.Durable.Nodes) {
		return nil
	}
	return fmt.Errorf("%s", describeCommand(c))
}

func leavingIsNotPromoted(t Transition) error {
	if byOperator(t.Input) {
		return nil
	}
	for p := range t.After.Durable.Partitions {
		after := activeMaster(t.After.Durable, p)
		if after == "" || after == activeMaster(t.Before.Durable, p) {
			continue
		}
		if m, ok := t.After.member(after); ok && m.Terminating {
			return fmt.Errorf("%s became master of partition %d", after, p)
		}
	}
	return nil
}

// wentDown lists the nodes that a step took down, as they are after it.
func wentDown(t Transition) []Node {
	var list []Node
	for _, after := range t.After.Durable.Nodes {
		if before := t.Before.Durable.node(after.Key()); !after.up() && before != nil && before.up() {
			list = append(list, after)
		}
	}
	return list
}

func preparingIsPatient(t Transition) error {
	for _, n := range wentDown(t) {
		before := t.Before.Durable.node(n.Key())
		if c, ok := t.Input.(Command); !before.Extended || before.State != topology.Prepare || ok && (c.Verb == VerbState || byOperator(c)) {
			continue // or it was told to be in sync, or to have another duty, in this moment
		}
		o, _ := t.After.SeenOf(n.Key())
		if n.DownReason == ReasonPingFailed || n.DownReason == ReasonSilent && o.Refused < failsDead && o.PingFails < failsDeadSlow {
			return fmt.Errorf("%s is down (%s) after %d pings that failed, %d of them refused", n.Key(), n.DownReason, o.PingFails, o.Refused)
		}
	}
	return nil
}

func scaleSaysWhy(t Transition) error {
	for _, e := range t.Effects {
		if x, ok := e.(ScaleTo); ok && (x.From != t.After.Members.Count || x.Generation != t.After.Spec.Generation) {
			return fmt.Errorf("from %d nodes by generation %d, there are %d by %d", x.From, x.Generation, t.After.Members.Count, t.After.Spec.Generation)
		}
	}
	return nil
}

func configOnChange(t Transition) error {
	for _, e := range t.Effects {
		if c, ok := e.(WriteConfig); ok && (ConfigKey{c.Generation, c.Text}) == t.Before.ConfigWritten {
			return fmt.Errorf("generation %d", c.Generation)
		}
	}
	return nil
}

func dutyFits(t Transition) error {
	for _, n := range t.After.Durable.Nodes {
		if (n.Role == topology.Proxy) != (n.Partition < 0) || n.Role == topology.Proxy && n.Balance != 0 || n.Balance < 0 {
			return fmt.Errorf("%s is %s", n.Key(), n.duty())
		}
		if n.Role == topology.Slave && n.State == topology.Down {
			return fmt.Errorf("%s is a replica and down", n.Key())
		}
	}
	return nil
}

func sortedUnique(t Transition) error {
	threads := map[int]bool{}
	d := t.After.Durable
	for i, n := range d.Nodes {
		if i > 0 && d.Nodes[i-1].Key() >= n.Key() {
			return fmt.Errorf("%s before %s", d.Nodes[i-1].Key(), n.Key())
		}
		if threads[n.ThreadType] || n.ThreadType < topology.FirstThreadType || n.ThreadType >= d.NextThread {
			return fmt.Errorf("%s: thread type %d", n.Key(), n.ThreadType)
		}
		threads[n.ThreadType] = true
	}
	return nil
}

func versionGrows(t Transition) error {
	d := &t.After.Durable
	if t.Before.Durable.Version == d.Version && slices.Equal(t.Before.Durable.Nodes, d.Nodes) && slices.Equal(t.Before.Durable.Partitions, d.Partitions) &&
		t.Before.Durable.Growth == d.Growth {
		return nil // it is the same map
	}
	a, b := t.Before.Durable.Map(), d.Map()
	if b.Version < a.Version {
		return fmt.Errorf("from %d to %d", a.Version, b.Version)
	}
	if a.Version == b.Version && !slices.Equal(a.Nodes, b.Nodes) {
		return fmt.Errorf("two maps of version %d", a.Version)
	}
	return nil
}

func seqOrder(t Transition) error {
	s := t.After
	if s.Saved.Seq > s.Durable.Seq || s.Saving.Seq > s.Durable.Seq || s.Saving.Seq != 0 && s.Saving.Seq <= s.Saved.Seq {
		return fmt.Errorf("saved %d, saving %d, decided %d", s.Saved.Seq, s.Saving.Seq, s.Durable.Seq)
	}
	return nil
}

func persistBeforeBroadcast(t Transition) error {
	for _, e := range t.Effects {
		if b, ok := e.(Broadcast); ok && !b.Update.Map.Equal(t.After.Saved.Map()) {
			return fmt.Errorf("version %d handed out, %d saved", b.Update.Map.Version, t.After.Saved.Version)
		}
	}
	if t.After.SentVersion > t.After.Saved.Version {
		return fmt.Errorf("version %d handed out, %d saved", t.After.SentVersion, t.After.Saved.Version)
	}
	return nil
}

func persistBeforeReply(t Transition) error {
	saved := t.After.Saved.Seq
	for _, p := range t.After.Replies {
		if p.After <= saved {
			return fmt.Errorf("reply %d waits though %d is saved", p.Reply.ID, saved)
		}
	}
	for _, e := range t.Effects {
		r, ok := e.(Reply)
		if !ok {
			continue
		}
		if i := slices.IndexFunc(t.Before.Replies, func(p PendingReply) bool { return p.Reply.ID == r.ID }); i >= 0 {
			if t.Before.Replies[i].After > saved {
				return fmt.Errorf("reply %d given at %d, decided on %d", r.ID, saved, t.Before.Replies[i].After)
			}
		} else if t.Before.Durable.Seq > saved {
			return fmt.Errorf("reply %d given at %d, decided on %d", r.ID, saved, t.Before.Durable.Seq)
		}
	}
	return nil
}

func oneReply(t Transition) error {
	count := map[uint64]int{}
	for _, p := range t.Before.Replies {
		count[p.Reply.ID]++
	}
	for _, o := range t.Before.Orders {
		count[o.Command]++
	}
	if c, ok := t.Input.(Command); ok {
		count[c.ID]++
	}
	for _, p := range t.After.Replies {
		count[p.Reply.ID]--
	}
	for _, o := range t.After.Orders {
		count[o.Command]--
	}
	delete(count, 0) // orders of nobody's command
	for _, e := range t.Effects {
		if r, ok := e.(Reply); ok {
			count[r.ID]--
		}
	}
	for id, n := range count {
		if n != 0 {
			return fmt.Errorf("command %d: %d replies missing", id, n)
		}
	}
	return nil
}

func onePersist(t Transition) error {
	pending := 0
	if _, ok := t.Input.(Persisted); !ok && t.Before.Saving.Seq != 0 {
		pending++
	}
	for _, e := range t.Effects {
		if p, ok := e.(Persist); ok {
			pending++
			if p.Durable.Seq != t.After.Saving.Seq {
				return fmt.Errorf("seq %d is not the one being saved, %d", p.Durable.Seq, t.After.Saving.Seq)
			}
		}
	}
	if pending > 1 {
		return fmt.Errorf("%d are", pending)
	}
	return nil
}

func labelsAreSaved(t Transition) error {
	for _, e := range t.Effects {
		l, ok := e.(LabelNodes)
		if !ok {
			continue
		}
		for _, label := range l.Labels {
			n := t.After.Saved.node(label.Key)
			if n == nil || n.Role != label.Role || n.State != label.State || n.Partition != label.Partition {
				return fmt.Errorf("%s is labelled %v of partition %d", label.Key, label.Role, label.Partition)
			}
		}
	}
	return nil
}

func machineRests(t Transition) error {
	s := t.After
	switch step := s.Machine.Step; {
	case step == StepDone, step == StepInit && s.Started == 0, step == StepAssignRoles && s.Saving.Seq != 0:
		return nil
	default:
		return fmt.Errorf("it is in %s", step)
	}
}

func oneLease(t Transition) error {
	holder := map[int]Lease{}
	for _, l := range t.After.Leases {
		if other, ok := holder[l.Partition]; ok {
			return fmt.Errorf("partition %d: %s (%s) and %s (%s)", l.Partition, other.Key, other.Instance, l.Key, l.Instance)
		}
		holder[l.Partition] = l
	}
	return nil
}

func leaseIsSaved(t Transition) error {
	for _, e := range t.Effects {
		g, ok := e.(GrantLease)
		if !ok {
			continue
		}
		n := t.After.Saved.node(g.Key)
		if n == nil || n.Role != topology.Master || n.State != topology.Active || n.Partition != g.Partition ||
			n.Instance != g.Instance || t.After.Saved.epoch(g.Partition) != g.Epoch {
			return fmt.Errorf("%s (%s) got one for partition %d in epoch %d", g.Key, g.Instance, g.Partition, g.Epoch)
		}
	}
	return nil
}

func leaseOutlivesNobody(t Transition) error {
	if byOperator(t.Input) {
		return nil
	}
	for _, l := range t.Before.Leases {
		if l.Until <= t.After.Now || endProven(t.Input, l) {
			continue
		}
		before, after := activeMaster(t.Before.Durable, l.Partition), activeMaster(t.After.Durable, l.Partition)
		// Of two processes under one name the one that is registered counts: it gets no
		// lease before that of the other has ended.
		if before == l.Key && after != before && t.Before.Durable.node(l.Key).Instance == l.Instance {
			return fmt.Errorf("partition %d: %q took the place of %s (%s), which may write for %d ms more",
				l.Partition, after, l.Key, l.Instance, l.Until-t.After.Now)
		}
	}
	return nil
}

// endProven reports whether an input tells that the process of a lease has ended or
// given it up.
func endProven(in Input, l Lease) bool {
	switch in := in.(type) {
	case Command:
		return (in.Verb == VerbShutdown || in.Verb == VerbHandover) && nodeKey(in.Name, in.Port) == l.Key
	case AgentReport:
		switch {
		case in.Key != l.Key:
			return false
		case in.Instance == l.Instance:
			return !in.Alive || in.LeaseEpoch != l.Epoch && in.LeaseToken > l.Token
		}
		return in.Alive && in.AgentStarted != 0 && in.AgentStarted == l.Agent
	}
	return false
}

func frozenRolesStay(t Transition) error {
	if byOperator(t.Input) || t.Before.frozen(&t.Before.Durable).Reason == "" || t.After.frozen(&t.After.Durable).Reason == "" {
		return nil
	}
	if c, ok := t.Input.(Command); ok && c.Verb == VerbHandover {
		return nil
	}
	for _, n := range t.After.Durable.Nodes {
		if n.Role == topology.Proxy || !n.up() {
			continue
		}
		before := t.Before.Durable.node(n.Key())
		if before == nil || before.Role != n.Role || before.Partition != n.Partition {
			return fmt.Errorf("%s became %s", n.Key(), n.duty())
		}
	}
	return nil
}

func frozenOwes(t Transition) error {
	if byOperator(t.Input) || t.Before.frozen(&t.Before.Durable).Reason == "" || t.After.frozen(&t.After.Durable).Reason == "" {
		return nil
	}
	for p, part := range t.After.Durable.Partitions {
		was := activeMaster(t.Before.Durable, p)
		if was == "" || activeMaster(t.After.Durable, p) != "" {
			continue
		}
		if n := t.After.Durable.node(was); n == nil || n.Role != topology.Master || n.Partition != p {
			return fmt.Errorf("partition %d: %s lost its entry", p, was)
		}
		if !part.Owed && slices.ContainsFunc(t.After.Durable.Nodes, func(n Node) bool {
			return n.Role == topology.Slave && n.State == topology.Active && n.Partition == p
		}) {
			return fmt.Errorf("partition %d", p)
		}
	}
	return nil
}

func graceNeedsProof(t Transition) error {
	if t.After.GraceOver {
		return nil
	}
	for _, n := range t.After.Durable.Nodes {
		before := t.Before.Durable.node(n.Key())
		if before != nil && before.up() && !n.up() && (n.DownReason == ReasonPingFailed || n.DownReason == ReasonSilent) {
			return fmt.Errorf("%s is down: %s", n.Key(), n.DownReason)
		}
	}
	return nil
}

func breakerNeedsCalm(t Transition) error {
	before, after := t.Before.Durable.Safety.Breaker, t.After.Durable.Safety.Breaker
	if before.State == BreakerClosed || after.State != BreakerClosed {
		return nil
	}
	l := t.After.Losses
	switch {
	case before.State != BreakerHalfOpen:
		return fmt.Errorf("it was %s", before.State)
	case t.After.Now < before.Calm+before.Settle:
		return fmt.Errorf("after %d ms of %d", t.After.Now-before.Calm, before.Settle)
	case t.After.Durable.Safety.Policy.tooMuch(l.Lost, l.Total):
		return fmt.Errorf("%d of %d nodes are lost", l.Lost, l.Total)
	}
	return nil
}

func dataLossIsAccepted(t Transition) error {
	for p := range t.Before.Durable.Partitions {
		key := activeMaster(t.After.Durable, p)
		if key == "" || key == activeMaster(t.Before.Durable, p) {
			continue
		}
		n := t.Before.Durable.node(key)
		if n != nil && n.Partition == p && (n.Role == topology.Slave && (n.State == topology.Active || toldInSync(t.Input, key)) || n.Role == topology.Master) {
			continue
		}
		if !slices.ContainsFunc(t.Before.Durable.Nodes, func(n Node) bool {
			return n.Role == topology.Master && n.Partition == p && n.Instance != ""
		}) {
			continue // of plain nodes nobody knows what they have
		}
		if c, ok := t.Input.(Command); !ok || !c.AllowDataLoss {
			return fmt.Errorf("partition %d: %s became master", p, key)
		}
	}
	return nil
}
