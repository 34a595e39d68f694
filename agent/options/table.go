package options

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Spec describes one option.
type Spec struct {
	Key     string
	Type    string // integer, boolean, text, list, or the words allowed: a|b
	Unit    string // of an integer; empty for a plain number
	Default string
	Min     int64 // of an integer
	Max     int64
	Live    bool // takes effect at once; otherwise at the next start of flared
	Doc     string
}

// spec is a Spec and how to reach its field.
type spec struct {
	Spec
	get func(*Options) string
	// set takes a value without surrounding space, empty for "name =" and a bare
	// "--name". A refusal leaves the options as they are.
	set  func(o *Options, value string) *refusal
	copy func(to, from *Options)
}

// refusal is why a value is not taken.
type refusal struct{ reason, message string }

func refuse(reason, format string, args ...any) *refusal {
	return &refusal{reason, fmt.Sprintf(format, args...)}
}

const (
	live    = true
	restart = false
)

// table holds every option in the order in which they are shown. It is not
// changed after init, which fills in the defaults.
var table = append([]spec{
	text("server-name", restart, "name under which this node registers at the index and by which other nodes reach it (default: the machine's host name)",
		checkHost, func(o *Options) *string { return &o.ServerName }),
	number("server-port", "", 1, 65535, restart, "TCP port for clients and other nodes",
		func(o *Options) *int { return &o.ServerPort }, 1),
	text("server-socket", restart, "Unix socket for clients beside the TCP port, open to every user of the machine (default: none)",
		checkSocket, func(o *Options) *string { return &o.ServerSocket }),
	text("data-dir", restart, "directory of the database (required)",
		checkPath, func(o *Options) *string { return &o.DataDir }),
	text("backup-dir", live, "directory in which backups are made, each in a directory of its own (default: backup in data-dir)",
		checkPath, func(o *Options) *string { return &o.BackupDir }),
	list("index-servers", live, "host:port,host:port of the index servers, tried in this order (required)",
		func(o *Options) *[]string { return &o.IndexServers }),
	text("index-server-name", live, "host of the only index server, instead of index-servers; giving both is an error",
		checkHost, func(o *Options) *string { return &o.IndexServerName }),
	number("index-server-port", "", 1, 65535, live, "port that goes with index-server-name",
		func(o *Options) *int { return &o.IndexServerPort }, 1),
	text("agent-socket", restart, "Unix socket on which the agent finds this node (default: none)",
		checkSocket, func(o *Options) *string { return &o.AgentSocket }),
	logLevel("log-level", live, "least severe messages that are logged",
		func(o *Options) *slog.Level { return &o.LogLevel }),

	number("back-log", "connections", 0, 65535, restart, "connections that may wait to be accepted; 0: as many as the system allows",
		func(o *Options) *int { return &o.BackLog }, 1),
	number("max-connection", "connections", 1, 1000000, live, "client and node connections served at once; further ones are closed",
		func(o *Options) *int { return &o.MaxConnection }, 1),
	number("max-value-size", "bytes", 1, 1<<30, live, "largest value that is stored",
		func(o *Options) *int64 { return &o.MaxValueSize }, 1),
	number("net-read-timeout", "seconds", 1, 86400, live, "silence after which a connection is closed",
		func(o *Options) *time.Duration { return &o.NetReadTimeout }, time.Second),

	number("proxy-concurrency", "connections", 1, 64, restart, "connections to each other node for forwarded requests of one kind; requests for one key share one",
		func(o *Options) *int { return &o.ProxyConcurrency }, 1),
	number("proxy-prior-netmask", "bits", 0, 32, restart, "reads that another node has to answer go to nodes whose IPv4 address shares so many leading bits with server-name, if there are any; both must be addresses; 0: off",
		func(o *Options) *int { return &o.ProxyPriorNetmask }, 1),
	number("max-total-thread-queue", "requests", 0, 1<<24, live, "requests that may wait for other nodes at a time; a further write is answered SERVER_ERROR proxy failure, a further read is a miss; 0: no limit",
		func(o *Options) *int { return &o.MaxTotalThreadQueue }, 1),

	words("replication-type", live, "async: a write is answered when the master has it; sync: when every in-sync replica has it too",
		[]ReplicationType{Async, Sync}, func(o *Options) *ReplicationType { return &o.ReplicationType }),
	number("replication-timeout", "milliseconds", 100, 60000, live, "silence of a replica after which its master asks the index to go on without it",
		func(o *Options) *time.Duration { return &o.ReplicationTimeout }, time.Millisecond),
	number("replication-min-in-sync", "nodes", 1, 8, live, "nodes of a partition, the master included, that must be in sync for it to take writes; below it they are answered SERVER_ERROR not_enough_in_sync; of no effect with replication-type async",
		func(o *Options) *int { return &o.ReplicationMinInSync }, 1),
	boolean("read-without-lease", live, "whether a master that may not take writes, because it has no lease, still answers get and gets for its partition; false: with SERVER_ERROR no lease, so that nobody reads what a successor may have changed",
		func(o *Options) *bool { return &o.ReadWithoutLease }),
	number("reconstruction-interval", "microseconds", 0, 60000000, live, "pause of the other node after each record of a dump that this node asks for; 0: none",
		func(o *Options) *time.Duration { return &o.ReconstructionInterval }, time.Microsecond),
	number("reconstruction-bwlimit", "KiB/s", 0, 1<<24, live, "rate at which this node copies another's database, as files or as a dump; 0: no limit",
		func(o *Options) *int { return &o.ReconstructionBwlimit }, 1),
	number("reconstruction-max-copies", "copies", 1, 64, live, "copies of its database's files that a master sends at a time, which share reconstruction-bwlimit; other replicas wait for their turn",
		func(o *Options) *int { return &o.ReconstructionMaxCopies }, 1),

	number("expiry-sweep-interval", "seconds", 0, 31536000, live, "time between two walks over all records in which a master removes those that have expired; 0: they are never removed from the disk",
		func(o *Options) *time.Duration { return &o.ExpirySweepInterval }, time.Second),
	number("expiry-sweep-rate", "records", 1, 1<<24, live, "records a second that such a walk looks at",
		func(o *Options) *int { return &o.ExpirySweepRate }, 1),

	number("storage-cache-size", "tombstones", 1, 1<<24, restart, "deleted keys whose version is remembered, oldest forgotten first; must be the same on all nodes of a partition",
		func(o *Options) *int { return &o.StorageCacheSize }, 1),
	number("record-cache-size-mb", "MiB", 0, 1<<20, restart, "memory for hot records, from which reads are answered without asking the database; an entry larger than a thousandth of it is not kept; 0: none",
		func(o *Options) *int64 { return &o.RecordCacheSizeMB }, 1),
	number("block-cache-size-mb", "MiB", 1, 1<<20, restart, "memory for uncompressed blocks of the database",
		func(o *Options) *int64 { return &o.BlockCacheSizeMB }, 1),

	boolean("time-watcher-enabled", live, "whether slow accesses to the storage are watched for",
		func(o *Options) *bool { return &o.TimeWatcher.Enabled }),
	number("time-watcher-polling-interval-msec", "milliseconds", 0, 3600000, live, "time between two looks of the watcher; 0: never",
		func(o *Options) *time.Duration { return &o.TimeWatcher.PollingInterval }, time.Millisecond),
	number("storage-access-watch-threshold-warn-msec", "milliseconds", 0, 3600000, live, "duration of a storage access from which on the watcher logs a warning; 0: never",
		func(o *Options) *time.Duration { return &o.TimeWatcher.Warn }, time.Millisecond),
	number("storage-access-watch-threshold-ping-ng-msec", "milliseconds", 0, 3600000, live, "duration of a storage access from which on ping is answered SERVER_ERROR storage error until accesses are faster again; 0: never",
		func(o *Options) *time.Duration { return &o.TimeWatcher.PingNG }, time.Millisecond),

	number("rocksdb-wal-ttl-seconds", "seconds", 1, 31536000, live, "how long finished write-ahead logs are kept for replicas to catch up from",
		func(o *Options) *int64 { return &o.RocksDB.WALTTLSeconds }, 1),
	number("rocksdb-wal-size-limit-mb", "MiB", 0, 1<<24, live, "size of finished write-ahead logs that are kept, oldest dropped first; 0: no limit",
		func(o *Options) *int64 { return &o.RocksDB.WALSizeLimitMB }, 1),
	number("rocksdb-wal-replica-limit-mb", "MiB", 0, 1<<24, live, "size of finished write-ahead logs up to which they are kept beyond rocksdb-wal-ttl-seconds for a node of the partition that lacks them and is behind or away; rocksdb-wal-size-limit-mb, where it is smaller, goes before it; with too little free space nothing is kept for it; 0: it is kept for nobody",
		func(o *Options) *int64 { return &o.RocksDB.WALReplicaLimitMB }, 1),
	boolean("rocksdb-sync-writes", live, "whether each commit waits for the disk",
		func(o *Options) *bool { return &o.RocksDB.SyncWrites }),
	number("rocksdb-resync-failure-threshold", "failures", 1, 1000, live, "resyncs in a row that brought nothing although the master agreed to them, after which a replica answers no reads and says to the index that it is down, until it is in step again",
		func(o *Options) *int { return &o.RocksDB.ResyncFailureThreshold }, 1),
	number("rocksdb-wal-max-batch-bytes", "bytes", 4096, 1<<26, live, "size up to which concurrent writes are grouped into one batch",
		func(o *Options) *int64 { return &o.RocksDB.WALMaxBatchBytes }, 1),
	number("rocksdb-wal-sync-bwlimit", "KiB/s", 0, 1<<24, live, "rate at which a replica reads its master's log while it catches up; 0: as reconstruction-bwlimit",
		func(o *Options) *int { return &o.RocksDB.WALSyncBwlimit }, 1),
	number("rocksdb-wal-sync-interval", "milliseconds", 10, 60000, live, "time between the positions that master and replica tell each other while nothing is written",
		func(o *Options) *time.Duration { return &o.RocksDB.WALSyncInterval }, time.Millisecond),

	boolean("cluster-replication", live, "whether another flare cluster takes part: see cluster-replication-mode",
		func(o *Options) *bool { return &o.ClusterReplication.Enabled }),
	text("cluster-replication-server-name", live, "host of a node of the other cluster; it forwards to the others there",
		checkHost, func(o *Options) *string { return &o.ClusterReplication.ServerName }),
	number("cluster-replication-server-port", "", 1, 65535, live, "port of that node",
		func(o *Options) *int { return &o.ClusterReplication.ServerPort }, 1),
	words("cluster-replication-mode", live, "duplicate: masters send it their records and then every write; forward: it answers every request of clients instead of this cluster; hold: as duplicate, while writes of clients wait for another mode, a few seconds at most",
		[]ReplicationMode{Duplicate, Forward, Hold}, func(o *Options) *ReplicationMode { return &o.ClusterReplication.Mode }),
	number("cluster-replication-concurrency", "connections", 1, 64, live, "connections to that node; writes of a key share one; a change concerns mode duplicate only, until the next start",
		func(o *Options) *int { return &o.ClusterReplication.Concurrency }, 1),
	number("cluster-replication-spool-limit-mb", "MiB", 1, 1<<24, live, "log that is kept while that node cannot be reached; beyond it the log is given up and all records are sent anew",
		func(o *Options) *int64 { return &o.ClusterReplication.SpoolLimitMB }, 1),
}, engineSpecs()...)

