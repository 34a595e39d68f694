package admin

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
	"github.com/flarekv/flare/proto/topology"
)

func TestClusterReportOf(t *testing.T) {
	if got := clusterReportOf(nil); got != (core.ClusterReport{}) {
		t.Errorf("of nothing: %+v", got)
	}
	said := &agentv1.ClusterReplication{
		Destination: "green:1", Mode: "forward", Active: true, Connected: true, Reason: "r",
		Dump:          &agentv1.ClusterDump{Completed: 1, Percent: 50, Records: 5, Total: 10},
		QueuedBatches: 3, Lag: durationpb.New(1500 * time.Millisecond), Dropped: 4, Failed: 6, Held: true,
	}
	want := core.ClusterReport{
		Destination: "green:1", Mode: core.ModeForward, Active: true, Connected: true, Reason: "r",
		Dumped: true, Percent: 50, Records: 5, Total: 10, Queued: 3, Lag: 1500, Dropped: 4, Failed: 6, Held: true,
	}
	if got := clusterReportOf(said); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for name, dump := range map[string]*agentv1.ClusterDump{
		"none made": {}, "another runs": {Completed: 1, Running: true}, "another is due": {Completed: 1, Due: true}, "unknown": nil,
	} {
		if clusterReportOf(&agentv1.ClusterReplication{Dump: dump}).Dumped {
			t.Errorf("%s: all records are said to be there", name)
		}
	}
}

// TestReplicationPhaseIsShown looks at each phase in the topology and in the metric.
func TestReplicationPhaseIsShown(t *testing.T) {
	if got := replicationProto(sample); got != nil {
		t.Errorf("without one: %v", got)
	}
	asked := sample
	asked.Spec.Replication.Enabled = true
	asked.Status.Conditions = []core.Condition{{Type: core.ConditionClusterReplication, Reason: "target_unreachable", Message: "no route"}}
	if got := replicationProto(asked); got.GetReason() != "target_unreachable" || got.GetMessage() != "no route" || got.GetSince() != nil || got.GetCompared() != nil {
		t.Errorf("asked for: %v", got)
	}
	registry := prometheus.NewPedanticRegistry()
	s, err := New(Config{Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	cluster := newFakeCluster(sample)
	defer s.Lead(cluster)()
	names := []string{"None", "Dumping", "Forwarding", "CuttingOver", "CutOver"}
	for i, phase := range replicationPhases {
		now := sample
		now.Replication = core.Replication{Phase: phase, Target: "green:1", Mode: core.ModeForward, Since: 1000, Runs: 2,
			Compared: core.Comparison{At: 2000, Equal: true, Exact: true, Records: 3, Target: 3}}
		now.ReplicationProgress = []core.ReplicationProgress{{Partition: 0, Node: "a:12121", Report: core.ClusterReport{Dumped: true, Queued: 2, Lag: 9}}}
		cluster.set(now)
		got := replicationProto(now)
		if got.GetPhase() != controllerv1.ReplicationPhase(i) || got.GetTarget() != "green:1" || got.GetRuns() != 2 ||
			got.GetSince().AsTime().UnixMilli() != 1000 || got.GetCompared().GetAt().AsTime().UnixMilli() != 2000 || !got.GetCompared().GetEqual() {
			t.Errorf("%s: %v", names[i], got)
		}
		if p := got.GetPartitions(); len(p) != 1 || p[0].GetMaster() != "a:12121" || p[0].Partition == nil || !p[0].GetDumped() ||
			p[0].GetQueuedBatches() != 2 || p[0].GetLag().AsDuration() != 9*time.Millisecond {
			t.Errorf("%s: partitions %v", names[i], p)
		}
		expected := "# HELP flare_controller_cluster_replication_phase 1 for the phase that the replication to another cluster is in, 0 for the others: None, Dumping, Forwarding, CuttingOver, CutOver.\n" +
			"# TYPE flare_controller_cluster_replication_phase gauge\n"
		for j, name := range names {
			v := 0
			if i == j {
				v = 1
			}
			expected += fmt.Sprintf("flare_controller_cluster_replication_phase{phase=%q} %d\n", name, v)
		}
		if err := testutil.GatherAndCompare(registry, strings.NewReader(expected), "flare_controller_cluster_replication_phase"); err != nil {
			t.Errorf("%s: %v", names[i], err)
		}
	}
}

// digestingNode answers as the only node of a cluster with one partition, whose records
// it sums up as told.
func digestingNode(t *testing.T, digest string) (name string, port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	addr := l.Addr().String()
	if name, port, err = topology.SplitKey(addr); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				line, _ := bufio.NewReader(conn).ReadString('\n')
				answer := ""
				switch {
				case line == "stats nodes\r\n":
					answer = fmt.Sprintf("STAT %[1]s:role master\r\nSTAT %[1]s:state active\r\nSTAT %[1]s:partition 0\r\nSTAT %[1]s:balance 1\r\nSTAT %[1]s:thread_type 16\r\n", addr)
				case strings.HasPrefix(line, "digest "):
					answer = digest
				}
				io.WriteString(conn, answer+"END\r\n")
			}()
		}
	}()
	return name, port
}

