package node

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

// BenchmarkPipelined measures requests of one connection in bursts, everything
// between the client's write and read included.
func BenchmarkPipelined(b *testing.B) {
	const burst = 64
	for _, bm := range []struct {
		name, request, reply string
	}{
		{"get", "get key%d\r\n", "VALUE key%d 0 100\r\n" + value100 + "\r\nEND\r\n"},
		{"set", "set key%d 0 0 100\r\n" + value100 + "\r\n", "STORED\r\n"},
	} {
		b.Run(bm.name, func(b *testing.B) {
			x := newTestIndex(b)
			n := startNode(b, x)
			x.master(n.key(), 0)
			n.settled(dutyMaster)
			c := dial(b, n)
			var ask, want bytes.Buffer
			for i := range burst {
				c.ask(fmt.Sprintf("set key%d 0 0 100\r\n%s\r\n", i, value100), "STORED\r\n")
				fmt.Fprintf(&ask, bm.request, i)
				if bm.name == "get" {
					fmt.Fprintf(&want, bm.reply, i)
				} else {
					want.WriteString(bm.reply)
				}
			}
			got := make([]byte, want.Len())
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += burst {
				if _, err := c.nc.Write(ask.Bytes()); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c.r, got); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			if !bytes.Equal(got, want.Bytes()) {
				b.Errorf("wrong answer %q", got)
			}
		})
	}
}

const value100 = "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"
