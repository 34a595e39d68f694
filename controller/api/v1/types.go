package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FlareCluster is one flare cluster: partitions of a key space, each on a
// master and its replicas.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=flareclusters,singular=flarecluster,shortName=fc,scope=Namespaced
// +kubebuilder:printcolumn:name="Partitions",type=integer,JSONPath=`.spec.partitions`,description="Partitions asked for"
// +kubebuilder:printcolumn:name="Replicas",type=integer,JSONPath=`.spec.replicas`,description="Nodes per partition asked for, master included"
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.nodesReady`,description="Nodes in service / nodes asked for"
// +kubebuilder:printcolumn:name="Masters",type=string,JSONPath=`.status.masters`,description="Partitions that take writes / partitions asked for"
// +kubebuilder:printcolumn:name="Map",type=integer,JSONPath=`.status.mapVersion`,description="Version of the node map"
// +kubebuilder:printcolumn:name="Config",type=string,JSONPath=`.status.config`,description="What became of the configuration"
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.reason`,description="Reason of the condition that matters most now"
// +kubebuilder:printcolumn:name="Phase",type=string,priority=1,JSONPath=`.status.phase`,description="Condition of the cluster in one word"
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.message`,description="The reason in words"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type FlareCluster struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What is asked for.
	Spec FlareClusterSpec `json:"spec"`

	// What is. Written by the controller only.
	// +optional
	Status FlareClusterStatus `json:"status,omitempty"`
}

// FlareClusterList is a list of clusters.
//
// +kubebuilder:object:root=true
type FlareClusterList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []FlareCluster `json:"items"`
}

// FlareClusterSpec is what is asked for.
//
// +kubebuilder:validation:XValidation:rule="self.partitions >= oldSelf.partitions",message="partition_reduction: partitions cannot be decreased: the keys of the removed partitions would be lost; create a second cluster with fewer partitions and move the data by cluster replication",reason=FieldValueForbidden,fieldPath=".partitions"
// +kubebuilder:validation:XValidation:rule="self.partitionSize == oldSelf.partitionSize",message="partitionSize is immutable: it decides which partition a key belongs to",reason=FieldValueForbidden,fieldPath=".partitionSize"
// +kubebuilder:validation:XValidation:rule="self.partitionSize > self.partitions",message="partitionSize must be greater than partitions",reason=FieldValueInvalid,fieldPath=".partitionSize"
// +kubebuilder:validation:XValidation:rule="self.keyMapping == oldSelf.keyMapping",message="keyMapping is immutable: it decides which partition a key belongs to",reason=FieldValueForbidden,fieldPath=".keyMapping"
// +kubebuilder:validation:XValidation:rule="!self.clusterReplication.enabled || size(self.clusterReplication.target) > 0",message="clusterReplication.target is missing: want host:port of a node of the other cluster",reason=FieldValueInvalid,fieldPath=".clusterReplication.target"
// +kubebuilder:validation:XValidation:rule="!has(self.replication.minInSync) || self.replication.minInSync <= self.replicas",message="replication.minInSync must not be greater than replicas: no write would ever be taken",reason=FieldValueInvalid,fieldPath=".replication.minInSync"
type FlareClusterSpec struct {
	// Number of partitions that the key space is split into. Each has one master. It
	// can be increased: partitions are added one at a time, while the others serve.
	// It cannot be decreased.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1023
	Partitions int32 `json:"partitions"`

	// Nodes per partition, the master included: 1 means no copy, 2 one replica.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=8
	Replicas int32 `json:"replicas"`

	// Upper bound of the number of partitions that the mapping of keys to
	// partitions is computed for; greater than partitions. Clients and nodes of one
	// cluster must agree on it, so it cannot be changed.
	// +kubebuilder:default=1024
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=4096
	// +optional
	PartitionSize int32 `json:"partitionSize,omitempty"`

	// How keys are mapped to partitions, beside partitionSize. The defaults are those of
	// the original; a cluster whose node map was imported must have its own. It cannot
	// be changed.
	// +kubebuilder:default={}
	// +optional
	KeyMapping KeyMappingSpec `json:"keyMapping,omitempty"`

	// How writes reach the replicas.
	// +kubebuilder:default={}
	// +optional
	Replication ReplicationSpec `json:"replication,omitempty"`

	// When roles change by themselves, and when they do not.
	// +kubebuilder:default={}
	// +optional
	Failover FailoverSpec `json:"failover,omitempty"`

	// Whether to leave every node its role: nobody is promoted, and no node is given or
	// relieved of a duty. The map is still served, clients and replication go on, and
	// options are still applied; a master that hands over may do so.
	// +optional
	Paused bool `json:"paused,omitempty"`

	// Storage options of the nodes. They take effect without a restart; some of
	// options do so at the next one.
	// +kubebuilder:default={}
	// +optional
	RocksDB RocksDBSpec `json:"rocksdb,omitempty"`

	// Replication to another cluster, to move to it: see the operations guide.
	// +kubebuilder:default={}
	// +optional
	ClusterReplication ClusterReplicationSpec `json:"clusterReplication,omitempty"`

	// What follows when partitions are added.
	// +kubebuilder:default={}
	// +optional
	ScaleOut ScaleOutSpec `json:"scaleOut,omitempty"`
}

// ScaleOutSpec tells what follows when partitions are added.
type ScaleOutSpec struct {
	// Removal of the keys that went to a new partition from the nodes that had them.
	// +kubebuilder:default={}
	// +optional
	OrphanPurge OrphanPurgeSpec `json:"orphanPurge,omitempty"`
}

// OrphanPurgeSpec tells whether and when keys are removed that belong to another
// partition by now.
type OrphanPurgeSpec struct {
	// false: they stay, and take space, until somebody orders orphan_purge by hand.
	// +kubebuilder:default=true
	// +optional
	Enabled *bool `json:"enabled,omitempty"`

	// Seconds from when the last new partition is in force.
	// +kubebuilder:default=3600
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=31536000
	// +optional
	DelaySeconds *int64 `json:"delaySeconds,omitempty"`
}

// KeyMappingSpec tells how keys are mapped to partitions.
type KeyMappingSpec struct {
	// key-hash-algorithm of the original.
	// +kubebuilder:default=simple
	// +optional
	Hash KeyHash `json:"hash,omitempty"`

	// partition-type of the original, which knows no other.
	// +kubebuilder:default=modular
	// +optional
	Type PartitionType `json:"type,omitempty"`

	// partition-modular-hint of the original.
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4096
	// +optional
	Hint int32 `json:"hint,omitempty"`

	// partition-modular-virtual of the original.
	// +kubebuilder:default=4096
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1048576
	// +optional
	Virtual int32 `json:"virtual,omitempty"`
}

// KeyHash is the hash of keys.
//
// +kubebuilder:validation:Enum=simple;bitshift;crc32;adler32;murmur;jenkins
type KeyHash string

// PartitionType is the way from hashes to partitions.
//
// +kubebuilder:validation:Enum=modular
type PartitionType string

// PartitionModular is the one there is.
const PartitionModular PartitionType = "modular"

// ClusterReplicationSpec asks for the replication of this cluster to another one. While
// it runs, target and mode cannot be changed.
type ClusterReplicationSpec struct {
	// Whether to replicate. true sends the target all records and then every write, and
	// nothing more: the cut-over is asked for with CutOver. false ends that, but not a
	// cut-over, which is ended with RollBack.
	// +kubebuilder:default=false
	// +optional
	Enabled bool `json:"enabled"`

	// host:port of any node of the other cluster, or of a Service in front of its nodes.
	// +kubebuilder:default=""
	// +kubebuilder:validation:MaxLength=259
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?:[1-9][0-9]{0,4})?$`
	// +optional
	Target string `json:"target"`

	// duplicate: the target gets all records and every write, and this cluster answers.
	// forward: the target answers every request of clients from the beginning, and gets
	// no records: for one that has the data already.
	// +kubebuilder:default=duplicate
	// +optional
	Mode ClusterReplicationMode `json:"mode,omitempty"`

	// Connections of each master to the target.
	// +kubebuilder:default=2
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=64
	// +optional
	Concurrency int32 `json:"concurrency,omitempty"`

	// MiB of log that a master keeps while the target cannot be reached; beyond it all
	// records are sent anew.
	// +kubebuilder:default=1024
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16777216
	// +optional
	SpoolLimitMB int64 `json:"spoolLimitMb,omitempty"`
}

