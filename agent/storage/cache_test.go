package storage

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestCacheNeverStale checks, with readers that fill the cache all the
// time, that once a change is known to be there nobody reads what was before it:
// not after a commit of this node, and not after a batch of a master was applied.
func TestCacheNeverStale(t *testing.T) {
	const keys, rounds = 8, 300
	value := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	for _, way := range []string{"update", "apply"} {
		t.Run(way, func(t *testing.T) {
			db := open(t, Options{})
			var least [keys]atomic.Uint64 // value that every later read must have at least
			var stop atomic.Bool
			var readers sync.WaitGroup
			for range 4 {
				readers.Go(func() {
					for n := 0; !stop.Load(); n++ {
						k := n % keys
						want := least[k].Load()
						r, found, err := db.Get(fmt.Appendf(nil, "key%d", k))
						if err != nil || found && binary.BigEndian.Uint64(r.Value) < want || !found && want > 0 {
							t.Errorf("key %d: %v, %v, %v after %d was there", k, r, found, err, want)
							return
						}
					}
				})
			}
			deadline := time.Now().Add(time.Minute)
			enough := func(n uint64) bool { return n > rounds && db.cache.stats().Hits > rounds }
			for n := uint64(1); !enough(n) && !t.Failed(); n++ {
				if time.Now().After(deadline) {
					t.Fatalf("the cache was not used: %+v", db.cache.stats())
				}
				for k := range keys {
					key := fmt.Sprintf("key%d", k)
					if way == "update" {
						put(t, db, key, string(value(n)))
					} else {
						if _, err := db.Apply(t.Context(), testBatch(0, db.Position().LSN.Index+1, func(b *batchBuilder) {
							b.put(cfData, key, appendRecord(nil, &Record{Version: n, Value: value(n)}))
						})); err != nil {
							t.Fatal(err)
						}
					}
					least[k].Store(n)
				}
			}
			stop.Store(true)
			readers.Wait()
		})
	}
}

func TestCacheForgets(t *testing.T) {
	db := open(t, Options{})
	big := strings.Repeat("v", 64<<10) // more than the cache keeps of one entry
	read := func(want string) {
		t.Helper()
		for range 2 { // the second time from the cache
			r, found, err := db.Get([]byte("k"))
			if err != nil || found != (want != "") || string(r.Value) != want {
				t.Fatalf("read %.20q (%d bytes), %v, %v, want %.20q", r.Value, len(r.Value), found, err, want)
			}
		}
	}
	put(t, db, "k", "small")
	read("small")
	put(t, db, "k", big)
	read(big)
	put(t, db, "k", "small again")
	read("small again")
	del(t, db, "k", Tombstone{Version: 9})
	read("")
	put(t, db, "k", "back")
	read("back")
	if _, err := db.FlushAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	read("")
	put(t, db, "k", "once more")
	read("once more")
	if err := db.Wipe(); err != nil {
		t.Fatal(err)
	}
	read("")
	// A master's range deletion.
	put(t, db, "k", "last")
	read("last")
	if _, err := db.Apply(t.Context(), testBatch(0, db.Position().LSN.Index+1, func(b *batchBuilder) {
		b.deleteRange(cfData, nil, afterAllKeys)
	})); err != nil {
		t.Fatal(err)
	}
	read("")
}

// TestPipeline hands over many changes before it waits, of one key too, and sees
// them all committed in order, in few batches.
func TestPipeline(t *testing.T) {
	db := open(t, Options{})
	var done atomic.Int64
	p := db.NewPipeline(func() { done.Add(1) })
	var commits []*Commit
	const changes = 500
	for i := range changes {
		c, err := p.Update(fmt.Appendf(nil, "key%d", i%100), func(e Entry) Change {
			if want := uint64(i / 100); e.Record.Version != want {
				t.Errorf("change %d sees version %d, want %d", i, e.Record.Version, want)
			}
			return Change{Op: Put, Record: Record{Version: e.Record.Version + 1}}
		})
		if err != nil {
			t.Fatal(err)
		}
		commits = append(commits, c)
	}
	if c, err := p.Update([]byte("key0"), func(Entry) Change { return Change{} }); c != nil || err != nil {
		t.Errorf("keeping: %v, %v", c, err)
	}
	p.Wait()
	last := uint64(0)
	for i, c := range commits {
		lsn, err := c.Result()
		if err != nil || lsn.Index < last {
			t.Fatalf("change %d: %v, %v after %d", i, lsn, err, last)
		}
		last = lsn.Index
	}
	p.Reset()
	if got := db.Position().LSN.Index; got != last || got >= changes {
		t.Errorf("log is at %d after the last commit at %d, of %d changes", got, last, changes)
	}
	if got := done.Load(); got != changes+1 {
		t.Errorf("told of the end of %d changes, want %d", got, changes+1)
	}
}
