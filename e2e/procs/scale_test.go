package procs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
	"github.com/flarekv/flare/proto/topology"
)

// Clients write all the time, each writer its own keys, and remember for each what
// may be found under it: what was acknowledged last, and what was not answered since.
type clients struct {
	stop    chan struct{}
	writers sync.WaitGroup
	keys    []map[string][]string // by writer; nil for a deleted key's value is ""
	acked   atomic.Int64
	failed  atomic.Int64
}

const deleted = "(deleted)"

// startClients writes through nodes until end is called. Every tenth write is a delete,
// every third of a key that is not written again.
func startClients(t *testing.T, nodes []*Node, writers int) *clients {
	l := &clients{stop: make(chan struct{}), keys: make([]map[string][]string, writers)}
	for w := range writers {
		l.keys[w] = map[string][]string{}
		m := client(nodes[w%len(nodes)].Addr)
		l.writers.Go(func() {
			defer m.Close()
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				key := fmt.Sprintf("scale:%d:%d", w, i%200)
				if i%3 == 0 {
					key = fmt.Sprintf("scale:%d:once:%d", w, i)
				}
				value := fmt.Sprint("value ", i)
				var err error
				if i%10 == 9 {
					value = deleted
					if err = m.Delete(key); errors.Is(err, memcache.ErrCacheMiss) {
						err = nil
					}
				} else {
					err = m.Set(&memcache.Item{Key: key, Value: []byte(value)})
				}
				if err == nil {
					l.acked.Add(1)
					l.keys[w][key] = []string{value}
				} else {
					l.failed.Add(1)
					if l.keys[w][key] == nil {
						l.keys[w][key] = []string{deleted}
					}
					l.keys[w][key] = append(l.keys[w][key], value)
				}
			}
		})
	}
	t.Cleanup(func() {
		select {
		case <-l.stop:
		default:
			l.end()
		}
	})
	return l
}

func (l *clients) end() {
	close(l.stop)
	l.writers.Wait()
}

// more waits for some more acknowledged writes.
func (l *clients) more(t *testing.T, count int64) {
	t.Helper()
	from := l.acked.Load()
	eventually(t, 60*time.Second, "clients write", func() error {
		if n := l.acked.Load() - from; n < count {
			return fmt.Errorf("%d of %d writes", n, count)
		}
		return nil
	})
}

// check reads every key through a node.
func (l *clients) check(t *testing.T, n *Node) {
	t.Helper()
	m := client(n.Addr)
	defer m.Close()
	wrong := 0
	for _, keys := range l.keys {
		for key, may := range keys {
			item, err := m.Get(key)
			got := deleted
			switch {
			case err == nil:
				got = string(item.Value)
			case !errors.Is(err, memcache.ErrCacheMiss):
				t.Fatalf("get %s through %s: %v", key, n.Addr, err)
			}
			if !slices.Contains(may, got) {
				if wrong++; wrong <= 10 {
					t.Errorf("get %s through %s: %q, want one of %q", key, n.Addr, got, may)
				}
			}
		}
	}
	if wrong > 0 {
		t.Fatalf("%d keys are wrong", wrong)
	}
}

// partitionsOf tells how many of a node's own keys belong to each partition.
func partitionsOf(n *Node, partitions int) ([]int, error) {
	r, err := topology.NewResolver(topology.DefaultMeta())
	if err != nil {
		return nil, err
	}
	d, err := takeDump(n.Addr)
	if err != nil {
		return nil, err
	}
	list := make([]int, partitions)
	for key := range d.records {
		list[r.Partition([]byte(key), partitions)]++
	}
	return list, nil
}

