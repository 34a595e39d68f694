package storage

// #cgo CXXFLAGS: -std=c++17 -O2
// #cgo LDFLAGS: -lrocksdb -lstdc++
// #include <stdlib.h>
// #include "tuning.h"
import "C"

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/linxGnu/grocksdb"
)

// Tuning are options of RocksDB: its names, and values in its writing. One name is
// not RocksDB's: bloom_bits_per_key.
type Tuning map[string]string

// A TuningError tells which options were refused.
type TuningError struct {
	Options []string
	Err     error // RocksDB's words
}

func (e *TuningError) Error() string {
	return fmt.Sprintf("RocksDB refuses %s: %v", strings.Join(e.Options, ", "), e.Err)
}

func (e *TuningError) Unwrap() error { return e.Err }

// Tuning returns the options that RocksDB has now, as it says itself.
func (db *DB) Tuning() (Tuning, error) {
	var now Tuning
	err := db.use(func(e *engine) (err error) {
		now, err = e.tuning()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storage: options of the database: %w", err)
	}
	return now, nil
}

// Tune gives RocksDB those of the options that it does not have yet, all or none.
// They stay in force when the database is replaced. Other options keep their values.
func (db *DB) Tune(want Tuning) error {
	db.tuneMu.Lock()
	defer db.tuneMu.Unlock()
	return db.use(func(e *engine) error {
		if err := e.tune(want); err != nil {
			return fmt.Errorf("storage: %w", err)
		}
		next := Tuning{}
		maps.Copy(next, *db.tuning.Load())
		maps.Copy(next, want)
		db.tuning.Store(&next)
		return nil
	})
}

// CheckTuning tells what Tune would say of live, and what a start would say of
// others, and changes nothing.
func (db *DB) CheckTuning(live, others Tuning) error {
	return db.use(func(e *engine) error {
		for _, o := range []struct {
			want Tuning
			live bool
		}{{live, true}, {others, false}} {
			groups, err := e.differing(o.want)
			if err != nil {
				return fmt.Errorf("storage: %w", err)
			}
			for _, g := range groups {
				want := g.want
				if !o.live {
					want = want.forStart()
				}
				if err := e.checkOptions(g.family, o.live, want); err != nil {
					return fmt.Errorf("storage: %w", refusedTuning(g.want, err))
				}
			}
		}
		return nil
	})
}

// tableOptions are those of the format of table files, which RocksDB takes in one.
var tableOptions = map[string]bool{
	"block_size": true, bloomBits: true, "cache_index_and_filter_blocks": true, "pin_l0_filter_and_index_blocks_in_cache": true,
}

// bloomBits is a name for the number in RocksDB's filter_policy.
const bloomBits = "bloom_bits_per_key"

// arenaBlock is the piece in which memory for a buffer is taken.
const arenaBlock = "arena_block_size"

// forStart returns the options as a start takes them, with those of the format in one.
func (t Tuning) forStart() Tuning {
	all, format := Tuning{}, ""
	for _, name := range slices.Sorted(maps.Keys(t)) {
		switch value := t[name]; {
		case name == bloomBits && value == "0":
			format += "filter_policy=nullptr;"
		case name == bloomBits:
			format += "filter_policy=bloomfilter:" + value + ":false;"
		case tableOptions[name]:
			format += name + "=" + value + ";"
		default:
			all[name] = value
		}
	}
	if format != "" {
		all["block_based_table_factory"] = "{" + format + "}"
	}
	return all
}

// tuned returns o with options over it, for a start. The result takes o's place, which
// is destroyed; with an error it is not.
func tuned(o *grocksdb.Options, want Tuning) (*grocksdb.Options, error) {
	all := want.forStart()
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		text.WriteString(name + "=" + all[name] + ";")
	}
	with, err := grocksdb.GetOptionsFromString(o, text.String())
	if err != nil {
		return nil, refusedTuning(want, err)
	}
	o.Destroy()
	return with, nil
}

// tuning reads the options back.
func (e *engine) tuning() (Tuning, error) {
	now := e.databaseOptions()
	for name, value := range e.familyOptions() {
		now[name] = value
	}
	if len(now) == 0 {
		return nil, errors.New("RocksDB does not tell its options")
	}
	return now, nil
}

func (e *engine) databaseOptions() Tuning { return readOptions(C.flare_options(pointer(e.db), nil)) }

// familyOptions are those of the records; the other column families have the same.
func (e *engine) familyOptions() Tuning {
	now := readOptions(C.flare_options(pointer(e.db), pointer(e.cfs[cfData])))
	now[bloomBits] = "0"
	if parts := strings.Split(now["filter_policy"], ":"); len(parts) > 1 {
		now[bloomBits] = parts[1]
	}
	return now
}

