package node

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// HandOverMaster implements NodeService.
func (v *service) HandOverMaster(ctx context.Context, req *agentv1.HandOverMasterRequest) (*agentv1.HandOverMasterResponse, error) {
	deadline := req.GetDeadline().AsDuration()
	if deadline < 0 || deadline > maxHandoverDeadline {
		return nil, withReason(codes.InvalidArgument, "bad_deadline", "deadline is "+deadline.String()+", want up to "+maxHandoverDeadline.String()+", or none for "+defaultHandoverDeadline.String())
	}
	r, err := v.s.handing.run(ctx, handoverRequest{target: req.GetTarget(), deadline: deadline, dryRun: req.GetDryRun()})
	if err != nil {
		return nil, handoverError(err)
	}
	return &agentv1.HandOverMasterResponse{Handover: r.proto()}, nil
}

// handoverError is a refusal as gRPC tells it.
func handoverError(err error) error {
	code := codes.Internal
	var refused *workRefusal
	if !errors.As(err, &refused) {
		return withReason(code, reasonOf(err), err.Error())
	}
	switch reason, _, _ := strings.Cut(refused.reason, ":"); reason {
	case reasonDeadline:
		code = codes.DeadlineExceeded
	case reasonCancelled:
		code = codes.Canceled
	case reasonIndexUnreach:
		code = codes.Unavailable
	case reasonAlreadyRunning:
		code = codes.Aborted
	default:
		code = codes.FailedPrecondition
	}
	return withReason(code, refused.reason, err.Error())
}

// withReason is a gRPC error with a machine-readable reason in its details.
func withReason(code codes.Code, reason, message string) error {
	st := status.New(code, message)
	if with, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain}); err == nil {
		st = with
	}
	return st.Err()
}

func (r handoverReport) proto() *agentv1.Handover {
	p := &agentv1.Handover{
		From: r.from, To: r.to, Epoch: r.epoch, Lsn: lsnProto(r.lsn), At: timestamppb.New(r.at),
		Paused: durationpb.New(r.paused), Reason: r.reason, LagBatches: r.lag,
	}
	for _, s := range r.phases {
		p.Phases = append(p.Phases, &agentv1.HandoverPhase{Name: string(s.phase), Took: durationpb.New(s.took)})
	}
	return p
}

// handoverStatus adds what is known of handovers, and of how many nodes are in sync.
func (s *Server) handoverStatus(st *agentv1.NodeStatus, leads bool) {
	last, count, failed := s.handing.snapshot()
	if !last.at.IsZero() {
		st.LastHandover = last.proto()
	}
	st.Handovers, st.HandoversFailed = count, failed
	if leads {
		inSync, least := s.source.InSync()
		st.InSyncNodes, st.MinInSync = uint32(inSync), uint32(least)
	}
}
