// Package flare_test renders the chart with Helm and checks what would reach a
// cluster.
package flare_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/flarekv/flare/agent/options"
	flarev1 "github.com/flarekv/flare/controller/api/v1"
)

var update = flag.Bool("update", false, "rewrite testdata/default.yaml and the table in README.md")

// kubeVersion is the newest that the chart is rendered for; minKubeVersion is the
// oldest that it promises.
const (
	kubeVersion    = "1.37.0"
	minKubeVersion = "1.29.0"
)

func helmBinary(t *testing.T) string {
	t.Helper()
	helm := os.Getenv("HELM")
	if helm == "" {
		helm = "../../build/lab/bin/helm"
	}
	path, err := exec.LookPath(helm)
	if err != nil {
		t.Fatalf("these tests run Helm: set HELM to its binary, or build it to build/lab/bin/helm: %v", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// helm runs Helm away from the user's own settings.
func helm(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), helmBinary(t), args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "HELM_") || strings.HasPrefix(kv, "KUBECONFIG=")
	}), "HOME="+home, "XDG_CACHE_HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_DATA_HOME="+home)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// template renders release flare in namespace ns.
func template(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, err := helm(t, append([]string{"template", "flare", ".", "--namespace", "ns", "--kube-version", kubeVersion}, args...)...)
	if err != nil {
		t.Fatalf("helm template %v: %v\n%s", args, err, errs)
	}
	return out
}

// refuse expects Helm to refuse and returns its words.
func refuse(t *testing.T, args ...string) string {
	t.Helper()
	_, errs, err := helm(t, append([]string{"template", "flare", ".", "--namespace", "ns", "--kube-version", kubeVersion}, args...)...)
	if err == nil {
		t.Fatalf("helm template %v was not refused", args)
	}
	return errs
}

