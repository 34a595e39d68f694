package relay

import (
	"context"
	"time"

	"github.com/flarekv/flare/agent/storage"
)

// fillGrain is after what share of its rate a fill pauses.
const fillGrain = 100 * time.Millisecond

// A fill sends all records of the database.
type fill struct {
	scan *storage.Scan
	at   bool      // the scan stands at a record that is not sent yet
	due  time.Time // of the next records
}

func (r *Relay) beginFill() {
	f := &fill{scan: r.db.Scan(storage.ScanOptions{})}
	var total uint64
	if st, err := r.db.Stats(); err == nil {
		total = st.Keys
	}
	r.fill = f
	r.mu.Lock()
	defer r.mu.Unlock()
	runs, done := r.status.Fill.Runs, r.status.Fill.Done
	r.status.Fill = FillStatus{Running: true, Runs: runs + 1, Done: done, Total: total}
	r.log.Info("sending all records to a peer", "records", total, "lsn", r.played.String())
}

// fillStep sends the records that were read ahead, if it is time. It returns
// after how long there is more to do.
func (r *Relay) fillStep(ctx context.Context, tail storage.Tail) (time.Duration, error) {
	f := r.fill
	if wait := time.Until(f.due); wait > 0 {
		return wait, nil
	}
	now := r.cfg.Clock().Unix()
	for {
		r.window.reset()
		var records, bytes uint64
		ended := false
		for {
			if !f.at && !f.scan.Next(ctx) {
				ended = true
				break
			}
			op := storage.Operation{Kind: storage.OpPut, Key: f.scan.Key(), Record: f.scan.Record()}
			// What has expired is as good as not there.
			if dead := op.Record.Expire > 0 && op.Record.Expire <= now; !dead && (r.cfg.FillKeep == nil || r.cfg.FillKeep(op.Key)) {
				if f.at = !r.window.add(&op); f.at {
					break
				}
				records++
				bytes += uint64(len(op.Key) + len(op.Record.Value))
			}
			f.at = false
			if f.scan.Ahead() == 0 || r.fillPause(records, bytes) >= fillGrain {
				break
			}
		}
		if err := f.scan.Err(); ended && err != nil {
			return 0, err
		}
		if err := r.deliver(ctx, tail); err != nil {
			return 0, err
		}
		r.mu.Lock()
		s := &r.status.Fill
		s.Records += records
		s.Bytes += bytes
		s.Seen = f.scan.Count()
		if ended {
			s.Running = false
			s.Done++
		}
		sent := s.Records
		r.mu.Unlock()
		if ended {
			r.fill = nil
			r.log.Info("all records were sent to a peer", "records", sent)
			return 0, nil
		}
		f.due = time.Now().Add(r.fillPause(records, bytes))
		if f.scan.Ahead() == 0 && !f.at {
			return time.Until(f.due), nil
		}
		// The log has to wait for the rest of what was read ahead, see the package comment.
		if !r.pause(ctx, time.Until(f.due)) {
			return 0, ctx.Err()
		}
	}
}

// fillPause is how long records take at the rate that was asked for.
func (r *Relay) fillPause(records, bytes uint64) (d time.Duration) {
	if r.cfg.FillInterval != nil {
		d = time.Duration(records) * r.cfg.FillInterval()
	}
	if r.cfg.FillRate != nil {
		if rate := r.cfg.FillRate(); rate > 0 {
			d = max(d, time.Duration(float64(bytes)/float64(rate)*float64(time.Second)))
		}
	}
	return d
}
