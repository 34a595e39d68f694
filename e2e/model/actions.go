package model

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// Action is something that may happen next.
type Action struct {
	Kind ActionKind
	A, B int8
}

// ActionKind tells what happens.
type ActionKind uint8

// The actions. Those behind Tick go wrong or are asked for, and cost a part of the
// budget; all others go on for ever.
const (
	Save     ActionKind = iota // the durable state under way is saved, and the controller hears so
	Push                       // node A hears the latest map
	OldPush                    // node A hears the latest map of a former controller
	Start                      // node A's process starts
	Add                        // node A registers
	Hello                      // node A says what it holds
	Report                     // node A's agent reports
	Lost                       // the link of node A's agent is seen to be dead
	Ping                       // node A is pinged
	See                        // the controller hears which nodes exist
	Connect                    // replica A comes to its master
	Stream                     // replica A gets what it lacks
	Claim                      // replica A tells the index that it is in sync
	AskLeft                    // master A asks the index to leave a replica behind: its B-th question
	Failsafe                   // master A asks its replicas for the lease
	HandAsk                    // master A asks the index to make another node the master
	HandQuit                   // master A gives a handover up
	Collect                    // node A, which is filled with a new partition, gets all that the masters have
	SendOn                     // master A sends on to that node what it has written since
	Yield                      // master A has sent on everything and says so
	Heal                       // the controller reaches node A again
	Join                       // the other nodes reach node A again
	Thaw                       // node A goes on
	Resume                     // an operator lets roles change by themselves again
	Gone                       // the pod of node A, which is terminating, is gone
	Back                       // the pod of node A is there again
	Arrive                     // late message A arrives
	Tick                       // time passes: Quantum

	LongTick    // a long time passes: Long
	SaveLosing  // as Save, but the replies that waited for it are lost
	SaveFails   // the durable state under way is not saved
	SaveUnknown // it is saved, and the controller hears that it was not
	Takeover    // another controller leads; A: what was under way is saved; B: the former one goes on sending its map
	PushLosing  // node A hears the latest map, and its answer is lost
	Write       // a client's write comes to master A
	Crash       // node A's process ends
	Wipe        // so it does, and the disk is lost
	Cut         // the controller does not reach node A any more
	Sever       // the other nodes do not reach node A any more
	Freeze      // node A's process stops for a while
	Handover    // master A is asked to hand its role to replica B
	Leave       // node A's process is told to end, and says so to the index
	Terminate   // the pod of node A is being deleted
	LateClaim   // as Claim, but the message comes late, and is sent again
	LateAsk     // as AskLeft, likewise
	LateHandAsk // as HandAsk, likewise
	LateReport  // node A's agent reports, and the report comes late
	LateLease   // node A's agent reports, and a lease that answers comes late
	ArriveTwice // late message A arrives, and will once more
	Stray       // somebody registers under node A's name
	Respec      // what is asked for changes
	Pause       // an operator lets no roles change by themselves
	Override    // an operator lets them change though the breaker is open
	actionKinds
)

var actionNames = [actionKinds]string{"save", "push", "old-push", "start", "add", "hello", "report", "lost", "ping", "see", "connect", "stream",
	"claim", "ask-behind", "failsafe", "hand-ask", "hand-quit", "collect", "send-on", "yield", "heal", "join", "thaw", "resume", "gone", "back", "arrive", "tick",
	"long-tick", "save-losing-replies", "save-fails", "save-unknown", "takeover", "push-losing", "write", "crash", "wipe", "cut", "sever", "freeze",
	"handover", "leave", "terminate", "late-claim", "late-ask", "late-hand-ask", "late-report", "late-lease", "arrive-twice", "stray-add", "respec", "pause", "override"}

// String is the form of an action in traces.
func (a Action) String() string { return fmt.Sprintf("%s %d %d", actionNames[a.Kind], a.A, a.B) }

// ParseAction reads what String writes.
func ParseAction(s string) (Action, error) {
	var name string
	var a, b int8
	if _, err := fmt.Sscanf(strings.TrimSpace(s), "%s %d %d", &name, &a, &b); err != nil {
		return Action{}, fmt.Errorf("action %q: want a name and two numbers", s)
	}
	i := slices.Index(actionNames[:], name)
	if i < 0 {
		return Action{}, fmt.Errorf("action %q is not known", name)
	}
	return Action{ActionKind(i), a, b}, nil
}

