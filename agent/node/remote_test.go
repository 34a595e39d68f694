package node

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/proto/topology"
)

// toCluster has a node replicate to a node of another cluster.
func toCluster(addr string, mode options.ReplicationMode) tune {
	host, port, _ := net.SplitHostPort(addr)
	return func(n *testNode) {
		o := &n.opts.ClusterReplication
		o.Enabled, o.ServerName, o.Mode = true, host, mode
		o.ServerPort, _ = strconv.Atoi(port)
	}
}

// reconfigure changes options while the node runs.
func (n *testNode) reconfigure(edit func(*options.Options)) {
	o := *n.live.Load()
	edit(&o)
	n.change(o)
}

// stat returns one value of stats.
func (n *testNode) stat(name string) string {
	n.t.Helper()
	c := dial(n.t, n)
	for line := c.line("stats\r\n"); line != "END"; line = c.line("") {
		if v, ok := strings.CutPrefix(line, "STAT "+name+" "); ok {
			return v
		}
	}
	return ""
}

// loneCluster starts a cluster of one node.
func loneCluster(t *testing.T, tunes ...tune) *testNode {
	x := newTestIndex(t)
	n := startNode(t, x, append([]tune{quick}, tunes...)...)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	return n
}

// forwarding starts a node in mode forward whose destination is another cluster.
func forwarding(t *testing.T) (n, dest *testNode) {
	dest = loneCluster(t)
	return loneCluster(t, toCluster(dest.key(), options.Forward)), dest
}

func TestForwardMode(t *testing.T) {
	n, dest := forwarding(t)
	c := dial(t, n)
	c.ask("set k 3 0 2\r\nab\r\nadd k 0 0 1\r\nx\r\nappend k 0 0 1\r\nc\r\ngets k\r\nget none k\r\ncas k 1 0 1 2\r\nz\r\ntouch k 0\r\ngat k 0\r\n"+
		"set q 0 0 1 noreply\r\nq\r\nkeys q 5\r\ndelete k\r\ndelete k\r\n",
		"STORED\r\nNOT_STORED\r\nSTORED\r\nVALUE k 3 3 2\r\nabc\r\nEND\r\nVALUE k 3 3\r\nabc\r\nEND\r\nSTORED\r\nTOUCHED\r\nVALUE k 1 1\r\nz\r\n"+
			"KEY q\r\nEND\r\nDELETED\r\nNOT_FOUND\r\n")
	if got := n.record("q"); got != "-" {
		t.Errorf("the node stored %q itself", got)
	}
	dest.holds(map[string]string{"q": "1 0 0 q", "k": "-"})
	if v := n.stat("cluster_replication_forwarded"); v != "13" {
		t.Errorf("%s requests forwarded", v)
	}
}

// TestBug12NotRepeated: the original forwarded incr and decr with the delta 0.
func TestBug12NotRepeated(t *testing.T) {
	n, _ := forwarding(t)
	dial(t, n).ask("set n 0 0 2\r\n10\r\nincr n 5\r\ndecr n 2\r\n", "STORED\r\n15\r\n13\r\n")
}

// TestBug13NotRepeated: the original passed the list of its own nodes on to the
// other cluster. A slave there then kept the write to itself.
func TestBug13NotRepeated(t *testing.T) {
	p := newCppNode(t)
	p.answer = accepting
	n := loneCluster(t, toCluster(p.key(), options.Duplicate))
	n.dumpedTo(1)
	c := dial(t, n)
	c.ask("<10.0.0.1:1>set k 3 0 1\r\nx\r\n", "STORED\r\n")
	if got := p.saws(1); !slices.Equal(got, []string{"set k 3 0 1 1"}) {
		t.Errorf("duplicate sent %q", got)
	}
	n.reconfigure(func(o *options.Options) { o.ClusterReplication.Mode = options.Forward })
	c.ask("<10.0.0.1:1>set l 3 0 1\r\nx\r\n", "STORED\r\n")
	if got := p.saws(2); got[1] != "set l 3 0 1" {
		t.Errorf("forward sent %q", got)
	}

	// The other side of it: a write with the list of another cluster is a client's.
	x := newTestIndex(t)
	m, s := startNode(t, x, syncMode), startNode(t, x, syncMode)
	x.master(m.key(), 0)
	x.slave(s.key(), 0, 1)
	inSync(t, x, s)
	dial(t, s).ask("<10.0.0.1:1,10.0.0.2:1>set k 0 0 1 7\r\nx\r\n", "STORED\r\n")
	m.holds(map[string]string{"k": "7 0 0 x"})
	s.holds(map[string]string{"k": "7 0 0 x"})
}

