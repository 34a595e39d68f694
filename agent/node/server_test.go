package node

import (
	"strings"
	"testing"
)

func TestSingleNode(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x)
	c := dial(t, n)
	c.ask("get a\r\n", "END\r\n")
	c.ask("set a 0 0 1\r\nx\r\n", "SERVER_ERROR no partition available\r\n")
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	c.ask("set a 5 0 3\r\nabc\r\n", "STORED\r\n")
	c.ask("get a\r\n", "VALUE a 5 3\r\nabc\r\nEND\r\n")
	c.ask("gets a b a\r\n", "VALUE a 5 3 1\r\nabc\r\nVALUE a 5 3 1\r\nabc\r\nEND\r\n")
	c.ask("add a 0 0 1\r\nx\r\nreplace a 1 0 1\r\n7\r\nincr a 5\r\ndecr a 20\r\ngat a 100\r\ntouch a 0\r\n",
		"NOT_STORED\r\nSTORED\r\n12\r\n0\r\nVALUE a 1 1\r\n0\r\nTOUCHED\r\n")
	c.ask("append a 0 0 2\r\nxy\r\nprepend a 0 0 1\r\n-\r\ngets a\r\n", "STORED\r\nSTORED\r\nVALUE a 1 4 6\r\n-0xy\r\nEND\r\n")
	c.ask("cas a 0 0 1 5\r\nz\r\ncas a 0 0 1 6\r\nz\r\ncas nope 0 0 1 6\r\nz\r\n", "EXISTS\r\nSTORED\r\nNOT_FOUND\r\n")
	c.ask("delete a\r\ndelete a\r\nget a\r\n", "DELETED\r\nNOT_FOUND\r\nEND\r\n")
	c.ask("set a 0 0 1 noreply\r\nx\r\nget a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n")
	c.ask("version\r\nping\r\nverbosity 1\r\nverbosity 1 noreply\r\nbogus\r\nkeys a 1\r\ndump_key\r\nstats items\r\n",
		"VERSION flare-9.9.9\r\nOK\r\nOK\r\nERROR\r\nKEY a\r\nEND\r\nKEY a\r\nEND\r\nEND\r\n")
	if got := c.line("stats nodes\r\n"); got != "STAT "+n.key()+":role master" {
		t.Errorf("stats nodes: %s", got)
	}
	if got := dial(t, n).line("stats\r\n"); !strings.HasPrefix(got, "STAT pid ") {
		t.Errorf("stats: %s", got)
	}
	c = dial(t, n)
	c.ask("flush_all\r\nget a\r\n", "OK\r\nEND\r\n")
	c.ask("set a 0 0 1\r\nx\r\ngets a\r\n", "STORED\r\nVALUE a 0 1 1\r\nx\r\nEND\r\n")
	n.stop()
	if len(x.shutdown) != 1 || x.shutdown[0] != n.key() {
		t.Errorf("shutdown was sent for %q", x.shutdown)
	}
}
