package text

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/flarekv/flare/proto/topology"
)

// items reads everything in s and describes it, one entry an item.
func items(r io.Reader, opts ReplyOptions) []string {
	rr := NewReplyReader(r, opts)
	var got []string
	for {
		var it Item
		switch err := rr.Next(&it); {
		case err == io.EOF:
			return got
		case err != nil:
			return append(got, "error: "+err.Error())
		}
		got = append(got, showItem(&it))
	}
}

func showItem(it *Item) string {
	switch it.Kind {
	case KindValue:
		v := &it.Value
		s := fmt.Sprintf("VALUE %s %d %q", v.Key, v.Flags, v.Data)
		if v.HasVersion {
			s += fmt.Sprintf(" v%d", v.Version)
		}
		if v.HasExpire {
			s += fmt.Sprintf(" e%d", v.Expire)
		}
		return s
	case KindKey:
		return fmt.Sprintf("KEY %s", it.Key)
	case KindNode:
		return fmt.Sprintf("NODE %+v", it.Node)
	case KindMeta, KindStat:
		return fmt.Sprintf("%s %s=%q", it.Kind, it.Name, it.Text)
	}
	return fmt.Sprintf("%s %q", it.Reply.Code, it.Reply.Text)
}

func TestNextItem(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"STORED\r\n", `STORED ""`},
		{"STORED\n", `STORED ""`},
		{"STORED extra words\r\n", `STORED "extra words"`},
		{"SERVER_ERROR  two  spaces \r\n", `SERVER_ERROR "two  spaces "`},
		{"\r\n", ` ""`},
		{"15\r\n", ` "15"`},
		{"STOREDX y\r\n", ` "STOREDX y"`},
		{"VERSION flare-1.3.4\r\n", ` "VERSION flare-1.3.4"`},
		{"VALUE a 5 3\r\nabc\r\nEND\r\n", `VALUE a 5 "abc"|END ""`},
		{"VALUE a 5 3\nabc\r\nEND\n", `VALUE a 5 "abc"|END ""`},
		{"VALUE a 5 3 9\r\na\nc\r\nVALUE b 0 0 1 1700000000\r\n\r\nEND\r\n", `VALUE a 5 "a\nc" v9|VALUE b 0 "" v1 e1700000000|END ""`},
		{"KEY a\r\nKEY b\r\nEND\r\n", `KEY a|KEY b|END ""`},
		{"STAT pid 1\r\nSTAT 2:op \r\nEND\r\n", `STAT pid="1"|STAT 2:op=""|END ""`},
		{"META partition-size 1024\r\nEND\r\n", `META partition-size="1024"|END ""`},
		{"NODE n 1 0 3 2 1 16\r\nEND\r\n", `NODE {Name:n Port:1 Role:master State:ready Partition:2 Balance:1 ThreadType:16 Epoch:0}|END ""`},
		{"NODE n 1 0 3 2 1 16 7 8\r\n", `NODE {Name:n Port:1 Role:master State:ready Partition:2 Balance:1 ThreadType:16 Epoch:7}`},
		{"NODE n 1 0 3 2 1 16 foo bar\r\n", `NODE {Name:n Port:1 Role:master State:ready Partition:2 Balance:1 ThreadType:16 Epoch:0}`},

		{"VALUE a 5\r\n", `error: malformed reply: VALUE line "VALUE a 5": want VALUE key flags bytes [version [expire]]`},
		{"VALUE a x 1\r\n", `error: malformed reply: VALUE line "VALUE a x 1": want VALUE key flags bytes [version [expire]]`},
		{"VALUE a 4294967296 1\r\n", `error: malformed reply: VALUE line "VALUE a 4294967296 1": want VALUE key flags bytes [version [expire]]`},
		{"VALUE a 0 1 x\r\n", `error: malformed reply: VALUE line "VALUE a 0 1 x": version "x" is not a number`},
		{"VALUE a 0 1 1 x\r\n", `error: malformed reply: VALUE line "VALUE a 0 1 1 x": expiry time "x" is not a number`},
		{"VALUE a 0 99\r\n", `error: value too large: VALUE of 99 bytes: at most 50 are accepted`},
		{"VALUE a 0 5\r\nab", `error: data block of VALUE: unexpected EOF`},
		{"KEY\r\n", `error: malformed reply: KEY line without key`},
		{"NODE n 1 master 0 0 0 0\r\n", `error: malformed reply: NODE line of n: role: want a number from 0 to 255`},
		{"STORED", `error: unexpected EOF`},
		{strings.Repeat("x", 101) + "\r\n", `error: malformed reply: line longer than 100 bytes`},
	} {
		for _, chunk := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader} {
			got := strings.Join(items(chunk(strings.NewReader(c.in)), ReplyOptions{MaxValue: 50, MaxLine: 100}), "|")
			if got != c.want {
				t.Errorf("%q\n got: %s\nwant: %s", c.in, got, c.want)
				break
			}
		}
	}
}

