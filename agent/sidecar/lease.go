package sidecar

import (
	"context"
	"time"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// leaseTimeout bounds the hand-over of a lease: a later one is worth more.
const leaseTimeout = time.Second

// leaseHold is how often it is looked whether a lease can be handed over.
const leaseHold = 10 * time.Millisecond

// leases holds the last lease of the controller until it is handed to flared.
type leases chan *agentv1.LeaseGrant

func newLeases() leases { return make(leases, 1) }

// put takes the place of a lease that was not handed over yet. It has one caller at
// a time.
func (l leases) put(grant *agentv1.LeaseGrant) {
	for {
		select {
		case l <- grant:
			return
		default:
		}
		select {
		case <-l:
		default:
		}
	}
}

// handLeases hands each lease to flared. What it is worth flared alone decides, by
// its own clock.
func (a *Agent) handLeases(ctx context.Context, node agentv1.NodeServiceClient) {
	refused := ""
	for {
		var grant *agentv1.LeaseGrant
		select {
		case <-ctx.Done():
			return
		case grant = <-a.leases:
		}
		for !a.snapshot().MayLead(grant.GetInstance()) {
			if !pause(ctx, leaseHold) {
				return
			}
			select {
			case grant = <-a.leases:
			default:
			}
		}
		call, cancel := context.WithTimeout(ctx, leaseTimeout)
		resp, err := node.RenewLease(call, &agentv1.RenewLeaseRequest{Lease: grant})
		cancel()
		reason := resp.GetReason()
		if err != nil {
			reason = "not_delivered"
		}
		if reason != refused && reason != "" && ctx.Err() == nil {
			a.log.Warn("flared did not take a lease", "reason", reason, "epoch", grant.GetEpoch(), "error", err)
		}
		refused = reason
	}
}
