package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRunUsage(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.conf")
	if err := os.WriteFile(bad, []byte("data-dir = x\nno-such-option = 1\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"version", []string{"--version"}, 0, "flared " + version + "\n", ""},
		{"help", []string{"--help"}, 0, "usage: flared", ""},
		{"unknown flag", []string{"--no-such"}, exitUsage, "", "no-such"},
		{"bad value", []string{"--server-port=x"}, exitUsage, "", "1 to 65535"},
		{"argument", []string{"x"}, exitUsage, "", `unexpected argument "x"`},
		{"nothing", nil, exitUsage, "", "data-dir is required"},
		{"no index", []string{"--data-dir=" + dir}, exitUsage, "", "index-servers is required"},
		{"no file", []string{"--config", filepath.Join(dir, "none")}, exitUsage, "", "none"},
		{"bad file", []string{"--config", bad}, exitUsage, "", "bad.conf:2: no-such-option"},
		{"data directory is a file", []string{"--data-dir=" + filepath.Join(file, "x"), "--index-servers=h:1", "--server-port=1"}, exitUsage, "", "file"},
		{"port in use", []string{"--data-dir=" + dir, "--index-servers=h:1", "--server-name=h", "--server-port=" + busyPort(t)}, exitFailure, "", "address already in use"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(tt.args, &stdout, &stderr); code != tt.code {
				t.Errorf("exit code %d, want %d; stderr: %s", code, tt.code, &stderr)
			}
			if !strings.HasPrefix(stdout.String(), tt.stdout) || tt.stdout == "" && stdout.Len() > 0 {
				t.Errorf("stdout %q, want %q", &stdout, tt.stdout)
			}
			if !strings.Contains(stderr.String(), tt.stderr) {
				t.Errorf("stderr %q, want %q in it", &stderr, tt.stderr)
			}
		})
	}
}

func busyPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
