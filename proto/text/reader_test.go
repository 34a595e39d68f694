package text

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/flarekv/flare/proto/topology"
)

// read parses everything in s and describes it, one entry a request.
func read(t testing.TB, r io.Reader, opts Options) []string {
	t.Helper()
	rd := NewReader(r, opts)
	var got []string
	var req Request
	for {
		err := rd.ReadRequest(&req)
		var refused *ProtocolError
		switch {
		case err == nil:
			got = append(got, show(&req))
		case errors.As(err, &refused):
			got = append(got, fmt.Sprintf("%s: %s %q", refused.Command, refused.Reason, refused.Reply))
		default:
			if err != io.EOF {
				got = append(got, err.Error())
			}
			return got
		}
	}
}

// show writes the fields of a request that are set.
func show(req *Request) string {
	var b strings.Builder
	b.WriteString(req.Command.String())
	v := reflect.ValueOf(req.Clone()).Elem()
	for i := range v.NumField() {
		name, f := v.Type().Field(i).Name, v.Field(i)
		if name == "Command" || f.IsZero() {
			continue
		}
		switch x := f.Interface().(type) {
		case [][]byte:
			fmt.Fprintf(&b, " %s=%s", name, bytes.Join(x, []byte(",")))
		case []byte:
			fmt.Fprintf(&b, " %s=%q", name, x)
		case bool:
			fmt.Fprintf(&b, " %s", name)
		default:
			fmt.Fprintf(&b, " %s=%+v", name, x)
		}
	}
	return b.String()
}

