package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/sidecar"
)

func TestFlags(t *testing.T) {
	got, err := parse([]string{"--socket=/s", "--config-dir=/c", "--node=n-0.nodes:12121", "--controller=c:13120", "--zone="}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := flags{settings: sidecar.Settings{Socket: "/s", ConfigDir: "/c", Node: "n-0.nodes:12121", Controller: "c:13120"},
		listen: ":13121", http: ":8080", metrics: ":9090", logFormat: "json"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		out  string
	}{
		{"version", []string{"--version"}, exitOK, "flare-agent " + version + "\n"},
		{"help", []string{"--help"}, exitOK, ""},
		{"no node", nil, exitUsage, "--node is required"},
		{"unknown flag", []string{"--nod=x"}, exitUsage, "not defined: -nod"},
		{"argument", []string{"--node=n:1", "start"}, exitUsage, `unexpected argument "start"`},
		{"log format", []string{"--node=n:1", "--log-format=xml"}, exitUsage, `--log-format is "xml"`},
		{"bad node", []string{"--node=n"}, exitError, "want the host:port"},
		{"bad address", []string{"--node=n:1", "--listen=nowhere"}, exitError, "--listen"},
	} {
		var out, errOut bytes.Buffer
		if code := run(t.Context(), c.args, &out, &errOut); code != c.code || !strings.Contains(out.String()+errOut.String(), c.out) {
			t.Errorf("%s: exit code %d, %s%s", c.name, code, out.String(), errOut.String())
		}
	}
}

// syncBuffer is written by the log and read by the test.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestEndsWithZeroWhenTold(t *testing.T) {
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log syncBuffer
	code := make(chan int)
	go func() {
		code <- run(ctx, []string{"--node=n:1", "--socket=" + filepath.Join(dir, "s"), "--config-dir=" + dir,
			"--listen=127.0.0.1:0", "--http=127.0.0.1:0", "--metrics=127.0.0.1:0"}, io.Discard, &log)
	}()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(log.String(), "flare-agent starts"); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not start")
		}
	}
	cancel()
	select {
	case got := <-code:
		if got != exitOK {
			t.Errorf("exit code %d:\n%s", got, log.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}
