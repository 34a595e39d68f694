package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/storage"
)

func TestShortFlags(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-v"}, &stdout, &stderr); code != 0 || stdout.String() != "flared "+version+"\n" {
		t.Errorf("-v: %d, %s%s", code, &stdout, &stderr)
	}
	stdout.Reset()
	if code := run([]string{"-h"}, &stdout, &stderr); code != 0 || !strings.Contains(stdout.String(), "-storage-type") {
		t.Errorf("-h: %d, %s%s", code, &stdout, &stderr)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "flared.conf")
	text := fmt.Sprintf("data-dir = %s\nindex-server-name = h\nserver-name = h\nserver-port = %s\n", dir, busyPort(t))
	if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	// It gets as far as the port, with everything accepted before.
	args := []string{"-s", "-f", file, "-p", filepath.Join(dir, "pid"), "--daemonize", "--log-facility=local0"}
	if code := run(args, &stdout, &stderr); code != exitFailure || !strings.Contains(stderr.String(), "address already in use") ||
		!strings.Contains(stderr.String(), "options=daemonize,log-facility") {
		t.Errorf("%v: %d, %s", args, code, &stderr)
	}
}

func TestPidFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	remove, err := writePid(path)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != fmt.Sprintln(os.Getpid()) {
		t.Errorf("file %q, %v", text, err)
	}
	remove()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file was left: %v", err)
	}
	if remove, err = writePid(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("1\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	if remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("another process's file was removed: %v", err)
	}
	if _, err := writePid(filepath.Join(path, "x")); err == nil {
		t.Error("a file that cannot be written was written")
	}
}

func TestBackLog(t *testing.T) {
	accepted := func(n int) (count int) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := setBackLog(l, n); err != nil {
			t.Fatal(err)
		}
		for range 8 {
			nc, err := net.DialTimeout("tcp", l.Addr().String(), time.Second)
			if err != nil {
				break
			}
			defer nc.Close()
			count++
		}
		return count
	}
	// Linux lets one more wait than was asked for.
	if got := accepted(2); got != 3 {
		t.Errorf("back-log 2 let %d connections wait", got)
	}
	if got := accepted(0); got != 8 {
		t.Errorf("without back-log %d of 8 connections could wait", got)
	}
}

func TestStorageCacheSize(t *testing.T) {
	opts := options.Default()
	opts.DataDir = t.TempDir()
	opts.StorageCacheSize = 2
	db, err := openDatabase(opts, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, key := range []string{"a", "b", "c"} {
		if _, err := db.Update(t.Context(), []byte(key), func(storage.Entry) storage.Change {
			return storage.Change{Op: storage.Delete, Tombstone: storage.Tombstone{Version: 7}}
		}); err != nil {
			t.Fatal(err)
		}
	}
	for key, want := range map[string]bool{"a": false, "b": true, "c": true} {
		if _, err := db.Update(t.Context(), []byte(key), func(e storage.Entry) storage.Change {
			if e.HasTombstone != want {
				t.Errorf("%s: tombstone %v, want %v", key, e.HasTombstone, want)
			}
			return storage.Change{}
		}); err != nil {
			t.Fatal(err)
		}
	}
}
