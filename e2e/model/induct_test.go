package model

import "testing"

// TestInductive takes every step from some states of the small space that satisfy the
// invariants, reachable or not; make check-model takes them from all.
func TestInductive(t *testing.T) {
	sp := Spaces()[0]
	every := uint64(41)
	if raceDetector {
		every = 401
	}
	r := sp.Induct(t.Context(), every, 0)
	t.Log(r)
	if r.Broken != nil {
		t.Fatalf("%v\n\nfrom %+v", r.Broken, r.State)
	}
	if r.States < 5 || !r.Complete {
		t.Errorf("only %d states satisfy the invariants", r.States)
	}
}
