package options

import (
	"fmt"
	"slices"
	"strings"
)

// EnginePrefix begins the names of the options that are handed to RocksDB as they
// are; what follows is RocksDB's own name.
const EnginePrefix = "rocksdb-option-"

// ReasonReserved: an option of RocksDB that is not to be had, because flared
// relies on the value it has or has an option of its own for it.
const ReasonReserved = "reserved"

// Engine are the options of RocksDB itself. The zero value is not usable; Default
// has one.
type Engine struct {
	// Each option of engineTable uses the one that fits its kind, at its index.
	numbers [engineCount]int64
	flags   [engineCount]bool
	words   [engineCount]string
}

// engineOption is one of them. A number has a range, a word the words that are
// allowed; what has neither is a boolean.
type engineOption struct {
	name      string
	unit      string
	low, high int64
	words     []string
	live      bool
	def       string
	doc       string
}

const engineCount = len(engineTable)

// Compressions as RocksDB names them.
const (
	noCompression = "kNoCompression"
	sameAsOthers  = "kDisableCompressionOption"
)

var compressions = []string{noCompression, "kSnappyCompression", "kZlibCompression", "kLZ4Compression", "kLZ4HCCompression", "kZSTD"}

// engineTable has the defaults that flared opens its database with; a test
// compares them with what RocksDB says of itself. Limits keep out what RocksDB would
// silently change, and what could not be opened any more.
var engineTable = [...]engineOption{
	{"write_buffer_size", "bytes", 64 << 10, 1 << 32, nil, live, "16777216",
		"memory in which writes are gathered before they become a table file, and about the size of a write-ahead log; each of the three column families has as much"},
	{"max_write_buffer_number", "buffers", 2, 64, nil, live, "5", "such buffers, full ones that are being written included, before writes are stopped"},
	{"max_total_wal_size", "bytes", 1 << 20, 1 << 40, nil, live, "134217728", "size of the logs in use from which on buffers are written early, so that logs can be archived"},

	{"level0_file_num_compaction_trigger", "files", 1, 10000, nil, live, "8", "files of level 0 from which on they are compacted"},
	{"level0_slowdown_writes_trigger", "files", 1, 10000, nil, live, "32", "files of level 0 from which on writes are slowed down"},
	{"level0_stop_writes_trigger", "files", 1, 10000, nil, live, "48", "files of level 0 from which on writes are stopped"},
	{"soft_pending_compaction_bytes_limit", "bytes", 0, 1 << 50, nil, live, "68719476736", "bytes that wait for compaction from which on writes are slowed down; 0: no limit"},
	{"hard_pending_compaction_bytes_limit", "bytes", 0, 1 << 50, nil, live, "274877906944", "bytes that wait for compaction from which on writes are stopped; 0: no limit"},
	{"delayed_write_rate", "bytes/s", 4096, 1 << 40, nil, live, "16777216", "rate to which writes are slowed down"},

	{"disable_auto_compactions", "", 0, 0, nil, live, "false", "no compactions but those that are asked for, to gain time; writes stop when level 0 is full"},
	{"max_bytes_for_level_base", "bytes", 1 << 20, 1 << 40, nil, live, "268435456", "size of level 1"},
	{"target_file_size_base", "bytes", 64 << 10, 1 << 40, nil, live, "67108864", "size of a table file of level 1"},
	{"target_file_size_multiplier", "", 1, 100, nil, live, "1", "how many times larger those of the next level are"},
	{"max_compaction_bytes", "bytes", 1 << 20, 1 << 50, nil, live, "1677721600", "input of one compaction"},
	{"ttl", "seconds", 0, 1 << 40, nil, live, "2592000", "age from which on a table file takes part in compactions, so that deleted data go; nothing expires by it; 0: never"},
	{"periodic_compaction_seconds", "seconds", 0, 1 << 40, nil, live, "0", "age from which on a table file is rewritten; 0: never"},
	{"compression", "", 0, 0, compressions, live, "kLZ4Compression", "compression of new table files"},
	{"bottommost_compression", "", 0, 0, append([]string{sameAsOthers}, compressions...), live, sameAsOthers, "compression of the last level's new files; " + sameAsOthers + ": like the others"},
	{"paranoid_file_checks", "", 0, 0, nil, live, "false", "whether each new table file is read again to check it"},

	{"max_background_jobs", "threads", 1, 256, nil, live, "2", "flushes and compactions at a time"},
	{"max_subcompactions", "threads", 1, 256, nil, live, "1", "threads of one compaction"},
	{"max_open_files", "files", 20, 1 << 20, nil, live, "512", "table files kept open; at a start it is bounded by the process's own limit"},
	{"bytes_per_sync", "bytes", 4096, 1 << 30, nil, live, "1048576", "bytes of a table file after which the system is asked to begin writing them to the disk"},
	{"wal_bytes_per_sync", "bytes", 0, 1 << 30, nil, live, "0", "the same for the log; 0: at the system's pleasure; not a substitute for rocksdb-sync-writes"},
	{"strict_bytes_per_sync", "", 0, 0, nil, live, "false", "whether that is also waited for, when much is being written"},
	{"compaction_readahead_size", "bytes", 0, 1 << 30, nil, live, "0", "bytes that a compaction reads ahead; 0: as the system does"},
	{"writable_file_max_buffer_size", "bytes", 64 << 10, 1 << 30, nil, live, "1048576", "buffer of a file that is being written"},
	{"delete_obsolete_files_period_micros", "microseconds", 0, 1 << 50, nil, live, "21600000000", "time between two full searches for files that are not needed"},
	{"stats_dump_period_sec", "seconds", 0, 31536000, nil, live, "600", "time between two dumps of RocksDB's statistics to its own log; 0: never"},
	{"stats_persist_period_sec", "seconds", 0, 31536000, nil, live, "600", "time between two samples of the statistics that RocksDB keeps; 0: never"},

	{"block_size", "bytes", 1 << 10, 1 << 20, nil, restart, "4096", "uncompressed size of a block of new table files"},
	{"bloom_bits_per_key", "bits", 0, 100, nil, restart, "10", "bits for each key in the filters of new table files, which keep reads of what is not there from the disk; flare's name for filter_policy; 0: no filters"},
	{"cache_index_and_filter_blocks", "", 0, 0, nil, restart, "false", "whether indexes and filters live in the block cache, and so within its size, instead of beside it"},
	{"pin_l0_filter_and_index_blocks_in_cache", "", 0, 0, nil, restart, "false", "whether those of level 0 stay there"},
	{"optimize_filters_for_hits", "", 0, 0, nil, restart, "false", "whether new files of the last level have no filters, for keys that are nearly always there"},
	{"max_file_opening_threads", "threads", 1, 256, nil, restart, "16", "threads that open table files at a start"},
}

