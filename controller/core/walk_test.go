package core

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/flarekv/flare/proto/topology"
)

// TestRandomWalk lets a small world of nodes, agents, an operator and an
// unreliable backend act at random on a controller, with every invariant checked
// after every step. At last the world calms down, and the controller must bring
// it to what was asked for, without further changes.
func TestRandomWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(0, 12).Draw(t, "seconds of peace") {
			w.second(true)
		}
		t.Repeat(w.actions())
		w.calm()
	})
}

// TestGrowthWalk is the same for a cluster that runs and is told to have more
// partitions and other numbers of replicas.
func TestGrowthWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for len(w.nodes) < 6 {
			w.nodes = append(w.nodes, &worldNode{key: fmt.Sprintf("n%d:1", len(w.nodes)), reach: true, held: -1})
		}
		w.count = len(w.nodes)
		spec := w.state.Spec
		spec.Partitions, spec.Replicas = 1, rapid.IntRange(1, 2).Draw(t, "replicas")
		w.input(SpecChanged{Spec: spec})
		for range 14 {
			w.second(true)
		}
		actions := w.actions()
		delete(actions, "operator")
		delete(actions, "restart")
		delete(actions, "members") // which makes most pods vanish
		spec.Generation++
		spec.Partitions = rapid.IntRange(2, 3).Draw(t, "partitions")
		w.input(SpecChanged{Spec: spec})
		t.Repeat(actions)
		w.calm()
	})
}

// actions are what may happen.
func (w *world) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"tick":            w.tick,
		"start node":      w.start,
		"crash node":      w.crash,
		"cut node":        w.cut,
		"freeze node":     w.freeze,
		"late report":     w.lateReport,
		"new agent":       w.newAgent,
		"leave":           w.leave,
		"ping":            w.ping,
		"report":          w.report,
		"lose agent":      w.loseAgent,
		"catch up":        w.catchUp,
		"take back":       w.takeBack,
		"overtaken":       w.overtaken,
		"hand over":       w.handOver,
		"hand over again": w.handOverAgain,
		"late command":    w.late,
		"move":            w.move,
		"give up":         w.giveUp,
		"operator":        w.operate,
		"pause":           w.pause,
		"override":        w.override,
		"settle":          w.settle,
		"fail persist":    w.failPersist,
		"restart":         w.restart,
		"members":         w.changeMembers,
		"spec":            w.changeSpec,
		"late registry":   w.strayAdd,
		"good second":     func(*rapid.T) { w.second(false) },
		"configure node":  w.configure,
		"write":           w.write,
		"send":            w.send,
		"replicate":       w.replicate,
		"move over":       w.moveOver,
		"settle all":      w.settleAll,
		"kill master":     w.killMaster,
		"fill":            w.fillNode,
		"obey":            w.obey,
		"stale switch":    w.staleSwitch,
		"":                func(*rapid.T) {},
	}
}

// process is one run of flared.
type process struct {
	instance   string
	registered bool
	said       bool // hello
	held       int
	lsn        topology.LSN
	heard      MapUpdate // the map it has

	writes int    // partition that it takes writes of, -1 for none
	epoch  uint64 // in which it does
	opened int64  // since when; a lease from before is none
	until  int64  // when its lease ends
	paused bool   // it has asked to hand over, and does not know the outcome
	filled string // the masters whose keys it has, as the node of a new partition
}

// preparing returns the entry of the partition that is being added in the map a
// process has heard.
func (p *process) preparing() (topology.Node, bool) {
	for _, n := range p.heard.Map.Nodes {
		if n.Role == topology.Master && (n.State == topology.Prepare || n.State == topology.Ready) {
			return n, true
		}
	}
	return topology.Node{}, false
}

// masters names the masters of the map that a process has heard, with their epochs.
func (p *process) masters() (names string, count int) {
	for _, n := range p.heard.Map.Nodes {
		if n.Role == topology.Master && (n.State == topology.Active || n.State == topology.Down) {
			names += fmt.Sprintf("%s/%v/%d ", n.Key(), n.State, n.Epoch)
			count++
		}
	}
	return names, count
}

// yielded returns the epoch of the new partition whose keys a master lets nobody
// write.
func (p *process) yielded() uint64 {
	if n, ok := p.preparing(); ok && n.State == topology.Ready && (p.writes >= 0 || p.paused) {
		return n.Epoch
	}
	return 0
}

// mayWrite reports whether it takes writes of a partition now.
func (p *process) mayWrite(partition int, now int64) bool {
	return p != nil && p.writes == partition && now < p.until
}

// mayWriteKeysOf reports whether it takes writes of keys that belong to a partition
// which its map does not have yet.
func (p *process) mayWriteKeysOf(partition int, now int64) bool {
	if p == nil || p.writes < 0 || now >= p.until || p.yielded() != 0 {
		return false
	}
	_, count := p.masters()
	return count <= partition
}

