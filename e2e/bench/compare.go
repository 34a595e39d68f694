package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/flarekv/flare/e2e/procs"
	"github.com/flarekv/flare/proto/topology"
)

var (
	memcachedArgs = []string{"-t", "2", "-m", "2048", "-c", "1024", "-U", "0"}
	// The cache of records is made to hold what memcached holds. A node without
	// replicas: what is compared is one server.
	flaredArgs = []string{"--record-cache-size-mb=1280"}
)

// bench holds what runs; close ends it.
type bench struct {
	config
	dir   string
	keys  []string
	stops []func()
}

func (b *bench) close() {
	for len(b.stops) > 0 {
		last := len(b.stops) - 1
		b.stops[last]()
		b.stops = b.stops[:last]
	}
}

// flare starts a cluster without replicas and waits until it is ready.
func (b *bench) flare(ctx context.Context, name string, partitions int, spec string) (*procs.Cluster, error) {
	c, err := procs.Start(procs.Options{
		BinDir: b.bin, Dir: filepath.Join(b.dir, name), Partitions: partitions, Replicas: 1,
		Spec: spec, FlaredArgs: flaredArgs,
	})
	if err != nil {
		return nil, err
	}
	b.stops = append(b.stops, func() { c.Stop() })
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		return nil, err
	}
	// The controller knows before the nodes do.
	for _, n := range c.Nodes {
		for _, key := range b.keys[:min(len(b.keys), 16)] {
			if err := awaitStored(ctx, n.Addr, key); err != nil {
				return nil, err
			}
		}
	}
	return c, nil
}

