package index

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// Answers to lines that arrive together with a quit used to be dropped, and an
// answer waited for the rest of a line that had begun behind it.
func TestAnswersBeforeQuitAndHalfLines(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- NewServer(ServerConfig{Version: "1"}).Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	send := func(s string) {
		if _, err := io.WriteString(conn, s); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string) {
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
			t.Fatalf("answer %q, %v; want %q", got, err, want)
		}
	}
	send("ping\r\nver")
	expect("OK\r\n")
	send("sion\r\nnonsense\r\nquit\r\n")
	expect("VERSION flare-1\r\nERROR\r\n")
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Fatalf("after quit: %q, %v; want the end", rest, err)
	}
}