func init() {
	d := Default()
	for i := range table {
		table[i].Default = table[i].get(&d)
	}
}

func lookup(key string) *spec {
	i := slices.IndexFunc(table, func(s spec) bool { return s.Key == key })
	if i < 0 {
		return nil
	}
	return &table[i]
}

// Find returns the option of a name.
func Find(key string) (Spec, bool) {
	if s := lookup(key); s != nil {
		return s.Spec, true
	}
	return Spec{}, false
}

// Specs returns every option, in the order in which they are shown.
func Specs() []Spec {
	out := make([]Spec, len(table))
	for i, s := range table {
		out[i] = s.Spec
	}
	return out
}

// number is an option that counts in units of unit in its field.
func number[T ~int | ~int64](key, name string, low, high int64, live bool, doc string, field func(*Options) *T, unit T) spec {
	want := fmt.Sprintf("must be a whole number%s from %d to %d", prefixed(" of ", name), low, high)
	return spec{
		Spec: Spec{Key: key, Type: "integer", Unit: name, Min: low, Max: high, Live: live, Doc: doc},
		get:  func(o *Options) string { return strconv.FormatInt(int64(*field(o)/unit), 10) },
		set: func(o *Options, value string) *refusal {
			if value == "" {
				return refuse(ReasonMissingValue, "has no value; it %s", want)
			}
			n, err := strconv.ParseInt(value, 10, 64)
			switch {
			case err != nil && isDigits(value), err == nil && (n < low || n > high):
				return refuse(ReasonOutOfRange, "is %s; it %s", shorten(value), want)
			case err != nil:
				return refuse(ReasonInvalidValue, "is %q; it %s%s", shorten(value), want, inUnits(value, name, low, high))
			}
			*field(o) = T(n) * unit
			return nil
		},
		copy: func(to, from *Options) { *field(to) = *field(from) },
	}
}

