package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

// receive puts a checkpoint of from where a copy for db is received.
func receive(t testing.TB, from, db *DB) string {
	t.Helper()
	snap, err := from.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	dir, err := db.IncomingDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range snap.Files {
		data, err := os.ReadFile(filepath.Join(snap.Dir, f.Name))
		if err != nil || int64(len(data)) != f.Size {
			t.Fatalf("%s: %d bytes, want %d, %v", f.Name, len(data), f.Size, err)
		}
		if err := os.WriteFile(filepath.Join(dir, f.Name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCheckpoint(t *testing.T) {
	db := open(t, Options{})
	begin(t, db, 3)
	del(t, db, "gone", Tombstone{Version: 4})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 200 {
			put(t, db, fmt.Sprint("k", i), "v")
		}
	})
	snap, err := db.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	defer snap.Release()
	if snap.Bytes() == 0 || len(snap.Files) < 4 {
		t.Errorf("checkpoint %+v", snap.Checkpoint)
	}
	data := t.TempDir()
	if err := os.Rename(snap.Dir, filepath.Join(data, "db")); err != nil {
		t.Fatal(err)
	}
	replica := open(t, Options{Dir: data})
	if got := replica.Position(); got.LSN != snap.LSN || got.History != db.Position().History || len(got.Lineage) != 1 {
		t.Errorf("copy at %+v, want %v", got, snap.LSN)
	}
	if _, ok := replica.tombs.get([]byte("gone")); !ok {
		t.Error("tombstone lost")
	}
	catchUp(t, db, replica)
	if value(t, replica, "k199") != "v" {
		t.Error("record lost")
	}
	if _, err := db.Checkpoint(db.Dir()); err == nil {
		t.Error("a checkpoint over an existing directory")
	}
}

func TestReplace(t *testing.T) {
	master, db := open(t, Options{}), open(t, Options{})
	begin(t, master, 5)
	put(t, master, "k", "new")
	begin(t, db, 1)
	put(t, db, "k", "old")
	put(t, db, "extra", "old")
	tail, err := db.Tail(topology.LSN{})
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()

	// Readers wait, and see the one or the other.
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for ctx.Err() == nil {
				if v := value(t, db, "k"); v != "old" && v != "new" {
					t.Errorf("read %q", v)
				}
			}
		})
	}
	if err := db.Replace(receive(t, master, db)); err != nil {
		t.Fatal(err)
	}
	cancel()
	readers.Wait()
	if got := db.Position(); fmt.Sprint(got) != fmt.Sprint(master.Position()) {
		t.Errorf("at %+v, master at %+v", got, master.Position())
	}
	if value(t, db, "extra") != "-" {
		t.Error("old data survived")
	}
	if _, _, err := tail.TryNext(); !errors.Is(err, ErrReplaced) {
		t.Errorf("tail of the old log: %v", err)
	}
	for _, name := range []string{incomingDir, oldDir, markerFile} {
		if _, err := os.Stat(filepath.Join(db.Dir(), name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	// The log goes on, and has nothing of before.
	put(t, master, "k", "newer")
	catchUp(t, master, db)
	if _, err := db.Tail(topology.LSN{}); !errors.Is(err, ErrPurged) {
		t.Errorf("log before the copy: %v", err)
	}
	if got := batchesOf(t, db, topology.LSN{Epoch: 5, Index: 2}); len(got) != 1 {
		t.Errorf("log behind the copy: %v", got)
	}
	if _, err := db.BeginEpoch(t.Context(), 6, 0); err != nil {
		t.Error(err)
	}
}

func TestReplaceRefusesRubbish(t *testing.T) {
	master, db := open(t, Options{}), open(t, Options{})
	put(t, master, "k", "new")
	put(t, db, "k", "old")
	empty, err := db.IncomingDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Replace(empty); err == nil {
		t.Error("an empty directory was taken")
	}
	dir := receive(t, master, db)
	if err := db.Replace(t.TempDir()); err == nil || !strings.Contains(err.Error(), incomingDir) {
		t.Errorf("any directory: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "CURRENT")); err != nil {
		t.Fatal(err)
	}
	if err := db.Replace(dir); err == nil {
		t.Error("an incomplete copy was taken")
	}
	if value(t, db, "k") != "old" {
		t.Error("the old database is gone")
	}
	put(t, db, "k", "older still")
}

func TestReplaceCrashPoints(t *testing.T) {
	master := open(t, Options{})
	begin(t, master, 1)
	put(t, master, "k", "new")
	total := len(replaceSteps("", ""))
	for crash := range total + 1 {
		t.Run(fmt.Sprint(crash), func(t *testing.T) {
			dir := t.TempDir()
			db := open(t, Options{Dir: dir})
			put(t, db, "k", "old")
			receive(t, master, db)
			if err := db.NameIncoming("copy"); err != nil {
				t.Fatal(err)
			}
			db.Close()
			for _, step := range replaceSteps(dir, incomingDir)[:crash] {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			// Opened twice: the recovery can be interrupted as well.
			for range 2 {
				db = open(t, Options{Dir: dir})
				want := "new"
				if crash < 2 { // the marker is the second step
					want = "old"
				}
				if got := value(t, db, "k"); got != want {
					t.Errorf("after %d of %d steps: %q, want %q", crash, total, got, want)
				}
				if want == "new" {
					if _, _, err := db.Incoming(); err != nil {
						t.Error(err)
					}
					if err := db.DropIncoming(); err != nil {
						t.Error(err)
					}
				}
				db.Close()
			}
			if crash < 2 {
				return // the copy is there still
			}
			left, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil || len(left) != 2 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

func TestOpenRefusesStrangeMarker(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, markerFile), []byte("../elsewhere"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir, Logger: quiet}); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("err = %v", err)
	}
}

func TestOpenRemovesLeftovers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{incomingDir, emptyDir, checkpointPrefix + "7", oldDir} {
		if err := os.MkdirAll(filepath.Join(dir, name, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	open(t, Options{Dir: dir})
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestWipe(t *testing.T) {
	dir := t.TempDir()
	db := open(t, Options{Dir: dir})
	begin(t, db, 4)
	put(t, db, "k", "v")
	del(t, db, "t", Tombstone{Version: 1})
	if err := db.Wipe(); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if p := db.Position(); !p.Empty() || p.History != "" || p.Partition != -1 || len(p.Lineage) != 0 || value(t, db, "k") != "-" || db.tombs.len() != 0 {
			t.Errorf("position %+v, k=%q", p, value(t, db, "k"))
		}
	}
	check()
	db.Close()
	db = open(t, Options{Dir: dir})
	check()
	if _, err := db.BeginEpoch(t.Context(), 1, 9); err != nil {
		t.Error(err)
	}
}

// TestIncomingOutlivesTheProcess: under its name, and not without one.
func TestIncomingOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	db := open(t, Options{Dir: dir})
	reopen := func() (name string, left []string) {
		t.Helper()
		db.Close()
		db = open(t, Options{Dir: dir})
		in, name, err := db.Incoming()
		if err != nil || in != filepath.Join(dir, incomingDir) {
			t.Fatal(in, err)
		}
		left, err = filepath.Glob(filepath.Join(in, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return name, left
	}
	file := filepath.Join(dir, incomingDir, "000001.sst")
	write := func() {
		t.Helper()
		if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if name, left := reopen(); name != "" || len(left) > 0 {
		t.Errorf("nothing was received: %q, %v", name, left)
	}
	write()
	if name, left := reopen(); name != "" || len(left) > 0 {
		t.Errorf("without a name: %q, %v", name, left)
	}
	write()
	if err := db.NameIncoming("one"); err != nil {
		t.Fatal(err)
	}
	if name, left := reopen(); name != "one" || len(left) != 1 {
		t.Errorf("an interrupted copy: %q, %v", name, left)
	}
	if err := db.DropIncoming(); err != nil {
		t.Fatal(err)
	}
	if name, left := reopen(); name != "" || len(left) > 0 {
		t.Errorf("dropped: %q, %v", name, left)
	}
	if err := os.WriteFile(filepath.Join(dir, markerFile), []byte(incomingDir), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := db.DropIncoming(); err == nil {
		t.Error("a copy that is about to be the database was dropped")
	}
	if err := os.Remove(filepath.Join(dir, markerFile)); err != nil {
		t.Fatal(err)
	}
}
