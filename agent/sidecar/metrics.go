package sidecar

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// collector shows what the agent knows at the moment of the scrape.
type collector struct{ a *Agent }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// flare_agent_* are about the agent, its configuration and its links, flare_node_*
// about flared; the latter are absent while flared is.
var (
	infoDesc       = desc("flare_agent_info", "1, with the agent's and flared's version, the node's name and its zone.", "version", "flared_version", "node", "zone")
	upDesc         = desc("flare_agent_flared_up", "1 while flared's process answers on its socket.")
	readyDesc      = desc("flare_agent_flared_ready", "1 while clients can be served by this node; reason is empty then.", "reason")
	restartsDesc   = desc("flare_agent_flared_restarts_total", "How often flared's process was seen to end.")
	controllerDesc = desc("flare_agent_controller_connected", "1 while the link to the leading controller is up.")
	rejectedDesc   = desc("flare_agent_config_rejected", "1 while the options file is rejected and former values are in force.")
	configDesc     = desc("flare_agent_config_info", "1, with the hash of the options file that was read and of the one that was applied.", "hash", "applied_hash")
	generationDesc = desc("flare_agent_config_generation", "Generation of the FlareCluster that the options file was rendered from; 0 when not known.")
	changedDesc    = desc("flare_agent_config_changed_timestamp_seconds", "When the last change of the options was applied or rejected.")
	optionsDesc    = desc("flare_agent_config_options", "Options by what became of them.", "state")
	appliesDesc    = desc("flare_agent_config_applies_total", "Answers of flared to an options file.", "result")

	startDesc       = desc("flare_node_start_time_seconds", "When the process started.")
	servingDesc     = desc("flare_node_serving", "1 while the node is registered and answers clients.")
	roleDesc        = desc("flare_node_role", "1 for the role of the node.", "role")
	stateDesc       = desc("flare_node_state", "1 for the state of the node.", "state")
	partitionDesc   = desc("flare_node_partition", "Partition of the node, -1 for none.")
	mapDesc         = desc("flare_node_map_version", "Version of the node map in force.")
	epochDesc       = desc("flare_node_lsn_epoch", "Epoch of the position of the database.")
	indexDesc       = desc("flare_node_lsn_index", "Index of the position of the database; grows by one with every write batch.")
	connectionsDesc = desc("flare_node_connections", "Open client connections.")

	leaseDesc        = desc("flare_node_lease_valid", "1 while the node may take writes as a master, 0 while it refuses them or waits for its first lease; absent on nodes that are no master or need no lease.")
	leaseLeftDesc    = desc("flare_node_lease_remaining_seconds", "How long its lease still lasts, as last heard.")
	leaseRenewsDesc  = desc("flare_node_lease_renewals_total", "Leases that the node got, by who gave them.", "source")
	leaseRefusesDesc = desc("flare_node_lease_refused_writes_total", "Writes refused for want of a lease.")

	replicaUpDesc   = desc("flare_node_replica_connected", "On a master: 1 while the replica's stream is connected.", "replica")
	replicaSyncDesc = desc("flare_node_replica_in_sync", "On a master: 1 while writes wait for the replica.", "replica")
	replicaLagDesc  = desc("flare_node_replica_lag_batches", "On a master: write batches that the replica has not acknowledged.", "replica")
	replicaAgeDesc  = desc("flare_node_replica_lag_seconds", "On a master: age of the oldest batch that the replica has not acknowledged.", "replica")

	followingDesc      = desc("flare_node_catch_up_connected", "On a slave: 1 while the stream from the master is connected.")
	behindDesc         = desc("flare_node_catch_up_lag_batches", "On a slave: write batches between the master's position as last heard and its own.")
	bytesDesc          = desc("flare_node_catch_up_bytes", "On a slave: bytes of the running catch-up, of a copy or of log.", "kind")
	walksDesc          = desc("flare_node_expiry_walks_total", "Walks over all records for expired ones that this node finished as a master.")
	expiredDesc        = desc("flare_node_expired_removed_total", "Expired records that this node removed as a master.")
	freedDesc          = desc("flare_node_expired_removed_bytes_total", "Bytes of the keys and values of these records.")
	clusterUpDesc      = desc("flare_node_cluster_replication_connected", "1 while the other cluster takes what this master sends it.", "destination", "reason")
	clusterQueueDesc   = desc("flare_node_cluster_replication_queued_batches", "Write batches that the other cluster lacks.")
	clusterBytesDesc   = desc("flare_node_cluster_replication_queued_bytes", "About how many bytes of log these are.")
	clusterAgeDesc     = desc("flare_node_cluster_replication_lag_seconds", "Age of the oldest of them.")
	clusterOpsDesc     = desc("flare_node_cluster_replication_operations_total", "Operations sent to the other cluster, by what became of them.", "result")
	clusterDropDesc    = desc("flare_node_cluster_replication_dropped_batches_total", "Write batches given up because too much log was kept.")
	clusterRetryDesc   = desc("flare_node_cluster_replication_retried_total", "Operations sent again.")
	clusterConnDesc    = desc("flare_node_cluster_replication_reconnects_total", "Connections that took the place of lost ones.")
	clusterDumpDesc    = desc("flare_node_cluster_replication_dump_records", "Records sent by the running or last dump, and records of the database.", "kind")
	clusterSizeDesc    = desc("flare_node_cluster_replication_dump_bytes", "Bytes of keys and values sent by it.")
	clusterPartDesc    = desc("flare_node_cluster_replication_dump_percent", "How much of the database it has gone by.")
	clusterForwardDesc = desc("flare_node_cluster_replication_forwarded_total", "Requests passed to the other cluster in mode forward.", "result")
	handoversDesc      = desc("flare_node_handovers_total", "Handovers of this node's mastership since its process started.", "result")
	handoverPauseDesc  = desc("flare_node_handover_last_pause_seconds", "For how long writes waited in the last one.")
	inSyncDesc         = desc("flare_node_in_sync_nodes", "On a master: nodes of the partition that have every answered write, itself included.")
	minInSyncDesc      = desc("flare_node_min_in_sync", "On a master: how many of them there must be for writes to be taken.")
	tiersDesc          = desc("flare_node_catch_ups_total", "How this node caught up as a replica since its process started.", "tier")
)

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		infoDesc, upDesc, readyDesc, restartsDesc, controllerDesc, rejectedDesc, configDesc, generationDesc, changedDesc, optionsDesc, appliesDesc,
		startDesc, servingDesc, roleDesc, stateDesc, partitionDesc, mapDesc, epochDesc, indexDesc, connectionsDesc,
		leaseDesc, leaseLeftDesc, leaseRenewsDesc, leaseRefusesDesc,
		replicaUpDesc, replicaSyncDesc, replicaLagDesc, replicaAgeDesc, followingDesc, behindDesc, bytesDesc, tiersDesc, walksDesc, expiredDesc, freedDesc,
		clusterUpDesc, clusterQueueDesc, clusterBytesDesc, clusterAgeDesc, clusterOpsDesc, clusterDropDesc, clusterRetryDesc, clusterConnDesc,
		handoversDesc, handoverPauseDesc, inSyncDesc, minInSyncDesc,
		clusterDumpDesc, clusterSizeDesc, clusterPartDesc, clusterForwardDesc,
	} {
		ch <- d
	}
	describeLog(ch)
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s, ready := c.a.snapshot(), c.a.readiness()
	n := s.Flared.Status

	gauge(infoDesc, 1, s.Version, n.GetVersion(), s.Node, s.Zone)
	gauge(upDesc, boolean(s.Flared.Alive))
	gauge(readyDesc, boolean(ready.Ready), ready.Reason)
	counter(restartsDesc, uint64(s.Flared.Restarts))
	gauge(controllerDesc, boolean(s.Controller))
	gauge(rejectedDesc, boolean(s.Config.Rejected))
	gauge(configDesc, 1, s.Config.File.Hash, s.Config.Applied)
	gauge(generationDesc, float64(s.Config.File.Generation))
	if !s.Config.ChangedAt.IsZero() {
		gauge(changedDesc, float64(s.Config.ChangedAt.UnixMilli())/1000)
	}
	states := make(map[agentv1.OptionState]int)
	for _, o := range s.Config.Options {
		states[o.GetState()]++
	}
	for st, name := range agentv1.OptionState_name {
		gauge(optionsDesc, float64(states[agentv1.OptionState(st)]), word(name, "OPTION_STATE_"))
	}
	counter(appliesDesc, s.Config.Applies.Accepted, "accepted")
	counter(appliesDesc, s.Config.Applies.Rejected, "rejected")
	counter(appliesDesc, s.Config.Applies.Failed, "failed")

	if !s.Flared.Alive {
		return
	}
	if n.GetStartedAt() != nil {
		gauge(startDesc, float64(n.GetStartedAt().AsTime().UnixMilli())/1000)
	}
	gauge(servingDesc, boolean(n.GetServing()))
	gauge(roleDesc, 1, word(n.GetRole().String(), "ROLE_"))
	gauge(stateDesc, 1, word(n.GetState().String(), "STATE_"))
	gauge(partitionDesc, float64(agentv1.PartitionNumber(n.Partition)))
	gauge(mapDesc, float64(n.GetMapVersion()))
	gauge(epochDesc, float64(n.GetLsn().GetEpoch()))
	gauge(indexDesc, float64(n.GetLsn().GetIndex()))
	gauge(connectionsDesc, float64(n.GetConnections()))
	counter(walksDesc, n.GetExpirySweep().GetWalks())
	counter(expiredDesc, n.GetExpirySweep().GetRemoved())
	counter(freedDesc, n.GetExpirySweep().GetRemovedBytes())

	if l := n.GetLease(); l != nil {
		if l.GetState() >= agentv1.LeaseState_LEASE_STATE_PENDING {
			gauge(leaseDesc, boolean(l.GetState() == agentv1.LeaseState_LEASE_STATE_HELD))
			gauge(leaseLeftDesc, l.GetRemaining().AsDuration().Seconds())
		}
		counter(leaseRenewsDesc, l.GetRenewalsController(), "controller")
		counter(leaseRenewsDesc, l.GetRenewalsFailsafe(), "failsafe")
		counter(leaseRefusesDesc, l.GetRefusedWrites())
	}

	shown := make(map[string]bool) // two metrics with the same labels would fail the scrape
	for _, r := range n.GetReplicas() {
		if shown[r.GetNode()] {
			continue
		}
		shown[r.GetNode()] = true
		gauge(replicaUpDesc, boolean(r.GetConnected()), r.GetNode())
		gauge(replicaSyncDesc, boolean(r.GetInSync()), r.GetNode())
		gauge(replicaLagDesc, float64(r.GetLagBatches()), r.GetNode())
		gauge(replicaAgeDesc, r.GetLag().AsDuration().Seconds(), r.GetNode())
		collectReplica(r, ch)
	}
	if u := n.GetCatchUp(); u != nil {
		gauge(followingDesc, boolean(u.GetConnected()))
		if own, master := n.GetLsn().GetIndex(), u.GetMasterLsn().GetIndex(); u.GetMasterLsn() != nil {
			gauge(behindDesc, float64(master-min(own, master)))
		}
	}
	collectLog(n, s.Config.Options, ch)
	if r := n.GetClusterReplication(); r != nil {
		gauge(clusterUpDesc, boolean(r.GetConnected()), r.GetDestination(), r.GetReason())
		gauge(clusterQueueDesc, float64(r.GetQueuedBatches()))
		gauge(clusterBytesDesc, float64(r.GetQueuedBytes()))
		gauge(clusterAgeDesc, r.GetLag().AsDuration().Seconds())
		counter(clusterOpsDesc, r.GetSent(), "sent")
		counter(clusterOpsDesc, r.GetFailed(), "failed")
		counter(clusterDropDesc, r.GetDropped())
		counter(clusterRetryDesc, r.GetRetried())
		counter(clusterConnDesc, r.GetReconnects())
		gauge(clusterDumpDesc, float64(r.GetDump().GetRecords()), "sent")
		gauge(clusterDumpDesc, float64(r.GetDump().GetTotal()), "total")
		gauge(clusterSizeDesc, float64(r.GetDump().GetBytes()))
		gauge(clusterPartDesc, float64(r.GetDump().GetPercent()))
		counter(clusterForwardDesc, r.GetForwarded(), "answered")
		counter(clusterForwardDesc, r.GetForwardFailed(), "failed")
	}
	counter(handoversDesc, n.GetHandovers()-min(n.GetHandovers(), n.GetHandoversFailed()), "done")
	counter(handoversDesc, n.GetHandoversFailed(), "failed")
	if h := n.GetLastHandover(); h != nil {
		gauge(handoverPauseDesc, h.GetPaused().AsDuration().Seconds())
	}
	if n.GetMinInSync() > 0 {
		gauge(inSyncDesc, float64(n.GetInSyncNodes()))
		gauge(minInSyncDesc, float64(n.GetMinInSync()))
	}
	counter(tiersDesc, n.GetCatchUpCounts().GetWal(), "wal")
	counter(tiersDesc, n.GetCatchUpCounts().GetCheckpoint(), "checkpoint")
	counter(tiersDesc, n.GetCatchUpCounts().GetDump(), "dump")
	counter(tiersDesc, n.GetCatchUpCounts().GetRewind(), "rewind")
	counter(tiersDesc, n.GetCatchUpCounts().GetFailed(), "failed")
}

// word is an enum's name as people write it.
func word(name, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
