package replication

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// A simulation runs the Source and the Follower that ship, three nodes of one
// partition, in a bubble with a clock of its own: over a network that breaks,
// blocks and damages connections (simnet_test.go), on disks that fail and lose
// what was not synced (simdb_test.go), in processes that die at any step, under an
// index whose maps come late, twice or not at all.
//
// Whenever anything moves it is checked that
//
//   - a node's data is what the master that wrote the batch had at that position,
//     and no position was given out twice;
//   - a node gives up batches it has only by a full copy or a rewind that the follower counts;
//   - nobody is in sync, or master, in the midst of a rewind;
//   - a replica acknowledges nothing that a crash could take from it;
//   - whoever may be promoted has every write that a client was told of.
//
// In the end everything is healed, and all nodes must become equal.
//
//	FLARE_SIM_SEED=17 go test ./agent/replication -run TestSimulation -v   one seed again, with its events
//	FLARE_SIM_SEEDS=5000 go test ./agent/replication -run TestSimulation -timeout 0
//
// A seed fixes all faults and delays, and nearly always the order of everything:
// what is left to the scheduler is which of two goroutines that are ready at the
// same moment goes first. A failure may need a few attempts to come again, and
// comes again more easily without the race detector.

const (
	simNodes   = 3
	simTimeout = 400 * time.Millisecond
	simTime    = 12 * time.Second // with faults
	simHeal    = 90 * time.Second // to become equal
)

type world struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	dir  string
	sync bool // every batch is synced, and the power may go
	calm bool // no faults and no jitter: a scripted scenario, or the end
	talk bool // print events at once

	mu        sync.Mutex
	nodes     []*machine
	parted    map[[2]int]bool // pairs that cannot reach each other; simIndex is a node here
	dials     map[[2]int]int
	links     []link
	snapshots []simState
	truth     map[topology.LSN]born
	acked     []topology.LSN
	x         simIndex
	trace     []string
	failure   string
	over      bool
	counts    simCounts
	tasks     sync.WaitGroup
}

// born is what is known of a batch since its master wrote it.
type born struct {
	before topology.LSN
	digest uint64
}

type simCounts struct {
	acked, promotions, crashes, powerLosses, lostBatches, diskErrors, netFaults, replaced, rewound, back, acks int
	wal, checkpoints, fallbacks, purged, failed                                                                uint64
}

// simIndexNode stands for the index in world.parted.
const simIndexNode = -1

func pair(a, b int) [2]int { return [2]int{min(a, b), max(a, b)} }

// machine is a machine: its disk, and the process on it.
type machine struct {
	id       int
	disk     *simDisk
	proc     *simProc // nil while it is down
	rng      *rand.Rand
	lazy     bool // its disk is slow
	sick     bool // its disk fails often
	restarts int
}

// indexMap is what the index tells the nodes.
type indexMap struct {
	version, epoch uint64
	master         int
	active         []bool
}

// simIndex decides like the index server: who is master, who is in sync.
type simIndex struct {
	indexMap
	floor []uint64 // sessions up to which no claim is accepted in this epoch
}

func newWorld(t *testing.T, seed uint64, dir string) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), dir: dir,
		parted: map[[2]int]bool{}, dials: map[[2]int]int{}, truth: map[topology.LSN]born{}}
	w.sync = w.rng.IntN(2) == 0
	w.x.active, w.x.floor, w.x.master = make([]bool, simNodes), make([]uint64, simNodes), -1
	for i := range simNodes {
		w.nodes = append(w.nodes, &machine{id: i, disk: newSimDisk(), rng: rand.New(rand.NewPCG(seed, uint64(1000+i)))})
	}
	return w
}

// event notes what happened; it needs mu.
func (w *world) event(format string, a ...any) {
	line := fmt.Sprintf("%8.3f  ", time.Since(simEpoch).Seconds()) + fmt.Sprintf(format, a...)
	if w.talk {
		w.t.Log(line)
	}
	if w.trace = append(w.trace, line); len(w.trace) > 400 {
		w.trace = w.trace[200:]
	}
}

