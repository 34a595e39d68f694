// Package options is the one place that knows which options flared has: their
// names, units, ranges and defaults, how a configuration file and a command line
// are read into them, and which of them can change while flared runs.
//
// flared uses it to start and to apply a new configuration; the agent beside it
// uses it to say what is wrong with a file before, and even while flared is not
// there to be asked.
package options

import (
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// ReplicationType tells when a write counts as done.
type ReplicationType string

const (
	// Async: a write is answered when the master has committed it.
	Async ReplicationType = "async"
	// Sync: a write is answered when every in-sync replica has it too.
	Sync ReplicationType = "sync"
)

// Options are flared's options. Every field is one option; table.go has its
// name, unit and range.
type Options struct {
	ServerName   string // empty: the machine's host name, filled in by flared
	ServerPort   int
	ServerSocket string // empty: TCP only
	DataDir      string
	BackupDir    string // empty: in DataDir
	// Either IndexServers or IndexServerName is set; Indexes has what is meant.
	IndexServers    []string // host:port, tried in this order
	IndexServerName string
	IndexServerPort int
	AgentSocket     string // empty: no agent

	LogLevel slog.Level

	BackLog        int // 0: what the system allows
	MaxConnection  int
	MaxValueSize   int64 // bytes
	NetReadTimeout time.Duration

	ProxyConcurrency    int // connections
	ProxyPriorNetmask   int // bits, 0 for off
	MaxTotalThreadQueue int // requests, 0 for no limit

	ReplicationType         ReplicationType
	ReplicationTimeout      time.Duration
	ReplicationMinInSync    int // nodes, the master included
	ReadWithoutLease        bool
	ReconstructionInterval  time.Duration // of a dump, after each record
	ReconstructionBwlimit   int           // KiB/s, 0 for no limit
	ReconstructionMaxCopies int           // checkpoints sent at a time

	ExpirySweepInterval time.Duration // 0: never
	ExpirySweepRate     int           // records a second

	StorageCacheSize  int   // tombstones
	RecordCacheSizeMB int64 // MiB
	BlockCacheSizeMB  int64 // MiB
	TimeWatcher       TimeWatcher
	RocksDB           RocksDB

	ClusterReplication ClusterReplication
}

// TimeWatcher are the options of the watch over slow accesses to the storage.
type TimeWatcher struct {
	Enabled         bool
	PollingInterval time.Duration // 0: never
	Warn            time.Duration // 0: never
	PingNG          time.Duration // 0: never
}

// ReplicationMode is what cluster replication does with requests.
type ReplicationMode string

const (
	// Duplicate: the destination gets every write as well.
	Duplicate ReplicationMode = "duplicate"
	// Forward: the destination gets every request instead.
	Forward ReplicationMode = "forward"
	// Hold: as Duplicate, and writes of clients wait, for the moment in which the
	// destination takes the clients over.
	Hold ReplicationMode = "hold"
)

// ClusterReplication are the options of the replication to another cluster.
type ClusterReplication struct {
	Enabled      bool
	ServerName   string // of any node of the other cluster
	ServerPort   int
	Mode         ReplicationMode
	Concurrency  int   // connections
	SpoolLimitMB int64 // MiB
}

// RocksDB are the options of the log and of how it is kept and copied, and those of
// RocksDB itself.
type RocksDB struct {
	WALTTLSeconds          int64
	WALSizeLimitMB         int64 // 0 for no limit
	WALReplicaLimitMB      int64 // 0: nothing beyond WALTTLSeconds for replicas
	SyncWrites             bool
	ResyncFailureThreshold int
	WALMaxBatchBytes       int64
	WALSyncBwlimit         int // KiB/s, 0: as Options.ReconstructionBwlimit
	WALSyncInterval        time.Duration

	Engine Engine
}

// Default returns the options of a flared that was told nothing.
func Default() Options {
	return Options{
		ServerPort:              12121,
		IndexServerPort:         12120,
		LogLevel:                slog.LevelInfo,
		MaxConnection:           10000,
		MaxValueSize:            64 << 20,
		NetReadTimeout:          600 * time.Second,
		ProxyConcurrency:        2,
		ReplicationType:         Sync,
		ReplicationTimeout:      2 * time.Second,
		ReplicationMinInSync:    1,
		ReadWithoutLease:        true,
		ReconstructionMaxCopies: 1,
		ExpirySweepInterval:     time.Hour,
		ExpirySweepRate:         10000,
		StorageCacheSize:        65536,
		BlockCacheSizeMB:        64,
		RecordCacheSizeMB:       64,
		RocksDB: RocksDB{
			WALTTLSeconds:          3 * 60 * 60,
			WALReplicaLimitMB:      4096,
			ResyncFailureThreshold: 3,
			WALMaxBatchBytes:       1 << 20,
			WALSyncInterval:        500 * time.Millisecond,
			Engine:                 engineDefaults,
		},
		ClusterReplication: ClusterReplication{
			ServerPort:   12121,
			Mode:         Duplicate,
			Concurrency:  2,
			SpoolLimitMB: 1024,
		},
	}
}

// CatchUpBwlimit returns the limit in KiB/s for reading a master's log: its own
// option, or that of reconstruction when it has none. 0 means no limit.
func (o Options) CatchUpBwlimit() int {
	if o.RocksDB.WALSyncBwlimit > 0 {
		return o.RocksDB.WALSyncBwlimit
	}
	return o.ReconstructionBwlimit
}

// Value returns the value of an option as a file would have it, and "" for a
// name that is no option.
func (o Options) Value(key string) string {
	s := lookup(key)
	if s == nil {
		return ""
	}
	return s.get(&o)
}

// Changed returns the names of the options that differ, in the order of Specs.
func Changed(a, b Options) []string {
	var keys []string
	for i := range table {
		if s := &table[i]; s.get(&a) != s.get(&b) {
			keys = append(keys, s.Key)
		}
	}
	return keys
}

// WithLive returns o with those options of wanted that can change while flared
// runs. What a running flared has after it was told wanted.
func (o Options) WithLive(wanted Options) Options {
	o.IndexServers = slices.Clone(o.IndexServers)
	for i := range table {
		if s := &table[i]; s.Live {
			s.copy(&o, &wanted)
		}
	}
	return o
}

// Validate reports what no single option can know: that one which has no
// default is missing, or that some do not go together. It is for the options
// flared is about to start with.
func (o Options) Validate() error {
	var problems []Problem
	missing := func(key, example string) {
		problems = append(problems, Problem{Key: key, Reason: ReasonMissingOption,
			Message: fmt.Sprintf("is required; for example --%s=%s", key, example)})
	}
	if o.DataDir == "" {
		missing("data-dir", "/var/lib/flare")
	}
	if len(o.Indexes()) == 0 {
		missing("index-servers", "flare-controller:12120")
	}
	problems = append(problems, o.engineConflicts("", nil)...)
	if len(problems) > 0 {
		return &ParseError{Problems: problems}
	}
	return nil
}

// Check reports options that do not go together: those of a file, which has the
// settings, once the command line is over them. The error is a *ParseError.
func (o Options) Check(file string, settings []Setting) error {
	lines := make(map[string]int, len(settings))
	for _, s := range settings {
		lines[s.Key] = s.Line
	}
	if problems := o.engineConflicts(file, lines); len(problems) > 0 {
		return &ParseError{Problems: problems}
	}
	return nil
}
