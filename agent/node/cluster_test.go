package node

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/proto/topology"
)

func syncMode(n *testNode) { n.opts.ReplicationType = options.Sync }

func quick(n *testNode) {
	n.wait = 300 * time.Millisecond
	n.opts.ReplicationTimeout = 250 * time.Millisecond
}

// unhurried is for tests in which no replica is to be given up, however slow it is.
func unhurried(n *testNode) { n.opts.ReplicationTimeout = patience }

// twoPartitions starts a master and a slave for each of two partitions, in
// sync mode, and waits until all are in sync.
func twoPartitions(t *testing.T, tunes ...tune) (*testIndex, []*testNode) {
	t.Helper()
	x := newTestIndex(t)
	var nodes []*testNode
	for range 4 {
		nodes = append(nodes, startNode(t, x, append(tunes, syncMode)...))
	}
	x.master(nodes[0].key(), 0)
	x.master(nodes[1].key(), 1)
	x.slave(nodes[2].key(), 0, 1)
	x.slave(nodes[3].key(), 1, 1)
	inSync(t, x, nodes[2], nodes[3])
	return x, nodes
}

func inSync(t *testing.T, x *testIndex, slaves ...*testNode) {
	t.Helper()
	for _, n := range slaves {
		eventually(t, n.key()+" is in sync", func() error {
			if s := x.state(n.key()); s != topology.Active {
				return fmt.Errorf("state %v", s)
			}
			if d := dutyOf(n.maps.table()); d.kind != dutySlave || n.maps.table().own.State != topology.Active {
				return fmt.Errorf("duty %+v", d)
			}
			return nil
		})
	}
}

func TestEveryNodeAnswersForAll(t *testing.T) {
	_, nodes := twoPartitions(t, unhurried)
	for i, n := range nodes {
		c := dial(t, n)
		for k := range 10 {
			c.ask(fmt.Sprintf("set k%d-%d %d 0 3\r\nabc\r\n", i, k, k), "STORED\r\n")
		}
	}
	for _, n := range nodes {
		c := dial(t, n)
		var ask, want strings.Builder
		ask.WriteString("gets")
		for i := range nodes {
			for k := range 10 {
				fmt.Fprintf(&ask, " k%d-%d", i, k)
				fmt.Fprintf(&want, "VALUE k%d-%d %d 3 1\r\nabc\r\n", i, k, k)
			}
		}
		ask.WriteString(" missing\r\n")
		want.WriteString("END\r\n")
		c.ask(ask.String(), want.String())
	}
	// Every command through a node that has to forward it, pipelined.
	for _, n := range nodes {
		c := dial(t, n)
		key := "every" + fmt.Sprint(n.port)
		c.ask(strings.ReplaceAll("add K 1 0 1\r\n5\r\nadd K 1 0 1\r\n5\r\nreplace K 2 0 2\r\n10\r\nincr K 5\r\ndecr K 1\r\nappend K 0 0 1\r\n-\r\n"+
			"prepend K 0 0 1\r\n+\r\ngets K\r\ncas K 3 0 1 6\r\nx\r\ncas K 3 0 1 6\r\nx\r\ntouch K 1000\r\ngat K 0\r\ndelete K\r\ndelete K\r\nget K\r\n", "K", key),
			strings.ReplaceAll("STORED\r\nNOT_STORED\r\nSTORED\r\n15\r\n14\r\nSTORED\r\nSTORED\r\nVALUE K 2 4 6\r\n+14-\r\nEND\r\n"+
				"STORED\r\nEXISTS\r\nTOUCHED\r\nVALUE K 3 1\r\nx\r\nDELETED\r\nNOT_FOUND\r\nEND\r\n", "K", key))
		// noreply keeps silent everywhere, also for what fails.
		c.ask(strings.ReplaceAll("set K 0 0 1 noreply\r\nx\r\nadd K 0 0 1 noreply\r\ny\r\nincr K 1 noreply\r\ngat K 0 noreply\r\ntouch K 0 noreply\r\nget K\r\n", "K", key),
			strings.ReplaceAll("VALUE K 0 1\r\n1\r\nEND\r\n", "K", key))
	}
}

