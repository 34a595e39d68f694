package recording

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// reign is a core that answers itself, with its steps recorded.
type reign struct {
	r     *Recorder
	state core.State
	saved core.Durable
}

func reignOf(r *Recorder, d core.Durable) *reign {
	g := &reign{r: r, state: core.New(d), saved: d}
	r.Begin(g.state)
	return g
}

// take takes inputs, of which the more come the less is decided at once, and those that
// answer the effects.
func (g *reign) take(list ...core.Input) {
	owing := false
	for len(list) > 0 {
		in, more := list[0], len(list) > 1
		effects, _, owed := core.Advance(&g.state, in, more, owing)
		g.r.Step(in, more, owing, g.state, effects)
		list, owing = list[1:], owed
		for _, e := range effects {
			switch e := e.(type) {
			case core.Persist:
				g.saved = e.Durable
				list = append(list, core.Persisted{Seq: e.Durable.Seq})
			case core.WriteStatus:
				list = append(list, core.Done{Request: core.RequestStatus, Seq: e.Seq})
			case core.WriteConfig:
				list = append(list, core.Done{Request: core.RequestConfig, Seq: e.Seq})
			case core.LabelNodes:
				list = append(list, core.Done{Request: core.RequestLabels, Seq: e.Seq})
			}
		}
	}
}

// life lets a cluster of two nodes form, its master die and the replica take its place,
// which another controller then finds.
func life(r *Recorder) {
	g := reignOf(r, core.Durable{})
	now := int64(1_000_000)
	tick := func() { now += 200; g.take(core.Tick{Now: now}) }
	tick()
	g.take(core.SpecChanged{Spec: core.Spec{Generation: 1, Partitions: 1, Replicas: 2, Meta: topology.DefaultMeta()}})
	for i, name := range []string{"a", "b"} {
		g.take(core.Command{ID: uint64(2*i + 1), Verb: core.VerbAdd, Name: name, Port: 1},
			core.Command{ID: uint64(2*i + 2), Verb: core.VerbHello, Name: name, Port: 1, Hello: core.Hello{Instance: name, Partition: -1}})
	}
	tick()
	report := func(name string, alive bool, epoch uint64) core.AgentReport {
		return core.AgentReport{Now: now, Key: name + ":1", Alive: alive, Instance: name, Serving: alive, LeaseEpoch: epoch,
			LeaseToken: uint64(now) * 1e6, LSN: topology.LSN{Epoch: 1, Index: uint64(now)}, AgentStarted: 7}
	}
	for range 8 {
		g.take(report("a", true, 1), report("b", true, 0), core.Pinged{Key: "a:1", Outcome: core.PingOK}, core.Pinged{Key: "b:1", Outcome: core.PingOK})
		tick()
	}
	g.take(core.Command{ID: 9, Verb: core.VerbState, Name: "b", Port: 1, State: topology.Active, HasSession: true, Epoch: 1, Session: 1})
	tick()
	g.take(report("a", false, 0))
	tick()
	g = reignOf(r, g.saved)
	for range 8 {
		tick()
		g.take(report("b", true, 2))
	}
}

func record(t *testing.T, limit int64, live func(*Recorder)) (text []byte, log string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "recording")
	return recordTo(t, file, limit, live)
}

func recordTo(t *testing.T, file string, limit int64, live func(*Recorder)) (text []byte, log string) {
	t.Helper()
	var b bytes.Buffer
	r, err := Open(Config{File: file, Limit: limit, Program: "test", Logger: slog.New(slog.NewTextHandler(&b, nil))})
	if err != nil {
		t.Fatal(err)
	}
	live(r)
	r.Close()
	if text, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	return text, b.String()
}

