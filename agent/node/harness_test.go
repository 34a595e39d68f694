package node

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// patience bounds every wait of a test; on a busy machine it is better long.
const patience = 60 * time.Second

// pushTimeout bounds the push of a map. Until then the index answers nobody, which
// must not take longer than a node waits for it.
const pushTimeout = indexReplyTimeout / 2

// A testIndex is an index server that does what the test says.
type testIndex struct {
	t        testing.TB
	listener net.Listener
	plain    bool // does not know hello, epochs and sessions

	mu       sync.Mutex
	meta     topology.Meta
	version  uint64
	nodes    []topology.Node
	epochs   map[int]uint64
	refuse   bool     // node add
	deaf     bool     // closes without an answer
	told     []string // node role and node state, as said
	shutdown []string
	hellos   []text.NodeArgs
	autoMap  bool   // a slave that says it is active becomes it
	stubborn bool   // leaves no replica behind
	lossy    int    // handovers that are carried out without an answer
	asked    int    // handovers
	refusal  string // of the next handovers
	handlers sync.WaitGroup
}

func newTestIndex(t testing.TB) *testIndex {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &testIndex{t: t, listener: l, meta: topology.DefaultMeta(), epochs: map[int]uint64{}, autoMap: true}
	x.handlers.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			x.handlers.Go(func() {
				defer nc.Close()
				x.serve(nc)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		x.handlers.Wait()
	})
	return x
}

func (x *testIndex) addr() string { return x.listener.Addr().String() }

func (x *testIndex) serve(nc net.Conn) {
	nc.SetDeadline(time.Now().Add(patience))
	r := text.NewReader(nc, text.Options{})
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
		x.mu.Lock()
		deaf := x.deaf
		if req.Command == text.CmdNodeRole || req.Command == text.CmdNodeState {
			x.told = append(x.told, strings.TrimSpace(string(text.AppendRequest(nil, &req, nil))))
		}
		x.mu.Unlock()
		if deaf {
			return
		}
		answer := x.answer(&req)
		if answer == nil {
			return
		}
		nc.Write(answer)
	}
}

func (x *testIndex) answer(req *text.Request) []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	key := req.Node.Key()
	n := x.find(key)
	switch req.Command {
	case text.CmdNodeAdd:
		if x.refuse || n != nil && n.State != topology.Down {
			return []byte(text.ReplyAddFailed)
		}
		if n == nil {
			x.nodes = append(x.nodes, topology.Node{Name: req.Node.Name, Port: req.Node.Port, Role: topology.Proxy,
				Partition: -1, ThreadType: topology.FirstThreadType + len(x.nodes)})
			topology.SortNodes(x.nodes)
		} else {
			n.Role, n.State, n.Partition = topology.Proxy, topology.Active, -1
		}
		x.version++
		return text.AppendNodes(nil, x.nodes, false)
	case text.CmdMeta:
		return text.AppendMeta(nil, x.meta)
	case text.CmdNodeHello:
		if x.plain {
			return []byte(text.ReplyError)
		}
		x.hellos = append(x.hellos, req.Node)
		return []byte(text.ReplyOK)
	case text.CmdNodeState:
		if n == nil || !x.autoMap {
			return []byte(text.ReplyStateFailed)
		}
		if n.State = req.Node.State; n.State == topology.Down {
			x.takeDown(key)
		}
		x.push()
		return []byte(text.ReplyOK)
	case text.CmdNodeRole:
		n.Role, n.State, n.Partition, n.Balance = req.Node.Role, topology.Active, req.Node.Partition, req.Node.Balance
		x.push()
		return []byte(text.ReplyOK)
	case text.CmdNodeHandover:
		return x.handOver(req.Node)
	case text.CmdNodeBehind:
		if x.stubborn {
			return []byte("SERVER_ERROR not durable in time\r\n")
		}
		if n != nil && n.Role == topology.Slave {
			n.State = topology.Prepare
			x.push()
		}
		return []byte(text.ReplyOK)
	case text.CmdShutdown:
		x.shutdown = append(x.shutdown, key)
		x.takeDown(key)
		x.push()
		return []byte(text.ReplyOK)
	}
	return []byte(text.ReplyError)
}

