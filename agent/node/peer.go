package node

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
)

const (
	// peerDialTimeout bounds the time that a dead node costs.
	peerDialTimeout = time.Second
	// peerRetryPause is how long a node that could not be reached fails
	// requests at once before it is dialled again.
	peerRetryPause = 200 * time.Millisecond
	// peerQueueBytes bounds what waits for one connection.
	peerQueueBytes = 64 << 20
	// keepQueue is the number of calls up to which a queue's memory is used again.
	keepQueue = 1024
	// deadlineSlack is by how much a connection's deadline may be off: to set one
	// for every call costs more than the call.
	deadlineSlack = 100 * time.Millisecond
)

var (
	// errNotSent marks a request that certainly was not executed.
	errNotSent = errors.New("request was not sent")
	// errInFlight marks a request that may have been executed.
	errInFlight = errors.New("request was sent and not answered")
	// errQueueFull marks a request that was not sent because max-total-thread-queue
	// others are waiting. Trying it again would only make that worse.
	errQueueFull = errors.New("too many requests wait for other nodes")
)

// A linkKind separates requests that must not stand behind each other: reads
// do not wait for writes that wait for replicas, and a request that has come
// further does not wait for one at an earlier hop. Answers come in the order of
// the requests, so a request waits for those before it on its connection; as
// whatever it waits for at the next node is of a later hop, no circle of
// requests can ever wait for itself. A list of keys may take long to be found, and
// nothing waits for it but another one.
type linkKind struct {
	hop  int // nodes that the request has gone through
	read bool
	keys bool
}

// A call is one request to another node. The goroutine that submits it owns it
// again once done is closed.
type call struct {
	request  []byte // encoded
	hop      int    // nodes that it has gone through, this one included
	shape    replyShape
	deadline time.Time
	since    time.Time // when it was queued

	waiting *atomic.Int64 // that it counts in until it is finished

	done   chan struct{}  // capacity 1, one signal
	err    error          // errNotSent, errInFlight, errQueueFull or nil
	line   []byte         // the answer, unless found
	found  bool           // the answer is record
	record storage.Record // its value is value
	value  []byte
	keys   [][]byte // with shapeKeys
}

// peers holds the connections to other nodes.
type peers struct {
	logger  *slog.Logger
	dial    func(ctx context.Context, node string) (net.Conn, error)
	traffic *traffic
	tasks   *registry
	// threadType returns the number that the index gave to a node.
	threadType func(node string) int
	// concurrency is the number of connections to another node for requests of one
	// kind. Writes of a key always use the same one.
	concurrency int
	limit       func() int   // of waiting, 0 for none
	waiting     atomic.Int64 // calls that are not finished

	mu     sync.Mutex
	closed bool
	byNode map[string]map[linkKind][]*link
}

func newPeers(dial func(ctx context.Context, node string) (net.Conn, error), traffic *traffic, tasks *registry, threadType func(node string) int, concurrency int, limit func() int, logger *slog.Logger) *peers {
	return &peers{
		logger:      logger,
		dial:        dial,
		traffic:     traffic,
		tasks:       tasks,
		threadType:  threadType,
		concurrency: max(1, concurrency),
		limit:       limit,
		byNode:      map[string]map[linkKind][]*link{},
	}
}

// submit queues a call to a node. It never blocks; hash chooses among the
// connections of the call's kind.
func (p *peers) submit(node string, hash uint32, c *call) {
	c.waiting = &p.waiting
	if n, limit := c.waiting.Add(1), p.limit(); limit > 0 && n > int64(limit) {
		c.finish(fmt.Errorf("%w: max-total-thread-queue is %d", errQueueFull, limit))
		return
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		c.finish(fmt.Errorf("%w: node is stopping", errNotSent))
		return
	}
	kinds := p.byNode[node]
	if kinds == nil {
		kinds = map[linkKind][]*link{}
		p.byNode[node] = kinds
	}
	kind := linkKind{hop: c.hop, read: c.shape == shapeValues, keys: c.shape == shapeKeys}
	links := kinds[kind]
	if links == nil {
		links = make([]*link, p.concurrency)
		kinds[kind] = links
	}
	i := hash % uint32(len(links))
	l := links[i]
	if l == nil {
		l = &link{peers: p, node: node, reads: kind.read || kind.keys, wake: make(chan struct{}, 1), stop: make(chan struct{})}
		links[i] = l
		go l.run()
	}
	p.mu.Unlock()
	l.enqueue(c)
}

// retain gives up the connections to all nodes that keep refuses. What is in
// flight there has grace to be answered: a node that leaves in good order still
// answers, and from one that died nothing is to be expected.
func (p *peers) retain(keep func(node string) bool, grace time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for node, kinds := range p.byNode {
		if keep(node) {
			continue
		}
		delete(p.byNode, node)
		for l := range all(kinds) {
			time.AfterFunc(grace, func() { l.close(fmt.Errorf("%s is down", node)) })
		}
	}
}

