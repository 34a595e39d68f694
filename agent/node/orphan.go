package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/topology"
)

const (
	// mapQuiet is how long who owns which key must have been the same before
	// anything is purged: what a node still holds then is needed by nobody who has
	// not heard yet.
	mapQuiet = 10 * time.Second
	// defaultPurgeRate is in keys a second.
	defaultPurgeRate = 1000
	// orphanChunk is how many keys are looked at between two looks at the rest of
	// the world.
	orphanChunk = 1024
)

// Reasons for which orphans are not purged, or not any more.
const (
	reasonNotActiveMaster = "not_active_master"
	reasonMapChanging     = "map_changing"
	reasonOwnerDown       = "owner_down"
	reasonNoPartition     = "no_partition"
	reasonAlreadyRunning  = "already_running"
)

// A workRefusal is why a piece of work is not done, or not to its end.
type workRefusal struct {
	reason string // machine-readable
	err    error
}

func (r *workRefusal) Error() string { return r.reason + ": " + r.err.Error() }
func (r *workRefusal) Unwrap() error { return r.err }

func refuseWork(reason, format string, args ...any) error {
	return &workRefusal{reason, fmt.Errorf(format, args...)}
}

// orphanProgress is how far a scan or a purge is. Orphans are keys that belong to
// another partition; a purge counts those it removed.
type orphanProgress struct{ keys, orphans, bytes uint64 }

// ownership is what decides which keys a node has to have.
type ownership struct {
	partition  int
	partitions int
	resolver   *topology.Resolver
}

func (o ownership) owns(key []byte) bool {
	return o.resolver.Partition(key, o.partitions) == o.partition
}

// ownershipOf derives the ownership from a table; false for a node without a
// partition.
func ownershipOf(t *table) (ownership, bool) {
	d := dutyOf(t)
	if d.kind == dutyNone {
		return ownership{}, false
	}
	return ownership{d.partition, d.partitions, t.resolver}, true
}

// purgeable tells why a node with this table must not purge at this time; nil if
// it may.
func purgeable(t *table, now time.Time) error {
	d := dutyOf(t)
	switch {
	case d.kind != dutyMaster:
		return refuseWork(reasonNotActiveMaster, "this node is not the active master of a partition; its replicas follow what the master purges")
	case t.view.Preparing != nil:
		return refuseWork(reasonMapChanging, "partition %d is being prepared; it is filled with what would be purged", t.view.Preparing.Number)
	case t.outdated:
		return refuseWork(reasonMapChanging, "the layout of the last node map is invalid")
	case now.Sub(t.since) < mapQuiet:
		return refuseWork(reasonMapChanging, "the node map changed less than %v ago", mapQuiet)
	}
	for i := range t.parts {
		if t.parts[i].master == "" {
			return refuseWork(reasonOwnerDown, "partition %d, which may own some of the keys, has no master", i)
		}
	}
	return nil
}

// orphanWork makes scans and purges of one node exclude each other.
type orphanWork struct{ running atomic.Bool }

func (w *orphanWork) begin() error {
	if !w.running.CompareAndSwap(false, true) {
		return refuseWork(reasonAlreadyRunning, "a scan or purge of orphans is running on this node; see stats threads")
	}
	return nil
}

func (w *orphanWork) end() { w.running.Store(false) }

// scanOrphans counts the records of this node that belong to another partition.
// report is called often; its error ends the scan.
func (s *Server) scanOrphans(ctx context.Context, report func(orphanProgress) error) (orphanProgress, error) {
	var p orphanProgress
	if err := s.orphans.begin(); err != nil {
		return p, err
	}
	defer s.orphans.end()
	own, ok := ownershipOf(s.maps.table())
	if !ok {
		return p, refuseWork(reasonNoPartition, "this node has no partition, so there are no keys that it has to have")
	}
	began := s.clock()
	scan := s.db.Scan(storage.ScanOptions{KeysOnly: true})
	for scan.Next(ctx) {
		p.keys++
		if !own.owns(scan.Key()) {
			p.orphans++
			p.bytes += uint64(len(scan.Key()) + scan.Size())
		}
		if p.keys%orphanChunk != 0 {
			continue
		}
		if now, ok := ownershipOf(s.maps.table()); !ok || now != own {
			return p, refuseWork(reasonMapChanging, "the node map changed")
		}
		if err := report(p); err != nil {
			return p, err
		}
	}
	s.logger.Info("scan of orphans ended", "partition", own.partition, "keys", p.keys, "orphans", p.orphans,
		"bytes", p.bytes, "took", s.clock().Sub(began).String(), "error", scan.Err())
	return p, scan.Err()
}

