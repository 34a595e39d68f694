package procs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// What the tests of replication judge by: the records that a node itself holds,
// what writers were told, and how nodes caught up.

// A dump is all that one node holds.
type dump struct {
	records map[string]string
	digest  [sha256.Size]byte // of keys, flags, versions, values, in key order
}

func takeDump(addr string) (*dump, error) {
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := io.WriteString(nc, "dump\r\n"); err != nil {
		return nil, err
	}
	d := &dump{records: map[string]string{}}
	h := sha256.New()
	r := bufio.NewReaderSize(nc, 1<<20)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("dump of %s: %w", addr, err)
		}
		if line == "END\r\n" {
			copy(d.digest[:], h.Sum(nil))
			return d, nil
		}
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "VALUE" {
			return nil, fmt.Errorf("dump of %s: %q", addr, line)
		}
		n, err := strconv.Atoi(f[3])
		if err != nil {
			return nil, fmt.Errorf("dump of %s: %q", addr, line)
		}
		value := make([]byte, n+2)
		if _, err := io.ReadFull(r, value); err != nil {
			return nil, fmt.Errorf("dump of %s: %w", addr, err)
		}
		io.WriteString(h, line)
		h.Write(value)
		d.records[f[1]] = string(value[:n])
	}
}

// equal waits until all nodes of a cluster of one partition stand at one position
// and compares what they hold. It returns that.
func equal(t *testing.T, c *Cluster) *dump {
	t.Helper()
	eventually(t, patience, "all nodes are at one position", func() error {
		var at []string
		for _, n := range c.Nodes {
			s := agentStatus(t, n)
			if !s.FlaredAlive {
				return fmt.Errorf("%s is down", n.Addr)
			}
			at = append(at, fmt.Sprintf("%d/%d", s.Flared.GetLsn().GetEpoch(), s.Flared.GetLsn().GetIndex()))
		}
		if len(slices.Compact(slices.Clone(at))) != 1 {
			return fmt.Errorf("they are at %v", at)
		}
		return nil
	})
	var first *dump
	for _, n := range c.Nodes {
		d, err := takeDump(n.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = d
		} else if d.digest != first.digest {
			t.Fatalf("%s and %s are at one position but do not hold the same records (%d and %d)%s",
				c.Nodes[0].Addr, n.Addr, len(first.records), len(d.records), difference(first, d))
		}
	}
	return first
}

func difference(a, b *dump) string {
	var out strings.Builder
	n := 0
	for k, v := range a.records {
		if w, ok := b.records[k]; (!ok || v != w) && n < 10 {
			n++
			fmt.Fprintf(&out, "\n%s: %.40q and %.40q (present %v)", k, v, w, ok)
		}
	}
	for k, w := range b.records {
		if _, ok := a.records[k]; !ok && n < 10 {
			n++
			fmt.Fprintf(&out, "\n%s: absent and %.40q", k, w)
		}
	}
	return out.String()
}

// A writer writes its own keys, one request at a time, and knows what it was told.
// A key whose write was not answered well is not written again: nobody can tell
// when such a write is executed.
type writer struct {
	name  string
	addrs []string

	mu         sync.Mutex
	acked      map[string]int // last value that was acknowledged
	doubtful   map[string]int // value of the last write, which was not
	count      int            // acknowledged
	failed     int            // not acknowledged
	lastAnswer string         // that was not STORED
}

func newWriter(name string, addrs []string) *writer {
	return &writer{name: name, addrs: addrs, acked: map[string]int{}, doubtful: map[string]int{}}
}

