package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flarekv/flare/agent/options"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// engine returns what RocksDB says of one of its options.
func (n *testNode) engine(name string) string {
	n.t.Helper()
	now, err := n.db.Tuning()
	if err != nil {
		n.t.Fatal(err)
	}
	return now[name]
}

// setting returns what stats settings shows of an option.
func (n *testNode) setting(key string) string {
	for line := range strings.SplitSeq(string(n.appendSettings(nil)), "\r\n") {
		if value, ok := strings.CutPrefix(line, "STAT "+key+" "); ok {
			return value
		}
	}
	return ""
}

// Options of RocksDB itself change while the node runs, and go back to their
// defaults when the agent's text does not have them any more.
func TestEngineOptionsApplyLive(t *testing.T) {
	for _, how := range tellings {
		t.Run(how.name, func(t *testing.T) {
			n := startNode(t, newTestIndex(t))
			how.tell(t, n, "rocksdb-option-write_buffer_size = 2097152\nrocksdb-option-max_background_jobs = 3\nrocksdb-option-block_size = 8192\n")
			for name, want := range map[string]string{"write_buffer_size": "2097152", "max_background_jobs": "3", "block_size": "4096"} {
				if got, shown := n.engine(name), n.setting(options.EnginePrefix+name); got != want || shown != want {
					t.Errorf("%s: RocksDB has %s, stats settings shows %s, want %s", name, got, shown, want)
				}
			}
			if lines := n.log.lines("option needs a restart"); len(lines) != 1 || !strings.Contains(lines[0], "rocksdb-option-block_size") {
				t.Errorf("left for a restart: %q", lines)
			}
			how.tell(t, n, "rocksdb-option-write_buffer_size = 2097152\n")
			want := map[string]string{"agent": "2", "SIGHUP": "3"}[how.name] // a file that does not have an option any more leaves it
			if got := n.engine("max_background_jobs"); got != want {
				t.Errorf("max_background_jobs is %s after the line went, want %s", got, want)
			}
			if n.kill(); n.setting("rocksdb-option-write_buffer_size") != "2097152" {
				t.Error("a node that ends forgets its options")
			}
		})
	}
}

