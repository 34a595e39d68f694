package index

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// dialogue sends lines to an index whose changes are durable at once.
type dialogue struct {
	t      *testing.T
	c      *stepCluster
	server *Server
}

func newDialogue(t *testing.T) *dialogue {
	c := newStepCluster(t)
	return &dialogue{t: t, c: c, server: NewServer(ServerConfig{Cluster: c, Version: "test"})}
}

// ask returns the last line of an answer.
func (d *dialogue) ask(line string) string {
	d.t.Helper()
	conn := &lineConn{in: strings.NewReader(line + "\r\n")}
	c := d.server.admit(d.t.Context(), conn)
	d.server.talk(d.t.Context(), c)
	d.server.dismiss(c)
	lines := strings.Split(strings.TrimRight(conn.out.String(), "\r\n"), "\r\n")
	return lines[len(lines)-1]
}

// all sends lines, each of which is answered with the same.
func (d *dialogue) all(want string, lines ...string) {
	d.t.Helper()
	for _, l := range lines {
		if got := d.ask(l); got != want {
			d.t.Fatalf("%s: %q, want %q", l, got, want)
		}
	}
}

func (d *dialogue) duty(key string) string {
	n, _ := d.c.Topology().Map.Find(key)
	return fmt.Sprintf("%v/%v/p%d/b%d", n.Role, n.State, n.Partition, n.Balance)
}

func TestBug20OperatorActivatesAStuckNode(t *testing.T) {
	d := newDialogue(t)
	d.all("END", "node add a 1", "node add b 1")
	d.all("OK", "node role a 1 master 1 0", "node role b 1 slave 0 0")
	// Its word that it is filled was lost, and it says it once only.
	d.all("OK", "node state b 1 active")
	if got := d.duty("b:1"); got != "slave/active/p0/b0" {
		t.Errorf("it is %s", got)
	}
}

func TestBug22CrashedNodeRefusedUntilFoundDead(t *testing.T) {
	d := newDialogue(t)
	d.c.input(core.Tick{Now: 1_000_000}) // beyond what is allowed to a start
	d.all("END", "node add a 1")
	d.all("OK", "node role a 1 master 1 0")
	d.c.input(core.Pinged{Key: "a:1", Outcome: core.PingOK})
	d.all("SERVER_ERROR failed to add node", "node add a 1")
	for range core.PingThreshold {
		d.c.input(core.Pinged{Key: "a:1", Outcome: core.PingRefused})
	}
	d.all("END", "node add a 1")
	if got := d.duty("a:1"); got != "master/down/p0/b1" {
		t.Errorf("before a ping is answered it is %s", got)
	}
	d.c.input(core.Pinged{Key: "a:1", Outcome: core.PingOK})
	if got := d.duty("a:1"); got != "master/active/p0/b1" {
		t.Errorf("it is %s", got)
	}
}

func TestBug23RefusedMapIsNoDeath(t *testing.T) {
	c := startController(t, newMemory(1, 1), 20, ServerConfig{})
	n := startNode(t)
	n.register(c, "")
	n.behave(func(cmd string) string {
		if cmd == "node sync" {
			return "SERVER_ERROR node sync error\r\n"
		}
		return "OK\r\n"
	})
	idx := dial(t, c.addr)
	if got := idx.ask("node role %s %d master 1 0", n.name, n.port); got != "OK" {
		t.Fatal(got)
	}
	// It refuses as many maps as failures would be its death.
	refused := 0
	n.behave(func(cmd string) string {
		if cmd == "node sync" {
			if refused++; refused <= 4*core.PingThreshold {
				return "SERVER_ERROR node sync error\r\n"
			}
		}
		if cmd == "stats" {
			return "END\r\n"
		}
		return "OK\r\n"
	})
	eventually(t, "it takes the map at last", func() error {
		m, _ := n.last()
		if self, _ := m.Find(n.key); self.Role != topology.Master {
			return fmt.Errorf("it has %+v", self)
		}
		return nil
	})
	if d := c.duty(n.key); d.State != topology.Active || d.Epoch != 1 {
		t.Errorf("it was taken for dead: %+v", d)
	}
}

func TestBug25DeadMastersPlaceIsKept(t *testing.T) {
	d := newDialogue(t)
	d.all("END", "node add a 1", "node add b 1")
	d.all("OK", "node role a 1 master 1 0", "node role b 1 slave 0 0", "node state a 1 down")
	d.all("SERVER_ERROR failed to remove node", "node remove a 1")
	// It comes back while a replica that is not filled is listed.
	d.all("OK", "node state a 1 active")
	if got := d.duty("a:1"); got != "master/active/p0/b1" {
		t.Errorf("it came back as %s", got)
	}
}

