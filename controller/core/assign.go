package core

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flarekv/flare/proto/topology"
)

// judgeSpec tells what of the spec is refused. What is refused is not acted on;
// the rest is.
func (w *work) judgeSpec() {
	s := &w.s
	if !s.Spec.Known {
		return
	}
	d := &s.Durable
	established := len(d.Partitions)
	was := s.Refusal
	s.Refusal = Refusal{}
	switch spec := s.Spec; {
	case spec.Partitions < 1 || spec.Replicas < 1:
		s.Refusal = Refusal{ReasonSpecInvalid, fmt.Sprintf("partitions %d, replicas %d: both must be at least 1", spec.Partitions, spec.Replicas)}
	case established == 0 && spec.Partitions*spec.Replicas > maxWanted:
		s.Refusal = Refusal{ReasonSpecInvalid, fmt.Sprintf("%d partitions of %d nodes: want at most %d nodes, whose map can be saved in one object of Kubernetes",
			spec.Partitions, spec.Replicas, maxWanted)}
	case established == 0:
		if err := spec.Meta.Validate(); err != nil {
			s.Refusal = Refusal{ReasonSpecInvalid, err.Error()}
		} else if d.Meta != spec.Meta {
			d.Meta = spec.Meta
			w.dirty = true
		}
	case spec.Partitions < established:
		s.Refusal = Refusal{ReasonPartitionReduction, fmt.Sprintf(
			"%d partitions are asked for, the cluster has %d: the keys of the others would be lost; make a second cluster and move the data by cluster replication", spec.Partitions, established)}
	case spec.Partitions >= d.Meta.PartitionSize:
		s.Refusal = Refusal{ReasonSpecInvalid, fmt.Sprintf(
			"%d partitions are asked for, keys can be mapped to at most %d (partitionSize - 1)", spec.Partitions, d.Meta.PartitionSize-1)}
	case spec.Meta != d.Meta:
		s.Refusal = Refusal{ReasonMetaChange, "the mapping of keys to partitions cannot be changed: keys would not be found again"}
	}
	if s.Refusal.Reason != "" && s.Refusal != was {
		w.event(true, s.Refusal.Reason, "%s", s.Refusal.Message)
	}
	w.obey(s.Spec.Failover)
	if d.Generation != s.Spec.Generation {
		d.Generation = s.Spec.Generation
		w.dirty = true
	}
}

// adopt takes nodes into the map that run, and whose agents say that they serve,
// but are not in it: the state was lost while they were running, so that they do
// not register again.
func (w *work) adopt() {
	s := &w.s
	if !s.Spec.Known {
		return
	}
	for i := range s.Seen {
		o := &s.Seen[i] // stays: what is taken into the map here has its record already
		if !o.Agent || !o.Report.Alive || !o.Report.Serving || o.Report.Instance == "" {
			continue
		}
		r := o.Report
		if n := s.Durable.node(o.Key); n != nil {
			// Somebody registered it after it had said hello: a stray, or late, node add.
			if n.up() && !n.Extended && o.AgentAt >= o.AddedAt+helloWait {
				w.set(o.Key, ReasonAdopted, func(n *Node) {
					n.Extended, n.Instance, n.Held, n.HeldLSN, n.History = true, r.Instance, r.DataPartition, r.LSN, r.History
				})
			}
			continue
		}
		if m, ok := s.member(o.Key); ok && (m.Terminating || !m.Exists) || s.Members.Known && !ok {
			continue
		}
		name, port, err := topology.SplitKey(o.Key)
		if err != nil {
			continue
		}
		w.insert(Node{
			Name: name, Port: port, Extended: true, Instance: r.Instance,
			Held: r.DataPartition, HeldLSN: r.LSN, History: r.History,
		}, ReasonAdopted)
		w.event(false, ReasonAdopted, "%s was found running with data of partition %d at %v, and taken into the map", o.Key, r.DataPartition, r.LSN)
	}
}

// candidate is a node that can be given a duty.
type candidate struct {
	key     string
	zone    string
	ordinal int // -1 when not known
	held    int // partition whose data it holds, -1 for none
	lsn     topology.LSN
	// claim is what the map it had says of it there: master, a replica being filled,
	// or neither.
	claim claim
	heard uint64 // version of that map
}

