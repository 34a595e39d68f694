package index

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// counted counts refusals by reason.
type counted struct {
	mu sync.Mutex
	by map[string]int
}

func (c *counted) add(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]int{}
	}
	c.by[reason]++
}

func (c *counted) of(reason string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by[reason]
}

// dialFrom connects from another address of this machine.
func dialFrom(from, to string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return d.Dial("tcp", to)
}

// TestIdleConnections opens ten thousand connections that say nothing, or half a line:
// they take little memory, and neither who was there before nor who comes then is kept
// from being answered.
func TestIdleConnections(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	count := min(10_000, int(limit.Cur)-DefaultMaxConnections-500)
	var refused counted
	c := startController(t, newMemory(1, 1), 1, ServerConfig{Refused: refused.add})
	early := dial(t, c.addr)
	if got := early.ask("ping"); got != "OK" {
		t.Fatal(got)
	}
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := used()
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	for i := range count {
		conn, err := dialFrom("127.0.0.2", c.addr)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		idle = append(idle, conn)
		if i%2 == 0 {
			// It may have been closed already.
			_, _ = io.WriteString(conn, "node ad")
		}
	}
	if got := early.ask("ping"); got != "OK" {
		t.Errorf("who was there before: %q", got)
	}
	startNode(t).register(c, "")
	eventually(t, "all but the limit are closed", func() error {
		if got := refused.of(reasonConnectionLimit); got < count-DefaultMaxConnections {
			return fmt.Errorf("%d of %d were", got, count)
		}
		return nil
	})
	grown := int64(used()) - int64(before)
	t.Logf("%d connections, most of them closed again, take %d KiB with their other ends", count, grown>>10)
	if grown > 128<<20 {
		t.Errorf("%d connections take %d MiB", count, grown>>20)
	}
}

// TestFlood lets one address send registrations of made-up nodes, over as many
// connections as there can be, as fast as they are answered. Another registers and is
// answered meanwhile.
func TestFlood(t *testing.T) {
	var refused counted
	c := startController(t, newMemory(1, 1), 1, ServerConfig{Refused: refused.add, MaxConnections: 32})
	ctx, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer flood.Wait()
	defer stop()
	var sent atomic.Int64
	for i := range 40 {
		flood.Go(func() {
			for j := 0; ctx.Err() == nil; {
				conn, err := dialFrom("127.0.0.2", c.addr)
				if err != nil {
					return
				}
				end := context.AfterFunc(ctx, func() { conn.Close() })
				r := bufio.NewReader(conn)
				for ; err == nil; j++ {
					if _, err = fmt.Fprintf(conn, "node add lie-%d-%d 1\r\n", i, j); err != nil {
						break
					}
					sent.Add(1)
					for line := "NODE"; err == nil && strings.HasPrefix(line, "NODE"); {
						line, err = r.ReadString('\n')
					}
				}
				end()
				conn.Close()
			}
		})
	}
	eventually(t, "the flood runs", func() error {
		if refused.of("too_many_unproven") < 50 {
			return fmt.Errorf("%d refused", refused.of("too_many_unproven"))
		}
		return nil
	})
	at := sent.Load()
	n := startNode(t)
	n.register(c, "instance=a1 partition=-1")
	idx := dial(t, c.addr)
	for range 20 {
		if got := idx.ask("ping"); got != "OK" {
			t.Fatal(got)
		}
	}
	eventually(t, "the node gets its duty and the map", func() error {
		if m, _ := n.last(); len(m.Nodes) == 0 {
			return fmt.Errorf("it has no map")
		}
		return nil
	})
	eventually(t, "the flood goes on", func() error {
		if sent.Load() == at {
			return fmt.Errorf("%d sent", at)
		}
		return nil
	})
	if got := len(c.rt.Topology().Map.Nodes); got > 100 {
		t.Errorf("%d nodes are in the map", got)
	}
}

