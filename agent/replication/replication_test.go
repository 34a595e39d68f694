package replication

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/topology"
)

// The database is what both sides need.
var (
	_ Log   = (*storage.DB)(nil)
	_ Store = (*storage.DB)(nil)
	_ Conn  = net.Conn(nil)
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

const testTimeout = 400 * time.Millisecond

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: did not come true", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// index plays the index server for one partition: who is in sync, and which
// claims it accepts.
type index struct {
	mu     sync.Mutex
	epoch  uint64
	active map[string]bool
	floor  map[string]uint64
	refuse bool // answers nothing well
	calls  []string
}

func (x *index) inSync(key string) func(ctx context.Context, epoch, session uint64) error {
	return func(_ context.Context, epoch, session uint64) error {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.calls = append(x.calls, fmt.Sprintf("active %s %d %d", key, epoch, session))
		if x.refuse {
			return errors.New("index is away")
		}
		if epoch != x.epoch || session <= x.floor[key] {
			return fmt.Errorf("%w: %d/%d", ErrRefused, epoch, session)
		}
		x.active[key] = true
		return nil
	}
}

func (x *index) behind(_ context.Context, key string, epoch, session uint64) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.calls = append(x.calls, fmt.Sprintf("behind %s %d %d", key, epoch, session))
	if x.refuse || epoch != x.epoch {
		return errors.New("no")
	}
	x.active[key] = false
	x.floor[key] = max(x.floor[key], session)
	return nil
}

func (x *index) set(fn func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	fn()
}

func (x *index) isActive(key string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.active[key]
}

// cluster is some nodes of one partition, without a network of their own.
type cluster struct {
	t     *testing.T
	index *index
	nodes map[string]*node
}

type node struct {
	c   *cluster
	key string
	db  *storage.DB
	src *Source
	lis net.Listener

	store      Store // what the follower uses instead of db, if not nil
	follower   *Follower
	limits     history.RewindLimits
	stop       func() // of the follower
	cut        bool   // refuses connections
	sendBuffer int    // of connections, in bytes; 0 for the default
	conns      map[net.Conn]bool
	accepted   atomic.Int64 // connections so far
	haltOnce   func()
	mu         sync.Mutex
}

func newCluster(t *testing.T, keys ...string) *cluster {
	c := &cluster{t: t, index: &index{active: map[string]bool{}, floor: map[string]uint64{}}, nodes: map[string]*node{}}
	for _, k := range keys {
		c.add(k, t.TempDir())
	}
	return c
}

func (c *cluster) add(key, dir string) *node {
	t := c.t
	db, err := storage.Open(storage.Options{Dir: dir, Logger: quiet, BlockCache: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{c: c, key: key, db: db, lis: lis, conns: map[net.Conn]bool{}}
	n.src = NewSource(db, SourceConfig{
		Self:    key,
		Timeout: func() time.Duration { return testTimeout },
		Behind:  c.index.behind,
		Logger:  quiet,
	})
	c.nodes[key] = n
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { n.accept(ctx, conn) })
		}
	})
	t.Cleanup(func() { n.halt() })
	n.stop = func() {}
	halted := sync.OnceFunc(func() {
		n.unfollow()
		n.src.StepDown()
		cancel()
		lis.Close()
		serving.Wait()
		if err := db.Close(); err != nil && !errors.Is(err, storage.ErrClosed) {
			t.Error(err)
		}
	})
	n.haltOnce = halted
	return n
}

