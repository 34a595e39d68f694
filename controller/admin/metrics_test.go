package admin

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

var update = flag.Bool("update", false, "write the table of metrics in docs/operations.md")

// TestMetricsAreDocumented compares the table in docs/operations.md with what the
// controller describes.
func TestMetricsAreDocumented(t *testing.T) {
	const path, begin, end = "../../docs/operations.md", "<!-- controller metrics: go test ./controller/admin -run MetricsAreDocumented -update -->\n", "<!-- end of controller metrics -->"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	was, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s lacks the marks of the table", path)
	}
	parts := regexp.MustCompile(`^Desc\{fqName: "(\w+)", help: "(.*?)"(?:, unit: ".*?")?, constLabels: \{\}, variableLabels: \{(.*)\}\}$`)
	var rows []string
	for _, c := range newMetrics(nil).collectors() {
		described := make(chan *prometheus.Desc, 100)
		c.Describe(described)
		close(described)
		for d := range described {
			m := parts.FindStringSubmatch(d.String())
			if m == nil {
				t.Fatalf("%s is not understood", d)
			}
			labels := ""
			if m[3] != "" {
				labels = "`" + strings.ReplaceAll(m[3], ",", "`, `") + "`"
			}
			rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |\n", m[1], labels, m[2]))
		}
	}
	slices.Sort(rows)
	want := "| metric | labels | meaning |\n|---|---|---|\n" + strings.Join(rows, "")
	if want == was {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the controller describes; write it anew with go test ./controller/admin -run MetricsAreDocumented -update", path)
	}
	if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// metered is a core whose steps are counted.
type metered struct {
	t     *testing.T
	m     *Metrics
	state core.State
}

func (x *metered) feed(in core.Input) {
	for queue := []core.Input{in}; len(queue) > 0; queue = queue[1:] {
		var effects []core.Effect
		x.state, effects = core.Step(x.state, queue[0])
		x.m.Trace(x.state, queue[0], effects)
		for _, e := range effects {
			if p, ok := e.(core.Persist); ok {
				queue = append(queue, core.Persisted{Seq: p.Durable.Seq})
			}
		}
	}
}

