package kube

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kuberuntime "k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

func (w *world) addSet(replicas int32) {
	w.t.Helper()
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "flare", Namespace: namespace}, Spec: appsv1.StatefulSetSpec{Replicas: &replicas}}
	if _, err := w.kube.AppsV1().StatefulSets(namespace).Create(w.t.Context(), set, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) addNode(name, zone string) {
	w.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{DefaultZoneLabel: zone}}}
	if _, err := w.kube.CoreV1().Nodes().Create(w.t.Context(), n, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// watching is a Watch that runs.
type watching struct {
	t      *testing.T
	inputs chan core.Input
	done   chan error
	cancel context.CancelFunc
}

func (w *world) watch(b *Backend) *watching {
	ctx, cancel := context.WithCancel(w.t.Context())
	x := &watching{t: w.t, inputs: make(chan core.Input, 1000), done: make(chan error, 1), cancel: cancel}
	go func() { x.done <- b.Watch(ctx, func(in core.Input) { x.inputs <- in }) }()
	w.t.Cleanup(cancel)
	return x
}

// until returns the first input that ok accepts.
func (x *watching) until(what string, ok func(core.Input) bool) core.Input {
	x.t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case in := <-x.inputs:
			if ok(in) {
				return in
			}
		case err := <-x.done:
			x.t.Fatalf("Watch ended (%v) before: %s", err, what)
		case <-deadline:
			x.t.Fatalf("never observed: %s", what)
		}
	}
}

func (x *watching) members(what string, ok func(core.Members) bool) core.Members {
	x.t.Helper()
	return x.until(what, func(in core.Input) bool {
		m, is := in.(core.MembersChanged)
		return is && ok(m.Members)
	}).(core.MembersChanged).Members
}

func (x *watching) spec(what string, ok func(core.Spec) bool) core.Spec {
	x.t.Helper()
	return x.until(what, func(in core.Input) bool {
		s, is := in.(core.SpecChanged)
		return is && ok(s.Spec)
	}).(core.SpecChanged).Spec
}

func (x *watching) end(what string) error {
	x.t.Helper()
	select {
	case err := <-x.done:
		return err
	case <-time.After(time.Minute):
		x.t.Fatalf("Watch did not end: %s", what)
		return nil
	}
}

func key(pod string) string { return pod + ".flare-nodes.prod.svc:12121" }