// TestPartitionsAreAdded grows a cluster from one partition to three while clients
// write and delete. Nothing that was acknowledged is lost or comes back, and the
// keys that moved are removed where they were.
func TestPartitionsAreAdded(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2, Spec: "  scaleOut: {orphanPurge: {delaySeconds: 0}}\n"})
	l := startClients(t, c.Nodes[:2], 4)
	l.more(t, 2000)
	for range 4 {
		if _, err := c.AddNode(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Scale(3, 2); err != nil {
		t.Fatal(err)
	}
	settled(t, c)
	l.more(t, 500)
	l.end()
	t.Logf("%d writes were acknowledged, %d were not", l.acked.Load(), l.failed.Load())
	if l.failed.Load() > 0 {
		t.Errorf("%d writes failed while partitions were added; they should have waited", l.failed.Load())
	}
	for _, n := range c.Nodes {
		l.check(t, n)
	}
	eventually(t, 60*time.Second, "every node has the keys of its own partition only", func() error {
		top, err := c.Topology(t.Context())
		if err != nil {
			return err
		}
		for _, n := range top.Nodes {
			own, err := partitionsOf(c.NodeByAddr(n.Node), 3)
			if err != nil {
				return err
			}
			for p, count := range own {
				if (count > 0) != (p == int(n.GetPartition())) {
					return fmt.Errorf("%s, of partition %d, has %v keys of the partitions", n.Node, n.GetPartition(), own)
				}
			}
		}
		return nil
	})
	l.check(t, c.Nodes[0])
}

// TestGrowthSurvivesFailures adds a partition while the old master and then the
// controller die.
func TestGrowthSurvivesFailures(t *testing.T) {
	t.Parallel()
	// Slowly, so that there is something to interrupt.
	c := start(t, Options{Partitions: 1, Replicas: 2, FlaredArgs: []string{"--reconstruction-interval=2000"}})
	l := startClients(t, c.Nodes[:2], 2)
	l.more(t, 1000)
	for range 2 {
		if _, err := c.AddNode(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Scale(2, 2); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "the new partition is being filled", func() error {
		top, err := c.Topology(t.Context())
		if err != nil || top.GetGrowth().GetNode() == "" {
			return fmt.Errorf("growth %v, %v", top.GetGrowth(), err)
		}
		return nil
	})
	victim := master(t, c, 0)
	victim.Flared.Kill()
	eventually(t, 60*time.Second, "another master", func() error {
		if top, err := c.Topology(t.Context()); err != nil || top.Partitions[0].Master == "" || top.Partitions[0].Master == victim.Addr {
			return fmt.Errorf("%v, %v", top, err)
		}
		return nil
	})
	if err := victim.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	c.Controller.Kill()
	if err := c.Controller.Start(); err != nil {
		t.Fatal(err)
	}
	settled(t, c)
	l.more(t, 200)
	l.end()
	t.Logf("%d writes were acknowledged, %d were not", l.acked.Load(), l.failed.Load())
	for _, n := range c.Nodes {
		l.check(t, n)
	}
}

// TestReplicasAreRemoved scales in while masters are on the nodes that go: they hand
// over, and the nodes lose their duties. Then a node that stays is drained, and at
// last one comes back with an empty disk.
func TestReplicasAreRemoved(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 2, Replicas: 2})
	// The masters go.
	top, err := c.Topology(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var stay, gone []*Node
	for _, p := range top.Partitions {
		gone = append(gone, c.NodeByAddr(p.Master))
		stay = append(stay, c.NodeByAddr(p.InSyncReplicas[0]))
	}
	l := startClients(t, stay[:1], 2)
	l.more(t, 500)
	if err := c.WriteNodes(append(slices.Clone(stay), gone...)); err != nil {
		t.Fatal(err)
	}
	if err := c.Scale(2, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "the nodes that go have no duty", func() error {
		top, err := c.Topology(t.Context())
		if err != nil {
			return err
		}
		for _, n := range top.Nodes {
			if slices.Contains(gone, c.NodeByAddr(n.Node)) && n.Partition != nil {
				return fmt.Errorf("%v", n)
			}
		}
		return nil
	})
	log, err := os.ReadFile(c.Controller.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{`"reason":"handover"`, `"msg":"nodes wanted"`} {
		if !strings.Contains(string(log), what) {
			t.Errorf("nothing of %s in the controller's log", what)
		}
	}
	// Back to two, one of the nodes being drained: it may be a replica, not a master.
	if err := c.WriteNodes(append(slices.Clone(stay), gone...), stay[0]); err != nil {
		t.Fatal(err)
	}
	if err := c.Scale(2, 2); err != nil {
		t.Fatal(err)
	}
	settled(t, c)
	eventually(t, 60*time.Second, "the drained node is no master", func() error {
		top, err := c.Topology(t.Context())
		if err != nil {
			return err
		}
		for _, p := range top.Partitions {
			if p.Master == "" || p.Master == stay[0].Addr || len(p.InSyncReplicas) != 1 {
				return fmt.Errorf("%v", p)
			}
		}
		return nil
	})
	l.more(t, 100)
	// A node is replaced: the same name, an empty disk.
	replaced := stay[1]
	replaced.Flared.Kill()
	if err := os.RemoveAll(replaced.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := replaced.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	settled(t, c)
	l.more(t, 100)
	l.end()
	t.Logf("%d writes were acknowledged, %d were not", l.acked.Load(), l.failed.Load())
	for _, n := range c.Nodes {
		l.check(t, n)
	}
}

// settled waits until all partitions that are asked for have their replicas in sync.
func settled(t *testing.T, c *Cluster) {
	t.Helper()
	eventually(t, 120*time.Second, "every partition has its replicas in sync", func() error {
		top, err := c.Topology(t.Context())
		if err != nil {
			return err
		}
		if len(top.Partitions) != c.opts.Partitions || top.GetGrowth().GetNode() != "" || slices.ContainsFunc(top.Partitions, func(p *controllerv1.PartitionTopology) bool {
			return p.Master == "" || len(p.InSyncReplicas) < c.opts.Replicas-1
		}) {
			return fmt.Errorf("%v", top)
		}
		return nil
	})
}
