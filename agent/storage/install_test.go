package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

// checkpoint copies a database to a new directory.
func checkpoint(t testing.TB, db *DB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if _, err := db.Checkpoint(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// install begins an installation of a copy, up to the exchange.
func install(t testing.TB, dir, from string, replace bool) *Install {
	t.Helper()
	in, err := BeginInstall(dir, replace)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(in.Dir(), os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return in
}

// listing is what is in a directory: names and sizes.
func listing(t testing.TB, dir string) map[string]int64 {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int64{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		sizes[e.Name()] = info.Size()
	}
	return sizes
}

func TestReadPositionChangesNothing(t *testing.T) {
	db := open(t, Options{})
	begin(t, db, 3)
	put(t, db, "k", "v")
	copied := checkpoint(t, db)
	before := listing(t, copied)
	pos, err := ReadPosition(copied)
	if err != nil || !reflect.DeepEqual(pos, db.Position()) {
		t.Errorf("position %+v, %v; want %+v", pos, err, db.Position())
	}
	if after := listing(t, copied); !reflect.DeepEqual(after, before) {
		t.Errorf("the copy was %v, is %v", before, after)
	}
	if _, err := ReadPosition(t.TempDir()); err == nil {
		t.Error("there is a position where there is no database")
	}
}

func TestInstall(t *testing.T) {
	db := open(t, Options{})
	begin(t, db, 1)
	put(t, db, "k", "backup")
	copied := checkpoint(t, db)
	put(t, db, "k", "later")

	if _, err := BeginInstall(db.Dir(), true); !errors.Is(err, ErrLocked) {
		t.Errorf("while a process uses it: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "new", "data")
	in := install(t, dir, copied, false)
	if _, err := Open(Options{Dir: dir, Logger: quiet}); !errors.Is(err, ErrLocked) {
		t.Errorf("opened meanwhile: %v", err)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := BeginInstall(dir, false); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("over a database: %v", err)
	}
	in = install(t, dir, copied, true)
	if err := in.Close(); err != nil { // given up
		t.Fatal(err)
	}
	restored := open(t, Options{Dir: dir})
	if got := value(t, restored, "k"); got != "backup" {
		t.Errorf("k = %q", got)
	}
	// The copy is the same history, a few batches back.
	copyBatches(t, db, restored, 1)
	if got := value(t, restored, "k"); got != "later" {
		t.Errorf("k = %q after what it lacked", got)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestInstallCrashPoints(t *testing.T) {
	origin := open(t, Options{})
	begin(t, origin, 1)
	put(t, origin, "k", "new")
	copied := checkpoint(t, origin)
	total := len(replaceSteps("", ""))
	for crash := range total + 1 {
		t.Run(fmt.Sprint(crash), func(t *testing.T) {
			dir := t.TempDir()
			db := open(t, Options{Dir: dir})
			put(t, db, "k", "old")
			db.Close()
			in := install(t, dir, copied, true)
			for _, step := range replaceSteps(dir, restoredDir)[:crash] {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			in.lock.Close() // the process ends
			want := "new"
			if crash < 2 { // the marker is the second step
				want = "old"
			}
			if crash%2 == 1 { // another restore finishes it first, and is given up
				in, err := BeginInstall(dir, true)
				if err != nil {
					t.Fatal(err)
				}
				in.Close()
			}
			db = open(t, Options{Dir: dir})
			if got := value(t, db, "k"); got != want {
				t.Errorf("after %d of %d steps: %q, want %q", crash, total, got, want)
			}
			db.Close()
			if left := listing(t, dir); len(left) != 2 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// Two nodes that restore the same backup as the same new history can follow each
// other's log; who has the former history cannot.
func TestInstallStartsHistory(t *testing.T) {
	db := open(t, Options{})
	begin(t, db, 1)
	put(t, db, "k", "1")
	begin(t, db, 4)
	last := put(t, db, "k", "2")
	copied := checkpoint(t, db)
	var restored []*DB
	for range 2 {
		dir := t.TempDir()
		in := install(t, dir, copied, false)
		pos, err := in.StartHistory("abc")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(in.Commit(), in.Close()); err != nil {
			t.Fatal(err)
		}
		r := open(t, Options{Dir: dir})
		if got := r.Position(); !reflect.DeepEqual(got, pos) {
			t.Errorf("opened at %+v, want %+v", got, pos)
		}
		restored = append(restored, r)
	}
	want := Position{LSN: topology.LSN{Epoch: 4, Index: last.Index + 1}, History: "abc", Lineage: []EpochStart{{Epoch: 4, Index: last.Index + 1}}}
	a, b := restored[0], restored[1]
	if got := a.Position(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := a.Position().Relate(db.Position()).String(); got != "other_history" {
		t.Errorf("the former history is %s", got)
	}
	begin(t, a, 5)
	put(t, a, "k", "3")
	if got := a.Position().Relate(b.Position()).String(); got != "same" {
		t.Errorf("the other copy is %s", got)
	}
	catchUp(t, a, b)
	if got := value(t, b, "k"); got != "3" {
		t.Errorf("k = %q", got)
	}
}