// inUnits suggests the plain number that a value such as 3h or 64MiB means.
func inUnits(value, unit string, low, high int64) string {
	var n int64
	switch unit {
	case "seconds", "milliseconds", "microseconds":
		d, err := time.ParseDuration(value)
		if err != nil {
			return ""
		}
		n = int64(d / map[string]time.Duration{"seconds": time.Second, "milliseconds": time.Millisecond, "microseconds": time.Microsecond}[unit])
	case "bytes", "MiB", "KiB/s":
		i := strings.IndexFunc(value, func(r rune) bool { return r < '0' || r > '9' })
		if i <= 0 {
			return ""
		}
		v, err := strconv.ParseInt(value[:i], 10, 32)
		if err != nil {
			return ""
		}
		suffix := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(strings.TrimSpace(value[i:])), "/s"), "b")
		shift := map[string]int{"": 0, "k": 10, "ki": 10, "m": 20, "mi": 20, "g": 30, "gi": 30}
		s, known := shift[suffix]
		if !known {
			return ""
		}
		n = v << s >> map[string]int{"bytes": 0, "KiB/s": 10, "MiB": 20}[unit]
	}
	if n < low || n > high || n == 0 {
		return ""
	}
	return fmt.Sprintf("; for %s write %d", shorten(value), n)
}

