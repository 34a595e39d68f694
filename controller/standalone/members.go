package standalone

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"sigs.k8s.io/yaml"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// Nodes is the content of the list of nodes: what Kubernetes tells of pods, written
// by hand. Without the file nobody knows which nodes are expected, and it is their
// number that counts.
type Nodes struct {
	// In the order in which they are kept: the last ones go when fewer are wanted.
	Nodes []NodeEntry `json:"nodes"`
}

// NodeEntry is one node of the list.
type NodeEntry struct {
	// host:port under which it registers.
	Node string `json:"node"`
	Zone string `json:"zone,omitempty"`
	// It shall be no master: its machine is about to be taken away.
	Draining bool `json:"draining,omitempty"`
	// It does not run and will not by itself.
	Gone bool `json:"gone,omitempty"`
}

// readMembers reads the list of nodes; no members are known where there is no file.
func readMembers(path string) (core.Members, error) {
	if path == "" {
		return core.Members{}, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return core.Members{}, nil
	}
	if err != nil {
		return core.Members{}, fmt.Errorf("read the list of nodes: %w", err)
	}
	return parseMembers(b)
}

func parseMembers(b []byte) (core.Members, error) {
	var list Nodes
	if err := yaml.UnmarshalStrict(b, &list); err != nil {
		return core.Members{}, fmt.Errorf("list of nodes: %w", err)
	}
	m := core.Members{Known: true, Count: len(list.Nodes)}
	for i, n := range list.Nodes {
		if _, _, err := topology.SplitKey(n.Node); err != nil {
			return core.Members{}, fmt.Errorf("list of nodes, entry %d: want the host:port under which it registers: %w", i, err)
		}
		if slices.ContainsFunc(m.List, func(o core.Member) bool { return o.Key == n.Node }) {
			return core.Members{}, fmt.Errorf("list of nodes: %s is there twice", n.Node)
		}
		m.List = append(m.List, core.Member{Key: n.Node, Ordinal: i, Zone: n.Zone, Exists: !n.Gone, Draining: n.Draining})
	}
	return m, nil
}
