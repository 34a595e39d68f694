package core

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// FailoverPolicy is what a spec says about when roles may change by themselves. The
// zero value lets them change always.
type FailoverPolicy struct {
	// MinUp is which part of the nodes must be up for roles to change, in millionths:
	// what is left when more than that is lost opens the breaker. 0 for none.
	MinUp int `json:"minUp,omitempty"`
	// HoldZone: the loss of a whole zone opens the breaker too.
	HoldZone bool `json:"holdZone,omitempty"`
	// Grace is for how long after the controller's start silence is no evidence of
	// death, in milliseconds, unless every node is heard of before.
	Grace int64 `json:"grace,omitempty"`
	// Paused: no roles change by themselves.
	Paused bool `json:"paused,omitempty"`
}

// Million is the whole of which MinUp is a part.
const Million = 1_000_000

// Safety is what decides whether roles may change by themselves. It is durable, so
// that the next controller decides alike.
type Safety struct {
	Policy   FailoverPolicy `json:"policy,omitzero"` // of the spec last read
	Breaker  Breaker        `json:"breaker,omitzero"`
	Pause    Pause          `json:"pause,omitzero"`
	Override Override       `json:"override,omitzero"`
	// LostZones names the zones whose loss was told of, comma separated.
	LostZones string `json:"lostZones,omitempty"`
}

// BreakerState is the state of the circuit breaker.
type BreakerState string

// The states. Roles change by themselves only while it is closed.
//
//	             too much lost                 nothing too much for Settle
//	closed ---------------------> open    half-open ---------------------> closed
//	                               ^  \      ^ \
//	                               |   '-----'  '--- too much lost: open, Settle doubled
//	                               |  enough is back   |
//	                               '-------------------'
const (
	BreakerClosed   BreakerState = ""
	BreakerOpen     BreakerState = "open"
	BreakerHalfOpen BreakerState = "half_open"
)

// Times of the breaker, in milliseconds.
const (
	breakerSettle    = 10_000  // for how long enough must be back before it closes, the first time
	breakerSettleMax = 300_000 // however often it has opened
	breakerMemory    = 300_000 // it has to be closed for so long to forget how often
)

// Breaker is the circuit breaker: when much is lost at once, it is more likely that
// the controller sees wrong, or that what it would do makes things worse, than that
// each of the nodes has died on its own.
type Breaker struct {
	State  BreakerState `json:"state,omitempty"`
	Reason string       `json:"reason,omitempty"` // why it opened: ReasonBreakerOpen or ReasonZoneLost
	Since  int64        `json:"since,omitempty"`  // when it opened
	Calm   int64        `json:"calm,omitempty"`   // when it became half-open
	Settle int64        `json:"settle,omitempty"` // how long it stays so, next time if it is closed
	Closed int64        `json:"closed,omitempty"` // when it last closed
}

// Pause is an operator's wish that no roles change by themselves; At 0 for none.
type Pause struct {
	At   int64  `json:"at,omitempty"`
	Note string `json:"note,omitempty"` // why, in the operator's words
}

// Override is an operator's leave to change roles though the breaker is open.
type Override struct {
	Until int64  `json:"until,omitempty"` // 0 for none
	Note  string `json:"note,omitempty"`
}

// Bounds of what an operator may ask for.
const (
	MaxOverride = 3600 // seconds
	MaxNote     = 256  // bytes
)

// Losses is what the breaker goes by.
type Losses struct {
	Lost    int    // nodes that had a duty and are dead, or one failed contact from it
	Unknown int    // nodes that nothing was heard of yet
	Total   int    // nodes that have a duty, and lost ones that are missing
	Keys    string // of the lost ones, comma separated; the first few
	Zones   string // that are lost as a whole, comma separated
}

// maxLostKeys is how many lost nodes are named.
const maxLostKeys = 8

