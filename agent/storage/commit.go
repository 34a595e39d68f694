package storage

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// ChangeOp says what an update does to its key.
type ChangeOp uint8

// The operations.
const (
	Keep   ChangeOp = iota // change nothing
	Put                    // store Change.Record
	Touch                  // likewise, where nothing but the expiry time is new
	Delete                 // remove the record; leave Change.Tombstone if it has a version
)

// Change is what an update function decided.
type Change struct {
	Op        ChangeOp
	Record    Record
	Tombstone Tombstone
}

const (
	// maxBatchChanges bounds the changes in one batch, and so the time that a
	// replica needs for one step.
	maxBatchChanges = 4096
	// retryInterval is the least time between two attempts to write again.
	retryInterval = time.Second
	// Free space is looked at when so much time has passed or so much was written.
	spaceInterval = 100 * time.Millisecond
	spaceBytes    = 4 << 20
)

// Commit is one change on its way through the committer. It belongs to the
// committer from its queueing until the Wait of its pipeline returns.
type Commit struct {
	records []byte // encoded, without tombstones
	count   uint32
	key     []byte
	value   int // where in records the encoded record begins; 0 for none
	tomb    Tombstone
	tombOp  byte        // tagPut, tagDelete or tagNoop
	stripe  *sync.Mutex // unlocked by the committer
	owner   *Pipeline

	lsn topology.LSN
	err error
}

// Result returns the position of the batch that holds the change, or why it was
// not committed: ErrNotBegun, ErrWriteFailed, ErrClosed. It is valid once Wait
// of the pipeline has returned, until Reset.
func (c *Commit) Result() (topology.LSN, error) {
	if c.err != nil {
		return topology.LSN{}, fmt.Errorf("storage: update: %w", c.err)
	}
	return c.lsn, nil
}

// A Pipeline makes changes for one goroutine that does not want to wait for
// each of them: what was not waited for yet goes into as few batches as
// possible. Changes of one key are made in the order of the calls. The zero
// value is not usable; it comes from NewPipeline.
type Pipeline struct {
	db      *DB
	done    func()
	open    atomic.Int64  // changes on their way, and one while their owner does not wait
	idle    chan struct{} // capacity 1: open has become 0
	commits []*Commit     // since the last Reset
	bytes   int           // in commits that were not waited for
}

var commits = sync.Pool{New: func() any { return new(Commit) }}

// keepCommit is the size in bytes up to which a commit's memory is used again.
const keepCommit = 64 << 10

// pipelineBytes bounds what is on its way for one pipeline.
const pipelineBytes = 1 << 20

// NewPipeline returns a pipeline. done, which may be nil, is called for every
// change on which it decided and which is not on its way any more, in any
// goroutine; it must not block.
func (db *DB) NewPipeline(done func()) *Pipeline {
	if done == nil {
		done = func() {}
	}
	p := &Pipeline{db: db, done: done, idle: make(chan struct{}, 1)}
	p.open.Store(1)
	return p
}

// Update changes one key. fn sees what is known of the key, whose values are
// lent for the time of the call, and decides; it must not use the database. No
// other update of the key runs from then until the change is committed. The
// result of the returned Commit tells the outcome after Wait; it is nil if there
// is nothing to wait for, because fn kept everything or there was an error.
//
// On a log that has epochs changes fail with ErrNotBegun except between
// BeginEpoch and the next Apply.
func (p *Pipeline) Update(key []byte, fn func(Entry) Change) (*Commit, error) {
	if len(key) == 0 || len(key) > MaxKey {
		p.done()
		return nil, fmt.Errorf("storage: update: %w: %d bytes, want 1 to %d", ErrKey, len(key), MaxKey)
	}
	if p.bytes > pipelineBytes {
		p.Wait()
	}
	stripe := p.db.stripe(key)
	stripe.Lock()
	c := commits.Get().(*Commit)
	changed, err := p.db.prepare(c, key, fn)
	if !changed {
		stripe.Unlock()
		c.recycle()
		p.done()
		if err != nil {
			err = fmt.Errorf("storage: update: %w", err)
		}
		return nil, err
	}
	c.stripe, c.owner = stripe, p
	p.bytes += len(c.records)
	p.commits = append(p.commits, c)
	p.open.Add(1)
	if !p.db.queue.add(c) {
		c.finish(topology.LSN{}, ErrClosed)
	}
	return c, nil
}

