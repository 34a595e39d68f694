package node

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
)

// threads returns the answer to stats threads.
func threads(c *testClient, part string) string {
	c.t.Helper()
	io.WriteString(c.nc, "stats threads"+part+"\r\n")
	c.nc.SetDeadline(time.Now().Add(patience))
	var b strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatal(err)
		}
		b.WriteString(line)
		if line == "END\r\n" {
			return b.String()
		}
	}
}

// threadOf asks c for the id of another connection.
func threadOf(t *testing.T, c, other *testClient) string {
	t.Helper()
	all := threads(c, "")
	m := regexp.MustCompile(`STAT (\d+):peer ` + regexp.QuoteMeta(other.nc.LocalAddr().String()) + `\r`).FindStringSubmatch(all)
	if m == nil {
		t.Fatalf("no thread for %s in\n%s", other.nc.LocalAddr(), all)
	}
	return m[1]
}

func TestThreads(t *testing.T) {
	x := newTestIndex(t)
	a, b := startNode(t, x), startNode(t, x)
	x.master(a.key(), 0)
	a.settled(dutyMaster)
	x.slave(b.key(), 0, 1)
	inSync(t, x, b)
	c, idle := dial(t, a), dial(t, a)
	idle.ask("ping\r\n", "OK\r\n")
	line := func(id, name, value string) string { return fmt.Sprintf("STAT %s:%s %s\r\n", id, name, value) }
	block := func(id, kind, peer, op, state string) string {
		return line(id, "type", kind) + line(id, "peer", peer) + line(id, "op", op) + line(id, "uptime", "N") +
			line(id, "state", state) + line(id, "info", "") + line(id, "queue", "0") + line(id, "behind", "0")
	}
	masked := func(s string) string {
		return regexp.MustCompile(`:uptime \d+`).ReplaceAllString(s, ":uptime N")
	}
	mine := block(threadOf(t, c, c), "1", c.nc.LocalAddr().String(), "stats", "execute")
	other := block(threadOf(t, c, idle), "1", idle.nc.LocalAddr().String(), "", "wait")
	// A client may have its answer a moment before its connection is idle.
	eventually(t, "both connections are told of", func() error {
		all := masked(threads(c, ""))
		for _, want := range []string{mine, other} {
			if !strings.Contains(all, want) {
				return fmt.Errorf("got\n%s\nwithout\n%s", all, want)
			}
		}
		return nil
	})
	if requests := masked(threads(c, " request")); !strings.Contains(requests, mine) || strings.Contains(requests, "replicate") {
		t.Errorf("threads request:\n%s", requests)
	}
	// The stream to the replica, by the number that the index gave to that node.
	slaves := masked(threads(c, " slave"))
	id := regexp.MustCompile(`^STAT (\d+):type 17\r`).FindStringSubmatch(slaves)
	if id == nil || strings.Count(slaves, ":type ") != 1 || !strings.Contains(slaves, line(id[1], "op", "replicate")) {
		t.Errorf("threads slave:\n%s", slaves)
	}
	if got := threads(c, " queue"); got != "STAT total_thread_queue 0\r\nEND\r\n" {
		t.Errorf("threads queue: %q", got)
	}
	// At the replica, the connection to its master, and the one that forwards.
	d := dial(t, b)
	d.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	got := threads(d, "")
	for _, want := range []string{`STAT \d+:type 3\r\nSTAT \d+:peer ` + a.key() + `\r\nSTAT \d+:op replicate\r\n`,
		`STAT \d+:type 16\r\nSTAT \d+:peer ` + a.key() + `\r\nSTAT \d+:op \r\n`} {
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("got\n%s\nwant %s", got, want)
		}
	}
	if got := threads(d, " slave"); got != "END\r\n" {
		t.Errorf("threads slave at a slave: %q", got)
	}
	// Killing any of them does no lasting harm.
	for _, m := range regexp.MustCompile(`STAT (\d+):type (3|16)\r`).FindAllStringSubmatch(got, -1) {
		d.ask("kill "+m[1]+"\r\n", "OK\r\n")
	}
	eventually(t, "writes through the replica", func() error {
		if line := d.line("set k 0 0 1\r\ny\r\n"); line != "STORED" {
			return fmt.Errorf("got %q", line)
		}
		return nil
	})
	eventually(t, "the replica follows", func() error {
		if mine, theirs := a.db.Position().LSN, b.db.Position().LSN; mine != theirs {
			return fmt.Errorf("%v, master at %v", theirs, mine)
		}
		return nil
	})
}

func TestKillConnection(t *testing.T) {
	n := startNode(t, newTestIndex(t))
	c, victim := dial(t, n), dial(t, n)
	victim.ask("ping\r\n", "OK\r\n")
	id := threadOf(t, c, victim)
	c.ask("kill "+id+"\r\n", "OK\r\n")
	if _, err := victim.r.ReadByte(); err != io.EOF {
		t.Errorf("killed connection: %v", err)
	}
	eventually(t, "the thread is gone", func() error {
		if line := c.line("kill " + id + "\r\n"); line != "CLIENT_ERROR thread not found" {
			return fmt.Errorf("got %q", line)
		}
		return nil
	})
	if next := threadOf(t, c, seen(t, n)); len(next) < len(id) || len(next) == len(id) && next <= id {
		t.Errorf("id %s after %s", next, id)
	}
}

// seen returns a connection that the node has seen.
func seen(t *testing.T, n *testNode) *testClient {
	c := dial(t, n)
	c.ask("ping\r\n", "OK\r\n")
	return c
}
