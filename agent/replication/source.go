package replication

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

const (
	// DefaultTimeout is the default of SourceConfig.Timeout.
	DefaultTimeout = 2 * time.Second
	// giveUpFactor times the timeout is how long a write waits for its replicas.
	giveUpFactor = 3
	// handshakeTimeout bounds the exchange before START.
	handshakeTimeout = 5 * time.Second
	// heartbeatInterval is the default of SourceConfig.Interval.
	heartbeatInterval = 500 * time.Millisecond
	// tickInterval is how often the leader looks for overdue members.
	tickInterval = 50 * time.Millisecond
	// sendBatches is how many batches are sent before anything else gets its turn.
	sendBatches = 256
)

// SourceConfig configures a Source. The functions are asked anew each time, so
// that what they return can change at run time.
type SourceConfig struct {
	Self string // node key

	// Timeout is after how long a silent replica keeps nobody waiting any more.
	Timeout func() time.Duration
	// Behind asks the index to take a replica for out of sync.
	Behind func(ctx context.Context, replica string, epoch, session uint64) error

	CopyBandwidth   func() int64 // bytes per second for checkpoints, 0 for no limit; may be nil
	StreamBandwidth func() int64 // bytes per second for batches, 0 for no limit; may be nil
	MaxCopies       func() int   // checkpoints that are sent at a time; nil for one

	// Interval is how often each side tells the other its position when there is
	// nothing else to tell; never more than a quarter of the timeout, so that a lost
	// message does not look like a lost peer. May be nil.
	Interval func() time.Duration

	Refusals *Refusals // counts what replicas are refused for; may be nil
	// MinInSync is how many nodes, this one included, must be in sync for writes to be
	// taken, 0 or 1 if that does not matter; may be nil. Changed is told when Shortage
	// changes; it must not call the source. May be nil.
	MinInSync func() int
	Changed   func()
	// LeaseExtended is told that every replica that could be promoted has agreed to an
	// AskLease with the token. May be nil.
	LeaseExtended func(epoch uint64, token, ttl time.Duration)

	Logger *slog.Logger
}

// Source is the master's side of replication: it feeds all followers and lets
// writes wait for those that are in sync.
type Source struct {
	log Log
	cfg SourceConfig

	copies       turns         // of checkpoints
	copyPatience time.Duration // see keepCopy
	stall        time.Duration // see stallTimeout

	shortage atomic.Pointer[Shortage] // stored under mu

	mu       sync.Mutex
	leader   Leader
	roster   roster    // of who may come for the log
	waiters  []*waiter // ascending by LSN, waiters[:0] first to be served
	feeds    map[string]*feed
	outgoing map[string]*outgoing // by replica: checkpoints whose transfer broke off
	lastID   uint64
	stop     context.CancelFunc // ends what belongs to the current leadership
	past     past
	changed  chan struct{} // nil if nobody waits
	inSync   []string      // of leader, when changed was last closed for it

	pool sync.Pool // of *waiter
}

// past is what is known of the leadership that ended last: who wrote in it and asks
// only now whether the replicas have it is told the truth still.
type past struct {
	epoch  uint64
	stable topology.LSN // what every replica had that writes waited for; zero if there was none
}

// waiter is one call of Wait.
type waiter struct {
	lsn   topology.LSN
	since time.Time
	done  chan error // one answer
	gone  bool       // nobody waits any more; guarded by Source.mu
}

// NewSource returns a source that does not lead yet.
func NewSource(log Log, cfg SourceConfig) *Source {
	if cfg.Timeout == nil {
		cfg.Timeout = func() time.Duration { return DefaultTimeout }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Source{log: log, cfg: cfg, copyPatience: keepCopy, stall: stallTimeout, feeds: map[string]*feed{}, outgoing: map[string]*outgoing{},
		pool: sync.Pool{New: func() any { return &waiter{done: make(chan error, 1)} }}}
}

func (s *Source) timeout() time.Duration {
	if d := s.cfg.Timeout(); d > 0 {
		return d
	}
	return DefaultTimeout
}

// interval is how often each side shows that it is alive.
func (s *Source) interval() time.Duration {
	d := heartbeatInterval
	if s.cfg.Interval != nil {
		d = s.cfg.Interval()
	}
	return max(min(d, s.timeout()/4), time.Millisecond)
}

// Lead takes over a node map in which this node is the master of its partition
// in the epoch, which the log must have begun already. Call it on every map.
func (s *Source) Lead(epoch uint64, slaves []Member) {
	head := s.log.Position().LSN
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		ctx, cancel := context.WithCancel(context.Background())
		s.stop = cancel
		go s.watch(ctx)
	}
	s.leader.Committed(head)
	s.perform(s.leader.Lead(epoch, slaves, time.Now()))
	s.settle()
}

