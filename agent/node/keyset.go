package node

import (
	"hash/maphash"
	"sync"
)

// A keySet remembers keys by 64 bits of their hash, in about 20 bytes each. Two
// keys that have these bits in common are taken for one, so that a key may seem to
// be in the set that is not, never the other way round.
type keySet struct {
	seed maphash.Seed

	mu     sync.RWMutex
	hashes map[uint64]struct{}
}

func newKeySet() *keySet {
	return &keySet{seed: maphash.MakeSeed(), hashes: map[uint64]struct{}{}}
}

// add puts a key into the set; a nil set stays empty.
func (s *keySet) add(key []byte) {
	if s == nil {
		return
	}
	h := maphash.Bytes(s.seed, key)
	s.mu.Lock()
	s.hashes[h] = struct{}{}
	s.mu.Unlock()
}

func (s *keySet) has(key []byte) bool {
	h := maphash.Bytes(s.seed, key)
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.hashes[h]
	return ok
}
