package storage

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// What a crash took from the log. RocksDB recovers up to the first record that is
// not whole and says nothing of the rest. So the logs are read before it opens
// them, and what they hold beyond the recovered position is told.

// walEnd is what is in a log file that RocksDB is going to recover from.
type walEnd struct {
	number   uint64
	size     int64
	readable int64        // where the last whole record ends
	last     topology.LSN // of the last batch of ours; zero if there is none
}

// surveyWALs reads the logs that RocksDB has not archived.
func surveyWALs(dir string) ([]walEnd, error) {
	files, err := listWALs(dir)
	if err != nil {
		return nil, err
	}
	var ends []walEnd
	for _, f := range files {
		if !f.live {
			continue
		}
		end := walEnd{number: f.number, size: f.size}
		err := eachBatch(dir, f.number, func(lsn topology.LSN, offset int64) {
			end.readable = offset
			if !lsn.IsZero() {
				end.last = lsn
			}
		})
		if err != nil {
			return nil, err
		}
		ends = append(ends, end)
	}
	return ends, nil
}

// eachBatch calls fn for every whole record of a log file, with the position it
// moves to, if it is a batch of ours, and the offset behind it.
func eachBatch(dir string, number uint64, fn func(lsn topology.LSN, offset int64)) error {
	f, err := openWAL(dir, number)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r := newWALReader(f)
	for {
		data, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		lsn, _ := batchLSN(data)
		fn(lsn, r.offset)
	}
}

// tellDropped logs what the logs held that is not in the database. What it says is
// gone on this node; if anybody was told of it, an in-sync replica has it.
func (db *DB) tellDropped(ends []walEnd) {
	pos := db.Position()
	var batches, bytes int64
	var from, to topology.LSN
	for _, end := range ends {
		if torn := end.size - end.readable; torn > 0 {
			db.log.Warn("end of a log file is damaged and dropped", "file", filepath.Join(db.dbDir(), walName(end.number)),
				"offset", end.readable, "bytes", torn, "last_whole", end.last, "lsn", pos.LSN)
		}
		if end.last.IsZero() || end.last == pos.LSN || pos.Locate(end.last) == history.Same {
			continue
		}
		before := int64(0)
		err := eachBatch(db.dbDir(), end.number, func(lsn topology.LSN, offset int64) {
			if !lsn.IsZero() && pos.Locate(lsn) != history.Same {
				if from.IsZero() {
					from = lsn
				}
				to = lsn
				batches++
				bytes += offset - before
			}
			before = offset
		})
		if err != nil {
			db.log.Warn("cannot read a log file", "file", walName(end.number), "err", err)
		}
	}
	if batches > 0 {
		db.log.Warn("log was not recovered to its end, batches are dropped", "dir", db.opts.Dir,
			"lsn", pos.LSN, "first_dropped", from, "last_dropped", to, "batches", batches, "bytes", bytes)
	}
	if len(ends) > 0 {
		db.log.Info("database recovered", "dir", db.opts.Dir, "lsn", pos.LSN, "log_files", len(ends), "log_end", ends[len(ends)-1].last)
	}
}
