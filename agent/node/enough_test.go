package node

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/options"
)

func atLeastTwo(n *testNode) {
	n.opts.ReplicationMinInSync = 2
	n.opts.ReplicationTimeout = 500 * time.Millisecond
}

// pair starts a master and its replica, and waits until that is in sync.
func pair(t *testing.T, tunes ...tune) (x *testIndex, master, slave *testNode) {
	t.Helper()
	x = newTestIndex(t)
	master, slave = startNode(t, x, tunes...), startNode(t, x, tunes...)
	x.master(master.key(), 0)
	master.settled(dutyMaster)
	x.slave(slave.key(), 0, 1)
	inSync(t, x, slave)
	return x, master, slave
}

// TestMinInSync: with one of two nodes gone writes are refused, reads are not; with
// the other one back they go on.
func TestMinInSync(t *testing.T) {
	x, master, slave := pair(t, syncMode, atLeastTwo)
	c := dial(t, master)
	c.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	if st := master.nodeStatus(); st.GetInSyncNodes() != 2 || st.GetMinInSync() != 2 {
		t.Errorf("status: %d nodes in sync of %d", st.GetInSyncNodes(), st.GetMinInSync())
	}
	slave.kill()
	const short = "SERVER_ERROR not_enough_in_sync: 1 of 2 nodes are in sync"
	// What was executed before the replica was given up is not acknowledged either.
	if got := c.line("set under-way 0 0 1\r\nx\r\n"); got != "SERVER_ERROR replication timeout" && got != short {
		t.Errorf("a write while the replica is being given up: %s", got)
	}
	eventually(t, "refusal", func() error {
		if got := c.line("set k 0 0 1\r\ny\r\n"); got != short {
			return errors.New(got)
		}
		return nil
	})
	before := master.db.Position().LSN
	c.ask("append k 0 0 1\r\nz\r\nincr k 1\r\ndelete k\r\ntouch k 5\r\nflush_all\r\n", strings.Repeat(short+"\r\n", 5))
	c.ask("set k 0 0 1 noreply\r\ny\r\nget k\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n")
	if after := master.db.Position().LSN; after != before {
		t.Errorf("from %v to %v by refused writes", before, after)
	}
	// A request that does not want to wait for replicas does not need any.
	c.ask("set k 0 0 1 async\r\nz\r\nget k\r\n", "STORED\r\nVALUE k 0 1\r\nz\r\nEND\r\n")
	stats, _ := statsOf(dial(t, master))
	if stats["replication_in_sync_nodes"] != "1" || stats["replication_min_in_sync"] != "2" {
		t.Errorf("stats: %s of %s", stats["replication_in_sync_nodes"], stats["replication_min_in_sync"])
	}

	x.down(slave.key())
	slave.start()
	x.slave(slave.key(), 0, 1)
	inSync(t, x, slave)
	c.ask("set k 0 0 1\r\nw\r\n", "STORED\r\n")
	if a, b := master.db.Position().LSN, slave.db.Position().LSN; a != b {
		t.Errorf("acknowledged at %v, replica at %v", a, b)
	}

	// Changed while it runs.
	slave.kill()
	x.down(slave.key())
	v := &service{s: master.Server}
	for _, step := range []struct{ text, want string }{
		{"replication-type = sync\nreplication-min-in-sync = 2", short},
		{"replication-type = sync\nreplication-min-in-sync = 1", "STORED"},
		{"replication-type = sync\nreplication-min-in-sync = 3", "SERVER_ERROR not_enough_in_sync: 1 of 3 nodes are in sync"},
		{"replication-type = async\nreplication-min-in-sync = 3", "STORED"},
	} {
		if accepted, _, err := v.s.applyText([]byte(step.text + "\n")); err != nil || !accepted {
			t.Fatalf("%s: %v", step.text, err)
		}
		eventually(t, step.text, func() error {
			if got := c.line("set k 0 0 1\r\ny\r\n"); got != step.want {
				return errors.New(got)
			}
			return nil
		})
	}
}

// TestMinInSyncHandover: the old master is a moment behind after a handover; writes
// wait for it instead of being refused.
func TestMinInSyncHandover(t *testing.T) {
	x, master, slave := pair(t, syncMode, unhurried, func(n *testNode) { n.opts.ReplicationMinInSync = 2 })
	load := startLoad(t, 4, master, slave)
	for range 4 {
		load.more(50)
		if _, err := handOver(t, master, ""); err != nil {
			t.Fatal(err)
		}
		slave.settled(dutyMaster)
		inSync(t, x, master)
		master, slave = slave, master
	}
	load.more(50)
	load.end()
	t.Logf("%d writes, the slowest took %v", load.total, load.slow)
}

// TestUnacknowledgedWrite: a write that an in-sync replica does not acknowledge in
// time is answered so, and may still be seen. Options of a request decide for it.
func TestUnacknowledgedWrite(t *testing.T) {
	for _, mode := range []options.ReplicationType{options.Sync, options.Async} {
		t.Run(string(mode), func(t *testing.T) {
			x, master, slave := pair(t, quick, func(n *testNode) { n.opts.ReplicationType = mode })
			x.mu.Lock()
			x.stubborn = true // nobody may leave the replica behind
			x.mu.Unlock()
			c := dial(t, master)
			for _, option := range []string{"", " sync", " async"} {
				c.ask(fmt.Sprintf("set k 0 0 1%s\r\n0\r\n", option), "STORED\r\n")
			}
			slave.kill()
			const late = "SERVER_ERROR replication timeout"
			byMode := late
			if mode == options.Async {
				byMode = "STORED"
			}
			for i, tt := range []struct{ option, want string }{{"", byMode}, {" sync", late}, {" async", "STORED"}} {
				if got := c.line(fmt.Sprintf("set k 0 0 1%s\r\n%d\r\n", tt.option, i)); got != tt.want {
					t.Errorf("set%s in mode %s: %s, want %s", tt.option, mode, got, tt.want)
				}
				c.ask("get k\r\n", fmt.Sprintf("VALUE k 0 1\r\n%d\r\nEND\r\n", i))
			}
			if len(master.log.lines("reason=replication_timeout")) == 0 {
				t.Error("the reason is not in the log")
			}
		})
	}
}
