package admin

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
	"github.com/flarekv/flare/proto/topology"
)

// reportOf translates what an agent says. What it does not know becomes the
// value that promises least: no partition, down.
func reportOf(st *agentv1.AgentStatus) (core.AgentReport, error) {
	if st.GetNode() == "" {
		return core.AgentReport{}, fmt.Errorf("report without status.node; it must be the host:port under which flared registers")
	}
	if _, _, err := topology.SplitKey(st.GetNode()); err != nil {
		return core.AgentReport{}, fmt.Errorf("status.node %q is not the host:port under which flared registers: %w", st.GetNode(), err)
	}
	r := core.AgentReport{
		Key:           st.GetNode(),
		Zone:          st.GetZone(),
		Alive:         st.GetFlaredAlive(),
		Role:          topology.Proxy,
		State:         topology.Down,
		Partition:     -1,
		DataPartition: -1,
	}
	if f := st.GetFlared(); f != nil {
		r.Instance = f.GetInstance()
		r.Serving = f.GetServing()
		r.MapVersion = f.GetMapVersion()
		r.Role = roleOf(f.GetRole())
		r.State = stateOf(f.GetState())
		r.Partition = agentv1.PartitionNumber(f.Partition)
		r.LSN = topology.LSN{Epoch: f.GetLsn().GetEpoch(), Index: f.GetLsn().GetIndex()}
		r.DataPartition = agentv1.PartitionNumber(f.DataPartition)
		r.History = f.GetHistory()
		r.LeaseToken, r.LeaseEpoch = f.GetLeaseToken(), f.GetLeaseEpoch()
		r.Cluster = clusterReportOf(f.GetClusterReplication())
		r.Filled, r.FillRecords, r.Yielded = f.GetGrowth().GetFilled(), f.GetGrowth().GetRecords(), f.GetGrowth().GetYielded()
	}
	if at := st.GetAgentStartedAt(); at != nil {
		r.AgentStarted = at.AsTime().UnixNano()
	}
	r.Handover, r.Purge = orderReportOf(st.GetHandoverOrder()), orderReportOf(st.GetPurgeOrder())
	c := st.GetConfig()
	r.ConfigRejected = c.GetRejected()
	r.ConfigMessage = c.GetMessage()
	// A generation counts only once flared has said what became of it.
	if c.GetHash() != "" && (c.GetRejected() || c.GetAppliedHash() == c.GetHash()) {
		r.ConfigGeneration = c.GetGeneration()
	}
	for _, o := range c.GetOptions() {
		if o.GetState() == agentv1.OptionState_OPTION_STATE_PENDING_RESTART {
			r.ConfigPending = true
			if r.ConfigMessage == "" {
				r.ConfigMessage = fmt.Sprintf("%s = %s takes effect after a restart of flared; %s is in force", o.GetKey(), o.GetConfigured(), o.GetEffective())
			}
		}
	}
	return r, nil
}

func orderReportOf(o *agentv1.OrderReport) core.OrderReport {
	return core.OrderReport{ID: o.GetId(), Running: o.GetRunning(), Reason: o.GetReason(), Count: o.GetCount()}
}

var orderKinds = map[core.OrderKind]agentv1.OrderKind{
	core.OrderHandover: agentv1.OrderKind_ORDER_KIND_HANDOVER,
	core.OrderPurge:    agentv1.OrderKind_ORDER_KIND_PURGE,
}

func orderProto(o core.OrderNode) *agentv1.Order {
	return &agentv1.Order{Id: o.ID, Kind: orderKinds[o.Kind], Target: o.Target}
}

func leaseProto(g core.GrantLease) *agentv1.LeaseGrant {
	return &agentv1.LeaseGrant{Instance: g.Instance, Partition: agentv1.OptionalPartition(g.Partition), Epoch: g.Epoch,
		Token: g.Token, Ttl: durationpb.New(time.Duration(g.TTL) * time.Millisecond)}
}

func roleOf(r agentv1.Role) topology.Role {
	switch r {
	case agentv1.Role_ROLE_MASTER:
		return topology.Master
	case agentv1.Role_ROLE_SLAVE:
		return topology.Slave
	default:
		return topology.Proxy
	}
}

func stateOf(s agentv1.State) topology.State {
	switch s {
	case agentv1.State_STATE_ACTIVE:
		return topology.Active
	case agentv1.State_STATE_PREPARE:
		return topology.Prepare
	case agentv1.State_STATE_READY:
		return topology.Ready
	default:
		return topology.Down
	}
}

func roleProto(r topology.Role) agentv1.Role {
	switch r {
	case topology.Master:
		return agentv1.Role_ROLE_MASTER
	case topology.Slave:
		return agentv1.Role_ROLE_SLAVE
	case topology.Proxy:
		return agentv1.Role_ROLE_PROXY
	default:
		return agentv1.Role_ROLE_UNSPECIFIED
	}
}

func stateProto(s topology.State) agentv1.State {
	switch s {
	case topology.Active:
		return agentv1.State_STATE_ACTIVE
	case topology.Prepare:
		return agentv1.State_STATE_PREPARE
	case topology.Down:
		return agentv1.State_STATE_DOWN
	case topology.Ready:
		return agentv1.State_STATE_READY
	default:
		return agentv1.State_STATE_UNSPECIFIED
	}
}

// topologyProto translates what the controller knows. It shares no memory with t.
func topologyProto(t runtime.Topology) *controllerv1.Topology {
	out := &controllerv1.Topology{
		MapVersion:       t.Map.Version,
		PartitionsWanted: uint32(max(t.Spec.Partitions, 0)),
		ReplicasWanted:   uint32(max(t.Spec.Replicas, 0)),
	}
	if g := t.Growth; g.Node != "" {
		out.Growth = &controllerv1.Growth{Partition: uint32(g.Partition), Node: g.Node, Stage: g.Stage, Records: g.Records}
	}
	for _, p := range t.Partitions {
		out.Partitions = append(out.Partitions, &controllerv1.PartitionTopology{
			Partition:         agentv1.OptionalPartition(p.Number),
			Epoch:             p.Epoch,
			Master:            p.Master,
			InSyncReplicas:    append([]string(nil), p.InSync...),
			PreparingReplicas: append([]string(nil), p.Preparing...),
		})
	}
	for _, c := range t.Status.Conditions {
		out.Conditions = append(out.Conditions, &controllerv1.Condition{Type: c.Type, Status: c.True, Reason: c.Reason, Message: c.Message})
	}
	out.Replication = replicationProto(t)
	for _, n := range t.Nodes {
		node := &controllerv1.NodeTopology{
			Node:           n.Node.Key(),
			Role:           roleProto(n.Node.Role),
			State:          stateProto(n.Node.State),
			Partition:      agentv1.OptionalPartition(n.Node.Partition),
			Balance:        uint32(max(n.Node.Balance, 0)),
			Zone:           n.Zone,
			AgentConnected: n.AgentConnected,
			DownReason:     n.DownReason,
		}
		if n.LSN != (topology.LSN{}) {
			node.Lsn = &agentv1.Lsn{Epoch: n.LSN.Epoch, Index: n.LSN.Index}
		}
		out.Nodes = append(out.Nodes, node)
	}
	return out
}
