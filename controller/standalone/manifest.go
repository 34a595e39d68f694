package standalone

import (
	"fmt"
	"os"
	"regexp"

	"sigs.k8s.io/yaml"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/proto/topology"
)

// maxManifest bounds the file: a FlareCluster has a few lines.
const maxManifest = 1 << 20

// ReadManifest reads a FlareCluster manifest with defaults filled in. Fields it
// does not know are errors, and so are values that the API server would refuse.
func ReadManifest(path string) (*v1.FlareCluster, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the cluster manifest: %w", err)
	}
	if info.Size() > maxManifest {
		return nil, fmt.Errorf("cluster manifest %s has %d bytes; at most %d are read", path, info.Size(), maxManifest)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the cluster manifest: %w", err)
	}
	c, err := ParseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("cluster manifest %s: %w", path, err)
	}
	return c, nil
}

// ParseManifest is ReadManifest for the content of a file.
func ParseManifest(b []byte) (*v1.FlareCluster, error) {
	c := &v1.FlareCluster{}
	if err := yaml.UnmarshalStrict(b, c); err != nil {
		return nil, err
	}
	if want := v1.GroupVersion.String(); c.APIVersion != want || c.Kind != "FlareCluster" {
		return nil, fmt.Errorf("apiVersion %q, kind %q: want apiVersion %q, kind %q", c.APIVersion, c.Kind, want, "FlareCluster")
	}
	if c.Name == "" {
		return nil, fmt.Errorf("metadata.name is missing: want a name for the cluster")
	}
	c.Spec.Default()
	return c, validate(&c.Spec)
}

var (
	optionName        = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,48}$`)
	replicationTarget = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?:[1-9][0-9]{0,4})?$`)
	optionValue       = regexp.MustCompile(`^[A-Za-z0-9_.:+-]{1,64}$`)
)

// validate repeats the bounds of the CustomResourceDefinition, which no API
// server enforces here.
func validate(s *v1.FlareClusterSpec) error {
	r := s.RocksDB
	for _, f := range []struct {
		name             string
		value, low, high int64
	}{
		{"partitions", int64(s.Partitions), 1, 1023},
		{"replicas", int64(s.Replicas), 1, 8},
		{"partitionSize", int64(s.PartitionSize), 2, 4096},
		{"keyMapping.hint", int64(s.KeyMapping.Hint), 1, 4096},
		{"keyMapping.virtual", int64(s.KeyMapping.Virtual), 1, 1048576},
		{"clusterReplication.concurrency", int64(s.ClusterReplication.Concurrency), 1, 64},
		{"clusterReplication.spoolLimitMb", s.ClusterReplication.SpoolLimitMB, 1, 16777216},
		{"replication.minInSync", int64(s.Replication.MinInSync), 1, int64(s.Replicas)},
		{"failover.graceSeconds", int64(*s.Failover.GraceSeconds), 0, 3600},
		{"rocksdb.walTtlSeconds", *r.WALTTLSeconds, 1, 31536000},
		{"rocksdb.walSizeLimitMb", *r.WALSizeLimitMB, 0, 16777216},
		{"rocksdb.resyncFailureThreshold", int64(*r.ResyncFailureThreshold), 1, 1000},
		{"rocksdb.walMaxBatchBytes", *r.WALMaxBatchBytes, 4096, 67108864},
		{"rocksdb.walSyncBwlimit", *r.WALSyncBwlimit, 0, 16777216},
		{"rocksdb.walSyncInterval", *r.WALSyncInterval, 10, 60000},
		{"scaleOut.orphanPurge.delaySeconds", *s.ScaleOut.OrphanPurge.DelaySeconds, 0, 31536000},
	} {
		if f.value < f.low || f.value > f.high {
			return fmt.Errorf("spec.%s is %d: want %d to %d", f.name, f.value, f.low, f.high)
		}
	}
	if f := *s.Failover.MaxDownFraction; !(f >= 0 && f <= 1) {
		return fmt.Errorf("spec.failover.maxDownFraction is %v: want 0 to 1", f)
	}
	if p := s.Failover.OnZoneLoss; p != v1.ZoneLossFailover && p != v1.ZoneLossHold {
		return fmt.Errorf("spec.failover.onZoneLoss is %q: want %q or %q", p, v1.ZoneLossFailover, v1.ZoneLossHold)
	}
	if len(r.Options) > 64 {
		return fmt.Errorf("spec.rocksdb.options has %d entries: want at most 64", len(r.Options))
	}
	for name, value := range r.Options {
		if !optionName.MatchString(name) || !optionValue.MatchString(string(value)) {
			return fmt.Errorf("spec.rocksdb.options has %q: %q: want a name of RocksDB and a value, such as write_buffer_size: \"33554432\"", name, value)
		}
	}
	if _, err := topology.ParseHash(string(s.KeyMapping.Hash)); err != nil {
		return fmt.Errorf("spec.keyMapping.hash: %w", err)
	}
	if t := s.KeyMapping.Type; t != v1.PartitionModular {
		return fmt.Errorf("spec.keyMapping.type is %q: want %q", t, v1.PartitionModular)
	}
	c := s.ClusterReplication
	if !replicationTarget.MatchString(c.Target) || len(c.Target) > 259 || c.Enabled && c.Target == "" {
		return fmt.Errorf("spec.clusterReplication.target is %q: want host:port of a node of the other cluster", c.Target)
	}
	if c.Mode != v1.ClusterReplicationDuplicate && c.Mode != v1.ClusterReplicationForward {
		return fmt.Errorf("spec.clusterReplication.mode is %q: want %q or %q", c.Mode, v1.ClusterReplicationDuplicate, v1.ClusterReplicationForward)
	}
	if s.PartitionSize <= s.Partitions {
		return fmt.Errorf("spec.partitionSize is %d: want more than spec.partitions, which is %d", s.PartitionSize, s.Partitions)
	}
	if m := s.Replication.Mode; m != v1.ReplicationSync && m != v1.ReplicationAsync {
		return fmt.Errorf("spec.replication.mode is %q: want %q or %q", m, v1.ReplicationSync, v1.ReplicationAsync)
	}
	return nil
}
