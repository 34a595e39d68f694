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
	ReasonImported  = "imported" // from the map of another index server
	ReasonUp        = "node_up"
	ReasonSurplus   = "surplus_replica"
	ReasonRemoved   = "removed"

	// Why the spec, or a part of it, is not acted on.
	ReasonPartitionReduction = "partition_reduction"
	ReasonMetaChange         = "meta_change_unsupported"
	ReasonSpecInvalid        = "spec_invalid"

	// Why roles do not change by themselves, and when they do again.
	ReasonPaused          = "paused" // by an operator
	ReasonPausedBySpec    = "paused_by_spec"
	ReasonNotPaused       = "not_paused"
	ReasonResumed         = "resumed"
	ReasonBreakerOpen     = "breaker_open"
	ReasonBreakerHalfOpen = "breaker_half_open"
	ReasonBreakerClosed   = "breaker_closed"
	ReasonZoneLost        = "zone_lost"
	ReasonZoneBack        = "zone_back"
	ReasonOverridden      = "breaker_overridden"
	ReasonOverrideOver    = "override_over"
	ReasonGraceOver       = "grace_over"

	// An operator has accepted that what was acknowledged may be lost.
	ReasonDataLossAllowed = "data_loss_allowed"

	// Why a wanted assignment is not made.
	ReasonManualMap        = "map_made_by_hand"
	ReasonWaitingForNodes  = "waiting_for_nodes"
	ReasonWaitingForData   = "waiting_for_data"
	ReasonMasterDataLost   = "master_data_lost"
	ReasonScaleInWaits     = "scale_in_waits_for_replica"
	ReasonMasterDown       = "master_down"
	ReasonPersistFailed    = "persist_failed"
	ReasonScaling          = "scaling"
	ReasonHealthy          = "healthy"
	ReasonForming          = "forming"
	ReasonReplicaMissing   = "replica_missing"
	ReasonNotEnoughInSync  = "not_enough_in_sync"
	ReasonReplicaCatchUp   = "replica_catching_up"
	ReasonAsWanted         = "as_wanted"
	ReasonApplied          = "applied"
	ReasonApplying         = "applying"
	ReasonPendingRestart   = "pending_restart"
	ReasonRejected         = "rejected"
	ReasonNodeDown         = "node_down"
	ReasonPartitionsFormed = "partitions_formed"

	// What becomes of a partition that is added.
	ReasonPartitionFilling   = "partition_filling"
	ReasonPartitionSwitching = "partition_switching"
	ReasonSwitchTakenBack    = "partition_switch_taken_back"
	ReasonPartitionAdded     = "partition_added"
	ReasonGrowthStopped      = "partition_growth_stopped"
	ReasonOrphansPurged      = "orphans_purged"

	// What becomes of orders to nodes.
	ReasonOrderFailed = "order_failed"
	ReasonOrderLost   = "order_lost"

	// Why an order is given.
	CauseScaleIn     = "scale_in"
	CauseTerminating = "pod_terminating"
	CauseDraining    = "node_draining"
	CauseRebalance   = "rebalance"
	CauseOrphans     = "orphan_keys"
	CauseOperator    = ReasonOperator

	// Why a command is refused. Where flarei has a text of its own for that, the text
	// is the answer on the index protocol and the reason is for gRPC, metrics and logs.
	RefuseNotRegistered  = "not_registered"
	RefuseBadHello       = "bad_hello"
	RefuseStaleEpoch     = "stale_epoch"
	RefuseStaleGrant     = "stale_grant"
	RefuseStalePause     = "stale_pause"
	RefuseNotReplica     = "not_a_replica"
	RefuseMasterDown     = "master_down"
	RefuseIsMaster       = "is_master"
	RefuseIsReplica      = "is_replica"
	RefuseGrantRequired  = "grant_required"
	RefuseNoSuchNode     = "no_such_node"
	RefuseNotMaster      = "not_master"
	RefuseNotInSync      = "target_not_in_sync"
	RefuseLeaving        = "target_leaving"   // its machine is drained, its pod ends, or it is to go with a scale-in
	RefuseNotNow         = "not_accepted_now" // there is no spec
	RefuseUnknownVerb    = "unknown_verb"
	RefuseNodeDown       = "node_down"
	RefuseNodeUp         = "node_up"
	RefuseBalance        = "bad_balance"   // negative, or nobody of the partition would be read
	RefusePartition      = "bad_partition" // there is none of that number, and it is not the next one
	RefuseHasMaster      = "has_master"
	RefuseNotActive      = "not_active"
	RefuseNotPreparing   = "not_preparing"
	RefuseNotReady       = "not_ready"
	RefuseState          = "bad_state"
	RefuseKeepsPartition = "keeps_partition" // the entry of its dead master holds a partition's number
	RefuseDataLoss       = "data_loss"       // it may lose what was acknowledged; allow_data_loss does it all the same
	RefuseInSyncLeft     = "in_sync_replica_left"
	RefuseLease          = ReasonWaitingForLease // the former master may take writes still
	RefuseNote           = "bad_note"            // none where one is needed, or too long
	RefuseSeconds        = "bad_seconds"
	RefuseNoAgent        = "no_agent" // of the registered process, who could be told
	RefuseNoInSync       = "no_in_sync_replica"
	RefuseRunning        = "already_running"
	RefuseBeingAdded     = "partition_being_added"

	// Why the map of another index server is not taken over.
	RefuseStateExists     = "state_exists"     // the cluster has nodes or partitions already
	RefuseMapIncomplete   = "map_incomplete"   // it does not describe a whole cluster
	RefusePartitionsOther = "partitions_other" // it has not as many partitions as are asked for

	// Why nobody may register under a name now, or from there.
	RefuseBadName   = "bad_name"
	RefuseMapFull   = "map_full"
	RefuseUnproven  = "too_many_unproven"
	RefuseOtherPod  = "name_of_other_pod"
	RefuseNameInUse = "name_in_use"
)
