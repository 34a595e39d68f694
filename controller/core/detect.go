package core

import (
	"slices"

	"github.com/flarekv/flare/proto/topology"
)

// dead returns why a node that is up must be taken for dead, empty when it need
// not. Evidence comes in three grades: what Kubernetes and the node's own agent
// say counts at once; pings count after several failures; silence alone never
// does, and none of it counts against a node that is merely slow because it is
// being filled, nor before the grace period after the controller's start is over.
func (w *work) dead(n Node) string {
	s := &w.s
	key := n.Key()
	confirmed := w.confirmed(n)
	if m, ok := s.member(key); ok {
		switch {
		case m.Terminating:
			return ReasonPodTerminating
		case !m.Exists && !confirmed:
			return ReasonPodGone
		}
	}
	o := s.seen(key)
	if o == nil {
		return ""
	}
	if r := o.Report; o.Agent && n.Extended {
		switch {
		case !r.Alive && r.Instance == n.Instance:
			return ReasonProcessDead
		case !r.Alive && r.Instance == "" && o.PingFails > 0:
			return ReasonProcessDead
		case r.Alive && r.Instance != "" && r.Instance != n.Instance && r.Instance != n.Former:
			return ReasonProcessRestart
		}
	}
	if !s.GraceOver {
		return ""
	}
	silent := !o.Agent || s.Now-o.AgentAt > agentSilence
	if n.State == topology.Prepare || n.State == topology.Ready {
		switch {
		case !n.Extended && o.Refused >= failsDead:
			return ReasonPingFailed
		case n.Extended && silent && (o.Refused >= failsDead || o.PingFails >= failsDeadSlow):
			return ReasonSilent // its agent is another process, and is silent too
		}
		return ""
	}
	switch {
	case silent && o.AgentAt > 0 && o.PingFails >= failsDeadSilent:
		return ReasonSilent
	case o.PingFails >= failsDead:
		return ReasonPingFailed
	}
	return ""
}

// findDead lists the nodes to be taken down: replicas and proxies before
// masters, so that nobody who is dead too becomes a successor.
func (w *work) findDead() []Death {
	var others, masters []Death
	for _, n := range w.s.Durable.Nodes {
		if !n.up() {
			continue
		}
		reason := w.dead(n)
		switch {
		case reason == "":
		case w.writable(n, reason):
			// Nobody may take its place yet.
		case n.Role == topology.Master:
			masters = append(masters, Death{n.Key(), reason})
		default:
			others = append(others, Death{n.Key(), reason})
		}
	}
	return append(others, masters...)
}

// failover takes the dead down.
func (w *work) failover(dead []Death) {
	for _, x := range dead {
		// A process that is not there any more must register again; a node that was
		// only out of reach need not.
		gone := x.Reason != ReasonPingFailed && x.Reason != ReasonSilent
		w.down(x.Key, x.Reason, gone)
	}
}

// findBack lists the nodes that are down and alive again.
func (w *work) findBack() []string {
	var back []string
	for _, n := range w.s.Durable.Nodes {
		if w.returned(n) && !w.lostData(n) && !w.behindReplica(n) {
			back = append(back, n.Key())
		}
	}
	return back
}

// returned reports whether a node that is down is alive again.
func (w *work) returned(n Node) bool {
	if n.up() {
		return false
	}
	o := w.s.seen(n.Key())
	switch {
	case o == nil || !o.PingOK || w.dead(n) != "":
		return false
	case n.Gone && (toldToEnd(n) || !w.confirmed(n)) && w.s.Now < o.OKSince+goneWait:
		return false // its process should end, or another one should register
	case n.Instance != "" && !n.Extended && w.s.Now < o.AddedAt+helloWait:
		return false // it registered and has not yet said what it holds
	}
	return true
}

// toldToEnd reports whether a node went down because its process was told to end,
// or said that it would: what it still answers is its good-bye.
func toldToEnd(n Node) bool {
	return n.DownReason == ReasonShutdown || n.DownReason == ReasonPodTerminating
}

// lostData reports whether a dead master that returns has lost its partition's
// data while another node holds some: it must not take the partition up again
// and make the others follow its emptiness.
func (w *work) lostData(n Node) bool {
	if n.Role != topology.Master || n.Instance == "" || w.master(n.Partition) != nil {
		return false
	}
	if held, _ := w.holds(n); held == n.Partition {
		return false
	}
	for _, o := range w.s.Durable.Nodes {
		if held, lsn := w.holds(o); o.Key() != n.Key() && held == n.Partition && !lsn.IsZero() {
			return true
		}
	}
	return false
}

// behindReplica reports whether a dead master that returns has less than a replica
// that is in sync: it lost the end of its log, and the replica is to take its place.
func (w *work) behindReplica(n Node) bool {
	if n.Role != topology.Master || w.master(n.Partition) != nil {
		return false
	}
	_, have := w.holds(n)
	for _, o := range w.s.Durable.Nodes {
		if o.Role == topology.Slave && o.State == topology.Active && o.Partition == n.Partition && o.Extended {
			if _, lsn := w.holds(o); have.Less(lsn) {
				return true
			}
		}
	}
	return false
}

// forget drops the entries of nodes that were scaled away, and observations of
// nodes that nobody knows any more.
func (w *work) forget() {
	s := &w.s
	want := s.wantedNodes()
	if s.Members.Known && want > 0 && s.Members.Count <= want {
		for i := len(s.Durable.Nodes) - 1; i >= 0; i-- {
			n := &s.Durable.Nodes[i]
			if n.up() || n.Role != topology.Proxy || !n.Extended {
				continue
			}
			if m, listed := s.member(n.Key()); !listed || !m.Exists && m.Ordinal >= want {
				w.delete(n.Key())
			}
		}
	}
	w.forgetUnproven()
	for i := len(s.Seen) - 1; i >= 0; i-- {
		if o := &s.Seen[i]; !o.Agent && s.Durable.node(o.Key) == nil {
			s.Seen = slices.Delete(s.Seen, i, i+1)
		}
	}
}