// Actions appends what may happen next.
func (m *Model) Actions(w *World, list []Action) []Action {
	add := func(k ActionKind, a, b int) { list = append(list, Action{k, int8(a), int8(b)}) }
	left := &w.Left
	s := &w.Ctl.State
	if s.Saving.Seq != 0 {
		add(Save, 0, 0)
		if left.LostReply > 0 && len(s.Replies) > 0 {
			add(SaveLosing, 0, 0)
		}
		if left.Unsaved > 0 {
			add(SaveFails, 0, 0)
		}
		if left.SavedUnknown > 0 {
			add(SaveUnknown, 0, 0)
		}
	}
	if left.Takeover > 0 {
		for saved := range 2 {
			if saved == 1 && s.Saving.Seq == 0 {
				continue
			}
			add(Takeover, saved, 0)
			if saved == 1 || w.Ctl.Pending != 0 {
				add(Takeover, saved, 1)
			}
		}
	}
	if !sameMembers(s.Members, w.API.Members) {
		add(See, 0, 0)
	}
	for i := range w.Nodes {
		n := &w.Nodes[i]
		running := n.Up && !n.Frozen
		reach := running && !n.Cut
		if reach && w.Ctl.Pending&(1<<i) != 0 {
			add(Push, i, 0)
			if left.LostReply > 0 {
				add(PushLosing, i, 0)
			}
		}
		if running && w.Old.Pending&(1<<i) != 0 {
			add(OldPush, i, 0)
		}
		member, listed := w.member(i)
		switch {
		case listed && !member.Exists:
			add(Back, i, 0)
		case !n.Up && (listed || !w.API.Members.Known):
			add(Start, i, 0)
		}
		if listed && member.Exists && member.Terminating {
			add(Gone, i, 0)
		}
		if reach && n.Stage == Fresh && w.mayAdd(i) {
			add(Add, i, 0)
		}
		if reach && n.Stage == Added {
			add(Hello, i, 0)
		}
		o, seen := s.SeenOf(m.keys[i])
		if w.reports(i) {
			// A tick brings a report of everybody; in between there are those that tell
			// something that cannot wait.
			r := w.report(i)
			was := &o.Report
			news := !seen || !o.Agent || was.Alive != r.Alive || was.Instance != r.Instance || was.Serving != r.Serving || was.LeaseEpoch != r.LeaseEpoch ||
				was.Filled != r.Filled || was.Yielded != r.Yielded
			if news {
				add(Report, i, 0)
			}
			if left.Late > 0 {
				add(LateReport, i, 0)
				if n.Held && n.Open {
					add(LateLease, i, 0)
				}
			}
		}
		if seen && o.Agent && (n.Cut || listed && !member.Exists) {
			add(Lost, i, 0)
		}
		if w.Ctl.knows(m.keys[i]) {
			ok := w.pingOutcome(i) == core.PingOK
			if ok && (!o.PingOK || o.PingFails > 0) || !ok && (o.PingFails < 3 || o.PingOK) {
				add(Ping, i, 0)
			}
		}
		if _, ok := w.canConnect(i); ok {
			add(Connect, i, 0)
		}
		if n.To != 0 && w.linked(i, n.To-1) && n.Pos.LSN != w.Nodes[n.To-1].Pos.LSN {
			add(Stream, i, 0)
		}
		if m.Grows {
			if w.canCollect(i) {
				add(Collect, i, 0)
			}
			if f := w.relayed(i); f >= 0 && w.lacks(i, f) {
				add(SendOn, i, 0)
			}
			if w.canYield(i) {
				add(Yield, i, 0)
			}
		}
		if n.Claim != (core.Grant{}) && !n.Claimed && running {
			if !n.Cut {
				add(Claim, i, 0)
			}
			if left.Late > 0 {
				add(LateClaim, i, 0)
			}
		}
		for k := range n.Asks {
			if !n.Asks[k].Sent && running {
				if !n.Cut {
					add(AskLeft, i, k)
				}
				if left.Late > 0 {
					add(LateAsk, i, k)
				}
			}
		}
		if w.canAsk(i) {
			add(Failsafe, i, 0)
		}
		if n.Held && running && n.Hand.To != 0 {
			if (n.Hand.Phase == Draining && w.drained(i)) || n.Hand.Phase == Doubtful {
				if !n.Cut {
					add(HandAsk, i, 0)
				}
				if left.Late > 0 {
					add(LateHandAsk, i, 0)
				}
			}
			if n.Hand.Phase == Draining || n.Hand.Phase == Doubtful {
				add(HandQuit, i, 0)
			}
		}
		if n.Cut {
			add(Heal, i, 0)
		} else if left.Cut > 0 {
			add(Cut, i, 0)
		}
		if n.Apart {
			add(Join, i, 0)
		} else if left.Apart > 0 {
			add(Sever, i, 0)
		}
		if n.Up && n.Frozen {
			add(Thaw, i, 0)
		} else if n.Up && left.Freeze > 0 {
			add(Freeze, i, 0)
		}
		if left.Write > 0 && !n.Frozen && n.writable(w.Now) {
			add(Write, i, 0)
			if m.Grows && n.Tenure.Partition == 0 && n.writesMoving(w.Now) {
				add(Write, i, 1)
			}
		}
		if n.Up && n.Inc < len(instances[0])-1 {
			if left.Crash > 0 {
				add(Crash, i, 0)
			}
			if left.Wipe > 0 {
				add(Wipe, i, 0)
			}
		}
		if left.Leave > 0 && reach && n.Stage == Said && (!n.Held || w.drained(i)) {
			add(Leave, i, 0)
		}
		if left.Terminate > 0 && listed && member.Exists && !member.Terminating {
			add(Terminate, i, 0)
		}
		if left.Handover > 0 {
			for r := range w.Nodes {
				if w.canHandOver(i, r) {
					add(Handover, i, r)
				}
			}
		}
		if left.Stray > 0 && w.mayAdd(i) {
			add(Stray, i, 0)
		}
	}
	for k := range w.Mail {
		add(Arrive, k, 0)
		if left.Twice > 0 {
			add(ArriveTwice, k, 0)
		}
	}
	switch f := &s.Durable.Safety; {
	case f.Pause.At != 0:
		add(Resume, 0, 0)
	case left.Pause > 0:
		add(Pause, 0, 0)
	}
	if f := &s.Durable.Safety; left.Override > 0 && f.Breaker.State != core.BreakerClosed {
		add(Override, 0, 0)
	}
	if left.Respec > 0 && m.Respec != nil {
		add(Respec, 0, 0)
	}
	// What takes no time in a world where nothing is slow has happened before time
	// passes; a world has a budget for what has not.
	if left.Slow > 0 || !slices.ContainsFunc(list, func(a Action) bool { return prompt[a.Kind] }) {
		add(Tick, 0, 0)
		if left.LongTick > 0 || m.Patient {
			add(LongTick, 0, 0)
		}
	}
	return list
}