type worldNode struct {
	key     string
	running *process
	reach   bool // the controller reaches it
	agent   bool
	started int64 // of the agent
	frozen  bool  // the process is there and does nothing
	held    int
	lsn     topology.LSN
	granted Grant // the last one that its master gave it
	ordered OrderNode
	handed  OrderReport
	purged  OrderReport

	last AgentReport

	relayed relayed
}

type world struct {
	t         *rapid.T
	state     State
	now       int64
	seq       int
	nodes     []*worldNode
	count     int      // that the workload is scaled to
	pending   []Effect // requests under way
	sent      MapUpdate
	replies   map[uint64]func(Reply)
	nextID    uint64
	lateCmd   []Command
	lateRep   []AgentReport
	session   uint64
	persisted Durable          // content of the Persist that ended last
	plain     bool             // no operator has interfered
	lost      bool             // the durable state was lost at least once
	moved     int              // handovers that the controller carried out
	published string           // options for the nodes
	cutOvers  int              // that were not forced
	refused   map[Command]bool // handovers that it refused, without their IDs
}

func newWorld(t *rapid.T) *world {
	w := &world{t: t, now: 1_000_000, state: New(Durable{}), replies: map[uint64]func(Reply){}, plain: true, refused: map[Command]bool{}}
	for i := range rapid.IntRange(2, 5).Draw(t, "nodes") {
		w.nodes = append(w.nodes, &worldNode{key: fmt.Sprintf("n%d:1", i), reach: true, held: -1})
	}
	w.count = len(w.nodes)
	w.input(Tick{Now: w.now})
	w.input(SpecChanged{Spec: Spec{Generation: 1, Partitions: rapid.IntRange(1, 2).Draw(t, "partitions"),
		Replicas: rapid.IntRange(1, 3).Draw(t, "replicas"), Meta: topology.DefaultMeta(), Config: "x", Failover: drawPolicy(t),
		OrphanPurge: OrphanPurge{Enabled: true, Delay: 2_000}}})
	return w
}

func drawPolicy(t *rapid.T) FailoverPolicy {
	return FailoverPolicy{
		MinUp:    rapid.SampledFrom([]int{0, Million / 2, Million * 3 / 4, Million}).Draw(t, "min up"),
		HoldZone: rapid.Bool().Draw(t, "hold zone"),
		Grace:    rapid.SampledFrom([]int64{0, 10_000, 120_000}).Draw(t, "grace"),
		Paused:   rapid.IntRange(0, 5).Draw(t, "paused") == 0,
	}
}

// pause lets an operator pause the cluster, or end that.
func (w *world) pause(t *rapid.T) {
	w.do(Command{Verb: rapid.SampledFrom([]Verb{VerbPause, VerbResume}).Draw(t, "verb"), Note: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "note")}, nil)
}

// move lets an operator have a master told to hand over, perhaps to a certain node.
func (w *world) move(t *rapid.T) {
	c := w.command(w.pick(t).key, VerbMove)
	if rapid.Bool().Draw(t, "named") {
		to := w.command(w.pick(t).key, VerbMove)
		c.Target, c.TargetPort = to.Name, to.Port
	}
	w.do(c, nil)
}

// override lets an operator allow what the breaker does not.
func (w *world) override(t *rapid.T) {
	w.do(Command{Verb: VerbOverride, Seconds: rapid.SampledFrom([]int{-1, 0, 1, 60}).Draw(t, "seconds")}, nil)
}

// input takes one step; effects that have results stay pending until settled.
func (w *world) input(in Input) {
	next, effects, err := Check(w.state, in)
	if err != nil {
		w.t.Fatal(err)
	}
	if p, ok := in.(Persisted); ok && p.Err == "" && !reflect.DeepEqual(next.Saved, w.persisted) {
		w.t.Fatalf("saved is\n%+v\nwhat was persisted\n%+v", next.Saved, w.persisted)
	}
	w.keepsLastCopies(next)
	w.handsOver(next)
	w.state = next
	for _, e := range effects {
		switch e := e.(type) {
		case Reply:
			if f := w.replies[e.ID]; f != nil {
				delete(w.replies, e.ID)
				f(e)
			}
		case Broadcast:
			if e.Update.Map.Version < w.sent.Map.Version && !w.lost {
				w.t.Fatalf("map %d after %d", e.Update.Map.Version, w.sent.Map.Version)
			}
			w.sent = e.Update
			w.heed()
		case Decision:
			if e.Reason == ReasonHandover {
				w.moved++
			}
		case OrderNode:
			if n := w.node(e.Key); n != nil {
				n.ordered = e
			}
		case GrantLease:
			w.take(e)
		case Persist, WriteConfig, ScaleTo, LabelNodes, WriteStatus, CheckTarget:
			w.pending = append(w.pending, e)
		}
	}
}

