package core

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/flarekv/flare/proto/topology"
)

// Durable is the part of the state that must survive the controller. It is what
// Persist carries; its JSON form is the content of the state file or ConfigMap.
type Durable struct {
	Format     int           `json:"format"` // FormatVersion
	Seq        uint64        `json:"seq"`    // +1 with every change
	Version    uint64        `json:"version"`
	Generation int64         `json:"generation"` // of the spec last acted on
	Meta       topology.Meta `json:"meta"`
	// NextThread is the thread type the next new node gets.
	NextThread int         `json:"nextThread"`
	Partitions []Partition `json:"partitions"` // by number; never shrinks
	Nodes      []Node      `json:"nodes"`      // sorted by key
	// Growth is the partition that is being added.
	Growth Growth `json:"growth,omitzero"`
	// Orphans are the partitions that keys were moved away from and not yet removed,
	// by number.
	Orphans []Orphans `json:"orphans,omitempty"`
	// Removed keeps the floors of nodes that were removed, or have gone to another
	// partition, for as long as a grant of that epoch may be under way: the node may
	// come again.
	Removed []RemovedNode `json:"removed,omitempty"`
	Safety  Safety        `json:"safety,omitzero"`
	// Replication is that to another cluster.
	Replication Replication `json:"replication,omitzero"`
}

// RemovedNode is what must be remembered of a node that left a partition.
type RemovedNode struct {
	Key   string `json:"key"`
	Home  int    `json:"home"`
	Floor Grant  `json:"floor"`
}

// FormatVersion is the Format this code writes and reads.
const FormatVersion = 1

// Partition is what is known of a partition beside its nodes.
type Partition struct {
	Epoch uint64 `json:"epoch"` // of its master; +1 each time a node becomes master, or comes back as one
	// Owed: its master died while no roles were to change, and a replica was in sync:
	// one takes the master's place when they may, unless the master is back before.
	Owed bool `json:"owed,omitempty"`
}

// Node is one entry of the node map.
type Node struct {
	Name       string         `json:"name"`
	Port       int            `json:"port"`
	Role       topology.Role  `json:"role"`
	State      topology.State `json:"state"`
	Partition  int            `json:"partition"`
	Balance    int            `json:"balance"`
	ThreadType int            `json:"threadType"`

	// Extended: the node said hello in its present registration.
	Extended bool `json:"extended,omitempty"`
	// Instance is the process that registered; empty when not known.
	Instance string `json:"instance,omitempty"`
	// Held is the partition whose data the node held when it registered, or was
	// given since; -1 for none.
	Held int `json:"held"`
	// HeldLSN is its position when it registered.
	HeldLSN topology.LSN `json:"heldLsn"`
	// History of that data; empty for none.
	History string `json:"history,omitempty"`
	// Home is the partition the node last had a duty in; -1 for none.
	Home int `json:"home"`
	// Floor is the last in-sync grant that the node's master took back. Only later
	// grants make it active.
	Floor Grant `json:"floor"`
	// Granted is the grant by which the node became active; zero when none did.
	Granted Grant `json:"granted"`
	// Former is the process that was registered before the present one: what its
	// agent still says about that one is old news.
	Former string `json:"former,omitempty"`
	// Gone: the process that was registered is known to have ended or to be about
	// to; a new registration brings the node up, answered pings do only after long.
	Gone bool `json:"gone,omitempty"`
	// Unproven: it registered, and has not answered anything yet.
	Unproven bool `json:"unproven,omitempty"`
	// DownReason tells why the node was taken down; empty when it is up.
	DownReason string `json:"downReason,omitempty"`
	// Zone is where the node was last seen; empty when that was never known.
	Zone string `json:"zone,omitempty"`
}

// Grant identifies one promise of a master to wait for a replica: the epoch of
// the master and a number that grows within it.
type Grant struct {
	Epoch   uint64 `json:"epoch"`
	Session uint64 `json:"session"`
}

// After reports whether g was given later than h.
func (g Grant) After(h Grant) bool {
	return g.Epoch > h.Epoch || g.Epoch == h.Epoch && g.Session > h.Session
}

// Key returns the node key, host:port.
func (n Node) Key() string { return nodeKey(n.Name, n.Port) }

func nodeKey(name string, port int) string { return name + ":" + strconv.Itoa(port) }

func (n Node) up() bool { return n.State != topology.Down }

