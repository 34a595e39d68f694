package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flarekv/flare/e2e/procs"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// What replication costs and how quick it is: catching up by the log against one
// writer on the master, copying the database against cp, the latency of writes with
// and without a replica that catches up, and how far a replica lags.

// replicated is a cluster of one partition with two nodes.
type replicated struct {
	*procs.Cluster
	master, replica *procs.Node
	load            workload // sets of 1 KB
	half            float64  // requests a second, half of what load reaches
	apart           apart
}

const replicationValue = 1000

func (b *bench) replicated(ctx context.Context, mode string) (*replicated, error) {
	c, err := procs.Start(procs.Options{
		BinDir: b.bin, Dir: filepath.Join(b.dir, mode), Partitions: 1, Replicas: 2, ReplicationMode: mode,
	})
	if err != nil {
		return nil, err
	}
	b.stops = append(b.stops, func() { c.Stop() })
	r := &replicated{Cluster: c, load: workload{name: "set", depth: 1, multi: 1, conns: 16, valueLen: replicationValue, random: b.noise(), keys: b.keys}}
	if err := r.ready(ctx); err != nil {
		return nil, err
	}
	t, err := c.Topology(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range c.Nodes {
		if n.Addr == t.Partitions[0].Master {
			r.master = n
		} else {
			r.replica = n
		}
	}
	if err := awaitStored(ctx, r.master.Addr, b.keys[0]); err != nil {
		return nil, err
	}
	return r, r.measure(ctx, b.time)
}

// measure finds out what the master reaches with its replica in sync.
func (r *replicated) measure(ctx context.Context, round time.Duration) error {
	res, err := r.load.run(ctx, r.master.Addr, 3*round)
	r.half = res.rate() / 2
	return err
}

// noise is what values are cut out of: a copy of files shall not be one of text that
// compresses to nothing.
func (b *bench) noise() []byte {
	p := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(p)
	return p
}

func (r *replicated) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	return r.WaitReady(ctx)
}

// away ends the replica and waits until the index knows.
func (r *replicated) away(ctx context.Context) error {
	r.replica.Flared.Kill()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return r.WaitFor(ctx, func(t *controllerv1.Topology) bool {
		return !slices.Contains(t.Partitions[0].InSyncReplicas, r.replica.Addr)
	})
}

// paced runs the load at a rate until stop is closed. A latency counts from when a
// request was due, so that waiting for an earlier one is not forgotten.
func (w workload) paced(ctx context.Context, addr string, rate float64, stop <-chan struct{}) (*histogram, error) {
	var group sync.WaitGroup
	conns := make([]*client, w.conns)
	errs := make([]error, w.conns)
	for i := range conns {
		c, err := w.dial(addr)
		if err != nil {
			return nil, err
		}
		conns[i] = c
		defer c.nc.Close()
	}
	every := time.Duration(float64(w.conns) / rate * float64(time.Second))
	begin := time.Now()
	var all histogram
	var mu sync.Mutex
	for i, c := range conns {
		group.Go(func() {
			var h histogram
			due := begin.Add(every * time.Duration(i) / time.Duration(w.conns))
			for errs[i] == nil {
				select {
				case <-stop:
					mu.Lock()
					all.add(&h)
					mu.Unlock()
					return
				case <-ctx.Done():
					errs[i] = ctx.Err()
					return
				case <-time.After(time.Until(due)):
				}
				errs[i] = c.burst()
				h.record(time.Since(due))
				due = due.Add(every)
			}
		})
	}
	group.Wait()
	return &all, errors.Join(errs...)
}

// during runs the load at half of its maximum while fn runs, and returns its p99.
func (r *replicated) during(ctx context.Context, fn func() error) (time.Duration, error) {
	stop := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(stop)
		failed <- fn()
	}()
	h, err := r.load.paced(ctx, r.master.Addr, r.half, stop)
	if err = errors.Join(err, <-failed); err != nil {
		return 0, err
	}
	return h.quantile(0.99), nil
}

