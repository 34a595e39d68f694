package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kuberuntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
)

// Backend carries out what the core decides; it is a runtime.Backend. Make a new
// one for every reign: it remembers what it wrote.
type Backend struct {
	cfg   Config
	owner *v1.FlareCluster // as it was at the start; for references and events
	log   *slog.Logger

	events   record.EventBroadcaster
	recorder record.EventRecorder

	state  stateStore
	pods   podMarks
	config configWant

	statusMu sync.Mutex
	status   v1.FlareClusterStatus // as last written or first read
}

var _ runtime.Backend = (*Backend)(nil)

// NewBackend returns a backend for the cluster that owner is.
func NewBackend(cfg Config, owner *v1.FlareCluster) (*Backend, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := kuberuntime.NewScheme()
	if err := scheme.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("register Kubernetes types: %w", err)
	}
	if err := v1.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("register FlareCluster: %w", err)
	}
	b := &Backend{
		cfg:    cfg,
		owner:  owner.DeepCopy(),
		log:    cfg.Logger,
		events: record.NewBroadcaster(),
		status: *owner.Status.DeepCopy(),
	}
	b.recorder = b.events.NewRecorder(s, corev1.EventSource{Component: "flare-controller", Host: cfg.PodName})
	b.events.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: cfg.Kube.CoreV1().Events(cfg.Namespace)})
	return b, nil
}

// Close ends the sending of events.
func (b *Backend) Close() { b.events.Shutdown() }

// Event queues an event about the FlareCluster. It does not wait.
func (b *Backend) Event(_ context.Context, e core.Event) {
	kind := corev1.EventTypeNormal
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	b.recorder.Event(b.reference(), kind, e.Reason, e.Message)
}

// reference is the FlareCluster with its type, which objects from the API lack.
func (b *Backend) reference() *corev1.ObjectReference {
	return &corev1.ObjectReference{
		APIVersion: v1.GroupVersion.String(), Kind: v1.Kind,
		Namespace: b.cfg.Namespace, Name: b.cfg.Cluster, UID: b.owner.UID,
	}
}

// stateStore is the durable state in its ConfigMap.
type stateStore struct {
	mu sync.Mutex
	// version is the resourceVersion on which the next write builds; empty while
	// there is no object.
	version string
	// known is the text at that version.
	known string
	// sent holds the texts whose writes were tried since, with no known outcome.
	sent []string
}

// Load reads the durable state, and writes it back under this controller's name:
// from then on the writes of a former leader conflict.
func (b *Backend) Load(ctx context.Context) (durable core.Durable, found bool, err error) {
	s := &b.state
	s.mu.Lock()
	defer s.mu.Unlock()
	maps := b.cfg.Kube.CoreV1().ConfigMaps(b.cfg.Namespace)
	what := "read ConfigMap " + b.cfg.nodeMapName()
	err = b.cfg.retry(ctx, what, func(ctx context.Context) error {
		cm, err := maps.Get(ctx, b.cfg.nodeMapName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			s.version, s.known, s.sent = "", "", nil
			return nil
		}
		if err != nil {
			return err
		}
		b.own(&cm.ObjectMeta)
		cm, err = maps.Update(ctx, cm, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			return raced{err} // the former leader was faster once more: take what it wrote
		}
		if err != nil {
			return err
		}
		s.version, s.known, s.sent = cm.ResourceVersion, cm.Data[KeyState], nil
		return nil
	})
	if err != nil {
		return core.Durable{}, false, err
	}
	if s.known == "" {
		return core.Durable{}, false, nil
	}
	if err := json.Unmarshal([]byte(s.known), &durable); err != nil {
		return core.Durable{}, false, fmt.Errorf("ConfigMap %s, key %s, is not a node map: %w", b.cfg.nodeMapName(), KeyState, err)
	}
	return durable, true, nil
}

// Persist writes the durable state on top of what this controller wrote before.
// If somebody else has written it since, it fails with runtime.ErrFenced.
func (b *Backend) Persist(ctx context.Context, durable core.Durable) error {
	text, err := json.Marshal(durable)
	if err != nil {
		return fmt.Errorf("encode the node map: %w", err)
	}
	s := &b.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.sent, string(text)) {
		s.sent = append(s.sent, string(text))
	}
	return b.cfg.retry(ctx, "write ConfigMap "+b.cfg.nodeMapName(), func(ctx context.Context) error {
		return b.writeState(ctx, string(text))
	})
}

func (b *Backend) writeState(ctx context.Context, text string) error {
	s := &b.state
	maps := b.cfg.Kube.CoreV1().ConfigMaps(b.cfg.Namespace)
	cm := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: b.cfg.nodeMapName(), Namespace: b.cfg.Namespace, ResourceVersion: s.version},
		Data:       map[string]string{KeyState: text},
	}
	b.own(&cm.ObjectMeta)
	var err error
	if s.version == "" {
		cm, err = maps.Create(ctx, cm, metav1.CreateOptions{})
	} else {
		cm, err = maps.Update(ctx, cm, metav1.UpdateOptions{})
	}
	switch {
	case err == nil:
		s.version, s.known, s.sent = cm.ResourceVersion, text, nil
		return nil
	case apierrors.IsNotFound(err):
		// Somebody deleted it. What is in memory is the newest there is.
		b.log.Warn("the node map's ConfigMap is gone; it is made anew", "configmap", b.cfg.nodeMapName())
		s.version = ""
		return raced{err}
	case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err):
		return b.judgeConflict(ctx, text)
	default:
		return err
	}
}

