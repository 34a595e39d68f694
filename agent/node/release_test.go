package node

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// leasedPair starts a master and a replica that write with a lease only, and, as
// there is no controller, waits until the replica has given one.
func leasedPair(t *testing.T) (x *testIndex, master, slave *testNode) {
	t.Helper()
	dir, err := os.MkdirTemp("", "flare") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := 0
	x, master, slave = pair(t, syncMode, func(node *testNode) {
		n++
		node.opts.AgentSocket = filepath.Join(dir, string(rune('a'+n)))
	})
	eventually(t, "a lease from the replica", func() error {
		if l := master.nodeStatus().GetLease(); l.GetState() != agentv1.LeaseState_LEASE_STATE_HELD || l.GetSource() != agentv1.LeaseSource_LEASE_SOURCE_FAILSAFE {
			return errors.New(l.String())
		}
		return nil
	})
	return x, master, slave
}

// TestHandoverGivesPromisesBack: a replica that has promised to begin no epoch for
// some seconds begins one at once when it is handed over to.
func TestHandoverGivesPromisesBack(t *testing.T) {
	x, master, slave := leasedPair(t)
	dial(t, master).ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")

	// Taken back, the master has to ask anew, and does.
	x.mu.Lock()
	x.refusal = "target_not_in_sync"
	x.mu.Unlock()
	if _, err := handOver(t, master, ""); err == nil {
		t.Fatal("not refused")
	}
	dial(t, master).ask("set k 0 0 1\r\ny\r\n", "STORED\r\n")
	var left time.Duration
	began := time.Now()
	eventually(t, "a promise", func() error {
		slave.roles.mu.Lock()
		defer slave.roles.mu.Unlock()
		began = time.Now()
		if left = slave.roles.promised.left(0, 2, slave.sinceBorn()); left < 4*time.Second {
			return errors.New("none that lasts")
		}
		return nil
	})

	x.mu.Lock()
	x.refusal = ""
	x.mu.Unlock()
	if _, err := handOver(t, master, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next epoch", func() error {
		if lsn := slave.db.Position().LSN; lsn.Epoch != 2 {
			return errors.New(lsn.String())
		}
		return nil
	})
	if took := time.Since(began); took >= left {
		t.Errorf("the replica began its epoch after %v, the promise was to last %v", took, left)
	}
	dial(t, master).ask("set k 0 0 1\r\nz\r\n", "STORED\r\n")
}
