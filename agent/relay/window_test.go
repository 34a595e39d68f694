package relay

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
)

func put(key string, version uint64, expire int64) storage.Operation {
	return storage.Operation{Kind: storage.OpPut, Key: []byte(key), Record: storage.Record{Version: version, Expire: expire, Value: []byte("v")}}
}

func touch(key string, version uint64, expire int64) storage.Operation {
	op := put(key, version, expire)
	op.Kind = storage.OpTouch
	return op
}

func del(key string, version uint64) storage.Operation {
	return storage.Operation{Kind: storage.OpDelete, Key: []byte(key), Tombstone: storage.Tombstone{Version: version}}
}

func (w *window) String() string {
	var s []string
	for i := range w.items {
		if it := &w.items[i]; !it.done {
			s = append(s, fmt.Sprintf("%s %s %d %d", []string{"set", "touch", "delete", "flush"}[it.form], it.op.Key, it.op.Version(), it.op.Record.Expire))
		}
	}
	return strings.Join(s, ", ")
}

func TestWindowKeepsTheLastOfEachKey(t *testing.T) {
	flush := storage.Operation{Kind: storage.OpFlush}
	tests := []struct {
		name  string
		ops   []storage.Operation
		taken int
		want  string
	}{
		{"other keys", []storage.Operation{put("a", 1, 0), put("b", 1, 0), del("c", 3)}, 3, "set a 1 0, set b 1 0, delete c 3 0"},
		{"newer", []storage.Operation{put("a", 1, 0), put("b", 1, 0), put("a", 2, 0)}, 3, "set b 1 0, set a 2 0"},
		{"deleted", []storage.Operation{put("a", 1, 0), del("a", 1)}, 2, "delete a 1 0"},
		{"stored again", []storage.Operation{del("a", 1), put("a", 2, 0)}, 2, "set a 2 0"},
		// A client gave a version of its own: it counts only because the delete came before.
		{"stored again, older", []storage.Operation{del("a", 5), put("a", 2, 0)}, 1, "delete a 5 0"},
		{"deleted, older", []storage.Operation{put("a", 5, 0), del("a", 4)}, 1, "set a 5 0"},
		// A peer that has the record takes the new time from the touch only.
		{"touched", []storage.Operation{put("a", 1, 0), touch("a", 1, 7)}, 2, "set a 1 0, touch a 1 7"},
		{"touched twice", []storage.Operation{put("a", 1, 0), touch("a", 1, 7), touch("a", 1, 8)}, 3, "set a 1 0, touch a 1 8"},
		{"touched, then newer", []storage.Operation{put("a", 1, 0), touch("a", 1, 7), put("a", 2, 0)}, 3, "set a 2 0"},
		{"touched, then deleted", []storage.Operation{put("a", 1, 0), touch("a", 1, 7), del("a", 1)}, 3, "delete a 1 0"},
		{"flush alone", []storage.Operation{flush, put("a", 1, 0)}, 1, "flush  0 0"},
		{"flush waits", []storage.Operation{put("a", 1, 0), flush}, 1, "set a 1 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWindow()
			taken := 0
			for i := range tt.ops {
				if !w.add(&tt.ops[i]) {
					break
				}
				taken++
			}
			if taken != tt.taken || w.String() != tt.want {
				t.Errorf("took %d: %s\nwant %d: %s", taken, w, tt.taken, tt.want)
			}
		})
	}
}

func TestWindowIsBounded(t *testing.T) {
	w := newWindow()
	n := 0
	for op := put("k", 1, 0); w.add(&op); op = put(fmt.Sprint("k", n), 1, 0) {
		n++
	}
	if n != maxWindowItems {
		t.Errorf("%d items", n)
	}
	w.reset()
	big := put("big", 1, 0)
	big.Record.Value = make([]byte, 2*maxWindowBytes)
	if !w.add(&big) || !w.full() {
		t.Error("an empty window takes whatever comes, and a large value fills it")
	}
}

// A set that did not get through takes the touch behind it along when it is
// sent again.
func TestWindowKeepsOrderOfAKey(t *testing.T) {
	w := newWindow()
	set, tch := put("a", 1, 0), touch("a", 1, 7)
	w.add(&set)
	w.add(&tch)
	w.items[1].done = true
	if n := w.pending(); n != 2 {
		t.Errorf("%d pending, want both", n)
	}
	w.items[0].done, w.items[1].done = true, false
	if n := w.pending(); n != 1 {
		t.Errorf("%d pending, want the touch", n)
	}
}

func TestForms(t *testing.T) {
	via := []string{"10.0.0.1:12121"}
	window := del("k", 3)
	window.Tombstone.Until = 1001
	full := storage.Operation{Kind: storage.OpPut, Key: []byte("k"), Record: storage.Record{Flags: 3, Expire: 1795421524, Version: 2, Value: []byte("hello2")}}
	tests := []struct {
		op   storage.Operation
		f    form
		via  []string
		want string
	}{
		{full, formSet, nil, "set k 3 1795421524 6 2\r\nhello2\r\n"},
		{full, formSet, via, "<10.0.0.1:12121>set k 3 1795421524 6 2\r\nhello2\r\n"},
		{touch("k", 2, 1795421027), formTouch, via, "<10.0.0.1:12121>touch k 1795421027\r\n"},
		{touch("k", 2, -1), formTouch, nil, "touch k 0\r\n"}, // never, as 0
		{put("k", 2, -1), formSet, nil, "set k 0 0 1 2\r\nv\r\n"},
		{del("k", 5), formDelete, nil, "delete k 0 5\r\n"},
		{window, formDelete, via, "<10.0.0.1:12121>delete k 1001 3\r\n"},
		{storage.Operation{Kind: storage.OpFlush}, formFlush, via, "flush_all\r\n"},
	}
	for _, tt := range tests {
		if got := string(appendItem(nil, &tt.op, tt.f, tt.via, 1000)); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	if got := string(appendItem(nil, &window, formDelete, nil, 1001)); got != "delete k 0 3\r\n" {
		t.Errorf("window that is over: %q", got)
	}
}

func TestJudge(t *testing.T) {
	tests := []struct {
		f    form
		line string
		want verdict
	}{
		{formSet, "STORED", accepted},
		{formSet, "NOT_STORED", accepted},
		{formTouch, "TOUCHED", accepted},
		{formTouch, "NOT_FOUND", asSet},
		{formDelete, "DELETED", accepted},
		{formDelete, "NOT_FOUND", accepted},
		{formFlush, "OK", accepted},
		{formSet, "SERVER_ERROR proxy failure", again},
		{formSet, "SERVER_ERROR no partition available", again},
		{formDelete, "SERVER_ERROR", again},
		{formSet, "SERVER_ERROR object too large for cache", refused},
		{formSet, "ERROR", refused},
		{formSet, "CLIENT_ERROR bad data chunk", refused},
		{formSet, "NOT_FOUND", refused},
		{formTouch, "STORED", refused},
		{formSet, "FOO", refused},
		{formFlush, "ERROR", refused},
	}
	for _, tt := range tests {
		r := text.NewReplyReader(strings.NewReader(tt.line+"\r\n"), text.ReplyOptions{})
		reply, err := r.ReadReply()
		if err != nil {
			t.Fatal(err)
		}
		if got := judge(tt.f, reply); got != tt.want {
			t.Errorf("form %d, %s: %d, want %d", tt.f, tt.line, got, tt.want)
		}
	}
}
