package topology

import "time"

const (
	// LeaseTTL is how long a master may take writes after it asked for its lease. It
	// is asked for several times in that time.
	LeaseTTL = 5 * time.Second
	// leaseMargin is by which part of it the clocks of two machines may drift apart
	// while it lasts.
	leaseMargin = 10
)

// LeaseHold is after what time a lease of ttl that this process gave, or promised
// to respect, has certainly ended by the clock of the process that holds it.
func LeaseHold(ttl time.Duration) time.Duration { return ttl + ttl/leaseMargin }