// podMonitor is the part of the Prometheus operator's kind that the chart uses.
type podMonitor struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Selector            metav1.LabelSelector `json:"selector"`
		PodTargetLabels     []string             `json:"podTargetLabels"`
		PodMetricsEndpoints []struct {
			Port     string `json:"port"`
			Path     string `json:"path"`
			Interval string `json:"interval"`
		} `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

// kinds are all that the chart renders.
var kinds = map[string]func() metav1.Object{
	"apps/v1 Deployment":                              func() metav1.Object { return new(appsv1.Deployment) },
	"apps/v1 StatefulSet":                             func() metav1.Object { return new(appsv1.StatefulSet) },
	"batch/v1 Job":                                    func() metav1.Object { return new(batchv1.Job) },
	"flarekv.io/v1 FlareCluster":                      func() metav1.Object { return new(flarev1.FlareCluster) },
	"monitoring.coreos.com/v1 PodMonitor":             func() metav1.Object { return new(podMonitor) },
	"policy/v1 PodDisruptionBudget":                   func() metav1.Object { return new(policyv1.PodDisruptionBudget) },
	"rbac.authorization.k8s.io/v1 ClusterRole":        func() metav1.Object { return new(rbacv1.ClusterRole) },
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding": func() metav1.Object { return new(rbacv1.ClusterRoleBinding) },
	"rbac.authorization.k8s.io/v1 Role":               func() metav1.Object { return new(rbacv1.Role) },
	"rbac.authorization.k8s.io/v1 RoleBinding":        func() metav1.Object { return new(rbacv1.RoleBinding) },
	"v1 ConfigMap":                                    func() metav1.Object { return new(corev1.ConfigMap) },
	"v1 Service":                                      func() metav1.Object { return new(corev1.Service) },
	"v1 ServiceAccount":                               func() metav1.Object { return new(corev1.ServiceAccount) },
}

// objects decodes a rendering by "Kind name", strictly: a field that the API does
// not know fails the test.
func objects(t *testing.T, rendered string) map[string]metav1.Object {
	t.Helper()
	found := map[string]metav1.Object{}
	reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(rendered)))
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		var typ metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &typ); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		if typ.Kind == "" {
			continue // only comments
		}
		make, ok := kinds[typ.APIVersion+" "+typ.Kind]
		if !ok {
			t.Fatalf("no type for %s %s\n%s", typ.APIVersion, typ.Kind, doc)
		}
		obj := make()
		if err := yaml.UnmarshalStrict(doc, obj); err != nil {
			t.Fatalf("%s: %v\n%s", typ.Kind, err, doc)
		}
		key := typ.Kind + " " + obj.GetName()
		if _, ok := found[key]; ok {
			t.Fatalf("%s is there twice", key)
		}
		found[key] = obj
	}
}

func get[T metav1.Object](t *testing.T, objs map[string]metav1.Object, key string) T {
	t.Helper()
	obj, ok := objs[key].(T)
	if !ok {
		t.Fatalf("no %s among %v", key, slices.Sorted(maps.Keys(objs)))
	}
	return obj
}

var valuesFiles = []string{"values.yaml", "values-dev.yaml", "values-production.yaml"}

func TestEveryValuesFileRenders(t *testing.T) {
	for _, file := range valuesFiles {
		for _, kube := range []string{minKubeVersion, kubeVersion} {
			t.Run(file+" on "+kube, func(t *testing.T) {
				objs := objects(t, template(t, "--values", file, "--kube-version", kube))
				for key, obj := range objs {
					checkObject(t, key, obj)
				}
				get[*flarev1.FlareCluster](t, objs, "FlareCluster flare")
			})
		}
	}
}

// checkObject holds for each object whatever the values.
func checkObject(t *testing.T, key string, obj metav1.Object) {
	t.Helper()
	clusterWide := strings.HasPrefix(key, "Cluster")
	if got := obj.GetNamespace(); clusterWide != (got == "") || !clusterWide && got != "ns" {
		t.Errorf("%s: namespace %q", key, got)
	}
	if clusterWide && !strings.HasPrefix(obj.GetName(), "ns-") {
		t.Errorf("%s: releases of two namespaces would share it", key)
	}
	if len(obj.GetName()) > 63 {
		t.Errorf("%s: name longer than 63", key)
	}
	for _, label := range []string{"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart"} {
		if obj.GetLabels()[label] == "" {
			t.Errorf("%s: no label %s", key, label)
		}
	}
	if pod := podTemplate(obj); pod != nil {
		checkPod(t, key, pod)
	}
}

func podTemplate(obj metav1.Object) *corev1.PodTemplateSpec {
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		return &obj.Spec.Template
	case *appsv1.StatefulSet:
		return &obj.Spec.Template
	case *batchv1.Job:
		return &obj.Spec.Template
	}
	return nil
}

// checkPod checks the "restricted" Pod Security Standard, and that a new chart
// version alone restarts nothing.
func checkPod(t *testing.T, key string, pod *corev1.PodTemplateSpec) {
	t.Helper()
	for label := range pod.Labels {
		if strings.HasPrefix(label, "helm.sh/") || label == "app.kubernetes.io/version" {
			t.Errorf("%s: pod label %s changes with the chart", key, label)
		}
		if label == "flarekv.io/leader" || label == "flarekv.io/serving" || label == "flarekv.io/role" || label == "flarekv.io/partition" {
			t.Errorf("%s: pod label %s is the controller's to set", key, label)
		}
	}
	sc := pod.Spec.SecurityContext
	if sc == nil || sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot || sc.RunAsUser == nil || *sc.RunAsUser != 65532 ||
		sc.SeccompProfile == nil || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%s: pod security context %+v", key, sc)
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		sc := c.SecurityContext
		if sc == nil || sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation ||
			sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem ||
			sc.Capabilities == nil || !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(sc.Capabilities.Add) > 0 {
			t.Errorf("%s: security context of %s: %+v", key, c.Name, sc)
		}
		if strings.HasSuffix(c.Image, ":latest") || !strings.ContainsAny(filepath.Base(c.Image), ":@") {
			t.Errorf("%s: image of %s: %s", key, c.Name, c.Image)
		}
		if len(c.Resources.Requests) == 0 {
			t.Errorf("%s: %s requests nothing", key, c.Name)
		}
		for _, p := range c.Ports {
			if len(p.Name) > 15 {
				t.Errorf("%s: port name %s is longer than 15", key, p.Name)
			}
		}
	}
}

func TestDefaultRender(t *testing.T) {
	got := template(t)
	const golden = "testdata/default.yaml"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	// Which template an object came from is no concern of a cluster, and Helm versions
	// differ in the order of objects of one kind; what they are is compared.
	if got, want := objects(t, got), objects(t, string(want)); !reflect.DeepEqual(got, want) {
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if g, w := toYAML(t, got[key]), toYAML(t, want[key]); g != w {
				t.Errorf("%s is\n%s\nwant\n%s", key, g, w)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(got)) {
			if want[key] == nil {
				t.Errorf("%s is not in %s", key, golden)
			}
		}
		t.Errorf("see whether it restarts pods; if the change is meant: go test ./charts/flare -update")
	}
}

func toYAML(t *testing.T, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFlareClusterFromValues(t *testing.T) {
	t.Run("defaults are the API's", func(t *testing.T) {
		spec := get[*flarev1.FlareCluster](t, objects(t, template(t)), "FlareCluster flare").Spec
		want := flarev1.FlareClusterSpec{Partitions: 2, Replicas: 2}
		want.Default()
		if !reflect.DeepEqual(spec, want) {
			t.Errorf("spec is\n%s\nwant\n%s", toYAML(t, spec), toYAML(t, want))
		}
	})
	t.Run("every value arrives", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "values.yaml")
		// From a file, large numbers are floats to the templates.
		err := os.WriteFile(file, []byte(`
partitions: 3
replicas: 4
partitionSize: 2048
keyMapping: {hash: murmur, hint: 4096, virtual: 1048576}
clusterReplication: {enabled: true, target: "green.ns.svc:12121", mode: forward, concurrency: 64, spoolLimitMb: 16777216}
replication: {mode: async, minInSync: 3}
failover: {maxDownFraction: 0.25, onZoneLoss: hold, graceSeconds: 0}
paused: true
scaleOut: {orphanPurge: {enabled: false, delaySeconds: 31536000}}
rocksdb:
  walTtlSeconds: 31536000
  walSizeLimitMb: 16777216
  syncWrites: true
  resyncFailureThreshold: 7
  walMaxBatchBytes: 67108864
  walSyncBwlimit: 1048576
  walSyncInterval: 60000
