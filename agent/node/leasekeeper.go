package node

import (
	"context"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// leaseTick is how often a master looks at its lease.
const leaseTick = 50 * time.Millisecond

// sinceBorn is the clock of leases: it goes on while the process is stopped, and no
// setting of the machine's clock moves it. It is greater than 0 from the start.
func (s *Server) sinceBorn() time.Duration { return time.Since(s.born) }

// keepLease sees to it that a master that wants a lease is heard at once, and asks
// the replicas for it when the controller does not renew it.
func (s *Server) keepLease(ctx context.Context) {
	var asked time.Duration
	var before leaseStatus
	ticker := time.NewTicker(leaseTick)
	defer ticker.Stop()
	for {
		changed := s.changed.wait()
		now := s.gate.leaseStatus()
		if now.wanted() != before.wanted() || now.epoch != before.epoch || now.partition != before.partition {
			s.urgent.fire()
		}
		s.logLease(before, now)
		before = now
		if s.askReplicas(now, asked) {
			asked = now.at
		}
		var tick <-chan time.Time
		if now.wanted() {
			tick = ticker.C
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick:
		}
	}
}

// askReplicas asks the replicas for the lease if that is due, and for a promise the
// one that may not be told to be in sync without.
func (s *Server) askReplicas(now leaseStatus, asked time.Duration) bool {
	if !askDue(now, asked) && !(now.wanted() && now.at >= asked+askPause && s.source.PromiseWanted()) {
		return false
	}
	d := dutyOf(s.maps.table())
	if d.kind != dutyMaster || d.partition != now.partition || d.epoch != now.epoch {
		return false // the role is about to change
	}
	if len(s.roles.streaming(d.members)) < len(d.members) {
		return false // a slave that cannot be asked could be promoted
	}
	s.source.AskLease(now.epoch, now.at, topology.LeaseTTL)
	return true
}

// leaseExtended takes the lease that the replicas have given. It is called with
// nothing locked.
func (s *Server) leaseExtended(epoch uint64, token, ttl time.Duration) {
	if st := s.gate.leaseStatus(); st.epoch == epoch {
		s.gate.renew(st.partition, epoch, token, ttl, leaseFromReplicas)
	}
}

func (s *Server) logLease(before, now leaseStatus) {
	switch {
	case now.state == leaseLost && before.state != leaseLost:
		s.logger.Error("the lease has ended, writes are refused", "reason", reasonNoLease, "partition", now.partition, "epoch", now.epoch)
	case now.state == leaseHeld && before.state == leaseLost && before.epoch == now.epoch:
		s.logger.Info("there is a lease again, writes are taken", "partition", now.partition, "epoch", now.epoch, "source", now.source.String())
	case now.state == leaseHeld && before.state == leaseHeld && before.source != now.source:
		s.logger.Info("the lease comes from somebody else", "partition", now.partition, "epoch", now.epoch, "source", now.source.String())
	}
}

// readRefused reports whether a read of the own partition must not be answered by
// this node, because it is its master without a lease and option
// read-without-lease says so.
func (s *Server) readRefused() leaseState {
	if s.live.Load().ReadWithoutLease {
		return leaseNone
	}
	switch st := s.gate.leaseStatus(); st.state {
	case leasePending, leaseLost:
		return st.state
	}
	return leaseNone
}

// replyNoRead is the answer to a read that option read-without-lease refuses.
const replyNoRead = "SERVER_ERROR no lease: this master may not be the last one, and read-without-lease is no\r\n"

var leaseStates = map[leaseState]agentv1.LeaseState{
	leaseNone:        agentv1.LeaseState_LEASE_STATE_UNSPECIFIED,
	leaseNotRequired: agentv1.LeaseState_LEASE_STATE_NOT_REQUIRED,
	leasePending:     agentv1.LeaseState_LEASE_STATE_PENDING,
	leaseHeld:        agentv1.LeaseState_LEASE_STATE_HELD,
	leaseLost:        agentv1.LeaseState_LEASE_STATE_LOST,
}

var leaseSourcesProto = map[leaseSource]agentv1.LeaseSource{
	leaseFromNobody:     agentv1.LeaseSource_LEASE_SOURCE_UNSPECIFIED,
	leaseFromController: agentv1.LeaseSource_LEASE_SOURCE_CONTROLLER,
	leaseFromReplicas:   agentv1.LeaseSource_LEASE_SOURCE_FAILSAFE,
}

// leaseProto puts the lease into a status, with the token by which the next one is
// asked for.
func (s *Server) leaseProto(st *agentv1.NodeStatus) {
	l := s.gate.leaseStatus()
	// Of the same moment: what is given up now was given up before this token.
	st.LeaseToken = uint64(l.at)
	if l.wanted() {
		st.LeaseEpoch = l.epoch
	}
	st.Lease = &agentv1.WriteLease{
		State: leaseStates[l.state], Source: leaseSourcesProto[l.source], Remaining: durationpb.New(l.remaining.Truncate(time.Millisecond)),
		RenewalsController: l.renewals[leaseFromController], RenewalsFailsafe: l.renewals[leaseFromReplicas], RefusedWrites: l.refused,
	}
	if l.state >= leaseNotRequired {
		st.Lease.Epoch = l.epoch
	}
}

// appendLeaseStats appends what stats tell of the lease.
func (s *Server) appendLeaseStats(dst []byte) []byte {
	l := s.gate.leaseStatus()
	num := func(name string, v uint64) { dst = text.AppendStat(dst, name, strconv.FormatUint(v, 10)) }
	dst = text.AppendStat(dst, "lease_state", l.state.String())
	dst = text.AppendStat(dst, "lease_source", l.source.String())
	num("lease_remaining_ms", uint64(l.remaining/time.Millisecond))
	num("lease_renewals_controller", l.renewals[leaseFromController])
	num("lease_renewals_failsafe", l.renewals[leaseFromReplicas])
	num("lease_refused_writes", l.refused)
	return dst
}

// RenewLease implements NodeService.
func (v *service) RenewLease(_ context.Context, req *agentv1.RenewLeaseRequest) (*agentv1.RenewLeaseResponse, error) {
	l := req.GetLease()
	reason := ""
	if l.GetInstance() != v.s.instance {
		reason = "other_instance"
	} else {
		reason = v.s.gate.renew(agentv1.PartitionNumber(l.Partition), l.GetEpoch(), time.Duration(l.GetToken()), l.GetTtl().AsDuration(), leaseFromController)
	}
	return &agentv1.RenewLeaseResponse{Accepted: reason == "", Reason: reason}, nil
}
