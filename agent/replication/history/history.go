// Package history holds what two copies of a partition's log must agree on to
// be one history: positions, lineage, and the way in which one copy can catch
// up with another.
//
// It is pure data and pure functions, so that both the database and the
// replication protocol can use it without knowing each other.
package history

import (
	"context"
	"errors"
	"slices"

	"github.com/flarekv/flare/proto/topology"
)

// Errors of a log that is read from a position or continued.
var (
	// ErrPurged means that the batches are no longer retained.
	ErrPurged = errors.New("log position is no longer retained")
	// ErrDiverged means that the position lies on another history.
	ErrDiverged = errors.New("log position is not on this history")
	// ErrFuture means that the position lies beyond the end of the log.
	ErrFuture = errors.New("log position is beyond the end of the log")
	// ErrGap means that a batch does not continue the log.
	ErrGap = errors.New("write batch is not the next one")
	// ErrDamaged means that a batch is not what a log of ours can hold.
	ErrDamaged = errors.New("damaged write batch")
	// ErrReplaced means that the log under an open tail was exchanged.
	ErrReplaced = errors.New("database was replaced")
	// ErrFlushed means that a tail removed all records, which no list of keys undoes.
	ErrFlushed = errors.New("log tail removes all records")
	// ErrTooLarge means that a tail changed more than is undone key by key.
	ErrTooLarge = errors.New("log tail changes too much")
	// ErrMoved means that the log is not where the caller took it to be.
	ErrMoved = errors.New("log has moved")
	// ErrClosed means that the database was closed.
	ErrClosed = errors.New("database is closed")
)

// NoPartition is the Partition of a Position whose data belongs to none.
const NoPartition = -1

// EpochStart tells with which batch an epoch began.
type EpochStart struct {
	Epoch uint64
	Index uint64 // of the epoch's first batch
}

// Position is what a copy knows of itself.
type Position struct {
	LSN       topology.LSN // of the last batch; 0/0 if there is none
	History   string       // identifies the history; "" if it has no identity yet
	Partition int          // whose data this is, NoPartition if unknown
	Lineage   []EpochStart // ascending; shared, never modified
	// Restored is how new single values may be after a rewind, zero if none is newer
	// than LSN. Until the log reaches it, the copy is in no state that its master ever
	// had, and nobody may take it for one.
	Restored topology.LSN
}

// Empty reports whether no batch was ever written. An empty copy is the
// beginning of every history.
func (p Position) Empty() bool { return p.LSN.Index == 0 }

// EpochAt returns the epoch in which the batch with the index was written.
// Batches older than the first known epoch belong to epoch 0.
func (p Position) EpochAt(index uint64) uint64 {
	i, found := slices.BinarySearchFunc(p.Lineage, index, func(s EpochStart, index uint64) int {
		switch {
		case s.Index < index:
			return -1
		case s.Index > index:
			return 1
		}
		return 0
	})
	if found {
		return p.Lineage[i].Epoch
	}
	if i == 0 {
		return 0
	}
	return p.Lineage[i-1].Epoch
}

// StartEpoch returns the lineage with one more epoch, leaving p's unchanged.
func (p Position) StartEpoch(s EpochStart) []EpochStart {
	return append(slices.Clip(p.Lineage), s)
}

// Relation says how a peer's position relates to one's own history.
type Relation uint8

// The relations.
const (
	// Same: the peer's log is a prefix of this one.
	Same Relation = iota
	// Diverged: the peer has a tail that this history never had.
	Diverged
	// Ahead: the peer has batches of our newest epoch that we do not have.
	Ahead
	// Newer: the peer has seen an epoch that began after our newest one.
	Newer
	// Foreign: the peer belongs to another history.
	Foreign
)

func (r Relation) String() string {
	switch r {
	case Same:
		return "same"
	case Diverged:
		return "diverged"
	case Ahead:
		return "ahead"
	case Newer:
		return "newer_epoch"
	case Foreign:
		return "other_history"
	}
	return "unknown"
}

// Relate tells how the peer's position relates to p's history.
//
// An epoch has one master, so an LSN names one batch; and a batch is only ever
// appended behind the one its master had before it. So equal LSNs mean equal
// prefixes, and it is enough to see whether p has a batch with the peer's LSN.
// Lineage is compared as well: it is cheap, and a difference proves that one of
// the two assumptions was broken.
func (p Position) Relate(peer Position) Relation {
	if peer.Empty() {
		return Same
	}
	if p.History == "" || p.History != peer.History {
		return Foreign
	}
	for _, s := range peer.Lineage {
		if s.Epoch > peer.LSN.Epoch || s.Epoch > p.LSN.Epoch {
			break
		}
		if !slices.Contains(p.Lineage, s) {
			return Diverged
		}
	}
	return p.Locate(peer.LSN)
}

// Locate tells how a position that is known to be of p's history relates to p.
func (p Position) Locate(lsn topology.LSN) Relation {
	switch {
	case lsn.Index == 0:
		return Same
	case lsn.Epoch > p.LSN.Epoch:
		return Newer
	case lsn.Index > p.LSN.Index && lsn.Epoch == p.LSN.Epoch:
		return Ahead
	case lsn.Index > p.LSN.Index, p.EpochAt(lsn.Index) != lsn.Epoch:
		return Diverged
	}
	return Same
}