func TestReplicasFollow(t *testing.T) {
	x, nodes := twoPartitions(t, unhurried)
	c := dial(t, nodes[0])
	for i := range 50 {
		c.ask(fmt.Sprintf("set k%d 0 0 1\r\nx\r\n", i), "STORED\r\n")
	}
	for i := range 2 {
		master, slave := nodes[i].db.Position(), nodes[i+2].db.Position()
		if master.LSN != slave.LSN || master.History != slave.History {
			t.Errorf("partition %d: master at %v, in-sync slave at %v", i, master.LSN, slave.LSN)
		}
	}
	// flush_all empties the partition on its replicas too, and only there.
	if got := dial(t, nodes[2]).line("flush_all\r\n"); !strings.HasPrefix(got, "SERVER_ERROR not_master") || !strings.Contains(got, nodes[0].key()) {
		t.Errorf("flush_all at a slave: %s", got)
	}
	dial(t, nodes[0]).ask("flush_all\r\n", "OK\r\n")
	if a, b := nodes[0].db.Position().LSN, nodes[2].db.Position().LSN; a != b {
		t.Errorf("after flush_all master at %v, slave at %v", a, b)
	}
	left := 0
	for i := range 50 {
		if dial(t, nodes[2]).line(fmt.Sprintf("get k%d\r\n", i)) != "END" {
			left++
		}
	}
	if left == 0 || left == 50 {
		t.Errorf("%d of 50 keys left, want those of one partition", left)
	}
	_ = x
}

// TestMasterDies kills a master under load: nothing acknowledged is lost, and
// writes that were not sent yet wait instead of failing.
func TestMasterDies(t *testing.T) {
	x, nodes := twoPartitions(t)
	stored := make(chan string, 10000)
	var load sync.WaitGroup
	stop := make(chan struct{})
	for w := range 4 {
		c := dial(t, nodes[1+w%3])
		load.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("w%d-%d", w, i)
				c.nc.SetDeadline(time.Now().Add(patience))
				fmt.Fprintf(c.nc, "set %s 0 0 %d\r\n%s\r\n", key, len(key), key)
				line, err := c.r.ReadString('\n')
				if err != nil {
					t.Errorf("set %s: %v", key, err)
					return
				}
				if line == "STORED\r\n" {
					stored <- key
				} else {
					t.Logf("set %s: %s", key, line)
				}
			}
		})
	}
	enough := func(n int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d writes", n), func() error {
			if got := len(stored); got < n {
				return fmt.Errorf("%d writes", got)
			}
			return nil
		})
	}
	enough(200)
	nodes[0].kill()
	x.down(nodes[0].key())
	nodes[2].settled(dutyMaster)
	enough(len(stored) + 200)
	close(stop)
	load.Wait()
	close(stored)
	c := dial(t, nodes[3])
	n := 0
	for key := range stored {
		c.ask("get "+key+"\r\n", fmt.Sprintf("VALUE %s 0 %d\r\n%s\r\nEND\r\n", key, len(key), key))
		n++
	}
	t.Logf("%d writes acknowledged and found", n)

	// The old master comes back as a replica.
	nodes[0].start()
	x.slave(nodes[0].key(), 0, 1)
	inSync(t, x, nodes[0])
	if e := nodes[2].db.Position().LSN.Epoch; e != 2 {
		t.Errorf("epoch %d after the failover, want 2", e)
	}
	dial(t, nodes[0]).ask("set back 0 0 1\r\nx\r\nset forth 0 0 1\r\ny\r\n", "STORED\r\nSTORED\r\n")
	if a, b := nodes[2].db.Position().LSN, nodes[0].db.Position().LSN; a != b {
		t.Errorf("master at %v, slave at %v", a, b)
	}
}

