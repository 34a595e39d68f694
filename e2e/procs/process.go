package procs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one program of the cluster. It can be ended and started again
// with the same arguments.
type Process struct {
	Name    string
	LogFile string

	path    string
	args    []string
	cmd     *exec.Cmd
	done    chan struct{}
	err     error
	stopped atomic.Bool
}

func (c *Cluster) process(name, program string, args ...string) (*Process, error) {
	return Run(c.opts.Dir, name, filepath.Join(c.opts.BinDir, program), args...)
}

// Run starts a program that logs to dir/name.log.
func Run(dir, name, program string, args ...string) (*Process, error) {
	p := &Process{Name: name, LogFile: filepath.Join(dir, name+".log"), path: program, args: args}
	return p, p.Start()
}

// Start starts the program; its output is appended to LogFile.
func (p *Process) Start() error {
	log, err := os.OpenFile(p.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	// A child must not outlive a test that was killed, nor take the
	// terminal's Ctrl-C before its parent decides the order of the stop.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done, p.err = cmd, done, nil
	p.stopped.Store(false)
	go func() {
		p.err = cmd.Wait()
		close(done)
	}()
	return nil
}

// PID of the process started last.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Running tells whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Err is how the process ended; only valid once it has.
func (p *Process) Err() error {
	<-p.done
	if p.err == nil {
		return fmt.Errorf("exit status 0")
	}
	return p.err
}

// Terminate sends SIGTERM.
func (p *Process) Terminate() {
	p.stopped.Store(true)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() {
	p.stopped.Store(true)
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Freeze stops the process without ending it: whatever it is sent from now on waits.
func (p *Process) Freeze() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	// The signal only asks for it. The parent is told when the last thread has stopped,
	// and WNOWAIT leaves that, as it leaves an end, for whoever waits for the process.
	for {
		err := unix.Waitid(unix.P_PID, p.PID(), nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// Thaw lets a frozen process go on.
func (p *Process) Thaw() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Reload asks the process to read its own file again.
func (p *Process) Reload() error { return p.cmd.Process.Signal(syscall.SIGHUP) }

// WaitOrKill waits for the end after Terminate; a process that takes longer
// than d is killed, which is an error.
func (p *Process) WaitOrKill(d time.Duration) error {
	select {
	case <-p.done:
		return nil
	case <-time.After(d):
		p.Kill()
		return fmt.Errorf("%s did not end within %s of SIGTERM and was killed (log: %s)", p.Name, d, p.LogFile)
	}
}
