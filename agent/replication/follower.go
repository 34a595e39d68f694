package replication

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 2 * time.Second
	// diskBackoff is the longest pause before a copy is asked for again that did not
	// fit the disk. The master keeps its checkpoint for longer.
	diskBackoff = 20 * time.Second
	// applyBatches and applyBytes bound what is applied in one go, and so the
	// time until it is acknowledged.
	applyBatches = 512
	applyBytes   = 4 << 20
	// streamBuffer is how much of a stream is read at once. What comes before it are
	// small frames and the chunks of a copy, which shall not take the way through a
	// buffer of their own size.
	streamBuffer    = 256 << 10
	handshakeBuffer = 16 << 10
	// fullAfter is after how many streams in a row that could not be applied a full
	// copy is asked for.
	fullAfter = 2
	// resyncBackoff is the longest pause between attempts once GiveUpAfter is reached.
	resyncBackoff = 30 * time.Second
)

// FollowerConfig configures a Follower.
type FollowerConfig struct {
	Self      string // node key
	Partition int    // that this node is assigned to
	Master    string // node key, for the status

	// Dial connects to the master; the follower sends the upgrade line itself.
	Dial func(ctx context.Context) (Conn, error)
	// InSync tells the index that this node is in sync. It is repeated until it
	// succeeds; an error that wraps ErrRefused means that it never will.
	InSync func(ctx context.Context, epoch, session uint64) error
	// RewindLimits bound what is undone key by key; zero for the defaults.
	RewindLimits history.RewindLimits
	// GiveUpAfter is how many resyncs in a row must have failed for Resync to be told,
	// nil for never; see attempts.
	GiveUpAfter func() int
	// Resync is told that this node has everything that its master had, so that it
	// may be relied upon, or that too many attempts at that have failed. May be nil.
	Resync func(ok bool)
	// Copier copies a master that cannot stream its log; nil if this node cannot.
	Copier Copier
	// Promise is asked whether the master may go on for ttl in an epoch although the
	// index does not say so, with the promise that this node begins no later epoch
	// meanwhile. May be nil: then it may not.
	Promise func(epoch uint64, ttl time.Duration) bool
	// GiveUp is told of every attempt that failed: the how manieth it is since one
	// succeeded, and how long ago the first of them was. May be nil.
	GiveUp func(ctx context.Context, failures int, since time.Duration)
	// Refusals counts what the master is refused for; may be nil.
	Refusals *Refusals

	Logger *slog.Logger
}

// A Copier is the last way to have what a master has: record by record, without
// its log.
type Copier interface {
	// Copy returns nil when all that the master has is here, and the index knows.
	// What the master executes meanwhile and later comes by itself.
	Copy(ctx context.Context, progress func(bytes int)) error
	// Follow returns when something of that did not come, so that it takes another
	// copy, or with the context's error.
	Follow(ctx context.Context) error
	// End tells that the master can stream after all.
	End()
}

// Follower is a replica's side of replication.
type Follower struct {
	db  Store
	cfg FollowerConfig

	mu       sync.Mutex
	status   FollowerStatus
	up       catchUp
	unusable int    // streams in a row that could not be applied
	noRewind string // why a copy is to take the place of a rewind, "" if it is not

	// Of Run: what is known of the files of a copy that was interrupted, nil if nothing
	// is, and the id of one that was refused.
	parts   map[string]filePart
	refused string

	order     *resync                 // nil if there is none
	interrupt context.CancelCauseFunc // ends the attempt that runs
	over      bool                    // Run has ended
	again     chan struct{}           // ends the pause between two attempts

	failures int // attempts in a row; of Run
	failing  time.Time
	attempts attempts // of Run
}

// FollowerStatus is what a replica knows of its replication.
type FollowerStatus struct {
	Master          string
	Connected       bool
	Tier            history.Tier // of the last catch-up
	Reason          string       // of that tier
	MasterLSN       topology.LSN // as last heard
	MasterAt        time.Time    // when that was, by the master's clock
	Waiting         string       // what the master makes this node wait for, machine-readable
	BytesDone       uint64       // of a running copy
	BytesTotal      uint64       // of a running copy of files
	RecordsDone     uint64       // of a running copy by dump
	WaitingPosition int          // place in the queue, with Waiting

	ErrorReason string // of the last attempt, "" if it succeeded
	Error       string
	Progress    Progress // of the catch-up under way

	// Since the follower was made.
	WALCatchUps    uint64
	Checkpoints    uint64
	CopiedBytes    uint64 // of Checkpoints
	ResumedBytes   uint64 // of Checkpoints, that an interrupted copy had brought already
	Dumps          uint64
	Rewinds        uint64
	RewoundKeys    uint64 // of Rewinds, read from the master
	RewoundBytes   uint64 // of their values
	RewindsGivenUp uint64 // for a full copy
	FailedAttempts uint64
	FailedResyncs  uint64 // in a row
	Fallbacks      uint64 // full copies that were begun although there was data
	Purged         uint64 // of Fallbacks, because the master's log did not go back far enough
}

