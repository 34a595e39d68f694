package index

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

func TestMain(m *testing.M) {
	// Nodes of tests have names that no server is to be asked for: the answer, or that
	// there is none, may come when a test is long over.
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("tests ask no name server")
	}}
	goleak.VerifyTestMain(m)
}

// memory is a Backend that keeps everything in memory.
type memory struct {
	mu       sync.Mutex
	saved    core.Durable
	found    bool
	spec     core.Spec
	failing  bool
	observe  func(core.Input)
	watching chan struct{}
}

func newMemory(partitions, replicas int) *memory {
	return &memory{
		spec:     core.Spec{Known: true, Generation: 1, Partitions: partitions, Replicas: replicas, Meta: topology.DefaultMeta(), Config: "x"},
		watching: make(chan struct{}),
	}
}

func (m *memory) Load(context.Context) (core.Durable, bool, error) { return m.saved, m.found, nil }

func (m *memory) Persist(_ context.Context, d core.Durable) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failing {
		return fmt.Errorf("disk full")
	}
	m.saved, m.found = d, true
	return nil
}

func (m *memory) fail(failing bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failing = failing
}

func (m *memory) WriteConfig(context.Context, core.WriteConfig) error { return nil }
func (m *memory) ScaleTo(context.Context, core.ScaleTo) error         { return nil }
func (m *memory) LabelNodes(context.Context, []core.NodeLabel) error  { return nil }
func (m *memory) WriteStatus(context.Context, core.Status) error      { return nil }
func (m *memory) Event(context.Context, core.Event)                   {}
func (m *memory) Watch(ctx context.Context, f func(core.Input)) error {
	m.observe = f
	f(core.SpecChanged{Spec: m.spec})
	close(m.watching)
	<-ctx.Done()
	return nil
}

// controller is a running controller on a memory.
type controller struct {
	t       *testing.T
	rt      *runtime.Runtime
	addr    string
	backend *memory
}

// startController runs one whose clock goes faster, so that waits of seconds take
// a fraction of it.
func startController(t *testing.T, backend *memory, faster int, cfg ServerConfig) *controller {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	start := time.Now()
	var rt *runtime.Runtime
	b := NewBroadcaster(BroadcasterConfig{
		Observe: func(in core.Input) { rt.Observe(in) }, Logger: log,
		PingInterval: 20 * time.Millisecond, PingTimeout: 500 * time.Millisecond, PushTimeout: 500 * time.Millisecond,
	})
	rt = runtime.New(runtime.Config{
		Backend: backend, Broadcaster: b, Logger: log, TickEvery: 5 * time.Millisecond,
		Now:   func() time.Time { return start.Add(time.Since(start) * time.Duration(faster)) },
		Trace: func(core.State, core.Input, []core.Effect) {},
	})
	cfg.Cluster, cfg.Logger, cfg.Version, cfg.Nodes = rt, log, "test", b
	server := NewServer(cfg)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := rt.Run(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("runtime: %v", err)
		}
	})
	wg.Go(func() {
		if err := server.Serve(ctx, ln); err != nil {
			t.Errorf("server: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		b.Close()
	})
	<-backend.watching
	return &controller{t: t, rt: rt, addr: ln.Addr().String(), backend: backend}
}

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// node is a scripted node: it answers pings and maps as told.
type node struct {
	t    *testing.T
	key  string
	name string
	port int
	ln   net.Listener

	mu     sync.Mutex
	answer func(line string) string // nil: OK; "" is silence, "close" closes
	maps   []core.MapUpdate         // as heard; Map alone is set
	heard  []time.Time
	conns  []net.Conn
	dead   bool // killed
	wg     sync.WaitGroup
}

func startNode(t *testing.T) *node { return startNodeAt(t, "127.0.0.1:0") }

func startNodeAt(t *testing.T, addr string) *node {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, ln: ln, key: ln.Addr().String(), name: "127.0.0.1", port: ln.Addr().(*net.TCPAddr).Port}
	n.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n.mu.Lock()
			n.conns = append(n.conns, c)
			if n.dead {
				c.Close() // it was accepted while kill closed the others
			}
			n.mu.Unlock()
			n.wg.Go(func() { n.serve(c) })
		}
	})
	t.Cleanup(n.kill)
	return n
}

// kill ends the node as a crash would.
func (n *node) kill() {
	n.ln.Close()
	n.mu.Lock()
	for _, c := range n.conns {
		c.Close()
	}
	n.conns, n.dead = nil, true
	n.mu.Unlock()
	n.wg.Wait()
}

