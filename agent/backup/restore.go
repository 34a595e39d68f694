package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/flarekv/flare/agent/storage"
)

// Verify checks that the backup in a directory is whole: that each file has the
// size and the checksum that the manifest says, that there is no other, and that
// they are a database at the manifest's position.
func Verify(ctx context.Context, dir string, report func(Progress) error) (Manifest, error) {
	m, err := ReadManifest(dir)
	if err != nil {
		return m, err
	}
	if err := pass(ctx, m, dir, "", report); err != nil {
		return m, err
	}
	return m, matches(m, filepath.Join(dir, dbDir))
}

// matches checks that a directory is the database of the manifest.
func matches(m Manifest, dir string) error {
	pos, err := storage.ReadPosition(dir)
	if err != nil {
		return refuse(ReasonDamaged, "backup: %w", err)
	}
	var found Manifest
	found.locate(pos)
	if found.LSN() != m.LSN() || found.History != m.History || found.Partition != m.Partition || !slices.Equal(found.Lineage, m.Lineage) {
		return refuse(ReasonDamaged, "backup: the files are partition %d at %v of history %q, the manifest says partition %d at %v of history %q",
			found.Partition, found.LSN(), found.History, m.Partition, m.LSN(), m.History)
	}
	return nil
}

// pass checks every file, and copies it to a directory unless that is "".
func pass(ctx context.Context, m Manifest, dir, to string, report func(Progress) error) error {
	entries, err := os.ReadDir(filepath.Join(dir, dbDir))
	if err != nil {
		return refuse(ReasonDamaged, "backup: %w", err)
	}
	for _, e := range entries {
		if !slices.ContainsFunc(m.Files, func(f File) bool { return f.Name == e.Name() }) {
			return refuse(ReasonDamaged, "backup %s: file %s is not in the manifest", dir, e.Name())
		}
	}
	mv := newMover(ctx, 0, m.Files, report)
	for _, f := range m.Files {
		path := filepath.Join(dir, dbDir, f.Name)
		var size int64
		var crc uint32
		if to == "" {
			size, crc, err = mv.file(path, nil)
		} else {
			size, crc, err = mv.copyTo(path, filepath.Join(to, f.Name))
		}
		switch {
		case errors.Is(err, os.ErrNotExist):
			return refuse(ReasonDamaged, "backup: %w", err)
		case err != nil:
			return ofDisk(err)
		case size != f.Size:
			return refuse(ReasonDamaged, "backup: %s has %d bytes, the manifest says %d", path, size, f.Size)
		case checksumText(crc) != f.CRC32C:
			return refuse(ReasonDamaged, "backup: %s has checksum %08x, the manifest says %s", path, crc, f.CRC32C)
		}
	}
	return nil
}

// A Restoration says what is to be restored.
type Restoration struct {
	From    string // directory of the backup
	DataDir string // of flared, which must not run
	Replace bool   // a database that is there
	History string // identity of the history that begins with the copy; "" to go on with that of the backup
}

// Restored is what a data directory holds after a restore.
type Restored struct {
	Manifest Manifest
	Position storage.Position
}

// Restore checks a backup and puts a copy of it in the place of a database, whole
// or not at all. The backup is not changed.
func Restore(ctx context.Context, r Restoration, report func(Progress) error) (Restored, error) {
	m, err := ReadManifest(r.From)
	if err != nil {
		return Restored{}, err
	}
	if r.History != "" && (len(r.History) > 64 || checkName(r.History) != nil) {
		return Restored{}, refuse(ReasonWrongHistory, "history %q: want 1 to 64 letters and digits", r.History)
	}
	in, err := storage.BeginInstall(r.DataDir, r.Replace)
	switch {
	case errors.Is(err, storage.ErrLocked):
		return Restored{}, &Error{ReasonInUse, err}
	case errors.Is(err, storage.ErrNotEmpty):
		return Restored{}, &Error{ReasonNotEmpty, err}
	case err != nil:
		return Restored{}, ofDisk(err)
	}
	pos, err := install(ctx, in, m, r, report)
	if err := errors.Join(err, in.Close()); err != nil {
		return Restored{}, err
	}
	return Restored{m, pos}, nil
}

func install(ctx context.Context, in *storage.Install, m Manifest, r Restoration, report func(Progress) error) (storage.Position, error) {
	fail := func(err error) (storage.Position, error) { return storage.Position{}, ofDisk(err) }
	if err := requireSpace(r.DataDir, m.Bytes()); err != nil {
		return fail(err)
	}
	if err := pass(ctx, m, r.From, in.Dir(), report); err != nil {
		return fail(err)
	}
	if err := matches(m, in.Dir()); err != nil {
		return fail(err)
	}
	pos, err := storage.ReadPosition(in.Dir())
	if err == nil && r.History != "" {
		pos, err = in.StartHistory(r.History)
	}
	if err != nil {
		return fail(fmt.Errorf("open the copy: %w", err))
	}
	if err := in.Commit(); err != nil {
		return fail(err)
	}
	return pos, nil
}
