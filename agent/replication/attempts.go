package replication

import "github.com/flarekv/flare/proto/topology"

// attempts counts the resyncs that failed in a row. A resync is an attempt to which
// the master has agreed, with START; it is over when this node has what the master
// had then. It has failed when it ended before and brought nothing: neither another
// position nor more of a copy. A master that cannot be reached, or is none any more,
// says nothing about this node, and one that dies in the middle of a long copy has
// brought a part of it.
type attempts struct {
	failed int
	at     topology.LSN // of this node when the last attempt ended
	had    uint64       // bytes of a copy when the last attempt ended

	started bool         // the rest is of the attempt under way
	goal    topology.LSN // master's position when it began
	done    bool         // the goal was reached
	copied  uint64       // bytes of a copy that are there
}

func (a *attempts) begin() {
	a.started, a.done, a.copied = false, false, 0
}

// start tells that the master, which is at goal, has agreed.
func (a *attempts) start(goal topology.LSN) { a.started, a.goal = true, goal }

// reached tells where this node is, and returns true when that ends the resync.
func (a *attempts) reached(lsn topology.LSN) bool {
	if !a.started || a.done || lsn.Less(a.goal) {
		return false
	}
	a.done, a.failed = true, 0
	return true
}

// end tells where this node is after an attempt and why it ended, and returns how
// many resyncs have failed in a row.
func (a *attempts) end(at topology.LSN, reason string) int {
	advanced := at != a.at || a.copied > a.had
	a.at = at
	if a.copied > 0 || a.done {
		a.had = a.copied
	}
	switch {
	case !a.started || a.done || reason == "not_master" || reason == "stale_master":
	case advanced:
		a.failed = 0
	default:
		a.failed++
	}
	return a.failed
}
