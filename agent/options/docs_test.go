package options

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/options.md anew")

const reference = "../../docs/options.md"

// Marks in the reference between which the tables stand.
const (
	tablesBegin = "<!-- tables: go test ./agent/options -run Docs -update -->\n"
	tablesEnd   = "<!-- end of tables -->\n"
)

func tables() string {
	var b strings.Builder
	var own, engine []Spec
	for _, s := range Specs() {
		if strings.HasPrefix(s.Key, EnginePrefix) {
			engine = append(engine, s)
		} else {
			own = append(own, s)
		}
	}
	docTable(&b, own)
	b.WriteString("\nOptions of RocksDB itself:\n\n")
	docTable(&b, engine)
	b.WriteString("\nOptions of RocksDB that are refused (reason `reserved`):\n\n| name | why |\n|---|---|\n")
	refused := Reserved()
	rows := make([]string, 0, len(refused))
	for why, names := range refused {
		rows = append(rows, fmt.Sprintf("| `%s` | %s |\n", strings.Join(names, "`, `"), why))
	}
	slices.Sort(rows)
	b.WriteString(strings.Join(rows, ""))
	b.WriteString("\nAccepted without effect:\n\n| option | why |\n|---|---|\n")
	for _, s := range Ignored() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", s.Key, strings.ReplaceAll(s.Doc, "|", `\|`))
	}
	return b.String()
}

func docTable(b *strings.Builder, specs []Spec) {
	b.WriteString("| option | value | default | takes effect | meaning |\n|---|---|---|---|---|\n")
	cell := func(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
	for _, s := range specs {
		value := s.Type
		if s.Type == "integer" {
			value = fmt.Sprintf("%d to %d", s.Min, s.Max)
			if s.Unit != "" {
				value += " " + s.Unit
			}
		}
		def := s.Default
		if def != "" {
			def = "`" + def + "`"
		}
		effect := "at the next start"
		if s.Live {
			effect = "at once"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", s.Key, cell(value), def, effect, cell(s.Doc))
	}
}

// The reference of the options lists exactly the options that there are.
func TestDocsListEveryOption(t *testing.T) {
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), tablesBegin)
	is, after, closed := strings.Cut(rest, tablesEnd)
	if !found || !closed {
		t.Fatalf("%s has no tables", reference)
	}
	if *update {
		if err := os.WriteFile(reference, []byte(before+tablesBegin+tables()+tablesEnd+after), 0o666); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := tables(); is != want {
		t.Errorf("%s is not what the table of options says; write it anew with go test ./agent/options -run Docs -update", reference)
	}
}
