package storage

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

func TestExpired(t *testing.T) {
	now := time.Unix(10000, 0)
	file := func(age, size int64, first uint64, live bool) startWAL {
		return startWAL{walFile{mtime: now.Add(-time.Duration(age) * time.Second).UnixNano(), size: size, live: live}, topology.LSN{Index: first}}
	}
	// Batches 1 to 10, 11 to 20, none, 21 to 30, and the present log.
	files := []startWAL{file(100, 10, 1, false), file(80, 10, 11, false), file(60, 10, 0, false), file(40, 10, 21, false), file(0, 10, 31, true)}
	const sec = time.Second
	all := int64(1000)
	for _, tt := range []struct {
		name  string
		rules logRules
		want  logVerdict
	}{
		{"no limits", logRules{}, logVerdict{}},
		{"age", logRules{ttl: 70 * sec}, logVerdict{files: 2}},
		{"exact age stays", logRules{ttl: 80 * sec}, logVerdict{files: 1}},
		{"everything old, but not the living", logRules{ttl: sec}, logVerdict{files: 4}},
		{"size", logRules{bytes: 25}, logVerdict{files: 2}},
		{"exact size", logRules{bytes: 30}, logVerdict{files: 1}},
		{"the stricter of both", logRules{ttl: 70 * sec, bytes: 15}, logVerdict{files: 3}},
		{"held from the first batch", logRules{ttl: sec, held: 1}, logVerdict{overdue: 40}},
		{"held within the second file", logRules{ttl: sec, held: 15}, logVerdict{files: 1, overdue: 30}},
		{"held at a file's first batch", logRules{ttl: sec, held: 21}, logVerdict{files: 3, overdue: 10}},
		{"held at the end", logRules{ttl: sec, bytes: 1, held: 99}, logVerdict{files: 4}},
		{"held beyond the size, too little space", logRules{bytes: 5, held: 1, low: true}, logVerdict{}},

		{"lacked from the first batch", logRules{ttl: sec, lacking: []uint64{1}, replicaBytes: all}, logVerdict{overdue: 40}},
		{"lacked within the second file", logRules{ttl: sec, lacking: []uint64{15}, replicaBytes: all}, logVerdict{files: 1, overdue: 30}},
		{"the slowest counts", logRules{ttl: sec, lacking: []uint64{25, 15, 31}, replicaBytes: all}, logVerdict{files: 1, overdue: 30}},
		{"nobody lacks what is archived", logRules{ttl: sec, lacking: []uint64{31, 40}, replicaBytes: all}, logVerdict{files: 4}},
		{"young logs are nobody's debt", logRules{ttl: 50 * sec, lacking: []uint64{1}, replicaBytes: all}, logVerdict{overdue: 30}},
		{"not for replicas", logRules{ttl: sec, lacking: []uint64{1}}, logVerdict{files: 4}},
		{"up to the limit", logRules{ttl: sec, lacking: []uint64{1}, replicaBytes: 40}, logVerdict{overdue: 40}},
		{"beyond the limit", logRules{ttl: sec, lacking: []uint64{1}, replicaBytes: 39},
			logVerdict{files: 4, lost: 1, reason: givenUpReplica}},
		{"given up for one, kept for the next", logRules{ttl: sec, lacking: []uint64{1, 15}, replicaBytes: 35},
			logVerdict{files: 1, lost: 1, reason: givenUpReplica, overdue: 30}},
		{"what is left is of no use to who lacks more", logRules{ttl: sec, lacking: []uint64{15}, replicaBytes: 15},
			logVerdict{files: 4, lost: 1, reason: givenUpReplica}},
		{"the size limit is one for replicas too", logRules{ttl: sec, bytes: 30, lacking: []uint64{1, 15}, replicaBytes: all},
			logVerdict{files: 1, lost: 1, reason: givenUpSize, overdue: 30}},
		{"too little space", logRules{ttl: sec, lacking: []uint64{1}, replicaBytes: all, low: true},
			logVerdict{files: 4, lost: 1, reason: givenUpSpace}},
		{"too little space, but young", logRules{ttl: time.Hour, lacking: []uint64{1}, replicaBytes: all, low: true}, logVerdict{}},
		{"a hold is stronger than too little space", logRules{ttl: sec, held: 15, lacking: []uint64{1}, replicaBytes: all, low: true},
			logVerdict{files: 1, lost: 1, reason: givenUpSpace, overdue: 30}},
		// A clock that went back deletes nothing.
		{"clock went back", logRules{ttl: sec, now: now.Add(-time.Hour)}, logVerdict{}},
	} {
		if tt.rules.now.IsZero() {
			tt.rules.now = now
		}
		if got := expired(files, tt.rules); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// logsOf writes n log files of about size bytes each.
func logsOf(t *testing.T, db *DB, n, size int) {
	t.Helper()
	for i := range n {
		put(t, db, "k", strings.Repeat(fmt.Sprint(i%10), size))
		rotate(t, db)
	}
}

// TestRetentionForReplicas: log that a replica lacks outlives its age up to the
// limit, which can change while the database is open.
func TestRetentionForReplicas(t *testing.T) {
	var logged bytes.Buffer
	db := open(t, Options{WALTTL: time.Nanosecond, WALReplicaLimit: 10 << 20, SweepInterval: time.Hour,
		Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	db.KeepFor([]uint64{2})
	logsOf(t, db, 6, 100_000)
	sweep := func() Stats {
		t.Helper()
		if err := db.sweep(); err != nil {
			t.Fatal(err)
		}
		return stats(t, db)
	}
	if got := sweep(); got.OldestIndex != 2 || got.OverdueBytes < 500_000 || got.GivenUpLogs != 0 {
		t.Errorf("kept for batch 2: %+v", got)
	}
	db.KeepFor([]uint64{9, 4})
	if got := sweep(); got.OldestIndex != 4 || got.GivenUpLogs != 0 {
		t.Errorf("the slowest has come to 4: %+v", got)
	}
	db.policy.replicaBytes = 150_000
	if got := sweep(); got.OldestIndex != 7 || got.GivenUpLogs != 1 || got.GivenUpReason != givenUpReplica || got.OverdueBytes != 0 {
		t.Errorf("beyond the limit: %+v", got)
	}
	if !strings.Contains(logged.String(), "reason="+givenUpReplica) {
		t.Errorf("logged: %s", logged.String())
	}
}

// TestRetentionYieldsToWrites: when the disk fills up, the log goes that is kept
// for a replica only, and before writes are refused.
func TestRetentionYieldsToWrites(t *testing.T) {
	var now, free atomic.Int64 // seconds, bytes
	now.Store(1000)
	free.Store(1 << 30)
	db := open(t, Options{WALTTL: time.Nanosecond, WALReplicaLimit: 10 << 20, SweepInterval: time.Hour, MinFree: 1000,
		Now:       func() time.Time { return time.Unix(now.Load(), 0) },
		FreeSpace: func(string) (int64, error) { return free.Load(), nil }})
	db.KeepFor([]uint64{1})
	logsOf(t, db, 3, 1000)
	now.Store(time.Now().Add(time.Hour).Unix())
	if err := db.sweep(); err != nil {
		t.Fatal(err)
	}
	if got := stats(t, db); got.OldestIndex != 1 || got.OverdueBytes == 0 {
		t.Fatalf("before: %+v", got)
	}
	free.Store(3999) // writes are still possible
	now.Add(1)
	put(t, db, "k", "v")
	waitFor(t, func() bool { return stats(t, db).GivenUpReason == givenUpSpace })
	if got := stats(t, db); got.OldestIndex != 4 || got.OverdueBytes != 0 {
		t.Errorf("after: %+v", got)
	}
}
