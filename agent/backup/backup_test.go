package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/topology"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func open(t testing.TB, dir string) *storage.DB {
	t.Helper()
	db, err := storage.Open(storage.Options{Dir: dir, Logger: quiet, BlockCache: 1 << 20, WriteBuffer: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func put(t testing.TB, db *storage.DB, key string, value []byte) {
	t.Helper()
	if _, err := db.Update(t.Context(), []byte(key), func(storage.Entry) storage.Change {
		return storage.Change{Op: storage.Put, Record: storage.Record{Value: value}}
	}); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, db *storage.DB, key string) string {
	t.Helper()
	r, ok, err := db.Get([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return "-"
	}
	return string(r.Value)
}

// filled is a database with a megabyte or so of records.
func filled(t testing.TB) *storage.DB {
	t.Helper()
	db := open(t, t.TempDir())
	if _, err := db.BeginEpoch(t.Context(), 3, 2); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	value := make([]byte, 16<<10)
	for i := range 100 {
		for j := range value {
			value[j] = byte(random.Uint32())
		}
		put(t, db, fmt.Sprint("k", i), value)
	}
	put(t, db, "state", []byte("backup"))
	return db
}

func wantReason(t testing.TB, what string, err error, reason string) {
	t.Helper()
	var refused *Error
	if !errors.As(err, &refused) || refused.Reason != reason {
		t.Errorf("%s: %v, want reason %s", what, err, reason)
	}
}

func TestCreateAndRestore(t *testing.T) {
	for _, link := range []bool{true, false} {
		t.Run(fmt.Sprintf("links %v", link), func(t *testing.T) {
			db := filled(t)
			root := filepath.Join(t.TempDir(), "deep", "backups")
			var seen Progress
			at := db.Position()
			m, err := create(t.Context(), db, Request{Root: root, Name: "a", Node: "n:1", Version: "9"}, link, func(p Progress) error {
				if p.BytesDone < seen.BytesDone || p.FilesDone < seen.FilesDone || p.BytesDone > p.Bytes {
					t.Errorf("progress %+v after %+v", p, seen)
				}
				seen = p
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if m.LSN() != at.LSN || m.History != at.History || m.Partition != 2 || m.Node != "n:1" || m.Version != "9" || len(m.Lineage) != 1 ||
				m.Bytes() < 100*16<<10 || time.Since(m.CreatedAt) > time.Minute {
				t.Errorf("manifest %+v", m)
			}
			if seen.BytesDone != m.Bytes() || seen.FilesDone != len(m.Files) || seen.Files != len(m.Files) {
				t.Errorf("last progress %+v", seen)
			}
			if _, err := os.Stat(filepath.Join(db.Dir(), stagingDir)); !os.IsNotExist(err) {
				t.Errorf("the staging directory was left: %v", err)
			}

			// What happens to the database afterwards does not reach the backup.
			put(t, db, "state", []byte("later"))
			for i := range 100 {
				put(t, db, fmt.Sprint("k", i), []byte("x"))
			}
			if _, err := db.Checkpoint(filepath.Join(t.TempDir(), "flush")); err != nil {
				t.Fatal(err)
			}
			if v, err := Verify(t.Context(), filepath.Join(root, "a"), nil); err != nil || v.LSN() != at.LSN {
				t.Errorf("verified %v, %v", v.LSN(), err)
			}
			if list, err := List(root); err != nil || len(list) != 1 || !list[0].Complete || list[0].Manifest.LSN() != at.LSN {
				t.Errorf("list %+v, %v", list, err)
			}

			data := filepath.Join(t.TempDir(), "data")
			r, err := Restore(t.Context(), Restoration{From: filepath.Join(root, "a"), DataDir: data}, nil)
			if err != nil {
				t.Fatal(err)
			}
			restored := open(t, data)
			if get(t, restored, "state") != "backup" || len(get(t, restored, "k99")) != 16<<10 {
				t.Error("the restored records are others")
			}
			if got := restored.Position(); got.LSN != at.LSN || got.History != at.History || r.Position.LSN != at.LSN {
				t.Errorf("restored at %+v, reported %+v, want %+v", got, r.Position, at)
			}
			if _, err := Verify(t.Context(), filepath.Join(root, "a"), nil); err != nil {
				t.Errorf("the restore changed the backup: %v", err)
			}
		})
	}
}

func TestLinkable(t *testing.T) {
	if dir := t.TempDir(); !linkable(dir, t.TempDir()) || linkable(dir, filepath.Join(dir, "none")) || linkable(dir, "/proc") {
		t.Error("linkable is wrong about a directory beside, one that is not there, or another file system")
	}
}

func TestCreateRefuses(t *testing.T) {
	db := filled(t)
	root := t.TempDir()
	for _, name := range []string{"", ".", "..", ".hidden", "a/b", "../a", "a b", "a\x00", "ä", strings.Repeat("a", 129)} {
		_, err := Create(t.Context(), db, Request{Root: root, Name: name}, nil)
		wantReason(t, fmt.Sprintf("name %q", name), err, ReasonInvalidName)
	}
	if err := os.Mkdir(filepath.Join(root, "there"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Create(t.Context(), db, Request{Root: root, Name: "there"}, nil)
	wantReason(t, "a directory that exists", err, ReasonExists)
	if _, err := os.Stat(filepath.Join(root, "there")); err != nil {
		t.Errorf("it was removed: %v", err)
	}
	_, err = Create(t.Context(), open(t, t.TempDir()), Request{Root: root, Name: "empty"}, nil)
	wantReason(t, "an empty database", err, ReasonNoData)
	file := filepath.Join(root, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Create(t.Context(), db, Request{Root: file, Name: "a"}, nil)
	wantReason(t, "a file for a directory", err, ReasonUnusable)
	wantReason(t, "more than the disk has", requireSpace(root, 1<<62), ReasonNoSpace)
}

// A backup that ends early leaves nothing, wherever it was.
func TestCreateInterrupted(t *testing.T) {
	for _, link := range []bool{true, false} {
		db := filled(t)
		root := t.TempDir()
		stop := errors.New("enough")
		_, err := create(t.Context(), db, Request{Root: root, Name: "a"}, link, func(p Progress) error {
			if p.BytesDone > p.Bytes/2 {
				return stop
			}
			return nil
		})
		if !errors.Is(err, stop) {
			t.Errorf("ended with %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := create(ctx, db, Request{Root: root, Name: "b"}, link, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
		for _, dir := range []string{root, db.Dir()} {
			if left, err := filepath.Glob(filepath.Join(dir, "[abc]*")); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		}
		if _, err := create(t.Context(), db, Request{Root: root, Name: "a"}, link, nil); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
}

func TestCreateIsLimited(t *testing.T) {
	db := filled(t)
	const rate = 2 << 20
	began := time.Now()
	var seen float64
	m, err := Create(t.Context(), db, Request{Root: t.TempDir(), Name: "a", Rate: rate}, func(p Progress) error {
		seen = p.Rate
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	took, want := time.Since(began), time.Duration(float64(m.Bytes())/rate*float64(time.Second))
	if took < want*8/10 {
		t.Errorf("%d bytes at %d a second took %v, want about %v", m.Bytes(), rate, took, want)
	}
	if seen <= 0 || seen > rate*3/2 {
		t.Errorf("shown rate %.0f", seen)
	}
}

// An unfinished backup is none: it shows as such, is not restored, and can be deleted.
func TestUnfinished(t *testing.T) {
	db := filled(t)
	root := t.TempDir()
	dir := filepath.Join(root, "a")
	if _, err := Create(t.Context(), db, Request{Root: root, Name: "a"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, ManifestFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "lost+found"), 0o755); err != nil {
		t.Fatal(err)
	}
	if list, err := List(root); err != nil || len(list) != 1 || list[0].Complete || list[0].Name != "a" {
		t.Errorf("list %+v, %v", list, err)
	}
	data := t.TempDir()
	_, err := Restore(t.Context(), Restoration{From: dir, DataDir: data}, nil)
	wantReason(t, "restore", err, ReasonIncomplete)
	wantReason(t, "delete another", Delete(root, "b"), ReasonNotFound)
	wantReason(t, "delete outside", Delete(root, ".."), ReasonInvalidName)
	if err := Delete(root, "a"); err != nil {
		t.Error(err)
	}
	wantReason(t, "delete again", Delete(root, "a"), ReasonNotFound)
	_, err = Verify(t.Context(), dir, nil)
	wantReason(t, "verify what is gone", err, ReasonNotFound)
	if list, err := List(filepath.Join(root, "none")); err != nil || len(list) > 0 {
		t.Errorf("list of no directory: %v, %v", list, err)
	}
}

// Whatever is wrong with a backup, it is found before anything is replaced.
func TestDamaged(t *testing.T) {
	db := filled(t)
	root := t.TempDir()
	if _, err := Create(t.Context(), db, Request{Root: root, Name: "whole"}, nil); err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	old := open(t, data)
	put(t, old, "state", []byte("old"))
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	edit := func(file string, change func([]byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			names, err := filepath.Glob(filepath.Join(dir, file))
			if err != nil || len(names) == 0 {
				t.Fatalf("%s: %v, %v", file, names, err)
			}
			text, err := os.ReadFile(names[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(names[0], change(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	swap := func(from, to string) func([]byte) []byte {
		return func(b []byte) []byte {
			if !bytes.Contains(b, []byte(from)) {
				panic("nothing to replace")
			}
			return bytes.Replace(b, []byte(from), []byte(to), 1)
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		reason string
	}{
		{"a flipped bit", edit("db/*.sst", func(b []byte) []byte { b[len(b)/2] ^= 4; return b }), ReasonDamaged},
		{"a cut file", edit("db/*.sst", func(b []byte) []byte { return b[:len(b)-1] }), ReasonDamaged},
		{"a longer file", edit("db/CURRENT", func(b []byte) []byte { return append(b, ' ') }), ReasonDamaged},
		{"a missing file", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "db", "CURRENT")); err != nil {
				t.Fatal(err)
			}
		}, ReasonDamaged},
		{"one file too many", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "db", "000099.log"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, ReasonDamaged},
		{"no files", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "db")); err != nil {
				t.Fatal(err)
			}
		}, ReasonDamaged},
		{"half a manifest", edit(ManifestFile, func(b []byte) []byte { return b[:len(b)/2] }), ReasonDamaged},
		{"another position", edit(ManifestFile, swap(`"index": `, `"index": 9`)), ReasonDamaged},
		{"another partition", edit(ManifestFile, swap(`"partition": 2`, `"partition": 0`)), ReasonDamaged},
		{"a path", edit(ManifestFile, swap(`"name": "`, `"name": "../`)), ReasonDamaged},
		{"a later format", edit(ManifestFile, swap(`"format": 1`, `"format": 2`)), ReasonUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "b")
			if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, "whole"))); err != nil {
				t.Fatal(err)
			}
			if _, err := Verify(t.Context(), dir, nil); err != nil {
				t.Fatalf("a copy of the backup: %v", err)
			}
			tt.damage(t, dir)
			_, err := Verify(t.Context(), dir, nil)
			wantReason(t, "verify", err, tt.reason)
			_, err = Restore(t.Context(), Restoration{From: dir, DataDir: data, Replace: true}, nil)
			wantReason(t, "restore", err, tt.reason)
		})
	}
	old = open(t, data)
	if got := get(t, old, "state"); got != "old" {
		t.Errorf("the database that was there has %q", got)
	}
	if left, err := filepath.Glob(filepath.Join(data, "*")); err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	db := filled(t)
	root := t.TempDir()
	if _, err := Create(t.Context(), db, Request{Root: root, Name: "a"}, nil); err != nil {
		t.Fatal(err)
	}
	from := filepath.Join(root, "a")
	_, err := Restore(t.Context(), Restoration{From: from, DataDir: db.Dir(), Replace: true}, nil)
	wantReason(t, "under a running process", err, ReasonInUse)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Restore(t.Context(), Restoration{From: from, DataDir: db.Dir()}, nil)
	wantReason(t, "over a database", err, ReasonNotEmpty)
	_, err = Restore(t.Context(), Restoration{From: from, DataDir: t.TempDir(), History: "a b"}, nil)
	wantReason(t, "a history with a space", err, ReasonWrongHistory)
	r, err := Restore(t.Context(), Restoration{From: from, DataDir: db.Dir(), Replace: true, History: "new"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	again := open(t, db.Dir())
	if pos := again.Position(); pos.History != "new" || pos.LSN.Index != r.Manifest.Index+1 || get(t, again, "state") != "backup" {
		t.Errorf("restored as a new history: %+v", pos)
	}
}

// In the middle of a rewind a database is at one position with records of another.
func TestCreateDuringARewind(t *testing.T) {
	db := filled(t)
	fork := db.Position().LSN
	put(t, db, "state", []byte("diverged"))
	d, err := db.Diverged(t.Context(), fork, history.DefaultRewindLimits)
	if err != nil {
		t.Fatal(err)
	}
	values := make([]history.Value, len(d.Keys))
	if err := db.Rewind(t.Context(), d, values, topology.LSN{Epoch: fork.Epoch + 1, Index: fork.Index + 9}); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	_, err = Create(t.Context(), db, Request{Root: root, Name: "a"}, nil)
	wantReason(t, "in the middle of a rewind", err, ReasonUnfinished)
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestName(t *testing.T) {
	at := time.Date(2026, 11, 24, 13, 5, 6, 0, time.FixedZone("", 3600))
	for partition, want := range map[int]string{2: "20261124T120506Z-p2", -1: "20261124T120506Z"} {
		if got := Name(at, partition); got != want || checkName(got) != nil {
			t.Errorf("%d: %s, want %s", partition, got, want)
		}
	}
}
