package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if n := openEngines.Load(); n != 0 {
		fmt.Fprintf(os.Stderr, "%d RocksDB handles are still open\n", n)
		code = 1
	}
	os.Exit(code)
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// open opens a database that is closed at the end of the test.
func open(t testing.TB, o Options) *DB {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Logger == nil {
		o.Logger = quiet
	}
	if o.BlockCache == 0 {
		o.BlockCache = 1 << 20
	}
	if o.RecordCache == 0 {
		o.RecordCache = 1 << 20 // so that every test is one of the cache too
	}
	db, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func put(t testing.TB, db *DB, key, value string) topology.LSN {
	t.Helper()
	lsn, err := db.Update(t.Context(), []byte(key), func(e Entry) Change {
		return Change{Op: Put, Record: Record{Version: e.Record.Version + 1, Value: []byte(value)}}
	})
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func del(t testing.TB, db *DB, key string, ts Tombstone) topology.LSN {
	t.Helper()
	lsn, err := db.Update(t.Context(), []byte(key), func(Entry) Change { return Change{Op: Delete, Tombstone: ts} })
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func begin(t testing.TB, db *DB, epoch uint64) topology.LSN {
	t.Helper()
	lsn, err := db.BeginEpoch(t.Context(), epoch, 0)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func value(t testing.TB, db *DB, key string) string {
	t.Helper()
	r, ok, err := db.Get([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return "-"
	}
	return string(r.Value)
}

// follow copies n batches behind follower's position to it.
func copyBatches(t testing.TB, master, follower *DB, n int) {
	t.Helper()
	tail, err := master.Tail(follower.Position().LSN)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	for range n {
		b, err := tail.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if lsn, err := follower.Apply(t.Context(), b.Data); err != nil || lsn != b.LSN {
			t.Fatalf("Apply(%v) = %v, %v", b.LSN, lsn, err)
		}
	}
}

func catchUp(t testing.TB, master, follower *DB) {
	t.Helper()
	copyBatches(t, master, follower, int(master.Position().LSN.Index-follower.Position().LSN.Index))
}

// rotate makes RocksDB archive the current log.
func rotate(t testing.TB, db *DB) {
	t.Helper()
	if err := db.use((*engine).flushAll); err != nil {
		t.Fatal(err)
	}
}

func TestUpdateAndGet(t *testing.T) {
	db := open(t, Options{})
	ctx := t.Context()
	want := Record{Flags: 7, Expire: 12345, Version: 9, Value: []byte("v\x00\xff")}
	lsn, err := db.Update(ctx, []byte("k"), func(e Entry) Change {
		if e.Found || e.HasTombstone {
			t.Errorf("unknown key: %+v", e)
		}
		return Change{Op: Put, Record: want}
	})
	if err != nil || lsn != (topology.LSN{Index: 1}) {
		t.Fatalf("Update = %v, %v", lsn, err)
	}
	got, ok, err := db.Get([]byte("k"))
	if err != nil || !ok || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("Get = %+v, %v, %v", got, ok, err)
	}
	if _, ok, err := db.Get([]byte("none")); ok || err != nil {
		t.Fatalf("Get of a missing key: %v, %v", ok, err)
	}

	lsn, err = db.Update(ctx, []byte("k"), func(e Entry) Change {
		if fmt.Sprint(e.Record) != fmt.Sprint(want) {
			t.Errorf("update sees %+v", e)
		}
		return Change{}
	})
	if err != nil || !lsn.IsZero() {
		t.Fatalf("keeping: %v, %v", lsn, err)
	}

	ts := Tombstone{Version: 9, Until: 99}
	del(t, db, "k", ts)
	put(t, db, "other", "x")
	if e := entry(t, db, "k"); e.Found || e.Tombstone != ts {
		t.Errorf("after deleting: %+v", e)
	}
	if e := entry(t, db, "none"); e.Found || e.HasTombstone {
		t.Errorf("never written: %+v", e)
	}
	put(t, db, "k", "again")
	if e := entry(t, db, "k"); !e.Found || e.HasTombstone || string(e.Record.Value) != "again" {
		t.Errorf("after putting a deleted key: %+v", e)
	}
	if got := db.Position().LSN.Index; got != 4 {
		t.Errorf("index %d after 4 changes", got)
	}
}

func TestUpdateRefusesKeys(t *testing.T) {
	db := open(t, Options{})
	for _, key := range []string{"", strings.Repeat("k", MaxKey+1)} {
		if _, err := db.Update(t.Context(), []byte(key), nil); !errors.Is(err, ErrKey) {
			t.Errorf("key of %d bytes: %v", len(key), err)
		}
	}
	put(t, db, strings.Repeat("\xff", MaxKey), "longest")
	if _, err := db.FlushAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := value(t, db, strings.Repeat("\xff", MaxKey)); got != "-" {
		t.Errorf("the greatest key survived: %q", got)
	}
}

func TestUpdateIsAtomicPerKey(t *testing.T) {
	db := open(t, Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if _, err := db.Update(context.Background(), []byte("counter"), func(e Entry) Change {
					return Change{Op: Put, Record: Record{Version: e.Record.Version + 1}}
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	r, _, err := db.Get([]byte("counter"))
	if err != nil || r.Version != 400 {
		t.Errorf("version %d, %v; want 400", r.Version, err)
	}
}

func TestUpdateEndsWithContext(t *testing.T) {
	db := open(t, Options{})
	db.commitMu.Lock()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := db.Update(ctx, []byte("k"), func(Entry) Change {
			cancel()
			return Change{Op: Put, Record: Record{Value: []byte("late")}}
		})
		result <- err
	}()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	db.commitMu.Unlock()
	put(t, db, "k", "next") // waits for the stripe, so the abandoned one is over
	if got := db.Position().LSN.Index; got != 2 {
		t.Errorf("index %d, want 2", got)
	}
	if _, err := db.Update(ctx, []byte("k"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

func TestGroupCommit(t *testing.T) {
	db := open(t, Options{MaxBatchBytes: 100})
	db.commitMu.Lock()
	var wg sync.WaitGroup
	stripes := map[*sync.Mutex]bool{}
	for i := 0; len(stripes) < 20; i++ {
		key := fmt.Sprint("key", i)
		if s := db.stripe([]byte(key)); !stripes[s] { // or it would wait for the other key
			stripes[s] = true
			wg.Go(func() { put(t, db, key, strings.Repeat("v", 20)) })
		}
	}
	waitFor(t, func() bool {
		db.queue.mu.Lock()
		defer db.queue.mu.Unlock()
		return len(db.queue.pending)+len(db.queue.spare) == 20 // the latter are being committed
	})
	db.commitMu.Unlock()
	wg.Wait()
	// A change is about 48 bytes, so there are two in a batch.
	if got := stats(t, db).Batches; got < 10 || got > 12 {
		t.Errorf("%d batches of 20 changes", got)
	}
}

func stats(t testing.TB, db *DB) Stats {
	t.Helper()
	s, err := db.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatal("condition did not come true")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	db := open(t, Options{Dir: dir})
	begin(t, db, 3)
	put(t, db, "a", "1")
	del(t, db, "a", Tombstone{Version: 5, Until: 10})
	put(t, db, "b", "2")
	want := db.Position()
	db.Close()

	db = open(t, Options{Dir: dir})
	if got := db.Position(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("position %+v, want %+v", got, want)
	}
	if want.Partition != 0 || len(want.History) != 32 || !slices.Equal(want.Lineage, lineageOf(3, 1)) {
		t.Errorf("position %+v", want)
	}
	if value(t, db, "b") != "2" {
		t.Error("record lost")
	}
	if ts, ok := db.tombs.get([]byte("a")); !ok || ts.Version != 5 {
		t.Errorf("tombstone %v %v", ts, ok)
	}
}

// crashCopy copies a data directory as a killed process would leave it.
func crashCopy(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestCrashKeepsCommitted(t *testing.T) {
	dir := t.TempDir()
	db := open(t, Options{Dir: dir})
	begin(t, db, 1)
	for i := range 50 {
		put(t, db, fmt.Sprint("k", i), "v")
	}
	killed := open(t, Options{Dir: crashCopy(t, dir)})
	if got, want := killed.Position(), db.Position(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("position %v, want %v", got, want)
	}
	if value(t, killed, "k49") != "v" {
		t.Error("record lost")
	}
	// Its log is still readable from the beginning, across the recovery.
	begin(t, killed, 2)
	put(t, killed, "after", "v")
	follower := open(t, Options{})
	catchUp(t, killed, follower)
	if value(t, follower, "k0") != "v" || value(t, follower, "after") != "v" {
		t.Error("follower lacks records")
	}
}

func TestCrashWithTornLog(t *testing.T) {
	dir := t.TempDir()
	db := open(t, Options{Dir: dir})
	begin(t, db, 1)
	for i := range 10 {
		put(t, db, fmt.Sprint("k", i), "v")
	}
	torn := crashCopy(t, dir)
	files, err := listWALs(filepath.Join(torn, "db"))
	if err != nil {
		t.Fatal(err)
	}
	last := files[len(files)-1]
	name := filepath.Join(torn, "db", walName(last.number))
	if err := os.Truncate(name, last.size-5); err != nil {
		t.Fatal(err)
	}
	killed := open(t, Options{Dir: torn})
	if got, want := killed.Position().LSN.Index, db.Position().LSN.Index-1; got != want {
		t.Fatalf("index %d, want %d", got, want)
	}
	begin(t, killed, 2)
	put(t, killed, "k", "other")
	follower := open(t, Options{})
	catchUp(t, killed, follower)
	if got := follower.Position(); fmt.Sprint(got) != fmt.Sprint(killed.Position()) {
		t.Errorf("follower at %+v, master at %+v", got, killed.Position())
	}
}

func TestLockedDirectory(t *testing.T) {
	dir := t.TempDir()
	open(t, Options{Dir: dir})
	if _, err := Open(Options{Dir: dir, Logger: quiet}); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v", err)
	}
}

func TestClosed(t *testing.T) {
	db := open(t, Options{})
	tail, err := db.Tail(topology.LSN{})
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error)
	go func() {
		_, err := tail.Next(context.Background())
		waiting <- err
	}()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, ErrClosed) {
		t.Errorf("waiting tail: %v", err)
	}
	_, _, getErr := db.Get([]byte("k"))
	_, updateErr := db.Update(t.Context(), []byte("k"), nil)
	_, applyErr := db.Apply(t.Context(), testBatch(0, 1))
	_, beginErr := db.BeginEpoch(t.Context(), 1, 0)
	_, flushErr := db.FlushAll(t.Context())
	_, statsErr := db.Stats()
	_, snapErr := db.Snapshot()
	for i, err := range []error{getErr, updateErr, applyErr, beginErr, flushErr, statsErr, snapErr, db.Close(), db.Wipe()} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("call %d: %v", i, err)
		}
	}
}

func TestBeginEpoch(t *testing.T) {
	db := open(t, Options{})
	ctx := t.Context()
	if lsn := begin(t, db, 2); lsn != (topology.LSN{Epoch: 2, Index: 1}) {
		t.Fatalf("LSN %v", lsn)
	}
	history := db.Position().History
	if lsn := put(t, db, "k", "v"); lsn != (topology.LSN{Epoch: 2, Index: 2}) {
		t.Fatalf("LSN %v", lsn)
	}
	if lsn := begin(t, db, 2); lsn != (topology.LSN{Epoch: 2, Index: 2}) {
		t.Errorf("repeated: %v", lsn)
	}
	if _, err := db.BeginEpoch(ctx, 1, 0); !errors.Is(err, ErrStaleEpoch) {
		t.Errorf("older epoch: %v", err)
	}
	if _, err := db.BeginEpoch(ctx, 3, 1); !errors.Is(err, ErrOtherPartition) {
		t.Errorf("other partition: %v", err)
	}
	if _, err := db.BeginEpoch(ctx, 3, -1); err == nil {
		t.Error("no partition was accepted")
	}
	begin(t, db, 5)
	p := db.Position()
	if p.History != history || !slices.Equal(p.Lineage, lineageOf(2, 1, 5, 3)) || p.Partition != 0 {
		t.Errorf("position %+v", p)
	}

	// An epoch that another process began cannot be begun again.
	dir := db.Dir()
	db.Close()
	db = open(t, Options{Dir: dir})
	if _, err := db.BeginEpoch(ctx, 5, 0); !errors.Is(err, ErrStaleEpoch) {
		t.Errorf("epoch of the former process: %v", err)
	}
	begin(t, db, 6)
}

func TestFollowerTakesNoWritesOfItsOwn(t *testing.T) {
	master, db := open(t, Options{}), open(t, Options{})
	put(t, open(t, Options{}), "k", "without any epoch")
	begin(t, master, 1)
	catchUp(t, master, db)
	update := func() error {
		_, err := db.Update(t.Context(), []byte("k"), func(Entry) Change { return Change{Op: Put} })
		_, flushErr := db.FlushAll(t.Context())
		if (err == nil) != (flushErr == nil) {
			t.Errorf("Update: %v, FlushAll: %v", err, flushErr)
		}
		return err
	}
	if err := update(); !errors.Is(err, ErrNotBegun) {
		t.Errorf("a follower: %v", err)
	}
	begin(t, db, 2)
	if err := update(); err != nil {
		t.Errorf("promoted: %v", err)
	}
	catchUp(t, db, master)
	begin(t, master, 3)
	catchUp(t, master, db)
	if err := update(); !errors.Is(err, ErrNotBegun) {
		t.Errorf("follower again: %v", err)
	}
}

func testBatch(epoch, index uint64, more ...func(*batchBuilder)) []byte {
	var b batchBuilder
	b.start(topology.LSN{Epoch: epoch, Index: index})
	for _, f := range more {
		f(&b)
	}
	return b.finish()
}

func TestApplyChecks(t *testing.T) {
	master, db := open(t, Options{}), open(t, Options{})
	begin(t, master, 2)
	put(t, master, "k", "v")
	catchUp(t, master, db)
	if got, want := db.Position(), master.Position(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("follower at %+v, master at %+v", got, want)
	}
	meta := func(key, value string) func(*batchBuilder) {
		return func(b *batchBuilder) { b.put(cfMeta, key, []byte(value)) }
	}
	lineage := func(epoch, index uint64) func(*batchBuilder) {
		return meta(lineageKey(epoch), string([]byte{0, 0, 0, 0, 0, 0, 0, byte(index)}))
	}
	good := testBatch(2, 3)
	tests := []struct {
		name string
		data []byte
		want error
	}{
		{"repeated", testBatch(2, 2), ErrGap},
		{"one left out", testBatch(2, 4), ErrGap},
		{"older epoch", testBatch(1, 3), ErrDiverged},
		{"epoch without its beginning", testBatch(3, 3), ErrGap},
		{"epoch with the beginning of another", testBatch(3, 3, lineage(4, 3)), ErrDamaged},
		{"epoch that begins elsewhere", testBatch(3, 3, lineage(3, 2)), ErrDamaged},
		{"epoch of another history", testBatch(3, 3, lineage(3, 3), meta(metaHistory, "other")), ErrDiverged},
		{"unknown meta entry", testBatch(2, 3, meta("what", "")), ErrDamaged},
		{"meta entry deleted", testBatch(2, 3, func(b *batchBuilder) { b.delete(cfMeta, metaLSN) }), ErrDamaged},
		{"not ours", make([]byte, batchHeaderSize), ErrDamaged},
		{"nothing", nil, ErrDamaged},
		{"cut", good[:len(good)-1], ErrDamaged},
		{"junk behind", append(slices.Clone(good), 0x42), ErrDamaged},
	}
	for _, tt := range tests {
		if _, err := db.Apply(t.Context(), tt.data); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if lsn, err := db.Apply(t.Context(), good, testBatch(4, 4, lineage(4, 4)), testBatch(4, 9)); !errors.Is(err, ErrGap) || lsn != (topology.LSN{Epoch: 4, Index: 4}) {
		t.Errorf("several, the last wrong: %v, %v", lsn, err)
	}
	if !slices.Equal(db.Position().Lineage, lineageOf(2, 1, 4, 4)) {
		t.Errorf("lineage %v", db.Position().Lineage)
	}
}

func TestFlushAllReplicates(t *testing.T) {
	master, follower := open(t, Options{}), open(t, Options{})
	begin(t, master, 1)
	put(t, master, "a", "1")
	del(t, master, "b", Tombstone{Version: 3})
	catchUp(t, master, follower)
	if _, err := master.FlushAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, master, "c", "2")
	catchUp(t, master, follower)
	for _, db := range []*DB{master, follower} {
		if value(t, db, "a") != "-" || value(t, db, "c") != "2" || db.tombs.len() != 0 {
			t.Errorf("a=%q c=%q, %d tombstones", value(t, db, "a"), value(t, db, "c"), db.tombs.len())
		}
	}
}

func TestTombstonesAgreeOnAllCopies(t *testing.T) {
	const limit = 10
	dir := t.TempDir()
	master, follower := open(t, Options{Tombstones: limit}), open(t, Options{Dir: dir, Tombstones: limit})
	begin(t, master, 1)
	for i := range 30 {
		del(t, master, fmt.Sprint("k", i%17), Tombstone{Version: uint64(i + 1)})
		if i%5 == 0 {
			put(t, master, fmt.Sprint("k", i%7), "alive")
		}
	}
	catchUp(t, master, follower)
	same := func(a, b *DB) {
		t.Helper()
		if fmt.Sprint(a.tombs.byKey) != fmt.Sprint(b.tombs.byKey) || len(a.tombs.byKey) > limit {
			t.Errorf("tombstones differ or are too many:\n%v\n%v", a.tombs.byKey, b.tombs.byKey)
		}
	}
	same(master, follower)

	// Promoted after a restart, the follower goes on dropping the same ones.
	follower.Close()
	follower = open(t, Options{Dir: dir, Tombstones: limit})
	same(master, follower)
	begin(t, follower, 2)
	for i := range 6 {
		del(t, master, fmt.Sprint("new", i), Tombstone{Version: 1})
		del(t, follower, fmt.Sprint("new", i), Tombstone{Version: 1})
	}
	same(master, follower)
}

func TestTombstoneFIFOStaysSmall(t *testing.T) {
	var ts tombstones
	ts.limit = 100
	ts.reset()
	var b batchBuilder
	for i := range 10000 {
		b.start(topology.LSN{})
		ts.put(&b, []byte("same"), Tombstone{Version: uint64(i)})
		ts.delete(&b, []byte("same"))
	}
	if len(ts.fifo) > 2000 {
		t.Errorf("%d entries for no tombstone", len(ts.fifo))
	}
}

func TestWriteFailure(t *testing.T) {
	now := time.Unix(1000, 0)
	var mu sync.Mutex
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	db := open(t, Options{Now: clock})
	begin(t, db, 1)
	put(t, db, "k", "before")
	diskFull := errors.New("no space left")
	db.commitMu.Lock()
	db.failWrite = func() error { return diskFull }
	db.commitMu.Unlock()

	update := func() error {
		_, err := db.Update(t.Context(), []byte("k"), func(Entry) Change {
			return Change{Op: Put, Record: Record{Value: []byte("after")}}
		})
		return err
	}
	before := db.Position()
	for range 2 {
		if err := update(); !errors.Is(err, ErrWriteFailed) {
			t.Fatalf("err = %v", err)
		}
	}
	if db.Position().LSN != before.LSN || value(t, db, "k") != "before" {
		t.Error("a failed write moved the log")
	}
	if _, err := db.Apply(t.Context(), testBatch(1, 3)); !errors.Is(err, ErrWriteFailed) {
		t.Errorf("Apply: %v", err)
	}
	db.commitMu.Lock()
	db.failWrite = nil
	db.commitMu.Unlock()
	if err := update(); !errors.Is(err, ErrWriteFailed) {
		t.Errorf("retried too early: %v", err)
	}
	mu.Lock()
	now = now.Add(retryInterval)
	mu.Unlock()
	if err := update(); err != nil {
		t.Fatal(err)
	}
	if got := db.Position().LSN; got != (topology.LSN{Epoch: 1, Index: 3}) || value(t, db, "k") != "after" {
		t.Errorf("LSN %v, value %q", got, value(t, db, "k"))
	}
	if got := stats(t, db).WriteErrors; got != 1 {
		t.Errorf("%d write errors, want 1", got)
	}
}

func TestSyncWritesAreCounted(t *testing.T) {
	db := open(t, Options{})
	put(t, db, "k", "v")
	if got := stats(t, db).Fsyncs; got != 0 {
		t.Errorf("%d fsyncs without sync writes", got)
	}
	db.SetSyncWrites(true)
	put(t, db, "k", "v")
	if got := stats(t, db).Fsyncs; got != 1 {
		t.Errorf("%d fsyncs, want 1", got)
	}
}

// A master must not be told of batches that were applied before one that could not
// be, unless they are synced after all.
func TestApplySyncsWhatAnErrorLeftBehind(t *testing.T) {
	db := open(t, Options{SyncWrites: true})
	fsyncs := func(want uint64) {
		t.Helper()
		if got := stats(t, db).Fsyncs; got != want {
			t.Errorf("%d fsyncs, want %d", got, want)
		}
	}
	if _, err := db.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	fsyncs(0)
	if lsn, err := db.Apply(t.Context(), testBatch(0, 1), testBatch(0, 3)); !errors.Is(err, ErrGap) || lsn.Index != 1 {
		t.Fatalf("Apply = %v, %v", lsn, err)
	}
	fsyncs(0)
	for range 2 {
		if lsn, err := db.Apply(t.Context()); err != nil || lsn.Index != 1 {
			t.Fatalf("Apply = %v, %v", lsn, err)
		}
		fsyncs(1) // the second time there is nothing to do
	}
}

func TestCommitTimes(t *testing.T) {
	var c commitTimes
	start := time.Unix(100, 0)
	if !c.at(1).IsZero() {
		t.Error("empty")
	}
	for i := range 100 {
		c.add(uint64(10*(i+1)), start.Add(time.Duration(i)*time.Second))
	}
	for index, want := range map[uint64]int64{1: 100, 10: 100, 11: 101, 20: 101, 1000: 199} {
		if got := c.at(index).Unix(); got != want {
			t.Errorf("at(%d) = %d, want %d", index, got, want)
		}
	}
	if !c.at(1001).IsZero() {
		t.Error("not committed yet")
	}
	c.add(1010, start.Add(99*time.Second+time.Millisecond)) // same grain
	if got := c.at(1001).Unix(); got != 199 {
		t.Errorf("within the grain: %d", got)
	}
}

// lineageOf makes a lineage of epoch, index pairs.
func lineageOf(pairs ...uint64) (l []EpochStart) {
	for i := 0; i < len(pairs); i += 2 {
		l = append(l, EpochStart{Epoch: pairs[i], Index: pairs[i+1]})
	}
	return l
}

func TestDiskFull(t *testing.T) {
	var mu sync.Mutex
	now, free := time.Unix(1000, 0), int64(1000)
	db := open(t, Options{MinFree: 100, Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}, FreeSpace: func(string) (int64, error) {
		mu.Lock()
		defer mu.Unlock()
		return free, nil
	}})
	set := func(f int64, later time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		free, now = f, now.Add(later)
	}
	update := func() error {
		_, err := db.Update(t.Context(), []byte("k"), func(Entry) Change { return Change{Op: Put} })
		return err
	}
	if err := update(); err != nil {
		t.Fatal(err)
	}
	set(99, spaceInterval)
	for _, err := range []error{update(), db.Writable()} {
		if !errors.Is(err, ErrDiskFull) || !errors.Is(err, ErrWriteFailed) {
			t.Errorf("err = %v", err)
		}
	}
	if _, ok, err := db.Get([]byte("k")); !ok || err != nil {
		t.Errorf("reading: %v, %v", ok, err)
	}
	set(100, 0)
	if err := db.Writable(); !errors.Is(err, ErrDiskFull) {
		t.Errorf("looked again too early: %v", err)
	}
	set(100, retryInterval)
	if err := db.Writable(); err != nil {
		t.Error(err)
	}
	if err := update(); err != nil {
		t.Error(err)
	}
}

// entry returns what is known of a key.
func entry(t testing.TB, db *DB, key string) (e Entry) {
	t.Helper()
	_, err := db.Update(t.Context(), []byte(key), func(known Entry) Change {
		e = known
		e.Record.Value = bytes.Clone(known.Record.Value)
		return Change{}
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}
