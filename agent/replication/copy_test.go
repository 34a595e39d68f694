package replication

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/agent/storage"
)

// countingLog counts the checkpoints that are made.
type countingLog struct {
	*storage.DB
	snapshots atomic.Int64
}

func (l *countingLog) Snapshot() (history.Snapshot, error) {
	l.snapshots.Add(1)
	return l.DB.Snapshot()
}

// copyMaster makes a master whose log begins too late for anybody, with about so
// many bytes that cannot be compressed, in several files.
func copyMaster(t *testing.T, c *cluster, size int, slaves ...string) (*node, *countingLog) {
	t.Helper()
	a := c.nodes["a:1"]
	log := &countingLog{DB: a.db}
	a.src.log = log
	a.lead(1, slaves...)
	const files = 4
	random := rand.NewChaCha8([32]byte{1})
	value := make([]byte, 16<<10)
	for i := range files {
		for k := range size / files / len(value) {
			random.Read(value)
			a.put(fmt.Sprintf("k%d.%d", i, k), string(value))
		}
		a.archive()
	}
	a.purge()
	return a, log
}

// digest sums up all records of a database.
func digest(t testing.TB, db *storage.DB) string {
	t.Helper()
	sum := sha256.New()
	scan := db.Scan(storage.ScanOptions{})
	for scan.Next(t.Context()) {
		fmt.Fprintf(sum, "%q %+v\n", scan.Key(), scan.Record())
	}
	if err := scan.Err(); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func (n *node) same(other *node) {
	n.c.t.Helper()
	if a, b := digest(n.c.t, n.db), digest(n.c.t, other.db); a != b {
		n.c.t.Errorf("%s has %s, %s has %s", n.key, a, other.key, b)
	}
}

// rate limits what a master sends of checkpoints.
func (n *node) rate(bytes int64) *atomic.Int64 {
	var rate atomic.Int64
	rate.Store(bytes)
	n.src.cfg.CopyBandwidth = rate.Load
	return &rate
}

// copying waits until a part of a copy is there.
func (n *node) copying(part float64) {
	n.c.t.Helper()
	waitFor(n.c.t, "a part of the copy", func() bool {
		s := n.follower.Status()
		return s.BytesTotal > 0 && float64(s.BytesDone) >= part*float64(s.BytesTotal)
	})
}

// TestCopyGoesOnAfterABrokenConnection: the same checkpoint, and nothing of it twice.
func TestCopyGoesOnAfterABrokenConnection(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	b := c.nodes["b:1"]
	a, log := copyMaster(t, c, 2<<20, "b:1")
	rate := a.rate(4 << 20)
	b.follow(a)
	for _, part := range []float64{0.3, 0.7} {
		b.copying(part)
		rate.Store(64 << 10) // so that it does not come to its end meanwhile
		before := a.accepted.Load()
		a.disconnect(false)
		waitFor(t, "it connects anew", func() bool { return a.accepted.Load() > before && b.follower.Status().Connected })
		rate.Store(4 << 20)
	}
	rate.Store(0)
	b.reached(a)
	b.same(a)
	s := b.follower.Status()
	if s.Checkpoints != 1 || log.snapshots.Load() != 1 {
		t.Errorf("%d checkpoints of %d made, %+v", s.Checkpoints, log.snapshots.Load(), s)
	}
	if total := s.CopiedBytes + s.ResumedBytes; s.ResumedBytes < total*6/10 {
		t.Errorf("%d of %d bytes were sent after the last interruption", s.CopiedBytes, total)
	}
	waitFor(t, "the checkpoint is gone", func() bool { return len(glob(t, a.db.Dir(), "checkpoint.*")) == 0 })
}

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestCopyGoesOnAfterARestart: of the replica, which reads again what it has.
func TestCopyGoesOnAfterARestart(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	b := c.nodes["b:1"]
	a, log := copyMaster(t, c, 2<<20, "b:1")
	rate := a.rate(4 << 20)
	b.follow(a)
	b.copying(0.5)
	b.halt()
	b = c.add("b:1", b.db.Dir())
	rate.Store(0)
	b.follow(a)
	b.reached(a)
	b.same(a)
	if s := b.follower.Status(); s.ResumedBytes < (s.CopiedBytes+s.ResumedBytes)*4/10 || log.snapshots.Load() != 1 {
		t.Errorf("%d checkpoints made, %+v", log.snapshots.Load(), s)
	}
	if left := glob(t, b.db.Dir(), "*"); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
}

// TestCopyReusesFilesOfAnotherCheckpoint: a master that does not have the checkpoint
// any more makes another one, but the files that are in both are not sent again.
func TestCopyReusesFilesOfAnotherCheckpoint(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	b := c.nodes["b:1"]
	a, log := copyMaster(t, c, 2<<20, "b:1")
	rate := a.rate(4 << 20)
	b.follow(a)
	b.copying(0.5)
	a.src.StepDown()
	waitFor(t, "the checkpoint is gone", func() bool { return len(glob(t, a.db.Dir(), "checkpoint.*")) == 0 })
	a.put("another", "record")
	rate.Store(0)
	a.remap(1, "b:1")
	b.reached(a)
	b.same(a)
	if s := b.follower.Status(); s.ResumedBytes < (s.CopiedBytes+s.ResumedBytes)*3/10 || log.snapshots.Load() != 2 {
		t.Errorf("%d checkpoints made, %+v", log.snapshots.Load(), s)
	}
}

// TestInterruptedCopyIsKeptForAWhile: with the log behind it, and no longer.
func TestInterruptedCopyIsKeptForAWhile(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	b := c.nodes["b:1"]
	a, log := copyMaster(t, c, 1<<20, "b:1")
	a.src.copyPatience = 300 * time.Millisecond
	rate := a.rate(1 << 20)
	b.follow(a)
	b.copying(0.2)
	b.unfollow()
	waitFor(t, "it is kept", func() bool {
		a.src.mu.Lock()
		defer a.src.mu.Unlock()
		return len(a.src.outgoing) == 1
	})
	waitFor(t, "it is gone", func() bool { return len(glob(t, a.db.Dir(), "checkpoint.*")) == 0 })
	rate.Store(0)
	b.follow(a)
	b.reached(a)
	b.same(a)
	if log.snapshots.Load() != 2 {
		t.Errorf("%d checkpoints made", log.snapshots.Load())
	}
}

// TestCopyHoldsTheLogItNeeds: what is written during the copy comes from the log,
// however soon logs are too old.
func TestCopyHoldsTheLogItNeeds(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	b := c.nodes["b:1"]
	a, log := copyMaster(t, c, 1<<20, "b:1")
	rate := a.rate(1 << 20)
	b.follow(a)
	b.copying(0.2)
	for i := range 3 {
		a.put(fmt.Sprint("meanwhile", i), "v")
		a.archive()
		a.db.SetRetention(time.Nanosecond, 0)
	}
	a.disconnect(false) // the hold outlives the connection
	rate.Store(0)
	b.reached(a)
	b.same(a)
	if s := b.follower.Status(); s.Checkpoints != 1 || log.snapshots.Load() != 1 {
		t.Errorf("%d checkpoints made, %+v", log.snapshots.Load(), s)
	}
}

// smallDisk is a database on a disk with so many bytes free.
type smallDisk struct {
	*storage.DB
	free atomic.Int64
}

func (d *smallDisk) Space() (int64, int64, error) { return d.free.Load(), 100, nil }

// TestCopyThatDoesNotFitIsRefused: before a byte of it is written, with both numbers;
// the same checkpoint is taken when there is room.
func TestCopyThatDoesNotFitIsRefused(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	b := c.nodes["b:1"]
	b.lead(1)
	b.put("old", "data")
	b.src.StepDown()
	before := digest(t, b.db)
	a, log := copyMaster(t, c, 1<<20, "b:1")
	disk := &smallDisk{DB: b.db}
	disk.free.Store(200_000)
	b.store = disk
	b.follow(a)
	waitFor(t, "the refusal", func() bool { return b.follower.Status().FailedAttempts >= 2 })
	s := b.follower.Status()
	if s.ErrorReason != "disk_full" || !strings.Contains(s.Error, "200000 bytes are free, 1") || !strings.Contains(s.Error, "100 to stay free") {
		t.Errorf("%s: %s", s.ErrorReason, s.Error)
	}
	if got := digest(t, b.db); got != before {
		t.Error("data were changed")
	}
	if left := glob(t, b.db.Dir(), "incoming/*"); len(left) > 0 {
		t.Errorf("written: %v", left)
	}
	disk.free.Store(1 << 40)
	b.reached(a)
	b.same(a)
	if log.snapshots.Load() != 1 {
		t.Errorf("%d checkpoints made", log.snapshots.Load())
	}
}

// TestBandwidth: files and log come at the rates that were asked for.
func TestBandwidth(t *testing.T) {
	const rate, size = 2 << 20, 3 << 20
	// within judges what came since a time: no machine may be too fast, but one may
	// have had no time.
	within := func(what string, bytes uint64, began time.Time) {
		t.Helper()
		took := time.Since(began)
		if got := float64(bytes) / took.Seconds(); got < rate*0.25 || got > rate*1.15 {
			t.Errorf("%s: %d bytes in %v are %.0f/s, want %d", what, bytes, took, got, rate)
		}
	}
	c := newCluster(t, "a:1", "b:1")
	b := c.nodes["b:1"]
	a, _ := copyMaster(t, c, size, "b:1")
	a.rate(rate)
	a.src.cfg.StreamBandwidth = func() int64 { return rate }
	b.follow(a)
	b.copying(0.01)
	began := time.Now()
	from := b.follower.Status().BytesDone
	b.copying(0.98)
	within("checkpoint", b.follower.Status().BytesDone-from, began)
	b.reached(a)

	b.unfollow()
	value := make([]byte, 16<<10)
	first := a.db.Position().LSN.Index
	for i := range size / len(value) {
		a.put(fmt.Sprint("w", i), string(value))
	}
	b.follow(a)
	waitFor(t, "batches", func() bool { return b.db.Position().LSN.Index > first })
	began = time.Now()
	from = b.db.Position().LSN.Index
	b.reached(a)
	within("log", (b.db.Position().LSN.Index-from)*uint64(len(value)), began)
}

// TestCopiesTakeTurns: so many at a time as the option says, now, and the others in
// the order in which they came.
func TestCopiesTakeTurns(t *testing.T) {
	c := newCluster(t, "a:1", "b:1", "c:1", "d:1", "e:1")
	a, _ := copyMaster(t, c, 1<<20, "b:1", "c:1", "d:1", "e:1")
	var most atomic.Int64
	most.Store(2)
	a.src.cfg.MaxCopies = func() int { return int(most.Load()) }
	rate := a.rate(64 << 10)
	for _, key := range []string{"b:1", "c:1", "d:1", "e:1"} {
		n := c.nodes[key]
		n.follow(a)
		waitFor(t, key+" has its place", func() bool {
			s := n.follower.Status()
			return s.BytesDone > 0 || s.WaitingPosition > 0
		})
	}
	waits := func(key string, position int) {
		t.Helper()
		waitFor(t, fmt.Sprintf("%s waits at %d", key, position), func() bool {
			s := c.nodes[key].follower.Status()
			return s.WaitingPosition == position && (s.Waiting == noticeCopies) == (position > 0) && (position > 0 || s.BytesDone > 0)
		})
	}
	waits("b:1", 0)
	waits("c:1", 0)
	waits("d:1", 1)
	waits("e:1", 2)
	c.nodes["d:1"].unfollow()
	waits("e:1", 1)
	most.Store(3)
	waits("e:1", 0)
	rate.Store(0)
	for _, key := range []string{"b:1", "c:1", "e:1"} {
		c.nodes[key].reached(a)
	}
	c.nodes["b:1"].same(a)
}

// TestStalledReceiverLosesItsTurn: one that says that it is alive but takes nothing,
// or does not say what it has.
func TestStalledReceiverLosesItsTurn(t *testing.T) {
	for _, answers := range []bool{true, false} {
		t.Run(fmt.Sprint("answers=", answers), func(t *testing.T) {
			c := newCluster(t, "a:1", "b:1")
			b := c.nodes["b:1"]
			a, _ := copyMaster(t, c, 2<<20, "b:1")
			var refused Refusals
			a.tune(func() {
				a.src.stall, a.sendBuffer = 300*time.Millisecond, 32<<10
				a.src.cfg.Refusals = &refused
			})

			conn, err := net.Dial("tcp", a.lis.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.(*net.TCPConn).SetReadBuffer(4 << 10)
			r := bufio.NewReaderSize(conn, 16)
			conn.Write(AppendRequest(nil, FollowRequest{Self: "x:1"}))
			r.ReadString('\n')
			writeFrame(conn, frameHello, hello{partition: -1}.encode())
			writeFrame(conn, frameResume, appendString(nil, ""))
			for {
				ft, _, err := readFrame(r)
				if err != nil {
					t.Fatal(err)
				}
				if ft == frameCheckpointBegin {
					break
				}
			}
			if answers {
				writeFrame(conn, frameHave, encodeHave(nil))
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for writeFrame(conn, frameAlive, nil) == nil {
					time.Sleep(20 * time.Millisecond)
				}
			}()
			b.follow(a)
			b.reached(a)
			b.same(a)
			if refused.Counted("stalled_receiver") != 1 {
				t.Error("not counted")
			}
			conn.Close()
			<-done
		})
	}
}

// TestCopyCrashPoints: whatever is on the disk after any step of a copy, the replica
// starts with its old database, and with what it has of the copy ends with the new.
func TestCopyCrashPoints(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	b := c.nodes["b:1"]
	b.lead(1)
	b.put("old", "data")
	b.src.StepDown()
	before := digest(t, b.db)
	a, _ := copyMaster(t, c, 256<<10, "b:1")

	// The copy, frame by frame, as the master sends it.
	var images []string
	image := func() {
		dir := filepath.Join(t.TempDir(), "image")
		if out, err := exec.Command("cp", "-a", b.db.Dir(), dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		images = append(images, dir)
	}
	snap, err := a.db.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	dir, _, err := b.db.Incoming()
	if err != nil {
		t.Fatal(err)
	}
	image()
	r := &copyReceiver{dir: dir, known: map[string]filePart{}}
	step := func(ft frameType, payload []byte) {
		t.Helper()
		if err := r.take([]any{ft, payload}); err != nil {
			t.Fatal(err)
		}
		image()
	}
	step(frameCheckpointBegin, checkpointBegin{"id", snap.LSN, snap.Files}.encode())
	if err := b.db.NameIncoming("id"); err != nil {
		t.Fatal(err)
	}
	image()
	for _, f := range snap.Files {
		data, err := os.ReadFile(filepath.Join(snap.Dir, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		step(frameFileBegin, fileBegin{f.Name, uint64(f.Size), 0}.encode())
		for _, half := range []string{string(data[:len(data)/2]), string(data[len(data)/2:])} {
			step(frameFileData, []byte(half))
		}
		end := endFrame(string(data))
		step(end[0].(frameType), end[1].([]byte))
	}
	step(frameCheckpointDone, nil)
	b.halt()

	resumed := uint64(0)
	for i, dir := range images {
		b = c.add("b:1", dir)
		if got := digest(t, b.db); got != before {
			t.Fatalf("after step %d the old database is another", i)
		}
		if i%5 == 0 || i == len(images)-1 {
			b.follow(a)
			b.reached(a)
			b.same(a)
			s := b.follower.Status()
			if s.ResumedBytes < resumed {
				t.Errorf("after step %d %d bytes need not come, before it %d", i, s.ResumedBytes, resumed)
			}
			resumed = s.ResumedBytes
		}
		b.halt()
	}
	if resumed == 0 {
		t.Error("nothing was gone on with")
	}
}
