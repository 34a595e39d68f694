package replication

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAside(t *testing.T) {
	// The system call returns 20 less the niceness.
	nice := func() int {
		p, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
		if err != nil {
			t.Fatal(err)
		}
		return 20 - p
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := nice()
	failed := errors.New("failed")
	var within int
	if err := aside(func() error { within = nice(); return failed }); err != failed {
		t.Errorf("err = %v", err)
	}
	if within != max(before, asideNice) {
		t.Errorf("niceness %d, want %d", within, max(before, asideNice))
	}
	for range 100 { // no thread is left that others would get
		here := make(chan int)
		go func() { here <- nice() }()
		if n := <-here; n != before {
			t.Fatalf("another goroutine runs with niceness %d, want %d", n, before)
		}
	}
}
