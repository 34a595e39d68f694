package node

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/replication/history"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/topology"
)

const (
	// progressInterval is how often long work says how far it is.
	progressInterval = time.Second
	// resyncLook is how often it is looked whether a resync is over.
	resyncLook = 50 * time.Millisecond
)

const reasonNotReplica = "not_replica"

// resync makes this node, which must be a replica, catch up with its master anew,
// and returns when it is in sync. report is called every now and then; its error
// ends the waiting, not the resync.
func (s *Server) resync(ctx context.Context, want history.Tier, report func(replication.FollowerStatus) error) error {
	held, c, _ := s.roles.snapshot()
	follower, ok := c.(*replication.Follower)
	switch {
	case held.held:
		return refuseWork(reasonNotReplica, "this node is the master of partition %d; a resync would take the data that its replicas follow", held.partition)
	case c == nil:
		return refuseWork(reasonNotReplica, "this node has no partition")
	case !ok:
		return refuseWork("no_master", "the partition has no master to catch up with")
	}
	outcome, err := follower.Resync(want)
	if err != nil {
		return resyncError(err)
	}
	s.logger.Info("resync ordered", "tier", want.String())
	look := time.NewTicker(resyncLook)
	defer look.Stop()
	caughtUp := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-outcome:
			if err != nil {
				s.logger.Warn("resync failed", "tier", want.String(), "reason", reasonOf(resyncError(err)), "error", err)
				return resyncError(err)
			}
			caughtUp, outcome = true, nil
		case <-look.C:
		}
		st := follower.Status()
		if caughtUp {
			t := s.maps.table()
			switch _, now, _ := s.roles.snapshot(); {
			case now != c:
				return refuseWork(reasonNotReplica, "this node has another duty now")
			case !st.Connected:
				return refuseWork(orFailed(st.ErrorReason), "it had caught up, but lost its master before it was in sync: %s", st.Error)
			case t != nil && t.own.State == topology.Active && t.own.Role == topology.Slave:
				return nil
			}
		}
		if err := report(st); err != nil {
			return err
		}
	}
}

// orFailed is a reason, or the general one.
func orFailed(reason string) string {
	if reason == "" {
		return "resync_failed"
	}
	return reason
}

// resyncError gives an error of the replication its reason.
func resyncError(err error) error {
	var refused *replication.Error
	if errors.As(err, &refused) {
		return &workRefusal{refused.Reason, err}
	}
	return &workRefusal{"resync_failed", err}
}

// StartResync implements NodeService.
func (v *service) StartResync(req *agentv1.StartResyncRequest, stream grpc.ServerStreamingServer[agentv1.StartResyncResponse]) error {
	want, ok := tierOf(req.GetTier())
	if !ok {
		return rpcError(refuseWork("tier_not_possible", "tier %v is not known", req.GetTier()))
	}
	ctx, cancel := v.untilStopped(stream.Context())
	defer cancel()
	progress := func(st replication.FollowerStatus, done bool) *agentv1.StartResyncResponse {
		return &agentv1.StartResyncResponse{Progress: &agentv1.ResyncProgress{
			CatchUp: progressProto(st.Progress), Lsn: lsnProto(v.s.db.Position().LSN), MasterLsn: lsnProto(st.MasterLSN),
			Tier: tiers[st.Tier], Done: done,
		}}
	}
	var told time.Time
	var last replication.FollowerStatus
	err := v.s.resync(ctx, want, func(st replication.FollowerStatus) error {
		last = st
		if now := time.Now(); now.Sub(told) >= progressInterval {
			told = now
			return stream.Send(progress(st, false))
		}
		return nil
	})
	if err != nil {
		return rpcError(err)
	}
	if _, c, _ := v.s.roles.snapshot(); c != nil {
		last = c.Status()
	}
	return stream.Send(progress(last, true))
}

// tierOf is the tier that a request names; false for one that is not known.
func tierOf(t agentv1.Tier) (history.Tier, bool) {
	if t == agentv1.Tier_TIER_UNSPECIFIED {
		return history.TierNone, true
	}
	for tier, name := range tiers {
		if name == t {
			return tier, true
		}
	}
	return history.TierNone, false
}