// prompt are the actions that take much less than Quantum unless something is slow.
var prompt = [actionKinds]bool{Save: true, Push: true, OldPush: true, Add: true, Hello: true, Report: true,
	See: true, Connect: true, Stream: true, Claim: true, SendOn: true, Yield: true, AskLeft: true, HandAsk: true}

func sameMembers(a, b core.Members) bool {
	return a.Known == b.Known && a.Count == b.Count && slices.Equal(a.List, b.List)
}

func (w *World) member(i int) (core.Member, bool) {
	for _, x := range w.API.Members.List {
		if x.Key == w.m.keys[i] {
			return x, true
		}
	}
	return core.Member{}, false
}

// mayAdd reports whether another attempt to register under a node's name can tell the
// controller anything: it does not count more than three refused ones.
func (w *World) mayAdd(i int) bool {
	o, _ := w.Ctl.State.SeenOf(w.m.keys[i])
	return o.AddTries < 3 || slices.ContainsFunc(w.Ctl.State.Durable.Nodes, func(n core.Node) bool {
		return n.Key() == w.m.keys[i] && n.State == topology.Down
	})
}

// knows reports whether a node is in the map that was handed to the broadcaster, which
// pings those.
func (c *Controller) knows(key string) bool {
	_, ok := c.Latest.Find(key)
	return ok
}

