package options

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParseAccepts(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       map[string]string // beside the defaults
		lines      []Setting
	}{
		{"nothing", "", nil, nil},
		{"comments and space", "# a comment\n\n   \t\n  # another\n", nil, nil},
		{"no newline at the end", "max-connection = 5", map[string]string{"max-connection": "5"}, []Setting{{"max-connection", "5", 1}}},
		{"CRLF", "\r\nmax-connection = 5\r\n", map[string]string{"max-connection": "5"}, []Setting{{"max-connection", "5", 2}}},
		{"space is free", "\tmax-connection=5  # five\n", map[string]string{"max-connection": "5"}, []Setting{{"max-connection", "5", 1}}},
		{"leading zeros", "server-port = 00080\n", map[string]string{"server-port": "80"}, []Setting{{"server-port", "00080", 1}}},
		{"switch", "rocksdb-sync-writes =\n", map[string]string{"rocksdb-sync-writes": "true"}, []Setting{{"rocksdb-sync-writes", "", 1}}},
		{"1 is true", "rocksdb-sync-writes = 1\n", map[string]string{"rocksdb-sync-writes": "true"}, []Setting{{"rocksdb-sync-writes", "1", 1}}},
		{"# within a value", "data-dir = /data#1\n", map[string]string{"data-dir": "/data#1"}, []Setting{{"data-dir", "/data#1", 1}}},
		{"index servers", "index-servers = a.b.svc:12120, [::1]:12120\n", map[string]string{"index-servers": "a.b.svc:12120,[::1]:12120"}, []Setting{{"index-servers", "a.b.svc:12120, [::1]:12120", 1}}},
		{"words", "replication-type = sync\nlog-level = debug\n", map[string]string{"replication-type": "sync", "log-level": "debug"},
			[]Setting{{"replication-type", "sync", 1}, {"log-level", "debug", 2}}},
		{"one index server", "index-server-name = a\nindex-server-port = 1\n", map[string]string{"index-server-name": "a", "index-server-port": "1"},
			[]Setting{{"index-server-name", "a", 1}, {"index-server-port", "1", 2}}},
		{"without effect", "daemonize =\nmutex-slot = 64 # locks\n", nil, []Setting{{"daemonize", "", 1}, {"mutex-slot", "64", 2}}},
		{"ranges end where they end", "rocksdb-wal-ttl-seconds = 31536000\nrocksdb-wal-sync-interval = 10\n",
			map[string]string{"rocksdb-wal-ttl-seconds": "31536000", "rocksdb-wal-sync-interval": "10"},
			[]Setting{{"rocksdb-wal-ttl-seconds", "31536000", 1}, {"rocksdb-wal-sync-interval", "10", 2}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, settings, err := Parse("extra.conf", []byte(c.text), Default())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(settings, c.lines) {
				t.Errorf("settings %+v, want %+v", settings, c.lines)
			}
			for _, s := range Specs() {
				want, set := c.want[s.Key]
				if !set {
					want = s.Default
				}
				if v := got.Value(s.Key); v != want {
					t.Errorf("%s = %q, want %q", s.Key, v, want)
				}
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		// Names.
		{"rocksdb-wal-ttl = 5", "extra.conf:1: rocksdb-wal-ttl is not an option; did you mean rocksdb-wal-ttl-seconds? [unknown_option]"},
		{"wal-ttl-seconds = 5", "extra.conf:1: wal-ttl-seconds is not an option; did you mean rocksdb-wal-ttl-seconds? [unknown_option]"},
		{"max_connection = 5", "extra.conf:1: max_connection is not an option; did you mean max-connection? [unknown_option]"},
		{"rocksdb-sync-write = true", "extra.conf:1: rocksdb-sync-write is not an option; did you mean rocksdb-sync-writes? [unknown_option]"},
		{"--max-connection = 5", "extra.conf:1: --max-connection is not an option; did you mean max-connection? [unknown_option]"},
		{"thread-pool-size = five", `extra.conf:1: thread-pool-size is "five"; it must be a whole number [invalid_value]`},
		{"stack-size =", "extra.conf:1: stack-size has no value; it must be a whole number [missing_value]"},
		{"daemonize = yes", `extra.conf:1: daemonize is "yes"; it must be true or false [invalid_value]`},
		{"storage-ap = 1\nstorage-ap = 2", "extra.conf:2: storage-ap is also on line 1; remove one of them [duplicate_option]"},
		{"index-servers = a:1\nindex-server-name = b", "extra.conf:2: index-server-name excludes index-servers; remove one of them [conflicting_options]"},
		{"zzz = 5", "extra.conf:1: zzz is not an option; flared --help lists them [unknown_option]"},
		{"max-connection = 5\n# x\nmax-connection = 5", "extra.conf:3: max-connection is also on line 1; remove one of them [duplicate_option]"},
		// Lines.
		{"max-connection 5", `extra.conf:1: "max-connection 5" is not "name = value" [syntax]`},
		{"= 5", `extra.conf:1: "= 5" has no option name before the =; write "name = value" [syntax]`},
		{"max connection = 5", `extra.conf:1: "max connection" is not an option name; write one "name = value" a line [syntax]`},
		{strings.Repeat("x", 65) + " = 1", `extra.conf:1: "` + strings.Repeat("x", 60) + `..." is not an option name; write one "name = value" a line [syntax]`},
		{"data-dir = /" + strings.Repeat("x", 4096), "extra.conf:1: the line has 4108 bytes; a line has at most 4096 [syntax]"},
		{"\xff\xfe = 1", "extra.conf:1: the line is not UTF-8 text [syntax]"},
		{"max-connection\x00 = 5", "extra.conf:1: the line has a control character (0x00) [syntax]"},
		// Numbers.
		{"max-connection = 0", "extra.conf:1: max-connection is 0; it must be a whole number of connections from 1 to 1000000 [out_of_range]"},
		{"server-port = 65536", "extra.conf:1: server-port is 65536; it must be a whole number from 1 to 65535 [out_of_range]"},
		{"server-port = -1", "extra.conf:1: server-port is -1; it must be a whole number from 1 to 65535 [out_of_range]"},
		{"net-read-timeout = 99999999999999999999", "extra.conf:1: net-read-timeout is 99999999999999999999; it must be a whole number of seconds from 1 to 86400 [out_of_range]"},
		{"net-read-timeout =", "extra.conf:1: net-read-timeout has no value; it must be a whole number of seconds from 1 to 86400 [missing_value]"},
		{"rocksdb-wal-ttl-seconds = 3h", `extra.conf:1: rocksdb-wal-ttl-seconds is "3h"; it must be a whole number of seconds from 1 to 31536000; for 3h write 10800 [invalid_value]`},
		{"replication-timeout = 1.5s", `extra.conf:1: replication-timeout is "1.5s"; it must be a whole number of milliseconds from 100 to 60000; for 1.5s write 1500 [invalid_value]`},
		{"max-value-size = 64MiB", `extra.conf:1: max-value-size is "64MiB"; it must be a whole number of bytes from 1 to 1073741824; for 64MiB write 67108864 [invalid_value]`},
		{"rocksdb-wal-size-limit-mb = 2 GB", `extra.conf:1: rocksdb-wal-size-limit-mb is "2 GB"; it must be a whole number of MiB from 0 to 16777216; for 2 GB write 2048 [invalid_value]`},
		{"reconstruction-bwlimit = 10M/s", `extra.conf:1: reconstruction-bwlimit is "10M/s"; it must be a whole number of KiB/s from 0 to 16777216; for 10M/s write 10240 [invalid_value]`},
		{"max-connection = many", `extra.conf:1: max-connection is "many"; it must be a whole number of connections from 1 to 1000000 [invalid_value]`},
		// Words.
		{"rocksdb-sync-writes = yes", `extra.conf:1: rocksdb-sync-writes is "yes"; it must be true or false [invalid_value]`},
		{"replication-type = synch", `extra.conf:1: replication-type is "synch"; it must be async or sync; did you mean sync? [invalid_value]`},
		{"replication-type =", "extra.conf:1: replication-type has no value; it must be async or sync [missing_value]"},
		{"log-level = verbose", `extra.conf:1: log-level is "verbose"; it must be debug or info or warn or error [invalid_value]`},
		// Text and lists.
		{"data-dir =", "extra.conf:1: data-dir has no value; give one or remove the line [missing_value]"},
		{"server-name = a b", `extra.conf:1: server-name is "a b", which has ' '; a host name has letters, digits, '-', '_' and '.' [invalid_value]`},
		{"server-name = a:12121", `extra.conf:1: server-name is "a:12121", which has ':'; a host name has letters, digits, '-', '_' and '.' [invalid_value]`},
		{"agent-socket = /" + strings.Repeat("x", 107), "extra.conf:1: agent-socket is 108 bytes long; the path of a Unix socket has at most 107 [invalid_value]"},
		{"index-servers = a", `extra.conf:1: index-servers has "a", which is not host:port, such as flare-controller:12120 [invalid_value]`},
		{"index-servers = a:1,,b:2", `extra.conf:1: index-servers has "", which is not host:port, such as flare-controller:12120 [invalid_value]`},
		{"index-servers = a:0", `extra.conf:1: index-servers has "a:0", whose port is not a number from 1 to 65535 [invalid_value]`},
		{"index-servers = :1", `extra.conf:1: index-servers has ":1": the host is missing [invalid_value]`},
		{"index-servers = a:1,a:1", `extra.conf:1: index-servers has "a:1" twice; name each server once [invalid_value]`},
		// All of them.
		{"a\nmax-connection = 0\nmax-connection = 7\nb = 1", `extra.conf:1: "a" is not "name = value" [syntax]` + "\n" +
			"extra.conf:2: max-connection is 0; it must be a whole number of connections from 1 to 1000000 [out_of_range]\n" +
			"extra.conf:3: max-connection is also on line 2; remove one of them [duplicate_option]\n" +
			"extra.conf:4: b is not an option; flared --help lists them [unknown_option]"},
	} {
		base := Default()
		base.MaxConnection = 77
		got, _, err := Parse("extra.conf", []byte(c.text), base)
		var pe *ParseError
		if !errors.As(err, &pe) {
			t.Errorf("%q: error %v", c.text, err)
			continue
		}
		var lines []string
		for _, p := range pe.Problems {
			lines = append(lines, fmt.Sprintf("%v [%s]", p, p.Reason))
		}
		if text := strings.Join(lines, "\n"); text != c.want {
			t.Errorf("%q:\n got %s\nwant %s", c.text, text, c.want)
		}
		if ch := Changed(got, base); ch != nil {
			t.Errorf("%q: refused, and yet it changed %v", c.text, ch)
		}
	}
}

func TestParseBoundsWhatItReports(t *testing.T) {
	_, _, err := Parse("f", []byte(strings.Repeat("x\n", 5000)), Default())
	var pe *ParseError
	if !errors.As(err, &pe) || len(pe.Problems) != maxProblems+1 {
		t.Fatalf("%v", err)
	}
	if p := pe.Problems[maxProblems]; p.Reason != ReasonTooManyProblems || p.Line != maxProblems+1 {
		t.Errorf("last problem %+v", p)
	}

	_, _, err = Parse("f", make([]byte, MaxText+1), Default())
	if !errors.As(err, &pe) || len(pe.Problems) != 1 || pe.Problems[0].Reason != ReasonTooLarge {
		t.Errorf("a file that is too large: %v", err)
	}
}

func TestProblemsAreFoundByErrorsAs(t *testing.T) {
	_, _, err := Parse("f", []byte("\nx = 1\n"), Default())
	var p Problem
	if !errors.As(fmt.Errorf("wrapped: %w", err), &p) || p.Line != 2 || p.Key != "x" {
		t.Errorf("%+v", p)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "# nothing\n", "max-connection = 5\n", "max-connection = 5\nmax-connection = 6\n", "rocksdb-sync-writes =\n",
		"index-servers = a:1,b:2 # two\r\n", "log-level = warn\nreplication-type = sync\n", "rocksdb-wal-ttl = 3h\n= =\n\x00\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		base := Default()
		got, settings, err := Parse("f", text, base)
		lines := strings.Count(string(text), "\n") + 1
		if err != nil {
			var pe *ParseError
			if !errors.As(err, &pe) || len(pe.Problems) == 0 {
				t.Fatalf("refused without a problem: %v", err)
			}
			for _, p := range pe.Problems {
				if p.Reason == "" || p.Message == "" || p.Line < 0 || p.Line > lines || p.File != "f" {
					t.Fatalf("problem %+v", p)
				}
			}
			if c := Changed(got, base); c != nil {
				t.Fatalf("refused, and yet it changed %v", c)
			}
			Report(base, got, settings, err, nil)
			return
		}
		// What was read, written down by value, reads the same.
		var file strings.Builder
		for _, s := range Specs() {
			if v := got.Value(s.Key); v != "" {
				fmt.Fprintf(&file, "%s = %s\n", s.Key, v)
			}
		}
		again, _, err := Parse("f", []byte(file.String()), base)
		if err != nil {
			t.Fatalf("what was accepted is refused when written down: %v\n%s", err, file.String())
		}
		if c := Changed(got, again); c != nil {
			t.Fatalf("%v differ after writing down", c)
		}
		for _, st := range Report(got, got, settings, nil, nil) {
			if st.State != Applied {
				t.Fatalf("in force but reported as %+v", st)
			}
		}
	})
}
