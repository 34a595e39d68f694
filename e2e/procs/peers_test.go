package procs

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Of what is sent to other nodes all of this is different, and nothing else:
//
//   - a request is sent once, whatever comes of it (#8);
//   - an answer is always asked for, also when the client wants none (#7);
//   - a read carries the list of nodes that it went through, which the original
//     takes and ignores (#10), as the recording itself shows;
//   - what one node cannot read is asked of the others of its partition;
//   - what a master has executed it sends on from its log, which does not know the
//     way and the options that the request came with.
func asOriginal(request string) string {
	if m := proxiedRead.FindStringSubmatch(request); m != nil {
		request = m[1]
	}
	request = silent.ReplaceAllString(request, "$1$2")
	return executed.ReplaceAllString(request, "<$1>$2$3")
}

var (
	proxiedRead = regexp.MustCompile(`(?s)^<[^>]*>((?:get|gets|keys) .*)$`)
	executed    = regexp.MustCompile(`(?s)^<(?:[^>]*,)?([^,>]+)>(set \S+ \d+ \d+ \d+ [1-9]\d*|delete \S+ \d+ [1-9]\d*|touch \S+ \d+)(?: sync| async)*(\r\n.*)$`)
	silent      = regexp.MustCompile(`^(<[^\r]*) noreply((?: sync| async)*\r\n)`)
)

// peerMasks hide ports and times.
var peerMasks = masks{
	{regexp.MustCompile(`\b1[789]\d{8}\b`), "TIME"},
	{regexp.MustCompile(`(partition \d+: )127\.0\.0\.1:\d+`), "${1}NODE"},
}

// peerSaw is what a scripted peer of a recording got.
func peerSaw(e exchange) (requests []string) {
	saw, _ := e.PeerSaw.([]any)
	for _, s := range saw {
		r, _ := s.(map[string]any)["recv"].(string)
		if r != "<connect>" {
			requests = append(requests, latin1(r))
		}
	}
	return requests
}

// A scriptedCluster is a flared of ours among nodes and an index that follow a script.
type scriptedCluster struct {
	*flared
	index *scripted
	wire  *wire // of the index
	maps  int   // pushed
}

// startScripted starts a node under an original index.
func startScripted(t *testing.T, options ...string) *scriptedCluster {
	t.Helper()
	port := make(chan string, 1)
	c := &scriptedCluster{}
	c.index = listenScripted(t, "127.0.0.1:0", func(conn int, request string) string {
		p := <-port
		port <- p
		return originalIndex("NODE 127.0.0.1 "+p+" 2 0 -1 0 16\r\nEND\r\n", originalMeta)(conn, request)
	})
	c.flared = startFlared(t, c.index.addr, options...)
	port <- c.port
	c.await(t)
	c.wire = dialWire(t, c.addr, nil)
	return c
}

// push sends a map with the given fields behind each node's name and port.
func (c *scriptedCluster) push(t *testing.T, nodes map[string]string) {
	t.Helper()
	c.maps++
	var lines []string
	for addr, rest := range nodes {
		_, port, _ := net.SplitHostPort(addr)
		lines = append(lines, fmt.Sprintf("NODE 127.0.0.1 %s %s\r\n", port, rest))
	}
	sort.Strings(lines)
	c.wire.ask(t, "map", fmt.Sprintf("node sync %d\r\n%sEND\r\n", c.maps, strings.Join(lines, "")), "OK\r\n", false)
}