// reports reports whether the agent of a node can tell the controller how it is.
func (w *World) reports(i int) bool {
	member, listed := w.member(i)
	return !w.Nodes[i].Cut && !w.Nodes[i].Frozen && !(listed && !member.Exists)
}

// ping pings a node: once, or so often that another failure makes no difference any more.
func (w *World) ping(i int) {
	o, _ := w.Ctl.State.SeenOf(w.m.keys[i])
	outcome := w.pingOutcome(i)
	if outcome == core.PingOK && o.PingOK && o.PingFails == 0 {
		return
	}
	w.input(core.Pinged{Key: w.m.keys[i], Outcome: outcome})
	if outcome != core.PingOK && o.PingFails > 0 {
		for fails := o.PingFails + 1; fails < core.PingThreshold; fails++ {
			w.input(core.Pinged{Key: w.m.keys[i], Outcome: outcome})
		}
	}
}

func (w *World) pingOutcome(i int) core.PingOutcome {
	switch n := &w.Nodes[i]; {
	case n.Cut || n.Frozen:
		return core.PingTimeout
	case !n.Up:
		return core.PingRefused
	}
	return core.PingOK
}

// drained reports whether every replica that a master waits for has everything.
func (w *World) drained(i int) bool {
	n := &w.Nodes[i]
	stable, some := n.Lead.Stable()
	return !some || !stable.Less(n.Pos.LSN)
}

func (w *World) canHandOver(i, r int) bool {
	n := &w.Nodes[i]
	if i == r || !n.Up || n.Frozen || !n.Held || !n.Open || n.Hand.To != 0 || w.Nodes[r].To != i+1 || !w.linked(i, r) {
		return false
	}
	own, ok := n.Map.Find(w.m.keys[r])
	return ok && own.Role == topology.Slave && own.State == topology.Active && own.Partition == n.Tenure.Partition &&
		slices.Contains(n.Lead.InSync(), w.m.keys[r])
}

