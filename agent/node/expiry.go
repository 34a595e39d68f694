package node

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/agent/storage"
)

// expiryGrace is how long a record must have been expired before it is removed
// from the disk. Clocks of nodes may differ by less: a replica that still serves
// the record and a client that sets it again with a longer time are not surprised.
const expiryGrace = time.Minute

// A sweeper removes expired records from the disk while this node is a master.
// Its replicas follow through the log and never remove any of their own accord.
//
// A record that is removed leaves a tombstone with its version, as one that is
// removed by a delete does, so that versions do not start again.
type sweeper struct {
	s    *Server
	wake chan struct{} // capacity 1: the options changed

	walks   atomic.Uint64
	removed atomic.Uint64
	bytes   atomic.Uint64
}

func newSweeper(s *Server) *sweeper { return &sweeper{s: s, wake: make(chan struct{}, 1)} }

// changed looks at the options again.
func (w *sweeper) changed() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run walks over the records again and again until ctx ends.
func (w *sweeper) run(ctx context.Context) {
	ended := time.Now()
	for {
		var due <-chan time.Time
		if interval := w.s.live.Load().ExpirySweepInterval; interval > 0 {
			due = time.After(time.Until(ended.Add(interval)))
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
			continue
		case <-due:
		}
		w.walk(ctx)
		ended = time.Now()
	}
}

// walk goes once over all records, if this node is a master.
func (w *sweeper) walk(ctx context.Context) {
	d := dutyOf(w.s.maps.table())
	if d.kind != dutyMaster {
		return
	}
	began, before := time.Now(), w.removed.Load()
	err := w.sweep(ctx, d.partition)
	var refused *workRefusal
	switch {
	case err == nil:
		w.walks.Add(1)
		if n := w.removed.Load() - before; n > 0 {
			w.s.logger.Info("expired records removed", "partition", d.partition, "removed", n, "took", time.Since(began).String())
		}
	case ctx.Err() != nil:
	case errors.As(err, &refused):
		w.s.logger.Info("removal of expired records stopped", "reason", refused.reason, "error", err)
	default:
		w.s.logger.Warn("removal of expired records failed", "reason", reasonOf(err), "error", err)
	}
}

// errSwitchedOff ends a walk whose option was set to 0.
var errSwitchedOff = errors.New("switched off")

func (w *sweeper) sweep(ctx context.Context, partition int) error {
	var batch []removal
	looked, at := 0, time.Now()
	purge := func() error {
		now := w.s.clock().Unix()
		sum, err := w.s.remove(partition, batch, func(r *removal, e storage.Entry) storage.Change {
			// Only what is still the record that was looked at.
			if !e.Found || e.Record.Version != r.version || e.Record.Expire != r.expire || !longExpired(e.Record.Expire, now) {
				return storage.Change{}
			}
			return storage.Change{Op: storage.Delete, Tombstone: storage.Tombstone{Version: r.version, Until: r.expire}}
		})
		batch = batch[:0]
		w.removed.Add(sum.keys)
		w.bytes.Add(sum.bytes)
		return err
	}
	scan := w.s.db.Scan(storage.ScanOptions{KeysOnly: true})
	for scan.Next(ctx) {
		looked++
		if r := scan.Record(); longExpired(r.Expire, w.s.clock().Unix()) {
			key := scan.Key()
			batch = append(batch, removal{key: append([]byte(nil), key...), expire: r.Expire, version: r.Version, bytes: len(key) + scan.Size()})
		}
		if len(batch) < removalBatch && looked < removalBatch {
			continue
		}
		if len(batch) > 0 {
			if err := purge(); err != nil {
				return err
			}
		}
		o := w.s.live.Load()
		if o.ExpirySweepInterval == 0 {
			return errSwitchedOff
		}
		// Short rests add up first: a timer is not worth less.
		if pause := paceOf(looked, o.ExpirySweepRate, time.Since(at)); pause > 10*time.Millisecond {
			if err := rest(ctx, pause); err != nil {
				return err
			}
			looked, at = 0, time.Now()
		}
	}
	if err := scan.Err(); err != nil {
		return err
	}
	if len(batch) > 0 {
		return purge()
	}
	return nil
}

// longExpired tells whether a record expired long enough ago to be removed.
func longExpired(expire, now int64) bool {
	return expire > 0 && expire <= now-int64(expiryGrace/time.Second)
}