// reserved are names of RocksDB that are refused, with the reason.
var reserved = func() map[string]string {
	m := map[string]string{}
	for _, r := range []struct{ names, why string }{
		{"WAL_ttl_seconds", "flared deletes old logs itself: use rocksdb-wal-ttl-seconds"},
		{"WAL_size_limit_MB", "flared deletes old logs itself: use rocksdb-wal-size-limit-mb"},
		{"use_fsync sync disable_wal", "rocksdb-sync-writes says how commits reach the disk"},
		{"wal_dir db_paths cf_paths db_log_dir", "a copy of the database is expected in one directory: use data-dir"},
		{"recycle_log_file_num wal_compression wal_recovery_mode manual_wal_flush track_and_verify_wals_in_manifest wal_filter",
			"flared reads and keeps RocksDB's log files as they are now"},
		{"enable_pipelined_write unordered_write two_write_queues enable_write_thread_adaptive_yield allow_concurrent_memtable_write",
			"the log has to hold the batches in the order in which they were committed"},
		{"atomic_flush avoid_flush_during_recovery avoid_flush_during_shutdown", "when logs are archived depends on it"},
		{"comparator prefix_extractor merge_operator max_successive_merges inplace_update_support compaction_filter compaction_filter_factory compaction_style num_levels",
			"existing databases could not be read any more, or would lose records"},
		{"create_if_missing create_missing_column_families error_if_exists", "flared decides what a data directory has to hold"},
		{"enable_blob_files min_blob_size blob_file_size", "copies and sizes of the database count table files alone"},
		{"allow_2pc allow_ingest_behind preserve_deletes", "flared does not use it"},
		{"block_cache no_block_cache block_cache_compressed cache_size", "use block-cache-size-mb"},
		{"row_cache", "use record-cache-size-mb"},
		{"filter_policy", "use " + EnginePrefix + "bloom_bits_per_key"},
		{"table_factory block_based_table_factory memtable memtable_factory", "only what has a name of its own can be set; see docs/options.md"},
		{"use_direct_reads use_direct_io_for_flush_and_compaction allow_mmap_reads allow_mmap_writes",
			"on a file system without it the database could not be opened"},
		{"paranoid_checks best_efforts_recovery skip_checking_sst_file_sizes_on_db_open", "damage has to be noticed"},
		{"max_background_compactions max_background_flushes base_background_compactions", "use " + EnginePrefix + "max_background_jobs"},
		{"rate_limiter statistics env sst_file_manager write_buffer_manager listeners info_log", "it is not a value but a part of the program"},
	} {
		for _, name := range strings.Fields(r.names) {
			m[name] = r.why
		}
	}
	return m
}()

