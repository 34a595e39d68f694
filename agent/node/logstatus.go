package node

import (
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/storage"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// logStatusAge is how old what is told of the retained log may be: the status is
// sent many times a second, and the log is looked up on the disk.
const logStatusAge = time.Second

// A logStatus remembers what was last seen of the retained log.
type logStatus struct {
	mu   sync.Mutex
	at   time.Time
	last *agentv1.LogStatus // nil before the first look; never modified
}

// get returns what is retained of the log; nil if that cannot be told.
func (l *logStatus) get(db *storage.DB, now time.Time) *agentv1.LogStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != nil && now.Sub(l.at) < logStatusAge {
		return l.last
	}
	st, err := db.Stats()
	if err != nil {
		return l.last
	}
	l.at = now
	l.last = &agentv1.LogStatus{
		Files: uint64(st.WALFiles), Bytes: uint64(st.WALBytes),
		ArchivedFiles: uint64(st.Archived), ArchivedBytes: uint64(st.ArchivedBytes),
		OldestIndex: st.OldestIndex, OverdueBytes: uint64(st.OverdueBytes),
		GivenUpFiles: st.GivenUpLogs, GivenUpReason: st.GivenUpReason,
	}
	return l.last
}

var phases = map[replication.Phase]agentv1.CatchUpPhase{
	replication.PhaseWaiting: agentv1.CatchUpPhase_CATCH_UP_PHASE_WAITING,
	replication.PhaseCopy:    agentv1.CatchUpPhase_CATCH_UP_PHASE_COPY,
	replication.PhaseInstall: agentv1.CatchUpPhase_CATCH_UP_PHASE_INSTALL,
	replication.PhaseLog:     agentv1.CatchUpPhase_CATCH_UP_PHASE_LOG,
}

// progressProto tells how far a catch-up is; nil when none is under way.
func progressProto(p replication.Progress) *agentv1.CatchUpProgress {
	if p.Phase == replication.PhaseNone {
		return nil
	}
	m := &agentv1.CatchUpProgress{
		Phase: phases[p.Phase], Tier: tiers[p.Tier], Reason: p.Reason, Since: timestamppb.New(p.Since),
		BytesDone: p.BytesDone, BytesTotal: p.BytesTotal, BytesPerSecond: uint64(p.Rate),
		BatchesDone: p.BatchesDone, BatchesTotal: p.BatchesAll, RecordsDone: p.Records,
	}
	if p.ETA >= 0 {
		m.Eta = durationpb.New(p.ETA.Round(time.Millisecond))
	}
	return m
}
