package archive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func testImage() Image {
	return Image{
		Arch: "amd64",
		Files: []File{
			{Path: "/usr/bin/flared", Mode: 0o755, Data: []byte("\x7fELF flared")},
			{Path: "/etc/passwd", Mode: 0o644, Data: []byte("flare:x:65532:65532::/:/sbin/nologin\n")},
			{Path: "/data", Mode: 0o750, Dir: true},
		},
		Entrypoint: []string{"/usr/bin/flared"},
		User:       "65532:65532",
		Labels: map[string]string{
			"org.opencontainers.image.version": "1.2.3",
			"org.opencontainers.image.title":   "flared",
		},
		Created: time.Unix(0, 0),
	}
}

const testName = "registry.example:5000/flare/flared:v1.2.3-0123456789ab"

func write(t *testing.T, img Image, name string) []byte {
	t.Helper()
	p, err := Pack(img)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := p.Write(&buf, name); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// untar returns the regular files by name, and every name in order.
func untar(t *testing.T, b []byte) (map[string][]byte, []*tar.Header) {
	t.Helper()
	files, headers := map[string][]byte{}, []*tar.Header{}
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		headers = append(headers, h)
		if h.Typeflag == tar.TypeReg {
			data, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			files[h.Name] = data
		}
	}
}

func decode[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return v
}

// blob follows a descriptor and checks what it promises.
func blob(t *testing.T, files map[string][]byte, d descriptor) []byte {
	t.Helper()
	b, ok := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
	if !ok {
		t.Fatalf("no blob for %s %s", d.MediaType, d.Digest)
	}
	sum := sha256.Sum256(b)
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != d.Digest {
		t.Errorf("%s: digest %s, content has %s", d.MediaType, d.Digest, got)
	}
	if len(b) != d.Size {
		t.Errorf("%s: size %d, content has %d", d.MediaType, d.Size, len(b))
	}
	return b
}