// TestMasterLeaves stops a master in good order under load: clients of other
// nodes see no error at all.
func TestMasterLeaves(t *testing.T) {
	x, nodes := twoPartitions(t)
	var load sync.WaitGroup
	stop := make(chan struct{})
	count := make(chan struct{}, 100000)
	last := make([]int, 4)
	for w := range 4 {
		c := dial(t, nodes[1+w%3])
		load.Go(func() {
			for i := 1; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				c.nc.SetDeadline(time.Now().Add(patience))
				fmt.Fprintf(c.nc, "set w%d 0 0 %d\r\n%d\r\nincr n%d 1\r\n", w, len(fmt.Sprint(i)), i, w)
				for range 2 {
					line, err := c.r.ReadString('\n')
					if err != nil || strings.Contains(line, "ERROR") {
						t.Errorf("write %d of %d: %q, %v", i, w, line, err)
						return
					}
				}
				last[w] = i
				count <- struct{}{}
			}
		})
	}
	// A client of the node that leaves sees a pause, and then the end of the
	// connection between two answers.
	direct := dial(t, nodes[0])
	load.Go(func() {
		for i := 1; ; i++ {
			direct.nc.SetDeadline(time.Now().Add(patience))
			fmt.Fprintf(direct.nc, "set direct 0 0 %d\r\n%d\r\n", len(fmt.Sprint(i)), i)
			line, err := direct.r.ReadString('\n')
			if err == nil && line != "STORED\r\n" || err != nil && line != "" {
				t.Errorf("write %d at the node that leaves: %q, %v", i, line, err)
			}
			if err != nil {
				return
			}
		}
	})
	more := func() {
		t.Helper()
		n := len(count)
		eventually(t, "more writes", func() error {
			if len(count) < n+200 {
				return errors.New("too few")
			}
			return nil
		})
	}
	more()
	nodes[0].stop()
	nodes[2].settled(dutyMaster)
	more()
	close(stop)
	load.Wait()
	c := dial(t, nodes[2])
	for w := range 4 {
		v := fmt.Sprint(last[w])
		c.ask(fmt.Sprintf("get w%d\r\n", w), fmt.Sprintf("VALUE w%d 0 %d\r\n%s\r\nEND\r\n", w, len(v), v))
	}
	if got := x.state(nodes[0].key()); got != topology.Down {
		t.Errorf("the node that left is %v", got)
	}
}

// TestReplicaDies stops a replica without a word: its master goes on after the
// index has agreed.
func TestReplicaDies(t *testing.T) {
	x, nodes := twoPartitions(t)
	c := dial(t, nodes[0])
	nodes[2].kill()
	for i := range 10 {
		c.ask(fmt.Sprintf("set k%d 0 0 1\r\nx\r\n", i), "STORED\r\n")
	}
	if got := x.state(nodes[2].key()); got != topology.Prepare {
		t.Errorf("dead replica is %v in the index, want prepare", got)
	}
	x.down(nodes[2].key())
	nodes[2].start()
	x.slave(nodes[2].key(), 0, 1)
	inSync(t, x, nodes[2])
	c.ask("set again 0 0 1\r\nx\r\n", "STORED\r\n")
	if a, b := nodes[0].db.Position().LSN, nodes[2].db.Position().LSN; a != b {
		t.Errorf("master at %v, returned slave at %v", a, b)
	}
}

// TestRoutingLoop gives two nodes maps that each name the other one master.
func TestRoutingLoop(t *testing.T) {
	x := newTestIndex(t)
	a, b := startNode(t, x, quick), startNode(t, x, quick)
	for _, n := range []*testNode{a, b} {
		other := a
		if n == a {
			other = b
		}
		m := topology.Map{Version: 50, Nodes: []topology.Node{
			{Name: "127.0.0.1", Port: n.port, Role: topology.Proxy, Partition: -1},
			{Name: "127.0.0.1", Port: other.port, Role: topology.Master, Partition: 0, Balance: 1},
		}}
		topology.SortNodes(m.Nodes)
		if err := x.pushTo(n.key(), m); err != nil {
			t.Fatal(err)
		}
	}
	dial(t, a).ask("set k 0 0 1\r\nx\r\n", "SERVER_ERROR routing loop\r\n")
	dial(t, a).ask("get k\r\n", "END\r\n")
	dial(t, a).ask("<"+a.key()+">set k 0 0 1\r\nx\r\n", "SERVER_ERROR routing loop\r\n")
}