// ClusterReplicationMode tells what the target gets.
//
// +kubebuilder:validation:Enum=duplicate;forward
type ClusterReplicationMode string

// The modes.
const (
	ClusterReplicationDuplicate ClusterReplicationMode = "duplicate"
	ClusterReplicationForward   ClusterReplicationMode = "forward"
)

// ReplicationMode tells when a write is answered.
//
// +kubebuilder:validation:Enum=sync;async
type ReplicationMode string

// The replication modes.
const (
	// ReplicationSync answers a write when the master and every replica that is
	// in sync have it: what was acknowledged survives a failover.
	ReplicationSync ReplicationMode = "sync"
	// ReplicationAsync answers a write when the master has it: a failover may
	// lose what the promoted replica had not received.
	ReplicationAsync ReplicationMode = "async"
)

// ReplicationSpec tells how writes reach the replicas.
type ReplicationSpec struct {
	// sync: a write is answered when the master and every in-sync replica have it.
	// async: when the master has it.
	// +kubebuilder:default=sync
	// +optional
	Mode ReplicationMode `json:"mode,omitempty"`

	// Nodes of a partition, the master included, that must be in sync for the
	// partition to take writes; below it they are refused, and reads go on. 1: writes
	// go on with the master alone. Of no effect in mode async.
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=8
	// +optional
	MinInSync int32 `json:"minInSync,omitempty"`
}

