// Package procs runs a whole flare cluster as plain processes of one machine:
// a standalone controller and, for each node, flared with its agent. It is
// what `make run` shows a newcomer and what the integration tests break.
package procs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Options describes the cluster to start.
type Options struct {
	// BinDir holds flared, flare-agent and flare-controller.
	BinDir string
	// Dir receives data, logs and sockets. Sockets limit its length to about 80 bytes.
	Dir string
	// Partitions and Replicas (nodes a partition, master included).
	Partitions, Replicas int
	// Zones are given to the nodes in turn; default zone-a and zone-b.
	Zones []string
	// ReplicationMode is sync (default) or async.
	ReplicationMode string
	// Spec holds further lines of the FlareCluster's spec, indented by two spaces.
	Spec string
	// FlaredArgs are further options of every flared.
	FlaredArgs []string
	// DataDirs are the data directories of the first nodes, on other disks for
	// example; the others have theirs below Dir.
	DataDirs []string
	// Record lets the controller record all it decides on in Cluster.Recording.
	Record bool
	// Controller, when set, is where the nodes find theirs; none is started then.
	Controller *Endpoint
}

// Endpoint is where a controller is found.
type Endpoint struct{ Index, GRPC string }

// Cluster is a running set of processes.
type Cluster struct {
	opts       Options
	Nodes      []*Node
	Controller *Process
	// IndexAddr, ControllerAddr and ControllerHTTP are the controller's index
	// protocol, gRPC and HTTP addresses.
	IndexAddr, ControllerAddr, ControllerHTTP string
	// Manifest is the FlareCluster file that the controller watches.
	Manifest string
	// ConfigDir is what every agent watches, as /etc/flared is in a pod.
	ConfigDir string
	// NodeList is the list of nodes that the controller watches; it does not exist
	// before WriteNodes.
	NodeList string
	// Recording is what the controller records, with Options.Record.
	Recording string
}

// Node is one data node: flared and its agent.
type Node struct {
	// Addr is where clients connect, and the node's key in the map.
	Addr string
	// AgentAddr is the agent's gRPC address.
	AgentAddr string
	// Zone is told to the controller by the agent.
	Zone    string
	DataDir string

	Flared, Agent *Process
}

// Start starts every process and returns at once; WaitReady waits for the
// cluster. What was started is stopped again on an error.
func Start(o Options) (*Cluster, error) {
	if o.Zones == nil {
		o.Zones = []string{"zone-a", "zone-b"}
	}
	if o.ReplicationMode == "" {
		o.ReplicationMode = "sync"
	}
	c := &Cluster{opts: o}
	if err := c.start(); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) start() error {
	o := c.opts
	state := filepath.Join(o.Dir, "controller")
	if err := os.MkdirAll(state, 0o755); err != nil {
		return err
	}
	c.Manifest = filepath.Join(o.Dir, "cluster.yaml")
	c.ConfigDir = filepath.Join(state, "config")
	if err := c.WriteSpec(o.Spec); err != nil {
		return err
	}
	c.NodeList = filepath.Join(o.Dir, "nodes.yaml")
	// index, gRPC, HTTP, metrics; then four a node.
	nodes := o.Partitions * o.Replicas
	ports, err := FreeAddrs(4 + 4*nodes)
	if err != nil {
		return err
	}
	if e := o.Controller; e != nil {
		c.IndexAddr, c.ControllerAddr = e.Index, e.GRPC
	} else {
		c.IndexAddr, c.ControllerAddr, c.ControllerHTTP = ports[0], ports[1], ports[2]
		args := []string{"--standalone", c.Manifest, "--nodes", c.NodeList, "--state-dir", state,
			"--index", ports[0], "--grpc", ports[1], "--http", ports[2], "--metrics", ports[3]}
		if o.Record {
			c.Recording = filepath.Join(o.Dir, "recording")
			args = append(args, "--record", c.Recording)
		}
		c.Controller, err = c.process("controller", "flare-controller", args...)
		if err != nil {
			return err
		}
	}
	for i := range nodes {
		if err := c.addNode(ports[4+4*i:]); err != nil {
			return err
		}
	}
	return nil
}

// AddNode starts one more node.
func (c *Cluster) AddNode() (*Node, error) {
	ports, err := FreeAddrs(4)
	if err != nil {
		return nil, err
	}
	if err := c.addNode(ports); err != nil {
		return nil, err
	}
	return c.Nodes[len(c.Nodes)-1], nil
}