// keepsLastCopies checks that no node is filled with a partition's data while it
// holds that of another one whose master is gone.
func (w *world) keepsLastCopies(next State) {
	if !w.plain {
		return
	}
	for _, n := range next.Durable.Nodes {
		before := w.state.Durable.node(n.Key())
		if before == nil || before.Role != topology.Proxy || n.State != topology.Prepare {
			continue
		}
		held, _ := (&work{s: next}).holds(n)
		if held >= 0 && held != n.Partition && held < len(next.Durable.Partitions) && activeMaster(next.Durable, held) == "" {
			w.t.Fatalf("%s gets the data of partition %d, and may hold the last of partition %d\n%s", n.Key(), n.Partition, held, w.show())
		}
	}
}

// take gives a lease to the process it is for. Nobody else may have one that is valid
// for the same partition.
func (w *world) take(g GrantLease) {
	n := w.node(g.Key)
	token := int64(g.Token / 1e6)
	if p := n.running; p == nil || p.instance != g.Instance || p.writes != g.Partition || p.epoch != g.Epoch || token < p.opened {
		return
	}
	n.running.until = max(n.running.until, token+g.TTL)
	for _, o := range w.nodes {
		if o != n && o.running.mayWrite(g.Partition, w.now) && n.running.mayWrite(g.Partition, w.now) && !w.lost {
			w.t.Fatalf("%s gets a lease of partition %d while that of %s lasts for %d ms", n.key, g.Partition, o.key, o.running.until-w.now)
		}
	}
}

// heed lets the nodes that hear the map do what it says: a master begins its
// epoch and writes.
func (w *world) heed() {
	var refused []Pushed
	for _, n := range w.sent.Map.Nodes {
		wn := w.node(n.Key())
		if wn == nil || wn.running == nil || !wn.reach || wn.frozen {
			continue
		}
		if have := wn.running.heard.Map.Version; have > w.sent.Map.Version {
			refused = append(refused, Pushed{Key: wn.key, Version: w.sent.Map.Version, Outcome: PingBad, NodeVersion: have})
			continue
		}
		wn.running.heard = w.sent
		if n.Role == topology.Master && n.State != topology.Active && n.State != topology.Down && n.Epoch > 0 && (wn.held != n.Partition || wn.lsn.Epoch != n.Epoch) {
			wn.held, wn.lsn, wn.running.filled = n.Partition, topology.LSN{Epoch: n.Epoch, Index: 1}, ""
		}
		if n.Role != topology.Master || n.State != topology.Active {
			wn.running.writes, wn.running.until = -1, 0
			continue
		}
		if wn.held != n.Partition {
			wn.held, wn.lsn = n.Partition, topology.LSN{} // by an operator's order
		}
		if p := wn.running; p.epoch != n.Epoch || p.writes != n.Partition && !p.paused {
			p.writes, p.epoch, p.opened, p.until, p.paused = n.Partition, n.Epoch, w.now+1, 0, false
			for _, o := range w.nodes {
				if o != wn && w.plain && !w.lost && o.running.mayWriteKeysOf(n.Partition, w.now) {
					w.t.Fatalf("%s begins partition %d, and %s may write its keys for %d ms more", wn.key, n.Partition, o.key, o.running.until-w.now)
				}
				if o != wn && o.running.mayWrite(n.Partition, w.now) && w.plain && !w.lost {
					w.t.Fatalf("%s takes the place of %s in partition %d, which may write for %d ms more", wn.key, o.key, n.Partition, o.running.until-w.now)
				}
			}
		}
		if n.Epoch < wn.lsn.Epoch {
			w.t.Fatalf("%s is to be master in epoch %d, and holds data of epoch %d", wn.key, n.Epoch, wn.lsn.Epoch)
		}
		wn.lsn = topology.LSN{Epoch: n.Epoch, Index: wn.lsn.Index + 1}
	}
	for _, p := range refused {
		w.input(p)
	}
}

func (w *world) node(key string) *worldNode {
	for _, n := range w.nodes {
		if n.key == key {
			return n
		}
	}
	return nil
}

func (w *world) do(c Command, then func(Reply)) {
	w.nextID++
	c.ID = w.nextID
	if then != nil {
		w.replies[c.ID] = then
	}
	w.input(c)
}

func (w *world) command(key string, verb Verb) Command {
	name, port, err := topology.SplitKey(key)
	if err != nil {
		w.t.Fatal(err)
	}
	return Command{Verb: verb, Name: name, Port: port, Partition: -1}
}

func (w *world) pick(t *rapid.T) *worldNode { return rapid.SampledFrom(w.nodes).Draw(t, "node") }

func (w *world) tick(t *rapid.T) {
	w.now += rapid.SampledFrom([]int64{200, 200, 1000, 4000, 11000}).Draw(t, "ms")
	w.input(Tick{Now: w.now})
}

