package storage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// retention is what decides which archived logs may go. Guarded by DB.walMu.
type retention struct {
	ttl     time.Duration // 0 for no limit
	bytes   int64         // 0 for no limit
	holds   map[*Hold]uint64
	changed chan struct{} // asks for a look at once
}

// Hold keeps the log from a position on until it is released.
type Hold struct{ db *DB }

// Hold keeps all batches behind the current position, however old they get. It
// returns with that position.
func (db *DB) Hold() (*Hold, Position) {
	db.walMu.Lock()
	defer db.walMu.Unlock()
	h := &Hold{db}
	pos := db.Position()
	db.policy.holds[h] = pos.LSN.Index + 1
	return h, pos
}

// Advance lets go of the batches before the index. A hold never goes back.
func (h *Hold) Advance(index uint64) {
	h.db.walMu.Lock()
	defer h.db.walMu.Unlock()
	if held, ok := h.db.policy.holds[h]; ok && index > held {
		h.db.policy.holds[h] = index
	}
}

// Release ends the hold. It may be called again.
func (h *Hold) Release() {
	h.db.walMu.Lock()
	defer h.db.walMu.Unlock()
	delete(h.db.policy.holds, h)
}

// SetRetention says how long and how many bytes of finished logs are retained;
// 0 means no limit. It takes effect at once.
func (db *DB) SetRetention(ttl time.Duration, bytes int64) {
	db.walMu.Lock()
	db.policy.ttl, db.policy.bytes = max(ttl, 0), max(bytes, 0)
	db.walMu.Unlock()
	select {
	case db.policy.changed <- struct{}{}:
	default:
	}
}

func (db *DB) sweepLoop(ctx context.Context) {
	ticker := time.NewTicker(db.opts.SweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-db.policy.changed:
		}
		if err := db.sweep(); err != nil {
			db.log.Warn("cannot delete old logs", "dir", db.opts.Dir, "err", err)
		}
	}
}

// sweep deletes the archived logs that need not be retained.
func (db *DB) sweep() error {
	db.walMu.Lock()
	defer db.walMu.Unlock()
	files, err := listWALs(db.dbDir())
	if err != nil {
		return err
	}
	starts := make([]startWAL, len(files))
	for i, f := range files {
		starts[i].walFile = f
		if starts[i].first, _, err = db.wals.firstOf(db.dbDir(), f.number); err != nil {
			return err
		}
	}
	held := uint64(0)
	for _, index := range db.policy.holds {
		if held == 0 || index < held {
			held = index
		}
	}
	n := expired(starts, db.policy.ttl, db.policy.bytes, held, db.opts.Now())
	for _, f := range files[:n] {
		if err := os.Remove(filepath.Join(db.dbDir(), "archive", walName(f.number))); err != nil {
			return fmt.Errorf("delete log: %w", err)
		}
	}
	if n > 0 {
		db.log.Debug("deleted old logs", "dir", db.opts.Dir, "files", n, "oldest", files[n-1].number)
		db.wals.forget(files[n-1].number + 1)
	}
	return nil
}

// expired returns how many of the files, which ascend, are to be deleted: always
// the oldest, because a hole would hide everything before it. held is the index of
// the first batch that must stay, 0 for none.
func expired(files []startWAL, ttl time.Duration, bytes int64, held uint64, now time.Time) int {
	var archived int64
	for _, f := range files {
		if !f.live {
			archived += f.size
		}
	}
	n := 0
	for ; n < len(files); n++ {
		f := files[n]
		if f.live {
			break
		}
		old := ttl > 0 && now.Sub(time.Unix(0, f.mtime)) > ttl
		if !old && (bytes == 0 || archived <= bytes) {
			break
		}
		if held != 0 && !endsBefore(files[n+1:], held) {
			break
		}
		archived -= f.size
	}
	return n
}

// endsBefore reports whether a file followed by the given ones has only batches
// before the index.
func endsBefore(following []startWAL, index uint64) bool {
	for _, f := range following {
		if f.first.Index != 0 {
			return f.first.Index <= index
		}
	}
	return false
}