// TestConformanceScriptedMaster replays what a proxy of the original did with every
// answer of a master.
func TestConformanceScriptedMaster(t *testing.T) {
	var mu sync.Mutex
	var reply string
	master := listenScripted(t, "127.0.0.1:0", func(int, string) string {
		mu.Lock()
		defer mu.Unlock()
		return reply
	})
	c := startScripted(t, "--replication-timeout=100", "--max-total-thread-queue=1")
	c.push(t, map[string]string{c.addr: "2 0 -1 0 16", master.addr: "0 0 0 1 17"})

	waiting := false
	for _, e := range recorded(t, "flared-with-scripted-peers") {
		name, answer, found := strings.Cut(e.Case, "/master-replies ")
		busy := strings.HasPrefix(e.Case, "max-total-thread-queue-1/")
		if !found && !busy && !strings.HasPrefix(e.Case, "proxy-to-silent-master/") {
			continue
		}
		t.Run(name+" "+answer, func(t *testing.T) {
			mu.Lock()
			reply = strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(answer)
			if answer == "close" {
				reply = hangUp
			}
			mu.Unlock()
			seen := len(master.requests())
			if busy && !waiting {
				// One request waits already.
				waiting = true
				other := dialWire(t, c.addr, nil)
				fmt.Fprintf(other.nc, "set busy 0 0 1\r\nx\r\n")
				master.await(t, "a request that waits", func(got []string) bool { return len(got) > seen })
				seen++
			}
			w := dialWire(t, c.addr, peerMasks)
			w.ask(t, e.Case, e.Send, peerDeviations.want(t, e.Case, e.Recv), false)
			w.ask(t, e.Case+", then ping", "ping\r\n", "OK\r\n", false)
			want := slices.Compact(peerSaw(e)) // #8
			got := master.requests()[seen:]
			for i := range got {
				got[i] = peerMasks.apply(strings.ReplaceAll(asOriginal(got[i]), c.addr, "127.0.0.1:19121"))
			}
			for i := range want {
				want[i] = peerMasks.apply(want[i])
			}
			if !slices.Equal(got, want) {
				t.Errorf("the master was asked %q, want %q", got, want)
			}
		})
	}
}

// recordedAt is when the capture began, by the clock of its expiry times.
const recordedAt = 1795420437

// A part is the one node of a captured cluster that is played by ours; everybody else
// says what the recording has.
type part struct {
	t     *testing.T
	self  string // as in the capture
	node  *flared
	addrs map[string]string // by port in the capture
	ports *strings.Replacer // from the capture to here
	peers map[string]*scripted

	mu       sync.Mutex
	answers  map[string][]string // by request as here, without what asOriginal takes away
	consumed map[string]int      // requests that were expected, by peer and request
	streams  map[int]*wire
}

// silentAnswers are what a master says to a request that the recorded node had sent
// with noreply.
var silentAnswers = map[string]string{"set": "STORED\r\n", "incr": "1\r\n", "touch": "TOUCHED\r\n", "delete": "DELETED\r\n"}

// play lets a process of ours take a node's part in the captured life of a cluster.
func play(t *testing.T, letter, port string, skip func(e exchange) bool) {
	p := &part{t: t, self: "flared-" + letter + ":" + port, addrs: map[string]string{}, peers: map[string]*scripted{},
		answers: map[string][]string{}, consumed: map[string]int{}, streams: map[int]*wire{}}
	var all []exchange
	for _, e := range recorded(t, "cluster-capture") {
		if (e.To == p.self || e.From == p.self) && !skip(e) {
			all = append(all, e)
		}
	}
	answer := func(_ int, request string) string {
		p.mu.Lock()
		defer p.mu.Unlock()
		queue := p.answers[p.normal(request)]
		if len(queue) == 0 {
			return "ERROR\r\n" // such as to replicate and node hello
		}
		if len(queue) > 1 {
			p.answers[p.normal(request)] = queue[1:]
		}
		return queue[0]
	}
	var pairs []string
	for _, other := range []string{"19121", "19122", "19123", "19124", "19125"} {
		if other == port {
			continue
		}
		s := listenScripted(t, "127.0.0.1:0", answer)
		p.peers["flared-"+string(other[4]-'1'+'A')+":"+other] = s
		_, there, _ := net.SplitHostPort(s.addr)
		pairs = append(pairs, other, there)
	}
	index := listenScripted(t, "127.0.0.1:0", answer)
	p.peers["flarei"] = index
	p.mu.Lock() // until the script is complete nobody is answered
	p.node = startFlared(t, index.addr, "--replication-type=async")
	p.ports = strings.NewReplacer(append(pairs, port, p.node.port)...)
	for _, e := range all {
		if e.From != p.self {
			continue
		}
		request, reply := p.normal(p.here(e.Send)), p.here(e.Recv)
		if silent.MatchString(e.Send) {
			reply = silentAnswers[strings.Fields(e.Send[strings.IndexByte(e.Send, '>')+1:])[0]]
		}
		p.answers[request] = append(p.answers[request], reply)
	}
	p.mu.Unlock()
	for i, e := range all {
		if t.Failed() {
			t.Fatalf("stopped at line %d of this node", i)
		}
		if e.To == p.self {
			p.receive(e)
		} else {
			p.send(e)
		}
	}
	for name, peer := range p.peers {
		for _, request := range peer.requests() {
			if key := p.key(name, request); p.consumed[key] > 0 {
				p.consumed[key]--
			} else if p.self == "flared-A:19121" && name == "flared-D:19124" && executed.MatchString(request) {
				// To a new master it also sends what it wrote in the minute before.
			} else if key == " keys p 10\r\n" || strings.HasPrefix(request, "replicate ") || strings.HasPrefix(request, "node hello ") ||
				strings.HasPrefix(request, "node add ") {
				// Repeated, or unknown to the original.
			} else {
				t.Errorf("%s was asked %q, which is not in the recording", name, request)
			}
		}
	}
}

