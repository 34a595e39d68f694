package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

func TestWantedRelays(t *testing.T) {
	nodes := []topology.Node{
		entry(1, topology.Master, topology.Active, 0, 1, 7),
		entry(2, topology.Slave, topology.Active, 0, 1, 7),
		entry(3, topology.Slave, topology.Prepare, 0, 0, 7),
		entry(4, topology.Slave, topology.Down, 0, 0, 7),
		entry(5, topology.Master, topology.Active, 1, 1, 1),
		entry(6, topology.Master, topology.Prepare, 2, 0, 0),
		entry(7, topology.Slave, topology.Prepare, 2, 0, 0),
	}
	holds := func(p int) tenure { return tenure{held: true, partition: p} }
	cluster := options.ClusterReplication{Enabled: true, ServerName: "c", ServerPort: 9}
	for _, tt := range []struct {
		name    string
		self    string
		held    tenure
		o       options.ClusterReplication
		streams map[string]bool
		want    []relayKey
	}{
		{name: "master", self: "h:1", held: holds(0),
			want: []relayKey{{relaySlave, "h:2"}, {relaySlave, "h:3"}, {relayFill, "h:6"}}},
		{name: "master whose slaves are known", self: "h:1", held: holds(0), streams: map[string]bool{"h:2": true, "h:3": false},
			want: []relayKey{{relaySlave, "h:3"}, {relayFill, "h:6"}}},
		{name: "not yet master", self: "h:1"},
		{name: "still master of another partition", self: "h:1", held: holds(1)},
		{name: "slave", self: "h:2", held: tenure{}, o: cluster},
		{name: "to another cluster", self: "h:5", held: holds(1), o: cluster,
			want: []relayKey{{relayFill, "h:6"}, {relayCluster, "c:9"}}},
		{name: "mode forward", self: "h:5", held: holds(1), o: options.ClusterReplication{Enabled: true, ServerName: "c", ServerPort: 9, Mode: options.Forward},
			want: []relayKey{{relayFill, "h:6"}, {relayCluster, "c:9"}}},
		{name: "switched off", self: "h:5", held: holds(1), o: options.ClusterReplication{ServerName: "c", ServerPort: 9},
			want: []relayKey{{relayFill, "h:6"}}},
		{name: "without a destination", self: "h:5", held: holds(1), o: options.ClusterReplication{Enabled: true},
			want: []relayKey{{relayFill, "h:6"}}},
		{name: "master of the new partition", self: "h:6", held: holds(2), o: cluster,
			want: []relayKey{{relaySlave, "h:7"}}},
	} {
		if got := wantedRelays(testTable(t, tt.self, nodes...), tt.held, tt.o, tt.streams); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if got := wantedRelays(nil, holds(0), cluster, nil); got != nil {
		t.Errorf("without a map: %v", got)
	}
}

// accepting answers as a node of the original that takes everything.
func accepting(req *text.Request) string {
	switch req.Command {
	case text.CmdSet:
		return text.ReplyStored
	case text.CmdTouch:
		return text.ReplyTouched
	case text.CmdDelete:
		return text.ReplyDeleted
	case text.CmdFlushAll, text.CmdPing:
		return text.ReplyOK
	}
	return text.ReplyError
}

// saws waits until the node was asked so many requests in all and returns them.
func (p *cppNode) saws(n int) []string {
	p.t.Helper()
	eventually(p.t, "requests to "+p.key(), func() error {
		if got := p.requests(); len(got) < n {
			return fmt.Errorf("%d of %d: %q", len(got), n, got)
		}
		return nil
	})
	return p.requests()
}

// relaysTo waits until the log is kept for another node.
func (n *testNode) relaysTo(key relayKey) {
	n.t.Helper()
	eventually(n.t, "relay runs", func() error {
		n.relays.mu.Lock()
		defer n.relays.mu.Unlock()
		if n.relays.running[key] == nil {
			return errors.New("not yet")
		}
		return nil
	})
}

// A node that began to copy before the map told its master of it gets what was
// written since.
func TestSlaveThatDumpsBeforeTheMap(t *testing.T) {
	x, p := newTestIndex(t), newCppNode(t)
	n := startNode(t, x, quick)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	p.answer = accepting
	c := dial(t, n)
	c.ask("set before 0 0 1\r\nx\r\n", "STORED\r\n")
	c.ask("dump\r\n", "VALUE before 0 1 1 0\r\nx\r\nEND\r\n")
	c.ask("set since 0 0 1\r\nx\r\n", "STORED\r\n")
	x.add(p.entry(topology.Slave, topology.Prepare, 0, 0))
	if got := p.saws(1); !slices.Equal(got, []string{"<" + n.key() + ">set since 0 0 1 1"}) {
		t.Errorf("slave was asked %q", got)
	}
}

// A slave of the original gets each write with its version, in the forms of the
// original, and nobody waits for it.
func TestOriginalAsSlave(t *testing.T) {
	x, p := newTestIndex(t), newCppNode(t)
	n := startNode(t, x, quick, syncMode)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	p.answer = accepting
	x.add(p.entry(topology.Slave, topology.Active, 0, 1))
	eventually(t, "slave is known", func() error {
		if !n.relays.cannotStream(p.key()) {
			return errors.New("not yet")
		}
		return nil
	})
	c, via, at := dial(t, n), "<"+n.key()+">", 0
	for _, tt := range []struct{ send, answer, want string }{
		{"set k 3 0 5\r\nhello\r\n", "STORED\r\n", via + "set k 3 0 5 1"},
		{"append k 0 0 1\r\n!\r\n", "STORED\r\n", via + "set k 3 0 6 2"},
		{"touch k 1900000000\r\n", "TOUCHED\r\n", via + "touch k 1900000000"},
		{"gat k 1900000001\r\n", "VALUE k 3 6\r\nhello!\r\n", via + "touch k 1900000001"},
		{"set n 0 1900000002 1 sync\r\n5\r\n", "STORED\r\n", via + "set n 0 1900000002 1 1"},
		{"incr n 3\r\n", "8\r\n", via + "set n 0 1900000002 1 2"},
		{"cas n 0 0 1 2\r\nc\r\n", "STORED\r\n", via + "set n 0 0 1 3"},
		{"delete k\r\n", "DELETED\r\n", via + "delete k 0 2"},
		{"set q 0 0 1 noreply\r\nx\r\nversion\r\n", "VERSION flare-9.9.9\r\n", via + "set q 0 0 1 1"},
		{"<10.0.0.1:1>set u 0 0 1\r\nx\r\n", "STORED\r\n", via + "set u 0 0 1 1"},
		{"flush_all\r\n", "OK\r\n", "flush_all"},
	} {
		c.ask(tt.send, tt.answer)
		if at++; p.saws(at)[at-1] != tt.want {
			t.Errorf("%q: slave was asked %q, want %q", tt.send, p.requests()[at-1], tt.want)
		}
	}
	if set := n.source.Replicas(); len(set) != 0 {
		t.Errorf("%+v count as replicas that stream", set)
	}
	eventually(t, "status", func() error {
		st := n.nodeStatus().Replicas
		if len(st) != 1 || st[0].Node != p.key() || !st[0].Connected || st[0].InSync || st[0].LagBatches != 0 || st[0].Acked.Index != n.db.Position().LSN.Index {
			return fmt.Errorf("%v", st)
		}
		return nil
	})
	if got, err := c.try("stats threads slave\r\n", len("STAT 99:type")); err != nil || !strings.Contains(got, ":type") {
		t.Errorf("stats threads slave: %q %v", got, err)
	}

	// One that does not answer delays only who asks for it with sync, and that is
	// bounded.
	p.mu.Lock()
	p.answer = func(*text.Request) string { return "silence" }
	p.mu.Unlock()
	c = dial(t, n)
	c.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	p.saws(at + 1)
	began := time.Now()
	c.ask("set k 0 0 1 sync\r\ny\r\n", "STORED\r\n")
	if d := time.Since(began); d < 200*time.Millisecond {
		t.Errorf("sync was answered after %v, without the slave", d)
	}
	if st := n.replicas(); len(st) != 1 || st[0].LagBatches == 0 {
		t.Errorf("replicas %+v", st)
	}
}

// A slave that streams is not sent its writes a second time.
func TestOwnSlaveIsNotSentWrites(t *testing.T) {
	x := newTestIndex(t)
	m, s := startNode(t, x, syncMode), startNode(t, x, syncMode)
	x.master(m.key(), 0)
	x.slave(s.key(), 0, 1)
	inSync(t, x, s)
	dial(t, m).ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	eventually(t, "no relay", func() error {
		m.relays.mu.Lock()
		defer m.relays.mu.Unlock()
		if len(m.relays.running) > 0 || !m.relays.streams[s.key()] {
			return fmt.Errorf("%v running, %v known", m.relays.running, m.relays.streams)
		}
		return nil
	})
	if got := s.counters.cmdSet.Load(); got != 0 {
		t.Errorf("slave was sent %d writes", got)
	}
}

// TestBug11WritesOfAnOutageReachTheSlave: with the original, they were lost.
func TestBug11WritesOfAnOutageReachTheSlave(t *testing.T) {
	x, p := newTestIndex(t), newCppNode(t)
	n := startNode(t, x, quick)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	var refuse atomic.Bool
	refuse.Store(true)
	p.answer = func(req *text.Request) string {
		if refuse.Load() {
			return "close"
		}
		return accepting(req)
	}
	x.add(p.entry(topology.Slave, topology.Prepare, 0, 0))
	n.relaysTo(relayKey{relaySlave, p.key()})
	c := dial(t, n)
	for i := range 20 {
		c.ask(fmt.Sprintf("set k%d 0 0 1\r\nx\r\n", i), "STORED\r\n")
	}
	p.saws(1)
	refuse.Store(false)
	eventually(t, "slave has everything", func() error {
		if st := n.replicas(); len(st) != 1 || st[0].LagBatches > 0 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	got := p.requests()
	for i := range 20 {
		if !slices.Contains(got, fmt.Sprintf("<%s>set k%d 0 0 1 1", n.key(), i)) {
			t.Errorf("k%d was not sent", i)
		}
	}
}

// The master of a partition that is being added gets the writes of the keys that
// will be its own, also those from just before it was put in force.
func TestWritesForANewPartition(t *testing.T) {
	x, p := newTestIndex(t), newCppNode(t)
	n := startNode(t, x, quick)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	p.answer = accepting
	x.add(p.entry(topology.Master, topology.Prepare, 1, 1))
	n.relaysTo(relayKey{relayFill, p.key()})
	c := dial(t, n)
	resolver := n.maps.table().resolver
	want := 0
	for i := range 40 {
		key := fmt.Sprint("key", i)
		if resolver.Partition([]byte(key), 2) == 1 {
			want++
		}
		c.ask("set "+key+" 0 0 1\r\nx\r\n", "STORED\r\n")
	}
	if want == 0 || want == 40 {
		t.Fatalf("%d of 40 keys move", want)
	}
	x.change(func() { x.find(p.key()).State = topology.Active })
	got := p.saws(want)
	if len(got) != want {
		t.Errorf("%d writes were sent, want %d", len(got), want)
	}
	for _, line := range got {
		key := strings.Fields(line)[1]
		if !strings.HasPrefix(line, "<"+n.key()+">set ") || resolver.Partition([]byte(key), 2) != 1 {
			t.Errorf("sent %q", line)
		}
	}
	eventually(t, "relay ends", func() error {
		n.relays.mu.Lock()
		defer n.relays.mu.Unlock()
		if len(n.relays.running) > 0 {
			return errors.New("not yet")
		}
		return nil
	})
}

// TestRoutedByAFormerMap: a write that was routed before a new partition took its key
// over must not be executed after: nobody would send it on.
func TestRoutedByAFormerMap(t *testing.T) {
	x := newTestIndex(t)
	old, fresh := startNode(t, x, quick), startNode(t, x, quick)
	x.master(old.key(), 0)
	old.settled(dutyMaster)
	resolver := old.maps.table().resolver
	key := []byte("k")
	for i := 0; resolver.Partition(key, 2) != 1; i++ {
		key = fmt.Appendf(nil, "k%d", i)
	}
	if state, reason := old.enter(key, 0); state != gateOpen {
		t.Fatalf("before: %v %s", state, reason)
	}
	old.gate.leave()
	x.master(fresh.key(), 1)
	eventually(t, "the new map", func() error {
		if n := len(old.maps.table().parts); n != 2 {
			return fmt.Errorf("%d partitions", n)
		}
		return nil
	})
	if state, reason := old.enter(key, 0); state != gateWait || reason != "map_changed" {
		t.Errorf("after: %v %s", state, reason)
	}
	for i := 0; resolver.Partition(key, 2) != 0; i++ {
		key = fmt.Appendf(nil, "k%d", i)
	}
	if state, reason := old.enter(key, 0); state != gateOpen {
		t.Fatalf("a key that stays: %v %s", state, reason)
	}
	old.gate.leave()
}

// A partition is added under load: no write of the keys that move is lost, from
// before, while it was filled, and while it was put in force.
func TestNewPartitionUnderLoad(t *testing.T) {
	x := newTestIndex(t)
	old, fresh := startNode(t, x, quick), startNode(t, x, quick)
	x.master(old.key(), 0)
	old.settled(dutyMaster)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		c, i := dial(t, old), 0
		defer func() { done <- i }()
		for ; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			c.nc.SetDeadline(time.Now().Add(patience))
			fmt.Fprintf(c.nc, "set k%d 0 0 1\r\nx\r\n", i)
			if line, err := c.r.ReadString('\n'); line != "STORED\r\n" {
				t.Errorf("k%d: %q %v", i, line, err)
				return
			}
		}
	}()
	load := func() {
		from := old.counters.cmdSet.Load()
		eventually(t, "load", func() error {
			if n := old.counters.cmdSet.Load() - from; n < 200 {
				return fmt.Errorf("%d writes", n)
			}
			return nil
		})
	}
	load()
	x.change(func() {
		n := x.find(fresh.key())
		n.Role, n.State, n.Partition, n.Balance = topology.Master, topology.Prepare, 1, 1
	})
	x.tells(fresh.says("node state 127.0.0.1 %d ready"), 1)
	load()
	// The new master hears it first.
	x.mu.Lock()
	x.find(fresh.key()).State = topology.Active
	x.epochs[1]++
	x.find(fresh.key()).Epoch = x.epochs[1]
	x.version++
	if err := x.pushTo(fresh.key(), topology.NewMap(x.version, x.nodes)); err != nil {
		t.Error(err)
	}
	x.mu.Unlock()
	load()
	x.change(func() {})
	load()
	close(stop)
	n := <-done
	resolver := old.maps.table().resolver
	eventually(t, "new master has its records", func() error {
		for i := range n {
			key := fmt.Sprint("k", i)
			if got := fresh.record(key); resolver.Partition([]byte(key), 2) == 1 && got != "1 0 0 x" {
				return fmt.Errorf("%s of %d is %q", key, n, got)
			}
		}
		return nil
	})
}
