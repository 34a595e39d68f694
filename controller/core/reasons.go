package core

// Reasons are machine-readable and stable: the same strings appear in
// conditions, events, logs and replies.
const (
	// Why a node was taken down.
	ReasonProcessDead    = "process_dead"      // its agent says so
	ReasonProcessRestart = "process_restarted" // its agent sees another process
	ReasonPodGone        = "pod_gone"
	ReasonPodTerminating = "pod_terminating"
	ReasonPingFailed     = "ping_failed"
	ReasonSilent         = "agent_and_ping_silent"
	ReasonShutdown       = "shutdown"      // it said that it leaves
	ReasonReregistered   = "re_registered" // it registers again, so the former process is dead
	ReasonOperator       = "operator"

	// Why a master that may be dead is not taken down yet.
	ReasonWaitingForLease = "waiting_for_lease"

	// Why a node got a duty.
	ReasonBootstrap = "bootstrap"
	ReasonRecovery  = "recovery" // from the data that nodes hold
	ReasonFailover  = "failover"
	ReasonHandover  = "handover"
	ReasonReplica   = "replica_assigned"
	ReasonInSync    = "in_sync"
	ReasonBehind    = "behind"
	ReasonAdopted   = "adopted" // found running, though not in the (lost) map
	ReasonAdded     = "added"
	ReasonUp        = "node_up"
	ReasonSurplus   = "surplus_replica"
	ReasonRemoved   = "removed"

	// Why the spec, or a part of it, is not acted on.
	ReasonPartitionReduction = "partition_reduction"
	ReasonPartitionGrowth    = "partition_growth_unsupported"
	ReasonMetaChange         = "meta_change_unsupported"
	ReasonSpecInvalid        = "spec_invalid"

	// Why a wanted assignment is not made.
	ReasonManualMap        = "map_made_by_hand"
	ReasonWaitingForNodes  = "waiting_for_nodes"
	ReasonWaitingForData   = "waiting_for_data"
	ReasonMasterDataLost   = "master_data_lost"
	ReasonScaleInHandover  = "scale_in_needs_handover"
	ReasonMasterDown       = "master_down"
	ReasonPersistFailed    = "persist_failed"
	ReasonScaling          = "scaling"
	ReasonHealthy          = "healthy"
	ReasonForming          = "forming"
	ReasonReplicaMissing   = "replica_missing"
	ReasonReplicaCatchUp   = "replica_catching_up"
	ReasonAsWanted         = "as_wanted"
	ReasonApplied          = "applied"
	ReasonApplying         = "applying"
	ReasonPendingRestart   = "pending_restart"
	ReasonRejected         = "rejected"
	ReasonNodeDown         = "node_down"
	ReasonPartitionsFormed = "partitions_formed"

	// Why a command is refused, beside the fixed texts of the protocol.
	RefuseNotRegistered = "not_registered"
	RefuseBadHello      = "bad_hello"
	RefuseStaleEpoch    = "stale_epoch"
	RefuseStaleGrant    = "stale_grant"
	RefuseNotReplica    = "not_a_replica"
	RefuseMasterDown    = "master_down"
	RefuseIsMaster      = "is_master"
	RefuseGrantRequired = "grant_required"
	RefuseNoSuchNode    = "no_such_node"
	RefuseNotMaster     = "not_master"
	RefuseNotInSync     = "target_not_in_sync"
)
