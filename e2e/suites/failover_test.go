//go:build e2e

package suites

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flarekv/flare/e2e/lab"
	"github.com/flarekv/flare/e2e/steady"
	"github.com/flarekv/flare/proto/topology"
)

// A fault takes the machine, the pod or the process of a master away, and back.
type fault struct {
	name string
	aim  time.Duration
	// before gets everything ready; nil for nothing to do.
	before func(pod string)
	// strike begins the fault; heal ends it when the successor writes.
	strike, heal func(pod string) error
	replaces     bool // there is a new pod afterwards
}

// TestFailover measures for how long clients cannot write to a partition whose master
// is lost, RUNS (20) times by each of several means; ONLY=text picks those with that in
// their name. The time is taken by clients that write all the time, through a pod of
// another partition on another machine: the longest that none of them had a success.
func TestFailover(t *testing.T) {
	runs := 20
	if s := os.Getenv("RUNS"); s != "" {
		var err error
		if runs, err = strconv.Atoi(s); err != nil || runs < 1 {
			t.Fatalf("RUNS is %q: want a number", s)
		}
	}
	// The controllers are on a machine that is never cut off: what is measured is the
	// failover of a node and not an election besides.
	c := install(t, "-f", smallValues, "--set", `controller.nodeSelector.topology\.kubernetes\.io/zone=zone-c`)
	var table []string
	for _, f := range c.faults(t) {
		if !strings.Contains(f.name, os.Getenv("ONLY")) {
			continue
		}
		c.step(t, f.name, func(t *testing.T) { table = append(table, c.measure(f, runs)) })
	}
	t.Logf("no successful write for, ms; %d clients, a write every %v each, load average %s\n%-36s %4s %6s %6s %6s %6s %6s\n%s",
		steady.Writers, steady.Every, loadAverage(), "the master's", "runs", "p50", "p99", "max", "aim", "", strings.Join(table, "\n"))
}

func (c *cluster) faults(t *testing.T) []fault {
	machines, err := lab.Open("")
	if err != nil {
		t.Fatal(err)
	}
	machine := func(do func(context.Context, int) error) func(string) error {
		return func(pod string) error {
			n, err := strconv.Atoi(strings.TrimPrefix(c.pods()[pod].Spec.NodeName, "n"))
			if err != nil {
				return err
			}
			return do(context.Background(), n)
		}
	}
	remove := func(pod string) error { return c.deletePod(pod, nil) }
	nothing := func(string) error { return nil }
	cutOff := topology.LeaseTTL + time.Second
	return []fault{
		{"process crashed", 500 * time.Millisecond, nil, func(pod string) error {
			pid, err := c.flaredOf(pod)
			if err != nil {
				return err
			}
			return syscall.Kill(pid, syscall.SIGKILL)
		}, remove, true}, // a new pod, for the kubelet lets an old one wait longer after each crash
		{"pod deleted", time.Second, nil, remove, nothing, true},
		{"pod deleted without grace", time.Second, nil, func(pod string) error { return c.deletePod(pod, new(int)) }, nothing, true},
		{"machine cut off", cutOff, nil, machine(machines.CutNode), machine(machines.HealNode), false},
		// Nobody can look up where the successor is.
		{"machine cut off, with the only DNS", cutOff, c.onlyDNSBeside, machine(machines.CutNode), machine(machines.HealNode), false},
	}
}

