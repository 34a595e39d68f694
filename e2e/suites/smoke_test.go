//go:build e2e

package suites

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/topology"
)

const keys = 1000

func key(i int) string   { return fmt.Sprintf("smoke:%d", i) }
func value(i int) string { return fmt.Sprintf("value of %d, %s", i, strings.Repeat("x", i%200)) }

// TestSmoke is the product's main job, end to end: install, write and read
// through any pod, lose a master, change the configuration, remove.
func TestSmoke(t *testing.T) {
	c := install(t)
	step := func(name string, f func(*testing.T)) { c.step(t, name, f) }
	step("spread over zones", c.testZones)
	step("write through one pod, read through every other", c.testReadWrite)
	step("the master of a partition is killed", c.testMasterKilled)
	step("configuration rollout restarts nothing", c.testConfigRollout)
	step("rejected configuration", c.testRejectedConfig)
	step("nonsense on the ports", c.testNonsense)
	step("invalid FlareCluster", c.testInvalidFlareCluster)
	step("second controller", c.testSecondController)
	step("full disk", c.testFullDisk)
	step("uninstall", c.testUninstall)
}

// testZones checks that no partition has all its nodes in one zone.
func (c *cluster) testZones(t *testing.T) {
	nodeZone := map[string]string{}
	nodes, err := get[struct {
		Items []struct{ Metadata meta }
	}](c, "nodes")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Items {
		nodeZone[n.Metadata.Name] = n.Metadata.Labels["topology.kubernetes.io/zone"]
	}
	zones := map[string]map[string]bool{}
	for name, p := range c.pods() {
		on := c.kubectl("get", "pod", name, "-o", "jsonpath={.spec.nodeName}")
		partition := p.Metadata.Labels["flarekv.io/partition"]
		if zones[partition] == nil {
			zones[partition] = map[string]bool{}
		}
		zones[partition][nodeZone[on]] = true
	}
	if len(zones) != 2 {
		t.Fatalf("pods are labelled with partitions %v, want 0 and 1", slices.Collect(maps.Keys(zones)))
	}
	for partition, in := range zones {
		if len(in) < 2 {
			t.Errorf("partition %s is in one zone only: %v", partition, in)
		}
	}
}

func (c *cluster) testReadWrite(t *testing.T) {
	pods := c.pods()
	writer := client(pods["flare-0"].addr(12121))
	for i := range keys {
		if err := writer.Set(&memcache.Item{Key: key(i), Value: []byte(value(i)), Flags: uint32(i)}); err != nil {
			t.Fatalf("set %s: %v", key(i), err)
		}
	}
	for name, p := range pods {
		if name != "flare-0" {
			c.readAll(client(p.addr(12121)), "through "+name)
		}
	}
	total := 0
	perPartition := map[int]int{}
	for partition := range 2 {
		n := currItems(t, pods[c.masterPod(partition)])
		perPartition[partition] = n
		total += n
	}
	if total != keys {
		t.Errorf("the masters hold %d items together, want %d: %v", total, keys, perPartition)
	}
	for partition, n := range perPartition {
		if n < keys*40/100 || n > keys*60/100 {
			t.Errorf("partition %d holds %d of %d keys, want 40 to 60 %%", partition, n, keys)
		}
	}
	t.Logf("keys per partition: %v", perPartition)
}

// readAll checks every key and value, in single and multi gets.
func (c *cluster) readAll(m *memcache.Client, how string) {
	c.t.Helper()
	for i := range keys {
		item, err := m.Get(key(i))
		if err != nil {
			c.t.Fatalf("get %s %s: %v", key(i), how, err)
		}
		if string(item.Value) != value(i) || item.Flags != uint32(i) {
			c.t.Fatalf("get %s %s: value %q flags %d", key(i), how, item.Value, item.Flags)
		}
	}
	var some []string
	for i := range 100 {
		some = append(some, key(i))
	}
	got, err := m.GetMulti(some)
	if err != nil || len(got) != len(some) {
		c.t.Fatalf("multi-get of %d keys %s: %d, %v", len(some), how, len(got), err)
	}
}

// currItems asks one node's stats.
func currItems(t *testing.T, p pod) int {
	t.Helper()
	for _, line := range dialogue(t, p.addr(12121), "stats\r\n", "END") {
		if v, ok := strings.CutPrefix(line, "STAT curr_items "); ok {
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("stats have no curr_items")
	return 0
}

// dialogue sends text and returns the lines of the answer up to last.
func dialogue(t *testing.T, addr, send, last string) []string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte(send)); err != nil {
		t.Fatal(err)
	}
	var lines []string
	scan := bufio.NewScanner(conn)
	for scan.Scan() {
		line := strings.TrimRight(scan.Text(), "\r")
		lines = append(lines, line)
		if line == last {
			return lines
		}
	}
	t.Fatalf("%s answered %q and no %q: %v", addr, lines, last, scan.Err())
	return nil
}