func TestReadRequest(t *testing.T) {
	long := strings.Repeat("k", MaxKeyLength)
	for _, c := range []struct{ in, want string }{
		// Lines and tokens.
		{"get a\r\n", "get Keys=a"},
		{"get a\n", "get Keys=a"},
		{"  get   a   b \r\n", "get Keys=a,b"},
		{"get a\r\r\n", "get Keys=a\r"},
		{"get a\tb\r\n", "get Keys=a\tb"},
		{"get \xe3\x81\x82\r\n", "get Keys=\xe3\x81\x82"},
		{"get\ta\r\n", `none: unknown_command "ERROR\r\n"`},
		{"\r\n", `none: unknown_command "ERROR\r\n"`},
		{"GET a\r\n", `none: unknown_command "ERROR\r\n"`},
		{"get a\x00b\r\n", `get: nul_byte "ERROR\r\n"`},
		{"get " + long + "\r\n", "get Keys=" + long},
		{"get a " + long + "k\r\n", `get: key_too_long "ERROR\r\n"`},
		{"delete " + long + "k\r\n", `delete: key_too_long "ERROR\r\n"`},

		// Storage commands.
		{"set a 1 2 3\r\nabc\r\n", `set Keys=a Flags=1 Exptime=2 Data="abc"`},
		{"set a 1 2 0\r\n\r\n", `set Keys=a Flags=1 Exptime=2 Data=""`},
		{"set a 0 0 3 4\r\na\nc\r\n", `set Keys=a Version=4 HasVersion Data="a\nc"`},
		{"set a 0 0 1 0 async sync noreply noreply\r\nx\r\n", `set Keys=a HasVersion NoReply Sync Async Data="x"`},
		{"set a 0 0 1 5noreply\r\nx\r\n", `set Keys=a Version=5 HasVersion NoReply Data="x"`},
		{"cas a 0 0 1 18446744073709551615\r\nx\r\n", `cas Keys=a Version=18446744073709551615 HasVersion Data="x"`},
		{"cas a 0 0 1\r\nx\r\n", `cas: bad_arguments "ERROR\r\n"`},
		{"set a 0 9223372036854775807 1\r\nx\r\n", `set Keys=a Exptime=9223372036854775807 Data="x"`},
		{"set a 0 9223372036854775808 1\r\nx\r\n", `set: bad_arguments "ERROR\r\n"`},
		{"set a 4294967296 0 1\r\nx\r\n", `set: bad_arguments "ERROR\r\n"`},
		{"set a 0 0 1 foo\r\nx\r\n", `set: bad_option "ERROR\r\n"`},
		{"set a\x00 0 0 1\r\nx\r\n", `set: nul_byte "ERROR\r\n"`},
		{"set " + long + "k 0 0 1\r\nx\r\n", `set: key_too_long "ERROR\r\n"`},
		{"set a x 0 1\r\nx\r\nget b\r\n", `set: bad_arguments "ERROR\r\n"|get Keys=b`},
		{"set a 0 0 6 bogus\r\nget b\n\r\nget c\r\n", `set: bad_option "ERROR\r\n"|get Keys=c`},
		// No block came: what follows the line is not one.
		{"set a -1 0 1\r\nget b\r\n", `set: bad_arguments "ERROR\r\n"|get Keys=b`},
		// The length cannot be read.
		{"set a 0 0 x\r\nquit\r\n", `set: bad_arguments "ERROR\r\n"|quit`},
		{"set a 0 0 2147483648\r\nquit\r\n", `set: bad_arguments "ERROR\r\n"|quit`},
		{"set a 0 0\r\nquit\r\n", `set: bad_arguments "ERROR\r\n"|quit`},
		// The line end behind the data is not checked.
		{"set a 0 0 3\r\nabc\nget b\r\n", `set Keys=a Data="abc"|none: unknown_command "ERROR\r\n"`},
		{"set a 0 0 3\r\nabcdef\r\n", `set Keys=a Data="abc"|none: unknown_command "ERROR\r\n"`},

		{"incr a 5\r\n", "incr Keys=a Delta=5"},
		{"decr a -1 noreply sync\r\n", "decr Keys=a Delta=18446744073709551615 NoReply Sync"},
		{"incr a 5abc\r\n", `incr: bad_option "ERROR\r\n"`},
		{"incr a -\r\n", `incr: bad_arguments "ERROR\r\n"`},
		{"delete a\r\n", "delete Keys=a"},
		{"delete a 5 7 noreply\r\n", "delete Keys=a Exptime=5 Version=7 HasVersion NoReply"},
		{"delete a 5 -7\r\n", `delete: bad_arguments "ERROR\r\n"`},
		{"touch a 10 3 noreply\r\n", "touch Keys=a Exptime=10 Version=3 HasVersion NoReply"},
		{"gat a 10\r\n", "gat Keys=a Exptime=10"},
		{"gat 10 a\r\n", `gat: bad_arguments "ERROR\r\n"`},

		{"keys a b 10\r\n", "keys Keys=a,b Limit=10"},
		{"keys 10\r\n", `keys: bad_arguments "ERROR\r\n"`},
		{"dump\r\n", "dump Dump={Wait:0 Partition:-1 Partitions:0 Bandwidth:0}"},
		{"dump 5 1 2 300\r\n", "dump Dump={Wait:5 Partition:1 Partitions:2 Bandwidth:300}"},
		{"dump 5x\r\n", "dump Dump={Wait:5 Partition:-1 Partitions:0 Bandwidth:0}"},
		{"dump 0 2 2\r\n", `dump: bad_arguments "ERROR\r\n"`},
		{"dump_key 1 2\r\n", "dump_key Dump={Wait:0 Partition:1 Partitions:2 Bandwidth:0}"},
		{"flush_all 10 noreply\r\n", "flush_all Exptime=10 NoReply"},
		{"stats threads slave\r\n", "stats Args=threads,slave"},
		{"kill 7\r\n", "kill ThreadID=7"},
		{"orphan_scan\r\n", "orphan_scan"},
		{"orphan_purge\r\n", "orphan_purge"},
		{"orphan_purge 50\r\n", "orphan_purge Rate=50"},
		{"digest murmur 1 4096 1024 3 8\r\n", "digest Digest={Meta:{PartitionSize:1024 Hash:murmur Hint:1 Virtual:4096} Partitions:3 Buckets:8}"},
		{"digest simple 1 4096 3 3 8\r\n", `digest: bad_arguments "ERROR\r\n"`},
		{"digest simple 1 4096 1024 1000 10000\r\n", `digest: bad_arguments "ERROR\r\n"`},
		{"digest simple 1 4096 1024 3\r\n", `digest: bad_arguments "ERROR\r\n"`},
		{"quit now\r\nquit\r\n", `quit: bad_arguments ""|quit`},

		// The list of nodes a request went through.
		{"<a:1,b:2>set k 0 0 1 4\r\nx\r\n", `set Proxied Via=[a:1 b:2] Keys=k Version=4 HasVersion Data="x"`},
		{"<a:1> get k\r\n", "get Proxied Via=[a:1] Keys=k"},
		{"<>get k\r\n", "get Proxied Via=[] Keys=k"},
		{"<a:1 get k\r\n", `none: unknown_command "ERROR\r\n"`},
		{"<a:1>set k y 0 1\r\nx\r\nget k\r\n", `set: bad_arguments "ERROR\r\n"|get Keys=k`},
		{"<" + strings.Repeat("a:1,", 64) + "b:1>set k 0 0 1\r\nx\r\nget k\r\n", `set: too_many_hops "SERVER_ERROR too many hops\r\n"|get Keys=k`},
		{"<" + strings.Repeat("a:1,", 64) + "b:1>set k 0 0 1 noreply\r\nx\r\n", `set: too_many_hops ""`},

		// Nodes.
		{"node sync 5\r\nNODE b 1 0 0 0 1 17 9\r\nNODE a -2 2 1 -1 0 16\nEND\r\nping\r\n",
			"node sync Version=5 HasVersion Nodes=[{Name:b Port:1 Role:master State:active Partition:0 Balance:1 ThreadType:17 Epoch:9}" +
				" {Name:a Port:-2 Role:proxy State:prepare Partition:-1 Balance:0 ThreadType:16 Epoch:0}]|ping"},
		{"node sync\r\nEND\r\n", "node sync"},
		{"node sync 1\r\nNODE a 1 0 0 0\r\nping\r\n", `node sync: bad_node_list "CLIENT_ERROR format error\r\n"|ping`},
		{"node sync 1\r\nNODE a 1 256 0 0 0 0\r\n", `node sync: bad_node_list "CLIENT_ERROR format error\r\n"`},
		{"node sync 1 x\r\nping\r\n", `node sync: bad_arguments "ERROR\r\n"|ping`},
		{"replicate a:1 2 - 3 4 1\r\n", "replicate Replicate={Self:a:1 Partition:2 History: Position:3/4 Proto:1}"},
		{"replicate a:1 0 c0ffee 3 4 1\r\n", "replicate Replicate={Self:a:1 Partition:0 History:c0ffee Position:3/4 Proto:1}"},
		{"replicate a:1 0 - 3 4\r\n", `replicate: bad_arguments "ERROR\r\n"`},
		{"replicate a 0 - 3 4 1\r\n", `replicate: bad_arguments "ERROR\r\n"`},
		{"replicate a:1 -1 - 3 4 1\r\n", `replicate: bad_arguments "ERROR\r\n"`},

		// The end of the input inside a request.
		{"get a", "unexpected EOF"},
		{"set a 0 0 3\r\nab", "data block of set: unexpected EOF"},
		{"set a 0 0 3 x\r\nab", `set: bad_option "ERROR\r\n"|unexpected EOF`},
		{"node sync 1\r\n", "list of node sync: unexpected EOF"},
		{"\x80\x00", "binary protocol is not supported"},
		{"get a\r\n\x80", "get Keys=a|binary protocol is not supported"},
	} {
		for _, chunk := range []func(io.Reader) io.Reader{
			func(r io.Reader) io.Reader { return r },
			iotest.OneByteReader,
			iotest.DataErrReader,
		} {
			got := strings.Join(read(t, chunk(strings.NewReader(c.in)), Options{Commands: NodeCommands}), "|")
			if got != c.want {
				t.Errorf("%q\n got: %s\nwant: %s", clip([]byte(c.in)), clip([]byte(got)), clip([]byte(c.want)))
				break
			}
		}
	}
}

