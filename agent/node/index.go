package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/agent/names"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

const (
	// indexDialTimeout bounds the attempt at one address of an index server.
	indexDialTimeout = time.Second
	// indexReplyTimeout bounds the wait for an answer; the index makes changes
	// durable before it answers.
	indexReplyTimeout = 5 * time.Second
	// registerPause is the time between attempts to register.
	registerPause = 250 * time.Millisecond
	// registerLogInterval is the time between log lines about waiting.
	registerLogInterval = 5 * time.Second
)

// An indexClient talks to the index, on a new connection for each contact.
type indexClient struct {
	name     string // of this node
	port     int
	servers  func() []string // host:port of the index servers, in the order to try
	instance string
	names    *names.Book
	position func() position
	logger   *slog.Logger

	// extended is set once the index has understood node hello: it knows epochs
	// and sessions. The original index does not.
	extended atomic.Bool
}

// position is what a node says about its data when it registers.
type position struct {
	partition int
	lsn       topology.LSN
	history   string
}

// registration is what the index answers.
type registration struct {
	nodes []topology.Node
	meta  topology.Meta
}

// dial connects to the first index server that accepts, trying every address
// its name stands for.
func (x *indexClient) dial(ctx context.Context) (net.Conn, error) {
	servers := x.servers()
	if len(servers) == 0 {
		return nil, errors.New("no index server is configured, want index-servers = host:port[,host:port...]")
	}
	var errs []error
	for _, server := range servers {
		host, port, err := net.SplitHostPort(server)
		if err != nil {
			errs = append(errs, fmt.Errorf("index server %q: %w", server, err))
			continue
		}
		lookup, cancel := context.WithTimeout(ctx, indexDialTimeout)
		addrs, err := x.names.Resolve(lookup, host)
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("index server %s: %w", server, err))
			continue
		}
		for _, addr := range addrs {
			d := net.Dialer{Timeout: indexDialTimeout}
			conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(addr, port))
			if err == nil {
				return conn, nil
			}
			errs = append(errs, fmt.Errorf("index server %s: %w", server, err))
		}
	}
	return nil, errors.Join(errs...)
}

// exchange runs fn on a new connection to the index.
func (x *indexClient) exchange(ctx context.Context, fn func(*indexConn) error) error {
	conn, err := x.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	return fn(&indexConn{conn: conn, r: text.NewReplyReader(conn, text.ReplyOptions{})})
}

type indexConn struct {
	conn net.Conn
	r    *text.ReplyReader
}

