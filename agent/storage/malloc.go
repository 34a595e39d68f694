package storage

// #include <malloc.h>
import "C"

// Memtables and compaction buffers are megabytes that RocksDB allocates and
// frees all the time. By default the C library takes each from the system and
// gives it back, so that every page is faulted in and cleared anew: with values
// of 4 KiB that was 40 % of the processor time of a set. So memory is kept for
// the next of them, up to a bound, in few arenas.
const (
	mallocOwn    = 32 << 20  // bytes of an allocation that still comes from an arena; the most that is allowed
	mallocTrim   = 256 << 20 // bytes that are free at the end of an arena before they are given back
	mallocGrow   = 16 << 20  // bytes by which an arena grows
	mallocArenas = 2
)

func init() {
	// A value that the library refuses leaves its default, with which all works too.
	C.mallopt(C.M_MMAP_THRESHOLD, mallocOwn)
	C.mallopt(C.M_TRIM_THRESHOLD, mallocTrim)
	C.mallopt(C.M_TOP_PAD, mallocGrow)
	C.mallopt(C.M_ARENA_MAX, mallocArenas)
}
