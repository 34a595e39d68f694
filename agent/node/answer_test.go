package node

import (
	"strings"
	"testing"

	"github.com/flarekv/flare/proto/text"
)

func TestReadReply(t *testing.T) {
	for _, tt := range []struct {
		request, reply string
		want           string // line, "value" or "" for an answer without either; "!" for an error
	}{
		{"<a:1>set k 0 0 1\r\nx\r\n", "STORED\r\n", "STORED"},
		{"<a:1>set k 0 0 1\r\nx\r\n", "STORED extra words\r\n", "STORED extra words"},
		{"<a:1>set k 0 0 1\r\nx\r\n", "STORED\n", "STORED"},
		{"<a:1>set k 0 0 1\r\nx\r\n", "\r\n", ""},
		{"<a:1>set k 0 0 1\r\nx\r\n", "SERVER_ERROR i/o error\r\n", "SERVER_ERROR i/o error"},
		{"<a:1>set k 0 0 1\r\nx\r\n", "FOO\r\n", "!"},
		{"<a:1>set k 0 0 1\r\nx\r\n", "END\r\n", "!"},
		{"<a:1>set k 0 0 1\r\nx\r\n", "12\r\n", "!"},
		{"<a:1>incr k 1\r\n", "007\r\n", "007"},
		{"<a:1>incr k 1\r\n", "5 \r\n", "5"},
		{"<a:1>incr k 1\r\n", "NOT_FOUND\r\n", "NOT_FOUND"},
		{"<a:1>incr k 1\r\n", "5x\r\n", "!"},
		{"<a:1>decr k 1\r\n", "CLIENT_ERROR no\r\n", "CLIENT_ERROR no"},
		{"<a:1>get k\r\n", "VALUE k 1 2\r\nab\r\nEND\r\n", "value"},
		{"<a:1>get k\r\r\n", "VALUE k\r 1 2\r\nab\r\nEND\r\n", "value"},
		{"<a:1>gets k\r\n", "END\r\n", ""},
		{"<a:1>get k\r\n", "VALUE l 1 2\r\nab\r\nEND\r\n", "!"},
		{"<a:1>get k\r\n", "VALUE k 1 2\r\nab\r\nSTORED\r\n", "!"},
		{"<a:1>get k\r\n", "SERVER_ERROR x\r\n", "SERVER_ERROR x"},
		{"<a:1>get k\r\n", "STORED\r\n", "!"},
		{"<a:1>gat k 1900000000\r\n", "VALUE k 1 2\r\nab\r\n", "value"},
		{"<a:1>gat k 1900000000\r\n", "NOT_FOUND\r\n", "NOT_FOUND"},
		{"<a:1>gat k 1900000000\r\n", "END\r\n", "!"},
		{"<a:1>gat k 1900000000\r\n", "STORED\r\n", "!"},
		{"<a:1>gat k 1900000000\r\n", "SERVER_ERROR x\r\n", "SERVER_ERROR x"},
		{"<a:1>gat k 1900000000\r\n", "VALUE l 1 2\r\nab\r\n", "!"},
		{"<a:1>touch k 1900000000\r\n", "VALUE k 1 2\r\nab\r\n", "!"},
	} {
		word := strings.Fields(tt.request[strings.IndexByte(tt.request, '>')+1:])[0]
		c := &call{request: []byte(tt.request)}
		for cmd := text.CmdGet; cmd <= text.CmdGat; cmd++ {
			if cmd.String() == word {
				c.shape = shapeOf(cmd)
			}
		}
		r := text.NewReplyReader(strings.NewReader(tt.reply), text.ReplyOptions{})
		got := ""
		switch err := readReply(r, c); {
		case err != nil:
			got = "!"
		case c.found:
			got = "value"
		default:
			got = string(c.line)
		}
		if got != tt.want {
			t.Errorf("%q answered %q: %q, want %q", tt.request, tt.reply, got, tt.want)
		}
	}
}
