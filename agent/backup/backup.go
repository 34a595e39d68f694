// Package backup keeps copies of a database in directories that tell by themselves
// whether they are whole: it makes them while the database is in use, checks them,
// and puts them in the place of a database.
//
// A backup is a directory
//
//	NAME/db/                  the files of a checkpoint of the database
//	NAME/flare-backup.json    the manifest: what it is a copy of, and each file's
//	                          size and checksum; written last
//
// in which nothing changes once the manifest is there. Without it the backup was
// not finished.
package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/flarekv/flare/agent/progress"
)

// Reasons of an Error.
const (
	ReasonInvalidName  = "invalid_name"
	ReasonExists       = "exists"
	ReasonNotFound     = "not_found"
	ReasonNoData       = "no_data"
	ReasonNoSpace      = "no_space"
	ReasonUnusable     = "backup_dir_unusable"
	ReasonIncomplete   = "backup_incomplete"
	ReasonDamaged      = "backup_damaged"
	ReasonUnknown      = "backup_unknown_format"
	ReasonNotEmpty     = "data_dir_not_empty"
	ReasonInUse        = "data_dir_in_use"
	ReasonWrongHistory = "invalid_history"
	ReasonUnfinished   = "rewind_unfinished"
)

// Error is a refusal or a failure with a machine-readable reason.
type Error struct {
	Reason string
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func refuse(reason, format string, args ...any) error {
	return &Error{reason, fmt.Errorf(format, args...)}
}

// Progress is how far something that goes by all files is.
type Progress struct {
	FilesDone, Files int
	BytesDone, Bytes uint64
	Rate             float64       // bytes a second
	ETA              time.Duration // negative when there is no telling
}

const (
	dbDir    = "db"
	maxName  = 128
	nameForm = "20060102T150405Z"
	// margin is how much space must be left on a disk that is copied to.
	margin = 64 << 20
)

// Name is the name of a backup that was given none.
func Name(now time.Time, partition int) string {
	name := now.UTC().Format(nameForm)
	if partition >= 0 {
		name = fmt.Sprintf("%s-p%d", name, partition)
	}
	return name
}

// checkName refuses what is no plain name: it comes over a wire and is joined to a
// path.
func checkName(name string) error {
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._", r) {
			return refuse(ReasonInvalidName, "backup %q: %q cannot be part of a name; letters, digits, '-', '_' and '.' can", name, r)
		}
	}
	if name == "" || len(name) > maxName || strings.HasPrefix(name, ".") {
		return refuse(ReasonInvalidName, "backup %q: want a name of 1 to %d characters that does not begin with a dot", name, maxName)
	}
	return nil
}

// A Listed backup is one that was found.
type Listed struct {
	Name     string
	Path     string
	Complete bool
	Manifest Manifest // when Complete
}

// List returns the backups in a directory, by name. One that does not exist has none.
func List(root string) ([]Listed, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, refuse(ReasonUnusable, "list backups: %w", err)
	}
	var list []Listed
	for _, e := range entries {
		if !e.IsDir() || checkName(e.Name()) != nil {
			continue
		}
		l := Listed{Name: e.Name(), Path: filepath.Join(root, e.Name())}
		m, err := ReadManifest(l.Path)
		if l.Complete = err == nil; l.Complete {
			l.Manifest = m
		} else if _, err := os.Stat(filepath.Join(l.Path, dbDir)); err != nil {
			continue // something else, such as lost+found
		}
		list = append(list, l)
	}
	return list, nil
}

// Delete removes a backup, whether it is complete or not. The manifest goes first,
// so that what is left after a crash is not taken for a backup.
func Delete(root, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	list, err := List(root)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(l Listed) bool { return l.Name == name }) {
		return refuse(ReasonNotFound, "backup %q: there is none in %s", name, root)
	}
	dir := filepath.Join(root, name)
	if err := os.Remove(filepath.Join(dir, ManifestFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return refuse(ReasonUnusable, "delete backup: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return refuse(ReasonUnusable, "delete backup: %w", err)
	}
	return nil
}

// A mover goes by files at a bounded rate, and tells how far it is.
type mover struct {
	ctx    context.Context
	rate   int64 // bytes a second, 0 for no limit
	report func(Progress) error

	p     Progress
	meter progress.Meter
	free  time.Time // when everything so far is paid for
	buf   []byte
}

// burst is how much unused bandwidth may be made up for.
const burst = 100 * time.Millisecond

func newMover(ctx context.Context, rate int64, files []File, report func(Progress) error) *mover {
	chunk := int64(256 << 10)
	if rate > 0 {
		chunk = min(chunk, max(rate/8, 512)) // several a second, so that the rate is even
	}
	m := &mover{ctx: ctx, rate: rate, report: report, buf: make([]byte, chunk)}
	m.p.Files = len(files)
	for _, f := range files {
		m.p.Bytes += uint64(f.Size)
	}
	m.meter.Add(time.Now(), 0)
	return m
}

// file reads a file to its end and returns its size and checksum. What it reads is
// written to out, if that is not nil.
func (m *mover) file(path string, out io.Writer) (size int64, crc uint32, err error) {
	in, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer in.Close()
	for {
		n, err := io.ReadFull(in, m.buf)
		if n > 0 {
			crc = checksum(crc, m.buf[:n])
			size += int64(n)
			if out != nil {
				if _, werr := out.Write(m.buf[:n]); werr != nil {
					return size, crc, werr
				}
			}
			if perr := m.passed(n); perr != nil {
				return size, crc, perr
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			m.p.FilesDone++
			return size, crc, m.tell(time.Now())
		case err != nil:
			return size, crc, err
		}
	}
}

// passed accounts for bytes and waits as long as the rate demands.
func (m *mover) passed(n int) error {
	now := time.Now()
	m.p.BytesDone += uint64(n)
	m.meter.Add(now, m.p.BytesDone)
	if err := m.tell(now); err != nil || m.rate <= 0 {
		return err
	}
	if oldest := now.Add(-burst); m.free.Before(oldest) {
		m.free = oldest
	}
	m.free = m.free.Add(time.Duration(float64(n) / float64(m.rate) * float64(time.Second)))
	wait := m.free.Sub(now)
	if wait <= 0 {
		return nil
	}
	select {
	case <-m.ctx.Done():
		return m.ctx.Err()
	case <-time.After(wait):
		return nil
	}
}

func (m *mover) tell(now time.Time) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	m.p.Rate, m.p.ETA = m.meter.Rate(now), -1
	if eta, ok := progress.ETA(m.p.Bytes-min(m.p.BytesDone, m.p.Bytes), m.p.Rate); ok {
		m.p.ETA = eta
	}
	if m.report == nil {
		return nil
	}
	return m.report(m.p)
}

// copyTo copies a file to a new one, which is on disk when it returns.
func (m *mover) copyTo(from, to string) (size int64, crc uint32, err error) {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return 0, 0, err
	}
	size, crc, err = m.file(from, out)
	return size, crc, errors.Join(err, out.Sync(), out.Close())
}

// requireSpace refuses if a directory's disk has not enough room for so many bytes.
func requireSpace(dir string, bytes uint64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return refuse(ReasonUnusable, "free space of %s: %w", dir, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < bytes+margin {
		return refuse(ReasonNoSpace, "%s: %d bytes are free, %d are needed and %d more must be left", dir, free, bytes, margin)
	}
	return nil
}

// ofDisk gives an error of the file system its reason.
func ofDisk(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return &Error{ReasonNoSpace, err}
	}
	return err
}

// syncFile waits until a file, or the names in a directory, are on disk.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
