package procs

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// handOver asks a node's agent to give the node's mastership away.
func handOver(t *testing.T, n *Node, req *agentv1.HandoverRequest) (*agentv1.Handover, error) {
	t.Helper()
	conn, err := grpc.NewClient(n.AgentAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 60*time.Second)
	defer cancel()
	r, err := agentv1.NewAgentServiceClient(conn).Handover(ctx, req)
	return r.GetHandover(), err
}

// reasonOf returns the machine-readable reason of a refused call.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return fmt.Sprint(err)
}

func otherNode(c *Cluster, n *Node) *Node {
	for _, o := range c.Nodes {
		if o != n {
			return o
		}
	}
	return nil
}

func waitReady(t *testing.T, c *Cluster) {
	t.Helper()
	ready, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
}

// waitLog waits until a process has logged a text so many times.
func waitLog(t *testing.T, p *Process, text string, times int) {
	t.Helper()
	eventually(t, patience, p.Name+" logs "+text, func() error {
		log, err := os.ReadFile(p.LogFile)
		if got := strings.Count(string(log), text); err != nil || got < times {
			return fmt.Errorf("%d times, %v", got, err)
		}
		return nil
	})
}

// A writeLoad writes from several clients, each keys of its own, and knows what was
// acknowledged.
type writeLoad struct {
	stop    chan struct{}
	wg      sync.WaitGroup
	mu      sync.Mutex
	acked   map[string]string
	writes  int
	slowest time.Duration
	failed  []error
}

