// Package archive writes container images as files, so that an image can be made
// where no container engine runs.
//
// An archive is one tar that two kinds of reader take: it is an OCI image layout
// (oci-layout, index.json, blobs/), which containerd reads (ctr images import, kind
// load image-archive), and it carries Docker's manifest.json over the same blobs
// (docker load). The same Image gives the same bytes on every machine.
package archive

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// Media types of the parts of an OCI image.
const (
	mediaTypeIndex    = "application/vnd.oci.image.index.v1+json"
	mediaTypeManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaTypeConfig   = "application/vnd.oci.image.config.v1+json"
	mediaTypeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// Image is a single-layer image for Linux.
type Image struct {
	Arch       string // GOARCH's name, such as amd64
	Files      []File
	Entrypoint []string
	Env        []string          // K=V
	User       string            // uid or uid:gid
	Labels     map[string]string // org.opencontainers.image.*
	Created    time.Time         // goes into the image and onto every file; whole seconds
}

// File is one entry of the layer. The directories above it are made.
type File struct {
	Path string // absolute
	Mode int64  // permission bits
	Dir  bool
	Data []byte
}

// Packed is an image ready to be written.
type Packed struct {
	layer, config, manifest []byte
	arch                    string
}

// Pack makes the blobs of an image.
func Pack(img Image) (*Packed, error) {
	if img.Arch == "" {
		return nil, errors.New("image has no architecture")
	}
	if len(img.Entrypoint) == 0 {
		return nil, errors.New("image has no entrypoint")
	}
	layer, err := packLayer(img.Files, img.Created)
	if err != nil {
		return nil, err
	}
	created := img.Created.UTC().Truncate(time.Second).Format(time.RFC3339)
	// The layer is stored as it is, not compressed: its digest then is its diff ID,
	// and the bytes do not depend on a compressor's version.
	config, err := json.Marshal(imageConfig{
		Created:      created,
		Architecture: img.Arch,
		OS:           "linux",
		Config: runConfig{
			User: img.User, Env: img.Env, Entrypoint: img.Entrypoint, WorkingDir: "/", Labels: img.Labels,
		},
		RootFS:  rootFS{Type: "layers", DiffIDs: []string{digest(layer)}},
		History: []history{{Created: created, CreatedBy: "flare images/archive"}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode image config: %w", err)
	}
	manifest, err := json.Marshal(imageManifest{
		SchemaVersion: 2,
		MediaType:     mediaTypeManifest,
		Config:        descriptor{MediaType: mediaTypeConfig, Digest: digest(config), Size: len(config)},
		Layers:        []descriptor{{MediaType: mediaTypeLayer, Digest: digest(layer), Size: len(layer)}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode image manifest: %w", err)
	}
	return &Packed{layer: layer, config: config, manifest: manifest, arch: img.Arch}, nil
}

// Digest returns the image's digest, "sha256:...". It covers everything but the
// name under which the image is written.
func (p *Packed) Digest() string { return digest(p.manifest) }

// Write writes the archive under a full image name, such as
// registry.example/flare/flared:v1.2.3.
func (p *Packed) Write(w io.Writer, name string) error {
	_, tag, err := SplitName(name)
	if err != nil {
		return err
	}
	index, err := json.Marshal(imageIndex{
		SchemaVersion: 2,
		MediaType:     mediaTypeIndex,
		Manifests: []descriptor{{
			MediaType: mediaTypeManifest,
			Digest:    p.Digest(),
			Size:      len(p.manifest),
			Platform:  &platform{Architecture: p.arch, OS: "linux"},
			Annotations: map[string]string{
				"io.containerd.image.name":          name,
				"org.opencontainers.image.ref.name": tag,
			},
		}},
	})
	if err != nil {
		return fmt.Errorf("encode index: %w", err)
	}
	dockerManifest, err := json.Marshal([]dockerImage{{
		Config:   blobPath(p.config),
		RepoTags: []string{name},
		Layers:   []string{blobPath(p.layer)},
	}})
	if err != nil {
		return fmt.Errorf("encode manifest.json: %w", err)
	}

	parts := []part{
		{blobPath(p.layer), p.layer},
		{blobPath(p.config), p.config},
		{blobPath(p.manifest), p.manifest},
	}
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.name, b.name) })
	parts = append(parts,
		part{"index.json", index},
		part{"manifest.json", dockerManifest},
		part{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
	)
	tw := tar.NewWriter(w)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(header(tar.TypeDir, dir, 0o755, 0, time.Unix(0, 0))); err != nil {
			return fmt.Errorf("write %s: %w", dir, err)
		}
	}
	for _, f := range parts {
		if err := tw.WriteHeader(header(tar.TypeReg, f.name, 0o644, len(f.data), time.Unix(0, 0))); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
		if _, err := tw.Write(f.data); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
	}
	return tw.Close()
}

type part struct {
	name string
	data []byte
}

// SplitName splits repository:tag. A name without a tag, with the tag latest or
// without a registry host is refused: readers complete such names in ways that
// differ.
func SplitName(name string) (repository, tag string, err error) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.Contains(name[i:], "/") {
		return "", "", fmt.Errorf("image name %q has no tag: want registry/repository:tag", name)
	}
	repository, tag = name[:i], name[i+1:]
	if !validTag(tag) {
		return "", "", fmt.Errorf("image name %q: tag %q is not [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", name, tag)
	}
	if tag == "latest" {
		return "", "", fmt.Errorf("image name %q: the tag latest does not say what is in the image", name)
	}
	host, rest, ok := strings.Cut(repository, "/")
	if !ok || rest == "" || !strings.ContainsAny(host, ".:") {
		return "", "", fmt.Errorf("image name %q has no registry host: want registry/repository:tag", name)
	}
	return repository, tag, nil
}

func validTag(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r))
	}) < 0
}