func (n *node) serve(c net.Conn) {
	defer c.Close()
	r := text.NewReader(c, text.Options{})
	for {
		var req text.Request
		if err := r.ReadRequest(&req); err != nil {
			return
		}
		n.mu.Lock()
		answer := "OK\r\n"
		if n.answer != nil {
			answer = n.answer(req.Command.String())
		}
		if req.Command == text.CmdNodeSync && answer == "OK\r\n" {
			n.maps = append(n.maps, core.MapUpdate{Map: topology.Map{Version: req.Version, Nodes: slices.Clone(req.Nodes)}})
			n.heard = append(n.heard, time.Now())
		}
		n.mu.Unlock()
		switch answer {
		case "":
			continue
		case "close":
			return
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

func (n *node) behave(f func(line string) string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answer = f
}

// last returns the map heard last, and when.
func (n *node) last() (topology.Map, time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.maps) == 0 {
		return topology.Map{}, time.Time{}
	}
	return n.maps[len(n.maps)-1].Map, n.heard[len(n.heard)-1]
}

// client is a connection to the index.
type client struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t: t, conn: c, r: bufio.NewReader(c)}
}

func (c *client) send(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, line+"\r\n"); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) line() string {
	c.t.Helper()
	if err := c.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	l, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimRight(l, "\r\n")
}

func (c *client) ask(format string, args ...any) string {
	c.t.Helper()
	c.send(fmt.Sprintf(format, args...))
	return c.line()
}

// list sends a command that is answered by a list, and returns it without END.
func (c *client) list(format string, args ...any) []string {
	c.t.Helper()
	c.send(fmt.Sprintf(format, args...))
	var lines []string
	for {
		l := c.line()
		if l == "END" {
			return lines
		}
		lines = append(lines, l)
		if strings.Contains(l, "ERROR") {
			return lines
		}
	}
}

// register does what a starting node does; a known one is refused at first.
func (n *node) register(c *controller, hello string) {
	n.t.Helper()
	idx := dial(n.t, c.addr)
	eventually(n.t, "register "+n.key, func() error {
		if l := idx.list("node add %s %d", n.name, n.port); len(l) == 0 || strings.Contains(l[0], "ERROR") {
			return fmt.Errorf("%q", l)
		}
		return nil
	})
	if meta := idx.list("meta"); len(meta) != 5 || meta[0] != "META partition-size 1024" {
		n.t.Fatalf("meta: %q", meta)
	}
	if hello != "" {
		if got := idx.ask("node hello %s %d %s", n.name, n.port, hello); got != "OK" {
			n.t.Fatalf("hello: %q", got)
		}
	}
}

// duty returns a node's entry in the durable map.
func (c *controller) duty(key string) topology.Node {
	n, _ := c.rt.Topology().Map.Find(key)
	return n
}

