package core

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/flarekv/flare/proto/topology"
)

// TestScenarios runs the transcripts in testdata. Each line of a block is one
// input; what it brings about is printed below it. Every step is checked against
// all invariants, and the state against its JSON form.
//
//	spec partitions=2 replicas=2 [generation=1] [maxdown=50 (percent, default 100)] [zoneloss=hold]
//	    [grace=10 (seconds, default 10)] [paused=true] [mininsync=2]
//	tick 200                           milliseconds that pass
//	alive 60000                        the same, with a report of each agent a second
//	add a:1                            and hello, role, state, behind, remove, shutdown; from=address
//	                                   behind a command tells where it comes from
//	handover a:1 b:1 e/s [1000]        by a master, with the epoch, the target's grant, and
//	                                   when it stopped to write (ms of the node's clock)
//	move a:1 [b:1]                     an operator has a master told to hand over
//	force a:1 [partition] [allow_data_loss], pause WHY, resume, override SECONDS [WHY]
//	join a:1 [instance] [held e/i]     add, hello, ping
//	agent a:1 key=value ...            instance, alive, lsn, data, map, role, part, zone, serving, lease
//	                                   (epoch), token (ms of the node's clock), by (the agent's start), from,
//	                                   filled (map version), yielded (epoch), done (order kind[=reason])
//	agent-lost a:1
//	ping a:1 ok|refused|timeout|bad [times]
//	members 4 a:1 b:1/zone c:1/-gone d:1/-terminating e:1/-draining f:1@address
//	persist auto|fail|hold|ok          what becomes of Persist effects
//	restart [lost]                     the controller's process ends, another takes over
//	map, status, leases                what others see, and who may write for how long
//	plan partitions=3 replicas=2       what that spec would bring about
//
// Lines about cluster replication: see replicationLine.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		w := newScenario(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			w.t, w.out = t, &strings.Builder{}
			for line := range strings.Lines(d.Input) {
				if line = strings.TrimSpace(line); line != "" {
					w.line(line)
				}
			}
			return w.out.String()
		})
	})
}

type scenario struct {
	t       *testing.T
	out     *strings.Builder
	state   State
	now     int64
	nextID  uint64
	persist string // auto, fail or hold
	held    *Persist
	quiet   bool
	orders  map[string]uint64 // last order by node and kind
}

func newScenario(t *testing.T) *scenario {
	w := &scenario{t: t, now: 1_000_000, persist: "auto", out: &strings.Builder{}, orders: map[string]uint64{}}
	w.state = New(Durable{})
	w.input(Tick{Now: w.now})
	return w
}

func (w *scenario) printf(format string, args ...any) {
	if !w.quiet {
		fmt.Fprintf(w.out, format+"\n", args...)
	}
}

// input feeds one input and carries out its effects as a shell would.
func (w *scenario) input(in Input) {
	w.t.Helper()
	next, effects, err := Check(w.state, in)
	if err != nil {
		w.t.Fatal(err)
	}
	w.state = next
	encodes(w.t, next)
	for _, e := range effects {
		switch e := e.(type) {
		case Decision:
			w.printf("  %s: %s -> %s (%s) v%d", e.Node, e.Old, e.New, e.Reason, e.Version)
		case Event:
			w.printf("  event %s: %s", e.Reason, e.Message)
		case Reply:
			switch {
			case e.Err != "":
				w.printf("  reply: SERVER_ERROR %s", e.Err)
			case e.Nodes != nil:
				w.printf("  reply: %d nodes", len(e.Nodes))
			default:
				w.printf("  reply: OK")
			}
		case Broadcast:
			w.printf("  broadcast v%d%s%s", e.Update.Map.Version, list(" prior", e.Update.Prior), list(" except", e.Update.Except))
		case GrantLease:
			w.printf("  lease for %s (%s) of partition %d in epoch %d: %d ms from %d", e.Key, e.Instance, e.Partition, e.Epoch, e.TTL, e.Token/1e6)
		case OrderNode:
			w.printf("  order %s %s%s", e.Key, e.Kind, list(" to", strings.Fields(e.Target)))
			w.orders[e.Key+" "+string(e.Kind)] = e.ID
		case ScaleTo:
			w.printf("  scale to %d", e.Nodes)
			w.input(Done{Request: RequestScale, Seq: e.Seq})
		case CheckTarget:
			w.printf("  look at %s", e.Target)
		case WriteConfig:
			w.printf("  config generation %d%s", e.Generation, list(" with", strings.Fields(strings.ReplaceAll(strings.TrimPrefix(e.Text, "c"), " = ", "="))))
			w.input(Done{Request: RequestConfig, Seq: e.Seq})
		case LabelNodes:
			w.input(Done{Request: RequestLabels, Seq: e.Seq})
		case WriteStatus:
			w.input(Done{Request: RequestStatus, Seq: e.Seq})
		case Persist:
			switch w.persist {
			case "auto":
				w.input(Persisted{Seq: e.Durable.Seq})
			case "fail":
				w.input(Persisted{Seq: e.Durable.Seq, Err: "disk full"})
			default:
				w.printf("  persist seq %d is under way", e.Durable.Seq)
				w.held = &e
			}
		}
	}
}

