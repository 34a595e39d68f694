// Package index is what nodes and operators see of a controller: a TCP server
// that speaks the index protocol of flarei, and the broadcaster that sends maps
// to nodes and pings them. It decides nothing; commands go to the core, and what
// it shows is durable.
package index

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/proto/text"
)

// Cluster is what the server asks; a *runtime.Runtime is one.
type Cluster interface {
	Do(ctx context.Context, cmd core.Command) (core.Reply, error)
	Topology() runtime.Topology
}

// Defaults of ServerConfig.
const (
	DefaultMaxConnections = 1024
	DefaultMaxPerPeer     = 16
	DefaultIdleTimeout    = 10 * time.Minute
	DefaultWriteTimeout   = 5 * time.Second
	DefaultCommandTimeout = 10 * time.Second
)

// maxLine bounds a command line: the longest is node hello.
const maxLine = 16 << 10

// ServerConfig is what a Server is made of. A zero limit takes its default.
type ServerConfig struct {
	Cluster Cluster
	Version string // without a prefix
	Logger  *slog.Logger

	// Nodes are those who send maps and pings, for stats threads; nil for none.
	Nodes *Broadcaster
	// Refused, when set, counts what was refused, by a machine-readable reason. There
	// are few of them.
	Refused func(reason string)
	// ConfigPath and DataDir are shown in show variables.
	ConfigPath, DataDir string

	// MaxConnections is the number of connections kept at once. One more closes an
	// idle one: of the address that has most, the one that has been idle for longest.
	// Those who hold connections they do not use keep nobody out.
	MaxConnections int
	// MaxPerPeer is how many commands of one address are carried out at once; more of
	// them wait, so that a flood from there delays others by no more than that.
	MaxPerPeer int
	// IdleTimeout ends a connection on which no complete command arrives.
	IdleTimeout time.Duration
	// WriteTimeout ends a connection whose peer does not read.
	WriteTimeout time.Duration
	// CommandTimeout bounds the wait for a change to become durable.
	CommandTimeout time.Duration
}

// Server answers the index protocol.
type Server struct {
	cfg      ServerConfig
	log      *slog.Logger
	started  time.Time
	refusals limiter

	mu       sync.Mutex
	addr     net.Addr // that is listened on; nil before
	conns    map[*serverConn]struct{}
	peers    map[string]*peer // by address; those that have connections
	lastID   int64            // given to a thread, as stats threads calls what runs
	threads  map[string]int64 // ids of the contacts with nodes
	total    uint64
	bytesIn  uint64
	bytesOut uint64
}

// peer is what the connections of one address have in common.
type peer struct {
	turns chan struct{} // one for each command that is being carried out

	// Guarded by Server.mu.
	conns int
	idle  list.List // of *serverConn, the one that has been idle for longest first
}

// NewServer makes a server; Serve runs it.
func NewServer(cfg ServerConfig) *Server {
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = DefaultMaxConnections
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = DefaultIdleTimeout
	}
	if cfg.WriteTimeout == 0 {
		cfg.WriteTimeout = DefaultWriteTimeout
	}
	if cfg.CommandTimeout == 0 {
		cfg.CommandTimeout = DefaultCommandTimeout
	}
	if cfg.MaxPerPeer == 0 {
		cfg.MaxPerPeer = DefaultMaxPerPeer
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Refused == nil {
		cfg.Refused = func(string) {}
	}
	return &Server{
		cfg: cfg, log: cfg.Logger, started: time.Now(), lastID: coreThread,
		refusals: limiter{every: 5 * time.Second},
		conns:    map[*serverConn]struct{}{}, peers: map[string]*peer{}, threads: map[string]int64{},
	}
}

// Serve answers connections of ln until ctx ends; it closes ln and every
// connection, and waits for what is under way.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.mu.Lock()
	s.addr = ln.Addr()
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		ln.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.Close()
		}
	})()
	var pause time.Duration
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept index connections: %w", err)
			}
			// Out of descriptors, or a peer that gave up: go on, but not in a tight loop.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("accept failed", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		pause = 0
		c := s.admit(ctx, conn)
		if c == nil {
			continue
		}
		wg.Go(func() {
			defer s.dismiss(c)
			s.talk(ctx, c)
		})
	}
}

