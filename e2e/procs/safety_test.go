package procs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// admin is the controller's service for people.
func admin(t *testing.T, c *Cluster) controllerv1.ControllerServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(c.ControllerAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return controllerv1.NewControllerServiceClient(conn)
}

// waitCondition waits until a condition is what is wanted, with a reason.
func waitCondition(t *testing.T, c *Cluster, kind string, status bool, reason string) *controllerv1.Topology {
	t.Helper()
	var top *controllerv1.Topology
	eventually(t, 60*time.Second, fmt.Sprintf("condition %s=%t (%s)", kind, status, reason), func() (err error) {
		if top, err = c.Topology(t.Context()); err != nil {
			return err
		}
		for _, x := range top.Conditions {
			if x.Type == kind && x.Status == status && x.Reason == reason {
				return nil
			}
		}
		return fmt.Errorf("%v", top.Conditions)
	})
	return top
}

// TestBreaker ends two of three nodes. The third, which is in sync, does not take over
// before an operator says so; then it does. When the others are back the breaker
// closes by itself.
func TestBreaker(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 3})
	people := admin(t, c)
	m := master(t, c, 0)
	cl := client(m.Addr)
	defer cl.Close()
	if err := cl.Set(&memcache.Item{Key: "before", Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	var others []*Node
	for _, n := range c.Nodes {
		if n != m {
			others = append(others, n)
		}
	}
	others[0].Flared.Kill()
	m.Flared.Kill()
	top := waitCondition(t, c, "BreakerOpen", true, "breaker_open")
	waitCondition(t, c, "Progressing", false, "breaker_open")
	eventually(t, 20*time.Second, "the master is down and nobody took its place", func() (err error) {
		if top, err = c.Topology(t.Context()); err == nil && top.Partitions[0].Master != "" {
			err = errors.New(top.Partitions[0].Master)
		}
		return err
	})
	epoch := top.Partitions[0].Epoch
	if in := top.Partitions[0].InSyncReplicas; len(in) != 1 || in[0] != others[1].Addr {
		t.Fatalf("in sync are %v, want %s", in, others[1].Addr)
	}

	tried, err := people.OverrideBreaker(t.Context(), &controllerv1.OverrideBreakerRequest{Seconds: 60, Reason: "test", DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	promotes := false
	for _, change := range tried.GetOutcome().GetChanges() {
		promotes = promotes || change.Node == others[1].Addr && strings.HasPrefix(change.NewDuty, "master/active/p0")
	}
	if !promotes {
		t.Errorf("a dry run tells nothing of a promotion: %v", tried)
	}
	if top, err = c.Topology(t.Context()); err != nil || top.Partitions[0].Epoch != epoch {
		t.Fatalf("after a dry run: %v, %v", top, err)
	}
	if _, err := people.OverrideBreaker(t.Context(), &controllerv1.OverrideBreakerRequest{Seconds: 60, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	waitCondition(t, c, "BreakerOpen", true, "breaker_overridden")
	survivor := client(others[1].Addr)
	defer survivor.Close()
	eventually(t, 30*time.Second, "the survivor takes writes", func() error {
		return survivor.Set(&memcache.Item{Key: "after", Value: []byte("v")})
	})
	if got, err := survivor.Get("before"); err != nil || string(got.Value) != "v" {
		t.Errorf("what was acknowledged before: %v, %v", got, err)
	}
	if _, err := people.OverrideBreaker(t.Context(), &controllerv1.OverrideBreakerRequest{}); err != nil {
		t.Fatal(err)
	}
	waitCondition(t, c, "BreakerOpen", true, "breaker_open")

	for _, n := range []*Node{m, others[0]} {
		if err := n.Flared.Start(); err != nil {
			t.Fatal(err)
		}
	}
	waitCondition(t, c, "BreakerOpen", false, "breaker_closed")
	waitReady(t, c)
}

// TestPausedThenGrace pauses a cluster, ends its master, lets another controller go on,
// and resumes. Then it cuts the master off before a controller starts: silence is no
// evidence until the grace period is over.
func TestPausedThenGrace(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2, Spec: "  failover: {graceSeconds: 10}\n"})
	people := admin(t, c)
	if _, err := people.Pause(t.Context(), &controllerv1.PauseRequest{Reason: "moving the racks"}); err != nil {
		t.Fatal(err)
	}
	waitCondition(t, c, "Paused", true, "paused")
	m := master(t, c, 0)
	m.Flared.Kill()
	waitCondition(t, c, "Ready", false, "master_down")
	c.Controller.Kill()
	if err := c.Controller.Start(); err != nil {
		t.Fatal(err)
	}
	top := waitCondition(t, c, "Paused", true, "paused")
	if top.Partitions[0].Master != "" {
		t.Errorf("%s became master although the cluster is paused", top.Partitions[0].Master)
	}
	eventually(t, 30*time.Second, "resumed", func() error {
		_, err := people.Resume(t.Context(), &controllerv1.ResumeRequest{})
		return err
	})
	eventually(t, 30*time.Second, "the replica takes the place that it was kept from", func() error {
		top, err := c.Topology(t.Context())
		if err == nil && (top.Partitions[0].Master == "" || top.Partitions[0].Master == m.Addr) {
			err = errors.New(top.Partitions[0].Master)
		}
		return err
	})
	if err := m.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)

	m = master(t, c, 0)
	c.Controller.Kill()
	for _, p := range []*Process{m.Flared, m.Agent} {
		if err := p.Freeze(); err != nil {
			t.Fatal(err)
		}
		defer p.Thaw()
	}
	before, err := os.ReadFile(c.Controller.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Controller.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "a new master", func() error {
		top, err := c.Topology(t.Context())
		if err == nil && (top.Partitions[0].Master == "" || top.Partitions[0].Master == m.Addr) {
			err = errors.New(top.Partitions[0].Master)
		}
		return err
	})
	log, err := os.ReadFile(c.Controller.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	said := string(log[len(before):])
	over, failover := strings.Index(said, `"grace_over"`), strings.Index(said, `"failover"`)
	if over < 0 || failover < over {
		t.Errorf("grace_over is told at byte %d of the log, failover at %d: want it in this order", over, failover)
	}
	for _, p := range []*Process{m.Flared, m.Agent} {
		p.Thaw()
	}
	waitReady(t, c)
}

// TestLastCopyLost loses the only node that has all acknowledged writes. The other one
// becomes master only by somebody who accepts that.
func TestLastCopyLost(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	people := admin(t, c)
	m := master(t, c, 0)
	r := replicaOf(c, m)
	cl := client(m.Addr)
	defer cl.Close()
	if err := cl.Set(&memcache.Item{Key: "both", Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	r.Flared.Kill()
	eventually(t, 30*time.Second, "the master goes on alone", func() error {
		return cl.Set(&memcache.Item{Key: "alone", Value: []byte("v")})
	})
	m.Flared.Kill()
	waitCondition(t, c, "Ready", false, "master_down")
	if err := r.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	force := &controllerv1.ForceMasterRequest{Node: r.Addr, Partition: new(uint32(0)), Reason: "its disk burnt"}
	eventually(t, 30*time.Second, "it is refused for what it loses", func() error {
		_, err := people.ForceMaster(t.Context(), force)
		if reason := reasonOf(err); reason != "data_loss" {
			return fmt.Errorf("refused for %q: %w", reason, err)
		}
		return nil
	})
	force.AllowDataLoss, force.DryRun = true, true
	tried, err := people.ForceMaster(t.Context(), force)
	if err != nil || len(tried.Outcome.Changes) == 0 {
		t.Fatalf("%v, %v", tried, err)
	}
	if top, err := c.Topology(t.Context()); err != nil || top.Partitions[0].Master != "" {
		t.Fatalf("after a dry run: %v, %v", top, err)
	}
	force.DryRun = false
	if _, err := people.ForceMaster(t.Context(), force); err != nil {
		t.Fatal(err)
	}
	last := client(r.Addr)
	defer last.Close()
	eventually(t, 30*time.Second, "it takes writes", func() error {
		return last.Set(&memcache.Item{Key: "after", Value: []byte("v")})
	})
	if got, err := last.Get("both"); err != nil || string(got.Value) != "v" {
		t.Errorf("what both had: %v, %v", got, err)
	}
	waitLog(t, c.Controller, `"data_loss_allowed"`, 1)
	// The former master rejoins, and gives up what only it had.
	if err := m.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	if _, err := people.ForceMaster(t.Context(), force); reasonOf(err) != "has_master" {
		t.Errorf("once more: %v", err)
	}
}

// TestZoneLossHeld loses all of a zone while the spec says to hold: its partition waits.
// When the spec says to fail over, the replica in the other zone takes over.
func TestZoneLossHeld(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 2, Replicas: 2, Spec: "  failover: {onZoneLoss: hold}\n"})
	var lost int
	for p := range 2 {
		if master(t, c, p).Zone == "zone-a" {
			lost = p
		}
	}
	before := master(t, c, lost)
	for _, n := range c.Nodes {
		if n.Zone == "zone-a" {
			n.Agent.Kill()
			n.Flared.Kill()
		}
	}
	waitCondition(t, c, "BreakerOpen", true, "zone_lost")
	top := waitCondition(t, c, "Ready", false, "master_down")
	if got := top.Partitions[lost]; got.Master != "" || len(got.InSyncReplicas) != 1 {
		t.Errorf("partition %d of the lost zone: %v", lost, got)
	}
	if err := c.WriteSpec("  failover: {onZoneLoss: failover}\n"); err != nil {
		t.Fatal(err)
	}
	waitCondition(t, c, "BreakerOpen", false, "zone_lost")
	eventually(t, 30*time.Second, "the other zone takes over", func() error {
		top, err := c.Topology(t.Context())
		if err == nil && (top.Partitions[lost].Master == "" || top.Partitions[lost].Master == before.Addr) {
			err = errors.New(top.Partitions[lost].Master)
		}
		return err
	})
	survivor := client(master(t, c, lost).Addr)
	defer survivor.Close()
	eventually(t, 30*time.Second, "it takes writes of both partitions", func() error {
		for i := range 20 {
			if err := survivor.Set(&memcache.Item{Key: fmt.Sprint("after:", i), Value: []byte("v")}); err != nil {
				return err
			}
		}
		return nil
	})
}

// TestHandoverByController has a master told by the controller to hand over, under load.
func TestHandoverByController(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	people := admin(t, c)
	m := master(t, c, 0)
	r := replicaOf(c, m)
	l := startSteady(r.Addr, "moved")
	defer l.stop()
	if _, err := people.Handover(t.Context(), &controllerv1.HandoverRequest{Node: r.Addr}); reasonOf(err) != "not_master" {
		t.Errorf("of a replica: %v", err)
	}
	if _, err := people.Handover(t.Context(), &controllerv1.HandoverRequest{Node: m.Addr, Target: m.Addr}); reasonOf(err) != "target_not_in_sync" {
		t.Errorf("to itself: %v", err)
	}
	tried, err := people.Handover(t.Context(), &controllerv1.HandoverRequest{Node: m.Addr, DryRun: true})
	if err != nil || tried.GetTarget() != r.Addr || tried.GetEpoch() != 0 {
		t.Fatalf("a dry run: %v, %v", tried, err)
	}
	before, err := c.Topology(t.Context())
	if err != nil || before.Partitions[0].Master != m.Addr {
		t.Fatalf("after a dry run: %v, %v", before, err)
	}
	// A replica may just have lost its stream on a busy machine.
	var done *controllerv1.HandoverResponse
	eventually(t, 60*time.Second, "handed over", func() (err error) {
		done, err = people.Handover(t.Context(), &controllerv1.HandoverRequest{Node: m.Addr, Target: r.Addr})
		return err
	})
	if done.GetTarget() != r.Addr || done.GetEpoch() <= before.Partitions[0].Epoch {
		t.Errorf("handed over to %s in epoch %d, from epoch %d", done.GetTarget(), done.GetEpoch(), before.Partitions[0].Epoch)
	}
	if now := master(t, c, 0); now != r {
		t.Errorf("%s is the master, want %s", now.Addr, r.Addr)
	}
	waitReady(t, c)
	l.check(t, m.Addr, false)
}
