package model

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// World is one state of everything: the controller, the place where it keeps its
// state, the nodes and what is under way between them. It is plain data.
type World struct {
	Now   int64 // milliseconds
	Ctl   Controller
	Old   Former
	API   API
	Nodes []Node
	Parts []Part
	Mail  []Mail // commands, reports and leases that come late
	Left  Budget

	broken error // by the action under way
	say    func(string, ...any)
	m      *Model
}

// Controller is the one that leads.
type Controller struct {
	State   core.State
	Latest  topology.Map // last one handed to the broadcaster
	Plain   uint64       // bit i: node i does not understand epochs and hears none
	Pending uint64       // bit i: node i has not been sent Latest
}

// Former is what goes on of a controller that does not lead any more: the last map that
// it sends.
type Former struct {
	Latest  topology.Map
	Plain   uint64
	Pending uint64
}

// API is the place where the durable state is kept.
type API struct {
	Durable core.Durable
	Members core.Members
}

// Part is what clients know of a partition.
type Part struct {
	Acked  []topology.LSN // writes that were answered, at least one node has each
	Moving []topology.LSN // writes of keys that go to the partition that is added
}

// Node is a data node: flared's process, its agent, and the disk.
type Node struct {
	Up     bool
	Frozen bool // the process is there and does nothing
	Cut    bool // the controller does not reach it, nor it the controller
	Apart  bool // the other nodes do not reach it
	Inc    int  // of its process: which one it is
	Stage  Stage
	Map    topology.Map
	Plain  bool // the map came without epochs

	// On disk.
	Pos  history.Position
	Mark bool // bound by a promise

	// Of a master.
	Held    bool // the mastership
	Tenure  Tenure
	Open    bool  // the gate
	Opened  int64 // since when
	Until   int64 // when the lease ends
	Asked   int64 // when its replicas were last asked for it
	Lead    replication.Leader
	Conns   uint64 // given out
	Asks    []Ask
	Waiting []Pending // writes that are not answered
	Hand    Hand

	// Of a replica.
	To      int // node followed, plus one; 0 for none
	Conn    uint64
	Claim   core.Grant // that the index is to be told of; zero for none
	Claimed bool       // and was told
	Promise Promise
	Refused int64 // when a claim of it was refused, after which it pauses

	// While a partition is added, see growth.go.
	Width   int // partitions in force by the map
	Fill    Filling
	Have    []topology.LSN // writes of moving keys that it has got; on disk
	Yield   Yielding       // what the map asks to yield
	Yielded Yielding       // what was
}

// Stage is how far a process is in registering.
type Stage uint8

// The stages.
const (
	Fresh   Stage = iota
	Adding        // node add is under way
	Added         //
	Helloed       // node hello is under way
	Said          // registered as a node that understands epochs
)

// Tenure is the mastership that a process holds.
type Tenure struct {
	Partition int
	Epoch     uint64
}

// Ask is a question of a master to the index whether a replica may be left behind.
type Ask struct {
	Key            string
	Epoch, Session uint64
	Sent           bool
}

// Pending is a write that its client waits for.
type Pending struct {
	LSN   topology.LSN
	Since int64
}

// Hand is a handover that a master has begun.
type Hand struct {
	To     int // node that gets the role, plus one; 0 for no handover
	Epoch  uint64
	Paused int64
	Phase  HandPhase
}

// HandPhase is how far a handover is.
type HandPhase uint8

// The phases.
const (
	Draining  HandPhase = iota
	Asking              // the index was asked
	Doubtful            // it has not answered
	Switching           // it has agreed
	Resigned            // it says that another node leads
)

// Promise is what a replica told its master: to begin no later epoch before a time.
type Promise struct {
	Partition int // -1 for whichever it may be
	Epoch     uint64
	Until     int64
}

// Mail is a message that comes late. It holds a copy of what was sent.
type Mail struct {
	Command core.Command
	Report  core.AgentReport
	Lease   core.GrantLease
	Kind    MailKind
}

// MailKind tells what a message is.
type MailKind uint8

// The kinds of mail.
const (
	MailCommand MailKind = iota + 1
	MailReport
	MailLease
)

// Budget is how often something may still go wrong, or be asked for.
type Budget struct {
	Crash, Wipe, Cut, Apart, Freeze             uint8
	Takeover, Unsaved, SavedUnknown, LostReply  uint8
	Late, Twice                                 uint8
	Write, Handover, Leave, Terminate, LongTick uint8
	Stray, Respec, Pause, Override              uint8
	// Slow is how often time may pass though something is under way that takes no time.
	Slow uint8
}

// replicaTimeout is after how long a silent replica keeps nobody waiting any more.
const replicaTimeout = replication.DefaultTimeout