// tune changes what connections to come find.
func (n *node) tune(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func (n *node) halt() { n.haltOnce() }

func (n *node) accept(ctx context.Context, conn net.Conn) {
	n.mu.Lock()
	cut := n.cut
	n.conns[conn] = true
	n.accepted.Add(1)
	if n.sendBuffer > 0 {
		conn.(*net.TCPConn).SetWriteBuffer(n.sendBuffer)
	}
	n.mu.Unlock()
	if cut {
		conn.Close()
		return
	}
	line, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
	if err != nil {
		conn.Close()
		return
	}
	req, err := ParseRequest(strings.Fields(line)[1:])
	if err != nil {
		fmt.Fprintf(conn, "SERVER_ERROR %s\r\n", reasonOf(err))
		conn.Close()
		return
	}
	io.WriteString(conn, "OK\r\n")
	n.src.Serve(ctx, conn, req)
}

// disconnect ends all connections, and refuses new ones if cut.
func (n *node) disconnect(cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
	for c := range n.conns {
		c.Close()
	}
	clear(n.conns)
}

// lead promotes the node; slaves are in the state that the index has them in.
func (n *node) lead(epoch uint64, slaves ...string) {
	n.c.t.Helper()
	n.unfollow()
	if _, err := n.db.BeginEpoch(n.c.t.Context(), epoch, 0); err != nil {
		n.c.t.Fatal(err)
	}
	n.c.index.set(func() { n.c.index.epoch = epoch })
	n.remap(epoch, slaves...)
}

// remap delivers the index's map.
func (n *node) remap(epoch uint64, slaves ...string) {
	var members []Member
	for _, s := range slaves {
		members = append(members, Member{Key: s, Active: n.c.index.isActive(s)})
	}
	n.src.Lead(epoch, members)
}

func (n *node) follow(master *node) {
	n.unfollow()
	var store Store = n.db
	if n.store != nil {
		store = n.store
	}
	n.follower = NewFollower(store, FollowerConfig{
		Self: n.key, Partition: 0, Master: master.key, Logger: quiet, RewindLimits: n.limits,
		Dial: func(ctx context.Context) (Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", master.lis.Addr().String())
		},
		InSync: n.c.index.inSync(n.key),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.follower.Run(ctx)
	}()
	n.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
}

func (n *node) unfollow() { n.stop() }

func (n *node) put(key, value string) topology.LSN {
	n.c.t.Helper()
	lsn, err := n.db.Update(context.Background(), []byte(key), func(storage.Entry) storage.Change {
		return storage.Change{Op: storage.Put, Record: storage.Record{Value: []byte(value)}}
	})
	if err != nil {
		n.c.t.Fatal(err)
	}
	return lsn
}

func (n *node) get(key string) string {
	n.c.t.Helper()
	r, ok, err := n.db.Get([]byte(key))
	if err != nil {
		n.c.t.Fatal(err)
	}
	if !ok {
		return "-"
	}
	return string(r.Value)
}

// reached waits until the node has everything of the other.
func (n *node) reached(other *node) {
	n.c.t.Helper()
	waitFor(n.c.t, n.key+" catches up", func() bool {
		return n.db.Position().LSN == other.db.Position().LSN
	})
	if a, b := fmt.Sprint(n.db.Position()), fmt.Sprint(other.db.Position()); a != b {
		n.c.t.Errorf("%s is at %s, %s at %s", n.key, a, other.key, b)
	}
}

func (n *node) wantTier(tier history.Tier, reason string) {
	n.c.t.Helper()
	if s := n.follower.Status(); s.Tier != tier || s.Reason != reason {
		n.c.t.Errorf("caught up by %v (%s), want %v (%s)", s.Tier, s.Reason, tier, reason)
	}
}

// archive makes the node's database finish its log file and start another.
func (n *node) archive() {
	n.c.t.Helper()
	snap, err := n.db.Snapshot()
	if err != nil {
		n.c.t.Fatal(err)
	}
	snap.Release()
}

// purge removes everything from the log that may be removed.
func (n *node) purge() {
	n.c.t.Helper()
	n.archive()
	last := n.put("purge", "1") // what a replica that was here lacks first is at most this
	n.archive()
	n.put("purge", "2")
	n.db.SetRetention(time.Nanosecond, 0)
	waitFor(n.c.t, "logs are purged", func() bool {
		oldest, err := n.db.Oldest()
		return err == nil && oldest > last.Index
	})
}

func TestEmptyReplicaFollowsByWAL(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	a.put("k", "before")
	b.follow(a)
	b.reached(a)
	b.wantTier(history.TierWAL, "same_history")
	lsn := a.put("k", "after")
	waitFor(t, "replica is in sync", func() bool { return c.index.isActive("b:1") })
	if err := a.src.Wait(t.Context(), lsn); err != nil {
		t.Fatal(err)
	}
	if b.get("k") != "after" {
		t.Errorf("replica has %q", b.get("k"))
	}
	r := a.src.Replicas()
	if len(r) != 1 || !r[0].Connected || !r[0].InSync || r[0].Acked != lsn || r[0].LagBatches != 0 || r[0].Lag != 0 || r[0].Tier != history.TierWAL {
		t.Errorf("replicas %+v", r)
	}
}

func TestReplicaContinuesAfterRestart(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	a.put("k", "1")
	b.reached(a)
	b.halt()
	a.put("k", "2")
	b = c.add("b:1", b.db.Dir())
	b.follow(a)
	b.reached(a)
	b.wantTier(history.TierWAL, "same_history")
	if b.get("k") != "2" {
		t.Errorf("replica has %q", b.get("k"))
	}
}

func TestReplicaBehindThePurgedLog(t *testing.T) {
	c := newCluster(t, "a:1", "b:1", "c:1")
	a, b, e := c.nodes["a:1"], c.nodes["b:1"], c.nodes["c:1"]
	a.lead(1, "b:1", "c:1")
	b.follow(a)
	a.put("k", "1")
	b.reached(a)
	b.unfollow()
	for i := range 100 {
		a.put(fmt.Sprint("k", i), strings.Repeat("v", 1000))
	}
	a.purge()
	b.follow(a)
	e.follow(a) // empty, at the same time
	b.reached(a)
	e.reached(a)
	b.wantTier(history.TierCheckpoint, "purged")
	e.wantTier(history.TierCheckpoint, "empty")
	// And goes on by the log on the same connection.
	waitFor(t, "replicas are in sync", func() bool { return c.index.isActive("b:1") && c.index.isActive("c:1") })
	lsn := a.put("k", "2")
	if err := a.src.Wait(t.Context(), lsn); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{b, e} {
		if n.get("k") != "2" || n.get("k99") != strings.Repeat("v", 1000) {
			t.Errorf("%s lacks records", n.key)
		}
		if s := n.follower.Status(); s.Checkpoints != 1 || s.WALCatchUps != 0 || s.FailedAttempts != 0 {
			t.Errorf("%s: %+v", n.key, s)
		}
	}
}

func TestSiblingContinuesAfterPromotion(t *testing.T) {
	c := newCluster(t, "a:1", "b:1", "c:1")
	a, b, e := c.nodes["a:1"], c.nodes["b:1"], c.nodes["c:1"]
	a.lead(1, "b:1", "c:1")
	b.follow(a)
	e.follow(a)
	a.put("k", "1")
	b.reached(a)
	e.reached(a)
	e.unfollow()
	a.put("k", "2") // only b has it
	b.reached(a)
	a.halt()
	b.lead(2, "c:1")
	b.put("k", "3")
	e.follow(b)
	e.reached(b)
	e.wantTier(history.TierWAL, "same_history")

	// The old master, which had no more than the new one, rejoins by the log.
	a = c.add("a:1", a.db.Dir())
	a.follow(b)
	a.reached(b)
	a.wantTier(history.TierWAL, "same_history")
	if a.get("k") != "3" || e.get("k") != "3" {
		t.Errorf("a has %q, c has %q", a.get("k"), e.get("k"))
	}
	for _, n := range []*node{a, e} {
		if s := n.follower.Status(); s.WALCatchUps != 1 || s.Checkpoints+s.Rewinds+s.Fallbacks != 0 || s.RewoundBytes != 0 {
			t.Errorf("%s copied something: %+v", n.key, s)
		}
	}
}

func TestForeignDataAreReplaced(t *testing.T) {
	c := newCluster(t, "a:1", "b:1", "c:1")
	a, b, e := c.nodes["a:1"], c.nodes["b:1"], c.nodes["c:1"]
	b.lead(1)
	b.put("other", "history")
	b.src.StepDown()
	if _, err := e.db.BeginEpoch(t.Context(), 7, 3); err != nil {
		t.Fatal(err)
	}
	a.lead(2, "b:1", "c:1")
	a.put("k", "v")
	b.follow(a)
	e.follow(a)
	b.reached(a)
	e.reached(a)
	b.wantTier(history.TierCheckpoint, "other_history")
	e.wantTier(history.TierCheckpoint, "other_partition")
	if b.get("other") != "-" || b.get("k") != "v" {
		t.Errorf("other=%q k=%q", b.get("other"), b.get("k"))
	}
}

func TestReplicaKeepsNewerEpoch(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	b.reached(a)
	b.lead(2)
	b.put("k", "newer")
	b.src.StepDown()
	b.follow(a)
	waitFor(t, "refusal", func() bool { return b.follower.Status().ErrorReason == "stale_master" })
	if b.get("k") != "newer" {
		t.Error("a stale master's data took the place of newer ones")
	}
}

func TestRefusals(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	b.follow(a)
	waitFor(t, "refusal of a proxy", func() bool { return b.follower.Status().ErrorReason == "wrong_partition" })
	if _, err := a.db.BeginEpoch(t.Context(), 1, 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "refusal of a slave", func() bool { return b.follower.Status().ErrorReason == "not_master" })
	a.src.Lead(1, nil)
	b.reached(a)
	if s := b.follower.Status(); s.ErrorReason != "" || !s.Connected {
		t.Errorf("status %+v", s)
	}
}

func TestWaitForInSyncReplica(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	if err := a.src.Wait(t.Context(), topology.LSN{Index: 1}); !errors.Is(err, ErrNotMaster) {
		t.Errorf("not leading: %v", err)
	}
	a.lead(1, "b:1")
	if err := a.src.Wait(t.Context(), a.put("k", "alone")); err != nil {
		t.Errorf("nobody in sync: %v", err)
	}
	b.follow(a)
	waitFor(t, "replica is in sync", func() bool { return c.index.isActive("b:1") })
	a.remap(1, "b:1")

	// Never before the replica has it.
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 100 {
				key, value := fmt.Sprint("w", w), fmt.Sprint(i)
				lsn := a.put(key, value)
				if err := a.src.Wait(context.Background(), lsn); err != nil {
					t.Error(err)
				} else if got := b.get(key); got != value {
					t.Errorf("acknowledged %s=%s, replica has %s", key, value, got)
				}
			}
		})
	}
	wg.Wait()
}