func (w *world) start(t *rapid.T) { w.startNode(w.pick(t)) }

func (w *world) startNode(n *worldNode) {
	if n.running == nil {
		w.seq++
		n.running = &process{instance: "i" + strconv.Itoa(w.seq), held: n.held, lsn: n.lsn, writes: -1}
	}
	p := n.running
	if p.said || n.frozen {
		return
	}
	if p.registered {
		w.hello(n, p)
		return
	}
	w.do(w.command(n.key, VerbAdd), func(r Reply) {
		if r.Err == "" && n.running == p && !p.registered {
			p.registered = true
			w.hello(n, p)
		}
	})
}

func (w *world) hello(n *worldNode, p *process) {
	c := w.command(n.key, VerbHello)
	c.Hello = Hello{Instance: p.instance, Partition: n.held, LSN: n.lsn}
	w.do(c, func(r Reply) {
		switch {
		case n.running != p:
		case r.Err == "":
			p.said = true
		case r.Err == RefuseNotRegistered:
			p.registered = false
		default:
			w.t.Fatalf("hello of %s: %s", n.key, r.Err)
		}
	})
}

func (w *world) crash(t *rapid.T) {
	n := w.pick(t)
	n.running, n.frozen = nil, false
	if rapid.Bool().Draw(t, "disk lost") {
		n.held, n.lsn = -1, topology.LSN{}
	}
	if n.agent && rapid.Bool().Draw(t, "agent sees it") {
		w.reportOf(n)
	}
}

func (w *world) cut(t *rapid.T) { n := w.pick(t); n.reach = !n.reach }

// freeze stops a process, or lets it go on. Its agent repeats what it heard last.
func (w *world) freeze(t *rapid.T) {
	n := w.pick(t)
	n.frozen = n.running != nil && !n.frozen
}

// newAgent ends an agent; the next one has seen nothing yet.
func (w *world) newAgent(t *rapid.T) {
	n := w.pick(t)
	n.started++
	if !n.frozen {
		w.reportOf(n)
	}
}

// lateReport lets a report arrive long after it was made, or makes one.
func (w *world) lateReport(t *rapid.T) {
	if len(w.lateRep) == 0 || rapid.Bool().Draw(t, "make") {
		w.lateRep = append(w.lateRep, w.reportFor(w.pick(t)))
		return
	}
	r := w.lateRep[0]
	w.lateRep = w.lateRep[1:]
	if w.node(r.Key).started == r.AgentStarted {
		// A link keeps the order of its reports, and options change one after the other.
		r.Cluster = w.clusterOf(w.node(r.Key))
		w.input(r)
	}
}

func (w *world) leave(t *rapid.T) {
	n := w.pick(t)
	if n.running == nil || !n.running.registered || n.frozen {
		return
	}
	n.running.writes, n.running.until = -1, 0
	w.do(w.command(n.key, VerbShutdown), nil)
	if rapid.Bool().Draw(t, "ends") {
		n.running = nil
	}
}

func (w *world) ping(t *rapid.T) { w.pingNode(w.pick(t)) }

func (w *world) pingNode(n *worldNode) {
	out := PingOK
	switch {
	case !n.reach || n.frozen:
		out = PingTimeout
	case n.running == nil:
		out = PingRefused
	}
	w.input(Pinged{Key: n.key, Outcome: out})
}

func (w *world) report(t *rapid.T) { w.reportOf(w.pick(t)) }

func (w *world) reportOf(n *worldNode) {
	n.agent = true
	w.input(w.reportFor(n))
}

func (w *world) reportFor(n *worldNode) AgentReport {
	if n.frozen && n.last.Key != "" {
		return n.last
	}
	r := AgentReport{Key: n.key, Zone: string('x' + n.key[1]%2), Alive: n.running != nil, DataPartition: n.held, LSN: n.lsn, Partition: -1, Role: topology.Proxy, AgentStarted: n.started + 1}
	if o, ok := w.state.SeenOf(n.key); ok {
		r.Instance = o.Report.Instance
	}
	if p := n.running; p != nil {
		r.Instance, r.Serving = p.instance, p.said
		if e, ok := p.heard.Map.Find(n.key); ok && p.said {
			r.MapVersion, r.Role, r.State, r.Partition = p.heard.Map.Version, e.Role, e.State, e.Partition
		}
		r.LeaseToken = uint64(w.now) * 1e6
		if p.writes >= 0 {
			r.LeaseEpoch = p.epoch
		}
		r.Yielded = p.yielded()
		if x, ok := p.preparing(); ok && x.Key() == n.key {
			if now, _ := p.masters(); p.filled == now {
				r.Filled = p.heard.Map.Version
			}
		}
	}
	r.Handover, r.Purge = n.handed, n.purged
	r.Cluster = w.clusterOf(n)
	n.last = r
	return r
}

