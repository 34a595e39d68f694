package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

// walWriter writes the log format, to have files of any shape.
type walWriter struct{ data []byte }

func (w *walWriter) add(batch []byte) {
	for first := true; ; first = false {
		left := walBlockSize - len(w.data)%walBlockSize
		if left < walHeaderSize {
			w.data = append(w.data, make([]byte, left)...)
			continue
		}
		n := min(len(batch), left-walHeaderSize)
		last := n == len(batch)
		kind := byte(walMiddle)
		switch {
		case first && last:
			kind = walFull
		case first:
			kind = walFirst
		case last:
			kind = walLast
		}
		w.record(kind, batch[:n])
		if batch = batch[n:]; last {
			return
		}
	}
}

func (w *walWriter) record(kind byte, payload []byte) {
	body := append([]byte{kind}, payload...)
	w.data = binary.LittleEndian.AppendUint32(w.data, maskCRC(crc32.Checksum(body, castagnoli)))
	w.data = binary.LittleEndian.AppendUint16(w.data, uint16(len(payload)))
	w.data = append(w.data, body...)
}

func maskCRC(c uint32) uint32 { return (c>>15 | c<<17) + 0xa282ead8 }

// growing is a file that shows only its first bytes.
type growing struct {
	data []byte
	size int
}

func (g *growing) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(g.data[:g.size]).ReadAt(p, off)
}

func walBatches(seed uint64, n, maxSize int) [][]byte {
	r := rand.New(rand.NewPCG(seed, 1))
	batches := make([][]byte, n)
	for i := range batches {
		batches[i] = make([]byte, r.IntN(maxSize))
		for j := range batches[i] {
			batches[i][j] = byte(r.Uint32())
		}
	}
	return batches
}

func TestWALReader(t *testing.T) {
	for _, maxSize := range []int{1, 100, 5000, 3 * walBlockSize, 3 * walReadSize} {
		t.Run(fmt.Sprint(maxSize), func(t *testing.T) {
			batches := walBatches(uint64(maxSize), 300, maxSize)
			if maxSize > walReadSize {
				batches = batches[:20]
			}
			var w walWriter
			for _, b := range batches {
				w.add(b)
			}
			r := newWALReader(bytes.NewReader(w.data))
			for i, want := range batches {
				got, err := r.next()
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("batch %d: %d bytes, %v; want %d bytes", i, len(got), err, len(want))
				}
			}
			for range 2 {
				if _, err := r.next(); !errors.Is(err, io.EOF) {
					t.Fatalf("at the end: %v", err)
				}
			}
		})
	}
}

func TestWALReaderFollowsAGrowingFile(t *testing.T) {
	batches := walBatches(7, 200, 2000)
	var w walWriter
	for _, b := range batches {
		w.add(b)
	}
	g := &growing{data: w.data}
	r := newWALReader(g)
	i := 0
	for step := rand.New(rand.NewPCG(1, 1)); i < len(batches); g.size = min(len(g.data), g.size+step.IntN(1500)) {
		for {
			got, err := r.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || !bytes.Equal(got, batches[i]) {
				t.Fatalf("batch %d of %d bytes shown: %v", i, g.size, err)
			}
			i++
		}
	}
}

func TestWALReaderSeesARepairedTail(t *testing.T) {
	var w walWriter
	w.add([]byte("first"))
	whole := len(w.data)
	w.add([]byte("second"))
	shown := bytes.Clone(w.data)
	clear(shown[whole:]) // allocated, not written yet
	g := &growing{data: shown, size: len(shown)}
	r := newWALReader(g)
	if _, err := r.next(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.next(); !errors.Is(err, io.EOF) {
		t.Fatalf("zeros: %v", err)
	}
	copy(shown[whole:], w.data[whole:len(w.data)-1]) // half written
	if _, err := r.next(); !errors.Is(err, io.EOF) {
		t.Fatalf("half a record: %v", err)
	}
	copy(shown, w.data)
	if got, err := r.next(); err != nil || string(got) != "second" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestWALReaderStopsAtDamage(t *testing.T) {
	build := func(fn func(w *walWriter)) []byte {
		var w walWriter
		w.add([]byte("good"))
		fn(&w)
		return w.data
	}
	for name, data := range map[string][]byte{
		"nothing":               build(func(*walWriter) {}),
		"zeros":                 build(func(w *walWriter) { w.data = append(w.data, make([]byte, 100)...) }),
		"checksum":              build(func(w *walWriter) { w.add([]byte("bad")); w.data[len(w.data)-1]++ }),
		"unknown type":          build(func(w *walWriter) { w.record(9, []byte("bad")) }),
		"middle without first":  build(func(w *walWriter) { w.record(walMiddle, []byte("bad")) }),
		"last without first":    build(func(w *walWriter) { w.record(walLast, []byte("bad")) }),
		"first without last":    build(func(w *walWriter) { w.record(walFirst, []byte("bad")) }),
		"full within a batch":   build(func(w *walWriter) { w.record(walFirst, []byte("bad")); w.record(walFull, []byte("x")) }),
		"length beyond a block": build(func(w *walWriter) { w.record(walFull, make([]byte, walBlockSize)) }),
	} {
		r := newWALReader(bytes.NewReader(data))
		if got, err := r.next(); err != nil || string(got) != "good" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if got, err := r.next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func FuzzWALReader(f *testing.F) {
	var w walWriter
	w.add([]byte("one"))
	w.record(walFirst, []byte("tw"))
	w.record(walLast, []byte("o"))
	f.Add(w.data)
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newWALReader(bytes.NewReader(data))
		for n := 0; ; n++ {
			if _, err := r.next(); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
			if n > len(data) {
				t.Fatal("more batches than bytes")
			}
		}
	})
}

func TestListWALs(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "archive"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{
		"000012.log": 3, "archive/000004.log": 1, "archive/000010.log": 2, "1000001.log": 4,
		"000007.sst": 9, "LOG": 9, "x.log": 9,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := listWALs(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got string
	for _, f := range files {
		got += fmt.Sprintf("%d:%d:%v ", f.number, f.size, f.live)
	}
	if want := "4:1:false 10:2:false 12:3:true 1000001:4:true "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if files, err := listWALs(filepath.Join(dir, "none")); err != nil || len(files) != 0 {
		t.Errorf("missing directory: %v, %v", files, err)
	}
}

func TestFirstLSN(t *testing.T) {
	lsn := topology.LSN{Epoch: 2, Index: 9}
	ours := testBatch(2, 9, func(b *batchBuilder) { b.put(cfData, "k", make([]byte, 2*walBlockSize)) })
	for name, tt := range map[string]struct {
		batches [][]byte
		ok      bool
	}{
		"empty file":       {nil, false},
		"only RocksDB's":   {[][]byte{make([]byte, batchHeaderSize)}, false},
		"ours":             {[][]byte{ours}, true},
		"behind RocksDB's": {[][]byte{make([]byte, batchHeaderSize), ours, testBatch(2, 10)}, true},
	} {
		dir := t.TempDir()
		var w walWriter
		for _, b := range tt.batches {
			w.add(b)
		}
		if err := os.WriteFile(filepath.Join(dir, walName(3)), w.data, 0o644); err != nil {
			t.Fatal(err)
		}
		got, ok, err := firstLSN(dir, 3)
		if err != nil || ok != tt.ok || ok && got != lsn {
			t.Errorf("%s: %v %v %v", name, got, ok, err)
		}
	}
}