func TestWatchObservesSpecAndMembers(t *testing.T) {
	w := newWorld(t)
	w.addNode("n1", "zone-a")
	w.addSet(2)
	w.addPod("flare-0", map[string]string{"app": "node"}, func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
	x := w.watch(w.backend("ctl-0"))

	spec := x.spec("the spec", func(core.Spec) bool { return true })
	wantSpec := core.Spec{Known: true, Generation: 1, Partitions: 1, Replicas: 2, Meta: topology.DefaultMeta(), Config: v1.RenderConfig(w.cluster.Spec),
		MinInSync:   1,
		Failover:    core.FailoverPolicy{MinUp: core.Million / 2, Grace: 120_000},
		OrphanPurge: core.OrphanPurge{Enabled: true, Delay: 3_600_000}}
	if spec != wantSpec {
		t.Errorf("spec %+v, want %+v", spec, wantSpec)
	}
	members := x.members("the members", func(core.Members) bool { return true })
	want := core.Members{Known: true, Count: 2, List: []core.Member{
		{Key: key("flare-0"), Ordinal: 0, Zone: "zone-a", Exists: true},
		{Key: key("flare-1"), Ordinal: 1},
	}}
	if !reflect.DeepEqual(members, want) {
		t.Errorf("members %+v, want %+v", members, want)
	}

	// A node whose Kubernetes node says nothing of a zone is a zone of its own.
	w.addPod("flare-1", map[string]string{"app": "node"}, func(p *corev1.Pod) { p.Spec.NodeName = "n2" })
	x.members("flare-1 in zone n2", func(m core.Members) bool { return m.List[1].Exists && m.List[1].Zone == "n2" })

	p := w.pod("flare-1")
	p.DeletionTimestamp = new(metav1.Now())
	if _, err := w.kube.CoreV1().Pods(namespace).Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	x.members("flare-1 terminating", func(m core.Members) bool { return m.List[1].Exists && m.List[1].Terminating })

	if err := w.kube.CoreV1().Pods(namespace).Delete(t.Context(), "flare-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	x.members("flare-1 gone", func(m core.Members) bool { return !m.List[1].Exists })

	fc := w.cluster.DeepCopy()
	fc.Generation, fc.Spec.Replication.Mode = 2, v1.ReplicationAsync
	clusters := w.dynamic.Resource(v1.GroupVersionResource).Namespace(namespace)
	if _, err := clusters.Update(t.Context(), asUnstructured(t, fc), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	x.spec("the new spec", func(s core.Spec) bool {
		return s.Generation == 2 && strings.Contains(s.Config, "replication-type = async\n")
	})

	if err := clusters.Delete(t.Context(), "flare", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := x.end("after the FlareCluster was deleted"); !errors.Is(err, ErrClusterGone) {
		t.Errorf("Watch ended with %v, want ErrClusterGone", err)
	}
}

func TestWatchPutsBackWhatOthersChange(t *testing.T) {
	w := newWorld(t)
	w.addSet(1)
	w.addNodes(1)
	b := w.backend("ctl-0")
	if err := b.WriteConfig(t.Context(), core.WriteConfig{Generation: 1, Text: "a = 1\n"}); err != nil {
		t.Fatal(err)
	}
	if err := b.LabelNodes(t.Context(), []core.NodeLabel{{Key: key("flare-0"), Role: topology.Master, Serving: true}}); err != nil {
		t.Fatal(err)
	}
	x := w.watch(b)
	x.members("the members", func(core.Members) bool { return true })

	cm := w.configMap("flare-config")
	cm.Data[KeyConfig] = "a = 2\n"
	if _, err := w.kube.CoreV1().ConfigMaps(namespace).Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the configuration is put back", func() bool { return w.configMap("flare-config").Data[KeyConfig] == "a = 1\n" })

	// The pod is made anew under its old name, without labels.
	if err := w.kube.CoreV1().Pods(namespace).Delete(t.Context(), "flare-0", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.addNodes(1)
	eventually(t, "the new pod is labelled", func() bool { return w.pod("flare-0").Labels[LabelServing] == "true" })
}

func TestWatchWithoutPermission(t *testing.T) {
	forbid := func(w *world, resource string) {
		w.kube.PrependReactor("list", resource, func(a clienttesting.Action) (bool, kuberuntime.Object, error) {
			return true, nil, apierrors.NewForbidden(a.GetResource().GroupResource(), "", errors.New("no role"))
		})
	}
	t.Run("pods", func(t *testing.T) {
		w := newWorld(t)
		forbid(w, "pods")
		err := w.watch(w.backend("ctl-0")).end("pods may not be listed")
		if !apierrors.IsForbidden(err) || !strings.HasPrefix(err.Error(), "list pods: Forbidden") {
			t.Errorf("Watch ended with %v", err)
		}
	})
	t.Run("nodes", func(t *testing.T) {
		w := newWorld(t)
		forbid(w, "nodes")
		w.addSet(1)
		w.addPod("flare-0", map[string]string{"app": "node"}, func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
		x := w.watch(w.backend("ctl-0"))
		x.members("the node's name for its zone", func(m core.Members) bool { return m.List[0].Zone == "n1" })
	})
}

func TestMembersOf(t *testing.T) {
	w := newWorld(t)
	cfg := w.cfg
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	at := func(node string) place { return place{zone: node, cordoned: node == "cordoned"} }
	pod := func(name string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: phase}}
	}
	set := func(replicas, start int32) *appsv1.StatefulSet {
		return &appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{Replicas: &replicas, Ordinals: &appsv1.StatefulSetOrdinals{Start: start}}}
	}
	for _, tt := range []struct {
		name string
		set  *appsv1.StatefulSet
		pods []*corev1.Pod
		want core.Members
	}{
		{"no StatefulSet", nil, []*corev1.Pod{pod("flare-0", corev1.PodRunning)}, core.Members{}},
		{"an evicted pod does not count as there", set(1, 0), []*corev1.Pod{pod("flare-0", corev1.PodFailed)},
			core.Members{Known: true, Count: 1, List: []core.Member{{Key: key("flare-0")}}}},
		{"a pod beyond the scale", set(1, 0), []*corev1.Pod{pod("flare-0", corev1.PodRunning), pod("flare-1", corev1.PodRunning)},
			core.Members{Known: true, Count: 1, List: []core.Member{
				{Key: key("flare-0"), Zone: "n", Exists: true}, {Key: key("flare-1"), Ordinal: 1, Zone: "n", Exists: true}}}},
		{"on a machine that is being drained", set(1, 0), []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "flare-0"}, Spec: corev1.PodSpec{NodeName: "cordoned"}}},
			core.Members{Known: true, Count: 1, List: []core.Member{{Key: key("flare-0"), Zone: "cordoned", Exists: true, Draining: true}}}},
		{"ordinals that begin later", set(1, 5), nil,
			core.Members{Known: true, Count: 1, List: []core.Member{{Key: key("flare-5"), Ordinal: 5}}}},
		{"pods of other names", set(0, 0), []*corev1.Pod{pod("flare-00", corev1.PodRunning), pod("flare-x", corev1.PodRunning), pod("other-0", corev1.PodRunning)},
			core.Members{Known: true, List: []core.Member{}}},
		{"keys sort as strings", set(11, 0), nil, core.Members{Known: true, Count: 11, List: func() (l []core.Member) {
			for _, i := range []int{0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9} {
				l = append(l, core.Member{Key: key(cfg.podName(i)), Ordinal: i})
			}
			return l
		}()}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := cfg.membersOf(tt.set, tt.pods, at); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestConfigNamesWhatIsWrong(t *testing.T) {
	good := newWorld(t).cfg
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no cluster", func(c *Config) { c.Cluster = "" }, "no cluster given"},
		{"no selector", func(c *Config) { c.PodSelector = "" }, "no pod selector given"},
		{"bad selector", func(c *Config) { c.ControllerSelector = "a=b=c" }, "controller selector"},
		{"key without pod", func(c *Config) { c.KeyFormat = "x:{port}" }, "must contain {pod}"},
		{"key without port", func(c *Config) { c.KeyFormat = "{pod}" }, "end with :{port}"},
		{"port", func(c *Config) { c.NodePort = 70000 }, "node port 70000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			tt.change(&c)
			if err := c.complete(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestReasonsAreDocumented(t *testing.T) {
	for api, decided := range map[string]string{
		v1.ReasonHealthy: core.ReasonHealthy, v1.ReasonForming: core.ReasonForming, v1.ReasonMasterDown: core.ReasonMasterDown,
		v1.ReasonReplicaMissing: core.ReasonReplicaMissing, v1.ReasonReplicaCatchingUp: core.ReasonReplicaCatchUp,
		v1.ReasonScaling: core.ReasonScaling, v1.ReasonAsWanted: core.ReasonAsWanted, v1.ReasonApplied: core.ReasonApplied,
		v1.ReasonApplying: core.ReasonApplying, v1.ReasonPendingRestart: core.ReasonPendingRestart, v1.ReasonRejected: core.ReasonRejected,
		v1.ReasonWaitingForNodes: core.ReasonWaitingForNodes, v1.ReasonWaitingForData: core.ReasonWaitingForData,
		v1.ReasonMasterDataLost: core.ReasonMasterDataLost, v1.ReasonScaleInWaits: core.ReasonScaleInWaits,
		v1.ReasonPartitionReduction: core.ReasonPartitionReduction,
		v1.ReasonPartitionFilling:   core.ReasonPartitionFilling, v1.ReasonPartitionSwitching: core.ReasonPartitionSwitching,
		v1.ReasonMetaChange: core.ReasonMetaChange, v1.ReasonSpecInvalid: core.ReasonSpecInvalid, v1.ReasonPersistFailed: core.ReasonPersistFailed,
	} {
		if api != decided {
			t.Errorf("the API says %q, the core %q", api, decided)
		}
	}
}
