package gobuild

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProgress(t *testing.T) {
	var p progress
	if got := p.String(); got != "checking what is up to date" {
		t.Errorf("before the first line: %q", got)
	}
	p.follow(strings.NewReader("go: downloading example.org/m v1.0.0\nunicode/utf8\nexample.org/m/p\n# example.org/m/q\nq.go:1:1: syntax error\n"))
	if got, want := p.String(), "1 modules fetched, 2 packages compiled, now at example.org/m/p"; got != want {
		t.Errorf("progress %q, want %q", got, want)
	}
	if got, want := p.end(), "# example.org/m/q\nq.go:1:1: syntax error"; got != want {
		t.Errorf("end %q, want %q", got, want)
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.org/x\n\ngo 1.26\n")
	write("main.go", "package main\n\nfunc main() {}\n")
	env := []string{"GOFLAGS=-buildvcs=false", "GOWORK=off"}
	bin := filepath.Join(dir, "x")
	if err := Run(t.Context(), dir, env, func(string) {}, "-o", bin, "."); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Error(err)
	}
	write("main.go", "package main\n\nfunc main() { undefined() }\n")
	if err := Run(t.Context(), dir, env, func(string) {}, "-o", bin, "."); err == nil || !strings.Contains(err.Error(), "undefined: undefined") {
		t.Errorf("a build that fails: %v, want the compiler's words", err)
	}
}
