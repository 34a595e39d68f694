package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/agent/names"
	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

const (
	// defaultFailoverWait bounds how long a request waits for a node map that
	// tells who can execute it.
	defaultFailoverWait = 3 * time.Second
	// defaultRequestTimeout bounds a request to another node from below.
	defaultRequestTimeout = 5 * time.Second
	// reservedConnections are kept for the index and the other nodes when
	// clients use up the limit.
	reservedConnections = 64
	// leaveTimeout bounds each step of leaving.
	leaveTimeout = 5 * time.Second
	// drainTimeout is after what time clients that never pause are left.
	drainTimeout = 2 * time.Second
)

// Config is what a Server is made of. Options, DB and Listener are required.
type Config struct {
	Options  options.Options // in force; ServerName is set
	DB       *storage.DB
	Listener net.Listener // open already, so that the port is known to be free
	Version  string       // of this program

	Settings *Settings // where Options came from; nil means that they cannot change

	LogLevel *slog.LevelVar // follows log-level; may be nil
	Logger   *slog.Logger
	Clock    func() time.Time // default time.Now

	FailoverWait   time.Duration // of a request for a map that tells who executes it; default 3 s
	RequestTimeout time.Duration // least time that another node has to answer; default 5 s
}

// A Server is one storage node.
type Server struct {
	self     string // node key
	onlySelf []string
	version  string
	instance string
	started  time.Time
	clock    func() time.Time
	logger   *slog.Logger
	level    *slog.LevelVar
	settings *Settings
	seed     maphash.Seed
	listener net.Listener

	failoverWait time.Duration
	minTimeout   time.Duration // of a request to another node

	born      time.Time                       // origin of the clock of leases
	urgent    *broadcast                      // a lease is wanted, or not any more
	live      atomic.Pointer[options.Options] // in force; never modified
	db        *storage.DB
	changed   *broadcast // a new node map, or the gate
	maps      *nodeMap
	gate      *gate
	roles     *roleKeeper
	source    *replication.Source
	handing   *handovers
	relays    *relayKeeper
	remote    atomic.Pointer[remote] // who answers instead of this cluster; nil for nobody
	remotes   *peers                 // connections there
	hold      hold
	names     *names.Book
	peers     *peers
	index     *indexClient
	copying   copying
	standDown standDown
	limited   limitedLog

	items   itemCount
	tasks   *registry
	dumping atomic.Bool // there is a dump or dump_key
	dumped  dumpMark
	orphans orphanWork
	sweeper *sweeper

	logStatus logStatus
	backingUp atomic.Bool // a backup is being made or deleted
	backups   backupStatus

	counters counters
	refusals replication.Refusals
	forwards forwards
	status   statusKeeper
	watcher  *accessWatcher

	ctx    context.Context // ends when the server must stop at once
	cancel context.CancelFunc

	mu       sync.Mutex
	conns    map[*conn]struct{}
	drainAt  time.Time      // end of draining; zero before
	handlers sync.WaitGroup // connections
}

// New makes a server; it does nothing before Run.
func New(cfg Config) (*Server, error) {
	if cfg.DB == nil || cfg.Listener == nil || cfg.Options.ServerName == "" {
		return nil, errors.New("node: database, listener and server name are required")
	}
	var id [8]byte
	rand.Read(id[:])
	s := &Server{
		self:         topology.Node{Name: cfg.Options.ServerName, Port: cfg.Options.ServerPort}.Key(),
		version:      cfg.Version,
		instance:     hex.EncodeToString(id[:]),
		clock:        cfg.Clock,
		logger:       cfg.Logger,
		level:        cfg.LogLevel,
		settings:     cfg.Settings,
		seed:         maphash.MakeSeed(),
		listener:     cfg.Listener,
		failoverWait: cmp.Or(cfg.FailoverWait, defaultFailoverWait),
		minTimeout:   cmp.Or(cfg.RequestTimeout, defaultRequestTimeout),
		db:           cfg.DB,
		changed:      newBroadcast(),
		born:         time.Now().Add(-time.Second),
		urgent:       newBroadcast(),
		conns:        map[*conn]struct{}{},
	}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	s.onlySelf = []string{s.self}
	s.names = &names.Book{Logger: s.logger}
	s.started = s.clock()
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.relays = newRelayKeeper(s)
	s.tasks = newRegistry()
	s.remotes = newPeers(s.dial, &s.counters.traffic, s.tasks, func(string) int { return taskRelay },
		cfg.Options.ClusterReplication.Concurrency, func() int { return 0 }, s.logger)
	s.watcher = newAccessWatcher(s.db, s.logger)
	s.sweeper = newSweeper(s)
	s.apply(s.readBack(cfg.Options))
	s.maps = newNodeMap(s.self, s.changed, s.logger)
	s.maps.netmask, s.maps.clock = cfg.Options.ProxyPriorNetmask, s.clock
	s.gate = newGate(s.changed, s.sinceBorn)
	s.peers = newPeers(s.dial, &s.counters.traffic, s.tasks, s.threadType, cfg.Options.ProxyConcurrency,
		func() int { return s.live.Load().MaxTotalThreadQueue }, s.logger)
	s.index = &indexClient{
		name:     cfg.Options.ServerName,
		port:     cfg.Options.ServerPort,
		servers:  func() []string { return s.live.Load().Indexes() },
		instance: s.instance,
		names:    s.names,
		position: func() position {
			p := s.db.Position()
			return position{partition: p.Partition, lsn: p.LSN, history: p.History}
		},
		logger: s.logger,
	}
	s.source = s.newSource()
	s.roles = &roleKeeper{
		maps: s.maps, gate: s.gate, db: s.db, source: s.source,
		logger: s.logger, changed: s.changed, catchUp: s.newCatcher, excluded: s.relays.cannotStream, standDown: &s.standDown,
		leases: cfg.Options.AgentSocket != "", now: s.sinceBorn,
	}
	s.handing = newHandovers(s)
	s.roles.remember(cfg.Options.DataDir)
	s.standDown.s = s
	s.copying = copying{s: s, lost: make(chan struct{}, 1)}
	s.status = statusKeeper{changed: s.changed, reason: "starting"}
	return s, nil
}

