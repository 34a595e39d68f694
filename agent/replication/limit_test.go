package replication

import (
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Unix(1000, 0)
	if d := l.take(0, 1<<30, now); d != 0 {
		t.Errorf("without a limit: %v", d)
	}
	// 1000 bytes per second, of which a tenth may come at once.
	if d := l.take(1000, 100, now); d != 0 {
		t.Errorf("burst: %v", d)
	}
	if d := l.take(1000, 500, now); d != 500*time.Millisecond {
		t.Errorf("beyond the burst: %v", d)
	}
	now = now.Add(200 * time.Millisecond)
	if d := l.take(1000, 100, now); d != 400*time.Millisecond {
		t.Errorf("later: %v", d)
	}
	now = now.Add(time.Hour) // a long rest does not add up
	if d := l.take(1000, 200, now); d != 100*time.Millisecond {
		t.Errorf("after a rest: %v", d)
	}
	if d := l.take(0, 1<<30, now); d != 0 {
		t.Errorf("limit taken away: %v", d)
	}
}