// logged waits for a line in a process's log behind an offset and returns its match.
func logged(ctx context.Context, p *procs.Process, from int64, line *regexp.Regexp) ([]string, error) {
	for {
		b, err := os.ReadFile(p.LogFile)
		if err != nil {
			return nil, err
		}
		if m := line.FindSubmatch(b[min(from, int64(len(b))):]); m != nil {
			var s []string
			for _, g := range m {
				s = append(s, string(g))
			}
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %v in %s: %w", line, p.LogFile, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func logSize(p *procs.Process) int64 {
	info, err := os.Stat(p.LogFile)
	if err != nil {
		return 0
	}
	return info.Size()
}

var (
	caughtUp = regexp.MustCompile(`msg="caught up with master".* tier=wal .*took=(\S+)`)
	// Behind this everything is durable on the replica.
	checkpointReceived = regexp.MustCompile(`msg="checkpoint received".* bytes=(\d+) .*took=(\S+)`)
)

// back brings the replica back and returns how long it caught up by the log.
func (r *replicated) back(ctx context.Context) (time.Duration, error) {
	from := logSize(r.replica.Flared)
	if err := r.apart.start(r.replica.Flared); err != nil {
		return 0, err
	}
	m, err := logged(ctx, r.replica.Flared, from, caughtUp)
	if err != nil {
		return 0, err
	}
	return time.ParseDuration(m[1])
}

// resync copies the database to the replica and returns what that moved a second.
func (r *replicated) resync(ctx context.Context) (mbps float64, err error) {
	from := logSize(r.replica.Flared)
	conn, err := grpc.NewClient(r.replica.AgentAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stream, err := agentv1.NewAgentServiceClient(conn).Resync(ctx, &agentv1.ResyncRequest{Tier: agentv1.Tier_TIER_CHECKPOINT})
	if err != nil {
		return 0, err
	}
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return 0, fmt.Errorf("resync: %w", err)
		}
	}
	m, err := logged(ctx, r.replica.Flared, from, checkpointReceived)
	if err != nil {
		return 0, err
	}
	bytes, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0, err
	}
	took, err := time.ParseDuration(m[2])
	if err != nil {
		return 0, err
	}
	return bytes / 1e6 / took.Seconds(), nil
}

// cp copies the files that a checkpoint has, and returns what that moves a second: as
// it is, and when the copy has to be on the disk, as a replica's has.
func (r *replicated) cp(ctx context.Context, to string) (plain, synced float64, err error) {
	files, err := filepath.Glob(filepath.Join(r.master.DataDir, "db", "*.sst"))
	if err != nil {
		return 0, 0, err
	}
	var bytes int64
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			bytes += info.Size()
		}
	}
	if bytes == 0 {
		return 0, 0, errors.New("the master has no table files")
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(to)
	began := time.Now()
	// A file that compaction has removed meanwhile is missed; nothing is written now.
	if out, err := exec.CommandContext(ctx, "cp", append(files, to)...).CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("cp: %w: %s", err, out)
	}
	plain = float64(bytes) / 1e6 / time.Since(began).Seconds()
	if out, err := exec.CommandContext(ctx, "sync", "-f", to).CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("sync: %w: %s", err, out)
	}
	return plain, float64(bytes) / 1e6 / time.Since(began).Seconds(), nil
}

// verdict prints a line of the table.
func verdict(name, value, peer string, ok bool, want string) {
	mark := "ok"
	if !ok {
		mark = "MISSED"
	}
	fmt.Printf("%-46s %14s  %-26s %-22s %s\n", name, value, peer, want, mark)
}