func TestReadIndexRequest(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"node add a 1", "node add Args=a,1 Node={Name:a Port:1}"},
		{"node add a 1 x", `node add: bad_arguments "ERROR\r\n"`},
		{"node add a 99999999999", `node add: bad_arguments "ERROR\r\n"`},
		{"node add " + strings.Repeat("a", MaxWordLength+1) + " 1", `node add: bad_arguments "ERROR\r\n"`},
		{"node role a 1 slave 2 3 x", "node role Args=a,1,slave,2,3,x Node={Name:a Port:1 Role:slave Balance:2 Partition:3}"},
		{"node role a 1 proxy", "node role Args=a,1,proxy Node={Name:a Port:1 Role:proxy Balance:-1 Partition:-1}"},
		{"node role a 1 master abc 0", "node role Args=a,1,master,abc,0 Node={Name:a Port:1 Role:master Balance:-1 Partition:-1}"},
		{"node role a 1 king", `node role: bad_arguments "ERROR\r\n"`},
		{"node state a 1 ready", "node state Args=a,1,ready Node={Name:a Port:1 State:ready}"},
		{"node state a 1 active 5 6", "node state Args=a,1,active,5,6 Node={Name:a Port:1 State:active Partition:-1 Epoch:5 Session:6 HasSession:true}"},
		{"node state a 1 active 5 6 2", "node state Args=a,1,active,5,6,2 Node={Name:a Port:1 State:active Partition:2 Epoch:5 Session:6 HasSession:true}"},
		{"node state a 1 active 5 6 x", `node state: bad_arguments "ERROR\r\n"`},
		{"node state a 1 active 5", `node state: bad_arguments "ERROR\r\n"`},
		{"node state a 1 down 5 6", `node state: bad_arguments "ERROR\r\n"`},
		{"node remove a 1", "node remove Args=a,1 Node={Name:a Port:1}"},
		{"node behind a 1 5 6", "node behind Args=a,1,5,6 Node={Name:a Port:1 Partition:-1 Epoch:5 Session:6 HasSession:true}"},
		{"node behind a 1 5 6 2", "node behind Args=a,1,5,6,2 Node={Name:a Port:1 Partition:2 Epoch:5 Session:6 HasSession:true}"},
		{"node behind a 1 5 6 2 3", `node behind: bad_arguments "ERROR\r\n"`},
		{"node behind a 1 5", `node behind: bad_arguments "ERROR\r\n"`},
		{"node handover a 1 b 2 5 6 7", "node handover Args=a,1,b,2,5,6,7 Node={Name:a Port:1 Target:b TargetPort:2 Paused:7 Epoch:5 Session:6 HasSession:true}"},
		{"node handover a 1 b 5 6", `node handover: bad_arguments "ERROR\r\n"`},
		{"node handover a 1 b 2 5 6", `node handover: bad_arguments "ERROR\r\n"`},
		{"node handover a 1 b 2 5 6 0", `node handover: bad_arguments "ERROR\r\n"`},
		{"node handover a 1 b 2 5 6 7 8", `node handover: bad_arguments "ERROR\r\n"`},
		{"node hello a 1 instance=f00 partition=2 epoch=3 index=4 history=cafe later=1",
			"node hello Args=a,1,instance=f00,partition=2,epoch=3,index=4,history=cafe,later=1 Node={Name:a Port:1 Partition:2 Instance:f00 History:cafe Position:3/4}"},
		{"node hello a 1 partition=-1 history=-", "node hello Args=a,1,partition=-1,history=- Node={Name:a Port:1 Partition:-1}"},
		{"node hello a 1", "node hello Args=a,1 Node={Name:a Port:1 Partition:-1}"},
		{"node hello a 1 epoch=x", `node hello: bad_arguments "ERROR\r\n"`},
		{"node hello a 1 what", `node hello: bad_arguments "ERROR\r\n"`},
		{"shutdown a 1", "shutdown Node={Name:a Port:1}"},
		{"meta", "meta"},
		{"node sync 1", `node sync: unknown_command "ERROR\r\n"`},
		{"get a", `get: unknown_command "ERROR\r\n"`},
		{"replicate a:1 0 - 3 4 1", `replicate: unknown_command "ERROR\r\n"`},
	} {
		// Zero fields of the arguments say nothing; leave them out of the comparison.
		got := read(t, strings.NewReader(c.in+"\r\n"), Options{Commands: IndexCommands})
		if len(got) != 1 || !sameFields(got[0], c.want) {
			t.Errorf("%q\n got: %q\nwant: %q", clip([]byte(c.in)), got, c.want)
		}
	}
}

