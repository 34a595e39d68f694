package sidecar

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

var update = flag.Bool("update", false, "write the table of metrics in docs/operations.md")

// TestMetricsAreDocumented compares the table in docs/operations.md with what the
// agent describes.
func TestMetricsAreDocumented(t *testing.T) {
	const path, begin, end = "../../docs/operations.md", "<!-- metrics: go test ./agent/sidecar -run MetricsAreDocumented -update -->\n", "<!-- end of metrics -->"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	was, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s lacks the marks of the table", path)
	}
	described := make(chan *prometheus.Desc, 500)
	collector{}.Describe(described)
	close(described)
	parts := regexp.MustCompile(`^Desc\{fqName: "(\w+)", help: "(.*?)"(?:, unit: ".*?")?, constLabels: \{\}, variableLabels: \{(.*)\}\}$`)
	var rows []string
	for d := range described {
		m := parts.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("%s is not understood", d)
		}
		labels := ""
		if m[3] != "" {
			labels = "`" + strings.ReplaceAll(m[3], ",", "`, `") + "`"
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |\n", m[1], labels, m[2]))
	}
	slices.Sort(rows)
	want := "| metric | labels | meaning |\n|---|---|---|\n" + strings.Join(rows, "")
	if want == was {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the agent describes; write it anew with go test ./agent/sidecar -run MetricsAreDocumented -update", path)
	}
	if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
