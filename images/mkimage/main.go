// Command mkimage writes an image archive out of local files:
//
//	mkimage -name registry.example/x:1 -entrypoint /x -o x.tar build/x:/x
//
// Each argument is SOURCE:PATH, a local file and where it stands in the image. The
// archive is taken by docker load, ctr images import and kind load image-archive.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/flarekv/flare/images/archive"
)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "mkimage:", err)
		}
		os.Exit(2)
	}
}

func run(args []string, stderr io.Writer) error {
	var (
		img  = archive.Image{Created: time.Unix(0, 0), Labels: map[string]string{}}
		name string
		out  string
	)
	fs := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&name, "name", "", "full image name: registry/repository:tag")
	fs.StringVar(&out, "o", "", "archive to write")
	fs.StringVar(&img.Arch, "arch", runtime.GOARCH, "architecture of the files, as GOARCH names it")
	fs.StringVar(&img.User, "user", "65532:65532", "uid:gid that the image runs as")
	fs.Func("entrypoint", "word of the entrypoint (repeat)", func(s string) error {
		img.Entrypoint = append(img.Entrypoint, s)
		return nil
	})
	fs.Func("env", "K=V (repeat)", func(s string) error {
		if !strings.Contains(s, "=") {
			return errors.New("want K=V")
		}
		img.Env = append(img.Env, s)
		return nil
	})
	fs.Func("label", "K=V (repeat)", func(s string) error {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want K=V")
		}
		img.Labels[k] = v
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return err
	}
	if name == "" || out == "" {
		return errors.New("-name and -o are needed")
	}
	for _, arg := range fs.Args() {
		source, path, ok := strings.Cut(arg, ":")
		if !ok {
			return fmt.Errorf("argument %q: want SOURCE:PATH", arg)
		}
		f, err := readFile(source, path)
		if err != nil {
			return err
		}
		img.Files = append(img.Files, f)
	}
	p, err := archive.Pack(img)
	if err != nil {
		return err
	}
	return writeFile(out, func(w io.Writer) error { return p.Write(w, name) })
}

func readFile(source, path string) (archive.File, error) {
	st, err := os.Stat(source)
	if err != nil {
		return archive.File{}, err
	}
	data, err := os.ReadFile(source)
	if err != nil {
		return archive.File{}, err
	}
	// Only whether it can be executed is kept: the rest of the mode is the umask of
	// whoever built it.
	mode := int64(0o644)
	if st.Mode()&0o111 != 0 {
		mode = 0o755
	}
	return archive.File{Path: path, Mode: mode, Data: data}, nil
}

// writeFile lets a reader see the old archive or the new one, never a part.
func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
