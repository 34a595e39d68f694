package node

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

const (
	// flushSize is how much output is collected before it is written although
	// more requests are at hand.
	flushSize = 64 << 10
	// maxPending bounds the unfinished requests of one connection.
	maxPending = 256
	// maxWriteTime is how long a client may take to accept output.
	maxWriteTime = time.Minute
	// drainGrace is how long a stopping node waits for one more request on a
	// connection before it closes it.
	drainGrace = 150 * time.Millisecond
)

// A conn is one connection from a client, a node or the index. All of it
// belongs to the goroutine that serves it, except the atomic fields.
//
// Requests are executed as they are read. What has to be waited for - the
// commit, the replicas' acknowledgement, another node's answer - leaves a place
// in the output and is settled when there is nothing more to read, so that
// pipelined requests share the waiting. Requests for one key are never reordered.
type conn struct {
	s  *Server
	nc net.Conn
	r  *text.Reader
	w  writer

	req       text.Request
	out       []byte    // answers not yet written; nil while there is nothing to answer
	buf       *[]byte   // that out came from
	pending   []pending // places in out, in order
	committed int       // of pending, commits before this one need no waiting

	readBy, writeBy time.Time // deadlines set

	head      []byte // first bytes of the last read, for logs
	reserved  bool   // beyond the limit for clients: other nodes and the index only
	lastFlush error

	op        atomic.Uint32          // text.Command that is executed, for stats threads
	replica   atomic.Pointer[string] // node key, once the connection is a stream to a replica
	killed    atomic.Bool
	draining  atomic.Bool
	streaming atomic.Bool // handed over to replication
}

// A pending is a place in the output whose content is not known yet.
type pending struct {
	kind pendingKind
	at   int // offset in out
	size int // pendingCommit: length of the answer at at, which holds if all goes well

	hash uint64 // of the key

	execution        // pendingCommit
	silent    bool   // no answer is wanted
	failure   string // that the commit ended with

	req    *text.Request  // otherwise; owned
	read   *postponedRead // pendingRead: what req is part of
	call   *call          // may be nil
	node   string         // that call went to
	remote bool           // it went to the other cluster
}

type pendingKind uint8

const (
	pendingCommit pendingKind = iota
	pendingWrite
	pendingRead
)

// outputs are buffers for answers: a connection has one only while it has
// something to answer, so that idle ones cost little.
var outputs = sync.Pool{New: func() any {
	b := make([]byte, 0, 4<<10)
	return &b
}}

const (
	// keepOutput bounds the buffers that are used again.
	keepOutput = 2 * flushSize
	// keepPending bounds the places that a connection keeps while it has nothing to answer.
	keepPending = 32
)

// acquire gives the connection a buffer to answer into.
func (c *conn) acquire() {
	if c.buf == nil {
		c.buf = outputs.Get().(*[]byte)
		c.out = (*c.buf)[:0]
	}
}

// release gives the buffer back; what is in it was written.
func (c *conn) release() {
	if c.buf == nil {
		return
	}
	giveBack(c.buf, c.out)
	c.buf, c.out = nil, nil
	if cap(c.pending) > keepPending {
		c.pending = nil
	}
}

// giveBack puts b, which began as what buf holds, where acquire finds it.
func giveBack(buf *[]byte, b []byte) {
	if cap(b) <= keepOutput {
		*buf = b[:0]
		outputs.Put(buf)
	}
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc}
	c.w.init(s)
	c.r = text.NewReader(c, s.readerOptions())
	return c
}

// Read gives the reader more input. It is only called when everything read so
// far is used up, which makes it the place to write what was answered.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.flush(); err != nil {
		return 0, err
	}
	c.op.Store(uint32(text.CmdNone))
	c.release()
	now := time.Now()
	if c.draining.Load() {
		if now.After(c.s.drainEnd()) {
			return 0, io.EOF
		}
		c.nc.SetReadDeadline(now.Add(drainGrace))
	} else if timeout := c.s.live.Load().NetReadTimeout; overdue(c.readBy, now, timeout, timeout/16) {
		c.readBy = now.Add(timeout)
		c.nc.SetReadDeadline(c.readBy)
		if c.draining.Load() {
			c.nc.SetReadDeadline(now.Add(drainGrace))
		}
	}
	n, err := c.nc.Read(p)
	c.s.counters.traffic.read.Add(uint64(n))
	c.head = append(c.head[:0], p[:min(n, 32)]...)
	c.r.SetMaxValue(int(c.s.live.Load().MaxValueSize))
	return n, err
}

// overdue tells whether a deadline must be set anew to be the timeout from now,
// less slack at most: to set one for every read would cost more than to parse
// what was read.
func overdue(deadline, now time.Time, timeout, slack time.Duration) bool {
	left := deadline.Sub(now)
	return left > timeout || left < timeout-slack
}

// drain asks the connection to end as soon as its client pauses.
func (c *conn) drain() {
	c.draining.Store(true)
	c.nc.SetReadDeadline(time.Now().Add(drainGrace))
}

