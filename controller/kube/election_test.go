package kube

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// candidate is a controller that stands for election.
type candidate struct {
	leads  chan context.Context // gets a value when it is elected
	finish chan struct{}        // closed to let lead return after its context has ended
	done   chan error
	cancel context.CancelFunc
	holds  func() bool
	// reached tells whether the last request for the lease was answered.
	reached atomic.Bool
}

func (w *world) stand(name string) *candidate { return w.standFor(name, 20*time.Second) }

// standFor is stand with a time for which a lease lasts.
func (w *world) standFor(name string, lease time.Duration) *candidate {
	ctx, cancel := context.WithCancel(w.t.Context())
	c := &candidate{leads: make(chan context.Context, 1), finish: make(chan struct{}), done: make(chan error, 1), cancel: cancel}
	cfg := w.cfg
	cfg.PodName = name
	e := &Election{
		Config: cfg, Owner: w.cluster, Lock: w.kube, Contact: func(err error) { c.reached.Store(err == nil) },
		LeaseDuration: lease, RenewDeadline: lease * 2 / 3, RetryPeriod: 20 * time.Millisecond,
	}
	c.holds = e.Holds
	go func() {
		c.done <- e.Run(ctx, func(ctx context.Context) error {
			c.leads <- ctx
			<-ctx.Done()
			<-c.finish
			return context.Cause(ctx)
		})
	}()
	w.t.Cleanup(cancel)
	return c
}

func soon[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(time.Minute):
		t.Fatalf("never: %s", what)
		panic("unreachable")
	}
}

func (w *world) lease() *coordinationv1.Lease {
	w.t.Helper()
	l, err := w.kube.CoordinationV1().Leases(namespace).Get(w.t.Context(), "flare-controller", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

func (w *world) addControllers(names ...string) {
	for _, n := range names {
		w.addPod(n, map[string]string{"app": "controller"}, nil)
	}
}

func TestElection(t *testing.T) {
	w := newWorld(t)
	w.addControllers("ctl-0", "ctl-1")
	first := w.stand("ctl-0")
	soon(t, "ctl-0 leads", first.leads)
	eventually(t, "ctl-0 has the label", func() bool { return w.pod("ctl-0").Labels[LabelLeader] == "true" })
	if l := w.lease(); len(l.OwnerReferences) != 1 || l.OwnerReferences[0].UID != "fc-uid" || *l.Spec.HolderIdentity != "ctl-0" {
		t.Errorf("lease: %+v", l)
	}

	second := w.stand("ctl-1")
	first.cancel()
	// As long as the first one's work has not ended, it renews.
	before := w.lease().Spec.RenewTime.Time
	eventually(t, "a renewal after the end was asked for", func() bool { return w.lease().Spec.RenewTime.After(before) })
	select {
	case <-second.leads:
		t.Fatal("two lead")
	default:
	}
	close(first.finish)
	if err := soon(t, "ctl-0 ends", first.done); !errors.Is(err, context.Canceled) {
		t.Errorf("ctl-0 ended with %v", err)
	}
	soon(t, "ctl-1 leads", second.leads)
	eventually(t, "only ctl-1 has the label", func() bool {
		_, has := w.pod("ctl-0").Labels[LabelLeader]
		return w.pod("ctl-1").Labels[LabelLeader] == "true" && !has
	})
	close(second.finish)
	second.cancel()
	soon(t, "ctl-1 ends", second.done)
	eventually(t, "the lease is free", func() bool { return *w.lease().Spec.HolderIdentity == "" })
}

func TestNewLeaderTakesTheLabelOfADeadOne(t *testing.T) {
	w := newWorld(t)
	w.addControllers("ctl-0")
	w.addPod("ctl-1", map[string]string{"app": "controller", LabelLeader: "true"}, nil) // died while leading
	c := w.stand("ctl-0")
	soon(t, "ctl-0 leads", c.leads)
	eventually(t, "only ctl-0 has the label", func() bool {
		_, has := w.pod("ctl-1").Labels[LabelLeader]
		return w.pod("ctl-0").Labels[LabelLeader] == "true" && !has
	})
	close(c.finish)
	c.cancel()
	soon(t, "the end", c.done)
}

func TestLostLease(t *testing.T) {
	w := newWorld(t)
	w.addControllers("ctl-0")
	c := w.standFor("ctl-0", 3*time.Second)
	ctx := soon(t, "ctl-0 leads", c.leads)
	eventually(t, "the label", func() bool { return w.pod("ctl-0").Labels[LabelLeader] == "true" })
	if !c.reached.Load() {
		t.Error("a leader must know that it reaches the API server")
	}
	eventually(t, "the leader holds the lease", c.holds)
	w.away.Store(true)
	soon(t, "the work is told to end", ctx.Done())
	if cause := context.Cause(ctx); cause != ErrLostLeadership {
		t.Errorf("told to end because of %v", cause)
	}
	eventually(t, "nobody holds a lease that was not renewed for so long", func() bool { return !c.holds() })
	if c.reached.Load() {
		t.Error("who cannot renew must know that the API server is away")
	}
	// The work hangs, but the end does not wait for it.
	if err := soon(t, "the end", c.done); !errors.Is(err, ErrLostLeadership) {
		t.Errorf("ended with %v", err)
	}
	if w.pod("ctl-0").Labels[LabelLeader] != "true" {
		t.Error("who has lost the lease must not touch labels any more")
	}
	close(c.finish)
}

func TestReleaseLeavesAnothersLeaseAlone(t *testing.T) {
	w := newWorld(t)
	leases := w.kube.CoordinationV1().Leases(namespace)
	cfg := w.cfg
	cfg.Lease = "l"
	if err := release(t.Context(), leases, cfg); err != nil {
		t.Errorf("no lease: %v", err)
	}
	held := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "l"}, Spec: coordinationv1.LeaseSpec{HolderIdentity: new("ctl-1")}}
	if _, err := leases.Create(t.Context(), held, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, after string }{{"ctl-0", "ctl-1"}, {"ctl-1", ""}} {
		cfg.PodName = tt.name
		if err := release(t.Context(), leases, cfg); err != nil {
			t.Fatal(err)
		}
		got, err := leases.Get(t.Context(), "l", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if *got.Spec.HolderIdentity != tt.after {
			t.Errorf("%s released: held by %q, want %q", tt.name, *got.Spec.HolderIdentity, tt.after)
		}
	}
}
