package main

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/storage"
)

// notice is closed by the first line of a log that contains word.
type notice struct {
	word string
	once sync.Once
	seen chan struct{}
}

func (n *notice) Write(p []byte) (int, error) {
	if strings.Contains(string(p), n.word) {
		n.once.Do(func() { close(n.seen) })
	}
	return len(p), nil
}

// A node that starts while its predecessor still has the volume waits for it,
// and can be ended meanwhile.
func TestOpenDatabaseWaitsForThePredecessor(t *testing.T) {
	opts := options.Default()
	opts.DataDir = t.TempDir()
	before, err := openDatabase(opts, nil, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	waiting := &notice{word: "waiting for another process", seen: make(chan struct{})}
	logger := slog.New(slog.NewTextHandler(waiting, nil))
	signals := make(chan os.Signal, 2)
	type opened struct {
		db  *storage.DB
		err error
	}
	result := make(chan opened, 1)
	open := func() {
		db, err := openDatabase(opts, signals, logger)
		result <- opened{db, err}
	}
	await := func() opened {
		select {
		case r := <-result:
			return r
		case <-time.After(20 * time.Second):
			t.Fatal("still waiting")
			panic("unreachable")
		}
	}

	go open()
	<-waiting.seen
	signals <- syscall.SIGHUP
	signals <- syscall.SIGTERM
	if r := await(); !errors.Is(r.err, storage.ErrLocked) || !strings.Contains(r.err.Error(), "terminated") {
		t.Errorf("ended while waiting: %v", r.err)
	}

	go open()
	if err := before.Close(); err != nil {
		t.Error(err)
	}
	r := await()
	if r.err != nil {
		t.Fatalf("after the predecessor let go: %v", r.err)
	}
	if err := r.db.Close(); err != nil {
		t.Error(err)
	}
}
