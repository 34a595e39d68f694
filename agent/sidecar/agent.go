// Package sidecar is the agent that stands beside one flared: it brings the
// mounted configuration into the running process and says, to the controller, to
// people and to machines, how the process and its configuration are.
//
// The decisions are in [Step], a pure function from what happened to what is
// known. Around it, each with a file of its own:
//
//	flared.go      flared's status stream on a Unix socket, and applying a file
//	directory.go   the mounted ConfigMap
//	controller.go  reports to the leading controller
//	lease.go       the controller's leases, handed to flared
//	orders.go      what the controller tells the node to do
//	grpc.go        the admin API for people, and gRPC health
//	http.go        probes and metrics
//
// The end of flared's stream is the end of its process, and is reported within
// the moment: a fail-over starts with it. The agent itself holds no state that
// matters; it may be restarted at any time.
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/topology"
)

// Settings are what an agent is told when it starts.
type Settings struct {
	Node       string // host:port under which flared registers at the index
	Zone       string // of the machine; may be empty
	Version    string // the agent's
	Socket     string // Unix socket of flared
	ConfigDir  string // holds extra.conf and generation
	Controller string // host:port of the leading controller; empty: there is none to report to

	// PollInterval is the time between two looks at ConfigDir when nothing says that
	// it changed; zero means 10 s.
	PollInterval time.Duration

	Registry *prometheus.Registry // receives the metrics and is what /metrics shows
	Logger   *slog.Logger         // nil: slog.Default()
}

// Listeners are the sockets of an agent. Serve closes them.
type Listeners struct {
	GRPC    net.Listener
	HTTP    net.Listener
	Metrics net.Listener
}

const (
	pollInterval = 10 * time.Second
	tickInterval = 500 * time.Millisecond
	// coalesce is the least time between two messages about changes that are not urgent.
	coalesce = 100 * time.Millisecond
	// shutdownTimeout bounds how long running calls may delay the end.
	shutdownTimeout = 2 * time.Second
)

// Agent is a running sidecar. Create it with New.
type Agent struct {
	set     Settings
	log     *slog.Logger
	confirm time.Duration // confirmTimeout, but in tests
	redial  time.Duration // redialTimeout, but in tests

	health *health.Server
	grpc   *grpc.Server

	leases leases // of the controller, for flared
	orders orders // of the controller

	ending   context.Context // done when watches have to end
	end      context.CancelFunc
	applying sync.WaitGroup

	mu      sync.Mutex
	state   State
	status  *agentv1.AgentStatus      // of state; read only
	changed chan struct{}             // closed when status is replaced
	apply   func(Apply)               // starts sending a file; nil before Serve
	node    agentv1.NodeServiceClient // flared; nil before Serve
}

// New returns an agent that does nothing yet. It registers its metrics in
// set.Registry.
func New(set Settings) (*Agent, error) {
	if _, _, err := topology.SplitKey(set.Node); err != nil {
		return nil, fmt.Errorf("node: want the host:port under which flared registers at the index: %w", err)
	}
	if set.Controller != "" {
		if host, port, err := net.SplitHostPort(set.Controller); err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("controller %q: want host:port, such as flare-controller:13120", set.Controller)
		}
	}
	if set.Socket == "" {
		return nil, errors.New("socket: want the path of flared's Unix socket, such as /run/flare/flared.sock")
	}
	if set.ConfigDir == "" {
		return nil, errors.New("config-dir: want the directory of " + ConfigFile + ", such as /etc/flared")
	}
	if set.PollInterval <= 0 {
		set.PollInterval = pollInterval
	}
	if set.Registry == nil {
		set.Registry = prometheus.NewRegistry()
	}
	if set.Logger == nil {
		set.Logger = slog.Default()
	}
	a := &Agent{
		set:     set,
		log:     set.Logger,
		confirm: confirmTimeout,
		redial:  redialTimeout,
		health:  health.NewServer(),
		changed: make(chan struct{}),
		leases:  newLeases(),
		state:   State{Node: set.Node, Zone: set.Zone, Version: set.Version, Started: time.Now()},
	}
	a.ending, a.end = context.WithCancel(context.Background())
	a.status = a.state.Status()
	var err error
	if a.grpc, err = a.newGRPC(); err != nil {
		return nil, err
	}
	if err := set.Registry.Register(collector{a}); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	// The agent's own services serve as long as there is an agent to ask.
	a.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	a.health.SetServingStatus(agentv1.AgentService_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	a.setHealth(Readiness{})
	return a, nil
}

