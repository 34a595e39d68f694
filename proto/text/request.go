// Package text speaks the line protocol of flare: memcached's text commands with flare's additions, the node and
// index commands, and the replies to all of them, in both directions.
//
// It does no IO of its own beyond reading from an io.Reader: replies and requests are appended to byte slices, and
// nothing here knows a clock, a socket or the meaning of a command.
//
// The protocol is line based, with data blocks of announced length behind storage commands and VALUE lines. Only
// the space separates words, so that any other byte but LF and NUL can be part of a key.
package text

import (
	"slices"

	"github.com/flarekv/flare/proto/topology"
)

// Limits of the protocol.
const (
	MaxKeyLength  = 8191      // bytes; C++ nodes cut longer words in two
	MaxWordLength = 1023      // bytes in any other word
	MaxLength     = 1<<31 - 1 // the largest length a data block may announce
)

// Request is one parsed command. Only the fields its command uses are set, all others are zero.
//
// Byte slices belong to the Reader that filled them and are valid until its next ReadRequest; strings and Nodes may
// be kept.
type Request struct {
	Command Command

	// Proxied is set if the command was prefixed with <list>, and Via is that list: the keys of the nodes the request
	// went through, the one a client talked to first, the direct sender last. Via may be empty.
	Proxied bool
	Via     []string

	Keys    [][]byte // one key, or for get, gets and keys (its prefixes) one or more
	Flags   uint32
	Exptime int64 // as sent: 0 never, small numbers relative, see Expiry
	// Version is the record version of a write or the map version of node sync. For touch and gat it has no meaning.
	Version    uint64
	HasVersion bool
	Delta      uint64 // incr, decr
	Limit      int    // keys

	NoReply, Sync, Async bool

	Data []byte // the data block

	// Args holds the words behind stats, show, kill and the node commands (behind add, role ...; without those C++
	// ignores), as sent. What has a typed field below is validated and need not be parsed again.
	Args [][]byte

	ThreadID  int64           // kill
	Rate      int32           // orphan_purge: keys a second, 0 if absent
	Dump      Dump            // dump, dump_key
	Digest    Digest          // digest
	Node      NodeArgs        // node add, role, state, remove, hello, behind, handover, shutdown
	Nodes     []topology.Node // node sync
	Replicate Replicate
}

// Key returns the request's only or first key.
func (r *Request) Key() []byte {
	if len(r.Keys) == 0 {
		return nil
	}
	return r.Keys[0]
}

// Dump is what a dump is asked to send.
type Dump struct {
	Wait       int64 // pause after each record, in microseconds
	Partition  int   // with Partitions > 0: only keys of this partition
	Partitions int   // 0: all keys
	Bandwidth  int64 // KiB/s, 0 unlimited
}

// Digest is how a digest shall be split up: by the mapping of keys to partitions of
// whichever cluster, and each partition into buckets.
type Digest struct {
	Meta       topology.Meta
	Partitions int
	Buckets    int // a partition
}

// maxDigest bounds the parts of a digest.
const maxDigest = 1 << 20

// NodeArgs are the arguments of the commands about one node.
type NodeArgs struct {
	Name    string
	Port    int
	Role    topology.Role  // node role
	State   topology.State // node state
	Balance int            // node role, -1 if absent
	// Partition: node role, -1 if absent; node hello: whose data it holds, -1 none; with an in-sync grant: that
	// of its master, -1 if absent, as from one that does not tell.
	Partition int

	// Target and TargetPort name the replica that a master hands its role to (node handover).
	Target     string
	TargetPort int
	// Paused is a time of the master's own clock, that of its lease tokens, in
	// nanoseconds: it has written nothing since (node handover).
	Paused uint64

	// Epoch and Session name the in-sync grant a replica reports (node state active, if HasSession), a master
	// withdraws (node behind), or by which the target of node handover is in sync.
	Epoch      uint64
	Session    uint64
	HasSession bool

	// AllowDataLoss: an operator accepts that what was acknowledged may be lost (node role, node state active).
	AllowDataLoss bool

	// What a node says about itself with node hello.
	Instance string       // hexadecimal number of this process, chosen by it
	History  string       // id of its data's history, "" for none
	Position topology.LSN // of its data
}

// Key returns the node key.
func (n NodeArgs) Key() string { return topology.Node{Name: n.Name, Port: n.Port}.Key() }

// Replicate is what a follower says when it asks to be streamed to.
type Replicate struct {
	Self      string // the follower's node key
	Partition int
	History   string // id of its data's history, "" for none
	Position  topology.LSN
	Proto     int // version of the stream protocol
}

// Reset empties the request but keeps its slices' memory, unless that grew out of proportion.
func (r *Request) Reset() {
	const keep = 1024
	// What they point to is the reader's, which may want to give it back.
	clear(r.Keys)
	clear(r.Args)
	keys, args := r.Keys[:0], r.Args[:0]
	if cap(keys) > keep {
		keys = nil
	}
	if cap(args) > keep {
		args = nil
	}
	*r = Request{Keys: keys, Args: args}
}

// Clone returns a copy that shares no memory with the reader the request came from.
func (r *Request) Clone() *Request {
	c := *r
	c.Keys = cloneWords(r.Keys)
	c.Args = cloneWords(r.Args)
	c.Data = slices.Clone(r.Data)
	return &c
}

func cloneWords(words [][]byte) [][]byte {
	if len(words) == 0 {
		return nil
	}
	c := make([][]byte, len(words))
	for i, w := range words {
		c[i] = slices.Clone(w)
	}
	return c
}

// maxRelative is the largest exptime that counts from now: 30 days.
const maxRelative = 60 * 60 * 24 * 30

// Expiry turns an exptime as sent into the absolute unix time in seconds at which the record expires, 0 for never.
// The same rule holds everywhere an exptime is parsed, so nodes send each other absolute times only.
func Expiry(exptime, now int64) int64 {
	if exptime > 0 && exptime <= maxRelative {
		return now + exptime
	}
	return exptime
}
