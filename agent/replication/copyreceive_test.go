package replication

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/flarekv/flare/agent/replication/history"
)

// copyFrames make up a copy as a master sends it.
func beginFrame(files ...history.File) []any {
	return []any{frameCheckpointBegin, checkpointBegin{"id", at(1, 1), files}.encode()}
}

func fileFrame(name string, size, offset uint64) []any {
	return []any{frameFileBegin, fileBegin{name, size, offset}.encode()}
}

func dataFrame(s string) []any { return []any{frameFileData, []byte(s)} }

func endFrame(s string) []any {
	return []any{frameFileEnd, binary.BigEndian.AppendUint32(nil, crc32.Checksum([]byte(s), castagnoli))}
}

var doneFrame = []any{frameCheckpointDone, []byte(nil)}

// take gives a frame to a receiver.
func (c *copyReceiver) take(f []any) error {
	if t := f[0].(frameType); t != frameCheckpointBegin {
		payload := f[1].([]byte)
		return c.frame(t, payload, frameCRC(t, payload))
	}
	return c.plan(f[1].([]byte))
}

func TestCopyReceiver(t *testing.T) {
	file := func(name string, size int64) history.File { return history.File{Name: name, Size: size} }
	a5 := beginFrame(file("a", 5))
	for name, tt := range map[string]struct {
		frames [][]any
		want   error
	}{
		"whole": {[][]any{beginFrame(file("a", 5), file("b", 0)), fileFrame("a", 5, 0), dataFrame("he"), dataFrame("llo"), endFrame("hello"),
			fileFrame("b", 0, 0), endFrame(""), doneFrame}, nil},
		"nothing begins":       {[][]any{fileFrame("a", 5, 0)}, errBadFrame},
		"begins twice":         {[][]any{a5, a5}, errBadCopy},
		"file in a file":       {[][]any{beginFrame(file("a", 5), file("b", 5)), fileFrame("a", 5, 0), fileFrame("b", 5, 0)}, errBadCopy},
		"too much data":        {[][]any{a5, fileFrame("a", 5, 0), dataFrame("hello!")}, errBadCopy},
		"data without file":    {[][]any{a5, dataFrame("hello")}, errBadCopy},
		"too little data":      {[][]any{a5, fileFrame("a", 5, 0), dataFrame("hell"), endFrame("hell")}, errBadCopy},
		"other data":           {[][]any{a5, fileFrame("a", 5, 0), dataFrame("hellO"), endFrame("hello")}, errBadCopy},
		"end without file":     {[][]any{a5, endFrame("")}, errBadCopy},
		"file missing":         {[][]any{beginFrame(file("a", 5), file("b", 0)), fileFrame("a", 5, 0), dataFrame("hello"), endFrame("hello"), doneFrame}, errBadCopy},
		"done in a file":       {[][]any{beginFrame(file("a", 0)), fileFrame("a", 0, 0), doneFrame}, errBadCopy},
		"same file twice":      {[][]any{beginFrame(file("a", 0)), fileFrame("a", 0, 0), endFrame(""), fileFrame("a", 0, 0)}, errBadCopy},
		"same name twice":      {[][]any{beginFrame(file("a", 1), file("a", 1))}, errBadCopy},
		"not announced":        {[][]any{a5, fileFrame("b", 5, 0)}, errBadCopy},
		"of another size":      {[][]any{a5, fileFrame("a", 6, 0)}, errBadCopy},
		"goes on with nothing": {[][]any{a5, fileFrame("a", 5, 3)}, errBadCopy},
		"negative size":        {[][]any{beginFrame(file("a", -1))}, errBadCopy},
		"parent directory":     {[][]any{beginFrame(file("../a", 0))}, errBadCopy},
		"absolute name":        {[][]any{beginFrame(file("/tmp/a", 0))}, errBadCopy},
		"sub directory":        {[][]any{beginFrame(file("x/a", 0))}, errBadCopy},
		"no name":              {[][]any{beginFrame(file("", 0))}, errBadCopy},
		"dot":                  {[][]any{beginFrame(file(".", 0))}, errBadCopy},
		"dots":                 {[][]any{beginFrame(file("..", 0))}, errBadCopy},
		"other frame":          {[][]any{a5, {frameBatch, []byte("x")}}, errBadFrame},
		"damaged begin":        {[][]any{{frameCheckpointBegin, []byte("x")}}, errBadFrame},
		"damaged file":         {[][]any{a5, {frameFileBegin, []byte("x")}}, errBadFrame},
		"damaged end":          {[][]any{a5, {frameFileEnd, []byte("x")}}, errBadFrame},
	} {
		t.Run(name, func(t *testing.T) {
			c := &copyReceiver{dir: t.TempDir(), known: map[string]filePart{}}
			defer c.close()
			for i, f := range tt.frames {
				err := c.take(f)
				if i < len(tt.frames)-1 && err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
				if i == len(tt.frames)-1 && !errors.Is(err, tt.want) {
					t.Fatalf("%v, want %v", err, tt.want)
				}
				if _, counted := (&Refusals{}).note(err); counted != (err != nil) {
					t.Errorf("%v is counted: %v", err, counted)
				}
			}
			if c.finished != (tt.want == nil) {
				t.Errorf("finished: %v", c.finished)
			}
			if tt.want == nil {
				if got, err := os.ReadFile(filepath.Join(c.dir, "a")); string(got) != "hello" {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
}

// TestCopyReceiverGoesOn: what an interrupted copy left is offered, whether its
// checksums are known still or have to be read again, and what does not belong to
// the new one is removed.
func TestCopyReceiverGoesOn(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		dir, known := t.TempDir(), map[string]filePart{}
		first := &copyReceiver{dir: dir, known: known}
		files := []history.File{{Name: "a", Size: 5}, {Name: "b", Size: 6}, {Name: "c", Size: 7}}
		for _, f := range [][]any{beginFrame(files...), fileFrame("a", 5, 0), dataFrame("hello"), endFrame("hello"),
			fileFrame("b", 6, 0), dataFrame("wor")} {
			if err := first.take(f); err != nil {
				t.Fatal(err)
			}
		}
		first.close()
		for name, data := range map[string]string{"gone": "x", "c": "longer than c"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if restarted {
			known = map[string]filePart{}
		} else if len(known) != 2 {
			t.Errorf("known: %v", known)
		}
		c := &copyReceiver{dir: dir, known: known}
		if err := c.take(beginFrame(files...)); err != nil {
			t.Fatal(err)
		}
		sum := func(s string) uint32 { return crc32.Checksum([]byte(s), castagnoli) }
		if got, want := c.have(), []filePart{{"a", 5, sum("hello")}, {"b", 3, sum("wor")}}; !slices.Equal(got, want) || c.lacking() != 10 {
			t.Errorf("has %v, lacks %d, want %v", got, c.lacking(), want)
		}
		// The master has another a, and the same b.
		for i, f := range [][]any{fileFrame("a", 5, 0), dataFrame("HELLO"), endFrame("HELLO"), fileFrame("b", 6, 3), dataFrame("ld!"),
			endFrame("world!"), fileFrame("c", 7, 0), dataFrame("seventh"), endFrame("seventh"), doneFrame} {
			if err := c.take(f); err != nil {
				t.Fatalf("frame %d: %v", i, err)
			}
		}
		c.close()
		for name, want := range map[string]string{"a": "HELLO", "b": "world!", "c": "seventh"} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 3 || c.agreed != 3 || c.done != 18 {
			t.Errorf("left %v, %d bytes need not come, %d there", left, c.agreed, c.done)
		}
	}
}

// TestCopyReceiverForgetsDamage: of a file that came damaged nothing is offered again.
func TestCopyReceiverForgetsDamage(t *testing.T) {
	dir, known := t.TempDir(), map[string]filePart{}
	c := &copyReceiver{dir: dir, known: known}
	for i, f := range [][]any{beginFrame(history.File{Name: "a", Size: 5}), fileFrame("a", 5, 0), dataFrame("hellO"), endFrame("hello")} {
		if err := c.take(f); (err != nil) != (i == 3) {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	c.close()
	c = &copyReceiver{dir: dir, known: known}
	if err := c.take(beginFrame(history.File{Name: "a", Size: 5})); err != nil {
		t.Fatal(err)
	}
	if c.lacking() != 5 {
		t.Errorf("offers %v", c.have())
	}
}
