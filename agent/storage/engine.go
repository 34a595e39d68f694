package storage

import (
	"fmt"
	"maps"
	"sync/atomic"

	"github.com/linxGnu/grocksdb"
)

// openEngines counts engines that are not closed; tests check that none is left.
var openEngines atomic.Int64

// engine owns one RocksDB handle and everything that has to live as long as
// it. Debian's RocksDB is built with assertions, so wrong use ends the process:
// nothing but this file touches grocksdb, and the owner of an engine must not
// close it while a call is running.
type engine struct {
	db     *grocksdb.DB
	cfs    []*grocksdb.ColumnFamilyHandle
	opts   *grocksdb.Options
	table  *grocksdb.BlockBasedTableOptions
	cache  *grocksdb.Cache
	read   *grocksdb.ReadOptions
	scan   *grocksdb.ReadOptions
	write  *grocksdb.WriteOptions
	synced *grocksdb.WriteOptions
	flush  *grocksdb.FlushOptions

	failed atomic.Bool // the last write failed
}

type engineOptions struct {
	writeBuffer  int64
	blockCache   int64
	maxOpenFiles int
	tuning       Tuning // over everything else
	readOnly     bool
	mustExist    bool
}

// walForever keeps RocksDB from ever deleting an archived log: retention is
// ours, because RocksDB's cannot be changed at run time and its purge deletes
// fresh files when the clock steps back.
const walForever = 1 << 62

func openEngine(dir string, o engineOptions) (_ *engine, err error) {
	opts := grocksdb.NewDefaultOptions()
	openEngines.Add(1)
	e := &engine{opts: opts}
	defer func() {
		if err != nil {
			e.close()
		}
	}()

	opts.SetCreateIfMissing(!o.mustExist && !o.readOnly)
	opts.SetCreateIfMissingColumnFamilies(!o.mustExist && !o.readOnly)
	opts.SetInfoLogLevel(grocksdb.WarnInfoLogLevel)
	opts.SetMaxLogFileSize(4 << 20)
	opts.SetKeepLogFileNum(2)
	opts.SetMaxOpenFiles(o.maxOpenFiles)
	opts.SetCompression(grocksdb.LZ4Compression)
	opts.SetMaxBackgroundJobs(2)
	// RocksDB would change it to this itself as soon as any option is changed.
	opts.SetBytesPerSync(1 << 20)

	opts.SetWALTtlSeconds(walForever)
	opts.SetWalSizeLimitMb(0)
	opts.SetRecycleLogFileNum(0)
	opts.SetWALRecoveryMode(grocksdb.PointInTimeRecovery)

	// A log is archived when every column family has flushed what it holds of
	// it, and a tail that starts in a log reads it from its beginning: so flush
	// early enough, and the small families along with the big one. A burst of
	// writes may run ahead of flush and compaction for a while before it is slowed
	// down; what that costs reads is little, since each file has a filter.
	opts.SetWriteBufferSize(uint64(o.writeBuffer))
	opts.SetMaxWriteBufferNumber(5)
	opts.SetMaxTotalWalSize(uint64(8 * o.writeBuffer))
	opts.SetLevel0FileNumCompactionTrigger(8)
	opts.SetLevel0SlowdownWritesTrigger(32)
	opts.SetLevel0StopWritesTrigger(48)

	e.cache = grocksdb.NewLRUCache(uint64(o.blockCache))
	e.table = grocksdb.NewDefaultBlockBasedTableOptions()
	e.table.SetBlockCache(e.cache)
	e.table.SetCacheIndexAndFilterBlocks(false)
	e.table.SetFormatVersion(5)
	opts.SetBlockBasedTableFactory(e.table)
	tuning := Tuning{bloomBits: "10"}
	maps.Copy(tuning, o.tuning)
	if opts, err = tuned(opts, tuning); err != nil {
		return nil, fmt.Errorf("open rocksdb in %s: %w", dir, err)
	}
	e.opts = opts

	e.read = grocksdb.NewDefaultReadOptions()
	e.scan = grocksdb.NewDefaultReadOptions()
	e.scan.SetFillCache(false)
	e.write = grocksdb.NewDefaultWriteOptions()
	e.synced = grocksdb.NewDefaultWriteOptions()
	e.synced.SetSync(true)
	e.flush = grocksdb.NewDefaultFlushOptions()
	e.flush.SetWait(true)

	names := cfNames[:]
	families := []*grocksdb.Options{opts, opts, opts}
	if o.readOnly {
		e.db, e.cfs, err = grocksdb.OpenDbForReadOnlyColumnFamilies(opts, dir, names, families, false)
	} else {
		e.db, e.cfs, err = grocksdb.OpenDbColumnFamilies(opts, dir, names, families)
	}
	if err != nil {
		return nil, fmt.Errorf("open rocksdb in %s: %w", dir, err)
	}
	for i, cf := range e.cfs {
		if cf.ID() != uint32(i) {
			return nil, fmt.Errorf("open rocksdb in %s: column family %s has id %d, want %d: not a database of flared", dir, names[i], cf.ID(), i)
		}
	}
	return e, nil
}

