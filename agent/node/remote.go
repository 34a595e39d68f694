package node

import (
	"errors"
	"slices"
	"sync/atomic"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/proto/text"
)

// A remote is the cluster that answers clients instead of this one: mode forward
// of cluster replication. Requests go there as they came, but for the list of the
// nodes that they went through here, which means nothing there.
//
// What the master of this node's partition has executed and sends on is not
// intercepted: it is replication, and would else be lost on this node. Two clusters
// that forward to each other pass each request to and fro until it times out.
type remote struct{ addr string }

// forwards counts what became of requests in mode forward.
type forwards struct{ answered, failed atomic.Uint64 }

// setRemote puts the options of mode forward in force, for the next request on.
func (s *Server) setRemote(o options.ClusterReplication) {
	var next *remote
	if o.Enabled && o.Mode == options.Forward && o.ServerName != "" {
		next = &remote{addr: clusterAddr(o)}
	}
	former := s.remote.Swap(next)
	if former != nil && (next == nil || *former != *next) {
		// What is in flight there may be answered.
		s.remotes.retain(func(node string) bool { return next != nil && node == next.addr }, s.requestTimeout())
	}
}

// ask sends a request to the other cluster. The request may be reused at once.
func (s *Server) ask(to *remote, req *text.Request) *call {
	now := s.clock()
	fwd := *req
	fwd.NoReply = false
	fwd.Exptime = text.Expiry(fwd.Exptime, now.Unix())
	c := newCall(shapeOf(req.Command), len(req.Via)+1, now.Add(s.requestTimeout()))
	if c.shape == shapeValues {
		c.deadline = now.Add(readTimeout)
	}
	c.request = text.AppendRequest(c.request, &fwd, nil)
	s.remotes.submit(to.addr, uint32(s.hash(req.Key())>>32), c)
	return c
}

// awaitRemote waits for the answer of the other cluster. Without an error it is in c.
func (s *Server) awaitRemote(c *call) error {
	select {
	case <-c.done:
	case <-s.ctx.Done():
		return errInFlight // c is not ours yet
	}
	if c.err != nil {
		s.forwards.failed.Add(1)
		s.limited.warn(s.logger, "request was not answered by the other cluster", "reason", "cluster_replication", "error", c.err)
		return c.err
	}
	s.forwards.answered.Add(1)
	return nil
}

// getRemote answers get and gets from the other cluster.
func (c *conn) getRemote(to *remote) {
	for _, key := range c.req.Keys {
		hash := c.s.hash(key)
		c.order(hash, false)
		req := &text.Request{Command: c.req.Command, Via: c.req.Via, Keys: [][]byte{slices.Clone(key)}}
		c.pending = append(c.pending, pending{kind: pendingRead, at: len(c.out), hash: hash, req: req, call: c.s.ask(to, req), remote: true})
		if len(c.pending) >= maxPending && c.flush() != nil {
			return
		}
	}
	c.out = append(c.out, text.ReplyEnd...)
}

// writeRemote has the other cluster execute a write.
func (c *conn) writeRemote(to *remote, hash uint64) {
	c.pending = append(c.pending, pending{kind: pendingWrite, at: len(c.out), hash: hash, req: c.req.Clone(), call: c.s.ask(to, &c.req), remote: true})
}

// settleRemoteRead appends the other cluster's answer to a read. Without one the
// key counts as not found, as everywhere.
func (s *Server) settleRemoteRead(dst []byte, p *pending) ([]byte, bool) {
	if s.awaitRemote(p.call) != nil || !p.call.found {
		return dst, false
	}
	r := &p.call.record
	return text.AppendValue(dst, p.req.Key(), r.Flags, r.Value, r.Version, p.req.Command == text.CmdGets), true
}

// settleRemoteWrite appends the other cluster's answer to a write. It is never
// repeated here: who wants that must know whether it may be executed twice.
func (s *Server) settleRemoteWrite(dst []byte, p *pending) []byte {
	switch err := s.awaitRemote(p.call); {
	case err == nil:
		return appendCall(dst, p.req, p.call)
	case errors.Is(err, errNotSent), errors.Is(err, errQueueFull):
		return append(dst, text.ReplyProxyFailure...)
	}
	return append(dst, text.ReplyProxyError...)
}

// remoteKeys asks the other cluster for keys.
func (s *Server) remoteKeys(to *remote, prefix []byte, limit int) ([][]byte, error) {
	c := s.ask(to, &text.Request{Command: text.CmdKeys, Keys: [][]byte{prefix}, Limit: limit})
	switch {
	case s.awaitRemote(c) != nil:
		return nil, errors.New("proxy failure")
	case len(c.line) > 0:
		return nil, errors.New(string(c.line))
	}
	return c.keys, nil
}
