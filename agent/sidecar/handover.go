package sidecar

import (
	"context"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// Handover passes the order on to flared.
func (s agentService) Handover(ctx context.Context, req *agentv1.HandoverRequest) (*agentv1.HandoverResponse, error) {
	resp := &agentv1.HandoverResponse{}
	err := s.a.relay(ctx, func(ctx context.Context, node agentv1.NodeServiceClient) error {
		r, err := node.HandOverMaster(ctx, &agentv1.HandOverMasterRequest{
			Target: req.GetTarget(), Deadline: req.GetDeadline(), DryRun: req.GetDryRun(),
		})
		resp.Handover = r.GetHandover()
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}