func (c *Commit) recycle() {
	c.owner = nil
	if cap(c.records) <= keepCommit {
		commits.Put(c)
	}
}

// Wait waits until every change is committed or has failed.
func (p *Pipeline) Wait() {
	if p.bytes == 0 {
		return
	}
	p.bytes = 0
	p.help()
	if p.open.Add(-1) != 0 {
		<-p.idle
	}
	p.open.Store(1)
}

// help commits what is queued, unless somebody is at it: to do it costs less than
// to have it done and be woken. Others that are ready queue theirs first.
func (p *Pipeline) help() {
	runtime.Gosched()
	if p.open.Load() > 1 && p.db.committing.TryLock() {
		p.db.commitQueued()
		p.db.committing.Unlock()
	}
}

// Reset waits and forgets the changes made so far.
func (p *Pipeline) Reset() {
	p.Wait()
	for _, c := range p.commits {
		c.recycle()
	}
	clear(p.commits)
	p.commits = p.commits[:0]
}

// finish hands a change back. It is the last use of c by the committer.
func (c *Commit) finish(lsn topology.LSN, err error) {
	c.lsn, c.err = lsn, err
	c.stripe.Unlock()
	c.stripe = nil
	p := c.owner
	p.done()
	if p.open.Add(-1) == 0 {
		p.idle <- struct{}{}
	}
}

// queue hands requests to the committer.
type queue struct {
	mu      sync.Mutex
	filled  sync.Cond
	pending []*Commit
	spare   []*Commit
	closed  bool
}

func (q *queue) init() { q.filled.L = &q.mu }

func (q *queue) add(r *Commit) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.pending = append(q.pending, r)
	if len(q.pending) == 1 {
		q.filled.Signal()
	}
	return true
}

// wait waits until there are changes; false once closed and empty.
func (q *queue) wait() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.pending) == 0 && !q.closed {
		q.filled.Wait()
	}
	return len(q.pending) > 0
}

// take returns all changes. The slice is valid until the next call.
func (q *queue) take() []*Commit {
	q.mu.Lock()
	defer q.mu.Unlock()
	taken := q.pending
	clear(q.spare)
	q.pending, q.spare = q.spare[:0], taken
	return taken
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.filled.Signal()
}

// Update changes one key like Pipeline.Update, and waits. It returns the position
// of the batch that holds the change, or the zero LSN if fn kept everything. If
// ctx ends earlier, the change may still be committed.
func (db *DB) Update(ctx context.Context, key []byte, fn func(Entry) Change) (topology.LSN, error) {
	if err := ctx.Err(); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: update: %w", err)
	}
	p := db.NewPipeline(nil)
	c, err := p.Update(key, fn)
	if c == nil {
		return topology.LSN{}, err
	}
	if p.open.Add(-1) != 0 {
		select {
		case <-p.idle:
		case <-ctx.Done():
			// The committer still owns the commit and the stripe.
			return topology.LSN{}, fmt.Errorf("storage: update: %w", ctx.Err())
		}
	}
	return c.Result()
}

// stripe returns the lock of a key.
func (db *DB) stripe(key []byte) *sync.Mutex {
	return &db.stripes[maphash.Bytes(db.seed, key)%uint64(len(db.stripes))]
}

// prepare asks fn and encodes its answer into r; false if there is nothing to
// do. The caller holds the key's stripe.
func (db *DB) prepare(r *Commit, key []byte, fn func(Entry) Change) (changed bool, err error) {
	var e Entry
	var wrong error
	e.Tombstone, e.HasTombstone = db.tombs.get(key)
	found, err := db.View(key, func(known Record) {
		e.Record, e.Found = known, true
		changed, wrong = r.encode(key, &e, fn(e))
	})
	if err == nil && !found {
		changed, wrong = r.encode(key, &e, fn(e))
	}
	if err == nil {
		err = wrong
	}
	return changed && err == nil, err
}

