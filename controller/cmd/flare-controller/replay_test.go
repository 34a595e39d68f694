package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flarekv/flare/controller/recording"
)

// TestRecordAndReplay records a controller, a second one that goes on, and replays both.
func TestRecordAndReplay(t *testing.T) {
	dir := t.TempDir()
	manifest := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(manifest, []byte("apiVersion: flarekv.io/v1\nkind: FlareCluster\nmetadata: {name: x}\nspec: {partitions: 1, replicas: 1}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "recording")
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		log := &lines{leading: make(chan struct{})}
		done := make(chan error, 1)
		go func() {
			done <- run(ctx, []string{"--standalone", manifest, "--state-dir", filepath.Join(dir, "state"), "--log-format=text", "--record", file,
				"--index=127.0.0.1:0", "--grpc=127.0.0.1:0", "--http=127.0.0.1:0", "--metrics=127.0.0.1:0"}, &bytes.Buffer{}, log)
		}()
		select {
		case <-log.leading:
		case err := <-done:
			t.Fatalf("it ended: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	replay := func(file string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), []string{"replay", file}, &out, &out)
		return out.String(), err
	}
	if out, err := replay(file); err != nil || !strings.Contains(out, "in 2 reigns of "+version) || !strings.Contains(out, "the core does the same") {
		t.Errorf("%s%v", out, err)
	}
	if out, err := replay(file + "-none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that there is not: %s%v", out, err)
	}

	// Of a real cluster, compressed; and then with another effect than the core's.
	kept := filepath.Join("..", "..", "recording", "testdata", "TestBreaker.jsonl.gz")
	if out, err := replay(kept); err != nil || !strings.Contains(out, "GrantLease") {
		t.Errorf("%s%v", out, err)
	}
	f, err := os.Open(kept)
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
	text = bytes.Replace(text, []byte(`"TTL":5000`), []byte(`"TTL":6000`), 1)
	text = bytes.Replace(text, []byte(`"program":"`), []byte(`"program":"1`), 1)
	spoilt := filepath.Join(dir, "spoilt")
	if err := os.WriteFile(spoilt, text, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := replay(spoilt)
	if !errors.Is(err, recording.ErrDisagrees) || !strings.Contains(err.Error(), `"TTL":6000`) || !strings.Contains(out, "by another version") {
		t.Errorf("another effect: %s%v", out, err)
	}
}