// A Model is a kind of world: what is in it and what may happen to it.
type Model struct {
	Name       string
	Doc        string
	Nodes      int
	Partitions int
	Replicas   int
	Respec     func(*core.Spec) // what Budget.Respec changes; nil for nothing
	Budget     Budget
	Policy     core.FailoverPolicy // Grace 0 for ten seconds
	Empty      bool                // it begins before the cluster is formed
	Rejoining  bool                // it begins when node 1 has died, is back, and was told to be in sync
	NoMembers  bool                // nobody keeps a list of the nodes
	Grows      bool                // partitions may be added: there are keys that move
	Limit      uint64              // of states, in check: those nearest to the beginning; 0 for none
	Patient    bool                // whenever time passes, a long time may

	codec codec
	dict  *dictionary
	keys  []string
	inv   []Invariant
}

// Init prepares a model for use.
func (m *Model) Init() error {
	m.dict = newDictionary()
	c := &compiler{d: m.dict, shared: map[reflect.Type]bool{
		reflect.TypeFor[core.Durable]():      true,
		reflect.TypeFor[core.Spec]():         true,
		reflect.TypeFor[core.Members]():      true,
		reflect.TypeFor[core.Status]():       true,
		reflect.TypeFor[core.Seen]():         true,
		reflect.TypeFor[core.Refusal]():      true,
		reflect.TypeFor[topology.Map]():      true,
		reflect.TypeFor[history.Position]():  true,
		reflect.TypeFor[core.Command]():      true,
		reflect.TypeFor[core.PendingReply](): true,
	}}
	n := c.compilePart(reflect.TypeFor[World](), "broken", "say", "m")
	if len(c.errs) > 0 {
		return errors.Join(c.errs...)
	}
	m.codec = n.codec
	for i := range m.Nodes {
		m.keys = append(m.keys, nodeKey(i))
	}
	m.inv = Invariants()
	return nil
}

func (m *Model) newWorker() *worker {
	return &worker{m: m, p: packing{d: m.dict, strings: map[string]uint64{}}}
}

// pack returns the packed form of a world; it is valid until the next call.
func (w *worker) pack(world *World) []byte {
	w.p.now = world.Now
	w.p.b = w.p.b[:0]
	w.m.codec.pack(&w.p, unsafe.Pointer(world))
	return w.p.b
}

// unpack returns a world of its own.
func (w *worker) unpack(b []byte) *World {
	world := &World{m: w.m}
	w.m.codec.unpack(&unpacking{d: w.m.dict, b: b}, unsafe.Pointer(world))
	world.Now = Epoch
	return world
}

func nodeKey(i int) string { return "n" + strconv.Itoa(i) + ":1" }

// index returns the number of a node, -1 for one that is not of this world.
func (w *World) index(key string) int {
	for i, k := range w.m.keys {
		if k == key {
			return i
		}
	}
	return -1
}

func (n *Node) instance(i int) string { return instances[i][n.Inc] }

// instances are the identifiers of processes: of node 2 the first is 2a.
var instances = func() (t [8][16]string) {
	for i := range t {
		for k := range t[i] {
			t[i][k] = strconv.Itoa(i) + string(rune('a'+k))
		}
	}
	return t
}()

// partition returns whose data a node holds, -1 for none.
func (n *Node) partition() int {
	if n.Pos.History == "" {
		return topology.NoPartition
	}
	return n.Pos.Partition
}

func (w *World) fail(invariant, format string, args ...any) {
	if w.broken == nil {
		w.broken = fmt.Errorf("%s: %s", invariant, fmt.Sprintf(format, args...))
	}
}

func (w *World) log(format string, args ...any) {
	if w.say != nil {
		w.say(format, args...)
	}
}

// time is the present as the state machines of the nodes take it.
func (w *World) time() time.Time { return time.UnixMilli(w.Now).UTC() }

// Initial returns the worlds to begin with.
func (m *Model) Initial() []*World {
	w := &World{m: m, Now: Epoch}
	w.Nodes = make([]Node, m.Nodes)
	w.Parts = make([]Part, 8)
	there := m.Nodes
	if m.Grows {
		there = m.Partitions * m.Replicas
	}
	for i := range w.Nodes {
		w.Nodes[i].Up = i < there
		w.Nodes[i].Pos.Partition = topology.NoPartition
	}
	w.API.Members = core.Members{Known: !m.NoMembers}
	if !m.NoMembers {
		w.scaleTo(there)
	}
	w.lead(core.New(core.Durable{}), m.spec())
	if m.Empty {
		w.Left = m.Budget
		return []*World{w}
	}
	if _, err := w.calm(m.newWorker(), func(fingerprint) bool { return false }); err != nil {
		w.broken = err
		return []*World{w} // the first check tells
	}
	if m.Rejoining {
		w.crash(1)
		w.until(func() bool { return w.Nodes[1].Claim != (core.Grant{}) })
	}
	w.Left = m.Budget
	return []*World{w}
}