// close drops all connections at once.
func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, kinds := range p.byNode {
		for l := range all(kinds) {
			l.close(errors.New("node is stopping"))
		}
	}
	clear(p.byNode)
}

// all returns the links of a node that exist.
func all(kinds map[linkKind][]*link) iter.Seq[*link] {
	return func(yield func(*link) bool) {
		for _, links := range kinds {
			for _, l := range links {
				if l != nil && !yield(l) {
					return
				}
			}
		}
	}
}

// calls are used again: a node that forwards a request should not make the
// garbage collector pay for it.
var calls = sync.Pool{New: func() any { return &call{done: make(chan struct{}, 1)} }}

// keepCall bounds in bytes the buffers that are used again.
const keepCall = 64 << 10

// newCall returns a call to fill with a request, which is appended to request.
func newCall(shape replyShape, hop int, deadline time.Time) *call {
	c := calls.Get().(*call)
	*c = call{
		request: c.request[:0], line: c.line[:0], value: c.value[:0], done: c.done,
		shape: shape, hop: hop, deadline: deadline,
	}
	return c
}

// release gives a call back of which nothing is used any more. One that failed
// may still be in the hands of whoever was reading its answer, and is left alone.
func (c *call) release() {
	if c.err == nil && cap(c.request)+cap(c.value)+cap(c.line) <= keepCall {
		calls.Put(c)
	}
}

func (c *call) finish(err error) {
	c.err = err
	c.waiting.Add(-1)
	c.done <- struct{}{}
}

// A link is one pipelined connection to another node: a writer that sends
// everything queued at once, a reader that matches answers in order.
type link struct {
	peers *peers
	node  string
	reads bool
	wake  chan struct{} // capacity 1: queue is not empty
	stop  chan struct{} // closed by close

	mu       sync.Mutex
	stopped  error
	queue    []*call
	queued   int // bytes in queue
	conn     net.Conn
	inflight []*call   // sent, not answered, oldest first
	readBy   time.Time // deadline set for reads from conn

	writeBy time.Time // likewise for writes; of the writer
}

func (l *link) enqueue(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.stopped != nil:
		c.finish(fmt.Errorf("%w: %w", errNotSent, l.stopped))
		return
	case l.queued > 0 && l.queued+len(c.request) > peerQueueBytes:
		c.finish(fmt.Errorf("%w: %d bytes are waiting for %s already", errNotSent, l.queued, l.node))
		return
	}
	c.since = time.Now()
	l.queue = append(l.queue, c)
	l.queued += len(c.request)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// close ends the link; queued and sent calls fail.
func (l *link) close(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped != nil {
		return
	}
	l.stopped = why
	close(l.stop)
	l.failQueued(why)
	l.drop(l.conn, why)
}

// failQueued fails what was not sent; l.mu is held.
func (l *link) failQueued(why error) {
	for _, c := range l.queue {
		c.finish(fmt.Errorf("%w to %s: %w", errNotSent, l.node, why))
	}
	l.queue, l.queued = nil, 0
}

// drop closes conn if it is still the link's connection and fails what was
// sent on it; l.mu is held.
func (l *link) drop(conn net.Conn, why error) {
	if conn == nil || l.conn != conn {
		return
	}
	l.conn = nil
	conn.Close()
	for i, c := range l.inflight {
		if i == 1 && errors.Is(why, text.ErrMalformed) {
			why = errors.New("what answers it cannot be told any more")
		}
		c.finish(fmt.Errorf("%w by %s: %w", errInFlight, l.node, why))
	}
	l.inflight = nil
}

// run is the writer.
func (l *link) run() {
	task := l.peers.tasks.register(time.Now(), l.describe, l.kill)
	defer l.peers.tasks.unregister(task)
	var buf []byte
	var unreachable time.Time // until when requests fail without a dial
	var last error
	for {
		select {
		case <-l.stop:
			return
		case <-l.wake:
		}
		// Whoever queued the first call made this goroutine the next to run. Let it,
		// and others that are ready, queue what else there is: one write takes all.
		runtime.Gosched()
		l.mu.Lock()
		conn := l.conn
		l.mu.Unlock()
		if conn == nil {
			if time.Now().Before(unreachable) {
				l.mu.Lock()
				l.failQueued(last)
				l.mu.Unlock()
				continue
			}
			if conn, last = l.dial(); last != nil {
				unreachable = time.Now().Add(peerRetryPause)
				l.mu.Lock()
				l.failQueued(last)
				l.mu.Unlock()
				continue
			}
		}
		buf = l.send(conn, buf[:0])
		if cap(buf) > 1<<20 {
			buf = nil
		}
	}
}

func (l *link) dial() (net.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-l.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := l.peers.dial(ctx, l.node)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped != nil {
		conn.Close()
		return nil, l.stopped
	}
	l.conn = conn
	l.readBy, l.writeBy = time.Time{}, time.Time{}
	go l.read(conn)
	return conn, nil
}

