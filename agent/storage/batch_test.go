package storage

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

func TestBatchRoundTrip(t *testing.T) {
	lsn := topology.LSN{Epoch: 1<<40 + 5, Index: 77}
	data := testBatch(lsn.Epoch, lsn.Index, func(b *batchBuilder) {
		b.put(cfData, "key", []byte("value"))
		b.delete(cfData, "gone")
		b.put(cfTombstones, "gone", []byte("t"))
		b.delete(cfTombstones, "key")
		b.deleteRange(cfData, nil, []byte("z"))
		b.deleteRange(cfTombstones, []byte("a"), []byte("b"))
	})
	if got, ok := batchLSN(data); !ok || got != lsn {
		t.Errorf("batchLSN = %v, %v", got, ok)
	}
	if got, ok := batchLSN(data[:lsnPrefixSize]); !ok || got != lsn {
		t.Errorf("batchLSN of the beginning = %v, %v", got, ok)
	}
	want := []string{`1 1 "lsn"`, `1 0 "key" "value"`, `0 0 "gone" ""`, `1 2 "gone" "t"`, `0 2 "key" ""`, `15 0 "" "z"`, `15 2 "a" "b"`}
	var op batchOp
	r := readBatch(data)
	for i := 0; r.next(&op); i++ {
		got := fmt.Sprintf("%d %d %q %q", op.tag, op.cf, op.key, op.value)
		if i == 0 {
			got = fmt.Sprintf("%d %d %q", op.tag, op.cf, op.key)
		}
		if i >= len(want) || got != want[i] {
			t.Errorf("record %d: %s", i, got)
		}
	}
	if r.err != nil {
		t.Error(r.err)
	}
}

func TestBatchDamage(t *testing.T) {
	good := testBatch(1, 2, func(b *batchBuilder) { b.put(cfData, "key", []byte("value")) })
	edit := func(fn func([]byte) []byte) []byte { return fn(bytes.Clone(good)) }
	for name, data := range map[string][]byte{
		"empty":                 {},
		"no header":             good[:batchHeaderSize-1],
		"cut in the value":      good[:len(good)-1],
		"cut behind a record":   good[:lsnPrefixSize],
		"count too low":         edit(func(b []byte) []byte { b[8]--; return b }),
		"count too high":        edit(func(b []byte) []byte { b[8]++; return b }),
		"unknown tag":           edit(func(b []byte) []byte { return append(b, 0x13) }),
		"unknown column family": edit(func(b []byte) []byte { b[batchHeaderSize+1] = cfCount; return b }),
		"length overflows":      edit(func(b []byte) []byte { return append(b, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1) }),
	} {
		r := readBatch(data)
		var op batchOp
		for r.next(&op) {
		}
		if !errors.Is(r.err, ErrDamaged) {
			t.Errorf("%s: %v", name, r.err)
		}
	}
}

func TestForeignBatchesHaveNoPosition(t *testing.T) {
	var b batchBuilder
	b.data = make([]byte, batchHeaderSize)
	b.put(cfData, "lsn", make([]byte, 16))
	b.put(cfData, "padding", make([]byte, 16))
	for _, data := range [][]byte{nil, make([]byte, batchHeaderSize), b.finish()} {
		if lsn, ok := batchLSN(data); ok {
			t.Errorf("%x is said to be at %v", data, lsn)
		}
	}
}

func TestRecordCodec(t *testing.T) {
	for _, r := range []Record{{}, {Flags: 1 << 31, Expire: -1, Version: 1 << 63, Value: []byte("v")}} {
		got, err := parseRecord(appendRecord(nil, &r))
		if err != nil || got.Flags != r.Flags || got.Expire != r.Expire || got.Version != r.Version || !bytes.Equal(got.Value, r.Value) {
			t.Errorf("%+v became %+v, %v", r, got, err)
		}
	}
	good := appendRecord(nil, &Record{})
	for _, b := range [][]byte{nil, good[:len(good)-1], append([]byte{9}, good[1:]...)} {
		if _, err := parseRecord(b); !errors.Is(err, errBadRecord) {
			t.Errorf("%x: %v", b, err)
		}
	}
	ts, order, err := decodeTombstone(appendTombstone(nil, Tombstone{Version: 3, Until: -4}, 5))
	if err != nil || ts != (Tombstone{Version: 3, Until: -4}) || order != 5 {
		t.Errorf("%+v %d %v", ts, order, err)
	}
	if _, _, err := decodeTombstone(make([]byte, 23)); !errors.Is(err, errBadRecord) {
		t.Error(err)
	}
}

func FuzzReadBatch(f *testing.F) {
	f.Add(testBatch(1, 2, func(b *batchBuilder) {
		b.put(cfData, "key", []byte("value"))
		b.deleteRange(cfTombstones, nil, []byte("x"))
	}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		follow(Position{}, data)
		if ops, err := AppendOperations(nil, Batch{Data: data}); err == nil && len(ops) > len(data) {
			t.Errorf("%d operations in %d bytes", len(ops), len(data))
		}
		r := readBatch(data)
		var op batchOp
		n := 0
		for r.next(&op) {
			n++
		}
		if n > len(data) {
			t.Errorf("%d records in %d bytes", n, len(data))
		}
	})
}
