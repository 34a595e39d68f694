package node

import (
	"reflect"
	"testing"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/proto/topology"
)

func TestDutyOf(t *testing.T) {
	nodes := []topology.Node{
		entry(1, topology.Master, topology.Active, 0, 1, 7),
		entry(2, topology.Slave, topology.Active, 0, 1, 7),
		entry(3, topology.Slave, topology.Prepare, 0, 0, 7),
		entry(4, topology.Proxy, topology.Active, -1, 0, 0),
		entry(5, topology.Master, topology.Active, 0, 1, 7), // a second master does not count
		entry(6, topology.Proxy, topology.Down, -1, 0, 0),
		entry(7, topology.Master, topology.Down, 1, 1, 2),
		entry(8, topology.Slave, topology.Active, 1, 1, 2),
		entry(9, topology.Master, topology.Prepare, 2, 1, 1),
		{Name: "i", Port: 1, Role: topology.Slave, State: topology.Prepare, Partition: 2, Epoch: 1},
		{Name: "i", Port: 2, Role: topology.Slave, State: topology.Prepare, Partition: 7}, // which nobody has
	}
	none := duty{kind: dutyNone, partition: -1}
	for self, want := range map[string]duty{
		"h:1": {kind: dutyMaster, partition: 0, partitions: 2, epoch: 7, active: true, members: []replication.Member{{Key: "h:2", Active: true}, {Key: "h:3"}}},
		"h:2": {kind: dutySlave, partition: 0, partitions: 2, epoch: 7, active: true, master: "h:1"},
		"h:3": {kind: dutySlave, partition: 0, partitions: 2, epoch: 7, master: "h:1"},
		"h:4": none,
		"h:5": none,
		"h:6": none,
		"h:7": none,
		"h:8": {kind: dutySlave, partition: 1, partitions: 2, epoch: 2, active: true},
		"h:9": {kind: dutyFill, partition: 2, partitions: 3, epoch: 1, members: []replication.Member{{Key: "i:1"}}},
		"i:1": {kind: dutySlave, partition: 2, partitions: 3, epoch: 1, master: "h:9"},
		"i:2": {kind: dutySlave, partition: 7, partitions: 2},
		"h:0": none,
	} {
		if got := dutyOf(testTable(t, self, nodes...)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", self, got, want)
		}
	}
	if got := dutyOf(nil); !reflect.DeepEqual(got, none) {
		t.Errorf("without a map: %+v", got)
	}
}

func TestPromote(t *testing.T) {
	d := func(epoch uint64) duty { return duty{kind: dutyMaster, partition: 1, epoch: epoch} }
	holds := func(granted, epoch uint64) tenure {
		return tenure{held: true, partition: 1, granted: granted, epoch: epoch}
	}
	for _, tt := range []struct {
		name string
		duty duty
		now  tenure
		held uint64
		data int
		want promotion
	}{
		{"empty database", d(1), tenure{}, 0, -1, promotion{begin: true, epoch: 1}},
		{"promotion of a replica", d(8), tenure{}, 7, 1, promotion{begin: true, epoch: 8}},
		{"promotion over epochs it never saw", d(12), tenure{}, 7, 1, promotion{begin: true, epoch: 12}},
		{"the same again", d(8), holds(8, 8), 8, 1, promotion{epoch: 8}},
		{"next epoch while master", d(9), holds(8, 8), 8, 1, promotion{begin: true, epoch: 9}},
		{"epoch of another process", d(8), tenure{}, 8, 1, promotion{refusal: "epoch_not_granted"}},
		{"former epoch", d(7), tenure{}, 8, 1, promotion{refusal: "stale_epoch"}},
		{"former epoch while master", d(7), holds(8, 8), 8, 1, promotion{refusal: "stale_epoch"}},
		{"data of another partition", d(9), tenure{}, 8, 0, promotion{refusal: "other_partition"}},
		{"index without epochs", d(0), tenure{}, 3, 1, promotion{begin: true, epoch: 4}},
		{"index without epochs, the same again", d(0), holds(0, 4), 4, 1, promotion{epoch: 4}},
		{"index without epochs takes over", d(0), holds(4, 4), 4, 1, promotion{begin: true, epoch: 5}},
		{"index with epochs takes over", d(5), holds(0, 4), 4, 1, promotion{begin: true, epoch: 5}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := promote(tt.duty, tt.now, tt.held, tt.data); got != tt.want {
				t.Errorf("promotion %+v, want %+v", got, tt.want)
			}
		})
	}
}
