package procs

import (
	"compress/gzip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// recordings names a directory in which the recordings of the tests that make one are
// kept, one a test. Those in controller/recording/testdata are from there.
const recordings = "FLARE_RECORDINGS"

// replayed lets the core do once more what a controller recorded: it must do the same,
// with no invariant broken on the way.
func replayed(t *testing.T, file string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(binDir, "flare-controller"), "replay", file).CombinedOutput()
	if err != nil {
		t.Errorf("replay: %v\n%s", err, out)
	} else {
		t.Logf("replay:\n%s", out)
	}
	if dir := os.Getenv(recordings); dir != "" {
		if err := keep(file, filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-")+".jsonl.gz")); err != nil {
			t.Error(err)
		}
	}
}

// keep compresses a file into another one.
func keep(file, to string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err == nil {
		_, err = z.Write(b)
	}
	if err == nil {
		err = z.Close()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}
