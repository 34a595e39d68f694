package sidecar

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// catchUpInterval is the longest time between two statuses of a watch while
// something catches up: one that hangs has to be seen to hang.
const catchUpInterval = time.Second

// always is an interval for follow that does not depend on the status.
func always(d time.Duration) func(*agentv1.AgentStatus) time.Duration {
	return func(*agentv1.AgentStatus) time.Duration { return d }
}

// whileCatchingUp is an interval for follow that there is only while this node or
// one of its replicas catches up.
func whileCatchingUp(st *agentv1.AgentStatus) time.Duration {
	n := st.GetFlared()
	if st.GetFlaredAlive() && (n.GetCatchUp().GetProgress() != nil ||
		slices.ContainsFunc(n.GetReplicas(), func(r *agentv1.ReplicaStatus) bool { return r.GetProgress() != nil })) {
		return catchUpInterval
	}
	return 0
}

// Resync passes the order on to flared.
func (s agentService) Resync(req *agentv1.ResyncRequest, stream grpc.ServerStreamingServer[agentv1.ResyncResponse]) error {
	return s.a.relay(stream.Context(), func(ctx context.Context, node agentv1.NodeServiceClient) error {
		from, err := node.StartResync(ctx, &agentv1.StartResyncRequest{Tier: req.GetTier()})
		return relayAll(from, err, func(r *agentv1.StartResyncResponse) error {
			return stream.Send(&agentv1.ResyncResponse{Progress: r.GetProgress()})
		})
	})
}
