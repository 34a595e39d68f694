package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/flarekv/flare/agent/progress"
	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/replication/history"
)

// A filler collects the records of a partition that is being added from the
// masters that still have them, all at once. What they write meanwhile they send
// on. When it has everything it tells the index, which waits for an operator.
type filler struct {
	s    *Server
	duty duty

	mu     sync.Mutex
	owners []owner // whose keys are all here; nil while some are missing
	status replication.FollowerStatus
	since  time.Time // when the records began to come
	bytes  progress.Meter
}

// An owner is a master in one epoch.
type owner struct {
	master string
	epoch  uint64
}

// ownersOf lists the masters of the first partitions of a table.
func ownersOf(t *table, partitions int) []owner {
	var list []owner
	for p := range min(partitions, len(t.view.Partitions)) {
		list = append(list, owner{t.view.Partitions[p].Master, t.view.Partitions[p].Epoch})
	}
	return list
}

func newFiller(s *Server, d duty) *filler {
	return &filler{s: s, duty: d, status: replication.FollowerStatus{Tier: history.TierDump, Reason: "new_partition"}}
}

// Status implements catcher. Its master is one that the records come from.
func (f *filler) Status() replication.FollowerStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.statusAt(time.Now())
}

// statusAt needs mu. Nobody knows how many records there will be.
func (f *filler) statusAt(now time.Time) replication.FollowerStatus {
	st := f.status
	st.Progress.ETA = -1
	if st.Connected {
		st.Progress = replication.Progress{Phase: replication.PhaseCopy, Tier: st.Tier, Reason: st.Reason, Since: f.since,
			BytesDone: st.BytesDone, Records: st.RecordsDone, Rate: f.bytes.Rate(now), ETA: -1}
	}
	return st
}

// copied tells of a record.
func (f *filler) copied(now time.Time, bytes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.RecordsDone++
	f.status.BytesDone += uint64(bytes)
	f.bytes.Add(now, f.status.BytesDone)
}

// begin tells that records are going to come.
func (f *filler) begin(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Connected, f.since, f.bytes = true, now, progress.Meter{}
	f.bytes.Add(now, f.status.BytesDone)
}

func (f *filler) update(fn func(*replication.FollowerStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn(&f.status)
}

// Run implements catcher.
func (f *filler) Run(ctx context.Context) error {
	s := f.s
	give := surrender{s: s, partition: f.duty.partition}
	for {
		select {
		case <-s.copying.lost: // before now, so that what follows has it
		default:
		}
		// All rounds share it: a master whose dump is complete is not asked again.
		seen, err := s.watchKeys(ctx)
		if err != nil {
			f.failed(err)
			if rest(ctx, copyRetryPause) != nil {
				return ctx.Err()
			}
			continue
		}
		owners := ownersOf(s.maps.table(), f.duty.partitions-1)
		missing := make([]bool, f.duty.partitions-1)
		for p := range missing {
			missing[p] = true
		}
		for failures, began := 1, time.Now(); ; failures++ {
			err := f.collect(ctx, missing, seen)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == nil {
				break
			}
			f.failed(err)
			give.consider(ctx, failures, time.Since(began))
			if rest(ctx, min(time.Duration(failures)*copyRetryPause, 4*copyRetryPause)) != nil {
				return ctx.Err()
			}
		}
		removed, err := s.removeUnseen(ctx, seen)
		s.copying.seen.Store(nil)
		if err != nil {
			f.failed(err)
			if rest(ctx, copyRetryPause) != nil {
				return ctx.Err()
			}
			continue
		}
		f.update(func(st *replication.FollowerStatus) {
			st.Dumps++
			st.ErrorReason, st.Error = "", ""
		})
		if !f.settle(owners) {
			continue // who is the master of a partition now may know more than who was
		}
		s.logger.Info("new partition filled", "partition", f.duty.partition, "records", f.Status().RecordsDone, "removed", removed)
		if f.duty.epoch == 0 {
			// Otherwise the index reads it in this node's status.
			if err := s.untilAnswered(ctx, "node state ready", s.index.filled); ctx.Err() != nil {
				return err
			}
		}
		if err := f.untilMissing(ctx, owners); err != nil {
			return err
		}
	}
}

// untilMissing returns nil once keys may be missing here.
func (f *filler) untilMissing(ctx context.Context, owners []owner) error {
	s := f.s
	defer f.settle(nil)
	for {
		wake := s.changed.wait()
		if !slices.Equal(owners, ownersOf(s.maps.table(), len(owners))) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		case <-s.copying.lost:
			f.failed(&replication.Error{Reason: "write_missed", Err: errors.New("a write of a master could not be executed here")})
			return nil
		}
	}
}

