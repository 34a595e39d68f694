package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flarekv/flare/controller/standalone"
)

func TestCommandLine(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string // part of the error
		is   error
	}{
		{nil, "give either --cluster=NAME (in Kubernetes) or --standalone=FILE", errUsage},
		{[]string{"--cluster=a", "--standalone=b"}, "give either", errUsage},
		{[]string{"--nonsense"}, "nonsense", errUsage},
		{[]string{"--standalone=x", "more"}, `unexpected argument "more"`, errUsage},
		{[]string{"--standalone=x", "--log-level=loud"}, "--log-level", errUsage},
		{[]string{"--standalone=x", "--log-format=xml"}, "--log-format", errUsage},
		{[]string{"--standalone=x", "--record-mb=0"}, "--record-mb 0: want at least 1", errUsage},
		{[]string{"replay"}, "flare-controller replay FILE", errUsage},
		{[]string{"replay", "--fast"}, "flare-controller replay FILE", errUsage},
		{[]string{"crd"}, "crd apply|delete-unused", errUsage},
		{[]string{"crd", "drop"}, "crd apply|delete-unused", errUsage},
		{[]string{"--help"}, "", flag.ErrHelp},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			var out, errs bytes.Buffer
			err := run(t.Context(), tt.args, &out, &errs)
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %v with %q", err, tt.is, tt.want)
			}
		})
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--version"}, &out, &out); err != nil || !strings.Contains(out.String(), version) {
		t.Errorf("--version: %q, %v", out.String(), err)
	}
}

// TestStandaloneRunsAndStops runs the program on files, a second one beside it,
// and stops it.
func TestStandaloneRunsAndStops(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: flarekv.io/v1\nkind: FlareCluster\nmetadata: {name: x}\nspec: {partitions: 1, replicas: 1}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"--standalone", file, "--state-dir", filepath.Join(dir, "state"), "--log-format=text",
		"--index=127.0.0.1:0", "--grpc=127.0.0.1:0", "--http=127.0.0.1:0", "--metrics=127.0.0.1:0"}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	log := &lines{leading: make(chan struct{})}
	go func() { done <- run(ctx, args, &bytes.Buffer{}, log) }()
	select {
	case <-log.leading:
	case err := <-done:
		t.Fatalf("it ended: %v", err)
	}
	if err := run(t.Context(), args, &bytes.Buffer{}, &bytes.Buffer{}); !errors.Is(err, standalone.ErrInUse) {
		t.Errorf("a second one: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stopped: %v", err)
	}
}

// lines closes leading when the log says so.
type lines struct {
	leading chan struct{}
	seen    bool
}

// Write is called by one goroutine at a time: slog's handlers lock.
func (l *lines) Write(p []byte) (int, error) {
	if !l.seen && bytes.Contains(p, []byte("msg=leading")) {
		l.seen = true
		close(l.leading)
	}
	return len(p), nil
}
