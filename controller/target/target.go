// Package target looks at the cluster that this one is replicated to, over the
// protocol of its nodes: it may be of any make that speaks it, and its controller, if
// it has one, need not be reachable.
package target

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

// The reasons of an Error.
const (
	ReasonUnreachable       = "target_unreachable"
	ReasonIncompatible      = "target_incompatible" // it answers, but not as a node of a whole cluster
	ReasonMasterDown        = "master_down"         // records of a partition cannot be looked at
	ReasonDigestFailed      = "digest_failed"
	ReasonDigestUnavailable = "digest_unavailable" // a node that knows no digests
)

const (
	// dialTimeout bounds the time that an unreachable node costs.
	dialTimeout = 2 * time.Second
	// silence is how long a node may say nothing.
	silence = 10 * time.Second
	// maxLine bounds a line of an answer, and maxLines how many there may be.
	maxLine, maxLines = 64 << 10, 2 << 20
)

// Error is why a cluster could not be looked at, with a machine-readable reason.
type Error struct {
	Reason string
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func failure(reason, format string, args ...any) error {
	return &Error{reason, fmt.Errorf(format, args...)}
}

// ReasonOf returns the reason of an error.
func ReasonOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ReasonUnreachable
}

// Cluster is what one of its nodes says about a cluster.
type Cluster struct {
	Nodes       []topology.Node // as in its map, sorted by key
	Destination string          // that the node asked replicates to, host:port; empty for none
}

// Keys returns the keys of all nodes.
func (c Cluster) Keys() []string {
	keys := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		keys[i] = n.Key()
	}
	return keys
}

// masters returns the nodes that execute writes.
func (c Cluster) masters() (keys []string) {
	for _, n := range c.Nodes {
		if n.Role == topology.Master && n.State == topology.Active {
			keys = append(keys, n.Key())
		}
	}
	return keys
}

// Look asks a node about its cluster. It fails for one that could not take all
// records: a cluster without masters, or with a partition that has none.
func Look(ctx context.Context, addr string) (Cluster, error) {
	stats, err := askStats(ctx, addr, "stats nodes")
	if err != nil {
		return Cluster{}, err
	}
	c, err := clusterOf(stats)
	if err != nil {
		return Cluster{}, failure(ReasonIncompatible, "%s: %w", addr, err)
	}
	if err := c.whole(); err != nil {
		return Cluster{}, failure(ReasonIncompatible, "%s: %w", addr, err)
	}
	own, err := askStats(ctx, addr, "stats")
	if err != nil {
		return Cluster{}, err
	}
	for _, s := range own {
		if s.name == "cluster_replication_destination" {
			c.Destination = s.value
		}
	}
	return c, nil
}

func (c Cluster) whole() error {
	view, err := topology.BuildView(c.Nodes)
	switch {
	case err != nil:
		return fmt.Errorf("its node map contradicts itself: %w", err)
	case len(view.Partitions) == 0:
		return errors.New("its cluster has no partitions")
	}
	for _, p := range view.Partitions {
		if p.Master == "" {
			return fmt.Errorf("partition %d of its cluster has no master", p.Number)
		}
	}
	return nil
}

// stat is one line of statistics.
type stat struct{ name, value string }

// clusterOf reads stats nodes.
func clusterOf(stats []stat) (Cluster, error) {
	nodes := map[string]*topology.Node{}
	for _, s := range stats {
		i := strings.LastIndexByte(s.name, ':')
		if i < 0 {
			continue
		}
		key, field := s.name[:i], s.name[i+1:]
		n := nodes[key]
		if n == nil {
			name, port, err := topology.SplitKey(key)
			if err != nil {
				return Cluster{}, err
			}
			n = &topology.Node{Name: name, Port: port, Role: topology.Proxy, Partition: topology.NoPartition}
			nodes[key] = n
		}
		var err error
		switch field {
		case "role":
			n.Role, err = topology.ParseRole(s.value)
		case "state":
			n.State, err = topology.ParseState(s.value)
		case "partition":
			n.Partition, err = strconv.Atoi(s.value)
		case "balance":
			n.Balance, err = strconv.Atoi(s.value)
		case "thread_type":
			n.ThreadType, err = strconv.Atoi(s.value)
		}
		if err != nil {
			return Cluster{}, fmt.Errorf("%s of %s: %w", field, key, err)
		}
	}
	if len(nodes) == 0 {
		return Cluster{}, errors.New("it lists no nodes; it is no node of a flare cluster")
	}
	var c Cluster
	for _, n := range nodes {
		c.Nodes = append(c.Nodes, *n)
	}
	topology.SortNodes(c.Nodes)
	return c, nil
}

// askStats returns the answer to a request for statistics.
func askStats(ctx context.Context, addr, request string) (stats []stat, err error) {
	err = ask(ctx, addr, request, func(line string) error {
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "STAT "), " ")
		if !ok && !strings.HasPrefix(line, "STAT ") {
			return failure(ReasonIncompatible, "%s answers %q to %s; it is no node of a flare cluster", addr, line, request)
		}
		stats = append(stats, stat{name, value})
		return nil
	})
	return stats, err
}

// ask sends a request and gives each line of the answer to take, until END. A node
// that says nothing for a while is given up.
func ask(ctx context.Context, addr, request string, take func(line string) error) error {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return &Error{ReasonUnreachable, err}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	r := bufio.NewReaderSize(conn, maxLine)
	conn.SetDeadline(time.Now().Add(silence))
	if _, err := conn.Write([]byte(request + "\r\n")); err != nil {
		return &Error{ReasonUnreachable, err}
	}
	for range maxLines {
		conn.SetReadDeadline(time.Now().Add(silence))
		line, err := r.ReadSlice('\n')
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return failure(ReasonUnreachable, "%s: answer to %s: %w", addr, request, err)
		}
		text := strings.TrimRight(string(line), "\r\n")
		if text == "END" {
			return nil
		}
		if err := take(text); err != nil {
			return err
		}
	}
	return failure(ReasonIncompatible, "%s: the answer to %s has no end", addr, request)
}

// sortedUnique returns the keys in order, each once.
func sortedUnique(keys []string) []string {
	keys = slices.Clone(keys)
	slices.Sort(keys)
	return slices.Compact(keys)
}
