package model

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func world(t *testing.T, name string) *Model {
	t.Helper()
	m, err := Find(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// fails tells the way to a violation.
func fails(t *testing.T, m *Model, v *Violation) {
	t.Helper()
	var text strings.Builder
	if _, err := m.Replay(v.Trace, &text); err != nil {
		text.WriteString(err.Error())
	}
	var file strings.Builder
	WriteTrace(&file, m.Name, v.Err, v.Trace)
	t.Fatalf("%v\n\nafter %d steps:\n%s\nto be saved as a file for go run ./e2e/model/check -replay FILE:\n%s", v.Err, len(v.Trace), text.String(), file.String())
}

// TestWorlds explores the fast worlds: all of each, or under the race detector, where
// all is ten times as slow, the states nearest to the beginning.
func TestWorlds(t *testing.T) {
	for _, m := range Worlds() {
		if !strings.HasPrefix(m.Name, "fast") {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			m := world(t, m.Name)
			limits := Limits{}
			if raceDetector {
				limits.States, limits.Every = 300, 1
			}
			r, err := NewExplorer(m, limits).Run(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d states, %d transitions, depth %d, %v, %d MiB", r.States, r.Transitions, r.Depth, r.Took, r.Memory>>20)
			if r.Violation != nil {
				fails(t, m, r.Violation)
			}
			if !r.Complete && !raceDetector {
				t.Fatal("it was not explored completely")
			}
		})
	}
}

// TestDesiredStateIsReached looks whether fast worlds come to what was asked for once
// nothing goes wrong any more, from every state and by every fair schedule.
func TestDesiredStateIsReached(t *testing.T) {
	for _, name := range []string{"fast-crash", "fast-cut", "fast-sever", "fast-handover", "fast-grow", "fast-breaker"} {
		t.Run(name, func(t *testing.T) {
			m := world(t, name)
			limits := Limits{}
			if raceDetector {
				limits.States, limits.Every = 300, 1
			}
			live, r, err := Live(context.Background(), m, limits)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d states, %d of them desired, %d transitions in which nothing goes wrong, %d circles, %d of them fair",
				r.States, live.Desired, live.Edges, live.Cycles, live.Fair)
			if r.Violation != nil {
				fails(t, m, r.Violation)
			}
			if !raceDetector && (!r.Complete || live.Desired == 0 || live.Fair == 0) {
				t.Fatal("it was not looked at completely")
			}
		})
	}
}

// TestPackedTimes takes walks twice: once in a world whose times grow, and once in one
// that is packed and unpacked after every step. Both must be one and the same: the times
// that clocks takes for one are.
func TestPackedTimes(t *testing.T) {
	for _, name := range []string{"fast-crash", "fast-cut", "fast-sever", "fast-handover", "fast-grow", "fast-breaker", "2x2"} {
		m := world(t, name)
		wk := m.newWorker()
		walks := 60
		if raceDetector {
			walks = 6
		}
		for seed := range walks {
			rng := rand.New(rand.NewPCG(uint64(seed), 1))
			grown, ticks := m.Initial()[0], 0
			packed := m.Initial()[0]
			for step := range 80 {
				actions := m.Actions(packed, nil)
				a := actions[rng.IntN(len(actions))]
				if a.Kind == Takeover || a.Kind == LongTick {
					continue // what is young would not stay so
				}
				if a.Kind == Tick {
					if ticks++; ticks > 6 {
						break
					}
				}
				if err := m.Apply(packed, a); err != nil {
					t.Fatal(err)
				}
				if err := m.Apply(grown, a); err != nil {
					t.Fatal(err)
				}
				one := bytes.Clone(wk.pack(packed))
				if other := wk.pack(grown); !bytes.Equal(one, other) {
					t.Fatalf("%s, seed %d, step %d, %v:\n%s\n%s", name, seed, step, a, packed.Summary(), grown.Summary())
				}
				packed = wk.unpack(one)
				if !bytes.Equal(one, wk.pack(packed)) {
					t.Fatalf("%s, seed %d, step %d: what was unpacked is packed differently", name, seed, step)
				}
			}
		}
	}
}

// TestTraces replays the traces of what was found once: nothing is broken by them any more.
func TestTraces(t *testing.T) {
	files, err := filepath.Glob("testdata/*.trace")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			name, actions, err := ReadTrace(f)
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			broken, err := world(t, name).Replay(actions, &text)
			if err != nil || broken != nil {
				t.Fatalf("%v %v\n%s", broken, err, text.String())
			}
		})
	}
}

// TestActionNames reads what String writes.
func TestActionNames(t *testing.T) {
	for k := range actionKinds {
		a := Action{k, 3, 1}
		if got, err := ParseAction(a.String()); err != nil || got != a {
			t.Errorf("%v: %v, %v", a, got, err)
		}
	}
}