// sameFields compares two outputs of show, of which want may leave out fields of Node that are zero.
func sameFields(got, want string) bool {
	head, args, found := strings.Cut(got, " Node={")
	if !found {
		return got == want
	}
	wantHead, wantArgs, _ := strings.Cut(want, " Node={")
	var zero NodeArgs
	zeros := strings.Fields(strings.Trim(fmt.Sprintf("%+v", zero), "{}"))
	kept := slices.DeleteFunc(strings.Fields(strings.TrimSuffix(args, "}")), func(f string) bool {
		return slices.Contains(zeros, f)
	})
	wanted := slices.DeleteFunc(strings.Fields(strings.TrimSuffix(wantArgs, "}")), func(f string) bool {
		return slices.Contains(zeros, f)
	})
	return head == wantHead && slices.Equal(kept, wanted)
}

func TestLimits(t *testing.T) {
	opts := Options{MaxValue: 10, MaxLine: 50}
	x := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct{ in, want string }{
		{"get " + x(46) + "\r\nping\r\n", "get Keys=" + x(46) + "|ping"},
		{"get " + x(47) + "\r\nping\r\n", `none: line_too_long "ERROR\r\n"|ping`},
		{"get " + x(5000) + "\r\nping\r\n", `none: line_too_long "ERROR\r\n"|ping`},
		{"get " + x(5000), `none: line_too_long "ERROR\r\n"|unexpected EOF`},
		{"set a 0 0 10\r\n" + x(10) + "\r\nping\r\n", `set Keys=a Data="` + x(10) + `"|ping`},
		{"set a 0 0 11\r\n" + x(11) + "\r\nping\r\n", `set: value_too_large "SERVER_ERROR object too large for cache\r\n"|ping`},
		{"set a 0 0 11 noreply\r\n" + x(11) + "\r\nping\r\n", `set: value_too_large ""|ping`},
		{"set a 0 0 40000\r\n" + x(40000) + "\r\nping\r\n", `set: value_too_large "SERVER_ERROR object too large for cache\r\n"|ping`},
		// A refused block above the line limit is taken for granted.
		{"set a 0 0 60 x\r\n" + x(60) + "\r\nping\r\n", `set: bad_option "ERROR\r\n"|ping`},
		{"node sync 1\r\nNODE " + x(60) + " 1 0 0 0 0 0\r\nping\r\n", `node sync: bad_node_list "CLIENT_ERROR format error\r\n"|ping`},
	} {
		for _, chunk := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader} {
			got := strings.Join(read(t, chunk(strings.NewReader(c.in)), opts), "|")
			if got != c.want {
				t.Errorf("%q\n got: %s\nwant: %s", clip([]byte(c.in)), got, c.want)
				break
			}
		}
	}

	var req Request
	err := NewReader(strings.NewReader("set a 0 0 11\r\n"), opts).ReadRequest(&req)
	if !errors.Is(err, ErrTooLarge) || req.Command != CmdNone {
		t.Errorf("error = %v, request %v", err, req.Command)
	}
	// The lengths that kill a C++ node.
	for _, n := range []string{"2147483646", "2147483647"} {
		err := NewReader(strings.NewReader("set a 0 0 "+n+"\r\n"), Options{}).ReadRequest(&req)
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("length %s: error = %v", n, err)
		}
	}
}

