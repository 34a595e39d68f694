package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/flarekv/flare/proto/topology"
)

// ErrNotEmpty means that a data directory has a database already.
var ErrNotEmpty = errors.New("data directory holds a database")

// An Install puts a copy of a database into a data directory that no process uses:
// the caller fills the directory Dir, and Commit puts it in the place of what was
// there, whole or not at all.
type Install struct {
	dir  string
	lock *os.File
	opts engineOptions
}

// BeginInstall takes a data directory, which is created if missing. One that holds
// a database is refused with ErrNotEmpty unless replace is set. The database stays
// until Commit.
func BeginInstall(dir string, replace bool) (*Install, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("storage: install: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("storage: install: %w", err)
	}
	o := Options{Dir: dir}.withDefaults()
	i := &Install{dir: dir, lock: lock, opts: engineOptions{writeBuffer: o.WriteBuffer, blockCache: o.BlockCache, maxOpenFiles: o.MaxOpenFiles}}
	if err := i.prepare(replace); err != nil {
		lock.Close()
		return nil, fmt.Errorf("storage: install: %w", err)
	}
	return i, nil
}

func (i *Install) prepare(replace bool) error {
	if err := recoverReplace(i.dir); err != nil {
		return err
	}
	switch _, err := os.Stat(filepath.Join(i.dir, "db")); {
	case err == nil && !replace:
		return fmt.Errorf("%w: %s", ErrNotEmpty, i.dir)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.RemoveAll(i.Dir()); err != nil {
		return err
	}
	return os.Mkdir(i.Dir(), 0o755)
}

// Dir returns the directory that is to be filled with the files of a checkpoint.
func (i *Install) Dir() string { return filepath.Join(i.dir, restoredDir) }

// StartHistory makes the copy the origin of a history with the identity. Copies of
// the same checkpoint that start the same history are at the same position of it.
func (i *Install) StartHistory(id string) (Position, error) {
	fail := func(err error) (Position, error) {
		return Position{}, fmt.Errorf("storage: install: start history: %w", err)
	}
	o := i.opts
	o.mustExist = true
	eng, err := openEngine(i.Dir(), o)
	if err != nil {
		return fail(err)
	}
	defer eng.close()
	pos, err := readPosition(eng)
	if err != nil {
		return fail(err)
	}
	// The new history begins with a log file, as a file is known by its first batch.
	if err := eng.flushAll(); err != nil {
		return fail(err)
	}
	var b batchBuilder
	next := originOf(pos, max(pos.LSN.Epoch, 1), pos.Partition, id)
	if err := eng.writeBatch(originBatch(&b, pos, next), true); err != nil {
		return fail(err)
	}
	return next, nil
}

// Commit puts the copy in the place of the database. After a crash at any point the
// directory has the one or the other, and Open or BeginInstall finish what was begun.
func (i *Install) Commit() error {
	if err := syncTree(i.Dir()); err != nil {
		return fmt.Errorf("storage: install: %w", err)
	}
	// The exchange needs something to exchange.
	if err := os.Mkdir(filepath.Join(i.dir, "db"), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("storage: install: %w", err)
	}
	for _, step := range replaceSteps(i.dir, restoredDir) {
		if err := step(); err != nil {
			return fmt.Errorf("storage: install: %w", err)
		}
	}
	return nil
}

// Close lets go of the data directory. What was not committed is removed.
func (i *Install) Close() error {
	return errors.Join(os.RemoveAll(i.Dir()), i.lock.Close())
}

// ReadPosition returns where a database stands that no process uses. It changes
// nothing.
func ReadPosition(dir string) (Position, error) {
	o := Options{}.withDefaults()
	eng, err := openEngine(dir, engineOptions{writeBuffer: o.WriteBuffer, blockCache: 1 << 20, maxOpenFiles: o.MaxOpenFiles, readOnly: true})
	if err != nil {
		return Position{}, fmt.Errorf("storage: %w", err)
	}
	defer eng.close()
	pos, err := readPosition(eng)
	if err != nil {
		return Position{}, fmt.Errorf("storage: %w", err)
	}
	return pos, nil
}

// originOf returns the position of the first batch of a history that goes on from
// pos in an epoch.
func originOf(pos Position, epoch uint64, partition int, id string) Position {
	lsn := topology.LSN{Epoch: epoch, Index: pos.LSN.Index + 1}
	return Position{LSN: lsn, History: id, Partition: partition, Lineage: []EpochStart{{Epoch: epoch, Index: lsn.Index}}}
}
