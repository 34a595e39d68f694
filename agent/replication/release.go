package replication

import "time"

// ReleaseLease tells the replicas that this node takes no more writes in its epoch
// before it has asked them anew, so that none of them is kept from being the next
// master. A replica that does not hear it waits for as long as it has promised. A
// question with a token of up to the given one was decided upon before, and comes too
// late.
func (l *Leader) ReleaseLease(token uint64) (effects []Effect) {
	if l.epoch == 0 {
		return nil
	}
	for i := range l.members {
		if m := &l.members[i]; m.streams && l.lease.asked > 0 {
			effects = append(effects, Effect{LeaseAsk: &LeaseAsk{Key: m.key, Conn: m.conn, Epoch: l.epoch, Token: l.lease.asked}})
		}
	}
	// What they have agreed to before counts no more, and neither does an answer that
	// is under way.
	l.forgetLease()
	l.lease.released = token
	return effects
}

// ReleaseLease tells the replicas that this node takes no more writes, unless it asks
// them anew with a token behind the given one, the present time of its own clock. The
// caller sees to that.
func (s *Source) ReleaseLease(token time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.perform(s.leader.ReleaseLease(uint64(token)))
}