// send sends one request; the answer is to be read within indexReplyTimeout.
func (c *indexConn) send(req *text.Request) error {
	if err := c.conn.SetDeadline(time.Now().Add(indexReplyTimeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(text.AppendRequest(nil, req, nil))
	return err
}

func (x *indexClient) request(cmd text.Command) *text.Request {
	return &text.Request{Command: cmd, Node: text.NodeArgs{Name: x.name, Port: x.port}}
}

// register makes one attempt at the start sequence.
func (x *indexClient) register(ctx context.Context) (registration, error) {
	var reg registration
	err := x.exchange(ctx, func(c *indexConn) (err error) {
		if err = c.send(x.request(text.CmdNodeAdd)); err != nil {
			return fmt.Errorf("node add: %w", err)
		}
		if reg.nodes, err = c.r.ReadNodes(); err != nil {
			return fmt.Errorf("node add: %w", err)
		}
		if err = c.send(&text.Request{Command: text.CmdMeta}); err != nil {
			return fmt.Errorf("meta: %w", err)
		}
		if reg.meta, err = c.r.ReadMeta(); err != nil {
			return fmt.Errorf("meta: %w", err)
		}
		hello := x.request(text.CmdNodeHello)
		p := x.position()
		hello.Node.Instance, hello.Node.Partition = x.instance, p.partition
		hello.Node.Position, hello.Node.History = p.lsn, p.history
		if err = c.send(hello); err != nil {
			return fmt.Errorf("node hello: %w", err)
		}
		var refused *text.ErrorReply
		switch err = c.r.ReadOK(); {
		case err == nil:
			x.extended.Store(true)
		case errors.As(err, &refused) && refused.Code == text.CodeError:
			// An index that does not know the command.
			x.extended.Store(false)
		default:
			return fmt.Errorf("node hello: %w", err)
		}
		return nil
	})
	return reg, err
}

// registerUntil registers, however long the index refuses or cannot be
// reached. waiting is told about each new reason.
func (x *indexClient) registerUntil(ctx context.Context, waiting func(reason string)) (registration, error) {
	var logged time.Time
	for {
		reg, err := x.register(ctx)
		if err == nil {
			return reg, nil
		}
		if ctx.Err() != nil {
			return reg, ctx.Err()
		}
		reason := "index_unreachable"
		var refused *text.ErrorReply
		if errors.As(err, &refused) {
			reason = "registration_refused"
		}
		waiting(reason)
		if time.Since(logged) >= registerLogInterval {
			logged = time.Now()
			x.logger.Warn("waiting for the index to take this node", "reason", reason,
				"index_servers", x.servers(), "error", err)
		}
		select {
		case <-ctx.Done():
			return reg, ctx.Err()
		case <-time.After(registerPause):
		}
	}
}

// call sends one request about a node and expects OK.
func (x *indexClient) call(ctx context.Context, req *text.Request) error {
	err := x.exchange(ctx, func(c *indexConn) error {
		if err := c.send(req); err != nil {
			return err
		}
		return c.r.ReadOK()
	})
	if err != nil {
		return fmt.Errorf("index: %s: %w", req.Command, err)
	}
	return nil
}

// active reports that this node, a replica of the partition, is in sync under the given grant.
func (x *indexClient) active(ctx context.Context, partition int, epoch, session uint64) error {
	req := x.request(text.CmdNodeState)
	req.Node.State = topology.Active
	if x.extended.Load() {
		req.Node.Partition, req.Node.Epoch, req.Node.Session, req.Node.HasSession = partition, epoch, session, true
	}
	return x.call(ctx, req)
}

// copied reports that this node has copied everything its master has. A master
// that is copied gives no grants.
func (x *indexClient) copied(ctx context.Context) error {
	req := x.request(text.CmdNodeState)
	req.Node.State = topology.Active
	return x.call(ctx, req)
}

// down reports that this node cannot be relied upon.
func (x *indexClient) down(ctx context.Context) error {
	req := x.request(text.CmdNodeState)
	req.Node.State = topology.Down
	return x.call(ctx, req)
}

// filled reports that this node has all records of the partition that is being
// added.
func (x *indexClient) filled(ctx context.Context) error {
	req := x.request(text.CmdNodeState)
	req.Node.State = topology.Ready
	return x.call(ctx, req)
}

// resign asks the index to relieve this node of its role.
func (x *indexClient) resign(ctx context.Context) error {
	req := x.request(text.CmdNodeRole)
	req.Node.Role, req.Node.Balance, req.Node.Partition = topology.Proxy, 0, topology.NoPartition
	return x.call(ctx, req)
}

// behind asks the index to take a replica out of the partition's in-sync set. The
// replica may have gone to another partition, in which epochs mean something else.
func (x *indexClient) behind(ctx context.Context, partition int, replica string, epoch, session uint64) error {
	name, port, err := topology.SplitKey(replica)
	if err != nil {
		return err
	}
	if !x.extended.Load() {
		// The original index has no such set: it refuses to take a slave back to
		// prepare, and what it promotes does not depend on who has what. To wait for
		// its answer would stop all writes until it notices a dead slave itself.
		return nil
	}
	return x.call(ctx, &text.Request{Command: text.CmdNodeBehind,
		Node: text.NodeArgs{Name: name, Port: port, Partition: partition, Epoch: epoch, Session: session, HasSession: true}})
}

// handOver asks the index to make a replica, which is in sync by the grant of that
// session, the master in this node's place.
func (x *indexClient) handOver(ctx context.Context, replica string, epoch, session, paused uint64) (handoverAnswer, string) {
	if !x.extended.Load() {
		return handoverRefused, "not_supported"
	}
	req := x.request(text.CmdNodeHandover)
	req.Node.Epoch, req.Node.Session, req.Node.HasSession, req.Node.Paused = epoch, session, true, paused
	var err error
	if req.Node.Target, req.Node.TargetPort, err = topology.SplitKey(replica); err != nil {
		return handoverRefused, reasonTargetNotInSync
	}
	sent := false
	err = x.exchange(ctx, func(c *indexConn) error {
		sent = true
		if err := c.send(req); err != nil {
			return err
		}
		return c.r.ReadOK()
	})
	var refused *text.ErrorReply
	switch {
	case err == nil:
		return handoverAgreed, ""
	case !sent:
		x.logger.Warn("index cannot be reached to hand the role over, trying again", "error", err)
		return handoverUnsent, ""
	case errors.As(err, &refused) && refused.Code == text.CodeError:
		return handoverRefused, "not_supported"
	case errors.As(err, &refused) && refused.Text != "" && !strings.Contains(refused.Text, " "):
		// A refusal is a reason in one word; what takes more tells of trouble, after
		// which the change may still be made.
		return handoverRefused, refused.Text
	}
	x.logger.Warn("index did not answer whether the role is handed over, asking again", "error", err)
	return handoverUnknown, ""
}

// shutdown tells the index that this node leaves.
func (x *indexClient) shutdown(ctx context.Context) error {
	return x.call(ctx, x.request(text.CmdShutdown))
}
