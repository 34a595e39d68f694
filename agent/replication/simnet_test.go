package replication

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The network of a simulation: connections in memory with delays, which are cut
// in the middle of a message, hold everything back for a while, or damage it.

// pipeWindow is how many bytes a connection has under way before a writer waits.
const pipeWindow = 64 << 10

// A segment is what one write brings, and when.
type segment struct {
	at   time.Time
	data []byte
	err  error // instead of data: the end
}

// A pipe is one direction of a connection.
type pipe struct {
	rng *rand.Rand // of the writer

	mu         sync.Mutex
	segs       []segment
	queued     int
	last       time.Time // when the last segment arrives
	held       bool      // nothing arrives
	readerGone bool
	writerGone bool
	changed    chan struct{} // closed and replaced when any of it changes
}

func newPipe(rng *rand.Rand) *pipe { return &pipe{rng: rng, changed: make(chan struct{})} }

// wake needs mu.
func (p *pipe) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pipe) hold(held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = held
	p.wake()
}

// await waits for a change or until the time; a zero time is never.
func await(changed <-chan struct{}, until time.Time) {
	if until.IsZero() {
		<-changed
		return
	}
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	}
}

func (p *pipe) read(b []byte, deadline time.Time) (int, error) {
	for {
		p.mu.Lock()
		now := time.Now()
		if p.readerGone {
			p.mu.Unlock()
			return 0, net.ErrClosed
		}
		n := 0
		for n < len(b) && !p.held && len(p.segs) > 0 && !p.segs[0].at.After(now) {
			s := &p.segs[0]
			if s.err != nil {
				if n == 0 {
					p.mu.Unlock()
					return 0, s.err
				}
				break
			}
			c := copy(b[n:], s.data)
			n, p.queued, s.data = n+c, p.queued-c, s.data[c:]
			if len(s.data) == 0 {
				p.segs = p.segs[1:]
			}
		}
		if n > 0 {
			p.wake()
			p.mu.Unlock()
			return n, nil
		}
		if !deadline.IsZero() && !now.Before(deadline) {
			p.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		}
		until := deadline
		if !p.held && len(p.segs) > 0 && (until.IsZero() || p.segs[0].at.Before(until)) {
			until = p.segs[0].at
		}
		changed := p.changed
		p.mu.Unlock()
		await(changed, until)
	}
}

func (p *pipe) write(b []byte, deadline time.Time, delay func() time.Duration) (int, error) {
	for {
		p.mu.Lock()
		now := time.Now()
		switch {
		case p.writerGone:
			p.mu.Unlock()
			return 0, net.ErrClosed
		case p.readerGone:
			p.mu.Unlock()
			return 0, syscall.EPIPE
		case !deadline.IsZero() && !now.Before(deadline):
			p.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case p.queued < pipeWindow:
			p.push(segment{at: now.Add(delay()), data: slices.Clone(b)})
			p.mu.Unlock()
			return len(b), nil
		}
		changed := p.changed
		p.mu.Unlock()
		await(changed, deadline)
	}
}

// push needs mu. What was written first arrives first.
func (p *pipe) push(s segment) {
	if s.at.Before(p.last) {
		s.at = p.last
	}
	p.last = s.at
	p.segs, p.queued = append(p.segs, s), p.queued+len(s.data)
	p.wake()
}

// end ends the writer's side: what is under way still arrives, then err.
func (p *pipe) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.writerGone {
		p.writerGone = true
		p.push(segment{at: time.Now().Add(time.Millisecond), err: err})
	}
}

func (p *pipe) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readerGone = true
	p.wake()
}

// simConn is one end of a connection.
type simConn struct {
	w        *world
	from, to int // nodes
	in, out  *pipe
	// upgraded: what follows the first line is frames, which may be damaged.
	lines  int
	frames *frameSpy // of what is written; nil if nobody looks

	mu     sync.Mutex
	rd, wd time.Time
}

func (c *simConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rd = t
	return nil
}

func (c *simConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wd = t
	return nil
}

func (c *simConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	deadline := c.rd
	c.mu.Unlock()
	return c.in.read(b, deadline)
}

