package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

const (
	// firstRetry and lastRetry bound the pause after an attempt that failed; it
	// doubles in between.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 2 * time.Second
	// measureInterval is how often the log that is kept is measured.
	measureInterval = 500 * time.Millisecond
)

// Config says what is played to whom. The functions are asked anew each time, so
// that what they return can change at run time; nil ones stand for what their
// comments say.
type Config struct {
	Peer string   // host:port
	Via  []string // prefix list of the requests; empty for those of a client

	// From is a position to begin at, if the log still has what is behind it.
	// Otherwise, and where it is zero, the relay begins where the log ends when it
	// is made.
	From topology.LSN
	// Admit is asked before anything is sent, again and again while it fails,
	// whether the peer is one to play to. nil: it is.
	Admit func(ctx context.Context) (bool, error)
	// Fill: begin with all records, as after the log was given up.
	Fill bool
	// Flushes: pass on that all records were removed.
	Flushes bool
	// Keep chooses operations of the log by their key, and FillKeep records of a
	// fill. nil: all.
	Keep, FillKeep func(key []byte) bool

	Lanes        func() int           // connections; nil: 1
	Limit        func() int64         // bytes of log kept for a peer that does not take it; nil: no limit
	FillInterval func() time.Duration // pause for each record of a fill; nil: none
	FillRate     func() int64         // bytes per second of a fill; 0 or nil: no limit

	Clock  func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default()
}

// errGivenUp means that the log is no longer kept for the peer.
var errGivenUp = errors.New("the log kept for the peer is beyond its limit")

// ErrNotAdmitted means that the peer is none to play to.
var ErrNotAdmitted = errors.New("peer is not admitted")

// A Relay plays the log of one database to one peer.
type Relay struct {
	db  *storage.DB
	cfg Config
	log *slog.Logger

	// These belong to Run.
	hold   *storage.Hold
	lanes  []*lane
	window *window
	ops    []storage.Operation // of the batch being played
	nextOp int
	opsAt  topology.LSN  // its position
	played topology.LSN  // position up to which batches were read
	flush  topology.LSN  // flushes up to here were before the relay began
	fill   *fill         // nil: none runs
	failed time.Duration // pause after the last failure, 0 after a success

	admitted bool
	measured time.Time
	conns    connections

	mu      sync.Mutex
	status  Status
	changed chan struct{} // closed by the next change of status.Acked or Connected; nil if nobody waits
}

// Status is what is known of a relay and its peer.
type Status struct {
	Peer      string
	Connected bool
	Reason    string // machine-readable, why nothing gets through; empty while it does
	Error     string // the same in words

	Acked         topology.LSN  // the peer has everything up to here, fill apart
	QueuedBatches uint64        // of the log behind Acked
	QueuedBytes   int64         // about what they take
	Lag           time.Duration // age of the oldest one

	Sent       uint64 // operations that the peer has answered
	Failed     uint64 // operations that the peer refused for good
	Dropped    uint64 // batches that were given up with the log
	Retried    uint64 // operations that were sent again
	Reconnects uint64 // connections that took the place of lost ones

	Fill FillStatus
}

// FillStatus is how far a fill is.
type FillStatus struct {
	Due     bool // one is to begin, when the peer can be reached
	Running bool
	Runs    uint64 // fills that were begun
	Done    uint64 // fills that came to their end
	Records uint64 // sent by the last one
	Bytes   uint64 // keys and values of them
	Seen    uint64 // records of the database it has gone by
	Total   uint64 // records of the database, estimated when it began
}

// Percent is how much of the database the fill has gone by.
func (f FillStatus) Percent() int {
	switch {
	case f.Runs == 0:
		return 0
	case !f.Running:
		return 100
	case f.Total == 0:
		return 0
	}
	return int(min(f.Seen*100/f.Total, 99))
}

