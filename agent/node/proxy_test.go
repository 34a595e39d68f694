package node

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// waitsLonger lets requests wait longer for a node that takes them.
func waitsLonger(n *testNode) { n.wait = 2 * time.Second }

// proxyFor starts a node without duties in front of masters of the original.
func proxyFor(t *testing.T, f tune, masters ...*cppNode) (*testIndex, *testNode) {
	t.Helper()
	x := plainIndex(t)
	n := startNode(t, x, quick, f)
	var nodes []topology.Node
	for p, m := range masters {
		nodes = append(nodes, m.entry(topology.Master, topology.Active, p, 1))
	}
	x.add(nodes...)
	return x, n
}

func TestBug07GatNoReply(t *testing.T) {
	m := newCppNode(t)
	m.answer = func(req *text.Request) string {
		switch {
		case req.NoReply: // as the original: whoever waits waits in vain
			return "silence"
		case req.Command == text.CmdGat:
			return "VALUE g 0 1\r\nx\r\n"
		}
		return "VALUE g 0 1\r\nx\r\nEND\r\n"
	}
	_, n := proxyFor(t, waitsLonger, m)
	dial(t, n).ask("gat g 1900000000 noreply\r\nget g\r\n", "VALUE g 0 1\r\nx\r\nEND\r\n")
	via := "<" + n.key() + ">"
	if got, want := m.requests(), []string{via + "gat g 1900000000", via + "get g"}; !slices.Equal(got, want) {
		t.Errorf("master was asked %q, want %q", got, want)
	}
}

func TestBug08NotRepeated(t *testing.T) {
	for _, reply := range []string{"close", "silence", "FOO\r\n", "END\r\n"} {
		t.Run(strings.TrimSpace(reply), func(t *testing.T) {
			m := newCppNode(t)
			m.answer = func(req *text.Request) string {
				if string(req.Key()) == "n" {
					return reply
				}
				return "7\r\n"
			}
			_, n := proxyFor(t, waitsLonger, m)
			c := dial(t, n)
			c.ask("incr n 1\r\n", "SERVER_ERROR proxy error\r\n")
			// The connection is not used any more: a late answer would be taken for the next.
			c.ask("incr other 1\r\n", "7\r\n")
			via := "<" + n.key() + ">"
			if got, want := m.requests(), []string{via + "incr n 1", via + "incr other 1"}; !slices.Equal(got, want) {
				t.Errorf("master was asked %q, want %q", got, want)
			}
		})
	}
}

func TestBug09DeadNodeStallsNobody(t *testing.T) {
	dead, silent, alive := newCppNode(t), newCppNode(t), newCppNode(t)
	silent.answer = func(*text.Request) string { return "silence" }
	alive.answer = func(req *text.Request) string {
		if req.Command == text.CmdSet {
			return text.ReplyStored
		}
		return text.ReplyEnd
	}
	// Whoever waited for one of the others would wait until the test has failed.
	x, n := proxyFor(t, func(n *testNode) { n.wait, n.reply = 2*patience, 2*patience }, dead, silent, alive)
	dead.stop()
	var stuck [2]chan string
	for p := range stuck {
		c := dial(t, n)
		stuck[p] = make(chan string, 1)
		go func() { stuck[p] <- c.line("set " + n.keysOf("k", p, 3, 1)[0] + " 0 0 1\r\nx\r\n") }()
	}
	eventually(t, "requests wait", func() error {
		if w := n.peers.waiting.Load(); w == 0 {
			return errors.New("nothing waits")
		}
		return nil
	})
	c := dial(t, n)
	for range 20 {
		key := n.keysOf("k", 2, 3, 1)[0]
		c.ask("set "+key+" 0 0 1\r\nx\r\nget "+key+"\r\n", "STORED\r\nEND\r\n")
	}
	silent.stop()
	if got := <-stuck[1]; got != "SERVER_ERROR proxy error" {
		t.Errorf("request to a node that has died: %q", got)
	}
	// A failover lets what waits for the dead node go on at once.
	x.change(func() {
		x.find(dead.key()).State = topology.Down
		x.find(dead.key()).Partition = 2
		x.find(alive.key()).Partition = 0
	})
	if got := <-stuck[0]; got != "STORED" {
		t.Errorf("after the failover: %q", got)
	}
}

