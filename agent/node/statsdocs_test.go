package node

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestStatsKeysAreDocumented compares the table in docs/operations.md with what a
// master with a replica says.
func TestStatsKeysAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "<!-- keys of stats;")
	table, _, found := strings.Cut(table, "<!-- end of keys -->")
	if !found {
		t.Fatal("docs/operations.md has no table of keys between its marks")
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(rocksdb_[^`]+)` \\| [^|]+ \\|").FindAllStringSubmatch(table, -1) {
		if documented[m[1]] {
			t.Errorf("%s is there twice", m[1])
		}
		documented[m[1]] = true
	}

	x := newTestIndex(t)
	master, slave := startNode(t, x), startNode(t, x)
	x.master(master.key(), 0)
	master.settled(dutyMaster)
	x.slave(slave.key(), 0, 1)
	inSync(t, x, slave)
	said := map[string]bool{}
	for _, n := range []*testNode{master, slave} {
		stats, err := n.appendStats(nil)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(stats)) {
			if key, ok := strings.CutPrefix(line, "STAT rocksdb_"); ok {
				key, _, _ = strings.Cut("rocksdb_"+key, " ")
				key = strings.ReplaceAll(key, slave.key(), "<node>")
				if reason, ok := strings.CutPrefix(key, "rocksdb_stream_refused_"); ok {
					if !strings.Contains(string(text), "`"+reason+"`") {
						t.Errorf("reason %s is not in docs/operations.md", reason)
					}
					key = "rocksdb_stream_refused_<reason>"
				}
				said[key] = true
			}
		}
	}
	for key := range said {
		if !documented[key] {
			t.Errorf("%s is said but not in docs/operations.md", key)
		}
	}
	for key := range documented {
		if !said[key] {
			t.Errorf("%s is in docs/operations.md but not said", key)
		}
	}
}
