package flarexml

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// recorded is one file that the original was started on, and what became of it.
type recorded struct {
	Case        string `json:"case"`
	Send        string `json:"send"` // the file
	Recv        string `json:"recv"` // stats nodes after the start; of the last line of a session the file
	Alive       *bool  `json:"flarei_alive"`
	VersionLine any    `json:"version_line"`
}

// lenient are files that the original refuses and that are read here, with why.
var lenient = map[string]string{
	"flare.xml/no-doctype":         "an XML file needs no DOCTYPE",
	"flare.xml/hole-in-partitions": "the layout is judged by core.Import, which refuses it",
}

func TestRecordedFiles(t *testing.T) {
	f, err := os.Open("testdata/flarei-files.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	n := 0
	for lines.Scan() {
		n++
		var r recorded
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		t.Run(r.Case, func(t *testing.T) {
			file := r.Send
			if r.Case == "flare.xml-after-all" {
				file = r.Recv
			}
			got, err := Parse([]byte(file))
			if r.Alive != nil && !*r.Alive {
				if want := lenient[r.Case] == ""; want != (err != nil) {
					t.Fatalf("error %v, want one: %v", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Alive == nil {
				return
			}
			if stats := statsNodes(got.Map.Nodes); stats != r.Recv {
				t.Errorf("nodes are\n%s\nwant\n%s", stats, r.Recv)
			}
			want := "STAT node_map_version " + strconv.FormatUint(got.Map.Version, 10)
			if lines, ok := r.VersionLine.([]any); !ok || len(lines) != 1 || lines[0] != want {
				t.Errorf("%s, want %v", want, r.VersionLine)
			}
		})
	}
	if n != 11 {
		t.Errorf("%d files, want 11", n)
	}
}

func statsNodes(nodes []topology.Node) string {
	var b []byte
	for _, n := range nodes {
		for _, s := range [][2]string{{"role", n.Role.String()}, {"state", n.State.String()}, {"partition", strconv.Itoa(n.Partition)},
			{"balance", strconv.Itoa(n.Balance)}, {"thread_type", strconv.Itoa(n.ThreadType)}} {
			b = text.AppendStat(b, n.Key()+":"+s[0], s[1])
		}
	}
	return string(b) + "END\r\n"
}

const good = `<?xml version="1.0"?><!DOCTYPE boost_serialization><boost_serialization signature="serialization::archive" version="18">
<version>7</version><node_map><count>1</count><item><first>h:1</first><second><node_server_name>h</node_server_name>
<node_server_port>1</node_server_port><node_role>0</node_role><node_state>0</node_state><node_partition>0</node_partition>
<node_balance>1</node_balance><node_thread_type>16</node_thread_type></second></item></node_map><thread_type>17</thread_type></boost_serialization>`

func TestParseRefuses(t *testing.T) {
	if f, err := Parse([]byte(good)); err != nil || f.Map.Version != 7 || f.NextThread != 17 || len(f.Map.Nodes) != 1 {
		t.Fatalf("%+v, %v", f, err)
	}
	for _, c := range []struct{ old, new, want string }{
		{"<node_role>0<", "<node_role>3<", "<node_role> is 3"},
		{"<node_state>0<", "<node_state>4<", "<node_state> is 4"},
		{"<node_state>0</node_state>", "", "no <node_state>"},
		{"<node_partition>0<", "<node_partition>-2<", "<node_partition> is -2"},
		{"<node_partition>0<", "<node_partition>x<", "not a flare.xml"},
		{"<first>h:1<", "<first>h:2<", `<first> is "h:2"`},
		{"<node_server_port>1<", "<node_server_port>0<", "a port from 1 to 65535"},
		{"<node_server_name>h<", "<node_server_name>h i<", "without white space"},
		{"<node_balance>1<", "<node_balance>-1<", "<node_balance> is -1"},
		{"<node_thread_type>16<", "<node_thread_type>17<", "want less than <thread_type> 17"},
		{"<node_thread_type>16<", "<node_thread_type>15<", "want at least 16"},
		{"<count>1<", "<count>2<", "not whole"},
		{"</boost_serialization>", "</boost_serialization><x/>", "there is more behind"},
		{"</boost_serialization>", "", "not a flare.xml"},
		{"<thread_type>17</thread_type>", "", "no <thread_type>"},
		{"boost_serialization", "other", "not a flare.xml"},
	} {
		file := strings.ReplaceAll(good, c.old, c.new)
		if _, err := Parse([]byte(file)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s for %s: %v, want %q", c.new, c.old, err, c.want)
		}
	}
}

// FuzzParse: whatever comes is refused or gives nodes that have a place on the wire.
func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, content []byte) {
		file, err := Parse(content)
		if err != nil {
			return
		}
		if !slices.IsSortedFunc(file.Map.Nodes, func(a, b topology.Node) int { return strings.Compare(a.Key(), b.Key()) }) {
			t.Error("nodes are not sorted")
		}
		for _, n := range file.Map.Nodes {
			line := text.AppendNodes(nil, []topology.Node{n}, false)
			if words := strings.Fields(string(line)); len(words) != 9 { // NODE, 7 fields, END
				t.Errorf("on the wire: %q", line)
			}
			if n.ThreadType >= file.NextThread {
				t.Errorf("%+v, next thread type %d", n, file.NextThread)
			}
		}
	})
}