// packLayer writes the files in path order, each directory before what is in it.
func packLayer(files []File, mtime time.Time) ([]byte, error) {
	entries := map[string]File{}
	for _, f := range files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) == "/" {
			return nil, fmt.Errorf("image file %q: want an absolute path", f.Path)
		}
		f.Path = path.Clean(f.Path)
		if _, ok := entries[f.Path]; ok {
			return nil, fmt.Errorf("image file %s is there twice", f.Path)
		}
		entries[f.Path] = f
	}
	for _, f := range files {
		for dir := path.Dir(path.Clean(f.Path)); dir != "/"; dir = path.Dir(dir) {
			switch e, ok := entries[dir]; {
			case !ok:
				entries[dir] = File{Path: dir, Mode: 0o755, Dir: true}
			case !e.Dir:
				return nil, fmt.Errorf("image file %s: %s is not a directory", f.Path, dir)
			}
		}
	}
	sorted := make([]File, 0, len(entries))
	for _, f := range entries {
		sorted = append(sorted, f)
	}
	slices.SortFunc(sorted, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })

	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range sorted {
		h := header(tar.TypeReg, strings.TrimPrefix(f.Path, "/"), f.Mode, len(f.Data), mtime)
		if f.Dir {
			h = header(tar.TypeDir, strings.TrimPrefix(f.Path, "/")+"/", f.Mode, 0, mtime)
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("image file %s: %w", f.Path, err)
		}
		if f.Dir {
			continue
		}
		if _, err := tw.Write(f.Data); err != nil {
			return nil, fmt.Errorf("image file %s: %w", f.Path, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("close layer: %w", err)
	}
	return buf.Bytes(), nil
}

func header(typ byte, name string, mode int64, size int, mtime time.Time) *tar.Header {
	return &tar.Header{
		Typeflag: typ, Name: name, Mode: mode, Size: int64(size),
		ModTime: mtime.UTC().Truncate(time.Second), Format: tar.FormatPAX,
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func blobPath(b []byte) string {
	return "blobs/sha256/" + strings.TrimPrefix(digest(b), "sha256:")
}

// The documents of an archive. Maps among them are written in key order by
// encoding/json, so they too are reproducible.

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type imageIndex struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type imageManifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type imageConfig struct {
	Created      string    `json:"created"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Config       runConfig `json:"config"`
	RootFS       rootFS    `json:"rootfs"`
	History      []history `json:"history"`
}

type runConfig struct {
	User       string            `json:"User,omitempty"`
	Env        []string          `json:"Env,omitempty"`
	Entrypoint []string          `json:"Entrypoint"`
	WorkingDir string            `json:"WorkingDir"`
	Labels     map[string]string `json:"Labels,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type history struct {
	Created   string `json:"created"`
	CreatedBy string `json:"created_by"`
}

type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}
