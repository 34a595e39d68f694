package sidecar

import (
	"cmp"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/options/wire"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// silence is how long flared may send nothing before it counts as hung: it sends
// its status at least once a second.
const silence = 3 * time.Second

// applyRetry is the time between two attempts to have flared apply a file when
// it does not answer.
const applyRetry = time.Second

// ConfigFile is the name of the options file in the configuration directory.
const ConfigFile = "extra.conf"

// Reasons why a node is not ready beside those that flared gives itself.
const (
	ReasonFlaredDown       = "flared_down"
	ReasonFlaredSilent     = "flared_silent"
	ReasonFlaredNotServing = "flared_not_serving"
)

// State is what the agent knows. It is a value: Step returns a new one and
// changes nothing that the former one refers to. Messages in it are read only.
type State struct {
	Node    string // host:port under which flared registers
	Zone    string
	Version string // the agent's
	Started time.Time

	Flared     Flared
	Config     Config
	Controller bool // the link to the leading controller is up

	Handover, Purge *agentv1.OrderReport // of the controller's last orders; nil for none
}

// Flared is what is known of the process that the agent stands beside.
type Flared struct {
	Alive    bool
	Heard    time.Time           // when the last status came
	Status   *agentv1.NodeStatus // nil before the first
	Restarts uint32              // how often a process was seen to end
}

// File is the content of the configuration directory at one moment.
type File struct {
	Present    bool
	Text       string
	Hash       string // of Text, as AgentStatus has it; empty when not Present
	Generation int64  // 0 when not known
	Note       string // what is unusual about the directory, for people
}

// Config is how far the configuration has come.
type Config struct {
	Read    bool // File holds what was found, be it nothing
	File    File
	Applied string // hash of the last file that flared accepted
	// Answered is the process of flared that has last answered to a file, accepted or not.
	Answered string
	Text     string // that file

	ChangedAt time.Time
	Rejected  bool
	Message   string // the first problem
	// Unread is why the directory could not be read when it was last tried.
	Unread  string
	Options []*agentv1.OptionStatus

	localErr error // of parsing File.Text here
	due      bool  // flared has to be told
	dueAt    time.Time
	inFlight bool
	attempt  uint64 // number of the last Apply

	Applies Applies
}

// Applies counts how applications of a file ended.
type Applies struct{ Accepted, Rejected, Failed uint64 }

// Event is something that the agent's shell saw.
type Event interface{ at() time.Time }

// Events. At is when it was seen.
type (
	// FlaredStatus is a status that flared sent.
	FlaredStatus struct {
		At     time.Time
		Status *agentv1.NodeStatus
	}
	// FlaredLost is the end of flared's status stream, and so of its process.
	FlaredLost struct{ At time.Time }
	// ConfigRead is the configuration directory after it was read.
	ConfigRead struct {
		At   time.Time
		File File
	}
	// ConfigUnreadable is a failure to read the directory, other than that there is
	// nothing to read.
	ConfigUnreadable struct {
		At  time.Time
		Err string
	}
	// ApplyDone is the outcome of an Apply: an answer or an error.
	ApplyDone struct {
		At       time.Time
		Attempt  uint64
		Response *agentv1.ApplyOptionsResponse
		Err      string
	}
	// ControllerLink is the link to the controller coming up or going down.
	ControllerLink struct {
		At time.Time
		Up bool
	}
	// Tick is time that passed.
	Tick struct{ At time.Time }
)

func (e FlaredStatus) at() time.Time     { return e.At }
func (e FlaredLost) at() time.Time       { return e.At }
func (e ConfigRead) at() time.Time       { return e.At }
func (e ConfigUnreadable) at() time.Time { return e.At }
func (e ApplyDone) at() time.Time        { return e.At }
func (e ControllerLink) at() time.Time   { return e.At }
func (e Tick) at() time.Time             { return e.At }

// Apply asks the shell to send a file to flared and to come back with ApplyDone.
type Apply struct {
	Attempt uint64
	Text    string
}

// Step is every decision of the agent: what is known after an event, and the
// file to send to flared, if one is to be sent now.
//
// A file is sent when it has changed and whenever a flared process appears. One
// that is known to be wrong is sent all the same: flared has the last word on
// what it can do, it takes a file whole or not at all, and its answer holds the
// values that are in force.
func Step(s State, e Event) (State, *Apply) {
	c := &s.Config
	switch e := e.(type) {
	case FlaredStatus:
		f := &s.Flared
		before, now := f.Status.GetInstance(), e.Status.GetInstance()
		switch {
		case !f.Alive && f.Status != nil && now == before:
			f.Restarts-- // only the socket had been lost
		case f.Alive && now != before:
			f.Restarts++ // too quick for its end to be seen
		}
		if !f.Alive || now != before {
			c.told()
			c.due, c.dueAt = c.Read, e.At
		}
		f.Alive, f.Heard, f.Status = true, e.At, e.Status

	case FlaredLost:
		if s.Flared.Alive {
			s.Flared.Alive = false
			s.Flared.Restarts++
		}
		c.told()

	case ConfigRead:
		c.Unread = ""
		first := !c.Read
		same := c.File.Present == e.File.Present && c.File.Text == e.File.Text
		c.Read, c.File = true, e.File
		if !first && same {
			if !c.Rejected {
				c.Message = e.File.Note
			}
			break
		}
		var settings []options.Setting
		_, settings, c.localErr = options.Parse(ConfigFile, []byte(e.File.Text), options.Default())
		c.Rejected, c.Message = c.localErr != nil, e.File.Note
		if c.Rejected {
			c.Message = firstProblem(c.localErr)
		}
		c.ChangedAt = e.At
		c.Options = withFile(c.Options, e.File.Text, settings, c.localErr)
		c.due, c.dueAt = true, e.At

	case ConfigUnreadable:
		c.Unread = e.Err

	case ApplyDone:
		if !c.inFlight || e.Attempt != c.attempt {
			break // of a process that has ended since
		}
		c.inFlight = false
		if e.Err == "" {
			c.Answered = s.Flared.Status.GetInstance()
		}
		c.outcome(e)

	case ControllerLink:
		s.Controller = e.Up

	case Ordered:
		if e.Kind == agentv1.OrderKind_ORDER_KIND_PURGE {
			s.Purge = e.Report
		} else {
			s.Handover = e.Report
		}
	}

	if !s.Flared.Alive || !c.due || c.inFlight || e.at().Before(c.dueAt) {
		return s, nil
	}
	c.due, c.inFlight = false, true
	c.attempt++
	return s, &Apply{Attempt: c.attempt, Text: c.File.Text}
}

// MayLead reports whether a process of flared may be given leases: it has heard what the
// file says, if there is one to be read. Before, it could execute writes that the file
// has it forward to another cluster.
func (s State) MayLead(instance string) bool {
	return !s.Config.Read || s.Config.Answered == instance
}

// told forgets an Apply on its way: the process that it went to is gone.
func (c *Config) told() {
	if c.inFlight {
		c.inFlight, c.due = false, true
	}
}

// outcome takes flared's answer. c.due means that the file has changed while it
// was on its way; then the answer is only good for what it reads back.
func (c *Config) outcome(e ApplyDone) {
	if e.Err != "" {
		c.Applies.Failed++
		if !c.due {
			c.due, c.dueAt = true, e.At.Add(applyRetry)
			if !c.Rejected {
				c.Message = fmt.Sprintf("%s is not applied yet: %s", ConfigFile, e.Err)
			}
		}
		return
	}
	if e.Response.GetAccepted() {
		c.Applies.Accepted++
	} else {
		c.Applies.Rejected++
	}
	if c.due {
		_, settings, err := options.Parse(ConfigFile, []byte(c.File.Text), options.Default())
		c.Options = withFile(e.Response.GetOptions(), c.File.Text, settings, err)
		return
	}
	rejected, applied, text, message := true, c.Applied, c.Text, ""
	opts := e.Response.GetOptions()
	switch {
	case e.Response.GetAccepted():
		rejected, applied, text, message = false, c.File.Hash, c.File.Text, c.File.Note
	case c.localErr != nil:
		// Said here with the file's own name; flared may list only names that it knows.
		message = firstProblem(c.localErr)
		_, settings, err := options.Parse(ConfigFile, []byte(c.File.Text), options.Default())
		opts = withFile(opts, c.File.Text, settings, err)
	default:
		message = firstRejected(opts)
	}
	if rejected != c.Rejected || applied != c.Applied {
		c.ChangedAt = e.At
	}
	c.Rejected, c.Applied, c.Text, c.Message, c.Options = rejected, applied, text, message, opts
}

func firstProblem(err error) string {
	if e, ok := err.(*options.ParseError); ok && len(e.Problems) > 0 {
		return e.Problems[0].Error()
	}
	return err.Error()
}

func firstRejected(opts []*agentv1.OptionStatus) string {
	var first *agentv1.OptionStatus
	for _, o := range opts {
		if o.GetState() != agentv1.OptionState_OPTION_STATE_REJECTED {
			continue
		}
		// One that is only refused along with another tells why if nothing else does.
		own, firstOwn := o.GetReason() != options.ReasonFileRejected, first.GetReason() != options.ReasonFileRejected
		if first == nil || own && !firstOwn || own == firstOwn && o.GetLine() < first.GetLine() {
			first = o
		}
	}
	if first == nil {
		return ConfigFile + ": flared rejected it without a reason"
	}
	p := options.Problem{File: ConfigFile, Line: int(first.GetLine()), Key: first.GetKey(),
		Message: cmp.Or(first.GetMessage(), "was rejected: "+first.GetReason())}
	return p.Error()
}

// readBack returns the options with the values that flared read back last.
func readBack(known []*agentv1.OptionStatus) options.Options {
	running := options.Default()
	for _, o := range known {
		if o.GetEffective() == "" {
			continue // not read back; as a line it would be a switch
		}
		// One by one: a newer flared may have values that this agent would refuse.
		running, _, _ = options.Parse("", []byte(o.GetKey()+" = "+o.GetEffective()), running)
	}
	return running
}

// withFile is what can be said of each option once a file was read and before
// flared has answered: known holds the values that flared read back last, and
// settings and err are those of parsing the file here. An option that the file
// changes has no state until flared has spoken.
func withFile(known []*agentv1.OptionStatus, text string, settings []options.Setting, err error) []*agentv1.OptionStatus {
	running, was := readBack(known), make(map[string]*agentv1.OptionStatus)
	for _, o := range known {
		was[o.GetKey()] = o
	}
	wanted, _, _ := options.Parse(ConfigFile, []byte(text), options.Default())

	var out []*agentv1.OptionStatus
	for _, r := range options.Report(running, wanted, settings, err, nil) {
		o := wire.Status(r, 0)
		o.Effective = ""
		k := was[r.Key]
		delete(was, r.Key)
		switch {
		case k != nil && k.GetEffective() != "":
			o.Effective, o.Source = k.GetEffective(), k.GetSource()
			if r.State == options.PendingRestart {
				o.State = agentv1.OptionState_OPTION_STATE_UNSPECIFIED
				if r.Line == 0 && k.GetLine() == 0 {
					o.State = k.GetState()
				}
			}
		case len(known) > 0 && r.Line == 0:
			continue // this flared does not tell
		case r.State != options.Rejected:
			o.State = agentv1.OptionState_OPTION_STATE_UNSPECIFIED
		}
		out = append(out, o)
	}
	// Names that only this flared knows, and that the file does not have any more.
	for _, o := range known {
		if was[o.GetKey()] != nil && o.GetEffective() != "" {
			o := proto.CloneOf(o)
			o.Configured, o.Line = "", 0
			out = append(out, o)
		}
	}
	return out
}

// Status returns what the agent says of itself, without its uptime: that changes
// without any event. The messages in it are those of the state.
func (s State) Status() *agentv1.AgentStatus {
	c := s.Config
	st := &agentv1.AgentStatus{
		Node:                s.Node,
		FlaredAlive:         s.Flared.Alive,
		Flared:              s.Flared.Status,
		AgentVersion:        s.Version,
		FlaredRestarts:      s.Flared.Restarts,
		Zone:                s.Zone,
		ControllerConnected: s.Controller,
		HandoverOrder:       s.Handover,
		PurgeOrder:          s.Purge,
		Config: &agentv1.ConfigStatus{
			Generation:  c.File.Generation,
			Hash:        c.File.Hash,
			AppliedHash: c.Applied,
			Rejected:    c.Rejected,
			Message:     c.Message,
			Options:     c.Options,
		},
	}
	if !c.ChangedAt.IsZero() {
		st.Config.ChangedAt = timestamppb.New(c.ChangedAt)
	}
	if c.Unread != "" && !c.Rejected {
		st.Config.Message = c.Unread
	}
	return st
}

// Readiness tells whether clients can be served by this node, and why not.
type Readiness struct {
	Ready   bool   `json:"ready"`
	Reason  string `json:"reason,omitempty"` // machine-readable
	Message string `json:"message,omitempty"`
}

// Readiness returns whether flared serves. A flared that hangs is not dead, and
// must not be reported so: another master would be made beside it. But it is
// not ready.
func (s State) Readiness(now time.Time) Readiness {
	f := s.Flared
	switch {
	case !f.Alive && f.Status == nil:
		return Readiness{Reason: ReasonFlaredDown, Message: "flared has not answered on its socket yet"}
	case !f.Alive:
		return Readiness{Reason: ReasonFlaredDown, Message: "flared's process has ended"}
	case now.Sub(f.Heard) > silence:
		return Readiness{Reason: ReasonFlaredSilent,
			Message: fmt.Sprintf("flared's process is there but has sent nothing since %s", f.Heard.UTC().Format(time.RFC3339))}
	case !f.Status.GetServing():
		reason := cmp.Or(f.Status.GetNotServingReason(), ReasonFlaredNotServing)
		return Readiness{Reason: reason, Message: "flared does not serve: " + reason}
	}
	return Readiness{Ready: true}
}

// Urgent reports whether a change from one status to another must not wait for
// others to be told with it: what a failover or a client's next request hangs on.
func Urgent(from, to *agentv1.AgentStatus) bool {
	a, b := from.GetFlared(), to.GetFlared()
	return from.GetFlaredAlive() != to.GetFlaredAlive() ||
		a.GetInstance() != b.GetInstance() ||
		a.GetServing() != b.GetServing() ||
		a.GetRole() != b.GetRole() ||
		a.GetState() != b.GetState() ||
		partition(a) != partition(b) ||
		a.GetLeaseEpoch() != b.GetLeaseEpoch() ||
		a.GetGrowth().GetYielded() != b.GetGrowth().GetYielded() ||
		a.GetGrowth().GetFilled() != b.GetGrowth().GetFilled() ||
		from.GetHandoverOrder().GetId() != to.GetHandoverOrder().GetId() ||
		from.GetHandoverOrder().GetRunning() != to.GetHandoverOrder().GetRunning() ||
		from.GetConfig().GetRejected() != to.GetConfig().GetRejected() ||
		from.GetConfig().GetAppliedHash() != to.GetConfig().GetAppliedHash()
}

// partition returns the number of a node's partition, -1 for none or no node.
func partition(n *agentv1.NodeStatus) int {
	if n == nil {
		return -1
	}
	return agentv1.PartitionNumber(n.Partition)
}