// TestBug15NotRepeated: a slave of the original in mode forward sent what its
// master replicated to it to the other cluster, and did not store it.
func TestBug15NotRepeated(t *testing.T) {
	dest := loneCluster(t)
	x := newTestIndex(t)
	m := startNode(t, x, syncMode)
	s := startNode(t, x, syncMode, toCluster(dest.key(), options.Forward))
	x.master(m.key(), 0)
	x.slave(s.key(), 0, 1)
	inSync(t, x, s)
	dial(t, m).ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	s.holds(map[string]string{"k": "1 0 0 x"})
	dest.holds(map[string]string{"k": "-"})

	// The same with a master of the original.
	x, p := plainIndex(t), newCppNode(t)
	s = startNode(t, x, quick, toCluster(dest.key(), options.Forward))
	p.dump = func(_ int, nc net.Conn) { dumped(nc, "END\r\n") }
	x.add(p.entry(topology.Master, topology.Active, 0, 1))
	x.set(s.key(), topology.Slave, topology.Prepare, 0)
	s.copies()
	c := dial(t, s)
	c.ask("<"+p.key()+">set c 0 0 1 4\r\nx\r\n", "STORED\r\n")
	s.holds(map[string]string{"c": "4 0 0 x"})
	dest.holds(map[string]string{"c": "-"})
	// A client's write at the same node does go there.
	c.ask("set c 0 0 1\r\ny\r\n", "STORED\r\n")
	s.holds(map[string]string{"c": "4 0 0 x"})
	dest.holds(map[string]string{"c": "1 0 0 y"})
}

func TestForwardWithoutDestination(t *testing.T) {
	p := newCppNode(t)
	n := loneCluster(t, toCluster(p.key(), options.Forward))
	p.stop()
	c := dial(t, n)
	began := time.Now()
	for range 20 {
		c.ask("get k\r\nset k 0 0 1\r\nx\r\nincr k 1\r\nset k 0 0 1 noreply\r\nx\r\n", "END\r\nSERVER_ERROR proxy failure\r\nSERVER_ERROR proxy failure\r\n")
	}
	if d := time.Since(began); d > patience/2 {
		t.Errorf("80 requests took %v", d)
	}
	// Off is at once.
	n.reconfigure(func(o *options.Options) { o.ClusterReplication.Enabled = false })
	c.ask("set k 0 0 1\r\nx\r\nget k\r\n", "STORED\r\nVALUE k 0 1\r\nx\r\nEND\r\n")
}

