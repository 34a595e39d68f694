package storage

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/flarekv/flare/proto/topology"
)

// A write batch in RocksDB's own serialisation: 8 bytes sequence number and 4
// bytes record count (little endian), then the records: a tag byte, for column
// families other than default the family's id, then length-prefixed byte
// strings. Sequence numbers are assigned by whoever writes the batch and mean
// nothing elsewhere, which is why they are zero in everything that leaves here.
//
// Every batch of the log begins with the record that moves meta's "lsn", so
// the position of a batch is found at a fixed offset.

// Record tags, as far as they are used here.
const (
	tagDelete        = 0x0
	tagPut           = 0x1
	tagLogData       = 0x3
	tagDeleteCF      = 0x4
	tagPutCF         = 0x5
	tagNoop          = 0xd
	tagDeleteRangeCF = 0xe
	tagDeleteRange   = 0xf
)

// touchMark is the log data in front of a record that changes nothing but an
// expiry time. It is for whoever reads the log; the database ignores log data.
const touchMark = "touch"

// rewindMark is the log data at the beginning of a batch that moves the log back
// instead of continuing it, see rewind.go.
const rewindMark = "rewind"

// Column families in creation order, which fixes their ids: a batch written by
// one node must mean the same on every other.
const (
	cfData = iota
	cfMeta
	cfTombstones
	cfCount
)

var cfNames = [cfCount]string{"default", "meta", "tombstones"}

// Keys of the meta column family.
const (
	metaLSN       = "lsn"
	metaPartition = "partition"
	metaHistory   = "history"
	metaLineage   = "lineage/" // + epoch, 8 bytes big endian
	metaRestored  = "restored" // of the last rewind; void once the log has reached it
)

const (
	batchHeaderSize = 12
	lsnRecordSize   = 1 + 1 + 1 + len(metaLSN) + 1 + 16
	lsnPrefixSize   = batchHeaderSize + lsnRecordSize
)

// batchBuilder assembles a batch. The zero value is ready for start.
type batchBuilder struct {
	data  []byte
	count uint32
}

// start begins a batch, keeping the memory of the former one.
func (b *batchBuilder) start(lsn topology.LSN) {
	b.reset()
	var v [16]byte
	binary.BigEndian.PutUint64(v[:8], lsn.Epoch)
	binary.BigEndian.PutUint64(v[8:], lsn.Index)
	b.put(cfMeta, metaLSN, v[:])
}

// startMarked begins a batch that is none of the log.
func (b *batchBuilder) startMarked(mark string) {
	b.reset()
	b.data = append(b.data, tagLogData)
	b.data = appendBytes(b.data, mark)
}

func (b *batchBuilder) reset() {
	b.data = append(b.data[:0], make([]byte, batchHeaderSize)...)
	b.count = 0
}

func (b *batchBuilder) put(cf byte, key string, value []byte) {
	b.data = appendTag(b.data, tagPut, tagPutCF, cf)
	b.data = appendBytes(b.data, key)
	b.data = appendBytes(b.data, value)
	b.count++
}

func (b *batchBuilder) delete(cf byte, key string) {
	b.data = appendTag(b.data, tagDelete, tagDeleteCF, cf)
	b.data = appendBytes(b.data, key)
	b.count++
}

func (b *batchBuilder) deleteRange(cf byte, from, to []byte) {
	b.data = appendTag(b.data, tagDeleteRange, tagDeleteRangeCF, cf)
	b.data = appendBytes(b.data, from)
	b.data = appendBytes(b.data, to)
	b.count++
}

// append adds records that were encoded elsewhere.
func (b *batchBuilder) append(records []byte, count uint32) {
	b.data = append(b.data, records...)
	b.count += count
}

// finish returns the batch, valid until the next start.
func (b *batchBuilder) finish() []byte {
	binary.LittleEndian.PutUint32(b.data[8:], b.count)
	return b.data
}

func appendTag(dst []byte, def, other, cf byte) []byte {
	if cf == cfData {
		return append(dst, def)
	}
	return append(dst, other, cf)
}

