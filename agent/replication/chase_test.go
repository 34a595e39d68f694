package replication

import (
	"testing"
	"time"
)

// TestChase judges senders by what they did in windows, which begin where the former
// ended.
func TestChase(t *testing.T) {
	const half = chaseWindow / 2
	type look struct {
		after      time.Duration
		head, sent uint64
		loses      bool
	}
	for name, looks := range map[string][]look{
		"nobody writes":                {{0, 1000, 0, false}, {chaseWindow, 1000, 1, false}},
		"nobody writes, nothing moves": {{0, 1000, 0, false}, {chaseWindow, 1000, 0, false}},
		"twice as fast":                {{0, 1000, 0, false}, {chaseWindow, 1100, 200, false}},
		"not twice as fast":            {{0, 1000, 0, false}, {chaseWindow, 1100, 199, true}},
		"a window is not over":         {{0, 1000, 0, false}, {half, 2000, 0, false}, {half, 2000, 2000, false}},
		"a good window does not count for the next": {
			{0, 1000, 0, false}, {chaseWindow, 1000, 900, false}, {chaseWindow, 1100, 950, true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c chase
			now := time.Unix(1, 0)
			for i, l := range looks {
				now = now.Add(l.after)
				if got := c.loses(l.head, l.sent, now); got != l.loses {
					t.Errorf("look %d: loses is %v, want %v", i, got, l.loses)
				}
			}
		})
	}
}