// TestCompareClusters has two clusters of one node compared, and the core told.
func TestCompareClusters(t *testing.T) {
	f := start(t, Config{})
	client := controllerv1.NewControllerServiceClient(f.conn)
	compare := func(rounds uint32) (last *controllerv1.CompareClustersResponse, err error) {
		t.Helper()
		stream, err := client.CompareClusters(t.Context(), &controllerv1.CompareClustersRequest{Rounds: rounds})
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := stream.Recv()
			if err == io.EOF {
				return last, nil
			} else if err != nil {
				return nil, err
			}
			last = m
		}
	}
	_, err := compare(0)
	wantRefusal(t, err, codes.FailedPrecondition, ReasonNotLeader)

	cluster := newFakeCluster(sample)
	defer f.Lead(cluster)()
	_, err = compare(0)
	wantRefusal(t, err, codes.FailedPrecondition, core.RefuseNotReplicating)

	name, port := digestingNode(t, "DIGEST 0 3 2 20 7\r\n")
	other, otherPort := digestingNode(t, "DIGEST 0 3 2 20 7\r\nDIGEST 0 4 1 5 9\r\n")
	replicating := func(target string) runtime.Topology {
		top := sample
		top.Meta = topology.DefaultMeta()
		top.Partitions = []core.PartitionStatus{{Number: 0, Epoch: 3, Master: fmt.Sprint(name, ":", port)}}
		top.Replication = core.Replication{Phase: core.ReplicationForwarding, Target: target, Runs: 5}
		return top
	}
	same := replicating(fmt.Sprint(name, ":", port))
	cluster.set(same)
	_, err = compare(maxRounds + 1)
	wantRefusal(t, err, codes.InvalidArgument, ReasonRounds)
	if m, err := compare(1); err != nil || !m.GetComparison().GetEqual() || !m.GetComparison().GetExact() || m.GetRecordsDone() != 2 || len(m.GetPartitions()) != 1 {
		t.Errorf("with itself: %v, %v", m, err)
	}
	if in, ok := cluster.next(t).(core.ClustersCompared); !ok || in.Target != same.Replication.Target || in.Run != 5 || !in.Comparison.Equal || in.Comparison.Records != 2 || in.Comparison.At == 0 {
		t.Errorf("the core was told %+v", in)
	}
	differs := replicating(fmt.Sprint(other, ":", otherPort))
	cluster.set(differs)
	m, err := compare(2)
	if err != nil || m.GetComparison().GetEqual() || m.GetComparison().GetDiffering() != 1 || m.GetTargetRecordsDone() != 3 {
		t.Fatalf("with another: %v, %v", m, err)
	}
	if p := m.GetPartitions()[0]; p.GetEqual() || p.GetDifferingBuckets() != 1 || p.GetBuckets() < 2 || p.GetRecords() != 2 || p.GetTargetRecords() != 3 {
		t.Errorf("the partition: %v", p)
	}
	if in, ok := cluster.next(t).(core.ClustersCompared); !ok || in.Comparison.Equal || in.Comparison.Target != 3 {
		t.Errorf("the core was told %+v", in)
	}

	down := differs
	down.Partitions = []core.PartitionStatus{{Number: 0}}
	cluster.set(down)
	_, err = compare(0)
	wantRefusal(t, err, codes.FailedPrecondition, core.ReasonMasterDown)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	cluster.set(replicating(gone.Addr().String()))
	_, err = compare(0)
	wantRefusal(t, err, codes.Unavailable, "target_unreachable")
	if n := len(cluster.inputs); n > 0 {
		t.Errorf("the core was told %d things of comparisons that failed", n)
	}
}

// TestReplicationCommands: each call is the command of its name.
func TestReplicationCommands(t *testing.T) {
	f := start(t, Config{})
	client := controllerv1.NewControllerServiceClient(f.conn)
	cluster := newFakeCluster(sample)
	cluster.outcome = func(core.Command) core.Outcome { return core.Outcome{} }
	defer f.Lead(cluster)()
	if _, err := client.StartClusterReplication(t.Context(), &controllerv1.StartClusterReplicationRequest{}); err != nil {
		t.Error(err)
	}
	if r, err := client.CutOver(t.Context(), &controllerv1.CutOverRequest{DryRun: true}); err != nil || !r.GetOutcome().GetDryRun() {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := client.CutOver(t.Context(), &controllerv1.CutOverRequest{Force: true}); err != nil {
		t.Error(err)
	}
	if _, err := client.RollBack(t.Context(), &controllerv1.RollBackRequest{}); err != nil {
		t.Error(err)
	}
	var got []string
	for _, c := range cluster.applied {
		got = append(got, fmt.Sprintf("%s %t", c.Verb, c.Force))
	}
	want := fmt.Sprintf("%s false,%s true,%s false", core.VerbStartReplication, core.VerbCutOver, core.VerbRollBack)
	if strings.Join(got, ",") != want {
		t.Errorf("applied were %v, want %s", got, want)
	}
}
