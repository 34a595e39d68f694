package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Record is the value stored under a key.
type Record struct {
	Flags   uint32
	Expire  int64 // unix seconds, 0 for never
	Version uint64
	Value   []byte
}

// Tombstone remembers the version of a deleted record.
type Tombstone struct {
	Version uint64
	Until   int64 // unix seconds, end of the deferred-delete window
}

// Entry is all that is known of a key. Expired records are included; whether a
// record or a tombstone still counts is for the caller to say, who has a clock.
type Entry struct {
	Record       Record
	Found        bool
	Tombstone    Tombstone
	HasTombstone bool
}

// Layout of a stored record: format, flags, expire, version (big endian), value.
const (
	recordFormat     = 1
	recordHeaderSize = 1 + 4 + 8 + 8
)

// Layout of a stored tombstone: version, until, order (big endian). The order
// grows with every tombstone of a database, so that a copy knows which is the oldest.
const tombstoneSize = 8 + 8 + 8

var errBadRecord = errors.New("damaged record")

func appendRecord(dst []byte, r *Record) []byte {
	dst = append(dst, recordFormat)
	dst = binary.BigEndian.AppendUint32(dst, r.Flags)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Expire))
	dst = binary.BigEndian.AppendUint64(dst, r.Version)
	return append(dst, r.Value...)
}

// parseRecord reads a record whose value is a part of b.
func parseRecord(b []byte) (Record, error) {
	if len(b) < recordHeaderSize {
		return Record{}, fmt.Errorf("%w: %d bytes, want at least %d", errBadRecord, len(b), recordHeaderSize)
	}
	if b[0] != recordFormat {
		return Record{}, fmt.Errorf("%w: format %d, want %d", errBadRecord, b[0], recordFormat)
	}
	return Record{
		Flags:   binary.BigEndian.Uint32(b[1:]),
		Expire:  int64(binary.BigEndian.Uint64(b[5:])),
		Version: binary.BigEndian.Uint64(b[13:]),
		Value:   b[recordHeaderSize:len(b):len(b)],
	}, nil
}

func appendTombstone(dst []byte, t Tombstone, order uint64) []byte {
	dst = binary.BigEndian.AppendUint64(dst, t.Version)
	dst = binary.BigEndian.AppendUint64(dst, uint64(t.Until))
	return binary.BigEndian.AppendUint64(dst, order)
}

func decodeTombstone(b []byte) (t Tombstone, order uint64, err error) {
	if len(b) != tombstoneSize {
		return t, 0, fmt.Errorf("%w: tombstone of %d bytes, want %d", errBadRecord, len(b), tombstoneSize)
	}
	return Tombstone{
		Version: binary.BigEndian.Uint64(b),
		Until:   int64(binary.BigEndian.Uint64(b[8:])),
	}, binary.BigEndian.Uint64(b[16:]), nil
}
