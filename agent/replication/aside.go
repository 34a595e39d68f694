package replication

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// asideNice is how nice a thread is that works aside: of a processor that somebody
// else wants it gets about a tenth.
const asideNice = 10

// aside runs fn, which moves much and which nobody waits for, on a thread of its own
// that gets what processor time others leave. It returns when fn has.
func aside(fn func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: without a privilege no thread becomes less nice again, so it
		// ends with the goroutine.
		runtime.LockOSThread()
		// Without it all is right, only less considerate.
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), asideNice)
		err = fn()
	}()
	<-done
	return err
}