// encode turns a decision into records. The key has what e says until then.
func (r *Commit) encode(key []byte, e *Entry, c Change) (changed bool, err error) {
	r.records, r.count, r.value, r.tombOp, r.lsn, r.err = r.records[:0], 1, 0, tagNoop, topology.LSN{}, nil
	switch c.Op {
	case Keep:
		return false, nil
	case Put, Touch:
		if c.Op == Touch {
			r.records = append(r.records, tagLogData)
			r.records = appendBytes(r.records, touchMark)
		}
		r.records = append(r.records, tagPut)
		r.records = appendBytes(r.records, key)
		r.records = binary.AppendUvarint(r.records, uint64(recordHeaderSize+len(c.Record.Value)))
		r.value = len(r.records)
		r.records = appendRecord(r.records, &c.Record)
		if e.HasTombstone {
			r.tombOp = tagDelete
		}
	case Delete:
		r.records = append(r.records, tagDelete)
		r.records = appendBytes(r.records, key)
		if r.tomb = c.Tombstone; r.tomb.Version > 0 {
			r.tombOp = tagPut
		} else if e.HasTombstone {
			r.tombOp = tagDelete
		}
	default:
		return false, fmt.Errorf("unknown change operation %d", c.Op)
	}
	r.key = append(r.key[:0], key...)
	return true, nil
}

// commitLoop commits what nobody helps with: whatever is queued while one batch
// is written becomes the next one.
func (db *DB) commitLoop() {
	for db.queue.wait() {
		// Whoever queued the first change made this goroutine the next to run. Let
		// those run that are ready to queue theirs: a batch costs about the same
		// whether it holds one change or a hundred.
		runtime.Gosched()
		db.committing.Lock()
		db.commitQueued()
		db.committing.Unlock()
	}
}

// commitQueued commits what is queued now. The caller holds committing.
func (db *DB) commitQueued() {
	pending := db.queue.take()
	for len(pending) > 0 {
		n, size := 0, 0
		limit := int(db.maxBatchBytes.Load())
		for n < len(pending) && n < maxBatchChanges && (n == 0 || size+len(pending[n].records) <= limit) {
			size += len(pending[n].records)
			n++
		}
		db.commitGroup(pending[:n])
		pending = pending[n:]
	}
}

// commitGroup makes one batch of the changes and hands them back.
func (db *DB) commitGroup(group []*Commit) {
	lsn, err := db.commitRequests(group)
	for _, r := range group {
		switch {
		case err != nil:
			db.cache.forget(r.key)
		case r.value > 0:
			db.cache.committed(r.key, r.records[r.value:])
		default:
			db.cache.forget(r.key)
		}
		r.finish(lsn, err)
	}
}

func (db *DB) commitRequests(group []*Commit) (topology.LSN, error) {
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	if err := db.writable(); err != nil {
		return topology.LSN{}, err
	}
	pos, err := db.nextOwn()
	if err != nil {
		return topology.LSN{}, err
	}
	b := &db.builder
	b.start(pos.LSN)
	for _, r := range group {
		b.append(r.records, r.count)
		switch r.tombOp {
		case tagPut:
			db.tombs.put(b, r.key, r.tomb)
		case tagDelete:
			db.tombs.delete(b, r.key)
		}
	}
	db.tombs.evict(b)
	if err := db.write(b.finish(), db.syncWrites.Load()); err != nil {
		return topology.LSN{}, err
	}
	db.publish(pos)
	return pos.LSN, nil
}

// nextOwn returns the position behind the next batch that originates here. A
// change that was on its way when this node ceased to be master must not get a
// position in somebody else's epoch: it could not be told from the batch that
// really has it. Without any epoch, that is without a controller that assigns
// them, everybody writes. The caller holds commitMu.
func (db *DB) nextOwn() (Position, error) {
	pos := db.Position()
	if pos.LSN.Epoch != db.begun {
		return pos, fmt.Errorf("%w: log is at %v", ErrNotBegun, pos.LSN)
	}
	pos.LSN.Index++
	return pos, nil
}

