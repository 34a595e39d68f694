package sidecar

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

func TestReadDirectory(t *testing.T) {
	t.Parallel()
	plain := func(files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	mounted := newConfigMap(t)
	mounted.config(7, "a = 1\n")
	const hash = "cb78bd8a17f7"
	for _, c := range []struct {
		name, dir string
		want      File
		note      string
	}{
		{"no directory", filepath.Join(t.TempDir(), "none"), File{}, "there is no "},
		{"empty directory", plain(nil), File{}, "there is no "},
		{"generation alone", plain(map[string]string{generationFile: "3"}), File{}, "there is no "},
		{"plain files", plain(map[string]string{ConfigFile: "a = 1\n", generationFile: "7\n"}), File{Present: true, Text: "a = 1\n", Hash: hash, Generation: 7}, ""},
		{"mounted ConfigMap", mounted.dir, File{Present: true, Text: "a = 1\n", Hash: hash, Generation: 7}, ""},
		{"no generation", plain(map[string]string{ConfigFile: "a = 1\n"}), File{Present: true, Text: "a = 1\n", Hash: hash}, ""},
		{"bad generation", plain(map[string]string{ConfigFile: "a = 1\n", generationFile: "many"}), File{Present: true, Text: "a = 1\n", Hash: hash}, `holds "many", which is not a generation`},
	} {
		got, err := ReadDirectory(c.dir)
		note := got.Note
		got.Note = ""
		if err != nil || got != c.want || !strings.Contains(note, c.note) || (c.note == "") != (note == "") {
			t.Errorf("%s: %+v, %q, %v", c.name, got, note, err)
		}
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, ConfigFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDirectory(dir); err == nil || !strings.Contains(err.Error(), ConfigFile) {
		t.Errorf("a directory in place of the file: %v", err)
	}
}

// Whatever the moment at which the kubelet swaps, text and generation are of one version.
func TestReadDirectoryWhileItIsSwapped(t *testing.T) {
	t.Parallel()
	c := newConfigMap(t)
	c.config(1, "1")
	stop, swapped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(swapped)
		for i := 2; ; i++ {
			select {
			case <-stop:
				return
			default:
				c.config(i%2+1, []string{"1", "2"}[i%2])
			}
		}
	}()
	var seen [3]int
	for deadline := time.Now().Add(patience); seen[1] < 20 || seen[2] < 20; {
		f, err := ReadDirectory(c.dir)
		if err != nil || f.Text != string(rune('0'+f.Generation)) {
			// Five swaps during one read: the answer is that of a file that is gone.
			if f.Present {
				t.Errorf("text %q of generation %d, %v", f.Text, f.Generation, err)
			}
		}
		seen[f.Generation]++
		if time.Now().After(deadline) {
			t.Errorf("seen only %v", seen)
			break
		}
	}
	close(stop)
	<-swapped
}

func TestConfigurationIsAppliedWhenTheConfigMapIsSwapped(t *testing.T) {
	t.Parallel()
	c := newConfigMap(t)
	c.config(1, "rocksdb-sync-writes = true\n")
	r := startAgent(t, func(s *Settings) { s.ConfigDir = c.dir })
	f := startFlared(t, r.socket, "first")
	generation := func(g int64) func(s *agentv1.AgentStatus) bool {
		return func(s *agentv1.AgentStatus) bool {
			return s.GetConfig().GetGeneration() == g && s.GetConfig().GetAppliedHash() == s.GetConfig().GetHash() && !s.GetConfig().GetRejected()
		}
	}
	check := func(s *agentv1.AgentStatus, key, effective, configured string, state agentv1.OptionState, reason string) {
		t.Helper()
		if o := optionOf(s, key); o.GetEffective() != effective || o.GetConfigured() != configured || o.GetState() != state || o.GetReason() != reason {
			t.Errorf("%s: %v", key, o)
		}
	}
	const applied, pending, rejected = agentv1.OptionState_OPTION_STATE_APPLIED, agentv1.OptionState_OPTION_STATE_PENDING_RESTART, agentv1.OptionState_OPTION_STATE_REJECTED

	s := r.waitStatus("the first is applied", generation(1))
	check(s, "rocksdb-sync-writes", "true", "true", applied, "")

	c.config(2, "rocksdb-sync-writes = true\nrocksdb-wal-ttl-seconds = 60\nblock-cache-size-mb = 128\n")
	s = r.waitStatus("the second is applied", generation(2))
	check(s, "rocksdb-wal-ttl-seconds", "60", "60", applied, "")
	check(s, "block-cache-size-mb", "64", "128", pending, "")
	before := s.GetConfig()

	c.config(3, "rocksdb-sync-writes = false\nrocksdb-wal-ttl = 30\n")
	r.waitStatus("the third is rejected", func(s *agentv1.AgentStatus) bool { return s.GetConfig().GetRejected() })
	waitFor(t, "flared has rejected it too", func() bool { return r.agent.snapshot().Config.Applies.Rejected == 1 })
	s = r.status()
	if m, want := s.GetConfig().GetMessage(), "extra.conf:2: rocksdb-wal-ttl is not an option; did you mean rocksdb-wal-ttl-seconds?"; m != want {
		t.Errorf("message %q, want %q", m, want)
	}
	if c := s.GetConfig(); c.GetGeneration() != 3 || c.GetAppliedHash() != before.GetAppliedHash() || c.GetHash() == before.GetHash() {
		t.Errorf("rejected: %v", c)
	}
	check(s, "rocksdb-sync-writes", "true", "false", rejected, "file_rejected")
	check(s, "rocksdb-wal-ttl", "", "30", rejected, "unknown_option")
	if o := optionOf(s, "rocksdb-wal-ttl-seconds"); o.GetEffective() != "60" {
		t.Errorf("the former value is not in force: %v", o)
	}
	if code, _ := r.ready(); code != 200 {
		t.Errorf("a rejected configuration made the node unready: %d", code)
	}

	c.config(4, "rocksdb-sync-writes = false\n")
	s = r.waitStatus("the fourth is applied", generation(4))
	check(s, "rocksdb-sync-writes", "false", "false", applied, "")
	check(s, "rocksdb-wal-ttl-seconds", "10800", "", applied, "")

	// The same text for another generation needs no answer from flared.
	c.config(5, "rocksdb-sync-writes = false\n")
	r.waitStatus("the fifth is applied", generation(5))
	if n := len(f.sent()); n != 4 {
		t.Errorf("flared was told %d times", n)
	}

	// The ConfigMap is gone: it is mounted as optional.
	c.write(nil)
	s = r.waitStatus("the empty configuration is applied", func(s *agentv1.AgentStatus) bool {
		return s.GetConfig().GetHash() == "" && s.GetConfig().GetAppliedHash() == "" && strings.Contains(s.GetConfig().GetMessage(), "there is no ")
	})
	if s.GetConfig().GetGeneration() != 0 || s.GetConfig().GetRejected() {
		t.Errorf("without a ConfigMap: %v", s.GetConfig())
	}
	waitFor(t, "flared is told that there is none", func() bool { s := f.sent(); return len(s) == 5 && s[4] == "" })
}

func TestDirectoryThatAppearsIsFoundBeforeThePoll(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "later")
	r := startAgent(t, func(s *Settings) { s.ConfigDir = dir })
	startFlared(t, r.socket, "first")
	r.waitStatus("nothing is there to read", func(s *agentv1.AgentStatus) bool {
		return s.GetFlaredAlive() && strings.Contains(s.GetConfig().GetMessage(), "there is no "+filepath.Join(dir, ConfigFile))
	})
	c := &configMap{t: t, dir: dir}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.config(1, "max-connection = 5\n")
	r.waitStatus("it is applied", func(s *agentv1.AgentStatus) bool {
		return s.GetConfig().GetGeneration() == 1 && s.GetConfig().GetAppliedHash() != "" && s.GetConfig().GetMessage() == ""
	})
}