`), 0o600)
		if err != nil {
			t.Fatal(err)
		}
		objs := objects(t, template(t, "--values", file))
		spec := get[*flarev1.FlareCluster](t, objs, "FlareCluster flare").Spec
		want := flarev1.FlareClusterSpec{
			Partitions: 3, Replicas: 4, PartitionSize: 2048,
			KeyMapping: flarev1.KeyMappingSpec{Hash: "murmur", Type: flarev1.PartitionModular, Hint: 4096, Virtual: 1048576},
			ClusterReplication: flarev1.ClusterReplicationSpec{Enabled: true, Target: "green.ns.svc:12121",
				Mode: flarev1.ClusterReplicationForward, Concurrency: 64, SpoolLimitMB: 16777216},
			Replication: flarev1.ReplicationSpec{Mode: flarev1.ReplicationAsync, MinInSync: 3},
			Failover:    flarev1.FailoverSpec{MaxDownFraction: new(0.25), OnZoneLoss: flarev1.ZoneLossHold, GraceSeconds: new(int32(0))},
			Paused:      true,
			ScaleOut:    flarev1.ScaleOutSpec{OrphanPurge: flarev1.OrphanPurgeSpec{Enabled: new(false), DelaySeconds: new(int64(31536000))}},
			RocksDB: flarev1.RocksDBSpec{
				WALTTLSeconds: new(int64(31536000)), WALSizeLimitMB: new(int64(16777216)), SyncWrites: new(true),
				ResyncFailureThreshold: new(int32(7)), WALMaxBatchBytes: new(int64(67108864)),
				WALSyncBwlimit: new(int64(1048576)), WALSyncInterval: new(int64(60000)),
			},
		}
		if !reflect.DeepEqual(spec, want) {
			t.Errorf("spec is\n%s\nwant\n%s", toYAML(t, spec), toYAML(t, want))
		}
	})
}

// A storage option is applied to running nodes, so nothing that would restart a
// pod may follow from it.
func TestStorageOptionsRestartNothing(t *testing.T) {
	before := objects(t, template(t))
	for _, set := range []string{
		"rocksdb.walTtlSeconds=7200", "rocksdb.walSizeLimitMb=1024", "rocksdb.syncWrites=true", "rocksdb.resyncFailureThreshold=5",
		"rocksdb.walMaxBatchBytes=4096", "rocksdb.walSyncBwlimit=1024", "rocksdb.walSyncInterval=1000",
		// Nor from these.
		"replicas=3", "partitions=3", "replication.mode=async", "replication.minInSync=2", "clusterReplication.enabled=true,clusterReplication.target=t:1", "commonLabels.team=a", "service.type=NodePort", "monitoring.podMonitor.enabled=true",
	} {
		after := objects(t, template(t, "--set", set))
		for key, obj := range before {
			if pod := podTemplate(obj); pod != nil && !reflect.DeepEqual(pod, podTemplate(after[key])) {
				t.Errorf("%s changes the pods of %s", set, key)
			}
		}
		if strings.HasPrefix(set, "rocksdb.") && reflect.DeepEqual(before["FlareCluster flare"], after["FlareCluster flare"]) {
			t.Errorf("%s does not reach the FlareCluster", set)
		}
	}
}

func container(t *testing.T, objs map[string]metav1.Object, key, name string) corev1.Container {
	t.Helper()
	pod := podTemplate(objs[key])
	if pod == nil {
		t.Fatalf("%s has no pods", key)
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("%s has no container %s", key, name)
	panic("unreachable")
}

func TestStatefulSet(t *testing.T) {
	objs := objects(t, template(t))
	set := get[*appsv1.StatefulSet](t, objs, "StatefulSet flare").Spec
	if set.Replicas != nil {
		t.Error("replicas is set: helm upgrade would undo the controller's scaling")
	}
	if set.PodManagementPolicy != appsv1.ParallelPodManagement || set.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		t.Errorf("policies %s, %s", set.PodManagementPolicy, set.UpdateStrategy.Type)
	}
	headless := get[*corev1.Service](t, objs, "Service "+set.ServiceName)
	if headless.Spec.ClusterIP != corev1.ClusterIPNone || !headless.Spec.PublishNotReadyAddresses {
		t.Errorf("Service %s: %+v", set.ServiceName, headless.Spec)
	}

	pod := set.Template.Spec
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("data pods get a token")
	}
	if pod.SecurityContext.FSGroup == nil || *pod.SecurityContext.FSGroup != 65532 {
		t.Error("the volume is not the process's group's")
	}
	agent, flared := container(t, objs, "StatefulSet flare", "agent"), container(t, objs, "StatefulSet flare", "flared")
	if len(pod.InitContainers) != 1 || agent.RestartPolicy == nil || *agent.RestartPolicy != corev1.ContainerRestartPolicyAlways ||
		agent.StartupProbe == nil || agent.LivenessProbe == nil || agent.ReadinessProbe == nil {
		t.Errorf("the agent is no native sidecar with probes: %+v", agent)
	}
	if flared.LivenessProbe != nil {
		t.Error("a probe of flared's may kill a master that serves")
	}
	// flared and its agent must give the controller one name, the one that DNS has.
	const node, controller = "$(POD_NAME).flare-nodes.ns.svc", "flare-controller.ns.svc"
	for _, arg := range []string{"--server-name=" + node, "--server-port=12121", "--data-dir=/data", "--index-servers=" + controller + ":12120",
		"--agent-socket=/run/flare/flared.sock"} {
		if !slices.Contains(flared.Args, arg) {
			t.Errorf("flared has no argument %s: %q", arg, flared.Args)
		}
	}
	for _, arg := range []string{"--node=" + node + ":12121", "--controller=" + controller + ":13120", "--socket=/run/flare/flared.sock", "--config-dir=/etc/flared"} {
		if !slices.Contains(agent.Args, arg) {
			t.Errorf("agent has no argument %s: %q", arg, agent.Args)
		}
	}
	get[*corev1.Service](t, objs, "Service flare-controller")

	for _, m := range agent.VolumeMounts {
		if m.SubPath != "" {
			t.Errorf("%s is mounted by subPath: it would never be updated", m.Name)
		}
	}
	i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == "config" })
	if i < 0 || pod.Volumes[i].ConfigMap == nil || pod.Volumes[i].ConfigMap.Name != "flare-config" ||
		pod.Volumes[i].ConfigMap.Optional == nil || !*pod.Volumes[i].ConfigMap.Optional {
		t.Errorf("volumes %+v: want the ConfigMap flare-config, optional", pod.Volumes)
	}
	if len(set.VolumeClaimTemplates) != 1 || set.VolumeClaimTemplates[0].Name != "data" {
		t.Errorf("claims %+v", set.VolumeClaimTemplates)
	}
	if r := set.PersistentVolumeClaimRetentionPolicy; r == nil || r.WhenDeleted != appsv1.RetainPersistentVolumeClaimRetentionPolicyType {
		t.Errorf("retention %+v: helm uninstall would delete data", r)
	}
	if len(pod.TopologySpreadConstraints) != 2 {
		t.Errorf("spread %+v", pod.TopologySpreadConstraints)
	}
}

func TestEphemeralNodes(t *testing.T) {
	set := get[*appsv1.StatefulSet](t, objects(t, template(t, "--set", "node.persistence.enabled=false")), "StatefulSet flare").Spec
	if len(set.VolumeClaimTemplates) != 0 || set.PersistentVolumeClaimRetentionPolicy != nil {
		t.Errorf("claims %+v", set.VolumeClaimTemplates)
	}
	i := slices.IndexFunc(set.Template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "data" })
	if i < 0 || set.Template.Spec.Volumes[i].EmptyDir == nil {
		t.Errorf("volumes %+v", set.Template.Spec.Volumes)
	}
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// Each selector must find its own pods and none of the other workload's, with the
// labels that the controller adds.
func TestSelectors(t *testing.T) {
	objs := objects(t, template(t, "--set", "monitoring.podMonitor.enabled=true"))
	nodes := maps.Clone(get[*appsv1.StatefulSet](t, objs, "StatefulSet flare").Spec.Template.Labels)
	controllers := maps.Clone(get[*appsv1.Deployment](t, objs, "Deployment flare-controller").Spec.Template.Labels)
	leader, serving := maps.Clone(controllers), maps.Clone(nodes)
	leader["flarekv.io/leader"], serving["flarekv.io/serving"] = "true", "true"
	all := map[string]map[string]string{"node": nodes, "serving node": serving, "controller": controllers, "leader": leader}

	for _, tt := range []struct {
		key      string
		selector map[string]string
		want     []string
	}{
		{"client Service", get[*corev1.Service](t, objs, "Service flare").Spec.Selector, []string{"serving node"}},
		{"headless Service", get[*corev1.Service](t, objs, "Service flare-nodes").Spec.Selector, []string{"node", "serving node"}},
		{"controller Service", get[*corev1.Service](t, objs, "Service flare-controller").Spec.Selector, []string{"leader"}},
		{"nodes' budget", get[*policyv1.PodDisruptionBudget](t, objs, "PodDisruptionBudget flare").Spec.Selector.MatchLabels, []string{"node", "serving node"}},
		{"controllers' budget", get[*policyv1.PodDisruptionBudget](t, objs, "PodDisruptionBudget flare-controller").Spec.Selector.MatchLabels, []string{"controller", "leader"}},
		{"StatefulSet", get[*appsv1.StatefulSet](t, objs, "StatefulSet flare").Spec.Selector.MatchLabels, []string{"node", "serving node"}},
		{"Deployment", get[*appsv1.Deployment](t, objs, "Deployment flare-controller").Spec.Selector.MatchLabels, []string{"controller", "leader"}},
		{"nodes' PodMonitor", get[*podMonitor](t, objs, "PodMonitor flare-nodes").Spec.Selector.MatchLabels, []string{"node", "serving node"}},
		{"controllers' PodMonitor", get[*podMonitor](t, objs, "PodMonitor flare-controller").Spec.Selector.MatchLabels, []string{"controller", "leader"}},
		{"--pod-selector", flagSelector(t, objs, "--pod-selector="), []string{"node", "serving node"}},
		{"--controller-selector", flagSelector(t, objs, "--controller-selector="), []string{"controller", "leader"}},
	} {
		var got []string
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if matches(tt.selector, all[name]) {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s finds %v, want %v", tt.key, got, tt.want)
		}
	}

	// Two releases in one namespace must not take each other's pods.
	out, errs, err := helm(t, "template", "flare2", ".", "--namespace", "ns", "--kube-version", kubeVersion)
	if err != nil {
		t.Fatal(errs)
	}
	other := get[*appsv1.StatefulSet](t, objects(t, out), "StatefulSet flare2").Spec.Template.Labels
	if matches(get[*appsv1.StatefulSet](t, objs, "StatefulSet flare").Spec.Selector.MatchLabels, other) {
		t.Error("the StatefulSet of one release selects the pods of another")
	}
}

func flagSelector(t *testing.T, objs map[string]metav1.Object, prefix string) map[string]string {
	t.Helper()
	for _, arg := range container(t, objs, "Deployment flare-controller", "controller").Args {
		if text, ok := strings.CutPrefix(arg, prefix); ok {
			selector := map[string]string{}
			for _, term := range strings.Split(text, ",") {
				k, v, _ := strings.Cut(term, "=")
				selector[k] = v
			}
			return selector
		}
	}
	t.Fatalf("no argument %s", prefix)
	panic("unreachable")
}

// Ports that Services and monitors name must be there on the pods.
func TestPortsAreThere(t *testing.T) {
	objs := objects(t, template(t, "--set", "monitoring.podMonitor.enabled=true"))
	ports := func(key string) map[string]int32 {
		pod, named := podTemplate(objs[key]), map[string]int32{}
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			for _, p := range c.Ports {
				named[p.Name] = p.ContainerPort
			}
		}
		return named
	}
	nodes, controllers := ports("StatefulSet flare"), ports("Deployment flare-controller")
	for service, named := range map[string]map[string]int32{"flare": nodes, "flare-nodes": nodes, "flare-controller": controllers} {
		for _, p := range get[*corev1.Service](t, objs, "Service "+service).Spec.Ports {
			number, ok := named[p.TargetPort.StrVal]
			if !ok || number != p.Port {
				t.Errorf("Service %s: port %d leads to %s, which is %d", service, p.Port, p.TargetPort.StrVal, number)
			}
		}
	}
	for monitor, named := range map[string]map[string]int32{"flare-nodes": nodes, "flare-controller": controllers} {
		for _, e := range get[*podMonitor](t, objs, "PodMonitor "+monitor).Spec.PodMetricsEndpoints {
			if named[e.Port] == 0 {
				t.Errorf("PodMonitor %s reads port %s, which is not there", monitor, e.Port)
			}
		}
	}
}

func TestRBAC(t *testing.T) {
	objs := objects(t, template(t))
	role := get[*rbacv1.Role](t, objs, "Role flare-controller")
	for _, want := range []struct{ group, resource, verbs string }{
		{"flarekv.io", "flareclusters", "get list watch"},
		{"flarekv.io", "flareclusters/status", "get patch"},
		{"", "pods", "get list watch patch"},
		{"", "configmaps", "get list watch create update patch"},
		{"", "events", "create patch"},
		{"apps", "statefulsets", "get list watch"},
		{"apps", "statefulsets/scale", "get patch"},
		{"coordination.k8s.io", "leases", "get create update patch"},
	} {
		if got := verbs(role.Rules, want.group, want.resource); got != want.verbs {
			t.Errorf("%s %s: may %q, want %q", want.group, want.resource, got, want.verbs)
		}
	}
	for key, obj := range objs {
		var rules []rbacv1.PolicyRule
		switch obj := obj.(type) {
		case *rbacv1.Role:
			rules = obj.Rules
		case *rbacv1.ClusterRole:
			rules = obj.Rules
		}
		for _, r := range rules {
			if slices.Contains(r.Verbs, "*") || slices.Contains(r.Resources, "*") || slices.Contains(r.Resources, "secrets") {
				t.Errorf("%s: too much: %+v", key, r)
			}
		}
	}
	if objs := objects(t, template(t, "--set", "rbac.readNodes=false")); objs["ClusterRole ns-flare-controller"] != nil || objs["Role flare-controller"] == nil {
		t.Error("rbac.readNodes=false does not drop the ClusterRole alone")
	}
	for key := range objects(t, template(t, "--set", "rbac.create=false")) {
		if strings.Contains(key, "Role") && !strings.HasSuffix(key, "-crd") {
			t.Errorf("rbac.create=false leaves %s", key)
		}
	}
	objs = objects(t, template(t, "--set", "controller.serviceAccount.name=mine,node.serviceAccount.name=theirs"))
	if objs["ServiceAccount flare-controller"] != nil || objs["ServiceAccount flare-nodes"] != nil ||
		get[*rbacv1.RoleBinding](t, objs, "RoleBinding flare-controller").Subjects[0].Name != "mine" ||
		podTemplate(objs["Deployment flare-controller"]).Spec.ServiceAccountName != "mine" ||
		podTemplate(objs["StatefulSet flare"]).Spec.ServiceAccountName != "theirs" {
		t.Error("ServiceAccounts of one's own are not used")
	}
}

// verbs returns what rules allow for a resource, in the order written.
func verbs(rules []rbacv1.PolicyRule, group, resource string) string {
	var all []string
	for _, r := range rules {
		if slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, resource) {
			all = append(all, r.Verbs...)
		}
	}
	return strings.Join(all, " ")
}

// The definition's hooks must leave nothing, and run in the order in which one
// needs the other.
func TestDefinitionHooks(t *testing.T) {
	hooks := func(args ...string) map[string]string {
		events := map[string]string{}
		for key, obj := range objects(t, template(t, args...)) {
			if event := obj.GetAnnotations()["helm.sh/hook"]; event != "" {
				events[key] = event
				if got := obj.GetAnnotations()["helm.sh/hook-delete-policy"]; got != "before-hook-creation,hook-succeeded" {
					t.Errorf("%s: delete policy %q", key, got)
				}
			}
		}
		return events
	}
	want := map[string]string{
		"ServiceAccount flare-crd":        "pre-upgrade,post-delete",
		"ClusterRole ns-flare-crd":        "pre-upgrade,post-delete",
		"ClusterRoleBinding ns-flare-crd": "pre-upgrade,post-delete",
		"Job flare-crd-apply":             "pre-upgrade",
		"Job flare-crd-delete":            "post-delete",
	}
	if got := hooks(); !maps.Equal(got, want) {
		t.Errorf("hooks %v, want %v", got, want)
	}
	delete(want, "Job flare-crd-delete")
	for key, event := range want {
		want[key] = strings.TrimSuffix(event, ",post-delete")
	}
	if got := hooks("--set", "crds.keep=true"); !maps.Equal(got, want) {
		t.Errorf("hooks with crds.keep %v, want %v", got, want)
	}
	if got := hooks("--set", "crds.manage=false"); len(got) > 0 {
		t.Errorf("hooks without crds.manage: %v", got)
	}

	objs := objects(t, template(t))
	for job, verb := range map[string]string{"flare-crd-apply": "apply", "flare-crd-delete": "delete-unused"} {
		if args := container(t, objs, "Job "+job, "crd").Args; !slices.Equal(args, []string{"crd", verb}) {
			t.Errorf("%s runs %q", job, args)
		}
		if got := podTemplate(objs["Job "+job]).Spec.ServiceAccountName; got != "flare-crd" {
			t.Errorf("%s runs as %s", job, got)
		}
	}
	rules := get[*rbacv1.ClusterRole](t, objs, "ClusterRole ns-flare-crd").Rules
	if got := verbs(rules, "apiextensions.k8s.io", "customresourcedefinitions"); got != "create get patch delete" {
		t.Errorf("the hooks may %q", got)
	}
	for _, r := range rules {
		if slices.Contains(r.Verbs, "delete") && !slices.Equal(r.ResourceNames, []string{"flareclusters.flarekv.io"}) {
			t.Errorf("the hooks may delete any definition: %+v", r)
		}
	}
}

func TestImages(t *testing.T) {
	values, err := os.ReadFile("values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Images map[string]any `json:"images"`
	}
	if err := yaml.Unmarshal(values, &v); err != nil {
		t.Fatal(err)
	}
	digest := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	for image, place := range map[string][2]string{
		"flared":     {"StatefulSet flare", "flared"},
		"agent":      {"StatefulSet flare", "agent"},
		"controller": {"Deployment flare-controller", "controller"},
	} {
		repository := v.Images[image].(map[string]any)["repository"].(string)
		for set, want := range map[string]string{
			"":                            repository + ":v" + appVersion(t),
			"images." + image + ".tag=v9": repository + ":v9",
			"images." + image + ".repository=r.example:5000/x,images." + image + ".tag=v9": "r.example:5000/x:v9",
			"images." + image + ".tag=v9,images." + image + ".digest=" + digest:            repository + "@" + digest,
		} {
			var args []string
			if set != "" {
				args = []string{"--set", set}
			}
			if got := container(t, objects(t, template(t, args...)), place[0], place[1]).Image; got != want {
				t.Errorf("%q: image %s, want %s", set, got, want)
			}
		}
	}
}

func appVersion(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("Chart.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var chart struct {
		AppVersion string `json:"appVersion"`
	}
	if err := yaml.Unmarshal(b, &chart); err != nil {
		t.Fatal(err)
	}
	return chart.AppVersion
}

func TestRefusedValues(t *testing.T) {
	for set, want := range map[string]string{
		"partitons=3":                            "additional properties 'partitons' not allowed",
		"rocksdb.walTTLSeconds=1":                "additional properties 'walTTLSeconds' not allowed",
		"node.persistence.class=x":               "additional properties 'class' not allowed",
		"rocksdb.walTtlSeconds=1h":               "/rocksdb/walTtlSeconds",
		"rocksdb.walTtlSeconds=0":                "/rocksdb/walTtlSeconds",
		"rocksdb.syncWrites=yes":                 "/rocksdb/syncWrites",
		"partitions=0":                           "/partitions",
		"replicas=0":                             "/replicas",
		"replication.mode=quorum":                "/replication/mode",
		"images.flared.tag=latest":               "/images/flared/tag",
		"images.flared.repository=r.example/x:1": "/images/flared/repository",
		"node.podLabels.flarekv\\.io/serving=x":  "flarekv.io/serving",
		"commonLabels.helm\\.sh/chart=x":         "helm.sh/chart",
		"node.persistence.size=lots":             "/node/persistence/size",
		"node.topologySpread.zone=Always":        "/node/topologySpread/zone",
		"controller.replicas=0":                  "/controller/replicas",
		"service.type=ExternalName":              "/service/type",
		"fullnameOverride=Flare":                 "/fullnameOverride",
		"replication.minInSync=3":                "replication.minInSync (3) must not be greater than replicas (2)",
		"clusterReplication.enabled=true":        "clusterReplication.target is missing",
		"clusterReplication.target=here":         "/clusterReplication/target",
		"keyMapping.hash=md5":                    "/keyMapping/hash",
		"replication.minInSync=0":                "/replication/minInSync",
		"failover.maxDownFraction=1.5":           "/failover/maxDownFraction",
		"failover.onZoneLoss=panic":              "/failover/onZoneLoss",
		"failover.graceSeconds=3601":             "/failover/graceSeconds",
		"paused=maybe":                           "/paused",
		"partitions=100,partitionSize=100":       "partitionSize (100) must be greater than partitions (100)",
	} {
		if got := refuse(t, "--set", set); !strings.Contains(got, want) {
			t.Errorf("%s: refused with\n%swant words with %q", set, got, want)
		}
	}
	if _, errs, err := helm(t, "template", "1flare", ".", "--kube-version", kubeVersion); err == nil || !strings.Contains(errs, "fullnameOverride") {
		t.Errorf("a release name that cannot be a Service's: %v\n%s", err, errs)
	}
	if got := refuse(t, "--kube-version", "1.28.9"); !strings.Contains(got, "kubeVersion") {
		t.Errorf("Kubernetes 1.28: %s", got)
	}
}

// The chart must not promise what the API server refuses, nor the reverse.
func TestSchemaHasTheDefinitionsRanges(t *testing.T) {
	type schema struct {
		Minimum    *float64           `json:"minimum"`
		Maximum    *float64           `json:"maximum"`
		Enum       []string           `json:"enum"`
		Type       any                `json:"type"`
		Properties map[string]*schema `json:"properties"`
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema schema `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	b, err := os.ReadFile("crds/flareclusters.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &crd); err != nil {
		t.Fatal(err)
	}
	var values schema
	if b, err = os.ReadFile("values.schema.json"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &values); err != nil {
		t.Fatal(err)
	}
	var compare func(path string, crd, values *schema)
	compare = func(path string, crd, values *schema) {
		if values == nil {
			t.Errorf("%s is in the definition, not in the chart's values", path)
			return
		}
		if !reflect.DeepEqual(crd.Minimum, values.Minimum) || !reflect.DeepEqual(crd.Maximum, values.Maximum) ||
			!slices.Equal(crd.Enum, values.Enum) || crd.Type != values.Type {
			t.Errorf("%s: definition and values.schema.json have other limits", path)
		}
		for name, p := range crd.Properties {
			compare(path+"."+name, p, values.Properties[name])
		}
	}
	for name, p := range crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties {
		compare(name, p, values.Properties[name])
	}
}

