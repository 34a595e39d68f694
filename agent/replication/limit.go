package replication

import "time"

// limiter spreads bytes over time. Unused bandwidth of up to a tenth of a second
// may be made up for. The zero value is ready for use.
type limiter struct {
	free time.Time // when everything that was sent is paid for
}

const limiterBurst = 100 * time.Millisecond

// take accounts for n bytes at rate bytes per second, 0 for no limit, and
// returns how long to wait before the next.
func (l *limiter) take(rate int64, n int, now time.Time) time.Duration {
	if rate <= 0 {
		l.free = time.Time{}
		return 0
	}
	if oldest := now.Add(-limiterBurst); l.free.Before(oldest) {
		l.free = oldest
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return max(l.free.Sub(now), 0)
}
