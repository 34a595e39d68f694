package topology

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// Meta is how a cluster maps keys to partitions. The index tells it to every node that starts; it never changes in
// the life of a cluster.
type Meta struct {
	PartitionSize int  `json:"partitionSize"` // the number of partitions stays below it
	Hash          Hash `json:"hash"`
	Hint          int  `json:"hint"`    // up to this many partitions, slots are dealt round robin
	Virtual       int  `json:"virtual"` // slots keys are hashed into
}

// Bounds on Meta: a partition number must fit the table's cells, and the table must fit in memory.
const (
	maxPartitionSize = 1 << 16
	maxVirtual       = 1 << 20
)

// DefaultMeta returns what clusters use unless configured otherwise.
func DefaultMeta() Meta {
	return Meta{PartitionSize: 1024, Hash: HashSimple, Hint: 1, Virtual: 4096}
}

// Validate reports the first field a resolver cannot be built with.
func (m Meta) Validate() error {
	switch {
	case m.PartitionSize < 2 || m.PartitionSize > maxPartitionSize:
		return fmt.Errorf("partition-size %d: want 2 to %d", m.PartitionSize, maxPartitionSize)
	case int(m.Hash) >= len(hashWords):
		return fmt.Errorf("key-hash-algorithm code %d is not known", m.Hash)
	case m.Hint < 1:
		return fmt.Errorf("partition-modular-hint %d: want at least 1", m.Hint)
	case m.Virtual < 1 || m.Virtual > maxVirtual:
		return fmt.Errorf("partition-modular-virtual %d: want 1 to %d", m.Virtual, maxVirtual)
	}
	return nil
}

// Resolver maps keys to partitions. It may be used by several goroutines at once.
//
// The table row of n partitions follows from the row of n-1 by moving slots to the new partition only, so growing a
// cluster never moves a key between old partitions. Rows are built when first asked for: a full table would be
// hundreds of times what a cluster uses.
type Resolver struct {
	meta Meta
	mu   sync.Mutex                 // serialises building rows
	rows atomic.Pointer[[][]uint16] // rows[n-1][slot] = partition among n; published rows never change
}

// NewResolver returns the resolver of a cluster.
func NewResolver(m Meta) (*Resolver, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("partition resolver: %w", err)
	}
	r := &Resolver{meta: m}
	r.rows.Store(&[][]uint16{})
	return r, nil
}

// Meta returns what the resolver was built from.
func (r *Resolver) Meta() Meta { return r.meta }

// Partition returns the partition of key among the given number of partitions, or NoPartition if that number is
// not between 1 and PartitionSize-1.
func (r *Resolver) Partition(key []byte, partitions int) int {
	if partitions < 1 || partitions >= r.meta.PartitionSize {
		return NoPartition
	}
	rows := *r.rows.Load()
	if len(rows) < partitions {
		rows = r.grow(partitions)
	}
	slot := int(r.meta.Hash.Sum(key)) % r.meta.Virtual
	if slot < 0 {
		// Only the one hash value that stays negative, and only if Virtual is not a power of two.
		slot += r.meta.Virtual
	}
	return int(rows[partitions-1][slot])
}

func (r *Resolver) grow(partitions int) [][]uint16 {
	r.mu.Lock()
	defer r.mu.Unlock()
	rows := *r.rows.Load()
	if len(rows) >= partitions {
		return rows
	}
	grown := make([][]uint16, len(rows), partitions)
	copy(grown, rows)
	for n := len(rows) + 1; n <= partitions; n++ {
		grown = append(grown, r.row(n, grown))
	}
	r.rows.Store(&grown)
	return grown
}

// row computes the row of n partitions from the rows of fewer.
func (r *Resolver) row(n int, rows [][]uint16) []uint16 {
	row := make([]uint16, r.meta.Virtual)
	if n <= r.meta.Hint {
		for v := range row {
			row[v] = uint16(v % n)
		}
		return row
	}
	seen := make([]int, n-1) // slots of each old partition met so far
	for v, k := range rows[n-2] {
		seen[k]++
		if seen[k]%n == n-1 {
			k = uint16(n - 1) // every n-th slot of each old partition goes to the new one
		}
		row[v] = k
	}
	return row
}
