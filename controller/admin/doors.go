package admin

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// doors counts what nodes, agents and strangers were refused, and what it takes to
// hear them all.
type doors struct {
	indexRefusals *prometheus.CounterVec
	agentRefusals *prometheus.CounterVec
	steps         *prometheus.HistogramVec
}

func newDoors() doors {
	return doors{
		indexRefusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "index_refusals_total",
			Help: "Requests and connections refused on the index protocol's port, by reason.",
		}, []string{"reason"}),
		agentRefusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "agent_refusals_total",
			Help: "Links of agents that were refused, or ended for what came over them, by reason.",
		}, []string{"reason"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "step_seconds",
			Help:    "Time that one input takes. A quiet one brings nothing to decide on.",
			Buckets: prometheus.ExponentialBuckets(1e-6, 4, 10),
		}, []string{"kind"}),
	}
}

// IndexRefused counts one refusal; it fits index.ServerConfig.Refused.
func (d doors) IndexRefused(reason string) { d.indexRefusals.WithLabelValues(reason).Inc() }

// StepTook counts one step; it fits runtime.Config.Took.
func (d doors) StepTook(took time.Duration, quiet bool) {
	kind := "full"
	if quiet {
		kind = "quiet"
	}
	d.steps.WithLabelValues(kind).Observe(took.Seconds())
}
