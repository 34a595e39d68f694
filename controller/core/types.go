package core

import "github.com/flarekv/flare/proto/topology"

// Input is something that happened: one of the types below.
type Input interface{ input() }

// Tick carries the time. It comes about five times a second.
type Tick struct {
	Now int64 // unix milliseconds
}

// SpecChanged carries what is asked for, whenever it is read.
type SpecChanged struct{ Spec Spec }

// MembersChanged carries the list of nodes that are expected to exist.
type MembersChanged struct{ Members Members }

// AgentReport is what the agent beside a node says about it.
type AgentReport struct {
	// Now is the time at which the report is taken, as a Tick has it. A lease that
	// answers the report must not be counted from an earlier one.
	Now int64
	// AgentStarted tells agents under the same name apart: when it started, 0 when
	// not known.
	AgentStarted int64

	Peer  string // address that the report came from; empty when not known
	Key   string // node key, host:port
	Zone  string // empty when not known
	Alive bool   // flared's process answers its agent

	// What flared said last; may be of a former process when it is not alive.
	Instance      string // identifier of the process, new at every start
	Serving       bool
	MapVersion    uint64
	Role          topology.Role
	State         topology.State
	Partition     int // -1 for none
	LSN           topology.LSN
	DataPartition int    // whose data the local database holds, -1 for none
	History       string // identifier of the history that data belongs to

	// LeaseToken is when the process made this status, in nanoseconds of its own
	// clock; 0 from one that knows no leases. LeaseEpoch is the epoch in which it takes
	// writes as master of Partition, 0 for none.
	LeaseToken uint64
	LeaseEpoch uint64

	// Filled is the map version up to which a node that prepares a new partition has
	// all that the masters had, 0 for none; FillRecords is how many it has got.
	Filled      uint64
	FillRecords uint64
	// Yielded is the epoch of the preparing partition whose keys this master lets
	// nobody write, after it has sent everything on; 0 for none.
	Yielded uint64

	// What became of the last orders.
	Handover OrderReport
	Purge    OrderReport

	// What became of the configuration.
	ConfigGeneration int64
	ConfigRejected   bool
	ConfigPending    bool // an option waits for a restart
	ConfigMessage    string

	// Cluster is about the replication to another cluster.
	Cluster ClusterReport
}

// AgentLost tells that the link of a node's agent has ended.
type AgentLost struct{ Key string }

// Pinged is the outcome of one ping of a node.
type Pinged struct {
	Key     string
	Outcome PingOutcome
}

// Pushed is the outcome of sending a map to a node.
type Pushed struct {
	Key     string
	Version uint64
	Outcome PingOutcome
	// NodeVersion is the version that the node has when it refused the map
	// because it knows a later one; 0 otherwise.
	NodeVersion uint64
}

// PingOutcome tells how a contact with a node ended.
type PingOutcome string

// The outcomes.
const (
	PingOK      PingOutcome = "ok"
	PingRefused PingOutcome = "refused" // nobody listens, or the connection broke
	PingTimeout PingOutcome = "timeout" // no answer in time: dead, cut off or slow
	PingBad     PingOutcome = "bad"     // answered, but not OK
)

// Command is a request that came to the index. It gets exactly one Reply.
type Command struct {
	ID   uint64 // chosen by the shell; unique among commands not yet replied to
	Verb Verb
	Peer string // address that it came from; empty when not known
	Name string
	Port int

	Role      topology.Role  // role
	Balance   int            // role; -1 when absent
	Partition int            // role, and of the grant in state and behind; -1 when absent
	State     topology.State // state

	// Epoch and Session of the in-sync grant that a state or behind command is
	// about, or by which the target of a handover is in sync. A plain state command
	// has HasSession false.
	Epoch      uint64
	Session    uint64
	HasSession bool

	// Target and TargetPort name the replica that takes the role over: handover.
	Target     string
	TargetPort int
	// Paused is a time of the clock of the master's process, as the tokens of its
	// leases are: it has written nothing since. handover.
	Paused uint64

	// AllowDataLoss: role, state and force may lose what was acknowledged.
	AllowDataLoss bool
	Note          string // why, in an operator's words: pause, override, force
	Seconds       int    // override

	Hello Hello // hello

	Force bool // cut-over, roll-back: in spite of what speaks against it

	Import *Imported // import; nobody changes it any more
}

