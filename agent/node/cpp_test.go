package node

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// A cppNode stands for a node of the original: it answers what the test says, and
// ERROR to what the original does not know.
type cppNode struct {
	t        testing.TB
	listener net.Listener
	handlers sync.WaitGroup

	mu      sync.Mutex
	saw     []string // requests without their data, as sent
	conns   map[net.Conn]bool
	dumps   int
	stopped bool
	answer  func(req *text.Request) string // "close" closes, "silence" does nothing
	dump    func(n int, nc net.Conn)       // answers the nth dump, from 1 on
	stream  func(nc net.Conn)              // answers replicate, which the original does not know; nil for it
}

func newCppNode(t testing.TB) *cppNode {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &cppNode{t: t, listener: l, conns: map[net.Conn]bool{}}
	p.handlers.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns[nc] = true
			if p.stopped {
				nc.Close() // it was accepted while stop closed the others
			}
			p.mu.Unlock()
			p.handlers.Go(func() {
				defer nc.Close()
				p.serve(nc)
			})
		}
	})
	t.Cleanup(p.stop)
	return p
}

// stop refuses connections from now on.
func (p *cppNode) stop() {
	p.listener.Close()
	p.mu.Lock()
	p.stopped = true
	for nc := range p.conns {
		nc.Close()
	}
	p.mu.Unlock()
	p.handlers.Wait()
}

func (p *cppNode) key() string { return p.listener.Addr().String() }

func (p *cppNode) entry(role topology.Role, state topology.State, partition, balance int) topology.Node {
	a := p.listener.Addr().(*net.TCPAddr)
	return topology.Node{Name: "127.0.0.1", Port: a.Port, Role: role, State: state, Partition: partition, Balance: balance, ThreadType: 100 + a.Port}
}

func (p *cppNode) serve(nc net.Conn) {
	p.mu.Lock()
	stream := p.stream
	p.mu.Unlock()
	known := text.NodeCommands
	if stream == nil {
		known &^= text.Commands(text.CmdReplicate)
	}
	r := text.NewReader(nc, text.Options{Commands: known})
	for {
		var req text.Request
		err := r.ReadRequest(&req)
		var problem *text.ProtocolError
		if errors.As(err, &problem) {
			io.WriteString(nc, problem.Reply)
			continue
		}
		if err != nil {
			return
		}
		if req.Command == text.CmdNodeSync {
			io.WriteString(nc, text.ReplyOK)
			continue
		}
		p.mu.Lock()
		line, _, _ := strings.Cut(string(text.AppendRequest(nil, &req, req.Via)), "\r\n")
		p.saw = append(p.saw, line)
		answer, dump := p.answer, p.dump
		if req.Command == text.CmdDump {
			p.dumps++
		}
		n := p.dumps
		p.mu.Unlock()
		switch {
		case req.Command == text.CmdReplicate:
			stream(nc)
			return
		case req.Command == text.CmdDump && dump != nil:
			dump(n, nc)
			return
		case answer == nil:
			io.WriteString(nc, text.ReplyError)
			continue
		}
		switch reply := answer(&req); reply {
		case "close":
			return
		case "silence":
		default:
			io.WriteString(nc, reply)
		}
	}
}

// requests returns what was asked, but for maps.
func (p *cppNode) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.saw)
}

func (x *testIndex) heard() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.told)
}

// tells waits until the index was told something as often as that.
func (x *testIndex) tells(what string, times int) {
	x.t.Helper()
	eventually(x.t, "index is told "+what, func() error {
		n := 0
		for _, s := range x.heard() {
			if s == what {
				n++
			}
		}
		if n < times {
			return fmt.Errorf("%d times, heard %q", n, x.heard())
		}
		return nil
	})
}

func (n *testNode) says(format string) string { return fmt.Sprintf(format, n.port) }

// plainIndex is an index that knows no epochs, as the original.
func plainIndex(t testing.TB) *testIndex {
	x := newTestIndex(t)
	x.plain = true
	return x
}

// add puts other nodes into the map.
func (x *testIndex) add(nodes ...topology.Node) {
	x.change(func() {
		x.nodes = append(x.nodes, nodes...)
		topology.SortNodes(x.nodes)
	})
}

func (x *testIndex) set(key string, role topology.Role, state topology.State, partition int) {
	x.change(func() {
		n := x.find(key)
		n.Role, n.State, n.Partition, n.Balance = role, state, partition, 0
	})
}

// copies waits until the gate lets in what the copied node sends.
func (n *testNode) copies() {
	n.t.Helper()
	eventually(n.t, "gate for a copy", func() error {
		if !n.gate.copying() {
			state, reason := n.gate.status()
			return fmt.Errorf("gate %d %s", state, reason)
		}
		return nil
	})
}

