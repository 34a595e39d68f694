package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// walIndex remembers the first position of log files, which never changes once
// there is one.
type walIndex struct {
	mu    sync.Mutex
	first map[uint64]topology.LSN // by file number
}

// reset forgets everything: the files are those of another database now.
func (x *walIndex) reset() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.first = nil
}

// firstOf returns the first position in a log file; false if it has none or is gone.
func (x *walIndex) firstOf(dir string, number uint64) (topology.LSN, bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if lsn, ok := x.first[number]; ok {
		return lsn, true, nil
	}
	lsn, ok, err := firstLSN(dir, number)
	if errors.Is(err, fs.ErrNotExist) {
		return topology.LSN{}, false, nil
	}
	if ok {
		if x.first == nil {
			x.first = map[uint64]topology.LSN{}
		}
		x.first[number] = lsn
	}
	return lsn, ok, err
}

// forget drops the files before number.
func (x *walIndex) forget(number uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for n := range x.first {
		if n < number {
			delete(x.first, n)
		}
	}
}

// startWAL is a log file with the position it starts at.
type startWAL struct {
	walFile
	first topology.LSN
}

// logFiles returns the log files that hold batches of the current history,
// ascending. A file that begins off the lineage is the remains of a crash:
// RocksDB dropped it when it recovered.
func (db *DB) logFiles() ([]startWAL, error) {
	files, err := listWALs(db.dbDir())
	if err != nil {
		return nil, err
	}
	pos := db.Position()
	var starts []startWAL
	for _, f := range files {
		first, ok, err := db.wals.firstOf(db.dbDir(), f.number)
		if err != nil {
			return nil, err
		}
		if ok && pos.Locate(first) == history.Same {
			starts = append(starts, startWAL{f, first})
		}
	}
	return starts, nil
}

// Oldest returns the index of the oldest batch that is retained; one more than
// the current index if none is.
func (db *DB) Oldest() (uint64, error) {
	files, err := db.logFiles()
	if err != nil {
		return 0, fmt.Errorf("storage: %w", err)
	}
	if len(files) == 0 {
		return db.Position().LSN.Index + 1, nil
	}
	return files[0].first.Index, nil
}

// Tail reads the log forward.
type Tail = history.Tail

// tail reads the log of a DB, independent of the database handle.
type tail struct {
	db         *DB
	generation uint64
	next       uint64 // index of the batch to return next
	file       *os.File
	number     uint64 // of file
	newest     bool   // file was the last one when it was opened
	reader     *walReader
}

// Tail returns a reader of the batches behind a position. It returns ErrPurged
// if they are not retained any more, ErrDiverged if the position is not of this
// log and ErrFuture if the log does not reach it.
func (db *DB) Tail(after topology.LSN) (Tail, error) {
	db.posMu.RLock()
	pos, generation := db.pos, db.generation
	db.posMu.RUnlock()
	switch pos.Locate(after) {
	case history.Same:
	case history.Diverged:
		return nil, fmt.Errorf("storage: tail: %w: %v, log is at %v", ErrDiverged, after, pos.LSN)
	default:
		return nil, fmt.Errorf("storage: tail: %w: %v, log is at %v", ErrFuture, after, pos.LSN)
	}
	t := &tail{db: db, generation: generation, next: after.Index + 1}
	if t.next <= pos.LSN.Index {
		if err := t.open(pos); err != nil {
			return nil, fmt.Errorf("storage: tail: %w", err)
		}
	}
	return t, nil
}

// Close releases the log file.
func (t *tail) Close() {
	if t.file != nil {
		t.file.Close()
		t.file, t.reader = nil, nil
	}
}

// Next returns the next batch, and waits for it to be committed.
func (t *tail) Next(ctx context.Context) (Batch, error) {
	for {
		moved := t.db.moved.wait()
		b, ok, err := t.TryNext()
		if ok || err != nil {
			return b, err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return Batch{}, ctx.Err()
		}
	}
}

// Moved returns a channel that is closed when the log moved.
func (t *tail) Moved() <-chan struct{} { return t.db.moved.wait() }

