package node

import (
	"slices"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

func testTable(t *testing.T, self string, nodes ...topology.Node) *table {
	t.Helper()
	view, err := topology.BuildView(nodes)
	if err != nil {
		t.Fatal(err)
	}
	resolver, err := topology.NewResolver(topology.DefaultMeta())
	if err != nil {
		t.Fatal(err)
	}
	return newTable(self, topology.NewMap(1, nodes), view, resolver)
}

func entry(port int, role topology.Role, state topology.State, partition, balance int, epoch uint64) topology.Node {
	return topology.Node{Name: "h", Port: port, Role: role, State: state, Partition: partition, Balance: balance, Epoch: epoch}
}

func TestRoute(t *testing.T) {
	// Of two partitions, odd slots belong to 0: simple("key2") = 379, simple("key1") = 378.
	k0, k1 := "key2", "key1"
	two := []topology.Node{
		entry(1, topology.Master, topology.Active, 0, 1, 1),
		entry(2, topology.Slave, topology.Active, 0, 1, 1),
		entry(3, topology.Slave, topology.Prepare, 0, 1, 1),
		entry(4, topology.Master, topology.Active, 1, 0, 1),
		entry(5, topology.Slave, topology.Active, 1, 0, 1),
		entry(6, topology.Proxy, topology.Active, -1, 0, 0),
	}
	// In 0 of two partitions, and in 2 of three.
	moving := "key4"
	adding := append(slices.Clone(two),
		entry(7, topology.Master, topology.Prepare, 2, 1, 0),
		entry(8, topology.Slave, topology.Prepare, 2, 0, 0))
	headless := []topology.Node{
		entry(1, topology.Master, topology.Down, 0, 1, 1),
		entry(2, topology.Slave, topology.Active, 0, 1, 1),
		entry(4, topology.Master, topology.Down, 1, 1, 1),
		entry(6, topology.Proxy, topology.Active, -1, 0, 0),
	}
	tests := []struct {
		name  string
		nodes []topology.Node
		self  string
		read  bool
		key   string
		via   []string
		avoid []string
		draw  uint32
		want  route
	}{
		{name: "write at master", nodes: two, self: "h:1", key: k0, want: route{actLocal, 0, ""}},
		{name: "write at slave", nodes: two, self: "h:2", key: k0, want: route{actForward, 0, "h:1"}},
		{name: "proxied write at slave", nodes: two, self: "h:2", key: k0, via: []string{"h:6"}, want: route{actForward, 0, "h:1"}},
		{name: "write from its master", nodes: two, self: "h:2", key: k0, via: []string{"h:1"}, want: route{actCopy, 0, ""}},
		{name: "write that came back from its master", nodes: two, self: "h:3", key: k0, via: []string{"h:3", "h:1"}, want: route{actCopy, 0, ""}},
		{name: "write that its master sent somewhere else", nodes: two, self: "h:2", key: k0, via: []string{"h:1", "h:6"}, want: route{actLoop, 0, ""}},
		{name: "write from the master of another partition", nodes: two, self: "h:2", key: k0, via: []string{"h:4"}, want: route{actForward, 0, "h:1"}},
		{name: "write for another partition from the own master", nodes: two, self: "h:2", key: k1, via: []string{"h:1"}, want: route{actForward, 1, "h:4"}},
		{name: "write of moving key at new master", nodes: adding, self: "h:7", key: moving, via: []string{"h:6"}, want: route{actForward, 0, "h:1"}},
		{name: "write of moving key from its master", nodes: adding, self: "h:7", key: moving, via: []string{"h:7", "h:1"}, want: route{actCopy, 2, ""}},
		{name: "write of moving key from another master", nodes: adding, self: "h:7", key: moving, via: []string{"h:4"}, want: route{actForward, 0, "h:1"}},
		{name: "write of staying key from its master", nodes: adding, self: "h:7", key: k0, via: []string{"h:1"}, want: route{actLoop, 0, ""}},
		{name: "write of moving key at slave of new master", nodes: adding, self: "h:8", key: moving, via: []string{"h:7", "h:1", "h:7"}, want: route{actCopy, 2, ""}},
		{name: "write of moving key to slave of new master from old", nodes: adding, self: "h:8", key: moving, via: []string{"h:1"}, want: route{actLoop, 0, ""}},
		{name: "client write of moving key", nodes: adding, self: "h:1", key: moving, want: route{actLocal, 0, ""}},
		{name: "write at proxy", nodes: two, self: "h:6", key: k1, want: route{actForward, 1, "h:4"}},
		{name: "write at unknown node", nodes: two, self: "h:9", key: k1, want: route{actForward, 1, "h:4"}},
		{name: "write seen before", nodes: two, self: "h:6", key: k1, via: []string{"h:6", "h:1"}, want: route{actLoop, 1, ""}},
		{name: "write seen before at its master", nodes: two, self: "h:4", key: k1, via: []string{"h:4", "h:1"}, want: route{actLocal, 1, ""}},
		{name: "write travelled too far", nodes: two, self: "h:6", key: k1, via: make([]string, maxVia), want: route{actLoop, 1, ""}},
		{name: "write without master", nodes: headless, self: "h:6", key: k0, want: route{actWait, 0, ""}},
		{name: "write without partitions", self: "h:6", key: k0, want: route{actNoPartition, -1, ""}},

		{name: "read at master", nodes: two, self: "h:1", read: true, key: k0, want: route{actLocal, 0, ""}},
		{name: "read at master with balance 0", nodes: two, self: "h:4", read: true, key: k1, want: route{actLocal, 1, ""}},
		{name: "read at active slave", nodes: two, self: "h:2", read: true, key: k0, want: route{actLocal, 0, ""}},
		{name: "read at preparing slave", nodes: two, self: "h:3", read: true, key: k0, draw: 1, want: route{actForward, 0, "h:2"}},
		{name: "read at slave with balance 0", nodes: two, self: "h:5", read: true, key: k1, want: route{actForward, 1, "h:4"}},
		{name: "read first of list", nodes: two, self: "h:6", read: true, key: k0, draw: 4, want: route{actForward, 0, "h:1"}},
		{name: "read second of list", nodes: two, self: "h:6", read: true, key: k0, draw: 5, want: route{actForward, 0, "h:2"}},
		{name: "read tried one", nodes: two, self: "h:6", read: true, key: k0, avoid: []string{"h:1"}, want: route{actForward, 0, "h:2"}},
		{name: "read tried all", nodes: two, self: "h:6", read: true, key: k0, avoid: []string{"h:1", "h:2"}, want: route{actWait, 0, ""}},
		{name: "read tried own database", nodes: two, self: "h:2", read: true, key: k0, avoid: []string{"h:2"}, want: route{actForward, 0, "h:1"}},
		{name: "read not back to where it came from", nodes: two, self: "h:6", read: true, key: k0, via: []string{"h:2"}, want: route{actForward, 0, "h:1"}},
		{name: "read seen before", nodes: two, self: "h:6", read: true, key: k0, via: []string{"h:6"}, want: route{actMiss, 0, ""}},
		{name: "read without master", nodes: headless, self: "h:6", read: true, key: k0, want: route{actForward, 0, "h:2"}},
		{name: "read of lost partition", nodes: headless, self: "h:6", read: true, key: k1, want: route{actMiss, 1, ""}},
		{name: "read without partitions", self: "h:6", read: true, key: k0, want: route{actMiss, -1, ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := testTable(t, tt.self, tt.nodes...)
			var got route
			if tt.read {
				got = table.routeRead([]byte(tt.key), tt.via, tt.avoid, tt.draw)
			} else {
				got = table.routeWrite([]byte(tt.key), tt.via)
			}
			if got != tt.want {
				t.Errorf("route %+v, want %+v", got, tt.want)
			}
		})
	}
}
