package storage

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

func BenchmarkUpdate(b *testing.B) {
	for _, par := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", par), func(b *testing.B) {
			db := open(b, Options{})
			v := bytes.Repeat([]byte("v"), 100)
			var n atomic.Uint64
			b.SetParallelism(max(par/2, 1))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					key := fmt.Appendf(nil, "key%08d", n.Add(1)%100000)
					if _, err := db.Update(context.Background(), key, func(e Entry) Change {
						return Change{Op: Put, Record: Record{Version: e.Record.Version + 1, Value: v}}
					}); err != nil {
						b.Error(err)
					}
				}
			})
			s := stats(b, db)
			b.ReportMetric(float64(s.LSN.Index)/float64(b.N), "batches/op")
		})
	}
}

func BenchmarkGet(b *testing.B) {
	db := open(b, Options{})
	for i := range 1000 {
		put(b, db, fmt.Sprintf("key%08d", i), "value")
	}
	b.ReportAllocs()
	key := []byte("key00000500")
	for b.Loop() {
		if _, ok, err := db.Get(key); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	db := open(b, Options{})
	var batches [][]byte
	next := uint64(1)
	b.ReportAllocs()
	for b.Loop() {
		batches = append(batches, bytes.Clone(testBatch(0, next, func(w *batchBuilder) {
			w.put(cfData, "key", appendRecord(nil, &Record{Value: make([]byte, 100)}))
		})))
		next++
		if len(batches) == 64 {
			if _, err := db.Apply(b.Context(), batches...); err != nil {
				b.Fatal(err)
			}
			batches = batches[:0]
		}
	}
}

// BenchmarkPipeline measures changes of random keys among many, in bursts as
// busy connections make them.
func BenchmarkPipeline(b *testing.B) {
	const keys, burst = 200_000, 512
	db := open(b, Options{RecordCache: 64 << 20})
	v := bytes.Repeat([]byte("v"), 100)
	p := db.NewPipeline(nil)
	rng := rand.New(rand.NewPCG(1, 2))
	put := func(Entry) Change { return Change{Op: Put, Record: Record{Version: 1, Value: v}} }
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += burst {
		for range burst {
			if _, err := p.Update(fmt.Appendf(nil, "key%08d", rng.IntN(keys)), put); err != nil {
				b.Fatal(err)
			}
		}
		p.Reset()
	}
}
