// Package core decides everything a flare controller decides, and nothing else.
//
// It is one pure function,
//
//	Step(state, input) -> (state', effects)
//
// without IO, clock, goroutines or randomness: time arrives as an input, and
// whatever shall happen outside is returned as an effect. State is plain data
// that encodes to JSON and back without loss, so that a recorded run can be
// replayed and a model checker can drive this very code.
//
// # What is where
//
//	types.go       inputs, effects, the spec and what is observed
//	state.go       State and Durable, the part of it that survives the controller
//	step.go        Step: fold the input in, reconcile, release what has become durable
//	machine.go     the reconcile machine: Init ... Done
//	commands.go    what nodes and operators ask for (node add, node role, ...)
//	handover.go    a master that gives its role to a replica
//	transitions.go the down and up transitions and the change of roles
//	detect.go      which node is dead, and by what evidence
//	safety.go      when roles may change by themselves: breaker, pause, grace period
//	force.go       a master by an operator's order, and what that may lose
//	outcome.go     what a command would bring about
//	lease.go       which process may take writes, and for how long nobody else may
//	assign.go      which node gets which duty
//	clusterreplication.go  the phases of the replication to another cluster
//	status.go      the summary and its conditions
//	invariants.go  what must hold after every step
//
// # Persist before broadcast
//
// Durable.Seq grows by one with every change of the durable part. A change
// starts a Persist effect; replies and maps that follow from it are held until
// the Persisted result with that Seq (or a later one) comes in. One Persist is
// under way at a time; what changes meanwhile goes with the next. A failed
// Persist releases nothing and is repeated.
//
//	          change                 Persisted(seq)
//	Durable ---------> Saving (seq) ----------------> Saved --> replies, Broadcast
//	   ^                  |  PersistFailed
//	   '------------------'  (again after RetryAfter)
//
// Everything that other programs may see (maps, labels, status, replies) is
// computed from Saved; decisions are taken on Durable.
package core
