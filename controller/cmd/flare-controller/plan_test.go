package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// addressOf finds an address in the log.
type addressOf struct {
	line  *regexp.Regexp
	found chan string
	done  bool
}

func (l *addressOf) Write(p []byte) (int, error) {
	if m := l.line.FindSubmatch(p); m != nil && !l.done {
		l.done = true
		l.found <- string(m[1])
	}
	return len(p), nil
}

// TestPlan asks what a changed manifest would bring about, of a saved state and of a
// controller that runs.
func TestPlan(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	spec := func(spec string) string {
		return "apiVersion: flarekv.io/v1\nkind: FlareCluster\nmetadata: {name: x}\nspec: {" + spec + "}\n"
	}
	manifest := write("cluster.yaml", spec("partitions: 1, replicas: 2"))
	state := filepath.Join(dir, "state")
	xml := write("flare.xml", xmlOf("flare-0 1 0 0 0 1", "flare-1 1 1 0 0 1"))
	if err := run(t.Context(), []string{"import", xml, "--standalone", manifest, "--state-dir", state}, &bytes.Buffer{}, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	plan := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"plan"}, args...), &out, &bytes.Buffer{})
		return out.String(), err
	}
	wanted := write("wanted.yaml", spec("partitions: 1, replicas: 3, rocksdb: {walTtlSeconds: 777}"))
	fewer := write("fewer.yaml", spec("partitions: 1, replicas: 2, partitionSize: 512"))
	lines := []string{
		"nodes      2 -> 3  (scaling)",
		"option     rocksdb-wal-ttl-seconds: none -> 777  (applying)",
		"join       flare-2:1 as proxy/active/p-1/b0  (added)",
		"duty       flare-2:1: proxy/active/p-1/b0 -> slave/prepare/p0/b1  (replica_assigned)",
		"then: Running, 3 of 3 nodes in service, 1 partitions with a master",
	}
	check := func(out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%q is not in the plan:\n%s", w, out)
			}
		}
	}

	out, err := plan("-f", wanted, "--state", filepath.Join(state, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	check(out, lines...)
	again, err := plan("-f", wanted, "--state", state)
	if err != nil || again != out {
		t.Errorf("of the directory: %v\n%s\nof the file:\n%s", err, again, out)
	}
	out, err = plan("-f", fewer, "--state", state)
	if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "meta_change") {
		t.Errorf("a refused change: %v", err)
	}
	check(out, "refused: meta_change")
	if _, err := plan("-f", xml, "--state", state); err == nil || !strings.Contains(err.Error(), "manifest") {
		t.Errorf("of what is no manifest: %v", err)
	}
	if _, err := plan("-f", wanted, "--state", wanted); err == nil || !strings.Contains(err.Error(), "is no state of a controller") {
		t.Errorf("of what is no state: %v", err)
	}
	if _, err := plan("--state", state); !errors.Is(err, errUsage) {
		t.Errorf("without a manifest: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	leading := &addressOf{line: regexp.MustCompile(`msg=leading .*index=(\S+)`), found: make(chan string, 1)}
	grpc := &addressOf{line: regexp.MustCompile(`for=grpc address=(127\.0\.0\.1:\d+)`), found: make(chan string, 1)}
	go func() {
		done <- run(ctx, []string{"--standalone", manifest, "--state-dir", state, "--log-format=text",
			"--index=127.0.0.1:0", "--grpc=127.0.0.1:0", "--http=127.0.0.1:0", "--metrics=127.0.0.1:0"}, &bytes.Buffer{}, both{leading, grpc})
	}()
	defer func() {
		cancel()
		<-done
	}()
	for _, l := range []*addressOf{leading, grpc} {
		select {
		case address := <-l.found:
			l.found <- address
		case err := <-done:
			t.Fatalf("the controller ended: %v", err)
		}
	}
	address := <-grpc.found
	out, err = plan("-f", wanted, "--controller", address, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		Settled bool
		Changes []struct{ Kind, Node, Option, NewValue string }
	}
	if err := json.Unmarshal([]byte(out), &p); err != nil || !p.Settled || len(p.Changes) < 4 || p.Changes[0].Kind != "PLANNED_CHANGE_KIND_NODES" || p.Changes[0].NewValue != "3" {
		t.Errorf("as JSON: %v\n%s", err, out)
	}
	if out, err := plan("-f", fewer, "--controller", address); !errors.Is(err, errRefused) {
		t.Errorf("a refused change: %v\n%s", err, out)
	}
	if _, err := plan("-f", xml, "--controller", address); err == nil || !strings.Contains(err.Error(), "manifest") {
		t.Errorf("of what is no manifest: %v", err)
	}
}

type both [2]*addressOf

func (b both) Write(p []byte) (int, error) {
	b[0].Write(p)
	return b[1].Write(p)
}
