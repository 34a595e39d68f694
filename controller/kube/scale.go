package kube

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/flarekv/flare/controller/core"
)

// ReasonStaleView tells that pods are not taken away because the decision to do so was
// made on what is not so any more. It is made anew with what is.
const ReasonStaleView = "stale_view"

// ScaleTo sets the number of pods, and nothing else, of the StatefulSet. Before pods
// are taken away the API server is asked whether the decision was made on what is:
// the caches that it was made on run behind.
func (b *Backend) ScaleTo(ctx context.Context, to core.ScaleTo) error {
	sets := b.cfg.Kube.AppsV1().StatefulSets(b.cfg.Namespace)
	return b.cfg.retry(ctx, "scale StatefulSet "+b.cfg.StatefulSet, func(ctx context.Context) error {
		set, err := sets.Get(ctx, b.cfg.StatefulSet, metav1.GetOptions{})
		if err != nil {
			return err
		}
		have := 1
		if set.Spec.Replicas != nil {
			have = int(*set.Spec.Replicas)
		}
		switch {
		case have == to.Nodes:
			return nil // done by an attempt whose answer was lost, or by a former leader
		case have > to.Nodes:
			if err := b.fresh(ctx, to, have); err != nil {
				return err
			}
		}
		// The version makes this fail if somebody changed the scale since it was read.
		patch := fmt.Appendf(nil, `{"metadata":{"resourceVersion":%q},"spec":{"replicas":%d}}`, set.ResourceVersion, to.Nodes)
		_, err = sets.Patch(ctx, b.cfg.StatefulSet, types.MergePatchType, patch, metav1.PatchOptions{}, "scale")
		if apierrors.IsConflict(err) {
			return raced{err}
		}
		return err
	})
}

// fresh refuses to take pods away on a decision about another number of them, or
// about another spec, than there is.
func (b *Backend) fresh(ctx context.Context, to core.ScaleTo, have int) error {
	if have != to.From {
		return b.stale("the StatefulSet has %d replicas, %d were to become %d", have, to.From, to.Nodes)
	}
	fc, err := GetCluster(ctx, b.cfg)
	if err != nil {
		return fmt.Errorf("read FlareCluster %s: %w", b.cfg.Cluster, err)
	}
	if fc.UID != b.owner.UID || fc.Generation != to.Generation {
		return b.stale("FlareCluster %s is at generation %d, %d nodes are wanted by generation %d", b.cfg.Cluster, fc.Generation, to.Nodes, to.Generation)
	}
	return nil
}

func (b *Backend) stale(format string, args ...any) error {
	if b.cfg.Refused != nil {
		b.cfg.Refused(ReasonStaleView)
	}
	return fmt.Errorf("%s: %s", ReasonStaleView, fmt.Sprintf(format, args...))
}
