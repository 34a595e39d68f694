package node

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/proto/topology"
)

// Both ways in which a running node is told other options.
var tellings = []struct {
	name string
	tell func(t *testing.T, n *testNode, text string)
}{
	{"agent", func(t *testing.T, n *testNode, text string) {
		t.Helper()
		if accepted, statuses, err := n.applyText([]byte(text)); err != nil || !accepted {
			t.Fatalf("%q was refused: %v %+v", text, err, statuses)
		}
	}},
	{"SIGHUP", func(t *testing.T, n *testNode, text string) {
		t.Helper()
		n.settings.file = filepath.Join(n.dir, "flared.conf")
		if err := os.WriteFile(n.settings.file, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := n.Reload(); err != nil {
			t.Fatalf("%q was refused: %v", text, err)
		}
	}},
}

// Each live option of a node's own works at once, also on connections that are
// open, whichever way it comes.
func TestLiveOptionsTakeEffect(t *testing.T) {
	for _, how := range tellings {
		t.Run(how.name, func(t *testing.T) {
			x := newTestIndex(t)
			n := startNode(t, x)
			x.master(n.key(), 0)
			n.settled(dutyMaster)
			c := dial(t, n)

			c.ask("set a 0 0 6\r\n123456\r\n", "STORED\r\n")
			how.tell(t, n, "max-value-size = 5\n")
			c.ask("set a 0 0 6\r\n123456\r\nset a 0 0 5\r\n12345\r\n", "SERVER_ERROR object too large for cache\r\nSTORED\r\n")

			how.tell(t, n, "max-connection = 1\n")
			if got, err := dial(t, n).try("version\r\n", 1); err == nil {
				t.Errorf("a client beyond the new limit was answered %q", got)
			}
			how.tell(t, n, "max-connection = 100\n")
			d := dial(t, n)
			d.ask("version\r\n", "VERSION flare-9.9.9\r\n")

			how.tell(t, n, "net-read-timeout = 1\n")
			d.ask("version\r\n", "VERSION flare-9.9.9\r\n")
			if got, err := d.try("get a", 1); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a silent connection was answered %q, %v", got, err)
			}

			y := newTestIndex(t)
			x.mu.Lock()
			y.nodes, y.version, y.epochs = slices.Clone(x.nodes), x.version, x.epochs
			x.mu.Unlock()
			name, port, _ := net.SplitHostPort(y.addr())
			how.tell(t, n, "index-server-name = "+name+"\nindex-server-port = "+port+"\n")
			n.stop()
			if !slices.Contains(y.shutdown, n.key()) || len(x.shutdown) > 0 {
				t.Errorf("the shutdown went to the former index server: %v, new one: %v", x.shutdown, y.shutdown)
			}
		})
	}
}

// silentNode accepts connections and never answers.
func silentNode(t *testing.T) (key string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer nc.Close()
				io.Copy(io.Discard, nc)
			})
		}
	})
	t.Cleanup(func() { l.Close(); served.Wait() })
	return l.Addr().String()
}

func TestMaxTotalThreadQueue(t *testing.T) {
	for _, how := range tellings {
		t.Run(how.name, func(t *testing.T) {
			x := newTestIndex(t)
			name, port, _ := topology.SplitKey(silentNode(t))
			n := startNode(t, x, func(n *testNode) { n.wait = patience })
			x.change(func() {
				x.nodes = append(x.nodes, topology.Node{Name: name, Port: port, ThreadType: 99})
				x.makeMaster(&x.nodes[len(x.nodes)-1], 0, 1)
				topology.SortNodes(x.nodes)
			})
			how.tell(t, n, "max-total-thread-queue = 1\nreplication-timeout = 60000\n")
			stuck := dial(t, n)
			io.WriteString(stuck.nc, "set a 0 0 1\r\nx\r\n")
			eventually(t, "a write waits for the other node", func() error {
				if got := n.peers.waiting.Load(); got != 1 {
					return fmt.Errorf("%d requests wait", got)
				}
				return nil
			})
			began := time.Now()
			dial(t, n).ask("set b 0 0 1\r\nx\r\nget b\r\nset c 0 0 1 noreply\r\nx\r\nping\r\n", "SERVER_ERROR proxy failure\r\nEND\r\nOK\r\n")
			if took := time.Since(began); took > patience/2 {
				t.Errorf("it took %v to be refused", took)
			}
			how.tell(t, n, "max-total-thread-queue = 2\nreplication-timeout = 60000\n")
			io.WriteString(dial(t, n).nc, "set b 0 0 1\r\nx\r\n")
			eventually(t, "one more waits with the higher limit", func() error {
				if got := n.peers.waiting.Load(); got != 2 {
					return fmt.Errorf("%d requests wait", got)
				}
				return nil
			})
		})
	}
}

