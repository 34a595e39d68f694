package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kuberuntime "k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/proto/topology"
)

// TestDeathAtWrites leads a cluster through its life (formed, configured anew, its
// master lost, a replica added, one taken away) again and again. Each time the
// controller dies at another of its writes, before it is carried out or when it has
// been and nobody has heard; the next one takes over. Every life must end as the one
// without a death does, and nothing may have been done twice on the way.
func TestDeathAtWrites(t *testing.T) {
	calm := live(t, -1, false, nil)
	if want := []int{2, 3, 2}; !slices.Equal(calm.scales, want) || len(calm.writes) < 12 {
		t.Fatalf("scaled to %v, want %v, in %d writes: %v", calm.scales, want, len(calm.writes), calm.writes)
	}
	// The number of writes varies: what changes fast is told once or twice.
	var deaths atomic.Int32
	lives := 0
	t.Cleanup(func() {
		if n := int(deaths.Load()); n < lives*3/4 {
			t.Errorf("only %d of %d controllers died", n, lives)
		}
	})
	of := map[string][]int{} // the writes of each kind
	for at, what := range calm.writes {
		of[what] = append(of[what], at)
	}
	for at, what := range calm.writes {
		// Of each kind the first and the last, of the maps one in the middle: a life each.
		if i, n := slices.Index(of[what], at), len(of[what]); i > 0 && i < n-1 && (i != n/2 || !strings.HasSuffix(what, "configmaps")) {
			continue
		}
		for _, carried := range []bool{false, true} {
			lives++
			name := fmt.Sprintf("%d %s, carried out %t", at, what, carried)
			t.Run(strings.ReplaceAll(name, "/", "-"), func(t *testing.T) {
				t.Parallel()
				got := live(t, at, carried, &calm.end)
				if got.died {
					deaths.Add(1)
				}
				if !slices.Equal(got.scales, calm.scales) {
					t.Errorf("scaled to %v, want %v", got.scales, calm.scales)
				}
			})
		}
	}
}

// life is one cluster from its beginning to its end.
type life struct {
	*world
	at      int  // the write at which the controller dies, -1 for none
	carried bool // that one is carried out

	mu     sync.Mutex
	writes []string // what was written, death included
	dying  bool
	died   bool
	scales []int                   // what the StatefulSet was scaled to
	maps   map[uint64]topology.Map // handed out
	last   core.MapUpdate
	end    ending

	pace   *time.Ticker
	reign  int
	rt     *runtime.Runtime
	stop   func() error
	nodes  []*deathNode
	seeing uint64 // session of the last grant
}

// ending is what must be the same whoever died.
type ending struct {
	Nodes  []string
	Config map[string]string
	Pods   map[string]map[string]string // labels
	Status v1.FlareClusterStatus
}

// deathNode is a data node that does what it is told.
type deathNode struct {
	pod, key   string
	instance   int
	registered *runtime.Runtime // whom it has said hello to in this life of its
	held       int
	dead       bool
}

// Time in a life passes faster, so that its waits are short.
const (
	lifeSpeed = 100
	lifeStep  = 3 * time.Millisecond
	lifeLimit = 2 * time.Minute
)

