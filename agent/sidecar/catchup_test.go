package sidecar

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// StartResync tells one step and is then refused, as flared does it.
func (f *fakeFlared) StartResync(req *agentv1.StartResyncRequest, stream grpc.ServerStreamingServer[agentv1.StartResyncResponse]) error {
	if err := stream.Send(&agentv1.StartResyncResponse{Progress: &agentv1.ResyncProgress{Tier: req.GetTier()}}); err != nil {
		return err
	}
	return refusal(codes.FailedPrecondition, "tier_not_possible", "not so")
}

// MakeBackup makes the backup that it is asked for in two steps.
func (f *fakeFlared) MakeBackup(req *agentv1.MakeBackupRequest, stream grpc.ServerStreamingServer[agentv1.MakeBackupResponse]) error {
	for _, p := range []*agentv1.BackupProgress{{Name: req.GetName(), BytesPerSecond: req.GetBytesPerSecond()},
		{Name: req.GetName(), Backup: &agentv1.Backup{Name: req.GetName(), Complete: true}}} {
		if err := stream.Send(&agentv1.MakeBackupResponse{Progress: p}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeFlared) ListBackups(context.Context, *agentv1.ListBackupsRequest) (*agentv1.ListBackupsResponse, error) {
	return &agentv1.ListBackupsResponse{Directory: "/b", Backups: []*agentv1.Backup{{Name: "a"}}}, nil
}

func (f *fakeFlared) DropBackup(_ context.Context, req *agentv1.DropBackupRequest) (*agentv1.DropBackupResponse, error) {
	if req.GetName() != "a" {
		return nil, refusal(codes.FailedPrecondition, "not_found", "there is none")
	}
	return &agentv1.DropBackupResponse{}, nil
}

func TestOrdersArePassedOn(t *testing.T) {
	t.Parallel()
	r := startAgent(t, nil)
	if _, err := r.api.ListCheckpoints(t.Context(), &agentv1.ListCheckpointsRequest{}); reason(err) != ReasonFlaredDown {
		t.Errorf("without flared: %v", err)
	}
	startFlared(t, r.socket, "first")
	r.waitStatus("flared is up", func(s *agentv1.AgentStatus) bool { return s.GetFlaredAlive() })

	resync, err := r.api.Resync(t.Context(), &agentv1.ResyncRequest{Tier: agentv1.Tier_TIER_CHECKPOINT})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := resync.Recv(); err != nil || m.GetProgress().GetTier() != agentv1.Tier_TIER_CHECKPOINT {
		t.Errorf("resync: %v, %v", m, err)
	}
	if _, err := resync.Recv(); reason(err) != "tier_not_possible" || status.Code(err) != codes.FailedPrecondition {
		t.Errorf("flared's refusal: %v", err)
	}

	backup, err := r.api.CreateCheckpoint(t.Context(), &agentv1.CreateCheckpointRequest{Directory: "a", BytesPerSecond: 5})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := backup.Recv(); err != nil || m.GetProgress().GetName() != "a" || m.GetProgress().GetBytesPerSecond() != 5 {
		t.Errorf("backup: %v, %v", m, err)
	}
	if m, err := backup.Recv(); err != nil || !m.GetProgress().GetBackup().GetComplete() {
		t.Errorf("backup: %v, %v", m, err)
	}
	if _, err := backup.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("end of the backup: %v", err)
	}
	list, err := r.api.ListCheckpoints(t.Context(), &agentv1.ListCheckpointsRequest{})
	if err != nil || list.GetDirectory() != "/b" || len(list.GetBackups()) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
	if _, err := r.api.DeleteCheckpoint(t.Context(), &agentv1.DeleteCheckpointRequest{Directory: "a"}); err != nil {
		t.Error(err)
	}
	if _, err := r.api.DeleteCheckpoint(t.Context(), &agentv1.DeleteCheckpointRequest{Directory: "b"}); reason(err) != "not_found" {
		t.Errorf("delete another: %v", err)
	}
}

// populate sets every field of a message, so that whatever there is a metric of is
// there, also what was added later.
func populate(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
		case f.IsList():
			list := m.Mutable(f).List()
			if f.Message() != nil {
				populate(list.AppendMutable().Message())
			}
		case f.Message() != nil:
			populate(m.Mutable(f).Message())
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString("x"))
		case f.Kind() == protoreflect.BoolKind:
			m.Set(f, protoreflect.ValueOfBool(true))
		case f.Kind() == protoreflect.EnumKind:
			m.Set(f, protoreflect.ValueOfEnum(1))
		case f.Kind() == protoreflect.Uint64Kind:
			m.Set(f, protoreflect.ValueOfUint64(1))
		case f.Kind() == protoreflect.Uint32Kind:
			m.Set(f, protoreflect.ValueOfUint32(1))
		case f.Kind() == protoreflect.Int64Kind:
			m.Set(f, protoreflect.ValueOfInt64(1))
		case f.Kind() == protoreflect.Int32Kind:
			m.Set(f, protoreflect.ValueOfInt32(1))
		}
	}
}

