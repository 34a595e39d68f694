package procs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
	"github.com/flarekv/flare/proto/topology"
)

// A steady load writes one key after the other until it is stopped.
type steady struct {
	stop func()

	mu    sync.Mutex
	acked map[string]string
	errs  []error
	last  time.Time // when the last write that was acknowledged was sent
}

func startSteady(addr, prefix string) *steady {
	l := &steady{acked: map[string]string{}}
	stop, done := make(chan struct{}), make(chan struct{})
	l.stop = sync.OnceFunc(func() { close(stop); <-done })
	go func() {
		defer close(done)
		m := client(addr)
		defer m.Close()
		pause := time.NewTicker(2 * time.Millisecond)
		defer pause.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-pause.C:
			}
			k, v := fmt.Sprintf("%s:%d", prefix, i), fmt.Sprint("value ", i)
			began := time.Now()
			err := m.Set(&memcache.Item{Key: k, Value: []byte(v)})
			l.mu.Lock()
			if err != nil {
				l.errs = append(l.errs, fmt.Errorf("%s: %w", k, err))
			} else {
				l.acked[k], l.last = v, began
			}
			l.mu.Unlock()
		}
	}()
	return l
}

// state returns how many writes were acknowledged, when the last of them was sent,
// and the last error.
func (l *steady) state() (acked int, last time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.errs); n > 0 {
		err = l.errs[n-1]
	}
	return len(l.acked), l.last, err
}

// check fails the test if a write failed, or if one that was acknowledged is not
// there.
func (l *steady) check(t *testing.T, addr string, failures bool) {
	t.Helper()
	l.stop()
	if !failures && len(l.errs) > 0 {
		t.Errorf("%d of %d writes failed, the first: %v", len(l.errs), len(l.errs)+len(l.acked), l.errs[0])
	}
	if len(l.acked) == 0 {
		t.Error("nothing was acknowledged")
	}
	m := client(addr)
	defer m.Close()
	for k, v := range l.acked {
		if item, err := m.Get(k); err != nil || string(item.Value) != v {
			t.Fatalf("get %s through %s: %v, %v; acknowledged was %q", k, addr, item, err, v)
		}
	}
}

// statsOf asks a node for what its statistics say.
func statsOf(addr string) (map[string]string, error) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(c, "stats\r\n")
	m := map[string]string{}
	r := bufio.NewScanner(c)
	for r.Scan() && r.Text() != "END" {
		if f := strings.Fields(r.Text()); len(f) == 3 {
			m[f[1]] = f[2]
		}
	}
	return m, r.Err()
}

// waitLease waits until a node's lease is in a state and of a source, if one is given.
func waitLease(t *testing.T, n *Node, state, source string) {
	t.Helper()
	eventually(t, patience, "lease "+state+" by "+source, func() error {
		s, err := statsOf(n.Addr)
		if err == nil && (s["lease_state"] != state || source != "" && s["lease_source"] != source) {
			err = fmt.Errorf("%s by %s", s["lease_state"], s["lease_source"])
		}
		return err
	})
}

// lostLease reports whether a write failed because its node had no lease.
func lostLease(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "read only (no lease)") || strings.Contains(err.Error(), "lease_lost"))
}

// stall is how long a machine stands still that cannot be expected to renew a lease.
const stall = topology.LeaseTTL / 4

// watchClock returns a function that tells for how long at most this process, and so
// perhaps any other, was not given the processor.
func watchClock(t *testing.T) (longest func() time.Duration) {
	var most atomic.Int64
	go func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-t.Context().Done():
				return
			case <-tick.C:
			}
			now := time.Now()
			most.Store(max(most.Load(), int64(now.Sub(last))))
			last = now
		}
	}()
	return func() time.Duration { return time.Duration(most.Load()) }
}

func replicaOf(c *Cluster, m *Node) *Node {
	for _, n := range c.Nodes {
		if n != m {
			return n
		}
	}
	return nil
}

// TestWritesWithoutController stops the controller's process, ends it, and ends an
// agent: for each of it longer than a lease lasts, the replicas keep the master
// writing, and no write fails. Only if the machine stood still can a lease have ended.
func TestWritesWithoutController(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	m := master(t, c, 0)
	waitLease(t, m, "held", "controller")
	still := watchClock(t)
	l := startSteady(m.Addr, "alone")
	defer l.stop()
	excused := func(err error) bool { return lostLease(err) && still() >= stall }

	if err := c.Controller.Freeze(); err != nil {
		t.Fatal(err)
	}
	defer c.Controller.Thaw()
	waitLease(t, m, "held", "failsafe")
	frozen := time.Now()
	goesOn := func(what string, from time.Time, atLeast time.Duration) {
		t.Helper()
		eventually(t, atLeast+patience, what, func() error {
			if _, last, err := l.state(); err != nil && !excused(err) {
				t.Fatalf("%s: %v", what, err)
			} else if last.Sub(from) < atLeast {
				return fmt.Errorf("the last write was %v after that", last.Sub(from))
			}
			return nil
		})
	}
	goesOn("writes with a frozen controller", frozen, topology.LeaseTTL+time.Second)
	c.Controller.Kill()
	goesOn("writes without a controller", frozen, 2*topology.LeaseTTL+time.Second)
	waitLease(t, m, "held", "failsafe")
	if err := c.Controller.Start(); err != nil {
		t.Fatal(err)
	}
	waitLease(t, m, "held", "controller")

	m.Agent.Kill()
	waitLease(t, m, "held", "failsafe")
	goesOn("writes without an agent", time.Now(), topology.LeaseTTL+time.Second)
	if err := m.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	waitLease(t, m, "held", "controller")
	if now := master(t, c, 0); now != m {
		t.Errorf("the master changed from %s to %s", m.Addr, now.Addr)
	}
	_, _, failed := l.state()
	l.check(t, replicaOf(c, m).Addr, excused(failed))
}

