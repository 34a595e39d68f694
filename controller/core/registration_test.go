package core

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flarekv/flare/proto/topology"
)

// register lets a node register from somewhere and returns the refusal.
func (w *scenario) register(name, from string) (refusal string) {
	w.nextID++
	queue := []Input{Command{ID: w.nextID, Verb: VerbAdd, Name: name, Port: 1, Peer: from}}
	for len(queue) > 0 {
		effects, _, _ := Advance(&w.state, queue[0], false, false)
		queue = queue[1:]
		for _, e := range effects {
			switch e := e.(type) {
			case Persist:
				queue = append(queue, Persisted{Seq: e.Durable.Seq})
			case Reply:
				refusal = e.Err
			}
		}
	}
	return refusal
}

// TestFloodOfRegistrations lets one address make up names: soon it is refused, and
// others are not.
func TestFloodOfRegistrations(t *testing.T) {
	w := newScenario(t)
	w.quiet = true
	w.line("spec partitions=1 replicas=2")
	taken := 0
	for i := range 500 {
		switch got := w.register(fmt.Sprint("lie", i), "10.0.0.9"); got {
		case "":
			taken++
		case failAdd + ": " + RefuseUnproven:
		default:
			t.Fatalf("registration %d: %q", i, got)
		}
	}
	if want := maxUnproven + 2; taken != want {
		t.Errorf("%d made-up names were taken, want %d", taken, want)
	}
	if got := w.register("honest", "10.0.0.1"); got != "" {
		t.Errorf("another address: %q", got)
	}
	// From many addresses at once it ends too.
	for i := range 20_000 {
		if got := w.register(fmt.Sprint("more", i), fmt.Sprint("10.0.1.", i%100)); got == failAdd+": "+RefuseMapFull {
			break
		} else if got != "" || i == 19_999 {
			t.Fatalf("registration %d: %q", i, got)
		}
	}
	// A node of the workload is taken nevertheless.
	w.line("members 2 pod:1 pad:1")
	if got := w.register("pod", "10.0.0.3"); got != "" {
		t.Errorf("a pod: %q", got)
	}
	if got := w.register("b\xffd", "10.0.0.1"); got != failAdd+": "+RefuseBadName {
		t.Errorf("a name that cannot be saved: %q", got)
	}
}

// TestLongNamesFillTheMap registers pods whose names are as long as can be: the map is
// full before its state is too long for a ConfigMap.
func TestLongNamesFillTheMap(t *testing.T) {
	w := newScenario(t)
	w.quiet = true
	w.line("spec partitions=500 replicas=2")
	var members []string
	name := func(i int) string { return strings.Repeat("<", 1000) + fmt.Sprint(i) }
	for i := range 400 {
		members = append(members, name(i)+":1")
	}
	w.line("members 1600 " + strings.Join(members, " "))
	taken := 0
	for i := range 400 {
		if got := w.register(name(i), ""); got == "" {
			taken++
		} else if got != failAdd+": "+RefuseMapFull {
			t.Fatalf("registration %d: %q", i, got)
		}
	}
	b, err := json.Marshal(w.state.Durable)
	if err != nil {
		t.Fatal(err)
	}
	if taken < 50 || taken == 400 || len(b) > maxStateBytes {
		t.Errorf("%d taken, %d bytes", taken, len(b))
	}
}

// TestTooManyNodesWanted refuses a cluster whose map could not be saved.
func TestTooManyNodesWanted(t *testing.T) {
	w := newScenario(t)
	w.quiet = true
	w.line(fmt.Sprintf("spec partitions=%d replicas=2", maxWanted/2+1))
	if w.state.Refusal.Reason != ReasonSpecInvalid {
		t.Errorf("refusal %+v", w.state.Refusal)
	}
}

// TestNodeSize compares what a node is taken to need with what it needs.
func TestNodeSize(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.Uint64().Draw(t, "number")
		grant := Grant{number, number}
		lsn := topology.LSN{Epoch: number, Index: number}
		hex := rapid.StringMatching(`[0-9a-f]{0,16}`)
		n := Node{
			Name: rapid.StringN(1, 300, 1023).Draw(t, "name"), Port: math.MinInt32,
			Role: topology.Master, State: topology.Prepare, Partition: math.MinInt32, Balance: math.MinInt32, ThreadType: math.MaxInt32,
			Extended: true, Instance: hex.Draw(t, "instance"), Held: math.MinInt32, HeldLSN: lsn,
			History: rapid.StringMatching(`[0-9a-f]{0,32}`).Draw(t, "history"), Home: math.MinInt32,
			Floor: grant, Granted: grant, Former: hex.Draw(t, "former"), Gone: true, Unproven: true, DownReason: ReasonPodTerminating,
		}
		b, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > n.size() {
			t.Errorf("%d bytes, taken for %d: %s", len(b), n.size(), b)
		}
		if n.size() > nodeSize+jsonLen(n.Name)+64 {
			t.Errorf("taken for %d bytes with a name of %d", n.size(), len(n.Name))
		}
	})
	// As many as may be wanted fit, with names as Kubernetes makes them.
	n := Node{Name: "flare-node-1199.flare-nodes.some-namespace.svc.cluster.local"}
	if got := stateSize + maxWanted*n.size(); got > maxStateBytes {
		t.Errorf("%d nodes take up to %d bytes", maxWanted, got)
	}
}

