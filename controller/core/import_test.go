package core

import (
	"strings"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

func row(name string, role topology.Role, state topology.State, partition, balance, thread int) topology.Node {
	return topology.Node{Name: name, Port: 1, Role: role, State: state, Partition: partition, Balance: balance, ThreadType: thread}
}

func TestImport(t *testing.T) {
	m := topology.Map{Version: 54, Nodes: []topology.Node{
		row("d", topology.Proxy, topology.Down, -1, 3, 19),
		row("a", topology.Master, topology.Active, 0, 2, 16),
		row("b", topology.Slave, topology.Active, 0, 1, 17),
		row("c", topology.Master, topology.Down, 1, 1, 18),
	}}
	d, err := Import(m, 20, topology.DefaultMeta())
	if err != nil {
		t.Fatal(err)
	}
	if d.Version != 54 || d.NextThread != 20 || len(d.Partitions) != 2 || d.epoch(0) != 1 || d.epoch(1) != 1 {
		t.Errorf("%+v", d)
	}
	var got []string
	for _, n := range d.Nodes {
		got = append(got, n.Name+" "+n.duty())
		if n.Extended || n.Held != n.Partition {
			t.Errorf("%+v", n)
		}
	}
	want := "a master/active/p0/b2, b slave/active/p0/b1, c master/down/p1/b1, d proxy/down/p-1/b0"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("%s, want %s", s, want)
	}
}

// TestImportRefuses: what is not a whole cluster is not taken over.
func TestImportRefuses(t *testing.T) {
	master := row("a", topology.Master, topology.Active, 0, 1, 16)
	for _, c := range []struct {
		want  string
		nodes []topology.Node
	}{
		{"none has number 0", []topology.Node{row("a", topology.Master, topology.Active, 1, 1, 16)}},
		{"partition 1 is being prepared", []topology.Node{master, row("b", topology.Master, topology.Prepare, 1, 1, 17)}},
		{"partition 7, which does not exist", []topology.Node{master, row("b", topology.Slave, topology.Active, 7, 1, 17)}},
		{"two masters", []topology.Node{master, row("b", topology.Master, topology.Active, 0, 1, 17)}},
		{"thread type", []topology.Node{master, row("b", topology.Proxy, topology.Active, -1, 0, 16)}},
	} {
		if _, err := Import(topology.Map{Version: 1, Nodes: c.nodes}, 18, topology.DefaultMeta()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}
