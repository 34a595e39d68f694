package admin

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/controller/target"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// maxRounds bounds what a comparison may be asked for.
const maxRounds = 100

// clusterReportOf translates what a node says about its replication to another cluster.
func clusterReportOf(c *agentv1.ClusterReplication) core.ClusterReport {
	if c == nil {
		return core.ClusterReport{}
	}
	d := c.GetDump()
	return core.ClusterReport{
		Destination: c.GetDestination(),
		Mode:        core.ReplicationMode(c.GetMode()),
		Active:      c.GetActive(),
		Connected:   c.GetConnected(),
		Reason:      c.GetReason(),
		Dumped:      d.GetCompleted() > 0 && !d.GetRunning() && !d.GetDue(),
		Percent:     int(d.GetPercent()),
		Records:     d.GetRecords(),
		Total:       d.GetTotal(),
		Queued:      c.GetQueuedBatches(),
		Lag:         c.GetLag().AsDuration().Milliseconds(),
		Dropped:     c.GetDropped(),
		Failed:      c.GetFailed(),
		Held:        c.GetHeld(),
	}
}

// replicationProto translates what is known of the cluster replication; nil when there
// never was one and none is asked for.
func replicationProto(t runtime.Topology) *controllerv1.ClusterReplicationTopology {
	r := t.Replication
	if r == (core.Replication{}) && !t.Spec.Replication.Enabled {
		return nil
	}
	out := &controllerv1.ClusterReplicationTopology{
		Phase: phaseProto(r.Phase), Target: r.Target, Mode: string(r.Mode), Runs: r.Runs, Compared: comparisonProto(r.Compared),
	}
	if r.Since > 0 {
		out.Since = timestamppb.New(time.UnixMilli(r.Since))
	}
	for _, c := range t.Status.Conditions {
		if c.Type == core.ConditionClusterReplication {
			out.Reason, out.Message = c.Reason, c.Message
		}
	}
	for _, p := range t.ReplicationProgress {
		c := p.Report
		out.Partitions = append(out.Partitions, &controllerv1.PartitionReplication{
			Partition: agentv1.OptionalPartition(p.Partition), Master: p.Node, Reason: p.Reason,
			Dumped: c.Dumped, Connected: c.Connected, Percent: uint32(c.Percent), Records: c.Records, Total: c.Total,
			QueuedBatches: c.Queued, Lag: durationpb.New(time.Duration(c.Lag) * time.Millisecond), Failed: c.Failed, Held: c.Held,
		})
	}
	return out
}

func phaseProto(p core.ReplicationPhase) controllerv1.ReplicationPhase {
	switch p {
	case core.ReplicationDumping:
		return controllerv1.ReplicationPhase_REPLICATION_PHASE_DUMPING
	case core.ReplicationForwarding:
		return controllerv1.ReplicationPhase_REPLICATION_PHASE_FORWARDING
	case core.ReplicationCuttingOver:
		return controllerv1.ReplicationPhase_REPLICATION_PHASE_CUTTING_OVER
	case core.ReplicationCutOver:
		return controllerv1.ReplicationPhase_REPLICATION_PHASE_CUT_OVER
	default:
		return controllerv1.ReplicationPhase_REPLICATION_PHASE_UNSPECIFIED
	}
}

// comparisonProto translates a comparison; nil for none.
func comparisonProto(c core.Comparison) *controllerv1.ClusterComparison {
	if c == (core.Comparison{}) {
		return nil
	}
	out := &controllerv1.ClusterComparison{
		Equal: c.Equal, Exact: c.Exact, Records: c.Records, TargetRecords: c.Target, Differing: uint32(c.Differing),
	}
	if c.At > 0 {
		out.At = timestamppb.New(time.UnixMilli(c.At))
	}
	return out
}