// tune is DB.Tune for the open database.
func (e *engine) tune(want Tuning) error {
	groups, err := e.differing(want)
	if err != nil {
		return err
	}
	for i, g := range groups {
		err := e.setOptions(g.family, g.want)
		if err == nil {
			continue
		}
		refused := refusedTuning(g.want, err)
		// RocksDB may have taken what it then could not write down: so the failed
		// one is undone as well.
		for _, done := range slices.Backward(groups[:i+1]) {
			if err := e.setOptions(done.family, done.had); err != nil {
				refused.Err = fmt.Errorf("%w; and the former values: %w", refused.Err, err)
			}
		}
		return refused
	}
	return nil
}

// tuningGroup is what one call of RocksDB changes: options of the database, or of a
// column family.
type tuningGroup struct {
	family    *grocksdb.ColumnFamilyHandle // nil for the database
	want, had Tuning
}

// differing returns what has to be changed.
func (e *engine) differing(want Tuning) ([]tuningGroup, error) {
	db, cf := e.databaseOptions(), e.familyOptions()
	database, family := tuningGroup{want: Tuning{}, had: Tuning{}}, tuningGroup{want: Tuning{}, had: Tuning{}}
	for name, value := range want {
		group, now := &database, db
		if _, ok := db[name]; !ok {
			group, now = &family, cf
		}
		had, ok := now[name]
		if !ok {
			return nil, &TuningError{[]string{name}, errors.New("it has no such option")}
		}
		if had != value {
			group.want[name], group.had[name] = value, had
		}
	}
	if size, err := strconv.ParseUint(family.want["write_buffer_size"], 10, 64); err == nil {
		// As at a start. Otherwise a single block could fill the whole buffer, over
		// which RocksDB aborts the process, or would write a file for each record.
		const page = 4 << 10
		block := (min(size/8, 1<<20) + page - 1) / page * page
		family.want[arenaBlock], family.had[arenaBlock] = strconv.FormatUint(block, 10), cf[arenaBlock]
	}
	// RocksDB takes these in any order, and later aborts the process over it.
	last := 0
	for _, name := range []string{"level0_file_num_compaction_trigger", "level0_slowdown_writes_trigger", "level0_stop_writes_trigger"} {
		value, changed := family.want[name]
		if !changed {
			value = cf[name]
		}
		n, err := strconv.Atoi(value)
		if err != nil || n < last {
			return nil, &TuningError{[]string{name}, fmt.Errorf("it is %s, and must be a number from %d", value, last)}
		}
		last = n
	}
	var groups []tuningGroup
	if len(database.want) > 0 {
		groups = append(groups, database)
	}
	if len(family.want) > 0 {
		for _, cf := range e.cfs {
			groups = append(groups, tuningGroup{cf, family.want, family.had})
		}
	}
	return groups, nil
}

// refusedTuning names the options that RocksDB's words are about.
func refusedTuning(want Tuning, err error) *TuningError {
	names := slices.Sorted(maps.Keys(want))
	named := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !strings.Contains(err.Error(), name) })
	if len(named) > 0 {
		names = named
	}
	return &TuningError{names, err}
}

func (e *engine) setOptions(family *grocksdb.ColumnFamilyHandle, t Tuning) error {
	return withPairs(t, func(n C.int, names, values **C.char) *C.char {
		return C.flare_set_options(pointer(e.db), familyPointer(family), n, names, values)
	})
}

func (e *engine) checkOptions(family *grocksdb.ColumnFamilyHandle, live bool, t Tuning) error {
	var only C.int
	if live {
		only = 1
	}
	return withPairs(t, func(n C.int, names, values **C.char) *C.char {
		return C.flare_check_options(pointer(e.db), familyPointer(family), only, n, names, values)
	})
}

// withPairs calls a function that takes names and values and returns what is wrong.
func withPairs(t Tuning, call func(n C.int, names, values **C.char) *C.char) error {
	names, values := make([]*C.char, 0, len(t)), make([]*C.char, 0, len(t))
	for name, value := range t {
		names, values = append(names, C.CString(name)), append(values, C.CString(value))
	}
	defer func() {
		for i := range names {
			C.free(unsafe.Pointer(names[i]))
			C.free(unsafe.Pointer(values[i]))
		}
	}()
	if wrong := call(C.int(len(t)), unsafe.SliceData(names), unsafe.SliceData(values)); wrong != nil {
		defer C.free(unsafe.Pointer(wrong))
		return errors.New(C.GoString(wrong))
	}
	return nil
}

// readOptions takes lines of name=value apart and frees them.
func readOptions(lines *C.char) Tuning {
	if lines == nil {
		return Tuning{}
	}
	defer C.free(unsafe.Pointer(lines))
	t := Tuning{}
	for line := range strings.Lines(C.GoString(lines)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			t[name] = value
		}
	}
	return t
}

// pointer returns the pointer of RocksDB's C interface inside an object of grocksdb,
// which keeps it to itself.
func pointer(object any) unsafe.Pointer {
	return reflect.ValueOf(object).Elem().FieldByName("c").UnsafePointer()
}

func familyPointer(family *grocksdb.ColumnFamilyHandle) unsafe.Pointer {
	if family == nil {
		return nil
	}
	return pointer(family)
}
