package node

import (
	"context"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// replyRoutingLoop refuses a request that would go back to a node which sent it
// on before: the node maps disagree. It was not executed.
const (
	reasonRoutingLoop = "routing loop"
	replyRoutingLoop  = "SERVER_ERROR " + reasonRoutingLoop + "\r\n"
)

// retryPause is the time after which a request that could not be sent is tried
// again although nothing is known to have changed.
const retryPause = 100 * time.Millisecond

// loopPause is the same for a request that another node's map sent back: maps
// reach all nodes at about the same time. It doubles with each time.
const loopPause = 20 * time.Millisecond

// readTimeout bounds a read at another node; the next one is asked then.
const readTimeout = 3 * time.Second

// A writer executes mutations on the local database. It belongs to one
// goroutine and exists to keep a write free of allocations.
type writer struct {
	s    *Server
	pipe *storage.Pipeline
	m    mutation
	now  int64
	out  outcome
	fn   func(storage.Entry) storage.Change
}

func (w *writer) init(s *Server) {
	w.s = s
	w.pipe = s.db.NewPipeline(s.gate.leave)
	w.fn = func(e storage.Entry) storage.Change {
		w.out = decide(e, &w.m, w.now)
		return w.out.change
	}
}

var verbs = map[text.Command]verb{
	text.CmdSet: verbSet, text.CmdAdd: verbAdd, text.CmdReplace: verbReplace,
	text.CmdAppend: verbAppend, text.CmdPrepend: verbPrepend, text.CmdCas: verbCas,
	text.CmdIncr: verbIncr, text.CmdDecr: verbDecr, text.CmdDelete: verbDelete,
	text.CmdTouch: verbTouch, text.CmdGat: verbGat,
}

// An execution is a write whose answer stands only if it is committed.
type execution struct {
	commit  *storage.Commit // nil if there is nothing to commit
	command text.Command
	copied  bool // sent by the node that this one copies
	sync    bool // the answer waits for the replicas

	everyone bool // it also waits for slaves that cannot stream, as long as they answer
}

// alone reports whether an answer stands with nobody but this node having the write.
func (e execution) alone() bool { return !e.sync && !e.copied }

// replyLeaseLost is the answer to a write that was executed and not answered before
// the lease ended: whoever is master now may not have it.
const replyLeaseLost = "SERVER_ERROR lease_lost\r\n"

// write executes a request if the gate lets it, and appends its answer to dst;
// finish tells whether that stands. With a state other than gateOpen nothing
// happened.
func (w *writer) write(dst []byte, req *text.Request, r route) ([]byte, execution, gateState, string) {
	copied := r.action == actCopy
	var state gateState
	var reason string
	if copied {
		state, reason = w.s.enterCopy(req, r.partition)
	} else if state, reason = w.s.enough(req); state == gateOpen {
		state, reason = w.s.enter(req.Key(), r.partition)
	}
	if state != gateOpen {
		return dst, execution{}, state, reason
	}
	w.m = mutation{
		verb:    verbs[req.Command],
		flags:   req.Flags,
		exptime: req.Exptime,
		delta:   req.Delta,
		data:    req.Data,
		limit:   w.s.live.Load().MaxValueSize,
		copied:  copied,
	}
	if req.HasVersion && req.Command != text.CmdTouch && req.Command != text.CmdGat {
		w.m.version = req.Version
	}
	w.now = w.s.clock().Unix()
	// The pipeline leaves the gate when the change is committed.
	commit, err := w.pipe.Update(req.Key(), w.fn)
	// Whoever sent a copy does not want to know how far it has come from here.
	e := execution{commit: commit, command: req.Command, copied: copied, sync: !copied && !req.NoReply && w.s.replicated(req),
		everyone: !copied && !req.NoReply && req.Sync}
	if err == nil {
		w.s.counters.executed(req.Command, w.out.verdict)
		dst = w.reply(dst, req)
	} else {
		dst = append(dst, w.s.notCommitted(e, err)...)
	}
	w.m.data, w.out = nil, outcome{}
	return dst, e, gateOpen, ""
}

// enter passes the gate for a write of a key that was routed to a partition, if the
// map in force still says so: since then a new partition may have taken the key over,
// and what is written here after the last such write has left the gate never gets there.
func (s *Server) enter(key []byte, partition int) (gateState, string) {
	state, reason := s.gate.enter(partition)
	if state != gateOpen {
		return state, reason
	}
	t := s.maps.table()
	if now, ok := t.partition(key); !ok || now != partition {
		s.gate.leave()
		return gateWait, "map_changed"
	}
	if s.handedOn() {
		s.gate.leave()
		return gateWait, reasonClusterReplication
	}
	if t.yields(key) {
		s.gate.leave()
		return gateWait, "partition_switching"
	}
	return gateOpen, ""
}

// finish waits until a write is committed, and for the replicas if the request
// wants that. It returns the answer if one of them failed.
func (w *writer) finish(e execution) (failure string) {
	if e.commit == nil {
		return ""
	}
	w.pipe.Wait()
	lsn, err := e.commit.Result()
	w.pipe.Reset()
	switch {
	case err != nil:
		return w.s.notCommitted(e, err)
	case e.sync && w.s.awaitReplicas(lsn) != nil:
		return text.ReplyReplicationTime
	case e.alone() && w.s.gate.unleased():
		return replyLeaseLost
	}
	if e.everyone {
		w.s.awaitSlaves(lsn)
	}
	return ""
}

// notCommitted is the answer to a write that was not committed.
func (s *Server) notCommitted(e execution, err error) string {
	if e.copied {
		s.copying.missed(err)
	}
	reason, reply := "io_error", text.ReplyIOError
	switch {
	case errors.Is(err, storage.ErrNotBegun):
		// The log went on without us although the gate was open: another node leads.
		reason, reply = "not_master", "SERVER_ERROR not_master\r\n"
	case errors.Is(err, storage.ErrDiskFull):
		reason, reply = "disk_full", "SERVER_ERROR disk_full\r\n"
	}
	s.limited.warn(s.logger, "write failed", "reason", reason, "command", e.command.String(), "error", err)
	return reply
}

func (w *writer) reply(dst []byte, req *text.Request) []byte {
	switch w.out.verdict {
	case verdictStored:
		return append(dst, text.ReplyStored...)
	case verdictNotStored:
		return append(dst, text.ReplyNotStored...)
	case verdictExists:
		return append(dst, text.ReplyExists...)
	case verdictNotFound:
		return append(dst, text.ReplyNotFound...)
	case verdictDeleted:
		return append(dst, text.ReplyDeleted...)
	case verdictTouched:
		return append(dst, text.ReplyTouched...)
	case verdictNumber:
		return text.AppendNumber(dst, w.out.number)
	case verdictValue:
		r := &w.out.record
		return text.AppendValue(dst, req.Key(), r.Flags, r.Value, 0, false)
	case verdictTooLarge:
		return append(dst, text.ReplyTooLarge...)
	}
	panic("unreachable: verdict without a reply")
}

// replicated tells whether a request's answer has to wait for the replicas.
func (s *Server) replicated(req *text.Request) bool {
	return req.Sync || !req.Async && s.live.Load().ReplicationType == options.Sync
}

// awaitReplicas waits until every in-sync replica has the position, and enough of
// them are there.
func (s *Server) awaitReplicas(lsn topology.LSN) error {
	if !s.source.Acknowledged(lsn) {
		ctx, cancel := context.WithTimeout(s.ctx, 3*s.live.Load().ReplicationTimeout)
		defer cancel()
		if err := s.source.Wait(ctx, lsn); err != nil {
			s.limited.warn(s.logger, "write was not acknowledged by every in-sync replica",
				"reason", "replication_timeout", "lsn", lsn.String(), "error", err)
			return err
		}
	}
	if short := s.source.Shortage(); short != nil {
		// The last one that is missing was given up after this was executed.
		s.limited.warn(s.logger, "write was not acknowledged by enough replicas",
			"reason", replication.ReasonNotEnoughInSync, "lsn", lsn.String(), "in_sync", short.InSync, "min_in_sync", short.Min)
		return errNotEnough
	}
	return nil
}

// awaitSlaves gives the slaves that cannot stream the chance to have a position,
// for requests that ask for it. As with the original their answers change nothing.
func (s *Server) awaitSlaves(lsn topology.LSN) {
	ctx, cancel := context.WithTimeout(s.ctx, s.live.Load().ReplicationTimeout)
	defer cancel()
	s.relays.await(ctx, lsn)
}

// requestTimeout bounds a request to another node.
func (s *Server) requestTimeout() time.Duration {
	return max(s.minTimeout, 4*s.live.Load().ReplicationTimeout)
}

// hash chooses the connection to another node and tells keys apart.
func (s *Server) hash(key []byte) uint64 { return maphash.Bytes(s.seed, key) }

// forward sends a request on to another node. The request may be reused at once.
// Answers are always asked for, even when the client wants none: a node must
// know what is in flight, and an error line that nobody reads would take the
// place of somebody else's answer.
func (s *Server) forward(node string, req *text.Request, now time.Time) *call {
	fwd := *req
	fwd.NoReply = false
	fwd.Exptime = text.Expiry(fwd.Exptime, now.Unix())
	via := s.onlySelf
	if len(req.Via) > 0 {
		via = append(slices.Clip(req.Via), s.self)
	}
	c := newCall(shapeOf(req.Command), len(via), now.Add(s.requestTimeout()))
	if c.shape == shapeValues {
		c.deadline = now.Add(readTimeout)
	}
	c.request = text.AppendRequest(c.request, &fwd, via)
	c.deadline = c.deadline.Add(transferTime(len(c.request)))
	s.peers.submit(node, uint32(s.hash(req.Key())>>32), c)
	return c
}

// settleWrite brings a write to its end that could not be executed at once: it
// awaits call if there is one, and otherwise, or when the call was certainly not
// executed, routes the request by whatever map is in force then, until the
// deadline. Its answer is appended to dst.
func (s *Server) settleWrite(w *writer, dst []byte, req *text.Request, c *call, deadline time.Time) []byte {
	for again := loopPause; ; {
		wake := s.changed.wait()
		failure := text.ReplyProxyFailure
		pause := time.Until(deadline)
		if c == nil {
			r := s.maps.table().routeWrite(req.Key(), req.Via)
			if to := s.remote.Load(); to != nil && r.action != actCopy {
				return s.settleRemoteWrite(dst, &pending{req: req, call: s.ask(to, req)})
			}
			switch r.action {
			case actLocal, actCopy:
				n := len(dst)
				var e execution
				var state gateState
				var reason string
				dst, e, state, reason = w.write(dst, req, r)
				switch state {
				case gateOpen:
					if failure := w.finish(e); failure != "" {
						dst = append(dst[:n], failure...)
					}
					return dst
				case gateRefuse:
					return text.AppendServerError(dst, reason)
				}
			case actForward:
				c = s.forward(r.to, req, s.clock())
			case actNoPartition:
				return append(dst, text.ReplyNoPartition...)
			case actLoop:
				// Whoever sent it here tries again, when one of the maps is newer.
				return append(dst, replyRoutingLoop...)
			}
		}
		if c != nil {
			select {
			case <-c.done:
			case <-s.ctx.Done():
				return append(dst, text.ReplyProxyError...)
			}
			switch {
			case c.err == nil && !c.found && strings.HasPrefix(replyRoutingLoop, string(c.line)) && len(c.line) == len(replyRoutingLoop)-2:
				failure = replyRoutingLoop
			case c.err == nil:
				dst = appendCall(dst, req, c)
				c.release()
				return dst
			case errors.Is(c.err, errQueueFull):
				s.limited.warn(s.logger, "write refused", "reason", "max_total_thread_queue", "error", c.err)
				return append(dst, text.ReplyProxyFailure...)
			case !errors.Is(c.err, errNotSent):
				s.limited.warn(s.logger, "forwarded write was not answered", "command", req.Command.String(), "error", c.err)
				return append(dst, text.ReplyProxyError...)
			}
			c = nil
			if failure != replyRoutingLoop {
				pause = min(pause, retryPause)
			} else {
				pause = min(pause, again)
				again *= 2
			}
		}
		if time.Until(deadline) <= 0 {
			return append(dst, failure...)
		}
		if !s.pause(wake, pause) {
			return append(dst, failure...)
		}
	}
}

// pause waits for wake or for the time to pass; false means the server stops.
func (s *Server) pause(wake <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-wake:
	case <-timer.C:
	case <-s.ctx.Done():
		return false
	}
	return true
}

