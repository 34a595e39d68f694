package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// promiseName is a file in the data directory.
const promiseName = "lease-promise"

// A promiseMark is a file that is there while this node is bound by a promise, so that
// the next process knows of it. For the controller a node that starts anew is out of
// sync, and comes in sync by a grant of the very master that has the promise; but one
// that the map already names master when it restarts is master again.
//
// The file has to outlive the process, not the machine: that takes longer to start
// than any promise lasts.
type promiseMark struct {
	path string // empty: there is no place for it
	set  bool
}

// findMark looks for the mark of a former process; found tells whether there is one.
func findMark(dataDir string) (m promiseMark, found bool) {
	if dataDir == "" {
		return m, false
	}
	m.path = filepath.Join(dataDir, promiseName)
	_, err := os.Stat(m.path)
	// What cannot be looked at may be there.
	m.set = err == nil || !errors.Is(err, fs.ErrNotExist)
	return m, m.set
}

// put makes the mark.
func (m *promiseMark) put() error {
	if m.set || m.path == "" {
		return nil
	}
	if err := os.WriteFile(m.path, nil, 0o644); err != nil {
		return fmt.Errorf("note a promise: %w", err)
	}
	m.set = true
	return nil
}

// drop removes it.
func (m *promiseMark) drop() error {
	if !m.set || m.path == "" {
		return nil
	}
	if err := os.Remove(m.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note the end of a promise: %w", err)
	}
	m.set = false
	return nil
}