// zoneOf puts two of three nodes into one zone.
func zoneOf(i int) string { return string(rune('x' + i%2)) }

func (m *Model) spec() core.Spec {
	policy := m.Policy
	policy.Grace = cmp.Or(policy.Grace, 10_000)
	return core.Spec{Known: true, Generation: 1, Partitions: m.Partitions, Replicas: m.Replicas, Meta: topology.DefaultMeta(), Failover: policy}
}

// lead lets a controller begin with a state.
func (w *World) lead(s core.State, spec core.Spec) {
	w.Ctl = Controller{State: s}
	s = w.Ctl.State
	// These requests are for people and for Services: they take for ever here, so that
	// their texts do not tell states apart. They have tests of their own.
	w.Ctl.State.Status.InFlight = true
	w.Ctl.State.Labels.InFlight = true
	w.Ctl.State.Config.InFlight = true
	before := s.Durable
	w.input(core.Tick{Now: w.Now})
	if !slices.Equal(before.Nodes, w.Ctl.State.Durable.Nodes) || !slices.Equal(before.Partitions, w.Ctl.State.Durable.Partitions) {
		w.fail("RestartKeepsDecisions", "a controller that begins to lead changes what was decided before it has heard of anything")
	}
	w.input(core.SpecChanged{Spec: spec})
	w.input(core.MembersChanged{Members: w.API.Members})
}

// input lets the controller take one step, and carries out what can be carried out at
// once.
func (w *World) input(in core.Input) {
	w.inputLosing(in, false)
}

// inputLosing is input, whose replies are lost when lose is set.
func (w *World) inputLosing(in core.Input, lose bool) {
	if w.broken != nil {
		return
	}
	before := w.Ctl.State
	after, effects, err := core.Check(before, in)
	if err != nil {
		w.broken = err
		return
	}
	w.log("    input  %s", core.Describe(in))
	w.Ctl.State = after
	for _, e := range effects {
		switch e := e.(type) {
		case core.Broadcast:
			w.log("    map    %s", describeMap(e.Update.Map))
			w.Ctl.Latest, w.Ctl.Plain = e.Update.Map, 0
			w.Ctl.Pending = 0
			for _, n := range e.Update.Map.Nodes {
				key := n.Key()
				i := w.index(key)
				if i < 0 {
					continue
				}
				if !slices.Contains(e.Update.Extended, key) {
					w.Ctl.Plain |= 1 << i
				}
				if !slices.Contains(e.Update.Except, key) {
					w.Ctl.Pending |= 1 << i
				}
			}
		case core.Reply:
			w.reply(e, lose)
		case core.GrantLease:
			w.log("    lease  %s epoch %d", e.Key, e.Epoch)
			w.leased(e)
		case core.ScaleTo:
			w.scaled(e)
		case core.Decision:
			w.log("    change %s %s -> %s (%s) in map %d", e.Node, e.Old, e.New, e.Reason, e.Version)
		case core.Persist:
			w.log("    save   seq %d version %d", e.Durable.Seq, e.Durable.Version)
		}
	}
	w.promoted(&before.Durable, &after.Durable)
}

// scaleTo gives the workload so many pods, or as many as there may be.
func (w *World) scaleTo(nodes int) {
	list := slices.Clone(w.API.Members.List)
	for i := len(list); i < min(nodes, len(w.Nodes)); i++ {
		list = append(list, core.Member{Key: w.m.keys[i], Ordinal: i, Exists: true, Zone: zoneOf(i)})
	}
	w.API.Members.Count, w.API.Members.List = nodes, list
}

// scaled lets the workload follow at once. It never gets smaller here.
func (w *World) scaled(e core.ScaleTo) {
	if w.m.Grows && e.Nodes > w.API.Members.Count {
		w.scaleTo(e.Nodes)
	}
	w.input(core.Done{Request: core.RequestScale, Seq: e.Seq})
}

func describeMap(m topology.Map) string {
	s := fmt.Sprintf("version %d:", m.Version)
	for _, n := range m.Nodes {
		s += fmt.Sprintf(" %s=%v/%v", n.Key(), n.Role, n.State)
		if n.Partition >= 0 {
			s += fmt.Sprintf("/p%d/e%d", n.Partition, n.Epoch)
		}
	}
	return s
}

// compilePart compiles a struct without some of its fields.
func (c *compiler) compilePart(t reflect.Type, without ...string) node {
	var fields []reflect.StructField
	for i := range t.NumField() {
		if f := t.Field(i); !slices.Contains(without, f.Name) {
			fields = append(fields, f)
		}
	}
	return c.fields(t, fields)
}
