package lab

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestImageIdentity(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "server")
	write := func(archive, name, content string) (names []string, digest string) {
		t.Helper()
		if err := os.WriteFile(program, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, archive)
		if err := writeImage(file, name, program, "amd64"); err != nil {
			t.Fatal(err)
		}
		names, digest, err := archiveIdentity(file)
		if err != nil {
			t.Fatal(err)
		}
		return names, digest
	}
	names, first := write("one.tar", "lab.local/server:1", "program")
	if !slices.Equal(names, []string{"lab.local/server:1"}) {
		t.Errorf("names %v", names)
	}
	if _, again := write("two.tar", "lab.local/server:1", "program"); again != first {
		t.Error("the same image has two digests")
	}
	if _, changed := write("three.tar", "lab.local/server:1", "program, changed"); changed == first {
		t.Error("another program has the same digest")
	}
	if _, renamed := write("four.tar", "lab.local/server:2", "program"); renamed == first {
		t.Error("another name has the same digest")
	}
	if imageStale(filepath.Join(dir, "four.tar"), program) {
		t.Error("an archive newer than its program is stale")
	}
	if !imageStale(filepath.Join(dir, "none.tar"), program) {
		t.Error("an archive that is not there is not stale")
	}
}

func TestImageIdentityOfOthers(t *testing.T) {
	for _, c := range []struct {
		name, file, content string
		want                []string
	}{
		{"docker save", "manifest.json", `[{"Config":"c.json","RepoTags":["a/b:2","a/b:1"]}]`, []string{"a/b:1", "a/b:2"}},
		{"ref annotation", "index.json", `{"manifests":[{"annotations":{"org.opencontainers.image.ref.name":"a:1"}}]}`, []string{"a:1"}},
		{"no name", "index.json", `{"manifests":[{}]}`, nil},
		{"not JSON", "index.json", `{`, nil},
		{"something else", "readme", "x", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var archive bytes.Buffer
			w := tar.NewWriter(&archive)
			err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: c.file, Mode: 0o644, Size: int64(len(c.content))})
			if err == nil {
				_, err = w.Write([]byte(c.content))
			}
			if err := errors.Join(err, w.Close()); err != nil {
				t.Fatal(err)
			}
			names, _, err := imageIdentity(&archive)
			if (err == nil) != (c.want != nil) || !slices.Equal(names, c.want) {
				t.Errorf("names %v, error %v, want %v", names, err, c.want)
			}
		})
	}
}

func FuzzImageIdentity(f *testing.F) {
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, archive []byte) {
		if names, _, err := imageIdentity(bytes.NewReader(archive)); err == nil && len(names) == 0 {
			t.Error("no names and no error")
		}
	})
}
