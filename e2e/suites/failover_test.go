//go:build e2e

package suites

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

var errKeepWriting = errors.New("still measuring")

// TestFailover measures: the master of a partition is taken away ten times, by
// each of two means; each time a client writes to that partition through the
// client Service without pause, and the longest time between two successful
// writes is the interruption.
func TestFailover(t *testing.T) {
	c := install(t)
	t.Run("pod deleted without grace", func(t *testing.T) {
		c.t = t
		c.measure(func(pod string) error {
			_, err := c.try("kubectl", "-n", namespace, "delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
			return err
		})
	})
	t.Run("flared killed", func(t *testing.T) {
		c.t = t
		c.measure(func(pod string) error {
			pid, err := flaredOf(pod)
			if err != nil {
				return err
			}
			return syscall.Kill(pid, syscall.SIGKILL)
		})
	})
	c.t = t
}

func (c *cluster) measure(kill func(pod string) error) {
	c.t.Helper()
	probe := keyOf(0)
	addr := c.service()
	var took []time.Duration
	for range 10 {
		c.eventually(120*time.Second, "healthy", c.healthy)
		victim := c.masterPod(0)
		start := time.Now()
		killed := make(chan error, 1)
		go func() { killed <- kill(victim) }()
		last, longest := start, time.Duration(0)
		c.eventually(60*time.Second, "the new master takes writes", func() error {
			m := client(addr)
			m.Timeout = time.Second
			defer m.Close()
			if err := m.Set(&memcache.Item{Key: probe, Value: []byte(time.Now().String())}); err != nil {
				return err
			}
			now := time.Now()
			longest = max(longest, now.Sub(last))
			last = now
			if now.Sub(start) < 5*time.Second {
				return errKeepWriting
			}
			return nil
		})
		if err := <-killed; err != nil {
			c.t.Fatal(err)
		}
		if now := c.masterPod(0); now == victim {
			c.t.Fatalf("%s is still the master", victim)
		}
		took = append(took, longest)
		c.t.Logf("%s: longest time without a successful write %.2f s", victim, longest.Seconds())
	}
	slices.Sort(took)
	c.t.Logf("10 times: min %.2f s, median %.2f s, max %.2f s", took[0].Seconds(), took[len(took)/2].Seconds(), took[len(took)-1].Seconds())
}

// flaredOf finds the process of a pod's flared: the nodes of the lab are
// namespaces of this machine.
func flaredOf(pod string) (pid int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	want := fmt.Appendf(nil, "/flared\x00--server-name=%s.flare-nodes.%s.", pod, namespace)
	for _, dir := range dirs {
		// A process that ends meanwhile is not the one.
		if line, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && bytes.HasPrefix(line, want) {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("no flared of %s runs on this machine", pod)
}
