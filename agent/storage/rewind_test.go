package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// digest is over everything that copies at the same position have in common:
// records and tombstones as they are stored, and the position.
func digest(t testing.TB, db *DB) string {
	t.Helper()
	h := sha256.New()
	err := db.use(func(e *engine) error {
		for _, cf := range []int{cfData, cfTombstones} {
			err := e.each(cf, "", func(key, value []byte) error {
				fmt.Fprintf(h, "%d %q %q\n", cf, key, value)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(h, db.Position())
	db.tombs.mu.RLock()
	defer db.tombs.mu.RUnlock()
	keys := make([]string, 0, len(db.tombs.byKey))
	for k := range db.tombs.byKey {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintln(h, k, db.tombs.byKey[k])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// chosen is how db would catch up with the master.
func chosen(t testing.TB, master, db *DB) history.Choice {
	t.Helper()
	oldest, err := master.Oldest()
	if err != nil {
		t.Fatal(err)
	}
	return history.Choose(master.Position(), oldest, history.Peer{Position: db.Position(), Rewind: true})
}

// rewindTo undoes what the master does not have, and returns how many values it took.
func rewindTo(t testing.TB, master, db *DB) history.Divergence {
	t.Helper()
	choice := chosen(t, master, db)
	if choice.Tier != history.TierRewind {
		t.Fatalf("choice %+v, want a rewind", choice)
	}
	d, err := db.Diverged(t.Context(), choice.Fork, history.DefaultRewindLimits)
	if err != nil {
		t.Fatal(err)
	}
	values, at := valuesOf(t, master, d.Keys)
	if err := db.Rewind(t.Context(), d, values, at); err != nil {
		t.Fatal(err)
	}
	if pos := db.Position(); pos.LSN != choice.Fork {
		t.Fatalf("rewound to %v, want %v", pos.LSN, choice.Fork)
	}
	return d
}

// valuesOf reads from the master in small steps.
func valuesOf(t testing.TB, master *DB, keys []history.Key) (values []history.Value, at topology.LSN) {
	t.Helper()
	for len(values) < len(keys) {
		v, lsn, err := master.Values(keys[len(values):], 100)
		if err != nil || len(v) == 0 {
			t.Fatalf("%d values, %v", len(v), err)
		}
		values, at = append(values, v...), lsn
	}
	return values, at
}

func sameDigest(t testing.TB, dbs ...*DB) {
	t.Helper()
	for _, db := range dbs[1:] {
		if digest(t, db) != digest(t, dbs[0]) {
			t.Fatalf("copies differ at %v and %v", dbs[0].Position(), db.Position())
		}
	}
}

// diverge makes a master and its replica, the latter promoted without the
// former's last writes.
func diverge(t *testing.T, oldDir string) (old, master *DB) {
	old, master = open(t, Options{Dir: oldDir}), open(t, Options{})
	begin(t, old, 1)
	put(t, old, "same", "s")
	put(t, old, "overwritten", "1")
	put(t, old, "deleted", "1")
	put(t, old, "expiring", "1")
	del(t, old, "tombstone", Tombstone{Version: 7, Until: 70})
	catchUp(t, old, master)

	put(t, old, "overwritten", "lost")
	put(t, old, "new", "lost")
	del(t, old, "deleted", Tombstone{Version: 2, Until: 20})
	put(t, old, "tombstone", "lost")
	change(t, old, "expiring", Change{Op: Touch, Record: Record{Expire: 99, Version: 1, Value: []byte("1")}})
	change(t, old, "both", Change{Op: Put, Record: Record{Version: 5, Value: []byte("lost")}})

	begin(t, master, 2)
	put(t, master, "both", "kept")
	put(t, master, "overwritten", "2")
	put(t, master, "later", "1")
	return old, master
}

func TestRewind(t *testing.T) {
	old, master := diverge(t, "")
	// In the cache of records is what will be wrong.
	for _, k := range []string{"overwritten", "new", "both", "expiring", "deleted"} {
		value(t, old, k)
	}
	tail, err := old.Tail(old.Position().LSN)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	scan := old.Scan(ScanOptions{})
	scan.Next(t.Context())

	d := rewindTo(t, master, old)
	if want := (topology.LSN{Epoch: 1, Index: 6}); d.Fork != want || d.Batches != 6 || d.End.Index != 12 {
		t.Errorf("undone: %+v", d)
	}
	var names []string
	for _, k := range d.Keys {
		names = append(names, fmt.Sprintf("%d/%s", k.Family, k.Key))
	}
	slices.Sort(names)
	want := []string{"0/both", "0/deleted", "0/expiring", "0/new", "0/overwritten", "0/tombstone", "2/deleted", "2/tombstone"}
	if !slices.Equal(names, want) {
		t.Errorf("keys %v, want %v", names, want)
	}
	if got, head := old.Position().Restored, master.Position().LSN; got != head {
		t.Errorf("restored as of %v, want %v", got, head)
	}
	if _, _, err := tail.TryNext(); !errors.Is(err, ErrReplaced) {
		t.Errorf("a reader of what was undone: %v, want %v", err, ErrReplaced)
	}
	for scan.Next(t.Context()) {
	}
	for k, want := range map[string]string{"same": "s", "overwritten": "2", "new": "-", "both": "kept", "deleted": "1", "tombstone": "-", "later": "-"} {
		if got := value(t, old, k); got != want {
			t.Errorf("%s is %q, want %q", k, got, want)
		}
	}
	if r, _, err := old.Get([]byte("expiring")); err != nil || r.Expire != 0 {
		t.Errorf("expiring: %+v, %v", r, err)
	}
	if ts, ok := old.tombs.get([]byte("tombstone")); !ok || ts != (Tombstone{Version: 7, Until: 70}) {
		t.Errorf("tombstone %+v %v", ts, ok)
	}
	if _, ok := old.tombs.get([]byte("deleted")); ok {
		t.Error("the tombstone of the undone delete is still there")
	}
	if _, err := old.Update(t.Context(), []byte("k"), func(Entry) Change { return Change{Op: Put} }); !errors.Is(err, ErrNotBegun) {
		t.Errorf("write after a rewind: %v, want %v", err, ErrNotBegun)
	}
	if got := stats(t, old).Rewinds; got != 1 {
		t.Errorf("%d rewinds counted", got)
	}
	if choice := chosen(t, master, old); choice.Tier != history.TierWAL {
		t.Errorf("goes on by %+v", choice)
	}
	catchUp(t, master, old)
	sameDigest(t, master, old)
	if got := old.Position().Restored; !got.IsZero() {
		t.Errorf("still restored as of %v", got)
	}
}

// TestRewindAcrossCrashes kills the node before, behind and after a rewind.
func TestRewindAcrossCrashes(t *testing.T) {
	dir := t.TempDir()
	old, master := diverge(t, dir)
	before := digest(t, old)
	crashed := open(t, Options{Dir: crashCopy(t, dir)})
	if digest(t, crashed) != before {
		t.Error("before the rewind something is different already")
	}
	d, err := old.Diverged(t.Context(), topology.LSN{Epoch: 1, Index: 6}, history.DefaultRewindLimits)
	if err != nil {
		t.Fatal(err)
	}
	values, at := valuesOf(t, master, d.Keys)
	// The last moment before the batch: its log file has begun, torn in its middle.
	if err := old.Rewind(t.Context(), d, values, at); err != nil {
		t.Fatal(err)
	}
	copied := crashCopy(t, dir)
	files, err := listWALs(filepath.Join(copied, "db"))
	if err != nil {
		t.Fatal(err)
	}
	last := files[len(files)-1]
	for _, cut := range []int64{1, last.size / 2, last.size - 1, last.size} {
		torn := crashCopy(t, dir)
		if err := os.Truncate(filepath.Join(torn, "db", walName(last.number)), last.size-cut); err != nil {
			t.Fatal(err)
		}
		if db := open(t, Options{Dir: torn}); digest(t, db) != before {
			t.Errorf("cut by %d of %d bytes: it is neither as before nor as behind", cut, last.size)
		}
	}
	// Behind it, and again at every batch on the way to S.
	for {
		crashed := open(t, Options{Dir: copied})
		if digest(t, crashed) != digest(t, old) {
			t.Fatalf("at %v something else is found after a crash: %+v, was %+v", old.Position().LSN, crashed.Position(), old.Position())
		}
		if choice := chosen(t, master, crashed); choice.Tier != history.TierWAL {
			t.Fatalf("goes on by %+v", choice)
		}
		catchUp(t, master, crashed)
		sameDigest(t, master, crashed)
		if old.Position().LSN == master.Position().LSN {
			break
		}
		copyBatches(t, master, old, 1)
		copied = crashCopy(t, dir)
	}
}

// TestLogBehindARewind reads the log of a rewound node, from every position that
// is left, across restarts, as a master has to that it becomes later.
func TestLogBehindARewind(t *testing.T) {
	dir := t.TempDir()
	old, master := diverge(t, dir)
	rotate(t, old) // the tail is in two files, and ends in the second
	old.Close()
	old = open(t, Options{Dir: dir})
	rewindTo(t, master, old)
	if oldest, err := old.Oldest(); err != nil || oldest != 1 {
		t.Errorf("oldest %d, %v", oldest, err)
	}
	check := func() {
		t.Helper()
		line := old.Position()
		for after := range line.LSN.Index + 1 {
			var want []string
			for i := after + 1; i <= line.LSN.Index; i++ {
				want = append(want, topology.LSN{Epoch: line.EpochAt(i), Index: i}.String())
			}
			if got := batchesOf(t, old, topology.LSN{Epoch: line.EpochAt(after), Index: after}); !slices.Equal(got, want) {
				t.Fatalf("behind %d: %v, want %v", after, got, want)
			}
		}
		if _, err := old.Tail(topology.LSN{Epoch: 1, Index: 7}); line.LSN.Index > 6 && !errors.Is(err, ErrDiverged) {
			t.Errorf("a tail behind what was undone: %v, want %v", err, ErrDiverged)
		}
	}
	check()
	copyBatches(t, master, old, 2)
	check()
	old.Close()
	old = open(t, Options{Dir: dir})
	check()
	catchUp(t, master, old)
	begin(t, old, 3)
	put(t, old, "more", "1")
	check()
	old.Close()
	old = open(t, Options{Dir: dir})
	check()
	// Who follows it from the start has what it has.
	follower := open(t, Options{})
	catchUp(t, old, follower)
	sameDigest(t, old, follower)
	// As operations for those who cannot read the log: no trace of what was undone.
	for _, o := range operationsOf(t, old, topology.LSN{}) {
		if strings.Contains(o, "lost") {
			t.Errorf("operation %q was undone", o)
		}
	}
}

// TestSecondRewind undoes a tail behind a fork that has been one before.
func TestSecondRewind(t *testing.T) {
	old, master := diverge(t, "")
	third := open(t, Options{})
	copyBatches(t, old, third, 6)
	rewindTo(t, master, old)
	catchUp(t, master, old)
	begin(t, third, 3) // without anything of epoch 2
	put(t, third, "third", "1")
	d := rewindTo(t, third, old)
	if d.Fork != (topology.LSN{Epoch: 1, Index: 6}) {
		t.Errorf("fork %v", d.Fork)
	}
	catchUp(t, third, old)
	sameDigest(t, third, old)
	rewindTo(t, third, master)
	catchUp(t, third, master)
	sameDigest(t, third, master)
}

// TestUnfinishedRewind has the master die from which a node took values before
// the node has got as far.
func TestUnfinishedRewind(t *testing.T) {
	dir := t.TempDir()
	old, master := diverge(t, dir)
	third := open(t, Options{})
	copyBatches(t, master, third, 7) // one batch of epoch 2
	rewindTo(t, master, old)
	copyBatches(t, master, old, 2)
	old.Close()
	old = open(t, Options{Dir: dir})
	if old.Position().Restored != master.Position().LSN {
		t.Errorf("position %+v forgot what it was restored to", old.Position())
	}
	begin(t, third, 4)
	put(t, third, "third", "1")
	if got, want := chosen(t, third, old), (history.Choice{Tier: history.TierCheckpoint, Reason: "rewind_unfinished"}); got != want {
		t.Errorf("choice %+v, want %+v", got, want)
	}
	if err := old.Replace(receive(t, third, old)); err != nil {
		t.Fatal(err)
	}
	sameDigest(t, third, old)

	// One that is made master all the same is nobody's equal.
	lone := open(t, Options{})
	copyBatches(t, third, lone, 6)
	begin(t, lone, 3)
	put(t, lone, "lone", "1")
	rewindTo(t, third, lone)
	former := lone.Position()
	begin(t, lone, 5)
	pos := lone.Position()
	if pos.History == former.History || pos.History == "" || !pos.Restored.IsZero() {
		t.Errorf("position %+v, was %+v", pos, former)
	}
	if choice := chosen(t, lone, third); choice.Tier != history.TierCheckpoint || choice.Reason != "other_history" {
		t.Errorf("choice %+v", choice)
	}
	// And remains so.
	dir = lone.Dir()
	lone.Close()
	lone = open(t, Options{Dir: dir})
	if got := lone.Position(); fmt.Sprint(got) != fmt.Sprint(pos) {
		t.Errorf("position %+v, want %+v", got, pos)
	}
}

func TestDivergedGivesUp(t *testing.T) {
	fork := topology.LSN{Epoch: 1, Index: 2}
	tests := []struct {
		name   string
		tail   func(t *testing.T, db *DB)
		limits history.RewindLimits
		want   error
	}{
		{"as many keys as allowed", func(t *testing.T, db *DB) { put(t, db, "a", "1"); put(t, db, "a", "2"); put(t, db, "b", "1") }, history.RewindLimits{Keys: 2, Bytes: 2}, nil},
		{"a key more", func(t *testing.T, db *DB) { put(t, db, "a", "1"); put(t, db, "b", "1") }, history.RewindLimits{Keys: 1, Bytes: 100}, ErrTooLarge},
		{"a byte more", func(t *testing.T, db *DB) { put(t, db, "ab", "1"); put(t, db, "cd", "1") }, history.RewindLimits{Keys: 9, Bytes: 3}, ErrTooLarge},
		{"flush_all", func(t *testing.T, db *DB) {
			if _, err := db.FlushAll(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, history.DefaultRewindLimits, ErrFlushed},
		{"purged", func(t *testing.T, db *DB) {
			for range 3 {
				rotate(t, db)
				put(t, db, "a", "1")
			}
			db.SetRetention(time.Nanosecond, 0)
			waitFor(t, func() bool { return stats(t, db).OldestIndex > fork.Index })
		}, history.DefaultRewindLimits, ErrPurged},
		{"no tail", func(t *testing.T, db *DB) {}, history.DefaultRewindLimits, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			db := open(t, Options{})
			begin(t, db, 1)
			put(t, db, "a", "0")
			tt.tail(t, db)
			if _, err := db.Diverged(t.Context(), fork, tt.limits); !errors.Is(err, tt.want) {
				t.Errorf("err = %v, want %v", err, tt.want)
			}
			for _, off := range []topology.LSN{{}, {Epoch: 2, Index: 2}, {Epoch: 1, Index: 99}} {
				if _, err := db.Diverged(t.Context(), off, tt.limits); !errors.Is(err, ErrDiverged) {
					t.Errorf("fork at %v: %v, want %v", off, err, ErrDiverged)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := db.Diverged(ctx, fork, tt.limits); !errors.Is(err, context.Canceled) && !errors.Is(err, ErrPurged) {
				t.Errorf("canceled: %v", err)
			}
		})
	}
}

// TestDivergedWithFailedWrites has a write in the files that was reported as
// failed, and that a restart has brought into the database.
func TestDivergedWithFailedWrites(t *testing.T) {
	dir := t.TempDir()
	old, master := open(t, Options{Dir: dir}), open(t, Options{})
	begin(t, old, 1)
	put(t, old, "k", "v")
	catchUp(t, old, master)
	failed := testBatch(1, 3, func(b *batchBuilder) { b.put(cfData, "failed", appendRecord(nil, &Record{})) })
	if err := old.use(func(e *engine) error { return e.writeBatch(failed, false) }); err != nil {
		t.Fatal(err)
	}
	old.writeErrors.Add(1)
	rotate(t, old)
	put(t, old, "good", "v")
	old.Close()
	old = open(t, Options{Dir: dir})
	if value(t, old, "failed") != "" {
		t.Fatal("the test means to have it in the database")
	}
	begin(t, master, 2)
	rewindTo(t, master, old)
	catchUp(t, master, old)
	sameDigest(t, master, old)
}

func TestRewindChecks(t *testing.T) {
	old, master := diverge(t, "")
	fork := topology.LSN{Epoch: 1, Index: 6}
	d, err := old.Diverged(t.Context(), fork, history.DefaultRewindLimits)
	if err != nil {
		t.Fatal(err)
	}
	values, at := valuesOf(t, master, d.Keys)
	before := digest(t, old)
	if err := old.Rewind(t.Context(), d, values[1:], at); err == nil {
		t.Error("a value is missing")
	}
	off := d
	off.Fork = topology.LSN{Epoch: 2, Index: 7}
	if err := old.Rewind(t.Context(), off, values, at); !errors.Is(err, ErrDiverged) {
		t.Errorf("fork of another log: %v, want %v", err, ErrDiverged)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := old.Rewind(ctx, d, values, at); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	old.commitMu.Lock()
	old.failWrite = func() error { return errors.New("disk full") }
	old.commitMu.Unlock()
	if err := old.Rewind(t.Context(), d, values, at); !errors.Is(err, ErrWriteFailed) {
		t.Errorf("failed write: %v, want %v", err, ErrWriteFailed)
	}
	if digest(t, old) != before {
		t.Error("a refused rewind changed something")
	}
	old.commitMu.Lock()
	old.failWrite, old.failure = nil, nil
	old.commitMu.Unlock()
	// What was written since the tail was read would be missed.
	put(t, old, "since", "1")
	if err := old.Rewind(t.Context(), d, values, at); !errors.Is(err, ErrMoved) {
		t.Errorf("the log moved: %v, want %v", err, ErrMoved)
	}
	if got := old.Position().LSN.Index; got != 13 || stats(t, old).Rewinds != 0 {
		t.Errorf("log at %d, %d rewinds", got, stats(t, old).Rewinds)
	}
}

func TestValues(t *testing.T) {
	db := open(t, Options{})
	begin(t, db, 1)
	put(t, db, "a", strings.Repeat("a", 50))
	put(t, db, "b", strings.Repeat("b", 50))
	head := del(t, db, "c", Tombstone{Version: 4})
	keys := []history.Key{{Family: cfData, Key: "a"}, {Family: cfData, Key: "none"}, {Family: cfData, Key: "b"}, {Family: cfTombstones, Key: "c"}}
	for limit, want := range map[int]int{0: 1, 50: 1, 80: 3, 1000: 4} {
		values, at, err := db.Values(keys, limit)
		if err != nil || len(values) != want || at != head {
			t.Errorf("limit %d: %d values at %v, %v", limit, len(values), at, err)
		}
	}
	values, _, err := db.Values(keys, 1000)
	if err != nil || !values[0].Found || values[1].Found || !values[2].Found || !values[3].Found || !bytes.HasSuffix(values[2].Data, []byte("bbb")) {
		t.Errorf("%v, %v", values, err)
	}
	for _, family := range []uint8{cfMeta, cfCount} {
		if _, _, err := db.Values([]history.Key{{Family: family, Key: metaLSN}}, 1); err == nil {
			t.Errorf("column family %d was read", family)
		}
	}
}

// TestFirstPositionBehindALargeRewind finds the first batch of a log file that
// begins with a batch of many blocks, at any offset in a block.
func TestFirstPositionBehindALargeRewind(t *testing.T) {
	dir := t.TempDir()
	for size := 3 * walBlockSize; size < 3*walBlockSize+100; size++ {
		var w walWriter
		var b batchBuilder
		w.add(make([]byte, batchHeaderSize))
		b.startMarked(rewindMark)
		b.put(cfMeta, metaLSN, lsnBytes(topology.LSN{Epoch: 1, Index: 2}))
		b.put(cfData, "k", make([]byte, size))
		w.add(b.finish())
		for range 2 {
			if err := os.WriteFile(filepath.Join(dir, walName(7)), w.data, 0o644); err != nil {
				t.Fatal(err)
			}
			lsn, ok, err := firstLSN(dir, 7)
			if err != nil || ok != (lsn == topology.LSN{Epoch: 2, Index: 3}) {
				t.Fatalf("%d bytes: %v %v %v", size, lsn, ok, err)
			}
			if ok {
				break
			}
			w.add(testBatch(2, 3))
		}
		if _, ok, _ := firstLSN(dir, 7); !ok {
			t.Fatalf("%d bytes: the batch behind is not found", size)
		}
	}
}

// TestRandomFailoversConverge lets masters die with what only they have, lets
// their successors die in turn, kills nodes at any moment and purges logs. Whatever
// happened, whoever catches up has what the master has.
func TestRandomFailoversConverge(t *testing.T) {
	tiers := map[history.Tier]int{}
	reasons := map[string]int{}
	for seed := range uint64(8) {
		randomFailovers(t, seed, tiers, reasons)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("tiers %v, reasons %v", tiers, reasons)
	if tiers[history.TierRewind] < 20 || tiers[history.TierWAL] < 20 || reasons["rewind_unfinished"] == 0 || reasons["given up"] == 0 {
		t.Errorf("the histories were not what the test is about: %v, %v", tiers, reasons)
	}
}

func randomFailovers(t *testing.T, seed uint64, tiers map[history.Tier]int, reasons map[string]int) {
	r := rand.New(rand.NewPCG(seed, 4))
	const nodes = 3
	dbs := make([]*DB, nodes)
	for i := range dbs {
		dbs[i] = open(t, Options{Dir: t.TempDir(), Tombstones: 8, WriteBuffer: 64 << 10})
	}
	crash := func(i int) {
		dir := crashCopy(t, dbs[i].Dir())
		dbs[i].Close()
		dbs[i] = open(t, Options{Dir: dir, Tombstones: 8, WriteBuffer: 64 << 10})
	}
	write := func(db *DB) {
		key := fmt.Sprint("k", r.IntN(25))
		switch r.IntN(80) {
		case 0:
			if _, err := db.FlushAll(t.Context()); err != nil {
				t.Fatal(err)
			}
		case 1:
			rotate(t, db)
		case 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21:
			del(t, db, key, Tombstone{Version: r.Uint64N(1000), Until: 5})
		default:
			put(t, db, key, fmt.Sprint(r.Uint32()))
		}
	}
	// approach brings a node nearer to the master, or up to it.
	approach := func(master, db *DB, all bool) {
		choice := chosen(t, master, db)
		tiers[choice.Tier]++
		reasons[choice.Reason]++
		switch choice.Tier {
		case history.TierRewind:
			d, err := db.Diverged(t.Context(), choice.Fork, history.DefaultRewindLimits)
			if errors.Is(err, ErrFlushed) || errors.Is(err, ErrPurged) {
				reasons["given up"]++
				if err := db.Replace(receive(t, master, db)); err != nil {
					t.Fatal(err)
				}
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			values, at := valuesOf(t, master, d.Keys)
			if err := db.Rewind(t.Context(), d, values, at); err != nil {
				t.Fatal(err)
			}
		case history.TierCheckpoint:
			if err := db.Replace(receive(t, master, db)); err != nil {
				t.Fatal(err)
			}
		case history.TierNone:
			t.Fatalf("seed %d: %+v", seed, choice)
		}
		left := int(master.Position().LSN.Index - db.Position().LSN.Index)
		if !all {
			left = r.IntN(left + 1)
		}
		copyBatches(t, master, db, left)
	}
	epoch := uint64(1)
	master := 0
	begin(t, dbs[master], epoch)
	for i := range dbs {
		catchUp(t, dbs[master], dbs[i])
	}
	for range 50 {
		other := (master + 1 + r.IntN(nodes-1)) % nodes
		switch r.IntN(20) {
		case 0, 1, 2, 3, 4, 5, 6:
			for range r.IntN(12) {
				write(dbs[master])
			}
		case 7, 8, 9, 10, 11, 12:
			approach(dbs[master], dbs[other], false)
		case 13, 14:
			crash(other)
		case 15:
			dbs[other].SetRetention(time.Nanosecond, 0)
			if err := dbs[other].sweep(); err != nil {
				t.Fatal(err)
			}
			dbs[other].SetRetention(0, 0)
		default:
			// A failover, after which the old one may go on for a while.
			old := master
			master = other
			epoch++
			begin(t, dbs[master], epoch)
			for range r.IntN(4) {
				write(dbs[old])
			}
			if r.IntN(3) == 0 {
				crash(old)
			}
		}
	}
	for i := range dbs {
		if i != master {
			approach(dbs[master], dbs[i], true)
			sameDigest(t, dbs[master], dbs[i])
		}
	}
	for _, db := range dbs {
		db.Close()
	}
}
