package replication

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/topology"
)

// The database of a simulation: what storage.DB promises, in memory, with a disk
// that outlives the process, loses what was not synced when the power goes, and
// fails. Everything in it is guarded by world.mu, which nobody holds while he waits.

// A simBatch is a write batch: one record, or the start of an epoch.
type simBatch struct {
	lsn        topology.LSN
	history    string // of the batch that begins an epoch, otherwise ""
	key, value string
}

func (b simBatch) encode() []byte {
	return appendString(appendString(appendString(appendLSN(nil, b.lsn), b.history), b.key), b.value)
}

func decodeSimBatch(raw []byte) (simBatch, error) {
	d := decoder{rest: raw}
	b := simBatch{lsn: d.lsn(), history: d.string(), key: d.string(), value: d.string()}
	if d.end(frameBatch) != nil {
		return b, history.ErrDamaged
	}
	return b, nil
}

// simState is the data at one position.
type simState struct {
	pos    history.Position
	data   map[string]string
	digest uint64         // of data
	path   []topology.LSN // of every batch that led here: path[i] has index i+1
}

func (s simState) clone() simState {
	s.data, s.path = maps.Clone(s.data), slices.Clone(s.path)
	s.pos.Lineage = slices.Clone(s.pos.Lineage)
	return s
}

func hashPair(k, v string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(k))
	h.Write([]byte{0})
	h.Write([]byte(v))
	return h.Sum64()
}

func (s *simState) set(key, value string) {
	if old, ok := s.data[key]; ok {
		s.digest -= hashPair(key, old)
	}
	if value == "" {
		delete(s.data, key)
		return
	}
	s.data[key] = value
	s.digest += hashPair(key, value)
}

// apply moves the state by a batch that fits.
func (s *simState) apply(b simBatch) {
	s.pos.LSN = b.lsn
	s.path = append(s.path, b.lsn)
	defer func() { s.pos = s.pos.Settled() }()
	if b.history != "" {
		s.pos.Lineage = s.pos.StartEpoch(history.EpochStart{Epoch: b.lsn.Epoch, Index: b.lsn.Index})
		s.pos.History, s.pos.Partition = b.history, 0
		return
	}
	s.set(b.key, b.value)
}

// simEntry is a batch in the log, with what undoes it.
type simEntry struct {
	simBatch
	raw    []byte
	before history.Position
	old    string
}

// simDisk is what outlives a process.
type simDisk struct {
	simState
	log    []simEntry // retained, ascending
	synced uint64     // index up to which a loss of power takes nothing
	limbo  *simBatch  // written, but the write was reported as failed

	incoming string // name of the copy being received
}

func newSimDisk() *simDisk {
	return &simDisk{simState: simState{pos: history.Position{Partition: history.NoPartition}, data: map[string]string{}}}
}

func (d *simDisk) first() uint64 {
	if len(d.log) == 0 {
		return d.pos.LSN.Index + 1
	}
	return d.log[0].lsn.Index
}

func (d *simDisk) append(b simBatch) {
	d.limbo = nil
	d.log = append(d.log, simEntry{b, b.encode(), d.pos, d.data[b.key]})
	d.apply(b)
}

// undo takes the last batch back.
func (d *simDisk) undo() {
	e := d.log[len(d.log)-1]
	d.log = d.log[:len(d.log)-1]
	d.path = d.path[:len(d.path)-1]
	d.pos = e.before
	if e.history == "" {
		d.set(e.key, e.old)
	}
}

// powerLoss drops what was not synced, some of it.
func (d *simDisk) powerLoss(keep func(n int) int) (lost int) {
	d.limbo = nil
	loose := int(d.pos.LSN.Index - min(d.synced, d.pos.LSN.Index))
	for range loose - keep(loose+1) {
		d.undo()
		lost++
	}
	return lost
}

// simDB is a process's handle of its disk.
type simDB struct {
	w    *world
	proc *simProc
	*simDisk
	committing chan struct{} // taken by whoever moves the log

	// What the process shows of the disk.
	visible    history.Position
	generation int
	begun      uint64
	moved      chan struct{}
	holds      map[*int]uint64
}

var (
	_ Log   = (*simDB)(nil)
	_ Store = (*simDB)(nil)
)

var (
	errProcDead  = errors.New("process is dead")
	errDiskError = fmt.Errorf("%w: input/output error", storage.ErrWriteFailed)
	errGateShut  = errors.New("gate is shut")
)

func newSimDB(w *world, p *simProc, d *simDisk) *simDB {
	return &simDB{w: w, proc: p, simDisk: d, committing: make(chan struct{}, 1), visible: d.pos,
		moved: make(chan struct{}), holds: map[*int]uint64{}}
}

