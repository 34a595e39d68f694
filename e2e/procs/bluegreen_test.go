package procs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// phases in short.
const (
	dumping    = controllerv1.ReplicationPhase_REPLICATION_PHASE_DUMPING
	forwarding = controllerv1.ReplicationPhase_REPLICATION_PHASE_FORWARDING
	cutting    = controllerv1.ReplicationPhase_REPLICATION_PHASE_CUTTING_OVER
	cutOver    = controllerv1.ReplicationPhase_REPLICATION_PHASE_CUT_OVER
	noPhase    = controllerv1.ReplicationPhase_REPLICATION_PHASE_UNSPECIFIED
)

// admin returns the controller's admin API.
func (c *Cluster) admin(t *testing.T) controllerv1.ControllerServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(c.ControllerAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return controllerv1.NewControllerServiceClient(conn)
}

// until waits for a phase of the cluster replication.
func (c *Cluster) until(t *testing.T, what string, ok func(*controllerv1.ClusterReplicationTopology) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := c.WaitFor(ctx, func(top *controllerv1.Topology) bool { return ok(top.GetReplication()) }); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// restart ends the controller without a word and starts it again.
func (c *Cluster) restart(t *testing.T) {
	t.Helper()
	c.Controller.Kill()
	if err := c.Controller.Start(); err != nil {
		t.Fatal(err)
	}
}

// masterOf returns the node that is the master of a partition.
func (c *Cluster) masterOf(t *testing.T, partition int) *Node {
	t.Helper()
	var n *Node
	eventually(t, patience, "a master", func() error {
		top, err := c.Topology(t.Context())
		if err != nil || len(top.Partitions) <= partition || top.Partitions[partition].Master == "" {
			return fmt.Errorf("%v, %v", top, err)
		}
		n = c.NodeByAddr(top.Partitions[partition].Master)
		return nil
	})
	return n
}

// A counting load has each of its workers set a key of its own to rising numbers.
type counting struct {
	stop    chan struct{}
	workers sync.WaitGroup
	acked   [4]atomic.Int64 // last number that was acknowledged
	tried   [4]atomic.Int64 // last one that was sent
}

// begin starts the load through the nodes.
func (l *counting) begin(nodes []*Node) {
	l.stop = make(chan struct{})
	for w := range l.acked {
		l.workers.Go(func() {
			var clients []*memcache.Client
			for _, n := range nodes {
				c := client(n.Addr)
				defer c.Close()
				clients = append(clients, c)
			}
			for at := w; ; {
				select {
				case <-l.stop:
					return
				default:
				}
				n := l.tried[w].Add(1)
				err := clients[at%len(clients)].Set(&memcache.Item{Key: fmt.Sprint("count", w), Value: []byte(strconv.FormatInt(n, 10))})
				if err == nil {
					l.acked[w].Store(n)
				} else {
					at++ // the node may be one that was killed
				}
			}
		})
	}
}

func (l *counting) end() {
	close(l.stop)
	l.workers.Wait()
}

// passes waits until every worker has written some more.
func (l *counting) passes(t *testing.T) {
	t.Helper()
	for w := range l.acked {
		from := l.acked[w].Load()
		eventually(t, patience, "load passes", func() error {
			if n := l.acked[w].Load(); n < from+5 {
				return fmt.Errorf("worker %d: %d", w, n)
			}
			return nil
		})
	}
}

// arrived checks that a node answers with what was acknowledged last, or with
// something that was sent later.
func (l *counting) arrived(addr string) error {
	for w := range l.acked {
		low, high := l.acked[w].Load(), l.tried[w].Load()
		it, err := client(addr).Get(fmt.Sprint("count", w))
		if err != nil {
			return err
		}
		if n, err := strconv.ParseInt(string(it.Value), 10, 64); err != nil || n < low || n > high {
			return fmt.Errorf("count%d is %q, want %d to %d", w, it.Value, low, high)
		}
	}
	return nil
}

// compare returns the outcome of a comparison of both clusters.
func compare(t *testing.T, api controllerv1.ControllerServiceClient) (*controllerv1.CompareClustersResponse, error) {
	t.Helper()
	stream, err := api.CompareClusters(t.Context(), &controllerv1.CompareClustersRequest{Rounds: 2})
	if err != nil {
		return nil, err
	}
	var last *controllerv1.CompareClustersResponse
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		last = m
	}
}

