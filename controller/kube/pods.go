package kube

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// parallelPatches bounds the requests that marking pods has under way.
const parallelPatches = 8

// Field managers of what is written on data pods. Each writes all of its own fields
// at a time, so what it no longer wants goes.
const (
	managerDuties = "flare-controller-duties"
	managerNudge  = "flare-controller-nudge"
)

// podMarks keeps labels on the data pods. It compares with the API server and
// not with the informer's cache: the cache runs behind what was written here, and
// could show a mark that is about to vanish as one that is there.
type podMarks struct {
	mu   sync.Mutex
	want map[string]map[string]string // labels, by node key
}

// label replaces the wanted labels, and applies them.
func (m *podMarks) label(ctx context.Context, b *Backend, want map[string]map[string]string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.want = want
	return m.apply(ctx, b)
}

// repair applies the wanted labels if one of the pods as cached lacks some: a
// pod made anew under its old name has none.
func (m *podMarks) repair(ctx context.Context, b *Backend, cached []*corev1.Pod) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range cached {
		if len(difference(p.Labels, m.want[b.cfg.nodeKey(p.Name)])) > 0 {
			return m.apply(ctx, b)
		}
	}
	return nil
}

func (m *podMarks) apply(ctx context.Context, b *Backend) error {
	return b.applyPods(ctx, managerDuties, func(p *corev1.Pod) map[string]any {
		want := m.want[b.cfg.nodeKey(p.Name)]
		if len(difference(p.Labels, want)) == 0 {
			return nil
		}
		return map[string]any{"labels": want}
	})
}

// annotatePods sets an annotation on every data pod.
func (b *Backend) annotatePods(ctx context.Context, key, value string) error {
	return b.applyPods(ctx, managerNudge, func(p *corev1.Pod) map[string]any {
		if p.Annotations[key] == value {
			return nil
		}
		return map[string]any{"annotations": map[string]string{key: value}}
	})
}

// applyPods applies, as one field manager, to the metadata of each data pod what
// want returns, if anything. A pod that vanishes meanwhile is no failure.
func (b *Backend) applyPods(ctx context.Context, manager string, want func(*corev1.Pod) map[string]any) error {
	pods := b.cfg.Kube.CoreV1().Pods(b.cfg.Namespace)
	var list *corev1.PodList
	err := b.cfg.retry(ctx, "list pods "+b.cfg.PodSelector, func(ctx context.Context) (err error) {
		list, err = pods.List(ctx, metav1.ListOptions{LabelSelector: b.cfg.PodSelector})
		return err
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelPatches)
	for i := range list.Items {
		pod := &list.Items[i]
		if _, ours := b.cfg.ordinal(pod.Name); !ours {
			continue
		}
		meta := want(pod)
		if meta == nil {
			continue
		}
		// With the UID this fails on a pod of the same name that came after, and makes
		// none where there is none any more.
		meta["name"], meta["namespace"], meta["uid"] = pod.Name, pod.Namespace, pod.UID
		g.Go(func() error {
			err := b.cfg.retry(ctx, "apply to pod "+pod.Name, func(ctx context.Context) error {
				body, err := applyBody("v1", "Pod", meta, nil)
				if err != nil {
					return err
				}
				_, err = pods.Patch(ctx, pod.Name, types.ApplyPatchType, body, applyOptions(manager))
				return err
			})
			if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// difference returns those of want that have does not hold.
func difference(have, want map[string]string) map[string]string {
	d := map[string]string{}
	for k, v := range want {
		if old, ok := have[k]; !ok || old != v {
			d[k] = v
		}
	}
	return d
}
