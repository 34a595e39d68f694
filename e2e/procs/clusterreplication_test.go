package procs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

var clusterMasks = masks{
	{regexp.MustCompile(`\b1[0-9]{9}\b`), "TIME"},
}

// A tap stands before a destination and remembers what is sent to it.
type tap struct{ *scripted }

// listenTap passes requests on to a node.
func listenTap(t *testing.T, to string) tap {
	var mu sync.Mutex
	links := map[int]*link{}
	return tap{listenScripted(t, "127.0.0.1:0", func(conn int, request string) string {
		mu.Lock()
		l := links[conn]
		if l == nil {
			nc, err := net.DialTimeout("tcp", to, patience)
			if err != nil {
				mu.Unlock()
				return hangUp
			}
			t.Cleanup(func() { nc.Close() })
			l = &link{nc, bufio.NewReader(nc)}
			links[conn] = l
		}
		mu.Unlock()
		reply, err := l.ask(request)
		if err != nil {
			return hangUp
		}
		return reply
	})}
}

// A link is a connection to a node.
type link struct {
	nc net.Conn
	r  *bufio.Reader
}

// ask returns the whole answer to a request.
func (l *link) ask(request string) (string, error) {
	l.nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(l.nc, request); err != nil {
		return "", err
	}
	verb, _, _ := strings.Cut(request[strings.Index(request, ">")+1:], " ")
	list := slices.Contains([]string{"get", "gets", "keys"}, verb)
	var answer strings.Builder
	for {
		line, err := l.r.ReadString('\n')
		if err != nil {
			return "", err
		}
		answer.WriteString(line)
		if f := strings.Fields(line); len(f) > 3 && f[0] == "VALUE" {
			var n int
			fmt.Sscan(f[3], &n)
			block := make([]byte, n+2)
			if _, err := io.ReadFull(l.r, block); err != nil {
				return "", err
			}
			answer.Write(block)
			if !list {
				return answer.String(), nil
			}
		} else if !list || !strings.HasPrefix(line, "KEY ") {
			return answer.String(), nil
		}
	}
}

// expect waits until the tap was sent what is wanted since it had seen so many
// requests, and nothing else.
func (p tap) expect(t *testing.T, what string, from int, want []string) {
	t.Helper()
	got := p.await(t, what, func(all []string) bool { return len(all) >= from+len(want) })[from:]
	for i, w := range want {
		w = sentDeviations.want(t, strings.ReplaceAll(w, "\r\n", " "), w)
		if g := clusterMasks.apply(got[i]); g != clusterMasks.apply(w) {
			t.Errorf("%s: sent to the other cluster %q, want %q", what, got[i], w)
		}
	}
	if len(got) > len(want) {
		t.Errorf("%s: sent %q on top of it", what, got[len(want):])
	}
}

// A member is a flared that is the only node of its cluster.
type member struct {
	*flared
	config string
}

