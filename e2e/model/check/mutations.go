package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/flarekv/flare/e2e/model"
)

// mutationLimit bounds the search for one mutation.
const mutationLimit = 2 * time.Minute

var (
	invariantName = regexp.MustCompile(`(?m)^([A-Z][A-Za-z]+): `)
	stepCount     = regexp.MustCompile(`(?m)^after ([0-9]+) steps`)
)

// mutate builds this program with each mutation of the core in turn, lets it explore the
// world that is to show it, and prints what came of it. It works in the root of the
// module and leaves no trace there.
func mutate(ctx context.Context, only string) error {
	dir, err := os.MkdirTemp("", "flare-mutations-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root, err := filepath.Abs(".")
	if err != nil {
		return err
	}
	missed := 0
	fmt.Printf("%-42s %-14s %-7s %6s  %s\n", "mutation", "world", "result", "steps", "invariant")
	for _, m := range model.Mutations() {
		if only != "" && !strings.Contains(m.Name, only) {
			continue
		}
		file := filepath.Join(root, "controller", "core", m.File)
		source, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read what is to be mutated (run this in the root of the module): %w", err)
		}
		if n := strings.Count(string(source), m.Old); n != 1 {
			return fmt.Errorf("mutation %q: %s has the text %q %d times, want once: adapt it to the core as it is", m.Name, m.File, m.Old, n)
		}
		mutant, overlay, bin := filepath.Join(dir, "mutant.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "check")
		if err := os.WriteFile(mutant, []byte(strings.Replace(string(source), m.Old, m.New, 1)), 0o600); err != nil {
			return err
		}
		text, err := json.Marshal(map[string]map[string]string{"Replace": {file: mutant}})
		if err != nil {
			return err
		}
		if err := os.WriteFile(overlay, text, 0o600); err != nil {
			return err
		}
		build := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", bin, "./e2e/model/check")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("mutation %q does not build: %w\n%s", m.Name, err, out)
		}
		out, err := exec.CommandContext(ctx, bin, "-quiet", "-worlds", m.World, "-time", mutationLimit.String()).CombinedOutput()
		var exit *exec.ExitError
		result, steps, name := "MISSED", "", ""
		if found := invariantName.FindSubmatch(out); found != nil && errors.As(err, &exit) {
			result, name = "caught", string(found[1])
			if found := stepCount.FindSubmatch(out); found != nil {
				steps = string(found[1])
			}
		} else {
			missed++
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		fmt.Printf("%-42s %-14s %-7s %6s  %s\n", m.Name, m.World, result, steps, name)
	}
	if missed > 0 {
		return fmt.Errorf("%d mutations were not caught", missed)
	}
	return nil
}
