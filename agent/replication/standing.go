package replication

import "time"

// formingLimit bounds how long a new master's replicas have to come in sync before
// writes are refused for want of them: writes wait for that long, and no longer than
// they would for another master.
const formingLimit = 2 * time.Second

// A Shortage is why a partition does not take writes although it has a master: fewer
// nodes than wanted have everything that is answered.
type Shortage struct {
	InSync int // nodes, the master included
	Min    int // that are wanted
	// Forming tells that the master is new, and that its replicas have not been there
	// and have not had the time to come: writes wait instead of being refused. After a
	// handover this is so, because the old master is a moment behind at first.
	Forming bool
}

// Shortage tells what is missing when least nodes, the master included, are
// to have every write; ok is false if nothing is. A replica counts while writes wait
// for it because the index may believe it to be in sync.
func (l *Leader) Shortage(least int, patience time.Duration, now time.Time) (s Shortage, ok bool) {
	if l.epoch == 0 || least <= 1 {
		return Shortage{}, false
	}
	s = Shortage{InSync: 1, Min: least}
	for i := range l.members {
		if m := &l.members[i]; m.active || m.grant != 0 {
			s.InSync++
		}
	}
	l.formed = l.formed || s.InSync >= least
	s.Forming = !l.formed && now.Sub(l.since) < patience
	return s, s.InSync < least
}

// Shortage returns why writes have to wait or are refused, nil if they are not. It
// takes no lock, so that every write can ask.
func (s *Source) Shortage() *Shortage { return s.shortage.Load() }

// least is how many nodes have to be in sync.
func (s *Source) least() int {
	if s.cfg.MinInSync == nil {
		return 0
	}
	return s.cfg.MinInSync()
}

// judge publishes whether there is a shortage; it needs mu.
func (s *Source) judge(now time.Time) {
	least := s.least()
	was := s.shortage.Load()
	is, ok := s.leader.Shortage(least, formingLimit, now)
	switch {
	case !ok && was == nil, ok && was != nil && *was == is:
		return
	case ok:
		s.shortage.Store(&is)
	default:
		s.shortage.Store(nil)
	}
	switch {
	case !ok:
		s.cfg.Logger.Info("enough nodes are in sync again, or it does not matter any more", "reason", ReasonNotEnoughInSync, "in_sync", is.InSync, "min_in_sync", least)
	case !is.Forming:
		s.cfg.Logger.Warn("writes are refused, too few nodes are in sync", "reason", ReasonNotEnoughInSync, "in_sync", is.InSync, "min_in_sync", least)
	}
	s.notify()
	if s.cfg.Changed != nil {
		s.cfg.Changed()
	}
}

// ReasonNotEnoughInSync is why a write is refused that too few nodes would have.
const ReasonNotEnoughInSync = "not_enough_in_sync"

// InSync returns how many nodes of the partition, this one included, have every write
// that is answered, 0 while this node does not lead, and how many there must be.
func (s *Source) InSync() (nodes, least int) {
	least = max(1, s.least())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leader.Leading() == 0 {
		return 0, least
	}
	return 1 + len(s.leader.InSync()), least
}
