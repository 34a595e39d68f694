package text

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// xs is an endless input.
type xs struct{}

func (xs) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// TestBug04HugeBlockSwallowed: what a length near 2 GiB announces is thrown away, in
// no more memory than anything else.
func TestBug04HugeBlockSwallowed(t *testing.T) {
	for _, n := range []int64{2147483646, 2147483647} {
		in := io.MultiReader(strings.NewReader(fmt.Sprintf("set k 0 0 %d\r\n", n)), io.LimitReader(xs{}, n), strings.NewReader("\r\nping\r\n"))
		r := NewReader(in, Options{})
		var req Request
		err := r.ReadRequest(&req)
		var problem *ProtocolError
		if !errors.As(err, &problem) || problem.Reply != ReplyTooLarge {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if err := r.ReadRequest(&req); err != nil || req.Command != CmdPing {
			t.Fatalf("behind %d bytes: %v, %v", n, req.Command, err)
		}
		if size := len(r.in.buf); size > baseBuffer || r.in.value != nil {
			t.Errorf("%d bytes of memory are held", size)
		}
	}
}
