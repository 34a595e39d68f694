package node

import (
	"net/netip"
	"slices"

	"github.com/flarekv/flare/proto/topology"
)

// preferNear makes reads go first to the nodes whose name is an IPv4 address that
// shares its first bits with the name of this node, where there are any.
func (t *table) preferNear(bits int) {
	if bits == 0 {
		return
	}
	own, ok := network(t.self, bits)
	if !ok {
		return
	}
	for i := range t.parts {
		p := &t.parts[i]
		p.near = slices.DeleteFunc(slices.Clone(p.readers), func(r reader) bool {
			n, ok := network(r.node, bits)
			return !ok || n != own
		})
	}
}

// network returns the network of a node key if its name is an IPv4 address.
func network(key string, bits int) (netip.Prefix, bool) {
	name, _, err := topology.SplitKey(key)
	if err != nil {
		return netip.Prefix{}, false
	}
	addr, err := netip.ParseAddr(name)
	if err != nil || !addr.Is4() {
		return netip.Prefix{}, false
	}
	n, err := addr.Prefix(bits)
	return n, err == nil
}
