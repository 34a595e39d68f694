package storage

import "bytes"

// OpKind says what an Operation does.
type OpKind uint8

// The kinds.
const (
	OpPut    OpKind = iota // stores Record under Key
	OpTouch                // likewise, and nothing but the expiry time differs from the record before
	OpDelete               // removes Key's record
	OpFlush                // removes all records and tombstones
)

// An Operation is one change of a record, as the log holds it.
type Operation struct {
	Kind   OpKind
	Key    []byte
	Record Record // OpPut, OpTouch
	// Tombstone is what OpDelete left. A delete without one (version 0) is no
	// client's but housekeeping: the record was garbage already.
	Tombstone Tombstone
}

// Version is the record version that the operation stands for, 0 for none.
func (o *Operation) Version() uint64 {
	switch o.Kind {
	case OpPut, OpTouch:
		return o.Record.Version
	case OpDelete:
		return o.Tombstone.Version
	}
	return 0
}

// AppendOperations appends the changes of records in a batch, in order. What a
// batch says about the log itself is left out. The operations' byte slices point
// into the batch.
func AppendOperations(dst []Operation, b Batch) ([]Operation, error) {
	r := readBatch(b.Data)
	first := len(dst)
	var op batchOp
	for r.next(&op) {
		switch {
		case op.cf == cfTombstones && op.tag == tagPut:
			// A delete's tombstone is the record behind it.
			last := len(dst) - 1
			if last < first || dst[last].Kind != OpDelete || !bytes.Equal(dst[last].Key, op.key) {
				continue
			}
			var err error
			if dst[last].Tombstone, _, err = decodeTombstone(op.value); err != nil {
				return dst, err
			}
		case op.cf != cfData:
		case op.tag == tagDelete:
			dst = append(dst, Operation{Kind: OpDelete, Key: op.key})
		case op.tag == tagDeleteRange:
			dst = append(dst, Operation{Kind: OpFlush})
		case op.tag == tagPut:
			rec, err := parseRecord(op.value)
			if err != nil {
				return dst, err
			}
			kind := OpPut
			if op.touch {
				kind = OpTouch
			}
			dst = append(dst, Operation{Kind: kind, Key: op.key, Record: rec})
		}
	}
	return dst, r.err
}