// TestBlueGreen moves a cluster of two partitions to one of a single partition, under
// load, with a controller that ends in every phase, masters of both sides that die in
// the midst of it, and options that somebody destroys.
func TestBlueGreen(t *testing.T) {
	t.Parallel()
	var blue, green *Cluster
	green = start(t, Options{Partitions: 1, Replicas: 2})
	blue = start(t, Options{Partitions: 2, Replicas: 2, FlaredArgs: []string{"--reconstruction-interval=3000"}})
	api := blue.admin(t)

	const records = 900
	seed := client(blue.Nodes[0].Addr)
	for i := range records {
		if err := seed.Set(&memcache.Item{Key: fmt.Sprint("record", i), Value: []byte(fmt.Sprint(i)), Flags: uint32(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := api.CutOver(t.Context(), &controllerv1.CutOverRequest{}); reasonOf(err) != "not_replicating" {
		t.Errorf("cut-over without a replication: %v", err)
	}
	load := &counting{}
	load.begin(blue.Nodes)

	spec := func(enabled bool) {
		t.Helper()
		if err := blue.WriteSpec(fmt.Sprintf("  clusterReplication:\n    enabled: %t\n    target: %q\n", enabled, green.Nodes[1].Addr)); err != nil {
			t.Fatal(err)
		}
	}
	spec(true)
	blue.until(t, "records are on their way", func(r *controllerv1.ClusterReplicationTopology) bool {
		return r.GetPhase() == dumping && slices.ContainsFunc(r.GetPartitions(), func(p *controllerv1.PartitionReplication) bool { return p.GetRecords() > 0 })
	})
	if _, err := api.CutOver(t.Context(), &controllerv1.CutOverRequest{}); reasonOf(err) != "not_forwarding" {
		t.Errorf("cut-over in the midst of the dump: %v", err)
	}
	source := blue.masterOf(t, 0)
	source.Flared.Kill()
	blue.restart(t)
	if err := os.WriteFile(filepath.Join(blue.ConfigDir, "extra.conf"), []byte("damaged\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := blue.masterOf(t, 0); n == source {
		eventually(t, patience, "failover", func() error {
			if blue.masterOf(t, 0) == source {
				return errors.New("not yet")
			}
			return nil
		})
	}
	if err := source.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	blue.until(t, "all records are there", func(r *controllerv1.ClusterReplicationTopology) bool { return r.GetPhase() == forwarding })
	load.passes(t)

	// The target loses its master, and the source its controller.
	blue.restart(t)
	there := green.masterOf(t, 0)
	there.Flared.Kill()
	load.passes(t)
	if err := there.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	load.end()
	caughtUp := func(r *controllerv1.ClusterReplicationTopology) bool {
		return r.GetPhase() == forwarding && len(r.GetPartitions()) == 2 && !slices.ContainsFunc(r.GetPartitions(), func(p *controllerv1.PartitionReplication) bool {
			return !p.GetConnected() || p.GetReason() != "" || p.GetQueuedBatches() > 0
		})
	}
	blue.until(t, "the target has everything", caughtUp)
	if b, err := os.ReadFile(filepath.Join(blue.ConfigDir, "extra.conf")); err != nil || string(b) == "damaged\n" {
		t.Errorf("options are %q, %v", b, err)
	}

	// Equal, different, equal.
	if _, err := api.CutOver(t.Context(), &controllerv1.CutOverRequest{DryRun: true}); reasonOf(err) != "digest_missing" {
		t.Errorf("cut-over before a comparison: %v", err)
	}
	equal := func(want bool) *controllerv1.CompareClustersResponse {
		t.Helper()
		var out *controllerv1.CompareClustersResponse
		eventually(t, patience, "comparison", func() (err error) {
			out, err = compare(t, api) // the controller, or a master, may just have come back
			return err
		})
		if c := out.GetComparison(); c.GetEqual() != want || !c.GetExact() || c.GetRecords() != records+4 || len(out.GetPartitions()) != 2 {
			t.Errorf("comparison, want equal %t of %d records: %v", want, records+4, out)
		}
		return out
	}
	equal(true)
	other := client(green.Nodes[0].Addr)
	if err := other.Set(&memcache.Item{Key: "stray", Value: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if c := equal(false).GetComparison(); c.GetDiffering() != 1 || c.GetTargetRecords() != records+5 {
		t.Errorf("with a record too many: %v", c)
	}
	if _, err := api.CutOver(t.Context(), &controllerv1.CutOverRequest{DryRun: true}); reasonOf(err) != "digest_mismatch" {
		t.Errorf("cut-over to another cluster than this: %v", err)
	}
	if err := other.Delete("stray"); err != nil {
		t.Fatal(err)
	}
	equal(true)

	// Under load to the other side.
	load.begin(blue.Nodes)
	load.passes(t)
	if r, err := api.CutOver(t.Context(), &controllerv1.CutOverRequest{DryRun: true}); err != nil || !r.GetOutcome().GetDryRun() || len(r.GetOutcome().GetNotices()) == 0 {
		t.Errorf("dry run: %v, %v", r, err)
	}
	// A node that says nothing keeps it where writes wait. There the controller ends; the
	// next one goes on, and gives the cut-over up if the node says nothing for too long.
	silent := blue.masterOf(t, 0).Agent
	if err := silent.Freeze(); err != nil {
		t.Fatal(err)
	}
	defer silent.Thaw()
	began := time.Now()
	if _, err := api.CutOver(t.Context(), &controllerv1.CutOverRequest{}); err != nil {
		t.Fatal(err)
	}
	blue.until(t, "writes wait", func(r *controllerv1.ClusterReplicationTopology) bool { return r.GetPhase() == cutting })
	blue.restart(t)
	if err := silent.Thaw(); err != nil {
		t.Fatal(err)
	}
	blue.until(t, "it is cut over, or given up", func(r *controllerv1.ClusterReplicationTopology) bool {
		return r.GetPhase() == cutOver || r.GetPhase() == forwarding
	})
	// Given up, or not: the writes that waited pass, and another call brings it to its end.
	load.passes(t)
	eventually(t, patience, "cut-over", func() error {
		_, err := api.CutOver(t.Context(), &controllerv1.CutOverRequest{})
		if err != nil {
			return err
		}
		top, err := blue.Topology(t.Context())
		if err == nil && top.GetReplication().GetPhase() != cutOver {
			err = fmt.Errorf("%v", top.GetReplication())
		}
		return err
	})
	load.passes(t)
	t.Logf("clients write to the target %v after the call", time.Since(began).Round(time.Millisecond))
	blue.restart(t)
	blue.until(t, "the cut-over outlives the controller", func(r *controllerv1.ClusterReplicationTopology) bool { return r.GetPhase() == cutOver })
	load.passes(t)
	load.end()
	for _, n := range green.Nodes {
		if err := load.arrived(n.Addr); err != nil {
			t.Errorf("at the target: %v", err)
		}
	}

	// And back, without what was written since.
	spec(false)
	api = blue.admin(t)
	if _, err := api.RollBack(t.Context(), &controllerv1.RollBackRequest{}); reasonOf(err) != "writes_at_target" {
		t.Errorf("roll-back: %v", err)
	}
	if _, err := api.RollBack(t.Context(), &controllerv1.RollBackRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	blue.until(t, "rolled back", func(r *controllerv1.ClusterReplicationTopology) bool { return r.GetPhase() == noPhase })
	for _, n := range blue.Nodes {
		eventually(t, patience, "node answers by itself", func() error {
			if st := agentStatus(t, n).GetFlared().GetClusterReplication(); st != nil {
				return fmt.Errorf("%v", st)
			}
			return nil
		})
	}
	if err := client(blue.Nodes[0].Addr).Set(&memcache.Item{Key: "own", Value: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Get("own"); !errors.Is(err, memcache.ErrCacheMiss) {
		t.Errorf("a write after the roll-back is at the target: %v", err)
	}
}