// write gives a batch to RocksDB. The caller holds commitMu and has called
// writable.
//
// A batch that failed may or may not be in the log. RocksDB then accepts nothing
// until it has begun a new log file, so the next batch, which gets the same
// position, is behind it; a tail takes the last batch of a position.
func (db *DB) write(data []byte, sync bool) error {
	var err error
	if db.failWrite != nil {
		err = db.failWrite()
	}
	if err == nil {
		err = db.access(func(e *engine) error { return e.writeBatch(data, sync) })
	}
	if err == nil {
		db.batches.Add(1)
		db.unsynced = !sync
		if sync {
			db.fsyncs.Add(1)
		}
		db.unchecked += int64(len(data))
		db.written += uint64(len(data))
		return nil
	}
	if errors.Is(err, ErrClosed) {
		return err
	}
	db.writeErrors.Add(1)
	db.log.Error("database write failed, refusing writes until it works again", "dir", db.opts.Dir, "err", err)
	// The tombstones are ahead of the database now.
	if err := db.use(func(e *engine) error { return db.tombs.load(e, db.opts.Tombstones) }); err != nil {
		db.log.Error("cannot read tombstones", "dir", db.opts.Dir, "err", err)
	}
	return db.fail(fmt.Errorf("%w: %w", ErrWriteFailed, err))
}

func (db *DB) fail(err error) error {
	db.failure = err
	db.retryAt = db.opts.Now().Add(retryInterval)
	return err
}

// writable returns nil if the database can be written. After a failure it tries
// anew, but not all the time. The caller holds commitMu.
func (db *DB) writable() error {
	now := db.opts.Now()
	if db.failure == nil {
		if now.Sub(db.checkedAt) < spaceInterval && db.unchecked < spaceBytes {
			return nil
		}
		err := db.checkSpace(now)
		if err != nil {
			db.log.Error("refusing writes", "dir", db.opts.Dir, "err", err)
		}
		return err
	}
	if now.Before(db.retryAt) {
		return db.failure
	}
	if err := db.checkSpace(now); err != nil {
		return err
	}
	var err error
	if db.failWrite != nil {
		err = db.failWrite()
	}
	if err == nil {
		err = db.use((*engine).probe)
	}
	if err != nil {
		return db.fail(fmt.Errorf("%w: %w", ErrWriteFailed, err))
	}
	db.failure = nil
	db.log.Info("database is writable again", "dir", db.opts.Dir, "lsn", db.Position().LSN)
	return nil
}

// checkSpace refuses writes before the disk is full: a write that RocksDB cannot
// finish is hard to recover from, and a restart needs room for what is in the
// log as well.
func (db *DB) checkSpace(now time.Time) error {
	db.checkedAt, db.unchecked = now, 0
	free, err := db.opts.FreeSpace(db.opts.Dir)
	if err != nil {
		return db.fail(fmt.Errorf("%w: free space of %s: %w", ErrWriteFailed, db.opts.Dir, err))
	}
	if free < db.keepFree() && db.overdue.Load() > 0 {
		db.lookAtLogs()
	}
	if free < db.opts.MinFree {
		return db.fail(fmt.Errorf("%w: %d bytes in %s, want %d", ErrDiskFull, free, db.opts.Dir, db.opts.MinFree))
	}
	return nil
}

func freeSpace(dir string) (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return int64(fs.Bavail) * int64(fs.Bsize), nil
}

// Writable returns nil if the database can be written, and what is wrong
// otherwise. Asking makes a database that failed try again, at most once a second.
func (db *DB) Writable() error {
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	return db.writable()
}

// FlushAll removes all records and tombstones.
func (db *DB) FlushAll(ctx context.Context) (topology.LSN, error) {
	if err := ctx.Err(); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: flush all: %w", err)
	}
	defer db.lockStripes()()
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	if err := db.writable(); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: flush all: %w", err)
	}
	pos, err := db.nextOwn()
	if err != nil {
		return topology.LSN{}, fmt.Errorf("storage: flush all: %w", err)
	}
	b := &db.builder
	b.start(pos.LSN)
	for _, cf := range []byte{cfData, cfTombstones} {
		b.deleteRange(cf, nil, afterAllKeys)
	}
	if err := db.write(b.finish(), db.syncWrites.Load()); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: flush all: %w", err)
	}
	db.tombs.clear()
	db.cache.clear()
	db.publish(pos)
	return pos.LSN, nil
}

