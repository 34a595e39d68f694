//go:build e2e

package suites

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/e2e/lab"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// TestTopology changes what a cluster consists of while clients write and delete:
// more and fewer replicas, more partitions and the refusal of fewer, a pause, a drain,
// a node and a zone that are lost with their data. After each step every acknowledged
// write is read back through every pod.
func TestTopology(t *testing.T) {
	c := install(t, "-f", smallValues, "--set", "partitions=1,scaleOut.orphanPurge.delaySeconds=0")
	c.eventually(60*time.Second, "settled", c.settled(1, 2))
	l := c.startLoad(t)
	l.passes()
	c.step(t, "a replica more", func(t *testing.T) { c.testReplicaMore(t, l) })
	c.step(t, "a partition more", func(t *testing.T) { c.testPartitionMore(t, l) })
	c.step(t, "a replica less", func(t *testing.T) { c.testReplicaLess(t, l) })
	c.step(t, "fewer partitions are refused", func(t *testing.T) { c.testPartitionsFewer(t, l) })
	c.step(t, "paused", func(t *testing.T) { c.testPaused(t, l) })
	c.step(t, "drain", func(t *testing.T) { c.testDrain(t, l) })
	c.step(t, "a node comes back empty", func(t *testing.T) { c.testNodeReplaced(t, l) })
	c.step(t, "a zone is lost and replaced", func(t *testing.T) { c.testZoneReplaced(t, l) })
}

// smallValues is seen from the directory of the suites.
const smallValues = "testdata/small.yaml"

func (c *cluster) testReplicaMore(t *testing.T, l *load) {
	l.so()
	start := time.Now()
	c.upgrade("replicas=3")
	c.eventually(120*time.Second, "3 nodes in sync", c.settled(1, 3))
	t.Logf("from 2 to 3 replicas in %.1f s", time.Since(start).Seconds())
	l.smooth("meanwhile")
	zones := map[string]bool{}
	for _, n := range c.topology().Nodes {
		zones[n.Zone] = true
	}
	if len(zones) != 3 {
		t.Errorf("the 3 nodes of the partition are in zones %v, want 3 of them", zones)
	}
	l.check()
}

func (c *cluster) testPartitionMore(t *testing.T, l *load) {
	l.so()
	start := time.Now()
	c.upgrade("partitions=2")
	c.eventually(180*time.Second, "2 partitions of 3 nodes in sync", c.settled(2, 3))
	t.Logf("from 1 to 2 partitions in %.1f s", time.Since(start).Seconds())
	l.passes()
	l.smooth("meanwhile")
	c.wantEvent("partition_filling", "partition_added")
	l.check()
	// The keys that went to the new partition are removed where they were.
	l.end()
	defer l.begin()
	records := 0
	for _, keys := range l.keys {
		for _, may := range keys {
			if len(may) > 1 {
				t.Log("a write was not answered, so it is not known how many records there are")
				return
			}
			if may[0] != deleted {
				records++
			}
		}
	}
	took := c.eventually(60*time.Second, "orphans are removed", func() error {
		pods, sum := c.pods(), 0
		for p := range 2 {
			sum += currItems(t, pods[c.masterPod(p)])
		}
		if sum != records {
			return fmt.Errorf("the masters hold %d records together, there are %d", sum, records)
		}
		return nil
	})
	t.Logf("each of %d records is on one master only, %.1f s later", records, took.Seconds())
}

