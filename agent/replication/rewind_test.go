package replication

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/topology"
)

// change makes any change of a key.
func (n *node) change(key string, c storage.Change) {
	n.c.t.Helper()
	if _, err := n.db.Update(context.Background(), []byte(key), func(storage.Entry) storage.Change { return c }); err != nil {
		n.c.t.Fatal(err)
	}
}

// content is all records, and the tombstones of the given keys.
func (n *node) content(keys ...string) map[string]string {
	n.c.t.Helper()
	all := map[string]string{}
	scan := n.db.Scan(storage.ScanOptions{})
	for scan.Next(context.Background()) {
		all[string(scan.Key())] = fmt.Sprintf("%+v", scan.Record())
	}
	if err := scan.Err(); err != nil {
		n.c.t.Fatal(err)
	}
	for _, k := range keys {
		_, err := n.db.Update(context.Background(), []byte(k), func(e storage.Entry) storage.Change {
			if e.HasTombstone {
				all["tombstone of "+k] = fmt.Sprintf("%+v", e.Tombstone)
			}
			return storage.Change{}
		})
		if err != nil {
			n.c.t.Fatal(err)
		}
	}
	return all
}

// equals fails the test unless both have the same position, records and tombstones.
func (n *node) equals(other *node, keys ...string) {
	n.c.t.Helper()
	n.reached(other)
	a, b := n.content(keys...), other.content(keys...)
	for k := range maps.Keys(b) {
		if a[k] != b[k] {
			n.c.t.Errorf("%s: %s has %s, %s has %s", k, n.key, a[k], other.key, b[k])
		}
	}
	for k := range maps.Keys(a) {
		if _, ok := b[k]; !ok {
			n.c.t.Errorf("%s: %s has %s, %s has nothing", k, n.key, a[k], other.key)
		}
	}
}

// divergedMaster returns a former master, a, with writes that b, which is the
// master since, has not got.
func divergedMaster(t *testing.T, tail func(a *node)) (a, b *node) {
	c := newCluster(t, "a:1", "b:1")
	a, b = c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	a.put("k", "shared")
	a.put("overwritten", "1")
	a.put("deleted", "1")
	a.change("tombstone", storage.Change{Op: storage.Delete, Tombstone: storage.Tombstone{Version: 9, Until: 1 << 40}})
	for i := range 100 { // what no catch-up by keys has to move
		a.put(fmt.Sprint("bulk", i), strings.Repeat("v", 10_000))
	}
	b.reached(a)
	b.unfollow()
	tail(a)
	a.src.StepDown()
	b.lead(2, "a:1")
	b.put("overwritten", "2")
	b.put("other", "2")
	return a, b
}

// caughtUp checks the tier of the only connection; what a busy machine interrupted
// has continued by the log.
func (n *node) caughtUp(tier history.Tier, reason string) {
	n.c.t.Helper()
	s := n.follower.Status()
	if s.FailedAttempts == s.RewindsGivenUp {
		n.wantTier(tier, reason)
	}
	if (s.Rewinds == 1) != (tier == history.TierRewind) || (s.Checkpoints == 1) != (tier == history.TierCheckpoint) {
		n.c.t.Errorf("caught up otherwise than by %v once: %+v", tier, s)
	}
}

// lostWrites are some of every kind.
func lostWrites(a *node) {
	a.put("overwritten", "lost")
	a.put("new", "lost")
	a.put("tombstone", "lost")
	a.change("deleted", storage.Change{Op: storage.Delete, Tombstone: storage.Tombstone{Version: 3, Until: 1 << 40}})
	a.change("k", storage.Change{Op: storage.Touch, Record: storage.Record{Expire: 77, Value: []byte("shared")}})
}

