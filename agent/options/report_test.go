package options

import (
	"fmt"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	running := Default()
	for _, c := range []struct {
		name string
		args []string
		text string
		want string // what is not simply applied and unnamed
	}{
		{"nothing configured", nil, "", ""},
		{"applied", nil, "rocksdb-sync-writes =\nmax-connection = 010000\n",
			"max-connection effective=10000 configured=010000 applied line=2\nrocksdb-sync-writes effective=true configured= applied line=1"},
		{"pending", nil, "block-cache-size-mb = 128\n", "block-cache-size-mb effective=64 configured=128 pending_restart line=1"},
		{"command line has another value", []string{"--max-connection=7"}, "max-connection = 9\n",
			"max-connection effective=7 configured=9 rejected line=1 command_line: is given on flared's command line as 7, which wins; remove it from there or from the file"},
		{"command line has the same value", []string{"--max-connection=7"}, "max-connection = 7\n", "max-connection effective=7 configured=7 applied line=1"},
		{"rejected", nil, "max-connection = 0\nrocksdb-sync-writes = true\nlog-level = info\nx = 1\n",
			"log-level effective=info configured=info applied line=3\n" +
				"max-connection effective=10000 configured=0 rejected line=1 out_of_range: is 0; it must be a whole number of connections from 1 to 1000000\n" +
				"rocksdb-sync-writes effective=false configured=true rejected line=2 file_rejected: is not applied because another line is wrong: extra.conf:1: max-connection is 0; it must be a whole number of connections from 1 to 1000000\n" +
				"x effective= configured=1 rejected line=4 unknown_option: is not an option; flared --help lists them"},
		{"duplicate", nil, "max-connection = 5\nmax-connection = 6\n",
			"max-connection effective=10000 configured=6 rejected line=2 duplicate_option: is also on line 1; remove one of them"},
		{"without effect", nil, "thread-pool-size = 5\n",
			"thread-pool-size effective= configured=5 applied line=1 no_effect: is accepted without effect: there is no pool of threads"},
		{"the command line has the other form", []string{"--index-servers=a:1"}, "index-server-name = b\n",
			"index-server-name effective= configured=b rejected line=1 command_line: excludes index-servers, which is given on flared's command line and wins; remove it from there or from the file"},
		{"unknown twice", nil, "x = 1\nx = 2\n", "x effective= configured=1 rejected line=1 unknown_option: is not an option; flared --help lists them"},
	} {
		t.Run(c.name, func(t *testing.T) {
			line, err := parseFlags(t, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			start := line.Over(running)
			wanted, settings, err := Parse("extra.conf", []byte(c.text), Default())
			wanted = line.Over(wanted)
			now := start
			if err == nil {
				now = start.WithLive(wanted)
			}
			var got []string
			all := Report(now, wanted, settings, err, line)
			if len(all) < len(Specs()) {
				t.Errorf("%d options reported, want all %d", len(all), len(Specs()))
			}
			for _, s := range all {
				if s.State == Applied && s.Line == 0 {
					continue
				}
				l := fmt.Sprintf("%s effective=%s configured=%s %v line=%d", s.Key, s.Effective, s.Configured, s.State, s.Line)
				if s.Reason != "" {
					l += fmt.Sprintf(" %s: %s", s.Reason, s.Message)
				}
				got = append(got, l)
			}
			if g := strings.Join(got, "\n"); g != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", g, c.want)
			}
		})
	}
}
