package node

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/storage"
)

// single starts a node that is the master of the only partition.
func single(t *testing.T, tunes ...tune) *testNode {
	t.Helper()
	x := newTestIndex(t)
	n := startNode(t, x, tunes...)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	return n
}

func fill(t *testing.T, n *testNode, records int, value string) {
	t.Helper()
	for i := range records {
		_, err := n.db.Update(t.Context(), fmt.Appendf(nil, "key%06d", i), func(storage.Entry) storage.Change {
			return storage.Change{Op: storage.Put, Record: storage.Record{Version: 1, Value: []byte(value)}}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestDump(t *testing.T) {
	n := single(t)
	c := dial(t, n)
	c.ask("set a 7 4102444800 3\r\nxyz\r\n", "STORED\r\n")
	c.ask("set b 0 2600000 1\r\nx\r\n", "STORED\r\n") // expired
	c.ask("set c 0 0 0 12\r\n\r\n", "STORED\r\n")
	c.ask("dump\r\n", "VALUE a 7 3 1 4102444800\r\nxyz\r\nVALUE c 0 0 12 0\r\n\r\nEND\r\n")
	c.ask("dump_key\r\n", "KEY a\r\nKEY b\r\nKEY c\r\nEND\r\n")
	c.ask("dump 0 0 2\r\ndump_key 1 2\r\nping\r\n", "VALUE a 7 3 1 4102444800\r\nxyz\r\nVALUE c 0 0 12 0\r\n\r\nEND\r\nKEY b\r\nEND\r\nOK\r\n")
	// More partitions than the cluster can have hold nothing.
	c.ask("dump 0 0 5000\r\n", "END\r\n")
}

// TestDumpBusyAndKilled has one dump that takes for ever.
func TestDumpBusyAndKilled(t *testing.T) {
	n := single(t)
	fill(t, n, 3, "x")
	slow, c := dial(t, n), dial(t, n)
	slow.ask("dump 2000000000\r\n", "VALUE key000000 0 1 1 0\r\nx\r\n")
	c.ask("dump\r\n", "SERVER_ERROR database busy\r\n")
	c.ask("dump_key\r\n", "SERVER_ERROR database busy\r\n")
	id := threadOf(t, c, slow)
	c.ask("kill "+id+"\r\n", "OK\r\n")
	slow.ask("", "SERVER_ERROR operation interrupted\r\n")
	if _, err := slow.r.ReadByte(); err != io.EOF {
		t.Errorf("the connection of a killed dump: %v", err)
	}
	// The next one has its turn.
	eventually(t, "another dump", func() error {
		if line := dial(t, n).line("dump_key\r\n"); line != "KEY key000000" {
			return fmt.Errorf("got %q", line)
		}
		return nil
	})
	c.ask("kill "+id+"\r\n", "CLIENT_ERROR thread not found\r\n")
}

// TestDumpEndsWithTheNode: who leaves does not wait for the reader of a dump.
func TestDumpEndsWithTheNode(t *testing.T) {
	n := single(t)
	fill(t, n, 3, "x")
	c := dial(t, n)
	c.ask("dump 2000000000\r\n", "VALUE key000000 0 1 1 0\r\nx\r\n")
	n.stop()
	c.ask("", "SERVER_ERROR operation interrupted\r\n")
}

// TestDumpSlowReader does not read, while the database is replaced.
func TestDumpSlowReader(t *testing.T) {
	n := single(t)
	fill(t, n, 400, strings.Repeat("x", 64<<10)) // 25 MiB, more than sockets hold
	nc, err := net.DialTimeout("tcp", n.key(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(nc)
	io.WriteString(nc, "dump\r\n")
	if _, err := r.Peek(1); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- n.db.Wipe() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("a dump that nobody reads holds the database")
	}
	got, tail := 0, ""
	for !strings.HasPrefix(tail, "SERVER_ERROR") && tail != "END\r\n" {
		if tail, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(tail, "VALUE") {
			got++
		}
	}
	if tail != replyCanceled || got == 400 {
		t.Errorf("%d records, then %q", got, tail)
	}
}

func TestPacer(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, test := range []struct {
		name            string
		wait, bandwidth int64
		records, size   int
		want            time.Duration // altogether
		tolerance       time.Duration // that is still owed at the end
	}{
		{"free", 0, 0, 1000, 1000, 0, 0},
		{"wait", 5000, 0, 100, 1000, 500 * time.Millisecond, 5 * time.Millisecond},
		{"short wait", 10, 0, 1000, 1000, 10 * time.Millisecond, time.Millisecond},
		{"bandwidth", 0, 100, 100, 10 << 10, 10 * time.Second, minPause},
		{"both, wait counts", 200000, 100, 10, 10 << 10, 2 * time.Second, minPause},
		{"both, bandwidth counts", 50000, 100, 10, 10 << 10, time.Second, minPause},
	} {
		p := newPacer(test.wait, test.bandwidth)
		now := now
		var slept time.Duration
		for range test.records {
			d := p.after(test.size, now)
			if d > 0 && d < time.Millisecond {
				t.Errorf("%s: a pause of %s", test.name, d)
			}
			slept += d
			now = now.Add(d)
		}
		if slept > test.want || slept < test.want-test.tolerance {
			t.Errorf("%s: slept %s, want %s", test.name, slept, test.want)
		}
	}
	// A reader that takes its time has no credit afterwards.
	p := newPacer(0, 100)
	p.after(10<<10, now)
	now = now.Add(time.Hour)
	if d := p.after(20<<10, now); d != 200*time.Millisecond {
		t.Errorf("after an hour: %s", d)
	}
}
