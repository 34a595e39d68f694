package node

import (
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// reasonNoLease is why a master without a lease takes no writes; replyNoLease is what
// clients see of it.
const (
	reasonNoLease = "no_lease"
	replyNoLease  = "read only (no lease)"
)

// A lease is the right to take writes for some time, which is looked at whenever a
// write comes: a process that was stopped for a while and goes on finds it ended,
// whatever else it has not heard of yet. All of its times are of one clock of this
// process.
//
// Renewing it takes no lock that a write waits for. reset is the exception: nobody
// may use the lease meanwhile.
type lease struct {
	now    func() time.Duration
	opened time.Duration // since when it is wanted

	until  atomic.Int64 // when it ends; 0 before the first one
	source atomic.Uint32

	renewals [leaseSources]atomic.Uint64
	refused  atomic.Uint64
}

// leaseSource tells who gave a lease.
type leaseSource uint32

const (
	leaseFromNobody     leaseSource = iota
	leaseFromController             // who knows that nobody else is promoted before it ends
	leaseFromReplicas               // every one that could be promoted has promised to wait
	leaseSources
)

// String returns the name that stats show.
func (s leaseSource) String() string {
	return [...]string{"none", "controller", "failsafe"}[s]
}

// leaseState tells whether a node may take writes.
type leaseState uint8

const (
	leaseNone        leaseState = iota // it takes none as a master
	leaseNotRequired                   // it may without a lease
	leasePending                       // the first lease is under way
	leaseHeld
	leaseLost
)

// String returns the name that stats show.
func (s leaseState) String() string {
	return [...]string{"none", "not_required", "pending", "held", "lost"}[s]
}

// reset forgets the lease: what follows needs another one.
func (l *lease) reset() {
	l.opened = l.now()
	l.until.Store(0)
	l.source.Store(uint32(leaseFromNobody))
}

// valid reports whether the lease has not ended.
func (l *lease) valid() bool { return int64(l.now()) < l.until.Load() }

// state tells how the lease is at a time. The first one may take a moment; who got
// none for as long as one lasts is treated as one who has lost it.
func (l *lease) state(now time.Duration) leaseState {
	switch until := time.Duration(l.until.Load()); {
	case now < until:
		return leaseHeld
	case until == 0 && now < l.opened+topology.LeaseTTL:
		return leasePending
	}
	return leaseLost
}

// refusal is what becomes of a write that found no valid lease.
func (l *lease) refusal() (gateState, string) {
	if l.state(l.now()) == leaseLost {
		l.refused.Add(1)
		return gateRefuse, replyNoLease
	}
	return gateWait, "lease_pending" // or it has just come
}

// renew makes the lease last for ttl from token, but never shorter than before.
// regained tells that there was none in the moment before. A token from before the
// lease was wanted is one of another lease, which was given up.
func (l *lease) renew(token, ttl time.Duration, source leaseSource) (reason string, regained bool) {
	now := l.now()
	if token > now {
		return "future_token", false
	}
	if token < l.opened {
		return "stale_token", false
	}
	until := int64(token + ttl)
	for {
		old := l.until.Load()
		if until <= old {
			return "", false
		}
		if !l.until.CompareAndSwap(old, until) {
			continue
		}
		l.source.Store(uint32(source))
		l.renewals[source].Add(1)
		return "", old <= int64(now) && int64(now) < until
	}
}

// leaseStatus is a lease at one moment.
type leaseStatus struct {
	at        time.Duration
	state     leaseState
	partition int
	epoch     uint64
	opened    time.Duration // since when it is wanted
	remaining time.Duration // 0 unless it is held
	source    leaseSource   // who gave the last one

	renewals [leaseSources]uint64
	refused  uint64
}

// status describes the lease; state is what the gate says, leaseHeld for whatever
// the lease itself says.
func (l *lease) status(state leaseState, partition int, epoch uint64) leaseStatus {
	now := l.now()
	s := leaseStatus{at: now, state: state, partition: partition, epoch: epoch, opened: l.opened, refused: l.refused.Load()}
	if state == leaseHeld {
		s.state = l.state(now)
		s.source = leaseSource(l.source.Load())
		s.remaining = max(0, time.Duration(l.until.Load())-now)
	}
	for i := range s.renewals {
		s.renewals[i] = l.renewals[i].Load()
	}
	return s
}

// wanted reports whether the node writes only with a lease.
func (s leaseStatus) wanted() bool { return s.state >= leasePending }

const (
	// firstAsk is how long a new master waits for its first lease from the controller
	// before it asks its replicas.
	firstAsk = time.Second
	// askPause is the least time between two times at which they are asked.
	askPause = 250 * time.Millisecond
	// askBelow is how much of a lease, in percent, is left when they are asked: the
	// controller renews it several times before, and what is left is enough for a
	// replica that answers late.
	askBelow = 60
)

// askDue tells whether a master has to ask its replicas for the lease that the
// controller does not renew. Whoever has promised keeps a promotion waiting, so
// they are not asked without need.
func askDue(s leaseStatus, asked time.Duration) bool {
	if !s.wanted() || s.at < asked+askPause {
		return false
	}
	if s.state == leasePending {
		return s.at >= s.opened+firstAsk
	}
	return s.remaining < topology.LeaseTTL*askBelow/100
}

// A promise is what a replica tells its master that asks for a lease: it begins no
// later epoch of the partition before a time. A process keeps it for the one before
// it, see promiseMark.
type promise struct {
	partition int // -1 for whichever it may be
	epoch     uint64
	until     time.Duration
}

// maxPromise bounds for how long a replica lets itself be bound.
const maxPromise = time.Minute

// mayPromise reports whether a node may let who asks go on as master of a partition
// in an epoch: only if its own map says that this is so.
func mayPromise(d duty, master string, partition int, epoch uint64, ttl time.Duration) bool {
	return d.kind == dutySlave && d.master == master && d.partition == partition && d.epoch == epoch && epoch > 0 &&
		ttl > 0 && ttl <= maxPromise
}

// extend adds what is promised now, for ttl.
func (p promise) extend(partition int, epoch uint64, now, ttl time.Duration) promise {
	until := now + topology.LeaseHold(ttl)
	if (p.partition == partition || p.partition < 0) && p.until > until {
		until = p.until
	}
	return promise{partition, epoch, until}
}

// left returns for how long a node must not begin an epoch of a partition yet.
func (p promise) left(partition int, epoch uint64, now time.Duration) time.Duration {
	if p.partition >= 0 && p.partition != partition || epoch <= p.epoch {
		return 0
	}
	return max(0, p.until-now)
}
