package admin

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/controller/standalone"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// Plan tells what the spec of a manifest would bring about from the state that the
// controller has now.
func (c *controllerService) Plan(ctx context.Context, req *controllerv1.PlanRequest) (*controllerv1.PlanResponse, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, err
	}
	cluster, err := standalone.ParseManifest([]byte(req.GetManifest()))
	if err != nil {
		return nil, refusal(codes.InvalidArgument, core.ReasonSpecInvalid, "manifest: %v", err)
	}
	state, err := l.Snapshot(ctx)
	switch {
	case errors.Is(err, runtime.ErrStopped):
		return nil, c.s.notLeader()
	case err != nil:
		return nil, status.FromContextError(err).Err()
	}
	return &controllerv1.PlanResponse{Plan: PlanProto(state, core.MakePlan(state, runtime.SpecOf(cluster.Spec, 0)))}, nil
}

var changeKinds = map[core.ChangeKind]controllerv1.PlannedChangeKind{
	core.ChangeNodes:     controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_NODES,
	core.ChangeJoin:      controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_JOIN,
	core.ChangeLeave:     controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_LEAVE,
	core.ChangeDuty:      controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_DUTY,
	core.ChangeHandover:  controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_HANDOVER,
	core.ChangePartition: controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_PARTITION,
	core.ChangeOption:    controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_OPTION,
}

// PlanProto translates a plan that was made from a state.
func PlanProto(from core.State, p core.Plan) *controllerv1.Plan {
	out := &controllerv1.Plan{
		MapVersion: from.Durable.Version, Settled: p.Settled, Phase: string(p.Status.Phase),
		NodesReady: uint32(p.Status.NodesReady), NodesWanted: uint32(p.Status.NodesWanted), MastersUp: uint32(p.Status.MastersUp),
	}
	for _, c := range p.Changes {
		out.Changes = append(out.Changes, &controllerv1.PlannedChange{
			Kind: changeKinds[c.Kind], Node: c.Node, Partition: agentv1.OptionalPartition(c.Partition), Option: c.Option,
			OldValue: c.Old, NewValue: c.New, Reason: c.Reason,
		})
	}
	for _, r := range p.Refusals {
		out.Refusals = append(out.Refusals, &controllerv1.PlannedRefusal{Reason: r.Reason, Message: r.Message})
	}
	for _, c := range p.Status.Conditions {
		out.Conditions = append(out.Conditions, &controllerv1.PlannedCondition{Type: c.Type, Status: c.True, Reason: c.Reason, Message: c.Message})
	}
	return out
}
