package replication

import (
	"testing"
	"time"
)

// TestLeaderShortage: who counts as in sync, and when too few of them matter.
func TestLeaderShortage(t *testing.T) {
	d := newDrive(t)
	check := func(what string, least int, want Shortage) {
		t.Helper()
		got, short := d.Shortage(least, 2*second, d.now)
		if want.Min == 0 && short || want.Min != 0 && (!short || got != want) {
			t.Errorf("%s: %+v, %t, want %+v", what, got, short, want)
		}
	}
	check("while not leading", 3, Shortage{})
	d.Committed(at(1, 10))
	d.lead(1, Member{Key: "b"}, Member{Key: "c", Active: true})
	check("nobody is asked for", 0, Shortage{})
	check("the master is enough", 1, Shortage{})
	check("a new master waits", 3, Shortage{InSync: 2, Min: 3, Forming: true})
	d.now = d.now.Add(2 * time.Second)
	check("but not forever", 3, Shortage{InSync: 2, Min: 3})
	check("an active replica counts before it connects", 2, Shortage{})
	d.connect("b", 1, 1, 9)
	check("who catches up does not count", 3, Shortage{InSync: 2, Min: 3})
	d.want(d.ack("b", 1, 1, 10), "grant b@1 1/1")
	check("who was granted does, whatever the map says yet", 3, Shortage{})
	d.Disconnect("b", 1)
	check("until the index has taken that back", 3, Shortage{})
	d.BehindDone(Behind{"b", 1, 1}, true, d.now)
	check("and then not", 3, Shortage{InSync: 2, Min: 3})
	d.lead(2, Member{Key: "c", Active: true})
	check("a new epoch begins anew", 3, Shortage{InSync: 2, Min: 3, Forming: true})
	check("enough are there", 2, Shortage{})
	d.lead(2)
	check("and who is lost then is not waited for", 2, Shortage{InSync: 1, Min: 2})
	d.StepDown()
	check("after stepping down", 3, Shortage{})
}