// Apply lets an action happen. The error tells of an invariant that broke on the way.
func (m *Model) Apply(w *World, a Action) error {
	i := int(a.A)
	var n *Node
	if i >= 0 && i < len(w.Nodes) {
		n = &w.Nodes[i]
	}
	if w.say != nil {
		w.log("%s", w.describe(a))
	}
	left := &w.Left
	switch a.Kind {
	case Save, SaveLosing:
		w.API.Durable = w.Ctl.State.Saving
		if a.Kind == SaveLosing {
			left.LostReply--
		}
		w.inputLosing(core.Persisted{Seq: w.Ctl.State.Saving.Seq}, a.Kind == SaveLosing)
	case SaveFails:
		left.Unsaved--
		w.input(core.Persisted{Seq: w.Ctl.State.Saving.Seq, Err: "unavailable"})
	case SaveUnknown:
		left.SavedUnknown--
		w.API.Durable = w.Ctl.State.Saving
		w.input(core.Persisted{Seq: w.Ctl.State.Saving.Seq, Err: "unavailable"})
	case Takeover:
		left.Takeover--
		w.takeover(a.A == 1, a.B == 1)
	case See:
		w.input(core.MembersChanged{Members: w.API.Members})
	case Push, PushLosing:
		c := &w.Ctl
		version := c.Latest.Version
		if a.Kind == PushLosing {
			left.LostReply--
			w.hear(i, c.Latest, c.Plain&(1<<i) != 0)
			break
		}
		c.Pending &^= 1 << i
		pushed := core.Pushed{Key: m.keys[i], Version: version, Outcome: core.PingOK}
		if !w.hear(i, c.Latest, c.Plain&(1<<i) != 0) {
			pushed.Outcome, pushed.NodeVersion = core.PingBad, n.Map.Version
		}
		w.input(pushed)
		w.input(core.Pinged{Key: m.keys[i], Outcome: core.PingOK})
	case OldPush:
		w.Old.Pending &^= 1 << i
		w.hear(i, w.Old.Latest, w.Old.Plain&(1<<i) != 0)
		if w.Old.Pending == 0 {
			w.Old = Former{}
		}
	case Start:
		w.start(i)
	case Add:
		n.Stage = Adding
		w.command(i, kindAdd, 0, core.Command{Verb: core.VerbAdd})
	case Hello:
		n.Stage = Helloed
		w.command(i, kindHello, 0, core.Command{Verb: core.VerbHello, Hello: core.Hello{
			Instance: n.instance(i), Partition: n.partition(), LSN: n.Pos.LSN, History: n.Pos.History}})
	case Report:
		w.input(w.report(i))
	case LateReport:
		left.Late--
		w.Mail = append(w.Mail, Mail{Kind: MailReport, Report: w.report(i)})
	case LateLease:
		left.Late--
		n.Cut = true // so that the lease does not get there
		before := w.Ctl.State.Leases
		w.input(w.report(i))
		n.Cut = false
		for _, l := range w.Ctl.State.Leases {
			if l.Key == m.keys[i] && !slices.Contains(before, l) {
				w.Mail = append(w.Mail, Mail{Kind: MailLease, Lease: core.GrantLease{Key: l.Key, Instance: l.Instance,
					Partition: l.Partition, Epoch: l.Epoch, Token: l.Token, TTL: topology.LeaseTTL.Milliseconds()}})
			}
		}
	case Lost:
		w.input(core.AgentLost{Key: m.keys[i]})
	case Ping:
		w.ping(i)
	case Connect:
		w.connect(i)
	case Stream:
		w.stream(i)
	case Claim:
		n.Claimed = true
		w.command(i, kindClaim, 0, w.claim(i))
	case LateClaim:
		left.Late--
		w.mail(i, w.claim(i))
	case AskLeft:
		n.Asks[a.B].Sent = true
		w.command(i, kindBehind, w.index(n.Asks[a.B].Key), w.askLeft(n.Asks[a.B]))
	case LateAsk:
		left.Late--
		w.mail(w.index(n.Asks[a.B].Key), w.askLeft(n.Asks[a.B]))
		w.asked(i, n.Asks[a.B].Key, false)
	case Failsafe:
		w.failsafe(i)
	case Handover:
		left.Handover--
		n.Hand = Hand{To: int(a.B) + 1, Epoch: n.Tenure.Epoch, Paused: w.Now}
		n.Open, n.Opened, n.Until = false, 0, 0
	case HandAsk:
		n.Hand.Phase = Asking
		w.command(i, kindHandover, 0, w.handAsk(i))
	case LateHandAsk:
		left.Late--
		w.mail(i, w.handAsk(i))
		n.Hand.Phase = Doubtful
	case HandQuit:
		n.Hand = Hand{}
		w.open(i)
	case Collect:
		w.collect(i)
	case SendOn:
		w.sendOn(i, w.relayed(i))
	case Yield:
		w.yield(i)
	case Write:
		left.Write--
		n.Pos.LSN.Index++
		if a.B == 1 {
			w.Parts[0].Moving = append(slices.Clip(w.Parts[0].Moving), n.Pos.LSN)
		}
		n.Lead.Committed(n.Pos.LSN)
		n.Waiting = append(n.Waiting, Pending{n.Pos.LSN, w.Now})
		w.answer(i)
	case Crash:
		left.Crash--
		w.crash(i)
	case Wipe:
		left.Wipe--
		w.crash(i)
		n.Pos, n.Mark = emptyPosition, false
		w.forgetLost()
	case Cut:
		left.Cut--
		n.Cut = true
	case Heal:
		n.Cut = false
	case Sever:
		left.Apart--
		n.Apart = true
		w.unfollow(i)
		for r := range w.Nodes {
			if w.Nodes[r].To == i+1 {
				w.unfollow(r)
			}
		}
	case Join:
		n.Apart = false
	case Freeze:
		left.Freeze--
		n.Frozen = true
	case Thaw:
		n.Frozen = false
		w.act(i)
	case Leave:
		left.Leave--
		n.Open = false
		w.command(i, kindIgnored, 0, core.Command{Verb: core.VerbShutdown})
		w.crash(i)
	case Terminate:
		left.Terminate--
		w.changeMember(i, func(x *core.Member) { x.Terminating = true })
	case Gone:
		w.crash(i)
		w.changeMember(i, func(x *core.Member) { x.Exists = false })
	case Back:
		w.changeMember(i, func(x *core.Member) { x.Exists, x.Terminating = true, false })
	case Arrive, ArriveTwice:
		letter := w.Mail[i]
		if a.Kind == ArriveTwice {
			left.Twice--
		} else {
			w.Mail = slices.Delete(slices.Clone(w.Mail), i, i+1)
		}
		switch letter.Kind {
		case MailCommand:
			letter.Command.ID = w.strangerID()
			w.input(letter.Command)
		case MailReport:
			letter.Report.Now = w.Now
			w.input(letter.Report)
		case MailLease:
			w.leased(letter.Lease)
		}
	case Stray:
		left.Stray--
		w.command(i, kindIgnored, 0, core.Command{Verb: core.VerbAdd})
	case Pause:
		left.Pause--
		w.input(core.Command{ID: w.strangerID(), Verb: core.VerbPause, Note: "maintenance"})
	case Resume:
		w.input(core.Command{ID: w.strangerID(), Verb: core.VerbResume})
	case Override:
		left.Override--
		w.input(core.Command{ID: w.strangerID(), Verb: core.VerbOverride, Seconds: 2 * Quantum / 1000, Note: "it is known"})
	case Respec:
		left.Respec--
		spec := w.Ctl.State.Spec
		m.Respec(&spec)
		spec.Generation++
		w.input(core.SpecChanged{Spec: spec})
	case Tick, LongTick:
		if slices.ContainsFunc(m.Actions(w, nil), func(a Action) bool { return prompt[a.Kind] }) {
			left.Slow--
		}
		if a.Kind == LongTick {
			if !m.Patient {
				left.LongTick--
			}
			w.Now += Long
		} else {
			w.Now += Quantum
		}
		w.pass()
		for i := range w.Nodes {
			if w.reports(i) {
				w.input(w.report(i))
			}
			if w.Ctl.knows(m.keys[i]) {
				w.ping(i)
			}
		}
		w.input(core.Tick{Now: w.Now})
	}
	return w.broken
}

