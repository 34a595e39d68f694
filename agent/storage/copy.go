package storage

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"

	"github.com/flarekv/flare/proto/topology"
)

// BeginCopy makes this database the origin of a history of its own: what is
// written from now on comes from a node that keeps no log of ours, record by
// record, and nobody else will have it in this order. The records stay; they are
// called the partition's from now on, whatever they were before. What followed
// this database's log cannot do so any more.
//
// As nobody shares the history, the epoch may be any but 0, also one that the
// former history had.
func (db *DB) BeginCopy(ctx context.Context, epoch uint64, partition int) (topology.LSN, error) {
	if err := ctx.Err(); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: begin copy: %w", err)
	}
	if epoch == 0 || partition < 0 || partition > math.MaxInt32 {
		return topology.LSN{}, fmt.Errorf("storage: begin copy: epoch %d of partition %d, want an epoch above 0 of a partition from 0", epoch, partition)
	}
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	if err := db.writable(); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: begin copy: %w", err)
	}
	// The new history begins with a log file, as a file is known by its first batch.
	if err := db.use((*engine).flushAll); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: begin copy: %w: %w", ErrWriteFailed, err)
	}
	former := db.Position()
	pos := originOf(former, epoch, partition, NewHistory())
	if err := db.write(originBatch(&db.builder, former, pos), true); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: begin copy: %w", err)
	}
	db.begun = epoch
	db.publishAnother(pos)
	return pos.LSN, nil
}

// NewHistory returns an identity that no history has.
func NewHistory() string {
	var id [16]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// originBatch encodes the first batch of a history, which takes the place of the
// one that the database has followed so far. It is valid until b is used again.
func originBatch(b *batchBuilder, former, origin Position) []byte {
	b.start(origin.LSN)
	for _, s := range former.Lineage {
		b.delete(cfMeta, lineageKey(s.Epoch))
	}
	if !former.LSN.IsZero() {
		// The log of a database that was empty is followed from its first batch on, and
		// who follows a log deletes nothing of its own.
		b.delete(cfMeta, metaRestored)
	}
	b.put(cfMeta, lineageKey(origin.LSN.Epoch), binary.BigEndian.AppendUint64(nil, origin.LSN.Index))
	b.put(cfMeta, metaPartition, binary.BigEndian.AppendUint32(nil, uint32(origin.Partition)))
	b.put(cfMeta, metaHistory, []byte(origin.History))
	return b.finish()
}
