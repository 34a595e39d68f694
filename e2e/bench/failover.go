package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flarekv/flare/e2e/procs"
	"github.com/flarekv/flare/e2e/steady"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
	"github.com/flarekv/flare/proto/topology"
)

// How long writes to a partition rest when its master is lost, by each way in which
// it can be. Writers reach the partition through a node of another one, which is
// never touched. The time is that from the fault to the end of the longest pause
// between two successful writes.

// A fault takes a node away, and back.
type fault struct {
	name string
	aim  time.Duration
	// strike begins the fault; heal brings the node back when its successor writes.
	strike, heal func(*procs.Node) error
}

func faults() []fault {
	restart := func(n *procs.Node) error {
		n.Flared.Kill()
		n.Agent.Kill()
		return errors.Join(n.Agent.Start(), n.Flared.Start())
	}
	return []fault{
		{"process crashed (SIGKILL, its agent lives)", 500 * time.Millisecond,
			func(n *procs.Node) error { n.Flared.Kill(); return nil },
			func(n *procs.Node) error { return n.Flared.Start() }},
		{"pod deleted (SIGTERM)", time.Second,
			func(n *procs.Node) error { n.Flared.Terminate(); return nil },
			func(n *procs.Node) error {
				if err := n.Flared.WaitOrKill(30 * time.Second); err != nil {
					return err
				}
				return restart(n)
			}},
		{"node cut off (flared and agent frozen)", topology.LeaseTTL + time.Second,
			func(n *procs.Node) error { return errors.Join(n.Flared.Freeze(), n.Agent.Freeze()) },
			restart},
	}
}

// until waits for a condition, looking every few milliseconds.
func until(ctx context.Context, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// failovers prints the table.
func (b *bench) failovers(ctx context.Context, runs int) error {
	defer b.close()
	c, err := procs.Start(procs.Options{BinDir: b.bin, Dir: filepath.Join(b.dir, "failover"), Partitions: 2, Replicas: 2})
	if err != nil {
		return err
	}
	b.stops = append(b.stops, func() { c.Stop() })
	if err := c.WaitReady(ctx); err != nil {
		return err
	}
	resolver, err := topology.NewResolver(topology.DefaultMeta())
	if err != nil {
		return err
	}
	key := b.keys[slices.IndexFunc(b.keys, func(k string) bool { return resolver.Partition([]byte(k), 2) == 0 })]
	top, err := c.Topology(ctx)
	if err != nil {
		return err
	}
	via := top.Partitions[1].Master
	if err := awaitStored(ctx, via, key); err != nil {
		return err
	}
	fmt.Printf("%d runs of each; %d writers through a node of another partition, a write every %v each; load average %s\n",
		runs, steady.Writers, steady.Every, loadAverage())
	fmt.Printf("\n%-44s %8s %8s %8s %8s %8s   %-24s\n", "from the fault to the first write, ms", "p50", "p99", "max", "aim", "", "of it, p50")
	for _, f := range faults() {
		if !strings.Contains(f.name, b.only) {
			continue
		}
		if err := b.failover(ctx, c, f, runs, via, key); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	fmt.Printf("load average at the end %s\n", loadAverage())
	return nil
}

func (b *bench) failover(ctx context.Context, c *procs.Cluster, f fault, runs int, via, key string) error {
	var took, decided, sent []time.Duration
	for range runs {
		ready, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err := c.WaitReady(ready)
		cancel()
		if err != nil {
			return err
		}
		top, err := c.Topology(ctx)
		if err != nil {
			return err
		}
		victim, epoch := c.NodeByAddr(top.Partitions[0].Master), top.Partitions[0].Epoch
		if err := until(ctx, "a lease by the controller", func() bool { return leaseOf(victim.Addr) == "held controller" }); err != nil {
			return err
		}
		writers, stop := context.WithCancel(ctx)
		var load steady.Load
		var running sync.WaitGroup
		running.Go(func() { load.Run(writers, via, key) })
		end := func() { stop(); running.Wait() }
		begun := time.Now()
		err = until(ctx, "steady writes", func() bool {
			n, pause, _ := load.Since(begun)
			return n > 200 && pause < 500*time.Millisecond && time.Since(begun) > time.Second
		})
		if err != nil {
			end()
			return err
		}
		from := logSize(c.Controller)
		struck := time.Now()
		if err := f.strike(victim); err != nil {
			end()
			return err
		}
		err = c.WaitFor(ctx, func(t *controllerv1.Topology) bool {
			return t.Partitions[0].Epoch > epoch && t.Partitions[0].Master != victim.Addr
		})
		appointed := time.Now()
		if err == nil {
			err = until(ctx, "writes by the successor", func() bool { n, _, _ := load.Since(appointed); return n > 100 })
		}
		end()
		if err != nil {
			return err
		}
		_, _, first := load.Since(struck)
		took = append(took, first.Sub(struck))
		d, s := tracedFailover(c.Controller, from)
		decided, sent = append(decided, d.Sub(struck)), append(sent, s.Sub(struck))
		if err := f.heal(victim); err != nil {
			return err
		}
	}
	for _, x := range [][]time.Duration{took, decided, sent} {
		slices.Sort(x)
	}
	mark := "ok"
	p99 := took[(len(took)*99+99)/100-1]
	if p99 > f.aim {
		mark = "MISSED"
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%.0f", float64(d)/float64(time.Millisecond)) }
	fmt.Printf("%-44s %8s %8s %8s %8s %8s   decided %s, sent %s\n", f.name, ms(took[len(took)/2]), ms(p99), ms(took[len(took)-1]), ms(f.aim), mark,
		ms(decided[len(decided)/2]), ms(sent[len(sent)/2]))
	return nil
}

// tracedFailover reads in the controller's log when the promotion was decided, and
// when the map that shows it was sent.
func tracedFailover(p *procs.Process, from int64) (decided, sent time.Time) {
	b, err := os.ReadFile(p.LogFile)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b[min(from, int64(len(b))):])) {
		var r struct {
			Time    time.Time
			Msg     string
			Reason  string
			New     string
			Effects []string
		}
		if json.Unmarshal([]byte(line), &r) != nil {
			continue
		}
		switch {
		case r.Msg == "decision" && (r.Reason == "failover" || r.Reason == "handover") && strings.HasPrefix(r.New, "master/") && decided.IsZero():
			decided = r.Time
		case !decided.IsZero() && sent.IsZero() && slices.ContainsFunc(r.Effects, func(e string) bool { return strings.HasPrefix(e, "broadcast") }):
			sent = r.Time
		}
	}
	return decided, sent
}

// leaseOf returns the state and the source of a node's lease.
func leaseOf(addr string) string {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprint(c, "stats\r\n")
	state, source := "", ""
	for r := bufio.NewScanner(c); r.Scan() && r.Text() != "END"; {
		if v, ok := strings.CutPrefix(r.Text(), "STAT lease_state "); ok {
			state = v
		}
		if v, ok := strings.CutPrefix(r.Text(), "STAT lease_source "); ok {
			source = v
		}
	}
	return state + " " + source
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