func (w *World) changeMember(i int, change func(*core.Member)) {
	list := slices.Clone(w.API.Members.List)
	for k := range list {
		if list[k].Key == w.m.keys[i] {
			change(&list[k])
		}
	}
	w.API.Members.List = list
}

// takeover lets another controller lead.
func (w *World) takeover(saved, sends bool) {
	spec := w.Ctl.State.Spec
	if saved {
		w.API.Durable = w.Ctl.State.Saving
		if sends {
			w.inputLosing(core.Persisted{Seq: w.Ctl.State.Saving.Seq}, true)
		}
	}
	w.Old = Former{}
	if sends {
		w.Old = Former{w.Ctl.Latest, w.Ctl.Plain, w.Ctl.Pending}
		if w.Old.Pending == 0 {
			w.Old = Former{}
		}
	}
	for i := range w.Nodes {
		w.disconnected(i)
	}
	if w.broken == nil {
		w.lead(core.New(w.API.Durable), spec)
	}
}

// disconnected ends what a node has asked the controller.
func (w *World) disconnected(i int) {
	n := &w.Nodes[i]
	if n.Stage == Adding || n.Stage == Helloed {
		n.Stage = Fresh
	}
	n.Claimed = false
	for k := range n.Asks {
		n.Asks[k].Sent = false
	}
	if n.Hand.Phase == Asking {
		n.Hand.Phase = Doubtful
	}
}

// Kinds of commands, by which a reply finds who waits for it.
const (
	kindIgnored = iota
	kindAdd
	kindHello
	kindClaim
	kindBehind
	kindHandover
)

// command sends a command of node i to the controller.
func (w *World) command(i, kind, about int, c core.Command) {
	c.ID = uint64(kind | i<<4 | w.Nodes[i].Inc<<8 | about<<16)
	if kind == kindIgnored {
		c.ID = w.strangerID()
	}
	if c.Name == "" {
		c.Name, c.Port = nodeName(i), 1
	}
	w.input(c)
}

// strangers is where the IDs of commands begin that nobody waits for.
const strangers = 1 << 24

