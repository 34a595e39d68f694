package model

import (
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound an exploration.
type Limits struct {
	States  uint64        // 0 for no limit
	Depth   int           // 0 for no limit
	Time    time.Duration // 0 for no limit
	Workers int           // 0 for GOMAXPROCS
	// Report is told how far it is, from time to time; nil for nobody.
	Report io.Writer
	Every  time.Duration // 0 for ten seconds
}

// Result is what an exploration found.
type Result struct {
	World       string
	States      uint64 // distinct ones
	Transitions uint64
	Depth       int  // of the last level that was reached
	Complete    bool // every reachable state was seen
	Took        time.Duration
	Memory      uint64 // bytes obtained from the system, at most
	Violation   *Violation
}

// Violation is an invariant that does not hold, and the shortest way there.
type Violation struct {
	Err   error
	Trace []Action // the last one breaks it
}

// fingerprint identifies a packed state.
type fingerprint [2]uint64

// seeds of the two halves of a fingerprint.
var seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

func fingerprintOf(b []byte) fingerprint {
	return fingerprint{maphash.Bytes(seeds[0], b), maphash.Bytes(seeds[1], b)}
}

const shardBits = 8

// visited is a set of fingerprints that numbers its members.
type visited struct {
	shards [1 << shardBits]shard
	next   atomic.Uint64
}

type shard struct {
	mu    sync.Mutex
	slots []slot
	used  int
}

type slot struct {
	fp fingerprint
	id uint32 // 0 for an empty one
}

func newVisited() *visited {
	v := &visited{}
	for i := range v.shards {
		v.shards[i].slots = make([]slot, 64)
	}
	return v
}

// add returns the number of a state, and whether it is a new one. Numbers begin with 1.
func (v *visited) add(fp fingerprint) (id uint32, fresh bool) {
	s := &v.shards[fp[1]>>(64-shardBits)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used*4 >= len(s.slots)*3 {
		old := s.slots
		s.slots = make([]slot, 2*len(old))
		for _, e := range old {
			if e.id != 0 {
				*s.find(e.fp) = e
			}
		}
	}
	e := s.find(fp)
	if e.id != 0 {
		return e.id, false
	}
	*e = slot{fp, uint32(v.next.Add(1))}
	s.used++
	return e.id, true
}

func (s *shard) find(fp fingerprint) *slot {
	mask := uint64(len(s.slots) - 1)
	for i := fp[0] & mask; ; i = (i + 1) & mask {
		if e := &s.slots[i]; e.id == 0 || e.fp == fp {
			return e
		}
	}
}

// origin is how a state was reached first.
type origin struct {
	from   uint32 // 0 for an initial state
	action Action
}

// origins are kept in blocks, so that they can grow while others write.
type origins struct {
	mu     sync.Mutex
	blocks atomic.Pointer[[]*[1 << 16]origin]
}

func (o *origins) set(id uint32, v origin) {
	for {
		blocks := o.blocks.Load()
		if blocks != nil && int(id>>16) < len(*blocks) {
			(*blocks)[id>>16][id&0xffff] = v
			return
		}
		o.mu.Lock()
		var grown []*[1 << 16]origin
		if p := o.blocks.Load(); p != nil {
			grown = slices.Clone(*p)
		}
		for int(id>>16) >= len(grown) {
			grown = append(grown, new([1 << 16]origin))
		}
		o.blocks.Store(&grown)
		o.mu.Unlock()
	}
}

func (o *origins) get(id uint32) origin { return (*o.blocks.Load())[id>>16][id&0xffff] }

func (o *origins) trace(id uint32) []Action {
	var list []Action
	for {
		v := o.get(id)
		if v.from == 0 {
			break
		}
		list = append(list, v.action)
		id = v.from
	}
	slices.Reverse(list)
	return list
}

// entry is a state whose successors are to be found.
type entry struct {
	id uint32
	b  []byte
}

// An Explorer visits every state that a world can get into, nearest first.
type Explorer struct {
	m       *Model
	limits  Limits
	seen    *visited
	origins origins
	// edges, when not nil, is told of every transition.
	edges func(worker int, from, to uint32, a Action)
	// visit, when not nil, is shown every state before its successors are found.
	visit func(worker int, id uint32, w *World)

	transitions atomic.Uint64
	stop        atomic.Bool

	mu        sync.Mutex
	found     *Violation
	foundFrom uint32
}

// NewExplorer returns an explorer of a model's world.
func NewExplorer(m *Model, limits Limits) *Explorer {
	if limits.Workers == 0 {
		limits.Workers = runtime.GOMAXPROCS(0)
	}
	if limits.Every == 0 {
		limits.Every = 10 * time.Second
	}
	return &Explorer{m: m, limits: limits, seen: newVisited()}
}

// Run explores until everything was seen, a limit is reached, an invariant is broken
// or ctx ends.
func (x *Explorer) Run(ctx context.Context) (Result, error) {
	begun := time.Now()
	r := Result{World: x.m.Name}
	var level []entry
	w := x.m.newWorker()
	for _, world := range x.m.Initial() {
		b := w.pack(world)
		id, fresh := x.seen.add(fingerprintOf(b))
		if !fresh {
			continue
		}
		x.origins.set(id, origin{})
		if err := x.m.Check(world); err != nil {
			r.Violation = &Violation{Err: err}
			return r, nil
		}
		level = append(level, entry{id, slices.Clone(b)})
	}
	var memory uint64
	measure := func() {
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		memory = max(memory, s.Sys-s.HeapReleased)
	}
	told := begun
	for depth := 0; len(level) > 0; depth++ {
		r.Depth = depth
		next := x.level(ctx, level, func(done int) {
			if time.Since(told) < x.limits.Every {
				return
			}
			told = time.Now()
			measure()
			if x.limits.Report != nil {
				fmt.Fprintf(x.limits.Report, "%s: depth %d, %d of %d states of it expanded, %d states, %d transitions, %.0f s, %d MiB\n",
					x.m.Name, depth, done, len(level), x.seen.next.Load(), x.transitions.Load(), time.Since(begun).Seconds(), memory>>20)
			}
			if x.limits.Time > 0 && time.Since(begun) > x.limits.Time || x.limits.States > 0 && x.seen.next.Load() >= x.limits.States {
				x.stop.Store(true)
			}
		})
		measure()
		if x.found != nil {
			r.Violation = x.found
			break
		}
		if x.stop.Load() || ctx.Err() != nil || x.limits.Depth > 0 && depth >= x.limits.Depth {
			break
		}
		if len(next) == 0 {
			r.Complete = true
		}
		level = next
	}
	r.States, r.Transitions, r.Took, r.Memory = x.seen.next.Load(), x.transitions.Load(), time.Since(begun), memory
	return r, ctx.Err()
}

// level finds the successors of a level.
func (x *Explorer) level(ctx context.Context, level []entry, progress func(done int)) []entry {
	const batch = 64
	var at atomic.Int64
	nexts := make([][]entry, x.limits.Workers)
	var wg sync.WaitGroup
	var pmu sync.Mutex
	for i := range x.limits.Workers {
		wg.Go(func() {
			w := x.m.newWorker()
			var arena []byte
			for !x.stop.Load() && ctx.Err() == nil {
				from := int(at.Add(batch)) - batch
				if from >= len(level) {
					return
				}
				for j := from; j < min(from+batch, len(level)); j++ {
					x.expand(w, i, level[j], func(id uint32, b []byte) {
						if len(arena)+len(b) > cap(arena) {
							arena = make([]byte, 0, 1<<20)
						}
						at := len(arena)
						arena = append(arena, b...)
						nexts[i] = append(nexts[i], entry{id, arena[at:len(arena):len(arena)]})
					})
					level[j].b = nil
				}
				if pmu.TryLock() {
					progress(min(from+batch, len(level)))
					pmu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return slices.Concat(nexts...)
}

// expand finds the successors of one state.
func (x *Explorer) expand(w *worker, index int, e entry, fresh func(id uint32, b []byte)) {
	world := w.unpack(e.b)
	if x.visit != nil {
		x.visit(index, e.id, world)
	}
	w.actions = x.m.Actions(world, w.actions[:0])
	for i, a := range w.actions {
		if i > 0 {
			world = w.unpack(e.b)
		}
		x.transitions.Add(1)
		err := x.m.Apply(world, a)
		if err == nil {
			err = x.m.Check(world)
		}
		if err != nil {
			x.violated(e.id, a, err)
			return
		}
		b := w.pack(world)
		id, isNew := x.seen.add(fingerprintOf(b))
		if isNew {
			x.origins.set(id, origin{e.id, a})
			fresh(id, b)
		}
		if x.edges != nil {
			x.edges(index, e.id, id, a)
		}
	}
}

// violated notes a violation, of several in one level the one found in the state that
// was reached first.
func (x *Explorer) violated(from uint32, a Action, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.found == nil || from < x.foundFrom {
		x.found = &Violation{Err: err, Trace: append(x.origins.trace(from), a)}
		x.foundFrom = from
	}
	x.stop.Store(true)
}

// worker has what one goroutine needs to pack and unpack worlds.
type worker struct {
	m       *Model
	p       packing
	actions []Action
}
