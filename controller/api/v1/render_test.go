package v1

import (
	"testing"
)

const defaultConfig = `# Rendered by flare-controller from the FlareCluster resource; edits are overwritten.
replication-type = sync
replication-min-in-sync = 1
rocksdb-wal-ttl-seconds = 10800
rocksdb-wal-size-limit-mb = 0
rocksdb-sync-writes = false
rocksdb-resync-failure-threshold = 3
rocksdb-wal-max-batch-bytes = 1048576
rocksdb-wal-sync-bwlimit = 0
rocksdb-wal-sync-interval = 500
`

func TestRenderConfig(t *testing.T) {
	explicit := FlareClusterSpec{Partitions: 2, Replicas: 2}
	explicit.Default()
	for _, tt := range []struct {
		name string
		spec FlareClusterSpec
		want string
	}{
		{"empty spec gives the defaults", FlareClusterSpec{}, defaultConfig},
		{"explicit defaults give the same bytes", explicit, defaultConfig},
		{"every field", FlareClusterSpec{
			Replication: ReplicationSpec{Mode: ReplicationAsync, MinInSync: 2},
			RocksDB: RocksDBSpec{
				WALTTLSeconds:          new(int64(60)),
				WALSizeLimitMB:         new(int64(512)),
				SyncWrites:             new(true),
				ResyncFailureThreshold: new(int32(5)),
				WALMaxBatchBytes:       new(int64(4096)),
				WALSyncBwlimit:         new(int64(10240)),
				WALSyncInterval:        new(int64(100)),
				Options: map[string]RocksDBOption{"write_buffer_size": "33554432", "compression": "kZSTD",
					"x\nlog-level": "debug\nserver-port = 1"},
			},
		}, `# Rendered by flare-controller from the FlareCluster resource; edits are overwritten.
replication-type = async
replication-min-in-sync = 2
rocksdb-wal-ttl-seconds = 60
rocksdb-wal-size-limit-mb = 512
rocksdb-sync-writes = true
rocksdb-resync-failure-threshold = 5
rocksdb-wal-max-batch-bytes = 4096
rocksdb-wal-sync-bwlimit = 10240
rocksdb-wal-sync-interval = 100
rocksdb-option-compression = kZSTD
rocksdb-option-write_buffer_size = 33554432
rocksdb-option-x?log-level = debug?server-port???1
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := tt.spec.DeepCopy()
			if got := RenderConfig(tt.spec); got != tt.want {
				t.Errorf("RenderConfig:\n%s\nwant:\n%s", got, tt.want)
			}
			if (tt.spec.RocksDB.WALTTLSeconds == nil) != (before.RocksDB.WALTTLSeconds == nil) {
				t.Error("RenderConfig changed the spec that it was given")
			}
		})
	}
}