func startWrites(t *testing.T, clients int, nodes ...*Node) *writeLoad {
	l := &writeLoad{stop: make(chan struct{}), acked: map[string]string{}}
	for w := range clients {
		addr := nodes[w%len(nodes)].Addr
		l.wg.Go(func() {
			m := client(addr)
			defer m.Close()
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				k, v := fmt.Sprintf("load:%d:%d", w, i%200), fmt.Sprintf("value %d of %d", i, w)
				began := time.Now()
				err := m.Set(&memcache.Item{Key: k, Value: []byte(v)})
				took := time.Since(began)
				l.mu.Lock()
				if l.writes++; err == nil {
					l.acked[k] = v
				} else {
					delete(l.acked, k) // either value may stand from now on
					l.failed = append(l.failed, fmt.Errorf("write %d of client %d at %s: %w", i, w, addr, err))
				}
				l.slowest = max(l.slowest, took)
				l.mu.Unlock()
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

// more waits for so many further writes.
func (l *writeLoad) more(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.writes
	}
	want := count() + n
	eventually(t, patience, "more writes", func() error {
		if got := count(); got < want {
			return fmt.Errorf("%d, want %d", got, want)
		}
		return nil
	})
}

func (l *writeLoad) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

// check reads everything that was acknowledged through every node.
func (l *writeLoad) check(t *testing.T, c *Cluster) {
	t.Helper()
	if len(l.acked) == 0 {
		t.Error("nothing was acknowledged")
	}
	for _, n := range c.Nodes {
		m := client(n.Addr)
		for k, v := range l.acked {
			if item, err := m.Get(k); err != nil || string(item.Value) != v {
				t.Fatalf("get %s through %s: %v, %v; acknowledged was %q", k, n.Addr, item, err, v)
			}
		}
		m.Close()
	}
}

// samePosition waits until both nodes of a partition are at the same position.
func samePosition(t *testing.T, a, b *Node) {
	t.Helper()
	eventually(t, patience, "the same position", func() error {
		x, y := agentStatus(t, a).GetFlared().GetLsn(), agentStatus(t, b).GetFlared().GetLsn()
		if x.GetEpoch() != y.GetEpoch() || x.GetIndex() != y.GetIndex() {
			return fmt.Errorf("%v and %v", x, y)
		}
		return nil
	})
}

// TestHandoverBackAndForth hands a mastership over twenty times under the writes of
// eight clients: none of them sees an error, and no data is copied.
func TestHandoverBackAndForth(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	from := master(t, c, 0)
	to := otherNode(c, from)

	// What is refused, or only tried, changes nothing.
	before, err := c.Topology(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		at     *Node
		target string
		want   string
	}{{to, "", "not_master"}, {from, from.Addr, "target_not_in_sync"}, {from, "nobody:1", "target_not_in_sync"}} {
		if _, err := handOver(t, tt.at, &agentv1.HandoverRequest{Target: tt.target}); err == nil || reasonOf(err) != tt.want {
			t.Errorf("handover to %q: %v, want %s", tt.target, err, tt.want)
		}
	}
	if h, err := handOver(t, from, &agentv1.HandoverRequest{DryRun: true}); err != nil || h.GetTo() != to.Addr || h.GetEpoch() != 0 {
		t.Errorf("dry run: %v, %v", h, err)
	}
	if after, err := c.Topology(t.Context()); err != nil || after.MapVersion != before.MapVersion {
		t.Errorf("map %d, then %d: %v", before.MapVersion, after.GetMapVersion(), err)
	}

	load := startWrites(t, 8, c.Nodes...)
	var longest, sum time.Duration
	const rounds = 20
	late := 0
	for i := 0; i < rounds; i++ {
		load.more(t, 50)
		h, err := handOver(t, from, &agentv1.HandoverRequest{})
		if err != nil && reasonOf(err) == "deadline" && late < rounds {
			// The machine had no time, so that writes would have waited for too long.
			t.Logf("handover %d: %v", i, err)
			late++
			i--
			continue
		}
		if err != nil {
			t.Fatalf("handover %d: %v", i, err)
		}
		paused := h.GetPaused().AsDuration()
		longest, sum = max(longest, paused), sum+paused
		if h.GetFrom() != from.Addr || h.GetTo() != to.Addr || h.GetEpoch() != before.Partitions[0].Epoch+uint64(i)+1 {
			t.Errorf("handover %d: %v", i, h)
		}
		waitReady(t, c)
		if m := master(t, c, 0); m != to {
			t.Fatalf("after handover %d the master is %s, want %s", i, m.Addr, to.Addr)
		}
		from, to = to, from
	}
	load.more(t, 50)
	load.end()
	if len(load.failed) > 0 {
		t.Errorf("%d of %d writes failed, the first one: %v", len(load.failed), load.writes, load.failed[0])
	}
	samePosition(t, from, to)
	load.check(t, c)
	for _, n := range c.Nodes {
		// The agents learn of it a moment later.
		eventually(t, patience, "status", func() error {
			s := agentStatus(t, n).GetFlared()
			counts := s.GetCatchUpCounts()
			switch {
			case counts.GetCheckpoint()+counts.GetDump() > min(1, counts.GetCheckpoint()): // the one when it was new
				return fmt.Errorf("catch-ups %v, want the log only", counts)
			case counts.GetWal() < rounds/2:
				return fmt.Errorf("catch-ups %v", counts)
			case s.GetHandovers()-s.GetHandoversFailed() != rounds/2 || s.GetHandoversFailed() > uint64(late) || s.GetLastHandover().GetReason() != "":
				return fmt.Errorf("%d handovers, %d failed, last %v", s.GetHandovers(), s.GetHandoversFailed(), s.GetLastHandover())
			}
			return nil
		})
	}
	t.Logf("%d writes without an error in %d handovers; paused %v at most, %v on average; the slowest write took %v",
		load.writes, rounds, longest, (sum / rounds).Round(time.Microsecond), load.slowest)
}

// TestHandoverTargetKilled kills the replica while it gets the rest: the role stays
// where it is, and writes go on.
func TestHandoverTargetKilled(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	from := master(t, c, 0)
	to := otherNode(c, from)
	load := startWrites(t, 4, from)
	load.more(t, 200)
	// It reads and acknowledges nothing any more, so that it cannot drain.
	if err := to.Flared.Freeze(); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := handOver(t, from, &agentv1.HandoverRequest{Target: to.Addr})
		result <- err
	}()
	waitLog(t, from.Flared, "handing over", 1)
	to.Flared.Kill()
	if err := <-result; err == nil || reasonOf(err) != "target_not_in_sync" && reasonOf(err) != "deadline" {
		t.Errorf("handover to a killed node: %v", err)
	}
	load.more(t, 200)
	if m := master(t, c, 0); m != from {
		t.Errorf("the master is %s, want %s still", m.Addr, from.Addr)
	}
	if err := to.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	load.end()
	if len(load.failed) > 0 {
		t.Errorf("%d of %d writes failed, the first one: %v", len(load.failed), load.writes, load.failed[0])
	}
	load.check(t, c)
	eventually(t, patience, "status", func() error {
		if h := agentStatus(t, from).GetFlared().GetLastHandover(); h.GetReason() == "" {
			return fmt.Errorf("%v", h)
		}
		return nil
	})
}

// TestHandoverControllerKilled ends the controller after it was asked and before it
// has answered: nobody writes until another one tells, and nothing is lost.
func TestHandoverControllerKilled(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	from := master(t, c, 0)
	to := otherNode(c, from)
	load := startWrites(t, 4, c.Nodes...)
	load.more(t, 200)
	if err := c.Controller.Freeze(); err != nil {
		t.Fatal(err)
	}
	type outcome struct {
		h   *agentv1.Handover
		err error
	}
	result := make(chan outcome, 1)
	go func() {
		h, err := handOver(t, from, &agentv1.HandoverRequest{})
		result <- outcome{h, err}
	}()
	waitLog(t, from.Flared, "asking the index", 1)
	c.Controller.Kill()
	if err := c.Controller.Start(); err != nil {
		t.Fatal(err)
	}
	r := <-result
	switch {
	case r.err == nil && r.h.GetTo() == to.Addr:
		// The connection broke with the question under way, so it was asked again.
	case reasonOf(r.err) == "index_unreachable":
		// It broke before: nothing was in doubt.
	default:
		t.Errorf("handover: %v, %v", r.h, r.err)
	}
	waitReady(t, c)
	load.more(t, 200)
	load.end()
	for _, err := range load.failed {
		// Some waited for longer than a write waits for a master; they were not executed.
		if !strings.Contains(err.Error(), "proxy failure") {
			t.Errorf("%v", err)
		}
	}
	samePosition(t, from, to)
	load.check(t, c)
	t.Logf("outcome %v, %v; %d of %d writes were not taken", r.h, r.err, len(load.failed), load.writes)
}

// TestMinInSync asks for two nodes in sync: with one of them gone writes are refused
// with the reason, and reads go on; when it is back, so are the writes.
func TestMinInSync(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2, Spec: "    minInSync: 2\n"})
	m := master(t, c, 0)
	replica := otherNode(c, m)
	cl := client(m.Addr)
	defer cl.Close()
	set := func() error { return cl.Set(&memcache.Item{Key: "k", Value: []byte("v")}) }
	eventually(t, patience, "a write", set)
	replica.Flared.Kill()
	eventually(t, patience, "a refusal", func() error {
		if err := set(); err == nil || !strings.Contains(err.Error(), "not_enough_in_sync: 1 of 2 nodes are in sync") {
			return fmt.Errorf("set: %v", err)
		}
		return nil
	})
	for range 20 {
		if item, err := cl.Get("k"); err != nil || string(item.Value) != "v" {
			t.Fatalf("get: %v, %v", item, err)
		}
	}
	// What an agent knows of its flared is as old as the last status that it was sent.
	minInSync := func(want uint32) {
		t.Helper()
		eventually(t, patience, "min_in_sync in the status of the agent", func() error {
			if s := agentStatus(t, m).GetFlared(); s.GetMinInSync() != want {
				return fmt.Errorf("%d, want %d", s.GetMinInSync(), want)
			}
			return nil
		})
	}
	minInSync(2)
	if err := replica.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "writes are taken again", set)
	waitReady(t, c)

	// Without the demand the master goes on alone.
	if err := c.WriteSpec("    minInSync: 1\n"); err != nil {
		t.Fatal(err)
	}
	minInSync(1)
	replica.Flared.Kill()
	eventually(t, patience, "a write", set)
}
