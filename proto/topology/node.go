// Package topology holds the one reading of who owns which key that every node, controller and client of a cluster
// must share: nodes with roles and states, the versioned node map, the partitions built from it, the hash and the
// partition table that send a key to its partition, and positions in a partition's history.
//
// Everything here is plain data and pure functions. The numbers and orders are fixed by the wire protocol that C++
// flare nodes speak; changing one moves keys.
package topology

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Role is what a node is for. The numbers are the codes of NODE lines.
type Role uint8

const (
	Master Role = iota // owns a partition
	Slave              // holds a copy of a partition
	Proxy              // holds no data, forwards requests
)

var roleWords = []string{Master: "master", Slave: "slave", Proxy: "proxy"}

// String returns the word used in commands and statistics, or "role(n)" for a code the protocol does not define.
func (r Role) String() string { return word(roleWords, uint8(r), "role") }

// ParseRole reads a role word.
func ParseRole(s string) (Role, error) {
	n, err := parseWord(roleWords, s, "role")
	return Role(n), err
}

// MarshalText returns the role's word.
func (r Role) MarshalText() ([]byte, error) { return marshalWord(roleWords, uint8(r), "role") }

// UnmarshalText reads the role's word.
func (r *Role) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRole(string(b))
	return err
}

// State is how far a node can be used in its role. The numbers are the codes of NODE lines.
type State uint8

const (
	Active  State = iota // usable
	Prepare              // being filled with data: never read, never promoted
	Down                 // dead
	Ready                // filled, waiting to be made active
)

var stateWords = []string{Active: "active", Prepare: "prepare", Down: "down", Ready: "ready"}

// String returns the word used in commands and statistics, or "state(n)" for a code the protocol does not define.
func (s State) String() string { return word(stateWords, uint8(s), "state") }

// ParseState reads a state word.
func ParseState(s string) (State, error) {
	n, err := parseWord(stateWords, s, "state")
	return State(n), err
}

// MarshalText returns the state's word.
func (s State) MarshalText() ([]byte, error) { return marshalWord(stateWords, uint8(s), "state") }

// UnmarshalText reads the state's word.
func (s *State) UnmarshalText(b []byte) (err error) {
	*s, err = ParseState(string(b))
	return err
}

func word(words []string, code uint8, kind string) string {
	if int(code) < len(words) {
		return words[code]
	}
	return fmt.Sprintf("%s(%d)", kind, code)
}

func parseWord(words []string, s, kind string) (uint8, error) {
	if i := slices.Index(words, s); i >= 0 {
		return uint8(i), nil
	}
	return 0, fmt.Errorf("%s %q: want one of %s", kind, s, strings.Join(words, ", "))
}

func marshalWord(words []string, code uint8, kind string) ([]byte, error) {
	if int(code) < len(words) {
		return []byte(words[code]), nil
	}
	return nil, fmt.Errorf("%s code %d: want one of %s", kind, code, strings.Join(words, ", "))
}

// NoPartition is the partition number of a node that belongs to none.
const NoPartition = -1

// FirstThreadType is the lowest thread type an index hands out. C++ nodes key their connection pools by it, so it
// is unique per node and never reused.
const FirstThreadType = 16

// Node is one row of the node map.
type Node struct {
	Name       string `json:"name"`
	Port       int    `json:"port"`
	Role       Role   `json:"role"`
	State      State  `json:"state"`
	Partition  int    `json:"partition"`  // NoPartition for none
	Balance    int    `json:"balance"`    // weight for reads
	ThreadType int    `json:"threadType"` // unique number given by the index
	// Epoch is that of the node's partition, 0 for none. C++ programs do not know it: a map read from or written
	// for them has 0 here.
	Epoch uint64 `json:"epoch,omitempty"`
}

// Key returns the node key "name:port", a node's identity everywhere in the protocol.
func (n Node) Key() string { return n.Name + ":" + strconv.Itoa(n.Port) }

// SplitKey takes a node key apart at its last colon.
func SplitKey(key string) (name string, port int, err error) {
	i := strings.LastIndexByte(key, ':')
	if i <= 0 {
		return "", 0, fmt.Errorf("node key %q: want name:port", key)
	}
	port, err = strconv.Atoi(key[i+1:])
	if err != nil {
		return "", 0, fmt.Errorf("node key %q: port %q is not a number", key, key[i+1:])
	}
	return key[:i], port, nil
}

// Map is the node table at one version.
type Map struct {
	Version uint64 `json:"version"`
	Nodes   []Node `json:"nodes"` // sorted by Key as bytes
}

// NewMap returns a map of a sorted copy of nodes.
func NewMap(version uint64, nodes []Node) Map {
	m := Map{Version: version, Nodes: slices.Clone(nodes)}
	SortNodes(m.Nodes)
	return m
}

// SortNodes sorts nodes by Key as bytes, the order of every list on the wire. It is the key as a whole that
// counts: "a:10" comes before "a:9".
func SortNodes(nodes []Node) {
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(a.Key(), b.Key()) })
}

// Clone returns a copy that shares nothing with m.
func (m Map) Clone() Map { return Map{Version: m.Version, Nodes: slices.Clone(m.Nodes)} }

// Find returns the node with the given key.
func (m Map) Find(key string) (Node, bool) {
	for _, n := range m.Nodes {
		// A key begins with the name, which rules out most nodes without building their keys.
		if strings.HasPrefix(key, n.Name) && n.Key() == key {
			return n, true
		}
	}
	return Node{}, false
}

// Equal reports whether both maps have the same version and the same nodes in the same order.
func (m Map) Equal(o Map) bool { return m.Version == o.Version && slices.Equal(m.Nodes, o.Nodes) }
