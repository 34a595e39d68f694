package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// Domain of the reasons in gRPC errors.
const Domain = "flarekv.io"

// Reasons in gRPC errors.
const (
	ReasonShuttingDown = "shutting_down"
	ReasonInternal     = "internal"
)

// FlaredService is the name under which gRPC health tells whether flared serves.
const FlaredService = "flared"

// refusal is a gRPC error with a machine-readable reason.
func refusal(code codes.Code, reason, message string) error {
	st := status.New(code, message)
	if with, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: Domain}); err == nil {
		st = with
	}
	return st.Err()
}

func (a *Agent) newGRPC() (*grpc.Server, error) {
	calls := grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram())
	if err := a.set.Registry.Register(calls); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	onPanic := recovery.WithRecoveryHandlerContext(func(ctx context.Context, p any) error {
		a.log.ErrorContext(ctx, "a call panicked", "panic", p, "stack", string(debug.Stack()))
		return refusal(codes.Internal, ReasonInternal, "internal failure, see the agent's log")
	})
	logger := logging.LoggerFunc(func(ctx context.Context, level logging.Level, msg string, fields ...any) {
		a.log.Log(ctx, slog.Level(level), msg, fields...)
	})
	logOpts := []logging.Option{
		logging.WithLogOnEvents(logging.FinishCall),
		logging.WithLevels(callLevel),
		logging.WithDurationField(logging.DurationToDurationField),
	}
	g := grpc.NewServer(
		// The outermost sees what the inner ones made of a panic.
		grpc.ChainUnaryInterceptor(calls.UnaryServerInterceptor(),
			logging.UnaryServerInterceptor(logger, logOpts...), recovery.UnaryServerInterceptor(onPanic)),
		grpc.ChainStreamInterceptor(calls.StreamServerInterceptor(),
			logging.StreamServerInterceptor(logger, logOpts...), recovery.StreamServerInterceptor(onPanic)),
		// Without pings the watches of a machine that lost power would stay.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	agentv1.RegisterAgentServiceServer(g, agentService{a: a})
	healthpb.RegisterHealthServer(g, a.health)
	reflection.Register(g)
	calls.InitializeMetrics(g)
	return g, nil
}

// callLevel keeps the log readable: what people ask is normal life.
func callLevel(code codes.Code) logging.Level {
	switch code {
	case codes.OK, codes.Canceled, codes.Unavailable:
		return logging.LevelDebug
	case codes.Unknown, codes.Internal, codes.DataLoss:
		return logging.LevelError
	default:
		return logging.LevelInfo
	}
}

// setHealth tells gRPC health how flared is.
func (a *Agent) setHealth(r Readiness) {
	flared := healthpb.HealthCheckResponse_NOT_SERVING
	if r.Ready {
		flared = healthpb.HealthCheckResponse_SERVING
	}
	a.health.SetServingStatus(FlaredService, flared)
}

func (a *Agent) serveGRPC(ctx context.Context, g *errgroup.Group, l net.Listener) {
	g.Go(func() error {
		if err := a.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve gRPC: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		a.health.Shutdown()
		a.end()
		force := time.AfterFunc(shutdownTimeout, a.grpc.Stop)
		defer force.Stop()
		a.grpc.GracefulStop()
		return nil
	})
}

// agentService answers people. It only reads what the agent knows, and so
// answers at once, however flared is.
type agentService struct {
	agentv1.UnimplementedAgentServiceServer
	a *Agent
}

func (s agentService) GetStatus(context.Context, *agentv1.GetStatusRequest) (*agentv1.GetStatusResponse, error) {
	st, _ := s.a.current()
	return &agentv1.GetStatusResponse{Status: st}, nil
}

func (s agentService) WatchStatus(_ *agentv1.WatchStatusRequest, stream grpc.ServerStreamingServer[agentv1.WatchStatusResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.a.ending, cancel)()
	err := s.a.follow(ctx, whileCatchingUp, func(st *agentv1.AgentStatus) error {
		return stream.Send(&agentv1.WatchStatusResponse{Status: st})
	})
	if err == nil && s.a.ending.Err() != nil {
		return refusal(codes.Unavailable, ReasonShuttingDown, "the agent is shutting down")
	}
	return err
}
