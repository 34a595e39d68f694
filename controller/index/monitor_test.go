package index

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/proto/text"
)

// monitoring is one recorded case of how flarei watches a node.
type monitoring struct {
	Case     string
	Timeline [][]any `json:"node_state_timeline"` // [second, state], and the moment at which the script changed
	Saw      []struct {
		T     float64
		Recv  string
		Reply *string
	} `json:"node_saw"`
	AfterEach [][]string `json:"after_each"`
	Interval  float64    `json:"monitor_interval"` // seconds
}

// watchDeviations is every recorded case in which this index watches otherwise, on
// purpose: what the node is asked, and the states it goes through.
var watchDeviations = []struct {
	name, why   string
	saw, states []string // nil: as recorded
}{
	{name: "ping-closes-connection", why: "a connection that turns out to be closed is opened once more at once: the node may have closed it long ago. A node that is down is sent the map too, when it can be reached",
		saw: []string{"ping", "ping", "ping", "ping", "sync 2 down", "ping", "ping", "ping", "ping", "sync 3 active", "ping"}},
	{name: "node-refuses-connections", why: "a node that is down is sent the map too, as soon as it can be reached",
		saw: []string{"sync 2 down", "ping", "sync 3 active", "ping"}},
	{name: "node-sync-refused-by-node-counts-as-failure", why: "#23: a refused map is sent again, and is no sign of death",
		saw: []string{"sync 2 active", "stats", "sync 2 active", "stats", "sync 2 active"}, states: []string{"active"}},
	{name: "node-sync-never-answered", why: "#21: the answer to a map has a deadline, and silence is what it is",
		saw: []string{"sync 2 active", "sync 2 active", "sync 2 active", "sync 3 down"}, states: []string{"active", "down"}},
}

// watchedNode is the node of a recording. It answers well until its script begins.
type watchedNode struct {
	wg     sync.WaitGroup
	mu     sync.Mutex
	begun  bool
	refuse bool                    // connections
	ping   func() (string, string) // what is answered, and after what time; "close", "" for silence
	sync   func(uint64) string     // the same for a map
	saw    []string                // since the script began
	began  time.Time
}

func (n *watchedNode) dial(context.Context, string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse {
		return nil, syscall.ECONNREFUSED
	}
	ours, theirs := net.Pipe()
	n.wg.Go(func() { n.serve(ours) })
	return theirs, nil
}

