package node

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// reasonResyncFailed is why a node that could not follow its master stands down.
const reasonResyncFailed = "resync_failed"

const (
	// firstProbation is how long a node that has stood down a second time must have
	// been in step with its master before it offers itself again; it doubles each time.
	firstProbation = 5 * time.Second
	lastProbation  = 5 * time.Minute
	// forgiven is after how much time a former stand-down does not count any more.
	forgiven = 10 * time.Minute
)

// A standDown is what a replica does that cannot get in step with its master, however
// often it tries (rocksdb-resync-failure-threshold): what it has gets older and older.
// It answers no reads from then on but forwards them, says to the index that it is
// down, and answers no ping well, so that the index leaves it so. It goes on trying.
// Once it has everything that its master has, it answers pings again, and the index
// takes it back like any node that returns: as a replica that is in sync when its
// master says so. One that fails again and again has to stay in step for longer and
// longer before.
type standDown struct {
	s     *Server
	down  atomic.Bool
	count atomic.Uint64

	mu       sync.Mutex
	of       duty
	row      int       // stand-downs in a row
	ended    time.Time // the last one
	inStepAt time.Time // zero while it is not
	mute     func()    // ends the telling of the index

	telling sync.WaitGroup
}

func (x *standDown) reason() string {
	if x.down.Load() {
		return reasonResyncFailed
	}
	return ""
}

// probation is how long a node must stay in step after so many stand-downs in a row.
func probation(row int) time.Duration {
	if row < 2 {
		return 0
	}
	d := firstProbation
	for ; row > 2 && d < lastProbation; row-- {
		d *= 2
	}
	return min(d, lastProbation)
}

// resync is told how a resync with the master of a duty has ended.
func (x *standDown) resync(d duty, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := x.s.clock()
	down := x.down.Load()
	switch {
	case down && ok:
		x.inStepAt = now
		x.s.changed.fire()
	case down:
		x.inStepAt = time.Time{}
	case !ok:
		if now.Sub(x.ended) > forgiven {
			x.row = 0
		}
		x.row++
		x.of, x.inStepAt = d, time.Time{}
		x.count.Add(1)
		x.down.Store(true)
		x.s.logger.Error("cannot get in step with the master: answering no reads and standing down until it is possible again",
			"reason", reasonResyncFailed, "partition", d.partition, "master", d.master, "times_in_a_row", x.row)
		x.s.maps.withdraw(true)
		x.mute = x.say()
	}
}

// duty returns what the node is to do instead of what the map says: to go on
// following although it is down. It also ends the stand-down, when it is time or the
// map has other plans; a positive duration asks to be called again.
func (x *standDown) duty(d duty, t *table) (duty, time.Duration) {
	if !x.down.Load() {
		return d, 0
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if d.kind == dutyMaster || d.kind == dutyFill || d.kind == dutySlave && d.partition != x.of.partition {
		x.end("other_duty")
		return d, 0
	}
	again := time.Duration(0)
	if !x.inStepAt.IsZero() {
		again = x.inStepAt.Add(probation(x.row)).Sub(x.s.clock())
		if again <= 0 {
			x.end("in_step")
			again = 0
		}
	}
	if d.kind == dutySlave {
		return d, again
	}
	if of := x.of.partition; t != nil && of < len(t.parts) && t.parts[of].master != "" {
		x.of.master = t.parts[of].master
	}
	return x.of, again
}

// end ends it; x.mu is held. Until the index has taken the node back it has no duty,
// so that nothing is served in between.
func (x *standDown) end(why string) {
	x.mute()
	x.ended = x.s.clock()
	x.down.Store(false)
	x.s.maps.withdraw(false)
	x.s.logger.Info("standing down has ended", "reason", why, "partition", x.of.partition)
}

// say tells the index, however long that takes, that this node is down. The returned
// function ends that.
func (x *standDown) say() (mute func()) {
	ctx, cancel := context.WithCancel(x.s.ctx)
	x.telling.Go(func() {
		defer cancel()
		// An index that refuses sees it by the pings.
		if err := x.s.untilAnswered(ctx, "node state down", x.s.index.down); err != nil && ctx.Err() == nil {
			x.s.logger.Warn("index did not take this node for down", "error", err)
		}
	})
	return cancel
}