// Serve works until ctx ends or a socket fails, and returns nil for the former.
// An agent serves once.
func (a *Agent) Serve(ctx context.Context, l Listeners) error {
	conn, err := dialFlared(a.set.Socket)
	if err != nil {
		return errors.Join(err, l.GRPC.Close(), l.HTTP.Close(), l.Metrics.Close())
	}
	defer conn.Close()
	node := agentv1.NewNodeServiceClient(conn)

	g, ctx := errgroup.WithContext(ctx)
	a.mu.Lock()
	a.node = node
	a.apply = func(act Apply) {
		a.applying.Go(func() { a.applyFile(ctx, node, act) })
	}
	a.mu.Unlock()

	// The directory is read once before flared is listened to, so that the first
	// report that shows flared alive also shows what it is going to be told.
	a.readDirectory()
	g.Go(func() error { a.watchDirectory(ctx); return nil })
	g.Go(func() error { a.watchFlared(ctx, node); return nil })
	g.Go(func() error { a.tick(ctx); return nil })
	g.Go(func() error { a.handLeases(ctx, node); return nil })
	if a.set.Controller != "" {
		g.Go(func() error { a.linkController(ctx); return nil })
	}
	a.serveGRPC(ctx, g, l.GRPC)
	a.serveHTTP(ctx, g, "http", l.HTTP, a.probes())
	a.serveHTTP(ctx, g, "metrics", l.Metrics, a.metrics())
	err = g.Wait()
	a.applying.Wait()
	return err
}

// observe takes one event in: the one place where the state changes.
func (a *Agent) observe(e Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.state
	next, act := Step(before, e)
	a.state = next
	if st := next.Status(); !proto.Equal(st, a.status) {
		a.status = st
		close(a.changed)
		a.changed = make(chan struct{})
	}
	now := next.Readiness(e.at())
	a.setHealth(now)
	a.logChange(before, next, now)
	if act != nil {
		a.apply(*act)
	}
}

func (a *Agent) logChange(before, next State, now Readiness) {
	switch b, n := before.Flared, next.Flared; {
	case n.Alive && (!b.Alive || b.Status.GetInstance() != n.Status.GetInstance()):
		a.log.Info("flared is up", "instance", n.Status.GetInstance(), "version", n.Status.GetVersion())
	case b.Alive && !n.Alive:
		a.log.Warn("flared has ended", "instance", n.Status.GetInstance(), "ended", n.Restarts)
	case n.Alive && (b.Status.GetServing() != n.Status.GetServing() || b.Status.GetRole() != n.Status.GetRole() || b.Status.GetState() != n.Status.GetState()):
		a.log.Info("flared changed", "ready", now.Ready, "reason", now.Reason, "role", n.Status.GetRole(), "state", n.Status.GetState(),
			"partition", partition(n.Status), "map_version", n.Status.GetMapVersion())
	}
	b, n := before.Config, next.Config
	attrs := []any{"hash", n.File.Hash, "generation", n.File.Generation, "applied_hash", n.Applied, "message", n.Message}
	switch {
	case n.Rejected && (!b.Rejected || b.Message != n.Message || b.File.Hash != n.File.Hash):
		a.log.Error("configuration is rejected, the former one stays in force", attrs...)
	case n.Applies.Accepted > b.Applies.Accepted:
		a.log.Info("configuration is applied", attrs...)
	case n.Applies.Failed > b.Applies.Failed:
		a.log.Warn("configuration is not applied yet", attrs...)
	case n.Unread != "" && n.Unread != b.Unread:
		a.log.Error("configuration cannot be read, the former one stays in force", "error", n.Unread)
	}
}

// current returns the status with its uptime, and a channel that is closed when
// there is a newer one. The caller owns the status.
func (a *Agent) current() (*agentv1.AgentStatus, <-chan struct{}) {
	a.mu.Lock()
	st, changed, started := a.status, a.changed, a.state.Started
	a.mu.Unlock()
	st = proto.CloneOf(st)
	st.AgentStartedAt = timestamppb.New(started)
	st.AgentUptime = durationpb.New(time.Since(started).Truncate(time.Millisecond))
	return st, changed
}

func (a *Agent) snapshot() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

func (a *Agent) readiness() Readiness { return a.snapshot().Readiness(time.Now()) }

func (a *Agent) tick(ctx context.Context) {
	t := time.NewTicker(tickInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			a.observe(Tick{now})
		}
	}
}

// follow sends the status at once, then after each change, and at least as often as
// every says of the last one sent, unless that is zero, until ctx ends or send fails. Changes that are not
// urgent are told at most every coalesce. When ctx has ended a change that was
// not told yet is.
func (a *Agent) follow(ctx context.Context, every func(*agentv1.AgentStatus) time.Duration, send func(*agentv1.AgentStatus) error) error {
	var (
		sent    *agentv1.AgentStatus
		sentAt  time.Time
		pending = time.NewTimer(0)
		st      *agentv1.AgentStatus
	)
	defer pending.Stop()
	_, changed := a.current()
	for {
		select {
		case <-changed:
			st, changed = a.current()
			if sent != nil && !Urgent(sent, st) {
				if wait := coalesce - time.Since(sentAt); wait > 0 {
					pending.Reset(wait)
					continue
				}
			}
		case <-pending.C:
			st, changed = a.current()
		case <-ctx.Done():
			if newest, _ := a.current(); sent != nil && Urgent(sent, newest) {
				return send(newest)
			}
			return nil
		}
		if err := send(st); err != nil {
			return err
		}
		sent, sentAt = st, time.Now()
		if again := every(st); again > 0 {
			pending.Reset(again)
		} else {
			pending.Stop()
		}
	}
}

// pause waits for d, and reports false when ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
