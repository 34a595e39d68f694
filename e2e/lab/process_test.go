package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const rest = " 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3"
	for _, c := range []struct {
		name, stat string
		start      uint64
		dead       bool
		bad        bool
	}{
		{name: "plain", stat: "42 (etcd) S" + rest, start: 987654},
		{name: "command with all that confuses", stat: "42 (a) R 1 (b c)) S" + rest, start: 987654},
		{name: "zombie", stat: "42 (etcd) Z" + rest, start: 987654, dead: true},
		{name: "no command", stat: "42 etcd S" + rest, bad: true},
		{name: "cut short", stat: "42 (etcd) S 1 2 3", bad: true},
		{name: "no number", stat: "42 (etcd) S" + strings.Replace(rest, "987654", "x", 1), bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			start, dead, err := parseStat([]byte(c.stat))
			if (err != nil) != c.bad || start != c.start || dead != c.dead {
				t.Errorf("start %d, dead %v, error %v", start, dead, err)
			}
		})
	}
}

func TestProcessIdentity(t *testing.T) {
	self, err := findProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !self.alive() {
		t.Error("this process is not alive")
	}
	// The same pid at another time is somebody else, and is left alone.
	other := process{PID: self.PID, Start: self.Start + 1}
	if other.alive() {
		t.Error("a process with the same pid and another start time counts as alive")
	}
	if err := other.kill(t.Context()); err != nil {
		t.Errorf("kill of a process that is gone: %v", err)
	}
	if (process{}).alive() {
		t.Error("no process counts as alive")
	}
}

func TestDaemonAndKill(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := daemon(log, nil, "/bin/sh", "-c", "echo said; sleep 1000 & wait")
	if err != nil {
		t.Fatal(err)
	}
	child, err := onlyChild(t.Context(), p.PID)
	if err != nil {
		t.Fatal(err)
	}
	for _, victim := range []process{child, p} {
		if err := victim.kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if victim.alive() {
			t.Errorf("%v is alive after kill", victim)
		}
	}
	if got := tail(log, 1); got != "said" {
		t.Errorf("log: %q", got)
	}
}

func TestWaitFor(t *testing.T) {
	asked := 0
	err := waitFor(t.Context(), "three", time.Minute, time.Millisecond, func(context.Context) error {
		if asked++; asked < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || asked != 3 {
		t.Errorf("asked %d times, error %v", asked, err)
	}

	hopeless := errors.New("hopeless")
	err = waitFor(t.Context(), "nothing", time.Minute, time.Millisecond, func(context.Context) error { return giveUp(hopeless) })
	if !errors.Is(err, hopeless) {
		t.Errorf("after giving up: %v", err)
	}

	err = waitFor(t.Context(), "nothing", time.Millisecond, time.Millisecond, func(context.Context) error { return hopeless })
	if !errors.Is(err, hopeless) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the limit: %v", err)
	}

	stopped, stop := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	stop(reason)
	err = waitFor(stopped, "nothing", time.Minute, time.Minute, func(context.Context) error { return hopeless })
	if !errors.Is(err, reason) || errors.Is(err, hopeless) {
		t.Errorf("after being stopped: %v", err)
	}
}

func TestRunKeepsWhatWasSaid(t *testing.T) {
	_, err := run(t.Context(), "sh", "-c", "echo it broke >&2; exit 3")
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "it broke") {
		t.Errorf("%v", err)
	}
}