// show needs world.mu.
func (db *simDB) show() {
	db.visible = db.pos
	close(db.moved)
	db.moved = make(chan struct{})
}

// pause is the time that something takes on the disk.
func (db *simDB) pause() { time.Sleep(db.w.diskTime(db.proc.node)) }

// step is a point at which the process may die or the disk may fail. It needs world.mu.
func (db *simDB) step(what string) error {
	if db.proc.dead {
		return errProcDead
	}
	return db.w.point(db.proc, what)
}

func (db *simDB) Position() history.Position {
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	return db.visible
}

func (db *simDB) Oldest() (uint64, error) {
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	return db.first(), nil
}

func (db *simDB) CommittedAt(uint64) time.Time { return time.Time{} }

// lock takes the right to move the log; no mutex, so that virtual time goes on.
func (db *simDB) lock() (unlock func()) {
	db.committing <- struct{}{}
	return func() { <-db.committing }
}

// commit appends a batch of this node's own; sync says that it waits for the disk.
func (db *simDB) commit(sync bool, make func() (simBatch, error)) (topology.LSN, error) {
	defer db.lock()()
	db.pause()
	db.w.mu.Lock()
	err := db.step("commit")
	var b simBatch
	if err == nil || errors.Is(err, errDiskError) {
		var refused error
		if b, refused = make(); refused != nil {
			err = refused
		} else if err != nil && db.w.coin(db.proc) {
			db.limbo = &b
		}
	}
	if err != nil {
		db.w.mu.Unlock()
		return topology.LSN{}, err
	}
	db.append(b)
	if sync {
		db.w.mu.Unlock()
		db.pause()
		db.w.mu.Lock()
		if db.proc.dead {
			db.w.mu.Unlock()
			return topology.LSN{}, errProcDead
		}
		db.synced = db.pos.LSN.Index
	}
	defer db.w.mu.Unlock()
	db.w.born(db.proc, b.lsn, db.digest)
	db.show()
	if err := db.step("committed"); errors.Is(err, errProcDead) {
		return topology.LSN{}, err
	}
	return b.lsn, nil
}

func (db *simDB) put(key, value string) (topology.LSN, error) {
	return db.commit(db.w.sync, func() (simBatch, error) {
		switch {
		case !db.proc.open:
			return simBatch{}, errGateShut
		case db.pos.LSN.Epoch != db.begun:
			return simBatch{}, storage.ErrNotBegun
		}
		return simBatch{lsn: topology.LSN{Epoch: db.begun, Index: db.pos.LSN.Index + 1}, key: key, value: value}, nil
	})
}

func (db *simDB) beginEpoch(epoch uint64) error {
	_, err := db.commit(true, func() (simBatch, error) {
		if epoch <= db.pos.LSN.Epoch {
			return simBatch{}, storage.ErrStaleEpoch
		}
		if !db.pos.Restored.IsZero() {
			db.w.failf("n%d becomes master at %v in the midst of a rewind to %v", db.proc.node, db.pos.LSN, db.pos.Restored)
		}
		db.begun = epoch
		h := db.pos.History
		if h == "" {
			h = fmt.Sprintf("history-%d-%d", db.proc.node, epoch)
		}
		return simBatch{lsn: topology.LSN{Epoch: epoch, Index: db.pos.LSN.Index + 1}, history: h}, nil
	})
	return err
}

func (db *simDB) Apply(ctx context.Context, batches ...[]byte) (topology.LSN, error) {
	defer db.lock()()
	if len(batches) == 0 {
		if err := db.syncAll(); err != nil {
			return db.Position().LSN, err
		}
	}
	for i, raw := range batches {
		if i == 0 || db.w.slow(db.proc.node) {
			db.pause()
		}
		if err := db.applyOne(ctx, raw); err != nil {
			return db.Position().LSN, err
		}
		if i == len(batches)-1 {
			if err := db.syncAll(); err != nil {
				return db.Position().LSN, err
			}
		}
	}
	return db.Position().LSN, nil
}

// syncAll makes what is written durable.
func (db *simDB) syncAll() error {
	if !db.w.sync {
		return nil
	}
	db.pause()
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	if err := db.step("sync"); err != nil {
		return err
	}
	db.synced = db.pos.LSN.Index
	return nil
}