func TestBug26OnlyTheOperatorReplacesADeadMaster(t *testing.T) {
	d := newDialogue(t)
	d.c.input(core.Tick{Now: 1_000_000})
	d.all("END", "node add a 1", "node add b 1")
	d.all("OK", "node role a 1 master 1 0")
	d.c.input(core.Pinged{Key: "b:1", Outcome: core.PingOK})
	for range core.PingThreshold {
		d.c.input(core.Pinged{Key: "a:1", Outcome: core.PingRefused})
	}
	for now := int64(1_000_000); now < 1_400_000; now += 1000 {
		d.c.input(core.Tick{Now: now})
		d.c.input(core.Pinged{Key: "b:1", Outcome: core.PingOK})
	}
	if a, b := d.duty("a:1"), d.duty("b:1"); a != "master/down/p0/b1" || b != "proxy/active/p-1/b0" {
		t.Fatalf("by itself: %s and %s", a, b)
	}
	d.all("OK", "node role b 1 master 1 0")
	if a, b := d.duty("a:1"), d.duty("b:1"); b != "master/active/p0/b1" {
		t.Errorf("by command: %s and %s", a, b)
	}
}

func TestBug33HintOfNothing(t *testing.T) {
	m := topology.DefaultMeta()
	if m.Hint != 1 {
		t.Errorf("the hint is %d", m.Hint)
	}
	m.Hint = 0
	if m.Validate() == nil {
		t.Error("a hint of 0 is accepted")
	}
	d := newDialogue(t)
	conn := &lineConn{in: strings.NewReader("meta\r\n")}
	d.server.talk(t.Context(), d.server.admit(t.Context(), conn))
	const want = "META partition-size 1024\r\nMETA key-hash-algorithm simple\r\nMETA partition-type modular\r\nMETA partition-modular-hint 1\r\nMETA partition-modular-virtual 4096\r\nEND\r\n"
	if got := conn.out.String(); got != want {
		t.Errorf("meta: %q\nwant  %q", got, want)
	}
}

func TestBug36NamesAreText(t *testing.T) {
	d := newDialogue(t)
	d.all("END", "node add localhost 1", "node add 127.0.0.1 1", "node add LOCALHOST 1")
	if n := len(d.c.Topology().Map.Nodes); n != 3 {
		t.Errorf("%d nodes", n)
	}
	d.all("SERVER_ERROR failed to shutdown", "shutdown Localhost 1")
}

// TestBug37AnswersDoNotWaitForNodes asks while a node answers nothing.
func TestBug37AnswersDoNotWaitForNodes(t *testing.T) {
	c := startController(t, newMemory(1, 1), 1, ServerConfig{})
	n := startNode(t)
	held := make(chan struct{})
	n.behave(func(string) string {
		<-held
		return "OK\r\n"
	})
	defer close(held)
	idx := dial(t, c.addr)
	if l := idx.list("node add %s %d", n.name, n.port); len(l) != 1 || strings.Contains(l[0], "ERROR") {
		t.Fatal(l)
	}
	if got := idx.ask("node role %s %d master 1 0", n.name, n.port); got != "OK" {
		t.Fatal(got)
	}
	// Then it is durable, though no node knows.
	c.backend.mu.Lock()
	defer c.backend.mu.Unlock()
	if !slices.ContainsFunc(c.backend.saved.Nodes, func(m core.Node) bool { return m.Key() == n.key && m.Role == topology.Master }) {
		t.Errorf("saved is %+v", c.backend.saved.Nodes)
	}
}

// TestBug39AnswersInPieces has a node whose answers come byte by byte, or with LF
// alone, and a sender of commands whose lines do.
func TestBug39AnswersInPieces(t *testing.T) {
	c := startController(t, newMemory(1, 1), 1, ServerConfig{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	idx := dial(t, c.addr)
	for _, b := range []byte(fmt.Sprintf("node add 127.0.0.1 %d\n", ln.Addr().(*net.TCPAddr).Port)) {
		if _, err := idx.conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if got := idx.line(); !strings.HasPrefix(got, "NODE 127.0.0.1 ") {
		t.Fatal(got)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	expect := func(want string) {
		t.Helper()
		if got, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(got, want) {
			t.Fatalf("heard %q, %v; want %s", got, err, want)
		}
	}
	say := func(pieces ...string) {
		t.Helper()
		for _, piece := range pieces {
			if _, err := io.WriteString(conn, piece); err != nil {
				t.Fatal(err)
			}
		}
	}
	expect("node sync 1")
	expect("NODE ")
	expect("END")
	say("O", "K", "\n")
	expect("ping")
	say("OK\r", "\n")
	expect("ping") // it was understood: it is asked again over the same connection
}
