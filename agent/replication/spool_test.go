package replication

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestSpool(t *testing.T) {
	s, dir := newSpool(), t.TempDir()
	want := map[string][]byte{}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 * spoolChunks {
			chunk := s.chunk()
			for j := range chunk {
				chunk[j] = name[0] + byte(i)
			}
			want[name] = append(want[name], chunk...)
			if err := s.add(f, chunk); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.end(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	for name, data := range want {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes differ from %d, %v", name, len(got), len(data), err)
		}
	}
}

// TestSpoolFails: the first error is the one that counts, nothing is written behind
// it, and every file is closed all the same.
func TestSpoolFails(t *testing.T) {
	s, dir := newSpool(), t.TempDir()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Create(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	s.add(full, []byte("x"))
	s.end(full)
	s.add(other, []byte("x"))
	s.end(other)
	if err := s.close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v, want ENOSPC", err)
	}
	for _, f := range []*os.File{full, other} {
		if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s was not closed: %v", f.Name(), err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "other")); len(got) != 0 || err != nil {
		t.Errorf("%q was written behind an error, %v", got, err)
	}
}
