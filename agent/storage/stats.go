package storage

import (
	"fmt"

	"github.com/flarekv/flare/proto/topology"
)

// Stats is what can be counted about a database.
type Stats struct {
	Keys       uint64 // estimated number of records, expired ones included
	Bytes      uint64 // of table files and memtables
	Tombstones int

	LSN           topology.LSN
	OldestIndex   uint64 // of the oldest batch that is retained
	WALFiles      int
	WALBytes      int64
	Archived      int   // of WALFiles
	ArchivedBytes int64 // of WALBytes
	OverdueBytes  int64 // of ArchivedBytes: kept beyond their age for who lacks them

	GivenUpLogs   uint64 // log files deleted although somebody lacked them, since the start
	GivenUpReason string // of the last one

	Cache CacheStats

	Batches     uint64 // committed or applied since the start
	Fsyncs      uint64 // of batches since the start
	Rewinds     uint64 // times that the log went back since the start
	WriteErrors uint64 // since the start
}

// Stats returns the current numbers.
func (db *DB) Stats() (Stats, error) {
	s := Stats{
		Tombstones:  db.tombs.len(),
		Cache:       db.cache.stats(),
		Batches:     db.batches.Load(),
		Fsyncs:      db.fsyncs.Load(),
		Rewinds:     db.rewinds.Load(),
		WriteErrors: db.writeErrors.Load(),

		OverdueBytes: db.overdue.Load(),
		GivenUpLogs:  db.givenUp.Load(),
	}
	if why := db.givenWhy.Load(); why != nil {
		s.GivenUpReason = *why
	}
	err := db.use(func(e *engine) error {
		s.Keys = e.dataProperty("rocksdb.estimate-num-keys")
		s.Bytes = e.property("rocksdb.total-sst-files-size") + e.property("rocksdb.cur-size-all-mem-tables")
		return nil
	})
	if err != nil {
		return Stats{}, fmt.Errorf("storage: stats: %w", err)
	}
	files, err := listWALs(db.dbDir())
	if err != nil {
		return Stats{}, fmt.Errorf("storage: stats: %w", err)
	}
	for _, f := range files {
		s.WALFiles++
		s.WALBytes += f.size
		if !f.live {
			s.Archived++
			s.ArchivedBytes += f.size
		}
	}
	s.LSN = db.Position().LSN
	if s.OldestIndex, err = db.Oldest(); err != nil {
		return Stats{}, err
	}
	return s, nil
}