// replication prints the table. mb is how much is written while the replica is away.
func (b *bench) replication(ctx context.Context, mb int) error {
	defer b.close()
	fmt.Printf("%-46s %14s  %-26s %-22s\n", "", "measured", "beside", "wanted")

	// In sync mode a write is answered when the replica has it, so no write's
	// latency is less than the replica's lag was.
	r, err := b.replicated(ctx, "sync")
	if err != nil {
		return err
	}
	lag, err := r.during(ctx, func() error { return sleep(ctx, 5*b.time) })
	if err != nil {
		return err
	}
	verdict("lag of a replica at half load, p99 at most", lag.Round(10*time.Microsecond).String(), fmt.Sprintf("at %.0f sets/s", r.half), lag < 20*time.Millisecond, "< 20ms")
	b.close()

	if r, err = b.replicated(ctx, "async"); err != nil {
		return err
	}
	bulk := workload{valueLen: replicationValue, random: b.noise(), keys: make([]string, mb*1e6/replicationValue)}
	for i := range bulk.keys {
		bulk.keys[i] = fmt.Sprintf("bulk%09d", i)
	}
	payload := float64(len(bulk.keys)) * replicationValue / 1e6
	write := func() (float64, error) {
		began := time.Now()
		err := bulk.fill(r.master.Addr)
		return payload / time.Since(began).Seconds(), err
	}

	// By the log, in peace.
	if err := r.away(ctx); err != nil {
		return err
	}
	writer, err := write()
	if err != nil {
		return err
	}
	took, err := r.back(ctx)
	if err != nil {
		return err
	}
	rate := payload / took.Seconds()
	verdict("catch-up by the log", fmt.Sprintf("%.0f MB/s", rate), fmt.Sprintf("one writer: %.0f MB/s (%.2f)", writer, rate/writer),
		rate >= 60 || rate >= 0.6*writer, ">= 60 MB/s or 0.60")
	if err := r.ready(ctx); err != nil {
		return err
	}

	// By a copy. What the machine has to make room in memory for differs from one to
	// the next, so both sides have several turns.
	var copies, plains, synceds []float64
	for range 5 {
		copied, err := r.resync(ctx)
		if err != nil {
			return err
		}
		if err := r.ready(ctx); err != nil {
			return err
		}
		plain, synced, err := r.cp(ctx, filepath.Join(b.dir, "cp"))
		if err != nil {
			return err
		}
		copies, plains, synceds = append(copies, copied), append(plains, plain), append(synceds, synced)
	}
	copied := median(copies)
	for _, peer := range []struct {
		name string
		mbps float64
	}{{"cp", median(plains)}, {"cp and sync", median(synceds)}} {
		verdict("copy of the database, until it is on the disk", fmt.Sprintf("%.0f MB/s", copied), fmt.Sprintf("%s: %.0f MB/s (%.2f)", peer.name, peer.mbps, copied/peer.mbps),
			copied >= 0.7*peer.mbps, ">= 0.70")
	}

	if err := r.latencies(ctx, 5*b.time, "all on the same processors", write); err != nil {
		return err
	}
	if err := r.apart.begin(r.master.Flared); err != nil {
		return err
	}
	if err := r.away(ctx); err != nil {
		return err
	}
	remove, err := r.apart.emptyDisk(r.replica)
	if err != nil {
		return err
	}
	b.stops = slices.Insert(b.stops, 0, remove) // it is done last
	if err := r.apart.start(r.replica.Flared); err != nil {
		return err
	}
	if err := r.ready(ctx); err != nil {
		return err
	}
	if err := r.measure(ctx, b.time); err != nil {
		return err
	}
	return r.latencies(ctx, 5*b.time, "replica with a processor and a disk of its own", write)
}

// settled waits until no node compacts what was written before: whose turn in a
// comparison that falls into would be chance.
func (r *replicated) settled(ctx context.Context) error {
	const long, step = 1500 * time.Millisecond, 100 * time.Millisecond
	var last []string
	for since := time.Now(); time.Since(since) < long; {
		var now []string
		for _, n := range r.Nodes {
			files, err := filepath.Glob(filepath.Join(n.DataDir, "db", "*.sst"))
			if err != nil {
				return err
			}
			now = append(now, files...)
		}
		if !slices.Equal(now, last) {
			last, since = now, time.Now()
		}
		if err := sleep(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// latencies prints what a replica that catches up costs who writes meanwhile.
func (r *replicated) latencies(ctx context.Context, quiet time.Duration, where string, write func() (float64, error)) error {
	fmt.Printf("p99 of sets at %.0f a second, half of what the master reaches, %s:\n", r.half, where)
	if err := r.away(ctx); err != nil {
		return err
	}
	if _, err := write(); err != nil {
		return err
	}
	if err := r.settled(ctx); err != nil {
		return err
	}
	alone, err := r.during(ctx, func() error { return sleep(ctx, quiet) })
	if err != nil {
		return err
	}
	line := func(name string, p99 time.Duration) {
		verdict("  "+name, p99.Round(10*time.Microsecond).String(),
			fmt.Sprintf("%v without (%.2f)", alone.Round(10*time.Microsecond), float64(p99)/float64(alone)), p99 <= 2*alone, "<= 2.00")
	}
	loaded, err := r.during(ctx, func() error { _, err := r.back(ctx); return err })
	if err != nil {
		return err
	}
	line("during a catch-up by the log", loaded)
	if err := r.ready(ctx); err != nil {
		return err
	}
	if err := r.settled(ctx); err != nil {
		return err
	}
	if loaded, err = r.during(ctx, func() error { _, err := r.resync(ctx); return err }); err != nil {
		return err
	}
	line("during a copy of the database", loaded)
	return r.ready(ctx)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