func TestBehindReplicaIsLeft(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	waitFor(t, "replica is in sync", func() bool { return c.index.isActive("b:1") })
	a.remap(1, "b:1")
	b.unfollow()

	// As long as the index does not agree, nobody is answered well.
	c.index.set(func() { c.index.refuse = true })
	if err := a.src.Wait(t.Context(), a.put("k", "1")); !errors.Is(err, ErrTimeout) {
		t.Errorf("index away: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.src.Wait(ctx, a.put("k", "2")); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	c.index.set(func() { c.index.refuse = false })
	if err := a.src.Wait(t.Context(), a.put("k", "3")); err != nil {
		t.Errorf("after the index agreed: %v", err)
	}
	if c.index.isActive("b:1") {
		t.Error("answered while the index takes the replica for in sync")
	}
	a.remap(1, "b:1")

	// It comes back with a new session.
	b.follow(a)
	waitFor(t, "replica is in sync again", func() bool { return c.index.isActive("b:1") })
	b.reached(a)
	if last := c.index.calls[len(c.index.calls)-1]; last != "active b:1 1 2" {
		t.Errorf("last call %q", last)
	}
}

func TestActiveReplicaOfFormerMasterIsWaitedFor(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a := c.nodes["a:1"]
	c.index.set(func() { c.index.active["b:1"] = true })
	a.lead(5, "b:1")
	begun := time.Now()
	if err := a.src.Wait(t.Context(), a.put("k", "v")); err != nil {
		t.Fatal(err)
	}
	if c.index.isActive("b:1") || c.index.calls[0] != "behind b:1 5 0" {
		t.Errorf("answered after %v, calls %v", time.Since(begun), c.index.calls)
	}
}

func TestStepDownFailsWaiters(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	c.index.set(func() { c.index.active["b:1"] = true })
	a.lead(1, "b:1")
	b.follow(a)
	b.reached(a)
	b.unfollow()
	result := make(chan error)
	go func() { result <- a.src.Wait(context.Background(), a.put("k", "v")) }()
	waitFor(t, "somebody waits", func() bool {
		a.src.mu.Lock()
		defer a.src.mu.Unlock()
		return len(a.src.waiters) > 0
	})
	a.src.StepDown()
	if err := <-result; !errors.Is(err, ErrNotMaster) {
		t.Errorf("err = %v", err)
	}
}

// TestWaitAfterStepDown: a write that the replicas have was done, however late who wrote
// it asks; one that they lack was not.
func TestWaitAfterStepDown(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	c.index.set(func() { c.index.active["b:1"] = true })
	a.lead(1, "b:1")
	b.follow(a)
	late := a.put("k", "on both")
	b.reached(a)
	if err := a.src.Wait(t.Context(), late); err != nil {
		t.Fatal(err) // the acknowledgement is there
	}
	b.unfollow()
	lost := a.put("k", "only here")
	a.src.StepDown()
	for range 2 { // as a follower, and in a leadership to come
		if err := a.src.Wait(t.Context(), late); err != nil || !a.src.Acknowledged(late) {
			t.Errorf("what the replica has: %v, acknowledged %t", err, a.src.Acknowledged(late))
		}
		if err := a.src.Wait(t.Context(), lost); !errors.Is(err, ErrNotMaster) || a.src.Acknowledged(lost) {
			t.Errorf("what the replica has not: %v, acknowledged %t", err, a.src.Acknowledged(lost))
		}
		a.lead(2, "b:1")
	}
}

// A writer that was late must not take the batches of a later leadership for its own.
func TestWaitForAnEarlierLeadership(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	b.reached(a)
	b.unfollow()
	late := a.put("k", "only here")
	a.src.StepDown()
	b.lead(2, "a:1")
	b.put("k", "other")
	b.put("k", "other")
	a.follow(b)
	a.reached(b) // what it wrote is gone
	b.src.StepDown()
	a.lead(3)
	if err := a.src.Wait(t.Context(), late); !errors.Is(err, ErrNotMaster) {
		t.Errorf("a write that is lost was acknowledged: %v", err)
	}
	if a.src.Acknowledged(late) {
		t.Error("a write that is lost counts as acknowledged")
	}
	if err := a.src.Wait(t.Context(), a.put("k", "now")); err != nil {
		t.Error(err)
	}
}

func TestReconnect(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	b.reached(a)
	for i := range 3 {
		a.disconnect(false)
		a.put("k", fmt.Sprint(i))
		b.reached(a)
		b.wantTier(history.TierWAL, "same_history")
	}
}

func TestRefusedClaimLeadsToANewGrant(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	c.index.set(func() { c.index.floor["b:1"] = 2 })
	a.lead(1, "b:1")
	b.follow(a)
	waitFor(t, "replica is in sync", func() bool { return c.index.isActive("b:1") })
	c.index.set(func() {
		if last := c.index.calls[len(c.index.calls)-1]; last != "active b:1 1 3" {
			t.Errorf("calls %v", c.index.calls)
		}
	})
}

func TestSilentMasterIsGivenUp(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	silent := make(chan net.Conn, 10)
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "OK\r\n")
			writeFrame(conn, frameStart, start{tier: history.TierWAL, interval: 20, timeout: 100}.encode())
			silent <- conn
		}
	}()
	f := NewFollower(b.db, FollowerConfig{Self: "b:1", Master: "a:1", Logger: quiet, Dial: func(ctx context.Context) (Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", lis.Addr().String())
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	first, second := <-silent, <-silent // gave the first one up
	first.Close()
	second.Close()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
}

func TestSilentReplicaIsDisconnected(t *testing.T) {
	c := newCluster(t, "a:1")
	a := c.nodes["a:1"]
	a.lead(1, "b:1")
	ours, theirs := net.Pipe()
	defer ours.Close()
	done := make(chan error, 1)
	go func() { done <- a.src.Serve(t.Context(), theirs, FollowRequest{Self: "b:1"}) }()
	if err := writeFrame(ours, frameHello, hello{partition: -1}.encode()); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, ours) // reads, but says nothing
	if err := <-done; err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("Serve = %v", err)
	}
}

