package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRunWritesArchive(t *testing.T) {
	dir := t.TempDir()
	binary, out := filepath.Join(dir, "x"), filepath.Join(dir, "x.tar")
	if err := os.WriteFile(binary, []byte("program"), 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"-name", "registry.example/x:1", "-entrypoint", "/x", "-label", "a=b", "-env", "K=V", "-o", out, binary + ":/x"}
	var former []byte
	for range 2 {
		if err := run(args, io.Discard); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if former != nil && !bytes.Equal(former, b) {
			t.Error("the second run gave other bytes")
		}
		former = b
	}
	var names []string
	for tr := tar.NewReader(bytes.NewReader(former)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); !strings.Contains(got, "index.json") || !strings.Contains(got, "manifest.json") {
		t.Errorf("archive holds %s", got)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "x.tar")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{}, "-name and -o"},
		{[]string{"-o", out, "-name", "x:1", "-entrypoint", "/x"}, "registry"},
		{[]string{"-o", out, "-name", "r.example/x:latest", "-entrypoint", "/x"}, "latest"},
		{[]string{"-o", out, "-name", "r.example/x:1"}, "entrypoint"},
		{[]string{"-o", out, "-name", "r.example/x:1", "-entrypoint", "/x", "nothing"}, "SOURCE:PATH"},
		{[]string{"-o", out, "-name", "r.example/x:1", "-entrypoint", "/x", dir + "/nothing:/x"}, "no such file"},
		{[]string{"-label", "a"}, "K=V"},
		{[]string{"-env", "a"}, "K=V"},
	} {
		if err := run(tt.args, io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: error %v, want one that says %q", tt.args, err, tt.want)
		}
		if _, err := os.Stat(out); err == nil {
			t.Fatalf("%v: wrote an archive", tt.args)
		}
	}
}
