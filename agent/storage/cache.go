package storage

import (
	"errors"
	"hash/maphash"
	"sync"

	"github.com/coocood/freecache"
)

// recordCache keeps encoded records in memory in front of RocksDB, so that a
// read of a hot key costs neither a call into C nor an allocation. It never
// holds anything but what a read of the database would find:
//
//   - What was read is stored while its key's guard is held, and the engine, from
//     before the read on.
//   - Whatever changes keys tells the cache after its batch was written, holding
//     the guard again: committed for a change of this node, forget for one that
//     came from a master, clear for a range of keys or another database.
//
// So a value that was read before a change is either stored before the cache
// hears of the change, and replaced then, or not stored at all.
//
// A nil *recordCache keeps nothing.
type recordCache struct {
	seed   maphash.Seed
	guards [512]sync.Mutex // by hash of the key; taken after commitMu, before mu
	lru    *freecache.Cache
	timer  freecache.StoppableTimer
	size   int64
}

// newRecordCache returns a cache of size bytes, keys and overhead included, or
// nil for no bytes. An entry larger than a thousandth of it is not kept.
func newRecordCache(size int64) *recordCache {
	if size <= 0 {
		return nil
	}
	c := &recordCache{seed: maphash.MakeSeed(), size: size, timer: freecache.NewCachedTimer()}
	c.lru = freecache.NewCacheCustomTimer(int(size), c.timer)
	return c
}

func (c *recordCache) close() {
	if c != nil {
		c.timer.Stop()
	}
}

// view calls fn with the encoded record of a key; the bytes are only valid
// during the call, which must not use the cache.
func (c *recordCache) view(key []byte, fn func(encoded []byte) error) (found bool, err error) {
	if c == nil {
		return false, nil
	}
	err = c.lru.GetFn(key, fn)
	if errors.Is(err, freecache.ErrNotFound) {
		return false, nil
	}
	return true, err
}

func (c *recordCache) guard(key []byte) *sync.Mutex {
	return &c.guards[maphash.Bytes(c.seed, key)%uint64(len(c.guards))]
}

// put stores what a key has now. The caller holds the key's guard.
func (c *recordCache) put(key, encoded []byte) {
	if c.lru.Set(key, encoded, 0) != nil {
		// Too large to be kept. What was kept before is not true any more.
		c.lru.Del(key)
	}
}

// committed stores what a change of this node left under a key; nil for nothing.
func (c *recordCache) committed(key, encoded []byte) {
	if c == nil {
		return
	}
	g := c.guard(key)
	g.Lock()
	defer g.Unlock()
	if encoded == nil {
		c.lru.Del(key)
		return
	}
	c.put(key, encoded)
}

// forget drops a key that may have changed.
func (c *recordCache) forget(key []byte) { c.committed(key, nil) }

// follow drops what a master's batch changed.
func (c *recordCache) follow(ops []batchOp) {
	if c == nil {
		return
	}
	for i := range ops {
		if ops[i].tag == tagDeleteRange {
			c.clear()
			return
		}
		c.forget(ops[i].key)
	}
}

// clear drops everything.
func (c *recordCache) clear() {
	defer c.lock()()
	c.reset()
}

// lock keeps everybody from storing anything until the returned function is called.
func (c *recordCache) lock() (unlock func()) {
	if c == nil {
		return func() {}
	}
	for i := range c.guards {
		c.guards[i].Lock()
	}
	return func() {
		for i := range c.guards {
			c.guards[i].Unlock()
		}
	}
}

// reset is clear for who holds the lock.
func (c *recordCache) reset() {
	if c != nil {
		c.lru.Clear()
	}
}

// CacheStats is what can be counted about the cache of records.
type CacheStats struct {
	Limit   uint64 // bytes that it may take, keys and its own overhead included
	Entries uint64
	Hits    uint64 // since the start
	Misses  uint64
}

func (c *recordCache) stats() CacheStats {
	if c == nil {
		return CacheStats{}
	}
	return CacheStats{
		Limit:   uint64(c.size),
		Entries: uint64(c.lru.EntryCount()),
		Hits:    uint64(c.lru.HitCount()),
		Misses:  uint64(c.lru.MissCount()),
	}
}
