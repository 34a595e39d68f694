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

// deviations lists the cases in which this index answers otherwise than flarei
// on purpose, and why.
var deviations = map[string]string{
	"generic/version":                              "another program",
	"generic/version-arg":                          "answered, as by memcached",
	"generic/stats":                                "values of a process",
	"generic/stats-threads":                        "no threads here",
	"generic/stats-threads-request":                "no threads here",
	"generic/show-variables":                       "another program with other variables",
	"generic/set-two-lines":                        "the data block of a refused command is swallowed",
	"flare.xml-after-all":                          "another form of the durable state",
	"remove/preserved-master-with-preparing-slave": "the partition would be left without a master for good",
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
		if deviations[l.Case] != "" || l.Send == "" {
			continue
		}
		if len(l.Before) == 0 && len(previous) > 0 && l.Before != nil {
			c = newStepCluster(t) // flarei was started anew
			server = NewServer(ServerConfig{Cluster: c, Version: "test"})
		}
		previous = l.After
		lines++
		conn := &lineConn{in: strings.NewReader(decode(l.Send))}
		server.talk(t.Context(), &serverConn{Conn: conn, server: server})
		if got, want := conn.out.String(), decode(l.Recv); got != want {
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
	if err := scan.Err(); err != nil || lines < 150 {
		t.Errorf("%d cases compared: %v", lines, err)
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
