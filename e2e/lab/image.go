package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

const (
	pauseImage   = "lab.local/pause:1"
	corednsImage = "lab.local/coredns:1"
)

// ownImages are the archives every node gets when it starts.
func (l *Lab) ownImages() []string {
	return []string{filepath.Join(l.cache, "images", "pause.tar"), filepath.Join(l.cache, "images", "coredns.tar")}
}

// writeImage writes an OCI archive of an image that is one static program at
// the root of an otherwise empty filesystem.
func writeImage(archive, name, program, arch string) error {
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	base := filepath.Base(program)
	var layer bytes.Buffer
	lw := tar.NewWriter(&layer)
	for _, dir := range []tar.Header{{Name: "etc/", Mode: 0o755}, {Name: "tmp/", Mode: 0o1777}} {
		dir.Typeflag = tar.TypeDir
		if err := lw.WriteHeader(&dir); err != nil {
			return err
		}
	}
	if err := addFile(lw, base, 0o755, binary); err != nil {
		return err
	}
	if err := lw.Close(); err != nil {
		return err
	}

	var out bytes.Buffer
	ow := tar.NewWriter(&out)
	blob := func(mediaType string, data []byte) (object, error) {
		sum := sha256.Sum256(data)
		digest := hex.EncodeToString(sum[:])
		return object{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(data)},
			addFile(ow, "blobs/sha256/"+digest, 0o644, data)
	}
	document := func(mediaType string, content object) (object, error) {
		data, err := json.Marshal(content)
		if err != nil {
			return nil, err
		}
		return blob(mediaType, data)
	}
	const oci = "application/vnd.oci.image."
	layerRef, err := blob(oci+"layer.v1.tar", layer.Bytes())
	if err != nil {
		return err
	}
	platform := object{"os": "linux", "architecture": arch}
	configRef, err := document(oci+"config.v1+json", object{
		"os": "linux", "architecture": arch,
		"config": object{"Entrypoint": []string{"/" + base}, "WorkingDir": "/"},
		"rootfs": object{"type": "layers", "diff_ids": []any{layerRef["digest"]}},
	})
	if err != nil {
		return err
	}
	manifestRef, err := document(oci+"manifest.v1+json", object{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
		"config": configRef, "layers": []object{layerRef},
	})
	if err != nil {
		return err
	}
	manifestRef["platform"] = platform
	manifestRef["annotations"] = object{nameAnnotation: name}
	index, err := json.Marshal(object{"schemaVersion": 2, "mediaType": oci + "index.v1+json", "manifests": []object{manifestRef}})
	if err != nil {
		return err
	}
	if err := addFile(ow, "index.json", 0o644, index); err != nil {
		return err
	}
	if err := addFile(ow, "oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := ow.Close(); err != nil {
		return err
	}
	if err := os.WriteFile(archive+".new", out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(archive+".new", archive)
}

func addFile(w *tar.Writer, name string, mode int64, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// Either annotation may carry an image's name in an OCI archive; the first is
// containerd's own.
const (
	nameAnnotation = "io.containerd.image.name"
	refAnnotation  = "org.opencontainers.image.ref.name"
)

// imageIdentity reads what an archive holds: the images' names, and a digest
// that is the same if and only if the images are. It reads OCI archives and
// those of "docker save".
func imageIdentity(archive io.Reader) (names []string, digest string, err error) {
	sum := sha256.New()
	r := tar.NewReader(archive)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, "", fmt.Errorf("not an image archive: %w", err)
		}
		// Both list digests of all else, so they stand for the whole.
		if h.Name != "index.json" && h.Name != "manifest.json" {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(r, 1<<20))
		if err != nil {
			return nil, "", err
		}
		var found []string
		if h.Name == "index.json" {
			found, err = indexNames(data)
		} else {
			found, err = manifestNames(data)
		}
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", h.Name, err)
		}
		names = append(names, found...)
		fmt.Fprintf(sum, "%s %d\n", h.Name, len(data))
		sum.Write(data)
	}
	if len(names) == 0 {
		return nil, "", errors.New("not an image archive, or one without a name: it has neither an index.json with the annotation " +
			nameAnnotation + " nor a manifest.json with RepoTags")
	}
	slices.Sort(names)
	return slices.Compact(names), hex.EncodeToString(sum.Sum(nil)), nil
}