func TestCopyIsLimitedAndOneAtATime(t *testing.T) {
	c := newCluster(t, "a:1", "b:1", "c:1")
	a, b, e := c.nodes["a:1"], c.nodes["b:1"], c.nodes["c:1"]
	a.lead(1, "b:1", "c:1")
	var rate sync.Map
	rate.Store("rate", int64(2<<10))
	a.src.cfg.CopyBandwidth = func() int64 {
		r, _ := rate.Load("rate")
		return r.(int64)
	}
	for i := range 20 {
		a.put(fmt.Sprint("k", i), "v")
	}
	a.purge()
	b.follow(a)
	waitFor(t, "copy begins", func() bool { return b.follower.Status().BytesDone > 0 })
	e.follow(a)
	waitFor(t, "the second waits", func() bool { return e.follower.Status().Waiting == noticeCopies })
	if s := b.follower.Status(); s.BytesTotal <= s.BytesDone {
		t.Errorf("status %+v", s)
	}
	for _, r := range a.src.Replicas() {
		if r.Key == "b:1" && (r.BytesTotal == 0 || r.Tier != history.TierCheckpoint) {
			t.Errorf("master's view %+v", r)
		}
	}
	rate.Store("rate", int64(0))
	b.reached(a)
	e.reached(a)
}