// serverConn is one connection and what the limit needs to know of it.
type serverConn struct {
	net.Conn
	server  *Server
	id      int64
	address string // of the peer, without the port
	peer    *peer
	began   time.Time
	out     []byte // answers that are not sent yet

	// Guarded by Server.mu.
	idle  *list.Element // in peer.idle; nil while a command is being carried out
	since time.Time     // it has been in there
	op    text.Command  // being carried out; CmdNone for none
}

// Read sends what is answered so far, for the peer may wait for it before it
// says more, and counts.
func (c *serverConn) Read(p []byte) (int, error) {
	if err := c.flush(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	c.server.mu.Lock()
	c.server.bytesIn += uint64(n)
	c.server.mu.Unlock()
	return n, err
}

// flush sends the answers.
func (c *serverConn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	if err := c.SetWriteDeadline(time.Now().Add(c.server.cfg.WriteTimeout)); err != nil {
		return err
	}
	n, err := c.Conn.Write(c.out)
	c.server.mu.Lock()
	c.server.bytesOut += uint64(n)
	c.server.mu.Unlock()
	c.out = c.out[:0]
	if cap(c.out) > 1<<20 {
		c.out = nil
	}
	return err
}

// admit registers a connection, closing the most idle one when there are too
// many. nil when the server is stopping.
func (s *Server) admit(ctx context.Context, conn net.Conn) *serverConn {
	c := s.newConn(conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		conn.Close()
		return nil
	}
	s.total++
	if len(s.conns) >= s.cfg.MaxConnections {
		var idle *serverConn
		for _, p := range s.peers {
			first := p.idle.Front()
			if first == nil {
				continue
			}
			if o := first.Value.(*serverConn); idle == nil || p.conns > idle.peer.conns ||
				p.conns == idle.peer.conns && o.since.Before(idle.since) {
				idle = o
			}
		}
		s.cfg.Refused(reasonConnectionLimit)
		if idle == nil {
			conn.Close() // all are at work
			return nil
		}
		s.remove(idle)
		idle.Close()
		if ok, missed := s.refusals.allow(reasonConnectionLimit, time.Now()); ok {
			s.log.Warn("too many index connections: closed an idle one", "reason", reasonConnectionLimit,
				"limit", s.cfg.MaxConnections, "peer", idle.RemoteAddr().String(), "not_logged", missed)
		}
	}
	s.lastID++
	c.id = s.lastID
	if c.peer = s.peers[c.address]; c.peer == nil {
		c.peer = &peer{turns: make(chan struct{}, s.cfg.MaxPerPeer)}
		s.peers[c.address] = c.peer
	}
	c.peer.conns++
	c.rest()
	s.conns[c] = struct{}{}
	return c
}

// newConn makes a connection that is not registered.
func (s *Server) newConn(conn net.Conn) *serverConn {
	address, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		address = ""
	}
	return &serverConn{Conn: conn, server: s, address: address, began: time.Now()}
}

func (s *Server) dismiss(c *serverConn) {
	c.Close()
	s.mu.Lock()
	s.remove(c)
	s.mu.Unlock()
}

// remove forgets a connection. s.mu is held.
func (s *Server) remove(c *serverConn) {
	if _, ok := s.conns[c]; !ok {
		return
	}
	delete(s.conns, c)
	if c.idle != nil {
		c.peer.idle.Remove(c.idle)
		c.idle = nil
	}
	if c.peer.conns--; c.peer.conns == 0 {
		delete(s.peers, c.address)
	}
}

// rest notes that nothing is being carried out. Server.mu is held.
func (c *serverConn) rest() { c.idle, c.since = c.peer.idle.PushBack(c), time.Now() }

// mark notes what a connection is doing.
func (s *Server) mark(c *serverConn, op text.Command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.op = op
	_, registered := s.conns[c]
	switch {
	case !registered:
	case op == text.CmdNone:
		c.rest()
	default:
		c.peer.idle.Remove(c.idle)
		c.idle = nil
	}
}