func (c *controller) roles() string {
	var out []string
	for _, n := range c.rt.Topology().Map.Nodes {
		out = append(out, fmt.Sprintf("%v/%v/p%d", n.Role, n.State, n.Partition))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// TestClusterLife takes a cluster over real sockets from its first registration
// through a failover and back.
func TestClusterLife(t *testing.T) {
	c := startController(t, newMemory(2, 2), 20, ServerConfig{})
	nodes := map[string]*node{}
	for i := range 4 {
		n := startNode(t)
		nodes[n.key] = n
		n.register(c, fmt.Sprintf("instance=a%d partition=-1 epoch=0 index=0 history=-", i))
	}
	want := "master/active/p0 master/active/p1 slave/prepare/p0 slave/prepare/p1"
	eventually(t, "all partitions get masters at once", func() error {
		for _, n := range nodes {
			m, _ := n.last()
			if len(m.Nodes) != 4 {
				return fmt.Errorf("%s knows %d nodes", n.key, len(m.Nodes))
			}
			if self, _ := m.Find(n.key); self.Role != topology.Proxy && self.Epoch != 1 {
				return fmt.Errorf("%s heard epoch %d", n.key, self.Epoch)
			}
		}
		if got := c.roles(); got != want {
			return fmt.Errorf("roles %s, want %s", got, want)
		}
		return nil
	})
	for _, n := range nodes {
		n.mu.Lock()
		maps := slices.Clone(n.maps)
		n.mu.Unlock()
		for _, m := range maps {
			masters := 0
			for _, e := range m.Map.Nodes {
				if e.Role == topology.Master {
					masters++
				}
			}
			if masters == 1 {
				t.Errorf("%s heard a map with one master only: version %d", n.key, m.Map.Version)
			}
		}
	}

	var master, replica *node
	for key, n := range nodes {
		if d := c.duty(key); d.Partition == 0 {
			if d.Role == topology.Master {
				master = n
			} else {
				replica = n
			}
		}
	}
	idx := dial(t, c.addr)
	if got := idx.ask("node state %s %d active 1 1", replica.name, replica.port); got != "OK" {
		t.Fatal(got)
	}

	addr := master.key
	master.kill()
	eventually(t, "the replica is promoted", func() error {
		if d := c.duty(replica.key); d.Role != topology.Master || d.Epoch != 2 {
			return fmt.Errorf("%+v", d)
		}
		m, _ := replica.last()
		if self, _ := m.Find(replica.key); self.Role != topology.Master || self.Epoch != 2 {
			return fmt.Errorf("it has heard %+v", self)
		}
		return nil
	})
	again := startNodeAt(t, addr)
	again.register(c, "instance=b0 partition=0 epoch=1 index=7 history=ab")
	eventually(t, "the old master comes back as a replica", func() error {
		if d := c.duty(addr); d.Role != topology.Slave || d.State != topology.Prepare || d.Partition != 0 {
			return fmt.Errorf("%+v", d)
		}
		m, _ := again.last()
		if self, _ := m.Find(addr); self.Role != topology.Slave || self.Epoch != 2 {
			return fmt.Errorf("it has heard %+v", self)
		}
		return nil
	})
	if got := idx.ask("node behind %s %d 1 1", again.name, again.port); got != "SERVER_ERROR stale_epoch" {
		t.Errorf("a request of a former master: %q", got)
	}
}

// TestPlainNodes runs nodes that do not say hello, by hand, and looks at the
// bytes that they hear.
func TestPlainNodes(t *testing.T) {
	c := startController(t, newMemory(1, 1), 1, ServerConfig{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	idx := dial(t, c.addr)
	if got := idx.list("node add 127.0.0.1 %d", port); len(got) != 1 || got[0] != fmt.Sprintf("NODE 127.0.0.1 %d 2 0 -1 0 16", port) {
		t.Fatalf("node add: %q", got)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for _, want := range []string{"node sync 1", fmt.Sprintf("NODE 127.0.0.1 %d 2 0 -1 0 16", port), "END"} {
		if got, err := r.ReadString('\n'); err != nil || strings.TrimRight(got, "\r\n") != want {
			t.Fatalf("heard %q, %v; want %q", got, err, want)
		}
	}
	// LF alone is an answer too.
	if _, err := io.WriteString(conn, "OK\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.ReadString('\n'); err != nil || got != "ping\r\n" {
		t.Fatalf("after the map: %q, %v", got, err)
	}
}

// TestGarbage sends what is no command; the connection stays, and others do not
// notice.
func TestGarbage(t *testing.T) {
	c := startController(t, newMemory(1, 1), 1, ServerConfig{})
	idx := dial(t, c.addr)
	for _, garbage := range []string{"", "foo", "GET / HTTP/1.1", "node", "node add", "node add a b", "\x00\x01", "set a 0 0 1", strings.Repeat("x", maxLine+10), "node sync 1"} {
		if got := idx.ask("%s", garbage); got != "ERROR" {
			t.Errorf("%.20q: %q", garbage, got)
		}
		if garbage == "set a 0 0 1" {
			idx.send("x")
		}
		if got := idx.ask("ping"); got != "OK" {
			t.Fatalf("ping after %.20q: %q", garbage, got)
		}
	}
	bin := dial(t, c.addr)
	if _, err := bin.conn.Write([]byte{0x80, 0x0a, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if _, err := bin.r.ReadByte(); err != io.EOF {
		t.Errorf("binary protocol: %v, want the end of the connection", err)
	}
	// Many requests in one segment are answered in order.
	idx.send("ping\r\nversion\r\nping")
	for _, want := range []string{"OK", "VERSION flare-test", "OK"} {
		if got := idx.line(); got != want {
			t.Errorf("pipelined: %q, want %q", got, want)
		}
	}
}

// TestConnectionLimit fills the server with connections that say nothing, or half
// a line; a node that comes later is served.
func TestConnectionLimit(t *testing.T) {
	c := startController(t, newMemory(1, 1), 1, ServerConfig{MaxConnections: 8})
	for i := range 30 {
		idle := dial(t, c.addr)
		if i%2 == 0 {
			if _, err := io.WriteString(idle.conn, "node ad"); err != nil {
				t.Fatal(err)
			}
		}
	}
	startNode(t).register(c, "")
}

// TestIdleTimeout ends connections on which nothing comes.
func TestIdleTimeout(t *testing.T) {
	c := startController(t, newMemory(1, 1), 1, ServerConfig{IdleTimeout: 50 * time.Millisecond})
	idle := dial(t, c.addr)
	if err := idle.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.r.ReadByte(); err != io.EOF {
		t.Errorf("%v, want the end of the connection", err)
	}
}

// TestBug21SilentNodeDelaysNobody has a node that accepts everything and answers
// nothing: the others hear of changes at once, and it is found dead.
func TestBug21SilentNodeDelaysNobody(t *testing.T) {
	c := startController(t, newMemory(1, 3), 20, ServerConfig{})
	nodes := []*node{startNode(t), startNode(t), startNode(t)}
	for i, n := range nodes {
		n.register(c, fmt.Sprintf("instance=a%d partition=-1", i))
	}
	idx := dial(t, c.addr)
	var silent, healthy *node
	eventually(t, "formed", func() error {
		if got := c.roles(); got != "master/active/p0 slave/prepare/p0 slave/prepare/p0" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	for _, n := range nodes {
		if c.duty(n.key).Role == topology.Master {
			silent = n
		} else {
			healthy = n
		}
	}
	silent.behave(func(string) string { return "" })
	if got := idx.ask("node state %s %d active 1 1", healthy.name, healthy.port); got != "OK" {
		t.Fatal(got)
	}
	version := c.rt.Topology().Map.Version
	eventually(t, "the healthy one hears of it", func() error {
		if m, _ := healthy.last(); m.Version < version {
			return fmt.Errorf("version %d", m.Version)
		}
		return nil
	})
	eventually(t, "the silent master is replaced", func() error {
		if d := c.duty(healthy.key); d.Role != topology.Master {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
}

// TestPersistBeforeAnything has a backend that cannot save: nobody hears of a
// change, until it can.
func TestPersistBeforeAnything(t *testing.T) {
	backend := newMemory(1, 1)
	c := startController(t, backend, 20, ServerConfig{CommandTimeout: 200 * time.Millisecond})
	n := startNode(t)
	n.register(c, "")
	before, _ := n.last()
	backend.fail(true)
	idx := dial(t, c.addr)
	if got := idx.ask("node role %s %d master 1 0", n.name, n.port); got != "SERVER_ERROR not durable in time" {
		t.Errorf("reply %q", got)
	}
	if m, _ := n.last(); m.Version > before.Version+1 {
		t.Errorf("it heard version %d after %d", m.Version, before.Version)
	}
	if d := c.duty(n.key); d.Role != topology.Proxy {
		t.Errorf("the map shows %+v", d)
	}
	backend.fail(false)
	eventually(t, "it hears when it is saved", func() error {
		m, _ := n.last()
		if self, _ := m.Find(n.key); self.Role != topology.Master {
			return fmt.Errorf("%+v", self)
		}
		return nil
	})
}

// TestBug24VersionAboveTheNodes has a node that knows a later map than this controller,
// which has lost its state: the version jumps above it.
func TestBug24VersionAboveTheNodes(t *testing.T) {
	c := startController(t, newMemory(1, 1), 1, ServerConfig{})
	n := startNode(t)
	const has = 4711
	refusals := 0
	n.behave(func(cmd string) string {
		switch {
		case cmd == "stats":
			return "STAT pid 1\r\nSTAT node_map_version " + strconv.Itoa(has) + "\r\nEND\r\n"
		case cmd == "node sync" && refusals == 0:
			refusals++
			return "SERVER_ERROR node sync error\r\n"
		}
		return "OK\r\n"
	})
	n.register(c, "")
	eventually(t, "it hears a later map", func() error {
		if m, _ := n.last(); m.Version <= has {
			return fmt.Errorf("version %d", m.Version)
		}
		return nil
	})
	if d := c.duty(n.key); d.State != topology.Active {
		t.Errorf("a refused map was held against it: %+v", d)
	}
}

// TestStats compares the stats with the map.
func TestStats(t *testing.T) {
	c := startController(t, newMemory(1, 1), 1, ServerConfig{})
	n := startNode(t)
	n.register(c, "")
	idx := dial(t, c.addr)
	if got := strings.Join(idx.list("stats nodes"), "|"); got != strings.ReplaceAll("STAT K:role proxy|STAT K:state active|STAT K:partition -1|STAT K:balance 0|STAT K:thread_type 16", "K", n.key) {
		t.Errorf("stats nodes: %s", got)
	}
	stats := idx.list("stats")
	if !slices.Contains(stats, "STAT node_map_version 1") || len(stats) != 35 {
		t.Errorf("stats: %d lines, %q", len(stats), stats)
	}
}