// Tier is a way to catch up.
type Tier uint8

// The tiers, cheapest first.
const (
	// TierNone: refused, there is no way.
	TierNone Tier = iota
	// TierWAL: stream the missing batches.
	TierWAL
	// TierCheckpoint: copy the database files, then stream.
	TierCheckpoint
	// TierDump: copy record by record a master that has no log to stream. Never
	// chosen here: such a master does not get that far.
	TierDump
	// TierRewind: undo what the master never had, key by key, then stream. (It is
	// the second cheapest; the numbers are on the wire.)
	TierRewind
)

func (t Tier) String() string {
	switch t {
	case TierWAL:
		return "wal"
	case TierCheckpoint:
		return "checkpoint"
	case TierDump:
		return "dump"
	case TierRewind:
		return "rewind"
	}
	return "none"
}

// MaxRewind is the longest tail, in batches, that is undone key by key.
const MaxRewind = 100_000

// Peer is what a copy tells that wants to catch up.
type Peer struct {
	Position
	Full   bool // it wants a copy whatever the positions say
	Rewind bool // it can undo a tail of its own
}

// Choice is the way in which a peer catches up.
type Choice struct {
	Tier   Tier
	Reason string       // machine-readable
	Fork   topology.LSN // TierRewind: the last position that stays
}

// Choose decides how a peer catches up with p, whose log still has the batches
// from index oldest on (oldest is LSN.Index+1 if it has none).
func Choose(p Position, oldest uint64, peer Peer) Choice {
	if !peer.Empty() && peer.Partition != NoPartition && p.Partition != NoPartition && peer.Partition != p.Partition {
		return Choice{Tier: TierCheckpoint, Reason: "other_partition"}
	}
	switch r := p.Relate(peer.Position); {
	case r == Newer:
		// Epochs only grow: whoever has seen a newer one has a better master
		// than us somewhere, and must not lose its data to us.
		return Choice{Tier: TierNone, Reason: "stale_master"}
	case r == Ahead && !peer.Full:
		// Only we write our newest epoch. It takes a broken log on either side to have
		// more of it than we have; a copy on request ends that.
		return Choice{Tier: TierNone, Reason: "future_position"}
	case r == Foreign:
		return Choice{Tier: TierCheckpoint, Reason: r.String()}
	case !peer.Restored.IsZero() && (r != Same || p.Locate(peer.Restored) != Same):
		// It has values of a master whose log we do not have so far. Ours would
		// not take it to where they are right.
		return Choice{Tier: TierCheckpoint, Reason: "rewind_unfinished"}
	case r == Diverged && peer.Rewind && !peer.Full:
		return chooseRewind(p, oldest, peer)
	case r != Same:
		return Choice{Tier: TierCheckpoint, Reason: r.String()}
	case peer.Full:
		return Choice{Tier: TierCheckpoint, Reason: "requested"}
	case peer.LSN.Index+1 < oldest && peer.Empty():
		return Choice{Tier: TierCheckpoint, Reason: "empty"}
	case peer.LSN.Index+1 < oldest:
		return Choice{Tier: TierCheckpoint, Reason: "purged"}
	}
	return Choice{Tier: TierWAL, Reason: "same_history"}
}

func chooseRewind(p Position, oldest uint64, peer Peer) Choice {
	fork, ok := p.Fork(peer.Position)
	switch {
	case !ok:
		return Choice{Tier: TierCheckpoint, Reason: Diverged.String()}
	case peer.LSN.Index-fork.Index > MaxRewind:
		return Choice{Tier: TierCheckpoint, Reason: "rewind_too_long"}
	case fork.Index+1 < oldest:
		return Choice{Tier: TierCheckpoint, Reason: "purged"}
	}
	return Choice{Tier: TierRewind, Reason: "diverged_tail", Fork: fork}
}

// Batch is one committed write batch.
type Batch struct {
	LSN  topology.LSN
	Data []byte // raw bytes, owned by the receiver
}

// Tail reads a log forward. It belongs to one goroutine.
type Tail interface {
	// Next returns the next batch and waits for it if there is none yet.
	Next(ctx context.Context) (Batch, error)
	// TryNext returns the next batch if there is one already.
	TryNext() (Batch, bool, error)
	// Moved returns a channel that is closed when TryNext may have another
	// answer than it would give between the call of Moved and then.
	Moved() <-chan struct{}
	// Unread returns how many bytes of log lie behind the batch that was read last.
	Unread() (int64, error)
	Close()
}

// File is one file of a checkpoint.
type File struct {
	Name string // relative to the checkpoint's directory
	Size int64
}

// Checkpoint is a copy of the database as of one position.
type Checkpoint struct {
	Dir   string
	LSN   topology.LSN
	Files []File
}

// Bytes returns the total size of the files.
func (c Checkpoint) Bytes() (n int64) {
	for _, f := range c.Files {
		n += f.Size
	}
	return n
}

// Snapshot is a checkpoint that somebody else pays for.
type Snapshot struct {
	Checkpoint
	DropFiles func() // removes the files; the log behind the checkpoint stays
	Release   func() // removes the files and lets the log go
}
