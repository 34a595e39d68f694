// Package runtime runs the controller's core: one goroutine feeds it inputs, one
// at a time, and carries its effects out through a Backend and a Broadcaster.
//
// It owns the core's state. Everything else holds a *Runtime and either asks
// (Do, Topology, Watch) or tells (Observe).
package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// ErrStopped is returned by Do when the Runtime is not running (any more).
var ErrStopped = errors.New("the controller is not running")

// Config is what a Runtime is made of.
type Config struct {
	Backend     Backend
	Broadcaster Broadcaster
	// Grant hands a lease to the agent of its node, without blocking; nil where there
	// are no agents. A lease that does not arrive is asked for again.
	Grant func(core.GrantLease)
	// Order hands an order to the agent of its node, without blocking; nil where there
	// are no agents. An order that does not arrive is given again.
	Order func(core.OrderNode)
	// Leading tells, by the time and not by what was heard, whether no other
	// controller can lead yet; nil where there is no other. Leases are granted only
	// while it is so: whoever leads next knows for how long one may last.
	Leading func() bool
	Logger  *slog.Logger

	// TickEvery is the distance of the core's ticks; 0 for 200 ms.
	TickEvery time.Duration
	// RequestTimeout is the deadline of one call of the Backend; 0 for 5 s.
	RequestTimeout time.Duration
	// Now is the clock; nil for time.Now.
	Now func() time.Time
	// Trace, when set, is called with every step before its effects are carried
	// out. It must not keep the state, which changes with the next one.
	Trace func(core.State, core.Input, []core.Effect)
	// Recorder, when set, is told all there is to know of every step.
	Recorder Recorder
	// Took, when set, is told how long each step took, and whether it was a quiet one.
	Took func(d time.Duration, quiet bool)
}

// Recorder keeps what is needed to have every step once more. It is called by one
// goroutine, and must not keep what it is given: the state changes with the next step.
type Recorder interface {
	// Begin is told the state before the first step.
	Begin(state core.State)
	// Step is told the arguments of core.Advance, the state after it, and its effects.
	Step(in core.Input, more, owing bool, state core.State, effects []core.Effect)
}

// Runtime is a running core.
type Runtime struct {
	cfg    Config
	log    *slog.Logger
	inputs chan core.Input
	asks   chan chan<- core.State // of Snapshot

	stopped chan struct{} // closed when Run has ended

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]*waiter
	topo    Topology
	changed chan struct{} // closed and replaced when topo changes

	events chan core.Event
	loaded chan struct{} // closed when the durable state has been loaded
}

// waiter is somebody who waits for the reply to a command.
type waiter struct {
	reply   chan core.Reply
	outcome core.Outcome // what the command's step decided; guarded by Runtime.mu
}

// Topology is what the controller knows and may show: the durable map and what
// is observed of each node. It is immutable.
type Topology struct {
	Map        topology.Map
	Meta       topology.Meta
	Spec       core.Spec
	Members    core.Members
	Partitions []core.PartitionStatus
	Growth     core.GrowthStatus // its Node is empty when no partition is being added
	Nodes      []NodeTopology    // one per node of Map, same order
	Status     core.Status       // as last written

	Replication         core.Replication           // to another cluster
	ReplicationProgress []core.ReplicationProgress // one a partition, while there is one
}

// NodeTopology is what is known of one node.
type NodeTopology struct {
	Node           topology.Node
	Zone           string
	LSN            topology.LSN
	AgentConnected bool
	DownReason     string // empty when it is up
}

