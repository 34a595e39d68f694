package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/flarekv/flare/agent/storage"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/topology"
)

// A testClock is moved by hand.
type testClock struct{ offset atomic.Int64 }

func (c *testClock) now() time.Time { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *testClock) advance(d time.Duration) {
	c.offset.Add(int64(d))
}

// orphaned is a partition that was the only one until a second was added: its
// master and its replica still have all keys.
type orphaned struct {
	x             *testIndex
	clock         *testClock
	master, slave *testNode
	other         *testNode // master of the second partition
	own, orphan   []string
	orphanBytes   uint64
}

const orphanKeys = 300

func newOrphaned(t *testing.T, tunes ...tune) *orphaned {
	t.Helper()
	o := &orphaned{x: newTestIndex(t), clock: &testClock{}}
	clocked := append(slices.Clone(tunes), func(n *testNode) { n.clock = o.clock.now })
	o.master, o.slave = startNode(t, o.x, clocked...), startNode(t, o.x, clocked...)
	o.other = startNode(t, o.x, clocked...)
	o.x.master(o.master.key(), 0)
	o.master.settled(dutyMaster)
	o.x.slave(o.slave.key(), 0, 1)
	eventually(t, "slave is active", func() error {
		if s := o.x.state(o.slave.key()); s != topology.Active {
			return fmt.Errorf("state %v", s)
		}
		return nil
	})
	c := dial(t, o.master)
	for i := range orphanKeys {
		c.ask(fmt.Sprintf("set k%d 0 0 5\r\n12345\r\n", i), "STORED\r\n")
	}
	// A deleted key whose tombstone must stay.
	c.ask("set gone 0 0 1 7\r\nx\r\ndelete gone\r\n", "STORED\r\nDELETED\r\n")
	o.x.master(o.other.key(), 1)
	for i := range orphanKeys {
		k := fmt.Sprintf("k%d", i)
		if p, _ := o.master.maps.table().partition([]byte(k)); p == 0 {
			o.own = append(o.own, k)
		} else {
			o.orphan = append(o.orphan, k)
			o.orphanBytes += uint64(len(k) + 5)
		}
	}
	if len(o.own) == 0 || len(o.orphan) == 0 {
		t.Fatalf("%d own keys, %d orphans", len(o.own), len(o.orphan))
	}
	return o
}

// count returns how many of some keys a node has.
func count(t *testing.T, n *testNode, keys []string) (found int) {
	t.Helper()
	for _, k := range keys {
		_, ok, err := n.db.Get([]byte(k))
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			found++
		}
	}
	return found
}

func TestOrphanScanAndPurge(t *testing.T) {
	o := newOrphaned(t)
	want := fmt.Sprintf("ORPHANS %d %d\r\nEND\r\n", len(o.orphan), o.orphanBytes)
	c := dial(t, o.master)
	c.ask("orphan_scan\r\n", want)
	dial(t, o.slave).ask("orphan_scan\r\n", want)
	dial(t, o.other).ask("orphan_scan\r\n", "ORPHANS 0 0\r\nEND\r\n")

	c.ask("orphan_purge\r\n", "SERVER_ERROR map_changing: the node map changed less than 10s ago\r\n")
	o.clock.advance(mapQuiet)
	if got := dial(t, o.slave).line("orphan_purge\r\n"); !strings.HasPrefix(got, "SERVER_ERROR not_active_master: ") {
		t.Errorf("on a replica: %s", got)
	}
	if count(t, o.master, o.orphan) != len(o.orphan) {
		t.Fatal("a refused purge removed something")
	}
	c.ask("orphan_purge 1000000\r\n", fmt.Sprintf("PURGED %d %d\r\nEND\r\n", len(o.orphan), o.orphanBytes))
	for _, n := range []*testNode{o.master, o.slave} {
		if own, left := count(t, n, o.own), count(t, n, o.orphan); own != len(o.own) || left != 0 {
			t.Errorf("%s: %d of %d own keys and %d orphans", n.key(), own, len(o.own), left)
		}
	}
	// The delete of a client has left its tombstone, the purge none.
	for key, want := range map[string]bool{"gone": true, o.orphan[0]: false} {
		if _, err := o.master.db.Update(t.Context(), []byte(key), func(e storage.Entry) storage.Change {
			if e.HasTombstone != want {
				t.Errorf("%s: tombstone %v, want %v", key, e.HasTombstone, want)
			}
			return storage.Change{}
		}); err != nil {
			t.Fatal(err)
		}
	}
	c.ask("orphan_purge\r\norphan_scan\r\n", "PURGED 0 0\r\nEND\r\nORPHANS 0 0\r\nEND\r\n")
	c.ask("orphan_scan x\r\norphan_purge 0\r\norphan_purge 5 x\r\n", "ERROR\r\nERROR\r\nERROR\r\n")
}