// TestMetricsAreWellFormed lets a core form a partition, hand it over, lose its master
// and refuse things, and has Prometheus' linter look at what is shown of that.
func TestMetricsAreWellFormed(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	s, err := New(Config{Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	m := s.Metrics()
	x := &metered{t: t, m: m, state: core.New(core.Durable{})}
	x.feed(core.Tick{Now: 1_000_000})
	x.feed(core.SpecChanged{Spec: core.Spec{Generation: 1, Partitions: 1, Replicas: 2, Meta: topology.DefaultMeta()}})
	id := uint64(0)
	command := func(c core.Command) {
		id++
		c.ID, c.Port = id, 1
		x.feed(c)
	}
	for _, name := range []string{"a", "b"} {
		command(core.Command{Verb: core.VerbAdd, Name: name})
		command(core.Command{Verb: core.VerbHello, Name: name, Hello: core.Hello{Instance: name + "1", Partition: -1}})
		x.feed(core.Pinged{Key: name + ":1", Outcome: core.PingOK})
	}
	command(core.Command{Verb: core.VerbState, Name: "b", State: topology.Active, HasSession: true, Epoch: 1, Session: 1})
	lease := func(name string, epoch uint64, index uint64) {
		x.feed(core.AgentReport{Now: x.state.Now, Key: name + ":1", Alive: true, Serving: true, Instance: name + "1", Role: topology.Master,
			Partition: 0, DataPartition: 0, LSN: topology.LSN{Epoch: epoch, Index: index}, LeaseToken: 1, LeaseEpoch: epoch})
	}
	lease("a", 1, 5)
	command(core.Command{Verb: core.VerbHandover, Name: "a", Target: "b", TargetPort: 1, HasSession: true, Epoch: 1, Session: 1, Paused: 1 << 60})
	lease("b", 2, 9)
	command(core.Command{Verb: core.VerbState, Name: "a", State: topology.Active, HasSession: true, Epoch: 2, Session: 1})
	command(core.Command{Verb: core.VerbState, Name: "nobody", State: topology.Ready})
	x.feed(core.AgentReport{Now: x.state.Now, Key: "b:1", Instance: "b1"}) // its process has ended
	lease("a", 3, 9)
	x.feed(core.SpecChanged{Spec: core.Spec{Generation: 2, Partitions: 0, Replicas: 2, Meta: topology.DefaultMeta()}})
	x.feed(core.Done{Request: core.RequestStatus, Err: "no"})
	x.feed(core.Persisted{Err: "no"})
	m.APIRetried("overload")
	m.Refused("stale_view")
	defer s.Lead(newFakeCluster(sample))()

	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, namespace) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	const expected = `
# HELP flare_controller_failovers_total Promotions of a replica because the master was lost.
# TYPE flare_controller_failovers_total counter
flare_controller_failovers_total 1
# HELP flare_controller_handovers_total Partitions that a master handed over to a replica.
# TYPE flare_controller_handovers_total counter
flare_controller_handovers_total 1
# HELP flare_controller_nodes_down Nodes in the node map that are down.
# TYPE flare_controller_nodes_down gauge
flare_controller_nodes_down 1
# HELP flare_controller_partition_lag_batches Write batches by which the replica of the partition that is farthest behind was behind its master when both were last heard of.
# TYPE flare_controller_partition_lag_batches gauge
flare_controller_partition_lag_batches{partition="0"} 9
# HELP flare_controller_refused_total What was asked for or due and not done, by reason.
# TYPE flare_controller_refused_total counter
flare_controller_refused_total{reason="no_such_node"} 1
flare_controller_refused_total{reason="spec_invalid"} 1
flare_controller_refused_total{reason="stale_view"} 1
flare_controller_refused_total{reason="waiting_for_nodes"} 1
`
	m.IndexRefused("bad_arguments")
	m.agentRefusals.WithLabelValues(ReasonAgentOfNoPod).Inc()
	m.StepTook(time.Millisecond, true)
	if err := testutil.GatherAndCompare(registry, strings.NewReader(expected), "flare_controller_failovers_total",
		"flare_controller_handovers_total", "flare_controller_nodes_down", "flare_controller_partition_lag_batches", "flare_controller_refused_total"); err != nil {
		t.Error(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]uint64{}
	for _, f := range families {
		shown[f.GetName()] = f.GetMetric()[0].GetHistogram().GetSampleCount()
	}
	for _, h := range []string{"failover_duration_seconds", "handover_duration_seconds"} {
		if n := shown[namespace+"_"+h]; n != 1 {
			t.Errorf("%s has %d samples, want 1", h, n)
		}
	}
	// Whatever is described is shown.
	for _, c := range m.collectors() {
		described := make(chan *prometheus.Desc, 100)
		c.Describe(described)
		close(described)
		for d := range described {
			name, _, _ := strings.Cut(strings.TrimPrefix(d.String(), `Desc{fqName: "`), `"`)
			if _, ok := shown[name]; !ok {
				t.Errorf("%s is described but not shown", name)
			}
		}
	}
}

// TestFailoverTimeCountsTheWait takes the time that a failover waited for the end of
// a lease for a part of it.
func TestFailoverTimeCountsTheWait(t *testing.T) {
	s, err := New(Config{Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	state := core.New(core.Durable{})
	state.Durable.Partitions = []core.Partition{{Epoch: 4}}
	state.Durable.Nodes = []core.Node{{Name: "b", Port: 1, Role: topology.Master, State: topology.Active}}
	r, now := &reigns{}, time.Unix(1000, 0)
	waiting := state
	waiting.Leases = []core.Lease{{Key: "a:1", Partition: 0, Waiting: core.ReasonSilent}}
	r.step(s.metrics, waiting, nil, now)
	r.step(s.metrics, waiting, nil, now.Add(time.Second))
	promoted := []core.Effect{core.Decision{Reason: core.ReasonFailover, Node: "b:1"}, core.Decision{Reason: core.ReasonSilent, Node: "a:1"}}
	r.step(s.metrics, state, promoted, now.Add(5*time.Second))
	r.step(s.metrics, state, []core.Effect{core.GrantLease{Partition: 0, Epoch: 3}}, now.Add(5100*time.Millisecond))
	r.step(s.metrics, state, []core.Effect{core.GrantLease{Partition: 0, Epoch: 4}}, now.Add(5500*time.Millisecond))
	r.step(s.metrics, state, []core.Effect{core.GrantLease{Partition: 0, Epoch: 4}}, now.Add(6*time.Second))
	var shown dto.Metric
	if err := s.metrics.failoverTime.Write(&shown); err != nil {
		t.Fatal(err)
	}
	if h := shown.GetHistogram(); h.GetSampleCount() != 1 || h.GetSampleSum() != 5.5 {
		t.Errorf("%v: want one of 5.5 s", h)
	}
}
