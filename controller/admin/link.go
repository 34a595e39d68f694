package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/flarekv/flare/controller/core"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// links knows the one link that speaks for each node. An agent that lost its
// connection comes back with a new link before the old one is seen to be dead:
// the newer one counts, and the end of the older one is no news. But of two
// agents the one that started later counts, whoever connects last: a pod that
// is deleted without grace lives on for a while beside its successor.
type links struct {
	// changing is held while a link comes or goes, until the core has taken the news.
	// The core hands leases and orders over meanwhile, for which it must not wait.
	changing sync.Mutex

	mu sync.Mutex // held for a moment only
	by map[string]*link
}

// link is one Attach call. replaced is closed when a newer one speaks for its node.
type link struct {
	node     string
	peer     string    // address of its agent
	started  time.Time // of its agent; zero when it does not say
	replaced chan struct{}
	grants   chan core.GrantLease // capacity 1: the last one that was not sent yet
	orders   chan core.OrderNode  // capacity maxOrders
}

// attach makes a new link speak for a node, unless who opened it may not: the
// answer then says why.
func (ls *links) attach(node, from string, started time.Time, members core.Members) (*link, error) {
	ls.changing.Lock()
	defer ls.changing.Unlock()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	old := ls.by[node]
	if err := refuseAgent(node, from, started, old, members); err != nil {
		return nil, err
	}
	if old != nil {
		close(old.replaced)
	}
	l := &link{node: node, peer: from, started: started, replaced: make(chan struct{}), grants: make(chan core.GrantLease, 1),
		orders: make(chan core.OrderNode, maxOrders)}
	if ls.by == nil {
		ls.by = make(map[string]*link)
	}
	ls.by[node] = l
	return l, nil
}

// refuseAgent tells why an agent may not speak for a node: because the workload has
// no such node, because it comes from the pod of another, or because another agent
// does already, which started later or is where the node is. One that is there and
// silent counts as lost after the report timeout.
func refuseAgent(node, from string, started time.Time, present *link, members core.Members) error {
	i, known := slices.BinarySearchFunc(members.List, node, func(m core.Member, key string) int { return strings.Compare(m.Key, key) })
	var pod core.Member
	if known {
		pod = members.List[i]
	}
	at := func(p string) bool { return pod.Exists && pod.Address != "" && pod.Address == p }
	switch {
	case members.Known && !known:
		return refusal(codes.PermissionDenied, ReasonAgentOfNoPod, "%s is not the name of any pod of this cluster", node)
	case members.OtherPod(node, from):
		return refusal(codes.PermissionDenied, ReasonAgentOfOtherPod, "%s is the address of another pod than %s", from, node)
	case present == nil || at(from) && !at(present.peer):
		return nil
	case present.peer != from && (at(present.peer) || !members.Known):
		return refusal(codes.PermissionDenied, core.RefuseNameInUse, "the agent of %s is linked from another address", node)
	case present.started.After(started):
		return refusal(codes.Aborted, ReasonLinkReplaced, "an agent that started later speaks for %s", node)
	}
	return nil
}

// detach forgets l and calls lost if l was the link that spoke for its node.
// No link comes meanwhile, so that no report of a newer one overtakes it.
func (ls *links) detach(l *link, lost func()) {
	ls.changing.Lock()
	defer ls.changing.Unlock()
	ls.mu.Lock()
	spoke := ls.by[l.node] == l
	if spoke {
		delete(ls.by, l.node)
	}
	ls.mu.Unlock()
	if spoke {
		lost()
	}
}

// grant hands a lease to the link that speaks for its node, if there is one. A later
// lease takes the place of one that was not sent yet.
func (ls *links) grant(g core.GrantLease) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.by[g.Key]
	if l == nil {
		return
	}
	select {
	case <-l.grants:
	default:
	}
	l.grants <- g // only this function sends, under the lock
}

// peerAddress returns the address that a call came from, without the port; empty
// when not known.
func peerAddress(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return ""
	}
	return host
}

