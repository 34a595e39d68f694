package sidecar

import (
	"cmp"
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// Reasons for which an order is not carried out that flared does not give.
const (
	reasonUnknownOrder = "unknown_order"
	reasonNotDelivered = "not_delivered"
)

// Ordered is what has become of an order of the controller.
type Ordered struct {
	At     time.Time
	Kind   agentv1.OrderKind
	Report *agentv1.OrderReport
}

func (e Ordered) at() time.Time { return e.At }

// orders carries out what the controller tells this node to do. What becomes of it
// goes with the status, and so reaches whichever controller leads by then.
type orders struct {
	mu   sync.Mutex
	last map[agentv1.OrderKind]uint64 // number of the last one that was begun
}

// obey begins an order, unless it has begun already.
func (a *Agent) obey(ctx context.Context, o *agentv1.Order) {
	a.orders.mu.Lock()
	defer a.orders.mu.Unlock()
	if o.GetId() == a.orders.last[o.GetKind()] {
		return
	}
	if a.orders.last == nil {
		a.orders.last = map[agentv1.OrderKind]uint64{}
	}
	a.orders.last[o.GetKind()] = o.GetId()
	say := func(r *agentv1.OrderReport) {
		r.Id = o.GetId()
		a.observe(Ordered{At: time.Now(), Kind: o.GetKind(), Report: r})
	}
	a.log.Info("ordered by the controller", "order", o.GetId(), "kind", o.GetKind(), "target", o.GetTarget())
	say(&agentv1.OrderReport{Running: true})
	a.applying.Go(func() {
		count, err := a.carryOut(ctx, o)
		r := &agentv1.OrderReport{Count: count}
		if err != nil {
			r.Reason = cmp.Or(reasonOf(err), reasonNotDelivered)
			a.log.Warn("order was not carried out", "order", o.GetId(), "kind", o.GetKind(), "reason", r.Reason, "error", err)
		}
		say(r)
	})
}

// carryOut has flared do what is ordered.
func (a *Agent) carryOut(ctx context.Context, o *agentv1.Order) (count uint64, err error) {
	err = a.relay(ctx, func(ctx context.Context, node agentv1.NodeServiceClient) error {
		switch o.GetKind() {
		case agentv1.OrderKind_ORDER_KIND_HANDOVER:
			_, err := node.HandOverMaster(ctx, &agentv1.HandOverMasterRequest{Target: o.GetTarget()})
			return err
		case agentv1.OrderKind_ORDER_KIND_PURGE:
			from, err := node.PurgeOrphans(ctx, &agentv1.PurgeOrphansRequest{})
			return relayAll(from, err, func(r *agentv1.PurgeOrphansResponse) error {
				count = r.GetProgress().GetOrphans()
				return nil
			})
		}
		return refusal(codes.Unimplemented, reasonUnknownOrder, "the controller orders something that this agent does not know: "+o.GetKind().String())
	})
	return count, err
}
