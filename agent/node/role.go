package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/topology"
)

// roleRetry is the pause after a promotion that failed in the database.
const roleRetry = time.Second

// A roleKeeper makes this node do what its entry in the node map says. It is
// level-triggered: each round compares the present map with what runs, so that
// maps may arrive faster than roles change and none has to be seen.
type roleKeeper struct {
	maps    *nodeMap
	gate    *gate
	db      *storage.DB
	source  *replication.Source
	logger  *slog.Logger
	changed *broadcast
	// catchUp builds what a duty other than a master's needs to get its data.
	catchUp func(duty) catcher
	// standDown has a node go on following a master while the index takes it for down.
	standDown *standDown
	// excluded tells which slaves are known to be unable to read the log.
	excluded func(node string) bool
	leases   bool                 // writes need a lease where the index gives epochs
	now      func() time.Duration // the clock of leases and promises

	stepMu sync.Mutex // held while roles change
	homes  homes      // guarded by stepMu

	mu       sync.Mutex
	leaving  bool
	tenure   tenure
	promised promise // to the master that is, or was, followed
	mark     promiseMark
	unmark   *time.Timer // looks whether the promise is over; nil before the first
	awaited  uint64      // epoch that a promise has kept from beginning, once logged
	catcher  catcher     // nil when none runs
	followed duty        // that it runs for
	stop     func()      // ends it and waits for its end
	former   catchUps    // of those that ended
}

// A catcher gets data from other nodes until its context ends.
type catcher interface {
	Run(ctx context.Context) error
	Status() replication.FollowerStatus
}

// run works until ctx ends, then stops the follower. It leaves the gate
// closed.
func (k *roleKeeper) run(ctx context.Context) {
	for {
		wake := k.changed.wait()
		again := k.step(ctx)
		var timer <-chan time.Time
		if again > 0 {
			timer = time.After(again)
		}
		select {
		case <-ctx.Done():
			k.stopCatcher()
			k.gate.close(gateWait, "stopping")
			k.forget()
			k.source.StepDown()
			return
		case <-wake:
		case <-timer:
		}
	}
}

// step brings the node in line with the map in force. A positive result asks
// for another round after that time.
func (k *roleKeeper) step(ctx context.Context) time.Duration {
	k.stepMu.Lock()
	defer k.stepMu.Unlock()
	t := k.maps.table()
	d, again := k.standDown.duty(dutyOf(t), t)
	k.homes.note(t)
	switch d.kind {
	case dutyMaster:
		return k.lead(ctx, d)
	case dutySlave:
		k.followMaster(ctx, d)
		return again
	case dutyFill:
		return k.fill(ctx, d)
	default:
		k.stopCatcher()
		k.resign("no_duty")
		if t != nil {
			k.db.KeepFor(nil)
		}
	}
	return 0
}

