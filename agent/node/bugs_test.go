package node

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/flarekv/flare/agent/options"
)

// The bugs of the original that a client can see. The numbers are those of the
// list that says which are kept, which fixed, and which tolerated.

// noReplies are the commands that can ask for silence.
const noReplies = "set k 0 0 1 noreply\r\nx\r\nadd k 0 0 1 noreply\r\nx\r\nreplace k 0 0 1 noreply\r\nx\r\n" +
	"append k 0 0 1 noreply\r\nx\r\nprepend k 0 0 1 noreply\r\nx\r\ncas k 0 0 1 9 noreply\r\nx\r\n" +
	"incr k 1 noreply\r\ndecr k 1 noreply\r\ndelete k noreply\r\ntouch k 0 noreply\r\ngat k 0 noreply\r\n"

// TestBug01NoReplyIsSilent: whatever becomes of a request that wants no answer,
// there is none, as nobody would read it; unless it cannot be told that it wants none.
func TestBug01NoReplyIsSilent(t *testing.T) {
	x := newTestIndex(t)
	a, b := startNode(t, x, quick), startNode(t, x, quick, func(n *testNode) { n.opts.MaxValueSize = 8 })
	c := dial(t, a)
	c.ask(noReplies+"version\r\n", "VERSION flare-9.9.9\r\n") // no partition available
	x.master(b.key(), 0)
	b.settled(dutyMaster)
	c.ask(noReplies+"version\r\n", "VERSION flare-9.9.9\r\n") // forwarded
	d := dial(t, b)
	d.ask(noReplies+"version\r\n", "VERSION flare-9.9.9\r\n") // executed
	d.ask("set k 0 0 9 noreply\r\n123456789\r\nversion\r\n", "VERSION flare-9.9.9\r\n")
	c.ask("<"+b.key()+">set k 0 0 1 noreply\r\nx\r\nversion\r\n", "VERSION flare-9.9.9\r\n") // routing loop
	via := strings.Repeat("127.0.0.1:1,", 80)
	c.ask("<"+via+">set k 0 0 1 noreply\r\nx\r\nversion\r\n", "VERSION flare-9.9.9\r\n") // too many hops
	b.kill()
	c.ask("set k 0 0 1\r\nx\r\n", "SERVER_ERROR proxy failure\r\n")
	c.ask(noReplies+"version\r\n", "VERSION flare-9.9.9\r\n") // proxy failure
	// These cannot be parsed.
	c.ask("incr k x noreply\r\nset k 0 0 noreply\r\nbogus noreply\r\nversion\r\n", "ERROR\r\nERROR\r\nERROR\r\nVERSION flare-9.9.9\r\n")
}

// TestBug02BlockSwallowed: the data block of a refused line is not executed.
func TestBug02BlockSwallowed(t *testing.T) {
	c := dial(t, single(t))
	const evil = "flush_all\r\n" // 11 bytes, the last two of them the line end
	c.ask("set keep 0 0 1\r\nx\r\n", "STORED\r\n")
	for _, line := range []string{"set k x 0 9", "set k 0 -1 9", "set k 0 0 9 bogus", "cas k 0 0 9", "set k 99999999999 0 9", "add k 0 0 9 1 2",
		"set " + strings.Repeat("k", 9000) + " 0 0 9"} {
		c.ask(line+"\r\n"+evil+"get keep\r\n", "ERROR\r\nVALUE keep 0 1\r\nx\r\nEND\r\n")
	}
	// Without a length there is no telling; and who reads the refusal before it sends
	// the block does not send it.
	c.ask("set k 0 0\r\nversion\r\n", "ERROR\r\nVERSION flare-9.9.9\r\n")
	c.ask("set k x 0 8\r\n", "ERROR\r\n")
	c.ask("version\r\nversion\r\n", "VERSION flare-9.9.9\r\nVERSION flare-9.9.9\r\n")
}

