package index

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// observed collects what a broadcaster reports.
type observed struct {
	mu     sync.Mutex
	inputs []core.Input
}

func (o *observed) add(in core.Input) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inputs = append(o.inputs, in)
}

func (o *observed) outcomes(key string) map[core.PingOutcome]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := map[core.PingOutcome]int{}
	for _, in := range o.inputs {
		if p, ok := in.(core.Pinged); ok && p.Key == key {
			m[p.Outcome]++
		}
	}
	return m
}

func newTestBroadcaster(t *testing.T, o *observed, tunes ...func(*BroadcasterConfig)) *Broadcaster {
	cfg := BroadcasterConfig{
		Observe: o.add, PingInterval: 20 * time.Millisecond, PingTimeout: 100 * time.Millisecond,
		PushTimeout: 100 * time.Millisecond, PriorWait: 300 * time.Millisecond,
	}
	for _, tune := range tunes {
		tune(&cfg)
	}
	b := NewBroadcaster(cfg)
	t.Cleanup(b.Close)
	return b
}

// patient has nobody taken for silent who has no time.
func patient(c *BroadcasterConfig) { c.PushTimeout, c.PriorWait = time.Minute, time.Minute }

func update(version uint64, nodes ...*node) core.MapUpdate {
	var u core.MapUpdate
	for _, n := range nodes {
		u.Map.Nodes = append(u.Map.Nodes, topology.Node{Name: n.name, Port: n.port, Partition: -1, Role: topology.Proxy, ThreadType: 16})
	}
	u.Map = topology.NewMap(version, u.Map.Nodes)
	return u
}

func hears(t *testing.T, n *node, version uint64) time.Time {
	t.Helper()
	var at time.Time
	eventually(t, fmt.Sprintf("version %d arrives at %s", version, n.key), func() error {
		m, when := n.last()
		if m.Version != version {
			return fmt.Errorf("version %d", m.Version)
		}
		at = when
		return nil
	})
	return at
}

// TestPriorNodes lets a node hear first, and the others when it has answered, or
// when it takes too long.
func TestPriorNodes(t *testing.T) {
	b := newTestBroadcaster(t, &observed{}, patient)
	first, second := startNode(t), startNode(t)
	b.Publish(update(1, first, second))
	hears(t, first, 1)
	hears(t, second, 1)

	u := update(2, first, second)
	u.Prior = []string{first.key}
	b.Publish(u)
	if a, z := hears(t, first, 2), hears(t, second, 2); z.Before(a) {
		t.Errorf("the other heard %v earlier", a.Sub(z))
	}

	b.Close()
	b = newTestBroadcaster(t, &observed{})
	first.behave(func(string) string { return "" })
	u = update(3, first, second)
	u.Prior = []string{first.key}
	begin := time.Now()
	b.Publish(u)
	if took := hears(t, second, 3).Sub(begin); took < 250*time.Millisecond {
		t.Errorf("with a silent first node the other heard after %v, want 300ms", took)
	}
}

// TestLatestMapWins publishes many maps while a node is slow: it hears few of
// them, the last among them, and never one after a later one.
func TestLatestMapWins(t *testing.T) {
	b := newTestBroadcaster(t, &observed{}, patient)
	n := startNode(t)
	published := make(chan struct{})
	n.behave(func(string) string {
		<-published
		return "OK\r\n"
	})
	for v := range uint64(200) {
		b.Publish(update(v+1, n))
	}
	close(published)
	hears(t, n, 200)
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := 1; i < len(n.maps); i++ {
		if n.maps[i].Map.Version < n.maps[i-1].Map.Version {
			t.Errorf("version %d after %d", n.maps[i].Map.Version, n.maps[i-1].Map.Version)
		}
	}
	if len(n.maps) > 2 {
		t.Errorf("it heard %d maps", len(n.maps))
	}
}

// TestLeavingNodeIsNotTold leaves a node out that is going.
func TestLeavingNodeIsNotTold(t *testing.T) {
	b := newTestBroadcaster(t, &observed{})
	stays, goes := startNode(t), startNode(t)
	b.Publish(update(1, stays, goes))
	hears(t, goes, 1)
	u := update(2, stays, goes)
	u.Except = []string{goes.key}
	b.Publish(u)
	hears(t, stays, 2)
	if m, _ := goes.last(); m.Version != 1 {
		t.Errorf("the leaving node heard version %d", m.Version)
	}
}

// TestPingOutcomes tells the ways apart in which a ping can end.
func TestPingOutcomes(t *testing.T) {
	for _, tt := range []struct {
		answer string
		want   core.PingOutcome
	}{
		{"OK\r\n", core.PingOK},
		{"OK\n", core.PingOK},
		{"OK text\r\n", core.PingBad},
		{"ok\r\n", core.PingBad},
		{"SERVER_ERROR storage error\r\n", core.PingBad},
		{"close", core.PingRefused},
		{"", core.PingTimeout},
		{"gone", core.PingRefused},
	} {
		t.Run(fmt.Sprintf("%q", tt.answer), func(t *testing.T) {
			o := &observed{}
			b := newTestBroadcaster(t, o)
			n := startNode(t)
			b.Publish(update(1, n))
			hears(t, n, 1)
			if tt.answer == "gone" {
				n.kill()
			} else {
				n.behave(func(string) string { return tt.answer })
			}
			eventually(t, "outcome "+string(tt.want), func() error {
				if m := o.outcomes(n.key); m[tt.want] < 3 {
					return fmt.Errorf("%v", m)
				}
				return nil
			})
			for outcome, count := range o.outcomes(n.key) {
				if outcome != tt.want && outcome != core.PingOK {
					t.Errorf("%d times %s", count, outcome)
				}
			}
		})
	}
}