func (k *roleKeeper) lead(ctx context.Context, d duty) time.Duration {
	pos := k.db.Position()
	k.mu.Lock()
	now := k.tenure
	k.mu.Unlock()

	p := promote(d, now, pos.LSN.Epoch, pos.Partition)
	if p.refusal != "" {
		if _, reason := k.gate.status(); reason != p.refusal {
			k.logger.Error("named master, but must not write", "reason", p.refusal, "partition", d.partition,
				"map_epoch", d.epoch, "own_lsn", pos.LSN.String(), "data_partition", pos.Partition)
		}
		k.stopCatcher()
		k.resignTo(gateRefuse, p.refusal)
		return 0
	}
	if p.begin {
		if wait := k.bound(d); wait > 0 {
			// What the former master still writes until then belongs to what we begin with.
			return wait
		}
		k.stopCatcher()
		k.resign("promotion")
		lsn, err := k.db.BeginEpoch(ctx, p.epoch, d.partition)
		if err != nil {
			if ctx.Err() != nil {
				return 0
			}
			if errors.Is(err, storage.ErrOtherPartition) {
				// Settled by the next round, which sees the position.
				return roleRetry
			}
			k.logger.Error("promotion failed in the database, trying again", "partition", d.partition,
				"epoch", p.epoch, "error", err)
			return roleRetry
		}
		k.dropIncoming()
		k.logger.Info("master", "partition", d.partition, "epoch", p.epoch, "lsn", lsn.String())
	}
	// One that has filled a new partition stays what it is but for the gate.
	k.stopCatcher()
	k.mu.Lock()
	paused := k.tenure.paused && k.tenure.epoch == p.epoch
	k.tenure = tenure{held: true, paused: paused, partition: d.partition, granted: d.epoch, epoch: p.epoch}
	k.mu.Unlock()
	k.source.Lead(p.epoch, k.streaming(d.members))
	if err := k.source.Expect(k.homes.away(d.partition), k.homes.mayCome(d.partition)); err != nil {
		k.logger.Warn("cannot tell how much log to keep for replicas", "error", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.admit()
	return 0
}

// leads returns the partition that this node is the master of in an epoch.
func (k *roleKeeper) leads(epoch uint64) (partition int, held bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tenure.partition, k.tenure.held && k.tenure.epoch == epoch
}

// admit opens the gate to a master's writes, unless something keeps it closed; it
// needs mu.
func (k *roleKeeper) admit() {
	if t := k.tenure; t.held && !t.paused && !k.leaving {
		k.gate.open(t.partition, t.epoch, k.leases && t.granted > 0)
	}
}

// pause lets writes wait for as long as this node leads in the epoch, or until
// resume. When it has returned true, nothing more is written.
func (k *roleKeeper) pause(epoch uint64, reason string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.tenure.held || k.tenure.epoch != epoch {
		return false
	}
	k.tenure.paused = true
	k.gate.close(gateWait, reason)
	return true
}

// resume ends a pause, if this node still leads in the epoch.
func (k *roleKeeper) resume(epoch uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tenure.held && k.tenure.epoch == epoch && k.tenure.paused {
		k.tenure.paused = false
		k.admit()
	}
}

// dropIncoming removes what is left of a copy that this node does not need any more.
func (k *roleKeeper) dropIncoming() {
	if err := k.db.DropIncoming(); err != nil {
		k.logger.Warn("cannot remove an interrupted copy", "error", err)
	}
}

// promise lets a master that is followed go on for ttl without the index, if the map
// says that it is the master, and binds this node not to take its place meanwhile.
func (k *roleKeeper) promise(master string, partition int, epoch uint64, ttl time.Duration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ttl == 0 {
		k.released(partition, epoch)
		return false
	}
	// The map is looked at under the lock: bound, which comes after a map that names
	// this node, sees the promise, or the promise sees that map.
	if !mayPromise(dutyOf(k.maps.table()), master, partition, epoch, ttl) {
		return false
	}
	if err := k.mark.put(); err != nil {
		k.logger.Error("the master gets no promise", "reason", "promise_not_kept", "error", err)
		return false
	}
	k.bind(k.promised.extend(partition, epoch, k.now(), ttl))
	return true
}

// released ends a promise that the master has given back, because it takes no more
// writes in the epoch; it needs mu.
func (k *roleKeeper) released(partition int, epoch uint64) {
	if p := &k.promised; p.partition == partition && p.epoch == epoch && p.until > k.now() {
		p.until = k.now()
		k.dropMark()
		k.changed.fire()
	}
}

// bind takes over a promise that has its mark; it needs mu.
func (k *roleKeeper) bind(p promise) {
	k.promised = p
	if left := p.until - k.now(); k.unmark == nil {
		k.unmark = time.AfterFunc(left, k.unbind)
	} else {
		k.unmark.Reset(left)
	}
}

// unbind removes the mark of a promise that is over.
func (k *roleKeeper) unbind() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now() < k.promised.until {
		return // there is a later one, with a timer of its own
	}
	k.dropMark()
}

// dropMark needs mu.
func (k *roleKeeper) dropMark() {
	if err := k.mark.drop(); err != nil {
		k.logger.Warn("the next start takes this node for bound by a promise", "error", err)
	}
}

// remember binds this node by the promise that a former process has left a mark of.
// Which partition it was about and when it was given is not known, but that it was
// before this process began.
func (k *roleKeeper) remember(dataDir string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var found bool
	if k.mark, found = findMark(dataDir); found {
		k.bind(promise{partition: topology.NoPartition, until: k.now() + topology.LeaseHold(topology.LeaseTTL)})
	}
}

// forget lets the mark stay for the next process, if there is one.
func (k *roleKeeper) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unmark != nil {
		k.unmark.Stop()
	}
}

// bound returns for how long a promise keeps this node from the duty of a master.
func (k *roleKeeper) bound(d duty) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	wait := k.promised.left(d.partition, d.epoch, k.now())
	if wait > 0 && k.awaited != d.epoch {
		k.awaited = d.epoch
		k.logger.Warn("named master, but the former one may take writes for a while yet", "reason", "promised",
			"partition", d.partition, "map_epoch", d.epoch, "wait", wait.String())
	}
	return wait
}

// streaming returns the members that may read the log. Writes never wait for the
// others, which therefore must not count as in sync.
func (k *roleKeeper) streaming(members []replication.Member) []replication.Member {
	return slices.DeleteFunc(slices.Clone(members), func(m replication.Member) bool { return k.excluded(m.Key) })
}