// StepDown ends the leadership: followers are sent away and waiting writes fail
// with ErrNotMaster, except those that the replicas have.
func (s *Source) StepDown() {
	var unsent []*outgoing
	defer func() { release(unsent) }()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		return
	}
	unsent = s.overdueCopies(time.Time{})
	s.stop()
	s.stop = nil
	s.past = past{epoch: s.leader.Leading()}
	s.past.stable, _ = s.leader.Stable()
	s.leader.StepDown()
	for _, f := range s.feeds {
		f.cancel(fmt.Errorf("serve %s: %w", f.key, ErrNotMaster))
	}
	for _, w := range s.waiters {
		err := ErrNotMaster
		if s.past.has(w.lsn) {
			err = nil
		}
		w.answer(err)
	}
	s.waiters = nil
	s.roster = roster{}
	s.judge(time.Now())
	s.notify()
}

// Expect tells which nodes may come for the log, other than those that ask for it,
// and whether a node still may that is known already. The log is kept for them as
// long as its limits allow.
func (s *Source) Expect(nodes []string, possible func(node string) bool) error {
	oldest, err := s.log.Oldest()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		return ErrNotMaster
	}
	s.roster.expect(nodes, oldest, possible)
	s.roster.changed = true // of another epoch the log may know something else
	s.keep()
	return nil
}

// keep tells the log what has become known of who lacks it; it needs mu.
func (s *Source) keep() {
	if s.roster.changed {
		s.roster.changed = false
		s.log.KeepFor(s.roster.lacking(""))
	}
}

// Acknowledged tells whether Wait would return nil at once.
func (s *Source) Acknowledged(lsn topology.LSN) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.past.has(lsn) || s.ours(lsn) && s.acknowledged(lsn)
}

func (p past) has(lsn topology.LSN) bool { return lsn.Epoch == p.epoch && !p.stable.Less(lsn) }

// ours reports whether a position is of the epoch that this node leads; it needs mu.
// One of an earlier epoch may name a batch that was lost between two leaderships,
// while its number was reached anew.
func (s *Source) ours(lsn topology.LSN) bool { return s.stop != nil && lsn.Epoch == s.leader.Leading() }

// acknowledged needs mu.
func (s *Source) acknowledged(lsn topology.LSN) bool {
	s.leader.Committed(lsn)
	stable, any := s.leader.Stable()
	return !any || !stable.Less(lsn)
}

// Wait returns when every in-sync replica has applied the log up to lsn: with nil,
// or with ErrTimeout, ErrNotMaster or the context's error if it is not known to be so.
// lsn must be of a batch that was committed in the epoch that this node leads, or led
// last.
func (s *Source) Wait(ctx context.Context, lsn topology.LSN) error {
	s.mu.Lock()
	if s.past.has(lsn) {
		s.mu.Unlock()
		return nil
	}
	if !s.ours(lsn) {
		s.mu.Unlock()
		return ErrNotMaster
	}
	if s.acknowledged(lsn) {
		s.mu.Unlock()
		return nil
	}
	w := s.pool.Get().(*waiter)
	w.lsn, w.since, w.gone = lsn, time.Now(), false
	at := len(s.waiters)
	for at > 0 && lsn.Less(s.waiters[at-1].lsn) {
		at--
	}
	s.waiters = slices.Insert(s.waiters, at, w)
	s.mu.Unlock()

	select {
	case err := <-w.done:
		s.pool.Put(w)
		return err
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		w.gone = true // whoever removes it drops it
		return ctx.Err()
	}
}

