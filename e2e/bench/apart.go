package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/flarekv/flare/e2e/procs"
)

// apart gives the replica a processor that nobody else is on, and the memory for a disk,
// as if it were a machine of its own: what a catch-up costs the master is otherwise
// lost in what the replica takes away from it. The zero value lets everybody run
// everywhere.
type apart struct{ on bool }

// disk is where a file system in memory is.
const disk = "/dev/shm"

const (
	masterProcessor = iota // and the client's
	replicaProcessor
)

func processor(n int) *unix.CPUSet {
	var set unix.CPUSet
	set.Set(n)
	return &set
}

// begin keeps the master and this program on one processor.
func (a *apart) begin(master *procs.Process) error {
	if runtime.NumCPU() < 2 {
		return fmt.Errorf("%d processor, want 2 to keep nodes apart", runtime.NumCPU())
	}
	a.on = true
	for _, pid := range []int{master.PID(), os.Getpid()} {
		// A thread that comes meanwhile has it from the one that made it.
		for range 2 {
			tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
			if err != nil {
				return err
			}
			for _, task := range tasks {
				tid, err := strconv.Atoi(filepath.Base(task))
				if err != nil {
					return err
				}
				if err := unix.SchedSetaffinity(tid, processor(masterProcessor)); err != nil && err != unix.ESRCH {
					return fmt.Errorf("keep thread %d of process %d on a processor: %w", tid, pid, err)
				}
			}
		}
	}
	return nil
}

// start starts the replica on its processor: a program runs where the thread did that
// started it.
func (a *apart) start(p *procs.Process) error {
	if !a.on {
		return p.Start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.SchedSetaffinity(0, processor(replicaProcessor)); err != nil {
		return err
	}
	err := p.Start()
	if back := unix.SchedSetaffinity(0, processor(masterProcessor)); err == nil {
		err = back
	}
	return err
}

// emptyDisk has the data of a node that does not run on a disk of their own, which is
// empty. remove has to be called when the node does not run any more.
func (a *apart) emptyDisk(n *procs.Node) (remove func(), err error) {
	dir, err := os.MkdirTemp(disk, "flare-bench-")
	if err != nil {
		return nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	if err = os.RemoveAll(n.DataDir); err == nil {
		err = os.Symlink(dir, n.DataDir)
	}
	if err != nil {
		remove()
	}
	return remove, err
}
