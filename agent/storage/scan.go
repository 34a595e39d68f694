package storage

import (
	"context"
	"fmt"
)

// Bounds of one step of a scan: what a scan holds in memory, and how long a step
// can keep the database from being closed or replaced.
const (
	scanRecords = 1024
	scanBytes   = 256 << 10
)

// ScanOptions say what a scan walks over.
type ScanOptions struct {
	Prefix   []byte // of the keys; all if empty
	After    []byte // begin behind this key; with the first if empty
	KeysOnly bool   // leave the values out
}

// A Scan walks over the records of a database in the order of their keys, expired
// ones included. It reads ahead in bounded steps and holds nothing of the database
// between them, so that its user may take any time. What is changed behind the
// step under way shows, what is changed before it does not: a record that exists
// from Scan to the end is seen exactly once, one that is written or deleted
// meanwhile at most once.
//
// Like a bufio.Scanner it is used by one goroutine and needs no closing:
//
//	s := db.Scan(ScanOptions{})
//	for s.Next(ctx) {
//		use(s.Key(), s.Record())
//	}
//	if err := s.Err(); err != nil { ... }
type Scan struct {
	db         *DB
	opts       ScanOptions
	started    bool
	generation uint64 // of the database that is walked over
	last       []byte // key of the last record that was read
	ended      bool   // there is nothing behind last

	step []scanned // read ahead
	buf  []byte    // keys and values of step
	next int       // in step

	count uint64
	bytes uint64
	err   error
}

// scanned is one record of a step; key and value are offsets in its buffer.
type scanned struct {
	key, value, end int
	record          Record // without its value
	size            int    // of the value, even where that is left out
}

// Scan begins a walk. Prefix and After may be reused once it returns.
func (db *DB) Scan(o ScanOptions) *Scan {
	o.Prefix = append([]byte(nil), o.Prefix...)
	return &Scan{db: db, last: append([]byte(nil), o.After...), opts: o}
}

// Next goes to the next record; false means that there is none, or an error.
func (s *Scan) Next(ctx context.Context) bool {
	if s.err != nil {
		return false
	}
	if s.next++; s.next >= len(s.step) {
		if err := s.read(ctx); err != nil {
			s.err = fmt.Errorf("storage: scan: %w", err)
			return false
		}
		s.next = 0
		if len(s.step) == 0 {
			return false
		}
	}
	r := &s.step[s.next]
	s.count++
	s.bytes += uint64(r.value - r.key + r.size)
	return true
}

// Key returns the key of the record. It is lent until the next call of Next.
func (s *Scan) Key() []byte {
	r := &s.step[s.next]
	return s.buf[r.key:r.value:r.value]
}

// Record returns the record; its value is lent until the next call of Next.
func (s *Scan) Record() Record {
	r := &s.step[s.next]
	rec := r.record
	rec.Value = s.buf[r.value:r.end:r.end]
	return rec
}

// Size returns the length of the record's value, also where that is left out.
func (s *Scan) Size() int { return s.step[s.next].size }

// Ahead returns how many records were read in the same step as the current one
// and are still to come.
func (s *Scan) Ahead() int { return max(len(s.step)-s.next-1, 0) }

// Count returns how many records Next has gone to, and Bytes how long their keys
// and values are.
func (s *Scan) Count() uint64 { return s.count }
func (s *Scan) Bytes() uint64 { return s.bytes }

// Err returns why Next returned false; nil at the end of the records. It is
// ErrReplaced if another database took this one's place, ErrClosed if it was closed.
func (s *Scan) Err() error { return s.err }

// read reads the next step.
func (s *Scan) read(ctx context.Context) error {
	s.step = s.step[:0]
	if cap(s.buf) > 4*scanBytes {
		s.buf = nil
	}
	s.buf = s.buf[:0]
	if s.ended {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	from := s.opts.Prefix
	if len(s.last) > 0 && string(s.last) >= string(from) {
		// The least key that is greater.
		s.last = append(s.last, 0)
		from = s.last
	}
	s.ended = true
	err := s.db.use(func(e *engine) error {
		// An exchange needs the lock that use holds.
		if g := s.db.currentGeneration(); !s.started {
			s.started, s.generation = true, g
		} else if s.generation != g {
			return ErrReplaced
		}
		return e.walk(cfData, from, s.opts.Prefix, func(key, value []byte) (bool, error) {
			if len(s.step) >= scanRecords || len(s.buf) >= scanBytes {
				s.ended = false
				return false, nil
			}
			return true, s.add(key, value)
		})
	})
	if n := len(s.step); n > 0 {
		r := &s.step[n-1]
		s.last = append(s.last[:0], s.buf[r.key:r.value]...)
	}
	return err
}

func (s *Scan) add(key, value []byte) error {
	head, err := parseRecord(value)
	if err != nil {
		return fmt.Errorf("key %q: %w", key, err)
	}
	data := head.Value
	head.Value = nil
	r := scanned{record: head, key: len(s.buf), size: len(data)}
	s.buf = append(s.buf, key...)
	r.value = len(s.buf)
	if !s.opts.KeysOnly {
		s.buf = append(s.buf, data...)
	}
	r.end = len(s.buf)
	s.step = append(s.step, r)
	return nil
}

// currentGeneration tells one database from the next in the same place.
func (db *DB) currentGeneration() uint64 {
	db.posMu.RLock()
	defer db.posMu.RUnlock()
	return db.generation
}