// TestRefusalComesFirst checks that a refusal is returned before the announced block arrives: its sender may wait for
// the answer.
func TestRefusalComesFirst(t *testing.T) {
	for _, line := range []string{"set a x 0 5\r\n", "set a 0 0 99999999\r\n"} {
		in := &io.LimitedReader{R: strings.NewReader(line), N: int64(len(line))}
		r := NewReader(in, Options{})
		var req Request
		var refused *ProtocolError
		if err := r.ReadRequest(&req); !errors.As(err, &refused) {
			t.Errorf("%q: error = %v", line, err)
		}
	}
}

func TestValues(t *testing.T) {
	for _, size := range []int{1, baseBuffer - 3, baseBuffer - 2, baseBuffer - 1, baseBuffer, 5 * baseBuffer, firstValue - 2, firstValue, 3*keepValue + 1} {
		value := make([]byte, size)
		for i := range value {
			value[i] = byte(i * 7)
		}
		var in []byte
		for _, key := range []string{"first", "second"} {
			in = AppendRequest(in, &Request{Command: CmdSet, Keys: [][]byte{[]byte(key)}, Data: value}, nil)
		}
		for name, src := range map[string]io.Reader{
			"whole": bytes.NewReader(in),
			"half":  iotest.HalfReader(bytes.NewReader(in)),
		} {
			r := NewReader(src, Options{})
			for _, key := range []string{"first", "second"} {
				var req Request
				if err := r.ReadRequest(&req); err != nil {
					t.Fatalf("%d bytes, %s: %v", size, name, err)
				}
				if string(req.Key()) != key || !bytes.Equal(req.Data, value) {
					t.Errorf("%d bytes, %s: key %q and %d bytes came back", size, name, req.Key(), len(req.Data))
				}
			}
			if r.Buffered() != 0 {
				t.Errorf("%d bytes left", r.Buffered())
			}
		}
	}
}

