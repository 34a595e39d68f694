package admin

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
	"github.com/flarekv/flare/proto/topology"
)

// fakeCluster is a Cluster that holds still.
type fakeCluster struct {
	mu      sync.Mutex
	topo    runtime.Topology
	state   core.State
	changed chan struct{}
	inputs  chan core.Input
	applied []core.Command
	outcome func(core.Command) core.Outcome // what comes of a command, tried or applied
	err     error
}

func newFakeCluster(t runtime.Topology) *fakeCluster {
	return &fakeCluster{topo: t, changed: make(chan struct{}), inputs: make(chan core.Input, 100)}
}

func (c *fakeCluster) Topology() runtime.Topology {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.topo
}

func (c *fakeCluster) Snapshot(context.Context) (core.State, error) { return c.state, nil }

func (c *fakeCluster) set(t runtime.Topology) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.topo = t
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *fakeCluster) Watch(ctx context.Context, f func(runtime.Topology) error) error {
	for {
		c.mu.Lock()
		t, changed := c.topo, c.changed
		c.mu.Unlock()
		if err := f(t); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *fakeCluster) Apply(ctx context.Context, cmd core.Command) (core.Outcome, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied = append(c.applied, cmd)
	return c.outcome(cmd), c.err
}

func (c *fakeCluster) Try(ctx context.Context, cmd core.Command) (core.Outcome, error) {
	return c.outcome(cmd), c.err
}

func (c *fakeCluster) Observe(in core.Input) { c.inputs <- in }

// next returns the next input, which must come soon.
func (c *fakeCluster) next(t *testing.T) core.Input {
	t.Helper()
	select {
	case in := <-c.inputs:
		return in
	case <-time.After(time.Minute):
		t.Fatal("nothing was observed")
		return nil
	}
}

// face is a running Server.
type face struct {
	*Server
	conn    *grpc.ClientConn
	http    string
	metrics string
}

func start(t *testing.T, cfg Config) *face {
	t.Helper()
	cfg.Name = "controller-0"
	cfg.Registry = prometheus.NewRegistry()
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := Listeners{GRPC: listen(), HTTP: listen(), Metrics: listen()}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	conn, err := grpc.NewClient("passthrough:///"+l.GRPC.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return &face{
		Server:  s,
		conn:    conn,
		http:    "http://" + l.HTTP.Addr().String(),
		metrics: "http://" + l.Metrics.Addr().String() + "/metrics",
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// reasonOf returns the code and the machine-readable reason of a gRPC error.
func reasonOf(err error) (codes.Code, string) {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return st.Code(), info.GetReason()
		}
	}
	return st.Code(), ""
}

func wantRefusal(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	if c, r := reasonOf(err); c != code || r != reason {
		t.Errorf("got %v, reason %q (%v), want %v, reason %q", c, r, err, code, reason)
	}
}

var sample = runtime.Topology{
	Map: topology.Map{Version: 7, Nodes: []topology.Node{
		{Name: "a", Port: 12121, Role: topology.Master, State: topology.Active, Partition: 0, Balance: 1, ThreadType: 16, Epoch: 3},
		{Name: "b", Port: 12121, Role: topology.Slave, State: topology.Prepare, Partition: 0, ThreadType: 17, Epoch: 3},
		{Name: "c", Port: 12121, Role: topology.Proxy, State: topology.Down, Partition: -1, ThreadType: 18},
	}},
	Spec: core.Spec{Known: true, Partitions: 1, Replicas: 2},
	Partitions: []core.PartitionStatus{
		{Number: 0, Epoch: 3, Master: "a:12121", Preparing: []string{"b:12121"}, State: core.PartitionDegraded},
	},
	Nodes: []runtime.NodeTopology{
		{Node: topology.Node{Name: "a", Port: 12121, Role: topology.Master, State: topology.Active, Partition: 0, Balance: 1}, Zone: "z1", LSN: topology.LSN{Epoch: 3, Index: 9}, AgentConnected: true},
		{Node: topology.Node{Name: "b", Port: 12121, Role: topology.Slave, State: topology.Prepare, Partition: 0}, Zone: "z2"},
		{Node: topology.Node{Name: "c", Port: 12121, Role: topology.Proxy, State: topology.Down, Partition: -1}, DownReason: core.ReasonPodGone},
	},
	Status: core.Status{Conditions: []core.Condition{{Type: core.ConditionReady, True: true, Reason: core.ReasonHealthy}}},
}

func TestReadiness(t *testing.T) {
	f := start(t, Config{})
	h := f.Health()
	check := func(when, path string, code int, want Readiness) {
		t.Helper()
		c, body := get(t, f.http+path)
		var got Readiness
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatalf("%s: %s answered %q: %v", when, path, body, err)
		}
		if c != code || got != want {
			t.Errorf("%s: %s answered %d %+v, want %d %+v", when, path, c, got, code, want)
		}
	}
	if c, _ := get(t, f.http+"/healthz"); c != http.StatusOK {
		t.Errorf("/healthz of a process that starts answered %d", c)
	}
	starting := Readiness{Reason: ReasonStarting}
	check("at the start", "/readyz", 503, starting)
	check("at the start", "/readyz?standby=ok", 503, starting)

	h.SetStandby(true, "")
	h.SetLeaderName("controller-1")
	standby := Readiness{Reason: ReasonStandby, LeaderName: "controller-1"}
	check("standby", "/readyz", 503, standby)
	check("standby", "/readyz?standby=ok", 200, standby)

	h.SetLeader(true)
	h.SetLeaderName("controller-0")
	silent := Readiness{Leader: true, Reason: ReasonIndexNotServing, LeaderName: "controller-0"}
	check("leader without index", "/readyz", 503, silent)
	check("leader without index", "/readyz?standby=ok", 503, silent)

	h.SetIndexListening(true)
	leading := Readiness{Ready: true, Leader: true, Reason: ReasonLeading, LeaderName: "controller-0"}
	check("leader", "/readyz", 200, leading)
	check("leader", "/readyz?standby=ok", 200, leading)

	h.SetLeader(false)
	h.SetStandby(false, ReasonAPIServerUnreachable)
	check("cut off", "/readyz?standby=ok", 503, Readiness{Reason: ReasonAPIServerUnreachable, LeaderName: "controller-0"})
}

func TestTopology(t *testing.T) {
	f := start(t, Config{})
	client := controllerv1.NewControllerServiceClient(f.conn)
	_, err := client.GetTopology(t.Context(), &controllerv1.GetTopologyRequest{})
	wantRefusal(t, err, codes.FailedPrecondition, ReasonNotLeader)

	cluster := newFakeCluster(sample)
	release := f.Lead(cluster)
	resp, err := client.GetTopology(t.Context(), &controllerv1.GetTopologyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := resp.GetTopology()
	if got.GetMapVersion() != 7 || got.GetPartitionsWanted() != 1 || got.GetReplicasWanted() != 2 {
		t.Errorf("topology: %v", got)
	}
	if p := got.GetPartitions(); len(p) != 1 || p[0].GetMaster() != "a:12121" || p[0].GetEpoch() != 3 ||
		!slices.Equal(p[0].GetPreparingReplicas(), []string{"b:12121"}) || len(p[0].GetInSyncReplicas()) != 0 {
		t.Errorf("partitions: %v", p)
	}
	nodes := got.GetNodes()
	if len(nodes) != 3 {
		t.Fatalf("nodes: %v", nodes)
	}
	if n := nodes[0]; n.GetNode() != "a:12121" || n.GetRole() != agentv1.Role_ROLE_MASTER || n.GetState() != agentv1.State_STATE_ACTIVE ||
		n.GetZone() != "z1" || n.GetLsn().GetEpoch() != 3 || n.GetLsn().GetIndex() != 9 || !n.GetAgentConnected() {
		t.Errorf("node a: %v", n)
	}
	if n := nodes[2]; n.Partition != nil || n.GetState() != agentv1.State_STATE_DOWN || n.GetDownReason() != core.ReasonPodGone || n.GetLsn() != nil {
		t.Errorf("node c: %v", n)
	}

	watch, err := client.WatchTopology(t.Context(), &controllerv1.WatchTopologyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := watch.Recv(); err != nil || m.GetTopology().GetMapVersion() != 7 {
		t.Fatalf("first of the watch: %v, %v", m, err)
	}
	next := sample
	next.Map.Version = 8
	cluster.set(next)
	if m, err := watch.Recv(); err != nil || m.GetTopology().GetMapVersion() != 8 {
		t.Fatalf("after a change: %v, %v", m, err)
	}
	release()
	_, err = watch.Recv()
	wantRefusal(t, err, codes.FailedPrecondition, ReasonNotLeader)
}

// TestPlan asks for the plan of a spec; that changes nothing.
func TestPlan(t *testing.T) {
	f := start(t, Config{})
	client := controllerv1.NewControllerServiceClient(f.conn)
	plan := func(manifest string) (*controllerv1.Plan, error) {
		r, err := client.Plan(t.Context(), &controllerv1.PlanRequest{Manifest: manifest})
		return r.GetPlan(), err
	}
	const manifest = `{"apiVersion": "flarekv.io/v1", "kind": "FlareCluster", "metadata": {"name": "x"}, "spec": {"partitions": 1, "replicas": 2}}`
	_, err := plan(manifest)
	wantRefusal(t, err, codes.FailedPrecondition, ReasonNotLeader)

	cluster := newFakeCluster(sample)
	cluster.state = core.New(core.Durable{})
	defer f.Lead(cluster)()
	_, err = plan("kind: FlareCluster")
	wantRefusal(t, err, codes.InvalidArgument, core.ReasonSpecInvalid)
	p, err := plan(manifest)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[controllerv1.PlannedChangeKind]int{}
	for _, c := range p.GetChanges() {
		kinds[c.GetKind()]++
	}
	if kinds[controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_UNSPECIFIED] > 0 || kinds[controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_JOIN] != 2 ||
		kinds[controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_PARTITION] != 1 || kinds[controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_OPTION] == 0 {
		t.Errorf("changes: %v", p.GetChanges())
	}
	if !p.GetSettled() || p.GetPhase() != "Running" || p.GetNodesReady() != 2 || p.GetMastersUp() != 1 || len(p.GetConditions()) < 4 {
		t.Errorf("plan: %v", p)
	}
	if len(cluster.inputs) > 0 {
		t.Error("a plan told the core something")
	}
}

func TestHealthServiceAndReflection(t *testing.T) {
	f := start(t, Config{})
	client := healthpb.NewHealthClient(f.conn)
	check := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for _, service := range []string{"", "flare.controller.v1.ControllerService", "flare.controller.v1.AgentLinkService"} {
			r, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
			if err != nil || r.GetStatus() != want {
				t.Errorf("service %q: %v, %v, want %v", service, r.GetStatus(), err, want)
			}
		}
	}
	check(healthpb.HealthCheckResponse_NOT_SERVING)
	release := f.Lead(newFakeCluster(sample))
	check(healthpb.HealthCheckResponse_SERVING)
	release()
	check(healthpb.HealthCheckResponse_NOT_SERVING)

	info, err := reflectionpb.NewServerReflectionClient(f.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = info.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := info.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var services []string
	for _, s := range r.GetListServicesResponse().GetService() {
		services = append(services, s.GetName())
	}
	for _, want := range []string{"flare.controller.v1.ControllerService", "flare.controller.v1.AgentLinkService", "grpc.health.v1.Health"} {
		if !slices.Contains(services, want) {
			t.Errorf("reflection lists %v, want %s among them", services, want)
		}
	}
}

func attach(t *testing.T, f *face) grpc.BidiStreamingClient[controllerv1.AttachRequest, controllerv1.AttachResponse] {
	t.Helper()
	link, err := controllerv1.NewAgentLinkServiceClient(f.conn).Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func report(node string) *controllerv1.AttachRequest {
	return &controllerv1.AttachRequest{Status: &agentv1.AgentStatus{
		Node: node, FlaredAlive: true, Zone: "z1",
		Flared: &agentv1.NodeStatus{
			Node: node, Instance: "abc", Serving: true, MapVersion: 7,
			Role: agentv1.Role_ROLE_SLAVE, State: agentv1.State_STATE_ACTIVE, Partition: new(uint32(1)),
			Lsn: &agentv1.Lsn{Epoch: 2, Index: 5}, DataPartition: new(uint32(1)), History: "h",
		},
		Config: &agentv1.ConfigStatus{Generation: 4, Hash: "x", AppliedHash: "x"},
	}}
}

func TestAttach(t *testing.T) {
	f := start(t, Config{})
	link := attach(t, f)
	_, err := link.Recv()
	wantRefusal(t, err, codes.FailedPrecondition, ReasonNotLeader)

	cluster := newFakeCluster(sample)
	release := f.Lead(cluster)
	link = attach(t, f)
	if err := link.Send(report("b:12121")); err != nil {
		t.Fatal(err)
	}
	if r, err := link.Recv(); err != nil || r.GetMapVersion() != 7 {
		t.Fatalf("confirmation: %v, %v", r, err)
	}
	want := core.AgentReport{
		Peer: "127.0.0.1", Key: "b:12121", Zone: "z1", Alive: true, Instance: "abc", Serving: true, MapVersion: 7,
		Role: topology.Slave, State: topology.Active, Partition: 1, LSN: topology.LSN{Epoch: 2, Index: 5},
		DataPartition: 1, History: "h", ConfigGeneration: 4,
	}
	if got := cluster.next(t); got != core.Input(want) {
		t.Errorf("observed %+v, want %+v", got, want)
	}
	_, metrics := get(t, f.metrics)
	if !strings.Contains(metrics, "flare_controller_agents_connected 1\n") {
		t.Error("the connected agent is not counted")
	}

	// The same agent comes back before its former link is seen to be dead.
	second := attach(t, f)
	if err := second.Send(report("b:12121")); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Recv(); err != nil {
		t.Fatal(err)
	}
	cluster.next(t)
	_, err = link.Recv()
	wantRefusal(t, err, codes.Aborted, ReasonLinkReplaced)

	if err := second.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if got := cluster.next(t); got != core.Input(core.AgentLost{Key: "b:12121"}) {
		t.Errorf("observed %+v, want one AgentLost: of the link that counted", got)
	}

	// Two agents speak for one node: the later one counts, though the earlier one
	// does not give up.
	at := func(seconds int64) *controllerv1.AttachRequest {
		r := report("d:12121")
		r.Status.AgentStartedAt = &timestamppb.Timestamp{Seconds: seconds}
		return r
	}
	earlier, later := attach(t, f), attach(t, f)
	for _, l := range []struct {
		link  controllerv1.AgentLinkService_AttachClient
		start int64
	}{{earlier, 100}, {later, 200}} {
		if err := l.link.Send(at(l.start)); err != nil {
			t.Fatal(err)
		}
		if _, err := l.link.Recv(); err != nil {
			t.Fatal(err)
		}
		cluster.next(t)
	}
	_, err = earlier.Recv()
	wantRefusal(t, err, codes.Aborted, ReasonLinkReplaced)
	again := attach(t, f)
	if err := again.Send(at(100)); err != nil {
		t.Fatal(err)
	}
	_, err = again.Recv()
	wantRefusal(t, err, codes.Aborted, ReasonLinkReplaced)
	if err := later.Send(at(200)); err != nil {
		t.Fatal(err)
	}
	if _, err := later.Recv(); err != nil {
		t.Fatalf("the later agent's link: %v", err)
	}
	cluster.next(t)
	if err := later.CloseSend(); err != nil {
		t.Fatal(err)
	}
	cluster.next(t)

	third := attach(t, f)
	if err := third.Send(report("c:12121")); err != nil {
		t.Fatal(err)
	}
	cluster.next(t)
	release()
	if _, err := third.Recv(); err != nil { // the confirmation
		t.Fatal(err)
	}
	_, err = third.Recv()
	wantRefusal(t, err, codes.FailedPrecondition, ReasonNotLeader)
}

// TestGrant: a lease goes to the agent of its node, the last one if several are to
// be sent, and to nobody while there is no agent.
func TestGrant(t *testing.T) {
	f := start(t, Config{})
	cluster := newFakeCluster(sample)
	defer f.Lead(cluster)()
	lease := core.GrantLease{Key: "b:12121", Instance: "abc", Partition: 0, Epoch: 3, Token: 1, TTL: 5000}
	f.Grant(lease) // nobody is there
	link := attach(t, f)
	r := report("b:12121")
	r.Status.Flared.LeaseToken, r.Status.Flared.LeaseEpoch = 77, 3
	r.Status.AgentStartedAt = &timestamppb.Timestamp{Seconds: 9}
	if err := link.Send(r); err != nil {
		t.Fatal(err)
	}
	if r, err := link.Recv(); err != nil || r.GetLease() != nil {
		t.Fatalf("confirmation: %v, %v", r, err)
	}
	if got, ok := cluster.next(t).(core.AgentReport); !ok || got.LeaseToken != 77 || got.LeaseEpoch != 3 || got.AgentStarted != 9e9 {
		t.Errorf("observed %+v", got)
	}
	for lease.Token = range uint64(50) {
		f.Grant(lease)
	}
	for {
		r, err := link.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got := r.GetLease()
		if r.GetMapVersion() != 7 || got.GetInstance() != "abc" || got.Partition == nil || got.GetPartition() != 0 || got.GetEpoch() != 3 || got.GetTtl().AsDuration() != 5*time.Second {
			t.Fatalf("lease: %v", r)
		}
		if got.GetToken() == 49 {
			return
		}
	}
}

func TestAttachRefusesReports(t *testing.T) {
	f := start(t, Config{})
	defer f.Lead(newFakeCluster(sample))()
	for _, tt := range []struct {
		name    string
		reports []*controllerv1.AttachRequest
		reason  string
	}{
		{"no status", []*controllerv1.AttachRequest{{}}, ReasonNodeInvalid},
		{"no node", []*controllerv1.AttachRequest{report("")}, ReasonNodeInvalid},
		{"no port", []*controllerv1.AttachRequest{report("b")}, ReasonNodeInvalid},
		{"another node on the same link", []*controllerv1.AttachRequest{report("b:1"), report("c:1")}, ReasonNodeChanged},
	} {
		t.Run(tt.name, func(t *testing.T) {
			link := attach(t, f)
			for _, r := range tt.reports {
				if err := link.Send(r); err != nil {
					t.Fatal(err)
				}
			}
			for range tt.reports[1:] {
				if _, err := link.Recv(); err != nil {
					t.Fatal(err)
				}
			}
			_, err := link.Recv()
			wantRefusal(t, err, codes.InvalidArgument, tt.reason)
		})
	}
}

func TestSilentLinkIsLost(t *testing.T) {
	f := start(t, Config{ReportTimeout: 50 * time.Millisecond})
	cluster := newFakeCluster(sample)
	defer f.Lead(cluster)()
	link := attach(t, f)
	if err := link.Send(report("b:12121")); err != nil {
		t.Fatal(err)
	}
	cluster.next(t)
	if got := cluster.next(t); got != core.Input(core.AgentLost{Key: "b:12121"}) {
		t.Errorf("observed %+v, want AgentLost", got)
	}
	if _, err := link.Recv(); err != nil {
		t.Fatal(err)
	}
	_, err := link.Recv()
	wantRefusal(t, err, codes.DeadlineExceeded, ReasonReportTimeout)
}

// panicking stands for a defect behind a call.
type panicking struct{ *fakeCluster }

func (panicking) Topology() runtime.Topology { panic("defect") }

func TestPanicBecomesAnError(t *testing.T) {
	f := start(t, Config{})
	release := f.Lead(panicking{newFakeCluster(sample)})
	client := controllerv1.NewControllerServiceClient(f.conn)
	_, err := client.GetTopology(t.Context(), &controllerv1.GetTopologyRequest{})
	wantRefusal(t, err, codes.Internal, ReasonInternalFailure)
	release()
	defer f.Lead(newFakeCluster(sample))()
	if _, err := client.GetTopology(t.Context(), &controllerv1.GetTopologyRequest{}); err != nil {
		t.Errorf("the call after the panic: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	f := start(t, Config{})
	_, text := get(t, f.metrics)
	if !strings.Contains(text, "flare_controller_leader 0\n") || strings.Contains(text, "flare_controller_map_version") {
		t.Error("a standby must show that it is one and no map")
	}
	defer f.Lead(newFakeCluster(sample))()
	m := f.Metrics()
	saving := core.State{Machine: core.Machine{Step: core.StepAssignRoles}, Saving: core.Durable{Seq: 1}}
	done := core.State{Machine: core.Machine{Step: core.StepDone}}
	m.Trace(saving, core.Tick{}, []core.Effect{core.Decision{Reason: core.ReasonFailover}, core.Persist{}})
	m.Trace(saving, core.Persisted{Seq: 1, Err: "no"}, nil)
	m.Trace(done, core.Persisted{Seq: 1}, []core.Effect{core.Broadcast{}})
	m.Trace(done, core.Done{Request: core.RequestScale, Err: "forbidden"}, nil)
	_, text = get(t, f.metrics)
	for _, want := range []string{
		"flare_controller_leader 1",
		"flare_controller_map_version 7",
		`flare_controller_nodes{role="master",state="active"} 1`,
		`flare_controller_nodes{role="slave",state="prepare"} 1`,
		`flare_controller_nodes{role="proxy",state="down"} 1`,
		"flare_controller_nodes_wanted 2",
		`flare_controller_partition_master_up{partition="0"} 1`,
		`flare_controller_partition_in_sync_replicas{partition="0"} 0`,
		`flare_controller_partition_epoch{partition="0"} 3`,
		`flare_controller_condition{reason="healthy",type="Ready"} 1`,
		`flare_controller_decisions_total{reason="failover"} 1`,
		"flare_controller_broadcasts_total 1",
		"flare_controller_persists_total 1",
		"flare_controller_persist_errors_total 1",
		`flare_controller_request_errors_total{request="scale"} 1`,
		"flare_controller_reconcile_duration_seconds_count 1",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %q", want)
		}
	}
}