// claim ranks candidates for a partition's master when the state was lost. A
// node that acts as master comes before all others, whose positions may be from
// later reports; one that was being filled comes last, because it may lack what
// was acknowledged.
type claim int

const (
	claimFilling claim = iota - 1
	claimNone
	claimMaster
)

// free lists the nodes that can be given a duty, by ordinal and key.
func (w *work) free() []candidate {
	s := &w.s
	want := s.stayingNodes()
	var list []candidate
	for _, n := range s.Durable.Nodes {
		if !n.Extended || n.Role != topology.Proxy || n.State != topology.Active {
			continue
		}
		c := candidate{key: n.Key(), zone: s.zone(n.Key()), ordinal: -1}
		if m, ok := s.member(n.Key()); ok {
			if m.Terminating || m.Ordinal >= want {
				continue
			}
			c.ordinal = m.Ordinal
		}
		o := s.seen(n.Key())
		if o != nil && o.PingFails > 0 {
			continue // not now
		}
		c.held, c.lsn = w.holds(n)
		if o != nil && o.Report.Instance == n.Instance && o.Report.Partition == c.held && c.held >= 0 {
			switch r := o.Report; {
			case r.Role == topology.Master && r.State == topology.Active:
				c.claim, c.heard = claimMaster, r.MapVersion
			case r.Role == topology.Slave && r.State != topology.Active:
				c.claim = claimFilling
			}
		}
		list = append(list, c)
	}
	slices.SortFunc(list, byOrdinal)
	return list
}

func byOrdinal(a, b candidate) int {
	return cmp.Or(cmp.Compare(a.ordinal, b.ordinal), strings.Compare(a.key, b.key))
}

// assign gives duties to nodes that have none and takes surplus ones away.
func (w *work) assign() {
	s := &w.s
	s.Blocked = Refusal{}
	if !s.Spec.Known || s.Refusal.Reason == ReasonSpecInvalid {
		return
	}
	r := w.frozen()
	if len(s.Durable.Partitions) == 0 {
		if s.Blocked = r; r.Reason == "" {
			w.bootstrap()
		}
		return
	}
	for _, n := range s.Durable.Nodes {
		if o := s.seen(n.Key()); !n.up() && o != nil && o.PingOK && w.lostData(n) {
			s.Blocked = Refusal{ReasonMasterDataLost, fmt.Sprintf(
				"%s, master of partition %d, has come back without its data, while other nodes hold some; it takes no writes until an operator decides: SetNodeState ACTIVE, or node state %s %d active allow_data_loss, goes on without that data; ForceMaster, or node role <name> <port> master 1 %d allow_data_loss, with what that node holds", n.Key(), n.Partition, n.Name, n.Port, n.Partition)}
		}
	}
	if w.holdBack(r) {
		w.suspendGrowth(r)
		return
	}
	lost := s.Blocked
	w.shrink()
	w.fill()
	w.grow()
	w.evacuate()
	w.purgeOrphans()
	w.rebalance()
	if lost.Reason != "" {
		s.Blocked = lost // a partition that takes no writes matters more than what else waits
	}
}