func TestArchiveReadBack(t *testing.T) {
	img := testImage()
	files, _ := untar(t, write(t, img, testName))

	if got := string(files["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout = %s", got)
	}
	index := decode[imageIndex](t, files["index.json"])
	if len(index.Manifests) != 1 {
		t.Fatalf("index has %d manifests", len(index.Manifests))
	}
	d := index.Manifests[0]
	if got := d.Annotations["io.containerd.image.name"]; got != testName {
		t.Errorf("containerd would call the image %q", got)
	}
	if got := d.Annotations["org.opencontainers.image.ref.name"]; got != "v1.2.3-0123456789ab" {
		t.Errorf("ref.name = %q", got)
	}
	p, err := Pack(img)
	if err != nil {
		t.Fatal(err)
	}
	if p.Digest() != d.Digest {
		t.Errorf("Digest() = %s, index says %s", p.Digest(), d.Digest)
	}

	manifest := decode[imageManifest](t, blob(t, files, d))
	if len(manifest.Layers) != 1 {
		t.Fatalf("manifest has %d layers", len(manifest.Layers))
	}
	config := decode[imageConfig](t, blob(t, files, manifest.Config))
	layer := blob(t, files, manifest.Layers[0])
	if !slices.Equal(config.RootFS.DiffIDs, []string{manifest.Layers[0].Digest}) {
		t.Errorf("diff IDs %v, want the layer's digest %s", config.RootFS.DiffIDs, manifest.Layers[0].Digest)
	}
	if config.Config.User != "65532:65532" || config.OS != "linux" || config.Architecture != "amd64" ||
		!slices.Equal(config.Config.Entrypoint, img.Entrypoint) || config.Config.Labels["org.opencontainers.image.version"] != "1.2.3" ||
		config.Created != "1970-01-01T00:00:00Z" {
		t.Errorf("config = %+v", config)
	}

	// docker load reads manifest.json; it must lead to the same blobs.
	docker := decode[[]dockerImage](t, files["manifest.json"])
	if len(docker) != 1 || !slices.Equal(docker[0].RepoTags, []string{testName}) {
		t.Fatalf("manifest.json = %+v", docker)
	}
	if want := "blobs/sha256/" + strings.TrimPrefix(manifest.Config.Digest, "sha256:"); docker[0].Config != want {
		t.Errorf("manifest.json config %s, want %s", docker[0].Config, want)
	}
	if want := []string{"blobs/sha256/" + strings.TrimPrefix(manifest.Layers[0].Digest, "sha256:")}; !slices.Equal(docker[0].Layers, want) {
		t.Errorf("manifest.json layers %v, want %v", docker[0].Layers, want)
	}

	content, headers := untar(t, layer)
	var names []string
	for _, h := range headers {
		names = append(names, h.Name)
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(img.Created) {
			t.Errorf("%s: uid %d gid %d mtime %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
	}
	if want := []string{"data/", "etc/", "etc/passwd", "usr/", "usr/bin/", "usr/bin/flared"}; !slices.Equal(names, want) {
		t.Errorf("layer holds %v, want %v", names, want)
	}
	if string(content["usr/bin/flared"]) != "\x7fELF flared" {
		t.Errorf("binary came back as %q", content["usr/bin/flared"])
	}
	if got := headers[5].FileInfo().Mode().Perm(); got != 0o755 {
		t.Errorf("binary has mode %o", got)
	}
}

func TestArchiveReproducible(t *testing.T) {
	first := write(t, testImage(), testName)
	reordered := testImage()
	slices.Reverse(reordered.Files)
	for name, img := range map[string]Image{"same": testImage(), "files in another order": reordered} {
		if !bytes.Equal(first, write(t, img, testName)) {
			t.Errorf("%s: other bytes", name)
		}
	}
	digests := map[string]string{}
	for name, change := range map[string]func(*Image){
		"unchanged":  func(*Image) {},
		"content":    func(img *Image) { img.Files[0].Data = []byte("other") },
		"mode":       func(img *Image) { img.Files[0].Mode = 0o700 },
		"entrypoint": func(img *Image) { img.Entrypoint = append(img.Entrypoint, "--x") },
		"label":      func(img *Image) { img.Labels["a"] = "b" },
		"user":       func(img *Image) { img.User = "0" },
	} {
		img := testImage()
		change(&img)
		p, err := Pack(img)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := digests[p.Digest()]; ok {
			t.Errorf("%s and %s have the same digest", name, other)
		}
		digests[p.Digest()] = name
	}
}

func TestPackRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Image)
		want   string
	}{
		{"no architecture", func(i *Image) { i.Arch = "" }, "architecture"},
		{"no entrypoint", func(i *Image) { i.Entrypoint = nil }, "entrypoint"},
		{"relative path", func(i *Image) { i.Files[0].Path = "flared" }, "absolute"},
		{"root", func(i *Image) { i.Files[0].Path = "/." }, "absolute"},
		{"twice", func(i *Image) { i.Files[1].Path = "/usr//bin/flared" }, "twice"},
		{"file as directory", func(i *Image) { i.Files[1].Path = "/usr" }, "not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img := testImage()
			tt.change(&img)
			if _, err := Pack(img); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that says %q", err, tt.want)
			}
		})
	}
}

func TestSplitName(t *testing.T) {
	for _, tt := range []struct{ name, repository, tag, wantErr string }{
		{"ghcr.io/flarekv/flared:v0.1.0", "ghcr.io/flarekv/flared", "v0.1.0", ""},
		{"host:5000/flared:v1", "host:5000/flared", "v1", ""},
		{"host:5000/flared", "", "", "no tag"},
		{"ghcr.io/flarekv/flared", "", "", "no tag"},
		{"ghcr.io/flarekv/flared:latest", "", "", "latest"},
		{"ghcr.io/flarekv/flared:-x", "", "", "tag"},
		{"ghcr.io/flarekv/flared:", "", "", "tag"},
		{"ghcr.io/flarekv/flared:a b", "", "", "tag"},
		{"flared:v1", "", "", "registry host"},
		{"flarekv/flared:v1", "", "", "registry host"},
	} {
		repository, tag, err := SplitName(tt.name)
		if tt.wantErr != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("%s: error %v, want one that says %q", tt.name, err, tt.wantErr)
			}
			continue
		}
		if err != nil || repository != tt.repository || tag != tt.tag {
			t.Errorf("%s: %q, %q, %v", tt.name, repository, tag, err)
		}
	}
}
