// Package gobuild runs go build and tells how far it is: a build of Kubernetes
// that fetches and compiles for minutes must not look like one that hangs.
package gobuild

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Interval is how often a running build says how far it is.
const Interval = 10 * time.Second

// tail is how many lines of a failed build's output its error carries.
const tail = 40

// Run runs "go build ARGS..." in dir (empty: the working directory) with env
// added to the environment. Every Interval it calls say with what it is at.
func Run(ctx context.Context, dir string, env []string, say func(string), args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-v"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	cmd.Stdout = os.Stdout
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("go build: %w", err)
	}
	var p progress
	read := make(chan struct{})
	go func() {
		defer close(read)
		p.follow(out)
	}()
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			say(p.String())
			continue
		case <-read:
		}
		break
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, p.end())
	}
	return nil
}

// progress is what the output of go build -v has told so far.
type progress struct {
	mu                sync.Mutex
	fetched, compiled int
	last              string // package or module
	lines             []string
}

// follow reads the output: a line for each module that is fetched, a line for
// each package that is compiled, and what the compiler has to say.
func (p *progress) follow(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		p.line(lines.Text())
	}
	// A line too long for the scanner must not stop the build.
	_, _ = io.Copy(io.Discard, r)
}

func (p *progress) line(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch module, ok := strings.CutPrefix(s, "go: downloading "); {
	case ok:
		p.fetched++
		p.last = module
	case s != "" && !strings.ContainsAny(s, " :#"):
		p.compiled++
		p.last = s
	default:
		p.lines = append(p.lines, s)
		p.lines = p.lines[max(0, len(p.lines)-tail):]
	}
}

func (p *progress) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == "" {
		return "checking what is up to date"
	}
	return fmt.Sprintf("%d modules fetched, %d packages compiled, now at %s", p.fetched, p.compiled, p.last)
}

// end returns the last lines that were neither a module nor a package.
func (p *progress) end() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}
