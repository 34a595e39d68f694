package core

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

// plan prints what a spec would bring about, and checks that asking changes nothing
// and is answered the same again.
func (w *scenario) plan(spec Spec) {
	w.t.Helper()
	before, err := json.Marshal(w.state)
	if err != nil {
		w.t.Fatal(err)
	}
	p := MakePlan(w.state, spec)
	if after, err := json.Marshal(w.state); err != nil || string(after) != string(before) {
		w.t.Fatalf("the state was changed by a plan: %v\n%s\n%s", err, before, after)
	}
	if again := MakePlan(w.state, spec); !reflect.DeepEqual(p, again) {
		w.t.Fatalf("two plans of one state differ:\n%+v\n%+v", p, again)
	}
	for _, c := range p.Changes {
		what := c.Node
		switch c.Kind {
		case ChangeHandover, ChangePartition:
			what = fmt.Sprint("p", c.Partition)
		case ChangeOption:
			what = c.Option
		case ChangeNodes:
			what = "of the workload"
		}
		w.printf("  %s %s: %s -> %s (%s)", c.Kind, what, cmp.Or(c.Old, "none"), cmp.Or(c.New, "none"), c.Reason)
	}
	for _, r := range p.Refusals {
		w.printf("  refused %s: %s", r.Reason, r.Message)
	}
	if !p.Settled {
		w.printf("  not settled")
	}
	w.printf("  then %s, %d of %d nodes", p.Status.Phase, p.Status.NodesReady, p.Status.NodesWanted)
}

func TestPlanOfAStateFromAFile(t *testing.T) {
	w := newScenario(t)
	w.quiet = true
	for _, l := range []string{"spec partitions=1 replicas=2", "members 2 f-0.s:1/x f-1.s:1/y", "join f-0.s:1", "join f-1.s:1", "state f-1.s:1 active 1/1"} {
		w.line(l)
	}
	spec := w.state.Spec
	spec.Replicas, spec.Config = 3, "a = 1\n# comment\nb = 2\n"
	// Nothing but the durable state is known: no pods, no configuration, no time.
	p := MakePlan(New(w.state.Saved), spec)
	want := []Change{
		{Kind: ChangeNodes, Partition: -1, Old: "2", New: "3", Reason: ReasonScaling},
		{Kind: ChangeOption, Partition: -1, Option: "a", New: "1", Reason: ReasonApplying},
		{Kind: ChangeOption, Partition: -1, Option: "b", New: "2", Reason: ReasonApplying},
		{Kind: ChangeJoin, Node: "f-2.s:1", Partition: -1, New: "proxy/active/p-1/b0", Reason: ReasonAdded},
		{Kind: ChangeDuty, Node: "f-2.s:1", Partition: 0, Old: "proxy/active/p-1/b0", New: "slave/prepare/p0/b1", Reason: ReasonReplica},
		{Kind: ChangeDuty, Node: "f-2.s:1", Partition: 0, Old: "slave/prepare/p0/b1", New: "slave/active/p0/b1", Reason: ReasonInSync},
	}
	if !reflect.DeepEqual(p.Changes, want) || !p.Settled || len(p.Refusals) > 0 {
		t.Errorf("plan:\n%+v\nwant\n%+v", p, want)
	}
	if p.Status.Phase != PhaseRunning || p.Status.NodesReady != 3 {
		t.Errorf("ends as %+v", p.Status)
	}
}

func TestOptionChanges(t *testing.T) {
	got := optionChanges("# x\na = 1\nb=2\ngone = 3\n", "a = 1\n\nb = 20\n# c = 1\nnew = x = y\n")
	want := []Change{
		{Kind: ChangeOption, Partition: -1, Option: "b", Old: "2", New: "20", Reason: ReasonApplying},
		{Kind: ChangeOption, Partition: -1, Option: "new", New: "x = y", Reason: ReasonApplying},
		{Kind: ChangeOption, Partition: -1, Option: "gone", Old: "3", Reason: ReasonApplying},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestMembersAreGuessedByName(t *testing.T) {
	durable := func(keys ...string) Durable {
		var d Durable
		for _, k := range keys {
			name, port, err := topology.SplitKey(k)
			if err != nil {
				t.Fatal(err)
			}
			d.Nodes = append(d.Nodes, Node{Name: name, Port: port, State: topology.Active})
		}
		return d
	}
	for _, tt := range []struct {
		keys []string
		want int // members, -1 for not known
	}{
		{[]string{"flare-0.nodes.ns.svc:12121", "flare-1.nodes.ns.svc:12121"}, 2},
		{[]string{"flare-0:1", "flare-2:1"}, -1},
		{[]string{"flare-0:1", "other-1:1"}, -1},
		{[]string{"127.0.0.1:1", "127.0.0.1:2"}, -1},
		{[]string{"host-01:1"}, -1},
		{nil, -1},
	} {
		m := membersOf(durable(tt.keys...))
		if got := len(m.List); m.Known != (tt.want >= 0) || m.Known && got != tt.want {
			t.Errorf("%v: %+v, want %d", tt.keys, m, tt.want)
		}
	}
}