// A storage option of the chart must be one of flared's, with flared's limits and
// default, and one that takes effect at once: that is what the chart promises.
func TestStorageOptionsAreFlareds(t *testing.T) {
	var values struct {
		RocksDB map[string]any `json:"rocksdb"`
	}
	b, err := os.ReadFile("values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &values); err != nil {
		t.Fatal(err)
	}
	type limits struct{ Minimum, Maximum *int64 }
	var schema struct {
		Properties struct {
			RocksDB struct{ Properties map[string]limits }
		}
	}
	if b, err = os.ReadFile("values.schema.json"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &schema); err != nil {
		t.Fatal(err)
	}
	specs := map[string]options.Spec{}
	for _, s := range options.Specs() {
		specs[s.Key] = s
	}
	for key, def := range values.RocksDB {
		if key == "options" {
			continue // see TestEngineOptions
		}
		name := "rocksdb-" + regexp.MustCompile("[A-Z]").ReplaceAllStringFunc(key, func(c string) string { return "-" + strings.ToLower(c) })
		s, ok := specs[name]
		if !ok {
			t.Errorf("rocksdb.%s: flared has no option %s", key, name)
			continue
		}
		if !s.Live {
			t.Errorf("rocksdb.%s: %s takes effect only after a restart", key, name)
		}
		if f, ok := def.(float64); ok {
			def = int64(f)
		}
		if got := fmt.Sprint(def); got != s.Default {
			t.Errorf("rocksdb.%s: default %s, flared's is %s", key, got, s.Default)
		}
		if l := schema.Properties.RocksDB.Properties[key]; s.Type == "integer" && (*l.Minimum != s.Min || *l.Maximum != s.Max) {
			t.Errorf("rocksdb.%s: from %d to %d, flared's is from %d to %d", key, *l.Minimum, *l.Maximum, s.Min, s.Max)
		}
	}
}