// simEpoch is when the clock of a bubble begins.
var simEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// failf notes the first violation; it needs mu.
func (w *world) failf(format string, a ...any) {
	if w.failure == "" {
		w.failure = fmt.Sprintf(format, a...)
		w.event("VIOLATION: %s", w.failure)
	}
}

// Faults. All of them need mu, but for those of the network.

// delay is how long a message takes from one node to another.
func (w *world) delay(rng *rand.Rand, from, to int) time.Duration {
	if w.quiet() {
		return w.orderly(from*simNodes + to)
	}
	switch d := upTo(rng, 0, 3); rng.IntN(40) {
	case 0:
		return 100 * d // up to 0.3 s
	default:
		return 50*time.Microsecond + d
	}
}

// upTo is a time of some milliseconds more than the least. It is so fine that
// hardly two things happen at the same moment, whose order would be open.
func upTo(rng *rand.Rand, least, more int) time.Duration {
	return time.Duration(least)*time.Millisecond + time.Duration(rng.Int64N(int64(more)*int64(time.Millisecond)))
}

// orderly is a time of its own for everybody, so that no two things happen at the
// same moment and a script has one outcome.
func (w *world) orderly(who int) time.Duration {
	return time.Millisecond + time.Duration(who)*37*time.Microsecond
}

func (w *world) quiet() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calm
}

func (w *world) netFault(rng *rand.Rand) netFault {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.calm {
		return faultNone
	}
	switch rng.IntN(600) {
	case 0, 1, 2:
		w.counts.netFaults++
		return faultBreak
	case 3, 4:
		w.counts.netFaults++
		return faultDamage
	}
	return faultNone
}

func (w *world) diskTime(node int) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.nodes[node]
	switch {
	case w.calm && !n.lazy:
		return 100 * time.Microsecond
	case n.lazy:
		return upTo(n.rng, 20, 60)
	}
	return 20*time.Microsecond + upTo(n.rng, 0, 2)
}

func (w *world) slow(node int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[node].lazy
}

// point lets the process die or its disk fail.
func (w *world) point(p *simProc, what string) error {
	if w.calm {
		return nil
	}
	n := w.nodes[p.node]
	odds := 1500
	switch what {
	case "replace", "replaced", "snapshot", "rewind", "rewound":
		odds = 12
	case "committed", "applied":
		odds = 3000
	}
	if n.rng.IntN(odds) == 0 {
		w.crash(p.node, what)
		return errProcDead
	}
	if odds = 800; n.sick {
		odds = 3
	}
	if n.rng.IntN(odds) == 0 {
		w.counts.diskErrors++
		return errDiskError
	}
	return nil
}

// stall lets a goroutine be late: others had the processor.
func (w *world) stall(p *simProc) {
	w.mu.Lock()
	var d time.Duration
	if rng := w.nodes[p.node].rng; !w.calm && rng.IntN(30) == 0 {
		d = upTo(rng, 0, 3000)
	}
	w.mu.Unlock()
	if d > 0 {
		time.Sleep(d)
	}
}

func (w *world) coin(p *simProc) bool { return w.nodes[p.node].rng.IntN(2) == 0 }

// Checks. All of them need mu, but for checkAck.

// born registers a batch that a master has written, once anybody can come to know
// of it.
func (w *world) born(p *simProc, lsn topology.LSN, digest uint64) {
	path := p.db.path
	var before topology.LSN
	if len(path) > 1 {
		before = path[len(path)-2]
	}
	if _, ok := w.truth[lsn]; ok {
		w.failf("n%d gives position %v away a second time", p.node, lsn)
	}
	w.truth[lsn] = born{before, digest}
	if w.talk {
		w.event("n%d writes %v", p.node, lsn)
	}
}

