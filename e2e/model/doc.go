// Package model checks the controller's core together with the replication of the
// nodes, over every interleaving of small worlds.
//
// A world is a controller, the place where it keeps its state, a few nodes and what is
// under way between them. What may happen next is a list of actions: a save ends, a map
// arrives, a process dies, time passes. The explorer takes every action in every state
// that it has not seen before, nearest states first, and checks every invariant after
// every step. What it runs is the code that ships: core.Step with the invariants of the
// core, replication.Leader, package history and the node map of package topology. The
// rest of a node is modelled in node.go.
//
//	world.go       what there is
//	actions.go     what may happen
//	node.go        what nodes do
//	growth.go      what they do while a partition is added
//	invariants.go  what must hold
//	worlds.go      the worlds that are explored
//	clocks.go      which times are one and the same
//	pack.go        states as few bytes
//	explore.go     the search
//	live.go        whether it comes to what was asked for
//	graph.go       what was explored, to look at as a whole
//	mutations.go   ways to break the core
//	trace.go       the way to a state, for people and for replay
package model