// live leads a life, and has it end with end, or return its end when that is nil.
func live(t *testing.T, at int, carried bool, end *ending) *life {
	t.Helper()
	l := &life{world: newWorld(t), at: at, carried: carried, maps: map[uint64]topology.Map{}, pace: time.NewTicker(lifeStep)}
	defer l.pace.Stop()
	l.addSet(0)
	l.cluster.Spec.Replicas = 2
	l.update(l.cluster)
	// Above all other reactors, so that it decides whether they see a request.
	l.kube.PrependReactor("*", "*", l.guard)
	l.dynamic.PrependReactor("*", "*", l.guard)
	l.lead()
	defer func() {
		if err := l.stop(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the last controller ended with %v", err)
		}
	}()

	healthy := func(replicas int) func(core.Status) bool {
		return func(s core.Status) bool {
			return s.Phase == core.PhaseRunning && len(s.Partitions) == 1 && len(s.Partitions[0].InSync) == replicas-1 && s.NodesWanted == replicas
		}
	}
	change := func(f func(*v1.FlareClusterSpec)) {
		l.cluster.Generation++
		f(&l.cluster.Spec)
		fc, err := GetCluster(t.Context(), l.cfg)
		if err != nil {
			t.Fatal(err)
		}
		l.cluster.Status = fc.Status
		l.update(l.cluster)
	}
	l.until("formed", healthy(2))
	change(func(s *v1.FlareClusterSpec) { s.RocksDB.WALTTLSeconds = new(int64(777)) })
	l.until("configured", func(s core.Status) bool { return s.Generation == 2 && s.ConfigReason == core.ReasonApplied })
	lost := l.node(l.last.Map.Nodes[slices.IndexFunc(l.last.Map.Nodes, func(n topology.Node) bool { return n.Role == topology.Master })].Key())
	lost.dead = true
	l.until("failed over", func(s core.Status) bool {
		return len(s.Partitions) > 0 && s.Partitions[0].Master != "" && s.Partitions[0].Master != lost.key
	})
	lost.dead, lost.registered = false, nil
	lost.instance++
	l.until("both again", healthy(2))
	change(func(s *v1.FlareClusterSpec) { s.Replicas = 3 })
	l.until("three", healthy(3))
	change(func(s *v1.FlareClusterSpec) { s.Replicas = 2 })
	l.until("two again", func(s core.Status) bool { return healthy(2)(s) && l.podCount() == 2 })

	l.quiet(end)
	return l
}

// quiet waits for the end: the one that is wanted, or one after which nothing more is
// written.
func (l *life) quiet(want *ending) {
	l.t.Helper()
	written, since := -1, 0
	for deadline := time.Now().Add(lifeLimit); ; since++ {
		l.second()
		l.finish()
		l.mu.Lock()
		n := len(l.writes)
		l.mu.Unlock()
		if n != written {
			written, since = n, 0
		}
		if want == nil && since > 150 || want != nil && reflect.DeepEqual(l.end, *want) {
			return
		}
		if time.Now().After(deadline) {
			state, err := l.rt.Snapshot(l.t.Context())
			l.t.Fatalf("ends with\n%+v\nwant\n%+v\nthe core knows (%v) members %+v, nodes %+v", l.end, want, err, state.Members, state.Durable.Nodes)
		}
	}
}