// frozen returns why roles may not change by the controller's own decision, with an
// empty reason when they may. What is done on demand goes on: a master that hands
// over, an operator's command. So does what leaves everybody's role to him: a node
// comes up as a proxy, or as the master whose place nobody took.
func (s *State) frozen(d *Durable) Refusal {
	f := &d.Safety
	switch {
	case f.Pause.At != 0:
		return Refusal{ReasonPaused, "paused by an operator: " + f.Pause.Note}
	case f.Policy.Paused:
		return Refusal{ReasonPausedBySpec, "paused by the spec"}
	case f.Breaker.State != BreakerClosed && s.Now >= f.Override.Until:
		return Refusal{ReasonBreakerOpen, s.describeBreaker(d)}
	}
	return Refusal{}
}

// frozen tells it of what has been decided.
func (w *work) frozen() Refusal { return w.s.frozen(&w.s.Durable) }

// describeBreaker tells in words why the breaker is not closed.
func (s *State) describeBreaker(d *Durable) string {
	b, l := d.Safety.Breaker, s.Losses
	if b.State == BreakerHalfOpen {
		return fmt.Sprintf("%d of %d nodes are lost, which is not too many any more; the breaker closes if it stays so for %d s", l.Lost, l.Total, b.Settle/1000)
	}
	text := fmt.Sprintf("%d of %d nodes are lost", l.Lost, l.Total)
	if l.Keys != "" {
		text += " (" + l.Keys + ")"
	}
	if l.Unknown > 0 {
		text += fmt.Sprintf(", and nothing was heard yet of %d", l.Unknown)
	}
	if b.Reason == ReasonZoneLost {
		return fmt.Sprintf("zone %s is lost, and failover.onZoneLoss is hold: %s", d.Safety.LostZones, text)
	}
	return text + ", more than failover.maxDownFraction " + fraction(Million-d.Safety.Policy.MinUp) + " allows"
}

// fraction writes millionths as a fraction.
func fraction(millionths int) string {
	text := strings.TrimRight(fmt.Sprintf("%d.%06d", millionths/Million, millionths%Million), "0")
	return strings.TrimSuffix(text, ".")
}

// clock writes a time for people.
func clock(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }

// obey takes what the spec says about failover.
func (w *work) obey(p FailoverPolicy) {
	f := &w.s.Durable.Safety
	if f.Policy == p {
		return
	}
	was := f.Policy
	f.Policy, w.dirty = p, true
	switch {
	case p.Paused && !was.Paused:
		w.event(false, ReasonPausedBySpec, "the spec says paused: no roles change by themselves")
	case !p.Paused && was.Paused && f.Pause.At == 0:
		w.event(false, ReasonResumed, "roles change by themselves again")
	}
}

// judgeGrace ends the grace period when it is over, or every node that is up in the
// map was heard of.
func (w *work) judgeGrace() {
	s := &w.s
	if s.GraceOver {
		return
	}
	var silent []string
	for _, n := range s.Durable.Nodes {
		if n.up() && !w.heard(n) {
			silent = append(silent, n.Key())
		}
	}
	switch {
	case len(silent) == 0:
		s.GraceOver = true
	case s.Now >= s.Started+s.Durable.Safety.Policy.Grace:
		s.GraceOver = true
		w.event(true, ReasonGraceOver, "nothing was heard of %s in the %d s since the controller's start: from now on silence counts",
			few(silent), s.Durable.Safety.Policy.Grace/1000)
	}
}

// heard reports whether there was any sign of life of a node since the controller's
// start.
func (w *work) heard(n Node) bool {
	o := w.s.seen(n.Key())
	return o != nil && (o.AgentAt != 0 || o.AddedAt != 0 || o.OKSince != 0)
}

// few names the first of a list.
func few(keys []string) string {
	if len(keys) > maxLostKeys {
		return strings.Join(keys[:maxLostKeys], ", ") + fmt.Sprintf(" and %d more", len(keys)-maxLostKeys)
	}
	return strings.Join(keys, ", ")
}