// TestAdvance takes the same steps in place as Step does on copies.
func TestAdvance(t *testing.T) {
	var inputs []Input
	w := newScenario(t)
	w.quiet = true
	inputs = append(inputs, Tick{Now: w.now})
	record := func(in Input) {
		inputs = append(inputs, in)
	}
	record(SpecChanged{Spec: Spec{Generation: 1, Partitions: 1, Replicas: 2, Meta: topology.DefaultMeta()}})
	for i, name := range []string{"a", "b"} {
		record(Command{ID: uint64(2 * i), Verb: VerbAdd, Name: name, Port: 1})
		record(Command{ID: uint64(2*i + 1), Verb: VerbHello, Name: name, Port: 1, Hello: Hello{Instance: name, Partition: -1}})
		record(Pinged{Key: name + ":1", Outcome: PingOK})
		for token := range uint64(3) {
			record(AgentReport{Key: name + ":1", Alive: true, Instance: name, Serving: true, Partition: 0, DataPartition: 0, LeaseEpoch: 1, LeaseToken: token * 1e9, LSN: topology.LSN{Epoch: 1, Index: token}})
			record(Tick{Now: w.now + int64(i)*1000 + int64(token)*300})
		}
		record(Pinged{Key: name + ":1", Outcome: PingOK})
	}
	pure, owned := New(Durable{}), New(Durable{})
	quiets := 0
	for len(inputs) > 0 {
		in := inputs[0]
		inputs = inputs[1:]
		next, want := Step(pure, in)
		got, judged, _ := Advance(&owned, in, false, false)
		if !judged {
			quiets++
		}
		if a, b := fmt.Sprintf("%+v", next), fmt.Sprintf("%+v", owned); a != b {
			t.Fatalf("%s:\n%s\n%s", Describe(in), a, b)
		}
		if a, b := fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got); a != b {
			t.Fatalf("%s brings about\n%s\n%s", Describe(in), a, b)
		}
		pure = next
		for _, e := range got {
			if p, ok := e.(Persist); ok {
				inputs = append([]Input{Persisted{Seq: p.Durable.Seq}}, inputs...)
			}
		}
	}
	if quiets < 3 {
		t.Errorf("%d steps were quiet", quiets)
	}
}

// TestAdvanceUnderLoad hands over more than can be judged one by one: what was noted
// meanwhile, a death and a return, is judged with what comes last, or with a tick.
func TestAdvanceUnderLoad(t *testing.T) {
	w := newScenario(t)
	w.quiet = true
	for _, l := range []string{"spec partitions=1 replicas=2", "join a:1", "join b:1", "agent a:1", "agent b:1", "tick 200", "state b:1 active 1/1"} {
		w.line(l)
	}
	s := w.state
	dead, _ := s.SeenOf("a:1")
	dead.Report.Alive = false
	alive, _ := s.SeenOf("b:1")
	for _, last := range []Input{alive.Report, Tick{Now: s.Now + 200}} {
		s := s.clone()
		_, judged, owed := Advance(&s, dead.Report, true, false)
		if judged || !owed || !s.Durable.node("a:1").up() {
			t.Fatalf("a death while there is more: judged %t, owed %t", judged, owed)
		}
		if _, judged, owed = Advance(&s, Pinged{Key: "b:1", Outcome: PingOK}, true, owed); judged || !owed {
			t.Fatalf("what follows: judged %t, owed %t", judged, owed)
		}
		if _, judged, owed = Advance(&s, last, false, owed); !judged || owed {
			t.Fatalf("the last, %s: judged %t, owed %t", Describe(last), judged, owed)
		}
		if n := s.Durable.node("b:1"); n.Role != topology.Master || s.Durable.node("a:1").up() {
			t.Errorf("%s: b:1 is %s", Describe(last), n.duty())
		}
	}
}
