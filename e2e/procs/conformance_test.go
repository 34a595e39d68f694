package procs

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const shown = "options that mean nothing here show the original's default, not what the recorded node was given"

var shownEdit = []string{
	"mutex_slot:             32", "mutex_slot:             64",
	"thread_pool_size:       16", "thread_pool_size:       5",
	"storage_type:           tch", "storage_type:           rocksdb",
}

// recordedThread is an idle thread in a recorded answer to stats threads.
func recordedThread(id, kind, peer, uptime string) string {
	var b strings.Builder
	for _, stat := range [][2]string{{"type", kind}, {"peer", peer}, {"op", ""}, {"uptime", uptime}, {"state", "wait"}, {"info", ""}, {"queue", "0"}, {"behind", "0"}} {
		fmt.Fprintf(&b, "STAT %s:%s %s\r\n", id, stat[0], stat[1])
	}
	return b.String()
}

// clientMasks hide what is of the run, the machine and the version.
var clientMasks = masks{
	{regexp.MustCompile(`flare-[0-9a-z.-]+`), "flare-V"},
	{regexp.MustCompile(`STAT version \S+`), "STAT version V"},
	{regexp.MustCompile(`STAT (pid|uptime|time|rusage_user|rusage_system|bytes|bytes_read|bytes_written|curr_connections|total_connections|threads|pool_threads|node_map_version) [0-9.]+`), "STAT $1 N"},
	{regexp.MustCompile(`STAT (rocksdb|expiry|record_cache|handover|lease|replication)_\S+ \S*\r\n`), ""}, // additions
	{regexp.MustCompile(`STAT curr_items \d+`), "STAT curr_items N"},                                      // expired ones leave at another time
	{regexp.MustCompile(`(?s)^STAT server-name .*END\r\n$`), "SETTINGS"},
	{regexp.MustCompile(`STAT \d+:`), "STAT ID:"},
	{regexp.MustCompile(`:uptime \d+`), ":uptime N"},
	{regexp.MustCompile(`:peer 127\.0\.0\.1:\d+`), ":peer ADDR"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "NODE"},
	{regexp.MustCompile(`((?:config_path|data_dir|server_port|pid_path): *)\S*`), "${1}X"},
}

// pauses are before which connections the recording let time pass, until what it
// had stored with a short life was over.
var pauses = map[int]time.Duration{28: 3 * time.Second, 34: 2 * time.Second, 36: 2 * time.Second}

// passSeconds waits until the clock by whose seconds records expire has moved on. It
// returns at the beginning of a second, so that most of it is left for what follows.
func passSeconds(d time.Duration) {
	until := time.Now().Truncate(time.Second).Add(d)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(until) {
		<-tick.C
	}
}

