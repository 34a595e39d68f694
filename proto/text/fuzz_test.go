package text

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// FuzzReadRequest feeds arbitrary bytes to a Reader. How they are cut into reads must not matter, memory is bounded
// by the limits, and what is accepted can be written and read again.
func FuzzReadRequest(f *testing.F) {
	for _, rec := range recordings(f, "requests") {
		if len(rec.Send) < 300 {
			f.Add([]byte(rec.Send))
		}
	}
	for _, rec := range recordings(f, "forwarded")[:40] {
		f.Add([]byte(rec.Send))
	}
	opts := Options{MaxValue: 3000, MaxLine: 2000}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole := read(t, bytes.NewReader(in), opts)
		if parts := read(t, iotest.OneByteReader(bytes.NewReader(in)), opts); !slices.Equal(whole, parts) {
			t.Errorf("in one piece: %q\nbyte by byte: %q", whole, parts)
		}

		r := NewReader(bytes.NewReader(in), opts)
		var req Request
		for {
			err := r.ReadRequest(&req)
			var refused *ProtocolError
			if errors.As(err, &refused) {
				if refused.Reply != "" && !strings.HasSuffix(refused.Reply, "\r\n") || refused.Reason == "" {
					t.Errorf("refusal %+v", refused)
				}
				continue
			}
			if err != nil {
				return
			}
			if len(r.in.buf) > baseBuffer {
				t.Errorf("buffer of %d bytes", len(r.in.buf))
			}
			roundTrip(t, &req)
		}
	})
}

// roundTrip writes req as a node would forward it and checks that it reads the same.
func roundTrip(t *testing.T, req *Request) {
	want := req.Clone()
	// What forwarding leaves out.
	want.Proxied = len(want.Via) > 0
	if !want.Proxied {
		want.Via = nil
	}
	if c := want.Command; c == CmdTouch || c == CmdGat || c != CmdCas && c != CmdNodeSync && want.Version == 0 {
		want.Version, want.HasVersion = 0, false
	}
	if want.Command >= CmdNodeSync {
		want.Args = nil
	}
	wire := AppendRequest(nil, want, want.Via)
	r := NewReader(bytes.NewReader(wire), Options{})
	var got Request
	if err := r.ReadRequest(&got); err != nil {
		t.Fatalf("%s written as %q: %v", show(req), wire, err)
	}
	if want.Command >= CmdNodeSync {
		got.Args = nil
	}
	if show(&got) != show(want) || r.Buffered() != 0 {
		t.Errorf("written as %q\nread: %s\nwant: %s", wire, show(&got), show(want))
	}
	if err := r.ReadRequest(&got); err != io.EOF {
		t.Errorf("%q: more than one request: %s, %v", wire, show(&got), err)
	}
}

// FuzzReplyReader feeds arbitrary bytes to a ReplyReader. How they are cut into reads must not matter.
func FuzzReplyReader(f *testing.F) {
	for _, rec := range recordings(f, "requests") {
		if len(rec.Recv) < 300 {
			f.Add([]byte(rec.Recv))
		}
	}
	opts := ReplyOptions{MaxValue: 3000, MaxLine: 2000}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole := items(bytes.NewReader(in), opts)
		if parts := items(iotest.OneByteReader(bytes.NewReader(in)), opts); !slices.Equal(whole, parts) {
			t.Errorf("in one piece: %q\nbyte by byte: %q", whole, parts)
		}
		r := NewReplyReader(bytes.NewReader(in), opts)
		for {
			var it Item
			if err := r.Next(&it); err != nil {
				return
			}
			switch it.Kind {
			case KindValue:
				v := &it.Value
				wire := AppendDumpValue(nil, v.Key, v.Flags, v.Data, v.Version, v.Expire)
				v.HasVersion, v.HasExpire = true, true
				if got := items(bytes.NewReader(wire), opts); len(got) != 1 || got[0] != showItem(&it) {
					t.Errorf("%q read as %q", wire, got)
				}
			case KindNode:
				wire := AppendNode(nil, it.Node, true)
				if got := items(bytes.NewReader(wire), opts); len(got) != 1 || got[0] != showItem(&it) {
					t.Errorf("%q read as %q", wire, got)
				}
			}
		}
	})
}

// FuzzNodeLine feeds one line to the parser of NODE lines: it takes no more than a line, and what it takes is
// written and read again.
func FuzzNodeLine(f *testing.F) {
	f.Add([]byte("NODE 10.0.0.1 12121 0 0 0 1 16"))
	f.Add([]byte("NODE n 12121 1 1 3 -1 17 9 more"))
	f.Fuzz(func(t *testing.T, line []byte) {
		n, err := parseNode(line)
		if err != nil {
			if err.Error() == "" {
				t.Error("refused without a word")
			}
			return
		}
		again, err := parseNode(bytes.TrimSuffix(AppendNode(nil, n, true), []byte(crlf)))
		if err != nil || again != n {
			t.Errorf("%q is %+v, written and read again %+v, %v", line, n, again, err)
		}
	})
}