// TryNext returns the next batch if it is committed already.
func (t *tail) TryNext() (Batch, bool, error) {
	t.db.posMu.RLock()
	pos, generation := t.db.pos, t.db.generation
	t.db.posMu.RUnlock()
	if generation != t.generation {
		t.db.mu.RLock()
		defer t.db.mu.RUnlock()
		if t.db.closed {
			return Batch{}, false, ErrClosed
		}
		return Batch{}, false, ErrReplaced
	}
	if t.next > pos.LSN.Index {
		return Batch{}, false, nil
	}
	b, err := t.read(pos)
	if err != nil {
		return Batch{}, false, fmt.Errorf("storage: tail: %w", err)
	}
	t.next++
	return b, true, nil
}

// read returns the batch t.next, which is committed and so in some file.
func (t *tail) read(pos Position) (Batch, error) {
	if t.file == nil {
		if err := t.open(pos); err != nil {
			return Batch{}, err
		}
	}
	for {
		data, err := t.reader.next()
		if err != nil && !errors.Is(err, io.EOF) {
			return Batch{}, err
		}
		if err == nil {
			lsn, ours := batchLSN(data)
			if !ours || lsn.Index < t.next {
				continue
			}
			if lsn.Index == t.next && pos.EpochAt(lsn.Index) == lsn.Epoch {
				data = bytes.Clone(data)
				clear(data[:8]) // the sequence number, which is ours alone
				again, err := t.repeated(pos)
				if err != nil {
					return Batch{}, err
				}
				if again {
					continue
				}
				return Batch{LSN: lsn, Data: data}, nil
			}
			// What a crash left behind in this file is not part of the log.
		}
		if err := t.advance(pos); err != nil {
			return Batch{}, err
		}
	}
}

// repeated reports whether the batch t.next, which was just read, was a write that
// failed: then a later one has the same position, and is the next to be read.
// While a file is the newest one that is only possible if this process had a
// write fail, and otherwise not worth looking.
func (t *tail) repeated(pos Position) (bool, error) {
	if t.newest && t.db.writeErrors.Load() == 0 {
		return false, nil
	}
	ahead, err := t.reader.peek()
	if err == nil {
		lsn, ours := batchLSN(ahead)
		return ours && lsn.Index <= t.next && pos.Locate(lsn) == history.Same, nil
	}
	if !errors.Is(err, io.EOF) {
		return false, err
	}
	files, err := t.db.logFiles()
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(files, func(f startWAL) bool { return f.number > t.number })
	if i < 0 || files[i].first.Index > t.next {
		return false, nil
	}
	return true, t.switchTo(files[i:], pos)
}

// open finds the file that has the batch t.next.
func (t *tail) open(pos Position) error {
	files, err := t.db.logFiles()
	if err != nil {
		return err
	}
	i := len(files) - 1
	for i >= 0 && files[i].first.Index > t.next {
		i--
	}
	if i < 0 {
		return t.purged(pos)
	}
	return t.switchTo(files[i:], pos)
}

// advance goes to the file behind the current one, which has no more.
func (t *tail) advance(pos Position) error {
	files, err := t.db.logFiles()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(files, func(f startWAL) bool { return f.number > t.number })
	if i < 0 || files[i].first.Index > t.next {
		return t.purged(pos)
	}
	return t.switchTo(files[i:], pos)
}

// switchTo opens the first of the files, which are the newest.
func (t *tail) switchTo(files []startWAL, pos Position) error {
	number := files[0].number
	f, err := openWAL(t.db.dbDir(), number)
	if errors.Is(err, fs.ErrNotExist) {
		return t.purged(pos)
	}
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	t.Close()
	t.file, t.number, t.newest, t.reader = f, number, len(files) == 1, newWALReader(f)
	return nil
}

// Unread returns about how many bytes of log are to be read.
func (t *tail) Unread() (int64, error) {
	pos := t.db.Position()
	if t.next > pos.LSN.Index {
		return 0, nil
	}
	if t.file == nil {
		if err := t.open(pos); err != nil {
			return 0, fmt.Errorf("storage: tail: %w", err)
		}
	}
	files, err := listWALs(t.db.dbDir())
	if err != nil {
		return 0, fmt.Errorf("storage: tail: %w", err)
	}
	var n int64
	for _, f := range files {
		if f.number >= t.number {
			n += f.size
		}
	}
	return max(n-t.reader.offset, 0), nil
}

func (t *tail) purged(pos Position) error {
	return fmt.Errorf("%w: batch %d of a log at %v", ErrPurged, t.next, pos.LSN)
}
