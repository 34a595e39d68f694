package main

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	var h histogram
	for i := 1; i <= 1000; i++ {
		h.record(time.Duration(i) * time.Microsecond)
	}
	for _, c := range []struct{ q, want float64 }{{0.5, 500}, {0.99, 990}, {1, 1000}} {
		got := float64(h.quantile(c.q)) / float64(time.Microsecond)
		if got < c.want || got > c.want*1.15 {
			t.Errorf("quantile %v is %v us, want %v and at most 15 %% more", c.q, got, c.want)
		}
	}
}

// TestWrongAnswersFail makes sure that a server which answers nonsense is not
// measured as a fast one.
func TestWrongAnswersFail(t *testing.T) {
	for _, reply := range []string{"END\r\n", "VALUE k 0 3\r\nabc\r\nEND\r\n", "SERVER_ERROR x\r\n"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			bufio.NewReader(nc).ReadString('\n')
			io.WriteString(nc, reply)
		}()
		w := workload{name: "get", reads: 100, multi: 1, depth: 1, conns: 1, valueLen: 3, keys: []string{"k"}}
		_, err = w.run(t.Context(), l.Addr().String(), time.Minute)
		if err == nil || !strings.Contains(err.Error(), "answer") {
			t.Errorf("%q: error is %v", reply, err)
		}
		l.Close()
	}
}
