package v1

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"sigs.k8s.io/yaml"
)

// chartCRD is what helm installs.
const chartCRD = "../../../charts/flare/crds/flareclusters.yaml"

type schemaNode struct {
	Default    any                   `json:"default"`
	Properties map[string]schemaNode `json:"properties"`
	Rules      []struct {
		Rule    string `json:"rule"`
		Message string `json:"message"`
	} `json:"x-kubernetes-validations"`
}

func loadSchema(t *testing.T) schemaNode {
	t.Helper()
	var crd struct {
		Spec struct {
			Versions []struct {
				Name   string `json:"name"`
				Schema struct {
					OpenAPIV3Schema schemaNode `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(CustomResourceDefinition(), &crd); err != nil {
		t.Fatal(err)
	}
	if len(crd.Spec.Versions) != 1 || crd.Spec.Versions[0].Name != Version {
		t.Fatalf("versions: %+v", crd.Spec.Versions)
	}
	return crd.Spec.Versions[0].Schema.OpenAPIV3Schema
}

func TestChartHoldsTheSameCRD(t *testing.T) {
	chart, err := os.ReadFile(chartCRD)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(chart, CustomResourceDefinition()) {
		t.Errorf("%s differs from flarekv.io_flareclusters.yaml: run go generate in controller/api/v1", chartCRD)
	}
}

// The API server fills in the schema's defaults, Default fills in Go's: a spec
// must mean the same on both ways.
func TestSchemaDefaultsEqualGoDefaults(t *testing.T) {
	var s FlareClusterSpec
	s.Default()
	text, err := yaml.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var byGo map[string]any
	if err := yaml.Unmarshal(text, &byGo); err != nil {
		t.Fatal(err)
	}
	checked := 0
	var walk func(path string, n schemaNode, v map[string]any)
	walk = func(path string, n schemaNode, v map[string]any) {
		for name, p := range n.Properties {
			at := path + "." + name
			if p.Properties != nil {
				child, ok := v[name].(map[string]any)
				if !ok {
					t.Errorf("%s: Default leaves it out", at)
					continue
				}
				walk(at, p, child)
				continue
			}
			if p.Default == nil {
				continue
			}
			checked++
			if p.Default != v[name] {
				t.Errorf("%s: schema default %v, Go default %v", at, p.Default, v[name])
			}
		}
	}
	walk("spec", loadSchema(t).Properties["spec"], byGo)
	if checked != 24 {
		t.Errorf("%d defaults compared, want 24", checked)
	}
}

func TestSpecRules(t *testing.T) {
	var rules []string
	for _, r := range loadSchema(t).Properties["spec"].Rules {
		if r.Message == "" {
			t.Errorf("rule %q has no message", r.Rule)
		}
		rules = append(rules, r.Rule)
	}
	slices.Sort(rules)
	want := []string{
		"!has(self.replication.minInSync) || self.replication.minInSync <= self.replicas",
		"!self.clusterReplication.enabled || size(self.clusterReplication.target) > 0",
		"self.keyMapping == oldSelf.keyMapping",
		"self.partitionSize == oldSelf.partitionSize",
		"self.partitionSize > self.partitions",
		"self.partitions >= oldSelf.partitions",
	}
	if !slices.Equal(rules, want) {
		t.Errorf("the rules are\n %q, want\n %q", rules, want)
	}
}

// TestRulesAreASCII: gofmt makes one typographic quote of two apostrophes in a comment,
// and an API server then takes the rule, and the definition with it, for no CEL.
func TestRulesAreASCII(t *testing.T) {
	for i, b := range CustomResourceDefinition() {
		if b > 127 {
			t.Fatalf("byte %d of the definition is %#x: ...%s", i, b, CustomResourceDefinition()[max(0, i-80):i])
		}
	}
}
