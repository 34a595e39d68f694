package admin

import (
	"slices"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// reigns measures how long partitions are without a master that takes writes: from
// when the last one was given up until the next one has its lease.
type reigns struct {
	waiting map[int]time.Time // since when a failover waits for the end of a lease, by partition
	begun   map[int]reign     // whose master has no lease yet, by partition
}

// reign is a master's that was just appointed.
type reign struct {
	epoch  uint64
	reason string
	since  time.Time
}

// step takes in one step of the core. It is not for several goroutines at a time.
func (r *reigns) step(m *Metrics, state core.State, effects []core.Effect, now time.Time) {
	if r.begun == nil {
		r.waiting, r.begun = map[int]time.Time{}, map[int]reign{}
	}
	for _, e := range effects {
		switch e := e.(type) {
		case core.Decision:
			switch e.Reason {
			case core.ReasonFailover, core.ReasonHandover:
				r.appoint(m, state, e, now)
			}
		case core.GrantLease:
			if b, ok := r.begun[e.Partition]; ok && b.epoch <= e.Epoch {
				delete(r.begun, e.Partition)
				if b.epoch == e.Epoch {
					m.took(b.reason, now.Sub(b.since))
				}
			}
		}
	}
	for p := range r.waiting {
		if !slices.ContainsFunc(state.Leases, func(l core.Lease) bool { return l.Partition == p && l.Waiting != "" }) {
			delete(r.waiting, p)
		}
	}
	for _, l := range state.Leases {
		if _, noted := r.waiting[l.Partition]; l.Waiting != "" && !noted {
			r.waiting[l.Partition] = now
		}
	}
}

// appoint notes a promotion; the old master's half of a handover is none.
func (r *reigns) appoint(m *Metrics, state core.State, d core.Decision, now time.Time) {
	for _, n := range state.Durable.Nodes {
		if n.Key() != d.Node || n.Role != topology.Master || n.State != topology.Active {
			continue
		}
		b := reign{epoch: state.Durable.Partitions[n.Partition].Epoch, reason: d.Reason, since: now}
		if d.Reason == core.ReasonHandover {
			m.handovers.Inc()
		} else {
			m.failovers.Inc()
			if since, ok := r.waiting[n.Partition]; ok {
				b.since = since
			}
		}
		r.begun[n.Partition] = b
	}
}

func (m *Metrics) took(reason string, d time.Duration) {
	if reason == core.ReasonHandover {
		m.handoverTime.Observe(d.Seconds())
	} else {
		m.failoverTime.Observe(d.Seconds())
	}
}
