package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/flarekv/flare/agent/storage"
)

// A Database can be copied while it is in use; *storage.DB is one.
type Database interface {
	Dir() string
	Position() storage.Position
	Checkpoint(dir string) (storage.Checkpoint, error)
}

// A Request says what backup is to be made. Name is required.
type Request struct {
	Root    string // directory of all backups, created if missing
	Name    string
	Node    string // for the manifest
	Version string // for the manifest
	Rate    int64  // bytes a second that are read, 0 for no limit
}

// stagingDir is where the checkpoint is made when the backup is on another file
// system; opening the database removes what is left there.
const stagingDir = "checkpoint.backup"

// Create makes a backup of a database. On the same file system the large files are
// shared with it: that takes no space until the database has replaced them, and a
// backup stays what it is. Report is called often; its error ends the work. After
// an error nothing is left.
func Create(ctx context.Context, db Database, req Request, report func(Progress) error) (Manifest, error) {
	return create(ctx, db, req, true, report)
}

// create is Create, without links if there may be none.
func create(ctx context.Context, db Database, req Request, link bool, report func(Progress) error) (m Manifest, err error) {
	if err := checkName(req.Name); err != nil {
		return m, err
	}
	if db.Position().Empty() {
		return m, refuse(ReasonNoData, "the database is empty: there is nothing to back up")
	}
	if err := os.MkdirAll(req.Root, 0o755); err != nil {
		return m, refuse(ReasonUnusable, "backup directory: %w", err)
	}
	dir := filepath.Join(req.Root, req.Name)
	switch err := os.Mkdir(dir, 0o755); {
	case errors.Is(err, fs.ErrExist):
		return m, refuse(ReasonExists, "backup %s exists; delete it or take another name", dir)
	case err != nil:
		return m, refuse(ReasonUnusable, "backup directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = ofDisk(errors.Join(err, os.RemoveAll(dir)))
		}
	}()
	m = Manifest{Format: formatVersion, Node: req.Node, Version: req.Version}
	from, to := filepath.Join(dir, dbDir), ""
	if !link || !linkable(db.Dir(), dir) {
		from, to = filepath.Join(db.Dir(), stagingDir), from
		if err := os.RemoveAll(from); err != nil {
			return m, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(from)) }()
	}
	m.CreatedAt = time.Now().UTC().Truncate(time.Millisecond)
	cp, err := db.Checkpoint(from)
	if err != nil {
		return m, err
	}
	for _, f := range cp.Files {
		m.Files = append(m.Files, File{Name: f.Name, Size: f.Size})
	}
	if to != "" {
		if err := requireSpace(req.Root, m.Bytes()); err != nil {
			return m, err
		}
		if err := os.Mkdir(to, 0o755); err != nil {
			return m, err
		}
	}
	mv := newMover(ctx, req.Rate, m.Files, report)
	for i := range m.Files {
		f := &m.Files[i]
		var size int64
		var crc uint32
		path := filepath.Join(from, f.Name)
		if to == "" {
			if size, crc, err = mv.file(path, nil); err == nil {
				err = syncFile(path)
			}
		} else {
			size, crc, err = mv.copyTo(path, filepath.Join(to, f.Name))
		}
		if err == nil && size != f.Size {
			err = fmt.Errorf("%s has %d bytes, had %d", path, size, f.Size)
		}
		if err != nil {
			return m, err
		}
		f.CRC32C = checksumText(crc)
	}
	made := filepath.Join(dir, dbDir)
	// Opening it proves that it is a database, and tells of what.
	pos, err := storage.ReadPosition(made)
	if err == nil && pos.LSN != cp.LSN {
		err = fmt.Errorf("the copy is at %v, want %v", pos.LSN, cp.LSN)
	}
	if err != nil {
		return m, err
	}
	if !pos.Restored.IsZero() {
		return m, refuse(ReasonUnfinished, "the copy at %v has records of %v, because a rewind is under way; try again when the node has caught up", pos.LSN, pos.Restored)
	}
	m.locate(pos)
	for _, d := range []string{made, dir, req.Root} {
		if err := syncFile(d); err != nil {
			return m, err
		}
	}
	return m, m.write(dir)
}

// linkable reports whether files of one directory can get a second name in another:
// two mounts of one file system count as different, and some have no links.
func linkable(from, to string) bool {
	f, err := os.CreateTemp(from, stagingDir+"*")
	if err != nil {
		return false
	}
	defer os.Remove(f.Name())
	f.Close()
	probe := filepath.Join(to, filepath.Base(f.Name()))
	if err := os.Link(f.Name(), probe); err != nil {
		return false
	}
	return os.Remove(probe) == nil
}
