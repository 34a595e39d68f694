package index

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/proto/topology"
)

// stepCluster is a core without a loop: every command is carried out at once, and
// every change is durable at once.
type stepCluster struct {
	t     *testing.T
	state core.State
	id    uint64
	reply core.Reply
}

func newStepCluster(t *testing.T) *stepCluster {
	c := &stepCluster{t: t, state: core.New(core.Durable{})}
	c.input(core.Tick{Now: 1})
	c.input(core.SpecChanged{Spec: core.Spec{Generation: 1, Partitions: 1, Replicas: 1, Meta: topology.DefaultMeta()}})
	return c
}

func (c *stepCluster) input(in core.Input) {
	c.t.Helper()
	var effects []core.Effect
	var err error
	c.state, effects, err = core.Check(c.state, in)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range effects {
		switch e := e.(type) {
		case core.Persist:
			c.input(core.Persisted{Seq: e.Durable.Seq})
		case core.Reply:
			c.reply = e
		}
	}
}

func (c *stepCluster) Do(_ context.Context, cmd core.Command) (core.Reply, error) {
	c.id++
	cmd.ID = c.id
	c.input(cmd)
	if c.reply.ID != c.id {
		return core.Reply{}, fmt.Errorf("no reply to %s", core.Describe(cmd))
	}
	return c.reply, nil
}

func (c *stepCluster) Topology() runtime.Topology {
	return runtime.Topology{Map: c.state.Saved.Map(), Meta: c.state.Saved.Meta}
}

// lineConn is a connection whose peer sends something and reads the rest.
type lineConn struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *lineConn) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *lineConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *lineConn) Close() error                     { return nil }
func (c *lineConn) SetReadDeadline(time.Time) error  { return nil }
func (c *lineConn) SetWriteDeadline(time.Time) error { return nil }
func (c *lineConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// deviation is a recorded case in which this index answers otherwise than flarei on
// purpose. want is its answer; edit holds pairs of what is replaced in the recorded
// one by what. A case without either is not sent.
type deviation struct {
	name string
	why  string
	want string
	edit []string
}

// deviations is all of them.
var deviations = []deviation{
	{name: "generic/version", why: "another version", edit: []string{"flare-1.3.4", "flare-test"}},
	{name: "generic/version-arg", why: "answered, as by memcached", want: "VERSION flare-test\r\n"},
	{name: "generic/stats", why: "another version; threads are what runs: two connections and the core",
		edit: []string{"version 1.3.4", "version test"}},
	{name: "generic/stats-threads", why: "a clock needs no thread", edit: []string{
		"STAT ID:type 2\r\nSTAT ID:peer ADDR\r\nSTAT ID:op \r\nSTAT ID:uptime N\r\nSTAT ID:state wait\r\nSTAT ID:info \r\nSTAT ID:queue 0\r\nSTAT ID:behind 0\r\n", ""}},
	{name: "generic/show-variables", why: "the recorded one was configured otherwise", edit: []string{
		"/data/flarei19220/c.conf", "", "/data/flarei19220", "",
		"max_connection:           256", "max_connection:           1024",
		"monitor_threshold:        1000000", "monitor_threshold:        3",
		"monitor_interval:         3600", "monitor_interval:         1",
		"net_read_timeout:         600000", "net_read_timeout:         600",
		"server_name:              127.0.0.1", "server_name:              ",
		"server_port:              19220", "server_port:              ",
		"thread_pool_size:         8", "thread_pool_size:         5"}},
	{name: "generic/set-two-lines", why: "#2: the data block of a refused command is swallowed", want: "ERROR\r\n"},
	{name: "remove/preserved-master-with-preparing-slave", why: "#25: the partition would be left without a master for good; what follows was recorded after it"},
}

// recordedMasks hide what differs between two runs of the same program.
var recordedMasks = []struct {
	find *regexp.Regexp
	put  string
}{
	{regexp.MustCompile(`STAT (pid|uptime|time|rusage_user|rusage_system|curr_connections|total_connections|bytes_read|bytes_written|threads|pool_threads) [0-9.]+`), "STAT $1 N"},
	{regexp.MustCompile(`STAT \d+:`), "STAT ID:"},
	{regexp.MustCompile(`:uptime \d+`), ":uptime N"},
	{regexp.MustCompile(`:peer \S*`), ":peer ADDR"},
}

func mask(s string) string {
	for _, m := range recordedMasks {
		s = m.find.ReplaceAllString(s, m.put)
	}
	return s
}

// TestConformance sends what was sent to flarei and compares the answers, the
// tables that resulted, and the map versions.
func TestConformance(t *testing.T) {
	f, err := os.Open("testdata/flarei-index.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := newStepCluster(t)
	server := NewServer(ServerConfig{Cluster: c, Version: "test"})
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	var previous map[string]string
	lines, offset := 0, uint64(0)
	used := map[string]bool{}
	for scan.Scan() {
		var l struct {
			Case    string
			Send    string
			Recv    string
			Before  map[string]string
			After   map[string]string
			Version []uint64 `json:"node_map_version"`
		}
		if err := json.Unmarshal(scan.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		want, sent := mask(decode(l.Recv)), true
		for _, d := range deviations {
			if d.name != l.Case {
				continue
			}
			used[d.name] = true
			sent = d.want != "" || d.edit != nil
			if d.want != "" {
				want = d.want
			}
			for i := 0; i < len(d.edit); i += 2 {
				if !strings.Contains(want, d.edit[i]) {
					t.Errorf("%s: the deviation edits %q, which is not in %q", l.Case, d.edit[i], want)
				}
				want = strings.ReplaceAll(want, d.edit[i], d.edit[i+1])
			}
		}
		if !sent || l.Send == "" { // the last line is the state file, which package flarexml reads
			continue
		}
		if len(l.Before) == 0 && len(previous) > 0 && l.Before != nil {
			c = newStepCluster(t) // flarei was started anew
			server = NewServer(ServerConfig{Cluster: c, Version: "test"})
		}
		previous = l.After
		lines++
		lc := &lineConn{in: strings.NewReader(decode(l.Send))}
		conn := server.admit(t.Context(), lc)
		server.talk(t.Context(), conn)
		server.dismiss(conn)
		if got := mask(lc.out.String()); got != want {
			t.Errorf("%s: %q\n got %q\nwant %q", l.Case, l.Send, got, want)
		}
		if l.After == nil {
			continue
		}
		if got := table(c.state.Saved.Map()); fmt.Sprint(got) != fmt.Sprint(l.After) {
			t.Fatalf("%s: %q leads to\n     %v\nwant %v", l.Case, l.Send, got, l.After)
		}
		if len(l.Version) == 2 {
			if got := c.state.Saved.Version + offset; got != l.Version[1] {
				t.Errorf("%s: %q: map version %d, want %d", l.Case, l.Send, got, l.Version[1])
				offset = l.Version[1] - c.state.Saved.Version
			}
		}
	}
	if err := scan.Err(); err != nil || lines < 190 {
		t.Errorf("%d cases compared: %v", lines, err)
	}
	for _, d := range deviations {
		if !used[d.name] {
			t.Errorf("deviation %s is of no recorded case", d.name)
		}
	}
}

// decode undoes the transcript's form, in which a character is a byte.
func decode(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}

// table is a map in the transcript's form.
func table(m topology.Map) map[string]string {
	t := map[string]string{}
	for _, n := range m.Nodes {
		t[fmt.Sprint(n.Port)] = fmt.Sprintf("%v/%v/p%d/b%d/t%d", n.Role, n.State, n.Partition, n.Balance, n.ThreadType)
	}
	return t
}