// checkState compares a node with the master of the batch it has reached.
func (w *world) checkState(p *simProc) {
	d := p.db.simDisk
	if len(d.path) == 0 {
		return
	}
	lsn := d.path[len(d.path)-1]
	var before topology.LSN
	if len(d.path) > 1 {
		before = d.path[len(d.path)-2]
	}
	switch truth, ok := w.truth[lsn]; {
	case !ok:
		w.failf("n%d is at %v, which nobody has written", p.node, lsn)
	case truth.before != before:
		w.failf("n%d has %v behind %v, its master had it behind %v", p.node, lsn, before, truth.before)
	case truth.digest != d.digest && d.pos.Restored.IsZero():
		w.failf("n%d at %v has other data than its master had", p.node, lsn)
	case uint64(len(d.path)) != lsn.Index || d.pos.LSN != lsn:
		w.failf("n%d at %v has %d batches behind it", p.node, lsn, len(d.path))
	}
	w.checkHave(p.node)
}

// checkAck is told of every position that a replica is about to acknowledge.
func (w *world) checkAck(p *simProc, lsn topology.LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.acks++
	if p.dead || lsn.IsZero() {
		return
	}
	d := p.db.simDisk
	durable := d.pos.LSN.Index
	if w.sync {
		durable = d.synced
	}
	switch {
	case lsn.Index > durable:
		w.failf("n%d acknowledges %v, but would have only %d batches after a crash", p.node, lsn, durable)
	case d.path[lsn.Index-1] != lsn:
		w.failf("n%d acknowledges %v, but has %v there", p.node, lsn, d.path[lsn.Index-1])
	}
}

// counted returns how often the process's follower says that it let go of
// something. It must not be called with mu.
func (p *simProc) counted() uint64 {
	p.w.mu.Lock()
	f := p.follower
	p.w.mu.Unlock()
	if f == nil {
		return 0
	}
	s := f.Status()
	return s.Fallbacks + s.Rewinds
}

// wentBack is told of a node that had the batch from and may have given it up.
func (w *world) wentBack(p *simProc, from topology.LSN, counted uint64) {
	if path := p.db.path; from.IsZero() || from.Index <= uint64(len(path)) && path[from.Index-1] == from {
		return
	}
	w.counts.back++
	p.back++
	w.event("n%d gives %v up for %v", p.node, from, p.db.pos.LSN)
	if counted < uint64(p.back) {
		w.failf("n%d went back from %v to %v, which its follower did not count", p.node, from, p.db.pos.LSN)
	}
}

// mayLead tells whether the index might make the node the master.
func (w *world) mayLead(i int) bool { return i == w.x.master || w.x.active[i] }

// checkHave looks for acknowledged writes that a node lacks which may lead.
func (w *world) checkHave(i int) {
	if w.mayLead(i) {
		for _, l := range w.acked {
			w.checkHas(i, l)
		}
	}
}

func (w *world) checkHas(i int, l topology.LSN) {
	if path := w.nodes[i].disk.path; l.Index > uint64(len(path)) || path[l.Index-1] != l {
		w.failf("a client was told of %v, but n%d (master %v, in sync %v) has not got it", l, i, i == w.x.master, w.x.active[i])
	}
}

func (w *world) answered(l topology.LSN) {
	w.acked = append(w.acked, l)
	w.counts.acked++
	for i := range w.nodes {
		if w.mayLead(i) {
			w.checkHas(i, l)
		}
	}
}

// The index.

// publish makes a change of the index known; it needs mu.
func (w *world) publish() {
	w.x.version++
	m := w.x.indexMap
	m.active = slices.Clone(m.active)
	w.event("map %d: epoch %d, master n%d, in sync %s", m.version, m.epoch, m.master, keysOf(m.active))
	for i := range w.nodes {
		w.checkHave(i)
		w.deliver(i, m)
	}
}

func keysOf(active []bool) string {
	var keys []string
	for i, a := range active {
		if a {
			keys = append(keys, simName(i))
		}
	}
	return "[" + strings.Join(keys, " ") + "]"
}

func simName(i int) string { return fmt.Sprintf("n%d:1", i) }

func nodeOf(key string) int { return int(key[1] - '0') }

