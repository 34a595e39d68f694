package replication

import "testing"

func TestAttempts(t *testing.T) {
	var a attempts
	a.at = at(1, 10)
	type try struct {
		started bool
		goal    uint64
		applied uint64 // 0: nothing
		copied  uint64
		reason  string
		want    int
	}
	for i, s := range []try{
		{false, 0, 0, 0, "connection_failed", 0}, // the master is not there
		{true, 20, 0, 0, "bad_checksum", 1},
		{false, 0, 0, 0, "connection_failed", 1},
		{true, 20, 0, 0, "not_master", 1}, // it was not the master for long
		{true, 20, 0, 0, "batch_gap", 2},
		{true, 20, 12, 0, "batch_gap", 0}, // something came
		{true, 20, 0, 0, "batch_gap", 1},
		{true, 20, 20, 0, "connection_failed", 0}, // all came
		{true, 20, 20, 0, "connection_failed", 0}, // there was nothing to come
		{true, 30, 0, 100, "connection_failed", 0},
		{true, 30, 0, 200, "connection_failed", 0},
		{true, 30, 0, 200, "damaged_copy", 1}, // the same again
		{true, 30, 0, 0, "disk_full", 2},
		{true, 30, 30, 300, "connection_failed", 0},
		{true, 40, 0, 100, "connection_failed", 1}, // of another copy, but nobody counts on that
	} {
		a.begin()
		pos := a.at
		if s.started {
			a.start(at(1, s.goal))
		}
		a.copied = s.copied
		if s.applied > 0 {
			pos = at(1, s.applied)
			if got := a.reached(pos); got != (s.applied >= s.goal) {
				t.Errorf("%d: reached %v", i, got)
			}
		}
		if got := a.end(pos, s.reason); got != s.want {
			t.Errorf("%d: %d failed in a row, want %d", i, got, s.want)
		}
	}
}