func TestDivergedMasterRewinds(t *testing.T) {
	a, b := divergedMaster(t, lostWrites)
	end := a.db.Position().LSN
	a.follow(b)
	a.reached(b)
	a.caughtUp(history.TierRewind, "diverged_tail")
	a.equals(b, "tombstone", "deleted", "new", "k")
	if a.get("new") != "-" || a.get("overwritten") != "2" || a.get("deleted") != "1" {
		t.Errorf("new=%q overwritten=%q deleted=%q", a.get("new"), a.get("overwritten"), a.get("deleted"))
	}
	s := a.follower.Status()
	// new, overwritten, deleted and its tombstone, tombstone and its tombstone, k.
	if s.Rewinds != 1 || s.RewoundKeys != 7 || s.RewoundBytes == 0 || s.RewoundBytes > 500 {
		t.Errorf("%+v", s)
	}
	if s.Checkpoints+s.Fallbacks+s.RewindsGivenUp != 0 || s.BytesDone != 0 {
		t.Errorf("something else was done: %+v", s)
	}
	waitFor(t, "the master sees the replica in sync", func() bool {
		r := b.src.Replicas()
		return len(r) == 1 && r[0].InSync && r[0].BytesDone == 0
	})
	// It goes on, also by the log after a restart.
	a.halt()
	lsn := b.put("k", "more")
	a = a.c.add("a:1", a.db.Dir())
	a.follow(b)
	a.equals(b)
	a.caughtUp(history.TierWAL, "same_history")
	if lsn.Index > end.Index+10 {
		t.Errorf("the master is at %v, the test is about %v", lsn, end)
	}
}

// TestLeftBehindBeforeRewind: a replica that is in sync in the map, as after a failover,
// could be promoted in the midst of a rewind. So the index hears first that it is not.
func TestLeftBehindBeforeRewind(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	a.put("k", "shared")
	b.reached(a)
	b.unfollow()
	lostWrites(a)
	a.src.StepDown()
	c.index.set(func() { c.index.active["a:1"], c.index.refuse = true, true })
	b.lead(2, "a:1")
	before := a.db.Position().LSN

	a.follow(b)
	waitFor(t, "the index is asked", func() bool {
		return a.follower.Status().ErrorReason == "not_left_behind"
	})
	if s := a.follower.Status(); s.Rewinds != 0 || a.db.Position().LSN != before {
		t.Errorf("it has begun: %+v at %v", s, a.db.Position().LSN)
	}
	c.index.set(func() { c.index.refuse = false })
	a.equals(b)
	if s := a.follower.Status(); s.Rewinds != 1 {
		t.Errorf("%+v", s)
	}
	var calls []string
	c.index.set(func() { calls = slices.Clone(c.index.calls) })
	behind := slices.Index(calls, "behind a:1 2 0")
	if active := slices.Index(calls, "active a:1 2 1"); behind < 0 || active >= 0 && active < behind {
		t.Errorf("the index heard %q", calls)
	}
}

// TestTailWithoutKeysRewinds has a tail that changed nothing but the log.
func TestTailWithoutKeysRewinds(t *testing.T) {
	a, b := divergedMaster(t, func(a *node) {})
	c := a.c
	third := c.add("c:1", t.TempDir())
	third.follow(b)
	third.reached(b)
	third.unfollow()
	b.unfollow()
	b.src.StepDown()
	// b begins an epoch that nobody hears of.
	if _, err := b.db.BeginEpoch(t.Context(), 3, 0); err != nil {
		t.Fatal(err)
	}
	third.lead(4, "a:1", "b:1")
	b.follow(third)
	b.equals(third)
	b.caughtUp(history.TierRewind, "diverged_tail")
	if s := b.follower.Status(); s.Rewinds != 1 || s.RewoundKeys != 0 {
		t.Errorf("%+v", s)
	}
	a.follow(third)
	a.equals(third)
	a.caughtUp(history.TierWAL, "same_history")
}

// TestManyKeysRewind takes several questions, and several answers to each.
func TestManyKeysRewind(t *testing.T) {
	const n = 1500
	name := func(i int) string { return fmt.Sprintf("%0100d", i) }
	a, b := divergedMaster(t, func(a *node) {
		for i := range n {
			a.put(name(i), "lost")
		}
	})
	for i := range n / 2 {
		b.put(name(i), strings.Repeat("w", 1000))
	}
	a.follow(b)
	a.equals(b)
	if s := a.follower.Status(); s.Rewinds != 1 || s.RewoundKeys != n || s.RewoundBytes < n/2*1000 {
		t.Errorf("%+v", s)
	}
}