// New makes a Runtime; Run starts it.
func New(cfg Config) *Runtime {
	if cfg.TickEvery == 0 {
		cfg.TickEvery = 200 * time.Millisecond
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = 5 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Runtime{
		cfg:     cfg,
		log:     cfg.Logger,
		inputs:  make(chan core.Input, 1024),
		asks:    make(chan chan<- core.State),
		stopped: make(chan struct{}),
		waiting: map[uint64]*waiter{},
		changed: make(chan struct{}),
		events:  make(chan core.Event, 256),
		loaded:  make(chan struct{}),
	}
}

// Run loads the durable state and works until ctx ends or the controller may not
// go on; it returns the reason. A Runtime runs once.
func (r *Runtime) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer r.stop()
	defer cancel(nil)

	loadCtx, loadDone := context.WithTimeout(ctx, r.cfg.RequestTimeout)
	durable, found, err := r.cfg.Backend.Load(loadCtx)
	loadDone()
	if err != nil {
		return fmt.Errorf("load the durable state: %w", err)
	}
	if found {
		if err := durable.Validate(); err != nil {
			return fmt.Errorf("the durable state cannot be used: %w", err)
		}
	}
	state := core.New(durable)
	r.log.Info("state loaded", "found", found, "map_version", durable.Version, "nodes", len(durable.Nodes))
	if r.cfg.Recorder != nil {
		r.cfg.Recorder.Begin(state)
	}
	r.publish(state)
	close(r.loaded)

	wg.Go(func() {
		if err := r.cfg.Backend.Watch(ctx, r.Observe); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("watch the cluster: %w", err))
		}
	})
	wg.Go(func() { r.sendEvents(ctx) })

	// The core's time passes evenly, whatever becomes of the clock.
	begun := r.cfg.Now()
	now := func() int64 { return begun.UnixMilli() + r.cfg.Now().Sub(begun).Milliseconds() }
	tick := time.NewTicker(r.cfg.TickEvery)
	defer tick.Stop()
	exec := func(effects []core.Effect) {
		for _, e := range effects {
			r.execute(ctx, cancel, &wg, e)
		}
	}
	var in core.Input = core.Tick{Now: now()}
	owed := false
	for {
		before := state // of which only what is no reference stays as it was
		begin := time.Now()
		more, owing := len(r.inputs) > 0, owed
		effects, judged, owes := core.Advance(&state, in, more, owing)
		owed = owes
		if r.cfg.Took != nil {
			r.cfg.Took(time.Since(begin), !judged)
		}
		if r.cfg.Recorder != nil {
			r.cfg.Recorder.Step(in, more, owing, state, effects)
		}
		if r.cfg.Trace != nil {
			r.cfg.Trace(state, in, effects)
		}
		r.trace(before, in, state, effects)
		// What is seen of nodes is shown with the next tick: in a large cluster something
		// is all the time, and to show it costs more than to note it.
		if state.Saved.Seq != before.Saved.Seq || shownAtOnce(in) {
			r.publish(state)
		}
		if c, ok := in.(core.Command); ok {
			r.note(c.ID, effects)
		}
		exec(effects)

		for in = nil; in == nil; {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case in = <-r.inputs:
			case <-tick.C:
				in = core.Tick{Now: now()}
			case ask := <-r.asks:
				ask <- state.Clone()
			}
		}
		if report, ok := in.(core.AgentReport); ok {
			report.Now = now()
			in = report
		}
	}
}

// shownAtOnce reports whether an input may change what is shown although it changes
// nothing that is saved.
func shownAtOnce(in core.Input) bool {
	switch in.(type) {
	case core.Tick, core.SpecChanged, core.MembersChanged, core.Done:
		return true
	}
	return false
}

// execute carries one effect out; what may take time runs on its own and
// reports its result as an input.
func (r *Runtime) execute(ctx context.Context, fail context.CancelCauseFunc, wg *sync.WaitGroup, effect core.Effect) {
	request := func(what string, call func(context.Context) error, result func(msg string) core.Input) {
		wg.Go(func() {
			callCtx, done := context.WithTimeout(ctx, r.cfg.RequestTimeout)
			err := call(callCtx)
			done()
			if errors.Is(err, ErrFenced) {
				fail(fmt.Errorf("%s: %w", what, err))
				return
			}
			msg := ""
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				msg = err.Error()
				r.log.Warn("request failed", "request", what, "error", msg)
			}
			r.Observe(result(msg))
		})
	}
	done := func(kind core.Request, seq uint64) func(string) core.Input {
		return func(msg string) core.Input { return core.Done{Request: kind, Seq: seq, Err: msg} }
	}
	b := r.cfg.Backend
	switch e := effect.(type) {
	case core.Persist:
		request("persist", func(ctx context.Context) error { return b.Persist(ctx, e.Durable) },
			func(msg string) core.Input { return core.Persisted{Seq: e.Durable.Seq, Err: msg} })
	case core.WriteConfig:
		request("write config", func(ctx context.Context) error { return b.WriteConfig(ctx, e) }, done(core.RequestConfig, e.Seq))
	case core.ScaleTo:
		request("scale", func(ctx context.Context) error { return b.ScaleTo(ctx, e) }, done(core.RequestScale, e.Seq))
	case core.LabelNodes:
		request("label nodes", func(ctx context.Context) error { return b.LabelNodes(ctx, e.Labels) }, done(core.RequestLabels, e.Seq))
	case core.WriteStatus:
		request("write status", func(ctx context.Context) error { return b.WriteStatus(ctx, e.Status) }, done(core.RequestStatus, e.Seq))
	case core.CheckTarget:
		wg.Go(func() {
			callCtx, done := context.WithTimeout(ctx, r.cfg.RequestTimeout)
			defer done()
			r.Observe(checkTarget(callCtx, e))
		})
	case core.Broadcast:
		r.cfg.Broadcaster.Publish(e.Update)
	case core.Reply:
		r.reply(e)
	case core.GrantLease:
		if r.cfg.Grant != nil && (r.cfg.Leading == nil || r.cfg.Leading()) {
			r.cfg.Grant(e)
		}
	case core.OrderNode:
		r.log.Info("order", "node", e.Key, "kind", e.Kind, "target", e.Target, "id", e.ID)
		if r.cfg.Order != nil {
			r.cfg.Order(e)
		}
	case core.Event:
		select {
		case r.events <- e:
		default:
			r.log.Warn("event dropped: too many at once", "reason", e.Reason, "message", e.Message)
		}
	}
}

