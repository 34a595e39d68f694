package node

import (
	"context"
	"sync/atomic"

	"github.com/flarekv/flare/agent/options"
)

// reasonClusterReplication is why a write waits that is not to be executed here: the
// other cluster is about to answer, or answers, instead of this one.
const reasonClusterReplication = "cluster_replication"

// A hold lets the writes of clients wait at the gate: mode hold of cluster
// replication. It is how a cluster gives its clients over to another one without
// losing a write: first nobody writes here and the other one gets the rest, only then
// does the first node send requests there. A write that waits goes on by the mode
// that comes next, or is refused when its time is over.
type hold struct {
	on    atomic.Bool
	round atomic.Uint64 // counts the holds
	quiet atomic.Uint64 // the last one before which everything is committed
}

// settled reports whether writes wait and none is under way.
func (h *hold) settled() bool { return h.on.Load() && h.quiet.Load() == h.round.Load() }

// setReplicationMode puts the modes of cluster replication that concern clients in
// force. Between two modes a write rather waits than is executed by the former one.
func (s *Server) setReplicationMode(o options.ClusterReplication) {
	holding := o.Enabled && o.Mode == options.Hold && o.ServerName != ""
	fresh := holding && !s.hold.on.Load()
	if fresh {
		s.hold.round.Add(1)
		s.hold.on.Store(true)
	}
	s.setRemote(o)
	if !holding && s.hold.on.Swap(false) {
		s.logger.Info("writes of clients go on", "mode", o.Mode, "enabled", o.Enabled)
		s.changed.fire()
	}
	if !fresh {
		return
	}
	s.logger.Warn("writes of clients wait", "reason", reasonClusterReplication, "destination", clusterAddr(o))
	round := s.hold.round.Load()
	if s.gate == nil {
		s.hold.quiet.Store(round) // the node is being made: nothing was written yet
		return
	}
	go func() {
		s.gate.drain() // whoever enters from now on sees the hold
		lsn := s.db.Position().LSN
		s.hold.quiet.Store(round)
		s.changed.fire()
		// Whoever waits for the destination to have the rest shall hear of it at once.
		ctx, cancel := context.WithTimeout(s.ctx, relayEnd)
		defer cancel()
		if r := s.relays.toCluster(); r != nil {
			r.Wait(ctx, lsn, true)
			s.changed.fire()
		}
	}()
}

// handedOn reports whether a write that has passed the gate must not be executed here:
// its request was looked at before the mode changed.
func (s *Server) handedOn() bool { return s.hold.on.Load() || s.remote.Load() != nil }
