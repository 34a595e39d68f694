package storage

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
)

// tombstones holds the tombstones of the database, all of which are in its
// column family as well. Their number is bounded; the oldest are dropped by
// records in the batch that makes them too many, so that every copy of the log
// drops the same ones.
//
// Changes are made when a batch is built, before it is written: until it is
// committed only updates of the same key could notice, and those wait.
type tombstones struct {
	mu    sync.RWMutex
	byKey map[string]tombstone
	fifo  []fifoEntry // ascending order; entries that byKey does not have are stale
	order uint64      // of the newest
	limit int
}

type tombstone struct {
	Tombstone
	order uint64
}

type fifoEntry struct {
	key   string
	order uint64
}

// load replaces everything by what the engine holds.
func (t *tombstones) load(e *engine, limit int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reset()
	t.limit = limit
	err := e.each(cfTombstones, "", func(key, value []byte) error {
		ts, order, err := decodeTombstone(value)
		if err != nil {
			return err
		}
		t.byKey[string(key)] = tombstone{ts, order}
		t.order = max(t.order, order)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read tombstones: %w", err)
	}
	t.rebuild()
	return nil
}

func (t *tombstones) reset() {
	t.byKey = map[string]tombstone{}
	t.fifo = nil
	t.order = 0
}

func (t *tombstones) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reset()
}

func (t *tombstones) get(key []byte) (Tombstone, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	ts, ok := t.byKey[string(key)]
	return ts.Tombstone, ok
}

func (t *tombstones) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byKey)
}

// put adds a tombstone to the batch and remembers it.
func (t *tombstones) put(b *batchBuilder, key []byte, ts Tombstone) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.insert(string(key), ts, t.order+1)
	var v [tombstoneSize]byte
	b.put(cfTombstones, string(key), appendTombstone(v[:0], ts, t.order))
}

// delete removes a tombstone in the batch and forgets it.
func (t *tombstones) delete(b *batchBuilder, key []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byKey, string(key))
	b.delete(cfTombstones, string(key))
}

// evict drops the oldest tombstones that are too many, in the batch and here.
func (t *tombstones) evict(b *batchBuilder) {
	if t.len() <= t.limit {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.byKey) > t.limit {
		oldest := t.fifo[0]
		t.fifo = t.fifo[1:]
		if t.byKey[oldest.key].order == oldest.order {
			delete(t.byKey, oldest.key)
			b.delete(cfTombstones, oldest.key)
		}
	}
}

// follow takes over what a batch of the master does.
func (t *tombstones) follow(ops []batchOp) error {
	if len(ops) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, op := range ops {
		switch op.tag {
		case tagPut:
			ts, order, err := decodeTombstone(op.value)
			if err != nil {
				return err
			}
			t.insert(string(op.key), ts, order)
		case tagDelete:
			delete(t.byKey, string(op.key))
		case tagDeleteRange:
			for k := range t.byKey {
				if k >= string(op.key) && k < string(op.value) {
					delete(t.byKey, k)
				}
			}
			if len(t.byKey) == 0 {
				t.reset()
			}
		}
	}
	return nil
}

// insert needs mu.
func (t *tombstones) insert(key string, ts Tombstone, order uint64) {
	t.byKey[key] = tombstone{ts, order}
	t.order = max(t.order, order)
	t.fifo = append(t.fifo, fifoEntry{key, order})
	if len(t.fifo) > 2*len(t.byKey)+1024 {
		t.rebuild()
	}
}

// rebuild makes the fifo anew from byKey; it needs mu.
func (t *tombstones) rebuild() {
	t.fifo = make([]fifoEntry, 0, len(t.byKey))
	for k, ts := range t.byKey {
		t.fifo = append(t.fifo, fifoEntry{k, ts.order})
	}
	slices.SortFunc(t.fifo, func(a, b fifoEntry) int { return cmp.Compare(a.order, b.order) })
}
