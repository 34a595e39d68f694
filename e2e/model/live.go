package model

import (
	"context"
	"fmt"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// calm lets everything go well, in turns: first whatever can happen happens, then time
// passes. It ends when nothing changes any more though time passes, even a long time;
// or, with true, in a state that good knows. After each turn it is told the state.
func (w *World) calm(wk *worker, good func(fingerprint) bool) (knows bool, err error) {
	left := w.Left
	w.Left = Budget{}
	defer func() { w.Left = left }()
	var last fingerprint
	for range calmTurns {
		w.settle()
		if w.broken != nil {
			return false, w.broken
		}
		now := fingerprintOf(wk.pack(w))
		if good(now) {
			return true, nil
		}
		if now == last {
			w.Left.LongTick = 1
			_ = w.m.Apply(w, Action{Kind: LongTick})
			w.Left = Budget{}
			w.settle()
			if w.broken != nil {
				return false, w.broken
			}
			after := fingerprintOf(wk.pack(w))
			if after == now {
				return false, nil
			}
			now = after
		}
		last = now
		_ = w.m.Apply(w, Action{Kind: Tick})
	}
	return false, fmt.Errorf("ComesToRest: after %d turns in which nothing went wrong something still changes", calmTurns)
}

// calmTurns is how many turns a world may take to come to rest.
const calmTurns = 300

// settle lets happen what can without time passing, until nothing is left.
func (w *World) settle() {
	var last []Action
	for range 2000 {
		next, ok := Action{}, false
		for _, a := range w.m.Actions(w, nil) {
			if a.Kind < Tick {
				next, ok = a, true
				break
			}
		}
		if !ok {
			return
		}
		if last = append(last, next); len(last) > 8 {
			last = last[1:]
		}
		if w.broken = w.m.Apply(w, next); w.broken == nil {
			w.broken = w.m.Check(w)
		}
		if w.broken != nil {
			return
		}
	}
	w.fail("ComesToRest", "without time passing something goes on happening: %v", last)
}

// until lets things happen in the order of settle, and time pass where nothing else can,
// until reached says so.
func (w *World) until(reached func() bool) {
	for range 1000 {
		if w.broken != nil || reached() {
			return
		}
		w.broken = w.m.Apply(w, w.m.Actions(w, nil)[0])
	}
	w.fail("ComesToRest", "the world does not get where it is to begin\n%s", w.Summary())
}

// Liveness tells what became of looking whether every state leads to the desired one.
type Liveness struct {
	Desired uint64 // states that are what was asked for
	Edges   uint64 // transitions in which nothing goes wrong
	Cycles  uint64 // parts of the graph that one can go round in for ever
	Fair    uint64 // of them, by a fair schedule
}

// Live explores a world in which a long time may pass whenever time does, keeps every
// transition in which nothing goes wrong, and looks at the whole of that graph:
//
//   - From every state a desired one is reached.
//   - Whoever goes round in it for ever by a fair schedule, that is, takes every action
//     some day that remains possible, does so among desired states only.
//
// So once nothing goes wrong any more the world comes to what was asked for, whatever
// the order of things, and stays there.
func Live(ctx context.Context, m *Model, limits Limits) (Liveness, Result, error) {
	m.Patient = true
	defer func() { m.Patient = false }()
	x := NewExplorer(m, limits)
	edges := make([][]edge, x.limits.Workers)
	desired := make([][]uint32, x.limits.Workers)
	x.edges = func(worker int, from, to uint32, a Action) {
		if a.Kind <= LongTick {
			edges[worker] = append(edges[worker], edge{from, to, a})
		}
	}
	x.visit = func(worker int, id uint32, w *World) {
		if w.Desired() == nil {
			desired[worker] = append(desired[worker], id)
		}
	}
	r, err := x.Run(ctx)
	var live Liveness
	if err != nil || r.Violation != nil || !r.Complete {
		return live, r, err
	}
	g := newGraph(int(r.States), edges)
	good := make([]bool, r.States+1)
	for _, list := range desired {
		for _, id := range list {
			good[id] = true
			live.Desired++
		}
	}
	live.Edges = uint64(len(g.edges))
	if id := g.cannotReach(good); id != 0 {
		r.Violation = x.liveViolation(id, "from here it is out of reach")
		return live, r, nil
	}
	for _, part := range g.components() {
		if !g.circular(part) {
			continue
		}
		live.Cycles++
		if !g.fair(part) {
			continue
		}
		live.Fair++
		for _, id := range part {
			if !good[id] && r.Violation == nil {
				r.Violation = x.liveViolation(id, fmt.Sprintf("a fair schedule may go round for ever, through here: %v", g.round(id, part)))
			}
		}
	}
	return live, r, nil
}

// liveViolation tells of a state from which it does not come to what was asked for.
func (x *Explorer) liveViolation(id uint32, what string) *Violation {
	trace := x.origins.trace(id)
	w := x.m.Initial()[0]
	wk := x.m.newWorker()
	for _, a := range trace {
		_ = x.m.Apply(w, a)
		w = wk.unpack(wk.pack(w))
	}
	return &Violation{Trace: trace, Err: fmt.Errorf("ReachesDesired: once nothing goes wrong any more, the cluster comes to what was asked for and stays so\n  %s\n  %v\n%s",
		what, w.Desired(), w.Summary())}
}

// Desired tells why a world is not what was asked for: every partition has a master
// that takes writes, and as many replicas in sync as are wanted and there are nodes for.
func (w *World) Desired() error {
	s := &w.Ctl.State
	if s.Saving.Seq != 0 || s.Durable.Seq != s.Saved.Seq {
		return fmt.Errorf("something is not saved")
	}
	if len(s.Replies) > 0 || len(w.Mail) > 0 {
		return fmt.Errorf("somebody waits for an answer")
	}
	d := &w.API.Durable
	if f := &d.Safety; f.Breaker.State != core.BreakerClosed || f.Pause.At != 0 {
		return fmt.Errorf("no roles change by themselves")
	}
	if len(d.Partitions) != s.Spec.Partitions && s.Refusal.Reason != core.ReasonPartitionReduction {
		return fmt.Errorf("there are %d partitions of %d", len(d.Partitions), s.Spec.Partitions)
	}
	// Where a partition was added there may be fewer nodes than are wanted.
	wanted := min(len(d.Partitions)*s.Spec.Replicas, len(d.Nodes)) - len(d.Partitions)
	all := 0
	for p := range d.Partitions {
		masters, replicas := 0, 0
		for i := range w.Nodes {
			n := &w.Nodes[i]
			if _, listed := d.Map().Find(w.m.keys[i]); listed && n.Map.Version != d.Version {
				return fmt.Errorf("%s has map %d, the last one is %d", w.m.keys[i], n.Map.Version, d.Version)
			}
			if n.writable(w.Now) && n.Tenure.Partition == p {
				masters++
				if len(n.Waiting) > 0 {
					return fmt.Errorf("a client waits for %s", w.m.keys[i])
				}
			}
		}
		for k := range d.Nodes {
			if n := &d.Nodes[k]; n.Partition == p && n.Role == topology.Slave && n.State == topology.Active {
				i := w.index(n.Key())
				if x := &w.Nodes[i]; x.To == 0 || x.Pos.LSN != w.Nodes[x.To-1].Pos.LSN {
					return fmt.Errorf("%s lacks something", n.Key())
				}
				replicas++
			}
		}
		if masters != 1 || replicas >= s.Spec.Replicas {
			return fmt.Errorf("partition %d has %d masters that take writes and %d replicas in sync of %d", p, masters, replicas, s.Spec.Replicas-1)
		}
		all += replicas
	}
	if all != wanted {
		return fmt.Errorf("there are %d replicas in sync of %d", all, wanted)
	}
	return nil
}
