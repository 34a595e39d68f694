package text

import (
	"errors"
	"fmt"
	"math"

	"github.com/flarekv/flare/proto/topology"
)

// AppendNode appends a NODE line. An extended one has the epoch of the node's partition behind it, which C++
// programs skip as they skip all further words.
func AppendNode(dst []byte, n topology.Node, extended bool) []byte {
	dst = append(dst, "NODE "...)
	dst = append(dst, n.Name...)
	dst = appendInt(dst, int64(n.Port))
	dst = appendUint(dst, uint64(n.Role))
	dst = appendUint(dst, uint64(n.State))
	dst = appendInt(dst, int64(n.Partition))
	dst = appendInt(dst, int64(n.Balance))
	dst = appendInt(dst, int64(n.ThreadType))
	if extended {
		dst = appendUint(dst, n.Epoch)
	}
	return append(dst, crlf...)
}

// AppendNodes appends NODE lines and END, the answer to node add. The nodes must be sorted.
func AppendNodes(dst []byte, nodes []topology.Node, extended bool) []byte {
	for _, n := range nodes {
		dst = AppendNode(dst, n, extended)
	}
	return append(dst, ReplyEnd...)
}

// AppendNodeSync appends the node sync command that pushes m to a node.
func AppendNodeSync(dst []byte, m topology.Map, extended bool) []byte {
	dst = append(dst, "node sync"...)
	dst = appendUint(dst, m.Version)
	dst = append(dst, crlf...)
	return AppendNodes(dst, m.Nodes, extended)
}

// parseNode reads a NODE line. Codes the protocol does not define are accepted as C++ does: the layout built from
// the list decides what to make of them.
func parseNode(line []byte) (topology.Node, error) {
	t := tokens{line: line}
	var n topology.Node
	if string(t.word()) != "NODE" {
		return n, errors.New("want a line NODE name port role state partition balance thread_type")
	}
	name := t.word()
	if len(name) == 0 || len(name) > MaxWordLength {
		return n, fmt.Errorf("NODE line: name has %d bytes, want 1 to %d", len(name), MaxWordLength)
	}
	n.Name = string(name)
	var role, state int
	for _, f := range [...]struct {
		name     string
		to       *int
		min, max int64
	}{
		{"port", &n.Port, math.MinInt32, math.MaxInt32},
		{"role", &role, 0, math.MaxUint8},
		{"state", &state, 0, math.MaxUint8},
		{"partition", &n.Partition, math.MinInt32, math.MaxInt32},
		{"balance", &n.Balance, math.MinInt32, math.MaxInt32},
		{"thread_type", &n.ThreadType, math.MinInt32, math.MaxInt32},
	} {
		v, ok := parseInt(t.number())
		if !ok || v < f.min || v > f.max {
			return topology.Node{}, fmt.Errorf("NODE line of %s: %s: want a number from %d to %d", n.Name, f.name, f.min, f.max)
		}
		*f.to = int(v)
	}
	n.Role, n.State = topology.Role(role), topology.State(state)
	if epoch, ok := parseUint(t.word()); ok {
		n.Epoch = epoch
	}
	return n, nil
}

// AppendMeta appends the reply of meta.
func AppendMeta(dst []byte, m topology.Meta) []byte {
	dst = appendMetaLine(dst, "partition-size")
	dst = appendInt(dst, int64(m.PartitionSize))
	dst = appendMetaLine(append(dst, crlf...), "key-hash-algorithm")
	dst = appendWord(dst, m.Hash.String())
	dst = appendMetaLine(append(dst, crlf...), "partition-type")
	dst = appendWord(dst, "modular")
	dst = appendMetaLine(append(dst, crlf...), "partition-modular-hint")
	dst = appendInt(dst, int64(m.Hint))
	dst = appendMetaLine(append(dst, crlf...), "partition-modular-virtual")
	dst = appendInt(dst, int64(m.Virtual))
	return append(dst, crlf+ReplyEnd...)
}

func appendMetaLine(dst []byte, key string) []byte {
	return append(append(dst, "META "...), key...)
}

// metaParser collects META lines.
type metaParser struct {
	meta  topology.Meta
	typed bool // partition-type was seen
}

// add reads one META line; keys it does not know are skipped.
func (p *metaParser) add(key, value string) error {
	number := func(to *int) error {
		v, ok := parseInt([]byte(value))
		if !ok || v < 0 || v > math.MaxInt32 {
			return fmt.Errorf("META %s %q: want a number", key, value)
		}
		*to = int(v)
		return nil
	}
	switch key {
	case "partition-size":
		return number(&p.meta.PartitionSize)
	case "partition-modular-hint":
		return number(&p.meta.Hint)
	case "partition-modular-virtual":
		return number(&p.meta.Virtual)
	case "key-hash-algorithm":
		h, err := topology.ParseHash(value)
		if err != nil {
			return fmt.Errorf("META %s: %w", key, err)
		}
		p.meta.Hash = h
	case "partition-type":
		if value != "modular" {
			return fmt.Errorf("META %s %q: want modular", key, value)
		}
		p.typed = true
	}
	return nil
}

// done returns the complete set.
func (p *metaParser) done() (topology.Meta, error) {
	if !p.typed {
		return topology.Meta{}, errors.New("META lines without partition-type")
	}
	if err := p.meta.Validate(); err != nil {
		return topology.Meta{}, fmt.Errorf("META lines: %w", err)
	}
	return p.meta, nil
}