// serve answers requests until the connection ends. It closes nothing.
func (c *conn) serve() {
	for {
		err := c.r.ReadRequest(&c.req)
		c.acquire()
		if err != nil {
			if !c.refuse(err) {
				c.flush()
				return
			}
			continue
		}
		if c.reserved && !c.s.privileged(&c.req) {
			return
		}
		c.reserved = false
		if !c.dispatch() {
			c.flush()
			return
		}
		if len(c.out) >= flushSize || len(c.pending) >= maxPending {
			if c.flush() != nil {
				return
			}
		}
	}
}

// refuse answers a request that could not be read; false ends the connection.
func (c *conn) refuse(err error) bool {
	var problem *text.ProtocolError
	if errors.As(err, &problem) {
		c.s.logGarbage(c, problem)
		c.out = append(c.out, problem.Reply...)
		return !c.reserved && (len(c.out) < flushSize || c.flush() == nil)
	}
	switch {
	case errors.Is(err, text.ErrBinary):
		c.s.logBinary(c)
	case errors.Is(err, os.ErrDeadlineExceeded) && c.req.Command.HasData() && !c.draining.Load():
		// As the original, but the rest of the block will not be taken for commands.
		c.out = append(c.out, text.ReplyError...)
	}
	return false
}

// privileged tells whether a request comes from the index or another node.
func (s *Server) privileged(req *text.Request) bool {
	return req.Proxied || req.Command == text.CmdPing || req.Command == text.CmdNodeSync || req.Command == text.CmdReplicate
}

// dispatch executes one request; false ends the connection.
func (c *conn) dispatch() bool {
	req := &c.req
	c.op.Store(uint32(req.Command))
	switch cmd := req.Command; {
	case cmd == text.CmdGet || cmd == text.CmdGets:
		c.get()
		return true
	case cmd.IsWrite():
		c.write()
		return true
	}
	// What follows may look at or change more than one key.
	c.settle()
	return c.s.command(c, req)
}

// get answers get and gets, key by key.
func (c *conn) get() {
	if to := c.s.remote.Load(); to != nil {
		c.getRemote(to)
		return
	}
	withVersion := c.req.Command == text.CmdGets
	if c.s.readRefused() != leaseNone && !c.awaitReadable() {
		c.out = append(c.out, replyNoRead...)
		return
	}
	t := c.s.maps.table()
	for _, key := range c.req.Keys {
		hash := c.s.hash(key)
		c.order(hash, false)
		switch r := t.routeRead(key, c.req.Via, nil, rand.Uint32()); r.action {
		case actLocal:
			var found bool
			var err error
			c.out, found, err = c.s.readLocal(c.out, key, withVersion)
			if err != nil {
				c.postponeRead(key, hash, "")
				continue
			}
			c.s.counters.get(found)
		case actForward, actWait:
			c.postponeRead(key, hash, r.to)
		default:
			c.s.counters.get(false)
		}
		if len(c.out) >= flushSize || len(c.pending) >= maxPending {
			if c.flush() != nil {
				return
			}
		}
	}
	c.out = append(c.out, text.ReplyEnd...)
}

// awaitReadable waits for the first lease of a new master if a key belongs to its
// partition; false if this node must not answer.
func (c *conn) awaitReadable() bool {
	own, ok := ownershipOf(c.s.maps.table())
	if !ok || !slices.ContainsFunc(c.req.Keys, own.owns) {
		return true
	}
	c.settle()
	for deadline := time.Now().Add(c.s.failoverWait); ; {
		wake := c.s.changed.wait()
		switch c.s.readRefused() {
		case leaseNone:
			return true
		case leaseLost:
			return false
		}
		if left := time.Until(deadline); left <= 0 || !c.s.pause(wake, min(left, retryPause)) {
			return false
		}
	}
}

func (c *conn) postponeRead(key []byte, hash uint64, node string) {
	r := postponedReads.Get().(*postponedRead)
	r.key[0] = append(r.key[0][:0], key...)
	r.req = text.Request{Command: c.req.Command, Proxied: c.req.Proxied, Via: c.req.Via, Keys: r.key[:]}
	p := pending{kind: pendingRead, at: len(c.out), hash: hash, req: &r.req, read: r, node: node}
	if node != "" {
		p.call = c.s.forward(node, &r.req, c.s.clock())
	}
	c.pending = append(c.pending, p)
}

// A postponedRead is the request for one key of a get that another node answers.
type postponedRead struct {
	req text.Request
	key [1][]byte // of req
}

var postponedReads = sync.Pool{New: func() any { return new(postponedRead) }}