// deliver sends a map to the node, at some time or never. It needs mu.
func (w *world) deliver(i int, m indexMap) {
	rng := w.nodes[i].rng
	wait := w.orderly(i)
	if !w.calm {
		if rng.IntN(10) == 0 {
			return
		}
		wait = upTo(rng, 0, 20)
		if rng.IntN(8) == 0 {
			wait = upTo(rng, 0, 2000)
		}
	}
	w.tasks.Go(func() {
		time.Sleep(wait)
		w.mu.Lock()
		defer w.mu.Unlock()
		if p := w.nodes[i].proc; p != nil && !w.parted[pair(i, simIndexNode)] && m.version > p.seen.version {
			p.seen = m
			p.poke()
		}
	})
}

// failover gives the partition another master, or a new epoch to the old one if
// nobody else may be; it needs mu.
func (w *world) failover(reason string) bool {
	x := &w.x
	if x.master < 0 {
		return false // nobody has registered yet
	}
	var able []int
	for i, a := range x.active {
		if a && i != x.master {
			able = append(able, i)
		}
	}
	next := x.master
	if len(able) > 0 {
		next = able[0]
		if !w.calm {
			next = able[w.nodes[x.master].rng.IntN(len(able))]
		}
		x.active[next] = false
	} else if w.nodes[x.master].proc == nil {
		return false
	}
	x.epoch++
	x.master = next
	clear(x.floor)
	w.counts.promotions++
	w.event("failover to n%d in epoch %d: %s", next, x.epoch, reason)
	w.publish()
	return true
}

// registered is told of a process that has started; it needs mu.
func (w *world) registered(i int) {
	x := &w.x
	switch {
	case x.master < 0:
		x.master = i
		x.epoch++
		w.publish()
	case x.master == i:
		w.failover("its process has restarted")
	case x.active[i]:
		x.active[i] = false
		w.publish()
	default:
		w.deliver(i, x.indexMap)
	}
}

