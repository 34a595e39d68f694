package history

import (
	"slices"

	"github.com/flarekv/flare/proto/topology"
)

// Fork returns the last position that p and the peer have in common, behind
// which the peer has a tail of its own (or nothing). ok is false if they have
// nothing in common, or if what they say cannot both be true.
//
// Logs that share a batch share everything before it, so it is enough to find
// where the epochs of the two part. Batches of epoch 0 have no master whose they
// are, and are in common only below a common beginning of an epoch.
func (p Position) Fork(peer Position) (fork topology.LSN, ok bool) {
	if p.History == "" || p.History != peer.History || peer.EpochAt(peer.LSN.Index) != peer.LSN.Epoch {
		return topology.LSN{}, false
	}
	n := 0
	for n < min(len(p.Lineage), len(peer.Lineage)) && p.Lineage[n] == peer.Lineage[n] {
		n++
	}
	if n == 0 {
		return topology.LSN{}, false
	}
	ours, theirs := p.Lineage[n:], peer.Lineage[n:]
	// The first batch that not both have.
	end := min(p.LSN.Index, peer.LSN.Index) + 1
	for _, rest := range [][]EpochStart{ours, theirs} {
		if len(rest) > 0 {
			end = min(end, rest[0].Index)
		}
	}
	for _, s := range theirs {
		// An epoch begins once: one that is in both must have been in the common part.
		if slices.ContainsFunc(ours, func(o EpochStart) bool { return o.Epoch == s.Epoch }) {
			return topology.LSN{}, false
		}
	}
	common := p.Lineage[n-1]
	if end <= common.Index {
		return topology.LSN{}, false
	}
	return topology.LSN{Epoch: common.Epoch, Index: end - 1}, true
}

// Rewound returns the position of a copy that gave up everything behind the
// fork and took the values of another one at restored for what it had changed there.
func (p Position) Rewound(fork, restored topology.LSN) Position {
	n := len(p.Lineage)
	for n > 0 && p.Lineage[n-1].Index > fork.Index {
		n--
	}
	p.LSN, p.Lineage, p.Restored = fork, slices.Clip(p.Lineage[:n]), restored
	return p.Settled()
}

// Settled returns p without Restored if the log has reached that: then every
// value is the one of the position. It is for whoever has moved LSN.
func (p Position) Settled() Position {
	if !p.Restored.IsZero() && p.Locate(p.Restored) == Same {
		p.Restored = topology.LSN{}
	}
	return p
}

// Key names one entry of a database: a column family by its number, and the key
// in it.
type Key struct {
	Family uint8
	Key    string
}

// Value is what a database has under a Key, in its own encoding.
type Value struct {
	Found bool
	Data  []byte
}

// A Divergence is the tail of a log behind a fork, which its master never had.
type Divergence struct {
	Fork    topology.LSN // last position that stays
	End     topology.LSN // of the log
	Batches uint64       // between the two
	Keys    []Key        // that these changed, each once
	Bytes   int64        // of Keys
}

// RewindLimits bound what is undone key by key. All of it is in memory for a
// moment, and in one batch of the database.
type RewindLimits struct {
	Keys  int
	Bytes int64 // of keys and values
}

// DefaultRewindLimits are what a node takes upon itself by default.
var DefaultRewindLimits = RewindLimits{Keys: 100_000, Bytes: 64 << 20}
