package replication

import (
	"cmp"
	"slices"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// joinLag is how many batches a follower may be behind to be waited for while it
// catches up with the rest.
const joinLag = 1024

// restFactor times the timeout is how long a follower that kept others waiting
// must not join again, lest it stops all writes over and over.
const restFactor = 5

// Member is a slave of the partition as the node map shows it.
type Member struct {
	Key    string
	Active bool // in sync, may be promoted
}

// Leader decides for whom a master has to wait, and who may be called in sync.
// It is a plain state machine: what happens goes in with the time at which it
// happened, what is to be done comes out as effects.
//
// The one rule behind it: a replica that the index may believe to be in sync
// must be waited for. The index believes what the map shows and what a grant
// lets a follower claim. So a follower is waited for first, then it is granted
// once it has everything that was committed before; and it is left behind only
// after the index has confirmed that it takes it for out of sync and will not
// accept the grants given so far.
type Leader struct {
	epoch   uint64    // 0 while not leading
	since   time.Time // when the epoch began here
	formed  bool      // enough nodes have been in sync since
	session uint64    // of the last grant in this epoch
	head    topology.LSN
	members []member // sorted by key

	lease leaseRound
}

type member struct {
	key    string
	listed bool   // a slave in the map
	active bool   // in sync in the map
	grant  uint64 // session of the last grant that the index may still accept, 0 for none

	conn    uint64 // 0 while not connected
	streams bool   // receives the log, so that acked means something
	acked   topology.LSN
	heard   time.Time // of it, or when we began to miss it

	joining bool         // waited for in order to be granted
	joinAt  topology.LSN // what it must have for that
	granted bool         // needs no other grant on this connection
	asking  bool         // the index is being asked to leave it behind
	rest    time.Time    // it does not join before, because it was too slow

	promised uint64 // token of the last LeaseAsk it agreed to on this connection, 0 for none
}

// waited reports whether the member belongs to the wait set.
func (m *member) waited() bool { return m.active || m.grant != 0 || m.joining }

// Effect is something the leader wants to be done: exactly one of its fields.
type Effect struct {
	Grant    *Grant
	Behind   *Behind
	LeaseAsk *LeaseAsk
}

// Grant tells a follower that it is in sync.
type Grant struct {
	Key            string
	Conn           uint64
	Epoch, Session uint64
}

// Behind asks the index to take a replica for out of sync. It must be answered
// with BehindDone.
type Behind struct {
	Key            string
	Epoch, Session uint64
}

// find returns the member with the key, nil if there is none.
func (l *Leader) find(key string) *member {
	i, ok := l.search(key)
	if !ok {
		return nil
	}
	return &l.members[i]
}

func (l *Leader) search(key string) (int, bool) {
	return slices.BinarySearchFunc(l.members, key, func(m member, key string) int { return cmp.Compare(m.key, key) })
}

// add returns the member with the key, which may be a new one.
func (l *Leader) add(key string, now time.Time) *member {
	i, ok := l.search(key)
	if !ok {
		l.members = slices.Insert(l.members, i, member{key: key, heard: now})
	}
	return &l.members[i]
}

// prune removes members that nothing is left to know about.
func (l *Leader) prune() {
	l.members = slices.DeleteFunc(l.members, func(m member) bool {
		return !m.listed && m.conn == 0 && !m.waited()
	})
}

// Lead takes over a node map in which this node is the master of the epoch. A
// change of the epoch voids all grants: the index accepts none of an older one.
func (l *Leader) Lead(epoch uint64, slaves []Member, now time.Time) []Effect {
	if epoch != l.epoch {
		for i := range l.members {
			m := &l.members[i]
			m.grant, m.joining, m.granted, m.asking, m.active = 0, false, false, false, false
			m.heard = now
		}
		l.epoch, l.since, l.formed, l.session = epoch, now, false, 0
		l.forgetLease()
	}
	listed := map[string]bool{}
	for _, s := range slaves {
		listed[s.Key] = true
		m := l.add(s.Key, now)
		if m.active && !s.Active {
			m.granted = false // the index changed its mind; it needs to hear it anew
		}
		if !m.listed {
			m.heard = now
		}
		m.listed, m.active = true, s.Active
	}
	for i := range l.members {
		if m := &l.members[i]; !listed[m.key] {
			m.listed, m.active, m.joining, m.granted = false, false, false, false
		}
	}
	l.prune()
	return l.advance(now)
}

// StepDown ends the leadership. The next one may be of another log.
func (l *Leader) StepDown() { *l = Leader{} }

// Leading returns the epoch, 0 while not leading.
func (l *Leader) Leading() uint64 { return l.epoch }

// Committed tells how far the log reaches.
func (l *Leader) Committed(head topology.LSN) {
	if l.head.Less(head) {
		l.head = head
	}
}

// Connect tells of a follower's new connection, which takes the place of an older one.
func (l *Leader) Connect(key string, conn uint64, now time.Time) {
	m := l.add(key, now)
	m.conn, m.streams, m.granted, m.joining, m.heard = conn, false, false, false, now
	m.acked, m.rest, m.promised = topology.LSN{}, time.Time{}, 0
}

// Streams tells that the follower has the log up to a position and receives what is behind it.
func (l *Leader) Streams(key string, conn uint64, at topology.LSN, now time.Time) []Effect {
	m := l.find(key)
	if m == nil || m.conn != conn {
		return nil
	}
	m.streams = true
	return l.Ack(key, conn, at, now)
}

// Heard tells of a sign of life.
func (l *Leader) Heard(key string, conn uint64, now time.Time) {
	if m := l.find(key); m != nil && m.conn == conn {
		m.heard = now
	}
}

// Ack tells that the follower has applied the log up to a position.
func (l *Leader) Ack(key string, conn uint64, lsn topology.LSN, now time.Time) []Effect {
	m := l.find(key)
	if m == nil || m.conn != conn || !m.streams {
		return nil
	}
	m.heard = now
	if m.acked.Less(lsn) {
		m.acked = lsn
	}
	return l.advance(now)
}

// Disconnect tells that a connection ended.
func (l *Leader) Disconnect(key string, conn uint64) {
	if m := l.find(key); m != nil && m.conn == conn {
		// What it has acknowledged it still has, but its next connection will tell.
		m.conn, m.streams, m.joining, m.granted = 0, false, false, false
		l.prune()
	}
}

// advance lets connected followers join and grants those that have arrived.
func (l *Leader) advance(now time.Time) (effects []Effect) {
	if l.epoch == 0 {
		return nil
	}
	for i := range l.members {
		m := &l.members[i]
		if !m.listed || m.active || !m.streams || m.granted {
			m.joining = false
			continue
		}
		if !m.joining && !now.Before(m.rest) && (!m.acked.Less(l.head) || l.head.Index-min(m.acked.Index, l.head.Index) <= joinLag) {
			m.joining, m.joinAt = true, l.head
		}
		if m.joining && !m.acked.Less(m.joinAt) && l.bound(m, now) {
			l.session++
			m.joining, m.granted, m.grant = false, true, l.session
			effects = append(effects, Effect{Grant: &Grant{Key: m.key, Conn: m.conn, Epoch: l.epoch, Session: l.session}})
		}
	}
	return effects
}

// Stable returns the position that everybody waited for has. ok is false if
// nobody is waited for: then every position counts.
func (l *Leader) Stable() (lsn topology.LSN, ok bool) {
	for i := range l.members {
		if m := &l.members[i]; m.waited() && (!ok || m.acked.Less(lsn)) {
			lsn, ok = m.acked, true
		}
	}
	return lsn, ok
}

// InSync returns the keys of the members that writes wait for, sorted.
func (l *Leader) InSync() (keys []string) {
	for i := range l.members {
		if m := &l.members[i]; m.active || m.grant != 0 {
			keys = append(keys, m.key)
		}
	}
	return keys
}

// Tick looks for members that keep the others waiting: those not heard of for
// timeout, and those that lack oldest, which somebody has been waiting for since.
func (l *Leader) Tick(now time.Time, timeout time.Duration, oldest topology.LSN, since time.Time) (effects []Effect) {
	if l.epoch == 0 {
		return nil
	}
	overdue := !oldest.IsZero() && now.Sub(since) >= timeout
	for i := range l.members {
		m := &l.members[i]
		silent := now.Sub(m.heard) >= timeout
		if !silent && !(overdue && m.acked.Less(oldest)) && !(m.conn == 0 && !m.active) {
			continue
		}
		if m.waited() {
			m.joining, m.rest = false, now.Add(restFactor*timeout)
		}
		if m.waited() && !m.asking {
			m.asking = true
			effects = append(effects, Effect{Behind: &Behind{Key: m.key, Epoch: l.epoch, Session: m.grant}})
		}
	}
	return append(effects, l.advance(now)...)
}

// Replaceable returns what has to be asked before a replica gives up a part of what
// it has in order to catch up: false if the index does not believe it to be in sync.
// Otherwise it could be promoted in the midst of it.
func (l *Leader) Replaceable(key string) (b Behind, ask bool) {
	m := l.find(key)
	if m == nil || !m.active && m.grant == 0 {
		return Behind{}, false
	}
	return Behind{Key: key, Epoch: l.epoch, Session: m.grant}, true
}

// BehindDone tells what the index answered to a Behind. If it agreed, the
// replica is out of sync there and no grant up to the session is accepted any more.
func (l *Leader) BehindDone(b Behind, agreed bool, now time.Time) []Effect {
	m := l.find(b.Key)
	if m == nil || b.Epoch != l.epoch {
		return nil
	}
	m.asking = false
	if !agreed {
		return nil
	}
	m.active = false
	if m.grant <= b.Session {
		m.grant, m.granted = 0, false
	}
	l.prune()
	return l.advance(now)
}
