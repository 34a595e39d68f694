package core

import "github.com/flarekv/flare/proto/topology"

// Orphans are the keys that a partition's nodes still hold although they went to a
// partition that was added later.
type Orphans struct {
	Partition int   `json:"partition"` // whose nodes hold them
	Since     int64 `json:"since"`     // when they became orphans, unix milliseconds
}

// OrphanPurge tells what to do with orphans.
type OrphanPurge struct {
	Enabled bool
	Delay   int64 // milliseconds from the switch on
}

// leaveOrphans notes that the former owners of a new partition's keys still hold
// them. The delay begins anew: what is purged is needed by nobody who goes back.
func (w *work) leaveOrphans(added int) {
	d := &w.s.Durable
	d.Orphans = nil
	for p := range added {
		d.Orphans = append(d.Orphans, Orphans{Partition: p, Since: w.s.Now})
	}
	w.dirty = true
}

// purgeOrphans tells masters to remove orphans when the delay is over, one
// partition after the other. The nodes look the owner of each key up again when
// they remove it, and refuse while a partition is added or has no master.
func (w *work) purgeOrphans() {
	s := &w.s
	if !s.Spec.OrphanPurge.Enabled || s.Durable.Growth.Node != "" || s.Spec.Partitions > len(s.Durable.Partitions) || s.Refusal.Reason != "" {
		return
	}
	for p := range s.Durable.Partitions {
		if m := w.master(p); m == nil || m.State != topology.Active {
			return
		}
	}
	for _, o := range s.Orders {
		if o.Kind == OrderPurge && o.ID != 0 {
			return
		}
	}
	for _, o := range s.Durable.Orphans {
		m := w.master(o.Partition)
		if s.Now >= o.Since+s.Spec.OrphanPurge.Delay && w.canOrder(*m) && !s.waitsToOrder(m.Key(), OrderPurge) {
			w.order(OrderNode{Key: m.Key(), Kind: OrderPurge}, CauseOrphans)
			return
		}
	}
}

// waitsToOrder reports whether an order has failed that is not to be given again yet.
func (s *State) waitsToOrder(key string, kind OrderKind) bool {
	i, ok := s.findOrder(key, kind)
	return ok && s.Orders[i].ID == 0 && s.Now < s.Orders[i].Until
}

// purged notes that a master has removed its orphans.
func (w *work) purged(r AgentReport, keys uint64) {
	d := &w.s.Durable
	n := d.node(r.Key)
	if n == nil || n.Role != topology.Master || n.Instance != r.Instance {
		return // nobody knows of which partition
	}
	for i, o := range d.Orphans {
		if o.Partition == n.Partition {
			// Not in place: the slice is shared with what is being saved.
			d.Orphans = append(append([]Orphans(nil), d.Orphans[:i]...), d.Orphans[i+1:]...)
			w.dirty = true
			w.event(false, ReasonOrphansPurged, "%s removed %d keys that went from partition %d to another one", r.Key, keys, n.Partition)
			return
		}
	}
}
