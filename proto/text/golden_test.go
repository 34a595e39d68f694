package text

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// latin1 is a byte string in a recording: every character stands for the byte of the same number.
type latin1 []byte

func (l *latin1) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	for _, r := range s {
		if r > 0xff {
			return fmt.Errorf("character %q is no byte", r)
		}
		*l = append(*l, byte(r))
	}
	return nil
}

// recording is one exchange with a C++ program.
type recording struct {
	Peer string // flared or flarei
	Case string
	Send latin1
	Recv latin1
}

func recordings(t testing.TB, name string) []recording {
	t.Helper()
	f, err := os.Open("testdata/" + name + ".jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all []recording
	for dec := json.NewDecoder(z); dec.More(); {
		var r recording
		if err := dec.Decode(&r); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// deviations are the recordings this package reads differently on purpose, and how: one word a request, as in
// classify. Numbers are those of the list of known bugs of the C++ programs.
var deviations = map[string]struct{ why, want string }{
	// 1: a request that asked for silence is not answered.
	"no-partition/set-noreply":    {"#1 silence", "-"},
	"no-partition/delete-noreply": {"#1 silence", "-"},
	"no-partition/incr-noreply":   {"#1 silence", "-"},
	"no-partition/touch-noreply":  {"#1 silence", "-"},
	// 2: the data block of a refused command is not executed.
	"set-badchunk/err-body-becomes-command":  {"#2 block swallowed", "ERROR"},
	"set-badchunk/err-body-becomes-command2": {"#2 block swallowed", "ERROR"},
	"generic/set-two-lines":                  {"#2 block swallowed", "ERROR"},
	// 5: too long keys are refused and not cut in two.
	"keylen-8192/set":  {"#5 long keys, #2", "ERROR"},
	"keylen-8193/set":  {"#5 long keys, #2", "ERROR"},
	"keylen-16000/set": {"#5 long keys, #2", "ERROR"},
	"keylen-8192/get":  {"#5 long keys", "ERROR"},
	"keylen-8193/get":  {"#5 long keys", "ERROR"},
	"keylen-16000/get": {"#5 long keys", "ERROR"},
	// Not listed there: memcached answers it.
	"misc/version-arg":    {"further words are ignored", "ok"},
	"generic/version-arg": {"further words are ignored", "ok"},
	// The settings are shown.
	"stats/settings":         {"a node has them", "ok"},
	"generic/stats-settings": {"an index refuses them itself", "ok"},
	// C++ takes -1 as the largest version, after which a node refuses every regular push.
	"node-sync/negative-version": {"versions are not negative", "ERROR ERROR ERROR"},
}

// TestRecordedRequests parses what was sent to the C++ programs, and checks that what they answered with ERROR, and
// nothing else, is refused. The answers of the others are read as answers to the commands found.
func TestRecordedRequests(t *testing.T) {
	for _, rec := range recordings(t, "requests") {
		t.Run(rec.Peer+"/"+rec.Case, func(t *testing.T) {
			got := classify(t, rec)
			want := answers(t, rec)
			if d, ok := deviations[rec.Case]; ok {
				if got == want {
					t.Errorf("%s: no deviation any more: %s", d.why, got)
				}
				want = d.want
			}
			if got != want {
				t.Errorf("%q\nread as:  %s\nwant:     %s\nanswer: %q", clip(rec.Send), got, want, clip(rec.Recv))
			}
		})
	}
}

// requests parses everything in send as the peer would.
func requests(t *testing.T, rec recording, each func(*Request, *ProtocolError)) {
	t.Helper()
	opts := Options{Commands: NodeCommands}
	if rec.Peer == "flarei" {
		opts.Commands = IndexCommands
	}
	r := NewReader(bytes.NewReader(rec.Send), opts)
	var req Request
	for {
		err := r.ReadRequest(&req)
		var refused *ProtocolError
		switch {
		case err == io.EOF:
			return
		case err == ErrBinary: // the connection is closed
			each(&req, &ProtocolError{})
			return
		case errors.As(err, &refused):
			each(&req, refused)
		case err != nil:
			t.Fatal(err)
		default:
			each(&req, nil)
			if req.Command == CmdQuit {
				return
			}
		}
	}
}

// classify says how each request in send is answered: ERROR (or another refusal), "-" for nothing, "ok" otherwise.
func classify(t *testing.T, rec recording) string {
	var words []string
	requests(t, rec, func(req *Request, refused *ProtocolError) {
		switch {
		case refused != nil && refused.Reply != "":
			words = append(words, strings.TrimSpace(refused.Reply))
		case refused != nil || req.NoReply || req.Command == CmdQuit:
			words = append(words, "-")
		default:
			words = append(words, "ok")
		}
	})
	return strings.Join(words, " ")
}

// answers describes recv in the words of classify.
func answers(t *testing.T, rec recording) string {
	r := NewReplyReader(bytes.NewReader(rec.Recv), ReplyOptions{})
	var words []string
	inList := false
	for {
		var it Item
		err := r.Next(&it)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		// gat has no END, and show variables answers with lines of its own kind up to END.
		inList = it.Kind != KindReply || it.Reply.Code == CodeOther && bytes.Contains(it.Reply.Line, []byte(":"))
		switch {
		case inList:
		case it.Reply.Code == CodeError, it.Reply.String() == `"CLIENT_ERROR format error"`:
			words = append(words, string(it.Reply.Line))
		default:
			words = append(words, "ok")
		}
	}
	if inList {
		words = append(words, "ok")
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, " ")
}

// TestForwardedRequests checks that what C++ programs sent to each other is written again as the same bytes.
func TestForwardedRequests(t *testing.T) {
	all := recordings(t, "forwarded")
	if len(all) < 300 {
		t.Fatalf("%d requests, want the whole file", len(all))
	}
	for _, rec := range all {
		// Some were captured while several were under way.
		r := NewReader(bytes.NewReader(rec.Send), Options{})
		var req Request
		var again []byte
		for {
			err := r.ReadRequest(&req)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%q: %v", rec.Send, err)
			}
			again = AppendRequest(again, &req, req.Via)
		}
		if !bytes.Equal(again, rec.Send) {
			t.Errorf("%q written as %q", rec.Send, again)
		}
	}
}
