package replication

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
)

// resync orders a catch-up and returns how it ended.
func (n *node) resync(want history.Tier) error {
	n.c.t.Helper()
	outcome, err := n.follower.Resync(want)
	if err != nil {
		return err
	}
	select {
	case err := <-outcome:
		return err
	case <-time.After(30 * time.Second):
		n.c.t.Fatalf("resync by %v does not end: %+v", want, n.follower.Status())
		return nil
	}
}

func TestResync(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	a.put("k", "v")
	b.follow(a)
	b.reached(a)
	waitFor(t, "replica is in sync", func() bool { return c.index.isActive("b:1") })

	for _, want := range []history.Tier{history.TierNone, history.TierWAL} {
		if err := b.resync(want); err != nil {
			t.Errorf("%v: %v", want, err)
		}
		b.wantTier(history.TierWAL, "same_history")
	}
	if err := b.resync(history.TierCheckpoint); err != nil {
		t.Error(err)
	}
	b.wantTier(history.TierCheckpoint, "requested")
	if outcome, err := b.follower.Resync(history.TierRewind); err != nil {
		t.Error(err)
	} else if err := <-outcome; reasonOf(err) != reasonTierNotPossible {
		t.Errorf("rewind of what has not diverged: %v", err)
	}
	waitFor(t, "it is connected again", func() bool { return b.follower.Status().Connected })
	if err := b.resync(history.TierDump); reasonOf(err) != reasonTierNotPossible {
		t.Errorf("dump from a master that streams: %v", err)
	}
	s := b.follower.Status()
	if s.WALCatchUps != 4 || s.Checkpoints != 1 || s.FailedAttempts != 1 || !s.Connected || s.ErrorReason != "" {
		t.Errorf("orders that are carried out count as failures, or not at all: %+v", s)
	}
	// It goes on as before.
	a.put("k", "w")
	b.reached(a)
	if b.get("k") != "w" {
		t.Errorf("k=%q", b.get("k"))
	}
	b.unfollow()
	if err := b.resync(history.TierWAL); reasonOf(err) != reasonNotReplica {
		t.Errorf("of one that follows nobody: %v", err)
	}
}