// call is a request of a node to the index, which may get lost on the way there,
// on the way back, or come twice.
func (w *world) call(ctx context.Context, p *simProc, do func() error) error {
	rng := w.nodes[p.node].rng
	w.mu.Lock()
	away, calm := w.parted[pair(p.node, simIndexNode)], w.calm
	wait, again, fate := w.orderly(p.node), time.Duration(0), 9
	if !calm {
		wait, again, fate = upTo(rng, 0, 20), upTo(rng, 0, 3000), rng.IntN(30)
	}
	w.mu.Unlock()
	if away || fate == 0 {
		wait, away = time.Second, true
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if away || p.dead {
		return errIndexAway
	}
	err := do()
	switch fate {
	case 1:
		return errIndexAway // the answer got lost
	case 2, 3:
		w.tasks.Go(func() {
			time.Sleep(again)
			w.mu.Lock()
			defer w.mu.Unlock()
			if !w.over {
				do()
			}
		})
	}
	return err
}

func (w *world) inSync(p *simProc) func(context.Context, uint64, uint64) error {
	return func(ctx context.Context, epoch, session uint64) error {
		return w.call(ctx, p, func() error {
			x, i := &w.x, p.node
			if epoch != x.epoch || i == x.master || session <= x.floor[i] {
				w.event("index refuses that n%d is in sync by %d/%d", i, epoch, session)
				return fmt.Errorf("%w: %d/%d", ErrRefused, epoch, session)
			}
			if at := w.nodes[i].disk.pos; !at.Restored.IsZero() {
				w.failf("n%d is in sync at %v in the midst of a rewind to %v", i, at.LSN, at.Restored)
			}
			if !x.active[i] {
				w.event("n%d is in sync by %d/%d", i, epoch, session)
				x.active[i] = true
				w.publish()
			}
			return nil
		})
	}
}

func (w *world) behind(p *simProc) func(context.Context, string, uint64, uint64) error {
	return func(ctx context.Context, replica string, epoch, session uint64) error {
		return w.call(ctx, p, func() error {
			x, i := &w.x, nodeOf(replica)
			if epoch != x.epoch || p.node != x.master {
				w.event("index refuses to leave n%d behind by %d/%d", i, epoch, session)
				return errors.New("not the master of this epoch")
			}
			w.event("n%d is left behind by %d/%d", i, epoch, session)
			x.active[i] = false
			x.floor[i] = max(x.floor[i], session)
			w.publish()
			return nil
		})
	}
}

// Processes.

// simProc is a node's process: it does what package node does with a map.
type simProc struct {
	w      *world
	node   int
	db     *simDB
	src    *Source
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	wake   chan struct{}

	// Guarded by world.mu.
	dead     bool
	seen     indexMap
	open     bool // the gate
	follower *Follower
	back     int // how often the position went back under follower

	following indexMap // of run
	stop      func()
}

func (p *simProc) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// start starts a node's process; it needs mu.
func (w *world) start(i int) *simProc {
	n := w.nodes[i]
	p := &simProc{w: w, node: i, wake: make(chan struct{}, 1), stop: func() {}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	n.disk.synced = n.disk.pos.LSN.Index // what is recovered is written to tables
	p.db = newSimDB(w, p, n.disk)
	p.src = NewSource(p.db, SourceConfig{
		Self:     simName(i),
		Timeout:  func() time.Duration { return simTimeout },
		Interval: func() time.Duration { return simTimeout / 8 },
		Behind:   w.behind(p),
		Logger:   quiet,
	})
	n.proc = p
	n.restarts++
	w.event("n%d starts at %v", i, n.disk.pos.LSN)
	p.tasks.Go(p.run)
	w.tasks.Go(func() {
		time.Sleep(10 * w.orderly(i))
		w.mu.Lock()
		defer w.mu.Unlock()
		if !p.dead {
			w.registered(i)
		}
	})
	return p
}

// crash ends the process on a node at once: whatever it still does has no effect.
// It needs mu.
func (w *world) crash(i int, why string) {
	n := w.nodes[i]
	p := n.proc
	if p == nil {
		return
	}
	n.proc, p.dead, p.open = nil, true, false
	w.counts.crashes++
	power := w.sync && n.rng.IntN(2) == 0
	if power {
		w.counts.powerLosses++
		w.counts.lostBatches += n.disk.powerLoss(n.rng.IntN)
	} else if b := n.disk.limbo; b != nil && n.rng.IntN(2) == 0 {
		// The write that failed is in the log after all.
		if b.lsn.Index == n.disk.pos.LSN.Index+1 {
			n.disk.append(*b)
		}
	}
	n.disk.limbo = nil
	if lsn := n.disk.pos.LSN; !lsn.IsZero() {
		if _, ok := w.truth[lsn]; !ok { // a write that nobody was told of is there all the same
			w.born(p, lsn, n.disk.digest)
		}
	}
	w.event("n%d dies (%s, power %v) at %v", i, why, power, n.disk.pos.LSN)
	for _, l := range w.links {
		if l.a.from == i || l.a.to == i {
			l.a.cut()
		}
	}
	p.cancel()
	w.tasks.Go(func() {
		p.src.StepDown()
		p.tasks.Wait()
	})
	noticed, back := upTo(n.rng, 50, 500), upTo(n.rng, 0, 1500)
	w.tasks.Go(func() {
		time.Sleep(noticed)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.over || n.proc != nil {
			return
		}
		if w.x.master == i {
			w.failover("its process is dead")
		} else if w.x.active[i] {
			w.x.active[i] = false
			w.publish()
		}
	})
	if w.calm {
		return // a script says when it comes back
	}
	w.tasks.Go(func() {
		time.Sleep(back)
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.over && n.proc == nil {
			w.start(i)
		}
	})
}

func (p *simProc) run() {
	for {
		again := p.round()
		var timer <-chan time.Time
		if again {
			timer = time.After(100 * p.w.orderly(p.node))
		}
		select {
		case <-p.ctx.Done():
			p.stop()
			p.src.StepDown()
			return
		case <-p.wake:
		case <-timer:
		}
	}
}

// round brings the process in line with the map it has seen last.
func (p *simProc) round() (again bool) {
	p.w.mu.Lock()
	m := p.seen
	p.w.mu.Unlock()
	if m.version == 0 {
		return false
	}
	if m.master != p.node {
		if p.following.version > 0 && p.following.master == m.master &&
			(p.following.epoch == m.epoch || p.follower.Status().Connected) {
			return false
		}
		p.resign()
		p.follow(m)
		return false
	}
	held := p.db.Position().LSN.Epoch
	switch {
	case m.epoch > held:
		p.resign()
		if err := p.db.beginEpoch(m.epoch); err != nil {
			return p.ctx.Err() == nil
		}
	case m.epoch < held || p.db.begun != m.epoch:
		p.resign()
		return false
	}
	var slaves []Member
	for i, a := range m.active {
		if i != p.node {
			slaves = append(slaves, Member{Key: simName(i), Active: a})
		}
	}
	p.src.Lead(m.epoch, slaves)
	p.w.mu.Lock()
	p.open = !p.dead
	p.w.mu.Unlock()
	return false
}

// resign ends whatever the process was: when it returns, nothing of it is under way.
func (p *simProc) resign() {
	p.stop()
	p.stop, p.following = func() {}, indexMap{}
	unlock := p.db.lock()
	p.w.mu.Lock()
	p.open = false
	p.w.mu.Unlock()
	unlock()
	p.src.StepDown()
}

func (p *simProc) follow(m indexMap) {
	f := NewFollower(p.db, FollowerConfig{
		Self: simName(p.node), Partition: 0, Master: simName(m.master), Logger: quiet,
		Dial:   func(ctx context.Context) (Conn, error) { return p.w.dial(ctx, p.node, m.master) },
		InSync: p.w.inSync(p),
	})
	p.w.mu.Lock()
	p.follower, p.back = f, 0
	p.w.mu.Unlock()
	p.following = m
	ctx, cancel := context.WithCancel(p.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx)
	}()
	p.stop = func() {
		cancel()
		<-done
		s := f.Status()
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		c := &p.w.counts
		c.wal += s.WALCatchUps
		c.checkpoints += s.Checkpoints
		c.fallbacks += s.Fallbacks
		c.purged += s.Purged
		c.failed += s.FailedAttempts
	}
}

// accept serves a connection from another node.
func (p *simProc) accept(conn *simConn) {
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	line, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
	if err != nil {
		return
	}
	req, err := ParseRequest(strings.Fields(line)[1:])
	if err != nil {
		fmt.Fprintf(conn, "SERVER_ERROR %s\r\n", reasonOf(err))
		return
	}
	io.WriteString(conn, "OK\r\n")
	p.src.Serve(p.ctx, conn, req)
}

// write is a client's write, which is answered when the replicas in sync have it.
func (p *simProc) write(key, value string) error {
	lsn, err := p.db.put(key, value)
	if err != nil {
		return err
	}
	p.w.stall(p)
	if err := p.src.Wait(p.ctx, lsn); err != nil {
		return err
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if p.dead {
		return errProcDead
	}
	p.w.answered(lsn)
	return nil
}

// clients write to whoever lets them until the simulation is over.
func (w *world) clients() {
	for i, n := range w.nodes {
		rng := rand.New(rand.NewPCG(w.seed, uint64(2000+i)))
		w.tasks.Go(func() {
			for k := 0; ; k++ {
				time.Sleep(upTo(rng, 1, 25))
				w.mu.Lock()
				p, over := n.proc, w.over
				w.mu.Unlock()
				if over {
					return
				}
				if p == nil {
					continue
				}
				key, value := fmt.Sprint("k", rng.IntN(40)), fmt.Sprintf("n%d-%d", i, k)
				if rng.IntN(10) == 0 {
					value = "" // a delete
				}
				p.tasks.Go(func() { p.write(key, value) })
			}
		})
	}
}

// disturb does one random thing to the world.
func (w *world) disturb() {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, j := w.rng.IntN(simNodes), w.rng.IntN(simNodes)
	switch w.rng.IntN(14) {
	case 0:
		w.crash(i, "killed")
	case 1:
		if w.rng.IntN(4) == 0 {
			for k := range w.nodes {
				w.crash(k, "all die")
			}
		}
	case 2, 3:
		w.event("connections of n%d break", i)
		for _, l := range w.links {
			if l.a.from == i || l.a.to == i {
				l.a.cut()
			}
		}
	case 4, 5:
		if i != j {
			w.part(i, j, true)
		}
	case 6, 7:
		for k := range simNodes {
			w.part(k, (k+1)%simNodes, false)
			delete(w.parted, pair(k, simIndexNode))
		}
	case 8:
		w.event("n%d cannot reach the index", i)
		w.parted[pair(i, simIndexNode)] = true
	case 9:
		w.failover("it is taken for dead")
	case 10:
		if i != w.x.master && w.x.active[i] {
			w.x.active[i] = false
			w.publish()
		}
	case 11:
		if p := w.nodes[i].proc; p != nil {
			p.db.purge(p.db.visible.LSN.Index - min(p.db.visible.LSN.Index, w.rng.Uint64N(30)))
			w.event("n%d purges its log before %d", i, p.db.first())
		}
	case 12:
		w.nodes[i].lazy = !w.nodes[i].lazy
		w.event("n%d is slow: %v", i, w.nodes[i].lazy)
	case 13:
		w.nodes[i].sick = !w.nodes[i].sick
		w.event("disk of n%d is sick: %v", i, w.nodes[i].sick)
	}
}

// part keeps two nodes from reaching each other, or lets them again. It needs mu.
func (w *world) part(i, j int, held bool) {
	if w.parted[pair(i, j)] == held {
		return
	}
	w.event("n%d and n%d are parted: %v", i, j, held)
	w.parted[pair(i, j)] = held
	for _, l := range w.links {
		if l.between(i, j) {
			l.a.in.hold(held)
			l.a.out.hold(held)
		}
	}
}

// heal ends all faults.
func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.event("all is healed")
	w.calm = true
	for k, n := range w.nodes {
		w.part(k, (k+1)%simNodes, false)
		delete(w.parted, pair(k, simIndexNode))
		n.lazy, n.sick = false, false
		if n.proc == nil {
			w.start(k)
		}
	}
	w.publish()
}

// settled tells why the nodes are not equal and in sync; it needs mu.
func (w *world) settled() string {
	m := w.nodes[w.x.master]
	for i, n := range w.nodes {
		switch {
		case n.proc == nil:
			return fmt.Sprintf("n%d is down", i)
		case n.disk.pos.LSN != m.disk.pos.LSN || n.disk.digest != m.disk.digest:
			return fmt.Sprintf("n%d is at %v, its master n%d at %v", i, n.disk.pos.LSN, m.id, m.disk.pos.LSN)
		case i != w.x.master && !w.x.active[i]:
			return fmt.Sprintf("n%d is not in sync", i)
		}
	}
	return ""
}

// stuck tells what the followers say, for a failure to become equal. It must not be
// called with mu.
func (w *world) stuck() string {
	var out strings.Builder
	for i, n := range w.nodes {
		w.mu.Lock()
		var f *Follower
		var seen indexMap
		if n.proc != nil {
			f, seen = n.proc.follower, n.proc.seen
		}
		w.mu.Unlock()
		fmt.Fprintf(&out, "\nn%d has seen %+v", i, seen)
		if f != nil {
			fmt.Fprintf(&out, "; its last follower: %+v", f.Status())
		}
	}
	return out.String()
}

func (w *world) failed() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failure
}

