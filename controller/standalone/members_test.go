package standalone

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/controller/core"
)

func TestParseMembers(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"nodes:\n- node: a:1\n  zone: x\n- {node: \"b:1\", draining: true}\n- {node: \"c:1\", gone: true}\n", ""},
		{"nodes:\n- node: a\n", "entry 0"},
		{"nodes:\n- node: a:1\n- node: a:1\n", "a:1 is there twice"},
		{"nodes:\n- name: a:1\n", "name"},
	} {
		m, err := parseMembers([]byte(tt.text))
		if tt.want != "" {
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q: %v, want an error about %s", tt.text, err, tt.want)
			}
			continue
		}
		want := core.Members{Known: true, Count: 3, List: []core.Member{
			{Key: "a:1", Ordinal: 0, Zone: "x", Exists: true},
			{Key: "b:1", Ordinal: 1, Exists: true, Draining: true},
			{Key: "c:1", Ordinal: 2},
		}}
		if err != nil || !reflect.DeepEqual(m, want) {
			t.Errorf("%q: %+v, %v", tt.text, m, err)
		}
	}
}

// TestMembersAreWatched writes the list, spoils it, and takes it away.
func TestMembersAreWatched(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "nodes.yaml")
	b, err := Open(Config{Manifest: file, Nodes: list, StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	told := make(chan core.Members, 16)
	done := make(chan error, 1)
	go func() {
		done <- b.Watch(t.Context(), func(in core.Input) {
			if m, ok := in.(core.MembersChanged); ok {
				told <- m.Members
			}
		})
	}()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(list+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(list+".new", list); err != nil {
			t.Fatal(err)
		}
	}
	await := func() core.Members {
		t.Helper()
		select {
		case m := <-told:
			return m
		case <-time.After(20 * time.Second):
			t.Fatal("no list came")
			return core.Members{}
		}
	}
	write("nodes:\n- node: a:1\n")
	if m := await(); !m.Known || m.Count != 1 {
		t.Fatalf("%+v", m)
	}
	write("nodes: 3\n") // changes nothing
	write("nodes:\n- node: a:1\n- node: b:1\n")
	if m := await(); m.Count != 2 {
		t.Fatalf("%+v", m)
	}
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	if m := await(); m.Known {
		t.Fatalf("%+v", m)
	}
}