// Verb names a command.
type Verb string

// The verbs.
const (
	VerbAdd      Verb = "add"
	VerbHello    Verb = "hello"
	VerbRole     Verb = "role"
	VerbState    Verb = "state"
	VerbBehind   Verb = "behind"
	VerbHandover Verb = "handover"
	VerbRemove   Verb = "remove"
	VerbShutdown Verb = "shutdown"
	VerbImport   Verb = "import"   // by an operator: the map of another index server
	VerbForce    Verb = "force"    // makes a node the master of a partition that has none
	VerbMove     Verb = "move"     // tells a master to hand over; answered when it has
	VerbPause    Verb = "pause"    // no roles change by themselves
	VerbResume   Verb = "resume"   // ends a pause
	VerbOverride Verb = "override" // roles change though the breaker is open
)

// Hello is what an extended node says about itself when it registers.
type Hello struct {
	Instance  string
	Partition int // whose data it holds, -1 for none
	LSN       topology.LSN
	History   string
}

// Persisted is the result of a Persist effect.
type Persisted struct {
	Seq uint64 // Durable.Seq of the effect
	Err string // empty when it is durable
}

// Done is the result of a WriteConfig, ScaleTo, LabelNodes or WriteStatus effect.
type Done struct {
	Request Request
	Seq     uint64 // of the effect
	Err     string // empty when it was carried out
}

// Request names an effect that is answered by a Done input.
type Request string

// The requests.
const (
	RequestConfig Request = "config"
	RequestScale  Request = "scale"
	RequestLabels Request = "labels"
	RequestStatus Request = "status"
)

func (Tick) input()           {}
func (SpecChanged) input()    {}
func (MembersChanged) input() {}
func (AgentReport) input()    {}
func (AgentLost) input()      {}
func (Pinged) input()         {}
func (Pushed) input()         {}
func (Command) input()        {}
func (Persisted) input()      {}
func (Done) input()           {}

// Effect is something that shall happen: one of the types below.
type Effect interface{ effect() }

// Persist asks to make the durable state durable. Answered by Persisted with
// Durable.Seq.
type Persist struct{ Durable Durable }

// Reply answers a command.
type Reply struct {
	ID     uint64
	Err    string          // text after SERVER_ERROR; empty for success
	Reason string          // why it is refused, machine-readable; empty for success
	Nodes  []topology.Node // success of add: the list; nil otherwise (plain OK)
}

// Broadcast asks to send a map to every node in it. A later Broadcast replaces
// an earlier one that has not been sent yet.
type Broadcast struct{ Update MapUpdate }

// MapUpdate is a map and how to send it.
type MapUpdate struct {
	Map topology.Map // Nodes carry the epoch of their partition
	// Extended holds the keys, sorted, of nodes that understand the epoch.
	Extended []string
	// Prior holds the keys of nodes that must hear it before the others.
	Prior []string
	// Except holds the keys of nodes that are leaving and are not told.
	Except []string
}

// WriteConfig asks to publish the options file and the generation it is of.
type WriteConfig struct {
	Seq        uint64
	Generation int64
	Text       string
}

// ScaleTo asks to have that many nodes.
type ScaleTo struct {
	Seq   uint64
	Nodes int
	// What the decision is about: it is void when the workload has another number of
	// nodes now, or the spec another generation.
	From       int
	Generation int64
}

// LabelNodes asks to mark the nodes with their duties, by which Services select.
type LabelNodes struct {
	Seq    uint64
	Labels []NodeLabel // sorted by key, all nodes of the map
}

// NodeLabel is one node's duty.
type NodeLabel struct {
	Key       string
	Role      topology.Role
	State     topology.State
	Partition int // -1 for none
	Serving   bool
}

// WriteStatus asks to publish the summary.
type WriteStatus struct {
	Seq    uint64
	Status Status
}

// GrantLease asks to tell a process that it may take writes as master of a partition
// for TTL from the moment at which it made the token.
type GrantLease struct {
	Key       string
	Instance  string
	Partition int
	Epoch     uint64
	Token     uint64
	TTL       int64 // milliseconds
}

// Event tells people that something worth knowing happened.
type Event struct {
	Warning bool
	Reason  string // machine-readable
	Message string
}

// Decision is a trace of one change of one node, for the log.
type Decision struct {
	Reason  string
	Node    string
	Old     string // role/state/partition, "-" when the node was not known
	New     string
	Version uint64 // of the map that will show it
}

