package node

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// testdata/flared-client.jsonl.gz is what clients and the original flared 1.3.4
// said to each other, one exchange a line; each character of a string is one byte.
type recording struct {
	Case   string `json:"case"`
	Setup  string `json:"setup"`
	Send   string `json:"send"`
	Recv   string `json:"recv"`
	Conn   int    `json:"conn_id"`
	Closed bool   `json:"closed_by_server"`
}

// deviations are the exchanges in which this node answers something else. A
// star stands for anything.
var deviations = []struct {
	cases string
	want  string
	why   string
}{
	{"no-partition/*-noreply", "", "errors of noreply requests are not sent: nobody reads them"},
	{"set-badchunk/err-body-*", "ERROR\r\n", "the data block of a refused line is not executed"},
	{"keylen-8192/set", "ERROR\r\n", "likewise"},
	{"keylen-8193/set", "ERROR\r\n", "likewise"},
	{"keylen-16000/set", "ERROR\r\n", "likewise"},
	{"keylen-8192/get", "ERROR\r\n", "too long keys are refused, not cut in two"},
	{"keylen-8193/get", "ERROR\r\n", "likewise"},
	{"keylen-16000/get", "ERROR\r\n", "likewise"},
	{"no-partition/keys", "ERROR\r\n", "this node does not have the command"},
	{"keys/*", "ERROR\r\n", "likewise"},
	{"no-partition/dump*", "ERROR\r\n", "likewise"},
	{"dump/*", "ERROR\r\n", "likewise"},
	{"show/*", "ERROR\r\n", "likewise"},
	{"stats/threads*", "ERROR\r\n", "there are no threads to tell of"},
	{"misc/kill-*", "ERROR\r\n", "likewise"},
	{"kill/other-connection", "ERROR\r\n", "likewise"},
}

// deviates returns what is answered instead of the recorded reply.
func deviates(name string) (want string, found bool) {
	for _, d := range deviations {
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(d.cases), `\*`, ".*") + "$"
		if ok, _ := regexp.MatchString(pattern, name); ok {
			return d.want, true
		}
	}
	return "", false
}

// waits are the connections before which the recording let time pass.
var waits = map[int]bool{28: true, 34: true, 36: true}

var masks = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`flare-[0-9.]+`), "flare-V"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "NODE"},
	{regexp.MustCompile(`(STAT \w+) [-0-9.]+`), "$1 N"},
}

func masked(s string) string {
	for _, m := range masks {
		s = m.pattern.ReplaceAllString(s, m.with)
	}
	return s
}

func TestReplay(t *testing.T) {
	f, err := os.Open("testdata/flared-client.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var offset atomic.Int64
	x := newTestIndex(t)
	n := startNode(t, x, quick, func(n *testNode) {
		n.clock = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	})
	conns := map[int]*testClient{}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var rec recording
		if err := json.Unmarshal(lines.Bytes(), &rec); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(rec.Setup, "role master") && dutyOf(n.maps.table()).kind == dutyNone {
			x.master(n.key(), 0)
			n.settled(dutyMaster)
		}
		c := conns[rec.Conn]
		if c == nil || rec.Conn == 0 {
			if waits[rec.Conn] {
				offset.Add(int64(4 * time.Second))
			}
			c = dial(t, n)
			conns[rec.Conn] = c
		}
		want := latin1(rec.Recv)
		if other, found := deviates(rec.Case); found {
			want = other
		}
		got := c.replay(latin1(rec.Send), want, rec.Closed)
		if masked(got) != masked(want) {
			t.Errorf("%s: sent %s\n got %s\nwant %s", rec.Case, short(latin1(rec.Send)), short(masked(got)), short(masked(want)))
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}

// replay sends bytes and reads until the wanted answer is there. What comes
// beyond it is found by the next exchange on the connection.
func (c *testClient) replay(send, want string, closed bool) string {
	c.t.Helper()
	c.nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c.nc, send); err != nil {
		c.t.Fatal(err)
	}
	var got []byte
	for closed && send != "" || masked(string(got)) != masked(want) {
		if len(got) > 0 {
			c.nc.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		}
		buf := make([]byte, 64<<10)
		n, err := c.r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			break
		}
	}
	return string(got)
}

// latin1 turns a recorded string into the bytes it stands for.
func latin1(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}
