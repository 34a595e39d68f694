package replication

import "time"

// chaseWindow is how long a sender of the log is watched before it is judged.
const chaseWindow = 2 * time.Second

// chase judges whether who sends the log gains on who writes it, by the indices of
// batches. It is asked often and judges once a window. The zero value is one that has
// just begun.
type chase struct {
	since      time.Time
	head, sent uint64 // when the window began
}

// loses reports whether, in a window that has ended, less was sent than twice what
// was written: at that pace a follower does not arrive in a time that anybody waits.
func (c *chase) loses(head, sent uint64, now time.Time) bool {
	if c.since.IsZero() {
		*c = chase{now, head, sent}
		return false
	}
	if now.Sub(c.since) < chaseWindow {
		return false
	}
	written, moved := head-c.head, sent-c.sent
	*c = chase{now, head, sent}
	return moved < 2*written
}
