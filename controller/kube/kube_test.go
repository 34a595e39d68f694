package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kuberuntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/proto/topology"
)

const namespace = "prod"

// world is a fake API server with one cluster in it.
type world struct {
	t       *testing.T
	kube    *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	cfg     Config
	cluster *v1.FlareCluster
	now     time.Time
	pods    int // made so far
	// away makes every request for a Lease fail as if the API server were away.
	away atomic.Bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	fc := &v1.FlareCluster{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: v1.Kind},
		ObjectMeta: metav1.ObjectMeta{Name: "flare", Namespace: namespace, UID: "fc-uid", Generation: 1},
		Spec:       v1.FlareClusterSpec{Partitions: 1, Replicas: 2},
	}
	fc.Spec.Default()
	w := &world{
		t:       t,
		kube:    fake.NewClientset(),
		dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(kuberuntime.NewScheme(), map[schema.GroupVersionResource]string{v1.GroupVersionResource: "FlareClusterList"}, asUnstructured(t, fc)),
		cluster: fc,
		now:     time.Unix(1_800_000_000, 0),
	}
	checkVersions(w.kube)
	applyStatus(t, w.dynamic)
	refuseToRevive(t, w.kube)
	w.kube.PrependReactor("*", "leases", func(clienttesting.Action) (bool, kuberuntime.Object, error) {
		return w.away.Load(), nil, apierrors.NewServiceUnavailable("the API server is away")
	})
	w.cfg = Config{
		Namespace: namespace, Cluster: "flare", PodName: "ctl-0",
		PodSelector: "app=node", ControllerSelector: "app=controller",
		Kube: w.kube, Dynamic: w.dynamic,
		Resync: time.Hour,
		Now:    func() time.Time { return w.now },
	}
	return w
}

// checkVersions makes the fake do for ConfigMaps what an API server does: each
// write gives a new resourceVersion, and an update of an older one conflicts.
func checkVersions(kube *fake.Clientset) {
	var mu sync.Mutex
	last := 0
	kube.PrependReactor("*", "configmaps", func(action clienttesting.Action) (bool, kuberuntime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		var cm *corev1.ConfigMap
		switch a := action.(type) {
		case clienttesting.CreateAction: // an UpdateAction is one too
			cm = a.GetObject().(*corev1.ConfigMap)
		default:
			return false, nil, nil
		}
		if action.GetVerb() == "update" {
			o, err := kube.Tracker().Get(action.GetResource(), action.GetNamespace(), cm.Name)
			if err != nil {
				return true, nil, err
			}
			if have := o.(*corev1.ConfigMap).ResourceVersion; cm.ResourceVersion != "" && cm.ResourceVersion != have {
				return true, nil, apierrors.NewConflict(corev1.Resource("configmaps"), cm.Name, errors.New("changed"))
			}
		}
		last++
		cm.ResourceVersion = fmt.Sprint(last)
		return false, nil, nil
	})
}

// refuseToRevive makes the fake do for pods what an API server does: an apply with the
// UID of a pod that is not there any more makes none.
func refuseToRevive(t *testing.T, kube *fake.Clientset) {
	kube.PrependReactor("patch", "pods", func(action clienttesting.Action) (bool, kuberuntime.Object, error) {
		p := action.(clienttesting.PatchActionImpl)
		if p.GetPatchType() != types.ApplyPatchType {
			return false, nil, nil
		}
		var sent struct{ Metadata struct{ UID types.UID } }
		if err := json.Unmarshal(p.GetPatch(), &sent); err != nil || sent.Metadata.UID == "" {
			t.Errorf("applied to a pod without its UID: %s (%v)", p.GetPatch(), err)
		}
		o, err := kube.Tracker().Get(p.GetResource(), p.GetNamespace(), p.GetName())
		if apierrors.IsNotFound(err) || err == nil && o.(*corev1.Pod).UID != sent.Metadata.UID {
			return true, nil, apierrors.NewConflict(corev1.Resource("pods"), p.GetName(), errors.New("uid mismatch"))
		}
		return false, nil, nil
	})
}

// applyStatus makes the fake do for the status of FlareClusters what a server-side
// apply by their only writer does: it becomes what was sent.
func applyStatus(t *testing.T, client *dynamicfake.FakeDynamicClient) {
	client.PrependReactor("patch", "flareclusters", func(action clienttesting.Action) (bool, kuberuntime.Object, error) {
		p := action.(clienttesting.PatchActionImpl)
		if p.GetPatchType() != types.ApplyPatchType || p.GetSubresource() != "status" {
			t.Errorf("%v patch of %s %q", p.GetPatchType(), p.GetName(), p.GetSubresource())
		}
		o, err := client.Tracker().Get(p.GetResource(), p.GetNamespace(), p.GetName())
		if err != nil {
			return true, nil, err
		}
		fc := o.(*unstructured.Unstructured).DeepCopy()
		var sent map[string]any
		if err := json.Unmarshal(p.GetPatch(), &sent); err != nil {
			t.Error(err)
		}
		fc.Object["status"] = sent["status"]
		return true, fc, client.Tracker().Update(p.GetResource(), fc, p.GetNamespace())
	})
}