func TestServerSocket(t *testing.T) {
	x := newTestIndex(t)
	path := filepath.Join(t.TempDir(), "flared.sock")
	n := startNode(t, x, func(n *testNode) { n.opts.ServerSocket, n.opts.MaxConnection = path, 1 })
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != clientSocketMode {
		t.Fatalf("socket: %v, %v", info, err)
	}
	open := func() *testClient {
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		return &testClient{t, nc, bufio.NewReader(nc)}
	}
	c := open()
	// The connection that brought the node map may still count.
	eventually(t, "a client is served", func() error {
		got, err := c.try("set a 0 0 1\r\nx\r\nget a\r\n", len("STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n"))
		if err != nil || got != "STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n" {
			c = open()
			return fmt.Errorf("got %q, %v", got, err)
		}
		return nil
	})
	if got, err := dial(t, n).try("version\r\n", 1); err == nil {
		t.Errorf("a connection to the socket does not count: a further client got %q", got)
	}
	n.stop()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket was left: %v", err)
	}
	// One that was left by a process that was killed is no obstacle.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	n.start()
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "file"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix("server-socket", filepath.Join(filepath.Dir(path), "file"), 0o777); err == nil || !strings.Contains(err.Error(), "--server-socket") {
		t.Errorf("a file in its place: %v", err)
	}
}

func TestProxyConcurrency(t *testing.T) {
	for _, want := range []int{1, 5} {
		t.Run(strconv.Itoa(want), func(t *testing.T) {
			x := newTestIndex(t)
			master := startNode(t, x)
			proxy := startNode(t, x, func(n *testNode) { n.opts.ProxyConcurrency = want })
			x.master(master.key(), 0)
			master.settled(dutyMaster)
			// What the index pushed by is gone some time.
			before := 0
			eventually(t, "nobody but the proxy may be connected", func() error {
				if before = master.connections(); before > 0 {
					return fmt.Errorf("%d connections", before)
				}
				return nil
			})
			c := dial(t, proxy)
			for i := range 200 {
				c.ask(fmt.Sprintf("set k%d 0 0 1\r\nx\r\n", i), "STORED\r\n")
			}
			if got := master.connections() - before; got != want {
				t.Errorf("%d connections for writes, want %d", got, want)
			}
		})
	}
}

func TestProxyPriorNetmask(t *testing.T) {
	node := func(name string, role topology.Role) topology.Node {
		return topology.Node{Name: name, Port: 1, Role: role, State: topology.Active, Balance: 1}
	}
	nodes := []topology.Node{
		node("10.0.1.1", topology.Master), node("10.0.2.2", topology.Slave), node("10.0.2.3", topology.Slave), node("host", topology.Slave),
	}
	for _, c := range []struct {
		self  string
		bits  int
		avoid []string
		want  []string
	}{
		{"10.0.2.9:1", 0, nil, []string{"10.0.1.1:1", "10.0.2.2:1", "10.0.2.3:1", "host:1"}},
		{"10.0.2.9:1", 24, nil, []string{"10.0.2.2:1", "10.0.2.3:1"}},
		{"10.0.2.9:1", 16, nil, []string{"10.0.1.1:1", "10.0.2.2:1", "10.0.2.3:1"}},
		{"10.0.2.9:1", 24, []string{"10.0.2.2:1"}, []string{"10.0.2.3:1"}},
		{"10.0.2.9:1", 24, []string{"10.0.2.2:1", "10.0.2.3:1"}, []string{"10.0.1.1:1", "host:1"}},
		{"10.9.9.9:1", 24, nil, []string{"10.0.1.1:1", "10.0.2.2:1", "10.0.2.3:1", "host:1"}},
		{"client:1", 24, nil, []string{"10.0.1.1:1", "10.0.2.2:1", "10.0.2.3:1", "host:1"}},
	} {
		table := testTable(t, c.self, nodes...)
		table.preferNear(c.bits)
		got := map[string]bool{}
		for draw := range uint32(12) {
			r := table.routeRead([]byte("k"), nil, c.avoid, draw)
			if r.action != actForward {
				t.Fatalf("%+v: %+v", c, r)
			}
			got[r.to] = true
		}
		for _, w := range c.want {
			if !got[w] {
				t.Errorf("%s/%d never reads from %s", c.self, c.bits, w)
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%s/%d reads from %v, want %v", c.self, c.bits, got, c.want)
		}
	}
}

// The node's own table is built with the option.
func TestProxyPriorNetmaskIsInForce(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x, func(n *testNode) { n.opts.ProxyPriorNetmask = 8 })
	x.change(func() {
		for i, name := range []string{"127.0.0.9", "10.0.0.1"} {
			x.nodes = append(x.nodes, topology.Node{Name: name, Port: 1, ThreadType: 90 + i, State: topology.Down})
		}
		x.makeMaster(&x.nodes[len(x.nodes)-1], 0, 1)
		slave := &x.nodes[len(x.nodes)-2]
		slave.Role, slave.State, slave.Partition, slave.Balance = topology.Slave, topology.Active, 0, 1
		topology.SortNodes(x.nodes)
	})
	if p := n.maps.table().parts[0]; len(p.near) != 1 || p.near[0].node != "127.0.0.9:1" || len(p.readers) != 2 {
		t.Errorf("near %v of %v", p.near, p.readers)
	}
}

