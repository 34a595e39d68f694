package sidecar

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flarekv/flare/agent/options"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// Metrics of the log, of who follows it, and of the options that govern both.
var (
	logFilesDesc    = desc("flare_node_log_files", "Files of write-ahead log that are kept.")
	logBytesDesc    = desc("flare_node_log_bytes", "Bytes of these files.")
	logArchivedDesc = desc("flare_node_log_archived_bytes", "Bytes of those that are finished and only kept for replicas.")
	logOldestDesc   = desc("flare_node_log_oldest_index", "Index of the oldest write batch that is kept.")

	logOverdueDesc = desc("flare_node_log_overdue_bytes", "Bytes of log that would be gone, did a replica not lack them.")
	logGivenUpDesc = desc("flare_node_log_given_up_files_total", "Files of log that were deleted although a replica lacked them.")
	refusalsDesc   = desc("flare_node_stream_refusals_total", "Replication streams that were ended because of what the other node sent.", "reason")

	backupsDesc      = desc("flare_node_backups", "Complete backups in this node's backup-dir.")
	backupAtDesc     = desc("flare_node_backup_newest_timestamp_seconds", "When the newest of them was made; absent when there is none.")
	backupSizeDesc   = desc("flare_node_backup_bytes", "Bytes of these backups, files that are shared with the database included.")
	backupRunsDesc   = desc("flare_node_backup_running", "1 while a backup is made or deleted.")
	replicaLackDesc  = desc("flare_node_replica_lag_bytes", "On a master: bytes of log that the replica has not acknowledged.", "replica")
	replicaDoneDesc  = desc("flare_node_replica_catch_up_bytes", "On a master: bytes of the replica's running catch-up.", "replica", "kind")
	replicaRateDesc  = desc("flare_node_replica_catch_up_bytes_per_second", "On a master: pace of the replica's running catch-up over the last ten seconds.", "replica")
	replicaETADesc   = desc("flare_node_replica_catch_up_remaining_seconds", "On a master: time until the present phase of the replica's catch-up is over, at that pace.", "replica")
	replicaPhaseDesc = desc("flare_node_replica_catch_up_running", "On a master: 1 while the replica catches up.", "replica", "tier", "reason", "phase")

	upPhaseDesc   = desc("flare_node_catch_up_running", "On a slave: 1 while it catches up.", "tier", "reason", "phase")
	upSinceDesc   = desc("flare_node_catch_up_start_time_seconds", "On a slave: when the running catch-up began.")
	upRateDesc    = desc("flare_node_catch_up_bytes_per_second", "On a slave: pace of the running catch-up over the last ten seconds.")
	upETADesc     = desc("flare_node_catch_up_remaining_seconds", "On a slave: time until the present phase of the catch-up is over, at that pace.")
	upBatchesDesc = desc("flare_node_catch_up_batches", "On a slave: write batches of a running catch-up by the log.", "kind")
	fallbackDesc  = desc("flare_node_catch_up_fallbacks_total", "Full copies that were begun although the node had data.")
	purgedDesc    = desc("flare_node_catch_up_purged_total", "Those of them that the master's log did not go back far enough for.")
)

// optionMetrics are the options of the log as they are in force, in base units.
var optionMetrics = []struct {
	desc  *prometheus.Desc
	value func(options.Options) float64
}{
	{desc("flare_node_option_rocksdb_wal_ttl_seconds", "Option rocksdb-wal-ttl-seconds in force."),
		func(o options.Options) float64 { return float64(o.RocksDB.WALTTLSeconds) }},
	{desc("flare_node_option_rocksdb_wal_size_limit_bytes", "Option rocksdb-wal-size-limit-mb in force; 0 for no limit."),
		func(o options.Options) float64 { return float64(o.RocksDB.WALSizeLimitMB << 20) }},
	{desc("flare_node_option_rocksdb_sync_writes", "Option rocksdb-sync-writes in force: 1 if each commit waits for the disk."),
		func(o options.Options) float64 { return boolean(o.RocksDB.SyncWrites) }},
	{desc("flare_node_option_rocksdb_resync_failure_threshold", "Option rocksdb-resync-failure-threshold in force."),
		func(o options.Options) float64 { return float64(o.RocksDB.ResyncFailureThreshold) }},
	{desc("flare_node_option_rocksdb_wal_max_batch_bytes", "Option rocksdb-wal-max-batch-bytes in force."),
		func(o options.Options) float64 { return float64(o.RocksDB.WALMaxBatchBytes) }},
	{desc("flare_node_option_rocksdb_wal_sync_bytes_per_second", "Limit for catching up by the log in force, from rocksdb-wal-sync-bwlimit or reconstruction-bwlimit; 0 for no limit."),
		func(o options.Options) float64 { return float64(o.CatchUpBwlimit()) * 1024 }},
	{desc("flare_node_option_rocksdb_wal_sync_interval_seconds", "Option rocksdb-wal-sync-interval in force."),
		func(o options.Options) float64 { return o.RocksDB.WALSyncInterval.Seconds() }},
}

