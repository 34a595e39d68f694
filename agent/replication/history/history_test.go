package history

import (
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

func lsn(e, i uint64) topology.LSN { return topology.LSN{Epoch: e, Index: i} }

func at(e, i uint64, lineage ...EpochStart) Position {
	return Position{LSN: lsn(e, i), History: "h", Partition: 0, Lineage: lineage}
}

func TestEpochAt(t *testing.T) {
	p := at(5, 30, EpochStart{1, 3}, EpochStart{2, 11}, EpochStart{5, 21})
	for index, want := range map[uint64]uint64{1: 0, 2: 0, 3: 1, 10: 1, 11: 2, 20: 2, 21: 5, 30: 5, 99: 5} {
		if got := p.EpochAt(index); got != want {
			t.Errorf("EpochAt(%d) = %d, want %d", index, got, want)
		}
	}
	if got := (Position{}).EpochAt(7); got != 0 {
		t.Errorf("without lineage: %d", got)
	}
}

func TestStartEpochDoesNotShare(t *testing.T) {
	p := at(1, 5, EpochStart{1, 1})
	a, b := p.StartEpoch(EpochStart{2, 6}), p.StartEpoch(EpochStart{3, 6})
	if a[1].Epoch != 2 || b[1].Epoch != 3 || len(p.Lineage) != 1 {
		t.Errorf("lineages share memory: %v %v %v", a, b, p.Lineage)
	}
}

func TestChoose(t *testing.T) {
	// The master: epoch 1 from 1, epoch 2 from 11, epoch 4 from 21, now at 30.
	line := []EpochStart{{1, 1}, {2, 11}, {4, 21}}
	master := at(4, 30, line...)
	other := at(4, 25, line...)
	other.History = "other"
	foreign := at(4, 25, line...)
	foreign.Partition = 1
	unknown := at(4, 25, line...)
	unknown.Partition = NoPartition

	tests := []struct {
		name     string
		oldest   uint64
		peer     Position
		full     bool
		relation Relation
		tier     Tier
		reason   string
	}{
		{"equal", 31, at(4, 30, line...), false, Same, TierWAL, "same_history"},
		{"behind in the newest epoch", 1, at(4, 21, line...), false, Same, TierWAL, "same_history"},
		{"at the end of an older epoch", 1, at(2, 20, line[:2]...), false, Same, TierWAL, "same_history"},
		{"first batch ever", 1, at(1, 1, line[:1]...), false, Same, TierWAL, "same_history"},
		{"lineage not told", 1, at(2, 15), false, Same, TierWAL, "same_history"},
		{"oldest is the next one", 16, at(2, 15, line[:2]...), false, Same, TierWAL, "same_history"},
		{"purged by one", 17, at(2, 15, line[:2]...), false, Same, TierCheckpoint, "purged"},
		{"nothing retained, behind", 31, at(4, 29, line...), false, Same, TierCheckpoint, "purged"},
		{"empty and all retained", 1, Position{Partition: NoPartition}, false, Same, TierWAL, "same_history"},
		{"empty and purged", 2, Position{Partition: NoPartition}, false, Same, TierCheckpoint, "empty"},
		{"tail of a dead master", 1, at(1, 11, line[:1]...), false, Diverged, TierCheckpoint, "diverged"},
		{"tail longer than everything", 1, at(2, 40, line[:2]...), false, Diverged, TierCheckpoint, "diverged"},
		{"epoch the master skipped", 1, at(3, 22, EpochStart{1, 1}, EpochStart{2, 11}, EpochStart{3, 21}), false, Diverged, TierCheckpoint, "diverged"},
		{"epoch the master skipped, lineage not told", 1, at(3, 22), false, Diverged, TierCheckpoint, "diverged"},
		{"lineage contradicts", 1, at(4, 25, EpochStart{1, 1}, EpochStart{2, 12}, EpochStart{4, 21}), false, Diverged, TierCheckpoint, "diverged"},
		{"ahead in the same epoch", 1, at(4, 31, line...), false, Ahead, TierNone, "future_position"},
		{"ahead in the same epoch, asking for a copy", 1, at(4, 31, line...), true, Ahead, TierCheckpoint, "ahead"},
		{"newer epoch", 1, at(5, 31, append(line[:3:3], EpochStart{5, 31})...), false, Newer, TierNone, "stale_master"},
		{"newer epoch at a lower index", 1, at(5, 25, append(line[:2:2], EpochStart{5, 25})...), false, Newer, TierNone, "stale_master"},
		{"other history", 1, other, false, Foreign, TierCheckpoint, "other_history"},
		{"other partition", 1, foreign, false, Same, TierCheckpoint, "other_partition"},
		{"partition unknown", 1, unknown, false, Same, TierWAL, "same_history"},
		{"asked for", 1, at(4, 30, line...), true, Same, TierCheckpoint, "requested"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := master.Relate(tt.peer); got != tt.relation {
				t.Errorf("Relate = %v, want %v", got, tt.relation)
			}
			got := Choose(master, tt.oldest, Peer{Position: tt.peer, Full: tt.full})
			if want := (Choice{Tier: tt.tier, Reason: tt.reason}); got != want {
				t.Errorf("Choose = %+v, want %+v", got, want)
			}
		})
	}
}

