package replication

import (
	"testing"
	"time"
)

// A stream's signs of life follow the options while it runs, and never come so
// seldom that the follower, which was told the timeout at the start, gives up.
func TestInterval(t *testing.T) {
	wanted, timeout := 500*time.Millisecond, 2*time.Second
	s := NewSource(nil, SourceConfig{
		Timeout:  func() time.Duration { return timeout },
		Interval: func() time.Duration { return wanted },
	})
	c := &sender{s: s, patience: timeout}
	for _, step := range []struct{ wanted, timeout, want time.Duration }{
		{500 * time.Millisecond, 2 * time.Second, 500 * time.Millisecond},
		{10 * time.Millisecond, 2 * time.Second, 10 * time.Millisecond},
		{time.Minute, 2 * time.Second, 500 * time.Millisecond},
		{time.Minute, time.Hour, 500 * time.Millisecond}, // the stream began with 2 s
		{time.Second, 400 * time.Millisecond, 100 * time.Millisecond},
	} {
		wanted, timeout = step.wanted, step.timeout
		if got := c.interval(); got != step.want {
			t.Errorf("interval %v, timeout %v: a sign of life every %v, want %v", step.wanted, step.timeout, got, step.want)
		}
	}
	if got := NewSource(nil, SourceConfig{}).interval(); got != heartbeatInterval {
		t.Errorf("without options %v, want %v", got, heartbeatInterval)
	}
}