func TestOrphanPurgeRefusals(t *testing.T) {
	node := func(name string, role topology.Role, state topology.State, partition int) topology.Node {
		return topology.Node{Name: name, Port: 1, Role: role, State: state, Partition: partition, Balance: 1}
	}
	m0, m1 := node("a", topology.Master, topology.Active, 0), node("b", topology.Master, topology.Active, 1)
	changed := time.Unix(1000, 0)
	for _, c := range []struct {
		name  string
		self  string
		nodes []topology.Node
		after time.Duration
		edit  func(*table)
		want  string
	}{
		{"quiet", "a:1", []topology.Node{m0, m1}, mapQuiet, nil, ""},
		{"changed just now", "a:1", []topology.Node{m0, m1}, mapQuiet - 1, nil, reasonMapChanging},
		{"preparing partition", "a:1", []topology.Node{m0, m1, node("c", topology.Master, topology.Prepare, 2)}, mapQuiet, nil, reasonMapChanging},
		{"filled partition", "a:1", []topology.Node{m0, m1, node("c", topology.Master, topology.Ready, 2)}, mapQuiet, nil, reasonMapChanging},
		{"filled partition, at itself", "c:1", []topology.Node{m0, m1, node("c", topology.Master, topology.Ready, 2)}, mapQuiet, nil, reasonNotActiveMaster},
		{"an owner is down", "a:1", []topology.Node{m0, node("b", topology.Master, topology.Down, 1)}, mapQuiet, nil, reasonOwnerDown},
		{"slave", "s:1", []topology.Node{m0, node("s", topology.Slave, topology.Active, 0)}, mapQuiet, nil, reasonNotActiveMaster},
		{"proxy", "p:1", []topology.Node{m0, node("p", topology.Proxy, topology.Active, -1)}, mapQuiet, nil, reasonNotActiveMaster},
		{"invalid layout", "a:1", []topology.Node{m0, m1}, mapQuiet, func(t *table) { t.outdated = true }, reasonMapChanging},
	} {
		table := testTable(t, c.self, c.nodes...)
		table.since = changed
		if c.edit != nil {
			c.edit(table)
		}
		err := purgeable(table, changed.Add(c.after))
		if c.want == "" && err != nil || c.want != "" && (err == nil || reasonOf(err) != c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if err := purgeable(nil, changed); err == nil {
		t.Error("a node without a map may purge")
	}
}

// Maps that say the same of every key do not count as changes.
func TestTableSince(t *testing.T) {
	clock := &testClock{}
	m := newNodeMap("h:1", newBroadcast(), discard)
	m.clock = clock.now
	nodes := []topology.Node{entry(1, topology.Master, topology.Active, 0, 1, 1), entry(2, topology.Slave, topology.Prepare, 0, 1, 1)}
	if err := m.register(nodes, topology.DefaultMeta()); err != nil {
		t.Fatal(err)
	}
	began := m.table().since
	version := uint64(1)
	push := func(nodes ...topology.Node) time.Time {
		t.Helper()
		clock.advance(time.Minute)
		version++
		if err := m.push(topology.NewMap(version, nodes)); err != nil {
			t.Fatal(err)
		}
		return m.table().since
	}
	nodes[1].State = topology.Active
	if got := push(nodes...); got != began {
		t.Error("a replica that becomes active counts as a change")
	}
	preparing := append(slices.Clone(nodes), entry(3, topology.Master, topology.Prepare, 1, 1, 1))
	second := push(preparing...)
	if !second.After(began) {
		t.Error("a preparing partition does not count as a change")
	}
	preparing[2].State = topology.Active
	if got := push(preparing...); !got.After(second) {
		t.Error("a new partition does not count as a change")
	}
	nodes[0].Partition = 5
	if got := push(nodes...); !got.After(second) || !m.table().outdated {
		t.Error("an invalid layout does not count as a change")
	}
}

// While a purge is under way the map changes: nothing more is removed.
func TestOrphanPurgeStopsWhenTheMapChanges(t *testing.T) {
	o := newOrphaned(t)
	o.clock.advance(mapQuiet)
	batches := 0
	p, err := o.master.purgeOrphans(t.Context(), 1_000_000, func(p orphanProgress) error {
		if batches++; batches == 1 {
			// A map that says the same does no harm, and one with another partition ends it.
			o.x.change(func() {})
			o.x.change(func() {
				o.x.nodes = append(o.x.nodes, topology.Node{Name: "127.0.0.1", Port: 1, ThreadType: 99, Role: topology.Master,
					State: topology.Prepare, Partition: 2, Balance: 1})
				topology.SortNodes(o.x.nodes)
			})
		}
		return nil
	})
	if err == nil || reasonOf(err) != reasonMapChanging {
		t.Fatalf("%+v, %v", p, err)
	}
	if left := count(t, o.master, o.orphan); uint64(left) != uint64(len(o.orphan))-p.orphans || left == 0 || p.orphans == 0 {
		t.Errorf("%d of %d orphans are left after %d were removed", left, len(o.orphan), p.orphans)
	}
}

// One at a time; progress is told, and a client that goes away or is killed ends it.
func TestOrphanPurgeIsSlowAndEnds(t *testing.T) {
	o := newOrphaned(t)
	o.clock.advance(mapQuiet)
	c := dial(t, o.master)
	first := c.line("orphan_purge 20\r\n")
	var keys, orphans, bytes uint64
	if _, err := fmt.Sscanf(first, "PROGRESS %d %d %d", &keys, &orphans, &bytes); err != nil || keys == 0 || orphans == 0 || orphans > 60 || bytes == 0 {
		t.Fatalf("after a second: %s", first)
	}
	if got := dial(t, o.master).line("orphan_scan\r\n"); !strings.HasPrefix(got, "SERVER_ERROR already_running: ") {
		t.Errorf("a second one: %s", got)
	}
	id, threads := "", dial(t, o.master)
	for l := threads.line("stats threads request\r\n"); l != "END"; l = threads.line("") {
		if s, ok := strings.CutSuffix(strings.TrimPrefix(l, "STAT "), ":op orphan_purge"); ok {
			id = s
		}
	}
	dial(t, o.master).ask("kill "+id+"\r\n", "OK\r\n")
	rest, err := io.ReadAll(c.r)
	if err != nil || !strings.HasSuffix(string(rest), "SERVER_ERROR interrupted: interrupted\r\n") {
		t.Errorf("killed: %q, %v", rest, err)
	}

	gone := dial(t, o.master)
	gone.line("orphan_purge 20\r\n")
	gone.nc.(*net.TCPConn).SetLinger(0)
	gone.nc.Close()
	eventually(t, "purge ends with its client", func() error {
		if o.master.orphans.running.Load() {
			return errors.New("it is running")
		}
		return nil
	})
	if count(t, o.master, o.orphan) == 0 {
		t.Error("nothing is left: the rate was not kept")
	}
}

func TestOrphanRPCs(t *testing.T) {
	dir := t.TempDir()
	n := 0
	o := newOrphaned(t, func(node *testNode) {
		n++
		node.opts.AgentSocket = filepath.Join(dir, fmt.Sprint(n))
	})
	client := func(i int) agentv1.NodeServiceClient {
		conn, err := grpc.NewClient("unix:"+filepath.Join(dir, fmt.Sprint(i)), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return agentv1.NewNodeServiceClient(conn)
	}
	purge := func(ctx context.Context, i int, rate uint32) (last *agentv1.OrphanProgress, err error) {
		stream, err := client(i).PurgeOrphans(ctx, &agentv1.PurgeOrphansRequest{Rate: rate})
		for err == nil {
			var m *agentv1.PurgeOrphansResponse
			if m, err = stream.Recv(); err == nil {
				last = m.GetProgress()
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return last, err
	}
	refused := func(err error) string {
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
				return info.GetReason()
			}
		}
		return "none"
	}
	if _, err := purge(t.Context(), 1, 0); refused(err) != reasonMapChanging {
		t.Errorf("after a change: %v", err)
	}
	o.clock.advance(mapQuiet)
	if _, err := purge(t.Context(), 2, 0); refused(err) != reasonNotActiveMaster {
		t.Errorf("on a replica: %v", err)
	}
	stream, err := client(1).ScanOrphans(t.Context(), &agentv1.ScanOrphansRequest{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if p := m.GetProgress(); err != nil || !p.GetDone() || p.GetOrphans() != uint64(len(o.orphan)) || p.GetBytes() != o.orphanBytes || p.GetKeys() != orphanKeys {
		t.Errorf("scan: %v, %v", p, err)
	}
	if p, err := purge(t.Context(), 1, 1_000_000); err != nil || !p.GetDone() || p.GetOrphans() != uint64(len(o.orphan)) {
		t.Errorf("purge: %v, %v", p, err)
	}
}

// A key that came to belong to this node, or that changed, is looked at again.
func TestRemoveDecidesAtTheLastMoment(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x)
	if _, err := n.remove(0, []removal{{key: []byte("a")}}, nil); err == nil || reasonOf(err) != reasonNotActiveMaster {
		t.Errorf("without a duty: %v", err)
	}
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	dial(t, n).ask("set a 0 0 1\r\nx\r\nset b 0 0 1\r\nx\r\n", "STORED\r\nSTORED\r\n")
	sum, err := n.remove(0, []removal{{key: []byte("a"), bytes: 2}, {key: []byte("b"), bytes: 2}, {key: []byte("c"), bytes: 2}}, func(r *removal, e storage.Entry) storage.Change {
		if !e.Found || string(r.key) == "a" {
			return storage.Change{}
		}
		return storage.Change{Op: storage.Delete}
	})
	if err != nil || sum.keys != 1 || sum.bytes != 2 || sum.lsn != n.db.Position().LSN {
		t.Errorf("%+v, %v", sum, err)
	}
	dial(t, n).ask("get a b\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n")
}
