package node

import "github.com/flarekv/flare/proto/topology"

// homes remembers of the other nodes in which partition a map last showed them. A
// map shows none for a node that is down, but it is this one whose log it lacks
// when it returns.
type homes struct {
	self string
	of   map[string]int  // node key: partition; -1 where no map has told
	down map[string]bool // in the last map
}

// note takes up a map.
func (h *homes) note(t *table) {
	if t == nil {
		return
	}
	h.self = t.self
	known := make(map[string]int, len(t.nodes.Nodes))
	h.down = map[string]bool{}
	for _, n := range t.nodes.Nodes {
		key := n.Key()
		home, ok := h.of[key]
		switch {
		case n.Partition >= 0:
			home = n.Partition
		case !ok:
			home = topology.NoPartition
		}
		known[key], h.down[key] = home, n.State == topology.Down
	}
	h.of = known
}

// away lists the nodes other than this one that may lack log of a partition: its
// members, and those that are down and of which no map has told where they belong.
func (h *homes) away(partition int) (keys []string) {
	for key, home := range h.of {
		if key != h.self && (home == partition || home < 0 && h.down[key]) {
			keys = append(keys, key)
		}
	}
	return keys
}

// mayCome returns whether a node that has had log of a partition may come for more
// of it.
func (h *homes) mayCome(partition int) func(key string) bool {
	of := h.of
	return func(key string) bool {
		home, known := of[key]
		return known && (home == partition || home < 0)
	}
}
