package storage

import (
	"strings"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

func TestBatchSizes(t *testing.T) {
	var s batchSizes
	if n, ok := s.behind(0); n != 0 || !ok {
		t.Errorf("nothing was written: %d, %v", n, ok)
	}
	s.add(7, 100) // as after an opening
	if _, ok := s.behind(6); ok {
		t.Error("what was before is known")
	}
	total := uint64(100)
	for i := uint64(8); i < 50_000; i++ {
		total += i
		s.add(i, total)
	}
	for _, behind := range []uint64{0, 1, 10, uint64(len(s.upTo)) - 1} {
		index, want := uint64(49_999)-behind, uint64(0)
		for i := index + 1; i < 50_000; i++ {
			want += i
		}
		if n, ok := s.behind(index); n != want || !ok {
			t.Errorf("%d batches: %d bytes, %v, want %d", behind, n, ok, want)
		}
	}
	if _, ok := s.behind(49_999 - uint64(len(s.upTo))); ok {
		t.Error("more is remembered than there is room for")
	}
	if n, ok := s.behind(60_000); n != 0 || !ok {
		t.Errorf("a position of the future: %d, %v", n, ok)
	}
	s.add(3, 5) // another database took the place
	if _, ok := s.behind(2); ok {
		t.Error("sizes of another database")
	}
}

func TestFileBytes(t *testing.T) {
	file := func(first uint64, size int64) startWAL {
		return startWAL{walFile{size: size}, topology.LSN{Epoch: 1, Index: first}}
	}
	files := []startWAL{file(11, 1000), file(21, 500), file(31, 300)}
	for _, tt := range []struct{ index, head, want uint64 }{
		{10, 40, 1800}, {0, 40, 1800}, {20, 40, 800}, {15, 40, 1300}, {25, 40, 550}, {40, 40, 0}, {10, 20, 1000}, {15, 25, 750},
	} {
		if got := fileBytes(files, tt.index, tt.head); got != tt.want {
			t.Errorf("behind %d up to %d: %d, want %d", tt.index, tt.head, got, tt.want)
		}
	}
	if got := fileBytes(nil, 1, 5); got != 0 {
		t.Errorf("without files: %d", got)
	}
}

// TestLogBytes: the bytes that a replica lacks are those of the batches it lacks.
func TestLogBytes(t *testing.T) {
	dir := t.TempDir()
	db := open(t, Options{Dir: dir, WriteBuffer: 1 << 20})
	for range 100 {
		put(t, db, "k", strings.Repeat("v", 500))
	}
	size := func(after uint64) (n uint64) {
		tail, err := db.Tail(topology.LSN{Index: after})
		if err != nil {
			t.Fatal(err)
		}
		defer tail.Close()
		for {
			b, ok, err := tail.TryNext()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return n
			}
			n += uint64(len(b.Data))
		}
	}
	for _, after := range []uint64{1, 50, 99, 100} {
		if got, err := db.LogBytes(after); got != size(after) || err != nil {
			t.Errorf("behind %d: %d, %v, want %d", after, got, err, size(after))
		}
	}
	db.Close()
	db = open(t, Options{Dir: dir, WriteBuffer: 1 << 20})
	put(t, db, "k", strings.Repeat("v", 500))
	for _, after := range []uint64{0, 50, 100} {
		got, err := db.LogBytes(after)
		if want := size(after); err != nil || got < want*9/10 || got > want*12/10+100 {
			t.Errorf("after opening, behind %d: %d, %v, want about %d", after, got, err, want)
		}
	}
}