func asUnstructured(t *testing.T, fc *v1.FlareCluster) *unstructured.Unstructured {
	t.Helper()
	m, err := kuberuntime.DefaultUnstructuredConverter.ToUnstructured(fc)
	if err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: m}
}

func (w *world) backend(name string) *Backend {
	w.t.Helper()
	cfg := w.cfg
	cfg.PodName = name
	b, err := NewBackend(cfg, w.cluster)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(b.Close)
	return b
}

func (w *world) addPod(name string, labels map[string]string, change func(*corev1.Pod)) {
	w.t.Helper()
	w.pods++
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: labels, UID: types.UID(fmt.Sprint("pod-", w.pods))}}
	if change != nil {
		change(p)
	}
	if _, err := w.kube.CoreV1().Pods(namespace).Create(w.t.Context(), p, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) addNodes(count int) {
	for i := range count {
		w.addPod(fmt.Sprintf("flare-%d", i), map[string]string{"app": "node"}, nil)
	}
}

func (w *world) pod(name string) *corev1.Pod {
	w.t.Helper()
	p, err := w.kube.CoreV1().Pods(namespace).Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) configMap(name string) *corev1.ConfigMap {
	w.t.Helper()
	cm, err := w.kube.CoreV1().ConfigMaps(namespace).Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return cm
}

