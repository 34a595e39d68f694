package index

import (
	"sync"
	"time"
)

// limiter lets one message of each kind through in a while, and counts the
// others. The kinds are few and fixed.
type limiter struct {
	every time.Duration

	mu     sync.Mutex
	last   map[string]time.Time
	missed map[string]int
}

// allow reports whether a message may be logged now, and how many were not since
// the last one.
func (l *limiter) allow(kind string, now time.Time) (ok bool, missed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, seen := l.last[kind]; seen && now.Sub(last) < l.every {
		l.missed[kind]++
		return false, 0
	}
	if l.last == nil {
		l.last, l.missed = map[string]time.Time{}, map[string]int{}
	}
	missed = l.missed[kind]
	l.last[kind], l.missed[kind] = now, 0
	return true, missed
}
