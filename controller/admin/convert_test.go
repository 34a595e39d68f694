package admin

import (
	"testing"

	"github.com/flarekv/flare/controller/core"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/topology"
)

func TestReportOf(t *testing.T) {
	unknown := core.AgentReport{Key: "a:1", Role: topology.Proxy, State: topology.Down, Partition: -1, DataPartition: -1}
	with := func(f func(*core.AgentReport)) core.AgentReport {
		r := unknown
		f(&r)
		return r
	}
	for _, tt := range []struct {
		name string
		in   *agentv1.AgentStatus
		want core.AgentReport
	}{
		{"flared has not said anything yet", &agentv1.AgentStatus{Node: "a:1"}, unknown},
		{"a configuration that was read but not applied yet does not count",
			&agentv1.AgentStatus{Node: "a:1", Config: &agentv1.ConfigStatus{Generation: 3, Hash: "new", AppliedHash: "old"}},
			unknown},
		{"no options file counts as no configuration",
			&agentv1.AgentStatus{Node: "a:1", Config: &agentv1.ConfigStatus{Generation: 3}},
			unknown},
		{"a rejected configuration counts, as rejected",
			&agentv1.AgentStatus{Node: "a:1", Config: &agentv1.ConfigStatus{Generation: 3, Hash: "new", AppliedHash: "old", Rejected: true, Message: "line 2"}},
			with(func(r *core.AgentReport) {
				r.ConfigGeneration, r.ConfigRejected, r.ConfigMessage = 3, true, "line 2"
			})},
		{"an option that waits for a restart is named",
			&agentv1.AgentStatus{Node: "a:1", Config: &agentv1.ConfigStatus{Generation: 3, Hash: "x", AppliedHash: "x", Options: []*agentv1.OptionStatus{
				{Key: "max-connection", Configured: "9", Effective: "8", State: agentv1.OptionState_OPTION_STATE_PENDING_RESTART},
			}}},
			with(func(r *core.AgentReport) {
				r.ConfigGeneration, r.ConfigPending = 3, true
				r.ConfigMessage = "max-connection = 9 takes effect after a restart of flared; 8 is in force"
			})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := reportOf(tt.in)
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestRolesAndStatesSurviveTheWire(t *testing.T) {
	for _, r := range []topology.Role{topology.Master, topology.Slave, topology.Proxy} {
		if got := roleOf(roleProto(r)); got != r {
			t.Errorf("%v became %v", r, got)
		}
	}
	for _, s := range []topology.State{topology.Active, topology.Prepare, topology.Down, topology.Ready} {
		if got := stateOf(stateProto(s)); got != s {
			t.Errorf("%v became %v", s, got)
		}
	}
}
