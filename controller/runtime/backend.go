package runtime

import (
	"context"
	"errors"

	"github.com/flarekv/flare/controller/core"
)

// ErrFenced tells that this controller is not the one that may write any more:
// another one has taken over, or its lease ran out. A Backend wraps it; Run
// ends with it.
var ErrFenced = errors.New("another controller has taken over")

// Backend is the place where a cluster lives: files, or Kubernetes. Its methods
// are called by one Runtime, each kind of them one at a time and with a
// deadline. An error is retried with what is wanted by then.
type Backend interface {
	// Load returns the durable state; found is false when there is none.
	Load(ctx context.Context) (durable core.Durable, found bool, err error)
	// Persist makes the state durable before it returns nil. It must fail with
	// ErrFenced instead of overwriting what another controller has written.
	Persist(ctx context.Context, durable core.Durable) error
	// WriteConfig publishes the options file for the nodes.
	WriteConfig(ctx context.Context, config core.WriteConfig) error
	// ScaleTo makes the workload have that many nodes. Before it takes nodes away it must
	// make sure, by what is and not by what was observed, that the decision is not void.
	ScaleTo(ctx context.Context, to core.ScaleTo) error
	// LabelNodes marks the nodes with their duties.
	LabelNodes(ctx context.Context, labels []core.NodeLabel) error
	// WriteStatus publishes the summary.
	WriteStatus(ctx context.Context, status core.Status) error
	// Event tells people. It must not block for long; failures are its own.
	Event(ctx context.Context, event core.Event)
	// Watch calls observe with core.SpecChanged and core.MembersChanged: first
	// with what is there, then after each change, until ctx ends. An error ends
	// the Runtime.
	Watch(ctx context.Context, observe func(core.Input)) error
}

// Broadcaster sends maps to nodes and pings them; it reports core.Pushed and
// core.Pinged. Package index has the real one.
type Broadcaster interface {
	// Publish replaces the map to be sent. It does not block.
	Publish(update core.MapUpdate)
}
