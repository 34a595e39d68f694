//go:build e2e

package suites

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// TestBreaker loses two of three nodes, so that roles stay as they are until an
// operator overrides that, and until the nodes are back. Then it kills a master and, in
// the midst of its failover, the leading controller.
func TestBreaker(t *testing.T) {
	// Three controllers: one on each machine, so that another is there at once.
	c := install(t, "-f", smallValues, "--set", "partitions=1,replicas=3,controller.replicas=3")
	c.eventually(60*time.Second, "settled", c.settled(1, 3))
	l := c.startLoad(t)
	l.passes()
	var survivor string
	c.step(t, "two of three nodes are lost: open", func(t *testing.T) { survivor = c.testOpen(t, l) })
	c.step(t, "override", func(t *testing.T) { c.testOverride(t, l, survivor) })
	c.step(t, "the nodes are back: half-open, closed", func(t *testing.T) { c.testClose(t, l) })
	c.step(t, "the leading controller dies in mid-failover", func(t *testing.T) { c.testLeaderDies(t, l) })
}

// gone is a taint that keeps pods from being started on a machine. A cordon would make
// masters hand over.
const gone = "flare-e2e=gone:NoSchedule"

func (c *cluster) testOpen(t *testing.T, l *load) (survivor string) {
	top := c.topology()
	p := top.Partitions[0]
	master, other, survivor := podOf(p.Master), podOf(p.InSyncReplicas[0]), podOf(p.InSyncReplicas[1])
	pods := c.pods()
	var machines []string
	for _, pod := range []string{other, master} {
		machines = append(machines, pods[pod].Spec.NodeName)
	}
	t.Cleanup(func() {
		if t.Failed() { // this suite ends
			c.try("kubectl", "taint", "nodes", "--all", gone+"-")
		}
	})
	for _, m := range machines {
		c.run("kubectl", "taint", "node", m, gone)
	}
	t.Logf("nothing can be started on %v any more", machines)
	l.so()
	c.kill(other)
	c.eventually(30*time.Second, "the replica is lost", func() error {
		if in := c.topology().Partitions[0].InSyncReplicas; len(in) != 1 {
			return fmt.Errorf("in sync: %v", in)
		}
		return nil
	})
	l.passes()
	l.smooth("a replica is lost")
	start := time.Now()
	c.kill(master)
	c.eventually(60*time.Second, "the breaker opens", c.condition("BreakerOpen", true, "breaker_open"))
	t.Logf("open %.1f s after the master was lost too: %s", time.Since(start).Seconds(), c.message("BreakerOpen"))
	c.eventually(60*time.Second, "the partition is down", c.condition("Ready", false, "master_down"))
	t.Logf("Ready: %s", c.message("Ready"))
	c.wantEvent("breaker_open")
	t.Logf("kubectl get flarecluster -o wide:\n%s", c.kubectl("get", "flarecluster", c.release, "-o", "wide"))
	now := c.topology().Partitions[0]
	if now.Master != "" || now.Epoch != p.Epoch || len(now.InSyncReplicas) != 1 || podOf(now.InSyncReplicas[0]) != survivor {
		t.Errorf("the partition is %v, want it without a master, in epoch %d, with %s in sync", now, p.Epoch, survivor)
	}
	// What is there is read; what would be lost is not written.
	m := client(pods[survivor].addr(12121))
	defer m.Close()
	l.end()
	defer l.begin()
	read := 0
	for key, may := range l.keys[0] {
		if len(may) != 1 || may[0] == deleted {
			continue
		}
		if item, err := m.Get(key); err != nil || string(item.Value) != may[0] {
			t.Fatalf("get %s from the survivor: %v, %v; want %q", key, item, err, may[0])
		}
		if read++; read == 100 {
			break
		}
	}
	err := m.Set(&memcache.Item{Key: "probe", Value: []byte("v")})
	if err == nil {
		t.Error("a write succeeded while nobody is master")
	}
	t.Logf("%d keys were read from the survivor; a write gets %v", read, err)
	return survivor
}

