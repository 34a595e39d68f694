package node

import (
	"cmp"
	"slices"
	"time"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/proto/topology"
)

// A handoverPhase is how far a master is in handing its role to a replica.
//
//	approaching -> pausing -> draining -> asking -> switching -> done
//	     |                       |          |
//	     '-----------------------+----------+-----------------> rolled_back
//
// Until the index is asked everything can be taken back. Once it was asked and has
// not answered, the replica may be the master already: writes then go on waiting
// until a node map or the index tells, for as long as clients can be made to wait
// for it; only after that they go on here.
type handoverPhase string

const (
	handoverApproaching handoverPhase = "approaching" // the target comes close; writes go on
	handoverPausing     handoverPhase = "pausing"     // writes under way are committed, others wait
	handoverDraining    handoverPhase = "draining"    // the replicas get what is left
	handoverAsking      handoverPhase = "asking"      // the index is asked to make the target the master
	handoverSwitching   handoverPhase = "switching"   // it has; the node map that says so is under way
	handoverDone        handoverPhase = "done"
	handoverRolledBack  handoverPhase = "rolled_back"
)

// Reasons for which a role is not handed over.
const (
	reasonNotMaster       = "not_master"
	reasonNoInSyncReplica = "no_in_sync_replica"
	reasonTargetNotInSync = "target_not_in_sync"
	reasonStaleEpoch      = "stale_epoch"
	reasonDeadline        = "deadline"
	reasonCancelled       = "cancelled"
	reasonIndexUnreach    = "index_unreachable"
	reasonIndexRefused    = "index_refused" // followed by a colon and what the index says
)

// A handoverAction is what the machine wants to be done.
type handoverAction uint8

const (
	handoverNothing handoverAction = iota
	handoverPause                  // close the gate, then tell with paused
	handoverAsk                    // ask the index, then tell with answered
	handoverResume                 // let writes go on here, unless the role is gone
)

// handoverLimits bound the phases.
type handoverLimits struct {
	approach time.Duration // from the beginning until writes are paused
	lag      uint64        // batches that may be left when they are
	drain    time.Duration // from the pause until the index is asked
	ask      time.Duration // from then until writes go on here although nothing is known
	retry    time.Duration // between two times that the index is asked
}

// handoverView is what is seen of the world.
type handoverView struct {
	leads  bool   // this node holds the role that it is about to give away
	master string // of the partition, in the node map in force
	epoch  uint64 // of the partition there

	inSync  bool   // writes wait for the target, and it is connected
	lag     uint64 // batches that it lacks
	drained bool   // it, and every other replica that writes wait for, has all of them
}

// A handoverAnswer is what became of asking the index.
type handoverAnswer uint8

const (
	handoverAgreed  handoverAnswer = iota
	handoverRefused                // for good: what was asked before will not be done either
	handoverUnsent                 // it was not reached
	handoverUnknown                // it may have been done
)

// A handover is the state machine of one. Time and what happens go in, what is to be
// done comes out; it is used by one goroutine.
type handover struct {
	target string
	epoch  uint64 // in which this node leads
	limits handoverLimits

	phase  handoverPhase
	reason string // of a roll-back
	passed []handoverStep
	since  time.Time // when the phase began

	begunAt, pausedAt, askedAt, endedAt time.Time
	head                                topology.LSN // everything that was written before the pause

	asking   bool // an answer is awaited
	again    time.Time
	inDoubt  bool   // the index may have done what it was asked
	resigned string // what the index said that means: another node leads
}

// A handoverStep is a phase that is over.
type handoverStep struct {
	phase handoverPhase
	took  time.Duration
}

func newHandover(target string, epoch uint64, limits handoverLimits, now time.Time) *handover {
	return &handover{target: target, epoch: epoch, limits: limits,
		phase: handoverApproaching, begunAt: now, since: now}
}

func (h *handover) over() bool { return h.phase == handoverDone || h.phase == handoverRolledBack }

// asked reports whether it is too late to take everything back.
func (h *handover) asked() bool { return h.phase == handoverAsking || h.phase == handoverSwitching }

// waited returns for how long writes have waited.
func (h *handover) waited(now time.Time) time.Duration {
	if h.pausedAt.IsZero() {
		return 0
	}
	if !h.endedAt.IsZero() {
		now = h.endedAt
	}
	return now.Sub(h.pausedAt)
}

func (h *handover) enter(p handoverPhase, now time.Time) {
	h.passed = append(h.passed, handoverStep{h.phase, now.Sub(h.since)})
	h.phase, h.since = p, now
	if h.over() {
		h.endedAt = now
	}
}