// record reads a record from a node's own database: "version flags expire value",
// or "-".
func (n *testNode) record(key string) string {
	n.t.Helper()
	r, found, err := n.db.Get([]byte(key))
	if err != nil {
		n.t.Fatal(err)
	}
	if !found {
		return "-"
	}
	return fmt.Sprintf("%d %d %d %s", r.Version, r.Flags, r.Expire, r.Value)
}

func (n *testNode) holds(want map[string]string) {
	n.t.Helper()
	for key, record := range want {
		if got := n.record(key); got != record {
			n.t.Errorf("%s is %q, want %q", key, got, record)
		}
	}
}

// dumped sends lines of a dump, waiting for a signal at each nil.
func dumped(nc net.Conn, parts ...any) {
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			io.WriteString(nc, p)
		case chan struct{}:
			select {
			case <-p:
			case <-time.After(patience):
			}
		}
	}
}

func TestSlaveOfOriginal(t *testing.T) {
	x, m := plainIndex(t), newCppNode(t)
	n := startNode(t, x, unhurried)
	proceed := make(chan struct{})
	m.dump = func(_ int, nc net.Conn) {
		dumped(nc, "VALUE first 7 3 4 0\r\nabc\r\n", proceed,
			"VALUE newer 0 3 4 0\r\nold\r\n", "VALUE deleted 0 3 4 0\r\nold\r\n",
			"VALUE late 5 4 9 1900000000\r\nlate\r\n", "VALUE bare 0 1\r\nb\r\nEND\r\n")
	}
	x.add(m.entry(topology.Master, topology.Active, 0, 1))
	x.set(n.key(), topology.Slave, topology.Prepare, 0)
	n.copies()

	// What the master executes comes while the dump is under way.
	c := dial(t, n)
	via := "<" + m.key() + ">"
	c.ask(via+"set newer 3 1900000000 3 5\r\nnew\r\n", "STORED\r\n")
	c.ask(via+"set newer 3 0 3 5\r\nxxx\r\n", "NOT_STORED\r\n")
	c.ask(via+"set deleted 0 0 3 3\r\nold\r\n", "STORED\r\n")
	c.ask(via+"delete deleted 0 4\r\n", "DELETED\r\n")
	c.ask("<"+n.key()+","+m.key()+">set quiet 0 0 1 8 noreply\r\nq\r\n"+via+"touch newer 1800000001\r\n", "TOUCHED\r\n")
	eventually(t, "dump is under way", func() error {
		st := n.nodeStatus()
		if st.CatchUp.GetTier().String() != "TIER_DUMP" || st.CatchUp.RecordsDone != 1 || st.CatchUp.BytesDone != 8 {
			return fmt.Errorf("%v", st.CatchUp)
		}
		return nil
	})
	if told := x.heard(); len(told) > 0 {
		t.Errorf("index was told %q before the dump was complete", told)
	}
	close(proceed)
	x.tells(n.says("node state 127.0.0.1 %d active"), 1)
	n.holds(map[string]string{
		"first": "4 7 0 abc", "newer": "5 3 1800000001 new", "deleted": "-", "late": "9 5 1900000000 late",
		"bare": "1 0 0 b", "quiet": "8 0 0 q",
	})
	if got := m.requests(); !slices.Equal(got, []string{"dump 0 0 1"}) {
		t.Errorf("master was asked %q", got)
	}
	eventually(t, "the dump is counted", func() error {
		if st := n.nodeStatus(); st.CatchUpCounts.Dump != 1 || !st.CatchUp.Connected {
			return fmt.Errorf("status %v", st)
		}
		return nil
	})

	// Afterwards it goes on the same way.
	c.ask(via+"set newer 3 0 4 6\r\nlast\r\n", "STORED\r\n")
	c.ask(via+"delete first 0 3\r\n", "NOT_FOUND\r\n")
	n.holds(map[string]string{"newer": "6 3 0 last", "first": "4 7 0 abc"})

	// A client's write goes to the master and comes back.
	m.mu.Lock()
	m.answer = func(req *text.Request) string {
		if req.Command == text.CmdSet {
			back := dial(t, n)
			back.ask("<"+n.key()+","+m.key()+">set mine 0 0 2 1\r\nme\r\n", "STORED\r\n")
		}
		return text.ReplyStored
	}
	m.mu.Unlock()
	c.ask("set mine 0 0 2\r\nme\r\n", "STORED\r\n")
	n.holds(map[string]string{"mine": "1 0 0 me"})

	// The master dies, and this node takes over in an epoch of its own.
	before := n.db.Position()
	m.stop()
	x.down(m.key())
	n.settled(dutyMaster)
	c.ask("set newer 0 0 1\r\nm\r\nget late\r\n", "STORED\r\nVALUE late 5 4\r\nlate\r\nEND\r\n")
	n.holds(map[string]string{"newer": "7 0 0 m"})
	if pos := n.db.Position(); pos.LSN.Epoch != before.LSN.Epoch+1 || pos.History != before.History {
		t.Errorf("position %+v after %+v", pos, before)
	}
}

