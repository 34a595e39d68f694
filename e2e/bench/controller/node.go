package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// Codes of the node map.
const (
	master, slave, proxy         = 0, 1, 2
	active, prepare, down, ready = 0, 1, 2, 3
)

// node is one node with its agent, on a loopback address of its own.
type node struct {
	w    *world
	host string
	zone string

	life sync.WaitGroup // what runs until it dies

	mu        sync.Mutex
	ln        net.Listener
	port      int
	own       []byte // how its line in a map begins
	conns     map[net.Conn]struct{}
	alive     bool
	end       context.CancelFunc // of the agent
	started   time.Time          // of the agent
	instance  string
	lives     int
	changed   chan struct{} // capacity 1: the agent has something to report
	version   uint64
	role      int
	state     int
	partition int
	held      int // whose data it would have, -1 for none
	epoch     uint64
	session   uint64
	index     uint64
	down      int // nodes that are down in the last map
	bytes     int // of it
}

func newNode(w *world, i int) *node {
	return &node{w: w, host: fmt.Sprintf("127.%d.%d.%d", 8+i/62500, i/250%250, 1+i%250), zone: "zone-" + string(rune('a'+i%2)), held: -1, partition: -1, role: proxy}
}

// live starts the process, and the agent if it does not run, and registers.
func (n *node) live(ctx context.Context, first bool) error {
	address := n.host + ":0"
	if !first {
		address = net.JoinHostPort(n.host, strconv.Itoa(n.port))
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.lives++
	n.ln, n.port = ln, ln.Addr().(*net.TCPAddr).Port
	n.own = fmt.Appendf(nil, "NODE %s %d ", n.host, n.port)
	n.conns = map[net.Conn]struct{}{}
	n.alive, n.version, n.role, n.state, n.partition = true, 0, proxy, active, -1
	n.instance = fmt.Sprintf("%08x%08x", n.port, n.lives)
	agent := n.end != nil
	if !agent {
		n.changed = make(chan struct{}, 1)
		n.started = time.Now()
		var running context.Context
		running, n.end = context.WithCancel(ctx)
		n.w.wg.Go(func() { n.agent(running) })
	}
	hello := fmt.Sprintf("node hello %s %d instance=%s partition=%d epoch=%d index=%d history=-\r\n", n.host, n.port, n.instance, n.held, n.epoch, n.index)
	n.mu.Unlock()
	n.life.Go(func() { n.accept(ln) })
	n.report()
	for {
		answer, err := n.ask(fmt.Sprintf("node add %s %d\r\n", n.host, n.port), "meta\r\n", hello)
		if err == nil && answer == "OK" {
			return nil
		}
		select { // as flared does when it is refused
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("register %s: %w (%s, %v)", n.host, ctx.Err(), answer, err)
		}
	}
}

// ask sends commands to the index, one after the other, and returns the last line of
// the last answer. A refusal ends it.
func (n *node) ask(commands ...string) (line string, err error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(n.host)}, Timeout: 5 * time.Second}
	c, err := d.Dial("tcp", n.w.ctl.index)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	r := bufio.NewReaderSize(c, 16<<10)
	for _, command := range commands {
		if _, err := io.WriteString(c, command); err != nil {
			return "", err
		}
		for list := strings.HasPrefix(command, "node add") || command == "meta\r\n"; ; {
			line, err = r.ReadString('\n')
			if err != nil {
				return "", err
			}
			line = strings.TrimRight(line, "\r\n")
			if strings.Contains(line, "ERROR") {
				return line, nil
			}
			if !list || line == "END" {
				break
			}
		}
	}
	return line, nil
}

// die ends the process at once, and the agent too if it is the whole pod.
func (n *node) die(pod bool) {
	n.mu.Lock()
	n.alive = false
	if n.ln != nil {
		n.ln.Close()
	}
	for c := range n.conns {
		c.Close()
	}
	if pod && n.end != nil {
		n.end()
		n.end = nil
	}
	n.mu.Unlock()
	n.report()
	n.life.Wait()
}

// report lets the agent report now.
func (n *node) report() {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (n *node) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		n.mu.Lock()
		if !n.alive {
			c.Close()
		}
		n.conns[c] = struct{}{}
		n.mu.Unlock()
		n.life.Go(func() { n.serve(c) })
	}
}