// The chart takes exactly the options of RocksDB that flared takes, numbers and
// booleans written as anybody would, and what comes out at the end is a file that
// flared accepts.
func TestEngineOptions(t *testing.T) {
	var want []string
	for _, s := range options.Specs() {
		if name, ok := strings.CutPrefix(s.Key, options.EnginePrefix); ok {
			want = append(want, name)
		}
	}
	var schema struct {
		Properties struct {
			RocksDB struct {
				Properties struct {
					Options struct{ PropertyNames struct{ Enum []string } }
				}
			}
		}
	}
	b, err := os.ReadFile("values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &schema); err != nil {
		t.Fatal(err)
	}
	if got := schema.Properties.RocksDB.Properties.Options.PropertyNames.Enum; !slices.Equal(got, want) {
		t.Errorf("values.schema.json has the names\n%q\nflared has\n%q", got, want)
	}

	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte("rocksdb:\n  options:\n    write_buffer_size: 33554432\n    disable_auto_compactions: false\n    compression: kZSTD\n    max_bytes_for_level_base: \"536870912\"\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	fc := get[*flarev1.FlareCluster](t, objects(t, template(t, "--values", values)), "FlareCluster flare")
	if got, want := fc.Spec.RocksDB.Options, (map[string]flarev1.RocksDBOption{"write_buffer_size": "33554432", "disable_auto_compactions": "false",
		"compression": "kZSTD", "max_bytes_for_level_base": "536870912"}); !maps.Equal(got, want) {
		t.Errorf("options of the resource %v, want %v", got, want)
	}
	o, _, err := options.Parse("extra.conf", []byte(flarev1.RenderConfig(fc.Spec)), options.Default())
	if err != nil || o.EngineValues()["write_buffer_size"] != "33554432" || o.EngineValues()["compression"] != "kZSTD" {
		t.Errorf("the rendered file: %v", err)
	}
	for set, want := range map[string]string{
		"rocksdb.options.write_bufer_size=1":  "invalid propertyName 'write_bufer_size'",
		"rocksdb.options.wal_dir=x":           "invalid propertyName 'wal_dir'",
		"rocksdb.options.compression=a b":     "/rocksdb/options/compression",
		"rocksdb.options.compression.x=kZSTD": "/rocksdb/options/compression",
	} {
		if got := refuse(t, "--set", set); !strings.Contains(got, want) {
			t.Errorf("%s: refused with\n%swant words with %q", set, got, want)
		}
	}
}

// flared must take the arguments that the chart gives it.
func TestFlaredsArguments(t *testing.T) {
	args := container(t, objects(t, template(t, "--set", "node.extraArgs={--max-connection=5000}")), "StatefulSet flare", "flared").Args
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "$(POD_NAME)", "flare-0")
	}
	fs := flag.NewFlagSet("flared", flag.ContinueOnError)
	line := options.Flags(fs)
	if err := fs.Parse(args); err != nil || fs.NArg() > 0 {
		t.Fatalf("%q: %v, left over %q", args, err, fs.Args())
	}
	got := line.Over(options.Default())
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if got.ServerName != "flare-0.flare-nodes.ns.svc" || got.MaxConnection != 5000 ||
		!slices.Equal(got.IndexServers, []string{"flare-controller.ns.svc:12120"}) {
		t.Errorf("%q gave %+v", args, got)
	}
}

