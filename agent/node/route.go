package node

import (
	"slices"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// maxVia bounds the prefix list: a request that has travelled through more
// nodes than this is circling, whatever the maps say.
const maxVia = 4

// An action is what to do with a request for one key.
type action uint8

const (
	// actLocal: this node answers from its own database.
	actLocal action = iota
	// actCopy: this node executes what the partition's master has executed.
	actCopy
	// actForward: route.to answers.
	actForward
	// actWait: the partition exists but nobody can answer for it now; a new
	// node map will tell who can.
	actWait
	// actMiss: a read that nobody can answer, said as "not found".
	actMiss
	// actNoPartition: no partition is there to take a write.
	actNoPartition
	// actLoop: a write that this node, or the one it should go to, sent on
	// before, because it did not think to be the master. The maps disagree.
	actLoop
)

// A route is the decision for one key.
type route struct {
	action    action
	partition int
	to        string // node key, with actForward
}

// A table is one node map with everything derived from it. It is immutable.
type table struct {
	self     string
	nodes    topology.Map
	view     topology.View // of this map, or of the last one whose layout was valid
	resolver *topology.Resolver
	own      topology.Node // this node's entry
	known    bool          // whether the map has one
	parts    []part        // of view, index = partition
	copies   bool          // this node may have to execute what a master executed
	outdated bool          // view is not of this map
	since    time.Time     // when a map first said of every key what this one says
	yield    yielding      // the partition whose keys nobody may write here any more
}

// sameOwners tells whether two tables agree on which node has to have which key,
// as far as this node is concerned.
func (t *table) sameOwners(other *table) bool {
	return len(t.parts) == len(other.parts) && (t.view.Preparing == nil) == (other.view.Preparing == nil) &&
		t.outdated == other.outdated && t.resolver == other.resolver && t.known == other.known &&
		t.own.Role == other.own.Role && t.own.State == other.own.State && t.own.Partition == other.own.Partition
}

// A part is what routing needs to know of one partition.
type part struct {
	master  string // "" for none
	leads   bool   // this node is the master
	serves  bool   // this node answers reads
	readers []reader
	near    []reader // those of readers that are tried first, if any
}

// A reader is a node to read from with its weight.
type reader struct {
	node   string
	weight uint32
}

func newTable(self string, nodes topology.Map, view topology.View, resolver *topology.Resolver) *table {
	t := &table{self: self, nodes: nodes, view: view, resolver: resolver}
	t.own, t.known = nodes.Find(self)
	t.parts = make([]part, len(view.Partitions))
	for i := range view.Partitions {
		from, p := &view.Partitions[i], &t.parts[i]
		p.master, p.leads = from.Master, from.Master == self
		p.serves = p.leads
		for _, node := range from.ReadList {
			p.serves = p.serves || node == self
			if n := len(p.readers); n > 0 && p.readers[n-1].node == node {
				p.readers[n-1].weight++
			} else {
				p.readers = append(p.readers, reader{node, 1})
			}
		}
	}
	inPreparing := view.Preparing != nil && view.Preparing.Has(self)
	for i := range view.Partitions {
		t.copies = t.copies || view.Partitions[i].HasSlave(self)
	}
	t.copies = t.copies || inPreparing
	return t
}

// withdraw takes this node from those that answer reads as replicas.
func (t *table) withdraw() {
	for i := range t.parts {
		p := &t.parts[i]
		if !p.leads {
			p.serves = false
			p.readers = slices.DeleteFunc(p.readers, func(r reader) bool { return r.node == t.self })
		}
	}
}

// partition finds the partition of a key among the active ones.
func (t *table) partition(key []byte) (int, bool) {
	if t == nil || len(t.parts) == 0 {
		return -1, false
	}
	p := t.resolver.Partition(key, len(t.parts))
	return p, p >= 0 && p < len(t.parts)
}

// copyOf tells whether a write for a key of partition p that was sent by a node is
// one that this node executes after it: as a slave after its master, and as the
// master of the partition that is being filled after the master the key still has.
func (t *table) copyOf(key []byte, p int, sender string) (int, bool) {
	own := t.own.Partition
	if own == p && own < len(t.parts) {
		return p, t.parts[p].master == sender && t.view.Partitions[p].HasSlave(t.self)
	}
	q := t.view.Preparing
	if q == nil || own != q.Number || t.resolver.Partition(key, len(t.parts)+1) != q.Number {
		return 0, false
	}
	if q.Master == t.self {
		return q.Number, t.parts[p].master == sender
	}
	return q.Number, q.Master == sender && q.HasSlave(t.self)
}

// routeWrite decides who executes a write. Only a master executes; whoever
// else meets the request passes it on, and nobody meets it twice - but for what a
// master without a log sends to the nodes that copy it, which comes last from it.
func (t *table) routeWrite(key []byte, via []string) route {
	p, ok := t.partition(key)
	if !ok {
		return route{action: actNoPartition, partition: -1}
	}
	to := &t.parts[p]
	if t.copies && len(via) > 0 && !to.leads {
		if q, ok := t.copyOf(key, p, via[len(via)-1]); ok {
			return route{action: actCopy, partition: q}
		}
	}
	switch {
	case to.leads && t.yields(key):
		return route{action: actWait, partition: p}
	case to.leads:
		return route{action: actLocal, partition: p}
	case slices.Contains(via, t.self) || to.master != "" && slices.Contains(via, to.master) || len(via) >= maxVia:
		return route{action: actLoop, partition: p}
	case to.master == "":
		return route{action: actWait, partition: p}
	default:
		return route{action: actForward, partition: p, to: to.master}
	}
}

// routeRead decides who answers a read. avoid lists the nodes that were tried
// in vain; draw is a random number that spreads reads over the weighted list.
func (t *table) routeRead(key []byte, via, avoid []string, draw uint32) route {
	p, ok := t.partition(key)
	if !ok {
		return route{action: actMiss, partition: -1}
	}
	return t.readFrom(p, via, avoid, draw)
}

// readFrom is routeRead for a partition that exists.
func (t *table) readFrom(p int, via, avoid []string, draw uint32) route {
	from := &t.parts[p]
	if from.serves && !slices.Contains(avoid, t.self) {
		return route{action: actLocal, partition: p}
	}
	if slices.Contains(via, t.self) || len(via) >= maxVia {
		return route{action: actMiss, partition: p}
	}
	usable := func(node string) bool {
		return node != "" && node != t.self && !slices.Contains(avoid, node) && !slices.Contains(via, node)
	}
	node, ok := choose(from.near, usable, draw)
	if !ok {
		node, ok = choose(from.readers, usable, draw)
	}
	switch {
	case ok:
		return route{action: actForward, partition: p, to: node}
	case usable(from.master):
		// It has the data even when its balance asks for no reads.
		return route{action: actForward, partition: p, to: from.master}
	case len(avoid) > 0:
		return route{action: actWait, partition: p}
	}
	return route{action: actMiss, partition: p}
}

// choose draws one of the usable readers by weight.
func choose(from []reader, usable func(node string) bool, draw uint32) (node string, ok bool) {
	var total uint32
	for _, r := range from {
		if usable(r.node) {
			total += r.weight
		}
	}
	if total == 0 {
		return "", false
	}
	draw %= total
	for _, r := range from {
		switch {
		case !usable(r.node):
		case draw < r.weight:
			return r.node, true
		default:
			draw -= r.weight
		}
	}
	return "", false
}