// effective are the options that flared has read back; false before it has.
func effective(known []*agentv1.OptionStatus) (options.Options, bool) {
	o, any := options.Default(), false
	for _, k := range known {
		if !strings.HasPrefix(k.GetKey(), "rocksdb-") && k.GetKey() != "reconstruction-bwlimit" || k.GetEffective() == "" {
			continue
		}
		if parsed, _, err := options.Parse("", []byte(k.GetKey()+" = "+k.GetEffective()), o); err == nil {
			o, any = parsed, true
		}
	}
	return o, any
}

// describeLog and collectLog are the part of the collector that this file has.
func describeLog(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		logFilesDesc, logBytesDesc, logArchivedDesc, logOldestDesc,
		logOverdueDesc, logGivenUpDesc, refusalsDesc,
		backupsDesc, backupAtDesc, backupSizeDesc, backupRunsDesc,
		replicaLackDesc, replicaDoneDesc, replicaRateDesc, replicaETADesc, replicaPhaseDesc,
		upPhaseDesc, upSinceDesc, upRateDesc, upETADesc, upBatchesDesc, fallbackDesc, purgedDesc,
	} {
		ch <- d
	}
	for _, m := range optionMetrics {
		ch <- m.desc
	}
}

func collectLog(n *agentv1.NodeStatus, known []*agentv1.OptionStatus, ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	if l := n.GetLog(); l != nil {
		gauge(logFilesDesc, float64(l.GetFiles()))
		gauge(logBytesDesc, float64(l.GetBytes()))
		gauge(logArchivedDesc, float64(l.GetArchivedBytes()))
		gauge(logOldestDesc, float64(l.GetOldestIndex()))
		gauge(logOverdueDesc, float64(l.GetOverdueBytes()))
		counter(logGivenUpDesc, l.GetGivenUpFiles())
	}
	for _, r := range n.GetStreamRefusals() {
		counter(refusalsDesc, r.GetCount(), r.GetReason())
	}
	if b := n.GetBackups(); b != nil {
		gauge(backupsDesc, float64(b.GetComplete()))
		gauge(backupSizeDesc, float64(b.GetBytes()))
		gauge(backupRunsDesc, boolean(b.GetRunning()))
		if b.GetNewestAt() != nil {
			gauge(backupAtDesc, float64(b.GetNewestAt().AsTime().UnixMilli())/1000)
		}
	}
	if o, ok := effective(known); ok {
		for _, m := range optionMetrics {
			gauge(m.desc, m.value(o))
		}
	}
	counter(fallbackDesc, n.GetCatchUpCounts().GetFallback())
	counter(purgedDesc, n.GetCatchUpCounts().GetPurged())
	if p := n.GetCatchUp().GetProgress(); p != nil {
		gauge(upPhaseDesc, 1, phaseLabels(p)...)
		gauge(upSinceDesc, float64(p.GetSince().AsTime().UnixMilli())/1000)
		gauge(upRateDesc, float64(p.GetBytesPerSecond()))
		if p.GetEta() != nil {
			gauge(upETADesc, p.GetEta().AsDuration().Seconds())
		}
		gauge(bytesDesc, float64(p.GetBytesDone()), "done")
		gauge(bytesDesc, float64(p.GetBytesTotal()), "total")
		gauge(upBatchesDesc, float64(p.GetBatchesDone()), "done")
		gauge(upBatchesDesc, float64(p.GetBatchesTotal()), "total")
	}
}

// collectReplica shows what a master knows of one replica's catch-up.
func collectReplica(r *agentv1.ReplicaStatus, ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{r.GetNode()}, labels...)...)
	}
	gauge(replicaLackDesc, float64(r.GetLagBytes()))
	p := r.GetProgress()
	if p == nil {
		return
	}
	gauge(replicaPhaseDesc, 1, phaseLabels(p)...)
	gauge(replicaDoneDesc, float64(p.GetBytesDone()), "done")
	gauge(replicaDoneDesc, float64(p.GetBytesTotal()), "total")
	gauge(replicaRateDesc, float64(p.GetBytesPerSecond()))
	if p.GetEta() != nil {
		gauge(replicaETADesc, p.GetEta().AsDuration().Seconds())
	}
}

func phaseLabels(p *agentv1.CatchUpProgress) []string {
	return []string{word(p.GetTier().String(), "TIER_"), p.GetReason(), word(p.GetPhase().String(), "CATCH_UP_PHASE_")}
}
