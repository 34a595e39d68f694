package topology

import (
	"errors"
	"fmt"
	"slices"
)

// ErrLayout is wrapped by the errors of BuildView.
var ErrLayout = errors.New("invalid partition layout")

// View is the partitions a node map describes.
type View struct {
	Partitions []Partition // the active ones; index = Number
	Preparing  *Partition  // a partition being filled, numbered len(Partitions), or nil
}

// Partition is one partition of a view.
type Partition struct {
	Number int
	Epoch  uint64 // of the node that is, or was last, its master
	Master string // node key, "" if its master is down
	// MasterState is Active for partitions with a master, Down for those without, and Prepare or Ready for the
	// preparing one.
	MasterState State
	Slaves      []Node // the ones that are not down, sorted by key, as in the map
	// ReadList holds the keys of the nodes to read from, each as often as its balance says. Slaves that are not
	// active are not in it.
	ReadList []string
}

// Has reports whether the node with this key is the partition's master or one of its slaves.
func (p *Partition) Has(key string) bool {
	return p.Master != "" && p.Master == key || p.HasSlave(key)
}

// HasSlave reports whether the node with this key is one of the partition's slaves, active or not.
func (p *Partition) HasSlave(key string) bool {
	return slices.ContainsFunc(p.Slaves, func(n Node) bool { return n.Key() == key })
}

// BuildView reads the partitions out of a node list. An error wraps ErrLayout and means that the list does not
// describe partitions 0..n-1 plus at most one preparing partition n; whoever holds a former view then keeps it.
func BuildView(nodes []Node) (View, error) {
	nodes = slices.Clone(nodes)
	SortNodes(nodes)
	active, preparing := map[int]*building{}, map[int]*building{}

	for _, n := range nodes {
		if n.Role != Master {
			continue
		}
		switch n.State {
		case Active:
			at(active, n.Partition).setMaster(n)
		case Down:
			// A dead master keeps its partition in existence; who holds it now, if anybody, has the say.
			p := at(active, n.Partition)
			p.Epoch = max(p.Epoch, n.Epoch)
		case Prepare, Ready:
			at(preparing, n.Partition).setMaster(n)
		}
	}
	for _, n := range nodes {
		if n.Role != Slave || n.State == Down {
			continue
		}
		p := active[n.Partition]
		if p == nil {
			p = preparing[n.Partition]
		}
		if p == nil {
			continue
		}
		p.Slaves = append(p.Slaves, n)
		if n.State == Active {
			p.readers = append(p.readers, n)
		}
	}

	var v View
	for number := range len(active) {
		p := active[number]
		if p == nil {
			return View{}, fmt.Errorf("%w: %d active partitions, but none has number %d", ErrLayout, len(active), number)
		}
		v.Partitions = append(v.Partitions, p.finish())
	}
	if len(preparing) > 1 {
		return View{}, fmt.Errorf("%w: %d preparing partitions, want at most one", ErrLayout, len(preparing))
	}
	for number, p := range preparing {
		if number != len(active) {
			return View{}, fmt.Errorf("%w: preparing partition has number %d, want %d", ErrLayout, number, len(active))
		}
		done := p.finish()
		v.Preparing = &done
	}
	return v, nil
}

// building is a partition together with the nodes its read list will hold.
type building struct {
	Partition
	readers []Node
}

func at(m map[int]*building, number int) *building {
	p := m[number]
	if p == nil {
		p = &building{Partition: Partition{Number: number, MasterState: Down}}
		m[number] = p
	}
	return p
}

// setMaster makes n the master unless the partition has one: of two, the first in key order counts.
func (p *building) setMaster(n Node) {
	if p.Master != "" {
		return
	}
	p.Master, p.MasterState = n.Key(), n.State
	p.Epoch = max(p.Epoch, n.Epoch)
	p.readers = append(p.readers, n)
}

// maxReadList bounds a partition's read list: balances come from the wire.
const maxReadList = 4096

func (p *building) finish() Partition {
	total := 0
	for _, n := range p.readers {
		total += clampBalance(n.Balance)
	}
	for _, n := range p.readers {
		times := clampBalance(n.Balance)
		if total > maxReadList && times > 0 {
			times = max(1, times*maxReadList/total) // keep the proportions
		}
		p.ReadList = slices.Grow(p.ReadList, times)
		for range times {
			p.ReadList = append(p.ReadList, n.Key())
		}
	}
	return p.Partition
}

func clampBalance(b int) int { return min(max(b, 0), 1<<31-1) }