// talk answers one connection's commands in order.
func (s *Server) talk(ctx context.Context, c *serverConn) {
	r := text.NewReader(c, text.Options{Commands: text.IndexCommands, MaxLine: maxLine, MaxValue: 1 << 20})
	var req text.Request
	defer c.flush() // what came before a quit, or before a line that ends the connection
	for {
		if err := c.SetReadDeadline(time.Now().Add(s.cfg.IdleTimeout)); err != nil {
			return
		}
		err := r.ReadRequest(&req)
		var refused *text.ProtocolError
		switch {
		case err == nil:
			if req.Command == text.CmdQuit {
				return
			}
			select {
			case c.peer.turns <- struct{}{}:
			case <-ctx.Done():
				return
			}
			s.mark(c, req.Command)
			c.out = s.answer(ctx, c, &req)
			s.mark(c, text.CmdNone)
			<-c.peer.turns
		case errors.As(err, &refused):
			s.cfg.Refused(string(refused.Reason))
			if ok, missed := s.refusals.allow(string(refused.Reason), time.Now()); ok {
				s.log.Warn("request refused", "peer", c.RemoteAddr().String(), "reason", string(refused.Reason), "error", err, "not_logged", missed)
			}
			c.out = append(c.out, refused.Reply...)
		default:
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				level := slog.LevelDebug
				if errors.Is(err, text.ErrBinary) {
					level = slog.LevelWarn
					s.cfg.Refused(reasonBinary)
				}
				if ok, missed := s.refusals.allow("connection", time.Now()); ok {
					s.log.Log(ctx, level, "index connection ended", "peer", c.RemoteAddr().String(), "error", err, "not_logged", missed)
				}
			}
			return
		}
		if len(c.out) >= 64<<10 {
			if c.flush() != nil {
				return
			}
		}
	}
}

var verbs = map[text.Command]core.Verb{
	text.CmdNodeAdd:      core.VerbAdd,
	text.CmdNodeHello:    core.VerbHello,
	text.CmdNodeRole:     core.VerbRole,
	text.CmdNodeState:    core.VerbState,
	text.CmdNodeBehind:   core.VerbBehind,
	text.CmdNodeHandover: core.VerbHandover,
	text.CmdNodeRemove:   core.VerbRemove,
	text.CmdShutdown:     core.VerbShutdown,
}

// Reasons of refusals, beside those of text.Reason and of the core.
const (
	reasonConnectionLimit = "connection_limit"
	reasonBinary          = "binary_protocol"
	reasonNotDurable      = "not_durable_in_time"
)

// answer returns what is to be sent, with the reply to a request behind it.
func (s *Server) answer(ctx context.Context, c *serverConn, req *text.Request) []byte {
	dst := c.out
	switch req.Command {
	case text.CmdPing, text.CmdVerbosity:
		return append(dst, text.ReplyOK...)
	case text.CmdVersion:
		return text.AppendVersion(dst, "flare-"+s.cfg.Version)
	case text.CmdMeta:
		return text.AppendMeta(dst, s.cfg.Cluster.Topology().Meta)
	case text.CmdKill:
		if s.kill(req.ThreadID) {
			return append(dst, text.ReplyOK...)
		}
		return append(dst, text.ReplyThreadNotFound...)
	case text.CmdStats:
		return s.stats(dst, req.Args)
	case text.CmdShow:
		return s.variables(dst)
	}
	verb, ok := verbs[req.Command]
	if !ok {
		return append(dst, text.ReplyError...)
	}
	n := req.Node
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CommandTimeout)
	defer cancel()
	reply, err := s.cfg.Cluster.Do(ctx, core.Command{
		Verb: verb, Peer: c.address, Name: n.Name, Port: n.Port, Role: n.Role, Balance: n.Balance, Partition: n.Partition,
		State: n.State, Epoch: n.Epoch, Session: n.Session, HasSession: n.HasSession,
		Target: n.Target, TargetPort: n.TargetPort, Paused: n.Paused, AllowDataLoss: n.AllowDataLoss,
		Hello: core.Hello{Instance: n.Instance, Partition: n.Partition, LSN: n.Position, History: n.History},
	})
	switch {
	case err != nil:
		// The change may still become durable; the peer asks again.
		s.cfg.Refused(reasonNotDurable)
		s.log.Warn("command not answered in time", "command", req.Command.String(), "node", n.Key(), "error", err)
		return text.AppendServerError(dst, "not durable in time")
	case reply.Err != "":
		// A node that may not register yet tries four times a second.
		s.cfg.Refused(reply.Reason)
		if ok, missed := s.refusals.allow(req.Command.String(), time.Now()); ok {
			s.log.Info("command refused", "command", req.Command.String(), "node", n.Key(), "reason", reply.Err, "not_logged", missed)
		}
		return text.AppendServerError(dst, reply.Err)
	case reply.Nodes != nil:
		return text.AppendNodes(dst, reply.Nodes, false)
	}
	return append(dst, text.ReplyOK...)
}