func appendBytes[T string | []byte](dst []byte, s T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// batchLSN returns the position a batch moves to; false if the batch is none of
// the log (RocksDB writes empty ones by itself, and a rewind is none either). It
// needs only the batch's first lsnPrefixSize bytes.
func batchLSN(data []byte) (topology.LSN, bool) {
	if len(data) < lsnPrefixSize {
		return topology.LSN{}, false
	}
	r := data[batchHeaderSize:]
	if r[0] != tagPutCF || r[1] != cfMeta || r[2] != byte(len(metaLSN)) ||
		string(r[3:3+len(metaLSN)]) != metaLSN || r[3+len(metaLSN)] != 16 {
		return topology.LSN{}, false
	}
	v := r[4+len(metaLSN):]
	return parseLSN(v), true
}

// batchOp is one record of a batch. Key and value point into the batch; for a
// range deletion they are its bounds.
type batchOp struct {
	tag        byte // in its default-family form
	cf         byte
	key, value []byte
	touch      bool // marked with touchMark
}

// batchReader walks over the records of a batch and checks its form.
type batchReader struct {
	rest  []byte
	count uint32 // records announced and not read yet
	err   error
}

func readBatch(data []byte) batchReader {
	if len(data) < batchHeaderSize {
		return batchReader{err: fmt.Errorf("%w: %d bytes, want at least %d", ErrDamaged, len(data), batchHeaderSize)}
	}
	return batchReader{rest: data[batchHeaderSize:], count: binary.LittleEndian.Uint32(data[8:])}
}

// next returns false at the end and on damage, which err then tells.
func (r *batchReader) next(op *batchOp) bool {
	touch := false
	for r.err == nil && len(r.rest) > 0 {
		tag := r.rest[0]
		r.rest = r.rest[1:]
		*op = batchOp{touch: touch}
		switch tag {
		case tagNoop:
			continue
		case tagLogData:
			touch = string(r.bytes()) == touchMark
			continue
		case tagPut, tagDelete, tagDeleteRange:
			op.tag = tag
		case tagPutCF, tagDeleteCF, tagDeleteRangeCF:
			op.tag = plainTag(tag)
			if len(r.rest) == 0 || r.rest[0] >= cfCount {
				r.err = fmt.Errorf("%w: unknown column family", ErrDamaged)
				return false
			}
			op.cf = r.rest[0]
			r.rest = r.rest[1:]
		default:
			r.err = fmt.Errorf("%w: unknown record type %#x", ErrDamaged, tag)
			return false
		}
		op.key = r.bytes()
		if op.tag != tagDelete {
			op.value = r.bytes()
		}
		if r.count == 0 && r.err == nil {
			r.err = fmt.Errorf("%w: more records than announced", ErrDamaged)
		}
		r.count--
		return r.err == nil
	}
	if r.err == nil && r.count != 0 {
		r.err = fmt.Errorf("%w: %d records fewer than announced", ErrDamaged, r.count)
	}
	return false
}

func (r *batchReader) bytes() []byte {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 || n > uint64(len(r.rest)-size) {
		if r.err == nil {
			r.err = fmt.Errorf("%w: truncated record", ErrDamaged)
		}
		return nil
	}
	s := r.rest[size : size+int(n)]
	r.rest = r.rest[size+int(n):]
	return s
}

// lineageKey returns the meta key of an epoch's start.
func lineageKey(epoch uint64) string {
	return string(binary.BigEndian.AppendUint64([]byte(metaLineage), epoch))
}

// parseLineageKey is the inverse of lineageKey.
func parseLineageKey(key []byte) (epoch uint64, ok bool) {
	rest, ok := bytes.CutPrefix(key, []byte(metaLineage))
	if !ok || len(rest) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(rest), true
}

// plainTag maps a tag with a column family to the one without.
func plainTag(tag byte) byte {
	switch tag {
	case tagPutCF:
		return tagPut
	case tagDeleteCF:
		return tagDelete
	}
	return tagDeleteRange
}