// send writes everything that is queued. Calls count as sent before the first
// byte is written: a write that fails may have delivered some of them.
func (l *link) send(conn net.Conn, buf []byte) []byte {
	l.mu.Lock()
	if l.conn != conn {
		// Closed by the other side before anything was sent.
		l.failQueued(errors.New("connection was closed"))
		l.mu.Unlock()
		return buf
	}
	now := time.Now()
	var until time.Time
	for _, c := range l.queue {
		if now.After(c.deadline) {
			c.finish(fmt.Errorf("%w to %s in time", errNotSent, l.node))
			continue
		}
		buf = append(buf, c.request...)
		l.inflight = append(l.inflight, c)
		until = c.deadline
	}
	clear(l.queue)
	l.queue, l.queued = l.queue[:0], 0
	if cap(l.queue) > keepQueue {
		l.queue = nil
	}
	l.expect(conn)
	l.mu.Unlock()
	if len(buf) == 0 {
		return buf
	}
	if left := l.writeBy.Sub(now); left < until.Sub(now)-deadlineSlack || left > until.Sub(now) {
		l.writeBy = until
		conn.SetWriteDeadline(until)
	}
	n, err := conn.Write(buf)
	l.peers.traffic.written.Add(uint64(n))
	if err != nil {
		l.mu.Lock()
		l.drop(conn, err)
		l.mu.Unlock()
	}
	return buf
}

// expect makes reads from conn end when the oldest call must be answered, give or
// take deadlineSlack; l.mu is held. While there is none the deadline stays, and
// read takes no notice of it.
func (l *link) expect(conn net.Conn) {
	if len(l.inflight) == 0 {
		return
	}
	if by := l.inflight[0].deadline; l.readBy.Sub(by).Abs() >= deadlineSlack {
		l.readBy = by
		conn.SetReadDeadline(by)
	}
}

// extend gives the answer that is being read more time for n bytes of it that
// came: a large value may take longer than a small one.
func (l *link) extend(conn net.Conn, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == conn && len(l.inflight) > 0 {
		c := l.inflight[0]
		c.deadline = c.deadline.Add(transferTime(n))
		l.expect(conn)
	}
}

// transferTime is how long so many bytes may be on their way between two nodes:
// a second for each MiB.
func transferTime(n int) time.Duration { return time.Duration(n) * time.Second >> 20 }

// idle takes the deadline away if it ended a read although nothing is overdue;
// l.mu is held.
func (l *link) idle(conn net.Conn, now time.Time) bool {
	if l.conn != conn || len(l.inflight) > 0 && l.inflight[0].deadline.Sub(now) < deadlineSlack {
		return false
	}
	l.readBy = time.Time{}
	conn.SetReadDeadline(l.readBy)
	l.expect(conn)
	return true
}

// read matches answers with calls until the connection ends. It always reads,
// so that a connection closed by the other side is noticed while it is idle.
func (l *link) read(conn net.Conn) {
	in := &peekReader{conn: conn, n: &l.peers.traffic.read, got: func(n int) { l.extend(conn, n) }}
	r := text.NewReplyReader(in, text.ReplyOptions{MaxValue: text.MaxLength})
	for {
		var err error
		if r.Buffered() == 0 {
			err = in.wait()
		}
		l.mu.Lock()
		if errors.Is(err, os.ErrDeadlineExceeded) && l.idle(conn, time.Now()) {
			l.mu.Unlock()
			continue
		}
		if err == nil && len(l.inflight) == 0 {
			err = errors.New("bytes that nobody asked for")
		}
		if err != nil || l.conn != conn {
			l.drop(conn, err)
			l.mu.Unlock()
			return
		}
		c := l.inflight[0]
		l.mu.Unlock()

		// The call stays at the head of inflight while its answer is read, so
		// that drop is the only one to fail it; it is finished here under the
		// lock only if it is still there.
		err = readReply(r, c)
		l.mu.Lock()
		if err != nil || l.conn != conn {
			l.drop(conn, err)
			l.mu.Unlock()
			return
		}
		l.inflight[0] = nil
		l.inflight = l.inflight[1:]
		l.expect(conn)
		l.mu.Unlock()
		c.finish(nil)
	}
}

// traffic counts bytes on all sockets.
type traffic struct{ read, written atomic.Uint64 }

// A peekReader can wait for input before anybody wants to consume it.
type peekReader struct {
	conn  net.Conn
	n     *atomic.Uint64
	got   func(n int) // told of bytes of an answer that has begun
	buf   [4 << 10]byte
	ahead []byte // part of buf
}

// wait returns once there is something to read.
func (r *peekReader) wait() error {
	for len(r.ahead) == 0 {
		n, err := r.conn.Read(r.buf[:])
		r.n.Add(uint64(n))
		r.ahead = r.buf[:n]
		if n == 0 && err != nil {
			return err
		}
	}
	return nil
}

func (r *peekReader) Read(p []byte) (int, error) {
	if len(r.ahead) > 0 {
		n := copy(p, r.ahead)
		r.ahead = r.ahead[n:]
		return n, nil
	}
	n, err := r.conn.Read(p)
	r.n.Add(uint64(n))
	if n > 0 {
		r.got(n)
	}
	return n, err
}
