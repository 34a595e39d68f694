package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// ManifestFile is the name of the manifest in a backup's directory.
const ManifestFile = "flare-backup.json"

// formatVersion is the version of the manifest and of what it describes.
const formatVersion = 1

// A Manifest says what a backup is a copy of.
type Manifest struct {
	Format    int       `json:"format"`
	CreatedAt time.Time `json:"createdAt"`
	Node      string    `json:"node"`    // key of the node that made it
	Version   string    `json:"version"` // of its flared
	Partition int       `json:"partition"`
	History   string    `json:"history"`
	Epoch     uint64    `json:"epoch"` // of the position, as Index
	Index     uint64    `json:"index"`
	Lineage   []Epoch   `json:"lineage"`
	Files     []File    `json:"files"`
}

// Epoch tells with which batch an epoch began.
type Epoch struct {
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
}

// File is one file of the database.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	CRC32C string `json:"crc32c"` // eight hex digits
}

// LSN returns the position of the copy.
func (m Manifest) LSN() topology.LSN { return topology.LSN{Epoch: m.Epoch, Index: m.Index} }

// Bytes returns the size of all files.
func (m Manifest) Bytes() (n uint64) {
	for _, f := range m.Files {
		n += uint64(f.Size)
	}
	return n
}

// locate fills in what the copy is of.
func (m *Manifest) locate(pos history.Position) {
	m.Partition, m.History, m.Epoch, m.Index = pos.Partition, pos.History, pos.LSN.Epoch, pos.LSN.Index
	m.Lineage = nil
	for _, s := range pos.Lineage {
		m.Lineage = append(m.Lineage, Epoch{s.Epoch, s.Index})
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(crc uint32, b []byte) uint32 { return crc32.Update(crc, castagnoli, b) }

func checksumText(crc uint32) string { return fmt.Sprintf("%08x", crc) }

// ReadManifest reads the manifest of the backup in a directory.
func ReadManifest(dir string) (Manifest, error) {
	var m Manifest
	text, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, derr := os.Stat(dir); derr != nil {
			return m, refuse(ReasonNotFound, "backup %s: %w", dir, derr)
		}
		return m, refuse(ReasonIncomplete, "backup %s has no %s: it was not finished, or is no backup", dir, ManifestFile)
	}
	if err != nil {
		return m, refuse(ReasonUnusable, "backup: %w", err)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, refuse(ReasonDamaged, "backup %s: %s: %w", dir, ManifestFile, err)
	}
	if m.Format != formatVersion {
		return m, refuse(ReasonUnknown, "backup %s has format %d; this version knows %d", dir, m.Format, formatVersion)
	}
	for _, f := range m.Files {
		if f.Name != filepath.Base(f.Name) || !filepath.IsLocal(f.Name) || f.Name == "." || f.Size < 0 {
			return m, refuse(ReasonDamaged, "backup %s: %s names file %q of %d bytes", dir, ManifestFile, f.Name, f.Size)
		}
	}
	return m, nil
}

// write writes the manifest, whole or not at all, and waits until it is on disk.
func (m Manifest) write(dir string) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, ManifestFile+".tmp")
	if err := os.WriteFile(tmp, append(text, '\n'), 0o644); err != nil {
		return err
	}
	if err := syncFile(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, ManifestFile)); err != nil {
		return err
	}
	return syncFile(dir)
}
