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
	size := stateSize
	for i := range d.Nodes {
		size += d.Nodes[i].size()
	}
	if size > maxStateBytes {
		return Durable{}, fmt.Errorf("%d nodes are too many: their map could take %d bytes where %d are allowed", len(d.Nodes), size, maxStateBytes)
	}
	if err := meta.Validate(); err != nil {
		return Durable{}, err
	}
	if err := d.Validate(); err != nil {
		return Durable{}, errors.Join(errors.New("the map contradicts itself"), err)
	}
	return d, nil
}

// Imported is the map of another index server, to be taken over.
type Imported struct {
	Map        topology.Map
	NextThread int // thread type that it would give to the next node
}

// takeOver makes the map of another index server the beginning of a cluster that has
// none. It returns why it does not. Who of the nodes is alive shows with the next
// pings, as after any change of the controller.
func (w *work) takeOver(in *Imported) string {
	s := &w.s
	d := &s.Durable
	switch {
	case !s.Spec.Known || s.Refusal.Reason == ReasonSpecInvalid:
		return RefuseNotNow
	case len(d.Nodes) > 0 || len(d.Partitions) > 0:
		return RefuseStateExists
	case in == nil:
		return RefuseMapIncomplete
	}
	next, err := Import(in.Map, in.NextThread, s.Spec.Meta)
	switch {
	case err != nil:
		return RefuseMapIncomplete
	case len(next.Partitions) != s.Spec.Partitions:
		return RefusePartitionsOther
	}
	d.Meta, d.NextThread, d.Partitions, d.Nodes = next.Meta, next.NextThread, next.Partitions, next.Nodes
	d.Version = max(d.Version, next.Version)
	w.indexed, w.dirty, w.visible = false, true, true
	for i := range d.Nodes {
		n := &d.Nodes[i]
		o := s.see(n.Key())
		o.registered(s.Now)
		w.emit(Decision{Reason: ReasonImported, Node: n.Key(), Old: "-", New: n.duty(), Version: d.Version + 1})
	}
	w.event(false, ReasonImported, "%d nodes in %d partitions were taken over from another index server, whose map had version %d",
		len(d.Nodes), len(d.Partitions), in.Map.Version)
	return ""
}
