package model

import (
	"time"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/proto/topology"
)

// duty is what the node map asks of a node.
type duty struct {
	kind      dutyKind
	partition int
	epoch     uint64
	master    string
	members   []replication.Member
}

type dutyKind uint8

const (
	dutyNone dutyKind = iota
	dutyMaster
	dutySlave
	dutyFill
)

func dutyOf(self string, m topology.Map, plain bool) duty {
	none := duty{partition: topology.NoPartition}
	view, err := topology.BuildView(m.Nodes)
	own, known := m.Find(self)
	if err != nil || !known || own.Partition < 0 {
		return none
	}
	d := duty{partition: own.Partition, epoch: own.Epoch}
	if plain {
		d.epoch = 0
	}
	var part topology.Partition
	if d.partition < len(view.Partitions) {
		part = view.Partitions[d.partition]
	} else if q := view.Preparing; q != nil && q.Number == d.partition {
		part = *q
	}
	switch {
	case own.Role == topology.Slave && own.State != topology.Down:
		d.kind, d.master = dutySlave, part.Master
		return d
	case own.Role != topology.Master || part.Master != self:
		return none
	case own.State == topology.Active:
		d.kind = dutyMaster
	case own.State == topology.Prepare || own.State == topology.Ready:
		d.kind = dutyFill
	default:
		return none
	}
	for _, n := range part.Slaves {
		d.members = append(d.members, replication.Member{Key: n.Key(), Active: n.State == topology.Active})
	}
	return d
}

type tenure struct {
	held      bool
	partition int
	granted   uint64
	epoch     uint64
}

type promotion struct {
	begin   bool
	epoch   uint64
	refusal string
}

func promote(d duty, now tenure, held uint64, dataPartition int) promotion {
	if dataPartition >= 0 && dataPartition != d.partition {
		return promotion{refusal: "other_partition"}
	}
	same := now.held && now.partition == d.partition
	switch {
	case d.epoch == 0 && same && now.granted == 0:
		return promotion{epoch: now.epoch}
	case d.epoch == 0:
		return promotion{begin: true, epoch: held + 1}
	case d.epoch > held:
		return promotion{begin: true, epoch: d.epoch}
	case d.epoch < held:
		return promotion{refusal: "stale_epoch"}
	case same && now.epoch == d.epoch:
		return promotion{epoch: d.epoch}
	}
	return promotion{refusal: "epoch_not_granted"}
}

func mayPromise(d duty, master string, partition int, epoch uint64, ttl time.Duration) bool {
	return d.kind == dutySlave && d.master == master && d.partition == partition && d.epoch == epoch && epoch > 0 && ttl > 0
}

func (p Promise) extend(partition int, epoch uint64, now int64, ttl time.Duration) Promise {
	until := now + topology.LeaseHold(ttl).Milliseconds()
	if (p.Partition == partition || p.Partition < 0) && p.Until > until {
		until = p.Until
	}
	return Promise{partition, epoch, until}
}

func (p Promise) left(partition int, epoch uint64, now int64) int64 {
	if p.Partition >= 0 && p.Partition != partition || epoch <= p.Epoch {
		return 0
	}
	return max(0, p.Until-now)
}
