package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// An opKind is one of the requests the generator can make.
type opKind uint8

const (
	opGet opKind = iota
	opSet
	opMultiGet
)

// A workload is what every connection does in a closed loop: it writes depth
// requests at once, reads all their answers, and begins anew.
type workload struct {
	name     string
	reads    int // of 100 requests; the others are sets
	multi    int // keys a read asks for
	depth    int // requests in flight on a connection
	conns    int
	valueLen int
	random   []byte   // what values are cut out of; nil for one value of v's, which alone can be read back
	keys     []string // chosen uniformly; all of one length
}

// A result is what one run measured.
type result struct {
	ops     uint64 // requests answered
	elapsed time.Duration
	p99     time.Duration // of one burst of depth requests
}

func (r result) rate() float64 { return float64(r.ops) / r.elapsed.Seconds() }

// run drives one server for the given time. Every answer is checked for its
// form and length; a wrong one fails the run.
func (w workload) run(ctx context.Context, addr string, d time.Duration) (result, error) {
	conns := make([]*client, w.conns)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.nc.Close()
			}
		}
	}()
	for i := range conns {
		c, err := w.dial(addr)
		if err != nil {
			return result{}, err
		}
		conns[i] = c
	}
	var (
		stop  atomic.Bool
		ready sync.WaitGroup
		group sync.WaitGroup
		begin = make(chan struct{})
		errs  = make([]error, len(conns))
	)
	for i, c := range conns {
		ready.Add(1)
		group.Go(func() {
			ready.Done()
			<-begin
			for !stop.Load() && errs[i] == nil {
				errs[i] = c.burst()
			}
			if errs[i] != nil {
				stop.Store(true)
			}
		})
	}
	ready.Wait()
	over := make(chan struct{})
	go func() {
		defer close(over)
		group.Wait()
	}()
	start := time.Now()
	close(begin)
	select {
	case <-time.After(d):
	case <-ctx.Done():
	case <-over: // an answer was wrong
	}
	stop.Store(true)
	<-over
	r := result{elapsed: time.Since(start)}
	if err := errors.Join(errs...); err != nil {
		return r, fmt.Errorf("%s against %s: %w", w.name, addr, err)
	}
	var all histogram
	for _, c := range conns {
		r.ops += c.ops
		all.add(&c.latency)
	}
	r.p99 = all.quantile(0.99)
	return r, ctx.Err()
}

// A client is one connection of a run; it belongs to one goroutine.
type client struct {
	w       workload
	nc      net.Conn
	r       *bufio.Reader
	rng     *rand.Rand
	value   []byte
	out     []byte
	in      []byte
	kinds   []opKind
	ops     uint64
	latency histogram
}

func (w workload) dial(addr string) (*client, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &client{
		w:     w,
		nc:    nc,
		r:     bufio.NewReaderSize(nc, 64<<10),
		rng:   rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		value: bytes.Repeat([]byte("v"), w.valueLen),
		kinds: make([]opKind, w.depth),
	}, nil
}

// burst makes one round trip.
func (c *client) burst() error {
	c.out = c.out[:0]
	for i := range c.kinds {
		switch {
		case c.rng.IntN(100) >= c.w.reads:
			c.kinds[i] = opSet
			c.out = appendSet(c.out, c.key(), c.next())
		case c.w.multi > 1:
			c.kinds[i] = opMultiGet
			c.out = append(c.out, "get"...)
			for range c.w.multi {
				c.out = append(append(c.out, ' '), c.key()...)
			}
			c.out = append(c.out, "\r\n"...)
		default:
			c.kinds[i] = opGet
			c.out = append(append(append(c.out, "get "...), c.key()...), "\r\n"...)
		}
	}
	start := time.Now()
	c.nc.SetDeadline(start.Add(30 * time.Second))
	if _, err := c.nc.Write(c.out); err != nil {
		return err
	}
	for _, kind := range c.kinds {
		if err := c.answer(kind); err != nil {
			return err
		}
	}
	c.latency.record(time.Since(start))
	c.ops += uint64(len(c.kinds))
	return nil
}