// duty is the form of a node's duty in logs: role/state/pN/bN.
func (n Node) duty() string {
	return fmt.Sprintf("%v/%v/p%d/b%d", n.Role, n.State, n.Partition, n.Balance)
}

// State is everything the core knows.
type State struct {
	Now     int64 // unix milliseconds, from the last Tick
	Started int64 // Now of the first Tick; 0 before it
	Spec    Spec
	Members Members

	Durable Durable // decisions are taken on this
	Saving  Durable // being persisted; Seq 0 when nothing is
	Saved   Durable // known to be durable; all that others see comes from it

	PersistRetry  int64  // not before this time, after a failure
	PersistError  string // of the last failure; empty after a success
	Replies       []PendingReply
	Prior         []string // nodes that hear the next map before the others
	Except        []string // nodes that do not hear the next map
	SentVersion   uint64   // version last handed to Broadcast; 0 before the first
	Seen          []Seen   // observations, sorted by key
	Leases        []Lease  // that may be in force, sorted by node key and instance
	FirstHello    int64    // when the first node to be given a duty registered; 0 before
	Machine       Machine
	Config        Channel
	ConfigWanted  ConfigKey
	ConfigWritten ConfigKey
	Scale         Channel
	ScaleWanted   int
	Labels        Channel
	LabelsSent    []NodeLabel
	LabelsDone    []NodeLabel
	Status        Channel
	StatusSent    Status
	StatusDone    Status
	GraceOver     bool // silence is evidence of death
	Losses        Losses
	HeldBack      string  // why duties that could be given are not; empty when none could
	Orders        []Order // under way, sorted by node key and kind
	OrderID       uint64  // of the last order
	SwitchSince   int64   // when the switch to a new partition began; 0 when there is none
	SwitchAfter   int64   // no switch before this time
	SettledSince  int64   // since when nothing is missing; 0 while something is
	Refusal       Refusal // of the spec, or of a part of it
	Blocked       Refusal // why a wanted assignment is not made

	TargetCheck        Channel
	Target             TargetState // of cluster replication, as last looked at
	ReplicationRefusal Refusal     // why cluster replication is not as asked for
}

// ConfigKey identifies a configuration to be published.
type ConfigKey struct {
	Generation int64
	Text       string
}

// Refusal tells why something that is wanted is not done; Reason empty for none.
type Refusal struct {
	Reason  string
	Message string
}

// PendingReply is a reply that waits until the change it tells of is durable.
type PendingReply struct {
	After uint64 // Durable.Seq that must be saved
	Reply Reply
}

// Channel is the way of one kind of request to the outside: one at a time.
type Channel struct {
	Seq      uint64 // of the last request
	InFlight bool
	Retry    int64  // not before this time, after a failure
	Error    string // of the last failure; empty after a success
}

// Seen is what has been observed of a node, registered or not. It does not
// survive the controller.
type Seen struct {
	Key       string
	Agent     bool  // the agent's link is up
	AgentAt   int64 // when the last report came; 0 for never
	Report    AgentReport
	PingFails int // pings and pushes that failed in a row
	Refused   int // of these, in a row: nobody listened
	PingAt    int64
	PingOK    bool   // the last ping was answered
	OKSince   int64  // when the first of the pings answered in a row was
	AddedAt   int64  // when it last registered; 0 for never
	AddTries  int    // refused registrations since the node was last down
	AddedFrom string // address it was first registered from; empty when not known
}

// New returns the state of a controller that takes over: with the durable state
// that was found, or the zero Durable when there is none.
func New(durable Durable) State {
	d := durable.clone()
	if d.Format == 0 {
		d = Durable{Format: FormatVersion, NextThread: topology.FirstThreadType, Meta: topology.DefaultMeta()}
	}
	return State{Durable: d, Saved: d.clone(), Machine: Machine{Step: StepInit}}
}

// Validate reports what is wrong with a durable state that was read from outside.
func (d Durable) Validate() error {
	if d.Format != FormatVersion {
		return fmt.Errorf("it has format %d; this controller reads %d", d.Format, FormatVersion)
	}
	t := Transition{After: State{Durable: d}}
	for _, check := range []func(Transition) error{sortedUnique, dutyFits, oneMaster, establishedHasMaster} {
		if err := check(t); err != nil {
			return err
		}
	}
	return d.Meta.Validate()
}