// TestConformanceClient replays what clients and the original said to each other,
// one big value after the other included, against a process.
func TestConformanceClient(t *testing.T) {
	const nodeLine = "NODE 127.0.0.1 %s %s 16\r\nEND\r\n"
	var index *scripted
	port := make(chan string, 1)
	index = listenScripted(t, "127.0.0.1:0", func(conn int, request string) string {
		p := <-port
		port <- p
		return originalIndex(fmt.Sprintf(nodeLine, p, "2 0 -1 0"), originalMeta)(conn, request)
	})
	f := startFlared(t, index.addr, "--replication-type=async", "--max-connection=256", "--proxy-concurrency=1", "--back-log=30",
		"--cluster-replication-concurrency=1")
	port <- f.port
	f.await(t)
	// As from the index: its connection stays.
	monitor := dialWire(t, f.addr, nil)
	monitor.ask(t, "map", "node sync 1\r\n"+fmt.Sprintf(nodeLine, f.port, "2 0 -1 0"), "OK\r\n", false)

	conns := map[int]*wire{}
	var big []exchange
	for _, e := range recorded(t, "flared-client-bigvalue") {
		e.Conn = 19 // the number that is free in the other recording
		big = append(big, e)
	}
	var all []exchange
	for _, e := range recorded(t, "flared-client") {
		if e.Conn == 20 {
			all = append(all, big...)
			big = nil
		}
		all = append(all, e)
	}
	last := map[int]int{}
	for i, e := range all {
		last[e.Conn] = i
	}
	var victim *wire
	master := false
	for i, e := range all {
		if strings.Contains(e.Setup, "role master") && !master {
			master = true
			monitor.ask(t, "map", "node sync 2\r\n"+fmt.Sprintf(nodeLine, f.port, "0 0 0 1"), "OK\r\n", false)
			eventually(t, patience, "master", func() error {
				// The one command that needs the mastership and is not counted.
				if got := monitor.exchange(t, "flush_all\r\n", "OK\r\n", false); got != "OK\r\n" {
					return fmt.Errorf("got %q", got)
				}
				return nil
			})
		}
		w := conns[e.Conn]
		if w == nil || e.Conn == 0 {
			passSeconds(pauses[e.Conn])
			w = dialWire(t, f.addr, clientMasks)
			conns[e.Conn] = w
		}
		switch e.Case {
		case "dump/all":
			// Recorded against these.
			w.ask(t, "setup", "flush_all\r\n", "OK\r\n", false)
			for i := range 6 {
				expire := 0
				if i == 0 {
					expire = 4102444800
				}
				w.ask(t, "setup", fmt.Sprintf("set key%d %d %d %d\r\n%s\r\n", i, i, expire, i+1, strings.Repeat("x", i+1)), "STORED\r\n", false)
			}
		case "kill/other-connection":
			victim = dialWire(t, f.addr, nil)
			victim.ask(t, "setup", "ping\r\n", "OK\r\n", false)
			e.Send = "kill " + threadID(t, f.addr, victim) + "\r\n"
		case "kill/killed-connection-sees":
			w = victim
		}
		e.Send, e.Recv = unabridged(e.Send), unabridged(e.Recv)
		w.ask(t, e.Case, e.Send, clientDeviations.want(t, e.Case, e.Recv), e.Closed)
		if i == last[e.Conn] && !e.Closed && w != victim {
			// Nothing more came, and the connection is in step.
			w.ask(t, e.Case+", then ping", "ping\r\n", "OK\r\n", false)
		}
		if i == last[e.Conn] || e.Conn == 0 {
			w.nc.Close()
		}
	}
}

var abridged = regexp.MustCompile(`^(set big 0 0 (\d+)\r\n|VALUE big 0 (\d+)\r\n)(?:<\d+ bytes of (.)>|(.)+<\.\.\.>.*)\r\n(END\r\n)?$`)

// unabridged restores the values that the recording of big ones leaves out.
func unabridged(s string) string {
	m := abridged.FindStringSubmatch(s)
	if m == nil {
		return s
	}
	n, _ := strconv.Atoi(m[2] + m[3])
	return m[1] + strings.Repeat(m[4]+m[5], n) + "\r\n" + m[6]
}

// threadID finds the id of a connection in stats threads.
func threadID(t *testing.T, addr string, of *wire) string {
	t.Helper()
	all := dialWire(t, addr, nil).exchange(t, "stats threads request\r\nquit\r\n", "", true)
	m := regexp.MustCompile(`STAT (\d+):peer ` + regexp.QuoteMeta(of.nc.LocalAddr().String()) + `\r`).FindStringSubmatch(all)
	if m == nil {
		t.Fatalf("no thread for %s in\n%s", of.nc.LocalAddr(), all)
	}
	return m[1]
}