// end stops everything, which must be possible.
func (w *world) end() {
	w.mu.Lock()
	w.over = true
	var procs []*simProc
	for _, n := range w.nodes {
		if n.proc != nil {
			procs = append(procs, n.proc)
		}
	}
	w.mu.Unlock()
	for _, p := range procs {
		p.cancel()
		p.src.StepDown()
		p.tasks.Wait()
	}
	w.tasks.Wait()
}

// simulate runs one seed.
func simulate(t *testing.T, seed uint64, dir string, talk bool) (counts simCounts) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, dir)
		w.talk = talk
		w.mu.Lock()
		for i := range w.nodes {
			w.start(i)
		}
		w.mu.Unlock()
		w.clients()
		until := time.Now().Add(simTime)
		pace := []int{60, 250, 1000}[seed%3]
		for last := time.Now(); time.Now().Before(until) && w.failed() == ""; {
			time.Sleep(upTo(w.rng, 0, pace))
			w.disturb()
			if time.Since(last) > time.Second { // a node that missed a map hears of it at last
				last = time.Now()
				w.mu.Lock()
				for i := range w.nodes {
					w.deliver(i, w.x.indexMap)
				}
				w.mu.Unlock()
			}
		}
		w.heal()
		// Writes go on meanwhile for a while, then there must be an end.
		stop := time.Now().Add(simHeal)
		for w.failed() == "" {
			time.Sleep(500 * time.Millisecond)
			stuck := ""
			if time.Now().After(stop) {
				stuck = w.stuck()
			}
			w.mu.Lock()
			if time.Since(until) > simHeal/3 {
				w.over = true
			}
			why := w.settled()
			if w.over && why != "" && stuck != "" {
				w.failf("not equal %v after all is healed: %s%s", simHeal, why, stuck)
			}
			done := w.over && why == ""
			if !w.over && time.Since(until) > 5*time.Second && why == "" {
				w.over = true
			}
			w.mu.Unlock()
			if done {
				break
			}
		}
		w.end()
		counts = w.counts
		if f := w.failed(); f != "" {
			if !talk {
				t.Log(strings.Join(w.trace, "\n"))
			}
			t.Errorf("seed %d: %s\nagain: FLARE_SIM_SEED=%d go test ./agent/replication -run TestSimulation -v", seed, f, seed)
		}
	})
	return counts
}

