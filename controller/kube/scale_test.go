package kube

import (
	"errors"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kuberuntime "k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/controller/core"
)

func (w *world) replicas() int {
	w.t.Helper()
	set, err := w.kube.AppsV1().StatefulSets(namespace).Get(w.t.Context(), "flare", metav1.GetOptions{})
	if err != nil || set.Spec.Replicas == nil {
		w.t.Fatalf("%v, %v", set, err)
	}
	return int(*set.Spec.Replicas)
}

func TestScale(t *testing.T) {
	w := newWorld(t)
	w.addSet(1)
	b := w.backend("ctl-0")
	for range 2 {
		// The second time its answer was lost: there is nothing left to do.
		if err := b.ScaleTo(t.Context(), core.ScaleTo{Nodes: 4, From: 1, Generation: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.writes("statefulsets/scale", "patch"); n != 1 {
		t.Errorf("%d patches of the scale subresource, want 1", n)
	}
	if n := w.writes("statefulsets", "patch", "update"); n != 0 {
		t.Errorf("%d writes of the StatefulSet itself, want 0", n)
	}
	if n := w.replicas(); n != 4 {
		t.Errorf("%d replicas, want 4", n)
	}
}

// TestScaleInLooksAgain takes no pod away on a decision that was made on a stale cache.
func TestScaleInLooksAgain(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*world)
		to     core.ScaleTo
		want   int // replicas afterwards
	}{
		{"nothing changed", nil, core.ScaleTo{Nodes: 2, From: 4, Generation: 1}, 2},
		{"somebody scaled meanwhile", nil, core.ScaleTo{Nodes: 2, From: 3, Generation: 1}, 4},
		{"the spec asks for something else by now", func(w *world) {
			fc := w.cluster.DeepCopy()
			fc.Generation = 2
			w.update(fc)
		}, core.ScaleTo{Nodes: 2, From: 4, Generation: 1}, 4},
		{"it is another FlareCluster by now", func(w *world) {
			fc := w.cluster.DeepCopy()
			fc.UID = "another"
			w.update(fc)
		}, core.ScaleTo{Nodes: 2, From: 4, Generation: 1}, 4},
		{"more pods need no second look", nil, core.ScaleTo{Nodes: 5, From: 3, Generation: 9}, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.addSet(4)
			if tt.change != nil {
				tt.change(w)
			}
			var refused []string
			w.cfg.Refused = func(reason string) { refused = append(refused, reason) }
			err := w.backend("ctl-0").ScaleTo(t.Context(), tt.to)
			if n := w.replicas(); n != tt.want {
				t.Errorf("%d replicas, want %d (%v)", n, tt.want, err)
			}
			stale := tt.want != tt.to.Nodes
			if stale != (err != nil) || stale && (!strings.Contains(err.Error(), ReasonStaleView) || len(refused) != 1 || refused[0] != ReasonStaleView) {
				t.Errorf("%v, refused %v", err, refused)
			}
		})
	}
}

func (w *world) update(fc *v1.FlareCluster) {
	w.t.Helper()
	if _, err := w.dynamic.Resource(v1.GroupVersionResource).Namespace(namespace).Update(w.t.Context(), asUnstructured(w.t, fc), metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func TestRefusalsFailFastAndOutagesAreSatOut(t *testing.T) {
	w := newWorld(t)
	w.addSet(1)
	var retried []string
	w.cfg.Retried = func(reason string) { retried = append(retried, reason) }
	b := w.backend("ctl-0")
	calls := 0
	var answer error
	w.kube.PrependReactor("patch", "statefulsets", func(clienttesting.Action) (bool, kuberuntime.Object, error) {
		if calls++; calls == 3 {
			return true, &appsv1.StatefulSet{}, nil
		}
		return true, nil, answer
	})
	answer = apierrors.NewServiceUnavailable("starting")
	to := core.ScaleTo{Nodes: 4, From: 1, Generation: 1}
	if err := b.ScaleTo(t.Context(), to); err != nil || calls != 3 || len(retried) != 2 || retried[0] != RetryServer {
		t.Errorf("after an outage: %v, %d calls, retried %v", err, calls, retried)
	}
	calls = 0
	answer = apierrors.NewConflict(appsv1.Resource("statefulsets"), "flare", errors.New("its status changed"))
	if err := b.ScaleTo(t.Context(), to); err != nil || calls != 3 || len(retried) != 4 || retried[3] != RetryConflict {
		t.Errorf("after lost races: %v, %d calls, retried %v", err, calls, retried)
	}
	calls = 0
	answer = apierrors.NewForbidden(appsv1.Resource("statefulsets"), "flare", errors.New("no role"))
	err := b.ScaleTo(t.Context(), to)
	if !apierrors.IsForbidden(err) || calls != 1 || !strings.Contains(err.Error(), "scale StatefulSet flare: Forbidden") {
		t.Errorf("when forbidden: %v, %d calls", err, calls)
	}
}