// A slow access to the storage makes ping fail, and a fast one afterwards heals it.
func TestBug34PingRecovers(t *testing.T) {
	for _, how := range tellings {
		t.Run(how.name, func(t *testing.T) {
			x := newTestIndex(t)
			n := startNode(t, x)
			x.master(n.key(), 0)
			n.settled(dutyMaster)
			how.tell(t, n, "time-watcher-enabled = true\ntime-watcher-polling-interval-msec = 10\nstorage-access-watch-threshold-ping-ng-msec = 1\n")
			c, p := dial(t, n), dial(t, n)
			big := "set big 0 0 33554432 async\r\n" + strings.Repeat("x", 32<<20) + "\r\n"
			eventually(t, "ping fails", func() error {
				c.ask(big, "STORED\r\n")
				if got := p.line("ping\r\n"); got != "SERVER_ERROR storage error" {
					return errors.New(got)
				}
				return nil
			})
			eventually(t, "ping recovers", func() error {
				if got := p.line("ping\r\n"); got != "OK" {
					return errors.New(got)
				}
				return nil
			})
			how.tell(t, n, "time-watcher-enabled = false\n")
			if got := n.db.LongestAccess(); got != 0 {
				t.Errorf("switched off, and yet accesses are measured: %v", got)
			}
		})
	}
}

func TestAccessWatcherWarns(t *testing.T) {
	var log strings.Builder
	w := &accessWatcher{logger: slog.New(slog.NewTextHandler(&log, nil))}
	o := options.TimeWatcher{Warn: 100 * time.Millisecond, PingNG: time.Second}
	w.look(o, 99*time.Millisecond)
	if log.Len() > 0 || w.slow.Load() {
		t.Errorf("below both thresholds: %s", &log)
	}
	w.look(o, 100*time.Millisecond)
	if !strings.Contains(log.String(), "slow access") || w.slow.Load() {
		t.Errorf("at the lower threshold: %s", &log)
	}
	if w.look(o, time.Second); !w.slow.Load() {
		t.Error("at the higher threshold ping is answered")
	}
	if w.look(options.TimeWatcher{}, time.Hour); w.slow.Load() {
		t.Error("without thresholds ping is not answered")
	}
}

// A file without index-servers keeps the former ones, and everything else in it
// takes effect; so does an option that was taken out of the file.
func TestBug40ReloadWithoutIndexServers(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x)
	sighup := tellings[1].tell
	sighup(t, n, "data-dir = "+n.dir+"\nmax-connection = 77\nlog-level = warn\nreplication-timeout = 777\n")
	o := n.live.Load()
	if !slices.Equal(o.IndexServers, []string{x.addr()}) || o.MaxConnection != 77 || o.LogLevel != slog.LevelWarn || o.ReplicationTimeout != 777*time.Millisecond {
		t.Errorf("after the first reload: %+v", o)
	}
	sighup(t, n, "net-read-timeout = 7\n")
	if o := n.live.Load(); !slices.Equal(o.IndexServers, []string{x.addr()}) || o.MaxConnection != 77 || o.NetReadTimeout != 7*time.Second {
		t.Errorf("after the second reload: %+v", o)
	}
	sighup(t, n, "index-server-name = a\n")
	if o := n.live.Load(); !slices.Equal(o.Indexes(), []string{"a:12120"}) {
		t.Errorf("index servers %v", o.Indexes())
	}
}

// Options without effect are named in one line at the start, whatever gives them.
func TestOptionsWithoutEffectAreNamed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "flared.conf")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "data-dir = "+dir+"\nindex-servers = h:1\nthread-pool-size = 5\ndaemonize =\n")
	write(filepath.Join(dir, appliedName), "mutex-slot = 3\nthread-pool-size = 6\n")
	var log strings.Builder
	if _, _, err := LoadSettings(file, nil, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "options=daemonize,mutex-slot,thread-pool-size") {
		t.Errorf("log: %s", got)
	}

	n := startNode(t, newTestIndex(t))
	accepted, statuses, err := n.applyText([]byte("storage-type = tch\n"))
	if err != nil || !accepted {
		t.Fatal(err)
	}
	i := slices.IndexFunc(statuses, func(s options.Status) bool { return s.Key == "storage-type" })
	if i < 0 || statuses[i].State != options.Applied || statuses[i].Reason != options.ReasonNoEffect {
		t.Errorf("reported: %+v", statuses)
	}
}

func TestStallInsideDataBlock(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x, func(n *testNode) { n.opts.NetReadTimeout = 50 * time.Millisecond })
	c := dial(t, n)
	c.ask("set a 0 0 10\r\n12345", "ERROR\r\n")
	if got, err := c.try("", 1); err == nil {
		t.Errorf("the connection goes on with %q", got)
	}
}
