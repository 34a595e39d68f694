package sidecar

import (
	"errors"
	"io"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

func reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return info.GetReason()
		}
	}
	return ""
}

func TestOrphans(t *testing.T) {
	t.Parallel()
	r := startAgent(t, nil)
	purge := func(rate uint32) grpc.ServerStreamingClient[agentv1.OrphanPurgeResponse] {
		t.Helper()
		stream, err := r.api.OrphanPurge(t.Context(), &agentv1.OrphanPurgeRequest{Rate: rate})
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	if _, err := purge(1).Recv(); reason(err) != ReasonFlaredDown || status.Code(err) != codes.Unavailable {
		t.Errorf("without flared: %v", err)
	}
	f := startFlared(t, r.socket, "first")
	r.waitStatus("flared is up", func(s *agentv1.AgentStatus) bool { return s.GetFlaredAlive() })

	scan, err := r.api.OrphanScan(t.Context(), &agentv1.OrphanScanRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(2) {
		if m, err := scan.Recv(); err != nil || m.GetProgress().GetKeys() != i {
			t.Errorf("step %d: %v, %v", i, m, err)
		}
	}
	if _, err := scan.Recv(); reason(err) != "map_changing" || status.Code(err) != codes.FailedPrecondition {
		t.Errorf("flared's refusal: %v", err)
	}

	done := purge(7)
	if m, err := done.Recv(); err != nil || m.GetProgress().GetOrphans() != 7 || !m.GetProgress().GetDone() {
		t.Errorf("purge: %v, %v", m, err)
	}
	if _, err := done.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("end of the purge: %v", err)
	}

	hanging := purge(0)
	if _, err := hanging.Recv(); err != nil {
		t.Fatal(err)
	}
	f.kill()
	if _, err := hanging.Recv(); reason(err) != ReasonFlaredDown {
		t.Errorf("flared dies: %v", err)
	}
	startFlared(t, r.socket, "second")
	r.waitStatus("flared is up again", func(s *agentv1.AgentStatus) bool { return s.GetFlared().GetInstance() == "second" })
	hanging = purge(0)
	if _, err := hanging.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if _, err := hanging.Recv(); reason(err) != ReasonShuttingDown {
		t.Errorf("the agent ends: %v", err)
	}
}

// A flared that has just been started is called before the agent has heard of it.
func TestCallFindsANewFlared(t *testing.T) {
	t.Parallel()
	r := startAgent(t, nil)
	r.agent.redial = patience
	startFlared(t, r.socket, "first")
	stream, err := r.api.OrphanPurge(t.Context(), &agentv1.OrphanPurgeRequest{Rate: 7})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetProgress().GetOrphans() != 7 {
		t.Errorf("%v, %v", m, err)
	}
}