// A text of which a line is wrong, or that RocksDB refuses, changes nothing, and
// each wrong line is in the log.
func TestEngineOptionsAreAllOrNothing(t *testing.T) {
	n := startNode(t, newTestIndex(t))
	before := *n.live.Load()
	unchanged := func() {
		t.Helper()
		if c := options.Changed(before, *n.live.Load()); c != nil {
			t.Errorf("%v changed", c)
		}
		if c := options.Changed(before, n.readBack(before)); c != nil {
			t.Errorf("RocksDB has others: %v", c)
		}
	}
	bad := "max-connection = 5\nrocksdb-option-write_buffer_size = 2097152\nrocksdb-option-wal_dir = /x\nrocksdb-option-max_background_jobs = none\n"
	accepted, _, err := n.applyText([]byte(bad))
	if accepted || err != nil {
		t.Errorf("accepted %v, %v", accepted, err)
	}
	unchanged()
	lines := n.log.lines("options rejected")
	if len(lines) != 2 || !strings.Contains(lines[0], "reason=reserved option=rocksdb-option-wal_dir line=3") || !strings.Contains(lines[1], "reason=invalid_value option=rocksdb-option-max_background_jobs line=4") {
		t.Errorf("log %q", lines)
	}
	n.settings.file = filepath.Join(n.dir, "flared.conf")
	if err := os.WriteFile(n.settings.file, []byte(bad), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := n.Reload(); err == nil {
		t.Error("the file was accepted")
	}
	unchanged()
	if lines := n.log.lines("configuration file rejected"); len(lines) != 2 || !strings.Contains(lines[1], "line=4") {
		t.Errorf("log %q", lines)
	}

	// What is kept for the next start cannot be written: RocksDB has to give back
	// what it was given.
	path := n.settings.path
	n.settings.path = filepath.Join(n.dir, "no-such", appliedName)
	if accepted, _, err := n.applyText([]byte("max-connection = 5\nrocksdb-option-write_buffer_size = 2097152\n")); accepted || err == nil {
		t.Error("a text that could not be kept was accepted")
	}
	n.settings.path = path
	unchanged()

	// A database that takes no options refuses the whole text.
	n.kill()
	accepted, statuses, err := n.applyText([]byte("max-connection = 5\nrocksdb-option-write_buffer_size = 2097152\n"))
	if accepted || err != nil || n.live.Load().MaxConnection != before.MaxConnection {
		t.Errorf("accepted %v, %v, max-connection %d", accepted, err, n.live.Load().MaxConnection)
	}
	i := slices.IndexFunc(statuses, func(s options.Status) bool { return s.Key == "max-connection" })
	if s := statuses[i]; s.State != options.Rejected || s.Reason != options.ReasonFileRejected || !strings.Contains(s.Message, "RocksDB's options cannot be changed") {
		t.Errorf("%+v", s)
	}
}

// What RocksDB refuses although the table of options does not is refused with its
// words, on the line that it is about.
func TestEngineRefusal(t *testing.T) {
	n := startNode(t, newTestIndex(t))
	_, named, _ := options.Parse("f", []byte("\nrocksdb-option-compression = kZSTD\n"), options.Default())
	err := engineRefusal("f", named, n.db.Tune(map[string]string{"compression": "kXpressCompression"}))
	if err == nil || !strings.HasPrefix(err.Error(), "f:2: rocksdb-option-compression is refused by RocksDB: Invalid argument: ") {
		t.Errorf("%v", err)
	}
}

func TestGetAndCheckOptions(t *testing.T) {
	n := startNode(t, newTestIndex(t), func(n *testNode) { n.opts.MaxConnection = 900 })
	n.settings.inFile = map[string]bool{"max-connection": true}
	v := &service{s: n.Server}
	const text = "rocksdb-option-write_buffer_size = 2097152\nblock-cache-size-mb = 99\nlog-level = warn\n"
	check, err := v.CheckOptions(t.Context(), &agentv1.CheckOptionsRequest{Text: text})
	if err != nil || !check.GetAccepted() {
		t.Fatalf("%v, %v", check, err)
	}
	var got []string
	for _, o := range check.GetOptions() {
		got = append(got, fmt.Sprintf("%s %s > %s %v %d", o.GetKey(), o.GetCurrent(), o.GetProposed(), o.GetOutcome(), o.GetLine()))
	}
	want := []string{
		"log-level info > warn OPTION_OUTCOME_WOULD_APPLY 3",
		"block-cache-size-mb 64 > 99 OPTION_OUTCOME_NEEDS_RESTART 2",
		"rocksdb-option-write_buffer_size 1048576 > 2097152 OPTION_OUTCOME_WOULD_APPLY 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("verdicts %q\nwant %q", got, want)
	}
	if n.engine("write_buffer_size") != "1048576" || n.live.Load().Value("log-level") != "info" {
		t.Error("to look at a text changed something")
	}
	if refused, err := v.CheckOptions(t.Context(), &agentv1.CheckOptionsRequest{Text: text + "x = 1\n"}); err != nil || refused.GetAccepted() {
		t.Errorf("%v, %v", refused, err)
	}

	if resp, err := v.ApplyOptions(t.Context(), &agentv1.ApplyOptionsRequest{Text: text}); err != nil || !resp.GetAccepted() {
		t.Fatalf("%v, %v", resp, err)
	}
	resp, err := v.GetOptions(t.Context(), &agentv1.GetOptionsRequest{})
	if err != nil || resp.GetAppliedText() != text || len(resp.GetOptions()) != len(options.Specs()) {
		t.Fatalf("%v, %v", resp, err)
	}
	got = nil
	for _, o := range resp.GetOptions() {
		if o.GetLine() > 0 || o.GetSource() != agentv1.OptionSource_OPTION_SOURCE_DEFAULT {
			got = append(got, fmt.Sprintf("%s %s %v %v %d", o.GetKey(), o.GetEffective(), o.GetState(), o.GetSource(), o.GetLine()))
		}
	}
	want = []string{
		"log-level warn OPTION_STATE_APPLIED OPTION_SOURCE_AGENT 3",
		"max-connection 900 OPTION_STATE_APPLIED OPTION_SOURCE_FILE 0",
		"block-cache-size-mb 64 OPTION_STATE_PENDING_RESTART OPTION_SOURCE_DEFAULT 2",
		"rocksdb-option-write_buffer_size 2097152 OPTION_STATE_APPLIED OPTION_SOURCE_AGENT 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("options %q\nwant %q", got, want)
	}
}
