package relay

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/flarekv/flare/proto/text"
)

// lateConn takes a while to be written to.
type lateConn struct {
	net.Conn
	write func()
}

func (c *lateConn) Write(p []byte) (int, error)      { c.write(); return len(p), nil }
func (c *lateConn) SetWriteDeadline(time.Time) error { return nil }

// A relay that ends while its lane's exchange does is told so by a goroutine that may
// run only when the lane is closed.
func TestLaneClosedWhileItEnds(t *testing.T) {
	for range 2000 {
		here, there := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		l := lane{conn: &lateConn{here, cancel}, all: &connections{}, buf: []byte("x")}
		l.r = text.NewReplyReader(here, text.ReplyOptions{})
		if err := l.exchange(ctx, nil); err != nil {
			t.Fatal(err)
		}
		l.close()
		there.Close()
	}
}
