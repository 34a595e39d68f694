package node

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/flarekv/flare/agent/options"
)

// to changes where a node replicates to, and how.
func (n *testNode) to(dest *testNode, mode options.ReplicationMode) {
	n.reconfigure(func(o *options.Options) {
		o.ClusterReplication.Enabled, o.ClusterReplication.ServerName = true, "127.0.0.1"
		o.ClusterReplication.ServerPort, o.ClusterReplication.Mode = dest.port, mode
	})
}

// heldAndSent waits until no write is under way on a node, and the destination has
// what was written before.
func (n *testNode) heldAndSent() {
	n.t.Helper()
	eventually(n.t, "writes wait", func() error {
		if st := n.clusterStatus(); !st.GetHeld() || st.GetQueuedBatches() > 0 || st.GetDump().GetRunning() || st.GetDump().GetDue() {
			return fmt.Errorf("%v", st)
		}
		return nil
	})
}

// Clients write through all nodes of a cluster while it gives them over to another one,
// node by node: what was acknowledged last is there in the end.
func TestHoldLosesNoWrite(t *testing.T) {
	dest := loneCluster(t)
	x := newTestIndex(t)
	master, proxy := startNode(t, x, quick), startNode(t, x, quick)
	x.master(master.key(), 0)
	master.settled(dutyMaster)
	nodes := []*testNode{master, proxy}
	for _, n := range nodes {
		n.to(dest, options.Duplicate)
	}
	c := dial(t, master)
	c.ask("set key0 0 0 1\r\n0\r\nset key1 0 0 1\r\n0\r\n", "STORED\r\nSTORED\r\n")
	dial(t, proxy).ask("get key0\r\n", "VALUE key0 0 1\r\n0\r\nEND\r\n")
	stop := make(chan struct{})
	var load sync.WaitGroup
	var mu sync.Mutex
	written := map[string]int{}
	for w := range 4 {
		load.Go(func() {
			c := dial(t, nodes[w%2])
			key := fmt.Sprint("key", w/2) // two clients on different nodes share each
			for {
				select {
				case <-stop:
					return
				default:
				}
				// A counter that lacks an increment, or has one of the former cluster on top,
				// shows both a write that was lost and one that was executed twice.
				got, err := c.try("incr "+key+" 1\r\n", 1)
				if err != nil {
					t.Error(err)
					return
				}
				if rest, err := c.r.ReadString('\n'); err != nil || strings.Contains(got+rest, "ERROR") {
					t.Errorf("%s%s %v", got, rest, err)
					return
				}
				mu.Lock()
				written[key]++
				mu.Unlock()
			}
		})
	}
	count := func(from int) {
		t.Helper()
		eventually(t, "load passes", func() error {
			mu.Lock()
			defer mu.Unlock()
			if n := written["key0"] + written["key1"]; n < from+50 {
				return fmt.Errorf("%d writes", n)
			}
			return nil
		})
	}
	total := func() int {
		mu.Lock()
		defer mu.Unlock()
		return written["key0"] + written["key1"]
	}
	count(0)
	master.dumpedTo(1)
	for _, n := range nodes {
		n.to(dest, options.Hold)
	}
	for _, n := range nodes {
		n.heldAndSent()
	}
	proxy.to(dest, options.Forward)
	dial(t, proxy).ask("set fresh 0 0 1\r\nx\r\nget fresh\r\n", "STORED\r\nVALUE fresh 0 1\r\nx\r\nEND\r\n")
	if st := master.clusterStatus(); !st.GetHeld() || st.GetQueuedBatches() > 0 || master.record("fresh") != "-" {
		t.Errorf("master wrote although it holds: %v", st)
	}
	master.to(dest, options.Forward)
	count(total())
	close(stop)
	load.Wait()
	there := dial(t, dest)
	for key, want := range written {
		line := fmt.Sprint(want)
		there.ask("get "+key+"\r\n", fmt.Sprintf("VALUE %s 0 %d\r\n%s\r\nEND\r\n", key, len(line), line))
	}
}

