package procs

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// binDirVariable names binDir to a test that runs in a process of its own.
const binDirVariable = "FLARE_TEST_PROGRAMS"

// binDir holds the three programs, built with the race detector: a race in a
// process ends it with an exit status that fails the test.
var binDir string

// atOnce is how many clusters run at the same time, unless the command line says it:
// most of the time a test waits for what its processes wait for.
const atOnce = 3

func TestMain(m *testing.M) {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		if err := flag.Set("test.parallel", strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0)))); err != nil {
			panic(err)
		}
	}
	os.Exit(func() int {
		if binDir = os.Getenv(binDirVariable); binDir != "" {
			return m.Run() // within a test of this package
		}
		dir, err := os.MkdirTemp("", "flare-bin-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binDir = dir
		out, err := exec.Command("go", "build", "-race", "-o", dir+"/", "../../agent/cmd/...", "../../controller/cmd/...").CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

func start(t *testing.T, o Options) *Cluster {
	t.Helper()
	o.BinDir = binDir
	// Whatever a controller decides in these tests is decided once more from its recording.
	o.Record = o.Controller == nil
	// t.TempDir is too long a path for Unix sockets.
	dir, err := os.MkdirTemp("", "flare-")
	if err != nil {
		t.Fatal(err)
	}
	o.Dir = dir
	c, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		if o.Record {
			replayed(t, c.Recording)
		}
		logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
		for _, log := range logs {
			b, _ := os.ReadFile(log)
			if strings.Contains(string(b), "DATA RACE") || strings.Contains(string(b), "panic:") {
				t.Errorf("%s:\n%s", filepath.Base(log), b)
			} else if t.Failed() {
				t.Logf("%s, its end:\n%s", filepath.Base(log), b[max(0, len(b)-4000):])
			}
		}
		os.RemoveAll(dir)
	})
	ready, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
	// The controller may know of it before the agents do.
	for _, n := range c.Nodes {
		eventually(t, patience, "the agent of "+n.Addr+" knows flared and the controller", func() error {
			s := agentStatus(t, n)
			if !s.GetFlaredAlive() || !s.GetControllerConnected() {
				return fmt.Errorf("flared %v, controller %v", s.GetFlaredAlive(), s.GetControllerConnected())
			}
			// And before they have seen the options, which say in what mode writes are answered.
			if c := s.GetConfig(); o.Controller == nil && (c.GetGeneration() == 0 || c.GetAppliedHash() != c.GetHash()) {
				return fmt.Errorf("options: %v", c)
			}
			return nil
		})
	}
	return c
}

func client(addr string) *memcache.Client {
	m := memcache.New(addr)
	m.Timeout = patience
	return m
}

// agentStatus asks an agent, which may just be starting.
func agentStatus(t *testing.T, n *Node) *agentv1.AgentStatus {
	t.Helper()
	conn, err := grpc.NewClient(n.AgentAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := agentv1.NewAgentServiceClient(conn).GetStatus(ctx, &agentv1.GetStatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	return r.Status
}

func eventually(t *testing.T, limit time.Duration, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		<-tick.C
	}
}

// master returns the master of a partition, once there is one.
func master(t *testing.T, c *Cluster, partition int) (n *Node) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("partition %d has a master", partition), func() error {
		top, err := c.Topology(t.Context())
		if err != nil {
			return err
		}
		if n = c.NodeByAddr(top.Partitions[partition].Master); n == nil {
			return fmt.Errorf("the topology is %v", top)
		}
		return nil
	})
	return n
}

// TestMasterKilledUnderLoad kills a partition's master while clients write
// through another node, restarts it, and checks every acknowledged write on
// every node.
func TestMasterKilledUnderLoad(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 2, Replicas: 2})
	victim := master(t, c, 0)
	via := master(t, c, 1)

	const writers = 4
	acked := make([]map[string]string, writers)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range writers {
		acked[w] = map[string]string{}
		wg.Go(func() {
			m := client(via.Addr)
			defer m.Close()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				k, v := fmt.Sprintf("load:%d:%d", w, i%500), fmt.Sprintf("value %d", i)
				err := m.Set(&memcache.Item{Key: k, Value: []byte(v)})
				if err == nil {
					acked[w][k] = v
				} else {
					// Not acknowledged: either value may stand from now on.
					delete(acked[w], k)
				}
			}
		})
	}
	eventually(t, patience, "some load", func() error {
		if s := agentStatus(t, victim); s.Flared.Lsn.GetIndex() < 100 {
			return fmt.Errorf("the master is at %v", s.Flared.Lsn)
		}
		return nil
	})
	victim.Flared.Kill()
	eventually(t, patience, "a new master of partition 0", func() error {
		if m := master(t, c, 0); m == victim {
			return errors.New("still the killed one")
		}
		return nil
	})
	if err := victim.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	ready, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
	close(stop)
	wg.Wait()

	total := 0
	for _, n := range c.Nodes {
		m := client(n.Addr)
		for _, writes := range acked {
			for k, v := range writes {
				total++
				item, err := m.Get(k)
				if err != nil || string(item.Value) != v {
					t.Fatalf("get %s through %s: %v, %v; acknowledged was %q", k, n.Addr, item, err, v)
				}
			}
		}
		m.Close()
	}
	if total == 0 {
		t.Fatal("nothing was acknowledged")
	}
	t.Logf("%d reads of acknowledged writes are right", total)
}

