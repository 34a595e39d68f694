package admin

import (
	"encoding/json"
	"net/http"
	"sync"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Reasons in the body of /readyz.
const (
	ReasonLeading              = "leading"
	ReasonStandby              = "standby"
	ReasonStarting             = "starting"
	ReasonIndexNotServing      = "index_not_listening"
	ReasonWaitingForCluster    = "waiting_for_flarecluster"
	ReasonAPIServerUnreachable = "api_server_unreachable"
)

// Readiness is the body of /readyz.
type Readiness struct {
	// Whether this process leads and takes index connections.
	Ready bool `json:"ready"`
	// Whether this process leads.
	Leader bool `json:"leader"`
	// Why it is (not) ready; machine-readable.
	Reason string `json:"reason"`
	// Name of the leader as last heard; empty when unknown.
	LeaderName string `json:"leaderName,omitempty"`
}

// Health collects what /readyz is computed from. Its methods may be called by
// any goroutine.
type Health struct {
	mu         sync.Mutex
	leader     bool
	index      bool
	standby    bool
	problem    string
	leaderName string
}

func newHealth() *Health { return &Health{problem: ReasonStarting} }

// SetLeader tells whether this process leads.
func (h *Health) SetLeader(leads bool) { h.set(func() { h.leader = leads }) }

// SetIndexListening tells whether the index server takes connections.
func (h *Health) SetIndexListening(listens bool) { h.set(func() { h.index = listens }) }

// SetLeaderName tells who leads.
func (h *Health) SetLeaderName(name string) { h.set(func() { h.leaderName = name }) }

// SetStandby tells that this process could take over, or why it could not.
func (h *Health) SetStandby(able bool, problem string) {
	h.set(func() { h.standby, h.problem = able, problem })
}

func (h *Health) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// Readiness returns what is known now, and whether a process that does not lead
// is able to take over.
func (h *Health) Readiness() (r Readiness, standby bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r = Readiness{Leader: h.leader, LeaderName: h.leaderName}
	switch {
	case h.leader && h.index:
		r.Ready, r.Reason = true, ReasonLeading
	case h.leader:
		r.Reason = ReasonIndexNotServing
	case h.standby:
		r.Reason = ReasonStandby
	default:
		r.Reason = h.problem
	}
	return r, !h.leader && h.standby
}

// healthRoutes answers the kubelet. /healthz says only that the process runs: a
// restart would not cure a lost API server. /readyz is 200 on the leader alone;
// with ?standby=ok also on a process that could take over, which is what a pod's
// readiness means.
func (s *Server) healthRoutes() http.Handler {
	r := chi.NewRouter()
	r.Use(middleware.Recoverer)
	r.Get("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]bool{"alive": true})
	})
	r.Get("/readyz", func(w http.ResponseWriter, req *http.Request) {
		ready, standby := s.status.Readiness()
		code := http.StatusServiceUnavailable
		if ready.Ready || standby && req.URL.Query().Get("standby") == "ok" {
			code = http.StatusOK
		}
		writeJSON(w, code, ready)
	})
	return r
}

func metricsRoutes(reg *prometheus.Registry) http.Handler {
	r := chi.NewRouter()
	r.Use(middleware.Recoverer)
	r.Method(http.MethodGet, "/metrics", promhttp.InstrumentMetricHandler(reg,
		promhttp.HandlerFor(reg, promhttp.HandlerOpts{})))
	return r
}

func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	// The peer may be gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(body)
}
