package replication

import (
	"encoding/binary"
	"time"
)

// A master whose lease the index does not renew asks its replicas: if every replica
// that could be promoted promises to begin no later epoch for some time, nobody else
// can be master meanwhile. Tokens are times of the master's clock.

// LeaseAsk asks a replica for its promise, or gives it back: then TTL is 0.
type LeaseAsk struct {
	Key   string
	Conn  uint64
	Epoch uint64
	Token uint64
	TTL   time.Duration
}

// leaseRound is what the leader knows of the lease that its replicas give.
type leaseRound struct {
	asked uint64 // token of the last time they were asked, 0 for never
	ttl   time.Duration
	// released is the token up to which what was asked for is given back, 0 for none.
	released uint64

	// The lease that they have given: its token, and when it has ended. Until then no
	// replica may become promotable that has not promised as much.
	token uint64
	until time.Time
}

func (l *Leader) forgetLease() {
	l.lease = leaseRound{}
	for i := range l.members {
		l.members[i].promised = 0
	}
}

// AskLease asks all replicas that stream, in sync or not.
func (l *Leader) AskLease(token uint64, ttl time.Duration) (effects []Effect) {
	if l.epoch == 0 || token <= max(l.lease.asked, l.lease.released) {
		return nil
	}
	l.lease.asked, l.lease.ttl = token, ttl
	for i := range l.members {
		if m := &l.members[i]; m.listed && m.streams {
			effects = append(effects, Effect{LeaseAsk: &LeaseAsk{Key: m.key, Conn: m.conn, Epoch: l.epoch, Token: token, TTL: ttl}})
		}
	}
	return effects
}

// LeaseAck tells that a replica agreed to a LeaseAsk.
func (l *Leader) LeaseAck(key string, conn, epoch, token uint64, now time.Time) []Effect {
	m := l.find(key)
	if m == nil || m.conn != conn || epoch != l.epoch || token > l.lease.asked {
		return nil
	}
	m.promised = max(m.promised, token)
	return l.advance(now)
}

// Lease returns the token from which the replicas let this node go on, if it is a
// later one than when it was last called. Those count that may be promoted: the
// index takes no other for in sync. Without any, nobody can be promoted at all.
func (l *Leader) Lease(now time.Time) (token uint64, ttl time.Duration, ok bool) {
	token = l.lease.asked
	for i := range l.members {
		if m := &l.members[i]; m.waited() {
			token = min(token, m.promised)
		}
	}
	if l.epoch == 0 || token <= l.lease.token {
		return 0, 0, false
	}
	l.lease.token, l.lease.until = token, now.Add(l.lease.ttl)
	return token, l.lease.ttl, true
}

// bound reports whether a replica may become promotable: it has promised as much as
// those that gave the present lease, or that lease has ended.
func (l *Leader) bound(m *member, now time.Time) bool {
	return m.promised >= l.lease.token || !now.Before(l.lease.until)
}

// PromiseWanted reports whether a replica only lacks that promise.
func (l *Leader) PromiseWanted(now time.Time) bool {
	for i := range l.members {
		if m := &l.members[i]; m.joining && !m.acked.Less(m.joinAt) && !l.bound(m, now) {
			return true
		}
	}
	return false
}

// AskLease asks every replica to let this node go on as master for ttl from token,
// a time of its own clock. SourceConfig.LeaseExtended is called if they do.
func (s *Source) AskLease(epoch uint64, token, ttl time.Duration) {
	now := time.Now()
	s.mu.Lock()
	if s.leader.Leading() != epoch {
		s.mu.Unlock()
		return
	}
	s.perform(s.leader.AskLease(uint64(token), ttl))
	s.mu.Unlock()
	s.extend(now)
}

// PromiseWanted reports whether a replica is not told to be in sync before it has
// promised what the others have: AskLease is to be called.
func (s *Source) PromiseWanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leader.PromiseWanted(time.Now())
}

func (s *Source) leaseAck(f *feed, ack leaseAck) {
	if !ack.ok {
		return
	}
	now := time.Now()
	s.mu.Lock()
	s.perform(s.leader.LeaseAck(f.key, f.id, ack.epoch, ack.token, now))
	s.settle()
	s.mu.Unlock()
	s.extend(now)
}

// extend tells of a lease that the replicas have given.
func (s *Source) extend(now time.Time) {
	s.mu.Lock()
	epoch := s.leader.Leading()
	token, ttl, ok := s.leader.Lease(now)
	s.mu.Unlock()
	if ok && s.cfg.LeaseExtended != nil {
		s.cfg.LeaseExtended(epoch, time.Duration(token), ttl)
	}
}

// answerLease gives the promise that the master asks for, or not.
func (s *session) answerLease(ask leaseAsk) {
	ok := s.cfg.Promise != nil && s.cfg.Promise(ask.epoch, time.Duration(ask.ttl)*time.Millisecond)
	s.amu.Lock()
	s.lease = &leaseAck{ask.epoch, ask.token, ok}
	s.amu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

type leaseAsk struct {
	epoch, token uint64
	ttl          uint32 // milliseconds
}

type leaseAck struct {
	epoch, token uint64
	ok           bool
}

func (a leaseAsk) encode() []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, a.epoch), a.token), a.ttl)
}

func (a leaseAck) encode() []byte {
	var ok byte
	if a.ok {
		ok = 1
	}
	return append(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, a.epoch), a.token), ok)
}

func decodeLeaseAsk(b []byte) (leaseAsk, error) {
	d := decoder{rest: b}
	a := leaseAsk{epoch: d.u64(), token: d.u64(), ttl: d.u32()}
	return a, d.end(frameLeaseAsk)
}

func decodeLeaseAck(b []byte) (leaseAck, error) {
	d := decoder{rest: b}
	a := leaseAck{epoch: d.u64(), token: d.u64(), ok: d.u8() != 0}
	return a, d.end(frameLeaseAck)
}
