package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	v1 "github.com/flarekv/flare/controller/api/v1"
)

// Times of the election. A leader that cannot renew gives up after RenewDeadline,
// which leaves it the rest of LeaseDuration to fall silent before another leads.
const (
	LeaseDuration = 8 * time.Second
	RenewDeadline = 5 * time.Second
	RetryPeriod   = time.Second
	// labelEvery is the distance of looks at the leader label.
	labelEvery = 10 * time.Second
)

// ErrLostLeadership tells that the lease could not be renewed. The process must
// end: what it has under way is no longer its business.
var ErrLostLeadership = errors.New("leadership lost")

// Election makes one of several controllers the leader.
type Election struct {
	Config Config
	// Owner is the FlareCluster, with which the Lease goes.
	Owner *v1.FlareCluster
	// Lock is the client for the Lease. It should be another one than Config.Kube,
	// with a request timeout below RenewDeadline: a renewal must wait for nothing.
	Lock kubernetes.Interface
	// NewLeader, if not nil, is told who leads.
	NewLeader func(name string)
	// Contact, if not nil, is told of each request for the Lease whether the API
	// server answered it.
	Contact func(error)

	// The times; zero means the constants of this package.
	LeaseDuration, RenewDeadline, RetryPeriod time.Duration

	held holding
}

// holding is until when nobody else can have taken the Lease.
type holding struct {
	mu    sync.Mutex
	until time.Time
}

// Holds reports whether the Lease was written so short a time ago that nobody else
// may take it yet. Unlike the end of lead's context this does not depend on this
// process having run in time to notice.
func (e *Election) Holds() bool {
	e.held.mu.Lock()
	defer e.held.mu.Unlock()
	return time.Now().Before(e.held.until)
}

// set notes until when.
func (h *holding) set(until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until = until
}

// Run waits to be elected and then calls lead, once. When ctx ends, lead's
// context ends first, and the lease is given up only after lead has returned:
// nobody else leads while work is under way. If the lease is lost, lead's context
// ends with ErrLostLeadership as its cause, and Run returns it, without waiting
// longer for lead than the rest of the lease; the process ends then.
func (e *Election) Run(ctx context.Context, lead func(context.Context) error) error {
	cfg := e.Config
	if err := cfg.complete(); err != nil {
		return err
	}
	duration, deadline, period := e.LeaseDuration, e.RenewDeadline, e.RetryPeriod
	if duration == 0 {
		duration, deadline, period = LeaseDuration, RenewDeadline, RetryPeriod
	}

	// The election outlives ctx until lead has returned.
	electing, endElection := context.WithCancel(context.WithoutCancel(ctx))
	defer endElection()

	leases := ownedLeases{e.Lock.CoordinationV1(), ownerOf(cfg.Cluster, e.Owner.UID), e.contact,
		func(began time.Time) { e.held.set(began.Add(duration)) }}
	elected := make(chan context.Context, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Name: cfg.Lease, Namespace: cfg.Namespace},
			Client:     leases,
			LockConfig: resourcelock.ResourceLockConfig{Identity: cfg.PodName},
		},
		LeaseDuration: duration,
		RenewDeadline: deadline,
		RetryPeriod:   period,
		// The elector would try to release a lease that it failed to renew, too, and
		// end the holder's context only afterwards: too late when the API server hangs.
		ReleaseOnCancel: false,
		Name:            cfg.Lease,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { elected <- ctx },
			OnStoppedLeading: func() {},
			OnNewLeader: func(name string) {
				cfg.Logger.Info("leader", "name", name, "self", name == cfg.PodName)
				if e.NewLeader != nil {
					e.NewLeader(name)
				}
			},
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		elector.Run(electing)
	}()
	stop := func() {
		endElection()
		<-over
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), period)
		defer cancel()
		if err := release(bye, leases.Leases(cfg.Namespace), cfg); err != nil {
			cfg.Logger.Warn("lease not released; others wait until it ends", "error", err)
		}
	}

	var holding context.Context
	select {
	case holding = <-elected:
	case <-ctx.Done():
		stop()
		return context.Cause(ctx)
	}

	working, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- e.serve(working, cfg, lead) }()
	select {
	case err := <-done:
		stop()
		return err
	case <-holding.Done():
	}
	cancel(ErrLostLeadership)
	rest := time.NewTimer(max(duration-deadline-period, 0))
	defer rest.Stop()
	select {
	case <-done:
	case <-rest.C:
		cfg.Logger.Error("work of a former leader has not ended in time")
	}
	return ErrLostLeadership
}

