package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/flarekv/flare/controller/runtime"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// Domain of the reasons in gRPC errors.
const Domain = "flarekv.io"

// Reasons in gRPC errors.
const (
	ReasonNotLeader       = "not_leader"
	ReasonNodeInvalid     = "node_invalid"
	ReasonNodeChanged     = "node_changed"
	ReasonReportTimeout   = "report_timeout"
	ReasonLinkReplaced    = "link_replaced"
	ReasonAgentOfNoPod    = "agent_of_no_pod"
	ReasonAgentOfOtherPod = "agent_of_other_pod"
	ReasonInternalFailure = "internal"
	ReasonRounds          = "bad_rounds"
)

// refusal is a gRPC error with a machine-readable reason.
func refusal(code codes.Code, reason, format string, args ...any) error {
	st := status.New(code, fmt.Sprintf(format, args...))
	if with, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: Domain}); err == nil {
		st = with
	}
	return st.Err()
}

func (s *Server) newGRPC(calls *grpcprom.ServerMetrics) *grpc.Server {
	onPanic := recovery.WithRecoveryHandlerContext(func(ctx context.Context, p any) error {
		s.log.ErrorContext(ctx, "a call panicked", "panic", p, "stack", string(debug.Stack()))
		return refusal(codes.Internal, ReasonInternalFailure, "internal failure, see the controller's log")
	})
	logger := logging.LoggerFunc(func(ctx context.Context, level logging.Level, msg string, fields ...any) {
		s.log.Log(ctx, slog.Level(level), msg, fields...)
	})
	logOpts := []logging.Option{
		logging.WithLogOnEvents(logging.FinishCall),
		logging.WithLevels(callLevel),
		logging.WithDurationField(logging.DurationToDurationField),
	}
	g := grpc.NewServer(
		// The outermost sees what the inner ones made of a panic.
		grpc.ChainUnaryInterceptor(
			calls.UnaryServerInterceptor(),
			logging.UnaryServerInterceptor(logger, logOpts...),
			recovery.UnaryServerInterceptor(onPanic),
		),
		grpc.ChainStreamInterceptor(
			calls.StreamServerInterceptor(),
			logging.StreamServerInterceptor(logger, logOpts...),
			recovery.StreamServerInterceptor(onPanic),
		),
		// A machine that lost power sends no FIN: without pings its watches would stay.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	controllerv1.RegisterControllerServiceServer(g, &controllerService{s: s})
	controllerv1.RegisterAgentLinkServiceServer(g, &agentLinkService{s: s})
	healthpb.RegisterHealthServer(g, s.health)
	reflection.Register(g)
	return g
}

// callLevel keeps the log readable: what a standby or an ended process answers
// is normal life.
func callLevel(code codes.Code) logging.Level {
	switch code {
	case codes.OK, codes.Canceled, codes.FailedPrecondition:
		return logging.LevelDebug
	case codes.Unknown, codes.Internal, codes.DataLoss:
		return logging.LevelError
	default:
		return logging.LevelInfo
	}
}

// lead returns the cluster that is led, or the error to answer with.
func (s *Server) lead() (*leading, error) {
	if l := s.cluster.Load(); l != nil {
		return l, nil
	}
	return nil, s.notLeader()
}

func (s *Server) notLeader() error {
	r, _ := s.status.Readiness()
	if r.LeaderName != "" && r.LeaderName != s.name {
		return refusal(codes.FailedPrecondition, ReasonNotLeader, "%s does not lead, %s does", s.name, r.LeaderName)
	}
	return refusal(codes.FailedPrecondition, ReasonNotLeader, "%s does not lead (%s)", s.name, r.Reason)
}

// controllerService answers people.
type controllerService struct {
	controllerv1.UnimplementedControllerServiceServer
	s *Server
}

func (c *controllerService) GetTopology(context.Context, *controllerv1.GetTopologyRequest) (*controllerv1.GetTopologyResponse, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, err
	}
	return &controllerv1.GetTopologyResponse{Topology: topologyProto(l.Topology())}, nil
}

// WatchTopology sends the newest topology after each change; changes that come
// faster than the peer reads are told as one.
func (c *controllerService) WatchTopology(_ *controllerv1.WatchTopologyRequest, stream grpc.ServerStreamingServer[controllerv1.WatchTopologyResponse]) error {
	l, err := c.s.lead()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(l.over, cancel)()
	err = l.Watch(ctx, func(t runtime.Topology) error {
		return stream.Send(&controllerv1.WatchTopologyResponse{Topology: topologyProto(t)})
	})
	switch {
	case stream.Context().Err() != nil:
		return status.FromContextError(stream.Context().Err()).Err()
	case l.over.Err() != nil || errors.Is(err, runtime.ErrStopped):
		return c.s.notLeader()
	default:
		return err
	}
}
