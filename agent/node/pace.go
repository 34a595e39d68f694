package node

import "time"

// minPause is the least time that a pacer asks for: shorter ones add up first.
const minPause = 100 * time.Millisecond

// A pacer slows a walk over records down: to a pause after each of them, to a
// number of bytes a second, or to both, where the longer one counts. Time that was
// lost otherwise, as by a slow reader, is not made up for.
type pacer struct {
	wait time.Duration // after each record
	rate int64         // bytes a second, 0 for any
	due  time.Time     // when all that was done so far may be done
}

// newPacer takes the arguments of dump: microseconds and KiB/s.
func newPacer(wait, bandwidth int64) pacer {
	return pacer{wait: time.Duration(wait) * time.Microsecond, rate: bandwidth << 10}
}

// after counts a record of so many bytes, and returns how long to pause now.
func (p *pacer) after(bytes int, now time.Time) time.Duration {
	cost := p.wait
	if p.rate > 0 {
		cost = max(cost, time.Duration(float64(bytes)/float64(p.rate)*float64(time.Second)))
	}
	if cost == 0 {
		return 0
	}
	if p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(cost)
	least := minPause
	if p.wait > 0 {
		// Whoever asks for a pause after each record wants it then, as far as a timer can.
		least = min(least, max(p.wait, time.Millisecond))
	}
	if d := p.due.Sub(now); d >= least {
		return d
	}
	return 0
}