// release gives the lease up if this controller holds it.
func release(ctx context.Context, leases coordinationclient.LeaseInterface, cfg Config) error {
	l, err := leases.Get(ctx, cfg.Lease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return described("read Lease "+cfg.Lease, err)
	}
	if l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity != cfg.PodName {
		return nil
	}
	l.Spec.HolderIdentity = new("")
	l.Spec.LeaseDurationSeconds = new(int32(1))
	// The resourceVersion that was read makes this fail if somebody else has taken
	// the lease since.
	_, err = leases.Update(ctx, l, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return described("release Lease "+cfg.Lease, err)
	}
	return nil
}

// contact passes on whether the API server answered; a refusal is an answer.
func (e *Election) contact(err error) {
	if e.Contact == nil {
		return
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		err = nil
	}
	e.Contact(err)
}

// serve keeps the leader label on this pod, and only there, while lead runs.
func (e *Election) serve(ctx context.Context, cfg Config, lead func(context.Context) error) error {
	labelling, endLabelling := context.WithCancel(ctx)
	labelled := make(chan struct{})
	go func() {
		defer close(labelled)
		keepLeaderLabel(labelling, cfg)
	}()
	err := lead(ctx)
	endLabelling()
	<-labelled
	if context.Cause(ctx) != ErrLostLeadership {
		// A clean end: take the name off the door before the lease is given up.
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := patchLabel(bye, cfg, cfg.PodName, LabelLeader, nil); err != nil {
			cfg.Logger.Warn("leader label not removed", "error", err)
		}
	}
	return err
}

// keepLeaderLabel sets the label, and looks again from time to time.
func keepLeaderLabel(ctx context.Context, cfg Config) {
	for {
		wait := labelEvery
		if err := setLeaderLabel(ctx, cfg); err != nil {
			if ctx.Err() != nil {
				return
			}
			cfg.Logger.Warn("leader label not set; Services do not find this controller", "error", err)
			wait = RetryPeriod
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// setLeaderLabel labels this pod as the leader and no other controller's.
func setLeaderLabel(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, RenewDeadline)
	defer cancel()
	pods, err := cfg.Kube.CoreV1().Pods(cfg.Namespace).List(ctx, metav1.ListOptions{LabelSelector: cfg.ControllerSelector})
	if err != nil {
		return described("list controller pods "+cfg.ControllerSelector, err)
	}
	var problems []error
	found := false
	for _, p := range pods.Items {
		value, labelled := p.Labels[LabelLeader]
		switch self := p.Name == cfg.PodName; {
		case self:
			found = true
			if value != "true" {
				problems = append(problems, patchLabel(ctx, cfg, p.Name, LabelLeader, new("true")))
			}
		case labelled:
			problems = append(problems, patchLabel(ctx, cfg, p.Name, LabelLeader, nil))
		}
	}
	if !found {
		problems = append(problems, fmt.Errorf("pod %s is not among those selected by %q", cfg.PodName, cfg.ControllerSelector))
	}
	return errors.Join(problems...)
}

// patchLabel sets a label of a pod, or removes it when value is nil.
func patchLabel(ctx context.Context, cfg Config, pod, label string, value *string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]*string{label: value}}})
	if err != nil {
		return fmt.Errorf("encode the patch of pod %s: %w", pod, err)
	}
	err = cfg.retry(ctx, "patch pod "+pod, func(ctx context.Context) error {
		_, err := cfg.Kube.CoreV1().Pods(cfg.Namespace).Patch(ctx, pod, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// ownedLeases gives each Lease that is written the FlareCluster as its owner.
// The election makes the Lease anew when it is deleted, so it does not suffice
// to do that once.
type ownedLeases struct {
	coordinationclient.LeasesGetter
	owner   []metav1.OwnerReference
	contact func(error)
	wrote   func(began time.Time) // the Lease was written, as its holder
}

func (o ownedLeases) Leases(namespace string) coordinationclient.LeaseInterface {
	return ownedLease{o.LeasesGetter.Leases(namespace), o}
}

type ownedLease struct {
	coordinationclient.LeaseInterface
	by ownedLeases
}

func (o ownedLease) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	l, err := o.LeaseInterface.Get(ctx, name, opts)
	o.by.contact(err)
	return l, err
}

func (o ownedLease) Create(ctx context.Context, l *coordinationv1.Lease, opts metav1.CreateOptions) (*coordinationv1.Lease, error) {
	l.OwnerReferences = o.by.owner
	began := time.Now()
	created, err := o.LeaseInterface.Create(ctx, l, opts)
	if err == nil {
		o.by.wrote(began)
	}
	return created, err
}

func (o ownedLease) Update(ctx context.Context, l *coordinationv1.Lease, opts metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	l.OwnerReferences = o.by.owner
	began := time.Now()
	updated, err := o.LeaseInterface.Update(ctx, l, opts)
	o.by.contact(err)
	if err == nil {
		o.by.wrote(began)
	}
	return updated, err
}