// TestConformanceStart lets a process register at an index that says what the
// recorded one said.
func TestConformanceStart(t *testing.T) {
	var names []string
	cases := map[string][]exchange{}
	for _, e := range recorded(t, "flared-startup-and-node-sync") {
		name := strings.TrimSuffix(e.Case, "/stats-nodes-after")
		if !strings.HasPrefix(name, "startup/") {
			continue
		}
		if cases[name] == nil {
			names = append(names, name)
		}
		cases[name] = append(cases[name], e)
	}
	for _, name := range names {
		t.Run(strings.TrimPrefix(name, "startup/"), func(t *testing.T) {
			var want []string
			replies := map[string]string{}
			after := ""
			alive := true
			port := make(chan string, 1)
			for _, e := range cases[name] {
				if e.Peer == "flared" {
					after = e.Recv
					continue
				}
				want = append(want, e.Send)
				replies[strings.Fields(e.Send)[0]] = e.Recv
				alive = *e.AliveAfter
			}
			index := listenScripted(t, "127.0.0.1:0", func(_ int, request string) string {
				p := <-port
				port <- p
				if reply, ok := replies[strings.Fields(request)[0]]; ok && !strings.HasPrefix(request, "node hello") {
					return strings.ReplaceAll(reply, "19121", p)
				}
				return "ERROR\r\n"
			})
			f := startFlared(t, index.addr)
			port <- f.port
			outcome := "exits"
			if alive {
				outcome = "serves"
			}
			if other, ok := startDeviations[name]; ok {
				outcome = other
			}
			recordedSteps := func(got []string) bool { return len(got) >= len(want) }
			switch outcome {
			case "serves":
				f.await(t)
			case "keeps asking":
				index.await(t, "another attempt", func(got []string) bool { return strings.Count(strings.Join(got, ""), "node add ") > 1 })
				if !f.Running() {
					t.Fatalf("flared ended: %v", f.Err())
				}
			}
			got := index.await(t, "the dialogue", recordedSteps)
			for i := range want {
				if w := strings.ReplaceAll(want[i], "19121", f.port); got[i] != w {
					t.Errorf("request %d: %q, want %q", i, got[i], w)
				}
			}
			for _, extra := range got[len(want):] {
				if outcome == "serves" && !strings.HasPrefix(extra, "node hello ") {
					t.Errorf("another request: %q", extra)
				}
			}
			if outcome == "serves" && after != "" {
				dialWire(t, f.addr, nil).ask(t, name, "stats nodes\r\n", strings.ReplaceAll(after, "19121", f.port), false)
			}
		})
	}
}

// TestConformanceNodeSync pushes maps, good and bad ones.
func TestConformanceNodeSync(t *testing.T) {
	var f *flared
	var index *scripted
	var ports *strings.Replacer
	begin := func() {
		port := make(chan string, 1)
		index = listenScripted(t, "127.0.0.1:0", func(conn int, request string) string {
			p := <-port
			port <- p
			return originalIndex("NODE 127.0.0.1 "+p+" 2 0 -1 0 16\r\nEND\r\n", originalMeta)(conn, request)
		})
		f = startFlared(t, index.addr)
		port <- f.port
		f.await(t)
		// Nobody listens where the other nodes of the recording are. They come in the same order.
		var others []string
		for len(others) < 2 {
			if _, p, _ := net.SplitHostPort(freeAddr(t)); p > f.port && !slices.Contains(others, p) {
				others = append(others, p)
			}
		}
		slices.Sort(others)
		ports = strings.NewReplacer("19121", f.port, "19122", others[0], "19123", others[1])
	}
	begin()
	for _, e := range recorded(t, "flared-startup-and-node-sync") {
		if !strings.HasPrefix(e.Case, "node-sync/") {
			continue
		}
		if e.Case == "node-sync/bad-line" {
			begin() // as in the recording, which a version had led astray
		}
		asked := len(index.requests())
		w := dialWire(t, f.addr, nil)
		w.ask(t, e.Case, ports.Replace(e.Send), ports.Replace(syncDeviations.want(t, e.Case, e.Recv)), false)
		if e.NodesAfter != "" {
			w.ask(t, e.Case+", stats nodes", "stats nodes\r\n", ports.Replace(syncDeviations.want(t, e.Case+", stats nodes", e.NodesAfter)), false)
		}
		if e.VersionAfter != "" {
			all := dialWire(t, f.addr, nil).exchange(t, "stats\r\nquit\r\n", "", true)
			got := regexp.MustCompile(`STAT node_map_version \d+`).FindString(all)
			if want := syncDeviations.want(t, e.Case+", version", e.VersionAfter); got != want {
				t.Errorf("%s: then %s, want %s", e.Case, got, want)
			}
		}
		for _, told := range e.ToIndex {
			want := ports.Replace(told[0])
			index.await(t, e.Case+": "+want, func(got []string) bool { return slices.Contains(got[asked:], want) })
		}
		w.ask(t, e.Case+", then ping", "ping\r\n", "OK\r\n", false)
	}
}