// ZoneLossPolicy tells what becomes of the roles of a zone that is lost as a whole.
//
// +kubebuilder:validation:Enum=failover;hold
type ZoneLossPolicy string

// The policies.
const (
	// ZoneLossFailover lets replicas in sync in other zones take over.
	ZoneLossFailover ZoneLossPolicy = "failover"
	// ZoneLossHold changes no roles: somebody has to look at it first.
	ZoneLossHold ZoneLossPolicy = "hold"
)

// FailoverSpec tells when roles change by themselves, and when they do not.
type FailoverSpec struct {
	// Part of the nodes that may be lost at once. More opens the circuit breaker: no
	// role changes (condition BreakerOpen) until enough nodes are back, or an operator
	// overrides it. 0.5 lets one of two zones be lost; 1 switches the breaker off.
	// +kubebuilder:default=0.5
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1
	// +optional
	MaxDownFraction *float64 `json:"maxDownFraction,omitempty"`

	// What the loss of a whole zone (of two nodes or more) does: failover lets replicas
	// in sync elsewhere take over, hold opens the breaker.
	// +kubebuilder:default=failover
	// +optional
	OnZoneLoss ZoneLossPolicy `json:"onZoneLoss,omitempty"`

	// Seconds after the controller's start, or a change of the leader, in which nobody
	// is declared dead for silence or failed pings. It is over as soon as every node was
	// heard of. What a node's own agent or Kubernetes says counts at once.
	// +kubebuilder:default=120
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=3600
	// +optional
	GraceSeconds *int32 `json:"graceSeconds,omitempty"`
}

