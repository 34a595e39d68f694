package node

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// errOldMap refuses a node map that is older than the one in force.
var errOldMap = errors.New("node map is older than the one in force")

// A nodeMap holds the table in force. Readers never wait; setting one takes
// only a short lock, so that the index always gets its answer at once.
type nodeMap struct {
	self    string
	logger  *slog.Logger
	changed *broadcast
	netmask int // proxy-prior-netmask
	clock   func() time.Time

	mu        sync.Mutex // serialises set
	version   uint64
	withdrawn bool // this node answers no reads but as a master
	current   atomic.Pointer[table]
}

func newNodeMap(self string, changed *broadcast, logger *slog.Logger) *nodeMap {
	return &nodeMap{self: self, logger: logger, changed: changed, clock: time.Now}
}

// table returns the table in force; nil before the first map.
func (m *nodeMap) table() *table { return m.current.Load() }

// mapVersion returns the version of the map in force, 0 before the first push.
func (m *nodeMap) mapVersion() uint64 {
	if t := m.table(); t != nil {
		return t.nodes.Version
	}
	return 0
}

// register installs the list that the index answered to our registration. It
// carries no version and stands until the first push.
func (m *nodeMap) register(nodes []topology.Node, meta topology.Meta) error {
	resolver, err := topology.NewResolver(meta)
	if err != nil {
		return fmt.Errorf("partitioning parameters of the index: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.install(topology.Map{Nodes: nodes}, resolver)
	return nil
}

// push installs a map sent by the index, unless it is older than the last one.
func (m *nodeMap) push(next topology.Map) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.version > 0 && m.version > next.Version {
		return fmt.Errorf("%w: version %d after %d", errOldMap, next.Version, m.version)
	}
	m.version = next.Version
	m.install(next, m.current.Load().resolver)
	return nil
}

// withdraw has this node answer no reads but as a master, or answer them again.
func (m *nodeMap) withdraw(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.current.Load(); m.withdrawn != yes && t != nil {
		m.withdrawn = yes
		m.install(t.nodes, t.resolver)
	}
}

// install builds and publishes the table; m.mu is held.
func (m *nodeMap) install(next topology.Map, resolver *topology.Resolver) {
	former := m.current.Load()
	view, err := topology.BuildView(next.Nodes)
	if err != nil {
		// Routing by the last sound layout beats not routing at all.
		if former != nil {
			view = former.view
		}
		m.logger.Warn("partition layout of the node map is invalid, former partitions stay in force",
			"version", next.Version, "reason", "invalid_layout", "error", err)
	}
	t := newTable(m.self, next, view, resolver)
	if m.withdrawn {
		t.withdraw()
	}
	t.preferNear(m.netmask)
	t.outdated = err != nil
	if t.since = m.clock(); former != nil && former.sameOwners(t) {
		t.since = former.since
	}
	t.yield = yieldingOf(t, former)
	if former == nil || former.own != t.own || former.known != t.known {
		m.logger.Info("own entry in the node map changed", "version", next.Version,
			"known", t.known, "role", t.own.Role.String(), "state", t.own.State.String(),
			"partition", t.own.Partition, "epoch", t.own.Epoch, "balance", t.own.Balance)
	}
	m.current.Store(t)
	m.changed.fire()
}

// A broadcast wakes everybody who waits for something to change. Fetch the
// channel, look at the state, then wait on the channel: no change is missed.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func newBroadcast() *broadcast { return &broadcast{ch: make(chan struct{})} }

// wait returns a channel that the next fire closes.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

// fire wakes all waiters.
func (b *broadcast) fire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