// CompareClusters compares all records of both clusters, and has the core remember the
// outcome: a cut-over asks for it.
func (c *controllerService) CompareClusters(req *controllerv1.CompareClustersRequest, stream grpc.ServerStreamingServer[controllerv1.CompareClustersResponse]) error {
	l, err := c.s.lead()
	if err != nil {
		return err
	}
	t := l.Topology()
	if t.Replication.Phase == core.ReplicationNone {
		return refusal(codes.FailedPrecondition, core.RefuseNotReplicating, "there is no cluster replication under way")
	}
	if req.GetRounds() > maxRounds {
		return refusal(codes.InvalidArgument, ReasonRounds, "rounds is %d: want at most %d", req.GetRounds(), maxRounds)
	}
	cmp := target.Comparison{Target: t.Replication.Target, Meta: t.Meta, Partitions: len(t.Partitions), Rounds: int(req.GetRounds())}
	for _, p := range t.Partitions {
		if p.Master == "" {
			return refusal(codes.FailedPrecondition, core.ReasonMasterDown, "partition %d has no master whose records could be compared", p.Number)
		}
		cmp.Source = append(cmp.Source, p.Master)
	}
	cmp.Progress = func(p target.Progress) error {
		return stream.Send(&controllerv1.CompareClustersResponse{Round: uint32(p.Round), RecordsDone: p.Source, TargetRecordsDone: p.Target})
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(l.over, cancel)()
	out, err := target.Compare(ctx, cmp)
	var failed *target.Error
	switch {
	case errors.As(err, &failed):
		return refusal(codes.Unavailable, failed.Reason, "%v", err)
	case err != nil && stream.Context().Err() != nil:
		return status.FromContextError(stream.Context().Err()).Err()
	case err != nil && l.over.Err() != nil:
		return c.s.notLeader()
	case err != nil:
		return err
	}
	found := core.Comparison{
		At: time.Now().UnixMilli(), Equal: out.Equal, Exact: out.Exact,
		Records: out.Source.Records, Target: out.Target.Records, Differing: out.Differing,
	}
	l.Observe(core.ClustersCompared{Target: t.Replication.Target, Run: t.Replication.Runs, Comparison: found})
	last := &controllerv1.CompareClustersResponse{
		RecordsDone: out.Source.Records, TargetRecordsDone: out.Target.Records, Comparison: comparisonProto(found),
	}
	for i, p := range out.Partitions {
		last.Partitions = append(last.Partitions, &controllerv1.PartitionComparison{
			Partition: agentv1.OptionalPartition(i), Equal: p.Equal, Records: p.Source.Records, TargetRecords: p.Target.Records,
			Bytes: p.Source.Bytes, TargetBytes: p.Target.Bytes, Checksum: p.Source.Checksum, TargetChecksum: p.Target.Checksum,
			DifferingBuckets: uint32(p.Differing), Buckets: uint32(p.Buckets),
		})
	}
	return stream.Send(last)
}

// StartClusterReplication begins the replication anew after a roll-back.
func (c *controllerService) StartClusterReplication(ctx context.Context, req *controllerv1.StartClusterReplicationRequest) (*controllerv1.StartClusterReplicationResponse, error) {
	out, r, err := c.replicate(ctx, core.Command{Verb: core.VerbStartReplication}, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &controllerv1.StartClusterReplicationResponse{Outcome: out, Replication: r}, nil
}

// CutOver lets the target take the clients over.
func (c *controllerService) CutOver(ctx context.Context, req *controllerv1.CutOverRequest) (*controllerv1.CutOverResponse, error) {
	out, r, err := c.replicate(ctx, core.Command{Verb: core.VerbCutOver, Force: req.GetForce()}, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &controllerv1.CutOverResponse{Outcome: out, Replication: r}, nil
}

// RollBack makes this cluster answer its clients by itself.
func (c *controllerService) RollBack(ctx context.Context, req *controllerv1.RollBackRequest) (*controllerv1.RollBackResponse, error) {
	out, r, err := c.replicate(ctx, core.Command{Verb: core.VerbRollBack, Force: req.GetForce()}, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &controllerv1.RollBackResponse{Outcome: out, Replication: r}, nil
}

// replicate has a command about the cluster replication carried out, and returns where
// it is then.
func (c *controllerService) replicate(ctx context.Context, cmd core.Command, dryRun bool) (*controllerv1.Outcome, *controllerv1.ClusterReplicationTopology, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, nil, err
	}
	out, err := c.s.operate(ctx, l, cmd, dryRun)
	if err != nil {
		return nil, nil, err
	}
	return out, replicationProto(l.Topology()), nil
}
