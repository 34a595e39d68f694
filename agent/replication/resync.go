package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
)

// Reasons for which an ordered resync is refused.
const (
	reasonAlreadyRunning  = "already_running"
	reasonTierNotPossible = "tier_not_possible"
	reasonNotReplica      = "not_replica"
)

// errResync ends an attempt whose replica is to catch up anew.
var errResync = errors.New("asked to catch up anew")

// A resync is an order to catch up by a tier.
type resync struct {
	want    history.Tier // TierNone: as the master likes
	taken   bool         // by the attempt that runs
	outcome chan error   // gets one
}

// Resync orders the follower to connect anew and to catch up by a tier; TierNone
// leaves the choice to the master. The channel gets nil when the replica has caught
// up, or why it has not. A refusal is an *Error.
func (f *Follower) Resync(want history.Tier) (<-chan error, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch byDump := f.status.Tier == history.TierDump; {
	case f.over:
		return nil, &Error{reasonNotReplica, errors.New("resync: this node does not follow a master any more")}
	case f.order != nil:
		return nil, &Error{reasonAlreadyRunning, fmt.Errorf("resync: another one, by tier %v, is not over; it shows in the status", f.order.want)}
	case f.up.p.Phase == PhaseWaiting || f.up.p.Phase == PhaseCopy || f.up.p.Phase == PhaseInstall:
		return nil, &Error{reasonAlreadyRunning, fmt.Errorf("resync: a copy by tier %v is under way; it shows in the status", f.up.p.Tier)}
	case f.status.Connected && want == history.TierDump && !byDump:
		return nil, errNoDump
	case f.status.Connected && byDump && want != history.TierNone && want != history.TierDump:
		return nil, errOnlyDump
	}
	f.order = &resync{want: want, outcome: make(chan error, 1)}
	if f.interrupt != nil {
		f.interrupt(errResync)
	}
	select {
	case f.again <- struct{}{}:
	default:
	}
	return f.order.outcome, nil
}

var (
	errNoDump = &Error{reasonTierNotPossible,
		errors.New("resync: the master streams its log, so it is not copied by dump; use checkpoint for a full copy")}
	errOnlyDump = &Error{reasonTierNotPossible,
		errors.New("resync: the master cannot stream its log; it is copied by dump or not at all")}
)

// begin starts an attempt, which takes an order that waits for one.
func (f *Follower) begin(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.interrupt = cancel
	if f.order != nil {
		f.order.taken = true
	}
	select {
	case <-f.again: // what it would wake has begun
	default:
	}
	return ctx, cancel
}

// wants returns the tier that this attempt was ordered to use.
func (f *Follower) wants() history.Tier {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.order != nil && f.order.taken {
		return f.order.want
	}
	return history.TierNone
}

// settle ends the order that the attempt was to carry out; it needs mu.
func (f *Follower) settle(err error) {
	if f.order != nil && f.order.taken {
		f.order.outcome <- err
		f.order = nil
	}
}

// finish ends whatever order there is: nobody will carry it out.
func (f *Follower) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over, f.interrupt = true, nil
	if f.order != nil {
		f.order.taken = true
	}
	f.settle(&Error{reasonNotReplica, errors.New("resync: this node has stopped following that master")})
}

// interrupted reports whether the attempt was ended by an order, and if so clears
// what is shown of it.
func (f *Follower) interrupted(attempt context.Context) bool {
	if !errors.Is(context.Cause(attempt), errResync) {
		return false
	}
	f.update(func(s *FollowerStatus) {
		s.Connected, s.Waiting, s.BytesDone, s.BytesTotal, s.RecordsDone = false, "", 0, 0, 0
		f.up.end()
	})
	return true
}

// measure changes what is known of the catch-up, and notices when it is over.
func (f *Follower) measure(fn func(c *catchUp, now time.Time)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.up.running() {
		return
	}
	now, was := time.Now(), f.up.p
	fn(&f.up, now)
	if !f.up.running() {
		f.settle(nil)
		f.cfg.Logger.Info("caught up with master", "master", f.cfg.Master, "tier", was.Tier.String(), "reason", was.Reason,
			"took", now.Sub(was.Since).String())
	}
}