// TestOneAddressTakesTurns has one address ask for more at once than it may: another
// is answered although none of that is.
func TestOneAddressTakesTurns(t *testing.T) {
	backend := newMemory(1, 1)
	c := startController(t, backend, 1, ServerConfig{MaxPerPeer: 2, CommandTimeout: time.Minute})
	startNode(t).register(c, "")
	backend.fail(true)
	var waiting []net.Conn
	for i := range 20 {
		conn, err := dialFrom("127.0.0.2", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		waiting = append(waiting, conn)
		if _, err := fmt.Fprintf(conn, "node add n%d 1\r\n", i); err != nil {
			t.Fatal(err)
		}
	}
	idx := dial(t, c.addr)
	eventually(t, "two of them are being carried out", func() error {
		if got := strings.Count(strings.Join(idx.list("stats threads request"), "\n"), ":op node_add"); got != 2 {
			return fmt.Errorf("%d are", got)
		}
		return nil
	})
	backend.fail(false)
	for i, conn := range waiting {
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.HasPrefix(got, "NODE ") {
			t.Errorf("request %d: %q, %v", i, got, err)
		}
	}
}

// TestThreads asks what is going on, and ends some of it.
func TestThreads(t *testing.T) {
	c := startController(t, newMemory(1, 1), 1, ServerConfig{})
	n := startNode(t)
	n.register(c, "")
	idx, other := dial(t, c.addr), dial(t, c.addr)
	if got := other.ask("ping"); got != "OK" {
		t.Fatal(got)
	}
	find := func(peer string) string {
		t.Helper()
		id := ""
		for _, l := range idx.list("stats threads") {
			if who, ok := strings.CutSuffix(l, ":peer "+peer); ok {
				id = strings.TrimPrefix(who, "STAT ")
			}
		}
		if id == "" {
			t.Fatalf("no thread of %s", peer)
		}
		return id
	}
	if got := idx.ask("kill %s", find(other.conn.LocalAddr().String())); got != "OK" {
		t.Errorf("kill: %q", got)
	}
	if _, err := other.r.ReadByte(); err != io.EOF {
		t.Errorf("the killed connection: %v", err)
	}
	hears(t, n, 1) // so there is a connection to it
	contact := find(n.key)
	if !strings.Contains(strings.Join(idx.list("stats threads"), "\n"), "STAT "+contact+":type 16") {
		t.Errorf("the contact with the node has not the node's number")
	}
	n.mu.Lock()
	before := len(n.conns)
	n.mu.Unlock()
	if got := idx.ask("kill %s", contact); got != "OK" {
		t.Errorf("kill: %q", got)
	}
	eventually(t, "the node is contacted anew", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.conns) == before {
			return fmt.Errorf("%d connections", before)
		}
		return nil
	})
	for _, id := range []string{"1", "99999"} {
		if got := idx.ask("kill %s", id); got != "CLIENT_ERROR thread not found" {
			t.Errorf("kill %s: %q", id, got)
		}
	}
}

// FuzzIndex sends anything. Whatever it is, what comes back are whole lines, the core
// keeps its invariants, and the next command is answered.
func FuzzIndex(f *testing.F) {
	for _, line := range []string{"ping", "meta", "node add a 1", "node add a 1\r\nnode role a 1 master 1 0\r\nnode state a 1 down",
		"node hello a 1 instance=1f partition=0 epoch=1 index=2 history=-", "node behind a 1 1 2", "node handover a 1 b 2 1 1 1", "node state a 1 active 1 1",
		"node remove a 1", "shutdown a 1", "stats", "stats nodes", "stats threads queue", "show variables", "kill 7", "<a:1>node add b 2", "set k 0 0 3\r\nabc",
		"node add a\x00b -1", "node role a 1 slave 99999999999999999999 -1", "node", "verbosity 1 noreply", "version x", "\x80\x00"} {
		f.Add([]byte(line + "\r\n"))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		d := newDialogue(t)
		if len(in) > 0 && in[len(in)-1] != '\n' {
			in = append(in, '\n')
		}
		conn := &lineConn{in: strings.NewReader(string(in))}
		c := d.server.admit(t.Context(), conn)
		d.server.talk(t.Context(), c)
		d.server.dismiss(c)
		out := conn.out.String()
		if out != "" && !strings.HasSuffix(out, "\r\n") {
			t.Errorf("%q is answered with %q", in, out)
		}
		if got := d.ask("ping"); got != "OK" {
			t.Errorf("afterwards: %q", got)
		}
		if err := d.c.state.Saved.Validate(); err != nil {
			t.Errorf("%q leads to a state that cannot be read again: %v", in, err)
		}
	})
}
