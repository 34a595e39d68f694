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
	ttl          time.Duration // 0 for no limit
	bytes        int64         // 0 for no limit
	replicaBytes int64         // 0 for none
	holds        map[*Hold]uint64
	changed      chan struct{} // asks for a look at once
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

// KeepFor tells who lacks which part of the log and may come for it: the index of
// the first batch that each of them lacks. As long as the limits allow, log that
// one of them lacks is kept beyond its age. It takes the place of what an earlier
// call told.
func (db *DB) KeepFor(lacking []uint64) { db.lacking.Store(&lacking) }

// keepAll keeps, as far as the limits allow, all there is of the log until KeepFor
// tells who may lack some of it.
func (db *DB) keepAll() error {
	oldest, err := db.Oldest()
	if err != nil {
		return err
	}
	db.KeepFor([]uint64{oldest})
	return nil
}

// SetRetention says how long and how many bytes of finished logs are retained;
// 0 means no limit. It takes effect at once.
func (db *DB) SetRetention(ttl time.Duration, bytes int64) {
	db.walMu.Lock()
	db.policy.ttl, db.policy.bytes = max(ttl, 0), max(bytes, 0)
	db.walMu.Unlock()
	db.lookAtLogs()
}

// SetReplicaRetention says up to how many bytes of finished logs are retained
// beyond their age for who lacks them; 0 means none. It takes effect at once.
func (db *DB) SetReplicaRetention(bytes int64) {
	db.walMu.Lock()
	db.policy.replicaBytes = max(bytes, 0)
	db.walMu.Unlock()
	db.lookAtLogs()
}

// lookAtLogs has the retained logs looked at without waiting for the next time.
func (db *DB) lookAtLogs() {
	select {
	case db.policy.changed <- struct{}{}:
	default:
	}
}

// keepFreeFactor times Options.MinFree is the free space below which no log is
// kept beyond its age: writes are more worth than a replica's short way back.
const keepFreeFactor = 4

func (db *DB) keepFree() int64 { return keepFreeFactor * db.opts.MinFree }

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
	rules := logRules{ttl: db.policy.ttl, bytes: db.policy.bytes, replicaBytes: db.policy.replicaBytes, now: db.opts.Now()}
	for _, index := range db.policy.holds {
		if rules.held == 0 || index < rules.held {
			rules.held = index
		}
	}
	for _, index := range *db.lacking.Load() {
		if index <= db.Position().LSN.Index {
			rules.lacking = append(rules.lacking, index)
		}
	}
	if free, err := db.opts.FreeSpace(db.opts.Dir); err == nil {
		rules.low = free < db.keepFree()
	}
	v := expired(starts, rules)
	for _, f := range files[:v.files] {
		if err := os.Remove(filepath.Join(db.dbDir(), "archive", walName(f.number))); err != nil {
			return fmt.Errorf("delete log: %w", err)
		}
	}
	db.overdue.Store(v.overdue)
	if v.lost > 0 {
		db.givenUp.Add(uint64(v.lost))
		db.givenWhy.Store(&v.reason)
		db.log.Warn("gave up log that a replica lacks; it will have to copy the database", "reason", v.reason,
			"dir", db.opts.Dir, "files", v.lost, "kept_bytes", v.overdue)
	}
	if v.files > 0 {
		newest := files[v.files-1].number
		db.log.Debug("deleted old logs", "dir", db.opts.Dir, "files", v.files, "newest", newest)
		db.wals.forget(newest + 1)
	}
	return nil
}

// logRules are what decides about archived logs.
type logRules struct {
	ttl   time.Duration // 0 for any age
	bytes int64         // of archived logs, 0 for any
	held  uint64        // index of the first batch that must stay, 0 for none

	lacking      []uint64 // index of the first batch that each replica lacks
	replicaBytes int64    // of archived logs up to which they are kept for replicas, 0 for none
	low          bool     // too little space is free to keep any for them

	now time.Time
}

// logVerdict is what expired found.
type logVerdict struct {
	files   int    // the oldest, to be deleted
	lost    int    // of them those that a replica lacks
	reason  string // why these are deleted all the same; machine-readable
	overdue int64  // bytes that stay although they are old enough to go
}

// Why log that a replica lacks is deleted.
const (
	givenUpSize    = "wal_size_limit"
	givenUpReplica = "wal_replica_limit"
	givenUpSpace   = "low_disk_space"
)

// expired decides which of the files, which ascend, are to be deleted: always
// the oldest, because a hole would hide everything before it.
//
// A file goes when it is too old or there are too many bytes. What is held stays
// whatever happens. What a replica lacks outlives its age as long as both limits
// and the free space allow; but only for a replica that lacks nothing older: to one
// that does the rest is of no use.
func expired(files []startWAL, r logRules) (v logVerdict) {
	var archived int64
	for _, f := range files {
		if !f.live {
			archived += f.size
		}
	}
	old := func(f startWAL) bool { return r.ttl > 0 && r.now.Sub(time.Unix(0, f.mtime)) > r.ttl }
files:
	for ; v.files < len(files); v.files++ {
		f, following := files[v.files], files[v.files+1:]
		over := r.bytes > 0 && archived > r.bytes
		if f.live || !old(f) && !over || r.held != 0 && !endsBefore(following, r.held) {
			break
		}
		if r.replicaBytes > 0 && lacked(f, following, r.lacking) {
			switch {
			case over:
				v.reason = givenUpSize
			case r.low:
				v.reason = givenUpSpace
			case archived > r.replicaBytes:
				v.reason = givenUpReplica
			default:
				break files
			}
			v.lost++
		}
		archived -= f.size
	}
	for _, f := range files[v.files:] {
		if !f.live && old(f) {
			v.overdue += f.size
		}
	}
	return v
}

// lacked reports whether the first batch that somebody lacks is in the file.
func lacked(f startWAL, following []startWAL, lacking []uint64) bool {
	if f.first.Index == 0 {
		return false // it has no batch
	}
	for _, index := range lacking {
		if f.first.Index <= index && !endsBefore(following, index) {
			return true
		}
	}
	return false
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
