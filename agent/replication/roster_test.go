package replication

import (
	"slices"
	"testing"
)

func TestRoster(t *testing.T) {
	var r roster
	all := func(string) bool { return true }
	want := func(what string, except string, list ...uint64) {
		t.Helper()
		if got := r.lacking(except); !slices.Equal(got, list) {
			t.Errorf("%s: lacking %v, want %v", what, got, list)
		}
	}
	want("nobody", "")
	r.expect([]string{"b:1", "c:1"}, 40, all)
	want("unknown positions", "", 40)
	r.at("b:1", 99)
	r.at("d:1", 70)
	want("known ones", "", 40, 71, 100)
	want("for b", "b:1", 40, 71)
	r.expect([]string{"b:1"}, 60, all)
	want("what is known stays, also of who is away", "", 40, 71, 100)
	r.expect(nil, 60, func(key string) bool { return key != "c:1" })
	want("c has left the cluster", "", 71, 100)
	r.at("b:1", 10)
	want("b was restored", "", 11, 71)
	r.changed = false
	r.at("b:1", 10)
	if r.changed {
		t.Error("nothing has changed")
	}
	r.expect([]string{"e:1"}, 0, all)
	want("an empty log", "", 1, 11, 71)
}