// appendCall appends another node's answer to a write.
func appendCall(dst []byte, req *text.Request, c *call) []byte {
	if c.found {
		return text.AppendValue(dst, req.Key(), c.record.Flags, c.record.Value, 0, false)
	}
	dst = append(dst, c.line...)
	return append(dst, "\r\n"...)
}

// readLocal looks a key up in the own database. An error means that another
// node has to be asked.
func (s *Server) readLocal(dst, key []byte, withVersion bool) (answered []byte, found bool, err error) {
	now := s.clock().Unix()
	_, err = s.db.View(key, func(r storage.Record) {
		if !expired(r, now) {
			found = true
			dst = text.AppendValue(dst, key, r.Flags, r.Value, r.Version, withVersion)
		}
	})
	if err != nil {
		s.limited.warn(s.logger, "read failed", "error", err)
		return dst, false, err
	}
	return dst, found, nil
}

// settleRead brings the read of one key to its end, like settleWrite. Unlike a
// write it may be repeated, so it tries every node that can answer. What
// nobody answers until the deadline counts as not found.
func (s *Server) settleRead(dst []byte, req *text.Request, c *call, node string, deadline time.Time) ([]byte, bool) {
	key, withVersion := req.Key(), req.Command == text.CmdGets
	var avoid, useless []string // not reached; reached, but do not answer such a request
	for {
		if c == nil {
			wake := s.changed.wait()
			r := s.maps.table().routeRead(key, req.Via, slices.Concat(avoid, useless), rand.Uint32())
			if r.action == actLocal && s.readRefused() != leaseNone {
				r.action = actWait
			}
			switch r.action {
			case actLocal:
				dst, found, err := s.readLocal(dst, key, withVersion)
				if err == nil {
					return dst, found
				}
				avoid = append(avoid, s.self)
			case actForward:
				node = r.to
				c = s.forward(node, req, s.clock())
			case actWait:
				if len(avoid) == 0 && len(useless) > 0 {
					return dst, false // waiting does not make them answer
				}
				if time.Until(deadline) <= 0 || !s.pause(wake, min(retryPause, time.Until(deadline))) {
					return dst, false
				}
				avoid = nil
			default:
				return dst, false
			}
			if c == nil {
				continue
			}
		}
		select {
		case <-c.done:
		case <-s.ctx.Done():
			return dst, false
		}
		if c.err == nil && (c.found || len(c.line) == 0) {
			found := c.found
			if found {
				dst = text.AppendValue(dst, key, c.record.Flags, c.record.Value, c.record.Version, withVersion)
			}
			c.release()
			return dst, found
		}
		if errors.Is(c.err, errQueueFull) {
			s.limited.warn(s.logger, "read answered as not found", "reason", "max_total_thread_queue", "error", c.err)
			return dst, false
		}
		if c.err == nil || errors.Is(c.err, text.ErrMalformed) {
			useless = append(useless, node)
		} else {
			avoid = append(avoid, node)
		}
		c = nil
	}
}