// stats appends the reply of stats, in the form of flarei; what has no meaning
// here is 0.
func (s *Server) stats(dst []byte, args [][]byte) []byte {
	stat := func(name, value string) { dst = text.AppendStat(dst, name, value) }
	if len(args) > 0 {
		switch string(args[0]) {
		case "settings":
			return append(dst, text.ReplyError...) // only nodes have them
		case "nodes":
			for _, n := range s.cfg.Cluster.Topology().Map.Nodes {
				k := n.Key() + ":"
				stat(k+"role", n.Role.String())
				stat(k+"state", n.State.String())
				stat(k+"partition", strconv.Itoa(n.Partition))
				stat(k+"balance", strconv.Itoa(n.Balance))
				stat(k+"thread_type", strconv.Itoa(n.ThreadType))
			}
		case "threads":
			part := ""
			if len(args) > 1 {
				part = string(args[1])
			}
			return s.appendThreads(dst, part)
		}
		return append(dst, text.ReplyEnd...)
	}
	s.mu.Lock()
	conns, total, in, out := len(s.conns), s.total, s.bytesIn, s.bytesOut
	s.mu.Unlock()
	now := time.Now()
	user, system := cpuTimes()
	number := func(name string, v uint64) { stat(name, strconv.FormatUint(v, 10)) }
	number("pid", uint64(os.Getpid()))
	number("uptime", uint64(now.Sub(s.started)/time.Second))
	number("time", uint64(now.Unix()))
	stat("version", s.cfg.Version)
	number("pointer_size", strconv.IntSize)
	stat("rusage_user", user)
	stat("rusage_system", system)
	number("curr_items", 0)
	number("total_items", 0)
	number("bytes", 0)
	number("curr_connections", uint64(conns))
	number("total_connections", total)
	for _, name := range []string{"connection_structures", "cmd_get", "cmd_set", "get_hits", "get_misses", "delete_hits", "delete_misses",
		"incr_hits", "incr_misses", "decr_hits", "decr_misses", "cas_hits", "cas_misses", "cas_badval", "touch_hits", "touch_misses", "evictions"} {
		number(name, 0)
	}
	number("bytes_read", in)
	number("bytes_written", out)
	number("limit_maxbytes", 0)
	number("threads", uint64(len(s.list())))
	number("pool_threads", 0)
	number("node_map_version", s.cfg.Cluster.Topology().Map.Version)
	return append(dst, text.ReplyEnd...)
}

// variables appends the reply of show variables, in the form of flarei; what has no
// meaning here has flarei's default.
func (s *Server) variables(dst []byte) []byte {
	meta := s.cfg.Cluster.Topology().Meta
	s.mu.Lock()
	name, port := "", ""
	if s.addr != nil {
		name, port, _ = net.SplitHostPort(s.addr.String())
	}
	s.mu.Unlock()
	for _, v := range []struct {
		name  string
		value any
	}{
		{"config_path", s.cfg.ConfigPath},
		{"pid_path", ""},
		{"daemonize", false},
		{"data_dir", s.cfg.DataDir},
		{"max_connection", s.cfg.MaxConnections},
		{"monitor_threshold", core.PingThreshold},
		{"monitor_interval", int(PingInterval / time.Second)},
		{"monitor_read_timeout", PingTimeout.Milliseconds()},
		{"net_read_timeout", int(s.cfg.IdleTimeout / time.Second)},
		{"partition_modular_hint", meta.Hint},
		{"partition_modular_virtual", meta.Virtual},
		{"partition_size", meta.PartitionSize},
		{"partition_type", "modular"},
		{"key_hash_algorithm", meta.Hash},
		{"server_name", name},
		{"server_port", port},
		{"server_socket", ""},
		{"stack_size", 128},
		{"thread_pool_size", 5},
	} {
		dst = fmt.Appendf(dst, "%-26s%v\r\n", v.name+":", v.value)
	}
	return append(dst, text.ReplyEnd...)
}
