package admin

import (
	"cmp"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/proto/topology"
)

const namespace = "flare_controller"

// Metrics counts what the controller does. Its methods may be called by any
// goroutine.
type Metrics struct {
	failovers     prometheus.Counter
	handovers     prometheus.Counter
	failoverTime  prometheus.Histogram
	handoverTime  prometheus.Histogram
	decisions     *prometheus.CounterVec
	refused       *prometheus.CounterVec
	apiRetries    *prometheus.CounterVec
	broadcasts    prometheus.Counter
	persists      prometheus.Counter
	persistErrors prometheus.Counter
	requestErrors *prometheus.CounterVec
	reconcile     prometheus.Histogram
	view          *viewCollector
	doors

	mu      sync.Mutex
	decided time.Time // when the reconcile that waits for durability began to; zero for none
	reigns  reigns
	refusal core.Refusal // as of the last step
	blocked core.Refusal
}

func newMetrics(s *Server) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	}
	return &Metrics{
		failovers: counter("failovers_total", "Promotions of a replica because the master was lost."),
		handovers: counter("handovers_total", "Partitions that a master handed over to a replica."),
		failoverTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "failover_duration_seconds",
			Help:    "From the moment when a master was taken for lost, or would have been did its lease not last, until its successor has a lease for writes.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 12),
		}),
		handoverTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "handover_duration_seconds",
			Help:    "From the moment when a master had handed over until its successor has a lease for writes.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 12),
		}),
		apiRetries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "api_retries_total",
			Help: "Requests to the Kubernetes API server that were made again, by reason: connection, overload, server, lost_race.",
		}, []string{"reason"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "decisions_total",
			Help: "Changes of a node's duty, by reason.",
		}, []string{"reason"}),
		broadcasts:    counter("broadcasts_total", "Node maps handed out for sending."),
		persists:      counter("persists_total", "Times the node map was made durable."),
		persistErrors: counter("persist_errors_total", "Failed attempts to make the node map durable."),
		requestErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "request_errors_total",
			Help: "Failed requests to the platform, by kind: config, scale, labels, status.",
		}, []string{"request"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "refused_total",
			Help: "What was asked for or due and not done, by reason.",
		}, []string{"reason"}),
		reconcile: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "reconcile_duration_seconds",
			Help:    "From a decision to the moment when it is durable and handed out.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 10),
		}),
		view:  &viewCollector{s: s},
		doors: newDoors(),
	}
}

func (m *Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.failovers, m.handovers, m.failoverTime, m.handoverTime, m.decisions, m.refused, m.apiRetries,
		m.broadcasts, m.persists, m.persistErrors, m.requestErrors, m.reconcile, m.view,
		m.indexRefusals, m.agentRefusals, m.steps,
	}
}

// viewCollector shows what is known at the moment of the scrape. A standby
// shows only that it is one: its view would be nobody's.
type viewCollector struct{ s *Server }

var (
	leaderDesc = prometheus.NewDesc(namespace+"_leader",
		"1 on the controller that leads, 0 on a standby.", nil, nil)
	mapVersionDesc = prometheus.NewDesc(namespace+"_map_version",
		"Version of the node map.", nil, nil)
	nodesDesc = prometheus.NewDesc(namespace+"_nodes",
		"Nodes in the node map.", []string{"role", "state"}, nil)
	downDesc = prometheus.NewDesc(namespace+"_nodes_down",
		"Nodes in the node map that are down.", nil, nil)
	wantedDesc = prometheus.NewDesc(namespace+"_nodes_wanted",
		"Nodes asked for.", nil, nil)
	mastersDesc = prometheus.NewDesc(namespace+"_partition_master_up",
		"1 while the partition has a master that is up.", []string{"partition"}, nil)
	inSyncDesc = prometheus.NewDesc(namespace+"_partition_in_sync_replicas",
		"Replicas of the partition that are in sync.", []string{"partition"}, nil)
	epochDesc = prometheus.NewDesc(namespace+"_partition_epoch",
		"Epoch of the partition's master.", []string{"partition"}, nil)
	lagDesc = prometheus.NewDesc(namespace+"_partition_lag_batches",
		"Write batches by which the replica of the partition that is farthest behind was behind its master when both were last heard of.", []string{"partition"}, nil)
	agentsDesc = prometheus.NewDesc(namespace+"_agents_connected",
		"Agents whose link is up.", nil, nil)
	conditionDesc = prometheus.NewDesc(namespace+"_condition",
		"1 for each condition of the cluster that is true, with its reason.", []string{"type", "reason"}, nil)
	phaseDesc = prometheus.NewDesc(namespace+"_cluster_replication_phase",
		"1 for the phase that the replication to another cluster is in, 0 for the others: None, Dumping, Forwarding, CuttingOver, CutOver.", []string{"phase"}, nil)
)

