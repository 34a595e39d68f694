package model

import (
	"context"
	"fmt"

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
	States    uint64 // that were looked at
	Turns     uint64 // of calm, of all of them
	Violation *Violation
}

// Live explores a world and looks, from every step-th state, whether the world comes to
// the desired state and stays there when nothing goes wrong any more and everything that
// can happen does: there is no state from which the goal cannot be reached, and no
// circle outside of it that a fair schedule could go round for ever.
func Live(ctx context.Context, m *Model, limits Limits, step int) (Liveness, Result, error) {
	limits.Workers = 1
	x := NewExplorer(m, limits)
	var live Liveness
	good := map[fingerprint]bool{}
	wk := m.newWorker()
	x.states = func(id uint32, b []byte) {
		if live.Violation != nil || int(id)%step != 0 {
			return
		}
		live.States++
		w := wk.unpack(b)
		var path []fingerprint
		known, err := w.calm(wk, func(fp fingerprint) bool {
			live.Turns++
			path = append(path, fp)
			return good[fp]
		})
		if err == nil && !known {
			err = w.Desired()
		}
		if err != nil {
			live.Violation = &Violation{Err: fmt.Errorf("ReachesDesired: when nothing goes wrong any more, the cluster comes to what was asked for\n  %w\n%s", err, w.Summary()), Trace: x.origins.trace(id)}
			x.stop.Store(true)
			return
		}
		for _, fp := range path {
			good[fp] = true
		}
	}
	r, err := x.Run(ctx)
	return live, r, err
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
	if len(d.Partitions) != s.Spec.Partitions {
		return fmt.Errorf("there are %d partitions of %d", len(d.Partitions), s.Spec.Partitions)
	}
	for p := range d.Partitions {
		masters, replicas := 0, 0
		for i := range w.Nodes {
			n := &w.Nodes[i]
			if n.Map.Version != d.Version {
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
		if masters != 1 || replicas != s.Spec.Replicas-1 {
			return fmt.Errorf("partition %d has %d masters that take writes and %d replicas in sync of %d", p, masters, replicas, s.Spec.Replicas-1)
		}
	}
	return nil
}
