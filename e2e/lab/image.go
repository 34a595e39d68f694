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
	"time"

	"github.com/flarekv/flare/images/archive"
)

const (
	pauseImage   = "lab.local/pause:1"
	corednsImage = "lab.local/coredns:1"
)

// ownImages are the archives every node gets when it starts.
func (l *Lab) ownImages() []string {
	return []string{filepath.Join(l.cache, "images", "pause.tar"), filepath.Join(l.cache, "images", "coredns.tar")}
}

// writeImage writes the image of one static program, which runs as root: these
// are the lab's own.
func writeImage(file, name, program, arch string) error {
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	path := "/" + filepath.Base(program)
	image, err := archive.Pack(archive.Image{
		Arch: arch, Entrypoint: []string{path}, Created: time.Unix(0, 0),
		Files: []archive.File{{Path: path, Mode: 0o755, Data: binary}},
	})
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := image.Write(&out, name); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
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
