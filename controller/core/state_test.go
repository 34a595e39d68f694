package core

import (
	"strings"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

func TestValidate(t *testing.T) {
	good := func() Durable {
		w := newScenario(t)
		for _, l := range []string{"spec partitions=1 replicas=2", "join a:1", "join b:1"} {
			w.line(l)
		}
		return w.state.Saved.clone()
	}
	for _, tt := range []struct {
		name  string
		spoil func(*Durable)
		want  string
	}{
		{"good", func(*Durable) {}, ""},
		{"format", func(d *Durable) { d.Format = 2 }, "format 2"},
		{"order", func(d *Durable) { d.Nodes[0], d.Nodes[1] = d.Nodes[1], d.Nodes[0] }, "b:1 before a:1"},
		{"thread types", func(d *Durable) { d.Nodes[1].ThreadType = d.Nodes[0].ThreadType }, "thread type 16"},
		{"two masters", func(d *Durable) { d.Nodes[1].Role, d.Nodes[1].State = topology.Master, topology.Active }, "partition 0: a:1 and b:1"},
		{"a duty without partition", func(d *Durable) { d.Nodes[1].Partition = -1 }, "b:1 is slave"},
		{"a partition without master", func(d *Durable) { d.Partitions = append(d.Partitions, Partition{}) }, "partition 1"},
		{"meta", func(d *Durable) { d.Meta.Hint = 0 }, "hint"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := good()
			tt.spoil(&d)
			err := d.Validate()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestGrantOrder(t *testing.T) {
	for _, tt := range []struct {
		g, h Grant
		want bool
	}{
		{Grant{1, 1}, Grant{}, true},
		{Grant{1, 2}, Grant{1, 1}, true},
		{Grant{2, 1}, Grant{1, 9}, true},
		{Grant{1, 1}, Grant{1, 1}, false},
		{Grant{1, 9}, Grant{2, 1}, false},
	} {
		if got := tt.g.After(tt.h); got != tt.want {
			t.Errorf("%v after %v: %t", tt.g, tt.h, got)
		}
	}
}

// TestStatusAfterCutOver: whoever looks at a cluster that another one has taken over from
// is told so, unless something is wrong with it.
func TestStatusAfterCutOver(t *testing.T) {
	d := Durable{Nodes: []Node{{Name: "a", Port: 1, Role: topology.Master, State: topology.Active}}, Partitions: []Partition{{Epoch: 1}}}
	s := State{Durable: d, Saved: d, Spec: Spec{Known: true, Partitions: 1, Replicas: 1}}
	if st := StatusOf(s); st.Reason != ReasonHealthy {
		t.Fatalf("before: %s, %s", st.Reason, st.Message)
	}
	s.Saved.Replication = Replication{Phase: ReplicationCutOver, Target: "t:1"}
	if st := StatusOf(s); st.Reason != ReasonReplicationCutOver || st.Phase != PhaseRunning || st.Message != "t:1 answers the clients" {
		t.Errorf("after: %s, %s", st.Reason, st.Message)
	}
	s.Saved.Nodes[0].State = topology.Down
	if st := StatusOf(s); st.Reason != ReasonMasterDown {
		t.Errorf("its master is down: %s, %s", st.Reason, st.Message)
	}
}
