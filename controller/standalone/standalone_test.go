package standalone

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

const manifest = `apiVersion: flarekv.io/v1
kind: FlareCluster
metadata:
  name: demo
spec:
  partitions: 2
  replicas: 2
`

func TestParseManifest(t *testing.T) {
	spec := func(s string) string { return strings.Split(manifest, "spec:")[0] + "spec:\n" + s }
	for _, tt := range []struct {
		name, text, want string // want: part of the error, empty for none
	}{
		{"good", manifest, ""},
		{"with options", manifest + "  rocksdb:\n    walTtlSeconds: 60\n    syncWrites: true\n  replication: {mode: async}\n", ""},
		{"unknown field", spec("  partitons: 2\n  replicas: 2\n"), "partitons"},
		{"unknown option", manifest + "  rocksdb: {walTTL: 1}\n", "walTTL"},
		{"other kind", strings.Replace(manifest, "FlareCluster", "Pod", 1), `kind "Pod"`},
		{"other version", strings.Replace(manifest, "flarekv.io/v1", "flarekv.io/v2", 1), `want apiVersion "flarekv.io/v1"`},
		{"no name", strings.Replace(manifest, "  name: demo\n", "  labels: {}\n", 1), "metadata.name"},
		{"no partitions", spec("  replicas: 2\n"), "spec.partitions is 0: want 1 to 1023"},
		{"too many replicas", spec("  partitions: 2\n  replicas: 9\n"), "spec.replicas is 9: want 1 to 8"},
		{"partition size", manifest + "  partitionSize: 2\n", "spec.partitionSize is 2: want more than spec.partitions"},
		{"more in sync than there are", manifest + "  replication: {minInSync: 9}\n", "spec.replication.minInSync is 9: want 1 to"},
		{"mode", manifest + "  replication: {mode: eventual}\n", `spec.replication.mode is "eventual"`},
		{"option out of range", manifest + "  rocksdb: {walSyncInterval: 1}\n", "spec.rocksdb.walSyncInterval is 1: want 10 to 60000"},
		{"no yaml", "{", "yaml"},
		{"twice", manifest + "spec: {}\n", "spec"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseManifest([]byte(tt.text))
			switch {
			case tt.want == "" && err != nil:
				t.Fatal(err)
			case tt.want == "":
				if c.Spec.PartitionSize != 1024 {
					t.Errorf("defaults are not filled in: %+v", c.Spec)
				}
			case err == nil || !strings.Contains(err.Error(), tt.want):
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
		})
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(manifest))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseManifest(b)
		if err == nil && (c.Spec.Partitions < 1 || c.Spec.Replicas < 1 || c.Name == "") {
			t.Errorf("accepted: %+v", c.Spec)
		}
	})
}