func (w *world) loseAgent(t *rapid.T) {
	n := w.pick(t)
	n.agent = false
	w.input(AgentLost{Key: n.key})
}

// catchUp lets a replica's master, as the last map has it, grant that it is in
// sync; the command may come late.
func (w *world) catchUp(t *rapid.T) {
	n := w.pick(t)
	c, ok := w.grant(n)
	if !ok {
		return
	}
	if rapid.Bool().Draw(t, "late") {
		w.lateCmd = append(w.lateCmd, c)
		return
	}
	w.do(c, nil)
}

func (w *world) grant(n *worldNode) (Command, bool) {
	e, ok := w.sent.Map.Find(n.key)
	if !ok || e.Role != topology.Slave || e.State != topology.Prepare || n.running == nil || n.frozen {
		return Command{}, false
	}
	for _, m := range w.sent.Map.Nodes {
		if m.Role == topology.Master && m.State != topology.Down && m.Partition == e.Partition {
			if mn := w.node(m.Key()); mn != nil {
				n.held, n.lsn = e.Partition, mn.lsn
			}
		}
	}
	w.session++
	c := w.command(n.key, VerbState)
	c.State, c.Partition, c.Epoch, c.Session, c.HasSession = topology.Active, e.Partition, e.Epoch, w.session, true
	n.granted = Grant{e.Epoch, w.session}
	return c, true
}

// handOver lets a node that takes itself for a master, by the last map, hand its
// role to another one. The request may come late, or twice, as after a lost answer.
func (w *world) handOver(t *rapid.T) {
	c, ok := w.handover(t)
	if !ok {
		return
	}
	if rapid.Bool().Draw(t, "late") {
		w.lateCmd = append(w.lateCmd, c)
	}
	if rapid.Bool().Draw(t, "now") {
		w.askHandover(c)
	}
}

// handOverAgain repeats a request after the replica was told to be in sync.
func (w *world) handOverAgain(t *rapid.T) {
	c, ok := w.handover(t)
	if !ok {
		return
	}
	w.askHandover(c)
	w.settleAll(nil)
	if g, ok := w.grant(w.node(nodeKey(c.Target, c.TargetPort))); ok {
		w.do(g, nil)
	}
	w.askHandover(c)
}

func (w *world) handover(t *rapid.T) (Command, bool) {
	from, to := w.pick(t), w.pick(t)
	e, ok := w.sent.Map.Find(from.key)
	if !ok || e.Role != topology.Master || from == to || from.frozen {
		return Command{}, false
	}
	if p := from.running; p != nil && p.writes >= 0 {
		p.paused, p.writes, p.until = true, -1, 0
	}
	c := w.command(from.key, VerbHandover)
	target := w.command(to.key, VerbHandover)
	c.Target, c.TargetPort, c.Epoch, c.HasSession, c.Paused = target.Name, target.Port, e.Epoch, true, uint64(w.now)*1e6
	if to.granted.Epoch == e.Epoch {
		c.Session = to.granted.Session
	}
	return c, true
}

// fillNode lets the node of a new partition get all that the masters have.
func (w *world) fillNode(t *rapid.T) {
	for _, n := range w.nodes {
		w.fill(n)
	}
}

func (w *world) fill(n *worldNode) {
	if p := n.running; p != nil && !n.frozen {
		if x, ok := p.preparing(); ok && x.Key() == n.key {
			p.filled, _ = p.masters()
		}
	}
}

// staleSwitch lets every node report, and then passes long enough for a switch to
// be taken back, with the reports of before coming late.
func (w *world) staleSwitch(t *rapid.T) {
	var late []AgentReport
	for _, n := range w.nodes {
		w.fill(n)
		if n.agent {
			late = append(late, w.reportFor(n))
		}
	}
	w.now += rapid.SampledFrom([]int64{200, 2500, 4000}).Draw(t, "ms")
	w.input(Tick{Now: w.now})
	w.settleAll(nil)
	for _, r := range late {
		if w.node(r.Key).started+1 == r.AgentStarted {
			w.input(r)
		}
	}
}

// obey lets a node do what it was told.
func (w *world) obey(t *rapid.T) { w.obeyOrder(w.pick(t)) }

func (w *world) obeyOrder(n *worldNode) {
	o := n.ordered
	p := n.running
	if o.ID == 0 || p == nil || n.frozen {
		return
	}
	n.ordered = OrderNode{}
	if o.Kind == OrderPurge {
		n.purged = OrderReport{ID: o.ID, Count: 1}
		return
	}
	e, ok := p.heard.Map.Find(n.key)
	to := w.node(o.Target)
	if !ok || e.Role != topology.Master || to == nil {
		n.handed = OrderReport{ID: o.ID, Reason: "not_master"}
		return
	}
	if p.writes >= 0 {
		p.paused, p.writes, p.until = true, -1, 0
	}
	c := w.command(n.key, VerbHandover)
	target := w.command(to.key, VerbHandover)
	c.Target, c.TargetPort, c.Epoch, c.HasSession, c.Paused = target.Name, target.Port, e.Epoch, true, uint64(w.now)*1e6
	if to.granted.Epoch == e.Epoch {
		c.Session = to.granted.Session
	}
	w.askHandover(c)
	n.handed = OrderReport{ID: o.ID}
}