// writes counts the requests of these verbs on a resource, such as "pods" or
// "statefulsets/scale".
func (w *world) writes(resource string, verbs ...string) int {
	n := 0
	for _, a := range w.kube.Actions() {
		name := a.GetResource().Resource
		if a.GetSubresource() != "" {
			name += "/" + a.GetSubresource()
		}
		for _, v := range verbs {
			if name == resource && a.GetVerb() == v {
				n++
			}
		}
	}
	return n
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func durable(seq uint64) core.Durable {
	d := core.New(core.Durable{}).Durable
	d.Seq, d.Version = seq, seq
	return d
}

func TestStateSurvivesTheController(t *testing.T) {
	w := newWorld(t)
	first := w.backend("ctl-0")
	if _, found, err := first.Load(t.Context()); found || err != nil {
		t.Fatalf("Load of nothing: found %v, %v", found, err)
	}
	for seq := range uint64(3) {
		if err := first.Persist(t.Context(), durable(seq+1)); err != nil {
			t.Fatal(err)
		}
	}
	cm := w.configMap("flare-node-map")
	if o := cm.OwnerReferences; len(o) != 1 || o[0].UID != "fc-uid" || o[0].Kind != "FlareCluster" || o[0].APIVersion != "flarekv.io/v1" {
		t.Errorf("owner: %+v", o)
	}
	d, found, err := w.backend("ctl-1").Load(t.Context())
	if err != nil || !found || d.Seq != 3 || d.Format != core.FormatVersion {
		t.Errorf("Load: %+v, found %v, %v", d, found, err)
	}
}

func TestFormerLeaderCannotWrite(t *testing.T) {
	w := newWorld(t)
	former, next := w.backend("ctl-0"), w.backend("ctl-1")
	if _, _, err := former.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := former.Persist(t.Context(), durable(1)); err != nil {
		t.Fatal(err)
	}
	// Taking over is enough, before the new leader has changed anything.
	if d, found, err := next.Load(t.Context()); err != nil || !found || d.Seq != 1 {
		t.Fatalf("Load: %+v, found %v, %v", d, found, err)
	}
	if err := former.Persist(t.Context(), durable(2)); !errors.Is(err, runtime.ErrFenced) {
		t.Errorf("the former leader's write: %v, want ErrFenced", err)
	}
	if err := next.Persist(t.Context(), durable(2)); err != nil {
		t.Errorf("the new leader's write: %v", err)
	}
}

func TestFirstWriteOfTwoControllers(t *testing.T) {
	w := newWorld(t)
	a, b := w.backend("ctl-0"), w.backend("ctl-1")
	for _, x := range []*Backend{a, b} {
		if _, found, err := x.Load(t.Context()); found || err != nil {
			t.Fatalf("Load: found %v, %v", found, err)
		}
	}
	if err := a.Persist(t.Context(), durable(1)); err != nil {
		t.Fatal(err)
	}
	if err := b.Persist(t.Context(), durable(1)); !errors.Is(err, runtime.ErrFenced) {
		t.Errorf("the second's first write: %v, want ErrFenced", err)
	}
}

// An answer that is lost on the way leaves a write of unknown outcome; that it
// was done must not look like another controller.
func TestLostAnswerIsNotAnotherWriter(t *testing.T) {
	w := newWorld(t)
	b := w.backend("ctl-0")
	if _, _, err := b.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Persist(t.Context(), durable(1)); err != nil {
		t.Fatal(err)
	}
	lose := true
	w.kube.PrependReactor("update", "configmaps", func(a clienttesting.Action) (bool, kuberuntime.Object, error) {
		if !lose {
			return false, nil, nil
		}
		lose = false
		cm := a.(clienttesting.UpdateAction).GetObject().(*corev1.ConfigMap).DeepCopy()
		cm.ResourceVersion = "done-but-not-told"
		if err := w.kube.Tracker().Update(a.GetResource(), cm, namespace); err != nil {
			t.Error(err)
		}
		return true, nil, context.DeadlineExceeded
	})
	if err := b.Persist(t.Context(), durable(2)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Persist without an answer: %v", err)
	}
	if err := b.Persist(t.Context(), durable(3)); err != nil {
		t.Fatalf("the next Persist: %v", err)
	}
	var d core.Durable
	if err := json.Unmarshal([]byte(w.configMap("flare-node-map").Data[KeyState]), &d); err != nil || d.Seq != 3 {
		t.Errorf("state: seq %d, %v, want 3", d.Seq, err)
	}
}

func TestDeletedStateIsWrittenAnew(t *testing.T) {
	w := newWorld(t)
	b := w.backend("ctl-0")
	if _, _, err := b.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Persist(t.Context(), durable(1)); err != nil {
		t.Fatal(err)
	}
	if err := w.kube.CoreV1().ConfigMaps(namespace).Delete(t.Context(), "flare-node-map", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Persist(t.Context(), durable(2)); err != nil {
		t.Fatalf("Persist after the deletion: %v", err)
	}
	w.configMap("flare-node-map")
}

func TestConfigIsWrittenOnlyWhenItDiffers(t *testing.T) {
	w := newWorld(t)
	w.addNodes(2)
	b := w.backend("ctl-0")
	write := func(generation int64, text string) {
		t.Helper()
		if err := b.WriteConfig(t.Context(), core.WriteConfig{Generation: generation, Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	write(1, "a = 1\n")
	cm := w.configMap("flare-config")
	if cm.Data[KeyConfig] != "a = 1\n" || cm.Data[KeyGeneration] != "1" || len(cm.OwnerReferences) != 1 {
		t.Errorf("ConfigMap: %+v", cm)
	}
	hash := w.pod("flare-0").Annotations[AnnotationConfigHash]
	if hash == "" || w.pod("flare-1").Annotations[AnnotationConfigHash] != hash {
		t.Errorf("annotation %q on flare-0, %q on flare-1", hash, w.pod("flare-1").Annotations[AnnotationConfigHash])
	}
	writes, patches := w.writes("configmaps", "patch"), w.writes("pods", "patch")
	write(1, "a = 1\n")
	if n := w.writes("configmaps", "patch"); n != writes {
		t.Errorf("the same again: %d writes, want %d", n, writes)
	}
	if n := w.writes("pods", "patch"); n != patches {
		t.Errorf("the same again: %d pod patches, want %d", n, patches)
	}
	write(2, "a = 2\n")
	if cm := w.configMap("flare-config"); cm.Data[KeyConfig] != "a = 2\n" || cm.Data[KeyGeneration] != "2" {
		t.Errorf("ConfigMap after a change: %v", cm.Data)
	}
	if got := w.pod("flare-0").Annotations[AnnotationConfigHash]; got == hash {
		t.Error("the pods were not touched after a change")
	}
}

func TestLabels(t *testing.T) {
	w := newWorld(t)
	w.addNodes(2)
	w.addPod("flare-backup-0", map[string]string{"app": "node"}, nil) // selected, but of no node
	b := w.backend("ctl-0")
	label := func(labels ...core.NodeLabel) {
		t.Helper()
		if err := b.LabelNodes(t.Context(), labels); err != nil {
			t.Fatal(err)
		}
	}
	key := func(i int) string { return fmt.Sprintf("flare-%d.flare-nodes.prod.svc:12121", i) }
	label(
		core.NodeLabel{Key: key(0), Role: topology.Master, Partition: 0, Serving: true},
		core.NodeLabel{Key: key(1), Role: topology.Proxy, Partition: -1},
		core.NodeLabel{Key: "stranger:1", Role: topology.Proxy, Partition: -1},
	)
	check := func(pod, role, partition, serving string) {
		t.Helper()
		l := w.pod(pod).Labels
		if l[LabelRole] != role || l[LabelPartition] != partition || l[LabelServing] != serving || l["app"] != "node" {
			t.Errorf("%s: %v", pod, l)
		}
	}
	check("flare-0", "master", "0", "true")
	check("flare-1", "proxy", "", "false")
	if l := w.pod("flare-backup-0").Labels; len(l) != 1 {
		t.Errorf("a pod of no node was labelled: %v", l)
	}
	before := w.writes("pods", "patch")
	label(
		core.NodeLabel{Key: key(0), Role: topology.Master, Partition: 0, Serving: true},
		core.NodeLabel{Key: key(1), Role: topology.Slave, State: topology.Active, Partition: 0, Serving: true},
	)
	check("flare-1", "slave", "0", "true")
	if n := w.writes("pods", "patch") - before; n != 1 {
		t.Errorf("%d patches for one change", n)
	}
}

func TestStatusIsWrittenOnlyOnChange(t *testing.T) {
	w := newWorld(t)
	b := w.backend("ctl-0")
	status := core.Status{
		Generation: 1, Phase: core.PhaseRunning, Reason: "healthy", Message: "ok", NodesReady: 2, NodesWanted: 2,
		MastersUp: 1, MapVersion: 9, ConfigNodes: 2, ConfigReason: core.ReasonApplied,
		Partitions: []core.PartitionStatus{{Number: 0, Epoch: 1, Master: "a:1", InSync: []string{"b:1"}, State: core.PartitionHealthy}},
		Conditions: []core.Condition{
			{Type: core.ConditionReady, True: true, Reason: "healthy", Message: "ok"},
			{Type: core.ConditionDegraded, Reason: "healthy", Message: "ok"},
		},
	}
	write := func() {
		t.Helper()
		if err := b.WriteStatus(t.Context(), status); err != nil {
			t.Fatal(err)
		}
	}
	patches := func() (n int) {
		for _, a := range w.dynamic.Actions() {
			if a.GetVerb() == "patch" && a.GetSubresource() == "status" {
				n++
			}
		}
		return n
	}
	read := func() v1.FlareClusterStatus {
		t.Helper()
		fc, err := GetCluster(t.Context(), b.cfg)
		if err != nil {
			t.Fatal(err)
		}
		return fc.Status
	}
	write()
	got := read()
	if got.NodesReady != "2/2" || got.Masters != "1/1" || got.Config != "applied" || got.MapVersion != 9 || got.Phase != v1.PhaseRunning {
		t.Errorf("status: %+v", got)
	}
	if len(got.Conditions) != 2 || got.Conditions[0].Type != "Ready" || got.Conditions[0].Status != "True" || !got.Conditions[0].LastTransitionTime.Time.Equal(w.now) {
		t.Errorf("conditions: %+v", got.Conditions)
	}
	since := w.now
	w.now = w.now.Add(time.Minute)
	write()
	if n := patches(); n != 1 {
		t.Errorf("%d patches for the same status twice, want 1", n)
	}
	// The master is lost: the message goes, Ready turns, Degraded keeps its time.
	status.Message = ""
	status.ConfigReason, status.ConfigNodes = core.ReasonApplying, 1
	status.Conditions[0] = core.Condition{Type: core.ConditionReady, Reason: "master_down", Message: "gone"}
	status.Partitions[0].Master = ""
	write()
	got = read()
	if got.Message != "" || got.Partitions[0].Master != "" || got.Config != "1/2" {
		t.Errorf("what is absent was kept: %+v", got)
	}
	if c := got.Conditions[0]; c.Status != "False" || !c.LastTransitionTime.Time.Equal(w.now) {
		t.Errorf("Ready: %+v", c)
	}
	if c := got.Conditions[1]; !c.LastTransitionTime.Time.Equal(since) {
		t.Errorf("Degraded did not change, but its time did: %+v", c)
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	b := w.backend("ctl-0")
	b.Event(t.Context(), core.Event{Warning: true, Reason: "node_down", Message: "a:1 is down"})
	eventually(t, "an event about the FlareCluster", func() bool {
		list, err := w.kube.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 {
			return false
		}
		e := list.Items[0]
		return e.Type == corev1.EventTypeWarning && e.Reason == "node_down" && e.InvolvedObject.Kind == "FlareCluster" &&
			e.InvolvedObject.Name == "flare" && e.InvolvedObject.UID == "fc-uid"
	})
}
