package node

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

const (
	// defaultHandoverDeadline is how long a replica may take to come close enough for
	// writes to be paused.
	defaultHandoverDeadline = 5 * time.Second
	// maxHandoverDeadline bounds what may be asked for instead.
	maxHandoverDeadline = time.Minute
	// handoverLag is how many batches a replica may lack when writes are paused.
	handoverLag = 256
	// handoverPatience bounds the time for which writes go on waiting when the index
	// was asked and nobody tells what it did.
	handoverPatience = 30 * time.Second
	// handoverRetry is the time between two times that the index is asked.
	handoverRetry = 100 * time.Millisecond
	// relayChance is how much longer writes wait so that nodes that get them one by one
	// have them all.
	relayChance = 300 * time.Millisecond
	// handoverTick is the time between two looks at how far the replicas are.
	handoverTick = time.Millisecond
)

// A handoverRequest is what is asked for.
type handoverRequest struct {
	target   string        // node key; empty: who lacks least
	deadline time.Duration // until writes are paused; 0: the default
	patience time.Duration // with an index that was asked and does not answer; 0: the default
	dryRun   bool
}

// A handoverReport is what came of a handover; the zero value is none.
type handoverReport struct {
	from, to string
	epoch    uint64       // the target's; 0 if it did not become the master
	lsn      topology.LSN // where it took over, or would have
	lag      uint64       // batches that it lacked in the beginning
	at       time.Time    // when it began
	paused   time.Duration
	reason   string // why it did not; empty if it did
	phases   []handoverStep
}

// handovers carries them out, one at a time, and remembers the last one.
type handovers struct {
	s    *Server
	slot chan struct{} // taken by the one that runs

	mu            sync.Mutex
	last          handoverReport
	count, failed uint64
}

func newHandovers(s *Server) *handovers {
	return &handovers{s: s, slot: make(chan struct{}, 1)}
}

// snapshot returns what is known, for reports.
func (k *handovers) snapshot() (last handoverReport, count, failed uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last, k.count, k.failed
}

// run hands this node's mastership over, unless another handover is under way. The
// end of ctx takes back what can be taken back. The error is a *workRefusal.
func (k *handovers) run(ctx context.Context, req handoverRequest) (handoverReport, error) {
	select {
	case k.slot <- struct{}{}:
		defer func() { <-k.slot }()
	default:
		return handoverReport{}, refuseWork(reasonAlreadyRunning, "another handover is under way")
	}
	return k.handOver(ctx, req)
}

// leave is run for a node that is about to stop: it waits for a handover that is
// under way, which may be all that is needed, and tells whether there is nothing
// left to hand over.
func (k *handovers) leave(ctx context.Context) bool {
	select {
	case k.slot <- struct{}{}:
		defer func() { <-k.slot }()
	case <-ctx.Done():
		return false
	}
	_, err := k.handOver(ctx, handoverRequest{patience: leaveTimeout})
	if err != nil {
		k.s.logger.Info("leaving without a handover", "reason", reasonOf(err), "error", err)
	}
	return err == nil
}

func (k *handovers) handOver(ctx context.Context, req handoverRequest) (handoverReport, error) {
	s := k.s
	d := dutyOf(s.maps.table())
	held, _, _ := s.roles.snapshot()
	r := handoverReport{from: s.self, to: req.target, at: s.clock(), lsn: s.db.Position().LSN}
	if d.kind != dutyMaster || !held.held || held.partition != d.partition || held.granted != d.epoch {
		return r, refuseWork(reasonNotMaster, "this node is not the active master of a partition")
	}
	if !s.index.extended.Load() {
		return r, refuseWork(reasonIndexRefused+":not_supported", "the index does not know how to hand a role over")
	}
	target, refusal := handoverTarget(s.source.Replicas(), d.members, req.target)
	switch refusal {
	case reasonTargetNotInSync:
		return r, refuseWork(refusal, "%s is no connected, active replica in sync of partition %d", req.target, d.partition)
	case reasonNoInSyncReplica:
		return r, refuseWork(refusal, "partition %d has no connected, active replica in sync", d.partition)
	}
	r.to, r.lag = target.Key, target.LagBatches
	if req.dryRun {
		return r, nil
	}

	h := newHandover(target.Key, held.epoch, handoverLimits{
		approach: cmp.Or(req.deadline, defaultHandoverDeadline), lag: handoverLag,
		// A write that waits must not wait in vain: it is given failoverWait in all.
		drain: s.failoverWait / 2, ask: cmp.Or(req.patience, handoverPatience), retry: handoverRetry,
	}, time.Now())
	s.logger.Info("handing over", "partition", d.partition, "to", target.Key, "epoch", held.epoch, "lag_batches", target.LagBatches)
	k.drive(ctx, h, d.partition, target.Session)
	return k.report(h, r, d.partition)
}