// lost reports whether a node is dead or about to be taken for it. A failure of many
// is noticed at one node first: the others count before there is enough against them
// to act upon.
func (w *work) lost(n Node) bool {
	if !n.up() {
		return !w.returned(n)
	}
	if w.dead(n) != "" {
		return true
	}
	o := w.s.seen(n.Key())
	if o == nil || !w.s.GraceOver || n.State == topology.Prepare {
		return false
	}
	silent := !o.Agent || w.s.Now-o.AgentAt > agentSilence
	return o.PingFails >= failsDead-1 || silent && o.AgentAt > 0 && o.PingFails >= failsDeadSilent-1
}

// countLosses counts the nodes that have, or had, a duty. Of those that are lost only
// as many count as are missing: one whose place another node has taken is no loss any
// more, and who never had a duty, as anybody can register, is none either.
func (w *work) countLosses() Losses {
	s := &w.s
	var l Losses
	var keys []string
	alive, spare := 0, 0
	type zone struct {
		name        string
		nodes, lost int
	}
	var zones []zone
	for _, n := range s.Durable.Nodes {
		if n.Partition < 0 && n.Home < 0 {
			if n.up() && n.Extended && !w.lost(n) {
				spare++
			}
			continue
		}
		lost := w.lost(n)
		if n.Zone != "" {
			i := slices.IndexFunc(zones, func(z zone) bool { return z.name == n.Zone })
			if i < 0 {
				zones = append(zones, zone{name: n.Zone})
				i = len(zones) - 1
			}
			zones[i].nodes++
			if lost {
				zones[i].lost++
			}
		}
		switch {
		case lost:
			keys = append(keys, n.Key())
		case !s.GraceOver && !w.heard(n):
			l.Unknown++
			alive++
		default:
			alive++
		}
	}
	l.Lost = len(keys)
	if want := s.wantedNodes(); want > 0 {
		l.Lost = min(l.Lost, max(0, want-alive-spare))
	}
	l.Total = alive + l.Lost
	if l.Lost > 0 {
		l.Keys = few(keys)
	}
	// A zone of one node is not told from that node.
	var gone []string
	for _, z := range zones {
		if z.nodes >= 2 && z.lost == z.nodes && l.Lost >= z.nodes && alive > 0 {
			gone = append(gone, z.name)
		}
	}
	slices.Sort(gone)
	l.Zones = strings.Join(gone, ", ")
	return l
}

// tooMuch reports whether so many lost nodes are more than may be.
func (p FailoverPolicy) tooMuch(lost, total int) bool {
	return (total-lost)*Million < p.MinUp*total
}

// judgeBreaker opens the breaker at once when too much is lost, and closes it when
// enough has been back for a while; the more often it opens, the longer that is. A
// node that nothing was heard of after a start does not open it, but keeps it open.
func (w *work) judgeBreaker() {
	s := &w.s
	f := &s.Durable.Safety
	if len(s.Durable.Partitions) == 0 {
		s.Losses = Losses{}
		return // nothing to lose yet
	}
	s.Losses = w.countLosses()
	w.tellZones()
	w.expireOverride()
	l, b := s.Losses, f.Breaker
	reason := ""
	switch {
	case f.Policy.tooMuch(l.Lost, l.Total), b.State != BreakerClosed && f.Policy.tooMuch(l.Lost+l.Unknown, l.Total):
		reason = ReasonBreakerOpen
	case f.Policy.HoldZone && l.Zones != "":
		reason = ReasonZoneLost
	}
	b.Calm = min(b.Calm, s.Now) // of a controller whose clock is ahead
	switch {
	case reason != "" && b.State == BreakerOpen:
		b.Reason = reason
	case reason != "":
		settle := int64(breakerSettle)
		if b.State == BreakerHalfOpen || b.Closed != 0 && s.Now < b.Closed+breakerMemory {
			settle = min(max(2*b.Settle, breakerSettle), breakerSettleMax)
		}
		b = Breaker{State: BreakerOpen, Reason: reason, Since: s.Now, Settle: settle, Closed: b.Closed}
	case b.State == BreakerOpen:
		b.State, b.Calm = BreakerHalfOpen, s.Now
	case b.State == BreakerHalfOpen && s.Now >= b.Calm+b.Settle:
		b = Breaker{Settle: b.Settle, Closed: s.Now}
	}
	if b == f.Breaker {
		return
	}
	was := f.Breaker.State
	f.Breaker, w.dirty = b, true
	if b.State == was {
		return
	}
	switch b.State {
	case BreakerOpen:
		w.event(true, ReasonBreakerOpen, "%s: no roles change by themselves", s.describeBreaker(&s.Durable))
	case BreakerHalfOpen:
		w.event(false, ReasonBreakerHalfOpen, "%s", s.describeBreaker(&s.Durable))
	default:
		w.event(false, ReasonBreakerClosed, "%d of %d nodes are lost: roles change by themselves again", l.Lost, l.Total)
	}
}