func (c *simConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	deadline, first := c.wd, c.lines == 0
	c.lines++
	c.mu.Unlock()
	switch {
	case c.frames == nil:
	case first: // the position in the request counts as acknowledged
		if req, err := ParseRequest(strings.Fields(string(b))[1:]); err == nil {
			c.w.checkAck(c.frames.proc, req.LSN)
		}
	default:
		c.frames.write(b)
	}
	delay := func() time.Duration { return c.w.delay(c.out.rng, c.from, c.to) }
	fault := c.w.netFault(c.out.rng)
	switch {
	case first || fault == faultNone:
		return c.out.write(b, deadline, delay)
	case fault == faultDamage:
		b = slices.Clone(b)
		b[c.out.rng.IntN(len(b))] ^= 1 << c.out.rng.IntN(8)
		return c.out.write(b, deadline, delay)
	}
	// The connection breaks in the middle of what is written.
	n, err := c.out.write(b[:c.out.rng.IntN(len(b))], deadline, delay)
	if err == nil {
		err = syscall.ECONNRESET
	}
	c.out.end(syscall.ECONNRESET)
	c.in.end(syscall.ECONNRESET)
	return n, err
}

func (c *simConn) Close() error {
	c.in.abandon()
	c.out.end(io.EOF)
	return nil
}

// cut breaks the connection: both ends learn of it.
func (c *simConn) cut() {
	c.in.end(syscall.ECONNRESET)
	c.out.end(syscall.ECONNRESET)
}

// link is the pair of ends of a connection.
type link struct{ a, b *simConn }

func (l link) between(x, y int) bool {
	return l.a.from == x && l.a.to == y || l.a.from == y && l.a.to == x
}

// dial connects a process to the process that runs on another node.
func (w *world) dial(ctx context.Context, from, to int) (Conn, error) {
	w.mu.Lock()
	w.dials[[2]int{from, to}]++
	id := uint64(w.dials[[2]int{from, to}])<<8 | uint64(from)<<4 | uint64(to)
	blocked := w.parted[pair(from, to)]
	w.mu.Unlock()
	up, down := rand.New(rand.NewPCG(w.seed, 2*id)), rand.New(rand.NewPCG(w.seed, 2*id+1))
	wait := w.delay(up, from, to)
	if blocked {
		wait = time.Second
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(wait):
	}
	if blocked {
		return nil, os.ErrDeadlineExceeded
	}
	w.mu.Lock()
	p := w.nodes[to].proc
	if p == nil {
		w.mu.Unlock()
		return nil, syscall.ECONNREFUSED
	}
	forth, back := newPipe(up), newPipe(down)
	near := &simConn{w: w, from: from, to: to, in: back, out: forth, frames: &frameSpy{w: w, node: from, proc: w.nodes[from].proc}}
	far := &simConn{w: w, from: to, to: from, in: forth, out: back}
	w.links = append(w.links, link{near, far})
	if len(w.links) > 64 {
		w.links = slices.DeleteFunc(w.links, func(l link) bool { return l.a.gone() && l.b.gone() })
	}
	w.mu.Unlock()
	p.tasks.Go(func() { p.accept(far) })
	return near, nil
}

func (c *simConn) gone() bool {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.in.readerGone
}

// frameSpy reads what a replica tells its master.
type frameSpy struct {
	w    *world
	node int
	proc *simProc
	buf  []byte
}

func (s *frameSpy) write(b []byte) {
	s.buf = append(s.buf, b...)
	for {
		t, payload, size, ok := splitFrame(s.buf)
		if !ok {
			return
		}
		s.buf = s.buf[size:]
		if t == frameAck {
			if lsn, err := decodeLSN(t, payload); err == nil {
				s.w.checkAck(s.proc, lsn)
			}
		}
	}
}

func splitFrame(b []byte) (t frameType, payload []byte, size int, ok bool) {
	if len(b) < frameHeaderSize {
		return 0, nil, 0, false
	}
	n := int(b[0])<<24 | int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	if size = frameHeaderSize + n; len(b) < size {
		return 0, nil, 0, false
	}
	return frameType(b[4]), b[frameHeaderSize:size], size, true
}

type netFault int

const (
	faultNone netFault = iota
	faultDamage
	faultBreak
)

var errIndexAway = errors.New("index is away")