// answer needs Source.mu.
func (w *waiter) answer(err error) {
	if !w.gone {
		w.done <- err
	}
}

// settle answers the waiters that need not wait any more; it needs mu.
func (s *Source) settle() {
	s.judge(time.Now()) // before anybody is answered, who will look at it
	stable, any := s.leader.Stable()
	n := 0
	for ; n < len(s.waiters); n++ {
		w := s.waiters[n]
		if any && stable.Less(w.lsn) && !w.gone {
			break
		}
		w.answer(nil)
	}
	clear(s.waiters[:n])
	if s.waiters = s.waiters[n:]; len(s.waiters) == 0 {
		s.waiters = nil
	}
	if set := s.leader.InSync(); !slices.Equal(set, s.inSync) {
		s.inSync = set
		s.notify()
	}
}

// Notify returns a channel that is closed when a replica next connects,
// disconnects, begins to catch up or gets in or out of sync.
func (s *Source) Notify() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

func (s *Source) notify() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// watch looks for overdue members and writes until the leadership ends.
func (s *Source) watch(ctx context.Context) {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		s.tick(ctx, time.Now())
	}
}

func (s *Source) tick(ctx context.Context, now time.Time) {
	timeout := s.timeout()
	head := s.log.Position().LSN
	var unsent []*outgoing
	defer func() { release(unsent) }()
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	unsent = s.overdueCopies(now)
	s.waiters = slices.DeleteFunc(s.waiters, func(w *waiter) bool {
		if now.Sub(w.since) >= giveUpFactor*timeout {
			w.answer(ErrTimeout)
			return true
		}
		return w.gone
	})
	var oldest topology.LSN
	var since time.Time
	if len(s.waiters) > 0 {
		oldest, since = s.waiters[0].lsn, s.waiters[0].since
	}
	s.keep()
	s.leader.Committed(head)
	for _, e := range s.leader.Tick(now, timeout, oldest, since) {
		if e.Behind != nil {
			go s.leaveBehind(ctx, *e.Behind)
			continue
		}
		s.perform([]Effect{e})
	}
	s.settle()
}

