package recording

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flarekv/flare/controller/core"
)

// fill draws a value.
func fill(t *rapid.T, v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "int"))
	case reflect.Uint8:
		v.SetUint(uint64(rapid.Uint8().Draw(t, "uint8")))
	case reflect.Uint64:
		v.SetUint(rapid.Uint64().Draw(t, "uint64"))
	case reflect.String:
		v.SetString(rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "\xff", "a\x00<&>\u2028", `{"hex":"00"}`})).Draw(t, "string"))
	case reflect.Slice:
		if n := rapid.IntRange(-1, 2).Draw(t, "len"); n >= 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
		}
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "nil") {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				t.Fatalf("%v.%s is unexported: it cannot be written down", v.Type(), v.Type().Field(i).Name)
			}
			if rapid.Bool().Draw(t, "set") {
				fill(t, v.Field(i))
			}
		}
	default:
		t.Fatalf("a %v is no plain data", v.Type())
	}
}

// effects is one of each.
var effects = []core.Effect{
	core.Persist{}, core.Reply{}, core.Broadcast{}, core.WriteConfig{}, core.ScaleTo{}, core.LabelNodes{}, core.WriteStatus{},
	core.GrantLease{}, core.Event{}, core.Decision{}, core.Refused{}, core.OrderNode{}, core.CheckTarget{},
}

// TestPlain writes and reads values of every type that a recording has.
func TestPlain(t *testing.T) {
	types := []reflect.Type{reflect.TypeFor[core.State]()}
	for _, in := range inputs {
		types = append(types, in)
	}
	for _, e := range effects {
		types = append(types, reflect.TypeOf(e))
	}
	for _, typ := range types {
		t.Run(typ.Name(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				v := reflect.New(typ).Elem()
				fill(t, v)
				text := appendPlain(nil, v)
				back := reflect.New(typ).Elem()
				if err := parsePlain(text, back); err != nil {
					t.Fatalf("%s: %v", text, err)
				}
				if !reflect.DeepEqual(back.Interface(), v.Interface()) {
					t.Fatalf("%s is read as\n%+v\nof\n%+v", text, back, v)
				}
				if again := appendPlain(nil, back); string(again) != string(text) {
					t.Fatalf("written again it is\n%s\nof\n%s", again, text)
				}
			})
		})
	}
}

func TestParsePlainRefuses(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{`{`, "unexpected"},
		{`[]`, "want a core.AgentReport"},
		{`{"Nonsense":1}`, "has no field Nonsense"},
		{`{"Alive":1}`, "Alive: want a bool"},
		{`{"Key":1}`, "Key: want a string"},
		{`{"Key":{"hex":"0"}}`, "Key: want a string"},
		{`{"Now":1.5}`, "Now: want a int64"},
		{`{"MapVersion":-1}`, "MapVersion: want a uint64"},
		{`{"Role":256}`, "Role: want a topology.Role"},
		{`{"LSN":{"Epoch":"1"}}`, "LSN: Epoch: want a uint64"},
	} {
		var r core.AgentReport
		if err := parsePlain([]byte(tt.text), reflect.ValueOf(&r).Elem()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.text, err, tt.want)
		}
	}
}

// TestTypesAreListed looks whether there are inputs or effects of the core that are not
// listed here.
func TestTypesAreListed(t *testing.T) {
	listed := map[string]bool{}
	for name := range inputs {
		listed["input "+name] = true
	}
	for _, e := range effects {
		listed["effect "+reflect.TypeOf(e).Name()] = true
	}
	names, err := filepath.Glob("../core/*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			d, ok := decl.(*ast.FuncDecl)
			if !ok || d.Recv == nil || d.Name.Name != "input" && d.Name.Name != "effect" {
				continue
			}
			found++
			if name := d.Name.Name + " " + d.Recv.List[0].Type.(*ast.Ident).Name; !listed[name] {
				t.Errorf("%s is not listed", name)
			}
		}
	}
	if found != len(listed) {
		t.Errorf("%d types were found, %d are listed", found, len(listed))
	}
}