// A client's write that a demoted master sends on before this node has its map is
// neither executed here alone nor refused.
func TestClientWriteBeforeTheMap(t *testing.T) {
	x, m := plainIndex(t), newCppNode(t)
	n := startNode(t, x)
	m.dump = func(_ int, nc net.Conn) { dumped(nc, "END\r\n") }
	x.add(m.entry(topology.Master, topology.Active, 0, 1))
	x.set(n.key(), topology.Slave, topology.Prepare, 0)
	x.tells(n.says("node state 127.0.0.1 %d active"), 1)
	c := dial(t, n)
	done := make(chan string, 1)
	go func() { done <- c.line("<" + m.key() + ">set k 0 0 1\r\nx\r\n") }()
	eventually(t, "request arrives", func() error {
		if n.counters.cmdSet.Load() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	x.down(m.key())
	if got := <-done; got != "STORED" {
		t.Errorf("answer %q", got)
	}
	n.holds(map[string]string{"k": "1 0 0 x"})
}

func TestBug17StaleRecordsRemoved(t *testing.T) {
	x, m := plainIndex(t), newCppNode(t)
	n := startNode(t, x, quick)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	c := dial(t, n)
	for _, key := range []string{"same", "older", "gone", "written", "newest"} {
		c.ask("set "+key+" 0 0 1\r\n1\r\n", "STORED\r\n")
	}
	c.ask("set newest 0 0 1 9\r\n9\r\n", "STORED\r\n")

	proceed := make(chan struct{})
	m.dump = func(try int, nc net.Conn) {
		if try == 1 { // broken off: removes nothing
			dumped(nc, "VALUE same 0 1 1 0\r\n1\r\n")
			return
		}
		dumped(nc, "VALUE same 0 1 1 0\r\n1\r\nVALUE older 0 1 2 0\r\n2\r\nVALUE newest 0 1 5 0\r\n5\r\n", proceed, "END\r\n")
	}
	x.change(func() {
		x.nodes = append(x.nodes, m.entry(topology.Master, topology.Active, 0, 1))
		topology.SortNodes(x.nodes)
		self := x.find(n.key())
		self.Role, self.State, self.Partition = topology.Slave, topology.Prepare, 0
	})
	eventually(t, "second attempt", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.dumps < 2 {
			return fmt.Errorf("%d dumps", m.dumps)
		}
		return nil
	})
	n.holds(map[string]string{"gone": "1 0 0 1", "written": "1 0 0 1"})
	c.ask("<"+m.key()+">set written 0 0 1 1\r\n1\r\n", "NOT_STORED\r\n") // the same as here
	close(proceed)
	x.tells(n.says("node state 127.0.0.1 %d active"), 1)
	n.holds(map[string]string{"same": "1 0 0 1", "older": "2 0 0 2", "gone": "-", "written": "1 0 0 1", "newest": "9 0 0 9"})
	// What was removed may come back with any version.
	c.ask("<"+m.key()+">set gone 0 0 1 1\r\n1\r\n", "STORED\r\n")
}

func TestBug18LateSetDoesNotResurrect(t *testing.T) {
	x, m := plainIndex(t), newCppNode(t)
	n := startNode(t, x, quick)
	m.dump = func(_ int, nc net.Conn) { dumped(nc, "END\r\n") }
	x.add(m.entry(topology.Master, topology.Active, 0, 1))
	x.set(n.key(), topology.Slave, topology.Prepare, 0)
	x.tells(n.says("node state 127.0.0.1 %d active"), 1)
	c, via := dial(t, n), "<"+m.key()+">"
	c.ask(via+"set k 0 0 1 4\r\nx\r\n", "STORED\r\n")
	c.ask(via+"delete k 0 4\r\n", "DELETED\r\n")
	c.ask(via+"set k 0 0 1 3\r\nx\r\n", "NOT_STORED\r\n")
	c.ask(via+"set k 0 0 1 4\r\nx\r\n", "NOT_STORED\r\n")
	n.holds(map[string]string{"k": "-"})
	c.ask(via+"set k 0 0 1 5\r\nx\r\n", "STORED\r\n")
	// A delete may overtake the set that it follows.
	c.ask(via+"delete other 0 2\r\n", "NOT_FOUND\r\n")
	c.ask(via+"set other 0 0 1 2\r\nx\r\n", "NOT_STORED\r\n")
	n.holds(map[string]string{"k": "5 0 0 x", "other": "-"})
}

func TestBug20IndexUnreachableAfterCopy(t *testing.T) {
	x, m := plainIndex(t), newCppNode(t)
	n := startNode(t, x, quick)
	m.dump = func(_ int, nc net.Conn) { dumped(nc, "END\r\n") }
	x.add(m.entry(topology.Master, topology.Active, 0, 1))
	x.mu.Lock()
	x.deaf = true
	x.mu.Unlock()
	x.set(n.key(), topology.Slave, topology.Prepare, 0)
	x.tells(n.says("node state 127.0.0.1 %d active"), 2)
	x.mu.Lock()
	x.deaf = false
	x.mu.Unlock()
	eventually(t, "slave is active", func() error {
		if s := x.state(n.key()); s != topology.Active {
			return errors.New(s.String())
		}
		return nil
	})
	if got := m.requests(); len(got) != 1 {
		t.Errorf("master was asked %q", got)
	}
}

func TestSlaveGivesUp(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, x *testIndex, n *testNode){
		"no master": func(t *testing.T, x *testIndex, n *testNode) {
			x.set(n.key(), topology.Slave, topology.Prepare, 0)
		},
		"master unreachable": func(t *testing.T, x *testIndex, n *testNode) {
			m := newCppNode(t)
			m.stop()
			x.add(m.entry(topology.Master, topology.Active, 0, 1))
			x.set(n.key(), topology.Slave, topology.Prepare, 0)
		},
		"dump refused": func(t *testing.T, x *testIndex, n *testNode) {
			m := newCppNode(t)
			m.dump = func(_ int, nc net.Conn) { dumped(nc, "SERVER_ERROR database busy\r\n") }
			x.add(m.entry(topology.Master, topology.Active, 0, 1))
			x.set(n.key(), topology.Slave, topology.Prepare, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := plainIndex(t)
			n := startNode(t, x, quick)
			start(t, x, n)
			x.tells(n.says("node role 127.0.0.1 %d proxy 0 -1"), 1)
			eventually(t, "proxy again", func() error {
				if d := dutyOf(n.maps.table()); d.kind != dutyNone {
					return fmt.Errorf("%+v", d)
				}
				return nil
			})
		})
	}
}

