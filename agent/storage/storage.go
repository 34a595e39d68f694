// Package storage keeps one partition's records on disk as the outcome of a
// log of write batches with positions, and hands that log and copies of the
// database out to replicas. It is the only package that knows RocksDB.
//
// Every batch carries its own position (epoch, index) as its first record, so
// position and data are one atomic write, and the same bytes mean the same on
// every node. RocksDB's sequence numbers never leave the node.
//
// The data directory holds
//
//	LOCK         held while a process uses the directory
//	db/          the RocksDB database; db/archive/ its retained logs
//	incoming/    a copy that is being received
//	INCOMING     which one that is
//	restored/    a copy that is being installed while no process serves
//	checkpoint.* copies that are being sent
//	REPLACE      present while one database takes another's place
//
// Locks are taken in this order: tuning, key stripes, committing, commit, guards of the record cache,
// engine, position.
package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
)

// Errors that callers tell apart.
var (
	// These are the errors of the log.
	ErrPurged   = history.ErrPurged
	ErrDiverged = history.ErrDiverged
	ErrFuture   = history.ErrFuture
	ErrGap      = history.ErrGap
	ErrDamaged  = history.ErrDamaged
	ErrReplaced = history.ErrReplaced
	ErrClosed   = history.ErrClosed
	ErrFlushed  = history.ErrFlushed
	ErrTooLarge = history.ErrTooLarge
	ErrMoved    = history.ErrMoved

	// ErrStaleEpoch means that an epoch is not newer than the log's.
	ErrStaleEpoch = errors.New("epoch is not newer than the log")
	// ErrOtherPartition means that the data belongs to another partition.
	ErrOtherPartition = errors.New("database holds another partition")
	// ErrNotBegun means that the log's epoch was begun elsewhere, so that nothing may
	// be added to it here but what its master sends.
	ErrNotBegun = errors.New("epoch was not begun by this process")
	// ErrWriteFailed means that the database could not be written, for example
	// because the disk is full. It can still be read.
	ErrWriteFailed = errors.New("database write failed")
	// ErrDiskFull is an ErrWriteFailed: less space is free than Options.MinFree.
	ErrDiskFull = fmt.Errorf("%w: too little free space", ErrWriteFailed)
	// ErrKey means that a key is empty or too long.
	ErrKey = errors.New("invalid key length")
	// ErrLocked means that another process uses the data directory.
	ErrLocked = errors.New("data directory is in use by another process")
)

// MaxKey is the longest key in bytes, the limit of the text protocol.
const MaxKey = 8191

// Position is what a database knows of itself.
type Position = history.Position

// EpochStart tells with which batch an epoch began.
type EpochStart = history.EpochStart

// Batch is one committed write batch.
type Batch = history.Batch

// Checkpoint is a copy of the database as of one position.
type Checkpoint = history.Checkpoint

// Options say how to open a database. Zero values mean the defaults.
type Options struct {
	Dir string // data directory, created if missing

	SyncWrites   bool          // fsync every batch before it counts as committed
	WALTTL       time.Duration // how long finished logs are retained, 0 for any time
	WALSizeLimit int64         // bytes of finished logs that are retained, 0 for any number
	// WALReplicaLimit is up to how many bytes of finished logs are kept beyond
	// WALTTL for who lacks them (see KeepFor), 0 for none.
	WALReplicaLimit int64
	MaxBatchBytes   int // of records grouped into one batch, default 1 MiB

	RecordCache  int64  // bytes of hot records kept in memory, 0 for none
	BlockCache   int64  // bytes, default 64 MiB
	WriteBuffer  int64  // bytes of a memtable, and so about the size of a log, default 16 MiB
	MaxOpenFiles int    // of table files, default 512
	Tuning       Tuning // of RocksDB itself; it wins over the above
	MinFree      int64  // bytes that must be free on the disk to accept writes, default 64 MiB, negative for any
	Tombstones   int    // kept, oldest dropped first, default 65536; equal on all nodes of a partition

	SweepInterval time.Duration    // between two looks at the retained logs, default 10 s
	Now           func() time.Time // default time.Now
	// FreeSpace returns the free bytes of the file system of dir; the default asks it.
	FreeSpace func(dir string) (int64, error)
	Logger    *slog.Logger // default slog.Default()
}

