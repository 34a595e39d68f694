package node

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// errorDomain is the domain of the reasons in gRPC errors.
const errorDomain = "flarekv.io"

// ScanOrphans implements NodeService.
func (v *service) ScanOrphans(_ *agentv1.ScanOrphansRequest, stream grpc.ServerStreamingServer[agentv1.ScanOrphansResponse]) error {
	return v.orphans(stream.Context(), v.s.scanOrphans, func(p *agentv1.OrphanProgress) error {
		return stream.Send(&agentv1.ScanOrphansResponse{Progress: p})
	})
}

// PurgeOrphans implements NodeService.
func (v *service) PurgeOrphans(req *agentv1.PurgeOrphansRequest, stream grpc.ServerStreamingServer[agentv1.PurgeOrphansResponse]) error {
	purge := func(ctx context.Context, report func(orphanProgress) error) (orphanProgress, error) {
		return v.s.purgeOrphans(ctx, int(min(req.GetRate(), 1<<30)), report)
	}
	return v.orphans(stream.Context(), purge, func(p *agentv1.OrphanProgress) error {
		return stream.Send(&agentv1.PurgeOrphansResponse{Progress: p})
	})
}

// orphans runs work and sends how far it is.
func (v *service) orphans(ctx context.Context, work func(context.Context, func(orphanProgress) error) (orphanProgress, error),
	send func(*agentv1.OrphanProgress) error) error {
	ctx, cancel := v.untilStopped(ctx)
	defer cancel()
	told := time.Now()
	p, err := work(ctx, func(p orphanProgress) error {
		if now := time.Now(); now.Sub(told) >= progressInterval {
			told = now
			return send(p.proto(false))
		}
		return ctx.Err()
	})
	if err != nil {
		return rpcError(err)
	}
	return send(p.proto(true))
}

func (p orphanProgress) proto(done bool) *agentv1.OrphanProgress {
	return &agentv1.OrphanProgress{Keys: p.keys, Orphans: p.orphans, Bytes: p.bytes, Done: done}
}

// rpcError is an error of work as gRPC tells it, with its reason in the details.
func rpcError(err error) error {
	code := codes.Internal
	var refused *workRefusal
	switch {
	case errors.As(err, &refused):
		code = codes.FailedPrecondition
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return withReason(code, reasonOf(err), err.Error())
}