// replicationPhases are the phases as the metric names them.
var replicationPhases = []core.ReplicationPhase{core.ReplicationNone, core.ReplicationDumping, core.ReplicationForwarding,
	core.ReplicationCuttingOver, core.ReplicationCutOver}

// Describe implements prometheus.Collector.
func (c *viewCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{leaderDesc, mapVersionDesc, nodesDesc, downDesc, wantedDesc,
		mastersDesc, inSyncDesc, epochDesc, lagDesc, agentsDesc, conditionDesc, phaseDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *viewCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	l := c.s.cluster.Load()
	if l == nil {
		gauge(leaderDesc, 0)
		return
	}
	gauge(leaderDesc, 1)
	gauge(agentsDesc, float64(c.s.links.count()))
	t := l.Topology()
	gauge(mapVersionDesc, float64(t.Map.Version))
	gauge(wantedDesc, float64(t.Spec.Partitions*t.Spec.Replicas))
	type kind struct{ role, state string }
	nodes := map[kind]int{}
	for _, n := range t.Map.Nodes {
		nodes[kind{n.Role.String(), n.State.String()}]++
	}
	down := 0
	for k, n := range nodes {
		gauge(nodesDesc, float64(n), k.role, k.state)
		if k.state == topology.Down.String() {
			down += n
		}
	}
	gauge(downDesc, float64(down))
	lags := lagsOf(t)
	for _, p := range t.Partitions {
		label := strconv.Itoa(p.Number)
		up := 0.0
		if p.Master != "" {
			up = 1
		}
		gauge(mastersDesc, up, label)
		gauge(inSyncDesc, float64(len(p.InSync)), label)
		gauge(epochDesc, float64(p.Epoch), label)
		gauge(lagDesc, float64(lags[p.Number]), label)
	}
	for _, cond := range t.Status.Conditions {
		v := 0.0
		if cond.True {
			v = 1
		}
		gauge(conditionDesc, v, cond.Type, cond.Reason)
	}
	for _, p := range replicationPhases {
		v := 0.0
		if p == t.Replication.Phase {
			v = 1
		}
		gauge(phaseDesc, v, cmp.Or(string(p), "None"))
	}
}

// lagsOf returns by how many batches the last replica of each partition is behind its
// master. Indices count on across epochs, so they compare whatever the epochs are.
func lagsOf(t runtime.Topology) map[int]uint64 {
	masters, lags := map[int]uint64{}, map[int]uint64{}
	for _, n := range t.Nodes {
		if n.Node.Role == topology.Master && n.Node.State == topology.Active {
			masters[n.Node.Partition] = n.LSN.Index
		}
	}
	for _, n := range t.Nodes {
		if head := masters[n.Node.Partition]; n.Node.Role == topology.Slave && head > n.LSN.Index {
			lags[n.Node.Partition] = max(lags[n.Node.Partition], head-n.LSN.Index)
		}
	}
	return lags
}

// APIRetried counts a request to the API server that is made again.
func (m *Metrics) APIRetried(reason string) { m.apiRetries.WithLabelValues(reason).Inc() }

// Refused counts something that is not done.
func (m *Metrics) Refused(reason string) { m.refused.WithLabelValues(reason).Inc() }

// Trace counts one step of the core; it fits runtime.Config.Trace.
func (m *Metrics) Trace(state core.State, in core.Input, effects []core.Effect) {
	switch in := in.(type) {
	case core.Persisted:
		if in.Err != "" {
			m.persistErrors.Inc()
		} else {
			m.persists.Inc()
		}
	case core.Done:
		if in.Err != "" {
			m.requestErrors.WithLabelValues(string(in.Request)).Inc()
		}
	}
	for _, e := range effects {
		switch e := e.(type) {
		case core.Refused:
			m.Refused(e.Reason)
		case core.Reply:
			if e.Reason != "" {
				m.Refused(e.Reason)
			}
		case core.Broadcast:
			m.broadcasts.Inc()
		case core.Decision:
			m.decisions.WithLabelValues(e.Reason).Inc()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range []struct {
		was *core.Refusal
		is  core.Refusal
	}{{&m.refusal, state.Refusal}, {&m.blocked, state.Blocked}} {
		if x.is.Reason != "" && x.is.Reason != x.was.Reason {
			m.Refused(x.is.Reason)
		}
		*x.was = x.is
	}
	m.reigns.step(m, state, effects, time.Now())
	switch resting := state.Machine.Step != core.StepDone && state.Saving.Seq != 0; {
	case resting && m.decided.IsZero():
		m.decided = time.Now()
	case !resting && !m.decided.IsZero():
		m.reconcile.Observe(time.Since(m.decided).Seconds())
		m.decided = time.Time{}
	}
}
