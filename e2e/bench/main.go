// Command bench measures flared against programs that do a comparable thing on
// the same machine in the same minutes, and prints ratios: requests against
// memcached, synced writes against RocksDB's own db_bench, and requests through
// a node that has to forward them against requests through the right one.
//
// The two sides of a ratio are driven in turn, round by round, with the same
// generator, so that what the machine does meanwhile meets both. A ratio is the
// median over the rounds; its spread is printed beside it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type config struct {
	bin    string
	rounds int
	time   time.Duration // of one run
	conns  int
	keys   int
	only   string
	behind int // MB written while a replica is away; 0 for the other comparisons
	losses int // times a master is lost in each way; 0 for the other comparisons
}

func main() {
	var c config
	flag.StringVar(&c.bin, "bin", "build/bin", "directory of flared, flare-agent and flare-controller")
	flag.IntVar(&c.rounds, "rounds", 5, "rounds per line; each drives both sides once")
	flag.DurationVar(&c.time, "time", time.Second, "length of one run")
	flag.IntVar(&c.conns, "conns", 32, "connections")
	flag.IntVar(&c.keys, "keys", 200_000, "keys")
	flag.StringVar(&c.only, "only", "", "only the lines whose name contains this")
	flag.IntVar(&c.behind, "replication", 0, "measure replication instead, with so many MB written while a replica is away")
	flag.IntVar(&c.losses, "failover", 0, "measure failovers instead: so many of each kind")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := c.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (c config) run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "flare-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{config: c, dir: dir}
	defer b.close()
	for i := range c.keys {
		b.keys = append(b.keys, fmt.Sprintf("key%09d", i))
	}
	if c.losses > 0 {
		return b.failovers(ctx, c.losses)
	}
	fmt.Printf("%d processors; %d connections; %d keys of %d bytes; %d rounds of %v a line, both sides in turn\n",
		runtime.NumCPU(), c.conns, c.keys, len(b.keys[0]), c.rounds, c.time)
	if c.behind > 0 {
		return b.replication(ctx, c.behind)
	}
	fmt.Printf("memcached: %s; flared: %s\n", strings.Join(memcachedArgs, " "), strings.Join(flaredArgs, " "))
	return errors.Join(b.againstMemcached(ctx), b.synced(ctx), b.wrongNode(ctx))
}

// A side is one of the two things a line compares.
type side struct {
	name string
	pid  int // of the server; 0 if its processor time is not of interest
	run  func(context.Context) (result, error)
}

// compare runs both sides in turn and prints a line with the ratio of the
// first to the second.
func (b *bench) compare(ctx context.Context, name string, want float64, subject, peer side) error {
	if !strings.Contains(name, b.only) {
		return nil
	}
	var ratios []float64
	var rates, p99s, costs [2][]float64
	for range b.rounds {
		for i, s := range []side{subject, peer} {
			before := processorTime(s.pid)
			r, err := s.run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", name, s.name, err)
			}
			rates[i] = append(rates[i], r.rate())
			p99s[i] = append(p99s[i], float64(r.p99)/float64(time.Millisecond))
			costs[i] = append(costs[i], float64(processorTime(s.pid)-before)/float64(time.Microsecond)/float64(r.ops))
		}
		ratios = append(ratios, rates[0][len(rates[0])-1]/rates[1][len(rates[1])-1])
	}
	verdict := ""
	if want > 0 && median(ratios) < want {
		verdict = "  below"
	}
	fmt.Printf("%-34s %9.0f %9.0f  %6.2f %6.2f %6.2f  %5.2f %7.2f %7.2f %7.1f %7.1f%s\n", name,
		median(rates[0]), median(rates[1]), slices.Min(ratios), median(ratios), slices.Max(ratios), want,
		median(p99s[0]), median(p99s[1]), median(costs[0]), median(costs[1]), verdict)
	return nil
}

func (b *bench) header(subject, peer string) {
	fmt.Printf("\n%-34s %9s %9s  %6s %6s %6s  %5s %15s %15s\n", subject+" / "+peer, subject, peer, "ratio", "", "", "", "p99 ms", "cpu us/request")
	fmt.Printf("%-34s %9s %9s  %6s %6s %6s  %5s %7.7s %7.7s %7.7s %7.7s\n", "", "per s", "per s", "min", "median", "max", "want", subject, peer, subject, peer)
}

// processorTime returns what a process has used so far; 0 if it is not there.
func processorTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The fields behind the name, which may hold spaces; ticks are of 10 ms.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}

func median[T cmp.Ordered](values []T) T {
	s := slices.Sorted(slices.Values(values))
	return s[len(s)/2]
}