// RocksDBSpec holds the storage options. An absent field takes its default.
type RocksDBSpec struct {
	// Seconds for which write-ahead logs that are no longer needed for recovery are
	// kept, so that a replica that was away can catch up from them.
	// +kubebuilder:default=10800
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=31536000
	// +optional
	WALTTLSeconds *int64 `json:"walTtlSeconds,omitempty"`

	// MiB of such logs that are kept; the oldest go first. 0: no limit by size.
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=16777216
	// +optional
	WALSizeLimitMB *int64 `json:"walSizeLimitMb,omitempty"`

	// Whether every commit waits for the disk. false: a crash of the machine (not of
	// the process) may lose the last moments on that node; in-sync replicas have them.
	// +kubebuilder:default=false
	// +optional
	SyncWrites *bool `json:"syncWrites,omitempty"`

	// Consecutive attempts to catch up that brought nothing, after which a replica
	// answers no reads and reports itself down until it is in step again.
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	// +optional
	ResyncFailureThreshold *int32 `json:"resyncFailureThreshold,omitempty"`

	// Bytes up to which concurrent writes are grouped into one batch.
	// +kubebuilder:default=1048576
	// +kubebuilder:validation:Minimum=4096
	// +kubebuilder:validation:Maximum=67108864
	// +optional
	WALMaxBatchBytes *int64 `json:"walMaxBatchBytes,omitempty"`

	// KiB per second at which a replica that catches up reads its master's log. 0: no limit of its own.
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=16777216
	// +optional
	WALSyncBwlimit *int64 `json:"walSyncBwlimit,omitempty"`

	// Milliseconds between the positions that a master and a replica tell each other
	// while nothing is written.
	// +kubebuilder:default=500
	// +kubebuilder:validation:Minimum=10
	// +kubebuilder:validation:Maximum=60000
	// +optional
	WALSyncInterval *int64 `json:"walSyncInterval,omitempty"`

	// Options of RocksDB itself by RocksDB's names, such as write_buffer_size: "33554432".
	// docs/options.md lists them with their ranges (rocksdb-option-*) and tells which
	// wait for a restart. One that the nodes refuse is named in the condition
	// ConfigApplied, and none of the file takes effect.
	// +kubebuilder:validation:MaxProperties=64
	// +optional
	Options map[string]RocksDBOption `json:"options,omitempty"`
}

// RocksDBOption is the value of one, in RocksDB's writing.
//
// +kubebuilder:validation:Pattern=`^[A-Za-z0-9_.:+-]+$`
// +kubebuilder:validation:MaxLength=64
type RocksDBOption string

