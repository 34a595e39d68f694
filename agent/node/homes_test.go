package node

import (
	"slices"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

func TestHomes(t *testing.T) {
	node := func(port int, role topology.Role, state topology.State, partition int) topology.Node {
		return topology.Node{Name: "n", Port: port, Role: role, State: state, Partition: partition}
	}
	h := homes{}
	h.note(nil)
	if got := h.away(0); len(got) != 0 {
		t.Errorf("before the first map: %v", got)
	}
	want := func(what string, partition int, keys ...string) {
		t.Helper()
		got := h.away(partition)
		slices.Sort(got)
		if !slices.Equal(got, keys) {
			t.Errorf("%s: %v, want %v", what, got, keys)
		}
	}
	note := func(nodes ...topology.Node) { h.note(&table{self: "n:1", nodes: topology.Map{Nodes: nodes}}) }
	note(node(1, topology.Master, topology.Active, 0), node(2, topology.Slave, topology.Active, 0),
		node(3, topology.Proxy, topology.Down, -1), node(4, topology.Proxy, topology.Active, -1),
		node(5, topology.Slave, topology.Active, 1))
	want("a member, and who may be one", 0, "n:2", "n:3")
	want("the other partition", 1, "n:3", "n:5")
	note(node(1, topology.Master, topology.Active, 0), node(2, topology.Proxy, topology.Down, -1),
		node(3, topology.Slave, topology.Prepare, 1), node(5, topology.Proxy, topology.Down, -1))
	want("a member that is down", 0, "n:2")
	want("so does the other partition", 1, "n:3", "n:5")
	mayCome := h.mayCome(0)
	for key, want := range map[string]bool{"n:2": true, "n:3": false, "n:4": false, "n:5": false, "n:9": false} {
		if got := mayCome(key); got != want {
			t.Errorf("%s may come: %v", key, got)
		}
	}
	note(node(1, topology.Master, topology.Active, 0), node(2, topology.Proxy, topology.Active, -1))
	want("it is back but for its duty", 0, "n:2")
	note(node(1, topology.Master, topology.Active, 0))
	want("it was removed", 0)
}