// leaveBehind asks the index once. The leader asks again if it has to.
func (s *Source) leaveBehind(ctx context.Context, b Behind) {
	log := s.cfg.Logger.With("replica", b.Key, "epoch", b.Epoch, "session", b.Session)
	log.Warn("in-sync replica keeps writes waiting, asking the index to leave it behind")
	err := errors.New("no index is configured")
	if s.cfg.Behind != nil {
		err = s.cfg.Behind(ctx, b.Key, b.Epoch, b.Session)
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("index did not agree to leave a replica behind", "err", err)
		select {
		case <-time.After(5 * tickInterval):
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		log.Warn("replica is left behind, writes go on without it")
	}
	s.perform(s.leader.BehindDone(b, err == nil, time.Now()))
	s.settle()
}

// expose has the index know that a replica is out of sync before it gives up a part
// of what it has. The replica waits meanwhile, and comes again if it takes too long.
func (s *Source) expose(ctx context.Context, key string, log *slog.Logger) error {
	s.mu.Lock()
	b, ask := s.leader.Replaceable(key)
	s.mu.Unlock()
	if !ask {
		return nil
	}
	log.Info("replica is in sync as far as the index knows; it is left behind before it catches up")
	err := errors.New("no index is configured")
	if s.cfg.Behind != nil {
		ctx, cancel := context.WithTimeout(ctx, handshakeTimeout/2)
		defer cancel()
		err = s.cfg.Behind(ctx, b.Key, b.Epoch, b.Session)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.perform(s.leader.BehindDone(b, err == nil, time.Now()))
	s.settle()
	if err != nil {
		return &Error{"not_left_behind", fmt.Errorf("the index must know first that the replica is not in sync: %w", err)}
	}
	return nil
}

// perform hands grants to their feeds; it needs mu. Only Tick has other effects.
func (s *Source) perform(effects []Effect) {
	for _, e := range effects {
		if e.LeaseAsk != nil {
			if f := s.feeds[e.LeaseAsk.Key]; f != nil && f.id == e.LeaseAsk.Conn {
				f.leaseAsk = e.LeaseAsk
				f.poke()
			}
			continue
		}
		if f := s.feeds[e.Grant.Key]; f != nil && f.id == e.Grant.Conn {
			f.grant = e.Grant
			f.poke()
		}
	}
}

// ReplicaStatus is what the master knows of a replica.
type ReplicaStatus struct {
	Key        string
	Connected  bool
	InSync     bool   // writes wait for it
	Session    uint64 // of the grant by which it is in sync, 0 if it was so before this epoch
	Acked      topology.LSN
	LagBatches uint64
	LagBytes   uint64        // of log behind Acked
	Lag        time.Duration // age of the oldest batch it lacks
	Tier       history.Tier  // of its last catch-up
	Reason     string        // of that tier
	BytesDone  uint64        // of a running checkpoint copy
	BytesTotal uint64
	Progress   Progress // of its catch-up, if one is under way
}

// Replicas returns the status of all replicas, sorted by key.
func (s *Source) Replicas() []ReplicaStatus {
	head := s.log.Position().LSN
	list := s.members(head, time.Now())
	for i := range list {
		if r := &list[i]; r.LagBatches > 0 {
			// An error means that the log cannot be read, which the streams will tell.
			r.LagBytes, _ = s.log.LogBytes(r.Acked.Index)
		}
	}
	return list
}

// members returns what the leader and the streams know of the replicas.
func (s *Source) members(head topology.LSN, now time.Time) []ReplicaStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]ReplicaStatus, 0, len(s.leader.members))
	for i := range s.leader.members {
		m := &s.leader.members[i]
		r := ReplicaStatus{Key: m.key, Connected: m.conn != 0, InSync: m.waited() && !m.joining, Session: m.grant, Acked: m.acked}
		if m.acked.Index < head.Index {
			r.LagBatches = head.Index - m.acked.Index
			if at := s.log.CommittedAt(m.acked.Index + 1); !at.IsZero() {
				r.Lag = max(now.Sub(at), 0)
			}
		}
		if f := s.feeds[m.key]; f != nil {
			r.Tier, r.Reason, r.BytesDone, r.BytesTotal = f.tier, f.reason, f.bytesDone, f.bytesTotal
			r.Progress = f.up.progress(now)
		}
		list = append(list, r)
	}
	return list
}

// feed is one follower's connection.
type feed struct {
	key    string
	id     uint64
	cancel context.CancelCauseFunc
	wake   chan struct{} // something of the below changed
	said   chan said     // answers during a copy or a rewind; nil without one

	// Guarded by Source.mu.
	grant                 *Grant    // to be sent
	leaseAsk              *LeaseAsk // to be sent
	tier                  history.Tier
	reason                string
	bytesDone, bytesTotal uint64
	acked                 topology.LSN
	up                    catchUp
	target                uint64 // index that it lacked when it began to stream
	sent                  uint64 // bytes of batches
	measured              uint64 // of sent
}

// measure takes in how far the follower is; it needs Source.mu. Writes of the master
// must not keep the catch-up of one that is in sync going for ever.
func (f *feed) measure(now time.Time, head uint64, inSync bool) {
	if !f.up.running() {
		return
	}
	if inSync && f.acked.Index >= f.target {
		f.up.end()
	}
	f.up.applied(now, f.acked.Index, head, f.sent-f.measured)
	f.measured = f.sent
}

// said is a frame that a follower sent and the sender waits for.
type said struct {
	t       frameType
	payload []byte
}

func (f *feed) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Serve feeds a follower until the connection, the context or the leadership
// ends. It is called after the upgrade line was read and answered with OK; it
// closes the connection.
func (s *Source) Serve(ctx context.Context, conn Conn, req FollowRequest) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	log := s.cfg.Logger.With("replica", req.Self)
	in := &patientReader{conn, handshakeTimeout}
	err := s.serve(ctx, cancel, conn, in, req, log)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if reason, bad := s.cfg.Refusals.note(err); bad {
		log.Warn("refused what a replica sent", "reason", reason, "err", err)
	}
	var refused *Error
	if errors.As(err, &refused) || errors.Is(err, ErrNotMaster) {
		// Best effort, if the connection is still there: the follower learns why.
		reason := "not_master"
		if refused != nil {
			reason = refused.Reason
		}
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		var frame bytes.Buffer
		writeFrame(&frame, frameError, refusal{reason, err.Error()}.encode())
		conn.Write(frame.Bytes())
	}
	return fmt.Errorf("serve %s: %w", req.Self, err)
}

