package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// A tail that only this database has is undone by one batch: the values that
// another copy of the log has for what the tail changed, and the position of the
// fork. It moves the log back, so that it is no batch of the log itself: it
// does not begin with its position but with rewindMark, so that whoever reads the
// log files takes it for none of ours; and it begins a log file, so that what
// follows it is found in a file behind the tail and never within it.

// Diverged reads from the log what it changed behind a fork. It returns ErrPurged
// if the log does not go back that far, ErrFlushed if something there cannot be
// undone key by key, and ErrTooLarge beyond the limits.
//
// It looks at more than the log's own batches: what a failed write left in the
// files may be in the database as well. A key too many does no harm.
func (db *DB) Diverged(ctx context.Context, fork topology.LSN, limits history.RewindLimits) (history.Divergence, error) {
	d, err := db.diverged(ctx, fork, limits)
	if err != nil {
		return history.Divergence{}, fmt.Errorf("storage: read diverged tail: %w", err)
	}
	return d, nil
}

func (db *DB) diverged(ctx context.Context, fork topology.LSN, limits history.RewindLimits) (history.Divergence, error) {
	pos := db.Position()
	d := history.Divergence{Fork: fork, End: pos.LSN, Batches: pos.LSN.Index - fork.Index}
	if fork.Index == 0 || pos.Locate(fork) != history.Same {
		return d, fmt.Errorf("%w: %v, log is at %v", ErrDiverged, fork, pos.LSN)
	}
	purged := fmt.Errorf("%w: batch %d of a log at %v", ErrPurged, fork.Index, pos.LSN)
	files, err := listWALs(db.dbDir())
	if err != nil {
		return d, err
	}
	// The last file that has the batch of the fork.
	start := -1
	for i, f := range files {
		first, ok, err := db.wals.firstOf(db.dbDir(), f.number)
		if err != nil {
			return d, err
		}
		if ok && first.Index <= fork.Index && pos.Locate(first) == history.Same {
			start = i
		}
	}
	if start < 0 {
		return d, purged
	}
	t := touched{limits: limits, seen: map[history.Key]struct{}{}}
	next := fork.Index + 1
	for _, f := range files[start:] {
		err := db.eachOf(ctx, f.number, func(lsn topology.LSN, data []byte) error {
			if lsn.Index <= fork.Index {
				return nil
			}
			if lsn.Index == next && pos.EpochAt(next) == lsn.Epoch {
				next++
			}
			return t.add(data)
		})
		if errors.Is(err, fs.ErrNotExist) {
			return d, purged // deleted meanwhile
		}
		if err != nil {
			return d, err
		}
	}
	if next <= pos.LSN.Index {
		return d, fmt.Errorf("%w: batch %d of a log at %v", ErrPurged, next, pos.LSN)
	}
	d.Keys, d.Bytes = t.keys, t.bytes
	return d, nil
}

// eachOf calls fn for every batch of the log in a file.
func (db *DB) eachOf(ctx context.Context, number uint64, fn func(topology.LSN, []byte) error) error {
	f, err := openWAL(db.dbDir(), number)
	if err != nil {
		return err
	}
	defer f.Close()
	r := newWALReader(f)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if lsn, ok := batchLSN(data); ok {
			if err := fn(lsn, data); err != nil {
				return err
			}
		}
	}
}

// touched collects the keys that batches change.
type touched struct {
	limits history.RewindLimits
	seen   map[history.Key]struct{}
	keys   []history.Key
	bytes  int64
}

func (t *touched) add(data []byte) error {
	var op batchOp
	r := readBatch(data)
	for r.next(&op) {
		if op.cf == cfMeta {
			continue // what the log says about itself goes with the position
		}
		if op.tag == tagDeleteRange {
			return ErrFlushed
		}
		k := history.Key{Family: op.cf, Key: string(op.key)}
		if _, ok := t.seen[k]; ok {
			continue
		}
		t.seen[k] = struct{}{}
		t.keys = append(t.keys, k)
		t.bytes += int64(len(k.Key))
		if len(t.keys) > t.limits.Keys || t.bytes > t.limits.Bytes {
			return fmt.Errorf("%w: more than %d keys or %d bytes", ErrTooLarge, t.limits.Keys, t.limits.Bytes)
		}
	}
	return r.err
}