func (n *watchedNode) serve(c net.Conn) {
	defer c.Close()
	r := text.NewReader(c, text.Options{})
	var req text.Request
	for r.ReadRequest(&req) == nil {
		answer, after := n.answer(&req)
		if d, err := time.ParseDuration(after); err == nil {
			time.Sleep(d)
		}
		if answer == "close" {
			return
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

func (n *watchedNode) answer(req *text.Request) (answer, after string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.begun {
		return "OK\r\n", ""
	}
	switch req.Command {
	case text.CmdPing:
		n.saw = append(n.saw, "ping")
		return n.ping()
	case text.CmdNodeSync:
		n.saw = append(n.saw, fmt.Sprintf("sync %d %v", req.Version, req.Nodes[0].State))
		return n.sync(req.Version), ""
	}
	n.saw = append(n.saw, req.Command.String())
	return text.ReplyEnd, ""
}

var (
	slowPing   = regexp.MustCompile(`^ping-slow-([0-9.]+s)-`)
	recordSync = regexp.MustCompile(`^node sync (\d+)\r\nNODE \S+ \S+ \d (\d) `)
)

// TestConformanceMonitor lets a node answer pings and maps as the recorded one did,
// on a clock that only goes when everybody waits, and compares what it was asked and
// when it was taken for down and up.
func TestConformanceMonitor(t *testing.T) {
	f, err := os.Open("testdata/flarei-monitor.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cases := 0
	for scan := bufio.NewScanner(f); scan.Scan(); cases++ {
		var rec monitoring
		if err := json.Unmarshal(scan.Bytes(), &rec); err != nil {
			t.Fatal(err)
		}
		t.Run(rec.Case, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { rec.replay(t) })
		})
	}
	if cases != 13 {
		t.Errorf("%d cases, want 13", cases)
	}
}

func (rec monitoring) replay(t *testing.T) {
	// What the recording has.
	var wantSaw, wantStates, replies []string
	var changes []float64 // when the states began
	last, change := 0.0, 0.0
	for _, s := range rec.Saw {
		last = s.T
		reply := ""
		if s.Reply != nil {
			reply = *s.Reply
		}
		if m := recordSync.FindStringSubmatch(s.Recv); m != nil {
			wantSaw = append(wantSaw, "sync "+m[1]+map[string]string{"0": " active", "2": " down"}[m[2]])
		} else if s.Recv == "ping\r\n" {
			wantSaw = append(wantSaw, "ping")
			replies = append(replies, reply)
		}
	}
	state := func(s string, at float64) {
		if len(wantStates) == 0 || wantStates[len(wantStates)-1] != s {
			wantStates, changes = append(wantStates, s), append(changes, at)
		}
	}
	for _, e := range rec.Timeline {
		if at, ok := e[0].(float64); ok {
			state(e[1].(string), at)
		} else {
			change = e[1].(float64)
		}
	}
	for _, e := range rec.AfterEach {
		state(e[1], 0)
	}
	timed := true
	for _, d := range watchDeviations {
		if d.name == rec.Case {
			wantSaw = d.saw
			if d.states != nil {
				wantStates, timed = d.states, false
			}
		}
	}

	n := &watchedNode{sync: func(uint64) string { return "OK\r\n" }}
	n.ping = func() (string, string) {
		if m := slowPing.FindStringSubmatch(rec.Case); m != nil {
			return "OK\r\n", m[1]
		}
		r := replies[0]
		if len(replies) > 1 {
			replies = replies[1:]
		}
		return r, ""
	}
	switch rec.Case {
	case "node-sync-refused-by-node-counts-as-failure":
		n.ping = func() (string, string) { return "OK\r\n", "" }
		n.sync = func(uint64) string { return "SERVER_ERROR node sync error\r\n" }
	case "node-sync-never-answered":
		n.sync = func(uint64) string { return "" }
		n.ping = func() (string, string) { return "OK\r\n", "" }
	}

	// The index, and the node in it. It is left in peace until the time in which the
	// index makes allowance for its own start is over.
	ctx, stop := context.WithCancel(t.Context())
	var rt *runtime.Runtime
	b := NewBroadcaster(BroadcasterConfig{
		Observe: func(in core.Input) { rt.Observe(in) }, Dial: n.dial,
		PingInterval: time.Duration(rec.Interval * float64(time.Second)), PingTimeout: 500 * time.Millisecond,
	})
	backend := newMemory(1, 1)
	rt = runtime.New(runtime.Config{Backend: backend, Broadcaster: b})
	var wg sync.WaitGroup
	defer n.wg.Wait()
	defer wg.Wait()
	defer b.Close()
	defer stop()
	wg.Go(func() { _ = rt.Run(ctx) })
	<-backend.watching
	time.Sleep(time.Second)
	if r, err := rt.Do(ctx, core.Command{Verb: core.VerbAdd, Name: "n", Port: 1}); err != nil || r.Err != "" {
		t.Fatal(r, err)
	}
	time.Sleep(150*time.Second + 550*time.Millisecond) // until 0.45 s before a ping, as recorded

	var mu sync.Mutex
	var states []string
	var at []time.Duration
	n.mu.Lock()
	n.begun, n.began = true, time.Now()
	n.mu.Unlock()
	wg.Go(func() {
		_ = rt.Watch(ctx, func(topo runtime.Topology) error {
			mu.Lock()
			defer mu.Unlock()
			if s := topo.Map.Nodes[0].State.String(); len(states) == 0 || states[len(states)-1] != s {
				states, at = append(states, s), append(at, time.Since(n.began))
			}
			return nil
		})
	})
	if rec.Case == "node-refuses-connections" {
		n.mu.Lock()
		n.refuse = true
		n.mu.Unlock()
		b.interrupt("n:1")
		wg.Go(func() {
			time.Sleep(time.Duration(change * float64(time.Second)))
			n.mu.Lock()
			n.refuse = false
			n.mu.Unlock()
		})
	}
	if strings.HasPrefix(rec.Case, "node-sync-") {
		if r, err := rt.Do(ctx, core.Command{Verb: core.VerbRole, Name: "n", Port: 1, Role: 2, Balance: -1, Partition: -1}); err != nil || r.Err != "" {
			t.Fatal(r, err)
		}
		last = max(last, 12)
	}
	time.Sleep(time.Duration((last + 3) * float64(time.Second)))

	n.mu.Lock()
	defer n.mu.Unlock()
	mu.Lock()
	defer mu.Unlock()
	if strings.HasPrefix(rec.Case, "node-sync-") {
		n.saw = slices.DeleteFunc(n.saw, func(s string) bool { return s == "ping" }) // it is about maps
	}
	if got := n.saw[:min(len(n.saw), len(wantSaw))]; !slices.Equal(got, wantSaw) {
		t.Errorf("the node was asked\n     %q\nwant %q", n.saw, wantSaw)
	}
	if !slices.Equal(states, wantStates) {
		t.Fatalf("states %v, want %v", states, wantStates)
	}
	for i := 1; timed && i < len(states); i++ {
		// It may be earlier: a node that takes a map is pinged at once, and a closed
		// connection is not waited for.
		if at[i].Seconds() > changes[i]+1 {
			t.Errorf("%s after %v, recorded after %s s", states[i], at[i], strconv.FormatFloat(changes[i], 'f', 2, 64))
		}
	}
}