// resign ends a mastership: writes wait for the map that tells the new master.
func (k *roleKeeper) resign(reason string) { k.resignTo(gateWait, reason) }

func (k *roleKeeper) resignTo(state gateState, reason string) {
	k.gate.close(state, reason)
	k.mu.Lock()
	held := k.tenure.held
	k.tenure = tenure{}
	k.mu.Unlock()
	if held {
		k.logger.Info("no longer master", "reason", reason)
		k.source.StepDown()
	}
}

// errBusy refuses work that needs a node without duties.
var errBusy = errors.New("node has duties")

// whileIdle runs fn if this node is neither master nor slave, and keeps it so
// meanwhile.
func (k *roleKeeper) whileIdle(fn func() error) error {
	k.stepMu.Lock()
	defer k.stepMu.Unlock()
	held, follower, _ := k.snapshot()
	if held.held || follower != nil || dutyOf(k.maps.table()).kind != dutyNone {
		return errBusy
	}
	return fn()
}

// retire lets this node take nothing up any more: a closed gate stays closed, and
// nobody is followed anew.
func (k *roleKeeper) retire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.leaving = true
}

// leave closes the gate for good; the role itself stays until the map changes.
func (k *roleKeeper) leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.leaving = true
	k.gate.close(gateWait, "leaving")
}

// openCopy lets in what the master that is copied from sends.
func (k *roleKeeper) openCopy(partition int, epoch uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.leaving {
		k.gate.openCopy(partition, epoch)
	}
}

// closeCopy ends that.
func (k *roleKeeper) closeCopy() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.leaving {
		k.gate.close(gateWait, "slave")
	}
}

func (k *roleKeeper) followMaster(ctx context.Context, d duty) {
	k.mu.Lock()
	now, running, leaving := k.followed, k.catcher, k.leaving
	k.mu.Unlock()
	if leaving && running == nil {
		k.resign("leaving") // in sync for a moment it would only hold its master up
		return
	}
	if running != nil && now.kind == dutySlave && now.master == d.master && now.partition == d.partition &&
		(now.epoch == d.epoch || running.Status().Connected) {
		// A new epoch is worth an attempt at once by one that cannot connect.
		return
	}
	k.stopCatcher()
	k.resign("slave")
	k.start(ctx, d)
	k.logger.Info("following", "partition", d.partition, "master", d.master, "epoch", d.epoch)
}

// fill takes up the duty of the master of a partition that is being added: it is
// filled in a history of its own, which others can follow from the start.
func (k *roleKeeper) fill(ctx context.Context, d duty) time.Duration {
	k.mu.Lock()
	now, running, held := k.followed, k.catcher, k.tenure
	k.mu.Unlock()
	if running == nil || now.kind != dutyFill || now.partition != d.partition || now.epoch != d.epoch || !held.held {
		k.stopCatcher()
		k.resign("filling")
		lsn, err := k.db.BeginCopy(ctx, copyEpoch(d), d.partition)
		if err != nil {
			if ctx.Err() == nil {
				k.logger.Error("cannot begin to fill a partition, trying again", "partition", d.partition, "error", err)
			}
			return roleRetry
		}
		k.mu.Lock()
		k.tenure = tenure{held: true, partition: d.partition, granted: d.epoch, epoch: lsn.Epoch}
		held = k.tenure
		k.mu.Unlock()
		k.openCopy(d.partition, lsn.Epoch)
		k.start(ctx, d)
		k.logger.Info("filling a new partition", "partition", d.partition, "epoch", lsn.Epoch, "lsn", lsn.String())
	}
	k.source.Lead(held.epoch, k.streaming(d.members))
	return 0
}

// start runs the catcher of a duty.
func (k *roleKeeper) start(ctx context.Context, d duty) {
	c := k.catchUp(d)
	runCtx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Run(runCtx); err != nil && runCtx.Err() == nil {
			k.logger.Error("catching up ended", "partition", d.partition, "master", d.master, "error", err)
		}
	}()
	k.mu.Lock()
	k.catcher, k.followed = c, d
	k.stop = func() { cancel(); <-done }
	k.mu.Unlock()
}

// stopCatcher ends what catches up; when it returns nothing more is applied.
func (k *roleKeeper) stopCatcher() {
	k.mu.Lock()
	stop := k.stop
	k.mu.Unlock()
	if stop == nil {
		return
	}
	stop()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.former.add(k.catcher.Status())
	k.catcher, k.followed, k.stop = nil, duty{}, nil
}

// snapshot returns what runs, for reports.
func (k *roleKeeper) snapshot() (tenure, catcher, catchUps) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tenure, k.catcher, k.former
}