// here turns what was recorded into what it is now: ports, and times.
func (p *part) here(s string) string {
	s = p.ports.Replace(s)
	return recordedTime.ReplaceAllStringFunc(s, func(at string) string {
		n, _ := strconv.ParseInt(at, 10, 64)
		return strconv.FormatInt(n-recordedAt+time.Now().Unix(), 10)
	})
}

var recordedTime = regexp.MustCompile(`\b17954\d{5}|17955\d{5}\b`)

// normal is what two requests have in common that mean the same.
func (p *part) normal(request string) string { return peerMasks.apply(asOriginal(request)) }

// key tells a request to a peer from others; of reads anybody may be asked.
func (p *part) key(peer, request string) string {
	request = p.normal(request)
	if strings.HasPrefix(request, "get") || strings.HasPrefix(request, "keys ") {
		peer = ""
	}
	return peer + " " + request
}

// receive sends the node what it was sent, and compares its answer.
func (p *part) receive(e exchange) {
	w := p.streams[e.Stream]
	if w == nil {
		w = dialWire(p.t, p.node.addr, peerMasks)
		p.streams[e.Stream] = w
	}
	want := p.here(peerDeviations.want(p.t, p.self+" "+e.Case, e.Recv))
	got := w.exchange(p.t, p.here(e.Send), want, false)
	if g, m := sorted(peerMasks.apply(got)), sorted(peerMasks.apply(want)); g != m {
		p.t.Errorf("%s: %s sent %s\n got %s\nwant %s", e.Case, e.From, brief(e.Send), brief(g), brief(m))
	}
	if want == "" {
		w.ask(p.t, e.Case+", then ping", "ping\r\n", "OK\r\n", false)
	}
}

// sorted puts the blocks of a dump in order: the original has them in that of its
// hash table.
func sorted(s string) string {
	if !strings.HasPrefix(s, "VALUE ") && !strings.HasPrefix(s, "KEY ") {
		return s
	}
	s, end := strings.TrimSuffix(s, "END\r\n"), strings.HasSuffix(s, "END\r\n")
	blocks := regexp.MustCompile(`(?:^|\r\n)(VALUE|KEY)`).ReplaceAllString(s, "\x00$1")
	parts := strings.Split(strings.TrimSuffix(blocks, "\r\n"), "\x00")[1:]
	sort.Strings(parts)
	return fmt.Sprintf("%s END %v", strings.Join(parts, "\r\n"), end)
}