func (c *simCounts) add(o simCounts) {
	c.acked += o.acked
	c.promotions += o.promotions
	c.crashes += o.crashes
	c.powerLosses += o.powerLosses
	c.lostBatches += o.lostBatches
	c.diskErrors += o.diskErrors
	c.netFaults += o.netFaults
	c.replaced += o.replaced
	c.rewound += o.rewound
	c.back += o.back
	c.acks += o.acks
	c.wal += o.wal
	c.checkpoints += o.checkpoints
	c.fallbacks += o.fallbacks
	c.purged += o.purged
	c.failed += o.failed
}

func TestSimulation(t *testing.T) {
	dir := simDir(t)
	env := func(name string) (uint64, bool) {
		v := os.Getenv(name)
		if v == "" {
			return 0, false
		}
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n, true
	}
	if seed, ok := env("FLARE_SIM_SEED"); ok {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		t.Logf("%+v", simulate(t, seed, dir, true))
		return
	}
	seeds, ok := env("FLARE_SIM_SEEDS")
	first := uint64(1)
	if !ok {
		seeds = 16
	} else {
		// A long run begins anywhere, so that each one looks elsewhere.
		first = rand.Uint64N(1 << 40)
		t.Logf("seeds from %d", first)
	}
	// One goroutine at a time, so that the order in which they run is nearly fixed.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var all simCounts
	for seed := first; seed < first+seeds && !t.Failed(); seed++ {
		all.add(simulate(t, seed, dir, false))
	}
	t.Logf("%d seeds: %+v", seeds, all)
	// The runs must have got somewhere.
	for what, n := range map[string]int{
		"acknowledged writes": all.acked / int(seeds), "promotions": all.promotions, "crashes": all.crashes, "losses of power": all.powerLosses,
		"disk errors": all.diskErrors, "broken connections": all.netFaults,
		"acknowledgements": all.acks, "positions that went back": all.back,
		"ways by the log": int(all.wal), "rewinds": all.rewound, "full copies": int(all.checkpoints), "purged logs": int(all.purged),
	} {
		if n == 0 && !t.Failed() {
			t.Errorf("no %s: the simulation does not reach what it is for", what)
		}
	}
}

// simDir is where checkpoints lie: in memory if possible, since their files are synced.
func simDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "flare-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
