//go:build e2e

package suites

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/flarekv/flare/e2e/procs"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// TestLeaderChange kills a master and, in the midst of its failover, the controller
// that leads: the other one, elected at the API server, brings it to its end, once, and
// no acknowledged write is lost. Only the API server is the lab's; the controllers and
// the nodes are processes of this machine, so that they can be killed at a moment's
// notice.
func TestLeaderChange(t *testing.T) {
	const rounds = 5
	o := outside(t, "lead", "flare-leader", "partitions: 1, replicas: 2")
	dir := o.dir
	var all controllers
	defer all.stop()
	for i := range 2 {
		c := o.contender()
		o.launch(c, fmt.Sprint("ctl-", i))
		all = append(all, c)
	}
	index := all.service(t, func(c *contender) string { return c.index })
	grpc := all.service(t, func(c *contender) string { return c.grpc })

	cluster, err := procs.Start(procs.Options{BinDir: dir, Dir: dir, Partitions: 1, Replicas: 2, Controller: &procs.Endpoint{Index: index, GRPC: grpc}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	}()
	ready := func() *controllerv1.Topology {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		if err := cluster.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		top, err := cluster.Topology(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return top
	}
	acked := map[string]string{}
	for round := range rounds {
		before := ready()
		victim := cluster.NodeByAddr(before.Partitions[0].Master)
		other := cluster.Nodes[0]
		if other == victim {
			other = cluster.Nodes[1]
		}
		stop := make(chan struct{})
		var writer sync.WaitGroup
		writer.Go(func() {
			m := client(other.Addr)
			defer m.Close()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				k, v := fmt.Sprintf("r%d:%d", round, i%300), fmt.Sprint("value ", i)
				if err := m.Set(&memcache.Item{Key: k, Value: []byte(v)}); err == nil {
					acked[k] = v
				} else {
					delete(acked, k)
				}
			}
		})
		leader := all.leader()
		if leader == nil {
			t.Fatal("nobody leads")
		}
		victim.Flared.Kill()
		<-time.After(time.Duration(round*7) * time.Millisecond) // at another moment of the failover each time
		leader.Kill()
		struck := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		err := cluster.WaitFor(ctx, func(top *controllerv1.Topology) bool { return top.Partitions[0].Master == other.Addr })
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(struck)
		if err := errors.Join(leader.Start(), victim.Flared.Start()); err != nil {
			t.Fatal(err)
		}
		after := ready()
		close(stop)
		writer.Wait()
		if e, was := after.Partitions[0].Epoch, before.Partitions[0].Epoch; e != was+1 || after.Partitions[0].Master != other.Addr {
			t.Errorf("round %d: master %s in epoch %d after %s in epoch %d: want one failover", round, after.Partitions[0].Master, e, victim.Addr, was)
		}
		if after.MapVersion <= before.MapVersion {
			t.Errorf("round %d: map %d after %d", round, after.MapVersion, before.MapVersion)
		}
		for _, n := range cluster.Nodes {
			m := client(n.Addr)
			for k, v := range acked {
				if item, err := m.Get(k); err != nil || string(item.Value) != v {
					t.Fatalf("round %d: get %s through %s: %v, %v; acknowledged was %q", round, k, n.Addr, item, err, v)
				}
			}
			m.Close()
		}
		t.Logf("round %d: the successor leads and its map shows the new master %v after the former was killed", round, took.Round(10*time.Millisecond))
	}
	if len(acked) == 0 {
		t.Error("nothing was acknowledged")
	}
}

// outsider is a FlareCluster at the lab's API server whose controllers and nodes are
// processes of this machine.
type outsider struct {
	t           *testing.T
	name, space string
	dir         string // with the programs, and for what they leave
	controller  string // the program
	kubeconfig  string
}

// outside makes a FlareCluster in a namespace of its own. Both are removed when the test
// ends, unless it failed.
func outside(t *testing.T, name, space, spec string) *outsider {
	t.Helper()
	kubeconfig := os.Getenv("KUBECONFIG")
	if kubeconfig == "" {
		t.Fatal("KUBECONFIG is not set: run the suites by `make e2e SUITE=...`")
	}
	dir, err := os.MkdirTemp("", "flare-") // t.TempDir is too long a path for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	o := &outsider{t: t, name: name, space: space, dir: dir, controller: filepath.Join(dir, "flare-controller"), kubeconfig: kubeconfig}
	o.run("go", "build", "-o", dir+"/", "../../agent/cmd/...", "../../controller/cmd/...")
	o.run(o.controller, "crd", "apply", "--kubeconfig", kubeconfig)
	o.run("kubectl", "delete", "namespace", space, "--ignore-not-found", "--wait", "--timeout=120s")
	o.run("kubectl", "create", "namespace", space)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		o.kubectl("delete", "flarecluster", name, "--wait=false")
		o.run("kubectl", "delete", "namespace", space, "--wait=false")
		os.RemoveAll(dir)
	})
	manifest := filepath.Join(dir, "manifest.yaml")
	if err := os.WriteFile(manifest, fmt.Appendf(nil, "apiVersion: flarekv.io/v1\nkind: FlareCluster\nmetadata: {name: %s}\nspec: {%s}\n", name, spec), 0o644); err != nil {
		t.Fatal(err)
	}
	o.kubectl("apply", "-f", manifest)
	return o
}

func (o *outsider) run(name string, args ...string) string {
	o.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		o.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (o *outsider) kubectl(args ...string) string {
	o.t.Helper()
	return o.run("kubectl", append([]string{"-n", o.space}, args...)...)
}

// contender finds room for a controller; launch starts it.
func (o *outsider) contender() *contender {
	o.t.Helper()
	a, err := procs.FreeAddrs(4)
	if err != nil {
		o.t.Fatal(err)
	}
	return &contender{index: a[0], grpc: a[1], http: a[2], metrics: a[3]}
}

func (o *outsider) launch(c *contender, pod string) {
	o.t.Helper()
	var err error
	c.Process, err = procs.Run(o.dir, pod, o.controller, "--cluster", o.name, "--namespace", o.space,
		"--pod-name", pod, "--pod-selector", "app=node", "--controller-selector", "app=controller",
		"--kubeconfig", o.kubeconfig, "--index", c.index, "--grpc", c.grpc, "--http", c.http, "--metrics", c.metrics)
	if err != nil {
		o.t.Fatal(err)
	}
}

// contender is one of several controllers.
type contender struct {
	*procs.Process
	index, grpc, http, metrics string
}

type controllers []*contender

func (cs controllers) stop() {
	for _, c := range cs {
		if c.Running() {
			c.Terminate()
			_ = c.WaitOrKill(10 * time.Second) // a leader that was killed meanwhile has ended
		}
	}
}

// leader returns the one that leads, nil while none does.
func (cs controllers) leader() *contender {
	hc := http.Client{Timeout: time.Second}
	i := slices.IndexFunc(cs, func(c *contender) bool {
		r, err := hc.Get("http://" + c.http + "/readyz")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	if i < 0 {
		return nil
	}
	return cs[i]
}

// service is an address behind which the leader is found, as behind a Service that
// selects by the leader's label.
func (cs controllers) service(t *testing.T, port func(*contender) string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer from.Close()
				c := cs.leader()
				if c == nil {
					return
				}
				to, err := net.Dial("tcp", port(c))
				if err != nil {
					return
				}
				defer to.Close()
				go func() {
					io.Copy(to, from)
					to.Close()
				}()
				io.Copy(from, to)
			}()
		}
	}()
	return l.Addr().String()
}
