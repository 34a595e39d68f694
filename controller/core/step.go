package core

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flarekv/flare/proto/topology"
)

// PingThreshold is how many pings of a node must fail in a row before that counts
// as its death.
const PingThreshold = 3

// Times, in milliseconds, and numbers of contacts.
const (
	retryAfter      = 1_000  // between attempts of a request that failed
	persistRetry    = 300    // the same for Persist, which everything waits for
	bootstrapWait   = 10_000 // for all expected nodes to register, since the first did
	recoveryWait    = 60_000 // the same when nodes hold data of a cluster nobody remembers
	zoneWait        = 2_000  // for the zones of all nodes to be known
	helloWait       = 5_000  // for a node that was an extended one to say hello again
	goneWait        = 30_000 // of answered pings, until a process that should have ended is believed to stay
	agentSilence    = 3_000  // an agent that reports every second is silent after this
	failsDead       = PingThreshold
	failsDeadSilent = 2  // the same when the agent is silent too
	failsDeadSlow   = 30 // time-outs in a row of a node that is being filled
	addTries        = 3  // registrations of a duty-less plain node that are refused
)

// Step takes one input and returns the next state and what shall be done. It
// does not change s, and shares nothing with it that is written later.
func Step(s State, in Input) (State, []Effect) {
	next := s.clone()
	effects, _, _ := Advance(&next, in, false, false)
	return next, effects
}

// Advance is Step for an owner of a state who has no use for what it was before: it
// changes s in place instead of copying it, which in a large cluster costs more than
// to take most inputs. Nothing that it returned before shares memory with s.
//
// What was observed of a node is only noted, and perhaps answered with a lease, when
// it brings nothing on which a decision depends, or when the owner has more to hand
// over and says so (more). judged tells that more was done; owed, that it was not and
// that a decision may depend on what came: the owner says so with the next input, and a
// Tick makes up for it in any case.
func Advance(s *State, in Input, more, owing bool) (effects []Effect, judged, owed bool) {
	w := &work{s: *s}
	quiet := s.quiet(in)
	judged = !(quiet && !owing || more && observed(in))
	w.fold(in)
	w.expireLeases()
	if !judged {
		if r, ok := in.(AgentReport); ok {
			w.grantLease(*w.s.seen(r.Key))
		}
	} else {
		w.expireOrders()
		w.reconcile()
		w.save()
		w.grantLeases()
	}
	*s = w.s
	return w.out, judged, !judged && (owing || !quiet)
}

// observed reports whether an input is what was seen of a node.
func observed(in Input) bool {
	switch in.(type) {
	case AgentReport, AgentLost, Pinged, Pushed:
		return true
	}
	return false
}

// quiet reports whether an input says again what is known: that a node is there,
// as it was, or still not there. In a large cluster nearly all do. That time has
// passed meanwhile is looked at when the next Tick comes.
func (s *State) quiet(in Input) bool {
	switch in := in.(type) {
	case AgentReport:
		o := s.seen(in.Key)
		return s.Started != 0 && o != nil && o.Agent && s.Now-o.AgentAt <= agentSilence &&
			in.MapVersion <= s.Durable.Version && in.steady() == o.Report.steady()
	case Pinged:
		n, o := s.Durable.node(in.Key), s.seen(in.Key)
		if n == nil || o == nil || in.Outcome == PingOK != o.PingOK {
			return false
		}
		return o.PingOK || !n.up()
	case Pushed:
		return in.NodeVersion <= s.Durable.Version
	}
	return false
}

// steady returns a report without what moves all the time and is looked at only when
// something else has happened.
func (r AgentReport) steady() AgentReport {
	r.Now, r.MapVersion, r.LSN, r.LeaseToken, r.FillRecords = 0, 0, topology.LSN{}, 0, 0
	return r
}

// work is one Step under way.
type work struct {
	s   State
	out []Effect

	dirty   bool // the durable state has changed since the last commit
	visible bool // so has the map

	parts   partitionIndex // of s.Durable, while indexed
	indexed bool
}

func (w *work) emit(e ...Effect) { w.out = append(w.out, e...) }