func (r *Runtime) sendEvents(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.events:
			callCtx, done := context.WithTimeout(ctx, r.cfg.RequestTimeout)
			r.cfg.Backend.Event(callCtx, e)
			done()
		}
	}
}

// Observe hands an input to the core. It waits while the core is busy, and does
// nothing once the Runtime has stopped.
func (r *Runtime) Observe(in core.Input) {
	select {
	case r.inputs <- in:
	case <-r.stopped:
	}
}

// Do hands a command to the core and waits for its reply. The ID is set here.
func (r *Runtime) Do(ctx context.Context, cmd core.Command) (core.Reply, error) {
	o, err := r.Apply(ctx, cmd)
	return o.Reply, err
}

// Apply is Do, and tells besides what was decided at once.
func (r *Runtime) Apply(ctx context.Context, cmd core.Command) (core.Outcome, error) {
	w := &waiter{reply: make(chan core.Reply, 1)}
	r.mu.Lock()
	r.nextID++
	cmd.ID = r.nextID
	r.waiting[cmd.ID] = w
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.waiting, cmd.ID)
		r.mu.Unlock()
	}()
	select {
	case r.inputs <- cmd:
	case <-r.stopped:
		return core.Outcome{}, ErrStopped
	case <-ctx.Done():
		return core.Outcome{}, ctx.Err()
	}
	select {
	case reply := <-w.reply:
		r.mu.Lock()
		defer r.mu.Unlock()
		w.outcome.Reply = reply
		return w.outcome, nil
	case <-r.stopped:
		return core.Outcome{}, ErrStopped
	case <-ctx.Done():
		return core.Outcome{}, ctx.Err()
	}
}

// note keeps what a command's step decided for who waits for it.
func (r *Runtime) note(id uint64, effects []core.Effect) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.waiting[id]; w != nil {
		w.outcome.Take(effects)
	}
}

// Snapshot returns a copy of the core's state, to try things on. It has what others
// may not see yet, and must not leave the controller as it is.
func (r *Runtime) Snapshot(ctx context.Context) (core.State, error) {
	answer := make(chan core.State, 1)
	select {
	case r.asks <- answer:
		return <-answer, nil
	case <-r.stopped:
		return core.State{}, ErrStopped
	case <-ctx.Done():
		return core.State{}, ctx.Err()
	}
}

// Try tells what a command would bring about now, or why it would be refused.
// Nothing is done.
func (r *Runtime) Try(ctx context.Context, cmd core.Command) (core.Outcome, error) {
	state, err := r.Snapshot(ctx)
	if err != nil {
		return core.Outcome{}, err
	}
	return core.Try(state, cmd), nil
}

func (r *Runtime) reply(reply core.Reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.waiting[reply.ID]; w != nil {
		w.reply <- reply
		delete(r.waiting, reply.ID)
	}
}

// Loaded is closed once the durable state has been loaded: from then on Topology
// shows it.
func (r *Runtime) Loaded() <-chan struct{} { return r.loaded }

// Stopped is closed when Run has ended.
func (r *Runtime) Stopped() <-chan struct{} { return r.stopped }

// Topology returns what the controller knows now.
func (r *Runtime) Topology() Topology {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.topo
}

// Watch calls f with the topology at once and then after each change, skipping
// those that came while f was busy, until ctx ends, the Runtime stops
// (ErrStopped) or f fails.
func (r *Runtime) Watch(ctx context.Context, f func(Topology) error) error {
	for {
		r.mu.Lock()
		topo, changed := r.topo, r.changed
		r.mu.Unlock()
		if err := f(topo); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-r.stopped:
			return ErrStopped
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *Runtime) stop() { close(r.stopped) }