// settle notes whose keys are here, and reports whether these are still the masters.
func (f *filler) settle(owners []owner) bool {
	now := ownersOf(f.s.maps.table(), len(owners))
	f.mu.Lock()
	f.owners = nil
	if slices.Equal(owners, now) {
		f.owners = owners
	}
	held := f.owners != nil
	f.mu.Unlock()
	f.s.changed.fire()
	return held
}

// filledBy returns the version of a table all of whose masters' keys are here, 0 if
// some may be missing.
func (f *filler) filledBy(t *table) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.owners == nil || t == nil || !slices.Equal(f.owners, ownersOf(t, len(f.owners))) {
		return 0
	}
	return t.nodes.Version
}

func (f *filler) failed(err error) {
	reason := "fill_failed"
	var known *replication.Error
	if errors.As(err, &known) {
		reason = known.Reason
	}
	f.s.logger.Warn("filling a new partition failed, trying again", "partition", f.duty.partition, "reason", reason, "error", err)
	f.update(func(st *replication.FollowerStatus) {
		st.FailedAttempts++
		st.ErrorReason, st.Error = reason, err.Error()
	})
}

// collect dumps from the masters of all partitions that are missing, and notes
// which are not any more.
func (f *filler) collect(ctx context.Context, missing []bool, seen *keySet) error {
	errs := make([]error, len(missing))
	var dumps sync.WaitGroup
	f.begin(time.Now())
	t := f.s.maps.table()
	for p := range missing {
		if !missing[p] {
			continue
		}
		// As the map has it now: the master may have changed since the last attempt.
		if p >= len(t.parts) || t.parts[p].master == "" {
			errs[p] = &replication.Error{Reason: "no_master", Err: fmt.Errorf("partition %d has no master to copy from", p)}
			continue
		}
		master := t.parts[p].master
		f.update(func(st *replication.FollowerStatus) { st.Master = master })
		dumps.Go(func() {
			err := f.s.dumpFrom(ctx, master, f.s.dumpRequest(f.duty, len(missing)), seen, func(bytes int) { f.copied(time.Now(), bytes) })
			if err != nil {
				errs[p] = fmt.Errorf("copy from %s: %w", master, err)
				return
			}
			missing[p] = false
		})
	}
	dumps.Wait()
	f.update(func(st *replication.FollowerStatus) { st.Connected = false })
	return errors.Join(errs...)
}

// An orphan is the catcher of a slave whose partition has no master to copy.
type orphan struct {
	s    *Server
	duty duty
}

// Status implements catcher.
func (o *orphan) Status() replication.FollowerStatus {
	return replication.FollowerStatus{ErrorReason: "no_master", Error: "the partition has no master"}
}

// Run implements catcher.
func (o *orphan) Run(ctx context.Context) error {
	(&surrender{s: o.s, partition: o.duty.partition}).now(ctx)
	<-ctx.Done()
	return ctx.Err()
}

// A surrender is how a node leaves a duty that it cannot begin. The original index
// takes no notice of a node that fails to copy, and lets nobody else have its
// place before the node itself asks to be a proxy again. The index that knows
// epochs sees what fails and decides itself.
type surrender struct {
	s         *Server
	partition int
	asked     bool
}

// consider asks if the node has failed often and for long.
func (g *surrender) consider(ctx context.Context, failures int, since time.Duration) {
	if failures >= g.s.live.Load().RocksDB.ResyncFailureThreshold && since >= copyGiveUpAfter {
		g.now(ctx)
	}
}

// now asks, once, unless the node has what it needs to take over the partition:
// then it is more use where it is, whatever its master does.
func (g *surrender) now(ctx context.Context) {
	d := dutyOf(g.s.maps.table())
	if g.asked || g.s.index.extended.Load() || d.active || d.partition != g.partition {
		return
	}
	g.s.logger.Error("giving up to copy the partition", "partition", g.partition, "reason", "copy_failed")
	err := g.s.untilAnswered(ctx, "node role proxy", g.s.index.resign)
	g.asked = err == nil
}