func open(t *testing.T, dir, text string) *Backend {
	t.Helper()
	file := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := Open(Config{Manifest: file, StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestStateSurvives(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, manifest)
	if _, found, err := b.Load(t.Context()); err != nil || found {
		t.Fatalf("a fresh directory has a state: %t, %v", found, err)
	}
	want := core.Durable{
		Format: core.FormatVersion, Seq: 7, Version: 5, Generation: 1, Meta: topology.DefaultMeta(), NextThread: 17,
		Partitions: []core.Partition{{Epoch: 3}},
		Nodes: []core.Node{{
			Name: "a", Port: 1, Role: topology.Master, State: topology.Down, Partition: 0, Balance: 1, ThreadType: 16,
			Extended: true, Instance: "i", Held: 0, HeldLSN: topology.LSN{Epoch: 3, Index: 9}, Floor: core.Grant{Epoch: 2, Session: 1},
		}},
	}
	for range 2 {
		if err := b.Persist(t.Context(), want); err != nil {
			t.Fatal(err)
		}
	}
	b.Close()
	b = open(t, dir, manifest)
	got, found, err := b.Load(t.Context())
	if err != nil || !found || !reflect.DeepEqual(got, want) {
		t.Errorf("loaded %+v, %t, %v\nwant %+v", got, found, err, want)
	}
	left, err := filepath.Glob(filepath.Join(dir, "state", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := os.WriteFile(b.path("state.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged state: %v", err)
	}
}

func TestOneControllerOnly(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, manifest)
	cfg := Config{Manifest: filepath.Join(dir, "cluster.yaml"), StateDir: filepath.Join(dir, "state")}
	if _, err := Open(cfg); !errors.Is(err, ErrInUse) {
		t.Fatalf("a second controller: %v", err)
	}
	b.Close()
	again, err := Open(cfg)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	again.Close()
}

func TestConfigDirectory(t *testing.T) {
	b := open(t, t.TempDir(), manifest)
	dir := b.ConfigDir()
	var targets []string
	for generation := range int64(3) {
		text := strings.Repeat("x", int(generation)+1)
		if err := b.WriteConfig(t.Context(), core.WriteConfig{Generation: generation + 1, Text: text}); err != nil {
			t.Fatal(err)
		}
		conf, err := os.ReadFile(filepath.Join(dir, "extra.conf"))
		if err != nil || string(conf) != text {
			t.Errorf("extra.conf %q, %v", conf, err)
		}
		gen, err := os.ReadFile(filepath.Join(dir, "generation"))
		if err != nil || strings.TrimSpace(string(gen)) != string('1'+byte(generation)) {
			t.Errorf("generation %q, %v", gen, err)
		}
		target, err := os.Readlink(filepath.Join(dir, "..data"))
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, target)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 || targets[0] == targets[1] || targets[1] == targets[2] {
		t.Errorf("entries %v, targets %v, %v", entries, targets, err)
	}
}

// watch runs Watch and returns what it tells.
func watch(t *testing.T, b *Backend) <-chan core.Spec {
	t.Helper()
	specs := make(chan core.Spec, 16)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- b.Watch(ctx, func(in core.Input) { specs <- in.(core.SpecChanged).Spec })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return specs
}

func next(t *testing.T, specs <-chan core.Spec) core.Spec {
	t.Helper()
	select {
	case s := <-specs:
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("no spec came")
		return core.Spec{}
	}
}

// TestReload changes the manifest while it is watched: in place, by replacing the
// file, and with a mistake, which changes nothing.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, manifest)
	file := filepath.Join(dir, "cluster.yaml")
	specs := watch(t, b)
	if s := next(t, specs); s.Generation != 1 || s.Partitions != 2 || s.Replicas != 2 || !strings.Contains(s.Config, "replication-type = sync") {
		t.Fatalf("first %+v", s)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(manifest, "replicas: 2", "replicas: 3", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if s := next(t, specs); s.Generation != 2 || s.Replicas != 3 {
		t.Fatalf("written in place: %+v", s)
	}
	if err := os.WriteFile(file, []byte("nonsense: true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".new", []byte(manifest+"  replication: {mode: async}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	s := next(t, specs)
	if s.Generation != 3 || s.Replicas != 2 || !strings.Contains(s.Config, "replication-type = async") {
		t.Fatalf("replaced after a mistake: %+v", s)
	}
	// The same content again is no change; and generations go on after a restart.
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	b.Close()
	again, err := Open(Config{Manifest: file, StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.current.Generation != 3 {
		t.Errorf("generation %d after a restart, want 3", again.current.Generation)
	}
	select {
	case s := <-specs:
		t.Errorf("told of no change: %+v", s)
	default:
	}
}

// TestMissingManifest names the file.
func TestMissingManifest(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(Config{Manifest: filepath.Join(dir, "no.yaml"), StateDir: filepath.Join(dir, "state")})
	if err == nil || !strings.Contains(err.Error(), "no.yaml") {
		t.Errorf("%v", err)
	}
}

func TestStatusFile(t *testing.T) {
	b := open(t, t.TempDir(), manifest)
	if err := b.WriteStatus(t.Context(), core.Status{Phase: core.PhaseRunning, Reason: "healthy"}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(b.path("status.yaml"))
	if err != nil || !strings.Contains(string(text), "phase: Running") {
		t.Errorf("%s, %v", text, err)
	}
}
