package node

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// appendLogStats appends what the original has nothing of: the log, how this node
// catches up from another's, and how far its replicas are.
func (s *Server) appendLogStats(dst []byte, st storage.Stats) []byte {
	str := func(name, value string) { dst = text.AppendStat(dst, "rocksdb_"+name, value) }
	num := func(name string, v uint64) { str(name, strconv.FormatUint(v, 10)) }
	pos := s.db.Position()
	held, follower, counts := s.roles.snapshot()
	if follower != nil {
		counts.add(follower.Status())
	}
	str("master_id", pos.History)
	num("epoch", pos.LSN.Epoch)
	num("lsn", pos.LSN.Index)
	num("oldest_lsn", st.OldestIndex)
	num("wal_files", uint64(st.WALFiles))
	num("wal_bytes", uint64(st.WALBytes))
	num("wal_overdue_bytes", uint64(st.OverdueBytes))
	num("wal_given_up_files", st.GivenUpLogs)
	str("wal_given_up_reason", st.GivenUpReason)
	num("wal_sync_success", counts.wal)
	num("wal_fallback_to_dump", counts.fallbacks)
	num("wal_sync_lsn_purged", counts.purged)
	num("wal_rewinds", counts.rewinds)
	num("wal_rewind_keys", counts.rewoundKeys)
	num("wal_rewind_bytes", counts.rewoundBytes)
	num("wal_rewinds_given_up", counts.rewindsGivenUp)
	num("checkpoint_syncs", counts.checkpoint)
	num("wal_sync_failures", counts.failed)
	num("resync_stand_downs", s.standDown.count.Load())
	for _, reason := range replication.RefusalReasons {
		num("stream_refused_"+reason, s.refusals.Counted(reason))
	}
	o := s.live.Load()
	for _, spec := range options.Specs() {
		if strings.HasPrefix(spec.Key, options.EnginePrefix) {
			continue // those of RocksDB itself are in stats settings
		}
		if name, ok := strings.CutPrefix(spec.Key, "rocksdb-"); ok {
			str(strings.ReplaceAll(name, "-", "_"), o.Value(spec.Key))
		}
	}
	if held.held {
		for _, r := range s.replicas() {
			num("replica_"+r.Key+"_lag_batches", r.LagBatches)
			num("replica_"+r.Key+"_lag_bytes", r.LagBytes)
			str("replica_"+r.Key+"_lag_seconds", strconv.FormatFloat(r.Lag.Seconds(), 'f', 3, 64))
		}
	}
	return dst
}

// countedItems is up to how many records are counted; RocksDB's estimate, which is
// off by the overwrites and deletions that it has not compacted yet, must do for
// more.
const countedItems = 50_000

// An itemCount is a count of the records that is not made more often than necessary.
type itemCount struct {
	mu    sync.Mutex
	at    time.Time
	took  time.Duration
	lsn   topology.LSN
	known bool
	n     uint64
}

// count returns how many records there are, expired ones included; false if there
// are too many to be counted.
func (c *itemCount) count(ctx context.Context, db *storage.DB, st storage.Stats) (uint64, bool) {
	if st.Keys > 4*countedItems {
		return 0, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	// Whoever asks all the time does not keep the node counting all the time.
	if c.known && (c.lsn == st.LSN || now.Sub(c.at) < 20*c.took) {
		return c.n, c.n <= countedItems
	}
	scan := db.Scan(storage.ScanOptions{KeysOnly: true})
	for scan.Count() <= countedItems && scan.Next(ctx) {
	}
	if scan.Err() != nil {
		return 0, false
	}
	c.at, c.took, c.lsn, c.known, c.n = now, time.Since(now), st.LSN, true, scan.Count()
	return c.n, c.n <= countedItems
}
