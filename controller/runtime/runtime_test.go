package runtime

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// backend is a scripted Backend.
type backend struct {
	mu       sync.Mutex
	saved    core.Durable
	found    bool
	loadErr  error
	persist  func(core.Durable) error // nil: nil
	status   func(context.Context) error
	statuses []core.Status
	events   []core.Event
	watchErr error
}

func (b *backend) Load(context.Context) (core.Durable, bool, error) {
	return b.saved, b.found, b.loadErr
}

func (b *backend) Persist(_ context.Context, d core.Durable) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.persist != nil {
		if err := b.persist(d); err != nil {
			return err
		}
	}
	b.saved, b.found = d, true
	return nil
}

func (b *backend) WriteConfig(context.Context, core.WriteConfig) error { return nil }
func (b *backend) ScaleTo(context.Context, core.ScaleTo) error         { return nil }
func (b *backend) LabelNodes(context.Context, []core.NodeLabel) error  { return nil }

func (b *backend) WriteStatus(ctx context.Context, s core.Status) error {
	if b.status != nil {
		return b.status(ctx)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.statuses = append(b.statuses, s)
	return nil
}

func (b *backend) Event(_ context.Context, e core.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, e)
}

func (b *backend) Watch(ctx context.Context, observe func(core.Input)) error {
	observe(core.SpecChanged{Spec: core.Spec{Generation: 1, Partitions: 1, Replicas: 1, Meta: topology.DefaultMeta()}})
	if b.watchErr != nil {
		return b.watchErr
	}
	<-ctx.Done()
	return nil
}

// maps is a Broadcaster that remembers.
type maps struct {
	mu   sync.Mutex
	sent []core.MapUpdate
}

func (m *maps) Publish(u core.MapUpdate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sent = append(m.sent, u)
}

// run starts a Runtime; stop ends it and returns what Run returned.
func run(t *testing.T, b *backend) (rt *Runtime, m *maps, stop func() error) {
	m = &maps{}
	rt = New(Config{Backend: b, Broadcaster: m})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- rt.Run(ctx) }()
	return rt, m, func() error {
		cancel()
		return <-done
	}
}

func add(key string) core.Command {
	name, port, _ := topology.SplitKey(key)
	return core.Command{Verb: core.VerbAdd, Name: name, Port: port}
}

func TestCommandIsAnsweredWhenDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend{}
		rt, m, stop := run(t, b)
		time.Sleep(time.Second)
		reply, err := rt.Do(t.Context(), add("a:1"))
		if err != nil || reply.Err != "" || len(reply.Nodes) != 1 {
			t.Errorf("reply %+v, %v", reply, err)
		}
		if b.saved.Version != 1 {
			t.Errorf("saved version %d", b.saved.Version)
		}
		synctest.Wait()
		m.mu.Lock()
		if len(m.sent) == 0 || m.sent[len(m.sent)-1].Map.Version != 1 {
			t.Errorf("sent %+v", m.sent)
		}
		m.mu.Unlock()
		if topo := rt.Topology(); topo.Map.Version != 1 || len(topo.Nodes) != 1 || topo.Nodes[0].Node.Key() != "a:1" {
			t.Errorf("topology %+v", topo)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		if _, err := rt.Do(t.Context(), add("b:1")); !errors.Is(err, ErrStopped) {
			t.Errorf("a command after the end: %v", err)
		}
	})
}

func TestFailedPersistIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fails := 3
		b := &backend{persist: func(core.Durable) error {
			if fails--; fails >= 0 {
				return fmt.Errorf("no space left")
			}
			return nil
		}}
		rt, _, stop := run(t, b)
		reply, err := rt.Do(t.Context(), add("a:1"))
		for err == nil && reply.Err != "" { // the spec may come later than the command
			time.Sleep(time.Second)
			reply, err = rt.Do(t.Context(), add("a:1"))
		}
		if err != nil {
			t.Error(err)
		}
		if fails >= 0 {
			t.Errorf("answered with %d failures to come", fails+1)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestFencedControllerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend{persist: func(core.Durable) error { return fmt.Errorf("conflict: %w", ErrFenced) }}
		rt, m, stop := run(t, b)
		time.Sleep(time.Second)
		if _, err := rt.Do(t.Context(), add("a:1")); !errors.Is(err, ErrStopped) {
			t.Errorf("a command of a fenced controller: %v", err)
		}
		<-rt.Stopped()
		if err := stop(); !errors.Is(err, ErrFenced) {
			t.Errorf("Run: %v", err)
		}
		if len(m.sent) != 0 {
			t.Errorf("a fenced controller has sent %+v", m.sent)
		}
	})
}

func TestSlowStatusHoldsNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend{status: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		rt, _, stop := run(t, b)
		time.Sleep(100 * time.Millisecond)
		begin := time.Now()
		if reply, err := rt.Do(t.Context(), add("a:1")); err != nil || reply.Err != "" {
			t.Errorf("%+v, %v", reply, err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("a command took %v", took)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestRunRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    *backend
		want error
	}{
		{"a state that cannot be read", &backend{loadErr: errUnreadable}, errUnreadable},
		{"a watch that fails", &backend{watchErr: errUnreadable}, errUnreadable},
		{"a state of another format", &backend{found: true, saved: core.Durable{Format: 99}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := New(Config{Backend: tt.b, Broadcaster: &maps{}}).Run(t.Context())
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Run: %v, want %v", err, tt.want)
			}
		})
	}
}

var errUnreadable = errors.New("unreadable")

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt, _, stop := run(t, &backend{})
		time.Sleep(time.Second)
		versions := make(chan uint64, 100)
		done := make(chan error, 1)
		go func() {
			done <- rt.Watch(t.Context(), func(topo Topology) error {
				versions <- topo.Map.Version
				return nil
			})
		}()
		if v := <-versions; v != 0 {
			t.Errorf("first version %d", v)
		}
		for i := range 3 {
			if _, err := rt.Do(t.Context(), add(fmt.Sprintf("n%d:1", i))); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		last := uint64(0)
		for len(versions) > 0 {
			v := <-versions
			if v < last {
				t.Errorf("version %d after %d", v, last)
			}
			last = v
		}
		if last != 3 {
			t.Errorf("last version %d, want 3", last)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		if err := <-done; !errors.Is(err, ErrStopped) {
			t.Errorf("Watch: %v", err)
		}
	})
}

// TestTryAndApply tries a command on a copy, and then carries it out.
func TestTryAndApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend{}
		rt, m, stop := run(t, b)
		time.Sleep(time.Second)
		if _, err := rt.Do(t.Context(), add("a:1")); err != nil {
			t.Fatal(err)
		}
		down := core.Command{Verb: core.VerbState, Name: "a", Port: 1, State: topology.Down}
		synctest.Wait()
		saved, sent := b.saved.Seq, len(m.sent)
		tried, err := rt.Try(t.Context(), down)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if topo := rt.Topology(); topo.Map.Nodes[0].State != topology.Active || b.saved.Seq != saved || len(m.sent) != sent {
			t.Errorf("a dry run left %+v, saved %d, sent %d", topo.Map.Nodes[0], b.saved.Seq-saved, len(m.sent)-sent)
		}
		done, err := rt.Apply(t.Context(), down)
		if err != nil {
			t.Fatal(err)
		}
		if b.saved.Nodes[0].State != topology.Down {
			t.Error("answered before it was durable")
		}
		for _, o := range []core.Outcome{tried, done} {
			if len(o.Decisions) != 1 || o.Decisions[0].Node != "a:1" || o.Decisions[0].Reason != core.ReasonOperator || len(o.Events) != 1 || o.Reply.Reason != "" {
				t.Errorf("outcome %+v", o)
			}
		}
		down.Name = "nobody"
		for _, do := range []func(context.Context, core.Command) (core.Outcome, error){rt.Try, rt.Apply} {
			if o, err := do(t.Context(), down); err != nil || o.Reply.Reason != core.RefuseNoSuchNode || len(o.Decisions) > 0 {
				t.Errorf("of a node that there is not: %+v, %v", o, err)
			}
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := rt.Apply(gone, down); !errors.Is(err, context.Canceled) {
			t.Errorf("of a caller who has left: %v", err)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		if _, err := rt.Try(t.Context(), down); !errors.Is(err, ErrStopped) {
			t.Errorf("after the end: %v", err)
		}
	})
}