// TestDeadPeer: a destination that does not answer delays nobody else.
func TestDeadPeer(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x, quick, func(n *testNode) { n.reply = 2 * patience })
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	node := func(l net.Listener, partition int) topology.Node {
		return topology.Node{Name: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Role: topology.Master, Partition: partition, Balance: 1}
	}
	x.change(func() {
		x.makeMaster(x.find(n.key()), 0, 1)
		x.nodes = append(x.nodes, node(dead, 1))
		topology.SortNodes(x.nodes)
	})
	n.settled(dutyMaster)
	c := dial(t, n)
	// key2 is of partition 0, key1 of partition 1.
	c.ask("set key2 0 0 1\r\nx\r\n", "STORED\r\n")
	c.ask("set key1 0 0 1\r\nx\r\n", "SERVER_ERROR proxy failure\r\n")
	c.ask("get key1 key2\r\n", "VALUE key2 0 1\r\nx\r\nEND\r\n")
	c.ask("set key1 0 0 1 noreply\r\nx\r\nget key2\r\n", "VALUE key2 0 1\r\nx\r\nEND\r\n")

	x.change(func() {
		x.find(fmt.Sprintf("127.0.0.1:%d", dead.Addr().(*net.TCPAddr).Port)).Port = silent.Addr().(*net.TCPAddr).Port
	})
	slow := dial(t, n)
	fmt.Fprintf(slow.nc, "set key1 0 0 1\r\nx\r\n")
	eventually(t, "a request waits", func() error {
		if n.peers.waiting.Load() == 0 {
			return errors.New("nothing waits")
		}
		return nil
	})
	c.ask("get key2\r\nset key2 0 0 1\r\ny\r\n", "VALUE key2 0 1\r\nx\r\nEND\r\nSTORED\r\n")
	silent.Close()
	slow.ask("", "SERVER_ERROR proxy ")
}

// TestWriteWaitsForMaster: a write sent while no master is there succeeds once
// the map names one.
func TestWriteWaitsForMaster(t *testing.T) {
	x := newTestIndex(t)
	a, b := startNode(t, x), startNode(t, x)
	x.master(a.key(), 0)
	a.settled(dutyMaster)
	dial(t, b).ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	x.change(func() {
		n := x.find(a.key())
		n.State = topology.Down
	})
	a.settled(dutyNone)
	c := dial(t, b)
	// A partition whose node map says that nobody can be read from is a miss at
	// once, as with the original; only writes wait.
	c.ask("get k\r\n", "END\r\n")
	fmt.Fprintf(c.nc, "set k 0 0 1\r\ny\r\nincr nope 1 noreply\r\n")
	x.master(a.key(), 0)
	c.ask("get k\r\n", "STORED\r\nVALUE k 0 1\r\ny\r\nEND\r\n")
	if got := a.db.Position().LSN.Epoch; got != 2 {
		t.Errorf("epoch %d, want 2", got)
	}
}

// TestStaleEpoch: a master whose database has seen a later epoch refuses.
func TestStaleEpoch(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x)
	x.epochs[0] = 4
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	c := dial(t, n)
	c.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	x.change(func() { x.epochs[0] = 3 })
	eventually(t, "gate", func() error {
		if state, reason := n.gate.status(); state != gateRefuse {
			return errors.New(reason)
		}
		return nil
	})
	c.ask("set k 0 0 1\r\ny\r\nget k\r\n", "SERVER_ERROR stale_epoch\r\nVALUE k 0 1\r\nx\r\nEND\r\n")
	x.change(func() { x.epochs[0] = 6 })
	n.settled(dutyMaster)
	c.ask("set k 0 0 1\r\ny\r\n", "STORED\r\n")
	if got := n.db.Position().LSN.Epoch; got != 6 {
		t.Errorf("epoch %d, want 6", got)
	}
}

// TestRestart: a master that dies and comes back has its data.
func TestRestart(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	dial(t, n).ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	n.kill()
	// Refused while the index does not know of the death.
	n.launch()
	eventually(t, "refusal", func() error {
		if got := n.status.get(); got != "registration_refused" {
			return errors.New(got)
		}
		return nil
	})
	x.change(func() { x.find(n.key()).State = topology.Down })
	eventually(t, "registration", func() error {
		if got := n.status.get(); got != "" {
			return errors.New(got)
		}
		return nil
	})
	x.mu.Lock()
	hello := x.hellos[len(x.hellos)-1]
	x.mu.Unlock()
	if hello.Instance != n.instance || hello.Partition != 0 || hello.Position != n.db.Position().LSN || hello.History == "" {
		t.Errorf("hello %+v", hello)
	}
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	dial(t, n).ask("get k\r\nset k 0 0 1\r\ny\r\n", "VALUE k 0 1\r\nx\r\nEND\r\nSTORED\r\n")
}