// next returns the value to be stored.
func (c *client) next() []byte {
	if c.w.random == nil {
		return c.value
	}
	at := c.rng.IntN(len(c.w.random) - c.w.valueLen)
	return c.w.random[at : at+c.w.valueLen]
}

func (c *client) key() string { return c.w.keys[c.rng.IntN(len(c.w.keys))] }

func appendSet(dst []byte, key string, value []byte) []byte {
	dst = append(append(dst, "set "...), key...)
	dst = strconv.AppendInt(append(dst, " 0 0 "...), int64(len(value)), 10)
	dst = append(append(dst, "\r\n"...), value...)
	return append(dst, "\r\n"...)
}

const (
	stored = "STORED\r\n"
	end    = "END\r\n"
)

// answer reads one answer. All keys exist and all values have one length, so
// the length of an answer is known; what is not as it should be is reported.
func (c *client) answer(kind opKind) error {
	if kind == opSet {
		return c.expect(len(stored), func(b []byte) bool { return string(b) == stored })
	}
	// VALUE key 0 bytes, the data, and END behind all of them.
	keyLen := len(c.w.keys[0])
	block := len("VALUE ") + keyLen + len(" 0 ") + digits(c.w.valueLen) + 2 + c.w.valueLen + 2
	n := 1
	if kind == opMultiGet {
		n = c.w.multi
	}
	return c.expect(n*block+len(end), func(b []byte) bool {
		for i := range n {
			if !bytes.HasPrefix(b[i*block:], []byte("VALUE ")) || b[(i+1)*block-3] != 'v' {
				return false
			}
		}
		return string(b[n*block:]) == end
	})
}

func (c *client) expect(n int, ok func([]byte) bool) error {
	if cap(c.in) < n {
		c.in = make([]byte, n)
	}
	b := c.in[:n]
	if n <= c.r.Size() {
		// Checked in place.
		var err error
		if b, err = c.r.Peek(n); err != nil {
			return fmt.Errorf("answer of %d bytes: %w, got %.60q", n, err, b)
		}
	} else if _, err := io.ReadFull(c.r, b); err != nil {
		return fmt.Errorf("answer of %d bytes: %w", n, err)
	}
	if !ok(b) {
		if more, _ := c.r.Peek(c.r.Buffered()); n <= c.r.Size() {
			b = more // an error line is longer than what was expected
		}
		return fmt.Errorf("unexpected answer %.80q", b)
	}
	if n <= c.r.Size() {
		c.r.Discard(n)
	}
	return nil
}

func digits(n int) int { return len(strconv.Itoa(n)) }

// fill stores every key once.
func (w workload) fill(addr string) error {
	c, err := w.dial(addr)
	if err != nil {
		return err
	}
	defer c.nc.Close()
	const burst = 64
	for i := 0; i < len(w.keys); i += burst {
		part := w.keys[i:min(i+burst, len(w.keys))]
		c.out = c.out[:0]
		for _, k := range part {
			c.out = appendSet(c.out, k, c.next())
		}
		c.nc.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.nc.Write(c.out); err != nil {
			return err
		}
		for range part {
			if err := c.answer(opSet); err != nil {
				return fmt.Errorf("fill %s: %w", addr, err)
			}
		}
	}
	return nil
}

// A histogram counts durations in buckets that grow by an eighth.
type histogram struct{ buckets [512]uint64 }

func (h *histogram) record(d time.Duration) {
	h.buckets[bucketOf(d)]++
}

func bucketOf(d time.Duration) int {
	n := uint64(max(d, 8))
	exp := 63
	for n>>exp == 0 {
		exp--
	}
	return min((exp-3)*8+int(n>>(exp-3)&7), 511)
}

func (h *histogram) add(o *histogram) {
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
}

// quantile returns the upper bound of the bucket that holds it.
func (h *histogram) quantile(q float64) time.Duration {
	var total, seen uint64
	for _, n := range h.buckets {
		total += n
	}
	for i, n := range h.buckets {
		if seen += n; float64(seen) >= q*float64(total) && total > 0 {
			return time.Duration(8+i%8+1) << (i / 8)
		}
	}
	return 0
}