// Run registers at the index and serves until ctx ends, then leaves in good
// order. Abort cuts that short. The database stays open.
func (s *Server) Run(ctx context.Context) error {
	defer s.cancel()
	stopService, err := s.serveAgent()
	if err != nil {
		return err
	}
	defer stopService()
	socket, err := s.clientSocket()
	if err != nil {
		return err
	}
	if socket != nil {
		defer socket.Close()
	}

	s.status.set("registering")
	regCtx, stopReg := context.WithCancel(ctx)
	defer stopReg()
	defer context.AfterFunc(s.ctx, stopReg)()
	reg, err := s.index.registerUntil(regCtx, s.status.set)
	if err != nil {
		s.listener.Close()
		s.logger.Info("stopped before registration")
		return nil
	}
	if err := s.maps.register(reg.nodes, reg.meta); err != nil {
		s.listener.Close()
		return fmt.Errorf("node: register: %w", err)
	}
	s.logger.Info("registered at the index", "node", s.self, "instance", s.instance,
		"nodes", len(reg.nodes), "extended", s.index.extended.Load(), "lsn", s.db.Position().LSN.String())

	var background sync.WaitGroup
	roleCtx, stopRoles := context.WithCancel(context.Background())
	defer stopRoles()
	background.Go(func() { s.roles.run(roleCtx) })
	background.Go(func() { s.relays.run(roleCtx) })
	background.Go(func() { s.watcher.run(s.ctx) })
	background.Go(func() { s.sweeper.run(s.ctx) })
	background.Go(func() { s.keepLease(roleCtx) })
	background.Go(func() { s.names.Keep(s.ctx, s.hosts, s.changed.wait) })
	accepted := make(chan error, 2)
	background.Go(func() { accepted <- s.accept(s.listener) })
	if socket != nil {
		background.Go(func() { accepted <- s.accept(socket) })
	}
	s.status.set("")

	var failure error
	select {
	case <-ctx.Done():
		s.leave()
	case failure = <-accepted:
		failure = fmt.Errorf("node: accept connections: %w", failure)
	case <-s.ctx.Done():
	}

	s.status.set("stopped")
	s.listener.Close()
	if socket != nil {
		socket.Close()
	}
	stopRoles()
	s.cancel()
	s.closeConnections()
	s.peers.close()
	s.remotes.close()
	s.handlers.Wait()
	background.Wait()
	s.standDown.telling.Wait()
	return failure
}

// dial connects to another node. A dead one costs no more than peerDialTimeout.
func (s *Server) dial(ctx context.Context, node string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, peerDialTimeout)
	defer cancel()
	return s.names.Dial(ctx, node)
}

