package replication

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// What a peer must not send is refused: the connection ends, nothing is changed, and
// the reason is counted. These are the reasons; a peer that shares none of our bugs
// and is one of this cluster's causes none of them.
const (
	refusedChecksum   = "bad_checksum"      // a frame is damaged
	refusedUnknown    = "unknown_frame"     // of a type that there is not
	refusedOversize   = "oversize_frame"    // longer than its type may be
	refusedFields     = "bad_fields"        // its payload is not what its type has
	refusedUnexpected = "unexpected_frame"  // not now, not twice or not from this side
	refusedFuture     = "future_position"   // a position that the log has not reached
	refusedDiverged   = "diverged_position" // a position that is not of this log
	refusedPartition  = "wrong_partition"
	refusedHistory    = "other_history"  // a log of another history is to go on ours
	refusedGap        = "batch_gap"      // a batch that does not continue the log
	refusedBatch      = "damaged_batch"  // it holds what no log of ours can hold
	refusedEpoch      = "diverged_batch" // it contradicts the log's lineage
	refusedCopy       = "damaged_copy"   // files of a checkpoint are not as announced
	refusedStranger   = "not_in_map"     // of another cluster, as far as the map tells
	refusedVersion    = "unsupported_version"
	refusedSlow       = "stalled_receiver" // it takes too long to take what it asked for
)

// RefusalReasons are the reasons that Refusals counts, in the order in which they
// are shown.
var RefusalReasons = [...]string{
	refusedChecksum, refusedUnknown, refusedOversize, refusedFields, refusedUnexpected,
	refusedFuture, refusedDiverged, refusedPartition, refusedHistory,
	refusedGap, refusedBatch, refusedEpoch, refusedCopy,
	refusedStranger, refusedVersion, refusedSlow,
}

// Refusals counts what peers were refused for, as masters and as replicas. The zero
// value is ready for use; nil counts nothing.
type Refusals struct {
	counts [len(RefusalReasons)]atomic.Uint64
}

// Count counts one refusal. A reason that is not of RefusalReasons is not counted.
func (r *Refusals) Count(reason string) {
	if r == nil {
		return
	}
	for i := range RefusalReasons {
		if RefusalReasons[i] == reason {
			r.counts[i].Add(1)
		}
	}
}

// Counted returns how often a reason was counted.
func (r *Refusals) Counted(reason string) uint64 {
	for i := range RefusalReasons {
		if r != nil && RefusalReasons[i] == reason {
			return r.counts[i].Load()
		}
	}
	return 0
}

// note counts an error if it is one about what a peer has sent, and tells so.
func (r *Refusals) note(err error) (reason string, refused bool) {
	if _, ok := errors.AsType[inputError](err); !ok {
		return "", false
	}
	reason = reasonOf(err)
	r.Count(reason)
	return reason, true
}

// inputError marks an error about what a peer has sent, so that it can be told from
// one that a peer has sent.
type inputError struct{ error }

func (e inputError) Unwrap() error { return e.error }

// refuse makes an error that Refusals counts.
func refuse(reason, format string, args ...any) error {
	return &Error{reason, inputError{fmt.Errorf(format, args...)}}
}