func (c *cluster) testReplicaLess(t *testing.T, l *load) {
	// A master is among those that go.
	const last = "flare-5"
	top := c.topology()
	going := top.Nodes[slices.IndexFunc(top.Nodes, func(n *controllerv1.NodeTopology) bool { return podOf(n.Node) == last })]
	if going.Role != agentv1.Role_ROLE_MASTER {
		from := top.Partitions[going.GetPartition()].Master
		c.handover(from, going.Node)
		t.Logf("%s gave partition %d to %s by ControllerService/Handover", podOf(from), going.GetPartition(), last)
	}
	l.passes()
	l.smooth("meanwhile")
	start := time.Now()
	c.upgrade("replicas=2")
	c.eventually(120*time.Second, "the StatefulSet shrinks", func() error {
		before := c.topology() // so that what is seen is older than the shrinking, at most
		set, err := fetch[struct{ Spec struct{ Replicas int } }](c, "/apis/apps/v1", "statefulsets/"+c.release)
		if err != nil {
			return err
		}
		n := set.Spec.Replicas
		if n > 4 {
			return fmt.Errorf("%d replicas; the nodes have %s", n, duties(before))
		}
		if after := c.topology(); strings.Contains(duties(after), "-4:m") || strings.Contains(duties(after), "-5:m") {
			t.Fatalf("%d replicas, and the nodes have %s: a master is scaled away", n, duties(after))
		}
		return nil
	})
	t.Logf("the StatefulSet shrinks %.1f s after it was asked for, the nodes have %s", time.Since(start).Seconds(), duties(c.topology()))
	c.eventually(120*time.Second, "2 partitions of 2 nodes in sync", c.settled(2, 2))
	c.eventually(60*time.Second, "4 pods are left", func() error {
		if n := len(c.pods()); n != 4 {
			return fmt.Errorf("%d pods", n)
		}
		return nil
	})
	t.Logf("from 3 to 2 replicas in %.1f s", time.Since(start).Seconds())
	l.passes()
	l.smooth("meanwhile")
	c.wantEvent("handover")
	l.check()
}

// duties is what each pod does, in short: flare-0:m0 is the master of partition 0.
func duties(top *controllerv1.Topology) string {
	var list []string
	for _, n := range top.Nodes {
		duty := "-"
		if n.Partition != nil {
			duty = map[agentv1.Role]string{agentv1.Role_ROLE_MASTER: "m", agentv1.Role_ROLE_SLAVE: "s"}[n.Role] + fmt.Sprint(n.GetPartition())
		}
		list = append(list, podOf(n.Node)+":"+duty)
	}
	return strings.Join(list, " ")
}

func (c *cluster) testPartitionsFewer(t *testing.T, l *load) {
	l.so()
	before := c.topology()
	for how, err := range map[string]error{
		"by helm": func() error {
			_, err := c.try("helm", "-n", c.namespace, "upgrade", c.release, c.chart(), "--reuse-values", "--set", "partitions=1")
			return err
		}(),
		"by kubectl": c.patch(`{"spec":{"partitions":1}}`),
	} {
		if err == nil || !strings.Contains(err.Error(), "partition_reduction") || !strings.Contains(err.Error(), "cluster replication") {
			t.Errorf("%s: %v, want a refusal with partition_reduction and the safe way", how, err)
			continue
		}
		t.Logf("%s: %v", how, err)
	}
	// Somebody takes the rule out of the CRD.
	crd := c.run("kubectl", "get", "crd", "flareclusters.flarekv.io", "-o", "json")
	file := filepath.Join(t.TempDir(), "crd.json")
	weak := strings.Replace(crd, "self.partitions \\u003e= oldSelf.partitions", "true", 1)
	if weak == crd {
		weak = strings.Replace(crd, "self.partitions >= oldSelf.partitions", "true", 1)
	}
	if weak == crd {
		t.Fatal("the rule is not in the CRD")
	}
	write(t, file, weak)
	c.run("kubectl", "replace", "-f", file)
	c.eventually(30*time.Second, "the rule is gone", func() error { return c.patch(`{"spec":{"partitions":1}}`) })
	took := c.eventually(30*time.Second, "the controller refuses", c.condition("PartitionReductionRefused", true, "partition_reduction"))
	t.Logf("forced past the rule: condition after %.1f s: %s", took.Seconds(), c.message("PartitionReductionRefused"))
	c.wantEvent("partition_reduction")
	t.Logf("kubectl get flarecluster:\n%s", c.kubectl("get", "flarecluster", c.release))
	l.passes()
	after := c.topology()
	if len(after.Partitions) != 2 || duties(after) != duties(before) {
		t.Errorf("the nodes have %s, before %s", duties(after), duties(before))
	}
	if err := c.patch(`{"spec":{"partitions":2}}`); err != nil {
		t.Fatal(err)
	}
	c.eventually(30*time.Second, "taken back", c.condition("PartitionReductionRefused", false, "as_wanted"))
	// The next upgrade brings the CRD up to date.
	c.upgrade("partitions=2")
	if err := c.patch(`{"spec":{"partitions":1}}`); err == nil {
		t.Error("the rule is not back in the CRD after an upgrade")
	}
	c.eventually(30*time.Second, "settled", c.settled(2, 2))
	l.smooth("meanwhile")
}

