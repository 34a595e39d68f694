package replication

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
)

func TestCopyReceiver(t *testing.T) {
	begin := func(files uint32, bytes uint64) []any {
		return []any{frameCheckpointBegin, checkpointBegin{at(1, 1), files, bytes}.encode()}
	}
	file := func(name string, size uint64) []any { return []any{frameFileBegin, fileBegin{name, size}.encode()} }
	data := func(s string) []any { return []any{frameFileData, []byte(s)} }
	end := func(s string) []any {
		return []any{frameFileEnd, binary.BigEndian.AppendUint32(nil, crc32.Checksum([]byte(s), castagnoli))}
	}
	done := []any{frameCheckpointDone, []byte(nil)}

	for name, tt := range map[string]struct {
		frames [][]any
		want   error
	}{
		"whole":             {[][]any{begin(2, 5), file("a", 5), data("he"), data("llo"), end("hello"), file("b", 0), end(""), done}, nil},
		"nothing begins":    {[][]any{file("a", 5)}, errBadCopy},
		"begins twice":      {[][]any{begin(1, 5), begin(1, 5)}, errBadCopy},
		"file in a file":    {[][]any{begin(2, 5), file("a", 5), file("b", 5)}, errBadCopy},
		"too much data":     {[][]any{begin(1, 5), file("a", 5), data("hello!")}, errBadCopy},
		"data without file": {[][]any{begin(1, 5), data("hello")}, errBadCopy},
		"too little data":   {[][]any{begin(1, 5), file("a", 5), data("hell"), end("hell")}, errBadCopy},
		"other data":        {[][]any{begin(1, 5), file("a", 5), data("hellO"), end("hello")}, errBadCopy},
		"end without file":  {[][]any{begin(1, 5), end("")}, errBadCopy},
		"file missing":      {[][]any{begin(2, 5), file("a", 5), data("hello"), end("hello"), done}, errBadCopy},
		"bytes missing":     {[][]any{begin(1, 6), file("a", 5), data("hello"), end("hello"), done}, errBadCopy},
		"done in a file":    {[][]any{begin(0, 0), file("a", 0), done}, errBadCopy},
		"same file twice":   {[][]any{begin(2, 0), file("a", 0), end(""), file("a", 0)}, os.ErrExist},
		"parent directory":  {[][]any{begin(1, 0), file("../a", 0)}, errBadCopy},
		"absolute name":     {[][]any{begin(1, 0), file("/tmp/a", 0)}, errBadCopy},
		"sub directory":     {[][]any{begin(1, 0), file("x/a", 0)}, errBadCopy},
		"no name":           {[][]any{begin(1, 0), file("", 0)}, errBadCopy},
		"dot":               {[][]any{begin(1, 0), file(".", 0)}, errBadCopy},
		"dots":              {[][]any{begin(1, 0), file("..", 0)}, errBadCopy},
		"other frame":       {[][]any{begin(1, 0), {frameBatch, []byte("x")}}, errBadFrame},
		"damaged begin":     {[][]any{{frameCheckpointBegin, []byte("x")}}, errBadFrame},
		"damaged file":      {[][]any{begin(1, 0), {frameFileBegin, []byte("x")}}, errBadFrame},
		"damaged end":       {[][]any{begin(1, 0), file("a", 0), {frameFileEnd, []byte("x")}}, errBadFrame},
	} {
		t.Run(name, func(t *testing.T) {
			c := &copyReceiver{dir: t.TempDir()}
			defer c.close()
			for i, f := range tt.frames {
				err := c.frame(f[0].(frameType), f[1].([]byte))
				if i < len(tt.frames)-1 && err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
				if i == len(tt.frames)-1 && !errors.Is(err, tt.want) {
					t.Fatalf("%v, want %v", err, tt.want)
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
