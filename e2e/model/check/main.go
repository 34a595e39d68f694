// Command check explores the worlds of e2e/model and prints what it found.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"github.com/flarekv/flare/e2e/model"
)

func main() {
	worlds := flag.String("worlds", "", "names of the worlds, separated by commas; empty for all")
	states := flag.Uint64("states", 0, "stop a world after that many states; 0 for never")
	limit := flag.Duration("time", 0, "stop a world after that time; 0 for never")
	depth := flag.Int("depth", 0, "stop a world at that depth; 0 for never")
	workers := flag.Int("workers", 0, "goroutines; 0 for as many as there are processors")
	trace := flag.String("trace", "", "file for the trace of a violation")
	replay := flag.String("replay", "", "tell the trace in this file instead of exploring")
	profile := flag.String("cpuprofile", "", "file for a profile of the processor's time")
	live := flag.Bool("live", true, "look also whether the fast worlds among them come to what was asked for")
	quiet := flag.Bool("quiet", false, "print the table only")
	mutations := flag.Bool("mutations", false, "break the core in every way of the list instead, and see whether that is seen")
	only := flag.String("only", "", "with -mutations: those with that in their name")
	flag.Parse()
	// What lives is small beside what is made and dropped with every transition.
	debug.SetGCPercent(400)
	if *replay != "" {
		os.Exit(tell(*replay))
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *mutations {
		if err := mutate(ctx, *only); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	fmt.Printf("%-20s %12s %14s %6s %9s %8s  %s\n", "world", "states", "transitions", "depth", "time", "memory", "result")
	code, complete, all := 0, true, model.Result{}
	for _, m := range model.Worlds() {
		if !among(m.Name, *worlds) {
			continue
		}
		if err := m.Init(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		limits := model.Limits{States: cmp.Or(*states, m.Limit), Time: *limit, Depth: *depth, Workers: *workers}
		if !*quiet {
			limits.Report = os.Stderr
		}
		r, err := model.NewExplorer(m, limits).Run(ctx)
		result := "complete"
		switch {
		case r.Violation != nil:
			result, code = "VIOLATED", 1
		case err != nil:
			result, code = "interrupted", 1
		case !r.Complete:
			result = "the nearest, up to a limit"
		}
		fmt.Printf("%-20s %12d %14d %6d %8.1fs %5d MiB  %s\n", r.World, r.States, r.Transitions, r.Depth, r.Took.Round(100*time.Millisecond).Seconds(), r.Memory>>20, result)
		all.States += r.States
		all.Transitions += r.Transitions
		all.Depth, all.Memory, all.Took = max(all.Depth, r.Depth), max(all.Memory, r.Memory), all.Took+r.Took
		complete = complete && r.Complete
		if r.Violation != nil {
			report(m, r.Violation, *trace)
		}
	}
	fmt.Printf("%-20s %12d %14d %6d %8.1fs %5d MiB  all complete: %t\n", "all", all.States, all.Transitions, all.Depth, all.Took.Seconds(), all.Memory>>20, complete)
	if *live && code == 0 {
		code = lively(ctx, *worlds, model.Limits{Workers: *workers, Time: *limit}, *trace)
	}
	if *worlds == "" && *states == 0 && *limit == 0 && *depth == 0 && !model.InductAll(ctx, os.Stdout, *workers) {
		code = 1
	}
	pprof.StopCPUProfile()
	os.Exit(code)
}

// lively looks at the fast worlds of a list, and prints whether they come to what was
// asked for, by every fair schedule, from every state.
func lively(ctx context.Context, worlds string, limits model.Limits, trace string) (code int) {
	fmt.Printf("\n%-20s %12s %12s %14s %8s %8s %9s  %s\n", "once nothing fails", "states", "desired", "transitions", "circles", "fair", "time", "result")
	for _, m := range model.Worlds() {
		if !strings.HasPrefix(m.Name, "fast") || !among(m.Name, worlds) {
			continue
		}
		if err := m.Init(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		l, r, err := model.Live(ctx, m, limits)
		result := "desired in the end"
		switch {
		case r.Violation != nil:
			result, code = "VIOLATED", 1
		case err != nil:
			result, code = "interrupted", 1
		case !r.Complete:
			result, code = "not seen as a whole", 1
		}
		fmt.Printf("%-20s %12d %12d %14d %8d %8d %8.1fs  %s\n", r.World, r.States, l.Desired, l.Edges, l.Cycles, l.Fair, r.Took.Seconds(), result)
		if r.Violation != nil {
			report(m, r.Violation, trace)
		}
	}
	return code
}

// among reports whether a world is one of a list; all are of an empty one.
func among(name, worlds string) bool {
	return worlds == "" || slices.Contains(strings.Split(worlds, ","), name)
}

// report tells the way to a violation and keeps it in a file.
func report(m *model.Model, v *model.Violation, file string) {
	fmt.Printf("\n%v\n\nafter %d steps:\n\n", v.Err, len(v.Trace))
	if _, err := m.Replay(v.Trace, os.Stdout); err != nil {
		fmt.Println(err)
	}
	if file == "" {
		return
	}
	f, err := os.Create(file)
	if err == nil {
		err = model.WriteTrace(f, m.Name, v.Err, v.Trace)
		f.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func tell(path string) int {
	f, err := os.Open(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	defer f.Close()
	name, actions, err := model.ReadTrace(f)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	m, err := model.Find(name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	broken, err := m.Replay(actions, os.Stdout)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 2
	case broken != nil:
		fmt.Println(broken)
		return 1
	}
	fmt.Println("no invariant is broken")
	return 0
}