func (s *Source) serve(ctx context.Context, cancel context.CancelCauseFunc, conn Conn, in *patientReader, req FollowRequest, log *slog.Logger) (failure error) {
	r, w := bufio.NewReaderSize(in, 4<<10), bufio.NewWriterSize(&patientWriter{conn, s.stall}, 64<<10)
	t, payload, err := readFrame(r)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if t != frameHello {
		return fmt.Errorf("handshake: %w, want %v", unexpected(t), frameHello)
	}
	h, err := decodeHello(payload)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}

	pos := s.log.Position()
	if pos.Partition != req.Partition {
		return refuse(refusedPartition, "partition %d is asked for, this node has %d", req.Partition, pos.Partition)
	}
	f, err := s.connect(req.Self, cancel)
	if err != nil {
		return err
	}
	defer s.disconnect(f)

	peer := req.peer(h)
	oldest, err := s.log.Oldest()
	if err != nil {
		return err
	}
	choice := history.Choose(pos, oldest, peer)
	tier, reason, from := choice.Tier, choice.Reason, peer.LSN
	if tier == history.TierNone && reason == refusedFuture {
		return refuse(reason, "replica is at %v, this node at %v, and nobody else writes this epoch", peer.LSN, pos.LSN)
	}
	if tier == history.TierNone {
		return &Error{reason, fmt.Errorf("replica is at %v, this node at %v: a newer master must exist", peer.LSN, pos.LSN)}
	}
	if tier == history.TierRewind {
		from = choice.Fork
	}
	var tail history.Tail
	if tier != history.TierCheckpoint {
		tail, err = s.log.Tail(from)
		switch {
		case errors.Is(err, history.ErrPurged):
			tier, reason = history.TierCheckpoint, "purged"
		case err != nil:
			return err
		default:
			defer func() { tail.Close() }()
		}
	}
	if h.want != history.TierNone && h.want != tier {
		return &Error{reasonTierNotPossible, fmt.Errorf("tier %v is asked for, but a replica at %v has to catch up by tier %v: %s", h.want, peer.LSN, tier, reason)}
	}
	log.Info("replica connected", "lsn", peer.LSN, "master_lsn", pos.LSN, "tier", tier.String(), "reason", reason)
	s.setTier(f, tier, reason)

	if tier != history.TierWAL {
		if err := s.expose(ctx, f.key, log); err != nil {
			return err
		}
	}

	interval, timeout := s.interval(), s.timeout()
	st := start{tier, reason, pos.LSN, pos.History, uint32(interval.Milliseconds()), uint32(timeout.Milliseconds()), choice.Fork}
	if err := writeFrame(w, frameStart, st.encode()); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}

	if tier != history.TierWAL {
		f.said = make(chan said, 1)
	}
	// From here on the follower is read by a goroutine of its own, which ends
	// everything when it has been silent for too long. That also ends a write
	// that a follower does not read.
	in.patience = timeout
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		cancel(s.receive(r, f))
	}()
	defer func() { // LIFO: before disconnect
		cancel(failure)
		conn.Close()
		<-reading
	}()

	sender := &sender{s: s, key: f.key, ctx: ctx, w: w, patience: timeout}
	release := func() {}
	switch tier {
	case history.TierRewind:
		if err := sender.rewind(f, log); err != nil {
			return fmt.Errorf("rewind: %w", err)
		}
	case history.TierCheckpoint:
		var snap history.Snapshot
		err := aside(func() (err error) {
			snap, err = sender.copy(f, log)
			return err
		})
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		release = sync.OnceFunc(snap.Release)
		defer release()
		if tail, err = s.log.Tail(snap.LSN); err != nil {
			return err
		}
		defer func() { tail.Close() }()
		from = snap.LSN
	}
	s.streams(f, tier, from)
	sender.at = from.Index
	if err := aside(func() error { return sender.stream(f, tail, release, true) }); err != nil {
		return err
	}
	return sender.stream(f, tail, release, false) // writes may wait for it from here on
}

