package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/storage"
)

// keyLines returns the answer to keys that lists them.
func keyLines(keys []string) string {
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "KEY %s\r\n", k)
	}
	return b.String() + "END\r\n"
}

// TestBug28KeysAsksEveryPartition: the original hashes the prefix and so finds the
// keys of one partition only.
func TestBug28KeysAsksEveryPartition(t *testing.T) {
	_, nodes := twoPartitions(t, unhurried)
	c := dial(t, nodes[0])
	var all, other []string
	parts := map[int]int{}
	for i := range 40 {
		k := fmt.Sprintf("list:%02d", i)
		c.ask("set "+k+" 0 0 1\r\nx\r\n", "STORED\r\n")
		all = append(all, k)
		p, _ := nodes[0].maps.table().partition([]byte(k))
		parts[p]++
	}
	if parts[0] == 0 || parts[1] == 0 {
		t.Fatalf("keys a partition: %v", parts)
	}
	for i := range 3 {
		k := fmt.Sprintf("other%d", i)
		c.ask("set "+k+" 0 0 1\r\nx\r\n", "STORED\r\n")
		other = append(other, k)
	}
	// In the past: stored, and expired at once.
	c.ask("set list:05x 0 2600000 1\r\nx\r\n", "STORED\r\n")
	// What a node has of another's partition does not count.
	stray := "list:stray"
	for i := 0; ; i++ {
		if p, _ := nodes[0].maps.table().partition([]byte(stray)); p == 1 {
			break
		}
		stray = fmt.Sprint("list:stray", i)
	}
	_, err := nodes[0].db.Update(t.Context(), []byte(stray), func(storage.Entry) storage.Change {
		return storage.Change{Op: storage.Put, Record: storage.Record{Version: 1, Value: []byte("x")}}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		c := dial(t, n)
		c.ask("keys list: 100\r\n", keyLines(all))
		c.ask("keys list: 40\r\n", keyLines(all))
		c.ask("keys list: 7\r\n", keyLines(all[:7]))
		c.ask("keys list:39 1\r\n", keyLines(all[39:]))
		c.ask("keys list:3 o li 3\r\n", keyLines(slices.Concat(all[30:33], other, all[:3])))
		c.ask("keys nothing 10\r\n", "END\r\n")
		// On another's behalf a node answers for its own partition only.
		own := slices.DeleteFunc(slices.Clone(all), func(k string) bool {
			p, _ := n.maps.table().partition([]byte(k))
			return p != n.maps.table().own.Partition
		})
		c.ask("<127.0.0.1:1>keys list: 100\r\n", keyLines(own))
	}
}

// TestKeysIncomplete takes a partition away.
func TestKeysIncomplete(t *testing.T) {
	x := newTestIndex(t)
	a, b, proxy := startNode(t, x, quick), startNode(t, x, quick), startNode(t, x, quick)
	c := dial(t, proxy)
	c.ask("keys k 10\r\n", "END\r\n")
	c.ask("<127.0.0.1:1>keys k 10\r\n", "SERVER_ERROR not_serving: this node answers for no partition\r\n")
	x.master(a.key(), 0)
	x.master(b.key(), 1)
	a.settled(dutyMaster)
	b.settled(dutyMaster)
	var all []string
	for i := range 20 {
		k := fmt.Sprintf("k%02d", i)
		c.ask("set "+k+" 0 0 1\r\nx\r\n", "STORED\r\n")
		all = append(all, k)
	}
	c.ask("keys k 100\r\n", keyLines(all))
	b.kill()
	for _, n := range []*testNode{a, proxy} {
		began := time.Now()
		got := dial(t, n).line("keys k 100\r\n")
		if !strings.HasPrefix(got, "SERVER_ERROR keys_incomplete: partition 1: "+b.key()+": ") {
			t.Errorf("keys without a partition: %q", got)
		}
		if d := time.Since(began); d > patience/2 {
			t.Errorf("that took %s", d)
		}
	}
}
