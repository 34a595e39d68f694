package procs

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// FLARE_KILL_ROUNDS and FLARE_KILL_SEED say how often the tests of this file kill,
// and which random numbers they do it by. make test-kill sets them.
func killRounds(t *testing.T, short int) (rounds int, rng *rand.Rand) {
	number := func(name string, def uint64) uint64 {
		v := os.Getenv(name)
		if v == "" {
			return def
		}
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	rounds = int(number("FLARE_KILL_ROUNDS", uint64(short)))
	seed := number("FLARE_KILL_SEED", rand.Uint64N(1<<40))
	t.Logf("%d rounds; again with FLARE_KILL_SEED=%d FLARE_KILL_ROUNDS=%d", rounds, seed, rounds)
	return rounds, rand.New(rand.NewPCG(seed, 0))
}

// progress shows a round at once where somebody watches a long run.
func progress(t *testing.T, rounds int, format string, a ...any) {
	if rounds > 20 {
		fmt.Printf("%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, a...))
	} else {
		t.Logf(format, a...)
	}
}

// damage does something to the end of a stopped node's log and tells what, and
// whether the node can see it: what is gone as a whole leaves no trace in the log.
func damage(rng *rand.Rand, n *Node) (what string, visible bool, err error) {
	file, err := newestWAL(n.DataDir)
	if err != nil {
		return "", false, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return "", false, err
	}
	size := info.Size()
	cut := min(size, 1+rng.Int64N(4000))
	kind := rng.IntN(4)
	if size == 0 {
		kind = 3
	}
	switch kind {
	case 0: // within the last record, which is longer
		cut = min(size, 1+cut%40)
		return fmt.Sprintf("log cut by %d bytes", cut), true, os.Truncate(file, size-cut)
	case 1:
		return fmt.Sprintf("log cut by %d bytes", cut), false, os.Truncate(file, size-cut)
	case 2:
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			return "", false, err
		}
		defer f.Close()
		junk := make([]byte, min(16, cut))
		for i := range junk {
			junk[i] = byte(rng.Uint32())
		}
		_, err = f.WriteAt(junk, size-cut)
		return fmt.Sprintf("log garbled %d bytes before its end", cut), true, err
	}
	return fmt.Sprintf("log file of %d bytes removed", size), false, os.Remove(file)
}

// TestKillRounds kills the master or a replica at a random moment under load, round
// by round, often damages the end of its log, and starts it again. In sync mode no
// acknowledged write may be missing afterwards, and all nodes must be equal.
func TestKillRounds(t *testing.T) {
	t.Parallel()
	rounds, rng := killRounds(t, 3)
	c := start(t, Options{Partitions: 1, Replicas: 3})
	var all []*writer
	for round := range rounds {
		ready(t, c)
		victim := c.Nodes[rng.IntN(len(c.Nodes))]
		if rng.IntN(2) == 0 {
			victim = master(t, c, 0)
		}
		role := "replica"
		if victim == master(t, c, 0) {
			role = "master"
		}
		ws, stop := load(t, c, 4, strconv.Itoa(round))
		all = append(all, ws...)
		pause(rng, 50, 800)
		victim.Flared.Kill()
		done, visible := "log untouched", false
		from := logSize(victim.Flared)
		if rng.IntN(2) == 0 {
			var err error
			if done, visible, err = damage(rng, victim); err != nil {
				t.Fatal(err)
			}
		}
		if rng.IntN(2) == 0 { // otherwise it is back before anybody has noticed
			pause(rng, 100, 2500)
		}
		if err := victim.Flared.Start(); err != nil {
			t.Fatal(err)
		}
		pause(rng, 200, 1000)
		stop()
		ready(t, c)
		d := equal(t, c)
		acked, failed := 0, 0
		for _, w := range ws {
			a, f := w.counts()
			acked, failed = acked+a, failed+f
		}
		progress(t, rounds, "round %d: %s %s killed, %s; %d writes acknowledged, %d not", round, role, victim.Addr, done, acked, failed)
		for _, w := range all {
			for _, lost := range w.lost(d) {
				t.Errorf("round %d: %s", round, lost)
			}
		}
		if acked == 0 {
			t.Errorf("round %d: nothing was acknowledged", round)
		}
		// What was cut or garbled is told, with positions and bytes.
		if log := logged(victim.Flared, from); visible && !strings.Contains(log, "end of a log file is damaged and dropped") {
			t.Errorf("round %d: %s, which the node does not tell:\n%s", round, done, log)
		}
		if t.Failed() {
			return
		}
	}
}

func pause(rng *rand.Rand, from, to int) {
	<-time.After(time.Duration(from+rng.IntN(to-from)) * time.Millisecond)
}

// TestKillRoundsAsync kills the master under load when writes do not wait for
// replicas. What is lost lies behind the position that the new master had
// acknowledged, and is counted.
func TestKillRoundsAsync(t *testing.T) {
	t.Parallel()
	rounds, rng := killRounds(t, 2)
	c := start(t, Options{Partitions: 1, Replicas: 2, ReplicationMode: "async"})
	begun := regexp.MustCompile(`msg=master .*epoch=(\d+) lsn=(\d+)/(\d+)`)
	for round := range rounds {
		ready(t, c)
		victim := master(t, c, 0)
		other := replicas(t, c)[0]
		ws, stop := load(t, c, 4, strconv.Itoa(round))
		pause(rng, 300, 1200)
		// The lag as it is reported: what the replica has acknowledged.
		reported := uint64(0)
		lag := uint64(0)
		for _, r := range agentStatus(t, victim).Flared.GetReplicas() {
			reported, lag = r.GetAcked().GetIndex(), r.GetLagBatches()
		}
		from := logSize(other.Flared)
		victim.Flared.Kill()
		eventually(t, patience, "a new master", func() error {
			if master(t, c, 0) != other {
				return fmt.Errorf("it is still %s", victim.Addr)
			}
			return nil
		})
		stop()
		var promoted uint64
		eventually(t, patience, "the new master tells where it begins", func() error {
			m := begun.FindStringSubmatch(logged(other.Flared, from))
			if m == nil {
				return fmt.Errorf("not in its log")
			}
			index, err := strconv.ParseUint(m[3], 10, 64)
			promoted = index - 1
			return err
		})
		from = logSize(victim.Flared)
		if err := victim.Flared.Start(); err != nil {
			t.Fatal(err)
		}
		ready(t, c)
		recovered := regexp.MustCompile(`database recovered.* lsn=\d+/(\d+)`).FindStringSubmatch(logged(victim.Flared, from))
		if recovered == nil {
			t.Fatalf("the old master does not tell what it has:\n%s", logged(victim.Flared, from))
		}
		had, err := strconv.ParseUint(recovered[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		d := equal(t, c)
		lost, acked := 0, 0
		for _, w := range ws {
			lost += len(w.lost(d))
			a, _ := w.counts()
			acked += a
		}
		batches := had - min(had, promoted)
		progress(t, rounds, "round %d: %d writes acknowledged, %d lost; the master had %d batches, %d of them nobody else; reported was a lag of %d, %d acknowledged",
			round, acked, lost, had, batches, lag, reported)
		if promoted < reported {
			t.Errorf("round %d: promoted at %d, but had acknowledged %d", round, promoted, reported)
		}
		// A writer has one request under way, so a batch holds at most one of each.
		if uint64(lost) > batches*uint64(len(ws)) {
			t.Errorf("round %d: %d writes are lost with %d batches", round, lost, batches)
		}
		if t.Failed() {
			return
		}
	}
}

// TestMasterWithoutItsLog removes the log of a killed master and starts it again
// at once, before its death was noticed: it must not lead with less than what was
// acknowledged.
func TestMasterWithoutItsLog(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	victim, other := master(t, c, 0), replicas(t, c)[0]
	ws, stop := load(t, c, 4, "")
	pause(rand.New(rand.NewPCG(1, 1)), 500, 501)
	victim.Flared.Kill()
	file, err := newestWAL(victim.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := victim.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the replica leads", func() error {
		if master(t, c, 0) != other {
			return fmt.Errorf("%s leads", victim.Addr)
		}
		return nil
	})
	stop()
	ready(t, c)
	d := equal(t, c)
	acked := 0
	for _, w := range ws {
		a, _ := w.counts()
		acked += a
		for _, lost := range w.lost(d) {
			t.Error(lost)
		}
	}
	if acked == 0 {
		t.Error("nothing was acknowledged")
	}
}

// TestReplicaAwayFor100kWrites kills a replica, writes 100 000 records without it,
// and checks that it comes back by the log alone.
func TestReplicaAwayFor100kWrites(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	m, away := master(t, c, 0), replicas(t, c)[0]
	away.Flared.Kill()
	leftBehind(t, c, away)
	pipelined(t, m.Addr, "away:", 100_000, 64)
	if err := away.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	ready(t, c)
	cameBackBy(t, away, agentv1.Tier_TIER_WAL)
	if d := equal(t, c); len(d.records) < 100_000 {
		t.Errorf("%d records, want 100 000", len(d.records))
	}
}

// TestPurgedLogMeansCheckpoint is the same with a log that is not kept: the
// database is copied, once.
func TestPurgedLogMeansCheckpoint(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	m, away := master(t, c, 0), replicas(t, c)[0]
	pipelined(t, m.Addr, "before:", 1000, 64)
	away.Flared.Kill()
	leftBehind(t, c, away)
	// A database that is opened begins a new log file and archives the former ones.
	for i := range 2 {
		pipelined(t, m.Addr, fmt.Sprintf("away%d:", i), 3000, 1000)
		m.Flared.Kill()
		if err := m.Flared.Start(); err != nil {
			t.Fatal(err)
		}
		cl := client(m.Addr)
		eventually(t, patience, "the master takes writes again", func() error {
			return cl.Set(&memcache.Item{Key: "back", Value: []byte("v")})
		})
		cl.Close()
	}
	if err := c.WriteSpec("  rocksdb:\n    walTtlSeconds: 1\n    walSizeLimitMb: 1\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "old log files go", func() error {
		oldest := regexp.MustCompile(`STAT rocksdb_oldest_lsn (\d+)`).FindStringSubmatch(stats(t, m.Addr))
		if oldest != nil && oldest[1] != "1" {
			return nil
		}
		return fmt.Errorf("the oldest batch is %v", oldest)
	})
	if err := away.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	ready(t, c)
	cameBackBy(t, away, agentv1.Tier_TIER_CHECKPOINT)
	equal(t, c)
}

// TestSiblingContinuesByLog kills a master with two replicas, twice. At rest
// everybody has everything: the replica that is not promoted goes on by the log,
// and so does the old master. Under load one of them may have got a write that the
// promoted one had not; nobody was told of it, and it is undone, key by key. In
// neither case is anything copied.
func TestSiblingContinuesByLog(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 3})
	replaced := func(old *Node) {
		t.Helper()
		eventually(t, patience, "a new master", func() error {
			if master(t, c, 0) == old {
				return fmt.Errorf("still the killed one")
			}
			return nil
		})
	}
	ws, stop := load(t, c, 4, "")
	pause(rand.New(rand.NewPCG(1, 1)), 500, 501)
	stop()
	ready(t, c)
	old := master(t, c, 0)
	old.Flared.Kill()
	replaced(old)
	more, stop := load(t, c, 4, "after")
	if err := old.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	ready(t, c)
	for _, n := range replicas(t, c) {
		cameBackBy(t, n, agentv1.Tier_TIER_WAL)
		if counts := agentStatus(t, n).Flared.GetCatchUpCounts(); counts.GetRewind() > 0 {
			t.Errorf("%s undid writes, though all had been acknowledged: %v", n.Addr, counts)
		}
	}

	second := master(t, c, 0)
	second.Flared.Kill()
	replaced(second)
	stop()
	if err := second.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	ready(t, c)
	for _, n := range replicas(t, c) {
		counts := agentStatus(t, n).Flared.GetCatchUpCounts()
		// A writer waits for one answer at a time.
		if counts.GetCheckpoint()+counts.GetDump() > 0 || counts.GetRewoundKeys() > uint64(len(more)) {
			t.Errorf("%s came back with %v; want no copy, and at most %d keys undone", n.Addr, counts, len(more))
		}
	}
	d := equal(t, c)
	acked := 0
	for _, w := range slices.Concat(ws, more) {
		a, _ := w.counts()
		acked += a
		for _, lost := range w.lost(d) {
			t.Error(lost)
		}
	}
	if acked == 0 {
		t.Error("nothing was acknowledged")
	}
}

// stats returns what a node answers to stats.
func stats(t *testing.T, addr string) string {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(nc, "stats\r\nquit\r\n"); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(nc)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