// send waits until the node has said what it said.
func (p *part) send(e exchange) {
	switch {
	case strings.HasPrefix(e.Send, "shutdown "):
		p.node.Terminate()
	case strings.HasPrefix(e.Send, "node add ") && p.consumed[p.key("flarei", p.here(e.Send))] > 0:
		p.node.Kill()
		if err := p.node.Start(); err != nil {
			p.t.Fatal(err)
		}
	}
	peer := p.peers[e.To]
	request := p.here(e.Send)
	key := p.key(e.To, request)
	p.consumed[key]++
	count := func() (n int) {
		for name, peer := range p.peers {
			for _, r := range peer.requests() {
				if p.key(name, r) == key {
					n++
				}
			}
		}
		return n
	}
	if strings.HasPrefix(key, " ") {
		eventually(p.t, patience, e.Case+": "+request, func() error {
			if n := count(); n < p.consumed[key] {
				return fmt.Errorf("asked %d times", n)
			}
			return nil
		})
		return
	}
	peer.await(p.t, e.Case+": "+request, func([]string) bool { return count() >= p.consumed[key] })
	if strings.HasPrefix(e.Send, "meta") {
		p.node.await(p.t)
	}
}

func TestConformanceCaptureSlave(t *testing.T) {
	play(t, "B", "19122", func(exchange) bool { return false })
}

func TestConformanceCaptureProxy(t *testing.T) {
	play(t, "C", "19123", func(exchange) bool { return false })
}

func TestConformanceCaptureMaster(t *testing.T) {
	play(t, "A", "19121", func(e exchange) bool { return false })
}

func TestConformanceCaptureNewPartition(t *testing.T) {
	play(t, "D", "19124", func(e exchange) bool { return e.Send == "node sync 20\r\n" }) // cut off
}

func TestConformanceCaptureSlaveOfNewPartition(t *testing.T) {
	play(t, "E", "19125", func(exchange) bool { return false })
}

// TestConformanceOutage replays what a proxy of the original said about a partition
// whose master is dead and has no successor, and when that came back.
func TestConformanceOutage(t *testing.T) {
	var mu sync.Mutex
	stored := "y"
	master := listenScripted(t, "127.0.0.1:0", func(_ int, request string) string {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case strings.Contains(request, ">set k "):
			stored = "z"
			return "STORED\r\n"
		case strings.Contains(request, "get k"):
			return "VALUE k 0 1\r\n" + stored + "\r\nEND\r\n"
		case strings.Contains(request, "get g"):
			return "VALUE g 0 1\r\nx\r\nEND\r\n"
		case strings.Contains(request, "noreply"):
			return "" // #7
		case strings.Contains(request, "gat g"):
			return "VALUE g 0 1\r\nx\r\n"
		}
		return "ERROR\r\n"
	})
	c := startScripted(t)
	c.push(t, map[string]string{c.addr: "2 0 -1 0 16", master.addr: "0 2 0 1 17"})
	all := recorded(t, "cluster-misc")
	t.Run("down", func(t *testing.T) {
		for _, e := range all {
			if !strings.HasPrefix(e.Case, "partition-with-down-preserved-master/") {
				continue
			}
			line, _, _ := strings.Cut(e.Send, "\r\n")
			t.Run(line, func(t *testing.T) {
				t.Parallel() // writes wait a moment for a master
				w := dialWire(t, c.addr, nil)
				w.ask(t, e.Case, e.Send, peerDeviations.want(t, e.Case+" "+line, e.Recv), false)
				w.ask(t, e.Case+", then ping", "ping\r\n", "OK\r\n", false)
			})
		}
	})
	c.push(t, map[string]string{c.addr: "2 0 -1 0 16", master.addr: "0 0 0 1 17"})
	w := dialWire(t, c.addr, nil)
	for _, e := range all {
		if !strings.HasPrefix(e.Case, "preserved-master-came-back/") && !strings.HasPrefix(e.Case, "gat-noreply-bug/") {
			continue
		}
		began := time.Now()
		w.ask(t, e.Case, e.Send, e.Recv, false)
		if d := time.Since(began); d > hung {
			t.Errorf("%s took %v", e.Case, d)
		}
	}
}

