package model

import "slices"

// edge is a transition in which nothing goes wrong.
type edge struct {
	from, to uint32
	action   Action
}

// graph is what was explored, without what goes wrong. States are numbered from 1.
type graph struct {
	edges []edge   // by from
	first []uint32 // of a state: its first edge; one more at the end
}

func newGraph(states int, parts [][]edge) *graph {
	g := &graph{first: make([]uint32, states+2)}
	total := 0
	for _, list := range parts {
		total += len(list)
		for _, e := range list {
			g.first[e.from+1]++
		}
	}
	for i := 1; i < len(g.first); i++ {
		g.first[i] += g.first[i-1]
	}
	at := slices.Clone(g.first)
	g.edges = make([]edge, total)
	for _, list := range parts {
		for _, e := range list {
			g.edges[at[e.from]] = e
			at[e.from]++
		}
	}
	return g
}

func (g *graph) states() int { return len(g.first) - 2 }

func (g *graph) from(id uint32) []edge { return g.edges[g.first[id]:g.first[id+1]] }

// cannotReach returns the first state from which no good one is reached, 0 for none.
func (g *graph) cannotReach(good []bool) uint32 {
	into := make([]edge, len(g.edges))
	for i, e := range g.edges {
		into[i] = edge{from: e.to, to: e.from}
	}
	back := newGraph(g.states(), [][]edge{into})
	reaches := slices.Clone(good)
	var todo []uint32
	for id := range good {
		if good[id] {
			todo = append(todo, uint32(id))
		}
	}
	for len(todo) > 0 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, e := range back.from(id) {
			if !reaches[e.to] {
				reaches[e.to] = true
				todo = append(todo, e.to)
			}
		}
	}
	for id := 1; id <= g.states(); id++ {
		if !reaches[id] {
			return uint32(id)
		}
	}
	return 0
}

// components returns the strongly connected components, by Tarjan's algorithm.
func (g *graph) components() [][]uint32 {
	n := g.states()
	index, low := make([]uint32, n+1), make([]uint32, n+1)
	on := make([]bool, n+1)
	var found [][]uint32
	var stack []uint32
	type frame struct{ id, next uint32 }
	var calls []frame
	count := uint32(0)
	enter := func(id uint32) {
		count++
		index[id], low[id], on[id] = count, count, true
		stack = append(stack, id)
		calls = append(calls, frame{id, g.first[id]})
	}
	for root := uint32(1); root <= uint32(n); root++ {
		if index[root] != 0 {
			continue
		}
		enter(root)
		for len(calls) > 0 {
			f := &calls[len(calls)-1]
			id := f.id
			if f.next < g.first[id+1] {
				to := g.edges[f.next].to
				f.next++
				switch {
				case index[to] == 0:
					enter(to)
				case on[to]:
					low[id] = min(low[id], index[to])
				}
				continue
			}
			calls = calls[:len(calls)-1]
			if len(calls) > 0 {
				up := calls[len(calls)-1].id
				low[up] = min(low[up], low[id])
			}
			if low[id] != index[id] {
				continue
			}
			at := len(stack) - 1
			for stack[at] != id {
				at--
			}
			part := slices.Clone(stack[at:])
			stack = stack[:at]
			for _, x := range part {
				on[x] = false
			}
			found = append(found, part)
		}
	}
	return found
}

// circular reports whether one can go round in a component.
func (g *graph) circular(part []uint32) bool {
	return len(part) > 1 || slices.ContainsFunc(g.from(part[0]), func(e edge) bool { return e.to == part[0] })
}

// fair reports whether one can go round in a component for ever without leaving aside
// for ever an action that is possible all the time. Such a round exists if and only if
// the one through every edge is one.
func (g *graph) fair(part []uint32) bool {
	in := make(map[uint32]bool, len(part))
	for _, id := range part {
		in[id] = true
	}
	always := map[Action]bool{} // possible in all states so far, and not taken within
	for _, e := range g.from(part[0]) {
		always[e.action] = true
	}
	for _, id := range part {
		here := map[Action]bool{}
		for _, e := range g.from(id) {
			here[e.action] = !in[e.to]
		}
		for a := range always {
			if outside, possible := here[a]; !possible || !outside {
				delete(always, a)
			}
		}
	}
	return len(always) == 0
}

// round returns a shortest way within a component from a state back to it.
func (g *graph) round(id uint32, part []uint32) []Action {
	in := make(map[uint32]bool, len(part))
	for _, x := range part {
		in[x] = true
	}
	came := map[uint32]edge{}
	todo := []uint32{id}
	for len(todo) > 0 {
		x := todo[0]
		todo = todo[1:]
		for _, e := range g.from(x) {
			if _, seen := came[e.to]; seen || !in[e.to] {
				continue
			}
			came[e.to] = e
			if e.to != id {
				todo = append(todo, e.to)
				continue
			}
			list := []Action{e.action}
			for at := e.from; at != id; at = came[at].from {
				list = append(list, came[at].action)
			}
			slices.Reverse(list)
			return list
		}
	}
	return nil
}
