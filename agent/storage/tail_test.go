package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// batchesOf reads everything behind a position.
func batchesOf(t testing.TB, db *DB, after topology.LSN) []string {
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
		got = append(got, b.LSN.String())
	}
}

func TestTailFromEveryPosition(t *testing.T) {
	dir := t.TempDir()
	db := open(t, Options{Dir: dir})
	var all []topology.LSN
	for epoch := range uint64(3) {
		all = append(all, begin(t, db, epoch+1))
		for i := range 4 {
			all = append(all, put(t, db, fmt.Sprint("k", i), "v"))
			if i == 1 {
				rotate(t, db)
			}
		}
		if epoch == 1 { // across a restart
			db.Close()
			db = open(t, Options{Dir: dir})
		}
	}
	for i := range len(all) + 1 {
		var after topology.LSN
		if i > 0 {
			after = all[i-1]
		}
		var want []string
		for _, l := range all[i:] {
			want = append(want, l.String())
		}
		if got := batchesOf(t, db, after); !slices.Equal(got, want) {
			t.Errorf("behind %v: %v, want %v", after, got, want)
		}
	}
	if files := stats(t, db).WALFiles; files < 4 {
		t.Errorf("only %d log files, the test means to cross some", files)
	}
}

func TestTailRefusesPositions(t *testing.T) {
	db := open(t, Options{})
	begin(t, db, 2)
	put(t, db, "k", "v")
	begin(t, db, 4)
	for lsn, want := range map[topology.LSN]error{
		{Epoch: 2, Index: 2}: nil,
		{Epoch: 4, Index: 3}: nil,
		{Epoch: 2, Index: 3}: ErrDiverged,
		{Epoch: 2, Index: 9}: ErrDiverged,
		{Epoch: 3, Index: 2}: ErrDiverged,
		{Epoch: 4, Index: 4}: ErrFuture,
		{Epoch: 5, Index: 1}: ErrFuture,
	} {
		tail, err := db.Tail(lsn)
		if !errors.Is(err, want) {
			t.Errorf("%v: %v, want %v", lsn, err, want)
		}
		if err == nil {
			tail.Close()
		}
	}
}

func TestTailWaits(t *testing.T) {
	db := open(t, Options{})
	tail, err := db.Tail(topology.LSN{})
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	go func() {
		for i := range 100 {
			put(t, db, "k", fmt.Sprint(i))
		}
	}()
	for i := range uint64(100) {
		b, err := tail.Next(t.Context())
		if err != nil || b.LSN.Index != i+1 {
			t.Fatalf("batch %d: %v, %v", i+1, b.LSN, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tail.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
}

// TestTailUnderLoad follows while logs are rotated, archived and deleted.
func TestTailUnderLoad(t *testing.T) {
	master := open(t, Options{WriteBuffer: 64 << 10})
	follower := open(t, Options{WriteBuffer: 64 << 10})
	begin(t, master, 1)
	const n = 3000
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := range n {
				put(t, master, fmt.Sprint("k", w, i%100), strings.Repeat("v", 200))
			}
		})
	}
	stop := make(chan struct{})
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			// What the follower has may go.
			master.walMu.Lock()
			master.policy.ttl = time.Nanosecond
			master.policy.holds[nil] = follower.Position().LSN.Index + 1
			master.walMu.Unlock()
			if err := master.sweep(); err != nil {
				t.Error(err)
			}
		}
	})
	tail, err := master.Tail(topology.LSN{})
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	written := make(chan struct{})
	go func() { wg.Wait(); close(written) }()
	for done := false; !done; {
		b, ok, err := tail.TryNext()
		switch {
		case err != nil:
			t.Fatal(err)
		case ok:
			if _, err := follower.Apply(t.Context(), b.Data); err != nil {
				t.Fatal(err)
			}
		default:
			select {
			case <-written:
				done = follower.Position().LSN == master.Position().LSN
			case <-tail.Moved():
			}
		}
	}
	close(stop)
	sweeper.Wait()
	if s := stats(t, master); s.OldestIndex < 100 {
		t.Errorf("nothing was deleted: %+v", s)
	}
}

func TestPurgedTail(t *testing.T) {
	db := open(t, Options{})
	begin(t, db, 1)
	put(t, db, "k", "1")
	open, err := db.Tail(topology.LSN{}) // holds the first file open
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	rotate(t, db)
	put(t, db, "k", "2")
	rotate(t, db)
	last := put(t, db, "k", "3")
	if got := stats(t, db); got.OldestIndex != 1 || got.Archived < 2 || got.ArchivedBytes == 0 {
		t.Errorf("stats %+v", got)
	}
	db.SetRetention(time.Nanosecond, 0)
	waitFor(t, func() bool { return stats(t, db).OldestIndex == last.Index })

	if _, err := db.Tail(topology.LSN{Epoch: 1, Index: 1}); !errors.Is(err, ErrPurged) {
		t.Errorf("purged position: %v", err)
	}
	if got := batchesOf(t, db, topology.LSN{Epoch: 1, Index: 3}); !slices.Equal(got, []string{last.String()}) {
		t.Errorf("retained: %v", got)
	}
	// The open one still has its file, and then finds the hole.
	for i := range 3 {
		b, _, err := open.TryNext()
		if i < 2 && (err != nil || b.LSN.Index != uint64(i+1)) || i == 2 && !errors.Is(err, ErrPurged) {
			t.Errorf("step %d: %v, %v", i, b.LSN, err)
		}
	}
}

