package node

import (
	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/proto/topology"
)

// A duty is what the node map asks of this node, as far as the database and
// the replication are concerned.
type duty struct {
	kind       dutyKind
	partition  int
	partitions int    // among which partition is one, when its keys are told from others'
	epoch      uint64 // of the partition in the map, 0 from an index without epochs
	active     bool   // in the map, so that the index may name this node master
	master     string // slave: whom to follow; "" if there is nobody now
	members    []replication.Member
}

type dutyKind uint8

const (
	dutyNone dutyKind = iota
	dutyMaster
	dutySlave
	dutyFill // master of the partition that is being added: collect its records
)

// dutyOf derives the duty from a table; nil means no map yet.
func dutyOf(t *table) duty {
	none := duty{kind: dutyNone, partition: -1}
	if t == nil || !t.known || t.own.Partition < 0 {
		return none
	}
	d := duty{partition: t.own.Partition, partitions: len(t.view.Partitions), epoch: t.own.Epoch, active: t.own.State == topology.Active}
	var part topology.Partition
	if d.partition < len(t.view.Partitions) {
		part = t.view.Partitions[d.partition]
	} else if q := t.view.Preparing; q != nil && q.Number == d.partition {
		part = *q
		d.partitions++
	}
	switch {
	case t.own.Role == topology.Slave && t.own.State != topology.Down:
		d.kind, d.master = dutySlave, part.Master
		return d
	case t.own.Role != topology.Master || part.Master != t.self:
		return none
	case t.own.State == topology.Active:
		d.kind = dutyMaster
	case t.own.State == topology.Prepare || t.own.State == topology.Ready:
		d.kind = dutyFill
	default:
		return none
	}
	for _, n := range part.Slaves {
		d.members = append(d.members, replication.Member{Key: n.Key(), Active: n.State == topology.Active})
	}
	return d
}

// A tenure is the mastership that this process holds; the zero value is none.
type tenure struct {
	held      bool
	paused    bool // it is being handed over, and writes wait
	partition int
	granted   uint64 // epoch of the map it was taken under
	epoch     uint64 // epoch of the database since
}

// A promotion is what has to happen before this node may write as master.
type promotion struct {
	begin   bool   // write the start of epoch first
	epoch   uint64 // epoch to write in
	refusal string // machine-readable; writes are refused
}

// promote decides how a master duty is taken up. held is the database's epoch
// and dataPartition the partition whose data it holds, -1 for none. A node may
// write in an epoch that its database already has only when this very process
// began it: otherwise another node may have written in it since.
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