func list(name string, keys []string) string {
	if len(keys) == 0 {
		return ""
	}
	return name + " " + strings.Join(keys, ",")
}

// encodes checks that a state survives JSON.
func encodes(t *testing.T, s State) {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back State
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(back)
	if err != nil || string(again) != string(b) {
		t.Fatalf("state changes when it is encoded: %v\n%s\n%s", err, b, again)
	}
}

func (w *scenario) line(line string) {
	w.printf("%s", line)
	f := strings.Fields(line)
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	switch f[0] {
	case "spec", "plan":
		spec := Spec{Known: true, Generation: w.state.Spec.Generation + 1, Meta: topology.DefaultMeta(), Config: "c",
			OrphanPurge: OrphanPurge{Enabled: true, Delay: 60_000}}
		spec.Failover.Grace = 10_000
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			switch k {
			case "zoneloss":
				spec.Failover.HoldZone = v == "hold"
				continue
			case "paused":
				spec.Failover.Paused = v == "true"
				continue
			}
			n, err := strconv.Atoi(v)
			if err != nil {
				w.t.Fatal(err)
			}
			switch k {
			case "mininsync":
				spec.MinInSync = n
			case "maxdown":
				spec.Failover.MinUp = (100 - n) * Million / 100
			case "grace":
				spec.Failover.Grace = int64(n) * 1000
			case "partitions":
				spec.Partitions = n
			case "replicas":
				spec.Replicas = n
			case "generation":
				spec.Generation = int64(n)
			case "purge":
				spec.OrphanPurge.Enabled = n != 0
			}
		}
		if f[0] == "plan" {
			w.plan(spec)
			return
		}
		w.input(SpecChanged{Spec: spec})
	case "tick":
		ms := w.number(arg(1))
		for ms > 0 {
			step := min(ms, 200)
			w.now += int64(step)
			ms -= step
			w.input(Tick{Now: w.now})
		}
	case "alive":
		for ms := w.number(arg(1)); ms > 0; ms -= 1000 {
			w.now += 1000
			w.input(Tick{Now: w.now})
			for _, o := range w.state.Seen {
				if o.Agent {
					w.input(o.Report)
				}
			}
		}
	case "join":
		w.join(f)
	case "agent":
		w.agent(f)
	case "agent-lost":
		w.input(AgentLost{Key: f[1]})
	case "ping":
		for range max(1, w.number(arg(3))) {
			w.input(Pinged{Key: f[1], Outcome: PingOutcome(f[2])})
		}
	case "pushed":
		w.input(Pushed{Key: f[1], Outcome: PingBad, NodeVersion: uint64(w.number(f[2]))})
	case "members":
		m := Members{Known: true, Count: w.number(f[1])}
		for i, spec := range f[2:] {
			key, note, _ := strings.Cut(spec, "/")
			key, address, _ := strings.Cut(key, "@")
			zone, state, _ := strings.Cut(note, "-")
			m.List = append(m.List, Member{
				Key: key, Address: address, Ordinal: i, Exists: state != "gone", Terminating: state == "terminating", Draining: state == "draining", Zone: zone,
			})
		}
		w.input(MembersChanged{Members: m})
	case "persist":
		if f[1] == "ok" {
			seq := w.held.Durable.Seq
			w.persist, w.held = "auto", nil
			w.input(Persisted{Seq: seq})
			return
		}
		w.persist = f[1]
	case "restart":
		d := w.state.Saved
		if arg(1) == "lost" {
			d = Durable{}
		}
		spec, members := w.state.Spec, w.state.Members
		w.state = New(d)
		w.held = nil
		w.now += 1000
		w.input(Tick{Now: w.now})
		if spec.Known {
			w.input(SpecChanged{Spec: spec})
		}
		if members.Known {
			w.input(MembersChanged{Members: members})
		}
	case "map":
		m := w.state.Saved.Map()
		w.printf("  version %d", m.Version)
		for i, n := range m.Nodes {
			w.printf("  %s %v/%v/p%d/b%d epoch=%d %s", n.Key(), n.Role, n.State, n.Partition, n.Balance, n.Epoch, w.state.Saved.Nodes[i].DownReason)
		}
	case "leases":
		for _, l := range w.state.Leases {
			w.printf("  %s (%s) partition %d epoch %d for %d ms%s", l.Key, l.Instance, l.Partition, l.Epoch, l.Until-w.state.Now,
				list(" waiting", strings.Fields(l.Waiting)))
		}
	case "status":
		st := StatusOf(w.state)
		w.printf("  %s %s: %s", st.Phase, st.Reason, st.Message)
		w.printf("  nodes %d/%d masters %d config %d %s", st.NodesReady, st.NodesWanted, st.MastersUp, st.ConfigNodes, st.ConfigReason)
		for _, c := range st.Conditions {
			w.printf("  %s=%t %s: %s", c.Type, c.True, c.Reason, c.Message)
		}
	case "quiet":
		before := w.quiet
		w.quiet = true
		w.line(strings.TrimPrefix(line, "quiet "))
		w.quiet = before
	default:
		if !w.replicationLine(f) {
			w.command(f)
		}
	}
}