// startMember starts a node in a role, as NODE lines have it, and waits until that
// is in force.
func startMember(t *testing.T, role string, options ...string) *member {
	t.Helper()
	port := make(chan string, 1)
	line := func(role string) string {
		p := <-port
		port <- p
		return "NODE 127.0.0.1 " + p + " " + role + " 16\r\n"
	}
	index := listenScripted(t, "127.0.0.1:0", func(conn int, request string) string {
		return originalIndex(line("2 0 -1 0")+"END\r\n", originalMeta)(conn, request)
	})
	config := filepath.Join(t.TempDir(), "flared.conf")
	if err := os.WriteFile(config, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	m := &member{flared: startFlared(t, index.addr, append([]string{"--config=" + config}, options...)...), config: config}
	port <- m.port
	m.assign(t, line(role))
	return m
}

// assign tells the node its map.
func (m *member) assign(t *testing.T, nodes string) {
	t.Helper()
	m.await(t)
	dialWire(t, m.addr, nil).ask(t, "node sync", "node sync 1\r\n"+nodes+"END\r\n", "OK\r\n", false)
}

// configure writes the configuration file and sends SIGHUP.
func (m *member) configure(t *testing.T, lines ...string) {
	t.Helper()
	if err := os.WriteFile(m.config, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// stat returns one value of stats.
func (m *member) stat(name string) (string, error) {
	nc, err := net.DialTimeout("tcp", m.addr, patience)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	io.WriteString(nc, "stats\r\n")
	for r := bufio.NewScanner(nc); r.Scan(); {
		if v, ok := strings.CutPrefix(r.Text(), "STAT "+name+" "); ok {
			return v, nil
		}
		if r.Text() == "END" {
			return "", nil
		}
	}
	return "", io.ErrUnexpectedEOF
}

// until waits until a value of stats is what is wanted.
func (m *member) until(t *testing.T, name, want string) {
	t.Helper()
	eventually(t, patience, name, func() error {
		if got, err := m.stat(name); err != nil || got != want {
			return fmt.Errorf("it is %q, want %q, %v", got, want, err)
		}
		return nil
	})
}

// replicateTo are the lines that switch cluster replication on.
func replicateTo(addr, mode string) []string {
	host, port, _ := net.SplitHostPort(addr)
	return []string{"cluster-replication = true", "cluster-replication-server-name = " + host,
		"cluster-replication-server-port = " + port, "cluster-replication-mode = " + mode}
}

// TestConformanceClusterReplication replays what clients of one cluster said to it
// while it replicated to another one, with this program in the place of both
// masters, and compares the answers and what the source sent to the destination.
// What passed inside each cluster is left out: there the log is streamed.
func TestConformanceClusterReplication(t *testing.T) {
	const a1, s1 = "flared-A1:19131(master c1)", "flared-S1:19132(slave c1)"
	source := startMember(t, "0 0 0 1", "--cluster-replication-concurrency=1")
	dest := startMember(t, "0 0 0 1")
	a2, s2 := listenTap(t, dest.addr), listenTap(t, dest.addr)
	client, there := dialWire(t, source.addr, clusterMasks), dialWire(t, dest.addr, clusterMasks)
	for i := range 4 {
		client.ask(t, "before", fmt.Sprintf("set pre%d %d 0 4\r\npre%d\r\n", i, i, i), "STORED\r\n", false)
	}
	client.ask(t, "before", "set preexp 0 3600 1\r\nx\r\n", "STORED\r\n", false)
	there.ask(t, "before", "set pre0 0 0 3 100\r\nNEW\r\n", "STORED\r\n", false)

	// A step is what a client, or a node for it, asks the source, and what that
	// then sends to the destination.
	all := recorded(t, "cluster-replication-capture")
	phase := ""
	for i := 0; i < len(all); i++ {
		e := all[i]
		to := a2
		switch p := e.Case[:2]; {
		case p == phase:
		case p == "01":
			source.configure(t, replicateTo(a2.addr, "duplicate")...)
		case p == "04":
			source.configure(t, replicateTo(s2.addr, "duplicate")...)
		case p == "07":
			source.configure(t, "cluster-replication = false")
			source.until(t, "cluster_replication_mode", "")
		case p == "09":
			source.configure(t, replicateTo(a2.addr, "forward")...)
			source.until(t, "cluster_replication_mode", "forward")
		case p == "12":
			// A node without data forwards likewise.
			proxy := startMember(t, "2 0 -1 0", append([]string{"--cluster-replication-concurrency=1"}, flags(replicateTo(a2.addr, "forward"))...)...)
			client = dialWire(t, proxy.addr, clusterMasks)
		case p == "13":
			client = dialWire(t, source.addr, clusterMasks)
			source.configure(t, replicateTo(a2.addr, "duplicate")...)
			source.until(t, "cluster_replication_mode", "duplicate")
		}
		phase = e.Case[:2]
		if phase == "04" || phase == "05" {
			to = s2
		}
		if phase == "14" {
			break // see TestDestinationRestarts
		}
		switch {
		case strings.Contains(e.From, "dump-replication"):
			var want []string
			for ; strings.Contains(all[i].From, a1+" dump") || strings.Contains(all[i].From, "flared-A2"); i++ {
				if strings.Contains(all[i].From, a1) {
					want = append(want, all[i].Send)
				}
			}
			i--
			to.expect(t, e.Case, 0, want)
			source.until(t, "cluster_replication_dumps", "1")
		case e.From == "client" && e.To == "flared-A2:19141(master c2)" && phase == "07":
			there.ask(t, e.Case, e.Send, e.Recv, false)
		case e.From == "client" && strings.Contains("flared-A1 flared-C1", e.To[:9]) && phase != "01" && (phase != "10" || e.To == a1), e.From == s1 && e.To == a1:
			from := len(to.requests())
			var want []string
			if phase != "10" || e.From != "client" {
				for j := i + 1; j < len(all) && all[j].From != "client" && !(all[j].From == s1 && all[j].To == a1); j++ {
					if strings.HasPrefix(all[j].To, "flared-A2") && strings.Contains("flared-A1 flared-C1", all[j].From[:9]) || all[j].From == a1 && strings.HasPrefix(all[j].To, "flared-S2") {
						want = append(want, all[j].Send)
					}
				}
			}
			first, _, _ := strings.Cut(e.Send, "\r\n")
			name := first + " in " + e.Case
			recv := clusterDeviations.want(t, first+" "+e.Case, e.Recv)
			if recv == "" {
				io.WriteString(client.nc, e.Send)
			} else {
				client.ask(t, name, e.Send, recv, false)
			}
			to.expect(t, name, from, want)
		}
	}
}

// flags are lines of a configuration as options of a command line.
func flags(lines []string) []string {
	for i, l := range lines {
		lines[i] = "--" + strings.ReplaceAll(l, " = ", "=")
	}
	return lines
}

// TestDestinationRestarts has one cluster duplicate to another under load, kills
// the destination's nodes one after the other and starts them again: in the end
// each record is there. Then the mode is changed to forward and back.
func TestDestinationRestarts(t *testing.T) {
	t.Parallel()
	dest := start(t, Options{Partitions: 1, Replicas: 1})
	to := dest.Nodes[0]
	config := filepath.Join(t.TempDir(), "flared.conf")
	configure := func(mode string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(strings.Join(replicateTo(to.Addr, mode), "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	configure("duplicate")
	source := start(t, Options{Partitions: 2, Replicas: 1, FlaredArgs: []string{"--config=" + config}})

	for _, n := range source.Nodes {
		c := client(n.Addr)
		eventually(t, patience, "node has the map", func() error {
			return errors.Join(c.Set(&memcache.Item{Key: "first", Value: []byte("v")}), c.Set(&memcache.Item{Key: "second", Value: []byte("v")}))
		})
	}

	stop := make(chan struct{})
	var load sync.WaitGroup
	var done atomic.Int64
	var mu sync.Mutex
	last := map[string]string{} // value by key, "" for a deleted one
	for w := range 3 {
		load.Go(func() {
			c := client(source.Nodes[w%2].Addr)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key, value := fmt.Sprintf("w%d-%d", w, i%400), fmt.Sprint(i)
				var err error
				if i%7 == 6 {
					value = ""
					if err = c.Delete(key); errors.Is(err, memcache.ErrCacheMiss) {
						err = nil
					}
				} else {
					err = c.Set(&memcache.Item{Key: key, Value: []byte(value)})
				}
				if err != nil {
					t.Errorf("%s: %v", key, err)
					return
				}
				mu.Lock()
				last[key] = value
				mu.Unlock()
				done.Add(1)
			}
		})
	}
	// some lets load pass.
	some := func() {
		t.Helper()
		from := done.Load()
		eventually(t, patience, "load", func() error {
			if n := done.Load() - from; n < 500 {
				return fmt.Errorf("%d requests", n)
			}
			return nil
		})
	}
	for range 2 {
		some()
		to.Flared.Kill()
		some()
		if err := to.Flared.Start(); err != nil {
			t.Fatal(err)
		}
	}
	some()
	close(stop)
	load.Wait()
	ready, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := dest.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
	here, there := client(source.Nodes[0].Addr), client(to.Addr)
	eventually(t, patience, "records are equal", func() error {
		for key, value := range last {
			it, err := there.Get(key)
			switch {
			case value == "" && errors.Is(err, memcache.ErrCacheMiss):
			case err != nil:
				return fmt.Errorf("%s: %w, want %q", key, err, value)
			case string(it.Value) != value:
				return fmt.Errorf("%s is %q at the destination, want %q", key, it.Value, value)
			}
		}
		return nil
	})
	mode := func(want string) {
		t.Helper()
		for _, n := range source.Nodes {
			if err := n.Flared.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			eventually(t, patience, "mode "+want, func() error {
				if st := agentStatus(t, n).Flared.ClusterReplication; st.GetMode() != want || st.GetReason() != "" {
					return fmt.Errorf("%v", st)
				}
				return nil
			})
		}
	}
	for _, n := range source.Nodes {
		eventually(t, patience, "status", func() error {
			st := agentStatus(t, n).Flared.ClusterReplication
			if !st.GetActive() || !st.GetConnected() || st.GetDropped() != 0 || st.GetReconnects() == 0 || st.GetDump().GetCompleted() != 1 || st.GetQueuedBatches() != 0 {
				return fmt.Errorf("%s: %v", n.Addr, st)
			}
			return nil
		})
	}

	configure("forward")
	mode("forward")
	set := func(c *memcache.Client, key string) {
		t.Helper()
		if err := c.Set(&memcache.Item{Key: key, Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
	set(here, "forwarded")
	if it, err := there.Get("forwarded"); err != nil || string(it.Value) != "v" {
		t.Errorf("forwarded: %v, %v", it, err)
	}
	set(there, "theirs")
	if it, err := here.Get("theirs"); err != nil || string(it.Value) != "v" {
		t.Errorf("read in mode forward: %v, %v", it, err)
	}

	configure("duplicate")
	mode("duplicate")
	if _, err := here.Get("forwarded"); !errors.Is(err, memcache.ErrCacheMiss) {
		t.Errorf("a record that was forwarded is here: %v", err)
	}
	set(here, "duplicated")
	eventually(t, patience, "duplicated record", func() error {
		_, err := there.Get("duplicated")
		return err
	})
	for _, n := range source.Nodes {
		if st := agentStatus(t, n).Flared.ClusterReplication; st.GetDump().GetCompleted() != 1 {
			t.Errorf("%s: another dump: %v", n.Addr, st)
		}
	}
}