// afterAllKeys is greater than every key.
var afterAllKeys = func() []byte {
	k := make([]byte, MaxKey+1)
	for i := range k {
		k[i] = 0xff
	}
	return k
}()

// lockStripes waits for all updates under way and keeps new ones out until the
// returned function is called.
func (db *DB) lockStripes() (unlock func()) {
	for i := range db.stripes {
		db.stripes[i].Lock()
	}
	return func() {
		for i := range db.stripes {
			db.stripes[i].Unlock()
		}
	}
}

// BeginEpoch makes this database the origin of a new epoch: it appends the batch
// that says so to the log, with which the epoch becomes part of the lineage
// here and on every replica. It belongs to a promotion, before the first write.
// Repeating it for the epoch that this process began is harmless; any other
// epoch must be newer than all the log has seen.
func (db *DB) BeginEpoch(ctx context.Context, epoch uint64, partition int) (topology.LSN, error) {
	if err := ctx.Err(); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: begin epoch: %w", err)
	}
	if partition < 0 || partition > math.MaxInt32 {
		return topology.LSN{}, fmt.Errorf("storage: begin epoch: partition %d, want 0 or more", partition)
	}
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	pos := db.Position()
	if pos.Partition != history.NoPartition && pos.Partition != partition {
		return topology.LSN{}, fmt.Errorf("storage: begin epoch: %w: %d, want %d", ErrOtherPartition, pos.Partition, partition)
	}
	if epoch == db.begun && epoch != 0 {
		return pos.LSN, nil
	}
	if epoch <= pos.LSN.Epoch {
		// An epoch is written by one process only. One that starts again may have
		// lost the end of its log, and would give a position away a second time.
		return topology.LSN{}, fmt.Errorf("storage: begin epoch: %w: %d, log is at %v", ErrStaleEpoch, epoch, pos.LSN)
	}
	if err := db.writable(); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: begin epoch: %w", err)
	}
	pos = db.Position() // making it writable may have moved it
	pos.LSN = topology.LSN{Epoch: epoch, Index: pos.LSN.Index + 1}
	pos.Lineage = pos.StartEpoch(EpochStart{Epoch: epoch, Index: pos.LSN.Index})
	pos.Partition = partition
	b := &db.builder
	b.start(pos.LSN)
	if !pos.Restored.IsZero() {
		// The values are not those of the position, so whoever has a part of this log
		// has something else: nobody may take it for the same history.
		db.log.Warn("begins a history of its own, because a rewind was not finished", "dir", db.opts.Dir,
			"lsn", pos.LSN, "restored", pos.Restored, "history", pos.History)
		pos.History, pos.Restored = "", topology.LSN{}
		b.delete(cfMeta, metaRestored)
	}
	if pos.History == "" {
		var id [16]byte
		rand.Read(id[:])
		pos.History = hex.EncodeToString(id[:])
	}
	b.put(cfMeta, lineageKey(epoch), binary.BigEndian.AppendUint64(nil, pos.LSN.Index))
	b.put(cfMeta, metaPartition, binary.BigEndian.AppendUint32(nil, uint32(partition)))
	b.put(cfMeta, metaHistory, []byte(pos.History))
	if err := db.write(b.finish(), true); err != nil {
		return topology.LSN{}, fmt.Errorf("storage: begin epoch: %w", err)
	}
	db.begun = epoch
	db.publish(pos)
	return pos.LSN, nil
}

// Apply appends batches of a master to the log, unchanged, and returns the
// position reached. Each must continue the log where it stands. Only the last
// one is synced, which on the way syncs the others: after an error some may be
// applied and not synced, and no batches at all mean to make up for that.
func (db *DB) Apply(ctx context.Context, batches ...[]byte) (topology.LSN, error) {
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	if len(batches) == 0 && db.unsynced && db.syncWrites.Load() {
		err := db.writable()
		if err == nil {
			err = db.write(make([]byte, batchHeaderSize), true)
		}
		if err != nil {
			return db.Position().LSN, fmt.Errorf("storage: sync: %w", err)
		}
	}
	for i, data := range batches {
		err := ctx.Err()
		if err == nil {
			err = db.writable()
		}
		if err == nil {
			err = db.apply(data, i == len(batches)-1 && db.syncWrites.Load())
		}
		if err != nil {
			return db.Position().LSN, fmt.Errorf("storage: apply: %w", err)
		}
	}
	return db.Position().LSN, nil
}

