package text

import (
	"bytes"
	"strings"
	"testing"
)

// loop is an endless input.
type loop struct {
	in  []byte
	pos int
}

func (l *loop) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		c := copy(p[n:], l.in[l.pos:])
		n += c
		l.pos = (l.pos + c) % len(l.in)
	}
	return n, nil
}

var hotPaths = []struct{ name, in string }{
	{"get", "get some:key:0001\r\n"},
	{"multiget", "gets some:key:0001 some:key:0002 some:key:0003 some:key:0004\r\n"},
	{"set", "set some:key:0001 0 0 100\r\n" + strings.Repeat("x", 100) + "\r\n"},
	{"set10k", "set some:key:0001 0 0 10000\r\n" + strings.Repeat("x", 10000) + "\r\n"},
	{"set100k", "set some:key:0001 0 0 100000\r\n" + strings.Repeat("x", 100000) + "\r\n"},
	{"proxied", "<10.0.0.1:12121,10.0.0.2:12121>set some:key:0001 0 0 10 77 sync\r\n0123456789\r\n"},
	{"incr", "incr some:key:0001 5\r\n"},
}

func TestHotPathAllocations(t *testing.T) {
	for _, p := range hotPaths {
		r := NewReader(&loop{in: []byte(p.in)}, Options{})
		var req Request
		var out []byte
		run := func() {
			if err := r.ReadRequest(&req); err != nil {
				t.Fatal(err)
			}
			out = AppendRequest(out[:0], &req, req.Via)
		}
		run()
		allowed := 0.0
		if len(p.in) > baseBuffer {
			allowed = poolAllocations
		}
		if n := testing.AllocsPerRun(200, run); n > allowed {
			t.Errorf("%s: %v allocations a request, want at most %v", p.name, n, allowed)
		}
	}

	wire := AppendValue(nil, []byte("some:key:0001"), 1, bytes.Repeat([]byte("x"), 100), 5, true)
	r := NewReplyReader(&loop{in: append(wire, "END\r\nSTORED\r\n"...)}, ReplyOptions{})
	var it Item
	if n := testing.AllocsPerRun(300, func() {
		if err := r.Next(&it); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("reply: %v allocations", n)
	}
}

func BenchmarkReadRequest(b *testing.B) {
	for _, p := range hotPaths {
		b.Run(p.name, func(b *testing.B) {
			r := NewReader(&loop{in: []byte(p.in)}, Options{})
			var req Request
			b.ReportAllocs()
			b.SetBytes(int64(len(p.in)))
			for b.Loop() {
				if err := r.ReadRequest(&req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendValue(b *testing.B) {
	key, data := []byte("some:key:0001"), bytes.Repeat([]byte("x"), 100)
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		out = AppendValue(out[:0], key, 1, data, 5, true)
	}
}