// handOver makes a replica the master; nil is a connection that is lost. x.mu is held.
func (x *testIndex) handOver(args text.NodeArgs) []byte {
	x.asked++
	from, to := x.find(args.Key()), x.find(fmt.Sprintf("%s:%d", args.Target, args.TargetPort))
	refuse := func(reason string) []byte { return text.AppendServerError(nil, reason) }
	switch {
	case x.plain:
		return []byte(text.ReplyError)
	case x.refusal != "":
		return refuse(x.refusal)
	case from == nil || to == nil:
		return refuse("no_such_node")
	case to.Role == topology.Master && x.epochs[to.Partition] == args.Epoch+1:
		return []byte(text.ReplyOK)
	case from.Role != topology.Master:
		return refuse("not_master")
	case x.epochs[from.Partition] != args.Epoch:
		return refuse("stale_epoch")
	case to.Role != topology.Slave || to.State != topology.Active || to.Partition != from.Partition:
		return refuse("target_not_in_sync")
	}
	from.Role, from.State = topology.Slave, topology.Prepare
	x.makeMaster(to, from.Partition, max(1, to.Balance))
	lost := x.lossy > 0
	if lost {
		x.lossy--
		x.deaf = true // and the map does not come either
		return nil
	}
	x.push()
	return []byte(text.ReplyOK)
}

func (x *testIndex) find(key string) *topology.Node {
	for i := range x.nodes {
		if x.nodes[i].Key() == key {
			return &x.nodes[i]
		}
	}
	return nil
}

// takeDown marks a node dead and promotes a replica if it was a master.
func (x *testIndex) takeDown(key string) {
	n := x.find(key)
	if n == nil {
		return
	}
	was := *n
	n.Role, n.State, n.Partition, n.Balance = topology.Proxy, topology.Down, -1, 0
	if was.Role != topology.Master {
		return
	}
	for i := range x.nodes {
		if s := &x.nodes[i]; s.Role == topology.Slave && s.State == topology.Active && s.Partition == was.Partition {
			x.makeMaster(s, was.Partition, max(1, s.Balance))
			return
		}
	}
	*n = was
	n.State = topology.Down
}

func (x *testIndex) makeMaster(n *topology.Node, partition, balance int) {
	x.epochs[partition]++
	n.Role, n.State, n.Partition, n.Balance = topology.Master, topology.Active, partition, balance
}

// push sends the map to everybody; x.mu is held.
func (x *testIndex) push() {
	x.version++
	for i := range x.nodes {
		n := &x.nodes[i]
		n.Epoch = 0
		if n.Partition >= 0 && !x.plain {
			n.Epoch = x.epochs[n.Partition]
		}
	}
	var pushes sync.WaitGroup
	for _, n := range x.nodes {
		pushes.Go(func() { x.pushTo(n.Key(), topology.NewMap(x.version, x.nodes)) })
	}
	pushes.Wait()
}

func (x *testIndex) pushTo(key string, m topology.Map) error {
	nc, err := net.DialTimeout("tcp", key, pushTimeout)
	if err != nil {
		return err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(pushTimeout))
	if _, err := nc.Write(text.AppendNodeSync(nil, m, !x.plain)); err != nil {
		return err
	}
	return text.NewReplyReader(nc, text.ReplyOptions{}).ReadOK()
}

// change edits the table and pushes it.
func (x *testIndex) change(edit func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	edit()
	x.push()
}

// master and slave assign roles.
func (x *testIndex) master(key string, partition int) {
	x.change(func() { x.makeMaster(x.find(key), partition, 1) })
}

func (x *testIndex) slave(key string, partition, balance int) {
	x.change(func() {
		n := x.find(key)
		n.Role, n.State, n.Partition, n.Balance = topology.Slave, topology.Prepare, partition, balance
	})
}

func (x *testIndex) down(key string) {
	x.change(func() { x.takeDown(key) })
}

func (x *testIndex) state(key string) topology.State {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.find(key).State
}

// A testNode is a Server with its database.
type testNode struct {
	*Server
	t     testing.TB
	dir   string
	port  int
	index *testIndex
	opts  options.Options
	wait  time.Duration // FailoverWait
	reply time.Duration // RequestTimeout
	clock func() time.Time
	log   logBuffer
	leave context.CancelFunc
	done  chan error
}

// A tune changes how a test's node is started.
type tune func(*testNode)

func startNode(t testing.TB, x *testIndex, tunes ...tune) *testNode {
	t.Helper()
	n := &testNode{t: t, dir: t.TempDir(), index: x, opts: startOptions(x)}
	for _, f := range tunes {
		f(n)
	}
	n.start()
	t.Cleanup(func() { n.kill() })
	return n
}

func startOptions(x *testIndex) options.Options {
	o := options.Default()
	o.ServerName = "127.0.0.1"
	o.IndexServers = []string{x.addr()}
	o.ReplicationTimeout = time.Second
	return o.WithEngineValues(map[string]string{"write_buffer_size": "1048576", "max_total_wal_size": "8388608"})
}