// onlyDNSBeside puts the cluster's name service on the machine of a pod, and nowhere else.
func (c *cluster) onlyDNSBeside(pod string) {
	c.t.Helper()
	patch := fmt.Sprintf(`{"spec":{"replicas":1,"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":%q}}}}}`, c.pods()[pod].Spec.NodeName)
	c.run("kubectl", "-n", "kube-system", "patch", "deployment", "coredns", "--type", "merge", "-p", patch)
	c.run("kubectl", "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
	c.t.Cleanup(func() {
		c.run("kubectl", "-n", "kube-system", "patch", "deployment", "coredns", "--type", "merge", "-p",
			`{"spec":{"replicas":2,"template":{"spec":{"nodeSelector":null}}}}`)
	})
}

// measure returns a line of the table.
func (c *cluster) measure(f fault, runs int) string {
	t := c.t
	t.Helper()
	key := keyOf(0)
	var took []time.Duration
	struck := "" // UID of the pod that the last run has had replaced
	for i := range runs {
		c.eventually(180*time.Second, "settled, with every pod in place", func() error {
			pods := c.pods()
			for name, p := range pods {
				if p.Status.PodIP == "" || p.Metadata.UID == struck || !p.ready() {
					return fmt.Errorf("%s is not replaced yet", name)
				}
			}
			// A pod that was deleted without grace hands over and is in sync once more
			// before its processes end, when another one has its name already.
			for _, p := range c.topology().Partitions {
				if len(p.InSyncReplicas) != 1 {
					return fmt.Errorf("partition %d has %d replicas in sync", p.Partition, len(p.InSyncReplicas))
				}
			}
			if len(pods) != 4 {
				return fmt.Errorf("%d pods", len(pods))
			}
			return c.settled(2, 2)()
		})
		victim, via := c.chooseVictim()
		if f.before != nil {
			f.before(victim)
		}
		before := c.pods()
		c.eventually(30*time.Second, "the master has a lease by the controller", func() error {
			lines := dialogue(t, before[victim].addr(12121), "stats\r\n", "END")
			if !slices.Contains(lines, "STAT lease_state held") || !slices.Contains(lines, "STAT lease_source controller") {
				return fmt.Errorf("lease of %s", victim)
			}
			return nil
		})
		var s steady.Load
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.Run(ctx, before[via].addr(12121), key) })
		func() {
			defer running.Wait()
			defer stop()
			c.eventually(60*time.Second, "steady writes", func() error {
				if n, pause, _ := s.Since(time.Now().Add(-time.Second)); n < 100 || pause > 300*time.Millisecond {
					return fmt.Errorf("%d writes in a second, longest pause %v", n, pause)
				}
				return nil
			})
			began := time.Now()
			if err := f.strike(victim); err != nil {
				t.Fatal(err)
			}
			c.eventually(60*time.Second, "another master", func() error {
				if m := c.masterPod(0); m == victim {
					return fmt.Errorf("%s is the master", m)
				}
				return nil
			})
			appointed := time.Now()
			c.eventually(60*time.Second, "writes by the successor", func() error {
				if n, _, _ := s.Since(appointed); n < 100 {
					return fmt.Errorf("%d writes", n)
				}
				return nil
			})
			_, pause, _ := s.Since(began)
			took = append(took, pause)
			t.Logf("run %d: %s on %s, written through %s: %d ms", i+1, victim, before[victim].Spec.NodeName, via, pause.Milliseconds())
		}()
		if f.replaces {
			struck = before[victim].Metadata.UID
		}
		if err := f.heal(victim); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(took)
	p99 := took[(len(took)*99+99)/100-1]
	mark := "ok"
	if p99 > f.aim {
		mark = "MISSED"
	}
	return fmt.Sprintf("%-36s %4d %6d %6d %6d %6d %6s", f.name, len(took), took[len(took)/2].Milliseconds(), p99.Milliseconds(),
		took[len(took)-1].Milliseconds(), f.aim.Milliseconds(), mark)
}

// chooseVictim makes sure that the master of partition 0 is on a machine without
// controllers, and names it and a pod of partition 1 on another machine.
func (c *cluster) chooseVictim() (victim, via string) {
	c.t.Helper()
	top, pods, away := c.topology(), c.pods(), c.leaderMachine()
	p := top.Partitions[0]
	for _, n := range append([]string{p.Master}, p.InSyncReplicas...) {
		if pods[podOf(n)].Spec.NodeName != away {
			victim = podOf(n)
			break
		}
	}
	if victim == "" {
		c.t.Fatalf("partition 0 is on the controllers' machine only: %v", c.podsByMachine())
	}
	c.giveMaster(victim)
	p = top.Partitions[1]
	for _, n := range append([]string{p.Master}, p.InSyncReplicas...) {
		if pods[podOf(n)].Spec.NodeName != pods[victim].Spec.NodeName {
			return victim, podOf(n)
		}
	}
	c.t.Fatalf("partition 1 is on the victim's machine only: %v", c.podsByMachine())
	return "", ""
}

// flaredOf finds the process of a pod's flared: the nodes of the lab are
// namespaces of this machine.
func (c *cluster) flaredOf(pod string) (pid int, err error) {
	return process(fmt.Sprintf("/flared\x00--server-name=%s.%s-nodes.%s.", pod, c.release, c.namespace), "")
}

// controllerOf finds the process of a controller's pod.
func (c *cluster) controllerOf(pod string) (pid int, err error) {
	return process("/flare-controller\x00", "POD_NAME="+pod+"\x00")
}

// process finds the process whose command line begins so and whose environment has that.
func process(begin, env string) (pid int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		// A process that ends meanwhile is not the one.
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !bytes.HasPrefix(line, []byte(begin)) {
			continue
		}
		if e, err := os.ReadFile(filepath.Join(dir, "environ")); err == nil && bytes.Contains(e, []byte(env)) {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("no process of this machine has a command line that begins with %q and %q in its environment", begin, env)
}
