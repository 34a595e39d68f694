package core

import (
	"errors"
	"fmt"

	"github.com/flarekv/flare/proto/topology"
)

// Import makes the durable state of a cluster out of the node map of another
// index server, which knows no epochs: every partition begins with the first. Its
// version and thread types go on where they were, because the nodes know them.
//
// An error says why the map does not describe a whole cluster.
func Import(m topology.Map, nextThread int, meta topology.Meta) (Durable, error) {
	view, err := topology.BuildView(m.Nodes)
	if err != nil {
		return Durable{}, err
	}
	if view.Preparing != nil {
		return Durable{}, fmt.Errorf("partition %d is being prepared: finish adding it (node state ... active), or take its nodes back to proxies, before the index server changes", view.Preparing.Number)
	}
	d := Durable{Format: FormatVersion, Seq: 1, Version: m.Version, Meta: meta, NextThread: max(nextThread, topology.FirstThreadType)}
	for range view.Partitions {
		d.Partitions = append(d.Partitions, Partition{Epoch: 1})
	}
	owner := map[int]string{}
	for _, n := range topology.NewMap(m.Version, m.Nodes).Nodes {
		e := Node{Name: n.Name, Port: n.Port, Role: n.Role, State: n.State, Partition: n.Partition, Balance: n.Balance,
			ThreadType: n.ThreadType, Held: n.Partition, Home: n.Partition}
		switch {
		case n.Role == topology.Proxy:
			// What a dead node had as balance is of no use to anybody.
			e.Partition, e.Held, e.Home, e.Balance = topology.NoPartition, topology.NoPartition, topology.NoPartition, 0
		case n.Partition < 0 || n.Partition >= len(d.Partitions):
			return Durable{}, fmt.Errorf("%s is %v of partition %d, which does not exist: want 0 to %d", n.Key(), n.Role, n.Partition, len(d.Partitions)-1)
		case n.Role == topology.Slave && n.State == topology.Down:
			clearDuty(&e)
		case n.Role == topology.Master && n.State == topology.Active:
			if other := owner[n.Partition]; other != "" {
				return Durable{}, fmt.Errorf("partition %d has two masters, %s and %s", n.Partition, other, n.Key())
			}
			owner[n.Partition] = n.Key()
		}
		d.Nodes = append(d.Nodes, e)
	}
	for i := range d.Nodes {
		// The original leaves a dead master that was replaced in its place.
		if n := &d.Nodes[i]; n.Role == topology.Master && n.State == topology.Down && owner[n.Partition] != "" {
			clearDuty(n)
		}
	}
	if err := meta.Validate(); err != nil {
		return Durable{}, err
	}
	if err := d.Validate(); err != nil {
		return Durable{}, errors.Join(errors.New("the map contradicts itself"), err)
	}
	return d, nil
}