// guard is what every request to the API server passes.
func (l *life) guard(action clienttesting.Action) (bool, kuberuntime.Object, error) {
	name := action.GetResource().Resource
	if action.GetSubresource() != "" {
		name += "/" + action.GetSubresource()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	unreachable := &net.OpError{Op: "read", Err: syscall.ECONNRESET}
	write := name == "configmaps" && action.GetVerb() != "get" && action.GetVerb() != "list" && action.GetVerb() != "watch" ||
		action.GetVerb() == "patch" && name != "events"
	if l.dying && write {
		return true, nil, unreachable
	}
	if !write {
		return false, nil, nil
	}
	n := len(l.writes)
	l.writes = append(l.writes, action.GetVerb()+" "+name)
	if n == l.at {
		l.dying, l.died = true, true
		if !l.carried {
			return true, nil, unreachable
		}
	}
	if name == "statefulsets/scale" {
		var patch struct{ Spec struct{ Replicas int } }
		if err := json.Unmarshal(action.(clienttesting.PatchAction).GetPatch(), &patch); err != nil {
			l.t.Error(err)
		}
		l.scales = append(l.scales, patch.Spec.Replicas)
	}
	return false, nil, nil
}

// Publish takes a map from the controller, if that is still alive.
func (l *life) Publish(u core.MapUpdate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dying {
		return
	}
	if other, ok := l.maps[u.Map.Version]; ok && !other.Equal(u.Map) {
		l.t.Errorf("two maps of version %d:\n%v\n%v", u.Map.Version, other, u.Map)
	}
	if u.Map.Version < l.last.Map.Version {
		l.t.Errorf("map %d after %d", u.Map.Version, l.last.Map.Version)
	}
	var saved core.Durable
	o, err := l.kube.Tracker().Get(corev1.SchemeGroupVersion.WithResource("configmaps"), namespace, "flare-node-map")
	if err == nil {
		err = json.Unmarshal([]byte(o.(*corev1.ConfigMap).Data[KeyState]), &saved)
	}
	if err != nil || saved.Version < u.Map.Version {
		l.t.Errorf("map %d was handed out, %d is saved (%v)", u.Map.Version, saved.Version, err)
	}
	l.maps[u.Map.Version], l.last = u.Map, u
}

// lead starts the next controller.
func (l *life) lead() {
	l.reign++
	cfg := l.cfg
	cfg.PodName = fmt.Sprintf("ctl-%d", l.reign)
	cfg.Resync = 30 * time.Second
	fresh, err := GetCluster(l.t.Context(), cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	b, err := NewBackend(cfg, fresh)
	if err != nil {
		l.t.Fatal(err)
	}
	begun := time.Now()
	l.rt = runtime.New(runtime.Config{Backend: b, Broadcaster: l, TickEvery: lifeStep,
		Now: func() time.Time { return begun.Add(lifeSpeed * time.Since(begun)) }})
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan error, 1)
	rt := l.rt
	go func() { done <- rt.Run(ctx) }()
	l.stop = func() error {
		cancel()
		err := <-done
		b.Close()
		return err
	}
}

// until lets time pass until the cluster is in a state for a while.
func (l *life) until(what string, ok func(core.Status) bool) {
	l.t.Helper()
	good := 0
	for deadline := time.Now().Add(lifeLimit); time.Now().Before(deadline); {
		l.second()
		if s := l.rt.Topology().Status; ok(s) {
			if good++; good == 5 {
				return
			}
		} else {
			good = 0
		}
	}
	l.t.Fatalf("never %s: %+v\nnodes %+v\nwrites %v", what, l.rt.Topology(), l.nodes, l.writes)
}

// second is a moment in which everybody does what is due.
func (l *life) second() {
	l.mu.Lock()
	dying := l.dying
	l.mu.Unlock()
	if dying {
		l.stop()
		l.mu.Lock()
		l.dying = false
		l.mu.Unlock()
		l.lead()
	}
	l.kubelet()
	for _, n := range l.nodes {
		l.work(n)
	}
	l.mu.Lock()
	last := l.last.Map
	l.mu.Unlock()
	for _, n := range last.Nodes { // who is gone answers no ping
		if !slices.ContainsFunc(l.nodes, func(x *deathNode) bool { return x.key == n.Key() }) {
			l.rt.Observe(core.Pinged{Key: n.Key(), Outcome: core.PingRefused})
		}
	}
	<-l.pace.C
}

func (l *life) podCount() int {
	pods, err := l.kube.CoreV1().Pods(namespace).List(l.t.Context(), metav1.ListOptions{LabelSelector: "app=node"})
	if err != nil {
		l.t.Fatal(err)
	}
	return len(pods.Items)
}

// kubelet makes the pods be as many as the StatefulSet says.
func (l *life) kubelet() {
	want := l.replicas()
	for have := len(l.nodes); have < want; have++ {
		pod := fmt.Sprintf("flare-%d", have)
		l.addPod(pod, map[string]string{"app": "node"}, nil)
		l.nodes = append(l.nodes, &deathNode{pod: pod, key: key(pod), instance: 1, held: -1})
	}
	for len(l.nodes) > want {
		n := l.nodes[len(l.nodes)-1]
		if m, ok := l.last.Map.Find(n.key); ok && m.Partition >= 0 {
			l.t.Errorf("%s is taken away and is %v of partition %d", n.pod, m.Role, m.Partition)
		}
		l.do(n, core.Command{Verb: core.VerbShutdown})
		l.rt.Observe(core.AgentLost{Key: n.key})
		if err := l.kube.CoreV1().Pods(namespace).Delete(l.t.Context(), n.pod, metav1.DeleteOptions{}); err != nil {
			l.t.Fatal(err)
		}
		l.nodes = l.nodes[:len(l.nodes)-1]
	}
}

func (l *life) node(key string) *deathNode {
	for _, n := range l.nodes {
		if n.key == key {
			return n
		}
	}
	l.t.Fatalf("no node %s", key)
	return nil
}

// do sends a command of a node; false when it was refused or not answered.
func (l *life) do(n *deathNode, c core.Command) bool {
	c.Name, c.Port, _ = topology.SplitKey(n.key)
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Second)
	defer cancel()
	r, err := l.rt.Do(ctx, c)
	return err == nil && r.Err == ""
}

