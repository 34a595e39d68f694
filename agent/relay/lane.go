package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/flarekv/flare/proto/text"
)

const (
	// dialTimeout bounds the time that an unreachable peer costs.
	dialTimeout = 2 * time.Second
	// replyTimeout is how long a peer may be silent with an answer outstanding.
	replyTimeout = 10 * time.Second
	// inlineBytes may be written before any answer is read without fear that both
	// sides wait for the other to read.
	inlineBytes = 32 << 10
	// keepBytes of buffer are kept between windows.
	keepBytes = 4 << 20
)

// A lane is one connection to the peer. One goroutine at a time uses it.
type lane struct {
	conn net.Conn
	r    *text.ReplyReader
	buf  []byte
	sent []int // items of the window that buf holds, in order
	used bool  // was connected before
	all  *connections
}

// connections are the open ones of all lanes, for somebody else to close.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

func (c *connections) add(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[net.Conn]struct{}{}
	}
	c.open[conn] = struct{}{}
}

func (c *connections) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

func (c *connections) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		conn.Close()
	}
}

func (l *lane) close() {
	if l.conn != nil {
		l.all.remove(l.conn)
		l.conn.Close()
		l.conn, l.r = nil, nil
	}
}

// connect makes sure that the lane is connected.
func (l *lane) connect(ctx context.Context, peer string, all *connections) (fresh bool, err error) {
	if l.conn != nil && l.r.Buffered() > 0 {
		// C++ nodes may answer what nobody asked; answers could not be told apart any more.
		l.close()
	}
	if l.conn != nil {
		return false, nil
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", peer)
	if err != nil {
		return false, err
	}
	all.add(conn)
	l.conn, l.all = conn, all
	l.r = text.NewReplyReader(patientReader{conn}, text.ReplyOptions{})
	return true, nil
}

// exchange sends what is in buf and gives the answers to fn, one for each of
// sent. After an error the connection is closed.
func (l *lane) exchange(ctx context.Context, fn func(i int, reply text.Reply)) (err error) {
	// The lane may have been closed by the time that this runs.
	conn := l.conn
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	written := make(chan error, 1)
	if len(l.buf) <= inlineBytes {
		written <- l.write()
	} else {
		go func() { written <- l.write() }()
	}
	for n, i := range l.sent {
		reply, err := l.r.ReadReply()
		if err != nil {
			l.conn.Close() // ends a write that is under way
			if werr := <-written; werr != nil && !errors.Is(werr, net.ErrClosed) {
				return werr
			}
			return fmt.Errorf("%d of %d answers: %w", n, len(l.sent), err)
		}
		fn(i, reply)
	}
	return <-written
}

func (l *lane) write() error {
	if err := l.conn.SetWriteDeadline(time.Now().Add(replyTimeout + time.Duration(len(l.buf)>>20)*time.Second)); err != nil {
		return err
	}
	_, err := l.conn.Write(l.buf)
	return err
}

// patientReader fails when a read brings nothing in time.
type patientReader struct{ conn net.Conn }

func (r patientReader) Read(p []byte) (int, error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(replyTimeout)); err != nil {
		return 0, err
	}
	return r.conn.Read(p)
}
