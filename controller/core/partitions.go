package core

// partitionIndex finds the nodes of a partition without a walk over all nodes. It
// holds until a node comes, goes, or changes its partition.
type partitionIndex struct {
	start []int // of each partition's part of list, and its end
	list  []int // indexes of nodes that have a partition, by partition and key
}

// byPartition indexes the nodes of a durable state.
func (d *Durable) byPartition() partitionIndex {
	parts := len(d.Partitions)
	for i := range d.Nodes {
		parts = max(parts, d.Nodes[i].Partition+1)
	}
	x := partitionIndex{start: make([]int, parts+1)}
	for i := range d.Nodes {
		if p := d.Nodes[i].Partition; p >= 0 {
			x.start[p+1]++
		}
	}
	for p := range parts {
		x.start[p+1] += x.start[p]
	}
	x.list = make([]int, x.start[parts])
	next := append([]int(nil), x.start...)
	for i := range d.Nodes {
		if p := d.Nodes[i].Partition; p >= 0 {
			x.list[next[p]] = i
			next[p]++
		}
	}
	return x
}

// of returns the indexes of a partition's nodes, in key order.
func (x partitionIndex) of(partition int) []int {
	if partition < 0 || partition+1 >= len(x.start) {
		return nil
	}
	return x.list[x.start[partition]:x.start[partition+1]]
}

// of returns the indexes of a partition's nodes in Durable.Nodes, in key order. They
// are what they were when it was called, whatever is changed meanwhile; a node that
// is inserted or deleted moves others.
func (w *work) of(partition int) []int {
	if !w.indexed {
		w.parts, w.indexed = w.s.Durable.byPartition(), true
	}
	return w.parts.of(partition)
}
