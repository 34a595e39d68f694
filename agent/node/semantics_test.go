package node

import (
	"math"
	"reflect"
	"testing"

	"github.com/flarekv/flare/agent/storage"
)

const testNow = int64(1_800_000_000)

func record(version uint64, value string) storage.Record {
	return storage.Record{Flags: 7, Version: version, Value: []byte(value)}
}

func TestDecide(t *testing.T) {
	alive := storage.Entry{Found: true, Record: record(5, "abc")}
	stale := storage.Entry{Found: true, Record: storage.Record{Flags: 7, Expire: testNow, Version: 5, Value: []byte("abc")}}
	window := storage.Entry{HasTombstone: true, Tombstone: storage.Tombstone{Version: 5, Until: testNow + 1}}
	closed := storage.Entry{HasTombstone: true, Tombstone: storage.Tombstone{Version: 5, Until: testNow}}
	longGone := storage.Entry{HasTombstone: true, Tombstone: storage.Tombstone{Version: 5, Until: testNow - tombstoneTerm - 1}}
	none := storage.Entry{}
	number := func(s string) storage.Entry { return storage.Entry{Found: true, Record: record(5, s)} }

	set := func(v verb, version uint64) mutation {
		return mutation{verb: v, flags: 1, exptime: 100, version: version, data: []byte("xy"), limit: 100}
	}
	copied := func(version uint64) mutation {
		m := set(verbSet, version)
		m.copied = true
		return m
	}
	stored := func(version uint64, value string) storage.Change {
		return storage.Change{Op: storage.Put, Record: storage.Record{Flags: 1, Expire: testNow + 100, Version: version, Value: []byte(value)}}
	}
	kept := func(version uint64, value string) storage.Change {
		return storage.Change{Op: storage.Put, Record: storage.Record{Flags: 7, Version: version, Value: []byte(value)}}
	}
	removed := func(version uint64, until int64) storage.Change {
		return storage.Change{Op: storage.Delete, Tombstone: storage.Tombstone{Version: version, Until: until}}
	}
	keep := storage.Change{}

	tests := []struct {
		name   string
		entry  storage.Entry
		m      mutation
		want   verdict
		change storage.Change
		number uint64
	}{
		{name: "set unknown", entry: none, m: set(verbSet, 0), want: verdictStored, change: stored(1, "xy")},
		{name: "set alive", entry: alive, m: set(verbSet, 0), want: verdictStored, change: stored(6, "xy")},
		{name: "set expired counts on", entry: stale, m: set(verbSet, 0), want: verdictStored, change: stored(6, "xy")},
		{name: "set deleted counts on", entry: closed, m: set(verbSet, 0), want: verdictStored, change: stored(6, "xy")},
		{name: "set in window works", entry: window, m: set(verbSet, 0), want: verdictStored, change: stored(6, "xy")},
		{name: "set equal version", entry: alive, m: set(verbSet, 5), want: verdictNotStored},
		{name: "set older version", entry: alive, m: set(verbSet, 4), want: verdictNotStored},
		{name: "set newer version", entry: alive, m: set(verbSet, 9), want: verdictStored, change: stored(9, "xy")},
		{name: "set older version of expired", entry: stale, m: set(verbSet, 2), want: verdictStored, change: stored(2, "xy")},
		{name: "set older version of deleted", entry: closed, m: set(verbSet, 2), want: verdictStored, change: stored(2, "xy")},
		{name: "copied set of older version of expired", entry: stale, m: copied(2), want: verdictNotStored},
		{name: "copied set of older version of deleted", entry: closed, m: copied(5), want: verdictNotStored},
		{name: "copied set of newer version of deleted", entry: closed, m: copied(6), want: verdictStored, change: stored(6, "xy")},
		{name: "copied set of older version of deleted long ago", entry: longGone, m: copied(2), want: verdictStored, change: stored(2, "xy")},
		{name: "copied set of newer version", entry: alive, m: copied(6), want: verdictStored, change: stored(6, "xy")},
		{name: "add unknown", entry: none, m: set(verbAdd, 0), want: verdictStored, change: stored(1, "xy")},
		{name: "add alive", entry: alive, m: set(verbAdd, 0), want: verdictNotStored},
		{name: "add alive newer version", entry: alive, m: set(verbAdd, 9), want: verdictNotStored},
		{name: "add expired", entry: stale, m: set(verbAdd, 0), want: verdictStored, change: stored(6, "xy")},
		{name: "add in window", entry: window, m: set(verbAdd, 0), want: verdictNotStored},
		{name: "add after window", entry: closed, m: set(verbAdd, 0), want: verdictStored, change: stored(6, "xy")},
		{name: "replace unknown", entry: none, m: set(verbReplace, 0), want: verdictNotStored},
		{name: "replace alive", entry: alive, m: set(verbReplace, 0), want: verdictStored, change: stored(6, "xy")},
		{name: "replace expired", entry: stale, m: set(verbReplace, 0), want: verdictNotStored},
		{name: "replace in window", entry: window, m: set(verbReplace, 0), want: verdictNotStored},
		{name: "append", entry: alive, m: set(verbAppend, 0), want: verdictStored, change: kept(6, "abcxy")},
		{name: "append version", entry: alive, m: set(verbAppend, 8), want: verdictStored, change: kept(8, "abcxy")},
		{name: "append stale version", entry: alive, m: set(verbAppend, 5), want: verdictNotStored},
		{name: "append too large", entry: alive, m: mutation{verb: verbAppend, data: []byte("xy"), limit: 4}, want: verdictTooLarge},
		{name: "append unknown", entry: none, m: set(verbAppend, 0), want: verdictNotStored},
		{name: "prepend", entry: alive, m: set(verbPrepend, 0), want: verdictStored, change: kept(6, "xyabc")},
		{name: "prepend in window", entry: window, m: set(verbPrepend, 0), want: verdictNotStored},
		{name: "cas hit", entry: alive, m: set(verbCas, 5), want: verdictStored, change: stored(6, "xy")},
		{name: "cas differs", entry: alive, m: set(verbCas, 6), want: verdictExists},
		{name: "cas unknown", entry: none, m: set(verbCas, 5), want: verdictNotFound},
		{name: "cas expired", entry: stale, m: set(verbCas, 5), want: verdictNotFound},
		{name: "cas in window", entry: window, m: set(verbCas, 5), want: verdictStored, change: stored(6, "xy")},
		{name: "cas in window differs", entry: window, m: set(verbCas, 4), want: verdictExists},
		{name: "cas after window", entry: closed, m: set(verbCas, 5), want: verdictNotFound},

		{name: "touch", entry: alive, m: mutation{verb: verbTouch, exptime: 60}, want: verdictTouched,
			change: storage.Change{Op: storage.Touch, Record: storage.Record{Flags: 7, Expire: testNow + 60, Version: 5, Value: []byte("abc")}}},
		{name: "touch absolute", entry: alive, m: mutation{verb: verbTouch, exptime: 2592001}, want: verdictTouched,
			change: storage.Change{Op: storage.Touch, Record: storage.Record{Flags: 7, Expire: 2592001, Version: 5, Value: []byte("abc")}}},
		{name: "touch expired", entry: stale, m: mutation{verb: verbTouch, exptime: 60}, want: verdictNotFound},
		{name: "touch in window", entry: window, m: mutation{verb: verbTouch}, want: verdictNotFound},
		{name: "touch changes nothing", entry: alive, m: mutation{verb: verbTouch}, want: verdictTouched},
		{name: "gat", entry: alive, m: mutation{verb: verbGat, exptime: 60}, want: verdictValue,
			change: storage.Change{Op: storage.Touch, Record: storage.Record{Flags: 7, Expire: testNow + 60, Version: 5, Value: []byte("abc")}}},
		{name: "gat changes nothing", entry: alive, m: mutation{verb: verbGat}, want: verdictValue},
		{name: "gat unknown", entry: none, m: mutation{verb: verbGat}, want: verdictNotFound},

		{name: "delete", entry: alive, m: mutation{verb: verbDelete}, want: verdictDeleted, change: removed(5, testNow)},
		{name: "delete window", entry: alive, m: mutation{verb: verbDelete, exptime: 10}, want: verdictDeleted, change: removed(5, testNow+10)},
		{name: "delete older", entry: alive, m: mutation{verb: verbDelete, version: 4}, want: verdictNotFound},
		{name: "delete equal", entry: alive, m: mutation{verb: verbDelete, version: 5}, want: verdictDeleted, change: removed(5, testNow)},
		{name: "delete newer", entry: alive, m: mutation{verb: verbDelete, version: 9}, want: verdictDeleted, change: removed(9, testNow)},
		{name: "delete expired", entry: stale, m: mutation{verb: verbDelete}, want: verdictNotFound, change: removed(5, testNow)},
		{name: "delete unknown", entry: none, m: mutation{verb: verbDelete}, want: verdictNotFound},
		{name: "delete unknown version", entry: none, m: mutation{verb: verbDelete, version: 3}, want: verdictNotFound, change: removed(3, testNow)},
		{name: "delete deleted newer", entry: closed, m: mutation{verb: verbDelete, version: 8, exptime: 5}, want: verdictNotFound, change: removed(8, testNow+5)},
		{name: "delete deleted again", entry: closed, m: mutation{verb: verbDelete, version: 5}, want: verdictNotFound},
		{name: "delete in window again", entry: window, m: mutation{verb: verbDelete, version: 5, exptime: testNow + 1}, want: verdictNotFound},
		{name: "delete in window, longer", entry: window, m: mutation{verb: verbDelete, version: 5, exptime: testNow + 2}, want: verdictNotFound, change: removed(5, testNow+2)},
		{name: "delete deleted older", entry: closed, m: mutation{verb: verbDelete, version: 3}, want: verdictNotFound},

		{name: "incr", entry: number("41"), m: mutation{verb: verbIncr, delta: 1}, want: verdictNumber, number: 42, change: kept(6, "42")},
		{name: "incr text", entry: number("abc"), m: mutation{verb: verbIncr, delta: 3}, want: verdictNumber, number: 3, change: kept(6, "3")},
		{name: "incr leading digits", entry: number("12abc"), m: mutation{verb: verbIncr, delta: 1}, want: verdictNumber, number: 13, change: kept(6, "13")},
		{name: "incr space", entry: number(" 5"), m: mutation{verb: verbIncr, delta: 1}, want: verdictNumber, number: 1, change: kept(6, "1")},
		{name: "incr sign", entry: number("-5"), m: mutation{verb: verbIncr, delta: 1}, want: verdictNumber, number: 1, change: kept(6, "1")},
		{name: "incr empty", entry: number(""), m: mutation{verb: verbIncr, delta: 1}, want: verdictNumber, number: 1, change: kept(6, "1")},
		{name: "incr largest", entry: number("18446744073709551615"), m: mutation{verb: verbIncr, delta: 1}, want: verdictNumber, number: math.MaxUint64, change: kept(6, "18446744073709551615")},
		{name: "incr saturates", entry: number("10"), m: mutation{verb: verbIncr, delta: math.MaxUint64}, want: verdictNumber, number: math.MaxUint64, change: kept(6, "18446744073709551615")},
		{name: "incr more than 64 bit", entry: number("18446744073709551616"), m: mutation{verb: verbIncr, delta: 2}, want: verdictNumber, number: 2, change: kept(6, "2")},
		{name: "decr", entry: number("10"), m: mutation{verb: verbDecr, delta: 1}, want: verdictNumber, number: 9, change: kept(6, "9")},
		{name: "decr floor", entry: number("10"), m: mutation{verb: verbDecr, delta: 11}, want: verdictNumber, number: 0, change: kept(6, "0")},
		{name: "incr unknown", entry: none, m: mutation{verb: verbIncr, delta: 1}, want: verdictNotFound},
		{name: "incr expired", entry: stale, m: mutation{verb: verbIncr, delta: 1}, want: verdictNotFound},
		{name: "incr in window", entry: window, m: mutation{verb: verbIncr, delta: 1}, want: verdictNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.change
			if want.Op == keep.Op {
				want = keep
			}
			got := decide(tt.entry, &tt.m, testNow)
			if got.verdict != tt.want || got.number != tt.number {
				t.Errorf("verdict %d number %d, want %d and %d", got.verdict, got.number, tt.want, tt.number)
			}
			if !sameChange(got.change, want) {
				t.Errorf("change %+v, want %+v", got.change, want)
			}
			if got.verdict == verdictValue && string(got.record.Value) != "abc" {
				t.Errorf("value %q, want abc", got.record.Value)
			}
		})
	}
}

