package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/flarekv/flare/proto/topology"
)

// RocksDB's write-ahead log, read without RocksDB. A file is a sequence of
// 32 KiB blocks; a block holds records of a 7 byte header (masked CRC-32C of
// type and payload, payload length, type; little endian) and a payload; fewer
// than 7 bytes left in a block are zero. A write batch is one full record or a
// first, any number of middle and a last one.
//
// Reading the files directly makes a tail independent of the database handle:
// none of RocksDB's iterator states can be got wrong, and what was deleted or
// replaced meanwhile shows in positions instead of in silence. It relies on options that openEngine
// fixes: no recycling of log files and no compression of the log.

const (
	walBlockSize  = 32 << 10
	walHeaderSize = 7

	walFull   = 1
	walFirst  = 2
	walMiddle = 3
	walLast   = 4

	// walReadSize is how much is read from a file at a time.
	walReadSize = 256 << 10
	// walMaxBatch bounds what a damaged length can make us collect.
	walMaxBatch = 1 << 31
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// unmaskCRC undoes the masking that keeps a CRC over data that itself holds
// CRCs from degenerating.
func unmaskCRC(m uint32) uint32 {
	rot := m - 0xa282ead8
	return rot>>17 | rot<<15
}

// walReader returns the batches of one log file, which may still grow.
type walReader struct {
	src    io.ReaderAt
	offset int64  // of buf[0] in the file
	buf    []byte // read and not consumed
	mem    []byte // backing of buf
	batch  []byte // the batch being assembled

	ahead     []byte // the batch that peek found
	aheadSize int    // what it takes in buf, 0 if there is none
}

func newWALReader(src io.ReaderAt) *walReader { return &walReader{src: src} }

// next returns the next whole batch, valid until the following call. io.EOF
// means that there is no whole, undamaged record now: more may come if the file
// is still written to, and a file that is not ends there (a crash may leave a
// torn record). A call after io.EOF goes on where it ended.
func (r *walReader) next() ([]byte, error) {
	batch, err := r.peek()
	if err == nil {
		r.offset += int64(r.aheadSize)
		r.buf = r.buf[r.aheadSize:]
		r.aheadSize = 0
	}
	return batch, err
}

// peek returns what next will return.
func (r *walReader) peek() ([]byte, error) {
	if r.aheadSize > 0 {
		return r.ahead, nil
	}
	batch, size, ok := r.assemble()
	for want := walReadSize; !ok; want *= 2 {
		// What is in memory may be older than the file, so it is read again
		// from the first unconsumed byte: a record that was half written a
		// moment ago is then seen whole or still not at all.
		want = max(want, size)
		if err := r.fill(want); err != nil {
			return nil, err
		}
		if batch, size, ok = r.assemble(); !ok && (size <= len(r.buf) || len(r.buf) < want) {
			return nil, io.EOF
		}
	}
	r.ahead, r.aheadSize = batch, size
	return batch, nil
}

// assemble tries to make a batch of what is in the buffer. size is what the
// batch took, or if !ok how many bytes would be needed at least to get further
// (no more than is there if the bytes at hand are not a record).
func (r *walReader) assemble() (batch []byte, size int, ok bool) {
	r.batch = r.batch[:0]
	at := 0
	for first := true; ; {
		if left := walBlockSize - int((r.offset+int64(at))%walBlockSize); left < walHeaderSize {
			at += left
		}
		if at+walHeaderSize > len(r.buf) {
			return nil, at + walHeaderSize, false
		}
		h := r.buf[at : at+walHeaderSize]
		length, kind := int(binary.LittleEndian.Uint16(h[4:])), h[6]
		left := walBlockSize - int((r.offset+int64(at))%walBlockSize)
		if kind < walFull || kind > walLast || (kind == walFull || kind == walFirst) != first || length > left-walHeaderSize {
			return nil, 0, false
		}
		end := at + walHeaderSize + length
		if end > len(r.buf) {
			return nil, end, false
		}
		if crc32.Checksum(r.buf[at+6:end], castagnoli) != unmaskCRC(binary.LittleEndian.Uint32(h)) {
			return nil, 0, false
		}
		payload := r.buf[at+walHeaderSize : end]
		at = end
		switch kind {
		case walFull:
			return payload, at, true
		case walLast:
			r.batch = append(r.batch, payload...)
			return r.batch, at, true
		}
		if len(r.batch)+len(payload) > walMaxBatch {
			return nil, 0, false
		}
		r.batch = append(r.batch, payload...)
		first = false
	}
}

// fill reads up to want bytes from the first unconsumed one on.
func (r *walReader) fill(want int) error {
	if cap(r.mem) < want {
		r.mem = make([]byte, want)
	}
	n, err := r.src.ReadAt(r.mem[:want], r.offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read log file: %w", err)
	}
	r.buf = r.mem[:n]
	return nil
}

// walFile is one log file of the database.
type walFile struct {
	number uint64
	size   int64
	mtime  int64 // unix nanoseconds
	live   bool  // RocksDB has not archived it yet
}

// walName returns the base name of a log file.
func walName(number uint64) string { return fmt.Sprintf("%06d.log", number) }

// listWALs returns the log files below a RocksDB directory, ascending.
func listWALs(dir string) ([]walFile, error) {
	var files []walFile
	// The living first: a file archived in between is then seen twice, never missed.
	for _, sub := range []string{dir, filepath.Join(dir, "archive")} {
		entries, err := os.ReadDir(sub)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list log files: %w", err)
		}
		for _, e := range entries {
			base, ok := strings.CutSuffix(e.Name(), ".log")
			if !ok {
				continue
			}
			number, err := strconv.ParseUint(base, 10, 64)
			if err != nil {
				continue
			}
			f := walFile{number: number, live: sub == dir}
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				if !f.live {
					continue // deleted
				}
				f.live = false // being archived: the archive's entry tells more
			} else if err != nil {
				return nil, fmt.Errorf("list log files: %w", err)
			} else {
				f.size, f.mtime = info.Size(), info.ModTime().UnixNano()
			}
			files = append(files, f)
		}
	}
	// For a number listed twice the archived entry, listed later, is the truth.
	slices.SortStableFunc(files, func(a, b walFile) int {
		switch {
		case a.number < b.number:
			return -1
		case a.number > b.number:
			return 1
		}
		return 0
	})
	kept := files[:0]
	for i, f := range files {
		if i+1 < len(files) && files[i+1].number == f.number {
			continue
		}
		kept = append(kept, f)
	}
	return kept, nil
}