// New makes a relay and has the log kept for it from now on. Run must be called,
// which lets it go.
func New(db *storage.DB, cfg Config) *Relay {
	if cfg.Lanes == nil {
		cfg.Lanes = func() int { return 1 }
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	r := &Relay{db: db, cfg: cfg, log: cfg.Logger.With("peer", cfg.Peer), window: newWindow()}
	r.begin()
	r.status.Fill.Due = cfg.Fill
	return r
}

// begin sets the position to where the log ends now.
func (r *Relay) begin() {
	var pos storage.Position
	r.hold, pos = r.db.Hold()
	r.played, r.flush = pos.LSN, pos.LSN
	r.ops, r.nextOp, r.opsAt = r.ops[:0], 0, topology.LSN{}
	r.setAcked(pos.LSN)
}

// Run plays until ctx ends, whose error it returns, or until Admit says no.
func (r *Relay) Run(ctx context.Context) error {
	defer func() {
		r.hold.Release()
		r.dropLanes()
		r.mu.Lock()
		r.status.Connected = false
		r.notify()
		r.mu.Unlock()
	}()
	fill := r.cfg.Fill
	for {
		err := r.play(ctx, fill)
		if ctx.Err() != nil || errors.Is(err, ErrNotAdmitted) {
			return err
		}
		// Whatever the reason, the log behind the position cannot be played any more.
		reason := "log_not_available"
		if errors.Is(err, errGivenUp) {
			reason = "spool_limit"
		}
		r.mu.Lock()
		lost := r.queued()
		r.status.Dropped += lost
		r.status.Fill.Due = true
		r.mu.Unlock()
		r.log.Warn("gave up the log kept for a peer, it will be sent all records", "reason", reason,
			"batches", lost, "acked", r.status.Acked.String(), "error", err)
		r.hold.Release()
		fill = true
		if !r.pause(ctx, lastRetry) {
			return ctx.Err()
		}
	}
}

// play sends what there is to send until ctx ends or the log is not there.
func (r *Relay) play(ctx context.Context, fill bool) error {
	r.fill = nil
	r.window.reset()
	if fill {
		// Only for a peer that can be reached is it worth keeping the log.
		r.hold.Release()
		if err := r.await(ctx); err != nil {
			return err
		}
		r.begin()
		r.beginFill()
	}
	tail, err := r.tail()
	if err != nil {
		return err
	}
	defer func() { tail.Close() }()
	if err := r.admit(ctx, tail); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		moved := tail.Moved()
		more, err := r.collect(tail)
		if err != nil {
			return err
		}
		if err := r.deliver(ctx, tail); err != nil {
			return err
		}
		r.acknowledge()
		if more {
			continue
		}
		var due <-chan time.Time
		if r.fill != nil {
			wait, err := r.fillStep(ctx, tail)
			if err != nil {
				return err
			}
			if wait <= 0 {
				continue
			}
			due = time.After(wait)
		}
		select {
		case <-moved:
		case <-due:
		case <-ctx.Done():
		}
	}
}

// admit asks whether the peer is one to play to.
func (r *Relay) admit(ctx context.Context, tail storage.Tail) error {
	for r.cfg.Admit != nil && !r.admitted {
		ok, err := r.cfg.Admit(ctx)
		if err == nil && !ok {
			return ErrNotAdmitted
		}
		if r.admitted = err == nil; r.admitted {
			r.succeed()
			return nil
		}
		r.fail(&Error{"unreachable", err})
		if err := r.measure(tail); err != nil {
			return err
		}
		if !r.pause(ctx, r.failed) {
			return ctx.Err()
		}
	}
	return nil
}

// Interrupt closes the connections to the peer, which are made anew.
func (r *Relay) Interrupt() { r.conns.interrupt() }

// tail opens the log where the relay stands.
func (r *Relay) tail() (storage.Tail, error) {
	if !r.cfg.From.IsZero() && r.fill == nil {
		from := r.cfg.From
		r.cfg.From = topology.LSN{}
		if t, err := r.db.Tail(from); err == nil {
			r.played = from
			r.setAcked(from)
			return t, nil
		}
		r.mu.Lock()
		r.status.Dropped += r.played.Index - min(r.played.Index, from.Index)
		r.mu.Unlock()
	}
	return r.db.Tail(r.played)
}

// collect fills the window with what the log has; more tells that the log may
// have more than fits.
func (r *Relay) collect(tail storage.Tail) (more bool, err error) {
	r.window.reset()
	for {
		for ; r.nextOp < len(r.ops); r.nextOp++ {
			op := &r.ops[r.nextOp]
			if wanted, err := r.wanted(op); err != nil {
				return false, err
			} else if wanted && !r.window.add(op) {
				return true, nil
			}
		}
		r.played = cmp.Or(r.opsAt, r.played)
		if r.window.full() {
			return true, nil
		}
		b, ok, err := tail.TryNext()
		if err != nil || !ok {
			return false, err
		}
		if r.ops, err = storage.AppendOperations(r.ops[:0], b); err != nil {
			return false, fmt.Errorf("batch %v: %w", b.LSN, err)
		}
		r.nextOp, r.opsAt = 0, b.LSN
	}
}

