package storage

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// crashWrites makes a process of its own write batches into the directory and die
// without closing the database.
func crashWrites(t *testing.T, dir string, batches int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashHelper$", "-test.v")
	cmd.Env = append(os.Environ(), "FLARE_CRASH_DIR="+dir, "FLARE_CRASH_BATCHES="+strconv.Itoa(batches))
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("helper: %v\n%s", err, out)
	}
}

// TestCrashHelper is what crashWrites runs.
func TestCrashHelper(t *testing.T) {
	dir := os.Getenv("FLARE_CRASH_DIR")
	if dir == "" {
		return
	}
	n, err := strconv.Atoi(os.Getenv("FLARE_CRASH_BATCHES"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := Open(Options{Dir: dir, Logger: quiet, BlockCache: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.BeginEpoch(context.Background(), db.Position().LSN.Epoch+1, 0); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		put(t, db, fmt.Sprint("k", i), strings.Repeat("v", 100))
	}
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	self.Kill()
	time.Sleep(time.Minute) // not reached
}

// newestLog returns the log file that was written last.
func newestLog(t *testing.T, dir string) string {
	t.Helper()
	files, err := listWALs(filepath.Join(dir, "db"))
	if err != nil || len(files) == 0 {
		t.Fatalf("logs: %v, %v", files, err)
	}
	return filepath.Join(dir, "db", walName(files[len(files)-1].number))
}

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestDroppedEndIsTold(t *testing.T) {
	const batches = 50 // and the start of the epoch
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, file string, size int64) error
		lsn    string // recovered, as a pattern
		told   string // as a pattern, "" for nothing
	}{
		{"whole", func(*testing.T, string, int64) error { return nil }, `1/51`, ""},
		{"torn", func(_ *testing.T, file string, size int64) error { return os.Truncate(file, size-50) }, `1/50`,
			`end of a log file is damaged.*offset=\d+ bytes=\d\d+ last_whole=1/50 lsn=1/50`},
		{"garbled in the middle", func(t *testing.T, file string, size int64) error {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("garbage"), size/2)
			return err
		}, `1/2\d`, `end of a log file is damaged.*offset=\d+ bytes=\d{4} last_whole=1/2\d lsn=1/2\d`},
		{"gone", func(_ *testing.T, file string, _ int64) error { return os.Remove(file) }, `0/0`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			crashWrites(t, dir, batches)
			file := newestLog(t, dir)
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.damage(t, file, info.Size()); err != nil {
				t.Fatal(err)
			}
			var log lines
			db := open(t, Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if got := db.Position().LSN.String(); !regexp.MustCompile("^" + c.lsn + "$").MatchString(got) {
				t.Errorf("recovered to %s, want %s", got, c.lsn)
			}
			switch told := strings.Contains(log.String(), "level=WARN"); {
			case c.told == "" && told:
				t.Errorf("log:\n%s\nwant no warning", log.String())
			case c.told != "" && !regexp.MustCompile(c.told).MatchString(log.String()):
				t.Errorf("log:\n%s\nwant %s", log.String(), c.told)
			}
			// What remains is a log like any other.
			begin(t, db, 7)
			put(t, db, "after", "v")
			next := open(t, Options{})
			if db.Position().LSN.Index > 2 {
				catchUp(t, db, next)
				if value(t, next, "after") != "v" || value(t, next, "k0") != value(t, db, "k0") {
					t.Error("a replica of what remains lacks records")
				}
			}
			// And what was told once is not told again.
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			var again lines
			open(t, Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(&again, nil))})
			if strings.Contains(again.String(), "level=WARN") {
				t.Errorf("told again:\n%s", again.String())
			}
		})
	}
}
