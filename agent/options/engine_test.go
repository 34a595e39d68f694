package options

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
)

func TestEngineOptionsAreRefused(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"rocksdb-option-write_bufer_size = 1", "extra.conf:1: rocksdb-option-write_bufer_size is not an option of RocksDB that can be set; did you mean rocksdb-option-write_buffer_size? [unknown_option]"},
		{"rocksdb-option-write-buffer-size = 1", "extra.conf:1: rocksdb-option-write-buffer-size is not an option of RocksDB that can be set; did you mean rocksdb-option-write_buffer_size? [unknown_option]"},
		{"write_buffer_size = 1", "extra.conf:1: write_buffer_size is not an option; did you mean rocksdb-option-write_buffer_size? [unknown_option]"},
		{"rocksdb-option-foo = 1", "extra.conf:1: rocksdb-option-foo is not an option of RocksDB that can be set; flared --help lists them [unknown_option]"},
		{"rocksdb-option-WAL_ttl_seconds = 1", "extra.conf:1: rocksdb-option-WAL_ttl_seconds is not to be set: flared deletes old logs itself: use rocksdb-wal-ttl-seconds [reserved]"},
		{"rocksdb-option-merge_operator = x", "extra.conf:1: rocksdb-option-merge_operator is not to be set: existing databases could not be read any more, or would lose records [reserved]"},
		{"rocksdb-option-write_buffer_size = 64MiB", `extra.conf:1: rocksdb-option-write_buffer_size is "64MiB"; it must be a whole number of bytes from 65536 to 4294967296; for 64MiB write 67108864 [invalid_value]`},
		{"rocksdb-option-write_buffer_size = 1", "extra.conf:1: rocksdb-option-write_buffer_size is 1; it must be a whole number of bytes from 65536 to 4294967296 [out_of_range]"},
		{"rocksdb-option-compression = kLZ4", `extra.conf:1: rocksdb-option-compression is "kLZ4"; it must be kNoCompression or kSnappyCompression or kZlibCompression or kLZ4Compression or kLZ4HCCompression or kZSTD; did you mean kLZ4Compression? [invalid_value]`},
		{"rocksdb-option-level0_slowdown_writes_trigger = 50", "extra.conf:1: rocksdb-option-level0_slowdown_writes_trigger is 50, and rocksdb-option-level0_stop_writes_trigger is 48; the former must not be greater [conflicting_options]"},
		{"\nrocksdb-option-level0_stop_writes_trigger = 20", "extra.conf:2: rocksdb-option-level0_stop_writes_trigger is 20, and rocksdb-option-level0_slowdown_writes_trigger is 32; the latter must not be greater [conflicting_options]"},
		{"rocksdb-option-hard_pending_compaction_bytes_limit = 5\nrocksdb-option-soft_pending_compaction_bytes_limit = 0",
			"extra.conf:2: rocksdb-option-soft_pending_compaction_bytes_limit is 0, and rocksdb-option-hard_pending_compaction_bytes_limit is 5; the former must not be greater, and 0 is no limit [conflicting_options]"},
	} {
		_, _, err := Parse("extra.conf", []byte(c.text), Default())
		var p Problem
		if !errors.As(err, &p) {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		got := fmt.Sprintf("%v [%s]", p, p.Reason)
		if c.want != got {
			t.Errorf("%q:\n got %s\nwant %s", c.text, got, c.want)
		}
	}
}

func TestEngineValues(t *testing.T) {
	o, _, err := Parse("f", []byte("rocksdb-option-write_buffer_size = 0131072\nrocksdb-option-disable_auto_compactions = 1\n"+
		"rocksdb-option-level0_stop_writes_trigger = 100\nrocksdb-option-level0_slowdown_writes_trigger = 60\n"), Default())
	if err != nil {
		t.Fatal(err)
	}
	want := Default().EngineValues()
	maps.Copy(want, map[string]string{"write_buffer_size": "131072", "disable_auto_compactions": "true",
		"level0_stop_writes_trigger": "100", "level0_slowdown_writes_trigger": "60"})
	if got := o.EngineValues(); !maps.Equal(got, want) {
		t.Errorf("values %v, want %v", got, want)
	}
	back := Default().WithEngineValues(o.EngineValues()).WithEngineValues(map[string]string{"no_such": "1", "block_size": "not a number"})
	if c := Changed(back, o); c != nil {
		t.Errorf("read back, %v differ", c)
	}
	if why := reservedOption("rocksdb-option-write_buffer_size"); why != "" {
		t.Error(why)
	}
	for name := range reserved {
		if lookup(EnginePrefix+name) != nil {
			t.Errorf("%s is both an option and reserved", name)
		}
	}
}