// TestMemory checks that memory follows what arrives and not what is announced, and is given back.
func TestMemory(t *testing.T) {
	head := "set a 0 0 60000000\r\n"
	r := NewReader(strings.NewReader(head+strings.Repeat("x", 3<<20)), Options{})
	var req Request
	if err := r.ReadRequest(&req); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if got := cap(*r.in.value); got < 3<<20 || got > 8<<20 {
		t.Errorf("%d bytes held for 3 MiB", got)
	}

	in := AppendRequest(nil, &Request{Command: CmdSet, Keys: [][]byte{[]byte("a")}, Data: make([]byte, 5<<20)}, nil)
	in = append(in, "get "+strings.Repeat("a ", 300<<10)+"\r\nping\r\nping\r\n"...)
	r = NewReader(bytes.NewReader(in), Options{})
	for i := range 4 {
		if err := r.ReadRequest(&req); err != nil {
			t.Fatal(err)
		}
		if i == 3 && (len(r.in.buf) > baseBuffer || r.in.value != nil) {
			t.Errorf("%d bytes and %v kept", len(r.in.buf), r.in.value)
		}
	}
}

// timeoutReader fails once in the middle of its input.
type timeoutReader struct{ parts []string }

func (r *timeoutReader) Read(p []byte) (int, error) {
	if len(r.parts) == 0 {
		return 0, io.EOF
	}
	part := r.parts[0]
	r.parts = r.parts[1:]
	if part == "" {
		return 0, os.ErrDeadlineExceeded
	}
	return copy(p, part), nil
}