// deaf is a store that cannot apply anything.
type deaf struct {
	*storage.DB
	mu  sync.Mutex
	err error
}

func (d *deaf) Apply(ctx context.Context, batches ...[]byte) (topology.LSN, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil && len(batches) > 0 {
		return d.Position().LSN, d.err
	}
	return d.DB.Apply(ctx, batches...)
}

func (d *deaf) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

func TestUnusableStreamsLeadToACopy(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	b.reached(a)
	b.unfollow()
	a.put("k", "v")

	db := &deaf{DB: b.db, err: storage.ErrWriteFailed}
	f := NewFollower(db, FollowerConfig{Self: "b:1", Logger: quiet,
		Dial: func(ctx context.Context) (Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", a.lis.Addr().String())
		}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	waitFor(t, "it fails often", func() bool { return f.Status().FailedAttempts >= 3 })
	if s := f.Status(); s.Checkpoints != 0 || s.Tier == history.TierCheckpoint {
		t.Errorf("its own trouble led to a copy: %+v", s)
	}
	db.fail(fmt.Errorf("wrapped: %w", storage.ErrGap))
	waitFor(t, "a copy", func() bool { return f.Status().Checkpoints == 1 })
	if s := f.Status(); s.Reason != "requested" {
		t.Errorf("%+v", s)
	}
	db.fail(nil)
	b.reached(a)
	cancel()
	<-done
}

// TestADamagedBatchLeadsToACopy: the master's log has it like that, so that another
// stream would only bring it again; a gap may have been an accident. It makes no
// difference whether the replica has anything yet.
func TestADamagedBatchLeadsToACopy(t *testing.T) {
	for _, tt := range []struct {
		name    string
		err     error
		empty   bool
		streams uint64 // that are tried before the copy
	}{
		{"damaged", storage.ErrDamaged, false, 1},
		{"damaged from the beginning", storage.ErrDamaged, true, 1},
		{"gap", storage.ErrGap, false, fullAfter},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, "a:1", "b:1")
			a, b := c.nodes["a:1"], c.nodes["b:1"]
			a.lead(1, "b:1")
			if !tt.empty {
				b.follow(a)
				b.reached(a)
				b.unfollow()
			}
			a.put("k", "v")
			f := NewFollower(&deaf{DB: b.db, err: tt.err}, FollowerConfig{Self: "b:1", Logger: quiet,
				Dial: func(ctx context.Context) (Conn, error) {
					var d net.Dialer
					return d.DialContext(ctx, "tcp", a.lis.Addr().String())
				}})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- f.Run(ctx) }()
			waitFor(t, "a copy", func() bool { return f.Status().Checkpoints > 0 })
			cancel()
			<-done
			if s := f.Status(); s.WALCatchUps != tt.streams {
				t.Errorf("%d streams before the copy, want %d: %+v", s.WALCatchUps, tt.streams, s)
			}
			if got, want := digest(t, b.db), digest(t, a.db); got != want {
				t.Error("the copy is not what the master has")
			}
		})
	}
}