func (o Options) withDefaults() Options {
	def := func(p *int64, v int64) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&o.BlockCache, 64<<20)
	def(&o.WriteBuffer, 16<<20)
	if o.MinFree == 0 {
		o.MinFree = 64 << 20
	}
	if o.MaxBatchBytes <= 0 {
		o.MaxBatchBytes = DefaultMaxBatchBytes
	}
	if o.MaxOpenFiles <= 0 {
		o.MaxOpenFiles = 512
	}
	if o.Tombstones <= 0 {
		o.Tombstones = 65536
	}
	if o.SweepInterval <= 0 {
		o.SweepInterval = 10 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.FreeSpace == nil {
		o.FreeSpace = freeSpace
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// DefaultMaxBatchBytes is the default of Options.MaxBatchBytes.
const DefaultMaxBatchBytes = 1 << 20

// DB is an open database. All methods may be called concurrently.
type DB struct {
	opts Options
	log  *slog.Logger
	lock *os.File

	stripes [4096]sync.Mutex // order the changes of a key, by its hash
	seed    maphash.Seed

	queue      queue      // changes that wait to be committed
	committing sync.Mutex // held by who commits what is queued; taken before commitMu

	commitMu  sync.Mutex // held by whoever moves the log
	builder   batchBuilder
	begun     uint64       // epoch that this process began and no other has followed, 0 if none
	failure   error        // why nothing can be written; nil if it can
	retryAt   time.Time    // when to look whether failure is over
	checkedAt time.Time    // when free space was looked at
	unchecked int64        // bytes written since
	written   uint64       // bytes of all batches that were written
	unsynced  bool         // the last batch was not synced
	failWrite func() error // tests make writes fail with it

	mu     sync.RWMutex // held for reading while eng is used
	eng    *engine      // nil once closed, or if it could not be opened again
	closed bool

	posMu      sync.RWMutex
	pos        Position
	generation uint64 // changes when the log is another one
	commits    commitTimes
	sizes      batchSizes

	committed atomic.Uint64 // pos.LSN.Index
	moved     notifier      // after pos or generation changed, and on close

	tombs tombstones
	cache *recordCache // nil for none

	walMu    sync.Mutex // held while archived logs are deleted or must not be
	wals     walIndex
	policy   retention
	lacking  atomic.Pointer[[]uint64] // see KeepFor
	overdue  atomic.Int64             // bytes of log kept beyond their age when it was last looked at
	givenUp  atomic.Uint64            // log files deleted although somebody lacked them
	givenWhy atomic.Pointer[string]   // reason of the last one

	watch atomic.Pointer[accessWatch] // nil while nobody watches

	tuneMu sync.Mutex             // held while options of RocksDB are changed; taken before mu
	tuning atomic.Pointer[Tuning] // over opts, for the next engine; never modified

	syncWrites    atomic.Bool
	maxBatchBytes atomic.Int64
	fsyncs        atomic.Uint64
	batches       atomic.Uint64
	rewinds       atomic.Uint64
	writeErrors   atomic.Uint64
	checkpoints   atomic.Uint64 // numbers the directories

	stop    context.CancelFunc
	running sync.WaitGroup
}

// Open opens the database in o.Dir and creates it if there is none.
func Open(o Options) (*DB, error) {
	o = o.withDefaults()
	if o.Dir == "" {
		return nil, errors.New("storage: no data directory given")
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("storage: create data directory: %w", err)
	}
	db := &DB{opts: o, log: o.Logger, seed: maphash.MakeSeed(), cache: newRecordCache(o.RecordCache)}
	db.queue.init()
	db.tuning.Store(&o.Tuning)
	db.policy.holds = map[*Hold]uint64{}
	db.policy.changed = make(chan struct{}, 1)
	db.syncWrites.Store(o.SyncWrites)
	db.SetMaxBatchBytes(o.MaxBatchBytes)
	db.SetRetention(o.WALTTL, o.WALSizeLimit)
	db.SetReplicaRetention(o.WALReplicaLimit)

	var err error
	if db.lock, err = lockDir(o.Dir); err != nil {
		db.cache.close()
		return nil, fmt.Errorf("storage: %w", err)
	}
	err = removeLeftovers(o.Dir)
	if err == nil {
		err = db.openCurrent()
	}
	if err == nil {
		err = db.keepAll()
	}
	if err != nil {
		db.lock.Close()
		db.cache.close()
		return nil, fmt.Errorf("storage: %w", err)
	}
	var ctx context.Context
	ctx, db.stop = context.WithCancel(context.Background())
	db.running.Go(db.commitLoop)
	db.running.Go(func() { db.sweepLoop(ctx) })
	return db, nil
}

// openCurrent opens the engine after finishing an exchange that was interrupted.
// The caller makes sure that nobody else uses db.
func (db *DB) openCurrent() error {
	if err := recoverReplace(db.opts.Dir); err != nil {
		return err
	}
	ends, err := surveyWALs(db.dbDir())
	if err != nil {
		return err
	}
	eng, err := openEngine(db.dbDir(), db.engineOptions())
	if err != nil {
		return err
	}
	if err := db.adopt(eng); err != nil {
		eng.close()
		return err
	}
	db.tellDropped(ends)
	return nil
}

func (db *DB) engineOptions() engineOptions {
	return engineOptions{
		writeBuffer:  db.opts.WriteBuffer,
		blockCache:   db.opts.BlockCache,
		maxOpenFiles: db.opts.MaxOpenFiles,
		tuning:       *db.tuning.Load(),
	}
}

// adopt makes an engine the current one with the state that is in it. The
// caller holds commitMu, the cache's lock and mu, or is alone.
func (db *DB) adopt(eng *engine) error {
	pos, err := readPosition(eng)
	if err != nil {
		return err
	}
	if err := db.tombs.load(eng, db.opts.Tombstones); err != nil {
		return err
	}
	db.eng = eng
	db.cache.reset()
	db.publish(pos)
	return nil
}

// readPosition reads the meta column family.
func readPosition(eng *engine) (Position, error) {
	p := Position{Partition: history.NoPartition}
	err := eng.each(cfMeta, "", func(key, value []byte) error {
		epoch, isLineage := parseLineageKey(key)
		switch {
		case string(key) == metaLSN && len(value) == 16:
			p.LSN = parseLSN(value)
		case string(key) == metaRestored && len(value) == 16:
			p.Restored = parseLSN(value)
		case string(key) == metaHistory:
			p.History = string(value)
		case string(key) == metaPartition && len(value) == 4:
			p.Partition = int(int32(binary.BigEndian.Uint32(value)))
		case isLineage && len(value) == 8:
			p.Lineage = append(p.Lineage, EpochStart{Epoch: epoch, Index: binary.BigEndian.Uint64(value)})
		default:
			return fmt.Errorf("unknown entry %q of %d bytes in column family %s: written by another version?", key, len(value), cfNames[cfMeta])
		}
		return nil
	})
	if err != nil {
		return Position{}, fmt.Errorf("read position: %w", err)
	}
	return p.Settled(), nil
}

// lockDir takes the directory for this process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrLocked, dir)
		}
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return f, nil
}

