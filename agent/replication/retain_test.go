package replication

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
)

// expect makes a master keep its log for the other nodes of the cluster.
func (n *node) expect() {
	n.c.t.Helper()
	var others []string
	for key := range n.c.nodes {
		if key != n.key {
			others = append(others, key)
		}
	}
	if err := n.src.Expect(others, func(string) bool { return true }); err != nil {
		n.c.t.Fatal(err)
	}
}

// overdue waits until the node keeps log that is old enough to go.
func (n *node) overdue() {
	n.c.t.Helper()
	n.db.SetRetention(time.Nanosecond, 0)
	waitFor(n.c.t, n.key+" keeps old log", func() bool {
		st, err := n.db.Stats()
		return err == nil && st.OverdueBytes > 0
	})
}

// logs writes some log files.
func (n *node) logs(value string) {
	n.c.t.Helper()
	for i := range 3 {
		n.put(fmt.Sprint("k", i), value)
		n.archive()
	}
}

// TestAwayReplicaKeepsTheLog: a replica that is away for longer than the log is kept
// by age returns by the log all the same, within the limit, and also to a new master,
// which learns from the old one what it lacks.
func TestAwayReplicaKeepsTheLog(t *testing.T) {
	c := newCluster(t, "a:1", "b:1", "c:1")
	a, b, e := c.nodes["a:1"], c.nodes["b:1"], c.nodes["c:1"]
	for _, n := range c.nodes {
		n.db.SetReplicaRetention(1 << 30)
	}
	a.lead(1, "b:1", "c:1")
	a.expect()
	b.follow(a)
	e.follow(a)
	a.put("k", "v")
	b.reached(a)
	e.reached(a)
	waitFor(t, "the master knows", func() bool {
		rs := a.src.Replicas()
		return len(rs) == 2 && rs[0].LagBatches == 0 && rs[1].LagBatches == 0
	})
	e.unfollow()
	a.logs("1")
	a.overdue()
	b.reached(a)
	b.archive()
	b.overdue()

	b.unfollow()
	a.halt()
	b.lead(2, "c:1")
	b.expect()
	b.logs("2")
	e.follow(b)
	e.reached(b)
	e.wantTier(history.TierWAL, "same_history")

	// Once the former master is no node of the cluster any more, nobody lacks anything.
	if err := b.src.Expect(nil, func(key string) bool { return key != "a:1" }); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "old log goes", func() bool {
		b.db.SetRetention(time.Nanosecond, 0)
		st, err := b.db.Stats()
		return err == nil && st.OverdueBytes == 0
	})
}

// TestReplicaLimitGivesUp: a replica that never returns does not keep the log for ever.
func TestReplicaLimitGivesUp(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.db.SetReplicaRetention(200_000)
	a.lead(1, "b:1")
	a.expect()
	b.follow(a)
	b.reached(a)
	b.unfollow()
	a.db.SetRetention(time.Nanosecond, 0)
	a.logs(strings.Repeat("v", 100_000))
	waitFor(t, "the log is given up", func() bool {
		a.db.SetRetention(time.Nanosecond, 0)
		st, err := a.db.Stats()
		return err == nil && st.GivenUpReason == "wal_replica_limit" && st.OverdueBytes == 0
	})
	b.follow(a)
	b.reached(a)
	b.wantTier(history.TierCheckpoint, "purged")
}