// TestBug03TerminatorUnchecked: kept. The two bytes behind a block are taken for its
// end whatever they are, so that a length that is wrong shows as in the original.
func TestBug03TerminatorUnchecked(t *testing.T) {
	c := dial(t, single(t))
	c.ask("set k 0 0 3\r\nabcXYget k\r\n", "STORED\r\nVALUE k 0 3\r\nabc\r\nEND\r\n")
	c.ask("set k 0 0 2\r\nabcd\r\nget k\r\n", "STORED\r\nERROR\r\nVALUE k 0 2\r\nab\r\nEND\r\n")
	c.ask("set k 0 0 4\r\nab\r\n\r\nget k\r\n", "STORED\r\nVALUE k 0 4\r\nab\r\n\r\nEND\r\n")
}

// TestBug04HugeLength: lengths that kill the original are refused. That the block is
// thrown away is seen in package text, where two gigabytes cost nothing.
func TestBug04HugeLength(t *testing.T) {
	n := single(t, func(n *testNode) { n.opts.MaxValueSize = 8 })
	for _, length := range []string{"2147483646", "2147483647"} {
		dial(t, n).ask("set k 0 0 "+length+"\r\n", "SERVER_ERROR object too large for cache\r\n")
	}
	for _, length := range []string{"2147483648", "-1", "99999999999999999999"} {
		dial(t, n).ask("set k 0 0 "+length+"\r\nversion\r\n", "ERROR\r\nVERSION flare-9.9.9\r\n")
	}
	c := dial(t, n)
	c.ask("set k 0 0 9\r\n123456789\r\nset k 0 0 8\r\n12345678\r\nappend k 0 0 1\r\nx\r\nget k\r\n",
		"SERVER_ERROR object too large for cache\r\nSTORED\r\nSERVER_ERROR object too large for cache\r\nVALUE k 0 8\r\n12345678\r\nEND\r\n")
}

// TestBug05LongKeys: a key of more than 8191 bytes is refused, not cut in two.
func TestBug05LongKeys(t *testing.T) {
	c := dial(t, single(t))
	long, longer := strings.Repeat("k", 8191), strings.Repeat("k", 8192)
	c.ask("set "+long+" 0 0 1\r\nx\r\nget "+long+"\r\n", "STORED\r\nVALUE "+long+" 0 1\r\nx\r\nEND\r\n")
	c.ask("keys "+long+" 1\r\n", "KEY "+long+"\r\nEND\r\n")
	for _, line := range []string{"get %s", "gets a %s b", "delete %s", "touch %s 0", "gat %s 0", "incr %s 1", "decr %s 1", "keys %s 1",
		"set %s 0 0 1\r\nx", "cas %s 0 0 1 1\r\nx"} {
		c.ask(fmt.Sprintf(line, longer)+"\r\nversion\r\n", "ERROR\r\nVERSION flare-9.9.9\r\n")
	}
	c.ask("delete "+long+"\r\n", "DELETED\r\n")
}