func archiveIdentity(archive string) (names []string, digest string, err error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	if names, digest, err = imageIdentity(f); err != nil {
		return nil, "", fmt.Errorf("%s: %w", archive, err)
	}
	return names, digest, nil
}

// imagesToLoad is what a node that comes on should have, as far as the
// archives have not been cleaned away.
func (s *session) imagesToLoad() []string {
	archives := s.ownImages()
	for _, archive := range s.st.Images {
		if _, err := os.Stat(archive); err == nil {
			archives = append(archives, archive)
		}
	}
	return archives
}

func indexNames(data []byte) (names []string, err error) {
	var index struct {
		Manifests []struct{ Annotations map[string]string }
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, err
	}
	for _, m := range index.Manifests {
		if name := m.Annotations[nameAnnotation]; name != "" {
			names = append(names, name)
		} else if name := m.Annotations[refAnnotation]; name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

func manifestNames(data []byte) (names []string, err error) {
	var manifest []struct{ RepoTags []string }
	if err := json.Unmarshal(data, &manifest); err != nil {
		return nil, err
	}
	for _, m := range manifest {
		names = append(names, m.RepoTags...)
	}
	return names, nil
}

// LoadImages imports image archives into every node; one that is off gets them
// when it comes on, if they still exist then. Pods name the image as the
// archive does, with imagePullPolicy IfNotPresent or Never.
func (l *Lab) LoadImages(ctx context.Context, archives ...string) error {
	archives = slices.Clone(archives)
	s, err := l.beginUp(ctx)
	if err != nil {
		return err
	}
	defer s.end()
	for i, archive := range archives {
		if archives[i], err = filepath.Abs(archive); err != nil {
			return err
		}
		if _, _, err := archiveIdentity(archive); err != nil {
			return err
		}
	}
	// Nodes that are off now get them when they come on.
	err = s.change(func(st *state) {
		st.Images = append(st.Images, archives...)
		slices.Sort(st.Images)
		st.Images = slices.Compact(st.Images)
	})
	if err != nil {
		return err
	}
	var nodes []Node
	for _, ns := range s.st.Nodes {
		if n, err := planNode(ns.Number); err == nil && ns.on() {
			nodes = append(nodes, n)
		}
	}
	return eachNode(nodes, func(n Node) error { return s.loadInto(ctx, n, archives...) })
}

// loadInto imports archives into one node, but for those that it has.
func (s *session) loadInto(ctx context.Context, n Node, archives ...string) error {
	record := filepath.Join(s.nodeDir(n), "images.json")
	loaded := map[string]string{} // image name -> identity of the archive it came from
	if data, err := os.ReadFile(record); err == nil {
		if err := json.Unmarshal(data, &loaded); err != nil {
			return fmt.Errorf("%s: %w", record, err)
		}
	}
	for _, archive := range archives {
		names, digest, err := archiveIdentity(archive)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(names, func(name string) bool { return loaded[name] != digest }) {
			continue
		}
		if _, err := run(ctx, s.ctrArgs(n, "-n", "k8s.io", "images", "import", archive)...); err != nil {
			return fmt.Errorf("load %s into %s: %w", archive, n.Name, err)
		}
		for _, name := range names {
			loaded[name] = digest
		}
		data, err := json.Marshal(loaded)
		if err != nil {
			return err
		}
		if err := os.WriteFile(record, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) ctrArgs(n Node, args ...string) []string {
	return append([]string{filepath.Join(l.cache, "deb/usr/bin/ctr"), "-a", filepath.Join(l.nodeDir(n), "containerd.sock")}, args...)
}

// eachNode does something to all nodes at once.
func eachNode(nodes []Node, do func(Node) error) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = do(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// imageStale tells whether an archive has to be written again for a program.
func imageStale(archive, program string) bool {
	a, err := os.Stat(archive)
	if err != nil {
		return true
	}
	p, err := os.Stat(program)
	return err != nil || p.ModTime().After(a.ModTime())
}

func imageName(archive string) string {
	return "lab.local/" + strings.TrimSuffix(filepath.Base(archive), ".tar") + ":1"
}