func (d Durable) clone() Durable {
	d.Nodes = slices.Clone(d.Nodes)
	d.Partitions = slices.Clone(d.Partitions)
	d.Orphans = slices.Clone(d.Orphans)
	d.Removed = slices.Clone(d.Removed)
	return d
}

// Clone returns a copy that shares nothing with s that is written later.
func (s State) Clone() State { return s.clone() }

func (s State) clone() State {
	s.Durable = s.Durable.clone()
	s.Replies = slices.Clone(s.Replies)
	s.Prior = slices.Clone(s.Prior)
	s.Except = slices.Clone(s.Except)
	s.Seen = slices.Clone(s.Seen)
	s.Leases = slices.Clone(s.Leases)
	s.Orders = slices.Clone(s.Orders)
	// Saving, Saved, Members.List, labels and statuses are replaced whole, never
	// written into, so that sharing them is harmless.
	return s
}

// find returns the index of the node with that key, or where it belongs.
func (d *Durable) find(key string) (int, bool) {
	return sort.Find(len(d.Nodes), func(i int) int { return -d.Nodes[i].compareKey(key) })
}

// compareKey compares a node's key with another, without making it.
func (n *Node) compareKey(key string) int {
	if len(key) <= len(n.Name) {
		return cmp.Or(strings.Compare(n.Name[:len(key)], key), 1)
	}
	if c := strings.Compare(n.Name, key[:len(n.Name)]); c != 0 {
		return c
	}
	var space [24]byte
	port, rest := strconv.AppendInt(append(space[:0], ':'), int64(n.Port), 10), key[len(n.Name):]
	for i := range min(len(port), len(rest)) {
		if c := cmp.Compare(port[i], rest[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(port), len(rest))
}

func (d *Durable) node(key string) *Node {
	if i, ok := d.find(key); ok {
		return &d.Nodes[i]
	}
	return nil
}

// epoch returns the epoch of a partition, 0 for none.
func (d *Durable) epoch(partition int) uint64 {
	if partition == len(d.Partitions) && d.Growth.Node != "" {
		return d.Growth.Epoch
	}
	if partition < 0 || partition >= len(d.Partitions) {
		return 0
	}
	return d.Partitions[partition].Epoch
}

// Map returns the node map of this state.
func (d *Durable) Map() topology.Map {
	m := topology.Map{Version: d.Version, Nodes: make([]topology.Node, 0, len(d.Nodes))}
	for _, n := range d.Nodes {
		m.Nodes = append(m.Nodes, topology.Node{
			Name: n.Name, Port: n.Port, Role: n.Role, State: n.State, Partition: n.Partition,
			Balance: n.Balance, ThreadType: n.ThreadType, Epoch: d.epoch(n.Partition),
		})
	}
	return m
}

// findSeen returns the index of a node's observations, or where they belong.
func (s *State) findSeen(key string) (int, bool) {
	return sort.Find(len(s.Seen), func(i int) int { return strings.Compare(key, s.Seen[i].Key) })
}

func (s *State) seen(key string) *Seen {
	i, ok := s.findSeen(key)
	if ok {
		return &s.Seen[i]
	}
	return nil
}

// see returns the observation record of a node, making it when there is none.
// It invalidates pointers returned before.
func (s *State) see(key string) *Seen {
	i, ok := s.findSeen(key)
	if !ok {
		s.Seen = slices.Insert(s.Seen, i, Seen{Key: key})
	}
	return &s.Seen[i]
}

func (s *State) member(key string) (Member, bool) {
	i, ok := sort.Find(len(s.Members.List), func(i int) int { return strings.Compare(key, s.Members.List[i].Key) })
	if !ok {
		return Member{}, false
	}
	return s.Members.List[i], true
}

// zone returns the zone of a node, empty when not known.
func (s *State) zone(key string) string {
	if m, ok := s.member(key); ok && m.Zone != "" {
		return m.Zone
	}
	if o := s.seen(key); o != nil && o.Report.Zone != "" {
		return o.Report.Zone
	}
	if n := s.Durable.node(key); n != nil {
		return n.Zone
	}
	return ""
}

// Zone returns the zone of a node, empty when not known.
func (s State) Zone(key string) string { return s.zone(key) }

// SeenOf returns what has been observed of a node.
func (s State) SeenOf(key string) (Seen, bool) {
	if o := s.seen(key); o != nil {
		return *o, true
	}
	return Seen{}, false
}
