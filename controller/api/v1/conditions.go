package v1

// Types of the conditions in status.conditions. Each is always present once the
// controller has written a status, but where it says otherwise.
const (
	// ConditionReady is true while every partition has a master that is up.
	ConditionReady = "Ready"
	// ConditionProgressing is true while the cluster moves towards its spec.
	ConditionProgressing = "Progressing"
	// ConditionDegraded is true while a partition has fewer copies in sync than
	// asked for, or none.
	ConditionDegraded = "Degraded"
	// ConditionConfigApplied is true when every node has every option of the
	// spec in force.
	ConditionConfigApplied = "ConfigApplied"
	// ConditionBreakerOpen is true while too many nodes are lost for roles to change
	// by themselves, and for a while after enough are back.
	ConditionBreakerOpen = "BreakerOpen"
	// ConditionPaused is true while the spec or an operator wants no roles to change
	// by themselves.
	ConditionPaused = "Paused"
	// ConditionPartitionReductionRefused is true while fewer partitions are asked for
	// than there are.
	ConditionPartitionReductionRefused = "PartitionReductionRefused"
	// ConditionClusterReplication is there only while a replication to another cluster
	// is asked for or under way. It is true while the target gets every write.
	ConditionClusterReplication = "ClusterReplication"
)

// Reasons of the conditions. They are part of the API: they do not change their
// meaning, and the same strings are used in events, metrics, logs and gRPC
// errors, which is why they are written in lower snake case.
const (
	// ReasonHealthy: Ready, and nothing is missing.
	ReasonHealthy = "healthy"
	// ReasonForming: a partition has not had a master yet.
	ReasonForming = "forming"
	// ReasonMasterDown: a partition has no master that is up, and no replica that
	// may be promoted.
	ReasonMasterDown = "master_down"
	// ReasonNotEnoughInSync: a partition refuses writes, because fewer of its nodes are
	// in sync than replication.minInSync asks for.
	ReasonNotEnoughInSync = "not_enough_in_sync"
	// ReasonReplicaMissing: a partition has fewer replicas than asked for.
	ReasonReplicaMissing = "replica_missing"
	// ReasonReplicaCatchingUp: a replica is being filled or catches up.
	ReasonReplicaCatchingUp = "replica_catching_up"
	// ReasonScaling: pods are being added or removed.
	ReasonScaling = "scaling"
	// ReasonAsWanted: nothing is left to do.
	ReasonAsWanted = "as_wanted"

	// ReasonApplied: every node has the configuration in force.
	ReasonApplied = "applied"
	// ReasonApplying: not every node has reported the configuration yet.
	ReasonApplying = "applying"
	// ReasonPendingRestart: an option is in force only after a restart of a node.
	ReasonPendingRestart = "pending_restart"
	// ReasonRejected: a node refused the configuration and keeps its former values.
	ReasonRejected = "rejected"

	// ReasonWaitingForNodes: too few nodes have registered for the partitions to
	// be given masters.
	ReasonWaitingForNodes = "waiting_for_nodes"
	// ReasonWaitingForData: nodes that hold data of a partition are expected to
	// come; an empty one is not made master before.
	ReasonWaitingForData = "waiting_for_data"
	// ReasonMasterDataLost: the master of a partition came back without its data,
	// and no replica in sync is there to take over.
	ReasonMasterDataLost = "master_data_lost"
	// ReasonScaleInWaits: a node that shall go has a duty that no other node can take
	// over yet.
	ReasonScaleInWaits = "scale_in_waits_for_replica"

	// ReasonPartitionFilling: a new partition's master collects its keys.
	ReasonPartitionFilling = "partition_filling"
	// ReasonPartitionSwitching: it has them; writes of these keys wait for a moment.
	ReasonPartitionSwitching = "partition_switching"

	// ReasonPartitionReduction: fewer partitions were asked for; see the rule of
	// the resource for the safe way.
	ReasonPartitionReduction = "partition_reduction"
	// ReasonMetaChange: another mapping of keys to partitions was asked for.
	ReasonMetaChange = "meta_change_unsupported"
	// ReasonSpecInvalid: the spec cannot be acted on; the former one stays in force.
	ReasonSpecInvalid = "spec_invalid"

	// ReasonBreakerClosed: roles change by themselves where they have to.
	ReasonBreakerClosed = "breaker_closed"
	// ReasonBreakerOpen: more nodes are lost than failover.maxDownFraction allows.
	ReasonBreakerOpen = "breaker_open"
	// ReasonBreakerHalfOpen: enough nodes are back, and it must stay so for a while.
	ReasonBreakerHalfOpen = "breaker_half_open"
	// ReasonBreakerOverridden: an operator lets roles change in spite of the breaker.
	ReasonBreakerOverridden = "breaker_overridden"
	// ReasonZoneLost: no node of a zone is left. With failover.onZoneLoss: hold that
	// opens the breaker.
	ReasonZoneLost = "zone_lost"
	// ReasonPaused: an operator has paused the cluster.
	ReasonPaused = "paused"
	// ReasonPausedBySpec: spec.paused is true.
	ReasonPausedBySpec = "paused_by_spec"
	// ReasonNotPaused: neither.
	ReasonNotPaused = "not_paused"
	// ReasonReplicationChecking: the target of the cluster replication is being looked at.
	ReasonReplicationChecking = "checking_target"
	// ReasonTargetUnreachable: nobody answers there.
	ReasonTargetUnreachable = "target_unreachable"
	// ReasonTargetIncompatible: it answers, but not as a node of a whole cluster.
	ReasonTargetIncompatible = "target_incompatible"
	// ReasonTargetIsSelf: the target is a node of this cluster.
	ReasonTargetIsSelf = "target_is_self"
	// ReasonTargetReplicatesHere: the target replicates to this cluster.
	ReasonTargetReplicatesHere = "target_replicates_here"
	// ReasonDumping: the target is sent all records, and every write.
	ReasonDumping = "dumping"
	// ReasonForwarding: it has all records and gets every write.
	ReasonForwarding = "forwarding"
	// ReasonCuttingOver: writes wait until it has everything.
	ReasonCuttingOver = "cutting_over"
	// ReasonCutOver: it answers the clients. While that is so the replication cannot be
	// switched off, only rolled back.
	ReasonCutOver = "cut_over"
	// ReasonRolledBack: an operator ended the replication, and has to begin it again.
	ReasonRolledBack = "rolled_back"
	// ReasonReplicationRunning: another target or mode was asked for meanwhile.
	ReasonReplicationRunning = "replication_running"

	// ReasonPersistFailed: the node map could not be saved; no role changes.
	ReasonPersistFailed = "persist_failed"
)
