package sidecar

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flarekv/flare/agent/options"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

func (r *running) config() *agentv1.GetConfigResponse {
	r.t.Helper()
	resp, err := r.api.GetConfig(r.t.Context(), &agentv1.GetConfigRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

func (r *running) validate(text string) *agentv1.ValidateConfigResponse {
	r.t.Helper()
	resp, err := r.api.ValidateConfig(r.t.Context(), &agentv1.ValidateConfigRequest{Text: text})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

func option(t *testing.T, c *agentv1.GetConfigResponse, key string) *agentv1.ConfigOption {
	t.Helper()
	i := slices.IndexFunc(c.GetOptions(), func(o *agentv1.ConfigOption) bool { return o.GetKey() == key })
	if i < 0 {
		t.Fatalf("%s is not among the options", key)
	}
	return c.GetOptions()[i]
}

// A change of the ConfigMap brings options of RocksDB itself into the running
// process, which is told nothing but the text.
func TestEngineOptionsRollOut(t *testing.T) {
	t.Parallel()
	config := newConfigMap(t)
	config.config(1, "rocksdb-option-write_buffer_size = 1048576\n")
	r := startAgent(t, func(s *Settings) { s.ConfigDir = config.dir })
	f := startFlared(t, r.socket, "first")
	effective := func(key, value string) func(*agentv1.AgentStatus) bool {
		return func(s *agentv1.AgentStatus) bool {
			return slices.ContainsFunc(s.GetConfig().GetOptions(), func(o *agentv1.OptionStatus) bool {
				return o.GetKey() == key && o.GetEffective() == value && o.GetState() == agentv1.OptionState_OPTION_STATE_APPLIED
			})
		}
	}
	r.waitStatus("the first file is applied", effective("rocksdb-option-write_buffer_size", "1048576"))
	config.config(2, "rocksdb-option-write_buffer_size = 2097152\nrocksdb-option-block_size = 8192\n")
	r.waitStatus("the second file is applied", effective("rocksdb-option-write_buffer_size", "2097152"))
	c := r.config()
	if o := option(t, c, "rocksdb-option-block_size"); o.GetState() != agentv1.OptionState_OPTION_STATE_PENDING_RESTART || o.GetConfigured() != "8192" || o.GetEffective() != "4096" || o.GetLive() {
		t.Errorf("%v", o)
	}
	if s := r.status(); s.GetFlaredRestarts() != 0 || s.GetFlared().GetInstance() != "first" {
		t.Errorf("flared was restarted: %v", s)
	}
	config.config(3, "rocksdb-option-wal_dir = /x\n")
	waitFor(t, "flared is told the third", func() bool { return len(f.sent()) == 3 })
	s := r.waitStatus("the third is rejected", func(s *agentv1.AgentStatus) bool { return s.GetConfig().GetRejected() })
	if m := s.GetConfig().GetMessage(); !strings.Contains(m, "extra.conf:1: rocksdb-option-wal_dir is not to be set") {
		t.Errorf("message %q", m)
	}
}

func TestGetConfig(t *testing.T) {
	t.Parallel()
	config := newConfigMap(t)
	const text = "max-connection = 5\nblock-cache-size-mb = 99\n"
	config.config(7, text)
	r := startAgent(t, func(s *Settings) { s.ConfigDir = config.dir })
	c := r.config()
	if c.GetFromFlared() || !strings.Contains(c.GetNote(), "flared is not running") || c.GetAppliedText() != "" || c.GetGeneration() != 7 || len(c.GetOptions()) != len(options.Specs()) {
		t.Errorf("before flared: %v", c)
	}
	if o := option(t, c, "max-connection"); o.GetEffective() != "" || o.GetConfigured() != "5" || o.GetDefaultValue() != "10000" || !o.GetLive() ||
		o.GetUnit() != "connections" || o.GetMin() != 1 || o.GetMax() != 1000000 || o.GetDescription() == "" || o.GetType() != "integer" {
		t.Errorf("before flared: %v", o)
	}

	f := startFlared(t, r.socket, "first")
	r.waitStatus("flared is configured", func(s *agentv1.AgentStatus) bool { return s.GetConfig().GetAppliedHash() != "" })
	c = r.config()
	if !c.GetFromFlared() || c.GetNote() != "" || c.GetAppliedText() != text || c.GetHash() != hashOf(text) || c.GetAppliedHash() != c.GetHash() ||
		c.GetNode() != "flare-0.flare-nodes:12121" || c.GetChangedAt() == nil || len(c.GetOptions()) != len(options.Specs()) {
		t.Errorf("with flared: %v", c)
	}
	for key, want := range map[string]string{
		"max-connection":      "5 OPTION_SOURCE_AGENT OPTION_STATE_APPLIED 1",
		"block-cache-size-mb": "64 OPTION_SOURCE_AGENT OPTION_STATE_PENDING_RESTART 2",
		"data-dir":            "/data OPTION_SOURCE_COMMAND_LINE OPTION_STATE_APPLIED 0",
		"log-level":           "info OPTION_SOURCE_DEFAULT OPTION_STATE_APPLIED 0",
	} {
		o := option(t, c, key)
		if got := fmt.Sprintf("%s %v %v %d", o.GetEffective(), o.GetSource(), o.GetState(), o.GetLine()); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}

	// What was refused is shown beside what is in force.
	config.config(8, "max-connection = 0\nx = 1\n")
	waitFor(t, "flared is told the second file", func() bool { return len(f.sent()) == 2 })
	r.waitStatus("the second file is rejected", func(s *agentv1.AgentStatus) bool { return s.GetConfig().GetRejected() })
	c = r.config()
	if o := option(t, c, "max-connection"); o.GetEffective() != "5" || o.GetConfigured() != "0" || o.GetReason() != options.ReasonOutOfRange || o.GetLine() != 1 {
		t.Errorf("refused: %v", o)
	}
	if o := option(t, c, "x"); o.GetReason() != options.ReasonUnknownOption || o.GetState() != agentv1.OptionState_OPTION_STATE_REJECTED {
		t.Errorf("unknown: %v", o)
	}
	if !c.GetRejected() || c.GetAppliedText() != text || c.GetAppliedHash() != hashOf(text) || c.GetHash() == c.GetAppliedHash() {
		t.Errorf("with a rejected file: %v", c)
	}

	f.kill()
	r.waitStatus("flared is gone", dead)
	c = r.config()
	if o := option(t, c, "max-connection"); c.GetFromFlared() || c.GetNote() == "" || o.GetEffective() != "5" || c.GetAppliedText() != text {
		t.Errorf("without flared: %v %v", o, c.GetNote())
	}
}

func TestValidateConfig(t *testing.T) {
	t.Parallel()
	config := newConfigMap(t)
	config.config(1, "max-connection = 5\n")
	r := startAgent(t, func(s *Settings) { s.ConfigDir = config.dir })
	show := func(v *agentv1.ValidateConfigResponse) string {
		var lines []string
		for _, o := range v.GetOptions() {
			lines = append(lines, fmt.Sprintf("%s %s>%s %s %s %d", o.GetKey(), o.GetCurrent(), o.GetProposed(),
				word(o.GetOutcome().String(), "OPTION_OUTCOME_"), o.GetReason(), o.GetLine()))
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	const good, bad = "max-connection = 6\nblock-cache-size-mb = 99\nlog-level = info\n", "max-connection = 6\nlog-level = loud\n"
	v := r.validate(good)
	if v.GetCheckedByFlared() || !v.GetAccepted() || !strings.Contains(v.GetNote(), "the agent alone has looked") || v.GetHash() != hashOf(good) {
		t.Errorf("before flared: %v", v)
	}
	if got, want := show(v), "block-cache-size-mb >99 needs_restart  2\nlog-level >info unchanged  3\nmax-connection >6 would_apply  1"; got != want {
		t.Errorf("before flared:\n%s\nwant\n%s", got, want)
	}

	f := startFlared(t, r.socket, "first")
	r.waitStatus("flared is configured", func(s *agentv1.AgentStatus) bool { return s.GetConfig().GetAppliedHash() != "" })
	withFlared := "block-cache-size-mb 64>99 needs_restart  2\nlog-level info>info unchanged  3\nmax-connection 5>6 would_apply  1"
	if v = r.validate(good); !v.GetCheckedByFlared() || !v.GetAccepted() || v.GetNote() != "" || show(v) != withFlared {
		t.Errorf("with flared: %v\n%s", v, show(v))
	}
	refused := "log-level info>loud would_reject invalid_value 2\nmax-connection 5>6 would_reject file_rejected 1"
	if v = r.validate(bad); v.GetAccepted() || show(v) != refused || !strings.Contains(v.GetOptions()[0].GetMessage(), "must be debug or info") {
		t.Errorf("a bad text: %v\n%s", v, show(v))
	}
	if v = r.validate("nonsense"); v.GetAccepted() || show(v) != " > would_reject syntax 1" {
		t.Errorf("nonsense: %s", show(v))
	}
	if got := f.sent(); !slices.Equal(got, []string{"max-connection = 5\n"}) {
		t.Errorf("flared was told %q", got)
	}
	if s := r.status().GetConfig(); s.GetRejected() || s.GetGeneration() != 1 {
		t.Errorf("to look at a text changed the status: %v", s)
	}

	// One that fails, or is gone, is stood in for with the values it had.
	f.mu.Lock()
	f.failing = status.Error(codes.Unimplemented, "unknown method")
	f.mu.Unlock()
	if v = r.validate(good); v.GetCheckedByFlared() || !strings.Contains(v.GetNote(), "unknown method") || show(v) != withFlared {
		t.Errorf("with a flared that cannot: %v\n%s", v, show(v))
	}
	f.kill()
	r.waitStatus("flared is gone", dead)
	if v = r.validate(bad); v.GetCheckedByFlared() || v.GetAccepted() || show(v) != refused {
		t.Errorf("without flared: %v\n%s", v, show(v))
	}
}
