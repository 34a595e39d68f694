package replication

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/storage"
)

// TestAcknowledgedWritesSurviveFailovers writes to whoever takes itself for the
// master while masters are replaced by in-sync replicas, connections are cut
// and old masters go on for a while without knowing.
func TestAcknowledgedWritesSurviveFailovers(t *testing.T) {
	keys := []string{"a:1", "b:1", "c:1"}
	c := newCluster(t, keys...)
	others := func(key string) (o []string) {
		for _, k := range keys {
			if k != key {
				o = append(o, k)
			}
		}
		return o
	}
	master := "a:1"
	epoch := uint64(1)
	c.nodes[master].lead(epoch, others(master)...)
	for _, k := range others(master) {
		c.nodes[k].follow(c.nodes[master])
	}

	// Writers try every node, each its own keys, and note what was answered well.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	answered := map[string]bool{}
	var writers sync.WaitGroup
	for w, target := range []string{"a:1", "b:1", "c:1", "a:1", "b:1", "c:1"} {
		writers.Go(func() {
			n := c.nodes[target]
			for i := 0; ctx.Err() == nil; i++ {
				if !n.src.leads() {
					select {
					case <-ctx.Done():
					case <-time.After(time.Millisecond):
					}
					continue
				}
				key := fmt.Sprintf("w%d-%d", w, i)
				lsn, err := n.db.Update(ctx, []byte(key), func(storage.Entry) storage.Change {
					return storage.Change{Op: storage.Put, Record: storage.Record{Value: []byte("v")}}
				})
				if err == nil {
					err = n.src.Wait(ctx, lsn)
				}
				if err == nil {
					mu.Lock()
					answered[key] = true
					mu.Unlock()
				} else if !errors.Is(err, ErrNotMaster) && !errors.Is(err, ErrTimeout) && !errors.Is(err, context.Canceled) && !errors.Is(err, storage.ErrNotBegun) {
					t.Errorf("%s: %v", target, err)
				}
			}
		})
	}

	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(answered)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 8 {
		// Let it get somewhere.
		before := count()
		waitFor(t, "writes are answered", func() bool { return count() >= before+50 })
		var next string
		waitFor(t, "somebody is in sync", func() bool {
			c.nodes[master].remap(epoch, others(master)...)
			c.index.set(func() {
				var active []string
				for _, k := range others(master) {
					if c.index.active[k] {
						active = append(active, k)
					}
				}
				if len(active) > 0 {
					next = active[r.IntN(len(active))]
				}
			})
			return next != ""
		})
		old := master
		if round%2 == 0 {
			c.nodes[old].disconnect(true) // it cannot be reached any more, nor knows why
		}
		promoted := false
		c.index.set(func() {
			if promoted = c.index.active[next]; promoted {
				epoch++
				c.index.epoch = epoch
				c.index.active[next], c.index.active[old] = false, false
				clear(c.index.floor)
			}
		})
		if !promoted { // left behind at the last moment
			c.nodes[old].disconnect(false)
			continue
		}
		master = next
		c.nodes[master].lead(epoch, others(master)...)
		for _, k := range others(master) {
			if k != old {
				c.nodes[k].follow(c.nodes[master])
			}
		}
		if round%3 != 0 { // the old one learns of it late
			after := count()
			waitFor(t, "the new master answers", func() bool { return count() >= after+10 })
		}
		c.nodes[old].src.StepDown()
		c.nodes[old].disconnect(false)
		c.nodes[old].follow(c.nodes[master])
	}
	cancel()
	writers.Wait()
	for _, k := range others(master) {
		c.nodes[k].reached(c.nodes[master])
	}
	lost := 0
	for key := range answered {
		for _, k := range keys {
			if c.nodes[k].get(key) != "v" {
				lost++
			}
		}
	}
	if lost > 0 || epoch < 4 {
		t.Errorf("%d of %d answered writes lost, last epoch %d", lost, len(answered), epoch)
	}
	t.Logf("%d writes answered in %d epochs", len(answered), epoch)
}

// leads reports whether the source leads.
func (s *Source) leads() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop != nil
}
