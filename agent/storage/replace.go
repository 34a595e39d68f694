package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A database takes the place of the current one in steps, each of which is
// atomic on disk. The file REPLACE, which names the directory of the new one,
// says that the new database is whole and the steps are under way; whoever opens
// the data directory finishes them. So a crash leaves the old database or the
// new one, never parts.

const (
	markerFile = "REPLACE"
	oldDir     = "db.old"
	emptyDir   = "empty"
	// restoredDir is filled while no process serves from the directory.
	restoredDir = "restored"
)

// replaceSteps exchanges dir/db for dir/name. Any prefix of them may have been
// carried out already.
func replaceSteps(dir, name string) []func() error {
	db, old, src, marker := filepath.Join(dir, "db"), filepath.Join(dir, oldDir), filepath.Join(dir, name), filepath.Join(dir, markerFile)
	return []func() error{
		func() error { return os.RemoveAll(old) },
		func() error {
			tmp := marker + ".tmp"
			if err := writeFileSync(tmp, []byte(name)); err != nil {
				return err
			}
			return os.Rename(tmp, marker)
		},
		func() error { return syncDir(dir) },
		func() error { return os.Rename(db, old) },
		func() error { return os.Rename(src, db) },
		func() error { return syncDir(dir) },
		func() error { return os.Remove(marker) },
		func() error { return syncDir(dir) },
		func() error { return os.RemoveAll(old) },
	}
}

// recoverReplace finishes an exchange that a crash interrupted.
func recoverReplace(dir string) error {
	marker := filepath.Join(dir, markerFile)
	name, err := os.ReadFile(marker)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.RemoveAll(filepath.Join(dir, oldDir)); err != nil {
			return fmt.Errorf("remove replaced database: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", markerFile, err)
	}
	src := string(name)
	if src != incomingDir && src != emptyDir && src != restoredDir {
		return fmt.Errorf("%s names %q, want %q, %q or %q", marker, src, incomingDir, emptyDir, restoredDir)
	}
	steps := replaceSteps(dir, src)[2:] // the marker is there
	_, err = os.Stat(filepath.Join(dir, src))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		steps = steps[3:] // the new database is in place
	case err != nil:
		return err
	default:
		if _, err := os.Stat(filepath.Join(dir, "db")); errors.Is(err, fs.ErrNotExist) {
			steps = steps[2:] // the old database is out of the way
		} else if err != nil {
			return err
		}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("finish replacing the database: %w", err)
		}
	}
	return nil
}

// Replace puts the database in dir, which must be the incoming directory with a
// whole checkpoint in it, in the place of the current one. Everybody else waits
// meanwhile; open tails end with ErrReplaced. After an error the current
// database is still in use, unless the error is about opening the new one.
func (db *DB) Replace(dir string) error {
	want := filepath.Join(db.opts.Dir, incomingDir)
	if filepath.Clean(dir) != want {
		return fmt.Errorf("storage: replace: directory %s, want %s", dir, want)
	}
	// Opening it proves that it is whole, and does now what need not be done
	// while everybody waits.
	o := db.engineOptions()
	o.mustExist = true
	eng, err := openEngine(dir, o)
	if err != nil {
		return fmt.Errorf("storage: replace: new database: %w", err)
	}
	pos, err := readPosition(eng)
	eng.close()
	if err != nil {
		return fmt.Errorf("storage: replace: new database: %w", err)
	}
	if pos.Empty() {
		return errors.New("storage: replace: new database has no position")
	}
	if err := db.exchange(incomingDir); err != nil {
		return fmt.Errorf("storage: replace: %w", err)
	}
	// Left behind by a crash it names a copy of which nothing is there.
	if err := os.Remove(filepath.Join(db.opts.Dir, incomingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		db.log.Warn("cannot remove what is left of a copy", "dir", db.opts.Dir, "err", err)
	}
	return nil
}

// Wipe puts an empty database in the place of the current one.
func (db *DB) Wipe() error {
	dir := filepath.Join(db.opts.Dir, emptyDir)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("storage: wipe: %w", err)
	}
	eng, err := openEngine(dir, db.engineOptions())
	if err != nil {
		return fmt.Errorf("storage: wipe: %w", err)
	}
	eng.close()
	if err := db.exchange(emptyDir); err != nil {
		return fmt.Errorf("storage: wipe: %w", err)
	}
	return nil
}

func (db *DB) exchange(name string) error {
	if err := syncTree(filepath.Join(db.opts.Dir, name)); err != nil {
		return err
	}
	defer db.lockStripes()()
	db.walMu.Lock()
	defer db.walMu.Unlock()
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	defer db.cache.lock()()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return ErrClosed
	}
	if db.eng != nil {
		if db.eng.failed.Load() {
			return fmt.Errorf("%w: the current database cannot be closed now", ErrWriteFailed)
		}
		db.eng.close()
		db.eng = nil
	}
	var err error
	for _, step := range replaceSteps(db.opts.Dir, name) {
		if err = step(); err != nil {
			break
		}
	}
	// Whatever happened, the directory has one of the two now.
	db.begun = 0
	db.failure = nil
	db.cache.reset()
	db.wals.reset()
	db.posMu.Lock()
	db.generation++
	db.posMu.Unlock()
	if openErr := db.openCurrent(); openErr != nil {
		db.failure = fmt.Errorf("%w: %w", ErrWriteFailed, openErr)
		db.moved.broadcast()
		return errors.Join(err, openErr)
	}
	return err
}

// syncTree waits until a directory with its files is on disk.
func syncTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if e.IsDir() {
			if err := syncTree(name); err != nil {
				return err
			}
			continue
		}
		if strings.HasPrefix(e.Name(), "LOG") {
			continue // RocksDB's own log of events
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("sync %s: %w", name, err)
		}
	}
	return syncDir(dir)
}
