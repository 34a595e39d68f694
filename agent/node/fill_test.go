package node

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// keysOf returns keys that belong to a partition among n, with a prefix.
func (n *testNode) keysOf(prefix string, partition, partitions, count int) []string {
	n.t.Helper()
	var keys []string
	for i := 0; len(keys) < count; i++ {
		key := fmt.Sprintf("%s%d", prefix, i)
		if n.maps.table().resolver.Partition([]byte(key), partitions) == partition {
			keys = append(keys, key)
		}
	}
	return keys
}

func TestNewPartitionOfOriginals(t *testing.T) {
	x := plainIndex(t)
	m0, m1 := newCppNode(t), newCppNode(t)
	n := startNode(t, x, quick, func(n *testNode) { n.opts.ReconstructionBwlimit = 5000 })
	x.add(m0.entry(topology.Master, topology.Active, 0, 1), m1.entry(topology.Master, topology.Active, 1, 1))
	// Keys that go to 2 when there are three partitions, from 0 and from 1.
	var from0, from1 string
	for i := 0; from0 == "" || from1 == ""; i++ {
		key := n.keysOf(fmt.Sprintf("k%d.", i), 2, 3, 1)[0]
		if n.maps.table().resolver.Partition([]byte(key), 2) == 0 {
			from0 = key
		} else {
			from1 = key
		}
	}
	stays := n.keysOf("stays", 0, 3, 1)[0]
	proceed := make(chan struct{})
	m0.dump = func(_ int, nc net.Conn) {
		dumped(nc, "VALUE "+from0+" 1 3 2 0\r\nold\r\n", proceed, "END\r\n")
	}
	m1.dump = func(_ int, nc net.Conn) { dumped(nc, "VALUE "+from1+" 0 3 7 0\r\none\r\nEND\r\n") }

	x.set(n.key(), topology.Master, topology.Prepare, 2)
	n.copies()
	c := dial(t, n)
	// An old master sends on what it executes for keys that will move.
	c.ask("<"+m0.key()+">set "+from0+" 0 0 3 3\r\nnew\r\n", "STORED\r\n")
	// A client's write goes to where the key still is, and comes back.
	m0.mu.Lock()
	m0.answer = func(req *text.Request) string {
		if len(req.Via) == 1 && req.Command == text.CmdSet {
			back := fmt.Sprintf("<%s,%s>set %s 0 0 4 4\r\nback\r\n", n.key(), m0.key(), req.Key())
			want := "STORED\r\n"
			if string(req.Key()) == stays {
				return text.ReplyStored
			}
			dial(t, n).ask(back, want)
			return text.ReplyStored
		}
		return text.ReplyEnd
	}
	m0.mu.Unlock()
	c.ask("set "+from0+" 0 0 4\r\nback\r\nset "+stays+" 0 0 1\r\nx\r\nget "+from0+"\r\n", "STORED\r\nSTORED\r\nEND\r\n")
	n.holds(map[string]string{from0: "4 0 0 back", stays: "-"})
	if told := x.heard(); len(told) > 0 {
		t.Errorf("index was told %q before all dumps were complete", told)
	}
	close(proceed)
	x.tells(n.says("node state 127.0.0.1 %d ready"), 1)
	n.holds(map[string]string{from0: "4 0 0 back", from1: "7 0 0 one"})
	for _, m := range []*cppNode{m0, m1} {
		if got := m.requests(); !slices.Contains(got, "dump 0 2 3 2500") {
			t.Errorf("a master was asked %q", got)
		}
	}

	// Ready, it still executes what comes; active, it is a master like any other.
	c.ask("<"+m0.key()+">set "+from0+" 0 0 1 5\r\nr\r\n", "STORED\r\n")
	before := n.db.Position()
	x.change(func() { x.find(n.key()).State = topology.Active })
	n.settled(dutyMaster)
	c.ask("get "+from0+"\r\nset "+from0+" 0 0 1\r\nm\r\n", "VALUE "+from0+" 0 1\r\nr\r\nEND\r\nSTORED\r\n")
	n.holds(map[string]string{from0: "6 0 0 m"})
	if pos := n.db.Position(); pos.History != before.History || pos.LSN.Epoch != before.LSN.Epoch {
		t.Errorf("position %+v after %+v", pos, before)
	}
}

// All nodes are ours: the slave of the new master follows its log from the
// beginning, whatever the new master was before, and whatever the index knows.
func TestNewPartition(t *testing.T) {
	for name, x := range map[string]*testIndex{"plain index": plainIndex(t), "index with epochs": newTestIndex(t)} {
		t.Run(name, func(t *testing.T) { newPartition(t, x) })
	}
}

