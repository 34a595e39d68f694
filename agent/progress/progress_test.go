package progress

import (
	"math"
	"testing"
	"time"
)

func TestMeter(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	for _, tt := range []struct {
		name string
		// feed adds samples; it returns the time to ask at.
		feed func(m *Meter) time.Time
		want float64
	}{
		{"nothing", func(*Meter) time.Time { return start }, 0},
		{"one sample", func(m *Meter) time.Time { m.Add(start, 5); return start }, 0},
		{"too early to tell", func(m *Meter) time.Time {
			m.Add(start, 0)
			m.Add(start.Add(100*time.Millisecond), 1000)
			return start.Add(100 * time.Millisecond)
		}, 0},
		{"what was there before does not count", func(m *Meter) time.Time {
			m.Add(start, 1_000_000)
			m.Add(start.Add(2*time.Second), 1_000_200)
			return start.Add(2 * time.Second)
		}, 100},
		{"steady for a minute", func(m *Meter) time.Time {
			var now time.Time
			for i := range 6001 {
				now = start.Add(time.Duration(i) * 10 * time.Millisecond)
				m.Add(now, uint64(i)*10)
			}
			return now
		}, 1000},
		{"the newest sample counts although it is not kept", func(m *Meter) time.Time {
			m.Add(start, 0)
			m.Add(start.Add(900*time.Millisecond), 0)
			m.Add(start.Add(time.Second), 300)
			return start.Add(time.Second)
		}, 300},
		{"only the window counts", func(m *Meter) time.Time {
			var now time.Time
			done := uint64(0)
			for i := range 601 { // fast for half a minute, then slow
				now = start.Add(time.Duration(i) * 100 * time.Millisecond)
				m.Add(now, done)
				if i < 300 {
					done += 1000
				} else {
					done++
				}
			}
			return now
		}, 10},
		{"it has stopped, half a window ago", func(m *Meter) time.Time {
			for i := range 101 {
				m.Add(start.Add(time.Duration(i)*100*time.Millisecond), uint64(i)*10)
			}
			return start.Add(10*time.Second + Window/2)
		}, 50},
		{"it has stopped, longer than the window ago", func(m *Meter) time.Time {
			for i := range 101 {
				m.Add(start.Add(time.Duration(i)*100*time.Millisecond), uint64(i)*10)
			}
			return start.Add(10*time.Second + 2*Window)
		}, 0},
		{"less is a new beginning", func(m *Meter) time.Time {
			m.Add(start, 5000)
			m.Add(start.Add(time.Second), 9000)
			m.Add(start.Add(2*time.Second), 0)
			m.Add(start.Add(4*time.Second), 20)
			return start.Add(4 * time.Second)
		}, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m Meter
			now := tt.feed(&m)
			if got := m.Rate(now); math.Abs(got-tt.want) > tt.want*0.06 {
				t.Errorf("rate %v, want %v", got, tt.want)
			}
		})
	}
}

func TestETA(t *testing.T) {
	for _, tt := range []struct {
		left uint64
		rate float64
		want time.Duration
		ok   bool
	}{
		{0, 0, 0, true},
		{100, 0, 0, false},
		{100, 50, 2 * time.Second, true},
		{1, 4, 250 * time.Millisecond, true},
		{math.MaxUint64, 0.001, 0, false},
	} {
		if got, ok := ETA(tt.left, tt.rate); got != tt.want || ok != tt.ok {
			t.Errorf("ETA(%d, %v) = %v, %v; want %v, %v", tt.left, tt.rate, got, ok, tt.want, tt.ok)
		}
	}
}
