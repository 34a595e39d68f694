package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process names one process for good: a pid alone is given out again, but
// never with the same start time.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// findProcess fails if no such process exists, or only its remains.
func findProcess(pid int) (process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	start, dead, err := parseStat(stat)
	if err != nil {
		return process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	if dead {
		return process{}, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	return process{PID: pid, Start: start}, nil
}

// parseStat reads /proc/PID/stat. The second field, the command in
// parentheses, may itself contain spaces and parentheses.
func parseStat(stat []byte) (start uint64, dead bool, err error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, false, errors.New("stat without a command")
	}
	const state, startTime = 0, 19 // counted from after the command
	fields := bytes.Fields(stat[end+1:])
	if len(fields) <= startTime {
		return 0, false, fmt.Errorf("stat with %d fields", len(fields)+2)
	}
	start, err = strconv.ParseUint(string(fields[startTime]), 10, 64)
	if err != nil {
		return 0, false, fmt.Errorf("start time: %w", err)
	}
	return start, slices.Contains([]string{"Z", "X"}, string(fields[state])), nil
}

func (p process) alive() bool {
	now, err := findProcess(p.PID)
	return err == nil && now == p
}

// kill ends the process at once and waits until it is gone. For the first
// process of a PID namespace that is when the whole namespace is gone.
func (p process) kill(ctx context.Context) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %d: %w", p.PID, err)
	}
	return waitFor(ctx, fmt.Sprintf("end of process %d", p.PID), 20*time.Second, 10*time.Millisecond, func(context.Context) error {
		if p.alive() {
			return errors.New("still there")
		}
		return nil
	})
}

// onlyChild is the one child of a process that has (or will soon have) one.
func onlyChild(ctx context.Context, pid int) (process, error) {
	var child process
	err := waitFor(ctx, fmt.Sprintf("child of process %d", pid), 10*time.Second, 5*time.Millisecond, func(context.Context) error {
		list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			return giveUp(fmt.Errorf("it ended: %w", err))
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(list)), " ")
		n, err := strconv.Atoi(first)
		if err != nil {
			return errors.New("none yet")
		}
		child, err = findProcess(n)
		return err
	})
	return child, err
}

// daemon starts a command that outlives this program, in a session of its
// own, its output appended to a log file.
func daemon(logFile string, attr *syscall.SysProcAttr, argv ...string) (process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return process{}, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Setsid = true
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return process{}, fmt.Errorf("start %s: %w", filepath.Base(argv[0]), err)
	}
	p, err := findProcess(cmd.Process.Pid)
	go cmd.Wait() // collects it, should it end while this program still runs
	if err != nil {
		return process{}, fmt.Errorf("%s ended at once, see %s: %w", filepath.Base(argv[0]), logFile, err)
	}
	return p, nil
}

// run runs a command to its end; the error carries what it had to say.
func run(ctx context.Context, argv ...string) ([]byte, error) {
	return runWith(ctx, "", argv...)
}

func runWith(ctx context.Context, stdin string, argv ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		said := strings.TrimSpace(stderr.String())
		if said == "" {
			said = strings.TrimSpace(string(out))
		}
		return out, fmt.Errorf("%s: %w: %s", strings.Join(shorten(argv), " "), err, said)
	}
	return out, nil
}

// shorten keeps enough of a command line to recognize it in an error.
func shorten(argv []string) []string {
	short := slices.Clone(argv[:min(len(argv), 8)])
	short[0] = filepath.Base(short[0])
	return short
}

type givenUp struct{ error }

// giveUp marks an error for which waiting longer is no use.
func giveUp(err error) error { return givenUp{err} }

// waitFor asks until the answer is nil. The error is the last answer. The
// context it asks with ends with the wait.
func waitFor(ctx context.Context, what string, limit, every time.Duration, ask func(context.Context) error) error {
	caller := ctx
	ctx, cancel := context.WithTimeout(caller, limit)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if final, ok := errors.AsType[givenUp](err); ok {
			return fmt.Errorf("%s: %w", what, final.error)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if caller.Err() != nil {
				return fmt.Errorf("stopped waiting for %s: %w", what, context.Cause(caller))
			}
			return fmt.Errorf("waited %v for %s: %w (%w)", limit, what, err, ctx.Err())
		}
	}
}
