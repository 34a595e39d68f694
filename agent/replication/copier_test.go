package replication

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/agent/storage"
)

// A scriptedCopier copies as the test lets it.
type scriptedCopier struct {
	copies, ends atomic.Int64
	failures     atomic.Int64 // in a row, as GiveUp was told
	steps        chan error   // what each Copy, then Follow returns
}

func (c *scriptedCopier) step(ctx context.Context) error {
	select {
	case err := <-c.steps:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *scriptedCopier) Copy(ctx context.Context, progress func(int)) error {
	c.copies.Add(1)
	progress(10)
	progress(5)
	return c.step(ctx)
}

func (c *scriptedCopier) Follow(ctx context.Context) error { return c.step(ctx) }
func (c *scriptedCopier) End()                             { c.ends.Add(1) }

// followMasterWithoutLog runs a follower of a master that knows no streams; stop
// ends it.
func followMasterWithoutLog(t *testing.T) (f *Follower, c *scriptedCopier, stop func()) {
	t.Helper()
	c = &scriptedCopier{steps: make(chan error)}
	db, err := storage.Open(storage.Options{Dir: t.TempDir(), Logger: quiet, BlockCache: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	f = NewFollower(db, FollowerConfig{
		Self: "a:1", Master: "m:1", Copier: c, Logger: quiet,
		Dial: func(context.Context) (Conn, error) {
			here, there := net.Pipe()
			go func() {
				bufio.NewReader(there).ReadString('\n')
				there.Write([]byte("ERROR\r\n"))
			}()
			return here, nil
		},
		GiveUp: func(_ context.Context, n int, _ time.Duration) { c.failures.Store(int64(n)) },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return f, c, func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
}

// TestMasterWithoutLog: a master that knows no streams is copied, again if that
// failed or something was missed afterwards.
func TestMasterWithoutLog(t *testing.T) {
	f, c, stop := followMasterWithoutLog(t)
	waitFor(t, "a copy", func() bool { return f.Status().RecordsDone == 2 })
	if s := f.Status(); s.Tier != history.TierDump || !s.Connected || s.BytesDone != 15 || s.Reason != "not_supported" {
		t.Errorf("status %+v", s)
	}
	c.steps <- &Error{"dump_interrupted", errors.New("broke off")}
	waitFor(t, "the second copy", func() bool { return c.copies.Load() == 2 })
	if s := f.Status(); c.failures.Load() != 1 || s.FailedAttempts != 1 || s.Dumps != 0 {
		t.Errorf("%d failures, status %+v", c.failures.Load(), s)
	}
	c.steps <- nil // complete
	waitFor(t, "completion", func() bool { return f.Status().Dumps == 1 })
	c.steps <- &Error{"write_missed", errors.New("missed")}
	waitFor(t, "the third copy", func() bool { return c.copies.Load() == 3 })
	if c.failures.Load() != 1 {
		t.Errorf("%d failures after one copy succeeded", c.failures.Load())
	}
	stop()
	if c.ends.Load() != 0 {
		t.Error("the copier was told that the master streams")
	}
}