func (w *scenario) number(s string) int {
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *scenario) join(f []string) {
	key, instance, hello := f[1], f[1][:1]+"1", "-1"
	lsn := "0/0"
	if len(f) > 2 {
		instance = f[2]
	}
	if len(f) > 4 {
		hello, lsn = f[3], f[4]
	}
	w.command([]string{"add", key})
	w.command([]string{"hello", key, instance, hello, lsn})
	w.input(Pinged{Key: key, Outcome: PingOK})
}

func (w *scenario) lsn(s string) topology.LSN {
	l, err := topology.ParseLSN(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// agent sends a report; what is not given stays as it was reported last.
func (w *scenario) agent(f []string) {
	r := AgentReport{Key: f[1], Alive: true, Serving: true, Instance: f[1][:1] + "1", Role: topology.Proxy, Partition: -1, DataPartition: -1}
	if o, ok := w.state.SeenOf(f[1]); ok && o.Report.Key != "" {
		r = o.Report
	}
	for _, kv := range f[2:] {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "instance":
			r.Instance = v
		case "alive":
			r.Alive = v == "true"
		case "serving":
			r.Serving = v == "true"
		case "lsn":
			r.LSN = w.lsn(v)
		case "data":
			r.DataPartition = w.number(v)
		case "map":
			r.MapVersion = uint64(w.number(v))
		case "part":
			r.Partition = w.number(v)
		case "role":
			r.Role, _ = topology.ParseRole(v)
		case "state":
			r.State, _ = topology.ParseState(v)
		case "zone":
			r.Zone = v
		case "lease":
			r.LeaseEpoch = uint64(w.number(v))
		case "token":
			r.LeaseToken = uint64(w.number(v)) * 1e6
		case "filled":
			r.Filled = uint64(w.number(v))
		case "yielded":
			r.Yielded = uint64(w.number(v))
		case "done":
			kind, reason, _ := strings.Cut(v, ":")
			o := OrderReport{ID: w.orders[r.Key+" "+kind], Reason: reason}
			if kind == string(OrderPurge) {
				o.Count = 7
				r.Purge = o
			} else {
				r.Handover = o
			}
		case "by":
			r.AgentStarted = int64(w.number(v))
		case "from":
			r.Peer = v
		case "config":
			r.ConfigGeneration = int64(w.number(v))
		case "rejected":
			r.ConfigRejected, r.ConfigMessage = v != "", v
		default:
			w.t.Fatalf("agent: %q", kv)
		}
	}
	w.input(r)
}

func (w *scenario) command(f []string) {
	w.nextID++
	switch verb := Verb(f[0]); verb {
	case VerbPause, VerbResume:
		w.input(Command{ID: w.nextID, Verb: verb, Note: strings.Join(f[1:], " ")})
		return
	case VerbOverride:
		w.input(Command{ID: w.nextID, Verb: verb, Seconds: w.number(f[1]), Note: strings.Join(f[2:], " ")})
		return
	}
	name, port, err := topology.SplitKey(f[1])
	if err != nil {
		w.t.Fatal(err)
	}
	c := Command{ID: w.nextID, Verb: Verb(f[0]), Name: name, Port: port, Balance: -1, Partition: -1}
	if from, ok := strings.CutPrefix(f[len(f)-1], "from="); ok {
		c.Peer, f = from, f[:len(f)-1]
	}
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	if last := len(f) - 1; f[last] == "allow_data_loss" {
		c.AllowDataLoss, f = true, f[:last]
	}
	switch c.Verb {
	case VerbMove:
		if arg(2) != "" {
			c.Target, c.TargetPort, err = topology.SplitKey(arg(2))
		}
	case VerbForce:
		if arg(2) != "" {
			c.Partition = w.number(arg(2))
		}
	case VerbHello:
		c.Hello = Hello{Instance: arg(2), Partition: -1}
		if arg(3) != "" {
			c.Hello.Partition = w.number(arg(3))
			c.Hello.LSN = w.lsn(arg(4))
		}
	case VerbRole:
		c.Role, err = topology.ParseRole(arg(2))
		if arg(3) != "" {
			c.Balance = w.number(arg(3))
		}
		if arg(4) != "" {
			c.Partition = w.number(arg(4))
		}
	case VerbState:
		c.State, err = topology.ParseState(arg(2))
		if arg(3) != "" {
			c.HasSession = true
			l := w.lsn(arg(3))
			c.Epoch, c.Session = l.Epoch, l.Index
			if arg(4) != "" {
				c.Partition = w.number(arg(4))
			}
		}
	case VerbBehind:
		l := w.lsn(arg(2))
		c.Epoch, c.Session, c.HasSession = l.Epoch, l.Index, true
		if arg(3) != "" {
			c.Partition = w.number(arg(3))
		}
	case VerbHandover:
		c.Target, c.TargetPort, err = topology.SplitKey(arg(2))
		l := w.lsn(arg(3))
		c.Epoch, c.Session, c.HasSession = l.Epoch, l.Index, true
		c.Paused = math.MaxUint64
		if arg(4) != "" {
			c.Paused = uint64(w.number(arg(4))) * 1e6
		}
	case VerbAdd, VerbRemove, VerbShutdown:
	default:
		w.t.Fatalf("unknown line %q", strings.Join(f, " "))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.input(c)
}

// TestStepIsDeterministic runs the same inputs twice.
func TestStepIsDeterministic(t *testing.T) {
	run := func() State {
		w := newScenario(t)
		for _, l := range []string{"spec partitions=3 replicas=2", "members 6 a:1/x b:1/y c:1/z d:1/x e:1/y f:1/z",
			"join a:1", "join b:1", "join c:1", "join d:1", "join e:1", "join f:1", "state d:1 active 1/1", "tick 11000", "ping a:1 refused 3", "tick 200"} {
			w.line(l)
		}
		return w.state
	}
	if a, b := run(), run(); !reflect.DeepEqual(a, b) {
		t.Errorf("two runs differ:\n%+v\n%+v", a, b)
	}
}
