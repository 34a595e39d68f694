package main

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/flarekv/flare/controller/recording"
)

const replayUsage = "flare-controller replay FILE (- for the standard input; may be compressed with gzip)"

// runReplay lets the core do what a recording tells, and tells where it does something
// else.
func runReplay(args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 1 || strings.HasPrefix(args[0], "-") && args[0] != "-" {
		return fmt.Errorf("%w: %s", errUsage, replayUsage)
	}
	from := stdin
	if args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		defer f.Close()
		from = f
	}
	in := bufio.NewReader(from)
	from = in
	if magic, err := in.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(in)
		if err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		from = z
	}
	began := time.Now()
	s, err := recording.Replay(from)
	fmt.Fprintf(stdout, "%d steps in %d reigns of %s, replayed by %s in %v\n", s.Steps, s.Reigns, strings.Join(s.Programs, ", "), version, time.Since(began).Round(time.Millisecond))
	fmt.Fprintf(stdout, "inputs: %s; %d were only noted\n", counts(s.Inputs), s.Noted)
	fmt.Fprintf(stdout, "effects: %s\n", counts(s.Effects))
	fmt.Fprintf(stdout, "compared: the effects of each step, the whole state after %d; checked: %d invariants in all\n", s.States, s.Checks)
	if s.Foreign > 0 || s.Torn > 0 {
		fmt.Fprintf(stdout, "passed over: %d lines of something else, %d that were not written to their end\n", s.Foreign, s.Torn)
	}
	if s.End != "" {
		fmt.Fprintf(stdout, "recording ended before the controller: %s\n", s.End)
	}
	if err != nil {
		if errors.Is(err, recording.ErrDisagrees) && !slices.Equal(s.Programs, []string{version}) {
			fmt.Fprintln(stdout, "it was recorded by another version, which may rightly have done something else")
		}
		return fmt.Errorf("replay %s: %w", args[0], err)
	}
	_, err = fmt.Fprintln(stdout, "the core does the same, and no invariant is broken")
	return err
}

// counts tells how many there are of what.
func counts(of map[string]int) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		list = append(list, fmt.Sprintf("%s %d", name, of[name]))
	}
	return strings.Join(list, ", ")
}
