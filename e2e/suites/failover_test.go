//go:build e2e

package suites

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

var errKeepWriting = errors.New("still measuring")

// TestFailover measures: the master's pod of a partition is deleted without
// grace ten times; each time from just before the deletion until the first
// write that succeeds through the client Service.
func TestFailover(t *testing.T) {
	c := install(t)
	probe := keyOf(0)
	var took []time.Duration
	for range 10 {
		c.eventually(90*time.Second, "healthy", c.healthy)
		victim := c.masterPod(0)
		uid := c.pods()[victim].Metadata.UID
		addr := c.service()
		start := time.Now()
		deleted := make(chan error, 1)
		go func() {
			_, err := c.try("kubectl", "-n", namespace, "delete", "pod", victim, "--grace-period=0", "--force", "--wait=false")
			deleted <- err
		}()
		// From here on every write is tried; those before the death of the old
		// master succeed too, so the interruption is the longest gap.
		last, longest := start, time.Duration(0)
		c.eventually(60*time.Second, "the new master takes writes", func() error {
			m := client(addr)
			m.Timeout = time.Second
			err := m.Set(&memcache.Item{Key: probe, Value: []byte(time.Now().String())})
			m.Close()
			now := time.Now()
			if err == nil {
				longest = max(longest, now.Sub(last))
				last = now
				if now.Sub(start) > 8*time.Second {
					return nil
				}
				return errKeepWriting
			}
			return err
		})
		if err := <-deleted; err != nil {
			t.Fatal(err)
		}
		if p := c.pods()[victim]; p.Metadata.UID == uid {
			t.Fatalf("%s was not replaced", victim)
		}
		took = append(took, longest)
		t.Logf("%s killed: longest time without a successful write %.2f s", victim, longest.Seconds())
	}
	slices.Sort(took)
	t.Logf("10 kills: min %.2f s, median %.2f s, max %.2f s", took[0].Seconds(), took[len(took)/2].Seconds(), took[len(took)-1].Seconds())
}