func TestRewindIsGivenUp(t *testing.T) {
	for _, tt := range []struct {
		reason string
		limits history.RewindLimits
		tail   func(a *node)
	}{
		{"rewind_flush_all", history.RewindLimits{}, func(a *node) {
			if _, err := a.db.FlushAll(context.Background()); err != nil {
				a.c.t.Fatal(err)
			}
		}},
		{"rewind_too_large", history.RewindLimits{Keys: 6, Bytes: 1000}, lostWrites},
		{"rewind_too_large", history.RewindLimits{Keys: 10, Bytes: 5000}, func(a *node) { a.put("bulk1", "lost") }}, // the master's value is
		{"rewind_log_purged", history.RewindLimits{}, func(a *node) {
			a.put("new", "lost")
			a.purge()
		}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			a, b := divergedMaster(t, tt.tail)
			a.limits = tt.limits
			a.follow(b)
			a.equals(b)
			a.caughtUp(history.TierCheckpoint, tt.reason)
			if s := a.follower.Status(); s.RewindsGivenUp != 1 || s.Fallbacks != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// stuck is a store that applies nothing that comes.
type stuck struct{ *storage.DB }

func (s stuck) Apply(ctx context.Context, batches ...[]byte) (topology.LSN, error) {
	if len(batches) == 0 {
		return s.DB.Apply(ctx)
	}
	<-ctx.Done()
	return s.Position().LSN, ctx.Err()
}

// TestNotInSyncBeforeItsValues keeps a replica at the fork, where some of its values
// are newer than its position.
func TestNotInSyncBeforeItsValues(t *testing.T) {
	a, b := divergedMaster(t, lostWrites)
	third := a.c.add("c:1", t.TempDir())
	third.follow(b)
	waitFor(t, "c is at the fork", func() bool { return !third.db.Position().Empty() })
	third.unfollow()
	f := NewFollower(stuck{a.db}, FollowerConfig{Self: "a:1", Logger: quiet, InSync: a.c.index.inSync("a:1"),
		Dial: func(ctx context.Context) (Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", b.lis.Addr().String())
		}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx)
	}()
	waitFor(t, "it acknowledges the fork", func() bool {
		for _, r := range b.src.Replicas() {
			if r.Key == "a:1" && r.Acked == a.db.Position().LSN {
				return true
			}
		}
		return false
	})
	restored := a.db.Position().Restored
	if restored.IsZero() || !a.db.Position().LSN.Less(restored) {
		t.Errorf("position %+v", a.db.Position())
	}
	for range 20 {
		lsn := b.put("k", "busy")
		b.src.Acknowledged(lsn)
	}
	if a.c.index.isActive("a:1") {
		t.Error("in sync at the fork")
	}
	cancel()
	<-done
	a.follow(b)
	a.equals(b)
	a.caughtUp(history.TierWAL, "same_history")
	if !a.db.Position().Restored.IsZero() {
		t.Errorf("position %+v", a.db.Position())
	}
}

// TestUnfinishedRewindNeedsACopy loses the master from which the values were.
func TestUnfinishedRewindNeedsACopy(t *testing.T) {
	a, b := divergedMaster(t, lostWrites)
	third := a.c.add("c:1", t.TempDir())
	third.follow(b)
	third.reached(b)
	third.unfollow()
	b.put("overwritten", "in the values")
	f := NewFollower(stuck{a.db}, FollowerConfig{Self: "a:1", Logger: quiet,
		Dial: func(ctx context.Context) (Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", b.lis.Addr().String())
		}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx)
	}()
	waitFor(t, "it is at the fork", func() bool { return f.Status().Rewinds == 1 })
	cancel()
	<-done
	if a.get("overwritten") != "in the values" {
		t.Errorf("overwritten = %q", a.get("overwritten"))
	}
	b.halt()
	third.lead(3, "a:1")
	a.follow(third)
	a.equals(third)
	a.caughtUp(history.TierCheckpoint, "rewind_unfinished")
	if a.get("overwritten") != "2" {
		t.Errorf("overwritten = %q", a.get("overwritten"))
	}
}

// TestRewindAfterBrokenConnections cuts the connection while values are on their way.
func TestRewindAfterBrokenConnections(t *testing.T) {
	a, b := divergedMaster(t, func(a *node) {
		for i := range 100 {
			a.put(fmt.Sprint("bulk", i), "lost")
		}
	})
	b.src.cfg.CopyBandwidth = func() int64 { return 400 << 10 }
	a.follow(b)
	for range 3 {
		waitFor(t, "values arrive", func() bool { return a.follower.Status().BytesDone > 0 })
		b.disconnect(false)
	}
	a.equals(b)
	if s := a.follower.Status(); s.Rewinds != 1 || s.Checkpoints != 0 || s.RewoundKeys != 100 || s.RewoundBytes < 1_000_000 {
		t.Errorf("%+v", s)
	}
	if a.get("bulk99") != strings.Repeat("v", 10_000) {
		t.Errorf("bulk99 = %.10q", a.get("bulk99"))
	}
}

// TestKeysThatNobodyMayAsk talks to a master as no replica of ours does.
func TestKeysThatNobodyMayAsk(t *testing.T) {
	a, b := divergedMaster(t, lostWrites)
	pos := a.db.Position()
	one := keys{keys: []history.Key{{Key: "k"}}}.encode()
	for name, tt := range map[string]struct {
		rewind bool
		ask    [][]byte
		want   string
	}{
		"without a rewind": {false, [][]byte{one}, "unexpected KEYS"},
		"damaged":          {true, [][]byte{{9}}, "fields of KEYS"},
		"of the log's own": {true, [][]byte{keys{keys: []history.Key{{Family: 1, Key: "lsn"}}}.encode()}, "column family 1"},
		"all at once":      {true, slices.Repeat([][]byte{one}, 1000), "unexpected KEYS"},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			done := make(chan error, 1)
			req := FollowRequest{Self: "x:1", History: pos.History, LSN: pos.LSN}
			go func() { done <- b.src.Serve(t.Context(), theirs, req) }()
			if err := writeFrame(ours, frameHello, hello{rewind: tt.rewind, lineage: pos.Lineage}.encode()); err != nil {
				t.Fatal(err)
			}
			read := make(chan struct{})
			go func() {
				defer close(read)
				r := bufio.NewReader(ours)
				for {
					if _, _, err := readFrame(r); err != nil {
						return
					}
				}
			}()
			var all bytes.Buffer
			for _, k := range tt.ask {
				writeFrame(&all, frameKeys, k)
			}
			go ours.Write(all.Bytes())
			if err := <-done; err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Serve = %v, want something about %q", err, tt.want)
			}
			ours.Close()
			<-read
		})
	}
}