// TestFrozenMaster stops a master's process: another one takes its place, but not
// before its lease has ended. When it goes on it takes no write of those that have
// waited for it, and becomes a replica.
func TestFrozenMaster(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	m := master(t, c, 0)
	other := replicaOf(c, m)
	waitLease(t, m, "held", "controller")
	l := startSteady(other.Addr, "frozen")
	defer l.stop()
	eventually(t, patience, "some load", func() error {
		if n, _, err := l.state(); n < 50 {
			return fmt.Errorf("%d writes, %v", n, err)
		}
		return nil
	})

	waiting, err := net.DialTimeout("tcp", m.Addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	frozen := time.Now()
	s, err := statsOf(m.Addr)
	if err != nil {
		t.Fatal(err)
	}
	left, err := time.ParseDuration(s["lease_remaining_ms"] + "ms")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Flared.Freeze(); err != nil {
		t.Fatal(err)
	}
	defer m.Flared.Thaw()
	const late = 20
	for i := range late {
		fmt.Fprintf(waiting, "set late:%d 0 0 4 async\r\nlate\r\n", i)
	}
	eventually(t, patience, "another master", func() error {
		top, err := c.Topology(t.Context())
		if err == nil && top.Partitions[0].Master != other.Addr {
			err = errors.New("the master is " + top.Partitions[0].Master)
		}
		return err
	})
	took := time.Since(frozen)
	waitLease(t, other, "held", "controller")
	t.Logf("failover %v after the master was frozen, the lease of the new one %v after that", took, time.Since(frozen)-took)
	if took < left {
		t.Errorf("failover %v after the master was frozen: its lease was to last %v", took, left)
	}
	written, _, _ := l.state()
	eventually(t, patience, "writes go on", func() error {
		if n, _, err := l.state(); n < written+50 {
			return fmt.Errorf("%d writes since, %v", n-written, err)
		}
		return nil
	})

	if err := m.Flared.Thaw(); err != nil {
		t.Fatal(err)
	}
	refused, stored := 0, 0
	waiting.SetReadDeadline(time.Now().Add(patience))
	r := bufio.NewScanner(waiting)
	cl := client(other.Addr)
	defer cl.Close()
	for i := range late {
		if !r.Scan() {
			t.Fatalf("answer %d: %v", i, r.Err())
		}
		switch answer := r.Text(); answer {
		case "SERVER_ERROR read only (no lease)":
			refused++
		case "STORED":
			// Only if it had heard already who is master, and asked there.
			stored++
			if _, err := cl.Get(fmt.Sprint("late:", i)); err != nil {
				t.Errorf("a master without a lease has taken write %d: %v", i, err)
			}
		default:
			t.Errorf("answer %d: %q", i, answer)
		}
	}
	t.Logf("of %d writes that waited %d were refused and %d forwarded", late, refused, stored)
	ready, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
	if now := master(t, c, 0); now != other {
		t.Errorf("the master is %s again", now.Addr)
	}
	l.check(t, m.Addr, true)
}

// TestMasterAlone takes a master everybody who could renew its lease: it writes until
// the lease ends, and not longer. It answers reads as the option says.
func TestMasterAlone(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "flared.conf")
	set := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	set("read-without-lease = true\n")
	c := start(t, Options{Partitions: 1, Replicas: 2, ReplicationMode: "async", FlaredArgs: []string{"--config=" + config}})
	m := master(t, c, 0)
	waitLease(t, m, "held", "controller")
	if err := client(m.Addr).Set(&memcache.Item{Key: "k", Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	still := watchClock(t)
	l := startSteady(m.Addr, "lonely")
	defer l.stop()
	c.Controller.Kill()
	m.Agent.Kill()
	replicaOf(c, m).Flared.Kill()
	alone := time.Now()
	eventually(t, patience, "writes are refused", func() error {
		_, _, err := l.state()
		if err == nil {
			return errors.New("they are not")
		}
		return nil
	})
	l.stop()
	_, last, err := l.state()
	if !lostLease(err) {
		t.Errorf("refused with %v", err)
	}
	if d := last.Sub(alone); d > topology.LeaseTTL || d <= 0 && still() < stall {
		t.Errorf("the last write was taken %v after the master was alone", d)
	}
	waitLease(t, m, "lost", "")
	s, err := statsOf(m.Addr)
	if err != nil || s["lease_refused_writes"] == "0" || s["lease_remaining_ms"] != "0" {
		t.Errorf("stats: %v, %v", s, err)
	}
	if item, err := client(m.Addr).Get("k"); err != nil || string(item.Value) != "v" {
		t.Errorf("a read without a lease: %v, %v", item, err)
	}
	set("read-without-lease = false\n")
	if err := m.Flared.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "reads are refused", func() error {
		_, err := client(m.Addr).Get("k")
		if err == nil || !strings.Contains(err.Error(), "no lease") {
			return fmt.Errorf("answered with %v", err)
		}
		return nil
	})

	// All comes back, and so does the lease.
	if err := c.Controller.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "writes are taken again", func() error {
		return client(m.Addr).Set(&memcache.Item{Key: "k", Value: []byte("again")})
	})
	if item, err := client(m.Addr).Get("k"); err != nil || string(item.Value) != "again" {
		t.Errorf("a read with a lease: %v, %v", item, err)
	}
	if err := replicaOf(c, m).Flared.Start(); err != nil {
		t.Fatal(err)
	}
	ready, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.WaitFor(ready, func(top *controllerv1.Topology) bool {
		return len(top.Partitions[0].InSyncReplicas) == 1
	}); err != nil {
		t.Fatal(err)
	}
}