// TestConformanceBalance counts who answers reads, as was counted with the original.
func TestConformanceBalance(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	reader := func(name string) func(int, string) string {
		return func(_ int, request string) string {
			switch {
			case strings.HasPrefix(request, "dump "):
				return "VALUE k 0 1 1 0\r\nx\r\nEND\r\n"
			case !strings.Contains(request, "get k"):
				return "ERROR\r\n"
			}
			mu.Lock()
			defer mu.Unlock()
			asked[name]++
			return "VALUE k 0 1\r\nx\r\nEND\r\n"
		}
	}
	master := listenScripted(t, "127.0.0.1:0", reader("19121 master"))
	slave := listenScripted(t, "127.0.0.1:0", reader("19122 slave"))
	c := startScripted(t)
	name := regexp.MustCompile(`^balance/m(\d)-s(\d)/client-on-(\w+)`)
	count := regexp.MustCompile(`^(\d+) x (get k\r\n)$`)
	// The proxy's part first, then the slave's, then the master's: a slave keeps what it has.
	all := recorded(t, "cluster-misc")
	for _, on := range []string{"proxy", "slave", "master"} {
		for _, e := range all {
			m := name.FindStringSubmatch(e.Case)
			if m == nil || m[3] != on {
				continue
			}
			nodes := map[string]string{c.addr: "2 0 -1 0 16", master.addr: "0 0 0 " + m[1] + " 17", slave.addr: "1 0 0 " + m[2] + " 18"}
			self := ""
			switch on {
			case "slave":
				self = "19122 slave"
				nodes[c.addr] = nodes[slave.addr]
				delete(nodes, slave.addr)
			case "master":
				self = "19121 master"
				nodes[c.addr] = nodes[master.addr]
				delete(nodes, master.addr)
			}
			c.push(t, nodes)
			w := dialWire(t, c.addr, nil)
			if on == "slave" {
				c.index.await(t, "the copy is complete", func(got []string) bool {
					return slices.Contains(got, "node state 127.0.0.1 "+c.port+" active\r\n")
				})
			}
			mu.Lock()
			clear(asked)
			mu.Unlock()
			send := count.FindStringSubmatch(e.Send)
			n, _ := strconv.Atoi(send[1])
			for range n {
				w.ask(t, e.Case, send[2], e.Recv, false)
			}
			mu.Lock()
			if self != "" {
				asked[self] = n // who is asked by a client counts it as well
			}
			for node, want := range e.Asked {
				got := asked[node]
				// The original draws, too.
				if exact := want == 0 || want == n; exact && got != want || !exact && (got < n/10 || got > n*9/10) {
					t.Errorf("%s: %s was asked %d times, recorded %d", e.Case, node, got, want)
				}
			}
			mu.Unlock()
		}
	}
}

