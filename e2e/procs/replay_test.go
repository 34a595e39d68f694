package procs

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the conformance tests share: recordings of the original programs
// (recorded), what may differ (deviations, masks), a flared that is a process of its
// own (startFlared), connections that compare bytes (wire), and servers that say
// what a test wants where flared expects its index or another node (scripted).

// patience bounds every wait; on a busy machine it is better long.
const patience = 90 * time.Second

// hung is how long an answer may take that waits for nothing but a peer's few tenths
// of a second.
const hung = patience / 3

// An exchange is one line of a recording: what was sent to a program, and what it
// answered until it was silent. Each character of the strings is one byte.
type exchange struct {
	Peer   string `json:"peer"` // flared or flarei
	Case   string `json:"case"`
	Setup  string `json:"setup"`
	Send   string `json:"send"`
	Recv   string `json:"recv"`
	Conn   int    `json:"conn_id"` // equal for one connection, 0 for one of its own
	Closed bool   `json:"closed_by_server"`

	From   string `json:"from"`
	To     string `json:"to"`
	Stream int    `json:"stream"` // a TCP connection of a capture

	// With node sync, and where a scripted index was asked something.
	NodesAfter   string      `json:"stats_nodes_after"`
	VersionAfter string      `json:"node_map_version_after"`
	ToIndex      [][2]string `json:"flared_then_sent_to_index"`
	AliveAfter   *bool       `json:"flared_alive_after"`
	// With peers that followed a script: what they got, and what they answered.
	PeerSaw any `json:"peer_saw"`
	// How many reads each node of a cluster got.
	Asked map[string]int `json:"cmd_get_increase"`
}

// recorded reads testdata/name.jsonl.gz.
func recorded(t *testing.T, name string) []exchange {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all []exchange
	lines := json.NewDecoder(z)
	for {
		var e exchange
		if err := lines.Decode(&e); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatalf("%s, line %d: %v", name, len(all)+1, err)
		}
		e.Send, e.Recv = latin1(e.Send), latin1(e.Recv)
		all = append(all, e)
	}
}

// latin1 turns a recorded string into the bytes it stands for.
func latin1(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}

// A deviation says in which cases this program answers something else than the
// original, and why: the number in the list of the original's bugs, or a reason.
type deviation struct {
	cases string // a star stands for anything
	why   string
	want  string   // the answer; or, if edit is given,
	edit  []string // old and new parts of the recorded one, in turn
}

type deviations []deviation

// want returns the wanted answer. A deviation that is none any more is an error.
func (ds deviations) want(t *testing.T, name, recv string) string {
	t.Helper()
	for _, d := range ds {
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(d.cases), `\*`, ".*") + "$"
		if !regexp.MustCompile(pattern).MatchString(name) {
			continue
		}
		want := d.want
		if len(d.edit) > 0 {
			want = strings.NewReplacer(d.edit...).Replace(recv)
		}
		if want == recv {
			t.Errorf("%s: %q does not change the recorded answer", name, d.cases)
		}
		return want
	}
	return recv
}

// A mask hides what differs from run to run.
type mask struct {
	pattern *regexp.Regexp
	with    string
}

type masks []mask

// maxMasked is the length of what is still searched; a large value has nothing to
// hide, and to search it would take longer than anybody waits for an answer.
const maxMasked = 64 << 10

func (ms masks) apply(s string) string {
	if len(s) > maxMasked {
		return s
	}
	for _, m := range ms {
		s = m.pattern.ReplaceAllString(s, m.with)
	}
	return s
}

// A flared is a process of its own, without agent and controller.
type flared struct {
	*Process
	addr string // and node key
	port string
}

// freeAddr returns a loopback address that was free a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	addrs, err := FreeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	return addrs[0]
}

// startFlared starts a flared at a free address with an empty data directory,
// which it keeps when it is started again. It is ended with the test.
func startFlared(t *testing.T, index string, options ...string) *flared {
	t.Helper()
	dir := t.TempDir()
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	c := &Cluster{opts: Options{BinDir: binDir, Dir: dir}}
	p, err := c.process("flared", "flared", append([]string{"--server-name=127.0.0.1", "--server-port=" + port,
		"--data-dir=" + filepath.Join(dir, "data"), "--index-servers=" + index}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		log, _ := os.ReadFile(p.LogFile)
		if strings.Contains(string(log), "DATA RACE") || strings.Contains(string(log), "panic:") {
			t.Errorf("flared:\n%s", log)
		} else if t.Failed() {
			t.Logf("flared %s, the end of its log:\n%s", addr, log[max(0, len(log)-4000):])
		}
	})
	return &flared{p, addr, port}
}

// await waits until the node answers ping.
func (f *flared) await(t *testing.T) {
	t.Helper()
	eventually(t, patience, "flared answers", func() error {
		if !f.Running() {
			t.Fatalf("flared ended: %v", f.Err())
		}
		nc, err := net.DialTimeout("tcp", f.addr, time.Second)
		if err != nil {
			return err
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(time.Second))
		io.WriteString(nc, "ping\r\n")
		line, err := bufio.NewReader(nc).ReadString('\n')
		if line != "OK\r\n" {
			return fmt.Errorf("answer to ping: %q, %v", line, err)
		}
		return nil
	})
}

// A wire is a connection that compares bytes.
type wire struct {
	nc    net.Conn
	masks masks
}

func dialWire(t *testing.T, addr string, ms masks) *wire {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &wire{nc, ms}
}

// silence is how long nothing must come for an answer to be over that is as long as
// the wanted one, but another: only a test that fails waits for it.
const silence = 15 * time.Second