func (c *cluster) testPaused(t *testing.T, l *load) {
	l.so()
	ctx := t.Context()
	if _, err := c.controller().Pause(ctx, &controllerv1.PauseRequest{Reason: "moving the racks"}); err != nil {
		t.Fatal(err)
	}
	c.eventually(20*time.Second, "paused", c.condition("Paused", true, "paused"))
	t.Logf("Paused: %s", c.message("Paused"))
	victim, before := c.masterPod(0), c.topology()
	start := time.Now()
	c.kill(victim)
	c.eventually(60*time.Second, "it is the master again", func() error {
		top := c.topology()
		if m := top.Partitions[0].Master; podOf(m) != victim {
			if m != "" {
				t.Fatalf("%s became the master although the cluster is paused", m)
			}
			return errors.New("partition 0 has no master")
		}
		if top.Partitions[0].Epoch == before.Partitions[0].Epoch {
			return errors.New("it has not been missed yet")
		}
		return nil
	})
	t.Logf("%s was killed, kept its place, and was back after %.1f s", victim, time.Since(start).Seconds())
	c.upgrade("paused=true")
	if _, err := c.controller().Resume(ctx, &controllerv1.ResumeRequest{}); err != nil {
		t.Fatal(err)
	}
	c.eventually(20*time.Second, "paused by the spec", c.condition("Paused", true, "paused_by_spec"))
	c.upgrade("paused=false")
	c.eventually(20*time.Second, "not paused", c.condition("Paused", false, "not_paused"))
	c.eventually(60*time.Second, "settled", c.settled(2, 2))
	l.passes()
	t.Logf("meanwhile: %v", l.so())
	l.check()
}

func (c *cluster) testDrain(t *testing.T, l *load) {
	// A machine with one pod: the volumes of the lab are bound to their machine, so that
	// of two the second would have to wait for the first.
	victim := ""
	for machine, pods := range c.podsByMachine() {
		if len(pods) == 1 {
			victim = pods[0]
			c.giveMaster(victim)
			l.so()
			start := time.Now()
			c.run("kubectl", "cordon", machine)
			defer c.try("kubectl", "uncordon", machine)
			took := c.eventually(30*time.Second, "the master hands over", func() error {
				if strings.Contains(duties(c.topology()), victim+":m") {
					return errors.New(duties(c.topology()))
				}
				return nil
			})
			t.Logf("%s is cordoned; %s handed over after %.1f s", machine, victim, took.Seconds())
			c.run("kubectl", "drain", machine, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s",
				"--pod-selector=app.kubernetes.io/instance="+c.release+",app.kubernetes.io/component=node")
			l.passes()
			l.smooth("cordon and drain")
			c.run("kubectl", "uncordon", machine)
			c.eventually(90*time.Second, "settled", c.settled(2, 2))
			t.Logf("drained and back after %.1f s", time.Since(start).Seconds())
			l.smooth("until it is back")
			break
		}
	}
	if victim == "" {
		t.Fatalf("no machine has one pod only: %v", c.podsByMachine())
	}
	l.check()
}

