package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// state is all that the lab has to remember between two commands: what it
// started and changed, so that down can undo that and nothing else.
type state struct {
	Boot    string             `json:"boot"`    // kernel boot id: pids mean nothing in another
	Cache   string             `json:"cache"`   // build outputs this lab runs from
	Started time.Time          `json:"started"` // when up began
	Ready   bool               `json:"ready"`   // up came to its end
	Nodes   []*nodeState       `json:"nodes"`
	Gateway int                `json:"gateway"` // node that carries the machine's Service traffic
	Control map[string]process `json:"control"` // control plane and provisioner, by name
	Sysctls map[string]string  `json:"sysctls"` // values from before
	Made    []string           `json:"made"`    // directories outside the lab's own, in order
	Images  []string           `json:"images"`  // archives loaded so far
	Loops   []string           `json:"loops"`   // loop devices from before
}

type nodeState struct {
	Number int                `json:"number"`
	Init   process            `json:"init"` // holds the namespaces; zero when the power is off
	Parts  map[string]process `json:"parts"`
	Cut    bool               `json:"cut"`
	CutOff []int              `json:"cutOff"` // nodes it cannot talk to
}

func (n *nodeState) on() bool { return n.Init.alive() }

func (s *state) node(number int) (*nodeState, error) {
	for _, n := range s.Nodes {
		if n.Number == number {
			return n, nil
		}
	}
	return nil, fmt.Errorf("%w: no node %d: this lab has %d", ErrBadArgument, number, len(s.Nodes))
}

// session is exclusive use of the lab's state, across processes.
type session struct {
	*Lab
	mu   sync.Mutex // nodes come up in parallel
	st   *state     // nil: no lab
	lock *os.File
}

// begin waits for whoever else is at work on this lab. The lock is on the
// parent directory because the lab's own comes and goes.
func (l *Lab) begin(ctx context.Context) (*session, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: the lab makes namespaces, mounts and cgroups and has to be run by root", ErrBadArgument)
	}
	parent := filepath.Dir(l.dir)
	var lock *os.File
	err := waitFor(ctx, "the lab to be free", 10*time.Minute, 50*time.Millisecond, func(context.Context) error {
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return giveUp(err)
		}
		f, err := os.Open(parent)
		if err != nil {
			return err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			f.Close()
			return errors.New("another lab command is running")
		}
		// A down that just ended may have removed the directory.
		locked, err1 := f.Stat()
		there, err2 := os.Stat(parent)
		if err1 != nil || err2 != nil || !os.SameFile(locked, there) {
			f.Close()
			return errors.New("directory was replaced")
		}
		lock = f
		return nil
	})
	if err != nil {
		return nil, err
	}
	s := &session{Lab: l, lock: lock}
	if s.st, err = l.load(); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// beginUp is begin for what needs a lab that is there.
func (l *Lab) beginUp(ctx context.Context) (*session, error) {
	s, err := l.begin(ctx)
	if err != nil {
		return nil, err
	}
	if s.st == nil {
		s.end()
		return nil, fmt.Errorf("%w in %s: run \"lab up\" first", ErrNoLab, l.dir)
	}
	return s, nil
}

func (s *session) end() { s.lock.Close() }

func (l *Lab) stateFile() string { return filepath.Join(l.dir, "state.json") }

// load reads the state; nil means that there is no lab.
func (l *Lab) load() (*state, error) {
	data, err := os.ReadFile(l.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read lab state: %w", err)
	}
	st := &state{}
	if err := json.Unmarshal(data, st); err != nil {
		return nil, fmt.Errorf("read lab state %s: %w", l.stateFile(), err)
	}
	if boot, err := bootID(); err != nil {
		return nil, err
	} else if boot != st.Boot {
		st.forgetProcesses()
	}
	return st, nil
}

// forgetProcesses is for a state from before a reboot.
func (s *state) forgetProcesses() {
	clear(s.Control)
	for _, n := range s.Nodes {
		n.Init = process{}
		clear(n.Parts)
	}
}

// change applies do to the state and makes it durable before it returns.
func (s *session) change(do func(*state)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	do(s.st)
	data, err := json.MarshalIndent(s.st, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.stateFile()+".new", data, 0o644); err != nil {
		return fmt.Errorf("write lab state: %w", err)
	}
	return os.Rename(s.stateFile()+".new", s.stateFile())
}

// startControl starts a process of the root namespaces and remembers it.
func (s *session) startControl(name string, argv ...string) (process, error) {
	p, err := daemon(s.logFile(name), nil, argv...)
	if err != nil {
		return p, err
	}
	return p, s.change(func(st *state) { st.Control[name] = p })
}

// makeDirs makes directories outside the lab's own, for down to remove.
func (s *session) makeDirs(paths ...string) error {
	for _, path := range paths {
		for _, missing := range missingDirs(path) {
			if err := os.Mkdir(missing, 0o755); err != nil {
				return err
			}
			if err := s.change(func(st *state) { st.Made = append(st.Made, missing) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// missingDirs lists what of a path does not exist, outermost first.
func missingDirs(path string) []string {
	var missing []string
	for ; path != "/" && path != "."; path = filepath.Dir(path) {
		if _, err := os.Stat(path); err == nil {
			break
		}
		missing = append(missing, path)
	}
	slices.Reverse(missing)
	return missing
}

// dead names the processes that should run and do not.
func (s *state) dead() []string {
	var dead []string
	for _, name := range slices.Sorted(maps.Keys(s.Control)) {
		if !s.Control[name].alive() {
			dead = append(dead, name)
		}
	}
	for _, n := range s.Nodes {
		if !n.on() {
			dead = append(dead, fmt.Sprintf("n%d", n.Number))
			continue
		}
		for _, part := range nodeParts {
			if !n.Parts[part].alive() {
				dead = append(dead, fmt.Sprintf("n%d/%s", n.Number, part))
			}
		}
	}
	return dead
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
