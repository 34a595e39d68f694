package node

import (
	"context"
	"time"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/topology"
)

// removalBatch is how many keys are removed at a time, in as few batches of the log
// as possible.
const removalBatch = 64

// A removal is one key that housekeeping wants to remove.
type removal struct {
	key     []byte
	expire  int64
	version uint64
	bytes   int
}

// removed is what came of some removals.
type removed struct {
	keys  uint64
	bytes uint64
	lsn   topology.LSN // of the last one
}

// remove removes those of some keys that decide still says so of, as the master of
// the partition, through the log. decide runs while nobody else can change the key;
// the entry's values are lent to it.
// An error means that not all were looked at.
func (s *Server) remove(partition int, keys []removal, decide func(*removal, storage.Entry) storage.Change) (removed, error) {
	if state, reason := s.gate.enter(partition); state != gateOpen {
		return removed{}, refuseWork("not_active_master", "writes to partition %d are not open here: %s", partition, reason)
	}
	defer s.gate.leave()
	var sum removed
	changes := s.db.NewPipeline(nil)
	commits := make([]*storage.Commit, len(keys))
	for i := range keys {
		r := &keys[i]
		var err error
		commits[i], err = changes.Update(r.key, func(e storage.Entry) storage.Change { return decide(r, e) })
		if err != nil {
			changes.Wait()
			return sum, refuseWork("write_failed", "%w", err)
		}
	}
	changes.Wait()
	for i, c := range commits {
		if c == nil {
			continue
		}
		lsn, err := c.Result()
		if err != nil {
			return sum, refuseWork("write_failed", "%w", err)
		}
		sum.keys++
		sum.bytes += uint64(keys[i].bytes)
		sum.lsn = lsn
	}
	changes.Reset()
	return sum, nil
}

// rest pauses housekeeping; an error means that it has to end.
func rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// paceOf returns the pause after so much was done in the time that it took, to do
// rate a second.
func paceOf(done, rate int, took time.Duration) time.Duration {
	return max(0, time.Duration(done)*time.Second/time.Duration(max(1, rate))-took)
}
