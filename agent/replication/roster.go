package replication

import "slices"

// A roster knows which nodes may come for the log, and how much of it each of them
// has, also while they are away: the map shows no partition for a node that is
// down, and a new connection begins without a position.
type roster struct {
	has     map[string]uint64 // by node key: index of the last batch it has
	changed bool              // since lacking was last asked for
}

// expect takes over who may come: who of known is not there yet has nothing behind
// oldest as far as we know, and whoever is not possible any more is forgotten.
func (r *roster) expect(known []string, oldest uint64, possible func(key string) bool) {
	for key := range r.has {
		if !possible(key) {
			delete(r.has, key)
			r.changed = true
		}
	}
	for _, key := range known {
		if _, ok := r.has[key]; !ok {
			r.at(key, max(oldest, 1)-1)
		}
	}
}

// at tells that a node has the log up to an index. It may go back: a node may have
// been restored.
func (r *roster) at(key string, index uint64) {
	if has, ok := r.has[key]; ok && has == index {
		return
	}
	if r.has == nil {
		r.has = map[string]uint64{}
	}
	r.has[key] = index
	r.changed = true
}

// lacking returns the index of the first batch that each node other than except
// lacks, ascending.
func (r *roster) lacking(except string) []uint64 {
	var list []uint64
	for key, index := range r.has {
		if key != except {
			list = append(list, index+1)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