// hosts returns the names of the index servers and of the other nodes that are up.
func (s *Server) hosts() []string {
	var hosts []string
	for _, server := range s.live.Load().Indexes() {
		if host, _, err := net.SplitHostPort(server); err == nil {
			hosts = append(hosts, host)
		}
	}
	if t := s.maps.table(); t != nil {
		for _, n := range t.nodes.Nodes {
			if n.Key() != s.self && n.State != topology.Down {
				hosts = append(hosts, n.Name)
			}
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// Abort makes Run return as soon as possible, without leaving in good order.
func (s *Server) Abort() { s.cancel() }

// accept takes connections until the listener is closed.
func (s *Server) accept(from net.Listener) error {
	var pause time.Duration
	for {
		nc, err := from.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			// Out of file descriptors, or a connection that was gone already.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.limited.warn(s.logger, "connection could not be accepted", "error", err)
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
				return s.ctx.Err()
			}
			continue
		}
		pause = 0
		s.counters.totalConnections.Add(1)
		s.start(nc)
	}
}

// start serves a connection in a goroutine of its own, if there is room.
func (s *Server) start(nc net.Conn) {
	c := newConn(s, nc)
	limit := s.live.Load().MaxConnection
	s.mu.Lock()
	n := len(s.conns)
	if n >= limit+reservedConnections || s.ctx.Err() != nil {
		s.mu.Unlock()
		nc.Close()
		s.limited.warn(s.logger, "connection closed at once", "reason", "max_connection", "max_connection", limit,
			"from", nc.RemoteAddr().String())
		return
	}
	c.reserved = n >= limit
	s.conns[c] = struct{}{}
	s.handlers.Add(1)
	draining := !s.drainAt.IsZero()
	s.mu.Unlock()
	if draining {
		c.drain()
	}
	go func() {
		defer s.handlers.Done()
		defer func() {
			nc.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		}()
		task := s.tasks.register(s.clock(), c.describe, c.kill)
		defer s.tasks.unregister(task)
		c.serve()
	}()
}

// connections returns how many connections are open.
func (s *Server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *Server) readerOptions() text.Options {
	return text.Options{Commands: commands, MaxValue: int(s.live.Load().MaxValueSize)}
}

// leave gives up the node's duties so that nothing acknowledged is lost and
// clients see a pause: a master hands its role over, or, if that cannot be done, lets
// writes wait, its replicas catch up and the index name a successor. The waiting
// writes are forwarded to the new master, and connections end when their clients
// pause.
func (s *Server) leave() {
	s.status.set("leaving")
	before := dutyOf(s.maps.table())
	s.logger.Info("leaving", "partition", before.partition, "master", before.kind == dutyMaster)
	s.roles.retire()
	handedOver := false
	if before.kind == dutyMaster {
		ctx, cancel := context.WithTimeout(s.ctx, leaveTimeout)
		handedOver = s.handing.leave(ctx)
		cancel()
	}
	s.roles.leave()
	if held, _, _ := s.roles.snapshot(); held.held {
		ctx, cancel := context.WithTimeout(s.ctx, leaveTimeout)
		lsn := s.db.Position().LSN
		if err := s.source.Wait(ctx, lsn); err != nil {
			s.logger.Warn("in-sync replicas did not acknowledge everything before leaving", "lsn", lsn.String(), "error", err)
		}
		s.relays.awaitAll(ctx, lsn)
		cancel()
	}
	ctx, cancel := context.WithTimeout(s.ctx, leaveTimeout)
	err := s.index.shutdown(ctx)
	cancel()
	if err != nil {
		s.logger.Warn("index did not take the shutdown", "error", err)
	} else if before.kind != dutyNone && !handedOver {
		s.awaitRelief()
	}
	s.drain()
}

// awaitRelief waits for the map that takes this node's duty away.
func (s *Server) awaitRelief() {
	timer := time.NewTimer(s.failoverWait)
	defer timer.Stop()
	for {
		wake := s.changed.wait()
		if dutyOf(s.maps.table()).kind == dutyNone {
			return
		}
		select {
		case <-wake:
		case <-timer.C:
			s.logger.Warn("no node map relieved this node of its duty in time")
			return
		case <-s.ctx.Done():
			return
		}
	}
}

// drain ends every connection once its client pauses, and waits for that.
func (s *Server) drain() {
	s.mu.Lock()
	s.drainAt = time.Now().Add(drainTimeout)
	for c := range s.conns {
		c.drain()
	}
	s.mu.Unlock()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	// Each connection ends itself when the time is over, but not before what it
	// has read is answered.
	for end := s.drainEnd().Add(leaveTimeout); s.clients() > 0 && time.Now().Before(end); {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
	}
	s.logger.Info("connections drained", "left", s.connections())
}

// clients counts the connections that drain has to wait for: streams to
// replicas have no end of their own.
func (s *Server) clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for c := range s.conns {
		if !c.streaming.Load() {
			n++
		}
	}
	return n
}

func (s *Server) drainEnd() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drainAt
}

func (s *Server) closeConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.nc.Close()
	}
}

// logGarbage reports a request that could not be parsed.
func (s *Server) logGarbage(c *conn, problem *text.ProtocolError) {
	s.limited.warn(s.logger, "request refused", "reason", string(problem.Reason), "command", problem.Command.String(),
		"from", c.nc.RemoteAddr().String(), "bytes", strconv.Quote(string(c.head)))
}

func (s *Server) logBinary(c *conn) {
	s.limited.warn(s.logger, "connection closed", "reason", "binary_protocol",
		"from", c.nc.RemoteAddr().String(), "bytes", strconv.Quote(string(c.head)))
}
