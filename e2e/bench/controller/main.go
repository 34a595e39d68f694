// Command controller measures flare-controller with many nodes. The controller is the
// real process, without Kubernetes; the nodes and their agents are of this process:
// they register, answer pings and maps, and report once a second, as flared and
// flare-agent do, and hold no data.
//
// Nodes die many at once, and what is measured is when the last one that is left has
// the map that shows it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

type config struct {
	bin                  string
	partitions, replicas int
	fail, rounds         int
}

func main() {
	var c config
	flag.StringVar(&c.bin, "bin", "build/bin", "directory of flare-controller")
	flag.IntVar(&c.partitions, "partitions", 500, "partitions")
	flag.IntVar(&c.replicas, "replicas", 2, "nodes of a partition")
	flag.IntVar(&c.fail, "fail", 100, "nodes that die at once, each of another partition, every other one a master")
	flag.IntVar(&c.rounds, "rounds", 3, "times that they do")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := c.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-controller:", err)
		os.Exit(1)
	}
}

// Aims.
const (
	aimFailover = 2 * time.Second
	aimMemory   = 300 << 20
	// aimCutOff is for nodes of which nobody tells that they ended: the longest lease
	// that one may have had, and a second.
	aimCutOff = 6500 * time.Millisecond
)

func (c config) run(ctx context.Context) (err error) {
	if c.replicas < 2 || c.fail > c.partitions {
		return errors.New("want at least 2 nodes of a partition, and at most as many to die as there are partitions")
	}
	dir, err := os.MkdirTemp("", "flare-bench-controller-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctl, err := startController(dir, c.bin, c.partitions, c.replicas)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\nthe end of the controller's log:\n%s", err, ctl.logTail())
		}
		ctl.stop()
	}()
	fmt.Printf("%d processors, load %s; %d nodes in %d partitions\n", runtime.NumCPU(), loadAverage(), c.partitions*c.replicas, c.partitions)

	begin := time.Now()
	w := &world{ctl: ctl}
	defer w.close()
	if err := w.start(ctx, c.partitions*c.replicas); err != nil {
		return err
	}
	if err := w.settle(ctx); err != nil {
		return err
	}
	fmt.Printf("%-44s %10v\n", "all registered, with a duty, and in sync", time.Since(begin).Round(10*time.Millisecond))
	n := w.nodes[0]
	n.mu.Lock()
	fmt.Printf("%-44s %10d bytes\n", "node map as it is sent", n.bytes)
	n.mu.Unlock()
	if size, err := ctl.stateSize(); err == nil {
		fmt.Printf("%-44s %10d bytes\n", "durable state, of at most 1048576 in a ConfigMap", size)
	}
	if err := w.idle(ctx); err != nil {
		return err
	}
	for _, kind := range []struct {
		name   string
		agents bool
		aim    time.Duration
	}{
		{fmt.Sprintf("%d processes crash, their agents say so", c.fail), true, aimFailover},
		{fmt.Sprintf("%d pods vanish with their agents", c.fail), false, aimCutOff},
	} {
		var took []time.Duration
		steps := stepTimes{}
		for range c.rounds {
			before, err := ctl.steps(ctx)
			if err != nil {
				return err
			}
			d, err := w.massFailure(ctx, c.fail, kind.agents)
			if err != nil {
				return err
			}
			took = append(took, d)
			after, err := ctl.steps(ctx)
			if err != nil {
				return err
			}
			steps = steps.add(after.sub(before))
			if err := w.revive(ctx); err != nil {
				return err
			}
		}
		slices.Sort(took)
		fmt.Printf("%-44s %10v median %v worst, aim %v%s\n", kind.name, took[len(took)/2].Round(time.Millisecond),
			took[len(took)-1].Round(time.Millisecond), kind.aim, verdict(took[len(took)/2] <= kind.aim))
		fmt.Printf("%-44s %s\n", "  processor time of the controller's steps", steps)
	}
	now, most := ctl.memory()
	fmt.Printf("%-44s %10d MiB now, %d MiB at most, aim %d MiB%s\n", "memory of the controller", now>>20, most>>20, aimMemory>>20, verdict(most <= aimMemory))
	fmt.Printf("load at the end %s\n", loadAverage())
	return nil
}

