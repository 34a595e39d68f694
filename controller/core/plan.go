package core

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/flarekv/flare/proto/topology"
)

// Plan is what a spec would bring about from a state, in an ideal world: requests to
// the platform succeed at once, nodes that are up stay up, answer at once and catch up
// at once, nodes that are wanted come, and those that are down stay down.
//
// It is found by Step itself, so it says what would be decided and not what somebody
// thinks would be.
type Plan struct {
	Changes  []Change  // in order
	Refusals []Refusal // of the spec, or of what it asks for
	// Settled: nothing was left to do at last. Otherwise the end was not reached within
	// planSteps.
	Settled bool
	Status  Status // at last
}

// Change is one thing that would change.
type Change struct {
	Kind      ChangeKind
	Node      string // key; empty when it is about no node
	Partition int    // -1 when it is about none
	Option    string // name; ChangeOption only
	Old, New  string
	Reason    string // machine-readable
}

// ChangeKind tells what changes, and what Old and New of a Change are.
type ChangeKind string

// The kinds of changes.
const (
	ChangeNodes     ChangeKind = "nodes"     // the number of nodes
	ChangeJoin      ChangeKind = "join"      // a node comes into the map: its duty
	ChangeLeave     ChangeKind = "leave"     // a node leaves it
	ChangeDuty      ChangeKind = "duty"      // the duty of a node: role/state/partition/balance
	ChangeHandover  ChangeKind = "handover"  // of a partition: the keys of both masters
	ChangePartition ChangeKind = "partition" // none, preparing or serving
	ChangeOption    ChangeKind = "option"    // of the nodes; an empty value for none
)

// Bounds of a plan. Its time passes by steps that double while nothing changes, so
// that what only waits comes to pass, whatever it waits for.
const (
	planSteps = 20_000
	planTick  = int64(200)        // the first step, ms
	planDay   = int64(86_400_000) // nothing changes any more after so long
)

// MakePlan tells what spec would bring about. It does not change s.
func MakePlan(s State, spec Spec) Plan {
	w := &ideal{s: s.clone(), partitions: len(s.Durable.Partitions), invented: map[string]bool{}}
	w.calm()
	spec.Known = true
	spec.Generation = s.Spec.Generation
	if spec != s.Spec {
		spec.Generation++
	}
	if w.s.Started == 0 {
		w.feed(Tick{Now: max(w.s.Now, 1)})
	}
	w.feed(SpecChanged{Spec: spec})
	for tick, waited := planTick, int64(0); w.steps < planSteps; {
		seq, changes := w.s.Durable.Seq, len(w.plan.Changes)
		w.look(w.s.Now + tick)
		w.act()
		w.feed(Tick{Now: w.s.Now + tick})
		if w.s.Durable.Seq != seq || len(w.plan.Changes) != changes {
			tick, waited = planTick, 0
			continue
		}
		if waited += tick; waited >= planDay {
			w.plan.Settled = true
			break
		}
		tick *= 2
	}
	w.refusal(w.s.Blocked)
	w.plan.Status = StatusOf(w.s)
	return w.plan
}

// ideal is the world of a plan.
type ideal struct {
	s     State
	plan  Plan
	steps int
	id    uint64 // of the last command

	partitions int             // established ones that the plan has told of
	preparing  int             // the number of the one that it has told to be prepared; 0 for none
	invented   map[string]bool // nodes that the plan made up where nobody lists them
}

// calm ends what is under way, well.
func (w *ideal) calm() {
	s := &w.s
	s.Saved, s.Saving = s.Durable.clone(), Durable{}
	s.PersistRetry, s.PersistError, s.Replies = 0, "", nil
	s.Orders = nil // they are given again
	for _, c := range []*Channel{&s.Config, &s.Scale, &s.Labels, &s.Status, &s.TargetCheck} {
		c.InFlight, c.Retry, c.Error = false, 0, ""
	}
	if !s.Members.Known {
		s.Members = membersOf(s.Durable)
	}
	s.Members.List = slices.Clone(s.Members.List)
}

// membersOf guesses the list of members where none is known: nodes that are named as
// the pods of a StatefulSet are.
func membersOf(d Durable) Members {
	m := Members{Known: len(d.Nodes) > 0, Count: len(d.Nodes)}
	prefix := ""
	for _, n := range d.Nodes {
		p, ordinal, _, ok := ordinalOf(n.Key())
		if !ok || prefix != "" && p != prefix {
			return Members{}
		}
		prefix = p
		m.List = append(m.List, Member{Key: n.Key(), Ordinal: ordinal, Exists: n.up()})
	}
	for i := range m.List {
		if !slices.ContainsFunc(m.List, func(x Member) bool { return x.Ordinal == i }) {
			return Members{}
		}
	}
	return m
}