func (db *simDB) applyOne(ctx context.Context, raw []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	if err := db.step("apply"); err != nil {
		return err
	}
	b, err := decodeSimBatch(raw)
	switch {
	case err != nil:
		return err
	case b.lsn.Index != db.pos.LSN.Index+1:
		return fmt.Errorf("%w: %v, log is at %v", history.ErrGap, b.lsn, db.pos.LSN)
	case b.lsn.Epoch < db.pos.LSN.Epoch:
		return fmt.Errorf("%w: %v, log is at %v", history.ErrDiverged, b.lsn, db.pos.LSN)
	case b.lsn.Epoch > db.pos.LSN.Epoch && b.history == "":
		return fmt.Errorf("%w: %v does not begin its epoch", history.ErrGap, b.lsn)
	case db.pos.History != "" && b.history != "" && b.history != db.pos.History:
		return fmt.Errorf("%w: history %s", history.ErrDiverged, b.history)
	}
	db.append(b)
	db.begun = 0
	db.show()
	db.w.checkState(db.proc)
	return db.step("applied")
}

func (db *simDB) Tail(after topology.LSN) (history.Tail, error) {
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	if db.proc.dead {
		return nil, history.ErrClosed
	}
	switch db.visible.Locate(after) {
	case history.Same:
	case history.Diverged:
		return nil, history.ErrDiverged
	default:
		return nil, history.ErrFuture
	}
	if after.Index+1 < db.first() {
		return nil, history.ErrPurged
	}
	return &simTail{db: db, generation: db.generation, next: after.Index + 1}, nil
}

type simTail struct {
	db         *simDB
	generation int
	next       uint64
}

func (t *simTail) TryNext() (history.Batch, bool, error) {
	db := t.db
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	switch {
	case db.proc.dead:
		return history.Batch{}, false, history.ErrClosed
	case t.generation != db.generation:
		return history.Batch{}, false, history.ErrReplaced
	case t.next > db.visible.LSN.Index:
		return history.Batch{}, false, nil
	case t.next < db.first():
		return history.Batch{}, false, history.ErrPurged
	}
	if err := db.step("read"); err != nil {
		return history.Batch{}, false, err
	}
	e := db.log[t.next-db.first()]
	t.next++
	return history.Batch{LSN: e.lsn, Data: slices.Clone(e.raw)}, true, nil
}

func (t *simTail) Moved() <-chan struct{} {
	t.db.w.mu.Lock()
	defer t.db.w.mu.Unlock()
	return t.db.moved
}

func (t *simTail) Next(ctx context.Context) (history.Batch, error) {
	for {
		moved := t.Moved()
		if b, ok, err := t.TryNext(); ok || err != nil {
			return b, err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return history.Batch{}, ctx.Err()
		}
	}
}

func (t *simTail) Unread() (int64, error) { return 0, nil }
func (t *simTail) Close()                 {}

// Snapshot writes a small file that names a copy of the state in memory, and
// another one to have several.
func (db *simDB) Snapshot() (history.Snapshot, error) {
	db.pause()
	db.w.mu.Lock()
	if err := db.step("snapshot"); err != nil {
		db.w.mu.Unlock()
		return history.Snapshot{}, err
	}
	// What is visible is what can be told of; a batch that waits for its sync is not.
	s := db.simState.clone()
	for len(s.path) > int(db.visible.LSN.Index) {
		e := db.log[uint64(len(s.path))-db.first()]
		s.path, s.pos = s.path[:len(s.path)-1], e.before
		if e.history == "" {
			s.set(e.key, e.old)
		}
	}
	db.w.snapshots = append(db.w.snapshots, s)
	id := len(db.w.snapshots) - 1
	hold := new(int)
	db.holds[hold] = s.pos.LSN.Index + 1
	db.w.mu.Unlock()

	dir, err := os.MkdirTemp(db.w.dir, "checkpoint-")
	if err != nil {
		return history.Snapshot{}, err
	}
	files := []history.File{{Name: "state", Size: 0}, {Name: "filler", Size: 3000}}
	state := strconv.Itoa(id)
	files[0].Size = int64(len(state))
	for i, content := range []string{state, strings.Repeat("x", 3000)} {
		if err := os.WriteFile(filepath.Join(dir, files[i].Name), []byte(content), 0o644); err != nil {
			return history.Snapshot{}, err
		}
	}
	drop := func() { os.RemoveAll(dir) }
	return history.Snapshot{
		Checkpoint: history.Checkpoint{Dir: dir, LSN: s.pos.LSN, Files: files},
		DropFiles:  drop,
		Release: func() {
			drop()
			db.w.mu.Lock()
			defer db.w.mu.Unlock()
			delete(db.holds, hold)
		},
	}, nil
}

// Incoming has what a crash left of a copy.
func (db *simDB) Incoming() (dir, name string, err error) {
	dir = filepath.Join(db.w.dir, fmt.Sprint("incoming-", db.proc.node))
	db.w.mu.Lock()
	name = db.incoming
	db.w.mu.Unlock()
	if name == "" {
		if err := os.RemoveAll(dir); err != nil {
			return "", "", err
		}
	}
	return dir, name, os.MkdirAll(dir, 0o755)
}

