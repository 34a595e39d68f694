//go:build e2e

// Package suites holds the end-to-end suites: each installs the chart on a
// real Kubernetes and uses, breaks and removes it as a user would. They run
// with the tag e2e, one suite a time: make e2e SUITE=smoke.
package suites

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Where a suite installs, unless it needs more than one release.
const (
	release   = "flare"
	namespace = "flare-e2e"
)

// cluster is one installed release and the tools to look at it. KUBECONFIG,
// the tools' PATH and FLARE_E2E_ROOT (the checkout) come from e2e/run.sh.
type cluster struct {
	t                  *testing.T
	root               string
	release, namespace string
	// foreign are the cluster-wide objects that were there before: of another
	// release of flare, which must not be touched.
	foreign []string
	link    *grpc.ClientConn // to the leading controller; nil before it was needed
}

// install installs the chart afresh and waits until the FlareCluster is Ready.
// The release is removed when the test ends, unless it failed: then it is left
// for a look, and the next install replaces it.
func install(t *testing.T, args ...string) *cluster {
	t.Helper()
	return installAs(t, release, namespace, args...)
}

func installAs(t *testing.T, release, namespace string, args ...string) *cluster {
	t.Helper()
	root := os.Getenv("FLARE_E2E_ROOT")
	if root == "" {
		t.Fatal("FLARE_E2E_ROOT is not set: run the suites by `make e2e SUITE=...`")
	}
	c := &cluster{t: t, root: root, release: release, namespace: namespace}
	c.uninstall()
	c.foreign = c.clusterWide()
	start := time.Now()
	c.helm(append([]string{"install", c.release, c.chart(), "--create-namespace", "--wait", "--timeout", "3m",
		"-f", filepath.Join(root, "build/images/values.yaml")}, args...)...)
	c.kubectl("wait", "flarecluster/"+c.release, "--for=condition=Ready", "--timeout=120s")
	t.Logf("helm install of %s/%s to Ready: %.1f s", namespace, release, time.Since(start).Seconds())
	t.Cleanup(func() {
		if t.Failed() {
			c.diagnose()
			return
		}
		c.uninstall()
	})
	return c
}

func (c *cluster) chart() string { return filepath.Join(c.root, "charts/flare") }

// uninstall removes the release, its volume claims and the namespace.
func (c *cluster) uninstall() {
	c.t.Helper()
	if _, err := c.try("helm", "-n", c.namespace, "status", c.release); err == nil {
		c.helm("uninstall", c.release, "--wait", "--timeout", "2m")
	}
	if _, err := c.try("kubectl", "get", "namespace", c.namespace); err == nil {
		c.run("kubectl", "delete", "namespace", c.namespace, "--wait", "--timeout=120s")
	}
}

// clusterWide lists the cluster-wide objects of flare.
func (c *cluster) clusterWide() []string {
	c.t.Helper()
	all := strings.Fields(c.run("kubectl", "get", "crd,clusterrole,clusterrolebinding", "-o", "name"))
	return slices.DeleteFunc(all, func(o string) bool { return !strings.Contains(o, "flare") })
}

// diagnose logs what somebody would ask for first.
func (c *cluster) diagnose() {
	for _, args := range [][]string{
		{"get", "flarecluster,pods", "-o", "wide"},
		{"get", "flarecluster", c.release, "-o", "yaml"},
		{"get", "events", "--sort-by=.lastTimestamp"},
		{"logs", "-l", "app.kubernetes.io/component=controller", "--tail=40", "--prefix"},
		{"logs", "-l", "app.kubernetes.io/component=node", "--all-containers", "--tail=40", "--prefix"},
	} {
		out, _ := c.try("kubectl", append([]string{"-n", c.namespace}, args...)...)
		c.t.Logf("kubectl %s\n%s", strings.Join(args, " "), out)
	}
}

// try runs a command; its error carries what the command said was wrong.
func (c *cluster) try(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), err
}