// run writes until the context ends.
func (w *writer) run(ctx context.Context) {
	const keys = 50
	generation := [keys]int{}
	var nc net.Conn
	var r *bufio.Reader
	defer func() {
		if nc != nil {
			nc.Close()
		}
	}()
	for i := 0; ctx.Err() == nil; i++ {
		if nc == nil {
			var err error
			if nc, err = net.DialTimeout("tcp", w.addrs[i%len(w.addrs)], time.Second); err != nil {
				nc = nil
				select {
				case <-ctx.Done():
				case <-time.After(10 * time.Millisecond):
				}
				continue
			}
			r = bufio.NewReader(nc)
		}
		k := i % keys
		key, value := fmt.Sprintf("%s:%d:%d", w.name, k, generation[k]), strconv.Itoa(i+1)
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		_, err := fmt.Fprintf(nc, "set %s 0 0 %d\r\n%s\r\n", key, len(value), value)
		answer := ""
		if err == nil {
			answer, err = r.ReadString('\n')
		}
		w.mu.Lock()
		if answer == "STORED\r\n" {
			w.acked[key] = i + 1
			w.count++
		} else {
			w.doubtful[key] = i + 1
			w.failed++
			generation[k]++
			w.lastAnswer = strings.TrimSpace(answer)
		}
		w.mu.Unlock()
		if err != nil {
			nc.Close()
			nc = nil
		} else if answer != "STORED\r\n" {
			select { // refused: do not ask all the time
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

// lost returns the keys whose acknowledged values are not in the dump.
func (w *writer) lost(d *dump) (lost []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, value := range w.acked {
		have := d.records[key]
		if have != strconv.Itoa(value) && (w.doubtful[key] == 0 || have != strconv.Itoa(w.doubtful[key])) {
			lost = append(lost, fmt.Sprintf("%s: acknowledged %d, there is %q", key, value, have))
		}
	}
	return lost
}

func (w *writer) counts() (acked, failed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count, w.failed
}

// load runs writers through all nodes until stop is called.
func load(t *testing.T, c *Cluster, writers int, generation string) (ws []*writer, stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for i := range writers {
		var addrs []string
		for k := range c.Nodes {
			addrs = append(addrs, c.Nodes[(i+k)%len(c.Nodes)].Addr)
		}
		w := newWriter(fmt.Sprintf("w%s.%d", generation, i), addrs)
		ws = append(ws, w)
		group.Go(func() { w.run(ctx) })
	}
	return ws, func() {
		cancel()
		group.Wait()
	}
}

// pipelined stores n records through one connection, as fast as it goes.
func pipelined(t *testing.T, addr, prefix string, n, size int) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	r := bufio.NewReaderSize(nc, 64<<10)
	value := bytes.Repeat([]byte("v"), size)
	const burst = 500
	for at := 0; at < n; at += burst {
		var out bytes.Buffer
		count := min(burst, n-at)
		for i := range count {
			fmt.Fprintf(&out, "set %s%d 0 0 %d\r\n%s\r\n", prefix, at+i, size, value)
		}
		nc.SetDeadline(time.Now().Add(60 * time.Second))
		if _, err := nc.Write(out.Bytes()); err != nil {
			t.Fatal(err)
		}
		for range count {
			if answer, err := r.ReadString('\n'); err != nil || answer != "STORED\r\n" {
				t.Fatalf("write through %s: %q, %v", addr, answer, err)
			}
		}
	}
}

// ready waits until all nodes are in sync.
func ready(t *testing.T, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// replicas returns the nodes of a cluster of one partition without its master.
func replicas(t *testing.T, c *Cluster) (rs []*Node) {
	t.Helper()
	m := master(t, c, 0)
	for _, n := range c.Nodes {
		if n != m {
			rs = append(rs, n)
		}
	}
	return rs
}

// leftBehind waits until the index has taken the node out of sync.
func leftBehind(t *testing.T, c *Cluster, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := c.WaitFor(ctx, func(top *controllerv1.Topology) bool {
		return !slices.Contains(top.Partitions[0].InSyncReplicas, n.Addr)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// cameBackBy checks how a node caught up since its process started.
func cameBackBy(t *testing.T, n *Node, tier agentv1.Tier) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("%s tells how it caught up", n.Addr), func() error {
		s := agentStatus(t, n).Flared
		counts := s.GetCatchUpCounts()
		copies := counts.GetCheckpoint() + counts.GetDump()
		want := uint64(0)
		if tier == agentv1.Tier_TIER_CHECKPOINT {
			want = 1
		}
		if s.GetCatchUp().GetTier() != tier || copies != want {
			return fmt.Errorf("by %v, with %v; want %v", s.GetCatchUp().GetTier(), counts, tier)
		}
		return nil
	})
}

// newestWAL returns the log file that a stopped node wrote last.
func newestWAL(dataDir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dataDir, "db", "*.log"))
	if err != nil {
		return "", err
	}
	if len(files) == 0 {
		return "", errors.New("there is no log file in " + dataDir)
	}
	slices.Sort(files) // numbers of six digits
	return files[len(files)-1], nil
}

// logged returns what a process has logged since an offset.
func logged(p *Process, from int64) string {
	b, err := os.ReadFile(p.LogFile)
	if err != nil || int64(len(b)) < from {
		return ""
	}
	return string(b[from:])
}

func logSize(p *Process) int64 {
	info, err := os.Stat(p.LogFile)
	if err != nil {
		return 0
	}
	return info.Size()
}
