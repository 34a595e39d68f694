package node

import (
	"errors"
	"testing"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// leaseClock is a clock that the test moves.
type leaseClock struct{ at time.Duration }

func (c *leaseClock) now() time.Duration { return c.at }

const sec = time.Second

// TestGateLease lets time pass at a gate: what the lease says counts whenever a write
// comes, and nothing has to happen for it to end.
func TestGateLease(t *testing.T) {
	clock := &leaseClock{10 * sec}
	g := newGate(newBroadcast(), clock.now)
	enter := func(when string, want gateState, reason string) {
		t.Helper()
		state, got := g.enter(0)
		if state == gateOpen {
			g.leave()
		}
		if state != want || got != reason {
			t.Errorf("%s: gate state %d %q, want %d %q", when, state, got, want, reason)
		}
	}
	renew := func(when string, token, ttl time.Duration, want string) {
		t.Helper()
		if got := g.renew(0, 3, token, ttl, leaseFromController); got != want {
			t.Errorf("%s: lease is answered %q, want %q", when, got, want)
		}
	}
	renew("closed", clock.at, 5*sec, "not_writing")
	g.open(0, 3, true)
	enter("before the first lease", gateWait, "lease_pending")
	wake := g.changed.wait()
	renew("of before the gate was opened", 9*sec, 5*sec, "stale_token")
	renew("of the future", 11*sec, 5*sec, "future_token")
	if got := g.renew(1, 3, 10*sec, 5*sec, leaseFromController); got != "other_partition" {
		t.Errorf("of another partition: %q", got)
	}
	if got := g.renew(0, 2, 10*sec, 5*sec, leaseFromController); got != "stale_epoch" {
		t.Errorf("of another epoch: %q", got)
	}
	renew("first", 10*sec, 5*sec, "")
	select {
	case <-wake:
	default:
		t.Error("the first lease wakes nobody")
	}
	enter("with a lease", gateOpen, "")
	wake = g.changed.wait()
	clock.at = 12 * sec
	renew("second", 11*sec, 5*sec, "")
	select {
	case <-wake:
		t.Error("a renewal wakes everybody")
	default:
	}
	renew("late", 10500*time.Millisecond, 5*sec, "")
	clock.at = 16*sec - 1
	enter("in the last moment", gateOpen, "")
	if g.unleased() {
		t.Error("unleased in the last moment")
	}
	// What ran out while the process was stopped is found ended at once.
	clock.at = 16 * sec
	if !g.unleased() {
		t.Error("an ended lease is one still")
	}
	enter("ended", gateRefuse, replyNoLease)
	enter("ended", gateRefuse, replyNoLease)
	renew("of a time that is over", 11*sec, 5*sec, "")
	enter("still ended", gateRefuse, replyNoLease)
	renew("renewed", 15*sec, 5*sec, "")
	enter("renewed", gateOpen, "")
	renew("for longer than any lease", 16*sec, time.Hour, "")
	clock.at = 16*sec + topology.LeaseTTL
	enter("no lease is longer than that", gateRefuse, replyNoLease)
	if st := g.leaseStatus(); st.state != leaseLost || st.refused != 4 || st.renewals[leaseFromController] != 4 || st.epoch != 3 {
		t.Errorf("status %+v", st)
	}

	// A map with the same duty changes nothing, a gate that was closed needs a new lease.
	renew("renewed", clock.at, 5*sec, "")
	g.open(0, 3, true)
	enter("the same duty", gateOpen, "")
	g.close(gateWait, "paused")
	clock.at += sec
	g.open(0, 3, true)
	enter("opened again", gateWait, "lease_pending")
	renew("of before it was closed", clock.at-1, 5*sec, "stale_token")
	clock.at += topology.LeaseTTL
	enter("no lease for long", gateRefuse, replyNoLease)

	g.open(0, 4, false)
	enter("a lease is not required", gateOpen, "")
	if st := g.leaseStatus(); st.state != leaseNotRequired || st.wanted() {
		t.Errorf("status %+v", st)
	}
	if got := g.renew(0, 4, clock.at, 5*sec, leaseFromController); got != "not_writing" {
		t.Errorf("a lease that is not required: %q", got)
	}
}

// TestGateLeaseCosts: the check allocates nothing.
func TestGateLeaseCosts(t *testing.T) {
	clock := &leaseClock{10 * sec}
	g := newGate(newBroadcast(), clock.now)
	g.open(0, 1, true)
	g.renew(0, 1, 10*sec, 5*sec, leaseFromController)
	if n := testing.AllocsPerRun(100, func() { g.enter(0); g.leave() }); n != 0 {
		t.Errorf("%v allocations to pass the gate", n)
	}
}

func TestAskDue(t *testing.T) {
	held := func(left time.Duration) leaseStatus {
		return leaseStatus{at: 100 * sec, state: leaseHeld, remaining: left, opened: sec}
	}
	for _, tt := range []struct {
		name  string
		s     leaseStatus
		asked time.Duration
		want  bool
	}{
		{"no master", leaseStatus{at: 100 * sec}, 0, false},
		{"no lease required", leaseStatus{at: 100 * sec, state: leaseNotRequired}, 0, false},
		{"just renewed", held(5 * sec), 0, false},
		{"a renewal is missing", held(4 * sec), 0, false},
		{"two are missing", held(3*sec - 1), 0, true},
		{"asked a moment ago", held(2 * sec), 100*sec - askPause + 1, false},
		{"not answered", held(2 * sec), 100*sec - askPause, true},
		{"lost", leaseStatus{at: 100 * sec, state: leaseLost}, 0, true},
		{"the first one may come still", leaseStatus{at: 100 * sec, state: leasePending, opened: 100*sec - firstAsk + 1}, 0, false},
		{"the first one does not come", leaseStatus{at: 100 * sec, state: leasePending, opened: 100*sec - firstAsk}, 0, true},
	} {
		if got := askDue(tt.s, tt.asked); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

func TestMayPromise(t *testing.T) {
	slave := duty{kind: dutySlave, partition: 2, epoch: 4, master: "m:1"}
	for _, tt := range []struct {
		name      string
		d         duty
		master    string
		partition int
		epoch     uint64
		ttl       time.Duration
		want      bool
	}{
		{"its master", slave, "m:1", 2, 4, 5 * sec, true},
		{"another node", slave, "n:1", 2, 4, 5 * sec, false},
		{"another partition", slave, "m:1", 1, 4, 5 * sec, false},
		{"an older epoch", slave, "m:1", 2, 3, 5 * sec, false},
		{"an epoch it has not heard of", slave, "m:1", 2, 5, 5 * sec, false},
		{"a map without epochs", duty{kind: dutySlave, partition: 2, master: "m:1"}, "m:1", 2, 0, 5 * sec, false},
		{"it is master itself", duty{kind: dutyMaster, partition: 2, epoch: 4}, "m:1", 2, 4, 5 * sec, false},
		{"no duty", duty{kind: dutyNone, partition: -1}, "m:1", 2, 4, 5 * sec, false},
		{"for ever", slave, "m:1", 2, 4, time.Hour, false},
		{"for no time", slave, "m:1", 2, 4, 0, false},
	} {
		if got := mayPromise(tt.d, tt.master, tt.partition, tt.epoch, tt.ttl); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

func TestPromise(t *testing.T) {
	var none promise
	if got := none.left(0, 1, sec); got != 0 {
		t.Errorf("without a promise %v", got)
	}
	p := none.extend(0, 4, 10*sec, 5*sec)
	for _, tt := range []struct {
		name      string
		partition int
		epoch     uint64
		now, want time.Duration
	}{
		{"at once", 0, 5, 10 * sec, 5500 * time.Millisecond},
		{"later", 0, 7, 15 * sec, 500 * time.Millisecond},
		{"over", 0, 5, 15500 * time.Millisecond, 0},
		{"long over", 0, 5, time.Hour, 0},
		{"the epoch it was given in", 0, 4, 10 * sec, 0},
		{"another partition", 1, 5, 10 * sec, 0},
	} {
		if got := p.left(tt.partition, tt.epoch, tt.now); got != tt.want {
			t.Errorf("%s: %v left, want %v", tt.name, got, tt.want)
		}
	}
	if q := p.extend(0, 4, 12*sec, 5*sec); q.until != 17500*time.Millisecond {
		t.Errorf("extended to %v", q.until)
	}
	if q := p.extend(0, 4, 11*sec, sec); q.until != p.until {
		t.Errorf("a shorter one ends at %v, want %v", q.until, p.until)
	}
}

// TestPromiseOutlivesTheProcess: the next process on the same data finds the mark of
// a promise, and it goes when the promise is over.
func TestPromiseOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	m, found := findMark(dir)
	if found {
		t.Fatal("there is a mark already")
	}
	for range 2 {
		if err := m.put(); err != nil {
			t.Fatal(err)
		}
	}
	next, found := findMark(dir)
	if !found {
		t.Fatal("the mark is not found")
	}
	for range 2 {
		if err := next.drop(); err != nil {
			t.Fatal(err)
		}
	}
	if _, found := findMark(dir); found {
		t.Error("the mark is there still")
	}
	if err := (&promiseMark{path: dir + "/no/such"}).put(); err == nil {
		t.Error("a mark that cannot be made is no error")
	}
	if _, found := findMark(""); found {
		t.Error("a mark without a directory")
	}
}

// TestBoundMasterWaits names a node master whose former process was bound by a
// promise: it begins its epoch when that is over.
func TestBoundMasterWaits(t *testing.T) {
	t.Parallel()
	x := newTestIndex(t)
	began := time.Now()
	n := startNode(t, x, func(n *testNode) {
		m, _ := findMark(n.dir)
		if err := m.put(); err != nil {
			t.Fatal(err)
		}
	})
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	if d := time.Since(began); d < topology.LeaseHold(topology.LeaseTTL) {
		t.Errorf("it writes after %v", d)
	}
	eventually(t, "the mark is gone", func() error {
		if _, found := findMark(n.dir); found {
			return errors.New("it is not")
		}
		return nil
	})
}
