package node

import (
	"context"
	"sync"
	"time"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/topology"
)

// yieldLimit bounds the wait for the new partition's node to have everything; the
// index takes back a switch that lasts longer, or asks again.
const yieldLimit = 10 * time.Second

// A yielding is a partition that is about to be put in force, whose keys still
// belong to this master. From the map that says so nobody writes them here: their
// writes wait, for a map that says who executes them. What was written before is
// sent on, and then this node says that it has yielded.
//
// An index that gives epochs asks for it by the state ready of a preparing
// partition that has one.
type yielding struct {
	partition int
	epoch     uint64 // of the partition's preparation; 0 for no yielding
	since     uint64 // version of the first map in a row that asked for it
}

// yieldingOf derives it from a table and the one before.
func yieldingOf(t, former *table) yielding {
	q := t.view.Preparing
	if q == nil || q.MasterState != topology.Ready || q.Epoch == 0 || t.outdated || dutyOf(t).kind != dutyMaster {
		return yielding{}
	}
	y := yielding{partition: q.Number, epoch: q.Epoch, since: t.nodes.Version}
	if former != nil && former.yield.partition == y.partition && former.yield.epoch == y.epoch &&
		former.own.Partition == t.own.Partition && former.own.Epoch == t.own.Epoch {
		y.since = former.yield.since
	}
	return y
}

// yields tells whether a key of this master's is one that nobody may write here any
// more.
func (t *table) yields(key []byte) bool {
	return t.yield.epoch > 0 && t.resolver.Partition(key, len(t.parts)+1) == t.yield.partition
}

// yields keeps how far this node is with yielding.
type yields struct {
	mu    sync.Mutex
	begun yielding // of which somebody waits for the rest to be sent on
	done  yielding // whose rest was sent on
}

// step begins what the table asks for, if nobody does it yet. r sends this node's
// writes to the new partition's node; nil while nothing does.
func (y *yields) step(ctx context.Context, s *Server, t *table, r *relayRun, runs *sync.WaitGroup) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if t == nil || t.yield.epoch == 0 || y.begun == t.yield || y.done == t.yield || r == nil || r.ending {
		return
	}
	asked := t.yield
	y.begun = asked
	runs.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, yieldLimit)
		defer cancel()
		// Who enters from now on sees this map.
		s.gate.drain()
		lsn := s.db.Position().LSN
		r.relay.Wait(ctx, lsn, true)
		st := r.relay.Status()
		y.mu.Lock()
		y.begun = yielding{}
		if !st.Acked.Less(lsn) && st.Dropped == 0 {
			y.done = asked
		}
		y.mu.Unlock()
		switch {
		case st.Dropped > 0:
			s.limited.warn(s.logger, "cannot yield a new partition's keys: not all that was written of them was sent on",
				"reason", "log_dropped", "partition", asked.partition, "to", st.Peer, "batches", st.Dropped)
		case ctx.Err() == nil:
			s.logger.Info("yielded a new partition's keys, whose writes wait now", "partition", asked.partition, "to", st.Peer, "lsn", lsn.String())
		}
		s.changed.fire()
		s.urgent.fire()
	})
}

// epoch returns that of the partition which this node has yielded the keys of, by
// the map in force; 0 for none.
func (y *yields) epoch(t *table) uint64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	if t != nil && t.yield.epoch > 0 && t.yield == y.done {
		return t.yield.epoch
	}
	return 0
}

// growthProto puts this node's part in the adding of a partition into a status.
// The status has its map version already, so that what is told here is true of
// that version or of a later one.
func (s *Server) growthProto(st *agentv1.NodeStatus, c catcher) {
	t := s.maps.table()
	g := &agentv1.GrowthStatus{Yielded: s.relays.yields.epoch(t)}
	if f, ok := c.(*filler); ok {
		g.Filled, g.Records = f.filledBy(t), f.Status().RecordsDone
	} else if g.Yielded == 0 {
		return
	}
	st.Growth = g
}