// TestConformanceScriptedSlave replays what a master of the original sent to a slave
// that answered all sorts of things, and what the client got meanwhile. Where the
// original gave up after four attempts or dropped what it could not queue, a write is
// sent until it is answered, unless a newer one of its key takes its place (#11).
// Only a request with the option sync waits for such a slave, which is never in sync.
func TestConformanceScriptedSlave(t *testing.T) {
	groups := []struct {
		prefix  string
		options []string
	}{
		{prefix: "slave-"},
		{prefix: "silent-slave-net-read-timeout-1/", options: []string{"--net-read-timeout=1"}},
		{prefix: "noreply-window-limit-3/", options: []string{"--noreply-window-limit=3"}},
		{prefix: "max-total-thread-queue-2/silent-slave/", options: []string{"--max-total-thread-queue=2"}},
		{prefix: "replication-type-sync/", options: []string{"--replication-type=sync"}},
	}
	for _, g := range groups {
		t.Run(strings.Trim(g.prefix, "-/"), func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			reply, delay := "STORED\r\n", time.Duration(0)
			script := func(r string, d time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				reply, delay = r, d
			}
			slave := listenScripted(t, "127.0.0.1:0", func(_ int, request string) string {
				mu.Lock()
				r, d := reply, delay
				mu.Unlock()
				if !strings.HasPrefix(request, "<") {
					return "ERROR\r\n" // such as to replicate
				}
				if d > 0 {
					<-time.After(d)
				}
				return r
			})
			c := startScripted(t, append([]string{"--replication-type=async", "--replication-timeout=500"}, g.options...)...)
			c.push(t, map[string]string{c.addr: "0 0 0 1 16", slave.addr: "1 0 0 1 17"})
			eventually(t, patience, "master", func() error {
				w := dialWire(t, c.addr, nil)
				defer w.nc.Close()
				if got := w.exchange(t, "delete ready\r\n", "NOT_FOUND\r\n", false); got != "NOT_FOUND\r\n" {
					return fmt.Errorf("got %q", got)
				}
				return nil
			})
			slave.await(t, "a question what the slave can read", func(got []string) bool { return len(got) > 0 })

			prepared := func(requests []string) (all []string) {
				for _, r := range requests {
					if strings.HasPrefix(r, "<") && !strings.Contains(r, " ready ") {
						all = append(all, strings.ReplaceAll(asOriginal(r), c.addr, "127.0.0.1:19121"))
					}
				}
				all = slices.Compact(all)
				if strings.HasPrefix(g.prefix, "noreply-") || strings.HasPrefix(g.prefix, "max-") {
					slices.Sort(all) // of many keys, only each has its order
					all = slices.Compact(all)
				}
				return all
			}
			arrived := func(request string) {
				t.Helper()
				slave.await(t, request, func([]string) bool {
					return slices.Contains(prepared(slave.requests()), prepared([]string{request})[0])
				})
			}
			var want []string
			w := dialWire(t, c.addr, nil)
			for _, e := range recorded(t, "flared-with-scripted-peers") {
				if !strings.HasPrefix(e.Case, g.prefix) {
					continue
				}
				began := time.Now()
				switch {
				case strings.HasPrefix(e.Case, "slave-closes"):
					script(hangUp, 0)
				case strings.HasPrefix(e.Case, "slave-replies-garbage"):
					script("FOO bar\r\n", 0)
				case strings.HasPrefix(e.Case, "slave-replies-"):
					word, _, _ := strings.Cut(strings.TrimPrefix(e.Case, "slave-replies-"), "/")
					script(word+"\r\n", 0)
				case strings.Contains(e.Case, "silent-slave"):
					script("", 0)
				case strings.Contains(e.Case, "slow-slave-0.8s"):
					script("STORED\r\n", 800*time.Millisecond)
				default:
					script("STORED\r\n", 0)
				}
				w.ask(t, e.Case, e.Send, e.Recv, false)
				if d := time.Since(began); d > hung {
					t.Errorf("%s: answered after %v", e.Case, d)
				}
				sent := peerSaw(e)
				if len(sent) == 0 { // the recorded queue was full
					m := regexp.MustCompile(`(?s)^(set \S+ 0 0 1)(\r\n.*)$`).FindStringSubmatch(e.Send)
					sent = []string{"<127.0.0.1:19121>" + m[1] + " 1" + m[2]}
				}
				want = append(want, sent...)
				if !strings.Contains(e.Case, "silent-slave") && e.Case != "slave-closes-connection/set-sync" {
					arrived(sent[0])
				}
			}
			script("STORED\r\n", 0)
			want = prepared(want)
			var got []string
			eventually(t, patience, "slave gets everything", func() error {
				if got = prepared(slave.requests()); len(got) == 0 || got[len(got)-1] != want[len(want)-1] {
					return fmt.Errorf("%q", got)
				}
				return nil
			})
			// What was awaited is there; what was not may have been superseded.
			left := want
			for _, r := range got {
				i := slices.Index(left, r)
				if i < 0 {
					t.Fatalf("the slave was asked\n %q, want\n %q", got, want)
				}
				left = left[i+1:]
			}
			if len(got) < len(want)-1 {
				t.Errorf("the slave was asked\n %q, want\n %q", got, want)
			}
		})
	}
}
