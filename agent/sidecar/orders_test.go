package sidecar

import (
	"slices"
	"testing"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// TestOrdersOfTheController: an order is carried out once, however often it is given,
// and what became of it goes with every report from then on.
func TestOrdersOfTheController(t *testing.T) {
	t.Parallel()
	c := startController(t, "127.0.0.1:0")
	r := startAgent(t, func(s *Settings) { s.Controller = c.addr })
	const handover, purge = agentv1.OrderKind_ORDER_KIND_HANDOVER, agentv1.OrderKind_ORDER_KIND_PURGE
	give := func(id uint64, kind agentv1.OrderKind, target string) {
		c.set(func(c *fakeController) { c.order = &agentv1.Order{Id: id, Kind: kind, Target: target} })
	}
	// told waits until the controller knows how an order ended, or that it runs.
	told := func(what string, of func(*agentv1.AgentStatus) *agentv1.OrderReport, id uint64, running bool) *agentv1.OrderReport {
		t.Helper()
		var said *agentv1.OrderReport
		waitFor(t, what, func() bool {
			said = of(c.last().status)
			return said.GetId() == id && said.GetRunning() == running
		})
		return said
	}
	handed, purged := (*agentv1.AgentStatus).GetHandoverOrder, (*agentv1.AgentStatus).GetPurgeOrder

	// Without flared nobody can do it.
	give(1, handover, "b:1")
	if o := told("an order without flared has ended", handed, 1, false); o.GetReason() != ReasonFlaredDown {
		t.Errorf("without flared: %v", o)
	}
	f := startFlared(t, r.socket, "first")
	r.waitStatus("flared is up", func(s *agentv1.AgentStatus) bool { return s.GetFlaredAlive() })
	targets := func() []string {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Clone(f.targets)
	}
	// What failed is not tried again by the agent, only under another number.
	give(2, handover, "nobody:1")
	if o := told("a refused order has ended", handed, 2, false); o.GetReason() != "target_not_in_sync" {
		t.Errorf("refused by flared: %v", o)
	}
	give(3, handover, "b:1")
	if o := told("an order has been carried out", handed, 3, false); o.GetReason() != "" {
		t.Errorf("carried out: %v", o)
	}
	reports := len(c.told())
	waitFor(t, "it was given again and again", func() bool { return len(c.told()) >= reports+3 })
	if got := targets(); !slices.Equal(got, []string{"nobody:1", "b:1"}) {
		t.Errorf("flared was to hand over to %v", got)
	}

	// Each kind has its own last order: a long purge does not hinder a handover.
	give(4, purge, "")
	told("a purge runs", purged, 4, true)
	give(5, handover, "c:1")
	told("a handover meanwhile", handed, 5, false)
	if o := purged(c.last().status); o.GetId() != 4 || !o.GetRunning() {
		t.Errorf("the purge: %v", o)
	}
	f.mu.Lock()
	f.orphans = 12
	f.mu.Unlock()
	give(6, purge, "")
	if o := told("another purge has ended", purged, 6, false); o.GetReason() != "" || o.GetCount() != 12 {
		t.Errorf("the purge: %v", o)
	}

	give(7, agentv1.OrderKind_ORDER_KIND_UNSPECIFIED, "")
	if o := told("an order that nobody knows has ended", handed, 7, false); o.GetReason() != reasonUnknownOrder {
		t.Errorf("unknown: %v", o)
	}
}
