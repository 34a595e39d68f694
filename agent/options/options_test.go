package options

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	d := Default()
	want := map[string]string{
		"server-name":                                 "",
		"server-port":                                 "12121",
		"data-dir":                                    "",
		"server-socket":                               "",
		"index-servers":                               "",
		"index-server-name":                           "",
		"index-server-port":                           "12120",
		"back-log":                                    "0",
		"proxy-concurrency":                           "2",
		"proxy-prior-netmask":                         "0",
		"max-total-thread-queue":                      "0",
		"reconstruction-interval":                     "0",
		"expiry-sweep-interval":                       "3600",
		"expiry-sweep-rate":                           "10000",
		"storage-cache-size":                          "65536",
		"time-watcher-enabled":                        "false",
		"time-watcher-polling-interval-msec":          "0",
		"storage-access-watch-threshold-warn-msec":    "0",
		"storage-access-watch-threshold-ping-ng-msec": "0",
		"agent-socket":                                "",
		"backup-dir":                                  "",
		"log-level":                                   "info",
		"max-connection":                              "10000",
		"max-value-size":                              "67108864",
		"net-read-timeout":                            "600",
		"replication-type":                            "sync",
		"replication-min-in-sync":                     "1",
		"replication-timeout":                         "2000",
		"read-without-lease":                          "true",
		"reconstruction-bwlimit":                      "0",
		"reconstruction-max-copies":                   "1",
		"record-cache-size-mb":                        "64",
		"block-cache-size-mb":                         "64",
		"rocksdb-wal-ttl-seconds":                     "10800",
		"rocksdb-wal-size-limit-mb":                   "0",
		"rocksdb-wal-replica-limit-mb":                "4096",
		"rocksdb-sync-writes":                         "false",
		"rocksdb-resync-failure-threshold":            "3",
		"rocksdb-wal-max-batch-bytes":                 "1048576",
		"rocksdb-wal-sync-bwlimit":                    "0",
		"rocksdb-wal-sync-interval":                   "500",

		"cluster-replication":                "false",
		"cluster-replication-server-name":    "",
		"cluster-replication-server-port":    "12121",
		"cluster-replication-mode":           "duplicate",
		"cluster-replication-concurrency":    "2",
		"cluster-replication-spool-limit-mb": "1024",
	}
	for _, s := range Specs() {
		w, ok := want[s.Key]
		if !ok && strings.HasPrefix(s.Key, EnginePrefix) {
			continue // package storage compares them with RocksDB's own
		}
		if !ok {
			t.Errorf("%s: not expected", s.Key)
			continue
		}
		delete(want, s.Key)
		if got := d.Value(s.Key); got != w || s.Default != w {
			t.Errorf("%s: default %q, in its spec %q; want %q", s.Key, got, s.Default, w)
		}
		if s.Doc == "" || s.Type == "" {
			t.Errorf("%s: no description or type", s.Key)
		}
	}
	for key := range want {
		t.Errorf("%s is missing", key)
	}
	if got := d.Value("no-such-option"); got != "" {
		t.Errorf("value of an unknown option: %q", got)
	}
}

// Every default is a value that a file may have, so that the values read back
// from a node are a file for another one.
func TestDefaultsAreAccepted(t *testing.T) {
	for _, s := range Specs() {
		if s.Default == "" {
			continue
		}
		got, _, err := Parse("f", []byte(s.Key+" = "+s.Default+"\n"), Default())
		if err != nil {
			t.Errorf("%s: %v", s.Key, err)
		}
		if c := Changed(got, Default()); c != nil {
			t.Errorf("%s: its default changes %v", s.Key, c)
		}
	}
}

func TestChangedAndWithLive(t *testing.T) {
	running := Default()
	running.DataDir = "/data"
	running.IndexServers = []string{"a:1"}
	wanted := running
	wanted.IndexServers = []string{"a:1", "b:2"}
	wanted.ServerPort = 13000
	wanted.LogLevel = slog.LevelDebug
	wanted.NetReadTimeout = time.Minute
	wanted.BlockCacheSizeMB = 128
	wanted.RocksDB.SyncWrites = true
	wanted.RocksDB.WALSyncInterval = time.Second

	all := []string{"server-port", "index-servers", "log-level", "net-read-timeout", "block-cache-size-mb",
		"rocksdb-sync-writes", "rocksdb-wal-sync-interval"}
	if got := Changed(running, wanted); !slices.Equal(got, all) {
		t.Errorf("Changed = %v, want %v", got, all)
	}
	got := running.WithLive(wanted)
	if pending := Changed(got, wanted); !slices.Equal(pending, []string{"server-port", "block-cache-size-mb"}) {
		t.Errorf("left for a restart: %v", pending)
	}
	wanted.IndexServers[0] = "changed"
	if got.IndexServers[0] != "a:1" || running.IndexServers[0] != "a:1" {
		t.Error("options share their list of index servers")
	}
}

func TestAllRocksDBOptionsApplyLive(t *testing.T) {
	n := 0
	for _, s := range Specs() {
		if strings.HasPrefix(s.Key, "rocksdb-") && !strings.HasPrefix(s.Key, EnginePrefix) {
			n++
			if !s.Live {
				t.Errorf("%s needs a restart", s.Key)
			}
		}
	}
	if n < 7 {
		t.Errorf("%d rocksdb options, want at least 7", n)
	}
}

func TestValidate(t *testing.T) {
	err := Default().Validate()
	var pe *ParseError
	if !errors.As(err, &pe) || len(pe.Problems) != 2 {
		t.Fatalf("Validate of nothing: %v", err)
	}
	for i, key := range []string{"data-dir", "index-servers"} {
		if p := pe.Problems[i]; p.Key != key || p.Reason != ReasonMissingOption {
			t.Errorf("problem %d: %+v", i, p)
		}
	}
	o := Default()
	o.DataDir, o.IndexServers = "/data", []string{"a:1"}
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
}

func TestCatchUpBwlimit(t *testing.T) {
	for _, c := range []struct{ reconstruction, wal, want int }{{0, 0, 0}, {100, 0, 100}, {100, 7, 7}, {0, 7, 7}} {
		o := Options{ReconstructionBwlimit: c.reconstruction, RocksDB: RocksDB{WALSyncBwlimit: c.wal}}
		if got := o.CatchUpBwlimit(); got != c.want {
			t.Errorf("reconstruction %d, wal %d: %d, want %d", c.reconstruction, c.wal, got, c.want)
		}
	}
}
