package replication

import (
	"testing"
	"time"
)

// TestLeaderLease: a lease counts from the oldest promise of those who could be
// promoted, and nobody becomes one of them without a promise.
func TestLeaderLease(t *testing.T) {
	now := time.Unix(1000, 0)
	const ttl = 5 * time.Second
	var l Leader
	want := func(when string, token uint64) {
		t.Helper()
		got, _, ok := l.Lease(now)
		if ok != (token != 0) || got != token {
			t.Errorf("%s: lease from %d, %t; want %d", when, got, ok, token)
		}
	}
	granted := func(effects []Effect) (keys []string) {
		for _, e := range effects {
			if e.Grant != nil {
				keys = append(keys, e.Grant.Key)
			}
		}
		return keys
	}
	if e := l.AskLease(1, ttl); e != nil {
		t.Errorf("who does not lead asks: %v", e)
	}
	want("not leading", 0)

	l.Lead(2, nil, now)
	want("never asked", 0)
	l.AskLease(10, ttl)
	want("nobody could be promoted", 10)
	want("and again", 0)

	l.Lead(2, []Member{{Key: "a", Active: true}, {Key: "b", Active: true}}, now)
	l.Connect("a", 1, now)
	l.Streams("a", 1, at(2, 5), now)
	if e := l.AskLease(20, ttl); len(e) != 1 || e[0].LeaseAsk == nil || *e[0].LeaseAsk != (LeaseAsk{"a", 1, 2, 20, ttl}) {
		t.Errorf("asked: %+v", e)
	}
	l.LeaseAck("a", 1, 2, 20, now)
	want("one is not connected", 0)
	l.Connect("b", 2, now)
	l.Streams("b", 2, at(2, 5), now)
	l.AskLease(30, ttl)
	l.LeaseAck("b", 2, 2, 30, now)
	want("the older promise counts", 20)
	l.LeaseAck("a", 1, 1, 30, now) // of another epoch
	l.LeaseAck("a", 9, 2, 30, now) // of another connection
	l.LeaseAck("a", 1, 2, 99, now) // never asked for
	want("not answered", 0)
	l.LeaseAck("a", 1, 2, 30, now)
	want("both", 30)
	l.AskLease(30, ttl)
	want("no new token", 0)

	// A promise is of a process; one that connected anew may have forgotten it.
	l.Connect("a", 3, now)
	l.Streams("a", 3, at(2, 5), now)
	l.AskLease(40, ttl)
	l.LeaseAck("b", 2, 2, 40, now)
	want("connected anew", 0)
	l.LeaseAck("a", 3, 2, 40, now)
	want("both again", 40)

	// A third one catches up. It is not told to be in sync before it has promised.
	l.Lead(2, []Member{{Key: "a", Active: true}, {Key: "b", Active: true}, {Key: "c"}}, now)
	l.Connect("c", 4, now)
	if k := granted(l.Streams("c", 4, at(2, 5), now)); k != nil {
		t.Errorf("granted without a promise: %v", k)
	}
	if !l.PromiseWanted(now) {
		t.Error("its promise is not wanted")
	}
	l.AskLease(50, ttl)
	if k := granted(l.LeaseAck("c", 4, 2, 50, now)); len(k) != 1 || k[0] != "c" {
		t.Errorf("granted with a promise: %v", k)
	}
	if l.PromiseWanted(now) {
		t.Error("its promise is wanted still")
	}
	want("the others have not answered", 0)
	l.LeaseAck("a", 3, 2, 50, now)
	l.LeaseAck("b", 2, 2, 50, now)
	want("all three", 50)

	// A fourth one is free to when the lease has ended.
	l.Lead(2, []Member{{Key: "a", Active: true}, {Key: "b", Active: true}, {Key: "c", Active: true}, {Key: "d"}}, now)
	l.Connect("d", 5, now)
	if k := granted(l.Streams("d", 5, at(2, 5), now)); k != nil {
		t.Errorf("granted without a promise: %v", k)
	}
	if k := granted(l.Ack("d", 5, at(2, 5), now.Add(ttl-1))); k != nil {
		t.Errorf("granted in the last moment of the lease: %v", k)
	}
	if k := granted(l.Ack("d", 5, at(2, 5), now.Add(ttl))); len(k) != 1 {
		t.Errorf("granted after the lease: %v", k)
	}

	// Another epoch begins with nothing.
	l.Lead(3, []Member{{Key: "a", Active: true}}, now)
	l.AskLease(60, ttl)
	want("a promise of the former epoch", 0)
	l.LeaseAck("a", 3, 3, 60, now)
	want("of this epoch", 60)
	l.StepDown()
	want("no leader any more", 0)
}
