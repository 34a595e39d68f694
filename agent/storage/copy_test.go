package storage

import (
	"errors"
	"testing"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// A copy into an empty database has a log that an empty follower reads from the first
// batch on.
func TestBeginCopyOfNothing(t *testing.T) {
	db, follower := open(t, Options{}), open(t, Options{})
	if _, err := db.BeginCopy(t.Context(), 1, 2); err != nil {
		t.Fatal(err)
	}
	put(t, db, "k", "v")
	catchUp(t, db, follower)
	if got := value(t, follower, "k"); got != "v" {
		t.Errorf("follower has %s", got)
	}
	if a, b := db.Position(), follower.Position(); a.LSN != b.LSN || a.History != b.History || b.Partition != 2 {
		t.Errorf("position %+v, of the copy %+v", b, a)
	}
}

func TestBeginCopy(t *testing.T) {
	dir := t.TempDir()
	db := open(t, Options{Dir: dir})
	begin(t, db, 7)
	put(t, db, "k", "old")
	before := db.Position()
	tail, err := db.Tail(before.LSN)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()

	// A lower epoch, another partition: it is another history.
	lsn, err := db.BeginCopy(t.Context(), 3, 5)
	if want := (topology.LSN{Epoch: 3, Index: before.LSN.Index + 1}); err != nil || lsn != want {
		t.Fatalf("BeginCopy = %v, %v, want %v", lsn, err, want)
	}
	if _, _, err := tail.TryNext(); !errors.Is(err, ErrReplaced) {
		t.Errorf("a reader of the former log: %v, want %v", err, ErrReplaced)
	}
	pos := db.Position()
	if pos.Partition != 5 || pos.History == before.History || pos.History == "" {
		t.Errorf("position %+v after %+v", pos, before)
	}
	if r := pos.Relate(before); r != history.Foreign {
		t.Errorf("the former position is %v", r)
	}
	if got := value(t, db, "k"); got != "old" {
		t.Errorf("record is %s", got)
	}
	end := put(t, db, "k", "new")
	if end.Epoch != 3 || end.Index != lsn.Index+1 {
		t.Errorf("write at %v", end)
	}

	// Others can follow it from a checkpoint on, through the log.
	follower := open(t, Options{})
	if err := follower.Replace(receive(t, db, follower)); err != nil {
		t.Fatal(err)
	}
	put(t, db, "k", "newer")
	catchUp(t, db, follower)
	if got := value(t, follower, "k"); got != "newer" {
		t.Errorf("follower has %s", got)
	}

	// It survives a restart, which must not write on.
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, Options{Dir: dir})
	if got := again.Position(); got.History != pos.History || len(got.Lineage) != 1 || got.LSN.Epoch != 3 {
		t.Errorf("after a restart %+v, was %+v", got, pos)
	}
	if _, err := again.Update(t.Context(), []byte("k"), func(Entry) Change { return Change{Op: Delete} }); !errors.Is(err, ErrNotBegun) {
		t.Errorf("write after a restart: %v, want %v", err, ErrNotBegun)
	}
	if _, err := again.BeginCopy(t.Context(), 0, 5); err == nil {
		t.Error("epoch 0 was begun")
	}
}
