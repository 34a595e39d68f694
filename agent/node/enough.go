package node

import (
	"errors"
	"fmt"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/proto/text"
)

// errNotEnough: a write was executed, and fewer nodes than wanted have it.
var errNotEnough = errors.New("too few nodes are in sync")

// enough tells whether a write may be executed as far as the number of nodes goes
// that will have it when it is answered. One that asks not to wait for replicas
// (async) does not care.
func (s *Server) enough(req *text.Request) (gateState, string) {
	short := s.source.Shortage()
	switch {
	case short == nil || req.Async:
		return gateOpen, ""
	case short.Forming:
		return gateWait, replication.ReasonNotEnoughInSync
	}
	reason := fmt.Sprintf("%s: %d of %d nodes are in sync", replication.ReasonNotEnoughInSync, short.InSync, short.Min)
	s.limited.warn(s.logger, "write refused", "reason", replication.ReasonNotEnoughInSync, "in_sync", short.InSync, "min_in_sync", short.Min)
	return gateRefuse, reason
}