func (c *cluster) testOverride(t *testing.T, l *load, survivor string) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tried, err := c.controller().OverrideBreaker(ctx, &controllerv1.OverrideBreakerRequest{Seconds: 300, Reason: "rack 7 burnt", DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(tried.GetOutcome().GetChanges(), func(x *controllerv1.DutyChange) bool {
		return podOf(x.Node) == survivor && strings.HasPrefix(x.NewDuty, "master/active/p0")
	}) {
		t.Errorf("a dry run does not tell that %s would be the master: %v", survivor, tried)
	}
	if p := c.topology().Partitions[0]; p.Master != "" {
		t.Fatalf("after a dry run: %v", p)
	}
	l.so()
	start := time.Now()
	out := c.run("grpcurl", "-plaintext", "-d", `{"seconds": 300, "reason": "rack 7 burnt"}`, c.leader().addr(13120),
		"flare.controller.v1.ControllerService/OverrideBreaker")
	t.Logf("grpcurl OverrideBreaker:\n%s", out)
	c.eventually(30*time.Second, "overridden", c.condition("BreakerOpen", true, "breaker_overridden"))
	l.passes()
	t.Logf("%s takes writes %.1f s after the override: %s", survivor, time.Since(start).Seconds(), c.message("BreakerOpen"))
	if m := c.masterPod(0); m != survivor {
		t.Errorf("%s is the master", m)
	}
	t.Logf("meanwhile: %v", l.so())
	c.run("grpcurl", "-plaintext", "-d", `{"seconds": 0}`, c.leader().addr(13120), "flare.controller.v1.ControllerService/OverrideBreaker")
	c.eventually(30*time.Second, "the override is taken back", c.condition("BreakerOpen", true, "breaker_open"))
	l.passes()
	l.smooth("after it was taken back the survivor goes on")
	c.wantEvent("breaker_overridden", "override_over")
}

func (c *cluster) testClose(t *testing.T, l *load) {
	start := time.Now()
	// It fails for the machine that has no taint.
	if out, err := c.try("kubectl", "taint", "nodes", "--all", gone+"-"); strings.Count(out, "untainted") != 2 {
		t.Fatalf("%q, %v", out, err)
	}
	c.eventually(90*time.Second, "half-open", c.condition("BreakerOpen", true, "breaker_half_open"))
	t.Logf("half-open %.1f s after the machines are back: %s", time.Since(start).Seconds(), c.message("BreakerOpen"))
	half := time.Now()
	c.eventually(120*time.Second, "closed", c.condition("BreakerOpen", false, "breaker_closed"))
	t.Logf("closed %.1f s after that: %s", time.Since(half).Seconds(), c.message("BreakerOpen"))
	if d := time.Since(half); d < 8*time.Second {
		t.Errorf("it was half-open for %v only, want 10 s", d)
	}
	c.wantEvent("breaker_half_open", "breaker_closed")
	c.eventually(120*time.Second, "settled", c.settled(1, 3))
	t.Logf("all in sync %.1f s after the machines are back", time.Since(start).Seconds())
	l.passes()
	l.smooth("meanwhile")
	l.check()
}

func (c *cluster) testLeaderDies(t *testing.T, l *load) {
	for round := range 3 {
		before := c.topology().Partitions[0]
		victim, leader := podOf(before.Master), c.leader()
		flared, err := c.flaredOf(victim)
		if err != nil {
			t.Fatal(err)
		}
		controller, err := c.controllerOf(leader.Metadata.Name)
		if err != nil {
			t.Fatal(err)
		}
		l.so()
		start := time.Now()
		if err := syscall.Kill(flared, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(round) * 10 * time.Millisecond) // at another moment of the failover each time
		if err := syscall.Kill(controller, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.eventually(90*time.Second, "another controller leads, and there is another master", func() error {
			fc, err := c.status()
			if err != nil {
				return err
			}
			if p := fc.Status.Partitions[0]; p.Master == "" || podOf(p.Master) == victim {
				return fmt.Errorf("%+v", p)
			}
			return nil
		})
		t.Logf("round %d: master %s and leader %s killed %d ms apart: another master is shown after %.1f s", round, victim, leader.Metadata.Name,
			10*round, time.Since(start).Seconds())
		l.passes()
		t.Logf("meanwhile: %v", l.so())
		c.eventually(120*time.Second, "settled", c.settled(1, 3))
		if p := c.topology().Partitions[0]; p.Epoch != before.Epoch+1 {
			t.Errorf("epoch %d after %d: want one failover", p.Epoch, before.Epoch)
		}
		// A new pod, for the kubelet lets an old one wait longer after each crash.
		was := c.pods()[victim].Metadata.UID
		c.kubectl("delete", "pod", victim, leader.Metadata.Name, "--wait=false")
		c.eventually(120*time.Second, "a new pod is settled", func() error {
			if now := c.pods()[victim].Metadata.UID; now == "" || now == was {
				return errors.New("not replaced yet")
			}
			return c.settled(1, 3)()
		})
	}
	l.check()
}
