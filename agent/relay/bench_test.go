package relay

import (
	"fmt"
	"testing"

	"github.com/flarekv/flare/agent/storage"
)

// BenchmarkPlay plays a log that is there already to a peer on this machine.
func BenchmarkPlay(b *testing.B) {
	db, p := openDB(b), newPeer(b)
	p.quiet = true
	from := db.Position().LSN
	pipe := db.NewPipeline(nil)
	value := make([]byte, 100)
	for i := range b.N {
		key := fmt.Appendf(nil, "key%d", i)
		if _, err := pipe.Update(key, func(storage.Entry) storage.Change {
			return storage.Change{Op: storage.Put, Record: storage.Record{Version: 1, Value: value}}
		}); err != nil {
			b.Fatal(err)
		}
		if i%1000 == 999 {
			pipe.Wait()
			pipe.Reset()
		}
	}
	pipe.Wait()
	end := db.Position().LSN
	b.ReportAllocs()
	b.ResetTimer()
	r, _ := run(b, db, Config{Peer: p.addr, From: from, Lanes: func() int { return 2 }})
	eventually(b, "peer caught up", func() error {
		if s := r.Status(); s.Sent < uint64(b.N) || s.Acked != end {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}
