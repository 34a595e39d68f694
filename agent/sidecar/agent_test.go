package sidecar

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

func alive(instance string) func(*agentv1.AgentStatus) bool {
	return func(s *agentv1.AgentStatus) bool {
		return s.GetFlaredAlive() && s.GetFlared().GetInstance() == instance
	}
}

func dead(s *agentv1.AgentStatus) bool { return !s.GetFlaredAlive() }

func TestFlaredComesGoesAndComesBack(t *testing.T) {
	t.Parallel()
	config := newConfigMap(t)
	config.config(1, "max-connection = 5\n")
	r := startAgent(t, func(s *Settings) { s.ConfigDir = config.dir })

	s := r.status()
	if s.GetFlaredAlive() || s.GetNode() != "flare-0.flare-nodes:12121" || s.GetZone() != "z1" || s.GetAgentVersion() != "test" || s.GetAgentUptime() == nil {
		t.Errorf("before flared: %v", s)
	}
	if code, v := r.ready(); code != 503 || v.Reason != ReasonFlaredDown || v.Message == "" {
		t.Errorf("/readyz before flared: %d %+v", code, v)
	}
	if code, _ := r.get(r.http + "/healthz"); code != 200 {
		t.Errorf("/healthz before flared: %d", code)
	}

	f := startFlared(t, r.socket, "first")
	s = r.waitStatus("flared is up and configured", func(s *agentv1.AgentStatus) bool {
		return alive("first")(s) && s.GetConfig().GetAppliedHash() != ""
	})
	if s.GetFlared().GetLsn().GetIndex() != 7 || s.GetFlaredRestarts() != 0 {
		t.Errorf("with flared: %v", s)
	}
	if code, v := r.ready(); code != 200 || !v.Ready {
		t.Errorf("/readyz with flared: %d %+v", code, v)
	}
	f.set(func(s *agentv1.NodeStatus) { s.Serving, s.NotServingReason = false, "index_unreachable" })
	r.waitStatus("flared does not serve", func(s *agentv1.AgentStatus) bool { return !s.GetFlared().GetServing() })
	if code, v := r.ready(); code != 503 || v.Reason != "index_unreachable" {
		t.Errorf("/readyz while flared does not serve: %d %+v", code, v)
	}

	f.kill()
	s = r.waitStatus("the end of flared is reported", dead)
	if s.GetFlaredRestarts() != 1 || s.GetFlared().GetInstance() != "first" {
		t.Errorf("after the end of flared: %v", s)
	}

	f = startFlared(t, r.socket, "second")
	s = r.waitStatus("the next flared is up", alive("second"))
	if s.GetFlaredRestarts() != 1 {
		t.Errorf("with the second flared: %v", s)
	}
	waitFor(t, "the second flared is told its options", func() bool { return slices.Equal(f.sent(), []string{"max-connection = 5\n"}) })
}

func TestEndOfFlaredIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	r := startAgent(t, nil)
	f := startFlared(t, r.socket, "first")
	r.waitStatus("flared is up", alive("first"))
	stream, err := r.api.WatchStatus(t.Context(), &agentv1.WatchStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	f.kill()
	for {
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if dead(resp.GetStatus()) {
			break
		}
	}
	// It takes a millisecond; the bound is for a machine that has no time.
	if d := time.Since(killed); d > patience/2 {
		t.Errorf("reported after %v", d)
	}
}

func TestStatusIsAnsweredWhileFlaredHangs(t *testing.T) {
	t.Parallel()
	config := newConfigMap(t)
	config.config(1, "max-connection = 5\n")
	r := startAgent(t, func(s *Settings) { s.ConfigDir = config.dir })
	f := startFlared(t, r.socket, "first")
	r.waitStatus("flared is up", alive("first"))
	waitFor(t, "flared is told its options", func() bool { return len(f.sent()) == 1 })

	f.mu.Lock()
	release := make(chan struct{})
	f.release = release
	config.config(2, "max-connection = 6\n")
	f.mu.Unlock()
	waitFor(t, "flared hangs in ApplyOptions", func() bool { return len(f.sent()) == 2 })
	s := r.status() // which flared's answer is no condition for
	if s.GetConfig().GetGeneration() != 2 || s.GetConfig().GetAppliedHash() == s.GetConfig().GetHash() {
		t.Errorf("before flared has answered: %v", s.GetConfig())
	}
	close(release)
	r.waitStatus("the second file is applied", func(s *agentv1.AgentStatus) bool {
		return s.GetConfig().GetAppliedHash() == s.GetConfig().GetHash()
	})
}

