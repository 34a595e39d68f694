package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	kuberuntime "k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
)

// GetCluster reads the FlareCluster.
func GetCluster(ctx context.Context, cfg Config) (*v1.FlareCluster, error) {
	u, err := cfg.Dynamic.Resource(v1.GroupVersionResource).Namespace(cfg.Namespace).Get(ctx, cfg.Cluster, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return clusterOf(u)
}

// WaitCluster returns the FlareCluster once it exists and is not being deleted.
// waiting is called with the reason of each attempt that did not succeed.
func WaitCluster(ctx context.Context, cfg Config, waiting func(error)) (*v1.FlareCluster, error) {
	for {
		fc, err := GetCluster(ctx, cfg)
		switch {
		case err == nil && fc.DeletionTimestamp == nil:
			return fc, nil
		case err == nil:
			err = fmt.Errorf("FlareCluster %s is being deleted", cfg.Cluster)
		case !apierrors.IsNotFound(err):
			if _, again := transient(err); !again {
				return nil, described("read FlareCluster "+cfg.Cluster, err)
			}
		}
		waiting(err)
		timer := time.NewTimer(time.Second)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

func clusterOf(u *unstructured.Unstructured) (*v1.FlareCluster, error) {
	fc := &v1.FlareCluster{}
	if err := kuberuntime.DefaultUnstructuredConverter.FromUnstructured(u.Object, fc); err != nil {
		return nil, fmt.Errorf("FlareCluster %s is not what its definition says: %w", u.GetName(), err)
	}
	return fc, nil
}

// source is one kind of object that is watched.
type source struct {
	what   string
	object kuberuntime.Object
	lw     *cache.ListWatch
	strip  cache.TransformFunc
	// optional: a refusal means to do without.
	optional bool
	store    cache.Store
	ctl      cache.Controller
}

// Watch observes the FlareCluster, the StatefulSet and its pods until ctx ends,
// and puts back labels and configuration that others changed. It fails when it
// may not read what it must, or when the FlareCluster is deleted.
func (b *Backend) Watch(ctx context.Context, observe func(core.Input)) error {
	clusters, sets := b.sourceClusters(), b.sourceSets()
	pods, configs, nodes := b.sourcePods(), b.sourceConfigs(), b.sourceNodes()
	all := []*source{clusters, sets, pods, configs, nodes}

	wake := make(chan struct{}, 1)
	for _, s := range all {
		// The first list is made here, so that a missing permission is an error
		// with a name and not a line that informers log for ever.
		err := b.cfg.retry(ctx, "list "+s.what, func(ctx context.Context) error {
			_, err := s.lw.ListWithContext(ctx, metav1.ListOptions{Limit: 1})
			return err
		})
		if s.optional && (apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)) {
			b.log.Warn("may not be read; done without", "what", s.what, "error", err)
			s.store = cache.NewStore(cache.MetaNamespaceKeyFunc)
			continue
		}
		if err != nil {
			return err
		}
		b.startInformer(s, wake)
	}

	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for _, s := range all {
		if s.ctl == nil {
			continue
		}
		running.Go(func() { s.ctl.RunWithContext(ctx) })
	}
	for _, s := range all {
		if s.ctl != nil && !cache.WaitForCacheSync(ctx.Done(), s.ctl.HasSynced) {
			return ctx.Err()
		}
	}

	placeOf := func(node string) place {
		p := place{zone: node}
		if o, ok, _ := nodes.store.GetByKey(node); ok {
			n := o.(*corev1.Node)
			p.zone, p.cordoned = cmp.Or(n.Labels[b.cfg.ZoneLabel], node), n.Spec.Unschedulable
		}
		return p
	}
	repairs := make(chan bool, 1)
	running.Go(func() { b.repairLoop(ctx, repairs, pods.store, configs.store) })
	resync := time.NewTicker(b.cfg.Resync)
	defer resync.Stop()
	var spec core.Spec
	var members core.Members
	for full := true; ; {
		fc, err := b.onlyCluster(clusters.store)
		if err != nil {
			return err
		}
		if next := runtime.SpecOf(fc.Spec, fc.Generation); full || next != spec {
			spec = next
			observe(core.SpecChanged{Spec: spec})
		}
		if next := b.cfg.membersOf(onlySet(sets.store), podsOf(pods.store), placeOf); full || !reflect.DeepEqual(next, members) {
			members = next
			observe(core.MembersChanged{Members: members})
		}
		select {
		case repairs <- full:
		default: // one is waiting already; it will see what is there by then
		}

		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
			full = false
		case <-resync.C:
			full = true
		}
	}
}

// repairLoop puts back what others changed. It runs beside Watch: a request that
// hangs must not hold up an observation. A failure is tried again at the next
// event or resync.
func (b *Backend) repairLoop(ctx context.Context, wanted <-chan bool, pods, configs cache.Store) {
	for {
		var full bool
		select {
		case full = <-wanted:
		case <-ctx.Done():
			return
		}
		func() {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			if err := b.pods.repair(ctx, b, podsOf(pods)); err != nil && ctx.Err() == nil {
				b.log.Warn("labels could not be put back", "error", err)
			}
			if err := b.repairConfig(ctx, configs, full); err != nil && ctx.Err() == nil {
				b.log.Warn("configuration could not be put back", "error", err)
			}
		}()
	}
}

// onlyCluster returns the FlareCluster as cached.
func (b *Backend) onlyCluster(store cache.Store) (*v1.FlareCluster, error) {
	o, ok, err := store.GetByKey(b.cfg.Namespace + "/" + b.cfg.Cluster)
	if err != nil {
		return nil, fmt.Errorf("read FlareCluster %s: %w", b.cfg.Cluster, err)
	}
	if !ok {
		return nil, ErrClusterGone
	}
	fc, err := clusterOf(o.(*unstructured.Unstructured))
	if err != nil {
		return nil, err
	}
	if fc.DeletionTimestamp != nil || fc.UID != b.owner.UID {
		return nil, ErrClusterGone
	}
	return fc, nil
}

func onlySet(store cache.Store) *appsv1.StatefulSet {
	for _, o := range store.List() {
		return o.(*appsv1.StatefulSet)
	}
	return nil
}

func podsOf(store cache.Store) []*corev1.Pod {
	objects := store.List()
	pods := make([]*corev1.Pod, 0, len(objects))
	for _, o := range objects {
		pods = append(pods, o.(*corev1.Pod))
	}
	return pods
}

// startInformer fills s.store and s.ctl. wake gets a value after each event.
func (b *Backend) startInformer(s *source, wake chan<- struct{}) {
	signal := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	s.store, s.ctl = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: s.lw,
		ObjectType:    s.object,
		Transform:     s.strip,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { signal() },
			UpdateFunc: func(_, _ any) { signal() },
			DeleteFunc: func(any) { signal() },
		},
	})
}

