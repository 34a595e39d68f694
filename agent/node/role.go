package node

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/storage"
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
	// follow builds a follower for a slave's duty.
	follow func(duty) *replication.Follower

	stepMu sync.Mutex // held while roles change

	mu       sync.Mutex
	leaving  bool
	tenure   tenure
	follower *replication.Follower // nil when none runs
	followed duty                  // that it runs for
	stop     func()                // ends it and waits for its end
	former   catchUps              // of followers that ended
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
			k.gate.close(gateWait, "stopping")
			k.source.StepDown()
			k.stopFollower()
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
	d := dutyOf(k.maps.table())
	switch d.kind {
	case dutyMaster:
		return k.lead(ctx, d)
	case dutySlave:
		k.resign("slave")
		k.followMaster(ctx, d)
	default:
		k.resign("no_duty")
		k.stopFollower()
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
		k.resignTo(gateRefuse, p.refusal)
		k.stopFollower()
		return 0
	}
	if p.begin {
		k.resign("promotion")
		k.stopFollower()
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
		k.logger.Info("master", "partition", d.partition, "epoch", p.epoch, "lsn", lsn.String())
	}
	k.mu.Lock()
	k.tenure = tenure{held: true, partition: d.partition, granted: d.epoch, epoch: p.epoch}
	k.mu.Unlock()
	k.source.Lead(p.epoch, d.members)
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.leaving {
		k.gate.open(d.partition, p.epoch)
	}
	return 0
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

// leave closes the gate for good; the role itself stays until the map changes.
func (k *roleKeeper) leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.leaving = true
	k.gate.close(gateWait, "leaving")
}

func (k *roleKeeper) followMaster(ctx context.Context, d duty) {
	k.mu.Lock()
	now, running := k.followed, k.follower
	k.mu.Unlock()
	if running != nil && now.master == d.master && now.partition == d.partition &&
		(now.epoch == d.epoch || running.Status().Connected) {
		// A new epoch is worth an attempt at once by one that cannot connect.
		return
	}
	k.stopFollower()
	if d.master == "" {
		return
	}
	f := k.follow(d)
	runCtx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Run(runCtx); err != nil && runCtx.Err() == nil {
			k.logger.Error("following ended", "master", d.master, "error", err)
		}
	}()
	k.mu.Lock()
	k.follower, k.followed = f, d
	k.stop = func() { cancel(); <-done }
	k.mu.Unlock()
	k.logger.Info("following", "partition", d.partition, "master", d.master, "epoch", d.epoch)
}

// stopFollower ends the follower; when it returns nothing more is applied.
func (k *roleKeeper) stopFollower() {
	k.mu.Lock()
	stop := k.stop
	k.mu.Unlock()
	if stop == nil {
		return
	}
	stop()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.former.add(k.follower.Status())
	k.follower, k.followed, k.stop = nil, duty{}, nil
}

// snapshot returns what runs, for reports.
func (k *roleKeeper) snapshot() (tenure, *replication.Follower, catchUps) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tenure, k.follower, k.former
}