// exchange sends bytes and returns what is read until that is what is wanted, or
// something else for good; with closed until the end of the connection. What
// comes beyond the wanted answer is found by the next exchange.
func (w *wire) exchange(t *testing.T, send, want string, closed bool) string {
	t.Helper()
	sent := make(chan error, 1)
	go func() { // the answer may begin before all is sent
		for rest := send; ; {
			// Patience is with each part: all of a big value may take longer.
			w.nc.SetWriteDeadline(time.Now().Add(patience))
			n, err := io.WriteString(w.nc, rest[:min(len(rest), 256<<10)])
			if rest = rest[n:]; err != nil || rest == "" {
				sent <- err
				return
			}
		}
	}()
	masked := w.masks.apply(want)
	whole := func(got []byte) bool {
		return (len(want) <= maxMasked || len(got) >= len(want)) && w.masks.apply(string(got)) == masked
	}
	var got []byte
	buf := make([]byte, 256<<10)
	for closed || !whole(got) {
		limit := patience
		switch {
		case !closed && w.masks == nil && !strings.HasPrefix(want, string(got)):
			limit = time.Second // no more of it makes it the wanted one
		case len(got) >= len(want) && len(got) > 0:
			limit = silence
		}
		w.nc.SetReadDeadline(time.Now().Add(limit))
		n, err := w.nc.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			break
		}
	}
	if err := <-sent; err != nil && !closed {
		t.Errorf("send: %v", err)
	}
	return string(got)
}

// ask is exchange with a judgement.
func (w *wire) ask(t *testing.T, name, send, want string, closed bool) {
	t.Helper()
	got := w.exchange(t, send, want, closed)
	if g, m := w.masks.apply(got), w.masks.apply(want); g != m {
		t.Errorf("%s: sent %s\n got %s\nwant %s", name, brief(send), brief(g), brief(m))
	}
}

// brief shortens what goes into a message.
func brief(s string) string {
	if len(s) > 1500 {
		return fmt.Sprintf("%q... (%d bytes)", s[:1500], len(s))
	}
	return strconv.Quote(s)
}

// A scripted server stands where flared expects its index or another node.
type scripted struct {
	addr     string
	listener net.Listener

	mu   sync.Mutex
	got  []string // requests, as sent
	news chan struct{}
}

// listenScripted answers each request, a line with the data block that it announces,
// with what answer returns for it. An empty answer is none; hangUp closes the
// connection. answer is called by one goroutine a connection; conn counts those.
func listenScripted(t *testing.T, addr string, answer func(conn int, request string) string) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{addr: l.Addr().String(), listener: l, news: make(chan struct{})}
	var handlers sync.WaitGroup
	conns := map[net.Conn]bool{} // nil when all were closed
	handlers.Go(func() {
		for n := 0; ; n++ {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			if conns != nil {
				conns[nc] = true
			} else {
				nc.Close()
			}
			s.mu.Unlock()
			handlers.Go(func() {
				defer nc.Close()
				r := bufio.NewReader(nc)
				for {
					request, err := readRequest(r)
					if err != nil {
						return
					}
					s.mu.Lock()
					s.got = append(s.got, request)
					close(s.news)
					s.news = make(chan struct{})
					s.mu.Unlock()
					reply := answer(n, request)
					if reply == hangUp {
						return
					}
					io.WriteString(nc, reply)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		for nc := range conns {
			nc.Close()
		}
		conns = nil
		s.mu.Unlock()
		handlers.Wait()
	})
	return s
}

// hangUp as an answer closes the connection.
const hangUp = "\x00hang up"

// requests returns what was received so far.
func (s *scripted) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.got...)
}

// await waits until what was received satisfies ok, and returns it.
func (s *scripted) await(t *testing.T, what string, ok func(requests []string) bool) []string {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		s.mu.Lock()
		got, news := append([]string(nil), s.got...), s.news
		s.mu.Unlock()
		if ok(got) {
			return got
		}
		select {
		case <-news:
		case <-timer.C:
			t.Fatalf("%s: not among %q", what, got)
		}
	}
}

var storageCommand = regexp.MustCompile(`^(?:<[^>]*> *)?(?:set|add|replace|append|prepend|cas) +\S+ +\d+ +\d+ +(\d+)`)

// readRequest reads one request as it was sent.
func readRequest(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	m := storageCommand.FindStringSubmatch(line)
	if m == nil {
		return line, nil
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return "", err
	}
	block := make([]byte, n+2)
	if _, err := io.ReadFull(r, block); err != nil {
		return "", errors.Join(io.ErrUnexpectedEOF, err)
	}
	return line + string(block), nil
}

// originalIndex answers as flarei does to a node that registers: with NODE lines
// and META lines. It takes every report of a node and knows no extension.
func originalIndex(nodes, meta string) func(int, string) string {
	return func(_ int, request string) string {
		switch {
		case strings.HasPrefix(request, "node add "):
			return nodes
		case request == "meta\r\n":
			return meta
		case strings.HasPrefix(request, "node state "), strings.HasPrefix(request, "node role "), strings.HasPrefix(request, "shutdown "),
			request == "ping\r\n":
			return "OK\r\n"
		}
		return "ERROR\r\n"
	}
}

// originalMeta are the defaults of flarei.
const originalMeta = "META partition-size 1024\r\nMETA key-hash-algorithm simple\r\nMETA partition-type modular\r\n" +
	"META partition-modular-hint 1\r\nMETA partition-modular-virtual 4096\r\nEND\r\n"
