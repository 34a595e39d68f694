package options

import (
	"flag"
	"io"
	"slices"
	"testing"
)

// original are the options of flared 1.3.4, each with a value that a file of it
// may have.
var original = []struct{ key, value string }{
	{"data-dir", "/data"},
	{"index-servers", "a:12120,b:12120"},
	{"index-server-name", "a"},
	{"index-server-port", "12120"},
	{"server-name", "10.0.0.1"},
	{"server-port", "12121"},
	{"server-socket", "/run/flared.sock"},
	{"daemonize", ""},
	{"log-facility", "local0"},
	{"max-connection", "128"},
	{"back-log", "30"},
	{"net-read-timeout", "600"},
	{"thread-pool-size", "5"},
	{"stack-size", "128"},
	{"mutex-slot", "64"},
	{"proxy-concurrency", "2"},
	{"proxy-prior-netmask", "24"},
	{"max-total-thread-queue", "0"},
	{"noreply-window-limit", "0"},
	{"replication-type", "async"},
	{"reconstruction-interval", "0"},
	{"reconstruction-bwlimit", "0"},
	{"storage-type", "tch"},
	{"storage-ap", "4"},
	{"storage-fp", "10"},
	{"storage-bucket-size", "131071"},
	{"storage-compress", "deflate"},
	{"storage-large", ""},
	{"storage-lmemb", "128"},
	{"storage-nmemb", "256"},
	{"storage-dfunit", "0"},
	{"storage-cache-size", "65536"},
	{"time-watcher-enabled", "false"},
	{"time-watcher-polling-interval-msec", "0"},
	{"storage-access-watch-threshold-warn-msec", "0"},
	{"storage-access-watch-threshold-ping-ng-msec", "0"},
	{"cluster-replication", "false"},
	{"cluster-replication-server-name", "b"},
	{"cluster-replication-server-port", "12121"},
	{"cluster-replication-concurrency", "2"},
	{"cluster-replication-mode", "duplicate"},
}

// Every option of the original is accepted, in a file and as a flag, and either
// is an option here or is named as one without effect.
func TestEveryOriginalOptionIsAccepted(t *testing.T) {
	for _, o := range original {
		opts, settings, err := Parse("flared.conf", []byte(o.key+" = "+o.value+"\n"), Default())
		if err != nil {
			t.Errorf("in a file: %v", err)
			continue
		}
		fs := flag.NewFlagSet("flared", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		line := Flags(fs)
		arg := "--" + o.key + "=" + o.value
		if o.value == "" {
			arg = "--" + o.key
		}
		if err := fs.Parse([]string{arg}); err != nil {
			t.Errorf("as a flag: %v", err)
		}
		if lookup(o.key) != nil {
			if opts.Value(o.key) != o.value || line.Over(Default()).Value(o.key) != o.value {
				t.Errorf("%s = %s is read as %q, as a flag %q", o.key, o.value, opts.Value(o.key), line.Over(Default()).Value(o.key))
			}
			if len(WithoutEffect(settings)) > 0 || len(line.WithoutEffect()) > 0 {
				t.Errorf("%s has an effect and is said to have none", o.key)
			}
		} else if want := []string{o.key}; !slices.Equal(WithoutEffect(settings), want) || !slices.Equal(line.WithoutEffect(), want) {
			t.Errorf("%s: without effect: %v, as a flag %v", o.key, WithoutEffect(settings), line.WithoutEffect())
		}
	}
	for _, s := range Ignored() {
		if lookup(s.Key) != nil {
			t.Errorf("%s is in both tables", s.Key)
		}
		if s.Doc == "" || !slices.ContainsFunc(original, func(o struct{ key, value string }) bool { return o.key == s.Key }) {
			t.Errorf("%s: no reason, or not an option of the original", s.Key)
		}
	}
}

// The form of the index servers that was given last is in force.
func TestOneFormOfIndexServers(t *testing.T) {
	_, _, err := Parse("f", []byte("index-server-name = ::1\nindex-server-port = 5\n"), Default())
	if err == nil {
		t.Error("a bare IPv6 address is taken for a host name")
	}
	pair, _, err := Parse("f", []byte("index-server-name = a\nindex-server-port = 5\n"), Default())
	if err != nil || !slices.Equal(pair.Indexes(), []string{"a:5"}) {
		t.Errorf("name and port: %v, %v", pair.Indexes(), err)
	}
	list, _, err := Parse("f", []byte("index-servers = b:1,c:2\n"), pair)
	if err != nil || !slices.Equal(list.Indexes(), []string{"b:1", "c:2"}) || list.Value("index-server-name") != "" {
		t.Errorf("list over name: %v, %v", list.Indexes(), err)
	}
	again, _, err := Parse("f", []byte("index-server-name = a\n"), list)
	if err != nil || !slices.Equal(again.Indexes(), []string{"a:5"}) {
		t.Errorf("name over list: %v, %v", again.Indexes(), err)
	}
	line, err := parseFlags(t, "--index-server-name=d")
	if err != nil || !slices.Equal(line.Over(list).Indexes(), []string{"d:5"}) {
		t.Errorf("flag over list: %v, %v", line.Over(list).Indexes(), err)
	}
	both, _, err := Parse("f", []byte("index-servers = b:1\nindex-server-name = a\n"), Default())
	if err == nil || len(both.Indexes()) > 0 {
		t.Errorf("both: %v, %v", both.Indexes(), err)
	}
}