func TestRelateWithoutHistory(t *testing.T) {
	plain := Position{LSN: lsn(0, 9), Partition: NoPartition}
	if got := plain.Relate(plain); got != Foreign {
		t.Errorf("two copies without identity: %v, want %v", got, Foreign)
	}
	if got := (Position{}).Relate(plain); got != Foreign {
		t.Errorf("against an empty master: %v, want %v", got, Foreign)
	}
}

func TestChooseRewind(t *testing.T) {
	line := []EpochStart{{1, 1}, {2, 11}, {4, 21}}
	master := at(4, 30, line...)
	restored := func(p Position, at topology.LSN) Position {
		p.Restored = at
		return p
	}
	long := at(1, 11+MaxRewind, line[:1]...)
	tests := []struct {
		name   string
		oldest uint64
		peer   Peer
		tier   Tier
		reason string
		fork   topology.LSN
	}{
		{"tail of a dead master", 1, Peer{Position: at(1, 11, line[:1]...)}, TierRewind, "diverged_tail", lsn(1, 10)},
		{"tail longer than everything", 1, Peer{Position: at(2, 40, line[:2]...)}, TierRewind, "diverged_tail", lsn(2, 20)},
		{"epoch that the master skipped", 1, Peer{Position: at(3, 22, EpochStart{1, 1}, EpochStart{2, 11}, EpochStart{3, 18})}, TierRewind, "diverged_tail", lsn(2, 17)},
		{"log from the fork on", 11, Peer{Position: at(1, 11, line[:1]...)}, TierRewind, "diverged_tail", lsn(1, 10)},
		{"log from behind the fork on", 12, Peer{Position: at(1, 11, line[:1]...)}, TierCheckpoint, "purged", topology.LSN{}},
		{"as long as may be", 1, Peer{Position: at(1, 10+MaxRewind, line[:1]...)}, TierRewind, "diverged_tail", lsn(1, 10)},
		{"too long", 1, Peer{Position: long}, TierCheckpoint, "rewind_too_long", topology.LSN{}},
		{"lineage contradicts", 1, Peer{Position: at(4, 25, EpochStart{1, 1}, EpochStart{2, 12}, EpochStart{4, 21})}, TierCheckpoint, "diverged", topology.LSN{}},
		{"lineage not told", 1, Peer{Position: at(3, 22)}, TierCheckpoint, "diverged", topology.LSN{}},
		{"a copy is asked for", 1, Peer{Position: at(1, 11, line[:1]...), Full: true}, TierCheckpoint, "diverged", topology.LSN{}},
		{"ahead in the same epoch", 1, Peer{Position: at(4, 31, line...)}, TierNone, "future_position", topology.LSN{}},
		{"newer epoch", 1, Peer{Position: at(5, 25, append(line[:2:2], EpochStart{5, 25})...)}, TierNone, "stale_master", topology.LSN{}},
		{"nothing to undo", 1, Peer{Position: at(2, 15, line[:2]...)}, TierWAL, "same_history", topology.LSN{}},

		{"on the way to what it took from us", 1, Peer{Position: restored(at(2, 15, line[:2]...), lsn(4, 30))}, TierWAL, "same_history", topology.LSN{}},
		{"that is purged", 17, Peer{Position: restored(at(2, 15, line[:2]...), lsn(4, 30))}, TierCheckpoint, "purged", topology.LSN{}},
		{"took it from a master that had more of our epoch", 1, Peer{Position: restored(at(2, 15, line[:2]...), lsn(4, 31))}, TierCheckpoint, "rewind_unfinished", topology.LSN{}},
		{"took it from a master whose end we never had", 1, Peer{Position: restored(at(2, 15, line[:2]...), lsn(2, 21))}, TierCheckpoint, "rewind_unfinished", topology.LSN{}},
		{"took it from one that came after us", 1, Peer{Position: restored(at(2, 15, line[:2]...), lsn(5, 31))}, TierCheckpoint, "rewind_unfinished", topology.LSN{}},
		{"and followed that one for a while", 1, Peer{Position: restored(at(2, 23, line[:2]...), lsn(2, 25))}, TierCheckpoint, "rewind_unfinished", topology.LSN{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.peer.Rewind = true
			want := Choice{tt.tier, tt.reason, tt.fork}
			if got := Choose(master, tt.oldest, tt.peer); got != want {
				t.Errorf("Choose = %+v, want %+v", got, want)
			}
		})
	}
}
