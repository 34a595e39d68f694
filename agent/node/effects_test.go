package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/replication"
)

// These tests change an option of a running node, either way, and look at what it is
// there for. That commits reach the disk is in e2e/procs, where the calls are counted.

// smallLogs makes the logs of a node so small that a few MiB fill several.
func smallLogs(n *testNode) {
	n.opts = n.opts.WithEngineValues(map[string]string{"write_buffer_size": "131072", "max_total_wal_size": "1048576"})
}

// archive returns the names of the finished logs, oldest first, and their size.
func (n *testNode) archive() (names []string, bytes int64) {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.dir, "db", "archive"))
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			names, bytes = append(names, e.Name()), bytes+info.Size()
		}
	}
	slices.Sort(names)
	return names, bytes
}

// fillArchive writes until there are so many finished logs.
func (n *testNode) fillArchive(c *testClient, logs int, bytes int64) []string {
	n.t.Helper()
	value := strings.Repeat("x", 64<<10)
	for i := 0; ; i++ {
		names, size := n.archive()
		if len(names) >= logs && size >= bytes {
			return names
		}
		if i == 2000 {
			n.t.Fatalf("after %d values of 64 KiB there are %d finished logs of %d bytes", i, len(names), size)
		}
		c.ask(fmt.Sprintf("set fill%d 0 0 %d\r\n%s\r\n", i, len(value), value), "STORED\r\n")
	}
}

func TestWALTTLTakesEffect(t *testing.T) {
	for _, how := range tellings {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			x := newTestIndex(t)
			n := startNode(t, x, smallLogs)
			x.master(n.key(), 0)
			n.settled(dutyMaster)
			names := n.fillArchive(dial(t, n), 6, 0)
			old, young := names[:3], names[3:]
			for _, name := range old {
				then := time.Now().Add(-2 * time.Hour)
				if err := os.Chtimes(filepath.Join(n.dir, "db", "archive", name), then, then); err != nil {
					t.Fatal(err)
				}
			}
			how.tell(t, n, "rocksdb-wal-ttl-seconds = 10000\n")
			how.tell(t, n, "rocksdb-wal-ttl-seconds = 3600\n")
			eventually(t, "the old logs are gone", func() error {
				if left, _ := n.archive(); slices.Contains(left, old[len(old)-1]) {
					return fmt.Errorf("%q are left", left)
				}
				return nil
			})
			left, _ := n.archive()
			for _, name := range young {
				if !slices.Contains(left, name) {
					t.Errorf("%s is younger, and gone", name)
				}
			}
			for _, name := range old {
				if slices.Contains(left, name) {
					t.Errorf("%s is older, and there", name)
				}
			}
		})
	}
}

func TestWALSizeLimitTakesEffect(t *testing.T) {
	for _, how := range tellings {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			x := newTestIndex(t)
			n := startNode(t, x, smallLogs)
			x.master(n.key(), 0)
			n.settled(dutyMaster)
			names := n.fillArchive(dial(t, n), 6, 3<<20)
			how.tell(t, n, "rocksdb-wal-size-limit-mb = 2\n")
			eventually(t, "the logs fit", func() error {
				if left, bytes := n.archive(); bytes > 2<<20 {
					return fmt.Errorf("%d bytes in %d logs", bytes, len(left))
				}
				return nil
			})
			left, bytes := n.archive()
			if len(left) == 0 || bytes < 1<<20 {
				t.Errorf("%d logs of %d bytes are left of those that fit", len(left), bytes)
			}
			if oldest := slices.Index(names, left[0]); oldest >= 0 && !slices.Equal(left[:len(names)-oldest], names[oldest:]) {
				t.Errorf("of %q there is %q: not the oldest went", names, left)
			}
		})
	}
}

