package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// scanKeys walks and returns the keys that were seen.
func scanKeys(t testing.TB, s *Scan) []string {
	t.Helper()
	var keys []string
	for s.Next(t.Context()) {
		keys = append(keys, string(s.Key()))
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	if s.Count() != uint64(len(keys)) {
		t.Fatalf("Count() = %d after %d records", s.Count(), len(keys))
	}
	return keys
}

func TestScanPrefixAndAfter(t *testing.T) {
	db := open(t, Options{})
	for _, k := range []string{"a", "b", "b1", "b1x", "b2", "c", "\xff\xff"} {
		put(t, db, k, "value of "+k)
	}
	del(t, db, "b2", Tombstone{Version: 9})
	for _, test := range []struct{ prefix, after, want string }{
		{"", "", "a b b1 b1x c \xff\xff"},
		{"b", "", "b b1 b1x"},
		{"b", "a", "b b1 b1x"},
		{"b", "b", "b1 b1x"},
		{"b", "b1w", "b1x"},
		{"b", "c", ""},
		{"", "b1x", "c \xff\xff"},
		{"\xff", "", "\xff\xff"},
		{"zz", "", ""},
	} {
		got := scanKeys(t, db.Scan(ScanOptions{Prefix: []byte(test.prefix), After: []byte(test.after)}))
		if strings.Join(got, " ") != test.want {
			t.Errorf("prefix %q after %q: %q, want %q", test.prefix, test.after, got, test.want)
		}
	}
	s := db.Scan(ScanOptions{Prefix: []byte("b1x")})
	if !s.Next(t.Context()) || string(s.Record().Value) != "value of b1x" || s.Record().Version != 1 || s.Size() != 12 {
		t.Errorf("got %q: %+v, size %d", s.Key(), s.Record(), s.Size())
	}
	for range 2 {
		if s.Next(t.Context()) || s.Err() != nil || s.Bytes() != 15 {
			t.Errorf("after the last record: %v, %d bytes", s.Err(), s.Bytes())
		}
	}
	s = db.Scan(ScanOptions{Prefix: []byte("b1x"), KeysOnly: true})
	if !s.Next(t.Context()) || len(s.Record().Value) != 0 || s.Size() != 12 || s.Bytes() != 15 {
		t.Errorf("keys only: %+v, size %d", s.Record(), s.Size())
	}
}

// TestScanSeesStandingRecordsOnce walks while everything around the standing
// records changes.
func TestScanSeesStandingRecordsOnce(t *testing.T) {
	db := open(t, Options{WriteBuffer: 1 << 20})
	const standing = 3*scanRecords + 17
	key := func(i int) string { return fmt.Sprintf("k%05d", i) }
	for i := range standing {
		put(t, db, key(i), "v")
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := w; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				// Beside each standing record another one comes, and goes the next time.
				k := []byte(key(i*7%standing) + fmt.Sprint("-", w))
				_, err := db.Update(context.Background(), k, func(e Entry) Change {
					if e.Found {
						return Change{Op: Delete}
					}
					return Change{Op: Put, Record: Record{Version: 1, Value: bytes.Repeat([]byte("x"), 100)}}
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 5 {
		keys := scanKeys(t, db.Scan(ScanOptions{}))
		if !slices.IsSorted(keys) {
			t.Error("keys are out of order")
		}
		if n := len(slices.Compact(slices.Clone(keys))); n != len(keys) {
			t.Errorf("%d keys were seen twice", len(keys)-n)
		}
		seen := 0
		for _, k := range keys {
			if !strings.Contains(k, "-") {
				seen++
			}
		}
		if seen != standing {
			t.Errorf("%d standing records seen, want %d", seen, standing)
		}
	}
	close(stop)
	wg.Wait()
}

// TestScanHoldsNothing lets a scan stand in the middle of the records while the
// database is replaced and closed.
func TestScanHoldsNothing(t *testing.T) {
	db := open(t, Options{})
	for i := range 2*scanRecords + 1 {
		put(t, db, fmt.Sprintf("k%05d", i), "v")
	}
	walk := func(s *Scan) error {
		for s.Next(t.Context()) {
		}
		return s.Err()
	}
	replaced := db.Scan(ScanOptions{})
	if !replaced.Next(t.Context()) {
		t.Fatal(replaced.Err())
	}
	if err := db.Wipe(); err != nil {
		t.Fatal(err)
	}
	if err := walk(replaced); !errors.Is(err, ErrReplaced) {
		t.Errorf("scan over a replaced database: %v", err)
	}
	if replaced.Count() != scanRecords {
		t.Errorf("%d records seen, want the %d of the step that was read", replaced.Count(), scanRecords)
	}
	if replaced.Next(t.Context()) || !errors.Is(replaced.Err(), ErrReplaced) {
		t.Error("an error does not last")
	}
	for i := range scanRecords + 1 {
		put(t, db, fmt.Sprintf("k%05d", i), "v")
	}
	closed := db.Scan(ScanOptions{})
	if !closed.Next(t.Context()) {
		t.Fatal(closed.Err())
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := walk(closed); !errors.Is(err, ErrClosed) {
		t.Errorf("scan over a closed database: %v", err)
	}
}

// TestScanIsBounded walks over values that are larger than a step.
func TestScanIsBounded(t *testing.T) {
	db := open(t, Options{})
	big := strings.Repeat("x", 300<<10)
	for i := range 8 {
		put(t, db, fmt.Sprint("big", i), big)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := db.Scan(ScanOptions{})
	for i := 0; s.Next(ctx); i++ {
		if string(s.Record().Value) != big {
			t.Fatalf("record %d has another value", i)
		}
		if cap(s.buf) > 4*scanBytes || len(s.step) > 1 {
			t.Fatalf("%d records in %d bytes are held", len(s.step), cap(s.buf))
		}
		if i == 3 {
			cancel()
		}
	}
	if !errors.Is(s.Err(), context.Canceled) || s.Count() != 4 {
		t.Errorf("%d records, %v", s.Count(), s.Err())
	}
}
