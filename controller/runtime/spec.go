package runtime

import (
	"math"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// minInSync is how many nodes must be in sync; in mode async nobody waits for any.
func minInSync(r v1.ReplicationSpec) int {
	if r.Mode == v1.ReplicationAsync {
		return 0
	}
	return int(r.MinInSync)
}

// SpecOf translates what a FlareCluster asks for into what the core works to,
// the same for every Backend. Absent fields take their defaults.
func SpecOf(spec v1.FlareClusterSpec, generation int64) core.Spec {
	s := *spec.DeepCopy()
	s.Default()
	meta := topology.DefaultMeta()
	meta.PartitionSize = int(s.PartitionSize)
	meta.Hint, meta.Virtual = int(s.KeyMapping.Hint), int(s.KeyMapping.Virtual)
	if hash, err := topology.ParseHash(string(s.KeyMapping.Hash)); err == nil {
		meta.Hash = hash
	} else {
		meta.Virtual = 0 // refused by the core: the schema knows the same words
	}
	return core.Spec{
		Known:      true,
		Generation: generation,
		Partitions: int(s.Partitions),
		Replicas:   int(s.Replicas),
		Meta:       meta,
		Config:     v1.RenderConfig(s),
		MinInSync:  minInSync(s.Replication),
		Failover: core.FailoverPolicy{
			MinUp:    core.Million - int(math.Round(*s.Failover.MaxDownFraction*core.Million)),
			HoldZone: s.Failover.OnZoneLoss == v1.ZoneLossHold,
			Grace:    int64(*s.Failover.GraceSeconds) * 1000,
			Paused:   s.Paused,
		},
		Replication: replicationOf(s.ClusterReplication),
		OrphanPurge: core.OrphanPurge{
			Enabled: *s.ScaleOut.OrphanPurge.Enabled,
			Delay:   *s.ScaleOut.OrphanPurge.DelaySeconds * 1000,
		},
	}
}

func replicationOf(c v1.ClusterReplicationSpec) core.SpecReplication {
	if !c.Enabled {
		return core.SpecReplication{} // whatever else is written there
	}
	return core.SpecReplication{Enabled: true, Target: c.Target, Mode: core.ReplicationMode(c.Mode)}
}