// judgeConflict finds out who wrote the object: this controller itself, by a
// request whose answer was lost; somebody who changed no data; or another
// controller.
func (b *Backend) judgeConflict(ctx context.Context, text string) error {
	s := &b.state
	cm, err := b.cfg.Kube.CoreV1().ConfigMaps(b.cfg.Namespace).Get(ctx, b.cfg.nodeMapName(), metav1.GetOptions{})
	if err != nil {
		if apierrors.IsNotFound(err) {
			s.version = ""
			return raced{err}
		}
		return err
	}
	found, writer := cm.Data[KeyState], cm.Annotations[AnnotationWriter]
	ours := found == s.known || slices.Contains(s.sent, found)
	if writer != b.cfg.PodName || !ours {
		return fmt.Errorf("ConfigMap %s was written by %q meanwhile: %w", b.cfg.nodeMapName(), writer, runtime.ErrFenced)
	}
	s.version, s.known = cm.ResourceVersion, found
	if found == text {
		s.sent = nil
		return nil
	}
	return raced{errors.New("its answer was lost")}
}

// own marks an object as the cluster's and as written by this controller.
func (b *Backend) own(m *metav1.ObjectMeta) {
	m.OwnerReferences = ownerOf(b.cfg.Cluster, b.owner.UID)
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[AnnotationWriter] = b.cfg.PodName
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels["app.kubernetes.io/managed-by"] = "flare-controller"
	m.Labels["flarekv.io/cluster"] = b.cfg.Cluster
}

// configWant is the configuration that the ConfigMap shall hold.
type configWant struct {
	mu   sync.Mutex
	want *core.WriteConfig // nil until the core has asked for one
}

// WriteConfig publishes the options for the nodes, and touches their pods so
// that each kubelet looks at its copy now and not within a minute.
func (b *Backend) WriteConfig(ctx context.Context, config core.WriteConfig) error {
	c := &b.config
	c.mu.Lock()
	defer c.mu.Unlock()
	c.want = &config
	return b.writeConfig(ctx)
}

// repairConfig puts the configuration back when somebody changed or deleted it.
func (b *Backend) repairConfig(ctx context.Context, cached cache.Store, always bool) error {
	c := &b.config
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.want == nil {
		return nil
	}
	o, found, err := cached.GetByKey(b.cfg.Namespace + "/" + b.cfg.configName())
	if err != nil {
		return fmt.Errorf("read ConfigMap %s: %w", b.cfg.configName(), err)
	}
	if !always && found && holds(o.(*corev1.ConfigMap), configData(c.want)) {
		return nil
	}
	return b.writeConfig(ctx)
}

func configData(c *core.WriteConfig) map[string]string {
	return map[string]string{
		KeyConfig:     c.Text,
		KeyGeneration: strconv.FormatInt(c.Generation, 10),
	}
}

func (b *Backend) writeConfig(ctx context.Context) error {
	name, want := b.cfg.configName(), b.config.want
	data := configData(want)
	maps := b.cfg.Kube.CoreV1().ConfigMaps(b.cfg.Namespace)
	err := b.cfg.retry(ctx, "apply ConfigMap "+name, func(ctx context.Context) error {
		cm, err := maps.Get(ctx, name, metav1.GetOptions{})
		if err == nil && holds(cm, data) {
			return nil
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		meta := metav1.ObjectMeta{Name: name, Namespace: b.cfg.Namespace}
		b.own(&meta)
		body, err := applyBody("v1", "ConfigMap", meta, map[string]any{"data": data})
		if err != nil {
			return err
		}
		_, err = maps.Patch(ctx, name, types.ApplyPatchType, body, applyOptions(manager))
		return err
	})
	if err != nil {
		return err
	}
	return b.annotatePods(ctx, AnnotationConfigHash, configHash(want))
}

// holds tells whether a ConfigMap has these entries.
func holds(cm *corev1.ConfigMap, data map[string]string) bool {
	return len(difference(cm.Data, data)) == 0
}

func configHash(c *core.WriteConfig) string {
	sum := sha256.Sum256([]byte(strconv.FormatInt(c.Generation, 10) + "\n" + c.Text))
	return hex.EncodeToString(sum[:6])
}

// LabelNodes marks the pods of the nodes, and keeps them marked.
func (b *Backend) LabelNodes(ctx context.Context, labels []core.NodeLabel) error {
	want := make(map[string]map[string]string, len(labels))
	for _, l := range labels {
		want[l.Key] = labelsOf(l)
	}
	return b.pods.label(ctx, b, want)
}

// WriteStatus publishes the summary when it differs from what is published.
func (b *Backend) WriteStatus(ctx context.Context, status core.Status) error {
	b.statusMu.Lock()
	defer b.statusMu.Unlock()
	next := statusOf(status, b.status, metav1.NewTime(b.cfg.Now()))
	if equality.Semantic.DeepEqual(next, b.status) {
		return nil
	}
	err := b.cfg.retry(ctx, "apply the status of FlareCluster "+b.cfg.Cluster, func(ctx context.Context) error {
		body, err := applyBody(v1.GroupVersion.String(), v1.Kind,
			map[string]any{"name": b.cfg.Cluster, "namespace": b.cfg.Namespace, "uid": b.owner.UID}, map[string]any{"status": next})
		if err != nil {
			return err
		}
		_, err = b.cfg.Dynamic.Resource(v1.GroupVersionResource).Namespace(b.cfg.Namespace).
			Patch(ctx, b.cfg.Cluster, types.ApplyPatchType, body, applyOptions(manager), "status")
		return err
	})
	if err != nil {
		return err
	}
	b.status = next
	return nil
}