// start runs the node and waits until it serves.
func (n *testNode) start() {
	n.t.Helper()
	n.launch()
	eventually(n.t, "node serves", func() error {
		if reason := n.status.get(); reason != "" {
			return errors.New(reason)
		}
		return nil
	})
}

// launch runs the node.
func (n *testNode) launch() {
	n.t.Helper()
	var l net.Listener
	eventually(n.t, "the port is free", func() (err error) { // for a moment somebody else may have it
		l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n.port))
		return err
	})
	n.port = l.Addr().(*net.TCPAddr).Port
	n.opts.ServerPort = n.port
	n.opts.DataDir = n.dir
	logger := slog.New(slog.NewTextHandler(io.MultiWriter(testWriter{n.t, n.port}, &n.log), nil))
	db, err := storage.Open(storage.Options{Dir: n.dir, Logger: slog.New(slog.DiscardHandler), BlockCache: 1 << 20, Tuning: n.opts.EngineValues()})
	if err != nil {
		n.t.Fatal(err)
	}
	n.Server, err = New(Config{
		Options: n.opts, DB: db, Listener: l, Version: "9.9.9", Logger: logger,
		FailoverWait: cmp.Or(n.wait, 5*time.Second), RequestTimeout: cmp.Or(n.reply, time.Second), Clock: n.clock,
		Settings: &Settings{base: n.opts, path: filepath.Join(n.dir, appliedName)},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan error, 1)
	n.leave, n.done = leave, done
	server := n.Server
	go func() {
		err := server.Run(ctx)
		if cerr := db.Close(); err == nil {
			err = cerr
		}
		done <- err
	}()
}

// stop leaves in good order.
func (n *testNode) stop() {
	n.t.Helper()
	n.leave()
	n.await()
}

// kill ends the node without a word to the index.
func (n *testNode) kill() {
	n.t.Helper()
	n.Abort()
	n.await()
}

func (n *testNode) await() {
	n.t.Helper()
	if n.done == nil {
		return
	}
	select {
	case err := <-n.done:
		if err != nil {
			n.t.Errorf("node %s: %v", n.key(), err)
		}
	case <-time.After(patience):
		n.t.Fatalf("node %s did not stop", n.key())
	}
	n.done = nil
}

func (n *testNode) key() string { return fmt.Sprintf("127.0.0.1:%d", n.port) }

// A logBuffer keeps what a node logs.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// lines returns the lines that contain a text.
func (b *logBuffer) lines(part string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(strings.Split(b.text.String(), "\n"), func(line string) bool { return !strings.Contains(line, part) })
}

// testWriter logs to the test.
type testWriter struct {
	t    testing.TB
	port int
}

func (w testWriter) Write(p []byte) (int, error) {
	if os.Getenv("FLARE_TEST_LOG") != "" {
		fmt.Fprintf(os.Stderr, "%d %s", w.port, p)
	}
	return len(p), nil
}

// eventually waits until check returns nil.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A testClient is a connection to a node.
type testClient struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

func dial(t testing.TB, n *testNode) *testClient {
	t.Helper()
	nc, err := net.DialTimeout("tcp", n.key(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &testClient{t, nc, bufio.NewReader(nc)}
}

// ask sends bytes and checks that exactly want comes back first.
func (c *testClient) ask(send, want string) {
	c.t.Helper()
	if got, err := c.try(send, len(want)); err != nil || got != want {
		c.t.Fatalf("sent %s\n got %s (%v)\nwant %s", short(send), short(got), err, short(want))
	}
}

func (c *testClient) try(send string, n int) (string, error) {
	c.nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c.nc, send); err != nil {
		return "", err
	}
	buf := make([]byte, n)
	got, err := io.ReadFull(c.r, buf)
	return string(buf[:got]), err
}

// line sends bytes and returns the next line of the answer.
func (c *testClient) line(send string) string {
	c.t.Helper()
	c.nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c.nc, send); err != nil {
		c.t.Fatal(err)
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("sent %s: %v", short(send), err)
	}
	return strings.TrimSuffix(line, "\r\n")
}

func short(s string) string {
	if len(s) > 300 {
		return fmt.Sprintf("%q... (%d bytes)", s[:300], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// settled waits until a node's duty is what the index wants and in force.
func (n *testNode) settled(kind dutyKind) {
	n.t.Helper()
	eventually(n.t, "role of "+n.key(), func() error {
		if d := dutyOf(n.maps.table()); d.kind != kind {
			return fmt.Errorf("duty %+v", d)
		}
		if state, reason := n.gate.status(); (state == gateOpen) != (kind == dutyMaster) {
			return fmt.Errorf("gate %d %s", state, reason)
		}
		return nil
	})
}