// byName selects the one object of that name.
func byName(name string) func(*metav1.ListOptions) {
	return func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	}
}

// listerWatcher joins two calls of a client.
func listerWatcher[L kuberuntime.Object](
	list func(context.Context, metav1.ListOptions) (L, error),
	watch func(context.Context, metav1.ListOptions) (apiwatch.Interface, error),
	tweak func(*metav1.ListOptions),
) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (kuberuntime.Object, error) {
			tweak(&o)
			return list(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			tweak(&o)
			return watch(ctx, o)
		},
	}
}

func (b *Backend) sourceClusters() *source {
	c := b.cfg.Dynamic.Resource(v1.GroupVersionResource).Namespace(b.cfg.Namespace)
	return &source{
		what:   "FlareClusters",
		object: &unstructured.Unstructured{},
		lw:     listerWatcher(c.List, c.Watch, byName(b.cfg.Cluster)),
	}
}

func (b *Backend) sourceSets() *source {
	c := b.cfg.Kube.AppsV1().StatefulSets(b.cfg.Namespace)
	return &source{
		what:   "StatefulSets",
		object: &appsv1.StatefulSet{},
		lw:     listerWatcher(c.List, c.Watch, byName(b.cfg.StatefulSet)),
	}
}

// sourcePods keeps of each pod what is looked at, so that a comparison sees no
// other change.
func (b *Backend) sourcePods() *source {
	c := b.cfg.Kube.CoreV1().Pods(b.cfg.Namespace)
	return &source{
		what:   "pods",
		object: &corev1.Pod{},
		lw: listerWatcher(c.List, c.Watch, func(o *metav1.ListOptions) {
			o.LabelSelector = b.cfg.PodSelector
		}),
		strip: func(o any) (any, error) {
			p, ok := o.(*corev1.Pod)
			if !ok {
				return o, nil
			}
			return &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{
					Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
					Labels: p.Labels, DeletionTimestamp: p.DeletionTimestamp,
				},
				Spec:   corev1.PodSpec{NodeName: p.Spec.NodeName},
				Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP},
			}, nil
		},
	}
}

func (b *Backend) sourceConfigs() *source {
	c := b.cfg.Kube.CoreV1().ConfigMaps(b.cfg.Namespace)
	return &source{
		what:   "ConfigMaps",
		object: &corev1.ConfigMap{},
		lw:     listerWatcher(c.List, c.Watch, byName(b.cfg.configName())),
	}
}

// sourceNodes is optional: it needs a ClusterRole, which not everybody is given.
// Only the labels and the cordon are kept; a Node's status changes all the time.
func (b *Backend) sourceNodes() *source {
	c := b.cfg.Kube.CoreV1().Nodes()
	return &source{
		what:     "Nodes",
		object:   &corev1.Node{},
		lw:       listerWatcher(c.List, c.Watch, func(*metav1.ListOptions) {}),
		optional: true,
		strip: func(o any) (any, error) {
			n, ok := o.(*corev1.Node)
			if !ok {
				return o, nil
			}
			return &corev1.Node{
				ObjectMeta: metav1.ObjectMeta{
					Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels,
				},
				Spec: corev1.NodeSpec{Unschedulable: n.Spec.Unschedulable},
			}, nil
		},
	}
}

// IsGone tells whether err means that the cluster is no more, which is an end
// and not a failure.
func IsGone(err error) bool { return errors.Is(err, ErrClusterGone) }