// wanted tells whether an operation concerns the peer.
func (r *Relay) wanted(op *storage.Operation) (bool, error) {
	switch {
	case op.Kind == storage.OpFlush:
		return r.cfg.Flushes && r.flush.Less(r.opsAt), nil
	case op.Version() == 0:
		return false, nil // housekeeping
	case r.cfg.Keep != nil && !r.cfg.Keep(op.Key):
		return false, nil
	case op.Kind == storage.OpTouch:
		return r.current(op)
	}
	return true, nil
}

// current tells whether a record still is of the version that a touch was for. If
// not, what the touch did was undone by an operation that is still to come, and
// the peer may have what that one wrote already: from a fill, or from a relay
// before this one. It would take the touch for that, since a touch carries no
// version, and would then ignore the operation as one that it knows.
func (r *Relay) current(op *storage.Operation) (is bool, err error) {
	_, err = r.db.View(op.Key, func(rec storage.Record) { is = rec.Version == op.Record.Version })
	return is, err
}

// acknowledge takes over that the peer has everything up to r.played.
func (r *Relay) acknowledge() {
	if r.played == r.status.Acked {
		return
	}
	r.setAcked(r.played)
	r.hold.Advance(r.played.Index + 1)
}

func (r *Relay) setAcked(lsn topology.LSN) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Acked = lsn
	if lsn.Index >= r.db.Position().LSN.Index {
		r.status.QueuedBytes = 0
	}
	r.notify()
}

// deliver sends the window until the peer has all of it.
func (r *Relay) deliver(ctx context.Context, tail storage.Tail) error {
	for r.window.pending() > 0 {
		err := r.exchange(ctx)
		if err == nil {
			continue // what is left goes out in another form
		}
		r.fail(err)
		if err := r.measure(tail); err != nil {
			return err
		}
		if !r.pause(ctx, r.failed) {
			return ctx.Err()
		}
		r.mu.Lock()
		r.status.Retried += uint64(r.window.pending())
		r.mu.Unlock()
	}
	return r.measure(tail)
}

// measure finds out how much log is kept, and whether that is too much.
func (r *Relay) measure(tail storage.Tail) error {
	now := time.Now()
	if now.Sub(r.measured) < measureInterval {
		return nil
	}
	r.measured = now
	n, err := tail.Unread()
	if err != nil {
		return err
	}
	n += int64(r.window.bytes)
	r.mu.Lock()
	r.status.QueuedBytes = n
	r.mu.Unlock()
	if r.cfg.Limit != nil && n > r.cfg.Limit() {
		return fmt.Errorf("%w: %d bytes, limit %d", errGivenUp, n, r.cfg.Limit())
	}
	return nil
}

// exchange makes one attempt at what is not done in the window. It is an error if
// a connection was lost, or if the peer put something off.
func (r *Relay) exchange(ctx context.Context) error {
	lanes := r.resize()
	now := r.cfg.Clock().Unix()
	for i := range r.window.items {
		it := &r.window.items[i]
		if it.done {
			continue
		}
		l := lanes[it.hash%uint64(len(lanes))]
		l.buf = appendItem(l.buf, &it.op, it.form, r.cfg.Via, now)
		l.sent = append(l.sent, i)
	}
	var busy []*lane
	for _, l := range lanes {
		if len(l.sent) > 0 {
			busy = append(busy, l)
		}
	}
	results := make([]result, len(busy))
	run := func(i int) { results[i] = r.send(ctx, busy[i]) }
	var others sync.WaitGroup
	for i := 1; i < len(busy); i++ {
		others.Go(func() { run(i) })
	}
	run(0)
	others.Wait()

	var all result
	for i, l := range busy {
		l.sent = l.sent[:0]
		if l.buf = l.buf[:0]; cap(l.buf) > keepBytes {
			l.buf = nil
		}
		all.add(results[i])
	}
	r.mu.Lock()
	r.status.Sent += all.sent
	r.status.Failed += all.refused
	r.status.Reconnects += all.reconnects
	r.mu.Unlock()
	if all.refused > 0 {
		r.log.Warn("peer refused operations for good", "reason", "refused", "operations", all.refused, "answer", all.answer)
	}
	if all.err == nil {
		r.succeed()
	}
	return all.err
}

// A result is what came of an attempt on a lane.
type result struct {
	sent, refused, reconnects uint64
	answer                    string // the last one that refused
	err                       error
}

