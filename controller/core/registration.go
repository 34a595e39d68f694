package core

import (
	"unicode/utf8"

	"github.com/flarekv/flare/proto/topology"
)

// Anybody can register: the protocol knows no authentication. What follows keeps
// those who should not from doing harm by it.

const (
	// maxStateBytes bounds the durable state, whose JSON form must fit in a ConfigMap:
	// 1 MiB with everything else that is in it.
	maxStateBytes = 1<<20 - 16<<10
	// maxWanted is how many nodes may be asked for: in the longest form that a node has
	// in Kubernetes so many fit.
	maxWanted = 1200
	// maxNodes is how many may be in the map beside twice those that are wanted.
	maxNodes = 256
	// maxUnproven is how many that were registered from one address, beside those that
	// are wanted, may never have answered.
	maxUnproven = 64
	// unprovenKeep is how long one that has never answered is kept, in milliseconds.
	unprovenKeep = 60_000
)

// full tells why one more node cannot be taken into the map, empty when it can. Whom
// the workload has is not kept out by what others do.
func (w *work) full(c Command, key string) string {
	s := &w.s
	d := &s.Durable
	if !utf8.ValidString(c.Name) {
		return RefuseBadName // it would be another one when it is read again
	}
	size, unproven := stateSize, 0
	for i := range d.Nodes {
		n := &d.Nodes[i]
		size += n.size()
		if o := s.seen(n.Key()); n.Unproven && o != nil && o.AddedFrom == c.Peer {
			unproven++
		}
	}
	_, member := s.member(key)
	switch {
	case size+(&Node{Name: c.Name}).size() > maxStateBytes:
		return RefuseMapFull
	case member:
		return ""
	case len(d.Nodes) >= maxNodes+2*s.wantedNodes():
		return RefuseMapFull
	case unproven >= maxUnproven+s.wantedNodes():
		return RefuseUnproven
	}
	return ""
}

// Bytes of JSON, at most: of a durable state without nodes but with all else that can
// grow, and of a node without its strings, with those that it gets later.
const (
	stateSize = 96 << 10
	nodeSize  = 640
)

// size returns how long the JSON form of a node can become.
func (n *Node) size() int {
	return nodeSize + jsonLen(n.Name) + 2*max(jsonLen(n.Instance), 16) + max(jsonLen(n.History), 32)
}

// jsonLen returns how long a string is in JSON, at most.
func jsonLen(s string) int {
	size := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c < 0x20, c == '"', c == '\\', c == '<', c == '>', c == '&', c >= 0x7f:
			size += 6
		default:
			size++
		}
	}
	return size
}

// forgetUnproven drops nodes that registered, never answered, and are down: a name
// that somebody mistyped or made up. One that exists registers again when it starts.
func (w *work) forgetUnproven() {
	s := &w.s
	for i := len(s.Durable.Nodes) - 1; i >= 0; i-- {
		n := &s.Durable.Nodes[i]
		if !n.Unproven || n.up() || n.Role != topology.Proxy {
			continue
		}
		since := s.Started
		if o := s.seen(n.Key()); o != nil {
			since = max(since, o.AddedAt)
		}
		if m, ok := s.member(n.Key()); s.Now >= since+unprovenKeep && !(ok && m.Exists) {
			w.delete(n.Key())
		}
	}
}

// otherPod reports whether a peer that claims a node's name is known to be another
// node's pod.
func (w *work) otherPod(key, peer string) bool { return w.s.Members.OtherPod(key, peer) }

// OtherPod reports whether an address is not that of a node's pod, but of another's.
// One that is nobody's proves nothing: addresses may be translated on the way.
func (m Members) OtherPod(key, peer string) bool {
	if peer == "" {
		return false
	}
	other := false
	for _, e := range m.List {
		if e.Address == peer && e.Exists {
			if e.Key == key {
				return false
			}
			other = true
		}
	}
	return other
}

// stranger reports whether a peer that claims a node's name is somewhere else than
// the node's agent, which is linked and heard.
func (w *work) stranger(key, peer string) bool {
	s := &w.s
	if m, ok := s.member(key); ok && m.Address != "" && m.Address == peer {
		return false
	}
	o := s.seen(key)
	return o != nil && o.Agent && s.Now-o.AgentAt <= agentSilence && peer != "" && o.Report.Peer != "" && o.Report.Peer != peer
}
