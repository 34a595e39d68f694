package replication

import (
	"testing"
	"time"
)

// TestLeaderReleasesPromises: given back are those that were asked for, once, and no
// answer to a question from before makes a lease afterwards.
func TestLeaderReleasesPromises(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 10))
	d.lead(1, Member{Key: "b", Active: true}, Member{Key: "c", Active: true})
	d.connect("b", 1, 1, 10)
	d.connect("c", 2, 1, 10)
	if got := d.ReleaseLease(6); len(got) != 0 {
		t.Errorf("released without a question: %+v", got)
	}
	d.AskLease(7, time.Second)
	d.LeaseAck("b", 1, 1, 7, d.now)
	got := d.ReleaseLease(9)
	if len(got) != 2 || got[0].LeaseAsk.Key != "b" || got[1].LeaseAsk.Key != "c" || got[0].LeaseAsk.TTL != 0 || got[0].LeaseAsk.Epoch != 1 {
		t.Errorf("released: %+v", got)
	}
	d.LeaseAck("c", 2, 1, 7, d.now) // was under way
	if token, _, ok := d.Lease(d.now); ok {
		t.Errorf("a lease from %d after it was given back", token)
	}
	if got := d.AskLease(9, time.Second); len(got) != 0 {
		t.Errorf("a question that was decided upon before the release binds the replicas after it: %+v", got)
	}
	d.AskLease(10, time.Second)
	d.LeaseAck("b", 1, 1, 10, d.now)
	d.LeaseAck("c", 2, 1, 10, d.now)
	if token, _, ok := d.Lease(d.now); !ok || token != 10 {
		t.Errorf("asked anew: %d, %t", token, ok)
	}
}
