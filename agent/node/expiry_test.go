package node

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

var discard = slog.New(slog.DiscardHandler)

// Expired records leave the disk of master and replica, and their versions go on.
func TestExpirySweep(t *testing.T) {
	x := newTestIndex(t)
	clock := &testClock{}
	clocked := func(n *testNode) {
		n.clock = clock.now
		n.opts.ExpirySweepInterval = 0
	}
	master, slave := startNode(t, x, clocked), startNode(t, x, clocked)
	x.master(master.key(), 0)
	master.settled(dutyMaster)
	x.slave(slave.key(), 0, 1)
	eventually(t, "slave is active", func() error {
		if s := x.state(slave.key()); s != topology.Active {
			return fmt.Errorf("state %v", s)
		}
		return nil
	})
	c := dial(t, master)
	var short, kept []string
	for i := range 200 {
		k := fmt.Sprintf("short%d", i)
		short = append(short, k)
		c.ask("set "+k+" 0 10 5 7\r\n12345\r\n", "STORED\r\n")
	}
	for i := range 2 * removalBatch {
		k := fmt.Sprintf("kept%d", i)
		kept = append(kept, k)
		c.ask(fmt.Sprintf("set %s 0 %d 1\r\nx\r\n", k, i%2*1000), "STORED\r\n")
	}
	on := "expiry-sweep-interval = 1\nexpiry-sweep-rate = 1000000\n"
	apply := func(n *testNode, text string) {
		t.Helper()
		if ok, statuses, err := n.applyText([]byte(text)); !ok || err != nil {
			t.Fatalf("%+v, %v", statuses, err)
		}
	}
	// A replica never does it on its own.
	apply(slave, on)
	clock.advance(10*time.Second + expiryGrace + time.Second)
	c.ask("get short0 kept0\r\n", "VALUE kept0 0 1\r\nx\r\nEND\r\n")
	slave.sweeper.walk(t.Context())
	if slave.sweeper.walks.Load() != 0 || count(t, slave, short) != len(short) {
		t.Fatal("a replica removed expired records by itself")
	}
	// Switched on while the node runs.
	apply(master, on)
	eventually(t, "expired records leave the disk", func() error {
		for _, n := range []*testNode{master, slave} {
			if left := count(t, n, short); left > 0 {
				return fmt.Errorf("%s has %d", n.key(), left)
			}
			if count(t, n, kept) != len(kept) {
				t.Fatal("records that had not expired were removed")
			}
		}
		return nil
	})
	eventually(t, "the walk ends", func() error {
		if master.sweeper.walks.Load() == 0 {
			return errors.New("it has not")
		}
		return nil
	})
	if n, b := master.sweeper.removed.Load(), master.sweeper.bytes.Load(); n != 200 || b != 10*(5+6)+90*(5+7)+100*(5+8) {
		t.Errorf("counted %d records, %d bytes", n, b)
	}
	st := master.nodeStatus().GetExpirySweep()
	if st.GetRemoved() != 200 || st.GetWalks() == 0 || st.GetRemovedBytes() == 0 {
		t.Errorf("status %v", st)
	}
	c.ask("set short0 0 0 1\r\nx\r\ngets short0\r\n", "STORED\r\nVALUE short0 0 1 8\r\nx\r\nEND\r\n")
	// Switched off again, which also ends a walk under way.
	apply(master, "expiry-sweep-interval = 0\n")
	if err := master.sweeper.sweep(t.Context(), 0); !errors.Is(err, errSwitchedOff) {
		t.Errorf("a walk goes on: %v", err)
	}
}

// Records are removed only as they were when they were found, and only after a grace.
func TestExpirySweepIsCareful(t *testing.T) {
	x := newTestIndex(t)
	clock := &testClock{}
	n := startNode(t, x, func(n *testNode) { n.clock, n.opts.ExpirySweepInterval = clock.now, time.Hour })
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	c := dial(t, n)
	c.ask("set a 0 10 1\r\nx\r\nset b 0 10 1\r\nx\r\n", "STORED\r\nSTORED\r\n")
	clock.advance(10*time.Second + expiryGrace/2)
	n.sweeper.walk(t.Context())
	if count(t, n, []string{"a", "b"}) != 2 {
		t.Error("removed within the grace")
	}
	clock.advance(expiryGrace)
	c.ask("set a 0 0 1\r\ny\r\n", "STORED\r\n")
	n.sweeper.walk(t.Context())
	c.ask("get a b\r\n", "VALUE a 0 1\r\ny\r\nEND\r\n")
	if count(t, n, []string{"a", "b"}) != 1 || n.sweeper.removed.Load() != 1 {
		t.Error("the record that was set again is gone, or the other is not")
	}
}

func TestPaceOf(t *testing.T) {
	for _, c := range []struct {
		done, rate int
		took, want time.Duration
	}{
		{10, 100, 0, 100 * time.Millisecond},
		{10, 100, 40 * time.Millisecond, 60 * time.Millisecond},
		{10, 100, time.Second, 0},
		{1, 0, 0, time.Second},
	} {
		if got := paceOf(c.done, c.rate, c.took); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
