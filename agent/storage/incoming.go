package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A copy of another node's database is received into the directory incoming. While
// the file INCOMING names the copy, what has been received of it outlives the
// process: whoever goes on checks every byte again. Replace puts the whole copy in
// the place of the database.

const incomingFile = "INCOMING"

// IncomingDir returns an empty directory for a copy that is being received. What
// was in it is removed.
func (db *DB) IncomingDir() (string, error) {
	if err := db.DropIncoming(); err != nil {
		return "", err
	}
	dir := filepath.Join(db.opts.Dir, incomingDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("storage: create incoming directory: %w", err)
	}
	return dir, nil
}

// Incoming returns the directory for a copy that is being received, with what an
// interrupted one has left there, and the name that was given to that one; "" if
// there is none.
func (db *DB) Incoming() (dir, name string, err error) {
	b, err := os.ReadFile(filepath.Join(db.opts.Dir, incomingFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("storage: incoming copy: %w", err)
	}
	if name = string(b); name == "" {
		dir, err = db.IncomingDir()
		return dir, "", err
	}
	dir = filepath.Join(db.opts.Dir, incomingDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", fmt.Errorf("storage: create incoming directory: %w", err)
	}
	return dir, name, nil
}

// NameIncoming gives a name to the copy that is received from now on.
func (db *DB) NameIncoming(name string) error {
	file := filepath.Join(db.opts.Dir, incomingFile)
	tmp := file + ".tmp"
	err := writeFileSync(tmp, []byte(name))
	if err == nil {
		err = os.Rename(tmp, file)
	}
	if err == nil {
		err = syncDir(db.opts.Dir)
	}
	if err != nil {
		return fmt.Errorf("storage: name incoming copy: %w", err)
	}
	return nil
}

// DropIncoming removes what was received.
func (db *DB) DropIncoming() error {
	if _, err := os.Stat(filepath.Join(db.opts.Dir, markerFile)); err == nil {
		return errors.New("storage: remove incoming copy: it is about to take the place of the database")
	}
	// In this order a crash leaves nothing that would be gone on with.
	err := os.Remove(filepath.Join(db.opts.Dir, incomingFile))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.RemoveAll(filepath.Join(db.opts.Dir, incomingDir))
	}
	if err != nil {
		return fmt.Errorf("storage: remove incoming copy: %w", err)
	}
	return nil
}

// Space returns how many bytes are free on the disk, and how many of them must stay
// so for writes not to be refused.
func (db *DB) Space() (free, reserve int64, err error) {
	if free, err = db.opts.FreeSpace(db.opts.Dir); err != nil {
		return 0, 0, fmt.Errorf("storage: free space of %s: %w", db.opts.Dir, err)
	}
	return free, max(db.opts.MinFree, 0), nil
}