func (w *world) askHandover(c Command) {
	before := w.moved
	asked := c
	w.do(c, func(r Reply) {
		to := w.state.Saved.node(nodeKey(c.Target, c.TargetPort))
		switch {
		case r.Err != "":
			w.refused[asked] = true
			if p := w.node(nodeKey(c.Name, c.Port)).running; p != nil && p.paused && p.epoch == c.Epoch {
				p.paused = false // and writes again with the next map
			}
		case to != nil && w.state.Saved.epoch(to.Home) <= c.Epoch && !w.lost:
			w.t.Fatalf("%s was told that it handed over, and epoch %d goes on\n%s", c.Name, c.Epoch, w.show())
		}
	})
	if w.moved > before && w.refused[asked] && w.plain && !w.lost {
		w.t.Fatalf("%s was refused and then carried out: its master may have written in between\n%s", Describe(asked), w.show())
	}
}

func (w *world) takeBack(t *rapid.T) {
	n := w.pick(t)
	e, ok := w.sent.Map.Find(n.key)
	if !ok || e.Role != topology.Slave {
		return
	}
	c := w.command(n.key, VerbBehind)
	c.Epoch, c.Session, c.HasSession = e.Epoch-uint64(rapid.IntRange(0, int(min(e.Epoch, 2))).Draw(t, "older")), w.session, true
	c.Partition = e.Partition
	current := w.state.Durable.epoch(e.Partition)
	d := w.state.Durable.node(n.key)
	w.do(c, func(r Reply) {
		if r.Err == "" && d != nil && d.Partition == e.Partition && c.Epoch < current {
			w.t.Fatalf("a master of epoch %d goes on without %s in epoch %d", c.Epoch, n.key, current)
		}
		// From here on the master goes on alone: nobody may be able to say otherwise.
		if now := w.state.Saved.node(n.key); r.Err == "" && now != nil && now.Role == topology.Slave &&
			now.State == topology.Active && !now.Granted.After(Grant{c.Epoch, c.Session}) && w.plain {
			w.t.Fatalf("%s was taken back at %d/%d and is in sync still", n.key, c.Epoch, c.Session)
		}
	})
}

// overtaken takes a grant back before the replica tells of it.
func (w *world) overtaken(t *rapid.T) {
	n := w.pick(t)
	c, ok := w.grant(n)
	if !ok {
		return
	}
	back := w.command(n.key, VerbBehind)
	back.Partition, back.Epoch, back.Session, back.HasSession = c.Partition, c.Epoch, c.Session, true
	w.do(back, func(r Reply) {
		if r.Err == "" {
			w.do(c, nil)
		}
	})
}

// giveUp lets a master that waits for the answer to a handover write again. What it
// asked for may still be under way.
func (w *world) giveUp(t *rapid.T) {
	n := w.pick(t)
	p := n.running
	if p == nil || !p.paused || n.frozen {
		return
	}
	if e, ok := p.heard.Map.Find(n.key); ok && e.Role == topology.Master && e.State == topology.Active && e.Epoch == p.epoch {
		p.paused, p.writes, p.opened, p.until = false, p.held, w.now+1, 0
	}
}

func (w *world) late(*rapid.T) {
	if len(w.lateCmd) > 0 {
		c := w.lateCmd[0]
		w.lateCmd = w.lateCmd[1:]
		if c.Verb == VerbHandover {
			w.askHandover(c)
			return
		}
		w.do(c, nil)
	}
}

// operate sends a command that an operator might.
func (w *world) operate(t *rapid.T) {
	n := w.pick(t)
	w.plain = false
	verb := rapid.SampledFrom([]Verb{VerbRole, VerbState, VerbRemove, VerbForce}).Draw(t, "verb")
	c := w.command(n.key, verb)
	c.AllowDataLoss = rapid.Bool().Draw(t, "allow data loss")
	c.Role = rapid.SampledFrom([]topology.Role{topology.Master, topology.Slave, topology.Proxy}).Draw(t, "role")
	c.State = rapid.SampledFrom([]topology.State{topology.Active, topology.Prepare, topology.Down, topology.Ready}).Draw(t, "state")
	c.Balance = rapid.IntRange(-1, 3).Draw(t, "balance")
	c.Partition = rapid.IntRange(-1, 3).Draw(t, "partition")
	w.do(c, nil)
}