// ordinalOf splits a key such as flare-3.flare-nodes:12121 at its number.
func ordinalOf(key string) (before string, ordinal int, behind string, ok bool) {
	host, rest := key, ""
	if i := strings.IndexAny(key, ".:"); i >= 0 {
		host, rest = key[:i], key[i:]
	}
	i := strings.LastIndexByte(host, '-')
	n, err := strconv.Atoi(host[i+1:])
	if i < 0 || err != nil || n < 0 || strconv.Itoa(n) != host[i+1:] {
		return "", 0, "", false
	}
	return host[:i+1], n, rest, true
}

// feed takes a step and carries its effects out, until nothing is left to answer.
func (w *ideal) feed(in Input) {
	for queue := []Input{in}; len(queue) > 0 && w.steps < planSteps; queue = queue[1:] {
		w.steps++
		before := w.s
		var effects []Effect
		w.s, effects = Step(before, queue[0])
		w.tell(before, effects)
		for _, e := range effects {
			queue = append(queue, w.answer(e)...)
		}
	}
}

// answer returns what the platform says to an effect.
func (w *ideal) answer(e Effect) []Input {
	switch e := e.(type) {
	case Persist:
		return []Input{Persisted{Seq: e.Durable.Seq}}
	case WriteConfig:
		return []Input{Done{Request: RequestConfig, Seq: e.Seq}}
	case CheckTarget:
		return []Input{TargetChecked{Seq: e.Seq, Target: e.Target}}
	case LabelNodes:
		return []Input{Done{Request: RequestLabels, Seq: e.Seq}}
	case WriteStatus:
		return []Input{Done{Request: RequestStatus, Seq: e.Seq}}
	case OrderNode:
		return w.obey(e)
	case ScaleTo:
		in := []Input{Done{Request: RequestScale, Seq: e.Seq}}
		for _, m := range w.s.Members.List {
			if m.Ordinal < e.Nodes {
				continue
			}
			if n := w.s.Durable.node(m.Key); n != nil && n.up() {
				in = append(in, w.command(*n, VerbShutdown)) // its pod is told to end
			}
		}
		return append(in, MembersChanged{Members: w.scaled(e.Nodes)})
	}
	return nil
}

// obey returns what a node does that is told to, and what its agent says then.
func (w *ideal) obey(o OrderNode) []Input {
	n, seen := w.s.Durable.node(o.Key), w.s.seen(o.Key)
	if n == nil || seen == nil {
		return nil
	}
	r := seen.Report
	r.Now = w.s.Now
	if o.Kind == OrderPurge {
		r.Purge = OrderReport{ID: o.ID}
		return []Input{r}
	}
	r.Handover = OrderReport{ID: o.ID}
	to := w.s.Durable.node(o.Target)
	if to == nil {
		return []Input{r}
	}
	c := w.command(*n, VerbHandover)
	c.Target, c.TargetPort = to.Name, to.Port
	c.HasSession, c.Epoch, c.Session = true, w.s.Durable.epoch(n.Partition), to.Granted.Session
	c.Paused = math.MaxUint64 // it writes nothing afterwards
	return []Input{c, r}
}

// scaled returns the members when there are so many.
func (w *ideal) scaled(count int) Members {
	m := Members{Known: true, Count: count}
	var like Member
	for _, x := range w.s.Members.List {
		if x.Ordinal < count {
			m.List = append(m.List, x)
		}
		like = x
	}
	before, _, behind, ok := ordinalOf(like.Key)
	if !ok {
		before, behind = "new-", ":12121"
	}
	for i := range count {
		if !slices.ContainsFunc(m.List, func(x Member) bool { return x.Ordinal == i }) {
			m.List = append(m.List, Member{Key: before + strconv.Itoa(i) + behind, Ordinal: i, Zone: w.emptiest(m.List), Exists: true})
		}
	}
	return m
}

// emptiest returns the zone that has fewest nodes, members that are to come included.
func (w *ideal) emptiest(coming []Member) string {
	count := map[string]int{}
	var zones []string
	add := func(zone string) {
		if zone == "" {
			return
		}
		if count[zone]++; count[zone] == 1 {
			zones = append(zones, zone)
		}
	}
	for _, n := range w.s.Durable.Nodes {
		add(w.s.zone(n.Key()))
	}
	for _, m := range coming {
		if w.s.Durable.node(m.Key) == nil {
			add(m.Zone)
		}
	}
	slices.Sort(zones)
	best := ""
	for _, z := range zones {
		if best == "" || count[z] < count[best] {
			best = z
		}
	}
	return best
}

func (w *ideal) command(n Node, verb Verb) Command {
	w.id++
	return Command{ID: w.id, Verb: verb, Name: n.Name, Port: n.Port, Balance: -1, Partition: -1}
}