// TestPlainIndex: an index that knows neither hello nor epochs.
func TestPlainIndex(t *testing.T) {
	x := newTestIndex(t)
	x.plain = true
	a, b := startNode(t, x, syncMode), startNode(t, x, syncMode)
	x.master(a.key(), 0)
	a.settled(dutyMaster)
	x.slave(b.key(), 0, 1)
	inSync(t, x, b)
	dial(t, b).ask("set k 0 0 1\r\nx\r\nget k\r\n", "STORED\r\nVALUE k 0 1\r\nx\r\nEND\r\n")
	a.kill()
	x.down(a.key())
	b.settled(dutyMaster)
	dial(t, b).ask("get k\r\nset k 0 0 1\r\ny\r\n", "VALUE k 0 1\r\nx\r\nEND\r\nSTORED\r\n")
	if got := b.db.Position().LSN.Epoch; got != 2 {
		t.Errorf("epoch %d, want 2", got)
	}
}

func TestPipelining(t *testing.T) {
	_, nodes := twoPartitions(t, unhurried)
	c := dial(t, nodes[3])
	var ask, want strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&ask, "set p%d 0 0 4\r\n%04d\r\nget p%d\r\n", i%500, i, i%500)
		fmt.Fprintf(&want, "STORED\r\nVALUE p%d 0 4\r\n%04d\r\nEND\r\n", i%500, i)
	}
	go func() { c.nc.Write([]byte(ask.String())) }()
	c.ask("", want.String())
}

func TestBigValue(t *testing.T) {
	_, nodes := twoPartitions(t, unhurried)
	value := bytes.Repeat([]byte("0123456789abcde\n"), 128<<10) // 2 MiB, more than any buffer
	for i, n := range nodes {
		c := dial(t, n)
		c.ask(fmt.Sprintf("set big%d 0 0 %d\r\n%s\r\n", i, len(value), value), "STORED\r\n")
	}
	for i := range nodes {
		dial(t, nodes[0]).ask(fmt.Sprintf("get big%d\r\n", i), fmt.Sprintf("VALUE big%d 0 %d\r\n%s\r\nEND\r\n", i, len(value), value))
	}
	c := dial(t, nodes[0])
	c.ask("set huge 0 0 2147483647\r\n", "SERVER_ERROR object too large for cache\r\n")
}

func TestGarbage(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	c := dial(t, n)
	c.ask("\r\n \r\nGET a\r\nget\r\nset a b c\r\n<x>\r\n\x01\x02\x03\r\nget "+strings.Repeat("k", 8192)+"\r\nping\r\n",
		strings.Repeat("ERROR\r\n", 8)+"OK\r\n")
	c.ask("set a x 0 4\r\nping\r\nping\r\n", "ERROR\r\nOK\r\n")
	c.ask("node sync 1\r\nNODE bad\r\nping\r\n", "CLIENT_ERROR format error\r\nOK\r\n")
	if err := x.pushTo(n.key(), topology.Map{Version: 1}); err == nil {
		t.Error("an older node map was accepted")
	}
	x.mu.Lock()
	same := topology.NewMap(x.version, x.nodes)
	x.mu.Unlock()
	if err := x.pushTo(n.key(), same); err != nil {
		t.Errorf("an equal node map was refused: %v", err)
	}
}

func TestConnectionLimit(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x, func(n *testNode) { n.opts.MaxConnection = 2 })
	a, b := dial(t, n), dial(t, n)
	a.ask("ping\r\n", "OK\r\n")
	b.ask("ping\r\n", "OK\r\n")
	if _, err := dial(t, n).try("version\r\n", 1); err == nil {
		t.Error("a client beyond the limit was served")
	}
	dial(t, n).ask("ping\r\nversion\r\n", "OK\r\nVERSION flare-9.9.9\r\n")
}

func TestIdleTimeout(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x, func(n *testNode) { n.opts.NetReadTimeout = 50 * time.Millisecond })
	if got, err := dial(t, n).try("get a", 1); err == nil {
		t.Errorf("an idle connection was answered with %q", got)
	}
}