// A cut-over that is given up lets writes go on here; one that lasts refuses them.
func TestHoldEnds(t *testing.T) {
	dest := loneCluster(t)
	n := loneCluster(t)
	c := dial(t, n)
	n.to(dest, options.Hold)
	n.heldAndSent()
	done := make(chan error, 1)
	go func() {
		got, err := c.try("set waits 0 0 1\r\nx\r\n", len("STORED\r\n"))
		if err == nil && got != "STORED\r\n" {
			err = errors.New(got)
		}
		done <- err
	}()
	dial(t, n).ask("get waits\r\n", "END\r\n")
	select {
	case err := <-done:
		t.Fatalf("a write did not wait: %v", err)
	default:
	}
	n.to(dest, options.Duplicate)
	if err := <-done; err != nil {
		t.Errorf("after the cut-over was given up: %v", err)
	}
	n.replicatedTo(dest, "waits")
	if st := n.clusterStatus(); st.GetHeld() {
		t.Errorf("%v", st)
	}

	short := loneCluster(t, func(n *testNode) { n.wait = 1 })
	short.to(dest, options.Hold)
	dial(t, short).ask("set k 0 0 1\r\nx\r\n", "SERVER_ERROR proxy failure\r\n")
	if r := short.record("k"); r != "-" {
		t.Errorf("a refused write was executed: %q", r)
	}
}

// Clusters with other partitions have the same digest, by whichever mapping it is
// asked for, until a record differs in anything.
func TestDigest(t *testing.T) {
	x := newTestIndex(t)
	a, b := startNode(t, x, quick), startNode(t, x, quick)
	x.master(a.key(), 0)
	a.settled(dutyMaster)
	dest := loneCluster(t)
	for i := range 50 {
		set := fmt.Sprintf("set k%d %d 0 3 7\r\nabc\r\n", i, i)
		dial(t, a).ask(set, "STORED\r\n")
		dial(t, dest).ask(set, "STORED\r\n")
	}
	sum := func(nodes ...*testNode) (records int, sums map[string]uint64) {
		t.Helper()
		sums = map[string]uint64{}
		for _, n := range nodes {
			c := dial(t, n)
			for line := c.line("digest simple 1 4096 1024 3 2\r\n"); line != "END"; line = c.line("") {
				f := strings.Fields(line)
				if len(f) != 6 || f[0] != "DIGEST" {
					t.Fatalf("digest of %s: %q", n.key(), line)
				}
				r, _ := strconv.Atoi(f[3])
				v, _ := strconv.ParseUint(f[5], 10, 64)
				records += r
				sums[f[1]+"/"+f[2]] += v
			}
		}
		return records, sums
	}
	same := func(want bool, nodes ...*testNode) {
		t.Helper()
		na, sa := sum(nodes...)
		nb, sb := sum(dest)
		if equal := fmt.Sprint(na, sa) == fmt.Sprint(nb, sb); equal != want {
			t.Errorf("equal %t, want %t:\n%d %v\n%d %v", equal, want, na, sa, nb, sb)
		}
	}
	same(true, a)
	// The other partition's records stay behind on a as orphans, which are not its own.
	x.master(b.key(), 1)
	b.settled(dutyMaster)
	eventually(t, "both partitions are there", func() error {
		if n := len(a.maps.table().parts); n != 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if n, _ := sum(a, b); n == 0 || n >= 50 {
		t.Errorf("%d records are their partitions' own", n)
	}
	for i := range 50 {
		set := fmt.Sprintf("set k%d %d 0 3 8\r\nabc\r\n", i, i)
		dial(t, a).ask(set, "STORED\r\n")
		dial(t, dest).ask(set, "STORED\r\n")
	}
	same(true, a, b)
	dial(t, a).ask("set k7 7 1900000000 3 9\r\nabc\r\n", "STORED\r\n")
	same(false, a, b)
	dial(t, dest).ask("set k7 7 1900000000 3 9\r\nabc\r\n", "STORED\r\n")
	same(true, a, b)
	dial(t, dest).ask("set dead 0 1 1\r\nx\r\n", "STORED\r\n")
	eventually(t, "record expires", func() error {
		if got := dial(t, dest).line("get dead\r\n"); got != "END" {
			return errors.New(got)
		}
		return nil
	})
	same(true, a, b)

	free := startNode(t, x, quick)
	if got := dial(t, free).line("digest simple 1 4096 1024 3 2\r\n"); !strings.HasPrefix(got, "SERVER_ERROR no_partition: ") {
		t.Errorf("a node without a partition: %s", got)
	}
	dial(t, a).ask("digest simple 1 4096 3 3 2\r\ndigest\r\n", "ERROR\r\nERROR\r\n")
}