// An index that knows epochs decides itself; and a slave in sync stays one.
func TestSlaveDoesNotGiveUp(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x, quick)
	give := surrender{s: n.Server, partition: 0}
	x.set(n.key(), topology.Slave, topology.Prepare, 0)
	give.now(t.Context())
	n.Server.index.extended.Store(false)
	x.set(n.key(), topology.Slave, topology.Active, 0)
	give.now(t.Context())
	if told := x.heard(); len(told) > 0 {
		t.Errorf("index was told %q", told)
	}
}

// A write of the master that could not be executed takes another copy.
func TestMissedWriteCopiesAgain(t *testing.T) {
	x, m := plainIndex(t), newCppNode(t)
	n := startNode(t, x, quick)
	m.dump = func(try int, nc net.Conn) { dumped(nc, fmt.Sprintf("VALUE k 0 1 %d 0\r\n%d\r\nEND\r\n", try, try)) }
	x.add(m.entry(topology.Master, topology.Active, 0, 1))
	x.set(n.key(), topology.Slave, topology.Prepare, 0)
	x.tells(n.says("node state 127.0.0.1 %d active"), 1)
	n.copying.missed(errors.New("disk full"))
	x.tells(n.says("node state 127.0.0.1 %d active"), 2)
	n.holds(map[string]string{"k": "2 0 0 2"})
}

// A slave that follows a log executes nothing but what is in the log.
func TestFollowerOfLogRefusesCopies(t *testing.T) {
	x := newTestIndex(t)
	m, n := startNode(t, x, quick), startNode(t, x, quick)
	x.master(m.key(), 0)
	m.settled(dutyMaster)
	x.slave(n.key(), 0, 1)
	inSync(t, x, n)
	dial(t, n).ask("<"+m.key()+">set k 0 0 1 5\r\nx\r\n", "SERVER_ERROR routing loop\r\n")
	n.holds(map[string]string{"k": "-"})
}

// The original index refuses to leave a slave behind; a write is answered without it.
func TestSyncWriteUnderPlainIndex(t *testing.T) {
	x, dead := plainIndex(t), newCppNode(t)
	n := startNode(t, x, quick, syncMode)
	dead.stop()
	x.master(n.key(), 0)
	x.add(dead.entry(topology.Slave, topology.Active, 0, 1))
	n.settled(dutyMaster)
	dial(t, n).ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	if told := x.heard(); len(told) > 0 {
		t.Errorf("index was told %q", told)
	}
}