// NewFollower returns a follower that does nothing until Run.
func NewFollower(db Store, cfg FollowerConfig) *Follower {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Follower{db: db, cfg: cfg, status: FollowerStatus{Master: cfg.Master}, again: make(chan struct{}, 1)}
}

// Status returns the current status.
func (f *Follower) Status() FollowerStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	s.Progress = f.up.progress(time.Now())
	return s
}

func (f *Follower) update(fn func(*FollowerStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn(&f.status)
}

// Run follows the master until the context ends, whose error it returns. When it
// has returned, nothing more is applied.
func (f *Follower) Run(ctx context.Context) error {
	log := f.cfg.Logger.With("master", f.cfg.Master)
	backoff := minBackoff
	var last string
	defer f.finish()
	f.attempts.at = f.db.Position().LSN
	for {
		began := time.Now()
		f.attempts.begin()
		attempt, cancel := f.begin(ctx)
		err := f.follow(attempt, log)
		if f.cfg.Copier != nil && reasonOf(err) == reasonNotSupported {
			err = f.copy(attempt, log)
		}
		ordered := f.interrupted(attempt)
		cancel(nil)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if ordered {
			log.Info("connecting to the master anew, as was ordered")
			backoff = minBackoff
			continue
		}
		reason := reasonOf(err)
		f.cfg.Refusals.note(err)
		failed := f.attempts.end(f.db.Position().LSN, reason)
		gaveUp := f.cfg.GiveUpAfter != nil && failed >= max(f.cfg.GiveUpAfter(), 1)
		if gaveUp && f.cfg.Resync != nil {
			f.cfg.Resync(false)
		}
		f.update(func(s *FollowerStatus) {
			s.Connected, s.Waiting, s.WaitingPosition, s.BytesDone, s.BytesTotal, s.RecordsDone = false, "", 0, 0, 0, 0
			s.ErrorReason, s.Error = reason, err.Error()
			s.FailedAttempts++
			s.FailedResyncs = uint64(failed)
			f.up.end()
			f.settle(err)
		})
		if reason != last || time.Since(began) > maxBackoff {
			log.Warn("replication ended, trying again", "reason", reason, "err", err)
			last = reason
		}
		if time.Since(began) > maxBackoff && !gaveUp {
			backoff = minBackoff
		}
		if f.failures++; f.failures == 1 {
			f.failing = time.Now()
		}
		if f.cfg.GiveUp != nil {
			f.cfg.GiveUp(ctx, f.failures, time.Since(f.failing))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.again:
		case <-time.After(backoff):
		}
		longest := maxBackoff
		switch {
		case gaveUp:
			longest = resyncBackoff
		case reason == reasonDiskFull:
			longest = diskBackoff
		}
		backoff = min(2*backoff, longest)
	}
}

// reasonNotSupported is why a master that knows no streams cannot be followed.
const reasonNotSupported = "not_supported"

// copy follows a master that cannot stream: it returns why that ended.
func (f *Follower) copy(ctx context.Context, log *slog.Logger) error {
	if want := f.wants(); want != history.TierNone && want != history.TierDump {
		return errOnlyDump
	}
	log.Info("master cannot stream its log, copying record by record")
	f.update(func(s *FollowerStatus) {
		s.Connected, s.Tier, s.Reason, s.MasterLSN, s.ErrorReason, s.Error = true, history.TierDump, reasonNotSupported, topology.LSN{}, "", ""
		f.up.begin(time.Now(), history.TierDump, reasonNotSupported)
		f.up.copied(time.Now(), 0, 0, 0)
	})
	err := f.cfg.Copier.Copy(ctx, func(bytes int) {
		f.update(func(s *FollowerStatus) {
			s.RecordsDone++
			s.BytesDone += uint64(bytes)
			f.up.copied(time.Now(), s.BytesDone, 0, s.RecordsDone)
		})
	})
	if err != nil {
		return err
	}
	f.failures = 0
	f.update(func(s *FollowerStatus) {
		s.Dumps++
		s.BytesDone, s.RecordsDone = 0, 0
	})
	f.measure(func(c *catchUp, _ time.Time) { c.end() })
	return f.cfg.Copier.Follow(ctx)
}

// session is one connection to the master.
type session struct {
	*Follower
	ctx    context.Context
	cancel context.CancelCauseFunc
	conn   Conn
	in     *patientReader
	r      *bufio.Reader
	log    *slog.Logger

	interval, timeout time.Duration

	wmu sync.Mutex // one frame at a time
	w   *bufio.Writer

	wake chan struct{} // there is something to acknowledge

	amu     sync.Mutex
	streams bool // applied is of the master's log
	applied topology.LSN
	lease   *leaseAck // to be sent

	claim context.CancelFunc // ends the claim under way; nil if there is none
	tasks sync.WaitGroup
}

// follow is one attempt: it returns why it ended.
func (f *Follower) follow(ctx context.Context, log *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := f.cfg.Dial(ctx)
	if err != nil {
		return &Error{"connection_failed", fmt.Errorf("connect: %w", err)}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	s := &session{Follower: f, ctx: ctx, cancel: cancel, conn: conn, log: log, wake: make(chan struct{}, 1)}
	s.in = &patientReader{conn, handshakeTimeout}
	s.r, s.w = bufio.NewReaderSize(s.in, handshakeBuffer), bufio.NewWriterSize(conn, 256)
	err = s.run()
	cause := context.Cause(ctx)
	cancel(nil)
	conn.Close()
	s.tasks.Wait()
	if cause != nil {
		err = cause
	}
	return err
}

func (s *session) run() error {
	st, err := s.handshake()
	if err != nil {
		return err
	}
	s.interval = time.Duration(st.interval) * time.Millisecond
	s.timeout = time.Duration(st.timeout) * time.Millisecond
	if s.interval <= 0 || s.timeout <= s.interval {
		return refuse(refusedFields, "%w: interval %v and timeout %v", errBadFrame, s.interval, s.timeout)
	}
	s.in.patience = s.timeout
	s.failures = 0
	s.attempts.start(st.lsn)
	if s.cfg.Copier != nil {
		s.cfg.Copier.End()
	}
	pos := s.db.Position()
	if refused := s.refusedRewind(); refused != "" && st.reason == history.Diverged.String() {
		st.reason = refused // which is the better answer to why
	}
	s.update(func(fs *FollowerStatus) {
		fs.Connected, fs.Tier, fs.Reason, fs.MasterLSN, fs.ErrorReason, fs.Error = true, st.tier, st.reason, st.lsn, "", ""
		switch {
		case st.tier == history.TierWAL:
			fs.WALCatchUps++
		case st.tier == history.TierCheckpoint && !pos.Empty():
			fs.Fallbacks++
			if st.reason == "purged" {
				fs.Purged++
			}
		}
	})
	s.log.Info("following master", "lsn", pos.LSN, "master_lsn", st.lsn, "tier", st.tier.String(), "reason", st.reason)
	s.update(func(*FollowerStatus) { s.up.begin(time.Now(), st.tier, st.reason) })
	if st.tier == history.TierWAL {
		s.measure(func(c *catchUp, now time.Time) { c.log(now, pos.LSN.Index, st.lsn.Index) })
		s.setApplied(pos.LSN)
		// What was left of an interrupted copy is of no use any more.
		if err := s.db.DropIncoming(); err != nil {
			s.log.Warn("cannot remove an interrupted copy", "err", err)
		}
	}
	s.tasks.Go(func() {
		if err := s.acknowledge(); err != nil {
			s.cancel(err)
		}
	})
	switch st.tier {
	case history.TierRewind:
		if err := s.rewind(st); err != nil {
			return err
		}
	case history.TierCheckpoint:
		if !pos.Empty() {
			s.log.Warn("data of this node are replaced by a copy of the master's",
				"reason", st.reason, "lsn", pos.LSN, "history", pos.History, "partition", pos.Partition,
				"master_lsn", st.lsn, "master_history", st.history)
		}
		if err := aside(s.receiveCopy); err != nil {
			return err
		}
	}
	s.r = bufio.NewReaderSize(s.r, streamBuffer)
	if err := aside(func() error { return s.stream(true) }); err != nil {
		return err
	}
	return s.stream(false) // writes wait for this node from here on
}

// handshake upgrades the connection and tells where this node stands.
func (s *session) handshake() (start, error) {
	// The position that is claimed counts as acknowledged, and what a stream that
	// broke has left behind may not be durable yet.
	if _, err := s.db.Apply(s.ctx); err != nil {
		return start{}, &Error{"apply_failed", fmt.Errorf("handshake: %w", err)}
	}
	pos := s.db.Position()
	s.conn.SetWriteDeadline(time.Now().Add(handshakeTimeout))
	line := AppendRequest(nil, FollowRequest{Self: s.cfg.Self, Partition: s.cfg.Partition, History: pos.History, LSN: pos.LSN})
	if _, err := s.conn.Write(line); err != nil {
		return start{}, fmt.Errorf("handshake: %w", err)
	}
	answer, err := s.r.ReadSlice('\n')
	if err != nil {
		return start{}, fmt.Errorf("handshake: %w", err)
	}
	switch word, rest, _ := strings.Cut(strings.TrimRight(string(answer), "\r\n"), " "); word {
	case "OK":
		if s.wants() == history.TierDump {
			return start{}, errNoDump
		}
	case "ERROR":
		return start{}, &Error{reasonNotSupported, errors.New("handshake: master cannot stream its log")}
	case "SERVER_ERROR":
		reason, _, _ := strings.Cut(rest, " ")
		return start{}, &Error{strings.TrimSuffix(reason, ":"), fmt.Errorf("handshake: master refuses: %s", rest)}
	default:
		return start{}, refuse(refusedUnexpected, "handshake: unexpected answer %q", word)
	}
	w := bufio.NewWriter(s.conn)
	want := s.wants()
	if s.wantsFull() && want == history.TierNone {
		want = history.TierCheckpoint
	}
	h := hello{int32(pos.Partition), want, s.refusedRewind() == "", pos.Lineage, pos.Restored}
	if err := writeFrame(w, frameHello, h.encode()); err != nil {
		return start{}, fmt.Errorf("handshake: %w", err)
	}
	if err := w.Flush(); err != nil {
		return start{}, fmt.Errorf("handshake: %w", err)
	}
	t, payload, err := readFrame(s.r)
	if err != nil {
		return start{}, fmt.Errorf("handshake: %w", err)
	}
	switch t {
	case frameStart:
		st, err := decodeStart(payload)
		switch {
		case err != nil:
			return start{}, fmt.Errorf("handshake: %w", err)
		case st.tier == history.TierWAL:
			// Batches do not name their history.
			if !pos.Empty() && st.history != pos.History {
				return start{}, refuse(refusedHistory, "handshake: log of history %s is to follow %v of %s", st.history, pos.LSN, pos.History)
			}
		case st.tier != history.TierCheckpoint && st.tier != history.TierRewind:
			return start{}, refuse(refusedFields, "handshake: %w: unknown tier %d", errBadFrame, st.tier)
		}
		return st, nil
	case frameError:
		err := refusedBy(payload)
		if reasonOf(err) == refusedFuture {
			s.countUnusable(1)
		}
		return start{}, err
	}
	return start{}, fmt.Errorf("handshake: %w", unexpected(t))
}

func refusedBy(payload []byte) error {
	r, err := decodeRefusal(payload)
	if err != nil {
		return err
	}
	return &Error{r.reason, fmt.Errorf("master refuses: %s", r.message)}
}

// wantsFull reports whether streams failed too often to try another.
func (s *session) wantsFull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unusable >= fullAfter
}

func (s *session) countUnusable(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == 0 {
		s.unusable = 0
	} else {
		s.unusable += n
	}
}

// common handles the frames that may come at any time.
func (s *session) common(t frameType, payload []byte) (bool, error) {
	switch t {
	case frameHeartbeat:
		h, err := decodeHeartbeat(payload)
		if err != nil {
			return false, err
		}
		s.update(func(fs *FollowerStatus) { fs.MasterLSN, fs.MasterAt = h.lsn, time.Unix(0, h.at) })
		return true, nil
	case frameNotice:
		n, err := decodeNotice(payload)
		if err != nil {
			return false, err
		}
		s.update(func(fs *FollowerStatus) { fs.Waiting, fs.WaitingPosition = n.reason, int(n.position) })
		return true, nil
	case frameLacking:
		lacking, err := decodeLacking(payload)
		if err != nil {
			return false, err
		}
		s.db.KeepFor(lacking)
		return true, nil
	case frameLeaseAsk:
		ask, err := decodeLeaseAsk(payload)
		if err != nil {
			return false, &Error{"protocol_error", err}
		}
		s.answerLease(ask)
		return true, nil
	case frameError:
		return false, refusedBy(payload)
	}
	return false, nil
}

// stream applies batches as they come.
// stream applies the log as it comes, until this node is to be in sync if that is all.
func (s *session) stream(untilInSync bool) error {
	var batches [][]byte
	for {
		t, payload, err := readFrame(s.r)
		if err != nil {
			return fmt.Errorf("stream: %w", err)
		}
		if handled, err := s.common(t, payload); err != nil {
			return err
		} else if handled {
			continue
		}
		switch t {
		case frameBatch:
			batches = append(batches[:0], payload)
			size := len(payload)
			for len(batches) < applyBatches && size < applyBytes && buffered(s.r, frameBatch) {
				if _, payload, err = readFrame(s.r); err != nil {
					return fmt.Errorf("stream: %w", err)
				}
				batches = append(batches, payload)
				size += len(payload)
			}
			lsn, err := s.db.Apply(s.ctx, batches...)
			clear(batches)
			if err != nil {
				// What the master sends does not fit; anything else is our own trouble.
				for _, known := range unusable {
					if errors.Is(err, known.err) {
						s.countUnusable(known.weight)
						return refuse(known.reason, "stream: %w", err)
					}
				}
				return &Error{"apply_failed", fmt.Errorf("stream: %w", err)}
			}
			s.countUnusable(0)
			s.setApplied(lsn)
			s.measure(func(c *catchUp, now time.Time) { c.applied(now, lsn.Index, s.status.MasterLSN.Index, uint64(size)) })
		case frameInSync:
			g, err := decodeInSync(payload)
			if err != nil {
				return err
			}
			s.measure(func(c *catchUp, _ time.Time) { c.end() })
			s.claimInSync(g)
			if untilInSync {
				return nil
			}
		default:
			return fmt.Errorf("stream: %w", unexpected(t))
		}
	}
}

// unusable are the errors of a batch that does not fit, each with the number of
// streams that it counts as. A damaged batch came whole, as its frame's checksum tells,
// so that the master's log has it like that, and will next time.
var unusable = []struct {
	err    error
	reason string
	weight int
}{{history.ErrGap, refusedGap, 1}, {history.ErrDamaged, refusedBatch, fullAfter}, {history.ErrDiverged, refusedEpoch, 1}}

func (s *session) setApplied(lsn topology.LSN) {
	if s.attempts.reached(lsn) {
		s.update(func(fs *FollowerStatus) { fs.FailedResyncs = 0 })
		if s.cfg.Resync != nil {
			s.cfg.Resync(true)
		}
	}
	s.amu.Lock()
	s.streams, s.applied = true, lsn
	s.amu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// acknowledge tells the master what was applied, at once, and that this node is
// alive, at the interval.
func (s *session) acknowledge() error {
	ticker := time.NewTicker(s.interval)
	defer ticker.Stop()
	for {
		s.amu.Lock()
		streams, applied, lease := s.streams, s.applied, s.lease
		s.lease = nil
		s.amu.Unlock()
		t, payload := frameAlive, []byte(nil)
		if streams {
			t, payload = frameAck, appendLSN(nil, applied)
		}
		if lease != nil {
			if err := s.send(frameLeaseAck, lease.encode()); err != nil {
				return fmt.Errorf("acknowledge: %w", err)
			}
		}
		if err := s.send(t, payload); err != nil {
			return fmt.Errorf("acknowledge: %w", err)
		}
		select {
		case <-s.ctx.Done():
			return nil
		case <-s.wake:
		case <-ticker.C:
		}
	}
}

// send sends a frame to the master.
func (s *session) send(t frameType, payload []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.conn.SetWriteDeadline(time.Now().Add(s.timeout))
	if err := writeFrame(s.w, t, payload); err != nil {
		return err
	}
	return s.w.Flush()
}

// claimInSync tells the index that this node is in sync; a newer grant takes the
// place of one that was not delivered yet.
func (s *session) claimInSync(g inSync) {
	if s.claim != nil {
		s.claim()
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.claim = cancel
	s.tasks.Go(func() {
		defer cancel()
		s.deliver(ctx, g)
	})
}

func (s *session) deliver(ctx context.Context, g inSync) {
	log := s.log.With("epoch", g.epoch, "session", g.session)
	if s.cfg.InSync == nil {
		return
	}
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		err := s.cfg.InSync(ctx, g.epoch, g.session)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			log.Info("in sync with master")
			return
		case errors.Is(err, ErrRefused):
			// A new connection leads to a new grant.
			s.cancel(&Error{"in_sync_refused", fmt.Errorf("claim to be in sync: %w", err)})
			return
		}
		log.Warn("cannot tell the index to be in sync, trying again", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
	}
}