// write answers every command that changes one key.
func (c *conn) write() {
	req := &c.req
	c.s.counters.write(req.Command)
	hash := c.s.hash(req.Key())
	c.order(hash, true)
	at := len(c.out)
	node := ""
	r := c.s.maps.table().routeWrite(req.Key(), req.Via)
	if to := c.s.remote.Load(); to != nil && r.action != actCopy {
		c.writeRemote(to, hash)
		return
	}
	switch r.action {
	case actLocal, actCopy:
		out, e, state, reason := c.w.write(c.out, req, r)
		switch state {
		case gateOpen:
			c.out = out
			if req.NoReply {
				c.out = c.out[:at]
			}
			if e.commit != nil {
				c.pending = append(c.pending, pending{kind: pendingCommit, at: at, size: len(c.out) - at, hash: hash, execution: e, silent: req.NoReply})
			}
			return
		case gateRefuse:
			c.fail(text.AppendServerError(c.out, reason))
			return
		}
	case actForward:
		node = r.to
	case actNoPartition:
		c.fail(append(c.out, text.ReplyNoPartition...))
		return
	case actLoop:
		c.fail(append(c.out, replyRoutingLoop...))
		return
	}
	p := pending{kind: pendingWrite, at: at, hash: hash, req: req.Clone(), node: node}
	if node != "" {
		p.call = c.s.forward(node, req, c.s.clock())
	}
	c.pending = append(c.pending, p)
}

// fail takes over out with an error line appended, unless no answer is wanted.
func (c *conn) fail(out []byte) {
	if !c.req.NoReply {
		c.out = out
	}
}

// order makes sure that a request for a key does not overtake what is pending
// for it: a read sees the writes before it, and nothing overtakes what another
// node executes.
func (c *conn) order(hash uint64, write bool) {
	for i := range c.pending {
		p := &c.pending[i]
		if p.hash != hash {
			continue
		}
		switch {
		case p.kind == pendingWrite || write && p.kind == pendingRead:
			c.settle()
			return
		case p.kind == pendingCommit && !write && i >= c.committed:
			c.w.pipe.Wait()
			c.committed = len(c.pending)
		}
	}
}

// settle waits for everything pending and puts the answers in their places.
func (c *conn) settle() {
	if len(c.pending) == 0 {
		return
	}
	// One wait, for the last position, covers all commits.
	c.w.pipe.Wait()
	var high, everyone topology.LSN
	rebuild, alone := false, false
	for i := range c.pending {
		p := &c.pending[i]
		if p.kind != pendingCommit {
			rebuild = true
			continue
		}
		lsn, err := p.commit.Result()
		if err != nil {
			p.failure = c.s.notCommitted(p.execution, err)
			rebuild = true
		} else if p.sync && high.Less(lsn) {
			high = lsn
		}
		alone = alone || err == nil && p.alone()
		if err == nil && p.everyone && everyone.Less(lsn) {
			everyone = lsn
		}
	}
	c.w.pipe.Reset()
	c.committed = 0
	late := !high.IsZero() && c.s.awaitReplicas(high) != nil
	if !everyone.IsZero() {
		c.s.awaitSlaves(everyone)
	}
	lost := alone && c.s.gate.unleased()
	if !rebuild && !late && !lost {
		clear(c.pending) // commits may be large
		c.pending = c.pending[:0]
		return
	}
	deadline := time.Now().Add(c.s.failoverWait)
	buf := outputs.Get().(*[]byte)
	dst, from := (*buf)[:0], 0
	for i := range c.pending {
		p := &c.pending[i]
		dst = append(dst, c.out[from:p.at]...)
		from = p.at
		switch p.kind {
		case pendingCommit:
			from += p.size
			switch {
			case p.silent:
			case p.failure != "":
				dst = append(dst, p.failure...)
			case late && p.sync:
				dst = append(dst, text.ReplyReplicationTime...)
			case lost && p.alone():
				dst = append(dst, replyLeaseLost...)
			default:
				dst = append(dst, c.out[p.at:from]...)
			}
		case pendingWrite:
			n := len(dst)
			if p.remote {
				dst = c.s.settleRemoteWrite(dst, p)
			} else {
				dst = c.s.settleWrite(&c.w, dst, p.req, p.call, deadline)
			}
			if p.req.NoReply {
				dst = dst[:n]
			}
		case pendingRead:
			var found bool
			if p.remote {
				dst, found = c.s.settleRemoteRead(dst, p)
			} else {
				dst, found = c.s.settleRead(dst, p.req, p.call, p.node, deadline)
			}
			c.s.counters.get(found)
			if p.read != nil {
				postponedReads.Put(p.read)
			}
		}
	}
	dst = append(dst, c.out[from:]...)
	giveBack(c.buf, c.out)
	c.buf, c.out = buf, dst
	clear(c.pending)
	c.pending = c.pending[:0]
}

// flush writes everything answered so far.
func (c *conn) flush() error {
	if c.lastFlush != nil {
		return c.lastFlush
	}
	c.settle()
	if len(c.out) == 0 {
		return nil
	}
	limit := min(c.s.live.Load().NetReadTimeout, maxWriteTime)
	now := time.Now()
	if overdue(c.writeBy, now, limit, limit/2) {
		c.writeBy = now.Add(limit)
		c.nc.SetWriteDeadline(c.writeBy)
	}
	if c.killed.Load() {
		c.nc.SetWriteDeadline(now.Add(killGrace))
	}
	n, err := c.nc.Write(c.out)
	c.s.counters.traffic.written.Add(uint64(n))
	c.out = c.out[:0]
	c.lastFlush = err
	return err
}
