package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/flarekv/flare/agent/replication/history"
)

// Checkpoint makes a copy of the database in dir, which must not exist and must
// be on the same file system. Table files are links, so it takes little space
// and time; commits wait for most of that time.
func (db *DB) Checkpoint(dir string) (Checkpoint, error) {
	// What can be flushed before need not be while everybody waits.
	if err := db.use((*engine).flushAll); err != nil {
		return Checkpoint{}, fmt.Errorf("storage: checkpoint: %w", err)
	}
	// RocksDB looks at all log files, and none may vanish under its eyes.
	db.walMu.Lock()
	defer db.walMu.Unlock()
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	if err := db.writable(); err != nil {
		return Checkpoint{}, fmt.Errorf("storage: checkpoint: %w", err)
	}
	if err := db.use(func(e *engine) error { return e.checkpoint(dir) }); err != nil {
		return Checkpoint{}, fmt.Errorf("storage: checkpoint: %w", err)
	}
	c := Checkpoint{Dir: dir, LSN: db.Position().LSN}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("storage: checkpoint: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return Checkpoint{}, fmt.Errorf("storage: checkpoint: %w", err)
		}
		if info.Mode().IsRegular() {
			c.Files = append(c.Files, history.File{Name: e.Name(), Size: info.Size()})
		}
	}
	return c, nil
}

const (
	incomingDir      = "incoming"
	checkpointPrefix = "checkpoint."
)

// Snapshot makes a checkpoint in the data directory and keeps the log behind it
// until it is released.
func (db *DB) Snapshot() (history.Snapshot, error) {
	hold, _ := db.Hold()
	dir := filepath.Join(db.opts.Dir, fmt.Sprintf("%s%d", checkpointPrefix, db.checkpoints.Add(1)))
	drop := func() {
		if err := os.RemoveAll(dir); err != nil {
			db.log.Warn("cannot remove checkpoint", "dir", dir, "err", err)
		}
	}
	release := func() {
		hold.Release()
		drop()
	}
	c, err := db.Checkpoint(dir)
	if err != nil {
		release()
		return history.Snapshot{}, err
	}
	return history.Snapshot{Checkpoint: c, DropFiles: drop, Release: release}, nil
}

// removeLeftovers removes what a process that ended early may have left, unless
// it is part of an exchange that has to be finished.
func removeLeftovers(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, markerFile)); err == nil {
		return nil
	}
	_, err = os.Stat(filepath.Join(dir, incomingFile))
	keep := err == nil // an interrupted copy can be gone on with
	for _, e := range entries {
		if keep && e.Name() == incomingDir {
			continue
		}
		if name := e.Name(); name == incomingDir || name == emptyDir || name == restoredDir || strings.HasPrefix(name, checkpointPrefix) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("remove leftover: %w", err)
			}
		}
	}
	return nil
}

// writeFileSync writes a file and waits until it is on disk.
func writeFileSync(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncDir waits until the names in a directory are on disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