func TestHoldKeepsTheLog(t *testing.T) {
	db := open(t, Options{WALTTL: time.Nanosecond, SweepInterval: time.Hour})
	begin(t, db, 1)
	rotate(t, db)
	hold, pos := db.Hold()
	for i := range 3 {
		put(t, db, "k", fmt.Sprint(i))
		rotate(t, db)
	}
	if err := db.sweep(); err != nil {
		t.Fatal(err)
	}
	if got := len(batchesOf(t, db, pos.LSN)); got != 3 {
		t.Errorf("%d batches behind the hold", got)
	}
	if stats(t, db).OldestIndex != 2 {
		t.Error("what nobody holds is still there")
	}
	hold.Release()
	hold.Release()
	if err := db.sweep(); err != nil {
		t.Fatal(err)
	}
	if got := stats(t, db); got.OldestIndex != 5 || got.Archived != 0 {
		t.Errorf("after the release: %+v", got)
	}
}

func TestRetentionBySize(t *testing.T) {
	db := open(t, Options{WALSizeLimit: 250_000, SweepInterval: time.Hour})
	for i := range 5 {
		put(t, db, "k", strings.Repeat(fmt.Sprint(i), 100_000))
		rotate(t, db)
	}
	if err := db.sweep(); err != nil {
		t.Fatal(err)
	}
	if got := stats(t, db); got.Archived != 2 || got.OldestIndex != 4 {
		t.Errorf("%+v", got)
	}
}

// TestLostTailIsNotReplayed has a log file with batches that RocksDB dropped
// when it recovered, because what was before them in another file got lost.
func TestLostTailIsNotReplayed(t *testing.T) {
	dir := t.TempDir()
	db := open(t, Options{Dir: dir})
	begin(t, db, 1)
	put(t, db, "a", "kept")
	put(t, db, "b", "lost")
	put(t, db, "c", "lost")
	crashed := crashCopy(t, dir)
	files, err := listWALs(filepath.Join(crashed, "db"))
	if err != nil {
		t.Fatal(err)
	}
	// Damage batch 3; batch 4 behind it is whole.
	name := filepath.Join(crashed, "db", walName(files[len(files)-1].number))
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(data), "lost")
	data[at]++
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	db = open(t, Options{Dir: crashed})
	if got := db.Position().LSN; got != (topology.LSN{Epoch: 1, Index: 2}) {
		t.Fatalf("recovered to %v", got)
	}
	begin(t, db, 2)
	put(t, db, "b", "new")
	follower := open(t, Options{})
	catchUp(t, db, follower)
	if value(t, follower, "b") != "new" || value(t, follower, "c") != "-" || value(t, follower, "a") != "kept" {
		t.Errorf("a=%s b=%s c=%s", value(t, follower, "a"), value(t, follower, "b"), value(t, follower, "c"))
	}
}

// TestFailedWriteIsNotReplayed has batches in the log whose write was reported
// as failed, so that another batch got their position.
func TestFailedWriteIsNotReplayed(t *testing.T) {
	for _, rotated := range []bool{false, true} {
		t.Run(fmt.Sprintf("rotated=%v", rotated), func(t *testing.T) {
			dir := t.TempDir()
			db := open(t, Options{Dir: dir})
			begin(t, db, 1)
			follower := open(t, Options{})
			live, err := db.Tail(topology.LSN{})
			if err != nil {
				t.Fatal(err)
			}
			defer live.Close()
			for i := range 3 {
				lsn := db.Position().LSN
				failed := testBatch(lsn.Epoch, lsn.Index+1, func(b *batchBuilder) { b.put(cfData, fmt.Sprint("failed", i), appendRecord(nil, &Record{})) })
				if err := db.use(func(e *engine) error { return e.writeBatch(failed, false) }); err != nil {
					t.Fatal(err)
				}
				db.writeErrors.Add(1)
				if rotated {
					rotate(t, db)
				}
				put(t, db, fmt.Sprint("good", i), "v")
			}
			for {
				b, ok, err := live.TryNext()
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				if _, err := follower.Apply(t.Context(), b.Data); err != nil {
					t.Fatal(err)
				}
			}
			db.Close()
			db = open(t, Options{Dir: dir}) // no write failed in this process
			begin(t, db, 2)
			put(t, db, "good3", "v")
			later := open(t, Options{})
			catchUp(t, db, later)
			catchUp(t, db, follower)
			for i := range 3 {
				for _, f := range []*DB{follower, later} {
					if value(t, f, fmt.Sprint("failed", i)) != "-" || value(t, f, fmt.Sprint("good", i)) != "v" {
						t.Errorf("batch %d: failed %q, good %q", i, value(t, f, fmt.Sprint("failed", i)), value(t, f, fmt.Sprint("good", i)))
					}
				}
			}
		})
	}
}