func (c *cluster) testNodeReplaced(t *testing.T, l *load) {
	victim := c.masterPod(1)
	before := c.pods()[victim]
	l.so()
	start := time.Now()
	c.kubectl("delete", "pvc", "data-"+victim, "--wait=false")
	c.kubectl("delete", "pod", victim, "--wait=false")
	c.eventually(120*time.Second, "an empty node takes its place", func() error {
		p, ok := c.pods()[victim]
		if !ok || p.Metadata.UID == before.Metadata.UID || p.Status.PodIP == "" {
			return errors.New("not started yet")
		}
		return c.settled(2, 2)()
	})
	s, err := agentStatus(c.pods()[victim])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s, a master, was deleted with its volume, and is in sync again after %.1f s by %v (%s)", victim,
		time.Since(start).Seconds(), s.Flared.GetCatchUp().GetTier(), s.Flared.GetCatchUp().GetReason())
	l.passes()
	l.smooth("meanwhile")
	l.check()
}

func (c *cluster) testZoneReplaced(t *testing.T, l *load) {
	machine := ""
	for m, pods := range c.podsByMachine() {
		if len(pods) > len(c.podsByMachine()[machine]) {
			machine = m
		}
	}
	pods := c.podsByMachine()[machine]
	if len(pods) != 2 {
		t.Fatalf("want two pods on a machine: %v", c.podsByMachine())
	}
	for _, p := range pods {
		c.giveMaster(p)
	}
	// Who handed over is in sync again, or nobody could take the place.
	c.eventually(60*time.Second, "settled", c.settled(2, 2))
	number, err := strconv.Atoi(strings.TrimPrefix(machine, "n"))
	if err != nil {
		t.Fatal(err)
	}
	lab, err := lab.Open("")
	if err != nil {
		t.Fatal(err)
	}
	leads, patience := "", 60*time.Second
	if c.leaderMachine() == machine {
		// The next one gives nodes that it has not heard of yet time to find it.
		leads, patience = ", and the leading controller", patience+120*time.Second
	}
	l.so()
	start := time.Now()
	if err := lab.StopNode(t.Context(), number); err != nil {
		t.Fatal(err)
	}
	defer lab.StartNode(context.WithoutCancel(t.Context()), number)
	t.Logf("power cut in the zone of %s, with the masters %v%s", machine, pods, leads)
	c.eventually(patience, "the other zones take over", func() error {
		fc, err := c.status()
		if err != nil {
			return err
		}
		for _, p := range fc.Status.Partitions {
			if p.Master == "" || slices.Contains(pods, podOf(p.Master)) {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
	t.Logf("the other zones have all masters %.1f s after the cut", time.Since(start).Seconds())
	l.passes()
	t.Logf("until then: %v", l.so())
	c.eventually(30*time.Second, "the zone's loss is told", c.condition("BreakerOpen", false, "zone_lost"))
	t.Logf("BreakerOpen: %s", c.message("BreakerOpen"))
	c.wantEvent("zone_lost", "failover")
	t.Logf("kubectl get flarecluster:\n%s", c.kubectl("get", "flarecluster", c.release))

	// The zone will not return: its nodes are made anew, empty, where there is room.
	start = time.Now()
	for _, p := range pods {
		c.kubectl("delete", "pvc", "data-"+p, "--wait=false")
		c.kill(p)
	}
	c.eventually(180*time.Second, "empty nodes take their places", c.settled(2, 2))
	t.Logf("replaced by empty nodes %.1f s after the pods and their volumes were given up, on %v", time.Since(start).Seconds(), c.podsByMachine())
	l.passes()
	l.smooth("meanwhile")
	c.wantEvent("zone_back")
	l.check()
	if err := lab.StartNode(t.Context(), number); err != nil {
		t.Fatal(err)
	}
}