// Close finishes what is queued and closes the database. Open tails end with ErrClosed.
func (db *DB) Close() error {
	db.queue.close()
	db.stop()
	db.running.Wait()

	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	defer db.cache.lock()()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return ErrClosed
	}
	db.closed = true
	db.cache.reset()
	if db.eng != nil {
		db.eng.close()
		db.eng = nil
	}
	db.cache.close()
	db.posMu.Lock()
	db.generation++
	db.posMu.Unlock()
	db.moved.broadcast()
	return db.lock.Close()
}

// use runs fn with the engine, which stays open meanwhile.
func (db *DB) use(fn func(*engine) error) error {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if db.eng == nil {
		return ErrClosed
	}
	return fn(db.eng)
}

func (db *DB) dbDir() string { return filepath.Join(db.opts.Dir, "db") }

// Dir returns the data directory.
func (db *DB) Dir() string { return db.opts.Dir }

// Position returns where the database stands.
func (db *DB) Position() Position {
	db.posMu.RLock()
	defer db.posMu.RUnlock()
	return db.pos
}

// CommittedAt returns about when the batch with the index was committed or
// applied here; the zero time if that is not known any more.
func (db *DB) CommittedAt(index uint64) time.Time {
	db.posMu.RLock()
	defer db.posMu.RUnlock()
	return db.commits.at(index)
}

