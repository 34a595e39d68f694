package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/flarekv/flare/agent/backup"
	"github.com/flarekv/flare/agent/storage"
)

func TestRestoreCommand(t *testing.T) {
	openDB := func(dir string) *storage.DB {
		t.Helper()
		db, err := storage.Open(storage.Options{Dir: dir, BlockCache: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	db := openDB(t.TempDir())
	if _, err := db.BeginEpoch(t.Context(), 1, 0); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if _, err := backup.Create(t.Context(), db, backup.Request{Root: root, Name: "good", Node: "n:1", Version: "9"}, nil); err != nil {
		t.Fatal(err)
	}
	good, bad := filepath.Join(root, "good"), filepath.Join(root, "bad")
	if err := os.CopyFS(bad, os.DirFS(good)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bad, "db", "CURRENT"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "data")
	var printed string
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"help", []string{"--help"}, 0, "Exit codes:", ""},
		{"nothing", nil, exitUsage, "", "--from is required"},
		{"no data directory", []string{"--from", good}, exitUsage, "", "--data-dir is required"},
		{"unknown flag", []string{"--to", good}, exitUsage, "", "restore --help"},
		{"argument", []string{"--from", good, "x"}, exitUsage, "", `unexpected argument "x"`},
		{"check with more", []string{"--from", good, "--check", "--force"}, exitUsage, "", "--check changes nothing"},
		{"check", []string{"--from", good, "--check"}, 0, "the backup is whole", ""},
		{"check a damaged one", []string{"--from", bad, "--check"}, exitBadBackup, "", "backup_damaged"},
		{"damaged", []string{"--from", bad, "--data-dir", data}, exitBadBackup, "", "nothing was changed; do not use this backup"},
		{"no backup", []string{"--from", filepath.Join(root, "none"), "--data-dir", data}, exitBadBackup, "", "not_found"},
		{"not finished", []string{"--from", t.TempDir(), "--data-dir", data}, exitBadBackup, "", "backup_incomplete"},
		{"in use", []string{"--from", good, "--data-dir", db.Dir(), "--force"}, exitRefused, "", "stop flared first"},
		{"done", []string{"--from", good, "--data-dir", data}, 0, "As a replica it tells its master", ""},
		{"there is one", []string{"--from=" + good, "--data-dir=" + data}, exitRefused, "", "--force replaces it"},
		{"bad history", []string{"--from", good, "--data-dir", data, "--force", "--new-history=a b"}, exitUsage, "", "invalid_history"},
		{"new history", []string{"--from", good, "--data-dir", data, "--force", "--new-history"}, 0, "the beginning of a new history", ""},
	} {
		var stdout, stderr bytes.Buffer
		code := run(append([]string{"restore"}, tt.args...), &stdout, &stderr)
		if code != tt.code || !strings.Contains(stdout.String(), tt.stdout) || !strings.Contains(stderr.String(), tt.stderr) ||
			tt.stderr == "" && stderr.Len() > 0 {
			t.Errorf("%s: exit code %d, want %d\nstdout: %s\nstderr: %s", tt.name, code, tt.code, &stdout, &stderr)
		}
		printed = stdout.String()
	}
	// What it prints for the other nodes gives them the same history.
	id := regexp.MustCompile(`--new-history=([0-9a-f]{32})\n`).FindStringSubmatch(printed)
	if id == nil {
		t.Fatalf("no history in %s", printed)
	}
	other := filepath.Join(t.TempDir(), "other")
	var stdout, stderr bytes.Buffer
	if code := run([]string{"restore", "--from", good, "--data-dir", other, "--new-history=" + id[1]}, &stdout, &stderr); code != 0 {
		t.Fatalf("%d: %s", code, &stderr)
	}
	a, b := openDB(data).Position(), openDB(other).Position()
	if a.History != id[1] || a.History != b.History || a.LSN != b.LSN || a.History == db.Position().History {
		t.Errorf("%+v and %+v", a, b)
	}
}