// TestRejoinByLog stops a replica, writes, and checks that it comes back by
// the write-ahead log.
func TestRejoinByLog(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	m := master(t, c, 0)
	replica := c.Nodes[0]
	if replica == m {
		replica = c.Nodes[1]
	}
	cl := client(m.Addr)
	defer cl.Close()
	replica.Flared.Kill()
	eventually(t, patience, "the master goes on without its replica", func() error {
		return cl.Set(&memcache.Item{Key: "k", Value: []byte("v")})
	})
	for i := range 200 {
		if err := cl.Set(&memcache.Item{Key: fmt.Sprint("away:", i), Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := replica.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	ready, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
	// The agents learn of it a moment after the controller.
	eventually(t, patience, "the replica is where its master is", func() error {
		s := agentStatus(t, replica).Flared
		mine, theirs := s.GetLsn(), agentStatus(t, m).Flared.GetLsn()
		if mine.GetEpoch() != theirs.GetEpoch() || mine.GetIndex() != theirs.GetIndex() || mine.GetIndex() == 0 {
			return fmt.Errorf("the replica is at %v, its master at %v", mine, theirs)
		}
		if s.CatchUp.GetTier() != agentv1.Tier_TIER_WAL || s.CatchUpCounts.GetCheckpoint() != 0 {
			return fmt.Errorf("it came back by %s with %d full copies, want the log", s.CatchUp.GetTier(), s.CatchUpCounts.GetCheckpoint())
		}
		return nil
	})
}

// TestLeaveCleanly ends a master by SIGTERM under load: clients of other nodes
// see a pause and no error.
func TestLeaveCleanly(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	leaving := master(t, c, 0)
	other := c.Nodes[0]
	if other == leaving {
		other = c.Nodes[1]
	}
	stop := make(chan struct{})
	failed := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		m := client(other.Addr)
		defer m.Close()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := m.Set(&memcache.Item{Key: fmt.Sprint("leave:", i), Value: []byte("v")}); err != nil {
				select {
				case failed <- fmt.Errorf("write %d: %w", i, err):
				default:
				}
				return
			}
		}
	})
	leaving.Flared.Terminate()
	if err := leaving.Flared.WaitOrKill(20 * time.Second); err != nil {
		t.Error(err)
	}
	eventually(t, patience, "the other node is the master", func() error {
		if m := master(t, c, 0); m != other {
			return fmt.Errorf("master is %s", m.Addr)
		}
		return client(other.Addr).Set(&memcache.Item{Key: "after", Value: []byte("v")})
	})
	close(stop)
	wg.Wait()
	select {
	case err := <-failed:
		t.Error(err)
	default:
	}
}

// TestConfigRollout changes options in the FlareCluster file, RocksDB's own among them.
func TestConfigRollout(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	pids := map[*Node]int{}
	for _, n := range c.Nodes {
		pids[n] = n.Flared.PID()
	}
	if err := c.WriteSpec("  rocksdb:\n    walTtlSeconds: 777\n    syncWrites: true\n    options: {write_buffer_size: \"2097152\", max_background_jobs: \"3\"}\n"); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		eventually(t, patience, "all options applied", func() error {
			applied := map[string]string{}
			for _, o := range agentStatus(t, n).Config.GetOptions() {
				if o.State == agentv1.OptionState_OPTION_STATE_APPLIED {
					applied[o.Key] = o.Effective
				}
			}
			if applied["rocksdb-wal-ttl-seconds"] != "777" || applied["rocksdb-sync-writes"] != "true" ||
				applied["rocksdb-option-write_buffer_size"] != "2097152" || applied["rocksdb-option-max_background_jobs"] != "3" {
				return fmt.Errorf("applied: %v", applied)
			}
			return nil
		})
		if !n.Flared.Running() || n.Flared.PID() != pids[n] {
			t.Errorf("flared %s was restarted", n.Addr)
		}
	}
}

// TestBadSpecKeepsTheCluster writes a manifest that cannot be used.
func TestBadSpecKeepsTheCluster(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 1})
	before, err := c.Topology(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteSpec("  partitons: 3\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the controller says what is wrong", func() error {
		log, err := os.ReadFile(c.Controller.LogFile)
		if err != nil || !strings.Contains(string(log), "partitons") {
			return fmt.Errorf("nothing about it in the log: %v", err)
		}
		return nil
	})
	after, err := c.Topology(t.Context())
	if err != nil || after.MapVersion != before.MapVersion {
		t.Errorf("map version %d, then %d: %v", before.MapVersion, after.MapVersion, err)
	}
	if err := client(c.Nodes[0].Addr).Set(&memcache.Item{Key: "k", Value: []byte("v")}); err != nil {
		t.Error(err)
	}
}

// TestSecondControllerIsRefused starts another one on the same state.
func TestSecondControllerIsRefused(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 1})
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "flare-controller"), "--standalone", c.Manifest,
		"--state-dir", filepath.Join(c.opts.Dir, "controller"),
		"--index", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), "another controller") {
		t.Errorf("a second controller on the same state: %v\n%s\nwant a refusal that says another controller has it", err, out)
	}
}

// TestControllerRestart kills the controller: the data path goes on, and a new
// one continues with the same map.
func TestControllerRestart(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 2, Replicas: 2})
	before, err := c.Topology(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Controller.Kill()
	m := client(c.Nodes[0].Addr)
	defer m.Close()
	for i := range 50 {
		if err := m.Set(&memcache.Item{Key: fmt.Sprint("alone:", i), Value: []byte("v")}); err != nil {
			t.Fatalf("write without a controller: %v", err)
		}
	}
	if err := c.Controller.Start(); err != nil {
		t.Fatal(err)
	}
	ready, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
	after, err := c.Topology(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range after.Partitions {
		if p.Master != before.Partitions[i].Master || p.Epoch != before.Partitions[i].Epoch {
			t.Errorf("partition %d was %v and is %v: a controller's restart is no failover", i, before.Partitions[i], p)
		}
	}
	if after.MapVersion < before.MapVersion {
		t.Errorf("map version went back from %d to %d", before.MapVersion, after.MapVersion)
	}
}
