package sidecar

import (
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// TestLeaseIsHandedOver: what the controller answers to a token arrives at flared as
// it is, and a node that wants a lease is reported at once.
func TestLeaseIsHandedOver(t *testing.T) {
	t.Parallel()
	c := startController(t, "127.0.0.1:0")
	c.set(func(c *fakeController) {
		c.grant = func(n *agentv1.NodeStatus) *agentv1.LeaseGrant {
			if n.GetLeaseEpoch() == 0 {
				return nil
			}
			return &agentv1.LeaseGrant{Instance: n.GetInstance(), Partition: n.Partition, Epoch: n.GetLeaseEpoch(),
				Token: n.GetLeaseToken(), Ttl: durationpb.New(5 * time.Second)}
		}
	})
	r := startAgent(t, func(s *Settings) { s.Controller = c.addr })
	f := startFlared(t, r.socket, "first")
	waitFor(t, "the controller knows flared", func() bool { return alive("first")(c.last().status) })
	if l := f.lease(); l != nil {
		t.Errorf("a lease that nobody asked for: %v", l)
	}
	f.set(func(s *agentv1.NodeStatus) { s.LeaseToken, s.LeaseEpoch = 1000, 4 })
	waitFor(t, "flared has the lease", func() bool { return f.lease() != nil })
	want := &agentv1.LeaseGrant{Instance: "first", Partition: new(uint32(0)), Epoch: 4, Token: 1000, Ttl: durationpb.New(5 * time.Second)}
	if l := f.lease(); !proto.Equal(l, want) {
		t.Errorf("lease %v, want %v", l, want)
	}
	f.set(func(s *agentv1.NodeStatus) { s.LeaseToken = 2000 })
	waitFor(t, "flared has the next lease", func() bool { return f.lease().GetToken() == 2000 })
}

func TestLeaseIsUrgent(t *testing.T) {
	status := func(token, epoch uint64) *agentv1.AgentStatus {
		return &agentv1.AgentStatus{FlaredAlive: true, Flared: &agentv1.NodeStatus{LeaseToken: token, LeaseEpoch: epoch}}
	}
	if !Urgent(status(1, 0), status(2, 3)) || !Urgent(status(1, 3), status(2, 4)) || !Urgent(status(1, 3), status(2, 0)) {
		t.Error("a lease that is wanted, or not any more, may wait")
	}
	if Urgent(status(1, 3), status(2, 3)) {
		t.Error("a new token may not wait")
	}
}

// TestLeasesKeepTheLast: a lease that could not be handed over gives way to a later one.
func TestLeasesKeepTheLast(t *testing.T) {
	l := newLeases()
	for token := range uint64(9) {
		l.put(&agentv1.LeaseGrant{Token: token})
	}
	if got := <-l; got.GetToken() != 8 {
		t.Errorf("lease %v", got)
	}
}

// TestLeaseWaitsForTheFile: a process of flared that has not heard what the options file
// says gets no lease, were it to execute writes that belong to another cluster by now.
func TestLeaseWaitsForTheFile(t *testing.T) {
	t.Parallel()
	c := startController(t, "127.0.0.1:0")
	var mu sync.Mutex
	granted := map[string]uint64{} // instance -> the last token
	c.set(func(c *fakeController) {
		c.grant = func(n *agentv1.NodeStatus) *agentv1.LeaseGrant {
			if n.GetLeaseEpoch() == 0 {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			granted[n.GetInstance()] = n.GetLeaseToken()
			return &agentv1.LeaseGrant{Instance: n.GetInstance(), Partition: n.Partition, Epoch: 4, Token: n.GetLeaseToken(), Ttl: durationpb.New(5 * time.Second)}
		}
	})
	config := newConfigMap(t)
	config.config(1, "max-connection = 5\n")
	r := startAgent(t, func(s *Settings) { s.Controller, s.ConfigDir = c.addr, config.dir })
	for _, instance := range []string{"first", "second"} {
		release := make(chan struct{})
		f := startFlared(t, r.socket, instance, func(f *fakeFlared) {
			f.release, f.status.LeaseToken, f.status.LeaseEpoch = release, 1000, 4
		})
		waitFor(t, "flared is being told its options", func() bool { return len(f.sent()) > 0 })
		for token := uint64(1000); token <= 3000; token += 1000 { // the last one comes behind the one before
			f.set(func(s *agentv1.NodeStatus) { s.LeaseToken = token })
			waitFor(t, "the controller has answered with a lease", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return granted[instance] == token
			})
		}
		if l := f.lease(); l != nil {
			t.Errorf("%s has a lease before its options: %v", instance, l)
		}
		close(release)
		waitFor(t, "flared has the last lease", func() bool { return f.lease().GetToken() == 3000 })
		f.kill()
	}
}
