//go:build race

package text

// poolAllocations is what a request may allocate whose memory comes out of a pool: the
// race detector lets a sync.Pool forget a quarter of what it is given, and a large block
// that is not used again takes three allocations.
const poolAllocations = 1