// FlareClusterStatus is what is.
type FlareClusterStatus struct {
	// metadata.generation that this status was computed for.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Condition of the cluster in one word.
	// +optional
	Phase Phase `json:"phase,omitempty"`

	// Reason of the condition that matters most now; machine-readable.
	// +optional
	Reason string `json:"reason,omitempty"`

	// The reason in words.
	// +optional
	Message string `json:"message,omitempty"`

	// Nodes in service / nodes asked for, such as 4/4.
	// +optional
	NodesReady string `json:"nodesReady,omitempty"`

	// Partitions that take writes / partitions asked for, such as 2/2.
	// +optional
	Masters string `json:"masters,omitempty"`

	// What became of the configuration: applied, 3/4 (nodes that have it), rejected.
	// +optional
	Config string `json:"config,omitempty"`

	// Version of the node map; grows by one with every change.
	// +optional
	MapVersion int64 `json:"mapVersion"`

	// One entry a partition, by number.
	// +optional
	// +listType=map
	// +listMapKey=partition
	Partitions []PartitionStatus `json:"partitions,omitempty"`

	// The replication to another cluster; absent while there is none.
	// +optional
	ClusterReplication *ClusterReplicationStatus `json:"clusterReplication,omitempty"`

	// Ready, Progressing, Degraded, ConfigApplied, BreakerOpen, Paused,
	// PartitionReductionRefused, ClusterReplication.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ClusterReplicationStatus is how far the replication to another cluster is.
type ClusterReplicationStatus struct {
	// None, Dumping (all records and every write are being sent), Forwarding (the target
	// has all records and gets every write), CuttingOver (writes wait until it has
	// everything), CutOver (it answers the clients).
	// +optional
	Phase string `json:"phase,omitempty"`

	// host:port of a node of the other cluster.
	// +optional
	Target string `json:"target,omitempty"`

	// One entry a partition, by number.
	// +optional
	// +listType=map
	// +listMapKey=partition
	Partitions []PartitionReplicationStatus `json:"partitions,omitempty"`

	// The last comparison of both clusters since it began.
	// +optional
	Compared *ClusterComparison `json:"compared,omitempty"`
}

// PartitionReplicationStatus is one partition of it.
type PartitionReplicationStatus struct {
	// Number from 0.
	Partition int32 `json:"partition"`

	// Whether the target has all records.
	// +optional
	Dumped bool `json:"dumped"`

	// How much of the records was looked at.
	// +optional
	Percent int32 `json:"percent"`

	// Why nothing gets through, machine-readable; absent when it does.
	// +optional
	Reason string `json:"reason,omitempty"`
}

// ClusterComparison is what a comparison of both clusters found.
type ClusterComparison struct {
	// When it ended.
	// +optional
	At metav1.Time `json:"at,omitempty"`

	// Whether both have the same records.
	// +optional
	Equal bool `json:"equal"`

	// Whether records were compared, and not only counted.
	// +optional
	Exact bool `json:"exact"`

	// Records of this cluster.
	// +optional
	Records int64 `json:"records"`

	// Records of the target.
	// +optional
	TargetRecords int64 `json:"targetRecords"`

	// Partitions in which they differ.
	// +optional
	Differing int32 `json:"differing"`
}

// Phase is the condition of a cluster in one word.
//
// +kubebuilder:validation:Enum=Forming;Running;Progressing;Degraded;Unavailable
type Phase string

// The phases.
const (
	// PhaseForming: not every partition has had a master yet.
	PhaseForming Phase = "Forming"
	// PhaseRunning: as asked for.
	PhaseRunning Phase = "Running"
	// PhaseProgressing: serving, on the way to what is asked for.
	PhaseProgressing Phase = "Progressing"
	// PhaseDegraded: serving, with fewer copies than asked for.
	PhaseDegraded Phase = "Degraded"
	// PhaseUnavailable: at least one partition takes no writes.
	PhaseUnavailable Phase = "Unavailable"
)

// PartitionStatus is one partition.
type PartitionStatus struct {
	// Number from 0.
	Partition int32 `json:"partition"`

	// Epoch of its master; grows by one with every promotion.
	// +optional
	Epoch int64 `json:"epoch,omitempty"`

	// host:port of its master; empty when it has none that is up.
	// +optional
	Master string `json:"master,omitempty"`

	// host:port of its replicas that are in sync, by name.
	// +optional
	InSync []string `json:"inSync,omitempty"`

	// host:port of its replicas that are catching up, by name.
	// +optional
	Preparing []string `json:"preparing,omitempty"`

	// Healthy: a master and every replica in sync. Degraded: a master, fewer
	// replicas in sync. Down: no master. Forming: no master yet. Preparing: it is being
	// added, and its keys are still where they were.
	// +optional
	State PartitionState `json:"state,omitempty"`
}

// PartitionState is the condition of a partition.
//
// +kubebuilder:validation:Enum=Healthy;Degraded;Down;Forming;Preparing
type PartitionState string

// The partition states.
const (
	PartitionHealthy  PartitionState = "Healthy"
	PartitionDegraded PartitionState = "Degraded"
	PartitionDown     PartitionState = "Down"
	PartitionForming  PartitionState = "Forming"
	// PartitionPreparing: its future master collects the keys.
	PartitionPreparing PartitionState = "Preparing"
)