// serve answers the index.
func (n *node) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		answer := "OK\r\n"
		if rest, ok := bytes.CutPrefix(line, []byte("node sync ")); ok {
			version, err := strconv.ParseUint(string(bytes.TrimSpace(rest)), 10, 64)
			if err != nil {
				return
			}
			if err := n.take(r, version); err != nil {
				return
			}
		} else if bytes.HasPrefix(line, []byte("stats")) {
			n.mu.Lock()
			answer = fmt.Sprintf("STAT node_map_version %d\r\nEND\r\n", n.version)
			n.mu.Unlock()
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

// take reads a map.
func (n *node) take(r *bufio.Reader, version uint64) error {
	size, dead, role, state, partition, epoch := 0, 0, proxy, down, -1, uint64(0)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		size += len(line)
		if bytes.HasPrefix(line, []byte("END")) {
			break
		}
		if bytes.Contains(line, []byte(" 2 2 -1 ")) {
			dead++
		}
		if rest, ok := bytes.CutPrefix(line, n.own); ok {
			var balance, thread int
			if _, err := fmt.Sscan(string(rest), &role, &state, &partition, &balance, &thread, &epoch); err != nil {
				return err
			}
		}
	}
	n.mu.Lock()
	later := version > n.version
	if later {
		n.version, n.bytes, n.down = version, size, dead
		n.role, n.state, n.partition, n.epoch = role, state, partition, epoch
		if partition >= 0 {
			n.held = partition
		}
		n.index++
	}
	catchUp := later && role == slave && state == prepare
	n.session++
	command := fmt.Sprintf("node state %s %d active %d %d\r\n", n.host, n.port, epoch, n.session)
	n.mu.Unlock()
	if later {
		n.report()
	}
	if catchUp {
		// It has nothing to fetch; its master would tell it so.
		n.life.Go(func() { _, _ = n.ask(command) })
	}
	return nil
}

// agent is linked to the controller, and reports.
func (n *node) agent(ctx context.Context) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(n.host)}}
	conn, err := grpc.NewClient("passthrough:///"+n.w.ctl.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithReadBufferSize(2<<10), grpc.WithWriteBufferSize(2<<10),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }))
	if err != nil {
		return
	}
	defer conn.Close()
	for ctx.Err() == nil {
		if n.link(ctx, conn) != nil {
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

func (n *node) link(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := controllerv1.NewAgentLinkServiceClient(conn).Attach(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				ended <- err
				return
			}
		}
	}()
	n.mu.Lock()
	changed := n.changed
	n.mu.Unlock()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := stream.Send(&controllerv1.AttachRequest{Status: n.status()}); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-changed:
		case err := <-ended:
			return err
		case <-ctx.Done():
			return errors.Join(ctx.Err(), stream.CloseSend())
		}
	}
}

// status is what the agent says.
func (n *node) status() *agentv1.AgentStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := net.JoinHostPort(n.host, strconv.Itoa(n.port))
	n.index++
	s := &agentv1.NodeStatus{
		Node: key, Instance: n.instance, Serving: n.version > 0, MapVersion: n.version,
		Role: agentv1.Role_ROLE_PROXY, State: agentv1.State_STATE_ACTIVE,
		Partition: agentv1.OptionalPartition(n.partition), DataPartition: agentv1.OptionalPartition(n.held),
		LeaseToken: uint64(time.Now().UnixNano()),
	}
	if n.held >= 0 {
		s.Lsn = &agentv1.Lsn{Epoch: max(1, n.epoch), Index: n.index}
	}
	switch n.role {
	case master:
		s.Role = agentv1.Role_ROLE_MASTER
		s.LeaseEpoch = n.epoch
	case slave:
		s.Role = agentv1.Role_ROLE_SLAVE
	}
	if n.state == prepare {
		s.State = agentv1.State_STATE_PREPARE
	}
	return &agentv1.AgentStatus{Node: key, FlaredAlive: n.alive, Zone: n.zone, AgentStartedAt: timestamppb.New(n.started), Flared: s}
}