// tellZones names the zones that are lost as a whole, once.
func (w *work) tellZones() {
	f, l := &w.s.Durable.Safety, w.s.Losses
	if f.LostZones == l.Zones {
		return
	}
	f.LostZones, w.dirty = l.Zones, true
	switch {
	case l.Zones == "":
		w.event(false, ReasonZoneBack, "no zone is lost as a whole any more")
	case f.Policy.HoldZone:
		w.event(true, ReasonZoneLost, "zone %s is lost: none of its nodes is left; their roles are held (failover.onZoneLoss)", l.Zones)
	default:
		w.event(true, ReasonZoneLost, "zone %s is lost: none of its nodes is left; replicas in sync elsewhere take over (failover.onZoneLoss)", l.Zones)
	}
}

// expireOverride ends an operator's leave whose time is over.
func (w *work) expireOverride() {
	f := &w.s.Durable.Safety
	if f.Override.Until == 0 || w.s.Now < f.Override.Until {
		return
	}
	f.Override, w.dirty = Override{}, true
	w.event(false, ReasonOverrideOver, "the operator's leave to change roles in spite of the breaker has ended")
}

// holdBack reports whether no duties are to be given or taken, for a reason, and tells
// once when that keeps a node from one that it could have.
func (w *work) holdBack(r Refusal) bool {
	s := &w.s
	if r.Reason == "" {
		s.HeldBack = ""
		return false
	}
	if s.Blocked.Reason == "" {
		s.Blocked = r
	}
	if s.HeldBack != r.Reason && w.short() && len(w.free()) > 0 {
		s.HeldBack = r.Reason
		w.emit(Refused{Action: "assign", Reason: r.Reason, Message: "nodes without a duty get none: " + r.Message})
	}
	return true
}

// short reports whether a partition has fewer nodes than wanted.
func (w *work) short() bool {
	nodes := make([]int, len(w.s.Durable.Partitions))
	for _, n := range w.s.Durable.Nodes {
		if n.up() && n.Partition >= 0 && n.Partition < len(nodes) {
			nodes[n.Partition]++
		}
	}
	return slices.ContainsFunc(nodes, func(have int) bool { return have < w.s.Spec.Replicas })
}

// noteZone keeps the zone of a node, which nobody can tell of when the node is gone.
func (w *work) noteZone(key string) {
	if n := w.s.Durable.node(key); n != nil {
		if z := w.s.zone(key); z != n.Zone {
			n.Zone, w.dirty = z, true
		}
	}
}

// pause keeps roles from changing by themselves until an operator resumes.
func (w *work) pause(c Command) string {
	if c.Note == "" || len(c.Note) > MaxNote {
		return RefuseNote
	}
	f := &w.s.Durable.Safety
	if f.Pause.At != 0 && f.Pause.Note == c.Note {
		return ""
	}
	f.Pause, w.dirty = Pause{At: max(w.s.Now, 1), Note: c.Note}, true
	w.event(false, ReasonPaused, "paused by an operator: %s", c.Note)
	return ""
}