// engineSpecs makes a spec of each option of engineTable.
func engineSpecs() []spec {
	specs := make([]spec, engineCount)
	for i := range engineTable {
		e, key := &engineTable[i], EnginePrefix+engineTable[i].name
		switch {
		case e.words != nil:
			specs[i] = words(key, e.live, e.doc, e.words, func(o *Options) *string { return &o.RocksDB.Engine.words[i] })
		case e.high > 0:
			specs[i] = number(key, e.unit, e.low, e.high, e.live, e.doc, func(o *Options) *int64 { return &o.RocksDB.Engine.numbers[i] }, 1)
		default:
			specs[i] = boolean(key, e.live, e.doc, func(o *Options) *bool { return &o.RocksDB.Engine.flags[i] })
		}
	}
	return specs
}

// engineDefaults is what Default has.
var engineDefaults = func() Engine {
	var o Options
	for i, s := range engineSpecs() {
		if r := s.set(&o, engineTable[i].def); r != nil {
			panic(s.Key + " " + r.message)
		}
	}
	return o.RocksDB.Engine
}()

// EngineValues returns the options of RocksDB itself by RocksDB's names, in
// RocksDB's writing.
func (o Options) EngineValues() map[string]string {
	m := make(map[string]string, engineCount)
	for _, e := range engineTable {
		m[e.name] = o.Value(EnginePrefix + e.name)
	}
	return m
}

// WithEngineValues returns o with the values that RocksDB says are in force. What
// it does not tell, or no file could have, stays as it is.
func (o Options) WithEngineValues(values map[string]string) Options {
	for _, e := range engineTable {
		if v, ok := values[e.name]; ok {
			lookup(EnginePrefix+e.name).set(&o, v)
		}
	}
	return o
}

// reservedOption says why an option must not be set, "" for others.
func reservedOption(key string) string {
	name, ok := strings.CutPrefix(key, EnginePrefix)
	if why := reserved[name]; ok && why != "" {
		return "is not to be set: " + why
	}
	return ""
}

// Reserved returns the names of RocksDB's options that are refused, by why.
func Reserved() map[string][]string {
	m := map[string][]string{}
	for name, why := range reserved {
		m[why] = append(m[why], name)
	}
	for _, names := range m {
		slices.Sort(names)
	}
	return m
}

// unknownEngine says what to do about a name of RocksDB that cannot be set.
func unknownEngine(name string) string {
	names := make([]string, engineCount)
	for i, e := range engineTable {
		names[i] = e.name
	}
	if m := didYouMean(strings.ReplaceAll(name, "-", "_"), names); m != "" {
		return "is not an option of RocksDB that can be set" + strings.Replace(m, "mean ", "mean "+EnginePrefix, 1)
	}
	return "is not an option of RocksDB that can be set; flared --help lists them"
}

// ascending are options of which each must not be greater than the next, where 0
// means no limit.
var ascending = [][]string{
	{"level0_file_num_compaction_trigger", "level0_slowdown_writes_trigger", "level0_stop_writes_trigger"},
	{"soft_pending_compaction_bytes_limit", "hard_pending_compaction_bytes_limit"},
}

// engineConflicts returns what is wrong with the options of RocksDB together. A
// problem is with the line of lines, by key, that came last; without one it has no
// line.
func (o *Options) engineConflicts(file string, lines map[string]int) []Problem {
	var problems []Problem
	number := func(name string) int64 {
		i := slices.IndexFunc(engineTable[:], func(e engineOption) bool { return e.name == name })
		return o.RocksDB.Engine.numbers[i]
	}
	for _, names := range ascending {
		for i := range len(names) - 1 {
			less, more := names[i], names[i+1]
			if number(more) == 0 || number(less) != 0 && number(less) <= number(more) {
				continue
			}
			low, high := EnginePrefix+less, EnginePrefix+more
			p := Problem{File: file, Line: lines[low], Key: low, Reason: ReasonConflict,
				Message: fmt.Sprintf("is %d, and %s is %d; the former must not be greater", number(less), high, number(more))}
			if lines[high] > lines[low] {
				p.Line, p.Key = lines[high], high
				p.Message = fmt.Sprintf("is %d, and %s is %d; the latter must not be greater", number(more), low, number(less))
			}
			if number(less) == 0 {
				p.Message += ", and 0 is no limit"
			}
			problems = append(problems, p)
		}
	}
	return problems
}