// look renews what is observed of the nodes that are up, as of a moment.
func (w *ideal) look(at int64) {
	for _, n := range slices.Clone(w.s.Durable.Nodes) {
		if !n.up() {
			continue
		}
		o := w.s.see(n.Key())
		o.PingOK, o.PingFails, o.Refused, o.PingAt = true, 0, 0, at
		if !n.Extended {
			continue
		}
		r := w.report(n, *o)
		if was := o.Report; !o.Agent || was.Instance != r.Instance || !was.Alive || !was.Serving ||
			was.Role != r.Role || was.State != r.State || was.Partition != r.Partition || was.DataPartition != r.DataPartition {
			w.feed(r)
			o = w.s.see(n.Key())
		}
		o.AgentAt, o.Report = at, r // what it says every second changes no decision
	}
}

// report is what the agent of a node says that does what the map tells.
func (w *ideal) report(n Node, o Seen) AgentReport {
	r := o.Report
	if r.Instance != n.Instance || r.Key == "" {
		r = AgentReport{Instance: n.Instance, DataPartition: n.Held, LSN: n.HeldLSN, History: n.History}
	}
	r.Now, r.Key, r.Zone, r.Alive, r.Serving = w.s.Now, n.Key(), w.s.zone(n.Key()), true, true
	r.MapVersion = w.s.SentVersion
	r.Role, r.State, r.Partition = n.Role, n.State, n.Partition
	r.LeaseToken, r.LeaseEpoch = 0, 0 // it needs none: nobody writes
	if n.Partition >= 0 && n.State == topology.Active {
		r.DataPartition = n.Partition
		r.LSN = w.position(n.Partition)
	}
	r.Filled, r.Yielded = 0, 0
	switch g := w.s.Durable.Growth; {
	case n.Key() == g.Node:
		r.Filled = r.MapVersion
	case n.Role == topology.Master && g.Switch != 0:
		r.Yielded = g.Epoch
	}
	r.ConfigGeneration, r.ConfigRejected, r.ConfigPending, r.ConfigMessage = w.s.ConfigWritten.Generation, false, false, ""
	return r
}

// position is where the nodes of a partition are that are in sync.
func (w *ideal) position(partition int) topology.LSN {
	p := topology.LSN{Epoch: w.s.Saved.epoch(partition), Index: 1}
	for _, n := range w.s.Durable.Nodes {
		if o := w.s.seen(n.Key()); o != nil && n.Instance != "" && o.Report.Instance == n.Instance && o.Report.DataPartition == partition {
			p.Index = max(p.Index, o.Report.LSN.Index)
		}
	}
	return p
}

// act lets the nodes do what they do by themselves: come, and catch up.
func (w *ideal) act() {
	w.invent()
	for _, m := range slices.Clone(w.s.Members.List) {
		if m.Exists && !m.Terminating && m.Ordinal < w.s.Members.Count && w.s.Durable.node(m.Key) == nil {
			w.join(m.Key)
		}
	}
	for _, n := range w.s.Saved.clone().Nodes {
		c := w.command(n, VerbState)
		m := activeMaster(w.s.Saved, n.Partition)
		if n.Partition == len(w.s.Saved.Partitions) {
			m = w.s.Saved.Growth.Node // its replicas follow it from the start
		}
		switch {
		case n.Role == topology.Master && n.State == topology.Prepare && n.Key() != m:
			c.State = topology.Ready
		case n.Role == topology.Slave && n.State == topology.Prepare && m != "":
			c.State = topology.Active
			if n.Extended && w.s.Saved.node(m).Extended {
				g := n.Floor
				if n.Granted.After(g) {
					g = n.Granted
				}
				c.HasSession, c.Epoch, c.Session = true, w.s.Saved.epoch(n.Partition), g.Session+1
			}
		default:
			continue
		}
		w.feed(c)
	}
}

// join lets a node register.
func (w *ideal) join(key string) {
	name, port, err := topology.SplitKey(key)
	if err != nil {
		return
	}
	n := Node{Name: name, Port: port}
	w.feed(w.command(n, VerbAdd))
	hello := w.command(n, VerbHello)
	hello.Hello = Hello{Instance: "planned", Partition: topology.NoPartition}
	w.feed(hello)
	w.feed(Pinged{Key: key, Outcome: PingOK})
}

// invent makes nodes up where nobody keeps a list of them: somebody has to start as
// many as are wanted.
func (w *ideal) invent() {
	have, want := len(w.s.Durable.Nodes), w.s.wantedNodes()
	if w.s.Members.Known || have >= want {
		return
	}
	w.change(Change{Kind: ChangeNodes, Partition: -1, Old: strconv.Itoa(have), New: strconv.Itoa(want), Reason: ReasonScaling})
	for i := 1; len(w.s.Durable.Nodes) < want && i <= want+len(w.invented); i++ {
		key := fmt.Sprintf("new-%d:12121", i)
		if w.invented[key] || w.s.Durable.node(key) != nil {
			continue
		}
		w.invented[key] = true
		zone := w.emptiest(nil)
		w.join(key)
		if o := w.s.seen(key); o != nil {
			o.Report.Zone = zone
		}
	}
}