func sameChange(a, b storage.Change) bool {
	return a.Op == b.Op && a.Tombstone == b.Tombstone &&
		a.Record.Flags == b.Record.Flags && a.Record.Expire == b.Record.Expire &&
		a.Record.Version == b.Record.Version && string(a.Record.Value) == string(b.Record.Value)
}

func TestDecideDump(t *testing.T) {
	alive := storage.Entry{Found: true, Record: record(5, "abc")}
	expired := storage.Entry{Found: true, Record: storage.Record{Expire: testNow - 1, Version: 5}}
	deleted := storage.Entry{HasTombstone: true, Tombstone: storage.Tombstone{Version: 5, Until: testNow}}
	longGone := storage.Entry{HasTombstone: true, Tombstone: storage.Tombstone{Version: 5, Until: testNow - tombstoneTerm - 1}}
	for _, tt := range []struct {
		name    string
		entry   storage.Entry
		version uint64
		want    uint64 // version that is stored, 0 if none
	}{
		{"unknown", storage.Entry{}, 1, 1},
		{"newer", alive, 6, 6},
		{"equal", alive, 5, 0},
		{"older", alive, 4, 0},
		{"older than expired", expired, 5, 0},
		{"newer than expired", expired, 6, 6},
		{"older than deleted", deleted, 5, 0},
		{"newer than deleted", deleted, 6, 6},
		{"older than deleted long ago", longGone, 1, 1},
		{"without version", alive, 0, 6},
		{"without version, unknown", storage.Entry{}, 0, 1},
	} {
		got := decideDump(tt.entry, storage.Record{Flags: 3, Expire: 99, Version: tt.version, Value: []byte("v")}, testNow)
		want := storage.Change{}
		if tt.want > 0 {
			want = storage.Change{Op: storage.Put, Record: storage.Record{Flags: 3, Expire: 99, Version: tt.want, Value: []byte("v")}}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, want)
		}
	}
}