// strayAdd registers a node again though it need not.
func (w *world) strayAdd(t *rapid.T) { w.do(w.command(w.pick(t).key, VerbAdd), nil) }

// settle lets the oldest request under way succeed.
func (w *world) settle(*rapid.T) { w.finish("") }

func (w *world) failPersist(*rapid.T) { w.finish("conflict") }

func (w *world) finish(err string) {
	if len(w.pending) == 0 {
		return
	}
	e := w.pending[0]
	w.pending = w.pending[1:]
	switch e := e.(type) {
	case Persist:
		w.persisted = e.Durable
		w.input(Persisted{Seq: e.Durable.Seq, Err: err})
	case CheckTarget:
		in := TargetChecked{Seq: e.Seq, Target: e.Target}
		if err != "" {
			in.Reason = "target_unreachable"
		}
		w.input(in)
	case WriteConfig:
		if err == "" {
			w.published = e.Text
		}
		w.input(Done{Request: RequestConfig, Seq: e.Seq, Err: err})
	case ScaleTo:
		if err == "" {
			w.count = e.Nodes
		}
		w.input(Done{Request: RequestScale, Seq: e.Seq, Err: err})
	case LabelNodes:
		w.input(Done{Request: RequestLabels, Seq: e.Seq, Err: err})
	case WriteStatus:
		w.input(Done{Request: RequestStatus, Seq: e.Seq, Err: err})
	}
}

// restart replaces the controller: what was being saved is saved or not, what
// waited for it is lost, and with it every reply.
func (w *world) restart(t *rapid.T) {
	d := w.state.Saved
	if w.state.Saving.Seq != 0 && rapid.Bool().Draw(t, "saved") {
		d = w.state.Saving
	}
	if rapid.IntRange(0, 5).Draw(t, "lost") == 0 {
		d, w.lost = Durable{}, true
	}
	spec, members := w.state.Spec, w.state.Members
	// A report belongs to a link, and the links end with the controller.
	w.pending, w.replies, w.lateRep = nil, map[uint64]func(Reply){}, nil
	for _, n := range w.nodes {
		n.agent = false
	}
	w.state = New(d)
	w.input(Tick{Now: w.now})
	w.input(SpecChanged{Spec: spec})
	if members.Known {
		w.input(MembersChanged{Members: members})
	}
}

func (w *world) changeMembers(t *rapid.T) {
	m := Members{Known: true, Count: w.count}
	for i, n := range w.nodes {
		m.List = append(m.List, Member{Key: n.key, Ordinal: i, Zone: string('x' + n.key[1]%2),
			Exists: rapid.IntRange(0, 3).Draw(t, "exists") > 0, Terminating: rapid.IntRange(0, 5).Draw(t, "terminating") == 0,
			Draining: rapid.IntRange(0, 3).Draw(t, "draining") == 0})
	}
	w.input(MembersChanged{Members: m})
}

func (w *world) changeSpec(t *rapid.T) {
	spec := w.state.Spec
	spec.Generation++
	spec.Replicas = rapid.IntRange(1, 3).Draw(t, "replicas")
	spec.Failover = drawPolicy(t)
	if rapid.IntRange(0, 4).Draw(t, "repartition") == 0 {
		spec.Partitions = rapid.IntRange(1, 3).Draw(t, "partitions")
	}
	w.input(SpecChanged{Spec: spec})
}

// second lets a second pass in which everything works; but only with grants do
// replicas get in sync.
func (w *world) second(grants bool) {
	w.heed() // a map is sent again to whoever has not taken it
	for i, n := range w.nodes {
		if i >= w.count && w.scaledAway(n.key) {
			n.running, n.agent = nil, false
			w.input(AgentLost{Key: n.key})
			continue
		}
		w.startNode(n)
		w.fill(n)
		w.obeyOrder(n)
		w.configureNode(n)
		w.sendFrom(n)
		w.reportOf(n)
		w.pingNode(n)
		w.settleAll(nil)
		if c, ok := w.grant(n); ok && grants {
			w.do(c, nil)
		}
	}
	for range 2 {
		w.now += 500
		w.input(Tick{Now: w.now})
		w.settleAll(nil)
	}
}

// scaledAway reports whether a node's pod is gone with the scale.
func (w *world) scaledAway(key string) bool {
	m, ok := w.state.member(key)
	return ok && !m.Exists
}

func (w *world) settleAll(*rapid.T) {
	for range 50 {
		w.finish("")
	}
}

// killMaster ends a master's process, and sometimes another node's with it.
func (w *world) killMaster(t *rapid.T) {
	for _, m := range w.sent.Map.Nodes {
		if n := w.node(m.Key()); m.Role == topology.Master && n.running != nil {
			n.running, n.frozen = nil, false
			other := w.pick(t)
			if rapid.Bool().Draw(t, "two") {
				other.running, other.frozen = nil, false
			}
			w.reportOf(n)
			if rapid.Bool().Draw(t, "both seen") {
				w.reportOf(other)
			}
			return
		}
	}
}