func TestApplyIsTriedAgain(t *testing.T) {
	t.Parallel()
	config := newConfigMap(t)
	config.config(1, "max-connection = 5\n")
	r := startAgent(t, func(s *Settings) { s.ConfigDir = config.dir })
	f := startFlared(t, r.socket, "first")
	f.mu.Lock()
	f.failing = status.Error(codes.Internal, "disk full")
	f.mu.Unlock()
	// It may have been applied before the failure was arranged.
	config.config(2, "max-connection = 6\n")
	r.waitStatus("the failure is reported", func(s *agentv1.AgentStatus) bool {
		return strings.Contains(s.GetConfig().GetMessage(), "not applied yet: disk full") && !s.GetConfig().GetRejected()
	})
	f.mu.Lock()
	f.failing = nil
	f.mu.Unlock()
	r.waitStatus("it is applied after all", func(s *agentv1.AgentStatus) bool {
		return s.GetConfig().GetGeneration() == 2 && s.GetConfig().GetAppliedHash() == s.GetConfig().GetHash() && s.GetConfig().GetMessage() == ""
	})
}

func TestHealthAndReflection(t *testing.T) {
	t.Parallel()
	r := startAgent(t, nil)
	health := healthpb.NewHealthClient(r.conn)
	check := func(service string) healthpb.HealthCheckResponse_ServingStatus {
		resp, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatalf("health of %q: %v", service, err)
		}
		return resp.GetStatus()
	}
	const serving, not = healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING
	if a, b, c := check(""), check("flare.agent.v1.AgentService"), check("flared"); a != serving || b != serving || c != not {
		t.Errorf("without flared: %v %v %v", a, b, c)
	}
	f := startFlared(t, r.socket, "first")
	waitFor(t, "health shows flared", func() bool { return check("flared") == serving })
	f.kill()
	waitFor(t, "health shows the end of flared", func() bool { return check("flared") == not })

	stream, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range resp.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, want := range []string{"flare.agent.v1.AgentService", "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("reflection lists %v, without %s", names, want)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	config := newConfigMap(t)
	config.config(4, "rocksdb-sync-writes = true\n")
	r := startAgent(t, func(s *Settings) { s.ConfigDir = config.dir })
	_, body := r.get(r.scrape + "/metrics")
	if !strings.Contains(body, "flare_agent_flared_up 0\n") || strings.Contains(body, "flare_node_role") {
		t.Errorf("without flared:\n%s", body)
	}
	f := startFlared(t, r.socket, "first")
	r.waitStatus("flared is configured", func(s *agentv1.AgentStatus) bool { return s.GetConfig().GetAppliedHash() != "" })
	hash := r.status().GetConfig().GetHash()
	_, body = r.get(r.scrape + "/metrics")
	for _, want := range []string{
		"flare_agent_flared_up 1\n",
		`flare_agent_flared_ready{reason=""} 1` + "\n",
		"flare_agent_flared_restarts_total 0\n",
		"flare_agent_controller_connected 0\n",
		"flare_agent_config_rejected 0\n",
		`flare_agent_config_info{applied_hash="` + hash + `",hash="` + hash + `"} 1` + "\n",
		"flare_agent_config_generation 4\n",
		`flare_agent_config_applies_total{result="accepted"} 1` + "\n",
		`flare_agent_config_options{state="pending_restart"} 0` + "\n",
		`flare_agent_info{flared_version="9",node="flare-0.flare-nodes:12121",version="test",zone="z1"} 1` + "\n",
		`flare_node_role{role="master"} 1` + "\n",
		`flare_node_state{state="active"} 1` + "\n",
		"flare_node_partition 0\n",
		"flare_node_lsn_epoch 1\n",
		"flare_node_lsn_index 7\n",
		"flare_node_expiry_walks_total 2\n",
		"flare_node_expired_removed_total 9\n",
		"flare_node_expired_removed_bytes_total 81\n",
		`flare_node_replica_in_sync{replica="flare-1.flare-nodes:12121"} 1` + "\n",
		`flare_node_replica_lag_batches{replica="flare-1.flare-nodes:12121"} 3` + "\n",
		`flare_node_catch_ups_total{tier="wal"} 0` + "\n",
		`grpc_server_handled_total{grpc_code="OK",grpc_method="GetStatus",grpc_service="flare.agent.v1.AgentService",grpc_type="unary"}`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	// A replica that is listed twice must not cost the whole scrape.
	f.set(func(s *agentv1.NodeStatus) {
		s.Role, s.CatchUp = agentv1.Role_ROLE_SLAVE, &agentv1.CatchUp{Connected: true, MasterLsn: &agentv1.Lsn{Epoch: 1, Index: 9}}
		s.Replicas = append(s.Replicas, s.Replicas[0])
	})
	r.waitStatus("the node is a slave", func(s *agentv1.AgentStatus) bool { return s.GetFlared().GetRole() == agentv1.Role_ROLE_SLAVE })
	code, body := r.get(r.scrape + "/metrics")
	if code != 200 || !strings.Contains(body, "flare_node_catch_up_lag_batches 2\n") {
		t.Errorf("of a slave: %d\n%s", code, body)
	}
	if t.Failed() {
		t.Log(body)
	}
}

func TestServeEndsCleanly(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	config := newConfigMap(t)
	config.config(1, "max-connection = 5\n")
	c := startController(t, "127.0.0.1:0")
	r := startAgent(t, func(s *Settings) { s.ConfigDir, s.Controller = config.dir, c.addr })
	f := startFlared(t, r.socket, "first")
	r.waitStatus("everything is up", func(s *agentv1.AgentStatus) bool { return s.GetFlaredAlive() && s.GetControllerConnected() })
	stream, err := r.api.WatchStatus(t.Context(), &agentv1.WatchStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a watch ended with %v", err)
	}
	r.conn.Close()
	f.kill()
	c.stop()
	goleak.VerifyNone(t, ignore, goleak.IgnoreTopFunction("testing.(*T).Run"))
}

func TestServeFailsWithItsSockets(t *testing.T) {
	t.Parallel()
	a, err := New(Settings{Node: "n:1", Socket: t.TempDir() + "/s", ConfigDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	var l Listeners
	for _, to := range []*net.Listener{&l.GRPC, &l.HTTP, &l.Metrics} {
		if *to, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	l.HTTP.Close()
	if err := a.Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), "serve http") {
		t.Errorf("with a closed socket: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := Settings{Node: "n:1", Socket: "/s", ConfigDir: "/c", Controller: "c:1"}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Settings){
		"node":       func(s *Settings) { s.Node = "n" },
		"socket":     func(s *Settings) { s.Socket = "" },
		"config-dir": func(s *Settings) { s.ConfigDir = "" },
		"controller": func(s *Settings) { s.Controller = "c" },
	} {
		s := good
		change(&s)
		if _, err := New(s); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// follow, under a clock of its own: what is told, and when.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := New(Settings{Node: "n:1", Socket: "/s", ConfigDir: "/c", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		type told struct {
			at    time.Duration
			index uint64
			alive bool
		}
		var got []told
		start := time.Now()
		done := make(chan error)
		go func() {
			done <- a.follow(ctx, always(time.Second), func(s *agentv1.AgentStatus) error {
				got = append(got, told{time.Since(start), s.GetFlared().GetLsn().GetIndex(), s.GetFlaredAlive()})
				return nil
			})
		}()
		index := func(i uint64) {
			a.observe(FlaredStatus{time.Now(), &agentv1.NodeStatus{Instance: "a", Lsn: &agentv1.Lsn{Index: i}}})
		}
		ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
		sleepUntil := func(n int) { time.Sleep(ms(n) - time.Since(start)); synctest.Wait() }

		sleepUntil(10) // the first at once
		index(1)       // up: urgent
		sleepUntil(20)
		for i := range 50 { // a burst of writes
			index(uint64(2 + i))
			sleepUntil(20 + 2*i)
		}
		// 20..118 ms: one message at 110, and one at 210 for the rest
		sleepUntil(400)
		index(60) // after a quiet time: at once
		sleepUntil(420)
		a.observe(FlaredLost{time.Now()}) // urgent, whatever was told just now
		sleepUntil(2500)                  // nothing happens: once a second
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := []told{
			{0, 0, false}, {ms(10), 1, true}, {ms(110), 47, true}, {ms(210), 51, true}, {ms(400), 60, true},
			{ms(420), 60, false}, {ms(1420), 60, false}, {ms(2420), 60, false},
		}
		if !slices.Equal(got, want) {
			t.Errorf("told:\n%v\nwant:\n%v", got, want)
		}
		a.end()
		a.grpc.Stop()
	})
}

func TestFollowTellsTheLastUrgentChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := New(Settings{Node: "n:1", Socket: "/s", ConfigDir: "/c", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		a.observe(FlaredStatus{time.Now(), &agentv1.NodeStatus{Instance: "a"}})
		ctx, cancel := context.WithCancel(t.Context())
		var got []bool
		err = a.follow(ctx, always(0), func(s *agentv1.AgentStatus) error {
			got = append(got, s.GetFlaredAlive())
			if len(got) == 1 {
				a.observe(FlaredLost{time.Now()})
				cancel()
			}
			return nil
		})
		if err != nil || len(got) < 2 || got[len(got)-1] {
			t.Errorf("told %v, %v; flared's end must be the last", got, err)
		}
		a.end()
		a.grpc.Stop()
	})
}