// work is what flared and its agent do all the time.
func (l *life) work(n *deathNode) {
	instance := fmt.Sprintf("%s#%d", n.pod, n.instance)
	l.mu.Lock()
	me, _ := l.last.Map.Find(n.key)
	version := l.last.Map.Version
	l.mu.Unlock()
	topo := l.rt.Topology()
	report := core.AgentReport{Key: n.key, AgentStarted: 1, Alive: !n.dead, Instance: instance, Serving: true, MapVersion: version,
		Role: me.Role, State: me.State, Partition: me.Partition, DataPartition: n.held, History: "h",
		LSN: topology.LSN{Epoch: me.Epoch, Index: 10}, ConfigGeneration: topo.Spec.Generation}
	if me.Name == "" || me.Role == topology.Proxy {
		report.Partition = -1
	}
	if n.held < 0 {
		report.LSN, report.History = topology.LSN{}, ""
	}
	if n.dead {
		l.rt.Observe(report)
		l.rt.Observe(core.Pinged{Key: n.key, Outcome: core.PingRefused})
		return
	}
	if n.registered == nil {
		hello := core.Command{Verb: core.VerbHello, Hello: core.Hello{Instance: instance, Partition: n.held}}
		l.do(n, core.Command{Verb: core.VerbAdd})
		if !l.do(n, hello) {
			return
		}
		n.registered = l.rt
	}
	l.rt.Observe(report)
	l.rt.Observe(core.Pinged{Key: n.key, Outcome: core.PingOK})
	if me.Partition < 0 || me.Name == "" {
		return
	}
	n.held = me.Partition
	if me.Role == topology.Slave && me.State == topology.Prepare {
		l.seeing++
		l.do(n, core.Command{Verb: core.VerbState, State: topology.Active, HasSession: true, Epoch: me.Epoch, Session: l.seeing})
	}
}

// finish notes how it ends.
func (l *life) finish() {
	fc, err := GetCluster(l.t.Context(), l.cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.end = ending{Status: fc.Status}
	l.end.Status.MapVersion = 0
	for i := range l.end.Status.Conditions {
		l.end.Status.Conditions[i].LastTransitionTime = metav1.Time{}
	}
	l.mu.Lock()
	last := l.last.Map
	l.mu.Unlock()
	// Which of the two is the master is a matter of who came first.
	swap := strings.NewReplacer()
	if n, ok := last.Find(key("flare-0")); ok && n.Role == topology.Master {
		swap = strings.NewReplacer("flare-0", "flare-1", "flare-1", "flare-0")
	}
	for i, p := range l.end.Status.Partitions {
		l.end.Status.Partitions[i].Master = swap.Replace(p.Master)
		for k := range p.InSync {
			p.InSync[k] = swap.Replace(p.InSync[k])
		}
	}
	for _, n := range last.Nodes {
		l.end.Nodes = append(l.end.Nodes, fmt.Sprintf("%s %v %v p%d epoch %d", swap.Replace(n.Key()), n.Role, n.State, n.Partition, n.Epoch))
	}
	slices.Sort(l.end.Nodes)
	l.end.Config = l.configMap("flare-config").Data
	l.end.Pods = map[string]map[string]string{}
	for _, n := range l.nodes {
		l.end.Pods[swap.Replace(n.pod)] = l.pod(n.pod).Labels
	}
}