func boolean(key string, live bool, doc string, field func(*Options) *bool) spec {
	return spec{
		Spec: Spec{Key: key, Type: "boolean", Live: live, Doc: doc},
		get:  func(o *Options) string { return strconv.FormatBool(*field(o)) },
		set: func(o *Options, value string) *refusal {
			switch value {
			case "true", "1", "": // the name alone switches it on
				*field(o) = true
			case "false", "0":
				*field(o) = false
			default:
				return refuse(ReasonInvalidValue, "is %q; it must be true or false", shorten(value))
			}
			return nil
		},
		copy: func(to, from *Options) { *field(to) = *field(from) },
	}
}

func words[T ~string](key string, live bool, doc string, allowed []T, field func(*Options) *T) spec {
	names := make([]string, len(allowed))
	for i, w := range allowed {
		names[i] = string(w)
	}
	return spec{
		Spec: Spec{Key: key, Type: strings.Join(names, "|"), Live: live, Doc: doc},
		get:  func(o *Options) string { return string(*field(o)) },
		set: func(o *Options, value string) *refusal {
			if !slices.Contains(names, value) {
				return notAWord(value, names)
			}
			*field(o) = T(value)
			return nil
		},
		copy: func(to, from *Options) { *field(to) = *field(from) },
	}
}

func logLevel(key string, live bool, doc string, field func(*Options) *slog.Level) spec {
	levels := []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}
	names := make([]string, len(levels))
	for i, l := range levels {
		names[i] = strings.ToLower(l.String())
	}
	return spec{
		Spec: Spec{Key: key, Type: strings.Join(names, "|"), Live: live, Doc: doc},
		get:  func(o *Options) string { return strings.ToLower((*field(o)).String()) },
		set: func(o *Options, value string) *refusal {
			i := slices.Index(names, value)
			if i < 0 {
				return notAWord(value, names)
			}
			*field(o) = levels[i]
			return nil
		},
		copy: func(to, from *Options) { *field(to) = *field(from) },
	}
}