// Every object in values.schema.json is closed, but for maps whose keys are the
// user's.
func TestSchemaIsClosed(t *testing.T) {
	b, err := os.ReadFile("values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(b, &schema); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if _, ok := v["properties"].(map[string]any); ok && v["type"] == "object" && path != "/definitions/env/items" {
				if v["additionalProperties"] != false {
					t.Errorf("%s is open", path)
				}
			}
			for k, e := range v {
				walk(path+"/"+k, e)
			}
		case []any:
			for i, e := range v {
				walk(fmt.Sprint(path, "/", i), e)
			}
		}
	}
	walk("", schema)
}

func TestExtraObjects(t *testing.T) {
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(`
extraObjects:
  - apiVersion: v1
    kind: ConfigMap
    metadata: {name: one}
    data: {a: b}
  - |
    apiVersion: v1
    kind: ConfigMap
    metadata:
      name: {{ include "flare.fullname" . }}-two
`), 0o600); err != nil {
		t.Fatal(err)
	}
	objs := objects(t, template(t, "--values", file))
	if got := get[*corev1.ConfigMap](t, objs, "ConfigMap one").Data["a"]; got != "b" {
		t.Errorf("data %q", got)
	}
	get[*corev1.ConfigMap](t, objs, "ConfigMap flare-two")
}

