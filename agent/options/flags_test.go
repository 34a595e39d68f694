package options

import (
	"bytes"
	"flag"
	"io"
	"slices"
	"strings"
	"testing"
)

func parseFlags(t *testing.T, args ...string) (*CommandLine, error) {
	t.Helper()
	fs := flag.NewFlagSet("flared", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	c := Flags(fs)
	return c, fs.Parse(args)
}

func TestCommandLineWinsOverFile(t *testing.T) {
	c, err := parseFlags(t, "--max-connection=7", "--replication-type", "async", "--rocksdb-sync-writes", "-index-servers=a:1,b:2", "--net-read-timeout=0030")
	if err != nil {
		t.Fatal(err)
	}
	file, _, err := Parse("f", []byte("max-connection = 9\nserver-port = 99\n"), Default())
	if err != nil {
		t.Fatal(err)
	}
	got := c.Over(file)
	want := []string{"index-servers", "max-connection", "net-read-timeout", "replication-type", "rocksdb-sync-writes"}
	if ch := Changed(file, got); !slices.Equal(ch, want) {
		t.Errorf("changed by the command line: %v, want %v", ch, want)
	}
	for key, v := range map[string]string{"max-connection": "7", "replication-type": "async", "rocksdb-sync-writes": "true",
		"index-servers": "a:1,b:2", "server-port": "99", "net-read-timeout": "30"} {
		if got.Value(key) != v {
			t.Errorf("%s = %q, want %q", key, got.Value(key), v)
		}
	}
	if !c.Has("max-connection") || c.Has("server-port") {
		t.Error("Has is wrong about what the command line gives")
	}
	var none *CommandLine
	if none.Has("max-connection") || Changed(none.Over(file), file) != nil {
		t.Error("no command line is not nothing")
	}
}

func TestCommandLineRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"--max-connection=0":                        "max-connection: is 0; it must be a whole number of connections from 1 to 1000000",
		"--rocksdb-sync-writes=nope":                "rocksdb-sync-writes: is \"nope\"; it must be true or false",
		"--no-such=1":                               "flag provided but not defined: -no-such",
		"--index-server-name=a --index-servers=b:1": "index-server-name excludes index-servers; remove one of them",
		"--mutex-slot=x":                            "mutex-slot: is \"x\"; it must be a whole number",
		"--data-dir=":                               "data-dir: has no value; give one or remove the line",
	} {
		if _, err := parseFlags(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

func TestUsageNamesUnitRangeAndDefault(t *testing.T) {
	fs := flag.NewFlagSet("flared", flag.ContinueOnError)
	var out bytes.Buffer
	fs.SetOutput(&out)
	Flags(fs)
	fs.PrintDefaults()
	for _, want := range []string{
		"-rocksdb-wal-ttl-seconds seconds\n", "in seconds from 1 to 31536000 (default 10800)",
		"-replication-type async|sync\n", "-server-port number\n", "a number from 1 to 65535 (default 12121)", "-rocksdb-sync-writes\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("usage lacks %q:\n%s", want, out.String())
		}
	}
}
