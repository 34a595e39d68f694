package relay

import (
	"bytes"
	"hash/maphash"

	"github.com/flarekv/flare/agent/storage"
)

const (
	// maxWindowItems and maxWindowBytes bound what is under way to a peer, and so
	// what is sent again when a connection is lost.
	maxWindowItems = 1024
	maxWindowBytes = 1 << 20
	// itemOverhead is about what an operation takes beside key and value.
	itemOverhead = 64
)

// An item is an operation of a window.
type item struct {
	op     storage.Operation
	before int // the item of the same key before it, -1 for none
	hash   uint64
	form   form
	done   bool
}

// A window holds operations that are sent at once, without waiting for one
// answer after the other. The peer executes them in any order, except those of
// one key, which keep theirs.
//
// Of several writes of a key only the last one is sent: it carries the whole
// record. Counters and other hot keys therefore cost a peer far away no more
// than others.
type window struct {
	seed  maphash.Seed
	items []item
	last  map[uint64]int // by hash of the key: its last item
	bytes int
	alone bool // holds a flush, which nothing may be sent together with
}

func newWindow() *window { return &window{seed: maphash.MakeSeed(), last: map[uint64]int{}} }

// reset empties the window.
func (w *window) reset() {
	clear(w.items)
	w.items, w.bytes, w.alone = w.items[:0], 0, false
	clear(w.last)
}

func (w *window) empty() bool { return len(w.items) == 0 }

// full tells whether the window should be sent before more is added.
func (w *window) full() bool {
	return w.alone || len(w.items) >= maxWindowItems || w.bytes >= maxWindowBytes
}

// add takes an operation into the window; false if the window has to be sent
// first. What it points to must stay as it is until the window is reset.
func (w *window) add(op *storage.Operation) bool {
	if w.full() {
		return false
	}
	if op.Kind == storage.OpFlush {
		if !w.empty() {
			return false
		}
		w.alone = true
		w.items = append(w.items, item{op: *op, before: -1, form: formOf(op.Kind)})
		return true
	}
	hash := maphash.Bytes(w.seed, op.Key)
	before := -1
	if i, found := w.last[hash]; found {
		prev := &w.items[i].op
		switch {
		case !bytes.Equal(prev.Key, op.Key):
			return false // another key with the same hash
		case op.Kind == storage.OpTouch && prev.Kind == storage.OpTouch:
			w.bytes += size(op) - size(prev)
			*prev = *op
			return true
		case supersedes(op, prev):
			w.drop(i)
		case op.Kind == storage.OpTouch && prev.Kind == storage.OpPut:
			// A peer that has the record already takes the new time from the touch only.
			before = i
		default:
			return false
		}
	}
	w.last[hash] = len(w.items)
	w.items = append(w.items, item{op: *op, before: before, hash: hash, form: formOf(op.Kind)})
	w.bytes += size(op)
	return true
}

// drop makes an item and those before it of the same key done.
func (w *window) drop(i int) {
	for ; i >= 0; i = w.items[i].before {
		w.items[i].done = true
		w.bytes -= size(&w.items[i].op)
	}
}

func size(op *storage.Operation) int { return len(op.Key) + len(op.Record.Value) + itemOverhead }

// supersedes tells whether a peer that executes only op ends like one that
// executes prev, an operation of the same key, and then op.
func supersedes(op, prev *storage.Operation) bool {
	switch op.Kind {
	case storage.OpPut:
		// With a version that is not newer a peer would ignore op, which the log
		// has because the delete made room for it.
		return op.Version() > prev.Version()
	case storage.OpDelete:
		return op.Version() >= prev.Version()
	}
	return false
}

// pending returns how many items are not done. An item is sent again if one
// before it of the same key is.
func (w *window) pending() int {
	n := 0
	for i := range w.items {
		it := &w.items[i]
		if it.done && it.before >= 0 && !w.items[it.before].done {
			it.done = false
			it.form = formOf(it.op.Kind)
		}
		if !it.done {
			n++
		}
	}
	return n
}
