package node

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

// memory returns the bytes that the heap and the stacks hold.
func memory() int64 {
	var m runtime.MemStats
	for range 3 { // what pools hold outlives two collections
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// An idle connection costs at most 40 KiB, whatever it did before.
func TestIdleConnectionIsCheap(t *testing.T) {
	const (
		connections = 300
		limit       = 40 << 10
	)
	x := newTestIndex(t)
	n := startNode(t, x)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	dial(t, n).ask("set key 0 0 100000\r\n"+strings.Repeat("x", 100000)+"\r\n", "STORED\r\n")
	for _, c := range []struct {
		name, ask string
	}{
		{"get", "get k\r\n"},
		{"set", "set k 0 0 1\r\nx\r\ngets k\r\n"},
		{"long line", "get " + strings.Repeat(strings.Repeat("k", 1000)+" ", 60) + "\r\n"},
		{"big value", "get key\r\n"},
		{"big data block", "set big 0 0 100000\r\n" + strings.Repeat("x", 100000) + "\r\n"},
		{"pipelined", strings.Repeat("set p 0 0 1\r\nx\r\nget p\r\n", 300)},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := memory()
			conns := make([]net.Conn, connections)
			in := make([]byte, 64<<10)
			for i := range conns {
				nc, err := net.Dial("tcp", n.key())
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				conns[i] = nc
				if _, err := io.WriteString(nc, c.ask); err != nil {
					t.Fatal(err)
				}
				// The answer of a last ping is the end of it.
				if _, err := io.WriteString(nc, "ping\r\n"); err != nil {
					t.Fatal(err)
				}
				for tail := ""; !strings.HasSuffix(tail, "OK\r\n"); {
					got, err := nc.Read(in)
					if err != nil {
						t.Fatal(err)
					}
					tail = string(in[max(0, got-8):got])
				}
			}
			each := (memory() - before) / connections
			t.Logf("%d bytes for each of %d connections, both ends", each, connections)
			if each > limit {
				t.Errorf("an idle connection costs %d bytes, want at most %d", each, limit)
			}
		})
	}
}

// A client that asks for much and reads nothing holds a bounded amount of memory,
// disturbs nobody and is closed when it had time enough.
func TestStuckClient(t *testing.T) {
	const size, stuck = 1 << 20, 20
	x := newTestIndex(t)
	n := startNode(t, x)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	dial(t, n).ask(fmt.Sprintf("set big 0 0 %d\r\n%s\r\n", size, strings.Repeat("x", size)), "STORED\r\n")
	other := dial(t, n)
	other.ask("ping\r\n", "OK\r\n")
	before, connections := memory(), n.connections()
	ask := strings.Repeat("get big big big big big big big big\r\n", 1000)
	for range stuck {
		nc, err := net.Dial("tcp", n.key())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := io.WriteString(nc, ask); err != nil {
			t.Fatal(err)
		}
	}
	blocked := func() error {
		var profile strings.Builder
		buf := make([]byte, 4<<20)
		profile.Write(buf[:runtime.Stack(buf, true)])
		if got := strings.Count(profile.String(), "(*conn).flush("); got < stuck {
			return fmt.Errorf("%d of %d connections wait for their client to read", got, stuck)
		}
		return nil
	}
	eventually(t, "output is not taken", blocked)
	if each := (memory() - before) / stuck; each > 4*size {
		t.Errorf("each client that does not read holds %d bytes", each)
	}
	began := time.Now()
	other.ask("set other 0 0 1\r\nx\r\nget other\r\n", "STORED\r\nVALUE other 0 1\r\nx\r\nEND\r\n")
	if took := time.Since(began); took > patience/3 {
		t.Errorf("another client waited %v", took)
	}
	if ok, statuses, err := n.applyText([]byte("net-read-timeout = 1\n")); !ok || err != nil {
		t.Fatalf("%+v, %v", statuses, err)
	}
	// The deadline of a write under way is that of its beginning; a client that
	// comes now is given the shorter time.
	late := dial(t, n)
	if _, err := io.WriteString(late.nc, ask); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a client that takes nothing is closed", func() error {
		if got := n.connections(); got > connections+stuck {
			return fmt.Errorf("%d connections", got)
		}
		return nil
	})
}

// What a client announces costs nothing before it arrives.
func TestAnnouncedBlockCostsNothing(t *testing.T) {
	const clients = 200
	x := newTestIndex(t)
	n := startNode(t, x, func(n *testNode) { n.opts.NetReadTimeout = time.Second })
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	before := memory()
	var conns []*testClient
	for range clients {
		nc, err := net.Dial("tcp", n.key())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		c := &testClient{t, nc, bufio.NewReaderSize(nc, 16)}
		conns = append(conns, c)
		if _, err := io.WriteString(nc, "set a 0 0 60000000\r\nxxx"); err != nil {
			t.Fatal(err)
		}
	}
	if each := (memory() - before) / clients; each > 128<<10 {
		t.Errorf("each of %d clients that announced a value holds %d bytes", clients, each)
	}
	for _, c := range conns {
		c.ask("", "ERROR\r\n")
		if got, err := c.try("", 1); err == nil {
			t.Fatalf("the connection goes on with %q", got)
		}
	}
}
