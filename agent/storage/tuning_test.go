package storage

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/flarekv/flare/agent/options"
)

// engineSpecs returns the options that are handed to RocksDB, by RocksDB's names.
func engineSpecs() map[string]options.Spec {
	m := map[string]options.Spec{}
	for _, s := range options.Specs() {
		if name, ok := strings.CutPrefix(s.Key, options.EnginePrefix); ok {
			m[name] = s
		}
	}
	return m
}

func tuning(t *testing.T, db *DB) Tuning {
	t.Helper()
	now, err := db.Tuning()
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// expect checks that RocksDB has what is wanted.
func (t Tuning) expect(test *testing.T, when string, want Tuning) {
	test.Helper()
	for name, value := range want {
		if t[name] != value {
			test.Errorf("%s: %s is %q, want %q", when, name, t[name], value)
		}
	}
}

func TestTuningDefaults(t *testing.T) {
	want := Tuning(options.Default().EngineValues())
	if len(want) < 30 {
		t.Fatalf("%d options", len(want))
	}
	// What the table of options says is what RocksDB has when nobody says anything.
	tuning(t, open(t, Options{})).expect(t, "by default", want)
	tuning(t, open(t, Options{Tuning: want})).expect(t, "with the defaults given", want)
}

// another returns values that are not the default: the ends of the range, or the last
// word, which both must be acceptable.
func another(s options.Spec) (low, high string) {
	switch s.Type {
	case "integer":
		return strconv.FormatInt(s.Min, 10), strconv.FormatInt(s.Max, 10)
	case "boolean":
		return strconv.FormatBool(s.Default != "true"), s.Default
	}
	all := strings.Split(s.Type, "|")
	return all[0], all[len(all)-1]
}

// Every option that is said to change at run time does, over its whole range, and
// RocksDB makes nothing else of any value. Those that are not, do at a start.
func TestTuneEveryOption(t *testing.T) {
	lows, highs := Tuning{}, Tuning{}
	db := open(t, Options{})
	for name, s := range engineSpecs() {
		low, high := another(s)
		if name == "max_open_files" {
			high = "1024" // a start lowers it to what the process may open
		}
		lows[name], highs[name] = low, high
		if !s.Live {
			if err := db.CheckTuning(nil, Tuning{name: low}); err != nil {
				t.Errorf("%s = %s for a start: %v", name, low, err)
			}
			continue
		}
		for _, v := range []string{low, high} {
			want := Tuning{name: v}
			if strings.HasPrefix(name, "level0_") {
				want = Tuning{"level0_file_num_compaction_trigger": v, "level0_slowdown_writes_trigger": v, "level0_stop_writes_trigger": v}
			}
			if err := db.CheckTuning(want, nil); err != nil {
				t.Errorf("%v, looked at: %v", want, err)
			}
			if err := db.Tune(want); err != nil {
				t.Errorf("%v: %v", want, err)
			}
			tuning(t, db).expect(t, "changed", want)
			if name == "write_buffer_size" {
				// What a new buffer is made with shows only when there is one.
				if err := db.use((*engine).flushAll); err != nil {
					t.Fatal(err)
				}
				put(t, db, "k", "v")
			}
		}
	}
	if err := db.Tune(options.Default().EngineValues()); err != nil {
		t.Error(err)
	}
	tuning(t, db).expect(t, "after all", options.Default().EngineValues())
	put(t, db, "k", "v")
	for _, want := range []Tuning{lows, highs} {
		started := open(t, Options{Tuning: want})
		tuning(t, started).expect(t, "started with", want)
		put(t, started, "k", "v")
	}
}

func TestTuneIsAllOrNothing(t *testing.T) {
	db := open(t, Options{})
	before := tuning(t, db)
	for _, c := range []struct {
		want  Tuning
		named string
		words string
	}{
		// The first call, for the database, succeeds and is undone.
		{Tuning{"max_background_jobs": "3", "write_buffer_size": "1048576", "compression": "kXpressCompression"}, "", "not linked with the binary"},
		{Tuning{"max_background_jobs": "3", "write_buffer_size": "much"}, "", "write_buffer_size"},
		{Tuning{"max_background_jobs": "3", "level0_slowdown_writes_trigger": "7"}, "level0_slowdown_writes_trigger", "must be a number from 8"},
		{Tuning{"max_background_jobs": "3", "no_such": "3"}, "no_such", "no such option"},
		{Tuning{"write_buffer_size": "1048576", "num_levels": "3"}, "num_levels", "num_levels"},
	} {
		err := db.Tune(c.want)
		var refused *TuningError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%v: %v, want %q", c.want, err, c.words)
			continue
		}
		if c.named != "" && (len(refused.Options) != 1 || refused.Options[0] != c.named) {
			t.Errorf("%v: %v are named", c.want, refused.Options)
		}
		for name, value := range tuning(t, db) {
			if before[name] != value {
				t.Errorf("%v was refused, and yet %s is %s instead of %s", c.want, name, value, before[name])
			}
		}
	}
	for _, c := range []struct{ live, others Tuning }{
		{live: Tuning{"write_buffer_size": "much"}}, {live: Tuning{"num_levels": "3"}}, {live: Tuning{"max_file_opening_threads": "3"}}, {live: Tuning{"no_such": "1"}},
		{others: Tuning{"block_size": "much"}}, {others: Tuning{"max_file_opening_threads": "many"}},
	} {
		if err := db.CheckTuning(c.live, c.others); err == nil {
			t.Errorf("%v, %v: looked at, and nothing is wrong", c.live, c.others)
		} else {
			t.Log(err)
		}
	}
	if err := db.CheckTuning(Tuning{"write_buffer_size": "2097152"}, Tuning{"block_size": "8192", bloomBits: "0"}); err != nil {
		t.Error(err)
	}
	tuning(t, db).expect(t, "after all", before)
	if _, err := Open(Options{Dir: t.TempDir(), Logger: quiet, Tuning: Tuning{"write_buffer_size": "much"}}); err == nil || !strings.Contains(err.Error(), "write_buffer_size") {
		t.Errorf("a start with a wrong value: %v", err)
	}
}

