// Package admin is the controller's face for people, agents, the kubelet and
// Prometheus: gRPC with the topology and the agents' links, HTTP with health and
// metrics.
//
// It decides nothing. What it shows comes from a [Cluster], which exists only
// while this process leads; without one every call is answered FAILED_PRECONDITION
// with reason not_leader, so that a caller can tell a standby from a failure.
// Servers listen on standbys too: a new leader must not lose time on sockets.
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// Cluster is what a leading controller lets this package see and tell; a
// *runtime.Runtime is one.
type Cluster interface {
	// Topology returns what the controller knows now.
	Topology() runtime.Topology
	// Snapshot returns a copy of the core's state, to try things on.
	Snapshot(ctx context.Context) (core.State, error)
	// Watch calls f with the topology at once and after each change, until ctx
	// ends, the controller stops or f fails.
	Watch(ctx context.Context, f func(runtime.Topology) error) error
	// Observe hands an input to the core.
	Observe(core.Input)
	// Apply has a command carried out, and returns when it is durable or refused.
	Apply(context.Context, core.Command) (core.Outcome, error)
	// Try tells what a command would bring about.
	Try(context.Context, core.Command) (core.Outcome, error)
}

// Defaults of Config.
const (
	// DefaultReportTimeout allows for three reports that did not come: agents send
	// at least one a second.
	DefaultReportTimeout = 3500 * time.Millisecond
	// shutdownTimeout bounds how long running calls may delay the end.
	shutdownTimeout = 2 * time.Second
)

// Config holds what a Server needs.
type Config struct {
	// Name of this process among the controllers, for people.
	Name string
	// Registry receives the metrics and is what /metrics shows.
	Registry *prometheus.Registry
	// ReportTimeout is the silence after which an agent's link counts as lost;
	// zero means DefaultReportTimeout.
	ReportTimeout time.Duration
	Logger        *slog.Logger
}

// Server serves the admin faces. Create it with New.
type Server struct {
	name          string
	reportTimeout time.Duration
	log           *slog.Logger

	metrics *Metrics
	status  *Health
	cluster atomic.Pointer[leading]
	links   links

	grpc    *grpc.Server
	health  *health.Server
	http    http.Handler
	scrapes http.Handler
}

// leading is a Cluster and the end of its reign.
type leading struct {
	Cluster
	over context.Context
}

// New returns a server that leads nothing yet. It registers its metrics in
// cfg.Registry.
func New(cfg Config) (*Server, error) {
	s := &Server{
		name:          cfg.Name,
		reportTimeout: cfg.ReportTimeout,
		log:           cfg.Logger,
		status:        newHealth(),
		health:        health.NewServer(),
	}
	if s.reportTimeout <= 0 {
		s.reportTimeout = DefaultReportTimeout
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.metrics = newMetrics(s)
	calls := grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram())
	for _, c := range append(s.metrics.collectors(), calls) {
		if err := cfg.Registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	s.grpc = s.newGRPC(calls)
	calls.InitializeMetrics(s.grpc)
	s.http = s.healthRoutes()
	s.scrapes = metricsRoutes(cfg.Registry)
	s.setServing(healthpb.HealthCheckResponse_NOT_SERVING)
	return s, nil
}

// Metrics returns the counters that others feed.
func (s *Server) Metrics() *Metrics { return s.metrics }

// Health returns what /readyz is told.
func (s *Server) Health() *Health { return s.status }

// Lead makes c the source of all answers until release is called, which ends
// the links and watches of c. One reign at a time.
func (s *Server) Lead(c Cluster) (release func()) {
	over, end := context.WithCancel(context.Background())
	l := &leading{Cluster: c, over: over}
	s.cluster.Store(l)
	s.setServing(healthpb.HealthCheckResponse_SERVING)
	return func() {
		if s.cluster.CompareAndSwap(l, nil) {
			s.setServing(healthpb.HealthCheckResponse_NOT_SERVING)
		}
		end()
	}
}

// Grant hands a lease to the agent of its node.
func (s *Server) Grant(g core.GrantLease) { s.links.grant(g) }

// Order hands an order to the agent of its node.
func (s *Server) Order(o core.OrderNode) { s.links.order(o) }

func (s *Server) setServing(st healthpb.HealthCheckResponse_ServingStatus) {
	for _, service := range []string{
		"",
		controllerv1.ControllerService_ServiceDesc.ServiceName,
		controllerv1.AgentLinkService_ServiceDesc.ServiceName,
	} {
		s.health.SetServingStatus(service, st)
	}
}

// Listeners are the sockets that Serve takes over and closes. A nil one is left
// out; HTTP and Metrics may be the same address only if they are the same
// listener, in which case it serves both.
type Listeners struct {
	GRPC    net.Listener
	HTTP    net.Listener
	Metrics net.Listener
}

// Serve serves until ctx ends or a listener fails.
func (s *Server) Serve(ctx context.Context, l Listeners) error {
	g, ctx := errgroup.WithContext(ctx)
	if l.GRPC != nil {
		g.Go(func() error { return s.serveGRPC(ctx, l.GRPC) })
	}
	page := s.http
	if l.HTTP != nil && l.HTTP == l.Metrics {
		mux := http.NewServeMux()
		mux.Handle("/", s.http)
		mux.Handle("/metrics", s.scrapes)
		page, l.Metrics = mux, nil
	}
	if l.HTTP != nil {
		g.Go(func() error { return serveHTTP(ctx, l.HTTP, page, s.log) })
	}
	if l.Metrics != nil {
		g.Go(func() error { return serveHTTP(ctx, l.Metrics, s.scrapes, s.log) })
	}
	return g.Wait()
}

func (s *Server) serveGRPC(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() {
		s.health.Shutdown()
		force := time.AfterFunc(shutdownTimeout, s.grpc.Stop)
		defer force.Stop()
		s.grpc.GracefulStop()
	})()
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve gRPC on %s: %w", l.Addr(), err)
	}
	return nil
}

func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    1 << 16,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if srv.Shutdown(end) != nil {
			srv.Close()
		}
	})()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
	}
	return nil
}