// connect registers a follower's connection and ends an older one.
func (s *Source) connect(key string, cancel context.CancelCauseFunc) (*feed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		return nil, ErrNotMaster
	}
	if old := s.feeds[key]; old != nil {
		old.cancel(errors.New("replica connected anew"))
	}
	s.lastID++
	f := &feed{key: key, id: s.lastID, cancel: cancel, wake: make(chan struct{}, 1)}
	s.feeds[key] = f
	s.leader.Connect(key, f.id, time.Now())
	s.notify()
	return f, nil
}

func (s *Source) disconnect(f *feed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.feeds[f.key] == f {
		delete(s.feeds, f.key)
	}
	s.leader.Disconnect(f.key, f.id)
	s.settle()
}

func (s *Source) setTier(f *feed, tier history.Tier, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.tier, f.reason = tier, reason
	f.up.begin(time.Now(), tier, reason)
	s.notify()
}

// streams tells the leader that the follower receives the log. After a copy or a
// rewind it has nothing until it says so.
func (s *Source) streams(f *feed, tier history.Tier, from topology.LSN) {
	snapshot := from
	head := s.log.Position().LSN
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roster.at(f.key, snapshot.Index)
	if tier != history.TierWAL {
		from = topology.LSN{}
	}
	s.leader.Committed(head)
	f.up.log(time.Now(), snapshot.Index, head.Index)
	f.target = head.Index
	s.perform(s.leader.Streams(f.key, f.id, from, time.Now()))
	s.settle()
}

// receive reads what a follower says.
func (s *Source) receive(r *bufio.Reader, f *feed) error {
	for {
		t, payload, err := readFrame(r)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		switch t {
		case frameAlive:
			s.mu.Lock()
			s.leader.Heard(f.key, f.id, time.Now())
			s.mu.Unlock()
		case frameAck:
			lsn, err := decodeLSN(t, payload)
			if err != nil {
				return fmt.Errorf("receive: %w", err)
			}
			pos := s.log.Position()
			switch pos.Locate(lsn) {
			case history.Same:
			case history.Diverged:
				return refuse(refusedDiverged, "receive: %v of %v, which is not of this log at %v", t, lsn, pos.LSN)
			default:
				return refuse(refusedFuture, "receive: %v of %v, this log is at %v", t, lsn, pos.LSN)
			}
			s.mu.Lock()
			f.acked = lsn
			s.roster.at(f.key, lsn.Index)
			s.leader.Committed(pos.LSN)
			s.perform(s.leader.Ack(f.key, f.id, lsn, time.Now()))
			s.settle()
			m := s.leader.find(f.key)
			f.measure(time.Now(), pos.LSN.Index, m != nil && m.waited() && !m.joining)
			s.mu.Unlock()
			f.poke()
		case frameResume, frameHave, frameKeys:
			select {
			case f.said <- said{t, payload}:
			default:
				return fmt.Errorf("receive: %w", unexpected(t))
			}
		case frameError:
			r, err := decodeRefusal(payload)
			if err != nil {
				return err
			}
			return &Error{r.reason, fmt.Errorf("replica refuses: %s", r.message)}
		case frameLeaseAck:
			ack, err := decodeLeaseAck(payload)
			if err != nil {
				return fmt.Errorf("receive: %w", err)
			}
			s.leaseAck(f, ack)
		default:
			return fmt.Errorf("receive: %w", unexpected(t))
		}
	}
}

// sender is the only one who writes to a follower.
type sender struct {
	s        *Source
	key      string // of the follower
	ctx      context.Context
	w        *bufio.Writer
	patience time.Duration // what the follower was told to wait for a sign of life
	limit    limiter
	beat     time.Time // last heartbeat between batches
	sent     uint64    // bytes of batches
	at       uint64    // index of the last batch
	lacking  []uint64  // as the follower was told
}

