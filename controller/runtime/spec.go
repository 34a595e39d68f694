package runtime

import (
	"fmt"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// SpecOf returns what a FlareCluster asks for in the core's terms.
func SpecOf(c *v1.FlareCluster) (core.Spec, error) {
	spec := *c.Spec.DeepCopy()
	spec.Default()
	meta := topology.DefaultMeta()
	meta.PartitionSize = int(spec.PartitionSize)
	if err := meta.Validate(); err != nil {
		return core.Spec{}, fmt.Errorf("FlareCluster %s: %w", c.Name, err)
	}
	return core.Spec{
		Known:      true,
		Generation: c.Generation,
		Partitions: int(spec.Partitions),
		Replicas:   int(spec.Replicas),
		Meta:       meta,
		Config:     v1.RenderConfig(spec),
	}, nil
}

// StatusOf returns the status of a FlareCluster but for its conditions' times,
// which who writes it fills in.
func StatusOf(s core.Status) v1.FlareClusterStatus {
	out := v1.FlareClusterStatus{
		ObservedGeneration: s.Generation,
		Phase:              v1.Phase(s.Phase),
		Reason:             s.Reason,
		Message:            s.Message,
		NodesReady:         fmt.Sprintf("%d/%d", s.NodesReady, s.NodesWanted),
		Masters:            fmt.Sprintf("%d/%d", s.MastersUp, len(s.Partitions)),
		MapVersion:         int64(s.MapVersion),
		Config:             configWord(s),
	}
	for _, p := range s.Partitions {
		out.Partitions = append(out.Partitions, v1.PartitionStatus{
			Partition: int32(p.Number), Epoch: int64(p.Epoch), Master: p.Master,
			InSync: p.InSync, Preparing: p.Preparing, State: v1.PartitionState(p.State),
		})
	}
	return out
}

// configWord is the configuration column of kubectl get.
func configWord(s core.Status) string {
	if s.ConfigReason == core.ReasonApplying {
		return fmt.Sprintf("%d/%d", s.ConfigNodes, s.NodesWanted)
	}
	return s.ConfigReason
}