func TestWALMaxBatchBytesTakesEffect(t *testing.T) {
	// overhead is what a batch has beside the records: its header, and its position.
	const overhead = 256
	for _, how := range tellings {
		t.Run(how.name, func(t *testing.T) {
			x := newTestIndex(t)
			n := startNode(t, x)
			x.master(n.key(), 0)
			n.settled(dutyMaster)
			c := dial(t, n)
			// burst writes many keys at once and returns the sizes of their batches.
			burst := func(value int, keys int) (sizes []int) {
				t.Helper()
				from := n.db.Position().LSN
				var send strings.Builder
				for i := range keys {
					fmt.Fprintf(&send, "set k%d 0 0 %d\r\n%s\r\n", i, value, strings.Repeat("x", value))
				}
				c.ask(send.String(), strings.Repeat("STORED\r\n", keys))
				tail, err := n.db.Tail(from)
				if err != nil {
					t.Fatal(err)
				}
				defer tail.Close()
				for to := n.db.Position().LSN; from.Index < to.Index; {
					b, err := tail.Next(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					from, sizes = b.LSN, append(sizes, len(b.Data))
				}
				return sizes
			}
			// How many changes meet in a batch is up to the scheduler: more than 4096 bytes
			// of them do at some time if they may.
			large := func(what string) {
				t.Helper()
				eventually(t, what, func() error {
					if most := slices.Max(burst(1000, 64)); most < 3*4096 {
						return fmt.Errorf("the largest batch has %d bytes", most)
					}
					return nil
				})
			}
			large("with the default")
			how.tell(t, n, "rocksdb-wal-max-batch-bytes = 4096\n")
			eventually(t, "with 4096", func() error {
				sizes := burst(1000, 64)
				if most := slices.Max(sizes); most > 4096+overhead {
					t.Errorf("with 4096 the largest batch has %d bytes", most)
				}
				if len(sizes) == 64 {
					return errors.New("nothing is grouped any more")
				}
				return nil
			})
			if sizes := burst(10000, 2); len(sizes) != 2 || slices.Max(sizes) > 10000+overhead {
				t.Errorf("changes that are larger each: batches of %d bytes", sizes)
			}
			how.tell(t, n, "rocksdb-wal-max-batch-bytes = 65536\n")
			large("with 65536")
		})
	}
}

// follower returns what a slave knows of its replication.
func (n *testNode) follower() (replication.FollowerStatus, bool) {
	_, catcher, _ := n.roles.snapshot()
	if catcher == nil {
		return replication.FollowerStatus{}, false
	}
	return catcher.Status(), true
}

// A slave hears from its master, while nothing is written, as often as the option
// says, on the stream that is open.
func TestWALSyncIntervalTakesEffect(t *testing.T) {
	for _, how := range tellings {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			_, master, slave := pair(t)
			// beat returns the median time between signs of life, by the master's clock.
			beat := func(count int) time.Duration {
				t.Helper()
				var last time.Time
				var between []time.Duration
				eventually(t, "the master is heard", func() error {
					f, ok := slave.follower()
					if !ok || !f.Connected {
						return errors.New("not following")
					}
					if !f.MasterAt.Equal(last) {
						if !last.IsZero() {
							between = append(between, f.MasterAt.Sub(last))
						}
						last = f.MasterAt
					}
					if len(between) < count {
						return fmt.Errorf("%d times", len(between))
					}
					return nil
				})
				slices.Sort(between)
				return between[len(between)/2]
			}
			for _, want := range []time.Duration{100 * time.Millisecond, 30 * time.Millisecond, 200 * time.Millisecond} {
				how.tell(t, master, fmt.Sprintf("rocksdb-wal-sync-interval = %d\n", want.Milliseconds()))
				beat(2) // the one under way
				eventually(t, fmt.Sprintf("interval %v", want), func() error {
					if got := beat(6); got < want*9/10 || got > want*3/2 {
						return fmt.Errorf("a sign of life every %v", got) // the machine may have had no time
					}
					return nil
				})
			}
		})
	}
}

// A slave that catches up reads the log as fast as the option of its master says, and
// as reconstruction-bwlimit does when that is 0, on the stream that is open.
func TestWALSyncBwlimitTakesEffect(t *testing.T) {
	const size = 32 << 10
	for _, how := range tellings {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			x, master, slave := pair(t, func(n *testNode) { n.opts.ReplicationType = options.Async })
			slave.kill()
			x.down(slave.key())
			c, value := dial(t, master), strings.Repeat("x", size)
			for i := range 1000 {
				c.ask(fmt.Sprintf("set k%d 0 0 %d\r\n%s\r\n", i, size, value), "STORED\r\n")
			}
			how.tell(t, master, "rocksdb-wal-sync-bwlimit = 1024\n")
			slave.start()
			x.slave(slave.key(), 0, 1)
			behind := slave.db.Position().LSN
			eventually(t, "the slave catches up", func() error {
				if slave.db.Position().LSN.Index < behind.Index+8 {
					return errors.New("it does not move")
				}
				return nil
			})
			// rate returns KiB/s over a while, from batch to batch.
			rate := func(d time.Duration) int {
				t.Helper()
				step := func() (time.Time, uint64) {
					from := slave.db.Position().LSN.Index
					var at time.Time
					var index uint64
					eventually(t, "a batch comes", func() error {
						at, index = time.Now(), slave.db.Position().LSN.Index
						if index == from {
							return errors.New("none came")
						}
						return nil
					})
					return at, index
				}
				began, from := step()
				for {
					if at, index := step(); at.Sub(began) >= d {
						return int(float64((index-from)*(size+100)) / 1024 / at.Sub(began).Seconds())
					}
				}
			}
			expect := func(want int) {
				t.Helper()
				rate(200 * time.Millisecond) // what was saved up or sent before
				eventually(t, fmt.Sprintf("the rate is %d KiB/s", want), func() error {
					got := rate(1200 * time.Millisecond)
					if got < want*85/100 || got > want*115/100 {
						return fmt.Errorf("it is %d KiB/s", got) // the machine may have had no time
					}
					t.Logf("limit %d KiB/s: %d KiB/s", want, got)
					return nil
				})
			}
			expect(1024)
			how.tell(t, master, "rocksdb-wal-sync-bwlimit = 3072\n")
			expect(3072)
			how.tell(t, master, "rocksdb-wal-sync-bwlimit = 0\nreconstruction-bwlimit = 2048\n")
			expect(2048)
		})
	}
}