func (w *ideal) change(c Change) { w.plan.Changes = append(w.plan.Changes, c) }

// refusal notes why something is not done, once.
func (w *ideal) refusal(r Refusal) {
	if r.Reason != "" && !slices.ContainsFunc(w.plan.Refusals, func(x Refusal) bool { return x.Reason == r.Reason }) {
		w.plan.Refusals = append(w.plan.Refusals, r)
	}
}

// tell notes what a step has changed.
func (w *ideal) tell(before State, effects []Effect) {
	if w.s.Refusal != before.Refusal {
		w.refusal(w.s.Refusal)
	}
	for _, e := range effects {
		switch e := e.(type) {
		case Decision:
			w.tellDecision(e, effects)
		case ScaleTo:
			w.change(Change{Kind: ChangeNodes, Partition: -1, Old: strconv.Itoa(before.Members.Count), New: strconv.Itoa(e.Nodes), Reason: ReasonScaling})
		case WriteConfig:
			w.plan.Changes = append(w.plan.Changes, optionChanges(before.ConfigWritten.Text, e.Text)...)
		}
	}
	d := w.s.Durable
	serving := func(p int, from string) {
		w.change(Change{Kind: ChangePartition, Partition: p, Old: from, New: "serving", Reason: ReasonPartitionsFormed})
	}
	for ; w.partitions < len(d.Partitions); w.partitions++ {
		from := "none"
		if w.preparing == w.partitions && w.partitions > 0 {
			from = "preparing"
		}
		serving(w.partitions, from)
	}
	for _, n := range d.Nodes {
		if n.Role == topology.Master && n.State == topology.Prepare && n.Partition != w.preparing {
			w.preparing = n.Partition
			w.change(Change{Kind: ChangePartition, Partition: n.Partition, Old: "none", New: "preparing", Reason: ReasonForming})
		}
	}
}

// tellDecision notes one decision. The two of a handover, which come in one step, are
// one change.
func (w *ideal) tellDecision(d Decision, all []Effect) {
	c := Change{Kind: ChangeDuty, Node: d.Node, Partition: dutyPartition(d.New), Old: d.Old, New: d.New, Reason: d.Reason}
	switch {
	case d.Reason == ReasonHandover:
		if !strings.HasPrefix(d.New, topology.Master.String()+"/") {
			return
		}
		c.Kind, c.Node, c.New = ChangeHandover, "", d.Node
		for _, e := range all {
			if other, ok := e.(Decision); ok && other.Reason == ReasonHandover && other.Node != d.Node && dutyPartition(other.Old) == c.Partition {
				c.Old = other.Node
			}
		}
	case d.Old == "-":
		c.Kind, c.Old = ChangeJoin, ""
	case d.New == "-":
		c.Kind, c.New, c.Partition = ChangeLeave, "", -1
	case c.Partition < 0:
		c.Partition = dutyPartition(d.Old)
	}
	w.change(c)
}

// dutyPartition reads the partition in a duty as Node.duty writes it; -1 for none.
func dutyPartition(duty string) int {
	for _, f := range strings.Split(duty, "/") {
		if digits, ok := strings.CutPrefix(f, "p"); ok {
			if p, err := strconv.Atoi(digits); err == nil {
				return p
			}
		}
	}
	return -1
}

// optionChanges compares two texts of options, line by line.
func optionChanges(before, after string) []Change {
	old, next := optionsIn(before), optionsIn(after)
	var changes []Change
	for _, o := range next {
		if was := valueOf(old, o.name); was != o.value {
			changes = append(changes, Change{Kind: ChangeOption, Partition: -1, Option: o.name, Old: was, New: o.value, Reason: ReasonApplying})
		}
	}
	for _, o := range old {
		if valueOf(next, o.name) == "" {
			changes = append(changes, Change{Kind: ChangeOption, Partition: -1, Option: o.name, Old: o.value, Reason: ReasonApplying})
		}
	}
	return changes
}

type option struct{ name, value string }

// optionsIn reads the lines name = value of an options file.
func optionsIn(text string) []option {
	var list []option
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if name = strings.TrimSpace(name); ok && name != "" && !strings.HasPrefix(name, "#") {
			list = append(list, option{name, strings.TrimSpace(value)})
		}
	}
	return list
}

func valueOf(list []option, name string) string {
	if i := slices.IndexFunc(list, func(o option) bool { return o.name == name }); i >= 0 {
		return list[i].value
	}
	return ""
}