func (w *work) event(warning bool, reason, format string, args ...any) {
	w.emit(Event{Warning: warning, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// fold takes the input into the state.
func (w *work) fold(in Input) {
	s := &w.s
	switch in := in.(type) {
	case Tick:
		s.Now = max(s.Now, in.Now)
		if s.Started == 0 {
			s.Started = s.Now
			w.inheritLeases()
		}
	case SpecChanged:
		s.Spec = in.Spec
		s.Spec.Known = true
	case MembersChanged:
		s.Members = in.Members
		s.Members.List = slices.Clone(in.Members.List)
		slices.SortFunc(s.Members.List, func(a, b Member) int { return strings.Compare(a.Key, b.Key) })
		for _, m := range s.Members.List {
			w.noteZone(m.Key)
		}
	case AgentReport:
		if s.Started != 0 {
			s.Now = max(s.Now, in.Now)
		}
		w.heed(in)
		w.heedOrders(in)
		o := s.see(in.Key)
		o.Agent, o.AgentAt, o.Report = true, s.Now, in
		w.noteZone(in.Key)
		if in.Alive {
			w.raiseVersion(in.MapVersion)
		}
	case AgentLost:
		if o := s.seen(in.Key); o != nil {
			o.Agent = false
		}
	case Pinged:
		w.pinged(in)
	case Pushed:
		w.raiseVersion(in.NodeVersion)
	case Command:
		w.command(in)
	case Persisted:
		w.persisted(in)
	case Done:
		w.done(in)
	case TargetChecked:
		w.targetChecked(in)
	case ClustersCompared:
		w.compared(in)
	}
	w.commit()
}

func (w *work) pinged(in Pinged) {
	if w.s.Durable.node(in.Key) == nil {
		return // the last pings of a node that was removed
	}
	o := w.s.see(in.Key)
	o.PingAt = w.s.Now
	wasOK := o.PingOK
	o.PingOK = in.Outcome == PingOK
	if o.PingOK {
		if !wasOK {
			o.OKSince = w.s.Now
			w.set(in.Key, ReasonUp, func(n *Node) { n.Unproven = false })
		}
		o.PingFails, o.Refused = 0, 0
		return
	}
	o.PingFails++
	if in.Outcome == PingRefused {
		o.Refused++
	} else {
		o.Refused = 0
	}
}

// raiseVersion makes the next map newer than one that a node has: a controller
// that lost its state must not fall behind what the nodes know.
func (w *work) raiseVersion(version uint64) {
	if d := &w.s.Durable; version > d.Version {
		d.Version = version
		w.dirty, w.visible = true, true
	}
}

// set changes a node's entry and traces the change when it is one of duty.
func (w *work) set(key, reason string, change func(*Node)) {
	n := w.s.Durable.node(key)
	old := *n
	change(n)
	if *n == old {
		return
	}
	if n.Home != old.Home {
		w.moved(n, old.Home, old.Floor)
	}
	w.dirty = true
	w.indexed = w.indexed && n.Partition == old.Partition
	if n.duty() != old.duty() {
		w.visible = true
		w.emit(Decision{Reason: reason, Node: key, Old: old.duty(), New: n.duty(), Version: w.s.Durable.Version + 1})
	}
}

// commit numbers what has changed since the last commit.
func (w *work) commit() {
	d := &w.s.Durable
	if w.visible {
		d.Version++
	}
	if w.dirty || w.visible {
		d.Seq++
	}
	w.dirty, w.visible = false, false
}

// reply answers a command once everything decided so far is durable.
func (w *work) reply(r Reply) {
	w.commit()
	if after := w.s.Durable.Seq; after > w.s.Saved.Seq {
		w.s.Replies = append(w.s.Replies, PendingReply{After: after, Reply: r})
		return
	}
	w.emit(r)
}

// save starts persisting what is not durable yet, unless that is under way or
// has just failed.
func (w *work) save() {
	s := &w.s
	if s.Saving.Seq != 0 || s.Durable.Seq == s.Saved.Seq || s.Now < s.PersistRetry {
		return
	}
	s.Saving = s.Durable.clone()
	w.emit(Persist{Durable: s.Saving.clone()})
}

// persisted takes the result of a Persist and releases what waited for it.
func (w *work) persisted(in Persisted) {
	s := &w.s
	if s.Saving.Seq == 0 || s.Saving.Seq != in.Seq {
		return // an answer to a question nobody asked
	}
	if in.Err != "" {
		if s.PersistError == "" {
			w.event(true, ReasonPersistFailed, "the node map could not be saved: %s", in.Err)
		}
		s.Saving = Durable{}
		s.PersistRetry = s.Now + persistRetry
		s.PersistError = in.Err
		return
	}
	s.Saved, s.Saving = s.Saving, Durable{}
	s.PersistRetry, s.PersistError = 0, ""
	w.release()
}

// release lets out the replies and the map that have become durable.
func (w *work) release() {
	s := &w.s
	if s.Saved.Version > s.SentVersion && !w.recovering() {
		s.SentVersion = s.Saved.Version
		u := MapUpdate{Map: s.Saved.Map()}
		for _, n := range s.Saved.Nodes {
			if n.Extended {
				u.Extended = append(u.Extended, n.Key())
			}
		}
		known := func(keys []string) []string {
			keys = slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return s.Saved.node(k) == nil })
			slices.Sort(keys)
			return slices.Compact(keys)
		}
		u.Prior, u.Except = known(s.Prior), known(s.Except)
		// What was decided since this was sent to be saved keeps its turn: telling a
		// node early or a leaving node once more is harmless.
		if s.Saved.Version == s.Durable.Version {
			s.Prior, s.Except = nil, nil
		}
		w.emit(Broadcast{Update: u})
	}
	keep := s.Replies[:0:0]
	for _, p := range s.Replies {
		if p.After <= s.Saved.Seq {
			w.emit(p.Reply)
		} else {
			keep = append(keep, p)
		}
	}
	s.Replies = keep
}

// recovering reports whether the state was lost while nodes go on serving with
// the map they have. They keep it until their duties are known again: a map
// without masters would stop them.
func (w *work) recovering() bool {
	return len(w.s.Saved.Partitions) == 0 && slices.ContainsFunc(w.s.Seen, func(o Seen) bool {
		r := o.Report
		return o.Agent && r.Alive && r.Serving && r.MapVersion > 0 && r.Partition >= 0
	})
}

// done takes the result of a request.
func (w *work) done(in Done) {
	s := &w.s
	finish := func(c *Channel) bool {
		if !c.InFlight || c.Seq != in.Seq {
			return false
		}
		c.InFlight, c.Error, c.Retry = false, in.Err, 0
		if in.Err != "" {
			c.Retry = s.Now + retryAfter
		}
		return in.Err == ""
	}
	switch in.Request {
	case RequestConfig:
		if finish(&s.Config) {
			s.ConfigWritten = s.ConfigWanted
		}
	case RequestScale:
		if finish(&s.Scale) {
			s.Scale.Retry = s.Now + scaleShows
		}
	case RequestLabels:
		if finish(&s.Labels) {
			s.LabelsDone = s.LabelsSent
		}
	case RequestStatus:
		if finish(&s.Status) {
			s.StatusDone = s.StatusSent
		}
	}
}

// open claims a channel for a request; false when it is not free.
func (w *work) open(c *Channel) bool {
	if c.InFlight || w.s.Now < c.Retry {
		return false
	}
	c.InFlight = true
	c.Seq++
	return true
}

// Describe names an input in a few words, for logs.
func Describe(in Input) string {
	switch in := in.(type) {
	case Tick:
		return "tick"
	case SpecChanged:
		return fmt.Sprintf("spec generation=%d partitions=%d replicas=%d", in.Spec.Generation, in.Spec.Partitions, in.Spec.Replicas)
	case MembersChanged:
		return fmt.Sprintf("members count=%d", in.Members.Count)
	case AgentReport:
		return fmt.Sprintf("agent %s alive=%t instance=%s", in.Key, in.Alive, cmp.Or(in.Instance, "-"))
	case AgentLost:
		return "agent-lost " + in.Key
	case Pinged:
		return fmt.Sprintf("ping %s %s", in.Key, in.Outcome)
	case Pushed:
		return fmt.Sprintf("push %s version=%d %s", in.Key, in.Version, in.Outcome)
	case Command:
		return describeCommand(in)
	case Persisted:
		return fmt.Sprintf("persisted seq=%d", in.Seq)
	case Done:
		return fmt.Sprintf("done %s", in.Request)
	case TargetChecked:
		return fmt.Sprintf("target %s %s", in.Target, cmp.Or(in.Reason, "answers"))
	case ClustersCompared:
		return fmt.Sprintf("compared with %s equal=%t", in.Target, in.Comparison.Equal)
	}
	return "?"
}

func describeCommand(c Command) string {
	key := nodeKey(c.Name, c.Port)
	switch c.Verb {
	case VerbStartReplication, VerbCutOver, VerbRollBack:
		return fmt.Sprintf("%s force=%t", c.Verb, c.Force)
	case VerbHello:
		return fmt.Sprintf("hello %s instance=%s holds=%d at=%v", key, cmp.Or(c.Hello.Instance, "-"), c.Hello.Partition, c.Hello.LSN)
	case VerbRole:
		return fmt.Sprintf("role %s %v balance=%d partition=%d", key, c.Role, c.Balance, c.Partition) + lossy(c)
	case VerbState:
		if c.HasSession {
			return fmt.Sprintf("state %s %v grant=%d/%d", key, c.State, c.Epoch, c.Session)
		}
		return fmt.Sprintf("state %s %v", key, c.State) + lossy(c)
	case VerbHandover:
		return fmt.Sprintf("handover %s to %s grant=%d/%d paused=%d", key, nodeKey(c.Target, c.TargetPort), c.Epoch, c.Session, c.Paused)
	case VerbMove:
		if c.Target == "" {
			return "move " + key
		}
		return fmt.Sprintf("move %s to %s", key, nodeKey(c.Target, c.TargetPort))
	case VerbForce:
		return fmt.Sprintf("force %s partition=%d allow_data_loss=%t: %s", key, c.Partition, c.AllowDataLoss, c.Note)
	case VerbPause:
		return "pause: " + c.Note
	case VerbResume:
		return "resume"
	case VerbOverride:
		return fmt.Sprintf("override for %d s: %s", c.Seconds, c.Note)
	case VerbImport:
		return "import of a flare.xml"
	case VerbBehind:
		return fmt.Sprintf("behind %s partition=%d grant=%d/%d", key, c.Partition, c.Epoch, c.Session)
	}
	return string(c.Verb) + " " + key
}

// clearDuty makes a node a proxy without data duty.
func clearDuty(n *Node) {
	n.Role, n.Partition, n.Balance = topology.Proxy, topology.NoPartition, 0
	n.Granted = Grant{}
}

func lossy(c Command) string {
	if c.AllowDataLoss {
		return " allow_data_loss"
	}
	return ""
}
