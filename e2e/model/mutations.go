package model

// A Mutation is a change of the core that breaks it, to see whether the checker sees.
// It is made to a copy of the source, see package check.
type Mutation struct {
	Name  string
	File  string // in controller/core
	Old   string // text that occurs there once
	New   string
	World string // in which it is to be seen
}

// Mutations lists them.
func Mutations() []Mutation {
	return []Mutation{
		{"skip the lease", "detect.go", "case w.writable(n, reason):", "case false:", "fast-cut"},
		{"promote from Prepare", "transitions.go", "if n.Role != topology.Slave || n.State != topology.Active {\n\t\t\tcontinue\n\t\t}\n\t\t_, lsn", "if n.Role != topology.Slave {\n\t\t\tcontinue\n\t\t}\n\t\t_, lsn", "lag"},
		{"broadcast before persist", "step.go", "u := MapUpdate{Map: s.Saved.Map()}", "u := MapUpdate{Map: s.Durable.Map()}", "fast-crash"},
		{"ignore the epoch of a grant", "commands.go", "case g.Epoch != w.s.Durable.epoch(n.Partition):", "case false:", "rejoin"},
		{"drop the grace period", "detect.go", "if !s.GraceOver {", "if false {", "fast-takeover"},
		{"forget which grants were taken back", "commands.go", "case !g.After(n.Floor):", "case false:", "grants"},
		{"no new epoch for a new master", "transitions.go", "d.Partitions[partition].Epoch++", "", "fast-crash"},
		{"reply before persist", "step.go", "if after := w.s.Durable.Seq; after > w.s.Saved.Seq {", "if after := w.s.Durable.Seq; false && after > w.s.Saved.Seq {", "fast-crash"},
		{"take a failed save for a good one", "step.go", "if in.Err != \"\" {\n\t\tif s.PersistError", "if false {\n\t\tif s.PersistError", "save"},
		{"take for saved what was decided since", "step.go", "s.Saved, s.Saving = s.Saving, Durable{}", "s.Saved, s.Saving = s.Durable.clone(), Durable{}", "fast-crash"},
		{"grant a lease to whoever wants one", "lease.go", " || !w.reigns(s.Durable, o.Key, r) || !w.reigns(s.Saved, o.Key, r)", "", "fast-cut"},
		{"a new controller does not wait for leases", "lease.go", "s.setLease(Lease{Key: n.Key(), Instance: n.Instance, Partition: n.Partition,\n\t\t\t\tEpoch: s.Saved.epoch(n.Partition), Until: s.Now + leaseHold})", "_ = n", "terminate"},
		{"leave a replica behind and keep it in sync", "commands.go", "n.State, n.Granted = topology.Prepare, Grant{}", "", "fast-sever"},
		{"hand over to whoever", "handover.go", "case to.Role != topology.Slave || to.State != topology.Active || to.Partition != from.Partition || !to.Extended:", "case to.Role != topology.Slave:", "handover-late"},
		{"switch to a partition before the masters yield", "growth.go", "} else if m.Extended && !w.yielded(*m) {", "} else if false {", "fast-grow"},
		{"switch to a node that is not filled", "growth.go", " && o.Report.Filled >= w.s.Durable.Growth.Since\n}", "\n}", "fast-grow"},
		{"fail over though the breaker is open", "transitions.go", "if r := w.frozen(); r.Reason != \"\" && reason != ReasonOperator {", "if r := w.frozen(); false && r.Reason != \"\" {", "fast-breaker"},
		{"forget a failover that is owed", "transitions.go", "w.s.Durable.Partitions[n.Partition].Owed = true", "", "fast-breaker"},
		{"close the breaker at once", "safety.go", "case b.State == BreakerHalfOpen && s.Now >= b.Calm+b.Settle:", "case b.State == BreakerHalfOpen:", "fast-breaker"},
		{"nobody comes back", "detect.go", "back = append(back, n.Key())", "_ = n", "fast-crash"},
		{"the breaker never closes", "safety.go", "case b.State == BreakerOpen:", "case false:", "fast-breaker"},
		{"hand over though the master gave up to wait", "handover.go", "case w.wroteSince(*from, c.Paused):", "case false:", "handover-late"},
		{"count leases too short", "lease.go", "leaseHold = topology.LeaseHold(topology.LeaseTTL).Milliseconds()", "leaseHold = topology.LeaseTTL.Milliseconds() / 2", "fast-cut"},
		{"one version for two maps", "step.go", "if w.visible {\n\t\td.Version++\n\t}", "if w.visible && d.Version == w.s.Saved.Version {\n\t\td.Version++\n\t}", "fast-crash"},
		{"a dead master loses its entry", "transitions.go", "if next == \"\" {\n\t\t\tw.set(key, reason, dead)", "if next == \"\" {\n\t\t\tw.set(key, reason, func(n *Node) { clearDuty(n); dead(n) })", "lag"},
		{"two saves at a time", "step.go", "if s.Saving.Seq != 0 || s.Durable.Seq == s.Saved.Seq", "if s.Durable.Seq == s.Saved.Seq", "fast-crash"},
		{"who registers again is dead, lease or not", "commands.go", "case n.Extended && !w.confirmed(*n) && w.writable(*n, ReasonReregistered):", "case false:", "form"},
		{"a slow node that is being filled is dead", "detect.go", "if n.State == topology.Prepare || n.State == topology.Ready {", "if false {", "slow"},
	}
}