func notAWord(value string, allowed []string) *refusal {
	want := "must be " + strings.Join(allowed, " or ")
	if value == "" {
		return refuse(ReasonMissingValue, "has no value; it %s", want)
	}
	return refuse(ReasonInvalidValue, "is %q; it %s%s", shorten(value), want, didYouMean(value, allowed))
}

// text is an option whose value is checked by check, which returns what is
// wrong and what would be right, or "".
func text(key string, live bool, doc string, check func(string) string, field func(*Options) *string) spec {
	return spec{
		Spec: Spec{Key: key, Type: "text", Live: live, Doc: doc},
		get:  func(o *Options) string { return *field(o) },
		set: func(o *Options, value string) *refusal {
			if value == "" {
				return refuse(ReasonMissingValue, "has no value; give one or remove the line")
			}
			if wrong := check(value); wrong != "" {
				return refuse(ReasonInvalidValue, "%s", wrong)
			}
			*field(o) = value
			return nil
		},
		copy: func(to, from *Options) { *field(to) = *field(from) },
	}
}

func list(key string, live bool, doc string, field func(*Options) *[]string) spec {
	return spec{
		Spec: Spec{Key: key, Type: "list", Live: live, Doc: doc},
		get:  func(o *Options) string { return strings.Join(*field(o), ",") },
		set: func(o *Options, value string) *refusal {
			if value == "" {
				return refuse(ReasonMissingValue, "has no value; it must be host:port,host:port")
			}
			var addrs []string
			for a := range strings.SplitSeq(value, ",") {
				a = strings.TrimSpace(a)
				host, port, err := net.SplitHostPort(a)
				if err != nil {
					return refuse(ReasonInvalidValue, "has %q, which is not host:port, such as flare-controller:12120", shorten(a))
				}
				if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 || strconv.FormatUint(p, 10) != port {
					return refuse(ReasonInvalidValue, "has %q, whose port is not a number from 1 to 65535", shorten(a))
				}
				if wrong := checkAddressHost(host); wrong != "" {
					return refuse(ReasonInvalidValue, "has %q: the host %s", shorten(a), wrong)
				}
				if slices.Contains(addrs, a) {
					return refuse(ReasonInvalidValue, "has %q twice; name each server once", shorten(a))
				}
				addrs = append(addrs, a)
			}
			*field(o) = addrs
			return nil
		},
		copy: func(to, from *Options) { *field(to) = slices.Clone(*field(from)) },
	}
}

// checkHost also keeps out the colon: a node's key is name:port everywhere in
// the node protocol, whose fields are separated by spaces.
func checkHost(v string) string {
	if len(v) > 253 {
		return "is longer than the 253 characters of a host name"
	}
	for _, r := range v {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._", r) {
			return fmt.Sprintf("is %q, which has %q; a host name has letters, digits, '-', '_' and '.'", shorten(v), r)
		}
	}
	return ""
}

func checkAddressHost(host string) string {
	if host == "" {
		return "is missing"
	}
	if net.ParseIP(host) != nil {
		return ""
	}
	return checkHost(host)
}

func checkPath(v string) string {
	if len(v) > 4096 {
		return "is longer than the 4096 bytes of a path"
	}
	return ""
}

// maxSocketPath is what a Unix socket address holds (108 bytes with the final 0).
const maxSocketPath = 107

func checkSocket(v string) string {
	if len(v) > maxSocketPath {
		return fmt.Sprintf("is %d bytes long; the path of a Unix socket has at most %d", len(v), maxSocketPath)
	}
	return ""
}

func isDigits(v string) bool {
	v = strings.TrimLeft(v, "+-")
	return v != "" && strings.Trim(v, "0123456789") == ""
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// shorten keeps a message readable whatever the value was.
func shorten(v string) string {
	const most = 60
	if len(v) <= most {
		return v
	}
	return strings.ToValidUTF8(v[:most], "") + "..."
}
