// Package progress tells how fast a piece of work goes and when it will be done,
// from how much of it was done at which times. It reads no clock, so that whoever
// shows a rate can say exactly what it is.
package progress

import (
	"math"
	"time"
)

const (
	// Window is the time over which a rate is taken: long enough to be read, short
	// enough to show within seconds that something has stopped.
	Window = 10 * time.Second
	// grain is the least time between two samples that are kept.
	grain = Window / 20
	// settle is how long must have passed before there is a rate at all.
	settle = 200 * time.Millisecond
)

// A Meter measures one quantity that only grows: bytes, batches, files. The zero
// value has measured nothing. It is not safe for concurrent use.
type Meter struct {
	ring [24]sample // more than Window holds, so that one older than that is there
	n    int        // samples ever taken
	last sample     // the newest, also when it was not kept
}

type sample struct {
	at   time.Time
	done uint64
}

// Add takes in how much is done at a time, which must not be before that of the
// last call. The first call sets from where it is measured. Less than before is a
// new beginning.
func (m *Meter) Add(now time.Time, done uint64) {
	if m.n > 0 && done < m.last.done {
		*m = Meter{}
	}
	m.last = sample{now, done}
	if m.n == 0 || now.Sub(m.kept(m.n-1).at) >= grain {
		m.ring[m.n%len(m.ring)] = m.last
		m.n++
	}
}

func (m *Meter) kept(i int) sample { return m.ring[i%len(m.ring)] }

// Rate returns how much was done a second over the last Window, or since the first
// sample if that is not so long ago; 0 while too little time has passed to tell.
func (m *Meter) Rate(now time.Time) float64 {
	if m.n == 0 {
		return 0
	}
	oldest := max(0, m.n-len(m.ring))
	from := m.kept(oldest)
	for i := oldest + 1; i < m.n; i++ {
		if s := m.kept(i); now.Sub(s.at) >= Window {
			from = s
		}
	}
	took := now.Sub(from.at)
	if took < settle {
		return 0
	}
	return float64(m.last.done-from.done) / took.Seconds()
}

// ETA returns how long the rest takes at a rate; false if there is no telling.
func ETA(left uint64, rate float64) (time.Duration, bool) {
	if left == 0 {
		return 0, true
	}
	if rate <= 0 {
		return 0, false
	}
	seconds := float64(left) / rate
	if seconds > math.MaxInt64/float64(time.Second) {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}