// A tier that cannot do it is refused by the master, and the replica then catches up
// in its own way.
func TestResyncByAnImpossibleTier(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	a.put("k", "1")
	b.reached(a)
	b.unfollow()
	a.purge()
	a.disconnect(true)
	b.follow(a)
	outcome, err := b.follower.Resync(history.TierWAL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.follower.Resync(history.TierNone); reasonOf(err) != reasonAlreadyRunning {
		t.Errorf("a second order: %v", err)
	}
	// The attempts until the master can be reached may be those of the order.
	a.disconnect(false)
	err = <-outcome
	for reasonOf(err) == "connection_failed" {
		err = b.resync(history.TierWAL)
	}
	if reasonOf(err) != reasonTierNotPossible {
		t.Errorf("the log is purged: %v", err)
	}
	b.reached(a)
	b.wantTier(history.TierCheckpoint, "purged")
}

func TestResyncFromAMasterWithoutLog(t *testing.T) {
	f, copier, stop := followMasterWithoutLog(t)
	defer stop()
	waitFor(t, "a copy", func() bool { return f.Status().RecordsDone == 2 })
	if _, err := f.Resync(history.TierDump); reasonOf(err) != reasonAlreadyRunning {
		t.Errorf("while a copy runs: %v", err)
	}
	copier.steps <- nil // complete
	waitFor(t, "completion", func() bool { return f.Status().Dumps == 1 })
	if _, err := f.Resync(history.TierCheckpoint); reasonOf(err) != reasonTierNotPossible {
		t.Errorf("files of a master that has none of ours: %v", err)
	}
	outcome, err := f.Resync(history.TierDump)
	if err != nil {
		t.Fatal(err)
	}
	copier.steps <- nil
	if err := <-outcome; err != nil || copier.copies.Load() != 2 {
		t.Errorf("%v after %d copies", err, copier.copies.Load())
	}
}

// Both sides tell how far a copy is, and the end of it.
func TestProgressOfACopy(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	const rate = 1 << 20
	a.src.cfg.CopyBandwidth = func() int64 { return rate }
	a.lead(1, "b:1")
	value := make([]byte, 64<<10)
	for i := range 24 { // does not compress
		rand.Read(value)
		a.put(fmt.Sprint("k", i), string(value))
	}
	a.purge()
	began := time.Now()
	b.follow(a)
	middle := func(p Progress) bool {
		return p.Phase == PhaseCopy && p.BytesDone > p.BytesTotal/2 && p.BytesDone < p.BytesTotal && p.ETA >= 0
	}
	check := func(name string, p Progress) {
		t.Helper()
		if p.Tier != history.TierCheckpoint || p.Reason != "empty" || p.Since.Before(began) || p.BytesTotal < 24*64<<10 ||
			p.Rate < rate/2 || p.Rate > 2*rate {
			t.Errorf("%s: %+v", name, p)
		}
	}
	waitFor(t, "the master is in the middle of it", func() bool {
		r := a.src.Replicas()
		return len(r) == 1 && middle(r[0].Progress)
	})
	check("master", a.src.Replicas()[0].Progress)
	waitFor(t, "the replica is in the middle of it", func() bool { return middle(b.follower.Status().Progress) })
	check("replica", b.follower.Status().Progress)
	b.reached(a)
	waitFor(t, "nothing is under way", func() bool {
		return b.follower.Status().Progress.Phase == PhaseNone && a.src.Replicas()[0].Progress.Phase == PhaseNone
	})
}

// While a replica reads the log, batches are counted against those that it lacks.
func TestProgressOfTheLog(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.src.cfg.StreamBandwidth = func() int64 { return 400 << 10 }
	a.lead(1, "b:1")
	value := string(bytes.Repeat([]byte("v"), 10<<10))
	for i := range 60 {
		a.put(fmt.Sprint("k", i), value)
	}
	b.follow(a)
	var seen Progress
	waitFor(t, "the replica is in the middle of it", func() bool {
		seen = b.follower.Status().Progress
		return seen.Phase == PhaseLog && seen.BatchesDone > 20 && seen.ETA >= 0
	})
	if seen.BatchesAll != 61 || seen.BatchesDone >= 61 || seen.Tier != history.TierWAL ||
		seen.BytesTotal < 500<<10 || seen.BytesTotal > 800<<10 {
		t.Errorf("%+v", seen)
	}
	b.reached(a)
	waitFor(t, "nothing is under way", func() bool {
		return b.follower.Status().Progress.Phase == PhaseNone && a.src.Replicas()[0].Progress.Phase == PhaseNone
	})
}

// A node that stops following ends what was ordered.
func TestResyncEndsWithItsFollower(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	b.reached(a)
	a.disconnect(true)
	waitFor(t, "the connection is lost", func() bool { return !b.follower.Status().Connected })
	outcome, err := b.follower.Resync(history.TierCheckpoint)
	if err != nil {
		t.Fatal(err)
	}
	b.unfollow()
	if err := <-outcome; err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
}

// A diverged replica can be told to rewind, and to copy instead.
func TestResyncOfADivergedReplica(t *testing.T) {
	for _, want := range []history.Tier{history.TierRewind, history.TierCheckpoint} {
		c := newCluster(t, "a:1", "b:1")
		a, b := c.nodes["a:1"], c.nodes["b:1"]
		a.lead(1, "b:1")
		b.follow(a)
		a.put("k", "shared")
		b.reached(a)
		b.unfollow()
		a.put("k", "never replicated")
		a.src.StepDown()
		b.disconnect(true)
		b.lead(2, "a:1")
		b.put("k", "new")
		a.follow(b)
		waitFor(t, "it cannot connect", func() bool { return a.follower.Status().FailedAttempts > 0 })
		var err error
		for range 50 { // the first attempts may be before the master can be reached
			outcome, refused := a.follower.Resync(want)
			if refused != nil {
				t.Fatal(refused)
			}
			b.disconnect(false)
			if err = <-outcome; err == nil {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if s := a.follower.Status(); s.Tier != want {
			t.Errorf("caught up by %v (%s), want %v", s.Tier, s.Reason, want)
		}
		a.reached(b)
		if a.get("k") != "new" {
			t.Errorf("%v: k=%q", want, a.get("k"))
		}
	}
}
