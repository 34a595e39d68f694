package index

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// Times of the contacts with nodes.
const (
	PingInterval = time.Second
	PingTimeout  = time.Second
	PushTimeout  = 2 * time.Second
	DialTimeout  = time.Second

	// priorWait is how long the others wait for the nodes that must hear a map first.
	priorWait = 500 * time.Millisecond
	// pushRetry is the distance of attempts to send a map to a node.
	pushRetry = 250 * time.Millisecond
)

// BroadcasterConfig is what a Broadcaster is made of. A zero time takes its
// default, a constant of this package.
type BroadcasterConfig struct {
	// Observe is told how every contact ended: core.Pinged and core.Pushed. It may
	// block the node it is about.
	Observe func(core.Input)
	// Dial connects to a node; nil for TCP.
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	Logger *slog.Logger

	PingInterval, PingTimeout, PushTimeout, DialTimeout, PriorWait time.Duration
}

// Broadcaster keeps one connection to each node of the latest map, over which it
// sends maps and pings. Each node has a goroutine of its own and its own
// deadlines, so that a silent node delays nobody. A map that has not been sent
// when the next one comes is not sent any more.
type Broadcaster struct {
	cfg BroadcasterConfig
	log *slog.Logger

	mu      sync.Mutex
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	wg      sync.WaitGroup
	nodes   map[string]*nodeLink
	latest  core.MapUpdate
	prior   map[string]bool // nodes that must hear the latest map before the others, and have not
	release *time.Timer     // ends the wait for them
}