// bootstrap gives every partition its first master at once: with fewer, keys
// would map to other partitions than later on.
func (w *work) bootstrap() {
	s := &w.s
	for _, n := range s.Durable.Nodes {
		if n.Role != topology.Proxy {
			s.Blocked = Refusal{ReasonManualMap, fmt.Sprintf("%s is %v by an operator's command: the map is left to the operator", n.Key(), n.Role)}
			return
		}
	}
	partitions, want := s.Spec.Partitions, s.wantedNodes()
	free := w.free()
	if len(free) == 0 {
		s.Blocked = Refusal{ReasonWaitingForNodes, fmt.Sprintf("none of %d nodes has registered", want)}
		return
	}
	if s.FirstHello == 0 {
		s.FirstHello = max(s.Now, 1)
	}
	recovery, most := false, 0
	zones, nozones := 0, 0
	for _, c := range free {
		if c.held >= 0 {
			recovery = true
			most = max(most, c.held+1)
		}
		if c.zone == "" {
			nozones++
		} else {
			zones++
		}
	}
	if most > partitions {
		s.Blocked = Refusal{ReasonPartitionReduction, fmt.Sprintf(
			"nodes hold data of %d partitions, %d are asked for: the keys of the others would be lost", most, partitions)}
		return
	}
	complete := len(free) >= want
	limit := int64(bootstrapWait)
	switch {
	case recovery:
		limit = recoveryWait
	case complete && (zones == 0 || nozones == 0):
		limit = 0
	case complete:
		limit = zoneWait
	}
	if recovery && complete {
		limit = 0
	}
	if s.Now < s.FirstHello+limit || len(free) < partitions {
		s.Blocked = Refusal{ReasonWaitingForNodes, fmt.Sprintf("%d of %d nodes have registered", len(free), want)}
		return
	}
	if recovery && !complete {
		for p := range partitions {
			if !slices.ContainsFunc(free, func(c candidate) bool { return c.held == p }) {
				s.Blocked = Refusal{ReasonWaitingForData, fmt.Sprintf(
					"no registered node holds data of partition %d; %d of %d nodes have registered", p, len(free), want)}
				return
			}
		}
	}
	plan := layout(partitions, s.Spec.Replicas, free)
	if plan == nil {
		s.Blocked = Refusal{ReasonWaitingForNodes, fmt.Sprintf("the %d registered nodes cannot make %d masters", len(free), partitions)}
		return
	}
	reason := ReasonBootstrap
	if recovery {
		reason = ReasonRecovery
	}
	for p, nodes := range plan {
		if recovery {
			// A new epoch must be later than any that the nodes have seen: the last one
			// that left data, and one that a master may have been given and not begun.
			for len(s.Durable.Partitions) <= p {
				s.Durable.Partitions = append(s.Durable.Partitions, Partition{})
			}
			for _, c := range free {
				if c.held == p {
					s.Durable.Partitions[p].Epoch = max(s.Durable.Partitions[p].Epoch, c.lsn.Epoch+1)
				}
			}
		}
		w.makeActiveMaster(nodes[0], p, 1, reason)
		for _, key := range nodes[1:] {
			w.set(key, reason, func(n *Node) { becomeSlave(n, p, 1) })
		}
	}
	w.event(false, ReasonPartitionsFormed, "%d partitions have masters (%s)", partitions, reason)
}

