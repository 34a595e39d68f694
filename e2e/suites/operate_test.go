//go:build e2e

package suites

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// What suites do to a release, as its operator would.

// step runs a part of a suite. Parts build on each other: a failed one ends the suite.
func (c *cluster) step(t *testing.T, name string, f func(*testing.T)) {
	start := time.Now()
	ok := t.Run(name, func(t *testing.T) { c.t = t; f(t) })
	c.t = t
	if !ok {
		t.FailNow()
	}
	t.Logf("done: %s, %.1f s", name, time.Since(start).Seconds())
}

// upgrade sets values and keeps the others.
func (c *cluster) upgrade(set string) {
	c.t.Helper()
	c.helm("upgrade", c.release, c.chart(), "--reuse-values", "--set", set)
}

func (c *cluster) patch(json string) error {
	_, err := c.try("kubectl", "-n", c.namespace, "patch", "flarecluster", c.release, "--type=merge", "-p", json)
	return err
}

// kill ends a pod without a word to it, and its object. Without grace alone would leave
// a master time to hand over: the kubelet gives a pod two seconds nevertheless. On a
// busy machine it also starts flared once more before it hears that the pod is gone.
func (c *cluster) kill(pod string) {
	c.t.Helper()
	if pid, err := c.flaredOf(pod); err == nil { // a pod of a controller, or of a machine without power, has none
		within := podWith(pid)
		syscall.Kill(pid, syscall.SIGKILL)
		go func() {
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				if pid, err := c.flaredOf(pod); err == nil && podWith(pid) == within {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}()
	}
	if err := c.deletePod(pod, new(int)); err != nil {
		c.t.Fatal(err)
	}
}

// podGroup is what the kubelet calls a pod's control group.
var podGroup = regexp.MustCompile(`pod[0-9a-f-]{36}`)

// podWith names the pod that a process belongs to, empty if that has ended.
func podWith(pid int) string {
	groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return string(podGroup.Find(groups))
}

// settled returns whether the cluster has the shape that is asked for.
func (c *cluster) settled(partitions, replicas int) func() error {
	return func() error {
		if err := c.healthy(); err != nil {
			return err
		}
		fc, err := c.status()
		if err != nil {
			return err
		}
		if n := len(fc.Status.Partitions); n != partitions {
			return fmt.Errorf("%d partitions", n)
		}
		for _, p := range fc.Status.Partitions {
			if len(p.InSync) != replicas-1 {
				return fmt.Errorf("partition %d has %d replicas in sync", p.Partition, len(p.InSync))
			}
		}
		return nil
	}
}

// condition returns whether a condition is what is wanted.
func (c *cluster) condition(kind string, status bool, reason string) func() error {
	want := map[bool]string{true: "True", false: "False"}[status]
	return func() error {
		fc, err := c.status()
		if err != nil {
			return err
		}
		for _, x := range fc.Status.Conditions {
			if x.Type == kind {
				if x.Status == want && x.Reason == reason {
					return nil
				}
				return fmt.Errorf("%s is %s (%s): %s; want %s (%s)", kind, x.Status, x.Reason, x.Message, want, reason)
			}
		}
		return fmt.Errorf("there is no condition %s", kind)
	}
}

// message is what a condition says.
func (c *cluster) message(kind string) string {
	c.t.Helper()
	fc, err := c.status()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, x := range fc.Status.Conditions {
		if x.Type == kind {
			return fmt.Sprintf("%s (%s) %s", x.Status, x.Reason, x.Message)
		}
	}
	return ""
}

// wantEvent waits for events with these reasons, and logs the last of each.
func (c *cluster) wantEvent(reasons ...string) {
	c.t.Helper()
	for _, reason := range reasons {
		c.eventually(20*time.Second, "event "+reason, func() error {
			list, err := get[struct {
				Items []struct{ Type, Message string }
			}](c, "events", "--field-selector=reason="+reason+",involvedObject.kind=FlareCluster", "--sort-by=.lastTimestamp")
			if err != nil {
				return err
			}
			if len(list.Items) == 0 {
				return fmt.Errorf("there is none")
			}
			last := list.Items[len(list.Items)-1]
			c.t.Logf("event %s %s: %s", last.Type, reason, last.Message)
			return nil
		})
	}
}

// leader is the pod of the leading controller; empty while nobody leads.
func (c *cluster) leader() pod {
	c.t.Helper()
	var p pod
	c.eventually(60*time.Second, "a controller leads", func() error {
		list, err := c.listPods("controller", "flarekv.io/leader=true")
		if err != nil {
			return err
		}
		if len(list) != 1 || list[0].Status.PodIP == "" {
			return fmt.Errorf("%d pods say that they lead", len(list))
		}
		p = list[0]
		return nil
	})
	return p
}

func (c *cluster) leaderMachine() string {
	c.t.Helper()
	return c.leader().Spec.NodeName
}

// controller is the service for people of the leading controller.
func (c *cluster) controller() controllerv1.ControllerServiceClient {
	c.t.Helper()
	addr := c.leader().addr(13120)
	if c.link == nil || c.link.Target() != addr {
		if c.link != nil {
			c.link.Close()
		}
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			c.t.Fatal(err)
		}
		c.link = conn
	}
	return controllerv1.NewControllerServiceClient(c.link)
}

// topology is what the leading controller says.
func (c *cluster) topology() *controllerv1.Topology {
	c.t.Helper()
	var top *controllerv1.Topology
	c.eventually(60*time.Second, "the leader answers", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		r, err := c.controller().GetTopology(ctx, &controllerv1.GetTopologyRequest{})
		top = r.GetTopology()
		return err
	})
	return top
}

// handover moves a mastership.
func (c *cluster) handover(from, to string) {
	c.t.Helper()
	c.eventually(60*time.Second, "handover", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_, err := c.controller().Handover(ctx, &controllerv1.HandoverRequest{Node: from, Target: to})
		return err
	})
}

// giveMaster makes a pod the master of its partition.
func (c *cluster) giveMaster(pod string) {
	c.t.Helper()
	top := c.topology()
	for _, p := range top.Partitions {
		i := slices.IndexFunc(p.InSyncReplicas, func(n string) bool { return podOf(n) == pod })
		if i >= 0 {
			c.handover(p.Master, p.InSyncReplicas[i])
			return
		}
		if podOf(p.Master) == pod {
			return
		}
	}
	c.t.Fatalf("%s is neither a master nor a replica in sync: %s", pod, duties(top))
}

// podsByMachine lists the data pods of each machine.
func (c *cluster) podsByMachine() map[string][]string {
	c.t.Helper()
	on := map[string][]string{}
	for name, p := range c.pods() {
		on[p.Spec.NodeName] = append(on[p.Spec.NodeName], name)
	}
	for _, pods := range on {
		slices.Sort(pods)
	}
	return on
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// loadAverage is how busy the machine is: over 1, 5 and 15 minutes.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