// TestBinaryProtocol: it is not spoken.
func TestBinaryProtocol(t *testing.T) {
	n := startNode(t, newTestIndex(t))
	c := dial(t, n)
	c.ask("version\r\n\x80\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "VERSION flare-9.9.9\r\n")
	if b, err := c.r.ReadByte(); err != io.EOF {
		t.Errorf("a binary request is answered with %q, %v; want the end of the connection", b, err)
	}
	eventually(t, "one line in the log", func() error {
		if lines := n.log.lines("binary_protocol"); len(lines) != 1 {
			return fmt.Errorf("lines %q", lines)
		}
		return nil
	})
}

// TestStatsSettings: every option by its name.
func TestStatsSettings(t *testing.T) {
	n := startNode(t, newTestIndex(t))
	var want strings.Builder
	for _, spec := range options.Specs() {
		fmt.Fprintf(&want, "STAT %s %s\r\n", spec.Key, n.opts.Value(spec.Key))
	}
	c := dial(t, n)
	c.ask("stats settings\r\n", want.String()+"END\r\n")
	if !strings.Contains(want.String(), "\r\nSTAT rocksdb-wal-ttl-seconds 10800\r\n") {
		t.Error(want.String())
	}
}

// statsOf returns the answer to plain stats by name, and the names in order.
func statsOf(c *testClient) (map[string]string, []string) {
	c.t.Helper()
	values := map[string]string{}
	var names []string
	for line := c.line("stats\r\n"); line != "END"; line = c.line("") {
		f := strings.SplitN(line, " ", 3)
		if len(f) != 3 || f[0] != "STAT" {
			c.t.Fatalf("line %q", line)
		}
		values[f[1]] = f[2]
		names = append(names, f[1])
	}
	return values, names
}

// TestStatsOfTheLog: the additions to plain stats, at a master and at its replica.
func TestStatsOfTheLog(t *testing.T) {
	x := newTestIndex(t)
	a, b := startNode(t, x, syncMode), startNode(t, x, syncMode)
	x.master(a.key(), 0)
	a.settled(dutyMaster)
	c, d := dial(t, a), dial(t, b)
	for i := range 10 {
		c.ask(fmt.Sprintf("set k%d 0 0 1\r\nx\r\nset k%d 0 0 1\r\ny\r\n", i, i), "STORED\r\nSTORED\r\n")
	}
	x.slave(b.key(), 0, 1)
	inSync(t, x, b)
	c.ask("set k 0 0 1\r\nx\r\ndelete k\r\n", "STORED\r\nDELETED\r\n")
	master, names := statsOf(c)
	for i, name := range names {
		if last := i == 34; (name == "node_map_version") != last || i < 34 && strings.HasPrefix(name, "rocksdb_") {
			t.Errorf("%s is number %d", name, i)
		}
	}
	pos := a.db.Position()
	replica := "rocksdb_replica_" + b.key()
	for name, want := range map[string]string{
		"curr_items": "10", "rocksdb_master_id": pos.History, "rocksdb_epoch": "1", "rocksdb_lsn": fmt.Sprint(pos.LSN.Index),
		"rocksdb_oldest_lsn": "1", "rocksdb_wal_ttl_seconds": "10800", "rocksdb_sync_writes": "false", "rocksdb_wal_rewinds": "0",
		replica + "_lag_batches": "0", replica + "_lag_bytes": "0", replica + "_lag_seconds": "0.000",
	} {
		if master[name] != want {
			t.Errorf("%s is %q at the master, want %q", name, master[name], want)
		}
	}
	eventually(t, "stats of the replica", func() error {
		slave, _ := statsOf(d)
		for name, want := range map[string]string{
			"curr_items": "10", "rocksdb_master_id": pos.History, "rocksdb_epoch": "1", "rocksdb_lsn": fmt.Sprint(pos.LSN.Index),
			"rocksdb_wal_sync_success": "1", "rocksdb_checkpoint_syncs": "0", "rocksdb_wal_fallback_to_dump": "0", "rocksdb_wal_sync_lsn_purged": "0",
			replica + "_lag_batches": "",
		} {
			if slave[name] != want {
				return fmt.Errorf("%s is %q, want %q", name, slave[name], want)
			}
		}
		return nil
	})
}

// TestItemCount: records that were overwritten, deleted or have expired do not blur
// curr_items, and nobody makes a node count a large database.
func TestItemCount(t *testing.T) {
	n := single(t)
	for range 3 {
		fill(t, n, 2000, "x")
	}
	c := dial(t, n)
	for i := range 100 {
		c.ask(fmt.Sprintf("delete key%06d\r\n", i), "DELETED\r\n")
	}
	if values, _ := statsOf(c); values["curr_items"] != "1900" {
		t.Errorf("curr_items is %s, want 1900", values["curr_items"])
	}
	st, err := n.db.Stats()
	if err != nil {
		t.Fatal(err)
	}
	c.ask("set another 0 2600000 1\r\nx\r\n", "STORED\r\n") // expired
	eventually(t, "the next count", func() error {
		if values, _ := statsOf(c); values["curr_items"] != "1901" {
			return fmt.Errorf("curr_items is %s, want 1901", values["curr_items"])
		}
		return nil
	})
	st.Keys = 10 * countedItems
	var count itemCount
	if got, ok := count.count(t.Context(), n.db, st); ok {
		t.Errorf("%d records were counted although %d are expected", got, st.Keys)
	}
}