func TestBug10NoLoops(t *testing.T) {
	m := newCppNode(t)
	_, n := proxyFor(t, waitsLonger, m)
	c := dial(t, n)
	// What came through this node before, or through too many.
	c.ask("<"+n.key()+",127.0.0.1:1>set k 0 0 1\r\nx\r\n", replyRoutingLoop)
	c.ask("<a:1,a:2,a:3,a:4>incr k 1\r\n", replyRoutingLoop)
	if got := m.requests(); len(got) > 0 {
		t.Errorf("master was asked %q", got)
	}
	// A node that takes this one for the master sends everything back.
	m.answer = func(req *text.Request) string {
		nc, err := net.Dial("tcp", n.key())
		if err != nil {
			return "close"
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		via := append(req.Via, m.key())
		if req.Command == text.CmdGet {
			via = nil // as the original
		}
		nc.Write(text.AppendRequest(nil, req, via))
		r := text.NewReplyReader(nc, text.ReplyOptions{})
		reply, err := r.ReadReply()
		if err != nil {
			return "close"
		}
		return string(reply.Line) + "\r\n"
	}
	c.ask("set k 0 0 1\r\nx\r\n", replyRoutingLoop)
	writes := len(m.requests())
	if writes > 10 {
		t.Errorf("one write was sent %d times", writes)
	}
	c.ask("get k\r\n", "END\r\n")
	reads := len(m.requests()) - writes
	if reads > 10 {
		t.Errorf("one read was sent %d times", reads)
	}
}

// A node map is answered at once, whatever else is slow.
func TestBug21MapsAnsweredAtOnce(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x, quick)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	// A role change that does not come to its end, and a write that keeps the gate.
	n.roles.stepMu.Lock()
	state, _ := n.gate.enter(0)
	if state != gateOpen {
		t.Fatalf("gate is %d", state)
	}
	defer n.roles.stepMu.Unlock()
	defer n.gate.leave()
	for version := range uint64(5) {
		m := topology.NewMap(x.version+version, []topology.Node{{Name: "127.0.0.1", Port: n.port, Role: topology.Proxy, Partition: -1}})
		if err := x.pushTo(n.key(), m); err != nil {
			t.Fatal(err)
		}
		dial(t, n).ask("ping\r\n", "OK\r\n")
	}
}

// A restarted node is refused until the index has noticed its death; it waits.
func TestBug22RefusedRegistrationIsRepeated(t *testing.T) {
	x := plainIndex(t)
	x.refuse = true
	n := &testNode{t: t, dir: t.TempDir(), index: x}
	n.opts = startOptions(x)
	n.launch()
	t.Cleanup(n.kill)
	eventually(t, "node is refused", func() error {
		if reason := n.status.get(); reason != "registration_refused" {
			return errors.New(reason)
		}
		return nil
	})
	x.mu.Lock()
	x.refuse = false
	x.mu.Unlock()
	eventually(t, "node serves", func() error {
		if reason := n.status.get(); reason != "" {
			return errors.New(reason)
		}
		return nil
	})
}

func TestBug23EqualMapsAccepted(t *testing.T) {
	x := plainIndex(t)
	n := startNode(t, x)
	c := dial(t, n)
	own := fmt.Sprintf("NODE 127.0.0.1 %d 2 0 -1 0 16\r\nEND\r\n", n.port)
	for _, step := range []struct{ version, want string }{
		{" 7", "OK\r\n"}, {" 7", "OK\r\n"}, {" 6", text.ReplyNodeSyncError}, {"", text.ReplyNodeSyncError}, {" 7", "OK\r\n"}, {" 8", "OK\r\n"},
	} {
		c.ask("node sync"+step.version+"\r\n"+own, step.want)
	}
	// In pieces, with a pause between them, as the original sends it.
	io.WriteString(c.nc, "node sync 9\r\n")
	c.ask(own, "OK\r\n")
	if v := n.maps.mapVersion(); v != 9 {
		t.Errorf("version is %d", v)
	}
}