// addNode starts a node on four addresses.
func (c *Cluster) addNode(p []string) error {
	o, i := c.opts, len(c.Nodes)
	dir := filepath.Join(o.Dir, fmt.Sprintf("node%d", i))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	n := &Node{Addr: p[0], AgentAddr: p[1], Zone: o.Zones[i%len(o.Zones)], DataDir: filepath.Join(dir, "data")}
	if i < len(o.DataDirs) {
		n.DataDir = o.DataDirs[i]
	}
	c.Nodes = append(c.Nodes, n)
	sock := filepath.Join(dir, "flared.sock")
	host, port, err := net.SplitHostPort(n.Addr)
	if err != nil {
		return err
	}
	n.Agent, err = c.process(fmt.Sprintf("agent%d", i), "flare-agent",
		"--socket", sock, "--config-dir", c.ConfigDir, "--node", n.Addr, "--controller", c.ControllerAddr,
		"--zone", n.Zone, "--listen", n.AgentAddr, "--http", p[2], "--metrics", p[3])
	if err != nil {
		return err
	}
	n.Flared, err = c.process(fmt.Sprintf("flared%d", i), "flared", append([]string{
		"--server-name=" + host, "--server-port=" + port, "--data-dir=" + n.DataDir,
		"--index-servers=" + c.IndexAddr, "--agent-socket=" + sock}, o.FlaredArgs...)...)
	return err
}

// Scale asks for other numbers of partitions and replicas; the nodes are the
// caller's to add or to end.
func (c *Cluster) Scale(partitions, replicas int) error {
	c.opts.Partitions, c.opts.Replicas = partitions, replicas
	return c.WriteSpec(c.opts.Spec)
}

// WriteNodes lists the nodes there are, in the order in which they are kept.
func (c *Cluster) WriteNodes(nodes []*Node, draining ...*Node) error {
	var b strings.Builder
	b.WriteString("nodes:\n")
	for _, n := range nodes {
		fmt.Fprintf(&b, "- node: %s\n  zone: %s\n  draining: %t\n", n.Addr, n.Zone, slices.Contains(draining, n))
	}
	return replaceFile(c.NodeList, b.String())
}

// replaceFile renames a file into place, so that nobody reads half of it.
func replaceFile(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// WriteSpec writes the FlareCluster file; extra holds further lines of its
// spec, indented by two spaces.
func (c *Cluster) WriteSpec(extra string) error {
	text := fmt.Sprintf("apiVersion: flarekv.io/v1\nkind: FlareCluster\nmetadata:\n  name: local\nspec:\n  partitions: %d\n  replicas: %d\n  replication:\n    mode: %s\n%s",
		c.opts.Partitions, c.opts.Replicas, c.opts.ReplicationMode, extra)
	return replaceFile(c.Manifest, text)
}

// Topology asks the controller.
func (c *Cluster) Topology(ctx context.Context) (*controllerv1.Topology, error) {
	conn, err := grpc.NewClient(c.ControllerAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r, err := controllerv1.NewControllerServiceClient(conn).GetTopology(ctx, &controllerv1.GetTopologyRequest{})
	if err != nil {
		return nil, err
	}
	return r.Topology, nil
}

// WaitFor polls the topology until ok holds or ctx ends; the error then tells
// the last topology.
func (c *Cluster) WaitFor(ctx context.Context, ok func(*controllerv1.Topology) bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		t, err := c.Topology(ctx)
		if err == nil && ok(t) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the cluster: %w; last answer: %v, %v", ctx.Err(), t, err)
		case p := <-c.exited():
			return fmt.Errorf("waiting for the cluster: %s ended: %w (log: %s)", p.Name, p.Err(), p.LogFile)
		case <-tick.C:
		}
	}
}

// WaitReady waits until every partition has its master and all its replicas in sync.
func (c *Cluster) WaitReady(ctx context.Context) error {
	return c.WaitFor(ctx, func(t *controllerv1.Topology) bool {
		return len(t.Partitions) == c.opts.Partitions && !slices.ContainsFunc(t.Partitions, func(p *controllerv1.PartitionTopology) bool {
			return p.Master == "" || len(p.InSyncReplicas) < c.opts.Replicas-1
		})
	})
}

// exited yields the first process that ended without being asked to.
func (c *Cluster) exited() <-chan *Process {
	ch := make(chan *Process, 1)
	for _, p := range c.processes() {
		if !p.Running() && !p.stopped.Load() {
			ch <- p
			break
		}
	}
	return ch
}

func (c *Cluster) processes() []*Process {
	var ps []*Process
	for _, n := range c.Nodes {
		ps = append(ps, n.Flared, n.Agent)
	}
	ps = append(ps, c.Controller)
	return slices.DeleteFunc(ps, func(p *Process) bool { return p == nil })
}

// Stop asks every process to end, data nodes first, and kills what has not
// ended ten seconds later.
func (c *Cluster) Stop() error {
	var errs []error
	var flareds, rest []*Process
	for _, n := range c.Nodes {
		if n.Flared != nil {
			flareds = append(flareds, n.Flared)
		}
		if n.Agent != nil {
			rest = append(rest, n.Agent)
		}
	}
	if c.Controller != nil {
		rest = append(rest, c.Controller)
	}
	for _, group := range [][]*Process{flareds, rest} {
		for _, p := range group {
			p.Terminate()
		}
		for _, p := range group {
			errs = append(errs, p.WaitOrKill(10*time.Second))
		}
	}
	return errors.Join(errs...)
}

// NodeByAddr returns the node with that key.
func (c *Cluster) NodeByAddr(addr string) *Node {
	for _, n := range c.Nodes {
		if n.Addr == addr {
			return n
		}
	}
	return nil
}
