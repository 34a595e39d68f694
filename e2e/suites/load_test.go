//go:build e2e

package suites

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// A load is clients that write and delete all the time through the client Service,
// each its own keys. Of each key it remembers what may be found under it: what was
// acknowledged last, and what has not been answered since.
type load struct {
	c    *cluster
	addr string
	stop chan struct{}
	done sync.WaitGroup
	keys []map[string][]string // by writer
	next []int                 // number of each writer's next write

	mu     sync.Mutex
	figure figures
	last   []time.Time // by writer: when a write of it last succeeded
}

// figures are what clients saw since they were last asked for it.
type figures struct {
	acked   int
	refused int           // answered with an error
	broken  int           // not answered: the connection broke, or timed out
	pause   time.Duration // the longest that one client went without a success
	example error
}

func (f figures) String() string {
	s := fmt.Sprintf("%d writes acknowledged, %d refused, %d connections broken, longest pause of a client %d ms", f.acked, f.refused, f.broken, f.pause.Milliseconds())
	if f.example != nil {
		s += fmt.Sprintf(" (the last error: %v)", f.example)
	}
	return s
}

const (
	writers   = 4
	loadEvery = 5 * time.Millisecond
	deleted   = "(deleted)"
)

// startLoad writes until the test ends.
func (c *cluster) startLoad(t *testing.T) *load {
	l := &load{c: c, addr: c.service(), keys: make([]map[string][]string, writers), next: make([]int, writers), last: make([]time.Time, writers)}
	for w := range writers {
		l.keys[w] = map[string][]string{}
	}
	l.begin()
	t.Cleanup(l.end)
	return l
}

func (l *load) begin() {
	l.stop = make(chan struct{})
	for w := range writers {
		l.last[w] = time.Now()
		l.done.Go(func() { l.write(w) })
	}
}

// end may be called again.
func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.done.Wait()
}

// write is one writer. Every tenth write is a delete, every third of a key that is
// not written again.
func (l *load) write(w int) {
	m := client(l.addr)
	defer m.Close()
	tick := time.NewTicker(loadEvery)
	defer tick.Stop()
	for ; ; l.next[w]++ {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		i := l.next[w]
		key := fmt.Sprintf("load:%d:%d", w, i%200)
		if i%3 == 0 {
			key = fmt.Sprintf("load:%d:once:%d", w, i)
		}
		value := fmt.Sprint("value ", i)
		var err error
		if i%10 == 9 {
			value = deleted
			if err = m.Delete(key); errors.Is(err, memcache.ErrCacheMiss) {
				err = nil
			}
		} else {
			err = m.Set(&memcache.Item{Key: key, Value: []byte(value)})
		}
		if err == nil {
			l.keys[w][key] = []string{value}
		} else {
			if l.keys[w][key] == nil {
				l.keys[w][key] = []string{deleted}
			}
			l.keys[w][key] = append(l.keys[w][key], value)
		}
		l.note(w, err)
	}
}

func (l *load) note(w int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.figure
	switch {
	case err == nil:
		now := time.Now()
		f.acked++
		f.pause = max(f.pause, now.Sub(l.last[w]))
		l.last[w] = now
	case strings.Contains(err.Error(), "SERVER_ERROR"):
		f.refused++
		f.example = err
	default:
		f.broken++
		f.example = err
	}
}

// so tells what clients have seen, and begins to count anew.
func (l *load) so() figures {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.figure
	for w := range l.last { // a pause that has not ended yet counts too
		f.pause = max(f.pause, time.Since(l.last[w]))
	}
	l.figure = figures{}
	return f
}

// passes waits until every client has written some more.
func (l *load) passes() {
	l.c.t.Helper()
	l.mu.Lock()
	from := slices.Clone(l.last)
	l.mu.Unlock()
	l.c.eventually(60*time.Second, "every client writes", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		for w := range from {
			if !l.last[w].After(from[w].Add(100 * time.Millisecond)) {
				return fmt.Errorf("client %d has not had an answer since %s: %v", w, from[w].Format(time.TimeOnly), l.figure.example)
			}
		}
		return nil
	})
}

// check reads every key through every pod while nobody writes.
func (l *load) check() {
	t := l.c.t
	t.Helper()
	l.end()
	defer l.begin()
	total, wrong := 0, 0
	for name, p := range l.c.pods() {
		m := client(p.addr(12121))
		for _, keys := range l.keys {
			for some := range slices.Chunk(slices.Collect(maps.Keys(keys)), 100) {
				items, err := m.GetMulti(some)
				if err != nil {
					t.Fatalf("get %d keys through %s: %v", len(some), name, err)
				}
				for _, key := range some {
					got := deleted
					if item := items[key]; item != nil {
						got = string(item.Value)
					}
					total++
					if !slices.Contains(keys[key], got) {
						if wrong++; wrong <= 10 {
							t.Errorf("get %s through %s: %q, want one of %q", key, name, got, keys[key])
						}
					}
				}
			}
		}
		m.Close()
	}
	if wrong > 0 {
		t.Fatalf("%d of %d values are wrong", wrong, total)
	}
	t.Logf("every acknowledged write is there: %d reads through %d pods", total, len(l.c.pods()))
}

// smooth logs the figures and fails the test when a write was refused: what was done
// since the last ones must cost no more than a pause.
func (l *load) smooth(what string) {
	l.c.t.Helper()
	f := l.so()
	l.c.t.Logf("%s: %v", what, f)
	if f.refused > 0 {
		l.c.t.Errorf("%d writes were refused; they should have waited", f.refused)
	}
	if f.acked == 0 {
		l.c.t.Error("no write was acknowledged")
	}
}
