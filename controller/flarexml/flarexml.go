// Package flarexml reads the file in which the C++ index server keeps its node map,
// so that a cluster can change its index server without losing who is who.
package flarexml

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/flarekv/flare/proto/topology"
)

// File is what flare.xml holds.
type File struct {
	Map        topology.Map // of epoch 0: the original knows none
	NextThread int          // thread type the next new node gets
}

// The file is a Boost XML archive. Attributes (class ids, archive version) carry
// nothing that is needed here, and older files have no version element.
type archive struct {
	XMLName    xml.Name `xml:"boost_serialization"`
	Version    *uint64  `xml:"version"`
	NodeMap    *nodeMap `xml:"node_map"`
	ThreadType *int     `xml:"thread_type"`
}

type nodeMap struct {
	Count *int   `xml:"count"`
	Items []item `xml:"item"`
}

type item struct {
	Key  string `xml:"first"`
	Node struct {
		Name       *string `xml:"node_server_name"`
		Port       *int    `xml:"node_server_port"`
		Role       *uint8  `xml:"node_role"`
		State      *uint8  `xml:"node_state"`
		Partition  *int    `xml:"node_partition"`
		Balance    *int    `xml:"node_balance"`
		ThreadType *int    `xml:"node_thread_type"`
	} `xml:"second"`
}

// Parse reads a flare.xml. An empty file is an empty cluster, as it is for the
// original. Errors name the element and what is wrong with it; whether the nodes
// make a whole cluster is not looked at.
func Parse(content []byte) (File, error) {
	if len(bytes.TrimSpace(content)) == 0 {
		return File{NextThread: topology.FirstThreadType}, nil
	}
	var a archive
	d := xml.NewDecoder(bytes.NewReader(content))
	if err := d.Decode(&a); err != nil {
		return File{}, fmt.Errorf("not a flare.xml: %w", err)
	}
	// Decode stops behind the root element: a file that was cut and written over
	// has more.
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return File{}, fmt.Errorf("behind </boost_serialization>: %w", err)
		}
		if text, ok := t.(xml.CharData); !ok || len(bytes.TrimSpace(text)) > 0 {
			return File{}, errors.New("there is more behind </boost_serialization>; want the end of the file")
		}
	}
	switch {
	case a.NodeMap == nil:
		return File{}, errors.New("no <node_map>")
	case a.ThreadType == nil:
		return File{}, errors.New("no <thread_type> (the next free one) behind <node_map>")
	case a.NodeMap.Count != nil && *a.NodeMap.Count != len(a.NodeMap.Items):
		return File{}, fmt.Errorf("<count> is %d, but there are %d nodes: the file is not whole", *a.NodeMap.Count, len(a.NodeMap.Items))
	}
	f := File{NextThread: *a.ThreadType}
	if a.Version != nil {
		f.Map.Version = *a.Version
	}
	for i, it := range a.NodeMap.Items {
		n, err := it.node()
		if err != nil {
			return File{}, fmt.Errorf("node %d (%s): %w", i+1, it.Key, err)
		}
		if n.ThreadType >= f.NextThread {
			return File{}, fmt.Errorf("node %s: <node_thread_type> is %d, want less than <thread_type> %d", n.Key(), n.ThreadType, f.NextThread)
		}
		f.Map.Nodes = append(f.Map.Nodes, n)
	}
	topology.SortNodes(f.Map.Nodes)
	for i, n := range f.Map.Nodes {
		if i > 0 && f.Map.Nodes[i-1].Key() == n.Key() {
			return File{}, fmt.Errorf("node %s is there twice", n.Key())
		}
		if j := slices.IndexFunc(f.Map.Nodes[:i], func(o topology.Node) bool { return o.ThreadType == n.ThreadType }); j >= 0 {
			return File{}, fmt.Errorf("node %s: <node_thread_type> %d is that of %s too", n.Key(), n.ThreadType, f.Map.Nodes[j].Key())
		}
	}
	return f, nil
}

func (it item) node() (topology.Node, error) {
	s := it.Node
	for _, e := range []struct {
		name    string
		missing bool
	}{
		{"node_server_name", s.Name == nil}, {"node_server_port", s.Port == nil}, {"node_role", s.Role == nil},
		{"node_state", s.State == nil}, {"node_partition", s.Partition == nil}, {"node_balance", s.Balance == nil},
		{"node_thread_type", s.ThreadType == nil},
	} {
		if e.missing {
			return topology.Node{}, fmt.Errorf("no <%s>", e.name)
		}
	}
	n := topology.Node{
		Name: *s.Name, Port: *s.Port, Role: topology.Role(*s.Role), State: topology.State(*s.State),
		Partition: *s.Partition, Balance: *s.Balance, ThreadType: *s.ThreadType,
	}
	switch {
	case n.Name == "" || strings.ContainsFunc(n.Name, notInName) || n.Port < 1 || n.Port > 65535:
		return n, fmt.Errorf("address %q port %d, want a name without white space and a port from 1 to 65535", n.Name, n.Port)
	case it.Key != n.Key():
		return n, fmt.Errorf("<first> is %q, but name and port make %q", it.Key, n.Key())
	case n.Role > topology.Proxy:
		return n, fmt.Errorf("<node_role> is %d, want 0 (master), 1 (slave) or 2 (proxy)", n.Role)
	case n.State > topology.Ready:
		return n, fmt.Errorf("<node_state> is %d, want 0 (active), 1 (prepare), 2 (down) or 3 (ready)", n.State)
	case n.Partition < topology.NoPartition:
		return n, fmt.Errorf("<node_partition> is %d, want -1 for none or a number from 0", n.Partition)
	case n.Balance < 0:
		return n, fmt.Errorf("<node_balance> is %d, want a number from 0", n.Balance)
	case n.ThreadType < topology.FirstThreadType:
		return n, fmt.Errorf("<node_thread_type> is %d, want at least %d", n.ThreadType, topology.FirstThreadType)
	}
	return n, nil
}

// notInName tells what cannot stand in a word of the line protocol.
func notInName(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
