package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

// flush_all is for the node that it is sent to: the master's partition with its
// replicas, which have what their master has, and no other partition.
func TestBug29FlushAllIsLocal(t *testing.T) {
	_, nodes := twoPartitions(t, unhurried)
	c := dial(t, nodes[0])
	var keys [2][]string
	for i := range 40 {
		k := fmt.Sprintf("flush%d", i)
		c.ask("set "+k+" 0 0 1\r\nx\r\n", "STORED\r\n")
		p, _ := nodes[0].maps.table().partition([]byte(k))
		keys[p] = append(keys[p], k)
	}
	if got := dial(t, nodes[2]).line("flush_all\r\n"); !strings.HasPrefix(got, "SERVER_ERROR not_master: ") || !strings.Contains(got, nodes[0].key()) {
		t.Errorf("at a replica: %s", got)
	}
	if count(t, nodes[0], keys[0]) != len(keys[0]) {
		t.Fatal("a refused flush_all removed something")
	}
	c.ask("flush_all\r\n", "OK\r\n")
	for i, want := range []int{0, len(keys[1]), 0, len(keys[1])} {
		if got := count(t, nodes[i], keys[i%2]); got != want {
			t.Errorf("node %d has %d records, want %d", i, got, want)
		}
	}
	// It is not permanent, and versions begin again.
	k := keys[0][0]
	c.ask("set "+k+" 0 0 1\r\ny\r\ngets "+k+"\r\n", "STORED\r\nVALUE "+k+" 0 1 1\r\ny\r\nEND\r\n")
}

// Partitioning parameters with which nothing can be computed are refused in words.
func TestBug33HintOfNothing(t *testing.T) {
	meta := topology.DefaultMeta()
	meta.Hint = 0
	m := newNodeMap("h:1", newBroadcast(), discard)
	if err := m.register(nil, meta); err == nil || !strings.Contains(err.Error(), "partition-modular-hint 0: want at least 1") {
		t.Errorf("registered with a hint of 0: %v", err)
	}
	if m.table() != nil {
		t.Error("a table was built")
	}
}