func TestReadReply(t *testing.T) {
	r := NewReplyReader(strings.NewReader("OK\r\nSTORED\r\nSERVER_ERROR too bad\r\nfoo\r\n18446744073709551615 \r\nVALUE a 0 1\r\nx\r\n"), ReplyOptions{})
	if err := r.ReadOK(); err != nil {
		t.Error(err)
	}
	var e *ErrorReply
	if err := r.ReadOK(); !errors.As(err, &e) || e.Code != CodeStored || e.Error() != "STORED" {
		t.Errorf("STORED for OK: %v", err)
	}
	reply, err := r.ReadReply()
	if err != nil || !reply.Code.IsError() || !errors.As(reply.Err(), &e) || e.Error() != "SERVER_ERROR too bad" {
		t.Errorf("%v, %v", reply, err)
	}
	if err := r.ReadOK(); !errors.Is(err, ErrMalformed) {
		t.Errorf("foo for OK: %v", err)
	}
	reply, err = r.ReadReply()
	if n, ok := reply.Number(); err != nil || !ok || n != 1<<64-1 || reply.Err() != nil {
		t.Errorf("number: %v, %v", reply, err)
	}
	if _, err = r.ReadReply(); !errors.Is(err, ErrMalformed) {
		t.Errorf("VALUE for a result: %v", err)
	}
	if _, err = r.ReadReply(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestReadLists(t *testing.T) {
	m := topology.NewMap(7, []topology.Node{
		{Name: "b", Port: 2, Role: topology.Slave, Partition: 0, Balance: 1, ThreadType: 17, Epoch: 4},
		{Name: "a", Port: 1, Partition: 0, ThreadType: 16, Epoch: 4},
	})
	meta := topology.Meta{PartitionSize: 64, Hash: topology.HashCRC32, Hint: 3, Virtual: 1024}
	var wire []byte
	wire = AppendNodes(wire, m.Nodes, true)
	wire = AppendNodes(wire, nil, true)
	wire = AppendMeta(wire, meta)
	wire = AppendValue(wire, []byte("a"), 1, []byte("x"), 5, true)
	wire = AppendValue(wire, []byte("b"), 2, []byte("yy"), 5, false)
	wire = append(wire, ReplyEnd...)
	wire = append(wire, ReplyAddFailed...)
	r := NewReplyReader(bytes.NewReader(wire), ReplyOptions{})

	nodes, err := r.ReadNodes()
	if err != nil || !(topology.Map{Version: 7, Nodes: nodes}).Equal(m) {
		t.Errorf("nodes = %+v, %v", nodes, err)
	}
	if nodes, err = r.ReadNodes(); err != nil || len(nodes) != 0 {
		t.Errorf("no nodes = %+v, %v", nodes, err)
	}
	if got, err := r.ReadMeta(); err != nil || got != meta {
		t.Errorf("meta = %+v, %v", got, err)
	}
	var values []string
	if err := r.ReadValues(func(v *Value) error {
		values = append(values, fmt.Sprintf("%s %d %s %v", v.Key, v.Flags, v.Data, v.HasVersion))
		return nil
	}); err != nil || strings.Join(values, "|") != "a 1 x true|b 2 yy false" {
		t.Errorf("values = %q, %v", values, err)
	}
	var e *ErrorReply
	if _, err := r.ReadNodes(); !errors.As(err, &e) || e.Code != CodeServerError || e.Text != "failed to add node" {
		t.Errorf("refused: %v", err)
	}
	if _, err := r.ReadNodes(); err != io.ErrUnexpectedEOF {
		t.Errorf("at the end: %v", err)
	}

	for in, want := range map[string]string{
		"KEY a\r\nEND\r\n": "a KEY line in a list of META lines",
		"FOO\r\nEND\r\n":   `"FOO" in a list of META lines`,
		"END\r\n":          "without partition-type",
		"META partition-type modular\r\nMETA partition-size x\r\nEND\r\n":         `META partition-size "x": want a number`,
		"META partition-type modular\r\nMETA partition-size 1\r\nEND\r\n":         "partition-size 1: want 2",
		"META partition-type ring\r\nEND\r\n":                                     `META partition-type "ring": want modular`,
		"META key-hash-algorithm md5\r\nEND\r\n":                                  "META key-hash-algorithm",
		"META partition-type modular\r\nMETA partition-modular-hint 0\r\nEND\r\n": "partition-modular-hint 0",
	} {
		_, err := NewReplyReader(strings.NewReader(in), ReplyOptions{}).ReadMeta()
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error = %v, want %s", in, err, want)
		}
	}
	got, err := NewReplyReader(strings.NewReader("META partition-type modular\r\nMETA new-thing 1\r\nEND\r\n"), ReplyOptions{}).ReadMeta()
	if err != nil || got != topology.DefaultMeta() {
		t.Errorf("meta with defaults = %+v, %v", got, err)
	}
	stop := errors.New("stop")
	if err := NewReplyReader(strings.NewReader("VALUE a 0 1\r\nx\r\nEND\r\n"), ReplyOptions{}).ReadValues(func(*Value) error { return stop }); err != stop {
		t.Errorf("error of the callback = %v", err)
	}
}

func TestReplyReaderLeavesProtocol(t *testing.T) {
	r := NewReplyReader(strings.NewReader("OK\r\nframes"), ReplyOptions{})
	if err := r.ReadOK(); err != nil || r.Buffered() != 6 {
		t.Fatal(err, r.Buffered())
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "frames" {
		t.Errorf("rest = %q, %v", rest, err)
	}
}

func TestBigValueReply(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 300_000)
	wire := AppendDumpValue(nil, []byte("key"), 1, data, 2, 3)
	wire = append(wire, ReplyEnd...)
	r := NewReplyReader(iotest.HalfReader(bytes.NewReader(wire)), ReplyOptions{})
	var it Item
	if err := r.Next(&it); err != nil {
		t.Fatal(err)
	}
	if v := it.Value; string(v.Key) != "key" || !bytes.Equal(v.Data, data) || v.Version != 2 || v.Expire != 3 {
		t.Errorf("key %q, %d bytes, version %d, expire %d", v.Key, len(v.Data), v.Version, v.Expire)
	}
}