// publish makes a new position known.
func (db *DB) publish(p Position) { db.publishAs(p, 0) }

// publishAnother makes the position of a log known that does not continue the
// one before: readers of that must not go on with it.
func (db *DB) publishAnother(p Position) { db.publishAs(p, 1) }

func (db *DB) publishAs(p Position, generations uint64) {
	now := db.opts.Now()
	db.posMu.Lock()
	db.pos = p
	db.generation += generations
	db.commits.add(p.LSN.Index, now)
	db.sizes.add(p.LSN.Index, db.written)
	db.posMu.Unlock()
	db.committed.Store(p.LSN.Index)
	db.moved.broadcast()
}

// Get returns the record of a key, expired or not.
func (db *DB) Get(key []byte) (r Record, found bool, err error) {
	found, err = db.View(key, func(lent Record) {
		r = lent
		r.Value = append([]byte(nil), lent.Value...)
	})
	return r, found, err
}

// View calls fn with the record of a key, expired or not, if there is one. The
// record's value is lent for the time of the call, in which the database must
// not be used.
func (db *DB) View(key []byte, fn func(Record)) (found bool, err error) {
	decode := func(encoded []byte) error {
		r, err := parseRecord(encoded)
		if err == nil {
			fn(r)
		}
		return err
	}
	if found, err = db.cache.view(key, decode); !found && err == nil {
		found, err = db.read(key, decode)
	}
	if err != nil {
		return false, fmt.Errorf("storage: get: %w", err)
	}
	return found, nil
}

// read is view for what the cache does not have; it has it then.
func (db *DB) read(key []byte, fn func(encoded []byte) error) (found bool, err error) {
	if db.cache != nil {
		g := db.cache.guard(key)
		g.Lock()
		defer g.Unlock()
	}
	err = db.access(func(e *engine) (err error) {
		found, err = e.get(cfData, key, func(encoded []byte) error {
			if db.cache != nil {
				db.cache.put(key, encoded)
			}
			return fn(encoded)
		})
		return err
	})
	return found, err
}

// notifier wakes everybody who waits for something to change.
type notifier struct {
	mu sync.Mutex
	ch chan struct{} // nil if nobody waits
}

// wait returns a channel that is closed by the next broadcast. Whatever is
// awaited must be checked after the call.
func (n *notifier) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

func (n *notifier) broadcast() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}

// commitTimes remembers when positions were reached, every few milliseconds for
// the last minutes: enough to tell how old a replica's data are.
type commitTimes struct {
	ring [4096]commitTime
	next int
}

type commitTime struct {
	index uint64
	at    time.Time
}

const commitTimeGrain = 20 * time.Millisecond

func (c *commitTimes) add(index uint64, now time.Time) {
	last := &c.ring[(c.next+len(c.ring)-1)%len(c.ring)]
	if index < last.index { // another database
		*c = commitTimes{}
	} else if now.Sub(last.at) < commitTimeGrain {
		last.index = index
		return
	}
	c.ring[c.next] = commitTime{index, now}
	c.next = (c.next + 1) % len(c.ring)
}

// at returns the time of the first sample that has the index.
func (c *commitTimes) at(index uint64) time.Time {
	// Walk backwards: what is asked for is nearly always recent.
	var at time.Time
	for i := range len(c.ring) {
		s := c.ring[(c.next+2*len(c.ring)-1-i)%len(c.ring)]
		if s.at.IsZero() || s.index < index {
			return at
		}
		at = s.at
	}
	return time.Time{}
}