// dumpedTo waits until all records were sent to the other cluster so many times.
func (n *testNode) dumpedTo(times uint64) {
	n.t.Helper()
	eventually(n.t, "dump ends", func() error {
		if r, active := n.relays.cluster(); !active || r.Fill.Done != times {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
}

// replicatedTo waits until the other cluster has what the node has.
func (n *testNode) replicatedTo(dest *testNode, keys ...string) {
	n.t.Helper()
	eventually(n.t, "destination has the records", func() error {
		for _, k := range keys {
			if a, b := n.record(k), dest.record(k); a != b {
				return fmt.Errorf("%s is %q, at the destination %q", k, a, b)
			}
		}
		return nil
	})
}

func TestDuplicateMode(t *testing.T) {
	dest := loneCluster(t)
	n := loneCluster(t)
	c := dial(t, n)
	var keys []string
	for i := range 30 {
		keys = append(keys, fmt.Sprint("old", i))
		c.ask(fmt.Sprintf("set old%d %d 0 3\r\nabc\r\n", i, i), "STORED\r\n")
	}
	dial(t, dest).ask("set old3 9 0 5 100\r\nnewer\r\n", "STORED\r\n")
	n.reconfigure(func(o *options.Options) {
		o.ClusterReplication.Enabled, o.ClusterReplication.ServerName = true, "127.0.0.1"
		o.ClusterReplication.ServerPort = dest.port
	})
	n.replicatedTo(dest, slices.DeleteFunc(keys, func(k string) bool { return k == "old3" })...)
	dest.holds(map[string]string{"old3": "100 9 0 newer"})
	c.ask("set k 1 0 1\r\nx\r\nset n 0 0 1\r\n5\r\nincr n 3\r\ntouch k 1900000000\r\nset gone 0 0 1\r\nx\r\ndelete gone\r\n",
		"STORED\r\nSTORED\r\n8\r\nTOUCHED\r\nSTORED\r\nDELETED\r\n")
	n.replicatedTo(dest, "k", "n", "gone")
	eventually(t, "stats", func() error {
		for name, want := range map[string]string{
			"mode": "duplicate", "destination": dest.key(), "state": "connected", "queued_batches": "0", "queued_bytes": "0",
			"failed": "0", "dropped": "0", "dumps": "1", "dump_records": "30", "dump_percent": "100",
		} {
			if got := n.stat("cluster_replication_" + name); got != want {
				return fmt.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		return nil
	})
	if st := n.nodeStatus().ClusterReplication; !st.Active || !st.Connected || st.Dump.GetBytes() == 0 {
		t.Errorf("status %v", st)
	}
	if got := dial(t, n).threads(); !strings.Contains(got, ":type 5\r\n") {
		t.Errorf("stats threads %q", got)
	}

	// flush_all is about this node only.
	c.ask("flush_all\r\n", "OK\r\n")
	c.ask("set last 0 0 1\r\nx\r\n", "STORED\r\n")
	n.replicatedTo(dest, "last")
	dest.holds(map[string]string{"k": "1 1 1900000000 x"})

	// The mode changes without a dump, and back.
	n.reconfigure(func(o *options.Options) { o.ClusterReplication.Mode = options.Forward })
	c.ask("set fwd 0 0 1\r\nf\r\nget k\r\n", "STORED\r\nVALUE k 1 1\r\nx\r\nEND\r\n")
	n.holds(map[string]string{"fwd": "-"})
	n.reconfigure(func(o *options.Options) { o.ClusterReplication.Mode = options.Duplicate })
	c.ask("get k\r\nset back 0 0 1\r\nb\r\n", "END\r\nSTORED\r\n")
	n.replicatedTo(dest, "back")
	if got := n.stat("cluster_replication_dumps"); got != "1" {
		t.Errorf("%s dumps", got)
	}

	// Off is at once.
	n.reconfigure(func(o *options.Options) { o.ClusterReplication.Enabled = false })
	eventually(t, "relay ends", func() error {
		if _, active := n.relays.cluster(); active {
			return errors.New("not yet")
		}
		return nil
	})
	c.ask("set off 0 0 1\r\nb\r\n", "STORED\r\n")
	if got := n.stat("cluster_replication_mode"); got != "" {
		t.Errorf("mode %q when switched off", got)
	}
}

// threads returns the answer to stats threads.
func (c *testClient) threads() string {
	c.t.Helper()
	var all strings.Builder
	for line := c.line("stats threads\r\n"); line != "END"; line = c.line("") {
		all.WriteString(line + "\r\n")
	}
	return all.String()
}

// Only records of the own partition are dumped, and housekeeping stays at home.
func TestDuplicateOnlyOwnPartition(t *testing.T) {
	p := newCppNode(t)
	p.answer = accepting
	x := newTestIndex(t)
	a, b := startNode(t, x, quick), startNode(t, x, quick)
	x.master(a.key(), 0)
	a.settled(dutyMaster)
	c := dial(t, a)
	for i := range 20 {
		c.ask(fmt.Sprintf("set k%d 0 0 1\r\nx\r\n", i), "STORED\r\n")
	}
	x.master(b.key(), 1)
	b.settled(dutyMaster)
	own := 0
	tab := a.maps.table()
	for i := range 20 {
		if p, _ := tab.partition([]byte(fmt.Sprint("k", i))); p == 0 {
			own++
		}
	}
	a.reconfigure(func(o *options.Options) {
		host, port, _ := topology.SplitKey(p.key())
		o.ClusterReplication.Enabled, o.ClusterReplication.ServerName, o.ClusterReplication.ServerPort = true, host, port
	})
	a.dumpedTo(1)
	if got := p.requests(); len(got) != own || own == 0 || own == 20 {
		t.Errorf("%d records were sent, %d of 20 are its own: %q", len(got), own, got)
	}
}

// A new master sends everything anew: it does not know how far its predecessor was.
func TestDuplicateAfterFailover(t *testing.T) {
	dest := loneCluster(t)
	x := newTestIndex(t)
	to := toCluster(dest.key(), options.Duplicate)
	m, s := startNode(t, x, syncMode, to), startNode(t, x, syncMode, to)
	x.master(m.key(), 0)
	x.slave(s.key(), 0, 1)
	inSync(t, x, s)
	dial(t, m).ask("set before 0 0 1\r\nx\r\n", "STORED\r\n")
	m.replicatedTo(dest, "before")
	if _, active := s.relays.cluster(); active {
		t.Error("the slave sends its log")
	}
	m.kill()
	x.down(m.key())
	s.settled(dutyMaster)
	dial(t, s).ask("set after 0 0 1\r\nx\r\n", "STORED\r\n")
	s.replicatedTo(dest, "before", "after")
	s.dumpedTo(1)
}

// Two clusters that replicate to each other come to rest.
func TestDuplicateBothWays(t *testing.T) {
	a := loneCluster(t)
	b := loneCluster(t, toCluster(a.key(), options.Duplicate))
	a.reconfigure(func(o *options.Options) {
		o.ClusterReplication.Enabled, o.ClusterReplication.ServerName, o.ClusterReplication.ServerPort = true, "127.0.0.1", b.port
	})
	dial(t, a).ask("set k 0 0 1\r\nx\r\ntouch k 1900000000\r\nset gone 0 0 1\r\nx\r\ndelete gone\r\n", "STORED\r\nTOUCHED\r\nSTORED\r\nDELETED\r\n")
	a.replicatedTo(b, "k", "gone")
	eventually(t, "clusters are at rest", func() error {
		ra, _ := a.relays.cluster()
		rb, _ := b.relays.cluster()
		if ra.QueuedBatches > 0 || rb.QueuedBatches > 0 || !ra.Connected || !rb.Connected {
			return fmt.Errorf("%+v, %+v", ra, rb)
		}
		return nil
	})
	if ra := a.db.Position().LSN.Index; ra > 40 {
		t.Errorf("%d batches for 4 writes", ra)
	}
}