// calm ends all faults and lets everything run its course, in rounds of a
// second. Then nothing may change any more, every established partition must
// have a master, and as many replicas in sync as there are nodes for.
func (w *world) calm() {
	for _, n := range w.nodes {
		n.reach, n.frozen = true, false
	}
	quiet, version := 0, w.state.Saved.Version
	w.do(Command{Verb: VerbResume}, nil)
	spec := w.state.Spec
	spec.Failover.Paused = false
	w.input(SpecChanged{Spec: spec})
	for range 480 + breakerSettleMax/1000 {
		m := Members{Known: true, Count: w.count}
		for i, n := range w.nodes {
			m.List = append(m.List, Member{Key: n.key, Ordinal: i, Exists: i < w.count, Zone: "x"})
		}
		w.input(MembersChanged{Members: m})
		w.second(true)
		if v := w.state.Saved.Version; v == version && w.state.frozen(&w.state.Durable).Reason == "" {
			quiet++
		} else {
			quiet, version = 0, v
		}
		if quiet >= 36 {
			break
		}
	}
	if quiet < 36 {
		w.t.Fatalf("the map still changes, or no role may, after nine minutes of calm: version %d, %+v\n%s", version, w.state.Durable.Safety, w.show())
	}
	if len(w.state.Replies) > 0 || w.state.Saving.Seq != 0 || w.state.Machine.Step != StepDone {
		w.t.Fatalf("not at rest: %d replies, saving %d, machine %s", len(w.state.Replies), w.state.Saving.Seq, w.state.Machine.Step)
	}
	if !w.plain {
		return // an operator's map may be anything that the tables allow
	}
	s := w.state
	parts := PartitionsOf(s)
	if len(s.Durable.Partitions) == 0 {
		if s.Blocked.Reason == "" && s.Refusal.Reason == "" {
			w.t.Fatalf("no partitions, and no reason given\n%s", w.show())
		}
		return
	}
	switch g := s.Durable.Growth; {
	case g.Node != "" && s.Blocked.Reason == "":
		w.t.Fatalf("%s is still filled with a new partition: %+v\n%s", g.Node, g, w.show())
	case s.Spec.Partitions > len(s.Durable.Partitions) && s.Refusal.Reason == "" && s.Blocked.Reason == "":
		w.t.Fatalf("%d partitions are asked for, and no reason is given\n%s", s.Spec.Partitions, w.show())
	case w.count != s.wantedNodes() && s.Blocked.Reason == "":
		w.t.Fatalf("there are %d nodes, %d are wanted, and no reason is given\n%s", w.count, s.wantedNodes(), w.show())
	case len(s.Durable.Orphans) > 0 && s.Spec.Partitions <= len(s.Durable.Partitions) && s.Refusal.Reason == "" && s.Blocked.Reason == "":
		w.t.Fatalf("orphans are left: %+v\n%s", s.Durable.Orphans, w.show())
	}
	free := 0
	for _, n := range s.Saved.Nodes {
		held, _ := (&work{s: s}).holds(n)
		if held >= 0 && held < len(parts) && parts[held].Master == "" {
			continue // kept for a partition that may need its data
		}
		if m, ok := s.member(n.Key()); n.Role == topology.Proxy && n.up() && ok && m.Ordinal < s.wantedNodes() {
			free++
		}
	}
	for _, p := range parts {
		switch {
		case p.State == PartitionForming:
		case p.Master == "":
			if s.Blocked.Reason != ReasonMasterDataLost {
				w.t.Fatalf("partition %d has no master, and no reason is given\n%s", p.Number, w.show())
			}
			return
		case len(p.Preparing) > 0:
			w.t.Fatalf("partition %d has replicas that were granted and are not in sync\n%s", p.Number, w.show())
		case len(p.InSync) < s.Spec.Replicas-1 && free > 0:
			w.t.Fatalf("partition %d lacks replicas while %d nodes are free\n%s", p.Number, free, w.show())
		}
	}
}

func (w *world) show() string {
	out := fmt.Sprintf("spec %+v\nblocked %+v refusal %+v\n", w.state.Spec, w.state.Blocked, w.state.Refusal)
	for _, n := range w.state.Durable.Nodes {
		out += fmt.Sprintf("  %s %s extended=%t gone=%t %s held=%d\n", n.Key(), n.duty(), n.Extended, n.Gone, n.DownReason, n.Held)
	}
	for _, o := range w.state.Seen {
		out += fmt.Sprintf("  seen %+v\n", o)
	}
	i := slices.IndexFunc(w.nodes, func(n *worldNode) bool { return n.running == nil })
	return out + fmt.Sprintf("  stopped: %d", i)
}