// close releases everything in the one order RocksDB allows. After a failed write
// RocksDB's assertions do not even allow to close it: then it is left to the
// end of the process, with the lock of its directory.
func (e *engine) close() {
	openEngines.Add(-1)
	if e.failed.Load() {
		return
	}
	for _, cf := range e.cfs {
		cf.Destroy()
	}
	if e.db != nil {
		e.db.Close()
	}
	if e.read != nil {
		e.read.Destroy()
		e.scan.Destroy()
		e.write.Destroy()
		e.synced.Destroy()
		e.flush.Destroy()
	}
	e.opts.Destroy()
	if e.table != nil {
		e.table.Destroy()
		e.cache.Destroy()
	}
}

// get calls fn with the value, which is only valid during the call.
func (e *engine) get(cf int, key []byte, fn func(value []byte) error) (bool, error) {
	s, err := e.db.GetCF(e.read, e.cfs[cf], key)
	if err != nil {
		return false, fmt.Errorf("read: %w", err)
	}
	defer s.Free()
	if !s.Exists() {
		return false, nil
	}
	return true, fn(s.Data())
}

// each calls fn for every pair of a column family whose key begins with
// prefix, in key order. Key and value are valid during the call.
func (e *engine) each(cf int, prefix string, fn func(key, value []byte) error) error {
	return e.walk(cf, []byte(prefix), []byte(prefix), func(key, value []byte) (bool, error) {
		return true, fn(key, value)
	})
}

// walk is each from a key on, until fn returns false.
func (e *engine) walk(cf int, from, prefix []byte, fn func(key, value []byte) (bool, error)) error {
	it := e.db.NewIteratorCF(e.scan, e.cfs[cf])
	defer it.Close()
	for it.Seek(from); it.ValidForPrefix(prefix); it.Next() {
		k, v := it.Key(), it.Value()
		more, err := fn(k.Data(), v.Data())
		k.Free()
		v.Free()
		if err != nil || !more {
			return err
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("iterate: %w", err)
	}
	return nil
}

// writeBatch applies a batch.
func (e *engine) writeBatch(data []byte, sync bool) error {
	wb := grocksdb.WriteBatchFrom(data)
	defer wb.Destroy()
	o := e.write
	if sync {
		o = e.synced
	}
	err := e.db.Write(o, wb)
	e.failed.Store(err != nil)
	return err
}

// probe writes nothing, to see whether RocksDB accepts writes.
func (e *engine) probe() error { return e.writeBatch(make([]byte, batchHeaderSize), false) }

func (e *engine) flushAll() error {
	for _, cf := range e.cfs {
		if err := e.db.FlushCF(cf, e.flush); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
	}
	return nil
}

func (e *engine) checkpoint(dir string) error {
	c, err := e.db.NewCheckpoint()
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer c.Destroy()
	if err := c.CreateCheckpoint(dir, 0); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// property returns a numeric property summed over the column families.
func (e *engine) property(name string) (sum uint64) {
	for _, cf := range e.cfs {
		n, _ := e.db.GetIntPropertyCF(name, cf)
		sum += n
	}
	return sum
}

// dataProperty returns a numeric property of the records.
func (e *engine) dataProperty(name string) uint64 {
	n, _ := e.db.GetIntPropertyCF(name, e.cfs[cfData])
	return n
}
