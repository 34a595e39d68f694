package sidecar

import (
	"context"

	"google.golang.org/grpc"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// CreateCheckpoint passes the order on to flared.
func (s agentService) CreateCheckpoint(req *agentv1.CreateCheckpointRequest, stream grpc.ServerStreamingServer[agentv1.CreateCheckpointResponse]) error {
	return s.a.relay(stream.Context(), func(ctx context.Context, node agentv1.NodeServiceClient) error {
		from, err := node.MakeBackup(ctx, &agentv1.MakeBackupRequest{Name: req.GetDirectory(), BytesPerSecond: req.GetBytesPerSecond()})
		return relayAll(from, err, func(r *agentv1.MakeBackupResponse) error {
			return stream.Send(&agentv1.CreateCheckpointResponse{Progress: r.GetProgress()})
		})
	})
}

// ListCheckpoints passes the question on to flared.
func (s agentService) ListCheckpoints(ctx context.Context, _ *agentv1.ListCheckpointsRequest) (resp *agentv1.ListCheckpointsResponse, err error) {
	err = s.a.relay(ctx, func(ctx context.Context, node agentv1.NodeServiceClient) error {
		r, err := node.ListBackups(ctx, &agentv1.ListBackupsRequest{})
		resp = &agentv1.ListCheckpointsResponse{Backups: r.GetBackups(), Directory: r.GetDirectory()}
		return err
	})
	return resp, err
}

// DeleteCheckpoint passes the order on to flared.
func (s agentService) DeleteCheckpoint(ctx context.Context, req *agentv1.DeleteCheckpointRequest) (*agentv1.DeleteCheckpointResponse, error) {
	err := s.a.relay(ctx, func(ctx context.Context, node agentv1.NodeServiceClient) error {
		_, err := node.DropBackup(ctx, &agentv1.DropBackupRequest{Name: req.GetDirectory()})
		return err
	})
	return &agentv1.DeleteCheckpointResponse{}, err
}