// awaitStored stores a key as soon as the node takes it.
func awaitStored(ctx context.Context, addr, key string) error {
	w := workload{keys: []string{key}, valueLen: 1}
	for {
		err := w.fill(addr)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("node is not ready: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (b *bench) memcached(ctx context.Context) (addr string, pid int, err error) {
	addr, err = freeAddr()
	if err != nil {
		return "", 0, err
	}
	host, port, _ := net.SplitHostPort(addr)
	args := append([]string{"-l", host, "-p", port}, memcachedArgs...)
	if os.Geteuid() == 0 {
		args = append(args, "-u", "nobody")
	}
	cmd := exec.Command("memcached", args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return "", 0, err
	}
	b.stops = append(b.stops, func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			nc.Close()
			return addr, cmd.Process.Pid, nil
		}
		select {
		case <-ctx.Done():
			return "", 0, fmt.Errorf("memcached does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// againstMemcached compares one node with memcached, both with the keys stored.
func (b *bench) againstMemcached(ctx context.Context) error {
	defer b.close()
	first := true
	for _, size := range []int{100, 4096} {
		var lines []workload
		for _, depth := range []int{1, 16} {
			for _, w := range []workload{
				{name: "get", reads: 100, multi: 1},
				{name: "set", multi: 1},
				{name: "mix 90/10", reads: 90, multi: 1},
				{name: "multi-get 16", reads: 100, multi: 16},
			} {
				w.name = fmt.Sprintf("%s, %d B, %d in flight", w.name, size, depth)
				w.depth, w.conns, w.valueLen, w.keys = depth, b.conns, size, b.keys
				if strings.Contains(w.name, b.only) {
					lines = append(lines, w)
				}
			}
		}
		if len(lines) == 0 {
			continue
		}
		peer, peerPID, err := b.memcached(ctx)
		if err != nil {
			return err
		}
		cluster, err := b.flare(ctx, fmt.Sprintf("one%d", size), 1, "")
		if err != nil {
			return err
		}
		subject, pid := cluster.Nodes[0].Addr, cluster.Nodes[0].Flared.PID()
		for _, addr := range []string{subject, peer} {
			if err := lines[0].fill(addr); err != nil {
				return err
			}
		}
		if first {
			b.header("flared", "memcached")
			first = false
		}
		for _, w := range lines {
			err := b.compare(ctx, w.name, targets[strings.Split(w.name, ",")[0]][min(w.depth, 2)-1],
				side{"flared", pid, func(ctx context.Context) (result, error) { return w.run(ctx, subject, b.time) }},
				side{"memcached", peerPID, func(ctx context.Context) (result, error) { return w.run(ctx, peer, b.time) }})
			if err != nil {
				return err
			}
		}
		b.close()
	}
	return nil
}

// targets are the least ratios at one request in flight and at 16.
var targets = map[string][2]float64{
	"get": {0.9, 2.0}, "set": {0.8, 0.3}, "mix 90/10": {0.85, 1.2}, "multi-get 16": {0.7, 0.7},
}

// synced compares sets that wait for the disk with db_bench, which writes to
// RocksDB directly from as many threads as there are connections.
func (b *bench) synced(ctx context.Context) error {
	const name = "synced set, 100 B, 1 in flight"
	if !strings.Contains(name, b.only) {
		return nil
	}
	defer b.close()
	cluster, err := b.flare(ctx, "synced", 1, "  rocksdb:\n    syncWrites: true\n")
	if err != nil {
		return err
	}
	w := workload{name: name, depth: 1, multi: 1, conns: b.conns, valueLen: 100, keys: b.keys}
	b.header("flared", "db_bench")
	return b.compare(ctx, name, 0.8,
		side{"flared", cluster.Nodes[0].Flared.PID(), func(ctx context.Context) (result, error) { return w.run(ctx, cluster.Nodes[0].Addr, b.time) }},
		side{"db_bench", 0, func(ctx context.Context) (result, error) { return b.dbBench(ctx, b.time) }})
}

var opsPerSecond = regexp.MustCompile(`fillrandom\s*:.*?\s(\d+) ops/sec`)

func (b *bench) dbBench(ctx context.Context, d time.Duration) (result, error) {
	seconds := max(1, int(d.Round(time.Second)/time.Second))
	cmd := exec.CommandContext(ctx, "db_bench", "--benchmarks=fillrandom", "--sync=true",
		"--threads="+strconv.Itoa(b.conns), "--duration="+strconv.Itoa(seconds), "--num="+strconv.Itoa(len(b.keys)),
		"--key_size="+strconv.Itoa(len(b.keys[0])), "--value_size=100", "--compression_type=lz4",
		"--db="+filepath.Join(b.dir, "db_bench"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("%w: %s", err, out)
	}
	m := opsPerSecond.FindSubmatch(out)
	if m == nil {
		return result{}, fmt.Errorf("no rate in %q", out)
	}
	n, err := strconv.ParseUint(string(m[1]), 10, 64)
	return result{ops: n, elapsed: time.Second}, err
}

// wrongNode compares requests for one partition's keys through the other
// partition's node, which forwards them, with those through their own.
func (b *bench) wrongNode(ctx context.Context) error {
	if !strings.Contains("wrong node", b.only) && !strings.Contains(b.only, "wrong") {
		return nil
	}
	defer b.close()
	cluster, err := b.flare(ctx, "two", 2, "")
	if err != nil {
		return err
	}
	t, err := cluster.Topology(ctx)
	if err != nil {
		return err
	}
	resolver, err := topology.NewResolver(topology.DefaultMeta())
	if err != nil {
		return err
	}
	var keys []string
	for _, k := range b.keys {
		if resolver.Partition([]byte(k), 2) == 1 {
			keys = append(keys, k)
		}
	}
	right, wrong := t.Partitions[1].Master, t.Partitions[0].Master
	if right == "" || wrong == "" || right == wrong {
		return errors.New("the two partitions do not have a master each")
	}
	b.header("wrong", "right")
	for i, depth := range []int{1, 16} {
		for _, w := range []workload{{name: "get", reads: 100}, {name: "set"}} {
			w.name = fmt.Sprintf("wrong node: %s, 100 B, %d in flight", w.name, depth)
			w.depth, w.multi, w.conns, w.valueLen, w.keys = depth, 1, b.conns, 100, keys
			if i == 0 && w.reads > 0 {
				if err := w.fill(right); err != nil {
					return err
				}
			}
			err := b.compare(ctx, w.name, 0.5,
				side{"wrong", cluster.NodeByAddr(wrong).Flared.PID(), func(ctx context.Context) (result, error) { return w.run(ctx, wrong, b.time) }},
				side{"right", cluster.NodeByAddr(right).Flared.PID(), func(ctx context.Context) (result, error) { return w.run(ctx, right, b.time) }})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