// Refused tells that something that was due is not done, for the log and the metrics.
type Refused struct {
	Action  string // failover, assign
	Reason  string // machine-readable
	Message string
}

func (Persist) effect()     {}
func (Refused) effect()     {}
func (Reply) effect()       {}
func (Broadcast) effect()   {}
func (WriteConfig) effect() {}
func (ScaleTo) effect()     {}
func (LabelNodes) effect()  {}
func (WriteStatus) effect() {}
func (GrantLease) effect()  {}
func (Event) effect()       {}
func (Decision) effect()    {}

// Spec is what is asked for.
type Spec struct {
	Known      bool // false until the first one has been read
	Generation int64
	Partitions int
	Replicas   int // nodes per partition, master included
	MinInSync  int // of them in sync, master included, for it to take writes; 0: it does not matter
	Meta       topology.Meta
	Config     string // text of the options file, but for the cluster replication
	Failover   FailoverPolicy
	// Replication is that to another cluster.
	Replication SpecReplication

	OrphanPurge OrphanPurge
}

// Members are the nodes that are expected to exist.
type Members struct {
	Known bool // false where nobody keeps such a list
	Count int  // number of nodes the workload is scaled to
	List  []Member
}

// Member is one node that is expected to exist.
type Member struct {
	Key         string
	Ordinal     int
	Zone        string // empty when not known
	Address     string // of the pod; empty when not known
	Exists      bool   // the pod exists
	Terminating bool   // the pod is being deleted
	Draining    bool   // its machine shall become empty; it is no place for a master
}

// Status is the summary for people. Everything in it is durable.
type Status struct {
	Generation   int64             `json:"generation"` // of the spec it was computed for
	Phase        Phase             `json:"phase"`
	Reason       string            `json:"reason"` // of the condition that matters most
	Message      string            `json:"message"`
	NodesReady   int               `json:"nodesReady"`
	NodesWanted  int               `json:"nodesWanted"`
	MastersUp    int               `json:"mastersUp"`
	MapVersion   uint64            `json:"mapVersion"`
	Partitions   []PartitionStatus `json:"partitions"`
	Conditions   []Condition       `json:"conditions"`
	ConfigNodes  int               `json:"configNodes"` // nodes that have the configuration of this generation in force
	ConfigReason string            `json:"configReason"`
	Replication  ReplicationStatus `json:"replication,omitzero"`
}

// Phase is the condition of the cluster in one word.
type Phase string

// The phases.
const (
	PhaseForming     Phase = "Forming"
	PhaseRunning     Phase = "Running"
	PhaseProgressing Phase = "Progressing"
	PhaseDegraded    Phase = "Degraded"
	PhaseUnavailable Phase = "Unavailable"
)

// PartitionStatus is one partition.
type PartitionStatus struct {
	Number    int            `json:"number"`
	Epoch     uint64         `json:"epoch"`
	Master    string         `json:"master"` // empty when none is up
	InSync    []string       `json:"inSync"`
	Preparing []string       `json:"preparing"`
	State     PartitionState `json:"state"`
}

// PartitionState is the condition of a partition in one word.
type PartitionState string

// The partition states.
const (
	PartitionHealthy  PartitionState = "Healthy"
	PartitionDegraded PartitionState = "Degraded"
	PartitionDown     PartitionState = "Down"
	PartitionForming  PartitionState = "Forming"
	// PartitionPreparing is one that is being added and not in force yet.
	PartitionPreparing PartitionState = "Preparing"
)

// Condition is one statement about the cluster.
type Condition struct {
	Type    string `json:"type"` // ConditionReady ...
	True    bool   `json:"true"`
	Reason  string `json:"reason"` // machine-readable
	Message string `json:"message"`
}

// The condition types.
const (
	ConditionReady         = "Ready"
	ConditionProgressing   = "Progressing"
	ConditionDegraded      = "Degraded"
	ConditionConfigApplied = "ConfigApplied"
	ConditionBreakerOpen   = "BreakerOpen"
	ConditionPaused        = "Paused"

	ConditionPartitionReductionRefused = "PartitionReductionRefused"
	// ConditionClusterReplication is there only while a replication to another cluster
	// is asked for or under way; true while the target gets every write.
	ConditionClusterReplication = "ClusterReplication"
)
