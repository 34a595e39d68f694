//go:build !race

package text

// poolAllocations is what a request may allocate whose memory comes out of a pool.
const poolAllocations = 0