func verdict(ok bool) string {
	if ok {
		return ""
	}
	return "  missed"
}

// world is all the nodes.
type world struct {
	ctl   *controller
	nodes []*node
	wg    sync.WaitGroup
	dead  []*node
}

func (w *world) close() {
	for _, n := range w.nodes {
		n.die(true)
	}
	w.wg.Wait()
}

// start makes the nodes and lets them register.
func (w *world) start(ctx context.Context, count int) error {
	for i := range count {
		w.nodes = append(w.nodes, newNode(w, i))
	}
	return w.each(w.nodes, func(n *node) error { return n.live(ctx, true) })
}

// each does something with many nodes, some at a time.
func (w *world) each(nodes []*node, f func(*node) error) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	slots := make(chan struct{}, 64)
	for _, n := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := f(n); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed
}

// settle waits until every node has a duty and is in sync.
func (w *world) settle(ctx context.Context) error {
	return w.until(ctx, "every node has a duty and is in sync", 3*time.Minute, func() string {
		missing := 0
		for _, n := range w.nodes {
			n.mu.Lock()
			if n.role == proxy || n.state != active {
				missing++
			}
			n.mu.Unlock()
		}
		if missing == 0 {
			return ""
		}
		return fmt.Sprintf("%d are not", missing)
	})
}

// until waits for a condition, which says what is missing.
func (w *world) until(ctx context.Context, what string, limit time.Duration, missing func() string) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		m := missing()
		if m == "" {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("%s: not within %v: %s", what, limit, m)
		case <-ctx.Done():
			return ctx.Err()
		case <-w.ctl.ended:
			return errors.New("the controller ended")
		}
	}
}

// idle measures what it costs to watch over nodes to which nothing happens.
func (w *world) idle(ctx context.Context) error {
	const length = 10 * time.Second
	before, err := w.ctl.steps(ctx)
	if err != nil {
		return err
	}
	cpu, begin := w.ctl.processorTime(), time.Now()
	select {
	case <-time.After(length):
	case <-ctx.Done():
		return ctx.Err()
	}
	passed := time.Since(begin)
	after, err := w.ctl.steps(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%-44s %9.1f%% of a processor\n", "nothing happens", 100*float64(w.ctl.processorTime()-cpu)/float64(passed))
	fmt.Printf("%-44s %s\n", "  processor time of the controller's steps", after.sub(before))
	return nil
}

// massFailure lets nodes die, each of another partition, every other one a master,
// and returns how long it took until the last one that lives had a map that says so.
func (w *world) massFailure(ctx context.Context, count int, agents bool) (time.Duration, error) {
	var pairs [][2]*node // a master and a replica of each partition
	for _, n := range w.nodes {
		n.mu.Lock()
		role, partition := n.role, n.partition
		n.mu.Unlock()
		for len(pairs) <= partition {
			pairs = append(pairs, [2]*node{})
		}
		if role == master || role == slave {
			pairs[partition][role] = n
		}
	}
	for p, pair := range pairs {
		if n := pair[p%2]; len(w.dead) < count && n != nil {
			w.dead = append(w.dead, n)
		}
	}
	if len(w.dead) != count {
		return 0, fmt.Errorf("found only %d nodes of different partitions", len(w.dead))
	}
	begin := time.Now()
	for _, n := range w.dead {
		n.die(!agents)
	}
	err := w.until(ctx, "every node knows of the dead", time.Minute, func() string {
		behind := 0
		for _, n := range w.nodes {
			n.mu.Lock()
			if n.alive && n.down < count {
				behind++
			}
			n.mu.Unlock()
		}
		if behind == 0 {
			return ""
		}
		return fmt.Sprintf("%d do not", behind)
	})
	return time.Since(begin), err
}

// revive starts the dead again and waits until all is as before.
func (w *world) revive(ctx context.Context) error {
	dead := w.dead
	w.dead = nil
	if err := w.each(dead, func(n *node) error { return n.live(ctx, false) }); err != nil {
		return err
	}
	return w.settle(ctx)
}
