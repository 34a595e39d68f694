package main

import (
	"bytes"
	"context"
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/flarekv/flare/images/archive"
)

// The image is the program and nothing else, so the program must not ask for an
// interpreter or a shared library. This package stands in for the real programs:
// what is under test is the way they are compiled and packed.
func TestBuildKeepsWhatDidNotChange(t *testing.T) {
	out := t.TempDir()
	if err := os.Mkdir(filepath.Join(out, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := program{name: "flare-x", pkg: ".", valuesKey: "x", description: "x"}
	ctx := t.Context()
	first, err := build(ctx, p, out, "registry.example/flare", "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	if want := "v1.2.3-"; !strings.HasPrefix(first.tag, want) || len(first.tag) != len(want)+12 {
		t.Errorf("tag %s", first.tag)
	}
	if _, _, err := archive.SplitName(first.repository + ":" + first.tag); err != nil {
		t.Error(err)
	}
	f, err := elf.Open(filepath.Join(out, "bin", "flare-x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, prog := range f.Progs {
		if prog.Type == elf.PT_INTERP {
			t.Error("the program wants an interpreter: it is not static")
		}
	}
	before := stat(t, first.archive)

	again, err := build(ctx, p, out, "registry.example/flare", "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	if again != first {
		t.Errorf("the same program became %+v, was %+v", again, first)
	}
	if after := stat(t, first.archive); !os.SameFile(before, after) {
		t.Error("the archive of an unchanged program was written again")
	}

	other, err := build(ctx, p, out, "registry.example/flare", "1.2.4")
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimPrefix(other.tag, "v1.2.4-") == strings.TrimPrefix(first.tag, "v1.2.3-") {
		t.Errorf("another program has the same content digits: %s, %s", first.tag, other.tag)
	}
	if err := os.Remove(other.archive); err != nil {
		t.Fatal(err)
	}
	if _, err := build(ctx, p, out, "registry.example/flare", "1.2.4"); err != nil {
		t.Fatal(err)
	}
	stat(t, other.archive) // a missing archive is made again
}

func stat(t *testing.T, name string) os.FileInfo {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestBuildRefuses(t *testing.T) {
	p := program{name: "flare-x", pkg: "./nothing/here"}
	if _, err := build(context.Background(), p, t.TempDir(), "registry.example/flare", "1"); err == nil {
		t.Error("a package that is not there was built")
	}
	if err := run(t.Context(), []string{"extra"}); err == nil || !strings.Contains(err.Error(), "extra") {
		t.Errorf("error %v", err)
	}
}

func TestValuesAndTags(t *testing.T) {
	images := []builtImage{
		{program: programs[0], repository: "r.example/flared", tag: "v1-aaa", digest: "sha256:aaa"},
		{program: programs[1], repository: "r.example/flare-agent", tag: "v1-bbb", digest: "sha256:bbb"},
	}
	var values struct {
		Images map[string]struct{ Repository, Tag string }
	}
	if err := yaml.UnmarshalStrict(valuesFile(images), &values); err != nil {
		t.Fatal(err)
	}
	if got := values.Images["agent"]; got.Repository != "r.example/flare-agent" || got.Tag != "v1-bbb" {
		t.Errorf("agent = %+v", got)
	}
	want := "FLARED_IMAGE=r.example/flared:v1-aaa\nFLARED_DIGEST=sha256:aaa\n" +
		"FLARE_AGENT_IMAGE=r.example/flare-agent:v1-bbb\nFLARE_AGENT_DIGEST=sha256:bbb\n"
	if got := string(tagsFile(images)); got != want {
		t.Errorf("tags.env:\n%swant:\n%s", got, want)
	}
}

func TestChartVersion(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"apiVersion: v2\nversion: 0.9.0\nappVersion: \"1.2.3\"\n": "1.2.3",
		"appVersion: 2.0.0-dev\n":                                 "2.0.0-dev",
		"version: 1.0.0\n":                                        "",
	} {
		name := filepath.Join(dir, "Chart.yaml")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := chartVersion(name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

func TestReplaceFileLeavesEqualContent(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := replaceFile(name, []byte("a")); err != nil {
		t.Fatal(err)
	}
	before := stat(t, name)
	if err := replaceFile(name, []byte("a")); err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, stat(t, name)) {
		t.Error("equal content was written again")
	}
	if err := replaceFile(name, []byte("b")); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(name); !bytes.Equal(b, []byte("b")) {
		t.Errorf("content %q", b)
	}
}