func TestTimeoutInLine(t *testing.T) {
	r := NewReader(&timeoutReader{[]string{"ge", "", "t a\r\n"}}, Options{})
	var req Request
	if err := r.ReadRequest(&req); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if err := r.ReadRequest(&req); err != nil || show(&req) != "get Keys=a" {
		t.Fatal(err, show(&req))
	}
}

func TestLeaveProtocol(t *testing.T) {
	r := NewReader(strings.NewReader("replicate a:1 0 - 0 0 1\r\nframes"), Options{})
	var req Request
	if err := r.ReadRequest(&req); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if err != nil || string(rest) != "frames" {
		t.Errorf("rest = %q, %v", rest, err)
	}
}

func TestRequestKeepsNothing(t *testing.T) {
	r := NewReader(strings.NewReader("<a:1>set k 1 2 1 3 noreply\r\nx\r\nstats nodes\r\nping\r\n"), Options{})
	var req Request
	for _, want := range []string{
		`set Proxied Via=[a:1] Keys=k Flags=1 Exptime=2 Version=3 HasVersion NoReply Data="x"`, "stats Args=nodes", "ping",
	} {
		if err := r.ReadRequest(&req); err != nil || show(&req) != want {
			t.Errorf("got %s, %v; want %s", show(&req), err, want)
		}
	}
}

func TestExpiry(t *testing.T) {
	const now = 1_700_000_000
	for in, want := range map[int64]int64{0: 0, 1: now + 1, 2592000: now + 2592000, 2592001: 2592001, now + 5: now + 5} {
		if got := Expiry(in, now); got != want {
			t.Errorf("Expiry(%d) = %d, want %d", in, got, want)
		}
	}
}

func TestCommandSets(t *testing.T) {
	for c := CmdGet; c < commandCount; c++ {
		if !NodeCommands.Has(c) && !IndexCommands.Has(c) {
			t.Errorf("nobody answers %v", c)
		}
	}
	if NodeCommands.Has(CmdMeta) || IndexCommands.Has(CmdSet) || NodeCommands.Has(CmdNone) {
		t.Error("a command in the wrong set")
	}
	if s := Commands(CmdGet, CmdPing); !s.Has(CmdGet) || !s.Has(CmdPing) || s.Has(CmdSet) {
		t.Errorf("set = %b", s)
	}
}