// catchingUp is a status with everything that there is a metric of.
func catchingUp(s *agentv1.NodeStatus) {
	instance, node := s.GetInstance(), s.GetReplicas()[0].GetNode()
	proto.Reset(s)
	populate(s.ProtoReflect())
	s.Lease.State = agentv1.LeaseState_LEASE_STATE_HELD
	s.Instance, s.Replicas[0].Node = instance, node
	p := &agentv1.CatchUpProgress{Phase: agentv1.CatchUpPhase_CATCH_UP_PHASE_LOG, Tier: agentv1.Tier_TIER_WAL, Reason: "same_history",
		Since: timestamppb.New(time.Unix(1_700_000_000, 0)), BytesDone: 10, BytesTotal: 40, BytesPerSecond: 5, Eta: durationpb.New(6 * time.Second),
		BatchesDone: 1, BatchesTotal: 4}
	s.CatchUp.Progress = p
	s.Replicas[0].Progress, s.Replicas[0].LagBytes = p, 30
	s.Log.ArchivedBytes = 200
}

// While something catches up a watch hears every second, even of nothing new.
func TestWatchWhileCatchingUp(t *testing.T) {
	t.Parallel()
	r := startAgent(t, nil)
	f := startFlared(t, r.socket, "first")
	r.waitStatus("flared is up", func(s *agentv1.AgentStatus) bool { return s.GetFlaredAlive() && s.GetConfig().GetOptions() != nil })
	began := time.Now()
	f.set(catchingUp)
	stream, err := r.api.WatchStatus(t.Context(), &agentv1.WatchStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for same := 0; same <= 3; {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetStatus().GetFlared().GetCatchUp().GetProgress() != nil {
			same++
		}
	}
	if took := time.Since(began); took < 2*catchUpInterval {
		t.Errorf("three more statuses took %v", took)
	}
	f.set(func(s *agentv1.NodeStatus) { s.CatchUp.Progress, s.Replicas[0].Progress = nil, nil })
	st := r.waitStatus("it has caught up", func(s *agentv1.AgentStatus) bool { return s.GetFlared().GetCatchUp().GetProgress() == nil })
	if d := whileCatchingUp(st); d != 0 {
		t.Errorf("a status is due after %v although nothing catches up", d)
	}
}

// TestMetricsAreWellFormed gathers a registry in which everything is shown, and
// has Prometheus' linter look at names, units and help texts.
func TestMetricsAreWellFormed(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewPedanticRegistry()
	config := newConfigMap(t)
	config.config(4, "rocksdb-wal-size-limit-mb = 2\nreconstruction-bwlimit = 3\n")
	r := startAgent(t, func(s *Settings) { s.Registry, s.ConfigDir = registry, config.dir })
	f := startFlared(t, r.socket, "first")
	f.set(catchingUp)
	r.waitStatus("everything is known", func(s *agentv1.AgentStatus) bool {
		return s.GetConfig().GetAppliedHash() != "" && s.GetFlared().GetLog() != nil
	})
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "flare_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	const expected = `
# HELP flare_node_catch_up_running On a slave: 1 while it catches up.
# TYPE flare_node_catch_up_running gauge
flare_node_catch_up_running{phase="log",reason="same_history",tier="wal"} 1
# HELP flare_node_log_archived_bytes Bytes of those that are finished and only kept for replicas.
# TYPE flare_node_log_archived_bytes gauge
flare_node_log_archived_bytes 200
# HELP flare_node_option_rocksdb_wal_size_limit_bytes Option rocksdb-wal-size-limit-mb in force; 0 for no limit.
# TYPE flare_node_option_rocksdb_wal_size_limit_bytes gauge
flare_node_option_rocksdb_wal_size_limit_bytes 2.097152e+06
# HELP flare_node_option_rocksdb_wal_sync_bytes_per_second Limit for catching up by the log in force, from rocksdb-wal-sync-bwlimit or reconstruction-bwlimit; 0 for no limit.
# TYPE flare_node_option_rocksdb_wal_sync_bytes_per_second gauge
flare_node_option_rocksdb_wal_sync_bytes_per_second 3072
# HELP flare_node_replica_catch_up_remaining_seconds On a master: time until the present phase of the replica's catch-up is over, at that pace.
# TYPE flare_node_replica_catch_up_remaining_seconds gauge
flare_node_replica_catch_up_remaining_seconds{replica="flare-1.flare-nodes:12121"} 6
# HELP flare_node_replica_lag_bytes On a master: bytes of log that the replica has not acknowledged.
# TYPE flare_node_replica_lag_bytes gauge
flare_node_replica_lag_bytes{replica="flare-1.flare-nodes:12121"} 30
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(expected), "flare_node_catch_up_running", "flare_node_log_archived_bytes",
		"flare_node_option_rocksdb_wal_size_limit_bytes", "flare_node_option_rocksdb_wal_sync_bytes_per_second",
		"flare_node_replica_catch_up_remaining_seconds", "flare_node_replica_lag_bytes"); err != nil {
		t.Error(err)
	}
	// Whatever is described is collected, so that none is forgotten here or there.
	described := make(chan *prometheus.Desc, 200)
	collector{}.Describe(described)
	close(described)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, m := range families {
		shown[m.GetName()] = true
	}
	for d := range described {
		name, _, _ := strings.Cut(strings.TrimPrefix(d.String(), `Desc{fqName: "`), `"`)
		if !shown[name] {
			t.Errorf("%s is described but not collected", name)
		}
	}
}