func (c *cluster) run(name string, args ...string) string {
	c.t.Helper()
	out, err := c.try(name, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	return c.run("kubectl", append([]string{"-n", c.namespace}, args...)...)
}

func (c *cluster) helm(args ...string) string {
	c.t.Helper()
	return c.run("helm", append([]string{"-n", c.namespace}, args...)...)
}

// get decodes kubectl get -o json.
func get[T any](c *cluster, args ...string) (T, error) {
	var v T
	cmd := exec.Command("kubectl", append(append([]string{"-n", c.namespace, "get"}, args...), "-o", "json")...)
	out, err := cmd.Output()
	if err != nil {
		return v, fmt.Errorf("kubectl get %s: %w", strings.Join(args, " "), err)
	}
	return v, json.Unmarshal(out, &v)
}

type meta struct {
	Name   string            `json:"name"`
	UID    string            `json:"uid"`
	Labels map[string]string `json:"labels"`
}

type pod struct {
	Metadata meta `json:"metadata"`
	Spec     struct{ NodeName string }
	Status   struct {
		PodIP                 string `json:"podIP"`
		ContainerStatuses     []containerStatus
		InitContainerStatuses []containerStatus
	} `json:"status"`
}

type containerStatus struct {
	RestartCount int  `json:"restartCount"`
	Ready        bool `json:"ready"`
}

func (p pod) restarts() int {
	n := 0
	for _, s := range append(p.Status.ContainerStatuses, p.Status.InitContainerStatuses...) {
		n += s.RestartCount
	}
	return n
}

// ready reports whether all containers are.
func (p pod) ready() bool {
	return len(p.Status.ContainerStatuses) > 0 &&
		!slices.ContainsFunc(p.Status.ContainerStatuses, func(s containerStatus) bool { return !s.Ready })
}

func (p pod) addr(port int) string { return net.JoinHostPort(p.Status.PodIP, fmt.Sprint(port)) }

// pods returns the data pods by name.
func (c *cluster) pods() map[string]pod {
	c.t.Helper()
	list, err := c.listPods("node", "")
	if err != nil {
		c.t.Fatal(err)
	}
	ps := map[string]pod{}
	for _, p := range list {
		ps[p.Metadata.Name] = p
	}
	return ps
}

type flareCluster struct {
	Status struct {
		MapVersion int64
		Conditions []struct{ Type, Status, Reason, Message string }
		Partitions []struct {
			Partition int
			Epoch     int64
			Master    string
			InSync    []string
			State     string
		}
	} `json:"status"`
}

func (c *cluster) status() (flareCluster, error) {
	return fetch[flareCluster](c, "/apis/flarekv.io/v1", "flareclusters/"+c.release)
}

// masterPod is the name of the pod that masters a partition.
func (c *cluster) masterPod(partition int) string {
	c.t.Helper()
	fc, err := c.status()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range fc.Status.Partitions {
		if p.Partition == partition && p.Master != "" {
			return podOf(p.Master)
		}
	}
	c.t.Fatalf("partition %d has no master: %+v", partition, fc.Status)
	return ""
}

// podOf returns the pod's name in a node key such as flare-0.flare-nodes.ns.svc:12121.
func podOf(node string) string {
	name, _, _ := strings.Cut(node, ".")
	return name
}

// healthy is nil when every partition has its master and replicas in sync.
func (c *cluster) healthy() error {
	fc, err := c.status()
	if err != nil {
		return err
	}
	for _, p := range fc.Status.Partitions {
		if p.State != "Healthy" {
			return fmt.Errorf("partition %d is %s: %+v", p.Partition, p.State, p)
		}
	}
	if len(fc.Status.Partitions) == 0 {
		return fmt.Errorf("no partition in the status yet")
	}
	return nil
}

// service is the address of the client Service.
func (c *cluster) service() string {
	ip := c.kubectl("get", "service", c.release, "-o", "jsonpath={.spec.clusterIP}")
	return net.JoinHostPort(ip, "12121")
}

// client is a stock memcached client.
func client(addr string) *memcache.Client {
	m := memcache.New(addr)
	m.Timeout = 5 * time.Second
	return m
}

// agentStatus calls AgentService/GetStatus of a pod.
func agentStatus(p pod) (*agentv1.AgentStatus, error) {
	conn, err := grpc.NewClient(p.addr(13121), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	r, err := agentv1.NewAgentServiceClient(conn).GetStatus(ctx, &agentv1.GetStatusRequest{})
	return r.GetStatus(), err
}

// eventually polls try until it returns nil, and fails the test after limit.
// It returns how long it took.
func (c *cluster) eventually(limit time.Duration, what string, try func() error) time.Duration {
	c.t.Helper()
	start := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			c.t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		<-tick.C
	}
}