// A file that is right by itself may not go together with the command line.
func TestCheckWithCommandLine(t *testing.T) {
	line, err := parseFlags(t, "--rocksdb-option-level0_stop_writes_trigger=40")
	if err != nil {
		t.Fatal(err)
	}
	wanted, settings, err := Parse("f", []byte("\nrocksdb-option-level0_slowdown_writes_trigger = 45\n"), Default())
	if err != nil {
		t.Fatal(err)
	}
	var p Problem
	if err := line.Over(wanted).Check("f", settings); !errors.As(err, &p) || p.Line != 2 || p.Reason != ReasonConflict {
		t.Errorf("%+v", p)
	}
	if err := line.Over(Default()).Check("f", nil); err != nil {
		t.Error(err)
	}
}

func TestPreview(t *testing.T) {
	running := Default()
	running.DataDir = "/data"
	running.MaxConnection = 7
	base := Default()
	base.DataDir = "/data"
	for _, c := range []struct{ name, text, want string }{
		{"nothing named", "", "max-connection 7 > 10000 would_apply line=0"},
		{"each kind", "max-connection = 7\nrocksdb-sync-writes = 1\nrocksdb-option-block_size = 8192\nmutex-slot = 5\nlog-level = info\n",
			"log-level info > info unchanged line=5\nrocksdb-sync-writes false > true would_apply line=2\n" +
				"rocksdb-option-block_size 4096 > 8192 needs_restart line=3\nmutex-slot  > 5 unchanged line=4 no_effect\nmax-connection 7 > 7 unchanged line=1"},
		{"refused", "max-connection = 0\nrocksdb-sync-writes = 1\n???\nrocksdb-option-wal_dir = /x\nlog-level = info\n",
			"log-level info > info unchanged line=5\nmax-connection 7 > 0 would_reject line=1 out_of_range\n" +
				"rocksdb-sync-writes false > 1 would_reject line=2 file_rejected\nrocksdb-option-wal_dir  > /x would_reject line=4 reserved\n" +
				"  >  would_reject line=3 syntax"},
	} {
		wanted, settings, err := Parse("f", []byte(c.text), base)
		got := map[string]bool{}
		for _, v := range Preview(running, wanted, settings, err, nil) {
			l := fmt.Sprintf("%s %s > %s %v line=%d", v.Key, v.Current, v.Proposed, v.Outcome, v.Line)
			if v.Reason != "" {
				l += " " + v.Reason
			}
			if (v.Reason == "") != (v.Message == "") {
				t.Errorf("%s: %+v", c.name, v)
			}
			got[l] = true
		}
		want := map[string]bool{}
		for l := range strings.SplitSeq(c.want, "\n") {
			want[l] = true
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s:\n got %v\nwant %v", c.name, got, want)
		}
	}
}

func TestSources(t *testing.T) {
	line, err := parseFlags(t, "--log-level=warn")
	if err != nil {
		t.Fatal(err)
	}
	inForce := Default()
	wanted, settings, err := Parse("f", []byte("log-level = debug\nmax-connection = 5\nblock-cache-size-mb = 128\n"), Default())
	if err != nil {
		t.Fatal(err)
	}
	s := Sources{}.Changed(inForce.WithLive(wanted), wanted, SourcesOf(map[string]bool{"max-connection": true, "net-read-timeout": true}, settings, line))
	for key, want := range map[string]Source{"log-level": FromCommandLine, "max-connection": FromAgent, "net-read-timeout": FromFile,
		"block-cache-size-mb": FromDefault, "server-port": FromDefault} {
		if got := s.Of(key); got != want {
			t.Errorf("%s: source %d, want %d", key, got, want)
		}
	}
}