func (db *simDB) NameIncoming(name string) error {
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	if err := db.step("name incoming"); err != nil {
		return err
	}
	db.incoming = name
	return nil
}

func (db *simDB) DropIncoming() error { return db.NameIncoming("") }

func (db *simDB) Space() (int64, int64, error) { return 1 << 40, 0, nil }

// Replace installs a copy; a crash leaves the old state or the new one.
func (db *simDB) Replace(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "state"))
	if err != nil {
		return err
	}
	id, err := strconv.Atoi(string(raw))
	if err != nil {
		return err
	}
	defer db.lock()()
	db.pause()
	counted := db.proc.counted()
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	if err := db.step("replace"); err != nil {
		return err
	}
	from := db.pos.LSN
	db.simState = db.w.snapshots[id].clone()
	db.incoming = ""
	db.log, db.synced, db.limbo = nil, db.pos.LSN.Index, nil
	db.generation++
	db.begun = 0
	db.show()
	db.w.counts.replaced++
	db.w.wentBack(db.proc, from, counted)
	db.w.checkState(db.proc)
	return db.step("replaced")
}

// Values reads first and then asks where the log is, with time in between.
func (db *simDB) Values(keys []history.Key, limit int) ([]history.Value, topology.LSN, error) {
	db.w.mu.Lock()
	if err := db.step("values"); err != nil {
		db.w.mu.Unlock()
		return nil, topology.LSN{}, err
	}
	var values []history.Value
	for size := 0; len(values) < len(keys) && (size < limit || size == 0); {
		k := keys[len(values)]
		v, ok := db.data[k.Key]
		values = append(values, history.Value{Found: ok, Data: []byte(v)})
		size += len(k.Key) + len(v)
	}
	db.w.mu.Unlock()
	db.pause()
	defer db.lock()()
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	if db.proc.dead {
		return nil, topology.LSN{}, errProcDead
	}
	return values, db.pos.LSN, nil
}

func (db *simDB) Diverged(_ context.Context, fork topology.LSN, limits history.RewindLimits) (history.Divergence, error) {
	db.pause()
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	if err := db.step("diverged"); err != nil {
		return history.Divergence{}, err
	}
	d := history.Divergence{Fork: fork, End: db.pos.LSN, Batches: db.pos.LSN.Index - fork.Index}
	if fork.Index+1 < db.first() {
		return d, history.ErrPurged
	}
	seen := map[string]bool{}
	for _, e := range db.log {
		if e.lsn.Index > fork.Index && e.history == "" && !seen[e.key] {
			seen[e.key] = true
			d.Keys = append(d.Keys, history.Key{Key: e.key})
		}
	}
	if len(d.Keys) > limits.Keys {
		return d, history.ErrTooLarge
	}
	return d, nil
}

// Rewind goes back in one step; a crash leaves all or nothing of it.
func (db *simDB) Rewind(_ context.Context, d history.Divergence, values []history.Value, restored topology.LSN) error {
	defer db.lock()()
	db.pause()
	counted := db.proc.counted()
	db.w.mu.Lock()
	defer db.w.mu.Unlock()
	if err := db.step("rewind"); err != nil {
		return err
	}
	if db.pos.LSN != d.End {
		return history.ErrMoved
	}
	db.pos = db.pos.Rewound(d.Fork, restored)
	db.path = db.path[:d.Fork.Index]
	for len(db.log) > 0 && db.log[len(db.log)-1].lsn.Index > d.Fork.Index {
		db.log = db.log[:len(db.log)-1]
	}
	for i, k := range d.Keys {
		db.set(k.Key, string(values[i].Data))
	}
	db.synced, db.limbo = d.Fork.Index, nil
	db.generation++
	db.begun = 0
	db.show()
	db.w.counts.rewound++
	db.w.wentBack(db.proc, d.End, counted+1) // it is counted when this returns
	db.w.checkState(db.proc)
	return db.step("rewound")
}

// purge drops the log before an index, as far as nobody holds it and a loss of
// power could not need it. It needs world.mu.
func (db *simDB) purge(before uint64) {
	before = min(before, db.durable()+1)
	for _, held := range db.holds {
		before = min(before, held)
	}
	for len(db.log) > 0 && db.log[0].lsn.Index < before {
		db.log = db.log[1:]
	}
}

// durable returns the index up to which nothing can be lost.
func (db *simDB) durable() uint64 {
	if db.w.sync {
		return db.synced
	}
	return db.pos.LSN.Index
}

func (db *simDB) LogBytes(index uint64) (uint64, error) {
	head := db.Position().LSN.Index
	return 100 * (head - min(head, index)), nil
}

// KeepFor keeps nothing: what is purged is what the limits leave no room for.
func (db *simDB) KeepFor([]uint64) {}
