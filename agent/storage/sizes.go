package storage

import "fmt"

// batchSizes remembers how large the last batches were, as sums up to each of
// them: how much log lies behind one of them is a subtraction.
type batchSizes struct {
	upTo        [1 << 15]uint64 // by index modulo length: bytes of all batches up to this one
	first, last uint64          // indexes that are known, both 0 for none
}

// add takes up the batch with the index, with which total bytes have been written.
func (s *batchSizes) add(index, total uint64) {
	if index == 0 {
		s.first, s.last = 0, 0
		return
	}
	if index != s.last+1 || s.last == 0 { // the beginning, or another database
		s.first = index
	}
	s.last = index
	s.upTo[index%uint64(len(s.upTo))] = total
	if known := uint64(len(s.upTo)); s.last-s.first >= known {
		s.first = s.last - known + 1
	}
}

// behind returns the bytes of all batches behind the one with the index; false if
// they are not remembered.
func (s *batchSizes) behind(index uint64) (uint64, bool) {
	switch {
	case index >= s.last:
		return 0, true
	case index < s.first || s.first == 0:
		return 0, false
	}
	n := uint64(len(s.upTo))
	return s.upTo[s.last%n] - s.upTo[index%n], true
}

// LogBytes returns how many bytes of log lie behind the batch with the index:
// exactly for the last batches that were written since the database was opened,
// and about, from the sizes of log files, for what is further back. What is not
// retained any more does not count.
func (db *DB) LogBytes(index uint64) (uint64, error) {
	db.posMu.RLock()
	n, ok := db.sizes.behind(index)
	first := db.sizes.first
	head := db.pos.LSN.Index
	db.posMu.RUnlock()
	if ok || index >= head {
		return n, nil
	}
	files, err := db.logFiles()
	if err != nil {
		return 0, fmt.Errorf("storage: %w", err)
	}
	exact := uint64(0)
	if first > 0 {
		db.posMu.RLock()
		if n, ok := db.sizes.behind(first); ok {
			exact, head = n, first
		}
		db.posMu.RUnlock()
	}
	return exact + fileBytes(files, index, head), nil
}

// fileBytes estimates the bytes of the batches behind index up to head from the
// files that hold them.
func fileBytes(files []startWAL, index, head uint64) uint64 {
	sum := 0.0
	for i, f := range files {
		begin, end := f.first.Index, head+1 // of the batches in the file
		if i+1 < len(files) {
			end = files[i+1].first.Index
		}
		from, to := max(begin, index+1), min(end, head+1)
		if from >= to || end <= begin {
			continue
		}
		sum += float64(f.size) * float64(to-from) / float64(end-begin)
	}
	return uint64(sum)
}
