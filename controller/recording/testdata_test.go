package recording

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flarekv/flare/controller/core"
)

var rewrite = flag.Bool("rewrite", false, "write into testdata what the core does now with the inputs there")

// TestRecordings replays runs of real clusters that are kept in testdata. It fails when
// the core decides otherwise than it did then. If that is meant, and in what is told
// rather than in what is decided,
//
//	go test ./controller/recording -run TestRecordings -rewrite
//
// writes down what it does now; read the difference, which is what the change does.
// What a run would have come to with other decisions, only a new one can tell:
//
//	FLARE_RECORDINGS=$PWD/controller/recording/testdata go test ./e2e/procs -run 'TestBreaker|TestBlueGreen' -count=1
func TestRecordings(t *testing.T) {
	files, err := filepath.Glob("testdata/*.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 2 {
		t.Errorf("there are %d", len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".jsonl.gz"), func(t *testing.T) {
			text := unzip(t, file)
			if *rewrite {
				text = again(t, text)
				var b bytes.Buffer
				z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
				z.Write(text)
				z.Close()
				if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			s, err := Replay(bytes.NewReader(text))
			if err != nil {
				t.Fatalf("%v\n\nif that is meant: see TestRecordings", err)
			}
			if s.Steps < 100 || s.States == 0 || s.Effects["GrantLease"] == 0 || s.Effects["Broadcast"] < 5 || s.End != "" {
				t.Errorf("%+v", s)
			}
		})
	}
}

func unzip(t *testing.T, file string) []byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// again returns a recording with what the core makes of the same inputs now.
func again(t *testing.T, text []byte) []byte {
	t.Helper()
	var state core.State
	var out []byte
	for text := range bytes.Lines(text) {
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatal(err)
		}
		var err error
		if l.Begin != nil {
			if state, err = stateOf(l.Begin.State); err != nil {
				t.Fatal(err)
			}
		} else {
			in, err := inputOf(l)
			if err != nil {
				t.Fatal(err)
			}
			effects, _, _ := core.Advance(&state, in, l.More, l.Owing)
			whole := l.State != nil
			if l = lineOf(in, l.More, l.Owing, &state, effects); whole {
				l.State = digests(&state)
			}
		}
		b, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		out = append(append(out, b...), '\n')
	}
	return out
}