// TestRequestRoundTrip writes requests of every command and reads them back.
func TestRequestRoundTrip(t *testing.T) {
	k := [][]byte{[]byte("k")}
	node := NodeArgs{Name: "n", Port: 1}
	with := func(change func(*NodeArgs)) NodeArgs {
		n := node
		change(&n)
		return n
	}
	for _, req := range []Request{
		{Command: CmdGet, Keys: [][]byte{[]byte("a"), []byte("b")}},
		{Command: CmdGets, Keys: k},
		{Command: CmdSet, Keys: k, Flags: 1, Exptime: 2, Version: 3, HasVersion: true, NoReply: true, Sync: true, Async: true, Data: []byte("x")},
		{Command: CmdCas, Keys: k, HasVersion: true, Data: []byte("x")},
		{Command: CmdIncr, Keys: k, Delta: 1<<64 - 1, Sync: true},
		{Command: CmdDecr, Keys: k, NoReply: true},
		{Command: CmdDelete, Keys: k, Exptime: 5, Version: 6, HasVersion: true, Async: true},
		{Command: CmdTouch, Keys: k, Exptime: 5, NoReply: true},
		{Command: CmdGat, Keys: k, Exptime: 5},
		{Command: CmdKeys, Keys: k, Limit: 10},
		{Command: CmdDump, Dump: Dump{Partition: -1}},
		{Command: CmdDump, Dump: Dump{Wait: 3, Partition: -1, Bandwidth: 5}},
		{Command: CmdDump, Dump: Dump{Partition: 1, Partitions: 2, Bandwidth: 5}},
		{Command: CmdDumpKey, Dump: Dump{Partition: 1, Partitions: 2}},
		{Command: CmdFlushAll, NoReply: true},
		{Command: CmdFlushAll, Exptime: -1},
		{Command: CmdPing}, {Command: CmdVersion}, {Command: CmdMeta}, {Command: CmdQuit},
		{Command: CmdVerbosity, NoReply: true},
		{Command: CmdStats}, {Command: CmdStats, Args: [][]byte{[]byte("nodes")}},
		{Command: CmdShow, Args: [][]byte{[]byte("variables")}},
		{Command: CmdKill, ThreadID: -4},
		{Command: CmdOrphanScan}, {Command: CmdOrphanPurge}, {Command: CmdOrphanPurge, Rate: 7},
		{Command: CmdDigest, Digest: Digest{Meta: topology.DefaultMeta(), Partitions: 3, Buckets: 8}},
		{Command: CmdNodeSync, Version: 4, HasVersion: true, Nodes: []topology.Node{
			{Name: "n", Port: 1, Role: topology.Slave, State: topology.Ready, Partition: 2, Balance: 3, ThreadType: 16, Epoch: 5}}},
		{Command: CmdNodeSync},
		{Command: CmdReplicate, Replicate: Replicate{Self: "n:1", Partition: 2, History: "cafe", Position: topology.LSN{Epoch: 3, Index: 4}, Proto: 1}},
		{Command: CmdReplicate, Replicate: Replicate{Self: "n:1"}},
		{Command: CmdNodeAdd, Node: node}, {Command: CmdNodeRemove, Node: node}, {Command: CmdShutdown, Node: node},
		{Command: CmdNodeRole, Node: with(func(n *NodeArgs) { n.Role, n.Partition = topology.Proxy, -1 })},
		{Command: CmdNodeRole, Node: with(func(n *NodeArgs) { n.Balance, n.AllowDataLoss = 1, true })},
		{Command: CmdNodeState, Node: with(func(n *NodeArgs) { n.State = topology.Ready })},
		{Command: CmdNodeState, Node: with(func(n *NodeArgs) { n.AllowDataLoss = true })},
		{Command: CmdNodeState, Node: with(func(n *NodeArgs) { n.Epoch, n.Session, n.HasSession = 1, 2, true })},
		{Command: CmdNodeBehind, Node: with(func(n *NodeArgs) { n.Epoch, n.Session, n.HasSession = 1, 2, true })},
		{Command: CmdNodeHandover, Node: with(func(n *NodeArgs) {
			n.Target, n.TargetPort, n.Epoch, n.Session, n.HasSession, n.Paused = "t", 3, 1, 2, true, 4
		})},
		{Command: CmdNodeHello, Node: with(func(n *NodeArgs) {
			n.Instance, n.Partition, n.History, n.Position = "f00", 2, "cafe", topology.LSN{Epoch: 1, Index: 2}
		})},
	} {
		for _, via := range [][]string{nil, {"a:1", "b:2"}} {
			want := req
			want.Via, want.Proxied = via, via != nil
			wire := AppendRequest(nil, &req, via)
			r := NewReader(bytes.NewReader(wire), Options{})
			var got Request
			if err := r.ReadRequest(&got); err != nil {
				t.Errorf("%q: %v", wire, err)
				continue
			}
			if req.Args == nil {
				got.Args = nil
			}
			if show(&got) != show(&want) || r.Buffered() != 0 {
				t.Errorf("%q\n got: %s\nwant: %s", wire, show(&got), show(&want))
			}
		}
	}
}

func TestResetGivesBackKeys(t *testing.T) {
	var req Request
	r := NewReader(strings.NewReader("get "+strings.Repeat("a ", 5000)+"\r\nping\r\n"), Options{})
	for range 2 {
		if err := r.ReadRequest(&req); err != nil {
			t.Fatal(err)
		}
	}
	if cap(req.Keys) > 1024 {
		t.Errorf("room for %d keys kept", cap(req.Keys))
	}
}
