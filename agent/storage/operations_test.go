package storage

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

// operationsOf reads everything behind a position as operations.
func operationsOf(t testing.TB, db *DB, after topology.LSN) []string {
	t.Helper()
	tail, err := db.Tail(after)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	var got []string
	for {
		b, ok, err := tail.TryNext()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return got
		}
		ops, err := AppendOperations(nil, b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range ops {
			got = append(got, describe(&ops[i]))
		}
	}
}

func describe(o *Operation) string {
	switch o.Kind {
	case OpFlush:
		return "flush"
	case OpDelete:
		return fmt.Sprintf("delete %s %d until %d", o.Key, o.Version(), o.Tombstone.Until)
	}
	verb := map[OpKind]string{OpPut: "put", OpTouch: "touch"}[o.Kind]
	return fmt.Sprintf("%s %s %d %d %d %s", verb, o.Key, o.Record.Flags, o.Record.Expire, o.Version(), o.Record.Value)
}

func change(t testing.TB, db *DB, key string, c Change) {
	t.Helper()
	if _, err := db.Update(context.Background(), []byte(key), func(Entry) Change { return c }); err != nil {
		t.Fatal(err)
	}
}

func TestOperationsOfTheLog(t *testing.T) {
	db := open(t, Options{})
	from := begin(t, db, 1)
	change(t, db, "k", Change{Op: Put, Record: Record{Flags: 7, Expire: 9, Version: 1, Value: []byte("v")}})
	change(t, db, "k", Change{Op: Touch, Record: Record{Flags: 7, Expire: 11, Version: 1, Value: []byte("v")}})
	change(t, db, "k", Change{Op: Delete, Tombstone: Tombstone{Version: 1, Until: 5}})
	change(t, db, "gone", Change{Op: Delete})
	change(t, db, "k", Change{Op: Put, Record: Record{Version: 2, Value: []byte("w")}}) // forgets the tombstone
	if _, err := db.FlushAll(context.Background()); err != nil {
		t.Fatal(err)
	}
	begin(t, db, 2)
	want := []string{"put k 7 9 1 v", "touch k 7 11 1 v", "delete k 1 until 5", "delete gone 0 until 0", "put k 0 0 2 w", "flush"}
	if got := operationsOf(t, db, from); !slices.Equal(got, want) {
		t.Errorf("operations\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// A replica that applied the same bytes has the same operations.
	replica := open(t, Options{})
	catchUp(t, db, replica)
	if got := operationsOf(t, replica, from); !slices.Equal(got, want) {
		t.Errorf("operations of the replica %q", got)
	}
}

// In a batch of many requests each delete keeps its own tombstone, and those
// that fall out because there are too many belong to nobody.
func TestOperationsOfAGroup(t *testing.T) {
	db := open(t, Options{Tombstones: 2})
	from := begin(t, db, 1)
	p := db.NewPipeline(nil)
	var group []*Commit
	for i := range 4 {
		key := []byte(fmt.Sprint("k", i))
		c := &Commit{owner: p, stripe: db.stripe(key)}
		c.stripe.Lock()
		p.open.Add(1)
		if _, err := db.prepare(c, key, func(Entry) Change {
			return Change{Op: Delete, Tombstone: Tombstone{Version: uint64(i) + 1}}
		}); err != nil {
			t.Fatal(err)
		}
		group = append(group, c)
	}
	db.commitGroup(group)
	want := []string{"delete k0 1 until 0", "delete k1 2 until 0", "delete k2 3 until 0", "delete k3 4 until 0"}
	if got := operationsOf(t, db, from); !slices.Equal(got, want) {
		t.Errorf("operations %q, want %q", got, want)
	}
}

func TestHoldAdvances(t *testing.T) {
	db := open(t, Options{WALSizeLimit: 1})
	begin(t, db, 1)
	h, pos := db.Hold()
	defer h.Release()
	last := pos.LSN
	for i := range 4 {
		last = put(t, db, fmt.Sprint("k", i), "v")
		rotate(t, db)
	}
	if err := db.sweep(); err != nil {
		t.Fatal(err)
	}
	if got := len(batchesOf(t, db, pos.LSN)); got != 4 {
		t.Fatalf("%d batches behind the hold, want 4", got)
	}
	h.Advance(last.Index)
	h.Advance(pos.LSN.Index) // never back
	if err := db.sweep(); err != nil {
		t.Fatal(err)
	}
	if oldest, err := db.Oldest(); err != nil || oldest <= pos.LSN.Index+1 || oldest > last.Index {
		t.Errorf("oldest %d, %v, want behind %d and up to %d", oldest, err, pos.LSN.Index+1, last.Index)
	}
}

func TestUnreadBytes(t *testing.T) {
	db := open(t, Options{})
	from := begin(t, db, 1)
	tail, err := db.Tail(from)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	unread := func() int64 {
		t.Helper()
		n, err := tail.Unread()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := unread(); n != 0 {
		t.Errorf("%d bytes unread at the end of the log", n)
	}
	value := strings.Repeat("v", 1000)
	for i := range 3 {
		put(t, db, fmt.Sprint("k", i), value)
		if i == 1 {
			rotate(t, db)
		}
	}
	if n := unread(); n < 3000 || n > 6000 {
		t.Errorf("%d bytes unread of three records of 1000", n)
	}
	for range 2 {
		if _, ok, err := tail.TryNext(); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if n := unread(); n < 1000 || n > 2500 {
		t.Errorf("%d bytes unread of one record of 1000", n)
	}
}