func (c *sender) send(t frameType, payload []byte) error {
	if err := writeFrame(c.w, t, payload); err != nil {
		return fmt.Errorf("send %v: %w", t, err)
	}
	return nil
}

// interval is the time between two signs of life now: options may have changed,
// but what this follower was told holds for the stream.
func (c *sender) interval() time.Duration { return min(c.s.interval(), c.patience/4) }

// heartbeat tells the position and that we are alive, and who lacks which log: the
// follower may be the next to be asked for it.
func (c *sender) heartbeat() error {
	c.s.mu.Lock()
	lacking := c.s.roster.lacking(c.key)
	c.s.mu.Unlock()
	if !slices.Equal(lacking, c.lacking) {
		c.lacking = lacking
		if err := c.send(frameLacking, encodeLacking(lacking)); err != nil {
			return err
		}
	}
	if err := c.send(frameHeartbeat, heartbeat{c.s.log.Position().LSN, time.Now().UnixNano()}.encode()); err != nil {
		return err
	}
	return c.w.Flush()
}

// stream sends batches as they come. release is called once the follower has
// caught up for the first time. With chasing it returns then, and also when it does
// not gain enough on who writes.
func (c *sender) stream(f *feed, tail history.Tail, release func(), chasing bool) error {
	var pace chase
	interval := c.interval()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		moved := tail.Moved()
		more, err := c.batches(tail)
		if err != nil {
			return err
		}
		c.s.mu.Lock()
		grant, ask, acked := f.grant, f.leaseAsk, f.acked
		f.grant, f.leaseAsk, f.sent = nil, nil, c.sent
		if grant != nil {
			f.up.end()
		}
		c.s.mu.Unlock()
		if grant != nil {
			if err := c.send(frameInSync, inSync{grant.Epoch, grant.Session}.encode()); err != nil {
				return err
			}
		}
		if ask != nil {
			if err := c.send(frameLeaseAsk, leaseAsk{ask.Epoch, ask.Token, uint32(ask.TTL.Milliseconds())}.encode()); err != nil {
				return err
			}
		}
		if err := c.w.Flush(); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		head := c.s.log.Position().LSN.Index
		near := !acked.IsZero() && head-acked.Index <= joinLag
		if near {
			release()
		}
		if chasing && (near || grant != nil || pace.loses(head, c.at, time.Now())) {
			return nil
		}
		if more {
			continue
		}
		select {
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		case <-moved:
		case <-f.wake:
		case <-ticker.C:
			if err := c.heartbeat(); err != nil {
				return err
			}
			if now := c.interval(); now != interval {
				interval = now
				ticker.Reset(interval)
			}
		}
	}
}

// batches sends the batches there are, up to a bound. It tells whether there may
// be more.
func (c *sender) batches(tail history.Tail) (more bool, err error) {
	for range sendBatches {
		b, ok, err := tail.TryNext()
		if err != nil || !ok {
			return false, err
		}
		if err := c.send(frameBatch, b.Data); err != nil {
			return false, err
		}
		c.sent += uint64(len(b.Data))
		c.at = b.LSN.Index
		if err := c.limited(c.s.cfg.StreamBandwidth, len(b.Data)); err != nil {
			return false, err
		}
	}
	// A follower that catches up has to learn how far it must go.
	if now := time.Now(); now.Sub(c.beat) >= c.interval() {
		c.beat = now
		return true, c.heartbeat()
	}
	return true, nil
}

// limited waits as long as the bandwidth demands after n bytes.
func (c *sender) limited(bandwidth func() int64, n int) error {
	if bandwidth == nil {
		return nil
	}
	d := c.limit.take(bandwidth(), n, time.Now())
	if d <= 0 {
		return nil
	}
	if err := c.w.Flush(); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return c.pause(d)
}

// pause waits, with signs of life.
func (c *sender) pause(d time.Duration) error {
	for d > 0 {
		step := min(d, c.interval())
		select {
		case <-time.After(step):
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
		if d -= step; d > 0 {
			if err := c.heartbeat(); err != nil {
				return err
			}
		}
	}
	return nil
}