// What is in force is in force again when another database takes this one's place.
func TestTuningOutlivesReplacement(t *testing.T) {
	want := Tuning{"write_buffer_size": "131072", "max_background_jobs": "3", "compression": "kZSTD", "block_size": "8192"}
	start := Tuning{"block_size": "8192"}
	master := open(t, Options{})
	if _, err := master.BeginEpoch(t.Context(), 1, 0); err != nil {
		t.Fatal(err)
	}
	put(t, master, "k", "v")
	db := open(t, Options{Tuning: start})
	if err := db.Tune(Tuning{"write_buffer_size": "131072", "max_background_jobs": "3", "compression": "kZSTD"}); err != nil {
		t.Fatal(err)
	}
	if err := db.Wipe(); err != nil {
		t.Fatal(err)
	}
	tuning(t, db).expect(t, "wiped", want)

	copied := filepath.Join(db.Dir(), incomingDir)
	if err := os.RemoveAll(copied); err != nil {
		t.Fatal(err)
	}
	if _, err := master.Checkpoint(copied); err != nil {
		t.Fatal(err)
	}
	if err := db.Replace(copied); err != nil {
		t.Fatal(err)
	}
	tuning(t, db).expect(t, "replaced", want)
	if r, found, err := db.Get([]byte("k")); err != nil || !found || string(r.Value) != "v" {
		t.Errorf("the copy has %q, %v, %v", r.Value, found, err)
	}
}

// Options have the effect that they are named after: small buffers fill sooner.
func TestTuneTakesEffect(t *testing.T) {
	db := open(t, Options{})
	logs := func() int {
		s, err := db.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return s.WALFiles
	}
	write := func() {
		for i := range 64 {
			put(t, db, "k"+strconv.Itoa(i), strings.Repeat("x", 16<<10))
		}
	}
	if write(); logs() != 1 {
		t.Errorf("1 MiB in buffers of 16 MiB made %d logs", logs())
	}
	if err := db.Tune(Tuning{"write_buffer_size": "131072"}); err != nil {
		t.Fatal(err)
	}
	if write(); logs() < 4 {
		t.Errorf("1 MiB in buffers of 128 KiB made %d logs", logs())
	}
}
