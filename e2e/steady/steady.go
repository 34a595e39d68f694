// Package steady writes one key all the time, to see for how long that fails.
package steady

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// While writes rest each writer tries again after Timeout, in turn, so the end of a
// pause is seen within an eighth of it.
const (
	Writers = 8
	Every   = 2 * time.Millisecond // that each of them writes
	Timeout = 400 * time.Millisecond
)

// Load is what the writers have seen. The zero value is one that has seen nothing.
type Load struct {
	mu      sync.Mutex
	success []time.Time // of writes that were stored, ascending
}

// Run writes the key through the node at addr until ctx ends.
func (l *Load) Run(ctx context.Context, addr, key string) {
	var group sync.WaitGroup
	for range Writers {
		group.Go(func() { l.write(ctx, addr, key) })
	}
	group.Wait()
}

// write is one writer, on a connection that it opens anew after an error.
func (l *Load) write(ctx context.Context, addr, key string) {
	var conn net.Conn
	var r *bufio.Reader
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for ; ctx.Err() == nil; <-tick.C {
		if conn == nil {
			c, err := net.DialTimeout("tcp", addr, Timeout)
			if err != nil {
				continue
			}
			conn, r = c, bufio.NewReader(c)
		}
		conn.SetDeadline(time.Now().Add(Timeout))
		_, err := fmt.Fprintf(conn, "set %s 0 0 1\r\nv\r\n", key)
		line := ""
		if err == nil {
			line, err = r.ReadString('\n')
		}
		if err != nil {
			conn.Close()
			conn = nil
		} else if line == "STORED\r\n" {
			l.stored()
		}
	}
	if conn != nil {
		conn.Close()
	}
}

func (l *Load) stored() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.success = append(l.success, time.Now())
}

// Since returns how many writes were stored since a moment, the longest pause, of
// which one may be under way, and the end of the longest one that is over.
func (l *Load) Since(t time.Time) (n int, pause time.Duration, end time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := t
	for _, at := range l.success {
		if at.Before(t) {
			continue
		}
		n++
		if d := at.Sub(last); d > pause {
			pause, end = d, at
		}
		last = at
	}
	return n, max(pause, time.Since(last)), end
}
