package procs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flarekv/flare/agent/backup"
	"github.com/flarekv/flare/agent/storage"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// restore runs flared restore and returns what it prints.
func restore(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(binDir, "flared"), append([]string{"restore"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("flared restore %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// createCheckpoint makes a backup on a node through its agent and waits for it.
func createCheckpoint(t *testing.T, n *Node, req *agentv1.CreateCheckpointRequest) (b *agentv1.Backup, steps int) {
	t.Helper()
	conn, err := grpc.NewClient(n.AgentAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := agentv1.NewAgentServiceClient(conn).CreateCheckpoint(ctx, req)
	for err == nil {
		var m *agentv1.CreateCheckpointResponse
		if m, err = stream.Recv(); err == nil {
			b = m.GetProgress().GetBackup()
			steps++
		}
	}
	if !errors.Is(err, io.EOF) || !b.GetComplete() {
		t.Fatalf("backup %v: %v", b, err)
	}
	return b, steps
}

// recordsOf reads every record of a backup.
func recordsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	data := t.TempDir()
	if _, err := backup.Restore(t.Context(), backup.Restoration{From: dir, DataDir: data}, nil); err != nil {
		t.Fatal(err)
	}
	db, err := storage.Open(storage.Options{Dir: data, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	records := map[string]string{}
	scan := db.Scan(storage.ScanOptions{})
	for scan.Next(t.Context()) {
		records[string(scan.Key())] = string(scan.Record().Value)
	}
	if err := scan.Err(); err != nil {
		t.Fatal(err)
	}
	return records
}

// items is how many records a node has.
func items(t *testing.T, n *Node) int {
	t.Helper()
	m := regexp.MustCompile(`(?m)^STAT curr_items (\d+)`).FindStringSubmatch(stats(t, n.Addr))
	if m == nil {
		t.Fatalf("%s tells no number of records", n.Addr)
	}
	count, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// TestBackupAndRestore takes a backup of a master under load, lets a replica go back
// to it, then loses every node and brings the partition back from it.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Partitions: 1, Replicas: 2})
	owner := master(t, c, 0)
	other := c.Nodes[0]
	if other == owner {
		other = c.Nodes[1]
	}
	random := make([]byte, 1500)
	rand.Read(random) // does not compress
	value := hex.EncodeToString(random)
	m := client(owner.Addr)
	defer m.Close()
	for i := range 300 {
		if err := m.Set(&memcache.Item{Key: fmt.Sprint("before:", i), Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
	}

	// Each writer's keys follow each other: a copy of one position has all up to some
	// key and none behind it.
	const writers = 3
	var wrote [writers]int
	stop := make(chan struct{})
	var wg sync.WaitGroup
	halt := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer halt()
	var mu sync.Mutex
	counts := func() (n [writers]int) {
		mu.Lock()
		defer mu.Unlock()
		return wrote
	}
	for w := range writers {
		wg.Go(func() {
			m := client(owner.Addr)
			defer m.Close()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := m.Set(&memcache.Item{Key: fmt.Sprintf("load:%d:%d", w, i), Value: []byte(fmt.Sprint(i))}); err != nil {
					t.Errorf("under load: %v", err)
					return
				}
				mu.Lock()
				wrote[w] = i + 1
				mu.Unlock()
			}
		})
	}
	eventually(t, patience, "some load", func() error {
		if n := counts(); n[0] < 20 || n[1] < 20 || n[2] < 20 {
			return fmt.Errorf("%v", n)
		}
		return nil
	})
	least := counts()
	b, steps := createCheckpoint(t, owner, &agentv1.CreateCheckpointRequest{Directory: "b", BytesPerSecond: 300_000})
	if steps < 3 {
		t.Errorf("a copy of %d bytes at 300000 a second told %d steps", b.GetBytes(), steps)
	}
	eventually(t, patience, "load behind the backup", func() error {
		if n := counts(); n[0] < least[0]+50 {
			return fmt.Errorf("%v", n)
		}
		return nil
	})
	halt()
	most := counts()
	want := recordsOf(t, b.GetPath())
	for i := range 300 {
		if want[fmt.Sprint("before:", i)] != value {
			t.Fatalf("the backup lacks before:%d", i)
		}
	}
	total := 300
	for w := range writers {
		n := 0
		for ; want[fmt.Sprintf("load:%d:%d", w, n)] == fmt.Sprint(n); n++ {
		}
		if n < least[w] || n > most[w] {
			t.Errorf("writer %d: the backup has %d keys, %d were acknowledged before it and %d in the end", w, n, least[w], most[w])
		}
		total += n
	}
	if total != len(want) {
		t.Errorf("the backup has %d records, %d of them in order: it is of no single position", len(want), total)
	}
	restore(t, "--from", b.GetPath(), "--check")

	// A replica that goes back to it gets the rest from the log.
	other.Flared.Kill()
	if err := m.Set(&memcache.Item{Key: "after", Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	restore(t, "--from", b.GetPath(), "--data-dir", other.DataDir, "--force")
	if err := other.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	ready, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
	// The controller may know of it before the agent does.
	eventually(t, patience, "the replica caught up by the log", func() error {
		s := agentStatus(t, other).GetFlared()
		if s.GetCatchUp().GetTier() != agentv1.Tier_TIER_WAL || s.GetCatchUpCounts().GetCheckpoint() != 0 {
			return fmt.Errorf("by %v: %v", s.GetCatchUp().GetTier(), s.GetCatchUpCounts())
		}
		return nil
	})
	if got := items(t, other); got != 300+most[0]+most[1]+most[2]+1 {
		t.Errorf("the replica has %d records", got)
	}

	// Everything is lost but the backup.
	c.Controller.Kill()
	for _, n := range c.Nodes {
		n.Flared.Kill()
	}
	keep := filepath.Join(filepath.Dir(owner.DataDir), "kept")
	if err := os.Rename(b.GetPath(), keep); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{owner.DataDir, other.DataDir, filepath.Join(filepath.Dir(c.ConfigDir), "state.json")} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	out := restore(t, "--from", keep, "--data-dir", owner.DataDir, "--new-history")
	id := regexp.MustCompile(`--new-history=([0-9a-f]{32})\n`).FindStringSubmatch(out)
	if id == nil {
		t.Fatalf("no history in %s", out)
	}
	for _, p := range []*Process{c.Controller, owner.Flared, other.Flared} {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
	ready, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
	if got := master(t, c, 0); got != owner {
		t.Errorf("%s became master, the data was restored to %s", got.Addr, owner.Addr)
	}
	for _, n := range c.Nodes {
		eventually(t, patience, "history of "+n.Addr, func() error {
			if got := agentStatus(t, n).GetFlared().GetHistory(); got != id[1] {
				return fmt.Errorf("history %s, want %s", got, id[1])
			}
			return nil
		})
		if got := items(t, n); got != len(want) {
			t.Errorf("%s has %d records, the backup %d", n.Addr, got, len(want))
		}
		m := client(n.Addr)
		for k, v := range want {
			if item, err := m.Get(k); err != nil || string(item.Value) != v {
				t.Fatalf("get %s through %s: %v, %v", k, n.Addr, item, err)
			}
		}
		m.Close()
	}
	again := client(other.Addr)
	defer again.Close()
	if err := again.Set(&memcache.Item{Key: "again", Value: []byte("1")}); err != nil {
		t.Error(err)
	}
}