func TestLint(t *testing.T) {
	for _, file := range valuesFiles {
		if out, errs, err := helm(t, "lint", ".", "--strict", "--values", file, "--kube-version", kubeVersion); err != nil {
			t.Errorf("%s: %v\n%s%s", file, err, out, errs)
		}
	}
}

// value is one line of the README's table.
type value struct{ path, doc, def string }

var (
	docLine = regexp.MustCompile(`^\s*# -- (.+)$`)
	keyLine = regexp.MustCompile(`^( *)([A-Za-z][A-Za-z0-9]*):`)
)

// documented reads the values and their comments.
func documented(t *testing.T) (values []value, undocumented []string) {
	t.Helper()
	b, err := os.ReadFile("values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := yaml.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	var (
		path []string
		doc  string
		done = -1 // depth of the documented key that the lines below belong to
	)
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\n")
		if m := docLine.FindStringSubmatch(line); m != nil {
			doc = m[1]
			continue
		}
		m := keyLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		depth := len(m[1]) / 2
		path = append(path[:depth], m[2])
		if done >= 0 && depth > done {
			continue
		}
		done = -1
		var v any = all
		for _, k := range path {
			v = v.(map[string]any)[k]
		}
		_, isMap := v.(map[string]any)
		switch {
		case doc != "":
			def, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, value{strings.Join(path, "."), doc, string(def)})
			done = depth
		case !isMap:
			undocumented = append(undocumented, strings.Join(path, "."))
		}
		doc = ""
	}
	return values, undocumented
}

func TestEveryValueIsDocumented(t *testing.T) {
	values, undocumented := documented(t)
	if len(undocumented) > 0 {
		t.Errorf("values without a comment that begins with \"# --\": %v", undocumented)
	}
	if len(values) < 50 {
		t.Errorf("only %d values found", len(values))
	}
}

func TestReadmeTable(t *testing.T) {
	const begin, end = "<!-- values -->\n", "<!-- /values -->\n"
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("README.md has no %s... %s", begin, end)
	}
	values, _ := documented(t)
	var table strings.Builder
	table.WriteString("| Key | Default | What |\n|---|---|---|\n")
	for _, v := range values {
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", v.path, v.def, strings.ReplaceAll(v.doc, "|", `\|`))
	}
	want := head + begin + table.String() + end + tail
	if *update {
		if err := os.WriteFile("README.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(b) != want {
		t.Error("the table in README.md is not that of values.yaml: go test ./charts/flare -update")
	}
}