func (c *cluster) testMasterKilled(t *testing.T) {
	victim := c.masterPod(0)
	before := c.pods()[victim]
	probe := keyOf(0)
	m := client(c.service())
	if err := m.Set(&memcache.Item{Key: probe, Value: []byte("before")}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	c.kubectl("delete", "pod", victim, "--grace-period=0", "--force", "--wait=false")
	c.eventually(30*time.Second, "a write to the partition", func() error {
		m := client(c.service())
		m.Timeout = time.Second
		if c.masterPod(0) == victim && c.pods()[victim].Metadata.UID == before.Metadata.UID {
			return errors.New("the killed pod is still the master")
		}
		return m.Set(&memcache.Item{Key: probe, Value: []byte("after")})
	})
	t.Logf("kill to first successful write, as kubectl and a client see it: %.1f s", time.Since(start).Seconds())
	c.readAll(client(c.service()), "through the Service after the kill")

	took := c.eventually(90*time.Second, "the killed pod is back as a replica in sync", func() error {
		p, ok := c.pods()[victim]
		if !ok || p.Metadata.UID == before.Metadata.UID || p.Status.PodIP == "" {
			return errors.New("not started yet")
		}
		if err := c.healthy(); err != nil {
			return err
		}
		s, err := agentStatus(p)
		if err != nil {
			return err
		}
		f := s.Flared
		if f.GetRole() != agentv1.Role_ROLE_SLAVE || f.GetState() != agentv1.State_STATE_ACTIVE {
			return fmt.Errorf("it is %s/%s", f.GetRole(), f.GetState())
		}
		if f.CatchUp.GetTier() != agentv1.Tier_TIER_WAL || f.CatchUpCounts.GetCheckpoint() != 0 {
			t.Fatalf("the old master came back by %s (%d full copies), want the write-ahead log", f.CatchUp.GetTier(), f.CatchUpCounts.GetCheckpoint())
		}
		return nil
	})
	t.Logf("back in sync %.1f s after service was restored", took.Seconds())
	for name, p := range c.pods() {
		c.readAll(client(p.addr(12121)), "through "+name+" after the rejoin")
	}
}

// keyOf returns a key of the partition, of two.
func keyOf(partition int) string {
	r, err := topology.NewResolver(topology.DefaultMeta())
	if err != nil {
		panic(err)
	}
	for i := 0; ; i++ {
		if k := fmt.Sprintf("probe:%d", i); r.Partition([]byte(k), 2) == partition {
			return k
		}
	}
}

func (c *cluster) testConfigRollout(t *testing.T) {
	before := c.pods()
	c.helm("upgrade", c.release, c.chart(), "--reuse-values", "--set", "rocksdb.walTtlSeconds=4321")
	took := c.eventually(10*time.Second, "every agent reports the new value as applied", func() error {
		for name, p := range before {
			s, err := agentStatus(p)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := optionIs(s, "rocksdb-wal-ttl-seconds", "4321"); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
	t.Logf("helm upgrade to applied on every node: %.1f s", took.Seconds())
	for name, p := range c.pods() {
		if p.Metadata.UID != before[name].Metadata.UID || p.restarts() != before[name].restarts() {
			t.Errorf("%s was restarted by a configuration change", name)
		}
	}
	if out := c.kubectl("wait", "flarecluster/"+c.release, "--for=condition=ConfigApplied", "--timeout=20s"); out == "" {
		t.Error("no ConfigApplied condition")
	}
}

func optionIs(s *agentv1.AgentStatus, key, want string) error {
	for _, o := range s.GetConfig().GetOptions() {
		if o.Key == key {
			if o.Effective != want || o.State != agentv1.OptionState_OPTION_STATE_APPLIED {
				return fmt.Errorf("%s is %q (%s), want %q applied", key, o.Effective, o.State, want)
			}
			return nil
		}
	}
	return fmt.Errorf("%s is not reported", key)
}

// testRejectedConfig damages the ConfigMap while no controller watches it.
func (c *cluster) testRejectedConfig(t *testing.T) {
	c.kubectl("scale", "deployment/"+c.release+"-controller", "--replicas=0")
	c.kubectl("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=controller", "--timeout=60s")
	good := c.kubectl("get", "configmap", c.release+"-config", "-o", `jsonpath={.data.extra\.conf}`)
	line := strings.Count(good, "\n") + 1
	c.kubectl("patch", "configmap", c.release+"-config", "--type=merge", "-p",
		fmt.Sprintf(`{"data":{"extra.conf":%s}}`, strconv.Quote(good+"rocksdb-wal-ttl-secnds = 1\n")))
	pods := c.pods()
	c.eventually(90*time.Second, "every agent rejects the file and names the line", func() error {
		for name, p := range pods {
			s, err := agentStatus(p)
			if err != nil {
				return err
			}
			if !s.Config.GetRejected() || !strings.Contains(s.Config.GetMessage(), fmt.Sprintf("extra.conf:%d", line)) ||
				!strings.Contains(s.Config.GetMessage(), "rocksdb-wal-ttl-seconds") {
				return fmt.Errorf("%s: rejected %v, message %q", name, s.Config.GetRejected(), s.Config.GetMessage())
			}
			if err := optionIs(s, "rocksdb-wal-ttl-seconds", "4321"); err != nil {
				return fmt.Errorf("%s: the former value is not kept: %w", name, err)
			}
		}
		return nil
	})
	s, err := agentStatus(pods["flare-0"])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("message: %s", s.Config.Message)
	// A controller outage alone stops nothing.
	c.readAll(client(c.service()), "without a controller")
	if err := client(c.service()).Set(&memcache.Item{Key: keyOf(1), Value: []byte("no controller")}); err != nil {
		t.Errorf("write without a controller: %v", err)
	}

	c.kubectl("scale", "deployment/"+c.release+"-controller", "--replicas=2")
	c.eventually(90*time.Second, "the controller repairs the ConfigMap and every agent takes it", func() error {
		for name, p := range pods {
			s, err := agentStatus(p)
			if err != nil {
				return err
			}
			if s.Config.GetRejected() {
				return fmt.Errorf("%s still rejects: %s", name, s.Config.GetMessage())
			}
		}
		return c.healthy()
	})
}

func (c *cluster) testNonsense(t *testing.T) {
	index := c.kubectl("get", "service", c.release+"-controller", "-o", "jsonpath={.spec.clusterIP}")
	for name, addr := range map[string]string{"flared": c.service(), "index": net.JoinHostPort(index, "12120")} {
		lines := dialogue(t, addr, "\x00\x01 nonsense \xff\xfe\r\nGET / HTTP/1.1\r\nversion\r\nquit\r\n", "VERSION "+versionOf(t, addr))
		if len(lines) != 3 || lines[0] != "ERROR" || lines[1] != "ERROR" {
			t.Errorf("%s answered %q, want two ERROR lines and then the version", name, lines)
		}
	}
	c.readAll(client(c.service()), "after nonsense")
	if err := c.healthy(); err != nil {
		t.Error(err)
	}
}

func versionOf(t *testing.T, addr string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(conn, "version\r\n")
	line, err := bufio.NewReader(conn).ReadString('\n')
	v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION ")
	if err != nil || !ok {
		t.Fatalf("version: %q, %v", line, err)
	}
	return v
}

func (c *cluster) testInvalidFlareCluster(t *testing.T) {
	before, err := c.status()
	if err != nil {
		t.Fatal(err)
	}
	for patch, want := range map[string]string{
		`{"spec":{"partitions":1}}`:                        "partitions cannot be decreased",
		`{"spec":{"partitions":0}}`:                        "greater than or equal to 1",
		`{"spec":{"replicas":99}}`:                         "less than or equal to 8",
		`{"spec":{"partitionSize":2048}}`:                  "partitionSize is immutable",
		`{"spec":{"rocksdb":{"walTtlSeconds":"forever"}}}`: "must be of type integer",
		`{"spec":{"replication":{"mode":"maybe"}}}`:        "supported values",
	} {
		_, err := c.try("kubectl", "-n", c.namespace, "patch", "flarecluster", c.release, "--type=merge", "-p", patch)
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(want)) {
			t.Errorf("patch %s: %v, want a refusal that says %q", patch, err, want)
		}
	}
	after, err := c.status()
	if err != nil {
		t.Fatal(err)
	}
	if before.Status.MapVersion != after.Status.MapVersion {
		t.Errorf("refused changes moved the map from version %d to %d", before.Status.MapVersion, after.Status.MapVersion)
	}
	_, err = c.try("helm", "-n", c.namespace, "upgrade", c.release, c.chart(), "--reuse-values", "--set", "rocksdb.walTtlSecnds=1")
	if err == nil || !strings.Contains(err.Error(), "walTtlSecnds") {
		t.Errorf("a misspelt value: %v, want a refusal that names it", err)
	}
}

// testSecondController checks that of three controllers one leads, and that
// the others say so.
func (c *cluster) testSecondController(t *testing.T) {
	c.kubectl("scale", "deployment/"+c.release+"-controller", "--replicas=3")
	c.kubectl("rollout", "status", "deployment/"+c.release+"-controller", "--timeout=60s")
	c.eventually(30*time.Second, "one of three controllers leads", func() error {
		list, err := get[struct{ Items []pod }](c, "pods", "-l", "app.kubernetes.io/component=controller")
		if err != nil {
			return err
		}
		var leading []string
		for _, p := range list.Items {
			r, err := http.Get("http://" + p.addr(8080) + "/readyz")
			if err != nil {
				return err
			}
			r.Body.Close()
			labelled := p.Metadata.Labels["flarekv.io/leader"] == "true"
			if (r.StatusCode == http.StatusOK) != labelled {
				return fmt.Errorf("%s: readyz says %s, leader label %v", p.Metadata.Name, r.Status, labelled)
			}
			if labelled {
				leading = append(leading, p.Metadata.Name)
				continue
			}
			if conn, err := net.DialTimeout("tcp", p.addr(12120), time.Second); err == nil {
				conn.Close()
				return fmt.Errorf("%s does not lead and listens on the index port", p.Metadata.Name)
			}
		}
		if len(list.Items) != 3 || len(leading) != 1 {
			return fmt.Errorf("%d controllers, leading: %v", len(list.Items), leading)
		}
		return nil
	})
	c.kubectl("scale", "deployment/"+c.release+"-controller", "--replicas=2")
	c.eventually(60*time.Second, "healthy with two controllers again", c.healthy)
}

// testFullDisk fills the volume of a master but for 32 MiB: it refuses writes and says why, it
// keeps its role, and it recovers by itself.
func (c *cluster) testFullDisk(t *testing.T) {
	c.eventually(60*time.Second, "healthy", c.healthy)
	master := c.masterPod(1)
	probe := keyOf(1)
	m := client(c.service())
	lab := filepath.Join(c.root, "build/bin/lab")
	set := func() error { return m.Set(&memcache.Item{Key: probe, Value: []byte("v")}) }
	c.run(lab, "volume", "fill", c.namespace, "data-"+master, "33554432")
	c.eventually(20*time.Second, "writes are refused for the full disk", func() error {
		if err := set(); err == nil || !strings.Contains(err.Error(), "disk_full") {
			return fmt.Errorf("the answer is %v", err)
		}
		return nil
	})
	c.readAll(m, "from a node with a full disk")
	c.run(lab, "volume", "free", c.namespace, "data-"+master)
	c.eventually(20*time.Second, "writes are taken again", set)
	if now := c.masterPod(1); now != master {
		t.Errorf("the master moved from %s to %s because of a full disk", master, now)
	}
}

// testUninstall checks that nothing is left but the volume claims.
func (c *cluster) testUninstall(t *testing.T) {
	c.helm("uninstall", c.release, "--wait", "--timeout", "2m")
	// What Kubernetes itself puts into every namespace, and what it keeps as a record.
	own := []string{"configmap/kube-root-ca.crt", "serviceaccount/default"}
	c.eventually(60*time.Second, "nothing is left but volume claims", func() error {
		kinds := strings.Fields(c.run("kubectl", "api-resources", "--verbs=list", "--namespaced", "-o", "name"))
		kinds = slices.DeleteFunc(kinds, func(k string) bool { return strings.HasPrefix(k, "events") })
		left := strings.Fields(c.kubectl("get", strings.Join(kinds, ","), "-o", "name", "--ignore-not-found"))
		left = slices.DeleteFunc(left, func(o string) bool {
			return slices.Contains(own, o) || strings.HasPrefix(o, "persistentvolumeclaim/data-flare-")
		})
		for _, o := range c.clusterWide() {
			if !slices.Contains(c.foreign, o) {
				left = append(left, o)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	if n := len(strings.Fields(c.kubectl("get", "pvc", "-o", "name"))); n != 4 {
		t.Errorf("%d volume claims are left, want the 4 of the data pods", n)
	}
	// Installed again on the same volumes, it finds its data.
	c.helm("install", c.release, c.chart(), "--wait", "--timeout", "3m", "-f", filepath.Join(os.Getenv("FLARE_E2E_ROOT"), "build/images/values.yaml"))
	c.kubectl("wait", "flarecluster/"+c.release, "--for=condition=Ready", "--timeout=120s")
	c.readAll(client(c.service()), "after a new installation on the old volumes")
}