// resume ends an operator's pause.
func (w *work) resume() string {
	f := &w.s.Durable.Safety
	switch {
	case f.Pause.At != 0:
		f.Pause, w.dirty = Pause{}, true
		if f.Policy.Paused {
			w.event(false, ReasonPausedBySpec, "the operator's pause is over; the spec still says paused")
		} else {
			w.event(false, ReasonResumed, "roles change by themselves again")
		}
	case f.Policy.Paused:
		return ReasonPausedBySpec
	}
	return ""
}

// override lets roles change for a while though the breaker is, or will be, open.
func (w *work) override(c Command) string {
	switch {
	case c.Seconds < 0 || c.Seconds > MaxOverride:
		return RefuseSeconds
	case len(c.Note) > MaxNote:
		return RefuseNote
	case w.s.Started == 0:
		return RefuseNotNow
	}
	f := &w.s.Durable.Safety
	if c.Seconds == 0 {
		if f.Override.Until != 0 {
			f.Override, w.dirty = Override{}, true
			w.event(false, ReasonOverrideOver, "the operator's leave to change roles in spite of the breaker was taken back")
		}
		return ""
	}
	f.Override, w.dirty = Override{Until: w.s.Now + int64(c.Seconds)*1000, Note: c.Note}, true
	w.event(true, ReasonOverridden, "an operator lets roles change in spite of the breaker until %s: %s", clock(f.Override.Until), c.Note)
	return ""
}

// breakerCondition tells of the breaker.
func breakerCondition(s *State) Condition {
	f := &s.Saved.Safety
	c := Condition{Type: ConditionBreakerOpen, Reason: ReasonBreakerClosed, Message: "roles change by themselves where they have to"}
	overridden := s.Now < f.Override.Until
	switch {
	case f.Breaker.State == BreakerClosed && overridden:
		c.Reason, c.Message = ReasonOverridden, "an operator keeps it closed until "+clock(f.Override.Until)
	case f.Breaker.State == BreakerClosed && f.LostZones != "":
		c.Reason, c.Message = ReasonZoneLost, "zone "+f.LostZones+" is lost; replicas in sync elsewhere take over"
	case f.Breaker.State == BreakerClosed:
	case overridden:
		c.True, c.Reason = true, ReasonOverridden
		c.Message = s.describeBreaker(&s.Saved) + "; an operator lets roles change all the same until " + clock(f.Override.Until)
	case f.Breaker.State == BreakerHalfOpen:
		c.True, c.Reason, c.Message = true, ReasonBreakerHalfOpen, s.describeBreaker(&s.Saved)
	default:
		c.True, c.Reason, c.Message = true, f.Breaker.Reason, s.describeBreaker(&s.Saved)+": no roles change by themselves"
	}
	return c
}

// pausedCondition tells of the spec's and the operator's pause.
func pausedCondition(s *State) Condition {
	c := Condition{Type: ConditionPaused, Reason: ReasonNotPaused, Message: "nobody has asked for a pause"}
	switch f := &s.Saved.Safety; {
	case f.Pause.At != 0:
		c.True, c.Reason, c.Message = true, ReasonPaused, fmt.Sprintf("paused by an operator since %s: %s", clock(f.Pause.At), f.Pause.Note)
	case f.Policy.Paused:
		c.True, c.Reason, c.Message = true, ReasonPausedBySpec, "spec.paused is true"
	}
	return c
}

// reductionCondition tells whether fewer partitions are asked for than there are.
func reductionCondition(s *State) Condition {
	c := Condition{Type: ConditionPartitionReductionRefused, Reason: ReasonAsWanted, Message: "no fewer partitions are asked for than there are"}
	for _, r := range []Refusal{s.Refusal, s.Blocked} {
		if r.Reason == ReasonPartitionReduction {
			c.True, c.Reason, c.Message = true, r.Reason, r.Message
		}
	}
	return c
}
