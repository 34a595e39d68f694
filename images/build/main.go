// Command build makes the product's three container images without a container
// engine:
//
//	go run ./images/build
//
// For each program it writes <out>/<name>.tar (see package archive), and for all of
// them <out>/values.yaml, to be given to helm, and <out>/tags.env, to be sourced.
// An image's tag names its content (v<version>-<12 digits of the image's digest>),
// so an unchanged program keeps its tag, and a node that has the tag has the image.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/flarekv/flare/images/archive"
	"github.com/flarekv/flare/images/gobuild"
)

// program is one image's program.
type program struct {
	name        string // of the binary and of the image's repository
	pkg         string
	valuesKey   string // below images: in the chart's values
	description string
	cgo         bool // links RocksDB
}

var programs = []program{
	{"flared", "./agent/cmd/flared", "flared", "Storage node of flare, a persistent memcached-compatible store", true},
	{"flare-agent", "./agent/cmd/flare-agent", "agent", "Sidecar of flare's storage node", false},
	{"flare-controller", "./controller/cmd/flare-controller", "controller", "Index server and controller of flare on Kubernetes", false},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "images/build:", err)
		}
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("build", flag.ContinueOnError)
	out := fs.String("out", "build/images", "directory to write to")
	version := fs.String("version", "", "version stamped into the programs (default: appVersion of charts/flare)")
	registry := fs.String("registry", "ghcr.io/flarekv", "what the names of the images start with")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if *version == "" {
		v, err := chartVersion("charts/flare/Chart.yaml")
		if err != nil {
			return err
		}
		*version = v
	}
	if err := os.MkdirAll(filepath.Join(*out, "bin"), 0o755); err != nil {
		return err
	}
	var images []builtImage
	for _, p := range programs {
		img, err := build(ctx, p, *out, *registry, *version)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		images = append(images, img)
	}
	if err := replaceFile(filepath.Join(*out, "values.yaml"), valuesFile(images)); err != nil {
		return err
	}
	return replaceFile(filepath.Join(*out, "tags.env"), tagsFile(images))
}

// builtImage is an image whose archive is written.
type builtImage struct {
	program         program
	repository, tag string
	digest          string
	archive         string
}

func build(ctx context.Context, p program, out, registry, version string) (builtImage, error) {
	// The file name is the program's: go build leaves a binary alone that is up to date.
	binary := filepath.Join(out, "bin", p.name)
	if err := compile(ctx, p, binary, version); err != nil {
		return builtImage{}, err
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		return builtImage{}, err
	}
	packed, err := archive.Pack(image(p, data, version))
	if err != nil {
		return builtImage{}, err
	}
	img := builtImage{
		program:    p,
		repository: registry + "/" + p.name,
		tag:        tag(version, packed.Digest()),
		digest:     packed.Digest(),
		archive:    filepath.Join(out, p.name+".tar"),
	}
	// The full name is kept beside the archive: the same name is the same content.
	name, stamp := img.repository+":"+img.tag, filepath.Join(out, p.name+".name")
	if old, err := os.ReadFile(stamp); err == nil && string(old) == name+"\n" {
		if _, err := os.Stat(img.archive); err == nil {
			fmt.Println("kept ", name)
			return img, nil
		}
	}
	var buf bytes.Buffer
	if err := packed.Write(&buf, name); err != nil {
		return builtImage{}, err
	}
	if err := os.Remove(stamp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return builtImage{}, err
	}
	if err := replaceFile(img.archive, buf.Bytes()); err != nil {
		return builtImage{}, err
	}
	if err := replaceFile(stamp, []byte(name+"\n")); err != nil {
		return builtImage{}, err
	}
	fmt.Printf("built %s (%.1f MiB)\n", name, float64(len(data))/(1<<20))
	return img, nil
}

// compile builds a program without dynamic dependencies: it is all there is in its
// image. -trimpath and -buildvcs=false keep the bytes, and with them the tag, the
// same wherever and from whichever commit they are built.
func compile(ctx context.Context, p program, binary, version string) error {
	ldflags := "-s -w -X main.version=" + version
	args := []string{"-trimpath", "-buildvcs=false", "-o", binary}
	env := []string{"CGO_ENABLED=0"}
	if p.cgo {
		// RocksDB's static library leaves bzip2 to be named. The C library's resolver and
		// user database need shared objects at run time, hence Go's own.
		env = []string{"CGO_ENABLED=1", "CGO_LDFLAGS=" + strings.TrimSpace(os.Getenv("CGO_LDFLAGS")+" -lbz2")}
		args = append(args, "-tags", "netgo osusergo")
		ldflags += ` -linkmode external -extldflags "-static"`
	}
	args = append(args, "-ldflags", ldflags, p.pkg)
	say := func(at string) { fmt.Printf("%s: %s\n", p.name, at) }
	return gobuild.Run(ctx, "", env, say, args...)
}

// passwd gives the image's user a name; no program needs it.
const passwd = "root:x:0:0:root:/:/sbin/nologin\nflare:x:65532:65532:flare:/:/sbin/nologin\n"

func image(p program, binary []byte, version string) archive.Image {
	return archive.Image{
		Arch: runtime.GOARCH,
		Files: []archive.File{
			{Path: "/" + p.name, Mode: 0o755, Data: binary},
			{Path: "/etc/passwd", Mode: 0o644, Data: []byte(passwd)},
		},
		Entrypoint: []string{"/" + p.name},
		User:       "65532:65532",
		Labels: map[string]string{
			"org.opencontainers.image.title":       p.name,
			"org.opencontainers.image.description": p.description,
			"org.opencontainers.image.version":     version,
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.source":      "https://github.com/flarekv/flare",
		},
		Created: time.Unix(0, 0),
	}
}

// tag names an image's content.
func tag(version, digest string) string {
	return "v" + version + "-" + strings.TrimPrefix(digest, "sha256:")[:12]
}

// valuesFile is what makes the chart use these images.
func valuesFile(images []builtImage) []byte {
	var b bytes.Buffer
	b.WriteString("# Written by images/build: the images as built, for helm's --values.\nimages:\n")
	for _, img := range images {
		fmt.Fprintf(&b, "  %s:\n    repository: %s\n    tag: %s\n", img.program.valuesKey, img.repository, img.tag)
	}
	return b.Bytes()
}

// tagsFile is the same for a shell.
func tagsFile(images []builtImage) []byte {
	var b bytes.Buffer
	for _, img := range images {
		key := strings.ToUpper(strings.ReplaceAll(img.program.name, "-", "_"))
		fmt.Fprintf(&b, "%s_IMAGE=%s:%s\n%s_DIGEST=%s\n", key, img.repository, img.tag, key, img.digest)
	}
	return b.Bytes()
}

var appVersion = regexp.MustCompile(`(?m)^appVersion:\s*"?([^"\s]+)"?\s*$`)

func chartVersion(chart string) (string, error) {
	b, err := os.ReadFile(chart)
	if err != nil {
		return "", fmt.Errorf("run it in the module's root: %w", err)
	}
	m := appVersion.FindSubmatch(b)
	if m == nil {
		return "", fmt.Errorf("%s has no appVersion", chart)
	}
	return string(m[1]), nil
}

// replaceFile lets a reader see the old content or the new one, never a part, and
// does not touch a file that has the content already.
func replaceFile(name string, data []byte) error {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, bytes.NewReader(data))
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(f.Name(), name)
}