// strangerID returns an ID that no command has which is not replied to yet.
func (w *World) strangerID() uint64 {
	id := uint64(strangers)
	for slices.ContainsFunc(w.Ctl.State.Replies, func(p core.PendingReply) bool { return p.Reply.ID == id }) {
		id++
	}
	return id
}

func nodeName(i int) string { return strings.TrimSuffix(nodeKey(i), ":1") }

func (w *World) mail(i int, c core.Command) {
	if c.Name == "" {
		c.Name, c.Port = nodeName(i), 1
	}
	w.Mail = append(w.Mail, Mail{Kind: MailCommand, Command: c})
}

func (w *World) claim(i int) core.Command {
	g := w.Nodes[i].Claim
	return core.Command{Verb: core.VerbState, State: topology.Active, Partition: -1, Epoch: g.Epoch, Session: g.Session, HasSession: true}
}

func (w *World) askLeft(a Ask) core.Command {
	return core.Command{Verb: core.VerbBehind, Name: nodeName(w.index(a.Key)), Port: 1, Partition: -1, Epoch: a.Epoch, Session: a.Session, HasSession: true}
}

func (w *World) handAsk(i int) core.Command {
	n := &w.Nodes[i]
	session := uint64(0)
	if b, ok := n.Lead.Replaceable(w.m.keys[n.Hand.To-1]); ok {
		session = b.Session
	}
	return core.Command{Verb: core.VerbHandover, Target: nodeName(n.Hand.To - 1), TargetPort: 1,
		Epoch: n.Hand.Epoch, Session: session, HasSession: true, Paused: uint64(n.Hand.Paused) * 1e6}
}

// reply hands a reply to the node that waits for it, or ends its connection.
func (w *World) reply(r core.Reply, lost bool) {
	kind, i, inc, about := int(r.ID)&15, int(r.ID)>>4&15, int(r.ID)>>8&255, int(r.ID)>>16
	if r.ID >= strangers {
		return
	}
	n := &w.Nodes[i]
	if !n.Up || n.Inc != inc {
		return
	}
	lost = lost || n.Cut
	if r.Err != "" {
		w.log("    refuse %s: %s", w.m.keys[i], r.Err)
	}
	switch kind {
	case kindAdd:
		switch {
		case n.Stage != Adding:
		case lost || r.Err != "":
			n.Stage = Fresh
		default:
			n.Stage = Added
		}
	case kindHello:
		switch {
		case n.Stage != Helloed:
		case lost || r.Err != "":
			n.Stage = Fresh
		default:
			n.Stage = Said
			w.act(i)
		}
	case kindClaim:
		switch {
		case !n.Claimed:
		case lost:
			n.Claimed = false
		case r.Err != "":
			w.unfollow(i) // a new connection leads to a new grant
			n.Refused = w.Now
		default:
			n.Claim, n.Claimed = core.Grant{}, false
		}
	case kindBehind:
		w.asked(i, w.m.keys[about], !lost && r.Err == "")
	case kindHandover:
		w.handed(i, r, lost)
	}
}

// asked tells a master what became of asking to leave a replica behind.
func (w *World) asked(i int, key string, agreed bool) {
	n := &w.Nodes[i]
	k := slices.IndexFunc(n.Asks, func(a Ask) bool { return a.Key == key })
	if k < 0 || !n.Held {
		return
	}
	b := n.Asks[k].behind()
	n.Asks = slices.Delete(n.Asks, k, k+1)
	if agreed {
		w.log("    node   %s goes on without %s", w.m.keys[i], key)
	}
	w.perform(i, n.Lead.BehindDone(b, agreed, w.time()))
	w.answer(i)
}

// handed tells a master what became of asking to hand its role over.
func (w *World) handed(i int, r core.Reply, lost bool) {
	n := &w.Nodes[i]
	if n.Hand.To == 0 || n.Hand.Phase != Asking {
		return
	}
	switch {
	case lost:
		n.Hand.Phase = Doubtful
	case r.Err == "":
		n.Hand.Phase = Switching
	case r.Err == core.RefuseNotMaster || r.Err == core.RefuseStaleEpoch:
		n.Hand.Phase = Resigned
	default:
		n.Hand = Hand{}
		w.open(i)
	}
}
