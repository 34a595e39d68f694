package v1

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Defaults of the optional fields of a spec. The API server fills them in; they
// are repeated here for specs that never went through one.
const (
	DefaultPartitionSize          = 1024
	DefaultKeyHash                = "simple"
	DefaultPartitionHint          = 1
	DefaultPartitionVirtual       = 4096
	DefaultClusterConcurrency     = 2
	DefaultClusterSpoolLimitMB    = 1024
	DefaultMinInSync              = 1
	DefaultMaxDownFraction        = 0.5
	DefaultGraceSeconds           = 120
	DefaultWALTTLSeconds          = 10800
	DefaultWALSizeLimitMB         = 0
	DefaultSyncWrites             = false
	DefaultResyncFailureThreshold = 3
	DefaultWALMaxBatchBytes       = 1 << 20
	DefaultWALSyncBwlimit         = 0
	DefaultWALSyncInterval        = 500
	DefaultOrphanPurgeEnabled     = true
	DefaultOrphanPurgeDelay       = 3600
)

// renderHeader is the first line of what RenderConfig returns.
const renderHeader = "# Rendered by flare-controller from the FlareCluster resource; edits are overwritten."

// Default fills the absent optional fields in place.
func (s *FlareClusterSpec) Default() {
	if s.PartitionSize == 0 {
		s.PartitionSize = DefaultPartitionSize
	}
	if s.Replication.Mode == "" {
		s.Replication.Mode = ReplicationSync
	}
	if s.Replication.MinInSync == 0 {
		s.Replication.MinInSync = DefaultMinInSync
	}
	f := &s.Failover
	orElse(&f.MaxDownFraction, DefaultMaxDownFraction)
	if f.OnZoneLoss == "" {
		f.OnZoneLoss = ZoneLossFailover
	}
	orElse(&f.GraceSeconds, DefaultGraceSeconds)
	k := &s.KeyMapping
	k.Hash = cmp.Or(k.Hash, DefaultKeyHash)
	k.Type = cmp.Or(k.Type, PartitionModular)
	k.Hint = cmp.Or(k.Hint, DefaultPartitionHint)
	k.Virtual = cmp.Or(k.Virtual, DefaultPartitionVirtual)
	c := &s.ClusterReplication
	c.Mode = cmp.Or(c.Mode, ClusterReplicationDuplicate)
	c.Concurrency = cmp.Or(c.Concurrency, DefaultClusterConcurrency)
	c.SpoolLimitMB = cmp.Or(c.SpoolLimitMB, DefaultClusterSpoolLimitMB)
	r := &s.RocksDB
	orElse(&r.WALTTLSeconds, DefaultWALTTLSeconds)
	orElse(&r.WALSizeLimitMB, DefaultWALSizeLimitMB)
	orElse(&r.SyncWrites, DefaultSyncWrites)
	orElse(&r.ResyncFailureThreshold, DefaultResyncFailureThreshold)
	orElse(&r.WALMaxBatchBytes, DefaultWALMaxBatchBytes)
	orElse(&r.WALSyncBwlimit, DefaultWALSyncBwlimit)
	orElse(&r.WALSyncInterval, DefaultWALSyncInterval)
	orElse(&s.ScaleOut.OrphanPurge.Enabled, DefaultOrphanPurgeEnabled)
	orElse(&s.ScaleOut.OrphanPurge.DelaySeconds, DefaultOrphanPurgeDelay)
}

func orElse[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

// RenderConfig returns the text of extra.conf for a spec: the options that the
// nodes of the cluster shall have, one "name = value" a line. Whether and how they
// replicate to another cluster is not among them: that changes while the spec does not,
// and the core adds it. Equal specs give
// equal bytes, and an absent field gives the same bytes as its default. The
// spec is not changed.
func RenderConfig(spec FlareClusterSpec) string {
	s := *spec.DeepCopy()
	s.Default()
	r := s.RocksDB
	var b strings.Builder
	b.WriteString(renderHeader + "\n")
	for _, o := range []struct{ key, value string }{
		{"replication-type", string(s.Replication.Mode)},
		{"replication-min-in-sync", strconv.FormatInt(int64(s.Replication.MinInSync), 10)},
		{"rocksdb-wal-ttl-seconds", strconv.FormatInt(*r.WALTTLSeconds, 10)},
		{"rocksdb-wal-size-limit-mb", strconv.FormatInt(*r.WALSizeLimitMB, 10)},
		{"rocksdb-sync-writes", strconv.FormatBool(*r.SyncWrites)},
		{"rocksdb-resync-failure-threshold", strconv.FormatInt(int64(*r.ResyncFailureThreshold), 10)},
		{"rocksdb-wal-max-batch-bytes", strconv.FormatInt(*r.WALMaxBatchBytes, 10)},
		{"rocksdb-wal-sync-bwlimit", strconv.FormatInt(*r.WALSyncBwlimit, 10)},
		{"rocksdb-wal-sync-interval", strconv.FormatInt(*r.WALSyncInterval, 10)},
	} {
		fmt.Fprintf(&b, "%s = %s\n", o.key, o.value)
	}
	if c := s.ClusterReplication; c.Enabled {
		fmt.Fprintf(&b, "cluster-replication-concurrency = %d\ncluster-replication-spool-limit-mb = %d\n", c.Concurrency, c.SpoolLimitMB)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Options)) {
		fmt.Fprintf(&b, "rocksdb-option-%s = %s\n", oneWord(name), oneWord(string(r.Options[name])))
	}
	return b.String()
}

// oneWord makes a name or value that is no single word one that the nodes refuse:
// the names of a map are the one thing that no schema keeps from having a line of
// their own.
func oneWord(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.:+-", r) {
			return r
		}
		return '?'
	}, s)
}