// reasonIn returns the machine-readable reason of a refusal, empty for another error.
func reasonIn(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// maxOrders is how many orders wait for a link that is slow; the core gives what is
// dropped again.
const maxOrders = 4

// order hands an order to the link that speaks for its node, if there is one.
func (ls *links) order(o core.OrderNode) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.by[o.Key]; l != nil {
		select {
		case l.orders <- o:
		default:
		}
	}
}

func (ls *links) count() int {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return len(ls.by)
}

// agentLinkService takes the agents' links.
type agentLinkService struct {
	controllerv1.UnimplementedAgentLinkServiceServer
	s *Server
}

// Attach counts the links that were refused, or ended because of what came over them.
func (a *agentLinkService) Attach(stream grpc.BidiStreamingServer[controllerv1.AttachRequest, controllerv1.AttachResponse]) error {
	err := a.attach(stream)
	if reason := reasonIn(err); reason != "" && reason != ReasonNotLeader {
		a.s.metrics.agentRefusals.WithLabelValues(reason).Inc()
	}
	return err
}

// attach hands each report to the cluster and confirms it; leases go the other way
// as the core grants them. A link that is silent for the report timeout is lost,
// whatever TCP says.
func (a *agentLinkService) attach(stream grpc.BidiStreamingServer[controllerv1.AttachRequest, controllerv1.AttachResponse]) error {
	s := a.s
	cluster, err := s.lead()
	if err != nil {
		return err
	}
	ctx := stream.Context()
	from := peerAddress(ctx)

	// Recv cannot be interrupted but by the end of this call, so it has a goroutine
	// of its own. It ends with the call: ctx ends then, and Recv with it.
	type received struct {
		req *controllerv1.AttachRequest
		err error
	}
	reports := make(chan received)
	go func() {
		for {
			req, err := stream.Recv()
			select {
			case reports <- received{req, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()

	var self *link
	var replaced <-chan struct{}
	var grants <-chan core.GrantLease
	var orders <-chan core.OrderNode
	defer func() {
		if self == nil {
			return
		}
		s.links.detach(self, func() {
			s.log.Info("agent link lost", "node", self.node)
			cluster.Observe(core.AgentLost{Key: self.node})
		})
	}()

	silence := time.NewTimer(s.reportTimeout)
	defer silence.Stop()
	for {
		var r received
		select {
		case r = <-reports:
		case g := <-grants:
			if err := stream.Send(&controllerv1.AttachResponse{MapVersion: cluster.Topology().Map.Version, Lease: leaseProto(g)}); err != nil {
				return err
			}
			continue
		case o := <-orders:
			if err := stream.Send(&controllerv1.AttachResponse{MapVersion: cluster.Topology().Map.Version, Order: orderProto(o)}); err != nil {
				return err
			}
			continue
		case <-silence.C:
			return refusal(codes.DeadlineExceeded, ReasonReportTimeout, "no report for %v", s.reportTimeout)
		case <-replaced:
			return refusal(codes.Aborted, ReasonLinkReplaced, "a newer link speaks for %s", self.node)
		case <-cluster.over.Done():
			return s.notLeader()
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		switch {
		case errors.Is(r.err, io.EOF):
			return nil
		case r.err != nil:
			return r.err
		}
		report, err := reportOf(r.req.GetStatus())
		if err != nil {
			return refusal(codes.InvalidArgument, ReasonNodeInvalid, "%v", err)
		}
		report.Peer = from
		node := report.Key
		switch {
		case self == nil:
			var started time.Time
			if at := r.req.GetStatus().GetAgentStartedAt(); at != nil {
				started = at.AsTime()
			}
			if self, err = s.links.attach(node, from, started, cluster.Topology().Members); err != nil {
				return err
			}
			replaced, grants, orders = self.replaced, self.grants, self.orders
			s.log.Info("agent link up", "node", node)
		case self.node != node:
			return refusal(codes.InvalidArgument, ReasonNodeChanged, "this link spoke for %s and now for %s; open one link a node", self.node, node)
		}
		silence.Reset(s.reportTimeout)
		cluster.Observe(report)
		if err := stream.Send(&controllerv1.AttachResponse{MapVersion: cluster.Topology().Map.Version}); err != nil {
			return err
		}
	}
}