// TestAsyncFailoversConverge lets nobody wait for replicas: each failover loses
// what was not received, and the old master has to give it up.
func TestAsyncFailoversConverge(t *testing.T) {
	const seed = 3
	r := rand.New(rand.NewPCG(seed, 5))
	names := []string{"a:1", "b:1", "c:1"}
	c := newCluster(t, names...)
	var universe []string
	for i := range 40 {
		universe = append(universe, fmt.Sprint("k", i))
	}
	write := func(n *node, times int) {
		for range times {
			key := universe[r.IntN(len(universe))]
			if r.IntN(3) == 0 {
				n.change(key, storage.Change{Op: storage.Delete, Tombstone: storage.Tombstone{Version: r.Uint64(), Until: 1 << 40}})
			} else {
				n.put(key, fmt.Sprint(r.Uint64()))
			}
		}
	}
	master := c.nodes["a:1"]
	var rewinds, copies uint64
	for epoch := uint64(1); epoch <= 10; epoch++ {
		var slaves []string
		for _, k := range names {
			if k != master.key {
				slaves = append(slaves, k)
			}
		}
		master.lead(epoch, slaves...)
		write(master, r.IntN(20))
		for _, k := range slaves {
			n := c.nodes[k]
			n.follow(master)
			n.reached(master)
			s := n.follower.Status()
			rewinds += s.Rewinds
			copies += s.Checkpoints
		}
		for _, k := range slaves {
			c.nodes[k].equals(master, universe...)
			if r.IntN(2) == 0 {
				c.nodes[k].unfollow() // misses what comes
			}
		}
		write(master, 1+r.IntN(20))
		next := c.nodes[slaves[r.IntN(2)]]
		next.unfollow()
		write(master, 1+r.IntN(5)) // nobody's but its own
		for _, k := range slaves {
			c.nodes[k].unfollow()
		}
		master.src.StepDown()
		master = next
	}
	t.Logf("seed %d: %d rewinds, %d copies", seed, rewinds, copies)
	if rewinds < 9 || copies != 0 {
		t.Errorf("%d rewinds and %d copies in 10 epochs", rewinds, copies)
	}
}