// purgeOrphans removes the records of this node that belong to another partition,
// and waits until the replicas in sync have done so too. The owner of each key is
// looked up again in the map in force when it is removed.
//
// No tombstone is left: nobody deleted the key, it lives on elsewhere with its
// versions, and here nobody asks for it. Tombstones are for the keys of this
// partition, and each new one would push out the oldest of them.
func (s *Server) purgeOrphans(ctx context.Context, rate int, report func(orphanProgress) error) (p orphanProgress, err error) {
	if err := s.orphans.begin(); err != nil {
		return p, err
	}
	defer s.orphans.end()
	if rate <= 0 {
		rate = defaultPurgeRate
	}
	if err := purgeable(s.maps.table(), s.clock()); err != nil {
		return p, err
	}
	own, _ := ownershipOf(s.maps.table())
	began := s.clock()
	s.logger.Warn("purge of orphans begins", "partition", own.partition, "partitions", own.partitions, "rate", rate)
	defer func() {
		s.logger.Warn("purge of orphans ended", "partition", own.partition, "keys", p.keys, "removed", p.orphans,
			"bytes", p.bytes, "took", s.clock().Sub(began).String(), "error", err)
	}()

	var last topology.LSN
	var batch []removal
	size := min(removalBatch, max(1, rate/10))
	purge := func() error {
		at := time.Now()
		var changed error
		sum, err := s.remove(own.partition, batch, func(r *removal, e storage.Entry) storage.Change {
			t := s.maps.table()
			if changed == nil {
				changed = purgeable(t, s.clock())
			}
			if now, _ := ownershipOf(t); changed == nil && now != own {
				changed = refuseWork(reasonMapChanging, "the node map changed")
			}
			if changed != nil || !e.Found || own.owns(r.key) {
				return storage.Change{}
			}
			return storage.Change{Op: storage.Delete}
		})
		done := len(batch)
		batch = batch[:0]
		p.orphans += sum.keys
		p.bytes += sum.bytes
		if last.Less(sum.lsn) {
			last = sum.lsn
		}
		if err := cmp.Or(changed, err); err != nil {
			return err
		}
		if err := report(p); err != nil {
			return err
		}
		return rest(ctx, paceOf(done, rate, time.Since(at)))
	}

	scan := s.db.Scan(storage.ScanOptions{KeysOnly: true})
	for scan.Next(ctx) {
		p.keys++
		if key := scan.Key(); !own.owns(key) {
			batch = append(batch, removal{key: append([]byte(nil), key...), bytes: len(key) + scan.Size()})
		}
		if len(batch) >= size {
			if err := purge(); err != nil {
				return p, err
			}
		} else if p.keys%orphanChunk == 0 {
			if err := report(p); err != nil {
				return p, err
			}
		}
	}
	if err := scan.Err(); err != nil {
		return p, err
	}
	if len(batch) > 0 {
		if err := purge(); err != nil {
			return p, err
		}
	}
	if !last.IsZero() {
		if err := s.source.Wait(ctx, last); err != nil {
			return p, refuseWork("replication_timeout", "the replicas have not acknowledged everything: %w", err)
		}
	}
	return p, nil
}

// reasonOf returns the machine-readable reason of an error.
func reasonOf(err error) string {
	var refused *workRefusal
	switch {
	case errors.As(err, &refused):
		return refused.reason
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		return "interrupted"
	}
	return "storage_error"
}
