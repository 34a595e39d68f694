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

// TestTakeOver lets a running controller take over the map of another index server.
func TestTakeOver(t *testing.T) {
	w := newScenario(t)
	w.quiet = true
	take := func(m *Imported) (string, []Effect) {
		t.Helper()
		w.nextID++
		c := Command{ID: w.nextID, Verb: VerbImport, Import: m}
		tried := Try(w.state, c)
		next, effects, err := Check(w.state, c)
		if err != nil {
			t.Fatal(err)
		}
		w.state = next
		for i := 0; i < len(effects); i++ {
			if p, ok := effects[i].(Persist); ok {
				next, more, err := Check(w.state, Persisted{Seq: p.Durable.Seq})
				if err != nil {
					t.Fatal(err)
				}
				w.state, effects = next, append(effects, more...)
			}
		}
		for _, e := range effects {
			if r, ok := e.(Reply); ok {
				if tried.Reply.Err != r.Err {
					t.Errorf("tried: %q, done: %q", tried.Reply.Err, r.Err)
				}
				return r.Err, effects
			}
		}
		t.Fatal("no reply")
		return "", nil
	}
	node := func(name string, role topology.Role, state topology.State, partition, thread int) topology.Node {
		return topology.Node{Name: name, Port: 1, Role: role, State: state, Partition: partition, Balance: 1, ThreadType: thread}
	}
	whole := &Imported{NextThread: 20, Map: topology.NewMap(41, []topology.Node{
		node("a", topology.Master, topology.Active, 0, 16), node("b", topology.Slave, topology.Active, 0, 17), node("c", topology.Master, topology.Down, 1, 18),
	})}
	preparing := &Imported{NextThread: 20, Map: topology.NewMap(41, []topology.Node{
		node("a", topology.Master, topology.Active, 0, 16), node("b", topology.Master, topology.Prepare, 1, 17),
	})}
	for _, tt := range []struct {
		what  string
		lines []string
		in    *Imported
		want  string
	}{
		{"before there is a spec", nil, whole, RefuseNotNow},
		{"nothing", []string{"spec partitions=1 replicas=2"}, nil, RefuseMapIncomplete},
		{"another number of partitions", nil, whole, RefusePartitionsOther},
		{"a partition that is being prepared", []string{"spec partitions=2 replicas=2"}, preparing, RefuseMapIncomplete},
		{"a whole map", nil, whole, ""},
		{"once more", nil, whole, RefuseStateExists},
	} {
		for _, l := range tt.lines {
			w.line(l)
		}
		if got, _ := take(tt.in); got != tt.want {
			t.Fatalf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
	w.quiet = false
	w.out.Reset()
	w.line("ping c:1 ok")
	w.line("map")
	want := `ping c:1 ok
  c:1: master/down/p1/b1 -> master/active/p1/b1 (back) v43
  event node_up: c:1 is back as master of partition 1 in epoch 2
  broadcast v43 prior c:1
map
  version 43
  a:1 master/active/p0/b1 epoch=1 
  b:1 slave/active/p0/b1 epoch=1 
  c:1 master/active/p1/b1 epoch=2 
`
	if got := w.out.String(); got != want {
		t.Errorf("then:\n%s\nwant:\n%s", got, want)
	}
}