// layout gives nodes to partitions: for each partition its nodes, the master
// first. A node that holds data of a partition goes to it or nowhere, and the
// one that acts as its master, or else has the highest position, becomes master.
// Otherwise a partition's nodes
// are in different zones as far as the zones allow, and masters are spread
// evenly over zones. nil when there are not enough nodes for all masters.
func layout(partitions, replicas int, nodes []candidate) [][]string {
	plan := make([][]candidate, partitions)
	fixed := make([]bool, partitions)
	var rest []candidate
	for _, c := range nodes {
		if c.held >= 0 && c.held < partitions {
			plan[c.held] = append(plan[c.held], c)
			fixed[c.held] = true
		} else {
			rest = append(rest, c)
		}
	}
	if !slices.Contains(fixed, true) {
		deal(plan, replicas, rest)
	} else {
		for p := range plan {
			slices.SortStableFunc(plan[p], func(a, b candidate) int {
				return cmp.Or(cmp.Compare(b.claim, a.claim), cmp.Compare(b.heard, a.heard), b.lsn.Compare(a.lsn), byOrdinal(a, b))
			})
			plan[p] = plan[p][:min(len(plan[p]), replicas)]
		}
		for {
			// The partition that has least goes first.
			p, ok := least(plan, replicas)
			if !ok || len(rest) == 0 {
				break
			}
			i := pick(p, plan[p], rest)
			plan[p] = append(plan[p], rest[i])
			rest = slices.Delete(rest, i, i+1)
		}
	}
	masters := chooseMasters(plan, fixed)
	if masters == nil {
		return nil
	}
	keys := make([][]string, partitions)
	for p, nodes := range plan {
		keys[p] = append(keys[p], nodes[masters[p]].key)
		for i, c := range nodes {
			if i != masters[p] {
				keys[p] = append(keys[p], c.key)
			}
		}
	}
	return keys
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// least returns the partition with the fewest nodes that lacks one.
func least(plan [][]candidate, replicas int) (int, bool) {
	p, ok := 0, false
	for i := range plan {
		if len(plan[i]) < replicas && (!ok || len(plan[i]) < len(plan[p])) {
			p, ok = i, true
		}
	}
	return p, ok
}

// pick chooses the node that suits a partition best: one that holds its data,
// then one from a zone the partition is not in, then one that holds no data.
func pick(partition int, have, from []candidate) int {
	rank := func(i int) int { return fitness(partition, have, from[i]) }
	best := 0
	for i := range from {
		if c := cmp.Compare(rank(i), rank(best)); c < 0 || c == 0 && from[best].lsn.Less(from[i].lsn) && from[i].held == partition {
			best = i
		}
	}
	return best
}

// fitness tells how well a node suits a partition with those nodes; less is better.
func fitness(partition int, have []candidate, c candidate) int {
	r := 0
	if c.held != partition {
		r += 4
	}
	if sharesZone(have, c) {
		r += 2
	}
	if c.held >= 0 && c.held != partition {
		r++
	}
	return r
}

func sharesZone(have []candidate, c candidate) bool {
	return slices.ContainsFunc(have, func(h candidate) bool { return h.zone == c.zone })
}

// deal hands nodes out zone by zone, one partition after the other: a zone's
// nodes thus meet in one partition only when the zone has more nodes than there
// are partitions, where it cannot be helped. Of too many nodes it takes as
// equally many from each zone as there are.
func deal(plan [][]candidate, replicas int, nodes []candidate) {
	var zones [][]candidate
	for _, c := range nodes {
		i := slices.IndexFunc(zones, func(z []candidate) bool { return z[0].zone == c.zone })
		if i < 0 {
			zones = append(zones, nil)
			i = len(zones) - 1
		}
		zones[i] = append(zones[i], c)
	}
	take := make([]int, len(zones))
	for left := min(len(nodes), len(plan)*replicas); left > 0; {
		for i := range zones {
			if left > 0 && take[i] < len(zones[i]) {
				take[i]++
				left--
			}
		}
	}
	for i := range zones {
		zones[i] = zones[i][:take[i]]
	}
	slices.SortStableFunc(zones, func(a, b []candidate) int { return cmp.Compare(len(b), len(a)) })
	p := 0
	for _, z := range zones {
		for _, c := range z {
			plan[p] = append(plan[p], c)
			p = (p + 1) % len(plan)
		}
	}
}

// chooseMasters returns for each partition which of its nodes becomes master,
// such that no zone has two more of them than it must. A partition that holds
// data has its choice made: the first. nil when a partition has no nodes.
func chooseMasters(plan [][]candidate, fixed []bool) []int {
	masters := make([]int, len(plan))
	var zones []string
	for p, nodes := range plan {
		if len(nodes) == 0 {
			return nil
		}
		for _, c := range nodes {
			if !slices.Contains(zones, c.zone) {
				zones = append(zones, c.zone)
			}
		}
		masters[p] = -1
	}
	count := countMasters(plan, masters)
	for p, nodes := range plan {
		best := 0
		for i := range nodes {
			if !fixed[p] && count(nodes[i].zone) < count(nodes[best].zone) {
				best = i
			}
		}
		masters[p] = best
	}
	spread(plan, fixed, masters, zones)
	return masters
}

// countMasters returns how many masters a zone has; those that are not chosen yet
// are -1.
func countMasters(plan [][]candidate, masters []int) func(zone string) int {
	return func(zone string) int {
		n := 0
		for p, i := range masters {
			if i >= 0 && plan[p][i].zone == zone {
				n++
			}
		}
		return n
	}
}

// spread moves masters until no zone has two more than another that could have one
// of them. A chain of exchanges moves one mastership from a zone that has at least
// two more than another; each ends with the zones more even, so this ends.
func spread(plan [][]candidate, fixed []bool, masters []int, zones []string) {
	count := countMasters(plan, masters)
	for {
		improved := false
		for _, from := range zones {
			if improved = moveMaster(plan, fixed, masters, zones, from, count); improved {
				break
			}
		}
		if !improved {
			return
		}
	}
}

// moveMaster looks breadth first for the shortest chain of exchanges that starts
// in a zone and ends in one with at least two masters less, and makes it.
func moveMaster(plan [][]candidate, fixed []bool, masters []int, zones []string, from string, count func(string) int) bool {
	type hop struct {
		zone             string
		back             int // index of the hop before, -1 for none
		partition, index int // exchanged to get here
	}
	queue := []hop{{zone: from, back: -1}}
	limit := count(from) - 2
	for at := 0; at < len(queue); at++ {
		if at > 0 && count(queue[at].zone) <= limit {
			for h := queue[at]; h.back >= 0; h = queue[h.back] {
				masters[h.partition] = h.index
			}
			return true
		}
		for p, nodes := range plan {
			if fixed[p] || nodes[masters[p]].zone != queue[at].zone {
				continue
			}
			for i, c := range nodes {
				if !slices.ContainsFunc(queue, func(h hop) bool { return h.zone == c.zone }) {
					queue = append(queue, hop{c.zone, at, p, i})
				}
			}
		}
	}
	return false
}

// fill gives partitions that lack replicas nodes that have no duty.
func (w *work) fill() {
	s := &w.s
	d := &s.Durable
	free := w.free()
	if len(free) == 0 {
		return
	}
	plan := make([][]candidate, len(d.Partitions))
	if g := d.node(d.Growth.Node); g != nil && w.filled(*g) {
		plan = append(plan, nil) // the one that is added gets its replicas before it is in force
	}
	closed := make([]bool, len(plan))
	for p := range plan {
		m := w.master(p)
		closed[p] = m == nil || m.State != topology.Active && m.Key() != d.Growth.Node
		for _, i := range w.of(p) {
			if n := d.Nodes[i]; n.up() && !s.goes(n) {
				plan[p] = append(plan[p], candidate{key: n.Key(), zone: s.zone(n.Key())})
			}
		}
	}
	give := func(p, i int) {
		w.set(free[i].key, ReasonReplica, func(n *Node) { becomeSlave(n, p, 1) })
		plan[p] = append(plan[p], free[i])
		free = slices.Delete(free, i, i+1)
	}
	// Nodes that hold a partition's data go home first.
	for p := range plan {
		for !closed[p] && len(plan[p]) < s.Spec.Replicas {
			home := slices.DeleteFunc(slices.Clone(free), func(c candidate) bool { return c.held != p })
			if len(home) == 0 {
				break
			}
			key := home[pick(p, plan[p], home)].key
			give(p, slices.IndexFunc(free, func(c candidate) bool { return c.key == key }))
		}
	}
	// What a partition without a master left behind may be its last copy.
	free = slices.DeleteFunc(free, func(c candidate) bool { return c.held >= 0 && c.held < len(closed) && closed[c.held] })
	for p := range plan {
		if closed[p] {
			plan[p] = make([]candidate, s.Spec.Replicas) // lacks nothing that could be given
		}
	}
	for len(free) > 0 {
		p, i, ok := match(plan, s.Spec.Replicas, free)
		if !ok {
			return
		}
		if sharesZone(plan[p], free[i]) && w.mayWait(free[i], plan[p]) {
			free = slices.Delete(free, i, i+1)
			continue
		}
		give(p, i)
	}
}

// mayWait reports whether a node that would share its zone with another of a
// partition can be left without a duty for a moment, because a pod that has not
// registered yet may suit the partition better: at a first start pods come up one
// after the other.
func (w *work) mayWait(c candidate, have []candidate) bool {
	s := &w.s
	if o := s.seen(c.key); o == nil || o.AddedAt == 0 || s.Now >= o.AddedAt+bootstrapWait {
		return false
	}
	return slices.ContainsFunc(s.Members.List, func(m Member) bool {
		if !m.Exists || m.Terminating || m.Ordinal >= s.wantedNodes() {
			return false
		}
		n := s.Durable.node(m.Key)
		return (n == nil || !n.up() || !n.Extended) && !sharesZone(have, candidate{zone: m.Zone})
	})
}

// match chooses which partition gets which node next: of the partitions that have
// fewest nodes and lack one, the pair that suits best.
func match(plan [][]candidate, replicas int, free []candidate) (partition, node int, ok bool) {
	fewest, ok := least(plan, replicas)
	if !ok {
		return 0, 0, false
	}
	partition, node = fewest, pick(fewest, plan[fewest], free)
	for p := range plan {
		if len(plan[p]) != len(plan[fewest]) {
			continue
		}
		if i := pick(p, plan[p], free); fitness(p, plan[p], free[i]) < fitness(partition, plan[partition], free[node]) {
			partition, node = p, i
		}
	}
	return partition, node, true
}
