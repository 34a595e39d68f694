package sidecar

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// OrphanScan passes the question on to flared.
func (s agentService) OrphanScan(_ *agentv1.OrphanScanRequest, stream grpc.ServerStreamingServer[agentv1.OrphanScanResponse]) error {
	return s.a.relay(stream.Context(), func(ctx context.Context, node agentv1.NodeServiceClient) error {
		from, err := node.ScanOrphans(ctx, &agentv1.ScanOrphansRequest{})
		return relayAll(from, err, func(r *agentv1.ScanOrphansResponse) error {
			return stream.Send(&agentv1.OrphanScanResponse{Progress: r.GetProgress()})
		})
	})
}

// OrphanPurge passes the order on to flared.
func (s agentService) OrphanPurge(req *agentv1.OrphanPurgeRequest, stream grpc.ServerStreamingServer[agentv1.OrphanPurgeResponse]) error {
	return s.a.relay(stream.Context(), func(ctx context.Context, node agentv1.NodeServiceClient) error {
		from, err := node.PurgeOrphans(ctx, &agentv1.PurgeOrphansRequest{Rate: req.GetRate()})
		return relayAll(from, err, func(r *agentv1.PurgeOrphansResponse) error {
			return stream.Send(&agentv1.OrphanPurgeResponse{Progress: r.GetProgress()})
		})
	})
}

// relay runs a call to flared until the agent ends. flared's own refusals go
// through with their reasons.
func (a *Agent) relay(ctx context.Context, call func(context.Context, agentv1.NodeServiceClient) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.ending, cancel)()
	node := a.awaitFlared(ctx)
	err := ctx.Err()
	switch {
	case node != nil:
		err = call(ctx, node)
	case err == nil:
		return refusal(codes.Unavailable, ReasonFlaredDown, "flared is not running, try again when it is")
	}
	switch {
	case err == nil:
		return nil
	case a.ending.Err() != nil:
		return refusal(codes.Unavailable, ReasonShuttingDown, "the agent is shutting down")
	case hasReason(err):
		return err
	case status.Code(err) == codes.Unavailable:
		return refusal(codes.Unavailable, ReasonFlaredDown, "flared ended: "+status.Convert(err).Message())
	}
	return err
}

// awaitFlared returns the client of a flared that is there; nil if there is none. One
// that has just been started may have a place in the map, and so be called, before its
// socket was tried again: it is given the time for that.
func (a *Agent) awaitFlared(ctx context.Context) agentv1.NodeServiceClient {
	over := time.NewTimer(a.redial)
	defer over.Stop()
	for {
		a.mu.Lock()
		node, alive, changed := a.node, a.state.Flared.Alive, a.changed
		a.mu.Unlock()
		if node != nil && alive {
			return node
		}
		select {
		case <-changed:
		case <-over.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func hasReason(err error) bool { return reasonOf(err) != "" }

// reasonOf returns the machine-readable reason of an error, if flared gave one.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// relayAll sends on what comes from a stream until its end.
func relayAll[T any](from grpc.ServerStreamingClient[T], err error, send func(*T) error) error {
	for err == nil {
		var m *T
		if m, err = from.Recv(); err == nil {
			err = send(m)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
