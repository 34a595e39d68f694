//go:build e2e

package suites

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/flarekv/flare/e2e/procs"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// TestImport changes the index server of a cluster: a flare.xml that was recorded of the
// original becomes the state of a FlareCluster at the API server by one command. The
// controller that leads afterwards gives the nodes the duties that they had, and clients
// write and read. Only the API server is the lab's; the controller and the nodes are
// processes of this machine, as the file's nodes are at 127.0.0.1.
func TestImport(t *testing.T) {
	o := outside(t, "import", "flare-import", "partitions: 2, replicas: 1")
	recording := filepath.Join(os.Getenv("FLARE_E2E_ROOT"), "controller/index/testdata/flarei-index.jsonl")
	recorded, err := procs.RecordedFlareXML(recording)
	if err != nil {
		t.Fatal(err)
	}
	finished, err := procs.FinishPreparing(recorded)
	if err != nil {
		t.Fatal(err)
	}

	// The nodes of the file run, and have no index server. One that is a master there is
	// down in the file.
	all := controllers{o.contender()}
	cluster, err := procs.Start(procs.Options{BinDir: o.dir, Dir: o.dir, Partitions: 2, Replicas: 1, Controller: &procs.Endpoint{
		Index: all.service(t, func(c *contender) string { return c.index }),
		GRPC:  all.service(t, func(c *contender) string { return c.grpc }),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	}()
	first, second := cluster.Nodes[0], cluster.Nodes[1]
	port := func(n *procs.Node) string { return n.Addr[strings.LastIndexByte(n.Addr, ':')+1:] }
	ports := strings.NewReplacer("19301", port(first), "19304", port(second))
	load := func(content string, args ...string) (string, error) {
		t.Helper()
		file := filepath.Join(o.dir, "flare.xml")
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(o.controller, append([]string{"import", file, "--cluster", o.name, "--namespace", o.space, "--kubeconfig", o.kubeconfig}, args...)...).CombinedOutput()
		return string(out), err
	}
	refused := func(content, want string) {
		t.Helper()
		out, err := load(content)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("import: %v, %s: want a refusal that says %q", err, out, want)
		}
		t.Logf("refused: %s", strings.TrimSpace(out))
	}
	state := func() string { return o.kubectl("get", "configmaps", "-o", "name") }

	before := state()
	refused(ports.Replace(recorded), "partition 2")
	refused("<xml/>", "flare.xml")
	if out, err := load(ports.Replace(finished), "--dry-run"); err != nil || !strings.Contains(out, "54") {
		t.Fatalf("dry run: %v, %s", err, out)
	}
	if now := state(); now != before {
		t.Errorf("what was refused or only tried left %q, before it was %q", now, before)
	}
	out, err := load(ports.Replace(finished))
	if err != nil {
		t.Fatalf("import: %v, %s", err, out)
	}
	t.Logf("imported: %s", strings.TrimSpace(out))
	refused(ports.Replace(finished), "state_exists")

	o.launch(all[0], "ctl-0")
	defer all.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	var last *controllerv1.Topology
	err = cluster.WaitFor(ctx, func(top *controllerv1.Topology) bool {
		last = top
		got := map[string]string{}
		for _, n := range top.GetNodes() {
			partition := "-"
			if n.Partition != nil {
				partition = fmt.Sprint(n.GetPartition())
			}
			got[n.GetNode()] = fmt.Sprintf("%v %v %s", n.GetRole(), n.GetState(), partition)
		}
		return got[first.Addr] == "ROLE_MASTER STATE_ACTIVE 0" && got[second.Addr] == "ROLE_MASTER STATE_ACTIVE 1" &&
			got["127.0.0.1:19303"] == "ROLE_PROXY STATE_DOWN -" && len(got) == 4 && top.GetMapVersion() > 54
	})
	if err != nil {
		t.Fatalf("%v\n%v", err, last)
	}
	for i := range 100 {
		to, from := cluster.Nodes[i%2], cluster.Nodes[(i+1)%2]
		k, v := fmt.Sprint("key", i), fmt.Sprint("value ", i)
		w, r := client(to.Addr), client(from.Addr)
		deadline := time.Now().Add(30 * time.Second) // until each has its lease and the other's map
		for err = w.Set(&memcache.Item{Key: k, Value: []byte(v)}); err != nil && time.Now().Before(deadline); err = w.Set(&memcache.Item{Key: k, Value: []byte(v)}) {
		}
		if err != nil {
			t.Fatalf("set %s: %v", k, err)
		}
		if item, err := r.Get(k); err != nil || string(item.Value) != v {
			t.Fatalf("get %s: %v, %v", k, item, err)
		}
		w.Close()
		r.Close()
	}
	t.Logf("map %d: every node has the duty of the file, 100 keys written through one node and read through another", last.GetMapVersion())
}