// openWAL opens a log file wherever it is.
func openWAL(dir string, number uint64) (*os.File, error) {
	var err error
	// It can move from the first to the second place, not back.
	for _, sub := range []string{dir, filepath.Join(dir, "archive")} {
		var f *os.File
		f, err = os.Open(filepath.Join(sub, walName(number)))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return nil, err
}

// firstLSN returns the position of the first batch of ours in a log file; false
// if there is none (yet).
func firstLSN(dir string, number uint64) (topology.LSN, bool, error) {
	f, err := openWAL(dir, number)
	if err != nil {
		return topology.LSN{}, false, err
	}
	defer f.Close()
	// Nearly always the first batch is it, or the second behind RocksDB's empty
	// one. A large one of a rewind may be before it, so only what is needed is read.
	var head [walHeaderSize + lsnPrefixSize]byte
	var prefix []byte // of the batch under way
	for at := int64(0); ; {
		if left := walBlockSize - at%walBlockSize; left < walHeaderSize {
			at += left
		}
		n, err := f.ReadAt(head[:], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return topology.LSN{}, false, fmt.Errorf("read log file: %w", err)
		}
		kind := head[walHeaderSize-1]
		if n < walHeaderSize || kind < walFull || kind > walLast {
			return topology.LSN{}, false, nil
		}
		length := int(binary.LittleEndian.Uint16(head[4:]))
		if kind == walFull || kind == walFirst {
			prefix = prefix[:0]
		}
		if len(prefix) < lsnPrefixSize {
			prefix = append(prefix, head[walHeaderSize:min(n, walHeaderSize+length)]...)
		}
		if lsn, ok := batchLSN(prefix); ok {
			return lsn, true, nil
		}
		at += int64(walHeaderSize + length)
	}
}