// Values reads entries for a copy that has to rewind. The values, of as many of
// the first keys as make up limit bytes but at least one, are none newer than the
// returned position.
func (db *DB) Values(keys []history.Key, limit int) (values []history.Value, at topology.LSN, err error) {
	generation := db.currentGeneration()
	err = db.use(func(e *engine) error {
		for size := 0; len(values) < len(keys) && (size < limit || size == 0); {
			k := keys[len(values)]
			if k.Family != cfData && k.Family != cfTombstones {
				return fmt.Errorf("column family %d is not read key by key", k.Family)
			}
			var v history.Value
			v.Found, err = e.get(int(k.Family), []byte(k.Key), func(value []byte) error {
				v.Data = append([]byte(nil), value...)
				return nil
			})
			if err != nil {
				return err
			}
			values = append(values, v)
			size += len(k.Key) + len(v.Data)
		}
		return nil
	})
	if err != nil {
		return nil, topology.LSN{}, fmt.Errorf("storage: read values: %w", err)
	}
	// A batch can be read before its position is known. Whoever moves the log holds
	// the lock from before the one until after the other.
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	if db.currentGeneration() != generation {
		return nil, topology.LSN{}, fmt.Errorf("storage: read values: %w", ErrReplaced)
	}
	return values, db.Position().LSN, nil
}

// Rewind undoes a tail: values are what the master has for d.Keys, none newer than
// restored. The log is at the fork afterwards, and whoever reads it gets ErrReplaced.
// It returns ErrMoved if there is more than d tells.
//
// Everything is in one batch, so a crash leaves all of it or nothing.
func (db *DB) Rewind(ctx context.Context, d history.Divergence, values []history.Value, restored topology.LSN) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("storage: rewind: %w", err)
	}
	if len(values) != len(d.Keys) {
		return fmt.Errorf("storage: rewind: %d values for %d keys", len(values), len(d.Keys))
	}
	defer db.lockStripes()()
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	if err := db.rewind(d, values, restored); err != nil {
		return fmt.Errorf("storage: rewind: %w", err)
	}
	return nil
}

func (db *DB) rewind(d history.Divergence, values []history.Value, restored topology.LSN) error {
	if err := db.writable(); err != nil {
		return err
	}
	pos := db.Position()
	if pos.LSN != d.End {
		return fmt.Errorf("%w: it is at %v, want %v", ErrMoved, pos.LSN, d.End)
	}
	if d.Fork.Index == 0 || pos.Locate(d.Fork) != history.Same {
		return fmt.Errorf("%w: %v, log is at %v", ErrDiverged, d.Fork, pos.LSN)
	}
	if err := db.use((*engine).flushAll); err != nil {
		return fmt.Errorf("%w: %w", ErrWriteFailed, err)
	}
	next := pos.Rewound(d.Fork, restored)
	var b batchBuilder // a large one, whose memory must not stay
	b.startMarked(rewindMark)
	b.put(cfMeta, metaLSN, lsnBytes(d.Fork))
	for _, s := range pos.Lineage[len(next.Lineage):] {
		b.delete(cfMeta, lineageKey(s.Epoch))
	}
	if next.Restored.IsZero() {
		b.delete(cfMeta, metaRestored)
	} else {
		b.put(cfMeta, metaRestored, lsnBytes(next.Restored))
	}
	for i, k := range d.Keys {
		if values[i].Found {
			b.put(k.Family, k.Key, values[i].Data)
		} else {
			b.delete(k.Family, k.Key)
		}
	}
	if err := db.write(b.finish(), true); err != nil {
		return err
	}
	db.begun = 0
	db.rewinds.Add(1)
	db.cache.clear()
	err := db.use(func(e *engine) error { return db.tombs.load(e, db.opts.Tombstones) })
	db.publishAnother(next) // in any case: that is where the database is
	return err
}

// lsnBytes is a position as the meta column family has it.
func lsnBytes(l topology.LSN) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, l.Epoch), l.Index)
}

func parseLSN(b []byte) topology.LSN {
	return topology.LSN{Epoch: binary.BigEndian.Uint64(b), Index: binary.BigEndian.Uint64(b[8:])}
}