// drive runs the machine to its end, or until the server stops.
func (k *handovers) drive(ctx context.Context, h *handover, partition int, session uint64) {
	s := k.s
	type answer struct {
		handoverAnswer
		reason string
	}
	answers := make(chan answer, 1)
	tick := time.NewTicker(handoverTick)
	defer tick.Stop()
	cancelled := ctx.Done()
	var paused uint64 // by the clock of leases: one that is asked for later is of writes after this handover
	for action := handoverNothing; !h.over() || action != handoverNothing; {
		switch action {
		case handoverPause:
			if s.roles.pause(h.epoch, "handover") {
				at := s.gate.leaseStatus().at
				s.source.ReleaseLease(at)
				paused = uint64(at)
				h.paused(s.db.Position().LSN, time.Now())
				action = handoverNothing
				continue
			}
			action = h.unpaused(time.Now())
			continue
		case handoverAsk:
			s.logger.Info("replicas have everything, asking the index", "to", h.target, "lsn", h.head.String(), "paused", h.waited(time.Now()).String())
			go func() {
				relays, cancel := context.WithTimeout(s.ctx, relayChance)
				s.relays.awaitAll(relays, h.head)
				cancel()
				a, reason := s.index.handOver(s.ctx, h.target, h.epoch, session, paused)
				answers <- answer{a, reason}
			}()
		case handoverResume:
			s.roles.resume(h.epoch)
			return
		}
		wake := s.changed.wait()
		if action = h.look(k.view(h, partition), time.Now()); action != handoverNothing || h.over() {
			continue
		}
		select {
		case <-wake:
		case <-tick.C:
		case a := <-answers:
			action = h.answered(a.handoverAnswer, a.reason, time.Now())
		case <-cancelled:
			action, cancelled = h.cancel(time.Now()), nil
		case <-s.ctx.Done():
			return
		}
	}
}

// view looks at what the machine has to know.
func (k *handovers) view(h *handover, partition int) handoverView {
	s := k.s
	held, _, _ := s.roles.snapshot()
	v := handoverView{leads: held.held && held.partition == partition && held.epoch == h.epoch}
	if t := s.maps.table(); partition < len(t.view.Partitions) {
		v.master, v.epoch = t.view.Partitions[partition].Master, t.view.Partitions[partition].Epoch
	}
	for _, r := range s.source.Replicas() {
		if r.Key == h.target {
			v.inSync, v.lag = r.InSync && r.Connected, r.LagBatches
		}
	}
	v.drained = v.lag == 0 && s.source.Acknowledged(h.head)
	return v
}

// report makes the report of a handover that is over, and keeps it.
func (k *handovers) report(h *handover, r handoverReport, partition int) (handoverReport, error) {
	r.paused, r.reason, r.phases = h.waited(time.Now()), h.reason, h.passed
	if !h.head.IsZero() {
		r.lsn = h.head
	}
	if !h.over() {
		r.reason = reasonCancelled // the process stops
	}
	k.mu.Lock()
	k.count++
	if r.reason == "" {
		r.epoch = h.epoch + 1
	} else {
		k.failed++
	}
	k.last = r
	k.mu.Unlock()
	k.s.changed.fire()

	log := k.s.logger.With("partition", partition, "to", r.to, "lsn", r.lsn.String(), "paused", r.paused.String())
	if r.reason != "" {
		log.Warn("not handed over", "reason", r.reason)
		return r, refuseWork(r.reason, "%s did not take partition %d over, writes were paused for %v", r.to, partition, r.paused)
	}
	log.Info("handed over", "epoch", r.epoch)
	return r, nil
}
