package replication

import (
	"fmt"
	"strconv"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// protocolVersion is the version of the frames.
const protocolVersion = 1

// FollowRequest is what the upgrade line says:
//
//	replicate <self-key> <partition> <history|-> <epoch> <index> <proto>
//
// The answer is OK, after which frames follow, or SERVER_ERROR <reason>. Nodes
// that cannot stream answer ERROR, as to any unknown command.
type FollowRequest struct {
	Self      string // node key of the replica
	Partition int    // that the replica is assigned to
	History   string // of its data, "" for none
	LSN       topology.LSN
}

// AppendRequest appends the upgrade line.
func AppendRequest(dst []byte, r FollowRequest) []byte {
	h := r.History
	if h == "" {
		h = "-"
	}
	return fmt.Appendf(dst, "replicate %s %d %s %d %d %d\r\n", r.Self, r.Partition, h, r.LSN.Epoch, r.LSN.Index, protocolVersion)
}

// ParseRequest reads the words behind "replicate".
func ParseRequest(args []string) (FollowRequest, error) {
	bad := func(reason, format string, a ...any) (FollowRequest, error) {
		return FollowRequest{}, &Error{Reason: reason, Err: fmt.Errorf("replicate: "+format, a...)}
	}
	if len(args) != 6 {
		return bad("invalid_request", "%d words, want self, partition, history, epoch, index and protocol version", len(args))
	}
	if args[5] != strconv.Itoa(protocolVersion) {
		return bad("unsupported_version", "protocol version %q, want %d", args[5], protocolVersion)
	}
	r := FollowRequest{Self: args[0], History: args[2]}
	if _, _, err := topology.SplitKey(r.Self); err != nil {
		return bad("invalid_request", "self: %w", err)
	}
	if r.History == "-" {
		r.History = ""
	}
	var err error
	if r.Partition, err = strconv.Atoi(args[1]); err != nil || r.Partition < 0 {
		return bad("invalid_request", "partition %q, want a number from 0", args[1])
	}
	if r.LSN.Epoch, err = strconv.ParseUint(args[3], 10, 64); err != nil {
		return bad("invalid_request", "epoch %q, want a number from 0", args[3])
	}
	if r.LSN.Index, err = strconv.ParseUint(args[4], 10, 64); err != nil {
		return bad("invalid_request", "index %q, want a number from 0", args[4])
	}
	return r, nil
}

// peer returns what the line and HELLO tell of the replica.
func (r FollowRequest) peer(h hello) history.Peer {
	return history.Peer{
		Position: history.Position{LSN: r.LSN, History: r.History, Partition: int(h.partition), Lineage: h.lineage, Restored: h.restored},
		Full:     h.want == history.TierCheckpoint,
		Rewind:   h.rewind,
	}
}
