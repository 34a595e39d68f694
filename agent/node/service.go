package node

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/replication/history"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/topology"
)

const (
	// watchInterval is the longest time between two statuses of WatchNode.
	watchInterval = time.Second
	// watchPause is the shortest; positions change all the time.
	watchPause = 50 * time.Millisecond
)

// service is NodeService, for the agent beside this process.
type service struct {
	agentv1.UnimplementedNodeServiceServer
	s *Server
}

// serveAgent opens the agent's socket; the returned function closes it.
func (s *Server) serveAgent() (stop func(), err error) {
	path := s.live.Load().AgentSocket
	if path == "" {
		return func() {}, nil
	}
	l, err := listenUnix("agent-socket", path, 0o660)
	if err != nil {
		return nil, err
	}
	log := logging.LoggerFunc(func(ctx context.Context, level logging.Level, msg string, fields ...any) {
		s.logger.Log(ctx, slog.Level(level), msg, fields...)
	})
	onlyFailures := logging.WithLevels(func(code codes.Code) logging.Level {
		if code == codes.OK || code == codes.Canceled || code == codes.Unavailable {
			return logging.LevelDebug
		}
		return logging.LevelWarn
	})
	g := grpc.NewServer(
		grpc.ChainUnaryInterceptor(logging.UnaryServerInterceptor(log, onlyFailures), recovery.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(logging.StreamServerInterceptor(log, onlyFailures), recovery.StreamServerInterceptor()),
	)
	agentv1.RegisterNodeServiceServer(g, &service{s: s})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.Serve(l); err != nil {
			s.logger.Error("agent socket failed", "error", err)
		}
	}()
	return func() {
		g.Stop()
		<-done
	}, nil
}

// WatchNode implements NodeService.
func (v *service) WatchNode(_ *agentv1.WatchNodeRequest, stream grpc.ServerStreamingServer[agentv1.WatchNodeResponse]) error {
	ctx := stream.Context()
	tick := time.NewTimer(watchInterval)
	defer tick.Stop()
	for {
		changed, replicas, urgent := v.s.changed.wait(), v.s.source.Notify(), v.s.urgent.wait()
		if err := stream.Send(&agentv1.WatchNodeResponse{Status: v.s.nodeStatus()}); err != nil {
			return err
		}
		tick.Reset(watchInterval)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-changed:
		case <-replicas:
		case <-urgent:
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-urgent:
		case <-time.After(watchPause):
		}
	}
}

// ApplyOptions implements NodeService.
func (v *service) ApplyOptions(_ context.Context, req *agentv1.ApplyOptionsRequest) (*agentv1.ApplyOptionsResponse, error) {
	accepted, statuses, err := v.s.applyText([]byte(req.GetText()))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	statuses = slices.DeleteFunc(statuses, func(st options.Status) bool {
		spec, _ := options.Find(st.Key)
		own := !strings.HasPrefix(st.Key, options.EnginePrefix)
		return st.Line == 0 && (!spec.Live || !own && st.Effective == spec.Default)
	})
	v.s.settings.mu.Lock()
	defer v.s.settings.mu.Unlock()
	return &agentv1.ApplyOptionsResponse{Accepted: accepted, Options: v.s.settings.messages(statuses)}, nil
}

var roles = map[topology.Role]agentv1.Role{
	topology.Master: agentv1.Role_ROLE_MASTER,
	topology.Slave:  agentv1.Role_ROLE_SLAVE,
	topology.Proxy:  agentv1.Role_ROLE_PROXY,
}

var states = map[topology.State]agentv1.State{
	topology.Active:  agentv1.State_STATE_ACTIVE,
	topology.Prepare: agentv1.State_STATE_PREPARE,
	topology.Down:    agentv1.State_STATE_DOWN,
	topology.Ready:   agentv1.State_STATE_READY,
}

var tiers = map[history.Tier]agentv1.Tier{
	history.TierWAL:        agentv1.Tier_TIER_WAL,
	history.TierCheckpoint: agentv1.Tier_TIER_CHECKPOINT,
	history.TierDump:       agentv1.Tier_TIER_DUMP,
	history.TierRewind:     agentv1.Tier_TIER_REWIND,
}

func lsnProto(l topology.LSN) *agentv1.Lsn { return &agentv1.Lsn{Epoch: l.Epoch, Index: l.Index} }

// nodeStatus gathers what this node can tell about itself.
func (s *Server) nodeStatus() *agentv1.NodeStatus {
	pos := s.db.Position()
	held, catcher, counts := s.roles.snapshot()
	st := &agentv1.NodeStatus{
		Node:             s.self,
		Instance:         s.instance,
		Version:          s.version,
		StartedAt:        timestamppb.New(s.started),
		NotServingReason: cmp.Or(s.status.get(), s.standDown.reason()),
		MapVersion:       s.maps.mapVersion(),
		Lsn:              lsnProto(pos.LSN),
		DataPartition:    agentv1.OptionalPartition(pos.Partition),
		History:          pos.History,
		Connections:      uint32(s.connections()),
		ExpirySweep: &agentv1.ExpirySweep{
			Walks: s.sweeper.walks.Load(), Removed: s.sweeper.removed.Load(), RemovedBytes: s.sweeper.bytes.Load(),
		},
	}
	st.Serving = st.NotServingReason == ""
	s.leaseProto(st)
	if t := s.maps.table(); t != nil && t.known {
		st.Role, st.State, st.Partition = roles[t.own.Role], states[t.own.State], agentv1.OptionalPartition(t.own.Partition)
	}
	s.growthProto(st, catcher)
	if held.held {
		for _, r := range s.replicas() {
			st.Replicas = append(st.Replicas, &agentv1.ReplicaStatus{
				Node: r.Key, Connected: r.Connected, InSync: r.InSync, Acked: lsnProto(r.Acked),
				LagBatches: r.LagBatches, Lag: durationpb.New(r.Lag), Tier: tiers[r.Tier], LagBytes: r.LagBytes, Reason: r.Reason, Progress: progressProto(r.Progress),
			})
		}
	}
	st.ClusterReplication = s.clusterStatus()
	s.handoverStatus(st, held.held)
	if catcher != nil {
		f := catcher.Status()
		counts.add(f)
		st.CatchUp = &agentv1.CatchUp{
			Master: f.Master, Connected: f.Connected, Tier: tiers[f.Tier], MasterLsn: lsnProto(f.MasterLSN),
			BytesDone: f.BytesDone, BytesTotal: f.BytesTotal, RecordsDone: f.RecordsDone,
			LastErrorReason: f.ErrorReason, LastError: f.Error,
			Progress: progressProto(f.Progress), Reason: f.Reason, Waiting: f.Waiting,
		}
	}
	st.CatchUpCounts = &agentv1.CatchUpCounts{
		Wal: counts.wal, Checkpoint: counts.checkpoint, Dump: counts.dump, Failed: counts.failed,
		Fallback: counts.fallbacks, Purged: counts.purged,
		Rewind: counts.rewinds, RewoundKeys: counts.rewoundKeys, RewoundBytes: counts.rewoundBytes, RewindsGivenUp: counts.rewindsGivenUp,
	}
	st.Log = s.logStatus.get(s.db, time.Now())
	st.Backups = s.backupStatus()
	for _, reason := range replication.RefusalReasons {
		st.StreamRefusals = append(st.StreamRefusals, &agentv1.StreamRefusal{Reason: reason, Count: s.refusals.Counted(reason)})
	}
	return st
}