func TestReplay(t *testing.T) {
	text, _ := record(t, 1<<20, life)
	s, err := Replay(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if s.Reigns != 2 || s.Steps < 60 || s.Noted == 0 || s.States != 2 || s.Inputs["Tick"] < 18 || s.Effects["GrantLease"] == 0 ||
		s.Lines != s.Steps+s.Reigns || s.Foreign+s.Torn > 0 || s.End != "" || s.Checks != s.Steps*len(core.Invariants()) {
		t.Errorf("%+v", s)
	}
	if !strings.Contains(string(text), `"Reason":"failover"`) {
		t.Error("nobody took the master's place")
	}
}

// TestReplayFinds spoils a recording, each time elsewhere, as if the core had decided
// otherwise.
func TestReplayFinds(t *testing.T) {
	text, _ := record(t, 1<<20, life)
	lines := strings.SplitAfter(strings.TrimSpace(string(text)), "\n")
	find := func(part string) int {
		for i, l := range lines {
			if strings.Contains(l, part) {
				return i
			}
		}
		t.Fatalf("no line has %s", part)
		return 0
	}
	for _, tt := range []struct {
		name, at, old, new string
		want               []string
	}{
		{"an effect", `"do":"GrantLease"`, `"TTL":5000`, `"TTL":5001`, []string{"agent a:1", "recorded:", `"TTL":5001`, "now:", `"TTL":5000`}},
		{"a large effect", `"do":"WriteStatus"`, `"sum":"`, `"sum":"0`, []string{"WriteStatus (status) digest 0"}},
		{"an effect that is missing", `"do":"GrantLease"`, `"do":[`, `"done":[`, []string{"recorded:\n    nothing\n  now:\n    GrantLease"}},
		{"a number", `"seq":3,`, `"seq":3,`, `"seq":4,`, []string{"recorded: decided 4", "now:      decided 3"}},
		{"an input", `"Verb":"hello"`, `"Instance":"a"`, `"Instance":"z"`, []string{"persisted seq=2", `"Instance":"z"`}},
		{"a state", `"Machine":"`, `"Machine":"`, `"Machine":"0`, []string{"tick", "Machine differs; here it is\n{"}},
		{"a field that is gone", `"Now":"`, `"Now":"`, `"Then":"1","Now":"`, []string{"there is no field Then"}},
		{"what the reign begins with", `"recording"`, `"format":1`, `"format":2`, []string{"has format 2, this program reads 1"}},
		{"a field that there is not", `"in":"Tick"`, `{"Now"`, `{"Nun"`, []string{"has no field Nun"}},
		{"an input that there is not", `"in":"Tick"`, `"in":"Tick"`, `"in":"Tock"`, []string{`no input "Tock"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := find(tt.at)
			spoilt := append([]string{}, lines...)
			spoilt[at] = strings.Replace(lines[at], tt.old, tt.new, 1)
			s, err := Replay(strings.NewReader(strings.Join(spoilt, "")))
			if err == nil {
				t.Fatalf("nothing was found: %+v", s)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nhas no %s", err, want)
				}
			}
		})
	}
	if _, err := Replay(strings.NewReader(strings.Join(lines[1:], ""))); err == nil || !strings.Contains(err.Error(), "before the first reign") {
		t.Errorf("without its beginning: %v", err)
	}
	if _, err := Replay(strings.NewReader("hello\n")); err == nil || !strings.Contains(err.Error(), "no recording") {
		t.Errorf("another file: %v", err)
	}
	broken := strings.Replace(lines[find(`"recording"`)], `"state":{`, `"state":{"SentVersion":9,`, 1)
	tick, _, _ := strings.Cut(lines[1], `,"state":`)
	if _, err := Replay(strings.NewReader(broken + tick + "}\n")); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "PersistBeforeBroadcast") {
		t.Errorf("a state that must not be: %v", err)
	}
}

// TestTornLines goes on with the recording of a controller that was killed.
func TestTornLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "recording")
	text, _ := recordTo(t, file, 1<<20, life)
	if err := os.WriteFile(file, text[:len(text)-20], 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Replay(bytes.NewReader(text[:len(text)-20]))
	if err != nil || s.Torn != 1 {
		t.Errorf("its end is missing: %+v, %v", s, err)
	}
	text, _ = recordTo(t, file, 1<<20, life)
	if s, err = Replay(bytes.NewReader(text)); err != nil || s.Torn != 1 || s.Reigns != 4 {
		t.Errorf("another one goes on: %+v, %v", s, err)
	}
	// In the midst of a reign no line may be missing.
	lines := strings.SplitAfter(string(text), "\n")
	lines[5] = lines[5][:len(lines[5])/2] + "\n"
	if _, err = Replay(strings.NewReader(strings.Join(lines, ""))); err == nil || !strings.HasPrefix(err.Error(), "line 6: it cannot be read") {
		t.Errorf("a damaged line: %v", err)
	}
	// A log in the midst of it does no harm.
	lines = strings.SplitAfter(string(text), "\n")
	lines[5] = `{"time":"2026-01-02T03:04:05Z","level":"INFO","msg":"x"}` + "\n" + lines[5]
	if s, err = Replay(strings.NewReader(strings.Join(lines, ""))); err != nil || s.Foreign != 1 {
		t.Errorf("a log: %+v, %v", s, err)
	}
}

func TestLimit(t *testing.T) {
	text, log := record(t, 9_000, life)
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	var last line
	if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil || last.End == "" {
		t.Errorf("its last line is %s, %v", lines[len(lines)-1], err)
	}
	if len(text) > 9_200 || len(text) < 7_000 {
		t.Errorf("it has %d bytes", len(text))
	}
	if strings.Count(log, "recording ends") != 1 {
		t.Errorf("the log is %s", log)
	}
	s, err := Replay(bytes.NewReader(text))
	if err != nil || s.Steps != len(lines)-2 || s.End != last.End {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestDiskDoesNotKeepUp records while nothing is written.
func TestDiskDoesNotKeepUp(t *testing.T) {
	var log bytes.Buffer
	r := &Recorder{program: "test", log: slog.New(slog.NewTextHandler(&log, nil)), lines: make(chan []byte, 4), left: 1 << 20}
	state := core.New(core.Durable{})
	r.Begin(state)
	for i := range 20 {
		r.Step(core.Tick{Now: int64(i)}, false, false, state, nil)
	}
	var out bytes.Buffer
	r.written.Go(func() { r.write(&out) })
	r.Close()
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); len(lines) != 4 || !strings.Contains(lines[3], "as fast as") {
		t.Errorf("recorded is\n%s", out.String())
	}
	if strings.Count(log.String(), "recording ends") != 1 {
		t.Errorf("the log is %s", log.String())
	}
}

func TestFailingDisk(t *testing.T) {
	var log bytes.Buffer
	r := &Recorder{log: slog.New(slog.NewTextHandler(&log, nil)), lines: make(chan []byte, 100), left: 1 << 20}
	r.written.Go(func() { r.write(full{}) })
	for i := range 20 {
		r.Step(core.Tick{Now: int64(i)}, false, false, core.State{}, nil)
	}
	r.Close()
	if strings.Count(log.String(), "no space left") != 1 {
		t.Errorf("the log is %s", log.String())
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, fmt.Errorf("no space left") }