func (db *DB) apply(data []byte, sync bool) error {
	pos := db.Position()
	next, changes, err := follow(pos, data)
	if err != nil {
		return err
	}
	if err := db.write(data, sync); err != nil {
		return err
	}
	db.begun = 0
	db.cache.follow(changes.data)
	if err := db.tombs.follow(changes.tombs); err != nil {
		// The batch is in the log; whoever wrote it does not write what we read.
		return err
	}
	db.publish(next)
	return nil
}

// changes are what a master's batch does, by column family.
type changes struct{ data, tombs []batchOp }

// follow checks that a batch continues the log at pos and returns the position
// behind it, and what it changes.
func follow(pos Position, data []byte) (Position, changes, error) {
	var done changes
	lsn, ok := batchLSN(data)
	if !ok {
		return pos, done, fmt.Errorf("%w: it does not begin with its position", ErrDamaged)
	}
	if lsn.Index != pos.LSN.Index+1 {
		return pos, done, fmt.Errorf("%w: %v, log is at %v", ErrGap, lsn, pos.LSN)
	}
	if lsn.Epoch < pos.LSN.Epoch {
		return pos, done, fmt.Errorf("%w: batch %v, log is at %v", ErrDiverged, lsn, pos.LSN)
	}
	next := pos
	next.LSN = lsn
	var op batchOp
	r := readBatch(data)
	for r.next(&op) {
		switch {
		case op.cf == cfTombstones:
			done.tombs = append(done.tombs, op)
		case op.cf == cfData:
			done.data = append(done.data, op)
		case op.tag != tagPut:
			return pos, done, fmt.Errorf("%w: it deletes from column family %s", ErrDamaged, cfNames[cfMeta])
		default:
			if err := followMeta(&next, op); err != nil {
				return pos, done, err
			}
		}
	}
	if r.err != nil {
		return pos, done, r.err
	}
	if lsn.Epoch != pos.LSN.Epoch && len(next.Lineage) == len(pos.Lineage) {
		return pos, done, fmt.Errorf("%w: batch %v does not begin its epoch, log is at %v", ErrGap, lsn, pos.LSN)
	}
	if pos.History != "" && next.History != pos.History {
		return pos, done, fmt.Errorf("%w: batch %v begins history %s, log is of %s", ErrDiverged, lsn, next.History, pos.History)
	}
	return next.Settled(), done, nil
}

func followMeta(next *Position, op batchOp) error {
	epoch, isLineage := parseLineageKey(op.key)
	switch {
	case string(op.key) == metaLSN:
		// Read by batchLSN already.
	case string(op.key) == metaHistory:
		next.History = string(op.value)
	case string(op.key) == metaPartition && len(op.value) == 4:
		next.Partition = int(int32(binary.BigEndian.Uint32(op.value)))
	case isLineage && len(op.value) == 8 && epoch == next.LSN.Epoch && binary.BigEndian.Uint64(op.value) == next.LSN.Index:
		next.Lineage = next.StartEpoch(EpochStart{Epoch: epoch, Index: next.LSN.Index})
	default:
		return fmt.Errorf("%w: unknown entry %q in column family %s", ErrDamaged, op.key, cfNames[cfMeta])
	}
	return nil
}

// SetSyncWrites says whether batches are synced before they count as committed.
func (db *DB) SetSyncWrites(sync bool) { db.syncWrites.Store(sync) }

// SetMaxBatchBytes bounds the records grouped into one batch; a single larger
// one is a batch of its own.
func (db *DB) SetMaxBatchBytes(n int) {
	if n <= 0 {
		n = DefaultMaxBatchBytes
	}
	db.maxBatchBytes.Store(int64(n))
}