func (h *handover) rollBack(reason string, now time.Time) handoverAction {
	h.reason = reason
	h.enter(handoverRolledBack, now)
	return handoverResume
}

// look takes a look at the world in.
func (h *handover) look(v handoverView, now time.Time) handoverAction {
	switch h.phase {
	case handoverApproaching:
		switch {
		case !v.leads:
			return h.rollBack(reasonNotMaster, now)
		case !v.inSync:
			return h.rollBack(reasonTargetNotInSync, now)
		case now.Sub(h.begunAt) >= h.limits.approach:
			return h.rollBack(reasonDeadline, now)
		case v.lag <= h.limits.lag:
			h.pausedAt = now
			h.enter(handoverPausing, now)
			return handoverPause
		}
	case handoverDraining:
		switch {
		case !v.leads:
			return h.rollBack(reasonNotMaster, now)
		case !v.inSync:
			return h.rollBack(reasonTargetNotInSync, now)
		case v.drained:
			h.askedAt = now
			h.enter(handoverAsking, now)
			return h.ask()
		case now.Sub(h.pausedAt) >= h.limits.drain:
			return h.rollBack(reasonDeadline, now)
		}
	case handoverAsking, handoverSwitching:
		return h.await(v, now)
	}
	return handoverNothing
}

// await waits for the index and the node map, once the former was asked.
func (h *handover) await(v handoverView, now time.Time) handoverAction {
	late := now.Sub(h.askedAt) >= h.limits.ask
	switch {
	case v.epoch > h.epoch && (v.master == h.target || h.phase == handoverSwitching):
		h.enter(handoverDone, now)
	case v.epoch > h.epoch:
		return h.rollBack(cmp.Or(h.resigned, reasonNotMaster), now)
	case h.phase == handoverSwitching:
		if late { // the index has said so, and the map will come
			h.enter(handoverDone, now)
		}
	case h.asking:
	case late:
		return h.rollBack(cmp.Or(h.resigned, reasonIndexUnreach), now)
	case h.resigned != "":
	case !h.inDoubt && !v.leads:
		return h.rollBack(reasonNotMaster, now)
	case !h.inDoubt && now.Sub(h.pausedAt) >= h.limits.drain:
		return h.rollBack(reasonIndexUnreach, now) // never reached, so nothing is in doubt
	case !now.Before(h.again):
		return h.ask()
	}
	return handoverNothing
}

func (h *handover) ask() handoverAction {
	h.asking = true
	return handoverAsk
}

// paused tells that the gate is closed, and up to where everything was written.
func (h *handover) paused(head topology.LSN, now time.Time) {
	h.head = head
	h.enter(handoverDraining, now)
}

// unpaused tells that the gate cannot be closed: the role is gone.
func (h *handover) unpaused(now time.Time) handoverAction { return h.rollBack(reasonNotMaster, now) }

// answered tells what became of asking the index; reason is what it said.
func (h *handover) answered(a handoverAnswer, reason string, now time.Time) handoverAction {
	h.asking = false
	h.again = now.Add(h.limits.retry)
	switch {
	case h.phase != handoverAsking: // a map was faster
	case a == handoverAgreed:
		h.enter(handoverSwitching, now)
	case a == handoverRefused && (reason == reasonNotMaster || reason == reasonStaleEpoch):
		// Somebody else leads, or will: to write on here would be wrong.
		h.resigned = reasonIndexRefused + ":" + reason
	case a == handoverRefused:
		return h.rollBack(reasonIndexRefused+":"+reason, now)
	case a == handoverUnknown:
		h.inDoubt = true
	}
	return handoverNothing
}

// cancel takes everything back if that is possible.
func (h *handover) cancel(now time.Time) handoverAction {
	if h.over() || h.asked() {
		return handoverNothing
	}
	return h.rollBack(reasonCancelled, now)
}

// handoverTarget chooses who gets the role: the replica that is asked for, or of
// those in sync the one that lacks least. members are the slaves in the node map,
// whom the index must take for in sync too.
func handoverTarget(replicas []replication.ReplicaStatus, members []replication.Member, named string) (replication.ReplicaStatus, string) {
	var best replication.ReplicaStatus
	for _, r := range replicas {
		active := slices.ContainsFunc(members, func(m replication.Member) bool { return m.Key == r.Key && m.Active })
		if !active || !r.InSync || !r.Connected || named != "" && r.Key != named {
			continue
		}
		if best.Key == "" || r.LagBatches < best.LagBatches {
			best = r
		}
	}
	switch {
	case best.Key != "":
		return best, ""
	case named != "":
		return best, reasonTargetNotInSync
	}
	return best, reasonNoInSyncReplica
}