func (a *result) add(b result) {
	a.sent += b.sent
	a.refused += b.refused
	a.reconnects += b.reconnects
	a.answer = cmp.Or(a.answer, b.answer)
	if a.err == nil {
		a.err = b.err
	}
}

// send makes the attempt on one lane. A connection that was idle may have been
// closed by the peer long ago, which is no failure: it is made anew once.
func (r *Relay) send(ctx context.Context, l *lane) (res result) {
	for {
		fresh, err := l.connect(ctx, r.cfg.Peer, &r.conns)
		if err != nil {
			res.err = &Error{"unreachable", err}
			return res
		}
		if fresh && l.used {
			res.reconnects++
		}
		l.used = true
		answered := 0
		var putOff error
		err = l.exchange(ctx, func(i int, reply text.Reply) {
			answered++
			it := &r.window.items[i]
			switch judge(it.form, reply) {
			case accepted:
				it.done = true
				res.sent++
			case asSet:
				it.form = formSet
			case again:
				putOff = &Error{"put_off", fmt.Errorf("peer answered %s", reply)}
			case refused:
				it.done = true
				res.refused++
				res.answer = reply.String()
			}
		})
		switch {
		case err == nil:
			res.err = putOff
			return res
		case !fresh && answered == 0 && ctx.Err() == nil:
			continue
		}
		res.err = &Error{"connection_lost", err}
		return res
	}
}

// Error is why nothing gets through to a peer, with a machine-readable reason.
type Error struct {
	Reason string
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// resize returns the lanes, as many as there should be now.
func (r *Relay) resize() []*lane {
	n := max(r.cfg.Lanes(), 1)
	if n != len(r.lanes) {
		r.dropLanes()
		r.lanes = make([]*lane, n)
		for i := range r.lanes {
			r.lanes[i] = &lane{}
		}
	}
	return r.lanes
}

func (r *Relay) dropLanes() {
	for _, l := range r.lanes {
		l.close()
	}
	r.lanes = nil
}

// await waits until the peer can be connected to.
func (r *Relay) await(ctx context.Context) error {
	for {
		if _, err := r.resize()[0].connect(ctx, r.cfg.Peer, &r.conns); err == nil {
			r.succeed()
			return nil
		} else {
			r.fail(&Error{"unreachable", err})
		}
		if !r.pause(ctx, r.failed) {
			return ctx.Err()
		}
	}
}

func (r *Relay) succeed() {
	if r.failed > 0 {
		r.log.Info("peer is reached again")
	}
	r.failed = 0
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.status.Connected || r.status.Error != "" {
		r.status.Connected, r.status.Reason, r.status.Error = true, "", ""
		r.notify()
	}
}

// fail remembers why nothing gets through and how long to wait for the next attempt.
func (r *Relay) fail(err error) {
	reason := "failed"
	var e *Error
	if errors.As(err, &e) {
		reason = e.Reason
	}
	if r.failed == 0 {
		r.log.Warn("peer does not take operations, trying again until it does", "reason", reason, "error", err)
	}
	r.failed = min(max(2*r.failed, firstRetry), lastRetry)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Reason, r.status.Error = reason, err.Error()
	if connected := reason == "put_off"; r.status.Connected != connected {
		r.status.Connected = connected
		r.notify()
	}
}

// pause waits; false means that ctx ended.
func (r *Relay) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// notify needs mu.
func (r *Relay) notify() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// queued returns how many batches the peer lacks; it needs mu.
func (r *Relay) queued() uint64 {
	head := r.db.Position().LSN.Index
	return head - min(head, r.status.Acked.Index)
}

// Status returns what is known now.
func (r *Relay) Status() Status {
	r.mu.Lock()
	s := r.status
	s.QueuedBatches = r.queued()
	r.mu.Unlock()
	s.Peer = r.cfg.Peer
	if s.QueuedBatches == 0 {
		s.QueuedBytes = 0
	} else if at := r.db.CommittedAt(s.Acked.Index + 1); !at.IsZero() {
		s.Lag = max(r.cfg.Clock().Sub(at), 0)
	}
	return s
}

// Wait returns once the peer has everything up to a position. Without patience it
// also returns while nothing gets through to the peer: whoever waits then wants
// the peer to have had its chance, not to be held up by it.
func (r *Relay) Wait(ctx context.Context, lsn topology.LSN, patient bool) {
	for {
		r.mu.Lock()
		if !r.status.Acked.Less(lsn) || !patient && !r.status.Connected && r.status.Error != "" {
			r.mu.Unlock()
			return
		}
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