func newPartition(t *testing.T, x *testIndex) {
	x.t = t
	a, d, e := startNode(t, x, quick), startNode(t, x, quick), startNode(t, x, quick)
	x.epochs[0] = 6
	x.master(d.key(), 0)
	d.settled(dutyMaster)
	dial(t, d).ask("set before 0 0 1\r\nx\r\n", "STORED\r\n")
	x.set(d.key(), topology.Proxy, topology.Active, -1)
	x.master(a.key(), 0)
	a.settled(dutyMaster)
	ca := dial(t, a)
	moving, stays := a.keysOf("m", 1, 2, 50), a.keysOf("s", 0, 2, 50)
	for _, key := range slices.Concat(moving, stays) {
		ca.ask("set "+key+" 3 1900000000 1\r\nx\r\n", "STORED\r\n")
	}
	x.set(d.key(), topology.Master, topology.Prepare, 1)
	x.slave(e.key(), 1, 0)
	x.tells(d.says("node state 127.0.0.1 %d ready"), 1)
	inSync(t, x, e)
	for _, n := range []*testNode{d, e} {
		eventually(t, "records of the new partition", func() error {
			for _, key := range moving {
				if got := n.record(key); got != "1 3 1900000000 x" {
					return fmt.Errorf("%s is %q", key, got)
				}
			}
			return nil
		})
		for _, key := range stays {
			if got := n.record(key); got != "-" {
				t.Fatalf("%s, which stays, is %q", key, got)
			}
		}
	}
	if st := e.nodeStatus().CatchUp; st.Tier.String() == "TIER_DUMP" {
		t.Errorf("the slave caught up by %v", st)
	}
	if got := d.record("before"); got != "-" {
		t.Errorf("what the new master had before: %q", got)
	}
	x.master(d.key(), 1)
	d.settled(dutyMaster)
	dial(t, e).ask("get "+moving[0]+"\r\nset "+moving[0]+" 0 0 1\r\ny\r\n", "VALUE "+moving[0]+" 3 1\r\nx\r\nEND\r\nSTORED\r\n")
	eventually(t, "slave has the write", func() error {
		if got := e.record(moving[0]); got != "2 0 0 y" {
			return errors.New(got)
		}
		return nil
	})
}

func TestBug19FillingCanBeRepeated(t *testing.T) {
	x, m0, m1 := plainIndex(t), newCppNode(t), newCppNode(t)
	n := startNode(t, x, quick)
	x.add(m0.entry(topology.Master, topology.Active, 0, 1), m1.entry(topology.Master, topology.Active, 1, 1))
	works := make(chan struct{})
	m0.dump = func(_ int, nc net.Conn) { dumped(nc, "END\r\n") }
	m1.dump = func(_ int, nc net.Conn) {
		select {
		case <-works:
			dumped(nc, "END\r\n")
		default:
			dumped(nc, "SERVER_ERROR operation interrupted\r\n")
		}
	}
	// It fails until the node gives up.
	x.set(n.key(), topology.Master, topology.Prepare, 2)
	x.tells(n.says("node role 127.0.0.1 %d proxy 0 -1"), 1)
	eventually(t, "proxy again", func() error {
		if d := dutyOf(n.maps.table()); d.kind != dutyNone {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
	if told := strings.Join(x.heard(), ", "); strings.Contains(told, "ready") {
		t.Errorf("index was told %s", told)
	}
	// A master whose dump was complete was not asked again.
	if got := m0.requests(); len(got) != 1 {
		t.Errorf("master without trouble was asked %q", got)
	}
	close(works)
	x.set(n.key(), topology.Master, topology.Prepare, 2)
	x.tells(n.says("node state 127.0.0.1 %d ready"), 1)
}

// The filling of a partition has a pace, and no end that anybody knows.
func TestFillProgress(t *testing.T) {
	f := newFiller(nil, duty{partition: 1})
	now := time.Unix(1_700_000_000, 0)
	if p := f.statusAt(now).Progress; p.Phase != replication.PhaseNone {
		t.Errorf("before: %+v", p)
	}
	f.begin(now)
	for i := range 5 {
		f.copied(now.Add(time.Duration(i+1)*time.Second), 200)
	}
	want := replication.Progress{Phase: replication.PhaseCopy, Tier: history.TierDump, Reason: "new_partition", Since: now,
		BytesDone: 1000, Records: 5, Rate: 200, ETA: -1}
	if p := f.statusAt(now.Add(5 * time.Second)).Progress; p != want {
		t.Errorf("%+v, want %+v", p, want)
	}
	f.update(func(st *replication.FollowerStatus) { st.Connected = false })
	if p := f.statusAt(now).Progress; p.Phase != replication.PhaseNone {
		t.Errorf("afterwards: %+v", p)
	}
}