// NewBroadcaster makes a Broadcaster without nodes; Publish gives it some.
func NewBroadcaster(cfg BroadcasterConfig) *Broadcaster {
	if cfg.Dial == nil {
		var d net.Dialer
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	orElse := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	orElse(&cfg.PingInterval, PingInterval)
	orElse(&cfg.PingTimeout, PingTimeout)
	orElse(&cfg.PushTimeout, PushTimeout)
	orElse(&cfg.DialTimeout, DialTimeout)
	orElse(&cfg.PriorWait, priorWait)
	b := &Broadcaster{cfg: cfg, log: cfg.Logger, nodes: map[string]*nodeLink{}, prior: map[string]bool{}}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b
}

// Close ends all contacts.
func (b *Broadcaster) Close() {
	b.stop()
	b.mu.Lock()
	if b.release != nil {
		b.release.Stop()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

// Publish makes a map the one that all its nodes shall have. It does not block.
func (b *Broadcaster) Publish(u core.MapUpdate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return
	}
	b.latest = u
	keep := map[string]bool{}
	for _, n := range u.Map.Nodes {
		key := n.Key()
		keep[key] = true
		if b.nodes[key] == nil {
			ctx, cancel := context.WithCancel(b.ctx)
			l := &nodeLink{b: b, key: key, address: net.JoinHostPort(n.Name, strconv.Itoa(n.Port)), cancel: cancel, wake: make(chan struct{}, 1), began: time.Now()}
			b.nodes[key] = l
			b.wg.Go(func() { l.run(ctx) })
		}
	}
	for key, l := range b.nodes {
		if !keep[key] {
			l.cancel()
			delete(b.nodes, key)
			delete(b.prior, key)
		}
	}
	// Whoever had to hear the former map first must hear this one first.
	for _, key := range u.Prior {
		b.prior[key] = true
	}
	if len(b.prior) == 0 {
		b.offerAll()
		return
	}
	payloads := encode(u)
	for key := range b.prior {
		b.nodes[key].offer(payloads.of(u, key))
	}
	if b.release == nil {
		b.release = time.AfterFunc(b.cfg.PriorWait, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.offerAll()
		})
	}
}

// offerAll sends the latest map to everybody who has not got it. b.mu is held.
func (b *Broadcaster) offerAll() {
	if b.release != nil {
		b.release.Stop()
		b.release = nil
	}
	clear(b.prior)
	payloads := encode(b.latest)
	for key, l := range b.nodes {
		if !slices.Contains(b.latest.Except, key) {
			l.offer(payloads.of(b.latest, key))
		}
	}
}

// heard notes that a node has a map.
func (b *Broadcaster) heard(key string, version uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.prior[key] || version < b.latest.Map.Version {
		return
	}
	delete(b.prior, key)
	if len(b.prior) == 0 && b.ctx.Err() == nil {
		b.offerAll()
	}
}

// payload is a map as it goes over the wire.
type payload struct {
	version uint64
	bytes   []byte
}

// payloads is a map in its two forms: with and without epochs.
type payloads struct{ plain, extended *payload }

func encode(u core.MapUpdate) payloads {
	m := topology.Map{Version: u.Map.Version, Nodes: u.Map.Nodes}
	p := payloads{plain: &payload{version: m.Version, bytes: text.AppendNodeSync(nil, m, false)}}
	if len(u.Extended) > 0 {
		p.extended = &payload{version: m.Version, bytes: text.AppendNodeSync(nil, m, true)}
	}
	return p
}

func (p payloads) of(u core.MapUpdate, key string) *payload {
	if _, ok := slices.BinarySearch(u.Extended, key); ok {
		return p.extended
	}
	return p.plain
}

// nodeLink is the contact with one node.
type nodeLink struct {
	b       *Broadcaster
	key     string
	address string
	cancel  context.CancelFunc
	wake    chan struct{} // buffered by one: something is pending

	began time.Time

	mu      sync.Mutex
	pending *payload  // not yet sent; nil for none
	since   time.Time // when the oldest map was offered that the node has not taken
	taken   uint64    // version of the map the node took last over this connection
	op      string    // what the node is being asked; empty for nothing
	conn    net.Conn  // nil when not connected; changed by run alone

	// Used by run alone.
	replies *text.ReplyReader
}

// offer makes a map the one to be sent next.
func (l *nodeLink) offer(p *payload) {
	l.mu.Lock()
	if l.taken == p.version {
		l.mu.Unlock()
		return
	}
	if l.pending == nil {
		l.since = time.Now()
	}
	l.pending = p
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run sends what is pending, and pings when nothing has shown for an interval that
// the node is well. That it takes a map does not: a node whose storage fails does.
func (l *nodeLink) run(ctx context.Context) {
	defer l.close()
	interval := l.b.cfg.PingInterval
	timer := time.NewTimer(interval)
	defer timer.Stop()
	due := time.Now().Add(interval) // the next ping
	var failed time.Time            // when a push that nothing came of last counted as a ping
	well := false                   // the last ping was answered
	observe := func(outcome core.PingOutcome) {
		well = outcome == core.PingOK
		due = time.Now().Add(interval)
		l.b.cfg.Observe(core.Pinged{Key: l.key, Outcome: outcome})
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
		}
		l.mu.Lock()
		p := l.pending
		l.mu.Unlock()
		outcome := core.PingOK
		if p != nil {
			if outcome = l.push(ctx, p); ctx.Err() != nil {
				return
			}
		}
		switch now := time.Now(); {
		case outcome == core.PingRefused || outcome == core.PingTimeout:
			// A ping would fare no better. Attempts that follow each other faster than
			// pings do not make a node die faster.
			if now.Sub(failed) >= interval {
				failed = now
				observe(outcome)
			}
		case !now.Before(due), p != nil && outcome == core.PingOK && !well:
			pinged := l.contact(ctx, opPing, l.b.cfg.PingTimeout, []byte("ping\r\n"), nil)
			if ctx.Err() != nil {
				return
			}
			observe(pinged)
		}
		wait := max(0, time.Until(due))
		if outcome != core.PingOK {
			wait = min(wait, pushRetry)
		}
		timer.Reset(wait)
	}
}

// push sends a map. What it has to be sent again for is not PingOK.
func (l *nodeLink) push(ctx context.Context, p *payload) core.PingOutcome {
	var later uint64
	outcome := l.contact(ctx, opPush, l.b.cfg.PushTimeout, p.bytes, &later)
	if ctx.Err() != nil {
		return outcome
	}
	if outcome == core.PingOK || later > 0 {
		// A node that has a later map waits for one that is later still.
		l.mu.Lock()
		if l.pending == p {
			l.pending = nil
		}
		if outcome == core.PingOK {
			l.taken = p.version
		}
		l.mu.Unlock()
	}
	if outcome == core.PingOK {
		l.b.heard(l.key, p.version)
	}
	l.b.cfg.Observe(core.Pushed{Key: l.key, Version: p.version, Outcome: outcome, NodeVersion: later})
	return outcome
}

// contact sends a request that is answered with OK and waits for it. A
// connection that was kept and turns out to be broken is replaced once: the peer
// may have closed it long ago. later, when not nil, gets the version of the
// node's own map when the node refused an older one.
func (l *nodeLink) contact(ctx context.Context, what string, timeout time.Duration, request []byte, later *uint64) core.PingOutcome {
	l.doing(what)
	defer l.doing("")
	for {
		kept := l.conn != nil
		err := l.exchange(ctx, timeout, request)
		if err == nil {
			return core.PingOK
		}
		var refused *text.ErrorReply
		if errors.As(err, &refused) {
			l.b.log.Warn("node refused "+what, "node", l.key, "error", err)
			if later != nil && refused.Code == text.CodeServerError {
				*later = l.nodeVersion(timeout)
			}
			return core.PingBad
		}
		l.close()
		outcome := classify(err)
		if ctx.Err() != nil {
			return outcome
		}
		if kept && outcome == core.PingRefused {
			continue
		}
		l.b.log.Debug("no answer to "+what, "node", l.key, "outcome", string(outcome), "error", err)
		return outcome
	}
}

// classify tells what a failed contact says about a node.
func classify(err error) core.PingOutcome {
	var network net.Error
	switch {
	case errors.Is(err, text.ErrMalformed):
		return core.PingBad
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return core.PingRefused
	case errors.As(err, &network) && network.Timeout():
		return core.PingTimeout
	}
	// The name does not resolve, the network is unreachable: nothing is known of
	// the node itself.
	return core.PingTimeout
}

// exchange sends a request and reads the OK that answers it.
func (l *nodeLink) exchange(ctx context.Context, timeout time.Duration, request []byte) error {
	if l.conn != nil && l.replies.Buffered() > 0 {
		l.close() // an answer nobody waited for: out of step
	}
	if l.conn == nil {
		dialCtx, done := context.WithTimeout(ctx, l.b.cfg.DialTimeout)
		conn, err := l.b.cfg.Dial(dialCtx, l.address)
		done()
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.conn = conn
		l.mu.Unlock()
		l.replies = text.NewReplyReader(conn, text.ReplyOptions{MaxValue: 1 << 10, MaxLine: 16 << 10})
	}
	conn := l.conn
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if err := l.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := l.conn.Write(request); err != nil {
		return err
	}
	reply, err := l.replies.ReadReply()
	switch {
	case err != nil:
		return err
	case string(reply.Line) == "OK":
		return nil
	case reply.Err() != nil:
		return reply.Err()
	}
	return fmt.Errorf("%w: %s instead of OK", text.ErrMalformed, reply)
}

// nodeVersion asks a node for the version of its map, 0 when it does not say.
func (l *nodeLink) nodeVersion(timeout time.Duration) uint64 {
	if l.conn == nil || l.conn.SetDeadline(time.Now().Add(timeout)) != nil {
		return 0
	}
	if _, err := l.conn.Write([]byte("stats\r\n")); err != nil {
		l.close()
		return 0
	}
	var version uint64
	for {
		var item text.Item
		if err := l.replies.Next(&item); err != nil {
			l.close()
			return 0
		}
		if item.Kind == text.KindStat && item.Name == "node_map_version" {
			version, _ = strconv.ParseUint(item.Text, 10, 64)
		}
		if item.Kind == text.KindReply {
			return version
		}
	}
}

func (l *nodeLink) close() {
	if l.conn != nil {
		l.conn.Close()
		l.replies = nil
		l.mu.Lock()
		l.conn, l.taken = nil, 0
		l.mu.Unlock()
	}
}

// What a node is asked, as flarei names it.
const (
	opPing = "ping"
	opPush = "node_sync"
)

func (l *nodeLink) doing(op string) {
	l.mu.Lock()
	l.op = op
	l.mu.Unlock()
}

// contact is the state of the connection to a node, for those who ask.
type contact struct {
	key, op, state string
	began          time.Time
	queue          int           // maps that wait to be taken: none or one
	behind         time.Duration // how long one has
}

// contacts tells what is going on with each node.
func (b *Broadcaster) contacts() []contact {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	list := make([]contact, 0, len(b.nodes))
	for key, l := range b.nodes {
		l.mu.Lock()
		c := contact{key: key, op: l.op, state: "wait", began: l.began}
		if l.op != "" {
			c.state = "execute"
		}
		if l.conn == nil {
			c.state = "connect"
		}
		if l.pending != nil {
			c.queue, c.behind = 1, now.Sub(l.since)
		}
		l.mu.Unlock()
		list = append(list, c)
	}
	return list
}

// interrupt breaks the connection to a node; it is opened again when the node is
// asked next. false when there is no such node.
func (b *Broadcaster) interrupt(key string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.nodes[key]
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close() // its owner finds out
	}
	return true
}
